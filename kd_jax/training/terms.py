"""The losses of a training by name: a table of distillation terms, and one of task losses.

A new term is a function in kd_jax/losses, or a module in kd_jax/losses/owned, and one line of TERMS.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kd_jax import losses
from kd_jax.types import Array, Batch, Outputs, describe

Loss = Callable[..., jax.Array]


# What a loss reads: (student, teacher, batch, key) -> (arguments, keyword arguments).
def features(student, teacher, batch, key):
    return (student.features, teacher.features, batch.mask), {}


def sampled_features(student, teacher, batch, key):
    return (student.features, teacher.features, batch.mask), {"key": key}


def labelled_features(student, teacher, batch, key):
    return (student.features, teacher.features, batch.mask), {"labels": batch.labels, "key": key}


def logits(student, teacher, batch, key):
    activation = "sigmoid" if student.logits.shape[-1] == batch.labels.shape[-1] else "softmax"
    return (student.logits, teacher.logits, batch.mask), {"activation": activation}


def labelled_logits(student, teacher, batch, key):
    options = {"labels": batch.labels, "seen": taught_by([teacher], batch.mask)}
    return (student.logits, teacher.logits, batch.mask), options


def outputs(student, teacher, batch, key):
    return (student, teacher, batch.mask), {}


@dataclass(frozen=True, eq=False)  # compared by identity: a replaced entry of TERMS is another term
class Term:
    """One distillation term.

    `loss` is a function of arrays; {form: function} where the term has several forms; or a flax module that owns
    parameters or a memory. A module is called with the student's Outputs, those of all teachers and the batch. A
    function sees the snippets in which its teacher teaches, a module those in which all do, an `everywhere` term all
    snippets. `costly` terms take a large part of a step (`python -m benchmarks.losses`); runs that weigh one are
    compiled apart.
    """

    loss: Any  # Loss | Mapping[str, Loss] | type[nn.Module]
    reads: Callable = outputs  # selects the arguments of a function; a module reads everything
    everywhere: bool = False  # whether it handles `Outputs.teaches` itself
    needs_logits: bool = False  # whether it compares logits. A teacher that is a folder of features has none
    costly: bool = False

    @property
    def owns(self) -> bool:
        """Whether the term has parameters or a memory."""
        return isinstance(self.loss, type)

    def options(self) -> dict:
        """The options that a config may set, with their defaults; `form` first where there are several forms."""
        if self.owns:
            return _fields(self.loss)
        forms = self.functions()
        options = {"form": next(iter(forms))} if isinstance(self.loss, Mapping) else {}
        for function in forms.values():
            options |= _keywords(function)
        return options

    def functions(self) -> dict[str, Loss]:
        """{form: function}; a term with one form has the form ''."""
        return dict(self.loss) if isinstance(self.loss, Mapping) else {"": self.loss}


TERMS: dict[str, Term] = {
    "atomic": Term(losses.ATOMIC_FORMS, labelled_features),
    "global_context": Term(losses.global_context, features),
    "boundary": Term(losses.boundary, features),
    "rkd_distance": Term(losses.rkd_distance, sampled_features, costly=True),
    "rkd_angle": Term(losses.rkd_angle, sampled_features, costly=True),
    "similarity_preserving": Term(losses.similarity_preserving, features, costly=True),
    "pairwise_similarity": Term(losses.pairwise_similarity, features),
    "logit_distillation": Term(losses.logit_distillation, logits, needs_logits=True),
    "soft_labels": Term(losses.soft_labels, labelled_logits, needs_logits=True, everywhere=True),
    "soft_cross_entropy": Term(losses.soft_cross_entropy, logits, needs_logits=True),
    "hint": Term(losses.hint, features),
    "graph_distillation": Term(losses.graph_distillation, outputs, needs_logits=True),
    "crd": Term(losses.ContrastiveDistillation, costly=True),
    "holistic": Term(losses.HolisticDistillation, needs_logits=True),
    "learned_graph": Term(losses.LearnedGraph, needs_logits=True),
}


@dataclass(frozen=True)
class Task:
    """The task loss of a head, and the number of logits that it needs for C classes."""

    loss: Loss
    num_outputs: Callable[[int], int]


TASKS: dict[str, Task] = {
    "dense": Task(losses.sigmoid_cross_entropy, lambda num_classes: num_classes),
    "sparse": Task(losses.softmax_cross_entropy_with_background, lambda num_classes: num_classes + 1),
}


@dataclass(frozen=True)
class ChosenTerm:
    """A term with its options, as part of a compiled step."""

    name: str  # the key of TERMS
    term: Term
    options: tuple[tuple[str, object], ...] = ()  # (name, value) of the options that were set, sorted
    num_snippets: int = 0  # snippets of all training videos; a memory holds an entry for each

    def module(self) -> nn.Module:
        """The module of a term that owns something."""
        return self.term.loss(num_snippets=self.num_snippets, **dict(self.options))

    def value(
        self, student: Outputs, teachers: Sequence[Outputs], batch: Batch, key: jax.Array, variables: Mapping
    ) -> tuple[jax.Array, dict]:
        """The loss, summed over teachers, and the memory of the term's module after the step."""
        with jax.named_scope(self.name):
            if self.term.owns:
                rngs = {"sample": key}
                limited, share = self._limited(batch, teachers)
                inputs = student, teachers, limited
                loss, after = self.module().apply(variables, *inputs, rngs=rngs, mutable=["memory"])  # type: ignore[misc]
                return share * self._check(loss), dict(after)
            function, options = _function(self.term, dict(self.options))
            total = jnp.zeros(())
            for index, teacher in enumerate(teachers):
                limited, share = self._limited(batch, [teacher])
                read = self.term.reads(student, teacher, limited, jax.random.fold_in(key, index))
                if not isinstance(read, tuple) or [type(part) for part in read] != [tuple, dict]:
                    remedy = "it must return the arguments and the keyword arguments of the loss, (tuple, dict)"
                    raise ValueError(f"`reads` of the term {self.name} returned {describe(read)}; {remedy}")
                total += share * self._check(function(*read[0], **read[1], **options))
            return total, {}

    def _limited(self, batch: Batch, teachers: Sequence[Outputs]) -> tuple[Batch, Array | float]:
        """The batch with the snippets in which all teachers teach, and their share of its snippets.

        In a mean over snippets, the share keeps the weight of each snippet.
        """
        if self.term.everywhere:
            return batch, 1.0
        mask = taught_by(teachers, batch.mask)
        return replace(batch, mask=mask), jnp.sum(mask) / jnp.maximum(jnp.sum(batch.mask), 1)

    def _check(self, loss: Any) -> jax.Array:
        """Returns the value of a loss function; ValueError unless it is a scalar."""
        is_number = isinstance(loss, (float, jax.Array)) and jnp.issubdtype(jnp.result_type(loss), jnp.floating)
        if not is_number or jnp.shape(loss):
            remedy = "average with kd_jax.masking.masked_mean"
            raise ValueError(f"the term {self.name} returned {describe(loss)}; a loss is one float, []: {remedy}")
        return jnp.asarray(loss)


def taught_by(teachers: Sequence[Outputs], mask: jax.Array) -> jax.Array:
    """The part of the mask `[B, T]` in which all teachers teach."""
    places = [teacher.teaches[..., 0] for teacher in teachers if teacher.teaches is not None]
    return functools.reduce(jnp.logical_and, places, mask)


def choose_term(name: str, options: Mapping | None = None, num_snippets: int = 0) -> ChosenTerm:
    """A term by name with these options; ValueError for a term, form or option that does not exist."""
    if name not in TERMS:
        raise ValueError(f"unknown distillation term {name!r}; known terms: {', '.join(TERMS)}")
    term, options = TERMS[name], dict(options or {})
    known = term.options() if term.owns else _keywords(_function(term, dict(options))[0])
    form = f" of form {options['form']!r}" if isinstance(term.loss, Mapping) and "form" in options else ""
    for option in options:
        if option not in known and not (option == "form" and isinstance(term.loss, Mapping)):
            raise ValueError(f"{name}{form} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return ChosenTerm(name, term, tuple(sorted(options.items())), num_snippets if term.owns else 0)


def _function(term: Term, options: dict) -> tuple[Loss, dict]:
    """The loss function of a term, and the options that are left to pass to it."""
    if not isinstance(term.loss, Mapping):
        return term.loss, options
    form = options.pop("form", next(iter(term.loss)))
    if form not in term.loss:
        raise ValueError(f"form must be one of {', '.join(term.loss)}; got {form!r}")
    return term.loss[form], options


def _keywords(function: Loss) -> dict:
    """{keyword option: default} of a loss function, without what the step supplies or needs, which is a scalar."""
    supplied = {"labels", "key", "negatives", "activation", "reduction", "seen"}
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in supplied}


def _fields(module: type[nn.Module]) -> dict:
    """{option: default} of a module, without what the training supplies."""
    supplied = {"num_snippets", "parent", "name"}
    return {field.name: field.default for field in dataclasses.fields(module) if field.name not in supplied}
