"""The state of a training (parameters, optimiser state and step), and its optimiser."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from kd_jax.training.terms import ChosenTerm
from kd_jax.types import Batch, Outputs


@flax.struct.dataclass
class TrainState:
    """Everything that a step updates. Teachers, weights, learning rate and key are arguments of the step."""

    step: jax.Array  # int32, steps taken
    params: dict  # float32 parameters of the model; those of the terms are in params[OWNED]
    constants: dict  # flax collections that are read but not trained: the input standardisation
    opt_state: optax.OptState
    memory: dict = flax.struct.field(default_factory=dict)  # {term: collections} of terms with a memory


OWNED = "terms"  # the part of `params` that belongs to terms instead of the model: {term: params}


def model_params(params: dict) -> dict:
    """The parameters of the model alone."""
    return {name: value for name, value in params.items() if name != OWNED}


class Average(NamedTuple):
    """The state of `average_params`."""

    step: jax.Array  # int32, parameters averaged so far
    params: dict


def average_params(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters, and leaves updates as they are.

    The decay of step t is `min(decay, t / (9 + t))`, t = 0, 1, …, so that the first parameters do not dominate. The
    average is one step late: it has the parameters that the step was given.
    """

    def init(params):
        return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        kept = jnp.minimum(decay, state.step / (9 + state.step))
        average = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.params, params)
        return updates, Average(state.step + 1, average)

    return optax.GradientTransformation(init, update)


def evaluated_params(state: TrainState) -> dict:
    """The parameters of the model that are evaluated, and kept as the best: the average, if there is one."""
    average = _find(Average, state.opt_state)
    return model_params(state.params if average is None else average.params)


def _find(kind: type, opt_state: optax.OptState) -> Any:
    """The state of one part of an optimiser; None if it has no such part."""

    def is_kind(x):
        return isinstance(x, kind)

    return next(filter(is_kind, jax.tree.leaves(opt_state, is_leaf=is_kind)), None)


# Optimisers of optax that a config can name. The update of each is proportional to its learning rate.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: getattr(optax, name) for name in ("adam", "adamw", "nadamw", "lamb", "lion", "rmsprop", "sgd")
}
# Schedules: the number of steps after the warm-up -> the factor of the learning rate at each step.
SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
}


@dataclass(frozen=True)
class Optimization:
    """How parameters follow the gradient; kd_jax/config.py describes the fields.

    The learning rate is not part of it: it is an argument of the step, so that runs with different rates share one
    compiled program. The optimiser is made for a rate of 1, and the step multiplies its updates by the rate.
    """

    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    schedule: str = "constant"
    warmup_epochs: int = 0
    plateau_patience: int = 0
    ema_decay: float = 0.0
    epochs: int = 1
    steps_per_epoch: int = 1

    def __post_init__(self):
        if self.weight_decay and "weight_decay" not in inspect.signature(OPTIMIZERS[self.optimizer]).parameters:
            able = [name for name, make in OPTIMIZERS.items() if "weight_decay" in inspect.signature(make).parameters]
            needs = f"needs an optimizer that has it ({', '.join(able)}), not {self.optimizer!r}"
            raise ValueError(f"weight_decay={self.weight_decay} {needs}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}")

    def make(self) -> optax.GradientTransformationExtraArgs:
        """The optimiser for a learning rate of 1; its `update` needs `value`, which the plateau rule watches."""
        decay = {"weight_decay": self.weight_decay} if self.weight_decay else {}
        parts = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        parts.append(OPTIMIZERS[self.optimizer](1.0, **decay))
        if self.plateau_patience:
            plateau = {"patience": self.plateau_patience, "accumulation_size": self.steps_per_epoch}
            parts.append(optax.contrib.reduce_on_plateau(factor=0.5, min_scale=1e-3, **plateau))
        if self.ema_decay:
            parts.append(average_params(self.ema_decay))
        return optax.with_extra_args_support(optax.chain(*parts))

    def factor(self, step: jax.Array) -> jax.Array:
        """The share of the learning rate that the schedule leaves at a step."""
        warmup = self.warmup_epochs * self.steps_per_epoch
        decay = SCHEDULES[self.schedule](self.epochs * self.steps_per_epoch - warmup)
        if not warmup:
            return decay(step)
        rise = optax.linear_schedule(1 / (warmup + 1), 1.0, warmup)
        return optax.join_schedules([rise, decay], [warmup])(step)


def plateau_scale(opt_state: optax.OptState) -> jax.Array | float:
    """The factor to which the plateau rule has reduced the learning rate; 1 without such a rule."""
    plateau = _find(optax.contrib.ReduceLROnPlateauState, opt_state)
    return 1.0 if plateau is None else plateau.scale


def create_train_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    input_size: int,
    *,
    terms: Sequence[ChosenTerm] = (),
    teachers: Sequence[Outputs] = (),
    num_classes: int = 0,
) -> TrainState:
    """Initialises a model that reads `[B, T, input_size]`, and what terms own.

    Args:
      model, optimizer, key: the detector, the result of `Optimization.make`, and a PRNG key.
      input_size: D.
      terms: the terms of the step. Those that own something see outputs as wide as those of `teachers`.
      teachers: Outputs of `[T, H]` and `[T, C]`; only their widths matter.
      num_classes: C, of the labels that those terms see.
    """
    features, mask = jnp.zeros((1, 1, input_size)), jnp.ones((1, 1), bool)

    def init():
        variables: Any = model.init(key, features, mask)
        params, memory = variables.pop("params"), {}
        owning = [chosen for chosen in terms if chosen.term.owns]
        if owning:
            student: Any = model.apply({"params": params, **variables}, features, mask)
            like = [jax.tree.map(lambda x: jnp.zeros((1, 1, x.shape[-1])), teacher) for teacher in teachers]
            batch = Batch(features, jnp.zeros((1, 1, num_classes)), mask, jnp.zeros(1, jnp.int32))
            params[OWNED] = {}
            for index, chosen in enumerate(owning):
                keys = dict(zip(("params", "sample"), jax.random.split(jax.random.fold_in(key, index)), strict=True))
                of_term: Any = dict(chosen.module().init(keys, student, like, batch))
                params[OWNED][chosen.name], memory[chosen.name] = of_term.pop("params", {}), of_term
        return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params), memory)

    return jax.jit(init)()
