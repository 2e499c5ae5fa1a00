"""One step for teachers, plain students and distilled students.

    loss = task + Σ over teachers, over terms of weight · term(student, teacher)

Without teachers it is plain training: that is how the teacher itself was trained. TERMS is the one place where a term
picks its fields; a new one is a function in kd_jax/losses and a line here.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from kd_jax import losses
from kd_jax.train_state import TrainState
from kd_jax.types import Batch, Outputs


# Each picks the fields of student, teacher and batch that its loss compares.
def _features(loss):
    return lambda student, teacher, batch, key, **options: loss(
        student.features, teacher.features, batch.mask, **options
    )


def _sampled_features(loss):
    return lambda student, teacher, batch, key, **options: loss(
        student.features, teacher.features, batch.mask, key=key, **options
    )


def _logits(loss):
    def read(student, teacher, batch, key, **options):
        activation = "sigmoid" if student.logits.shape[-1] == batch.labels.shape[-1] else "softmax"
        return loss(student.logits, teacher.logits, batch.mask, activation=activation, **options)

    return read


def _atomic(student, teacher, batch, key, **options):
    return losses.atomic(student.features, teacher.features, batch.mask, labels=batch.labels, key=key, **options)


def _graph_distillation(student, teacher, batch, key, **options):
    return losses.graph_distillation(student, teacher, batch.mask, **options)


# Term: (what it reads of student, teacher and batch; the loss whose keyword options a config may set).
TERMS: dict[str, tuple[Callable, Callable]] = {
    "atomic": (_atomic, losses.atomic),
    "global_context": (_features(losses.global_context), losses.global_context),
    "boundary": (_features(losses.boundary), losses.boundary),
    "rkd_distance": (_sampled_features(losses.rkd_distance), losses.rkd_distance),
    "rkd_angle": (_sampled_features(losses.rkd_angle), losses.rkd_angle),
    "similarity_preserving": (_features(losses.similarity_preserving), losses.similarity_preserving),
    "pairwise_similarity": (_features(losses.pairwise_similarity), losses.pairwise_similarity),
    "logit_distillation": (_logits(losses.logit_distillation), losses.logit_distillation),
    "soft_cross_entropy": (_logits(losses.soft_cross_entropy), losses.soft_cross_entropy),
    "hint": (_features(losses.hint), losses.hint),
    "graph_distillation": (_graph_distillation, losses.graph_distillation),
}

# Head: (task loss, number of logits for C classes).
TASKS: dict[str, tuple[Callable, Callable[[int], int]]] = {
    "dense": (losses.sigmoid_cross_entropy, lambda num_classes: num_classes),
    "sparse": (losses.softmax_cross_entropy_with_background, lambda num_classes: num_classes + 1),
}


def term_options(term: str) -> dict:
    """The options of a term's loss that a config may set, with their defaults."""
    supplied = {"labels", "key", "negatives", "activation"}
    parameters = inspect.signature(TERMS[term][1]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in supplied}


def total_loss(
    student: Outputs,
    teachers: Sequence[Outputs],
    batch: Batch,
    key: jax.Array,
    weights: Mapping[str, jax.Array],
    *,
    head: str,
    options: Mapping[str, Mapping] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The task loss, summed over the stages of the student, plus the weighted terms, summed over teachers.

    Args:
      student, teachers: Outputs of `[B, T, H]` features and `[B, T, C]` logits; teachers get no gradient.
      batch: the labels and the mask.
      key: draws the negatives.
      weights: {term: weight}, numbers or traced arrays.
      head: 'dense' or 'sparse'.
      options: {term: keyword options of its loss}.

    Returns:
      The scalar, and every part before weighting: {'task': …, term: sum over teachers}.

    Raises:
      ValueError: for an unknown term, or weights without a teacher.
    """
    unknown = [term for term in weights if term not in TERMS]
    if unknown:
        raise ValueError(f"unknown distillation term {unknown[0]!r}; known terms: {', '.join(TERMS)}")
    if weights and not teachers:
        raise ValueError(f"the terms {', '.join(weights)} compare with a teacher, but no teacher was given")
    task = TASKS[head][0]
    parts = {"task": sum(task(x, batch.labels, batch.mask) for x in (*student.earlier_logits, student.logits))}
    total = parts["task"]
    for term, weight in weights.items():
        read = TERMS[term][0]
        values = [
            read(student, teacher, batch, jax.random.fold_in(key, index), **(options or {}).get(term, {}))
            for index, teacher in enumerate(teachers)
        ]
        parts[term] = sum(values)
        total = total + weight * parts[term]
    return total, parts


def make_train_step(
    model: nn.Module, optimizer: optax.GradientTransformation, *, head: str, options: Mapping | None = None
) -> Callable:
    """Returns `step(state, teachers, batch, weights, key) -> (state, metrics)`, a pure function for `jax.jit`.

    `weights` and the run's `key` are traced, so runs that differ in them share one compiled program.
    """

    def train_step(state: TrainState, teachers: tuple[Outputs, ...], batch: Batch, weights: dict, key: jax.Array):
        dropout_key, term_key = jax.random.split(jax.random.fold_in(key, state.step))

        def loss_of(params):
            student = model.apply(
                {"params": params, **state.constants},
                batch.features,
                batch.mask,
                train=True,
                rngs={"dropout": dropout_key},
            )
            return total_loss(student, teachers, batch, term_key, weights, head=head, options=options)

        (loss, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, value=loss)
        metrics = {
            "loss": loss,
            **parts,
            "gradient_norm": optax.tree.norm(gradients),
            "snippets": jnp.sum(batch.mask),
        }
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def eval_step(model: nn.Module, variables: dict, features: jax.Array, mask: jax.Array) -> Outputs:
    """`[B, T, D]` → Outputs, without dropout; jitted by the caller with `model` static."""
    return model.apply(variables, features, mask)
