"""One training step, the same for teachers, plain students and distilled students.

    loss = weight · task + Σ over terms of weight · (Σ over teachers of term(student, teacher))

Training a teacher is the same step without terms.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax import runtime
from kd_jax.losses import competence
from kd_jax.models import Detector
from kd_jax.models.cpu_kernels import one_platform
from kd_jax.training.state import OWNED, Optimization, TrainState, create_train_state, model_params, plateau_scale
from kd_jax.training.terms import TASKS, ChosenTerm, taught_by
from kd_jax.types import Array, Batch, Outputs

BALANCES = ("loss", "gradient", "competence")
LARGEST_PULL = 0.5  # balance='competence': largest weight · norm of a term of features, relative to the task's norm


@dataclass(frozen=True)
class Program:
    """What a compiled step is made of. Runs with equal programs share one compilation.

    `balance` says what the weight of a term means. 'loss': it multiplies the term. 'gradient': the term is scaled in
    every step so that the norm of its gradient at the student's features is the weight times the norm of the task's.
    'competence': it multiplies the term, and so does the competence of the teachers (`competent_weights`). Terms that
    read no logits see only the snippets in which the teacher is better than the student, and are each scaled down
    where their norm would exceed LARGEST_PULL times that of the unweighted task.
    `gradient_norms`: whether a step reports these norms; 'gradient' reports them anyway.
    """

    model: Detector  # the student
    head: str  # 'dense' or 'sparse', the key of TASKS
    terms: tuple[ChosenTerm, ...] = ()  # a run may give some of them the weight 0
    optimization: Optimization = Optimization()  # noqa: RUF009, it is frozen
    balance: str = "loss"
    gradient_norms: bool = False

    def __post_init__(self):
        if self.balance not in BALANCES:
            raise ValueError(f"balance must be one of {', '.join(BALANCES)}; got {self.balance!r}")


@flax.struct.dataclass
class Settings:
    """What distinguishes runs of one program; traced, so that it can differ between them."""

    weights: dict  # {'task' or term: weight}
    learning_rate: Array  # before schedule and plateau rule
    key: jax.Array  # PRNG key of the run; a step folds its number in


def make_init(program: Program, input_size: int, num_classes: int, taught: Sequence[tuple[int, int]]) -> Callable:
    """Returns `init(key) -> state`, a pure function: the state before the first step, for the PRNG key of a run.

    Args:
      program: model, optimiser and terms.
      input_size, num_classes: D of the features, and C of the labels.
      taught: the widths of the features and of the logits of each teacher.
    """
    teachers = [Outputs(np.zeros((1, width)), np.zeros((1, logits))) for width, logits in taught]

    @one_platform()
    def init(key: jax.Array) -> TrainState:
        key = jax.random.fold_in(key, 2**31 - 1)  # no step has this number
        owned: dict[str, Any] = {"terms": program.terms, "teachers": teachers, "num_classes": num_classes}
        return create_train_state(program.model, program.optimization.make(), key, input_size, **owned)

    return init


def jitted_init(program: Program, input_size: int, num_classes: int, taught: tuple[tuple[int, int], ...]):
    """The jitted function from the keys of P runs to their initial states, `[P, …]`; arguments as in `make_init`.

    Programs with equal initial states share one function.
    """
    owning = tuple(chosen for chosen in program.terms if chosen.term.owns)
    relevant = Program(program.model, program.head, owning, program.optimization)
    return _jitted_init(relevant, input_size, num_classes, taught if owning else ())


@functools.lru_cache(maxsize=64)
def _jitted_init(program: Program, input_size: int, num_classes: int, taught: tuple[tuple[int, int], ...]):
    init = jax.vmap(make_init(program, input_size, num_classes, taught))
    return jax.jit(init, compiler_options=runtime.compiler_options(quick=True))


def make_train_step(program: Program) -> Callable:
    """Returns `step(state, teachers, batch, settings) -> (state, metrics)`, a pure function for `jax.jit`.

    `teachers` is a tuple of the Outputs of each teacher for the batch. `metrics` has the loss, each of its parts before
    weighting, the norm of the gradient, the learning rate and the number of snippets, all scalars.
    """
    compute, update = make_gradient(program), make_update(program)

    def train_step(state: TrainState, teachers: tuple[Outputs, ...], batch: Batch, settings: Settings):
        return update(state, *compute(state, teachers, batch, settings), settings)

    return train_step


def make_gradient(program: Program) -> Callable:
    """Returns `compute(state, teachers, batch, settings) -> (gradient, memory, metrics)`.

    This is the part of a step that depends on the length of the batch. `memory` is {term: collections} of
    the terms with a memory, after the step.
    """
    reported = program.gradient_norms or program.balance == "gradient"
    of_features = {chosen.name for chosen in program.terms if not chosen.term.needs_logits}

    def compute(state: TrainState, teachers: tuple[Outputs, ...], batch: Batch, settings: Settings):
        dropout_key, term_key = jax.random.split(jax.random.fold_in(settings.key, state.step))

        def apply(params):
            variables, rngs = {"params": model_params(params), **state.constants}, {"dropout": dropout_key}
            student: Any = program.model.apply(variables, batch.features, batch.mask, train=True, rngs=rngs)
            return student, params.get(OWNED, {})

        def part(name, outputs):
            student, own = outputs
            owned = {term: {"params": params, **state.memory[term]} for term, params in own.items()}
            return loss_parts(program, teachers, batch, term_key, settings.weights, owned)[name](student)

        # Each part is differentiated at the outputs; the weighted sum of the gradients passes through the model once.
        outputs, pull_back = jax.vjp(apply, state.params)
        values, memory, gradients = {}, {}, {}
        for name in ("task", *(chosen.name for chosen in program.terms)):
            differentiate = jax.value_and_grad(functools.partial(part, name), has_aux=True)
            (values[name], memory[name]), gradients[name] = differentiate(outputs)
        kernel = state.params[program.model.last_head]["kernel"]
        norms = gradient_norms({name: of_student for name, (of_student, _) in gradients.items()}, kernel, of_features)
        weights, known = settings.weights, {}
        if program.balance == "gradient":
            weights = balanced_weights(weights, norms)
        elif program.balance == "competence":
            known = {"competence": mean_competence(teachers, batch)}
            weights = competent_weights(weights, known["competence"], norms, of_features)
        (gradient,) = pull_back(_weighted_sum(weights, gradients))
        loss = sum(weights[name] * value for name, value in values.items())
        known |= {f"gradient/{name}": norm for name, norm in norms.items() if reported}
        memory = {name: after for name, after in memory.items() if after}
        return gradient, memory, {"loss": loss, **values, **known, "snippets": jnp.sum(batch.mask)}

    return compute


def _weighted_sum(weights: Mapping[str, Array], trees: Mapping[str, Any]) -> Any:
    """The sum of weight · tree, in the dtypes of the trees."""
    scaled = [jax.tree.map(lambda x, w=weights[name]: (w * x).astype(x.dtype), tree) for name, tree in trees.items()]
    return jax.tree.map(lambda *each: sum(each), *scaled)


def make_update(program: Program) -> Callable:
    """Returns `update(state, gradient, memory, metrics, settings) -> (state, metrics)`.

    With 'gradient' as balance the plateau rule watches the task loss, because the scaled sum is not one function of the
    parameters. With 'competence' it watches the sum, although the weight of a term may change from step to step.
    """
    optimizer = program.optimization.make()
    watched = "task" if program.balance == "gradient" else "loss"

    def update(state: TrainState, gradient: dict, memory: dict, metrics: dict, settings: Settings):
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, value=metrics[watched])
        rate = settings.learning_rate * program.optimization.factor(state.step)
        params = optax.apply_updates(state.params, jax.tree.map(lambda update: rate * update, updates))
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "learning_rate": rate * plateau_scale(opt_state)}
        memory = {**state.memory, **memory}
        return replace(state, step=state.step + 1, params=params, opt_state=opt_state, memory=memory), metrics

    return update


def loss_parts(
    program: Program,
    teachers: tuple[Outputs, ...],
    batch: Batch,
    key: jax.Array,
    weights: Mapping[str, Array],
    owned: Mapping[str, Mapping] | None = None,
) -> dict[str, Callable]:
    """The parts of the loss before weighting, {'task' or term: student's Outputs -> (loss, memory afterwards)}.

    A part of weight 0 sees an empty mask, for which every loss is 0 with finite gradients: 0 times a loss that is not
    finite would be NaN.

    Args:
      program, batch: the head and terms; labels and mask.
      teachers: Outputs of `[B, T, H]` features and `[B, T, C]` logits; they get no gradient.
      key: draws the negatives.
      weights: {'task' or term: weight}.
      owned: {term: variables} of terms that own something.

    Raises ValueError for terms without a teacher.
    """
    if program.terms and not teachers:
        names = ", ".join(chosen.name for chosen in program.terms)
        raise ValueError(f"the terms {names} compare with a teacher, but no teacher was given")

    def batch_of(name):
        return replace(batch, mask=batch.mask & (weights[name] != 0))

    def task(student):
        loss, own = TASKS[program.head].loss, batch_of("task")
        with jax.named_scope("task"):
            stages = (*student.earlier_logits, student.logits)
            return sum(loss(logits, own.labels, own.mask) for logits in stages), {}

    def term(chosen, student):
        taught: Sequence[Outputs] = teachers
        if program.balance == "competence" and not chosen.term.needs_logits:
            taught = [where_better(program.head, teacher, student, batch) for teacher in teachers]
        return chosen.value(student, taught, batch_of(chosen.name), key, (owned or {}).get(chosen.name, {}))

    terms = {chosen.name: lambda student, chosen=chosen: term(chosen, student) for chosen in program.terms}
    return {"task": task, **terms}


def gradient_norms(
    gradients: Mapping[str, Outputs], kernel: jax.Array, of_features: Collection[str] = ()
) -> dict[str, jax.Array]:
    """The norm, over the batch, of the gradient of each part of the loss at the student's features.

    It includes the path from the features through the classifier to the logits. `gradients` is {part: gradient with
    respect to the student's Outputs}, with features `[B, T, H]` and logits `[B, T, C]`; `kernel` `[H, C]` is that of
    the last classifier; `of_features` are parts that read no logits.
    """

    def norm(name, gradient):
        pull = gradient.features
        if name not in of_features:  # XLA does not remove the product with zeros
            pull = pull + gradient.logits @ kernel.T
        return jnp.sqrt(jnp.vdot(pull, pull, precision=jax.lax.Precision.HIGHEST))

    return {name: norm(name, gradient) for name, gradient in gradients.items()}


def balanced_weights(weights: Mapping[str, jax.Array], norms: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Weights with which each term's gradient has `weight` times the norm of the task's; 0 for a norm of 0."""
    scaled = {
        name: jnp.where(norms[name] > 0, weight * norms["task"] / jnp.maximum(norms[name], 1e-30), 0.0)
        for name, weight in weights.items()
        if name != "task"
    }
    return {"task": weights["task"], **scaled}


def where_better(head: str, teacher: Outputs, student: Outputs, batch: Batch) -> Outputs:
    """The teacher, limited to the snippets in which its task loss is below the student's.

    A teacher that is a folder of features has no logits, and stays as it is.
    """
    if not teacher.logits.shape[-1]:
        return teacher
    loss = functools.partial(TASKS[head].loss, labels=batch.labels, mask=batch.mask, reduction="none")
    better = (loss(teacher.logits) < loss(student.logits))[..., None]
    return replace(teacher, teaches=better if teacher.teaches is None else teacher.teaches & better)


def mean_competence(teachers: Sequence[Outputs], batch: Batch) -> Array:
    """The mean competence of the teachers where they teach; that of a folder of features, which has no logits, is 1."""
    with_logits = [each for each in teachers if each.logits.shape[-1]]
    known = [competence(each.logits, batch.labels, taught_by([each], batch.mask)) for each in with_logits]
    return (sum(known) + len(teachers) - len(known)) / max(len(teachers), 1)


def competent_weights(
    weights: Mapping[str, Array], of_teachers: Array, norms: Mapping[str, Array], of_features: Collection[str]
) -> dict[str, Array]:
    """Weights times K, the competence `of_teachers`; for the terms `of_features` times max(0, 2 K - 1), and limited.

    Their pull, weight times norm, is at most LARGEST_PULL times the norm of the unweighted task.
    """
    largest = {name: LARGEST_PULL * norms["task"] / jnp.maximum(norms[name], 1e-30) for name in of_features}
    factor = jnp.maximum(0.0, 2.0 * of_teachers - 1.0)
    limited = {name: jnp.minimum(weights[name] * factor, largest[name]) for name in of_features}
    others = {name: weight * of_teachers for name, weight in weights.items()}
    return {**others, **limited, "task": weights["task"]}
