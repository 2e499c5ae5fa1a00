"""One training step, the same for teachers, plain students and distilled students.

    loss = weight · task + Σ over terms of weight · (Σ over teachers of term(student, teacher))

Training a teacher is the same step without terms.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class Program:
    """What a compiled step is made of. Runs with equal programs share one compilation.

    `balance` says what the weight of a term means. 'loss': it multiplies the term. 'gradient': the term is scaled in
    every step so that the norm of its gradient at the student's features is the weight times the norm of the task's.
    'competence': it multiplies the term; terms that compare features see only the snippets in which the teacher is
    better than the student, and are also multiplied by the competence of the teachers.
    `gradient_norms`: whether a step measures these norms; 'gradient' measures them anyway. They cost a second backward
    pass through the losses, but not through the model.
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
    measure = program.gradient_norms or program.balance == "gradient"

    def compute(state: TrainState, teachers: tuple[Outputs, ...], batch: Batch, settings: Settings):
        dropout_key, term_key = jax.random.split(jax.random.fold_in(settings.key, state.step))

        def total_loss(params):
            variables, rngs = {"params": model_params(params), **state.constants}, {"dropout": dropout_key}
            student: Any = program.model.apply(variables, batch.features, batch.mask, train=True, rngs=rngs)
            owned = {name: {"params": own, **state.memory[name]} for name, own in params.get(OWNED, {}).items()}
            parts = loss_parts(program, teachers, batch, term_key, settings.weights, owned)
            weights, norms, known = settings.weights, {}, {}
            if measure:
                kernel = params[program.model.last_head]["kernel"]
                norms = gradient_norms(parts, *jax.lax.stop_gradient((student, kernel)))
            if program.balance == "gradient":
                weights = balanced_weights(weights, norms)
            elif program.balance == "competence":
                known = {"competence": mean_competence(teachers, batch)}
                weights = competent_weights(program.terms, weights, known["competence"])
            values, memory = {}, {}
            for name, loss in parts.items():
                values[name], memory[name] = loss(student)
            total = sum(weights[name] * value for name, value in values.items())
            return total, (values, norms, known, {name: after for name, after in memory.items() if after})

        (loss, (values, norms, known, memory)), gradient = jax.value_and_grad(total_loss, has_aux=True)(state.params)
        norms = {f"gradient/{name}": norm for name, norm in norms.items()}
        return gradient, memory, {"loss": loss, **values, **norms, **known, "snippets": jnp.sum(batch.mask)}

    return compute


def make_update(program: Program) -> Callable:
    """Returns `update(state, gradient, memory, metrics, settings) -> (state, metrics)`.

    With 'gradient' as balance the plateau rule watches the task loss, because the scaled sum is not one function of the
    parameters.
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


def gradient_norms(losses: Mapping[str, Callable], student: Outputs, kernel: jax.Array) -> dict[str, jax.Array]:
    """The norm, over the batch, of each loss's gradient at the student's features.

    It includes the path from the features through the classifier to the logits. `losses` come from `loss_parts`,
    `student` has `[B, T, H]` features and `[B, T, C]` logits, and `kernel` `[H, C]` is the classifier's.
    """

    def at(loss, features):
        logits = student.logits + (features - student.features) @ kernel  # the value of the logits does not change
        return loss(replace(student, features=features, logits=logits))[0]

    def norm(loss):
        gradient = jax.grad(lambda features: at(loss, features))(student.features)
        return jnp.sqrt(jnp.vdot(gradient, gradient, precision=jax.lax.Precision.HIGHEST))

    return {name: norm(loss) for name, loss in losses.items()}


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


def competent_weights(terms: Sequence[ChosenTerm], weights: Mapping[str, Array], factor: Array) -> dict[str, Array]:
    """Weights times the factor for terms that compare features; the others stay."""
    of_features = {chosen.name for chosen in terms if not chosen.term.needs_logits}
    return {name: weight * factor if name in of_features else weight for name, weight in weights.items()}
