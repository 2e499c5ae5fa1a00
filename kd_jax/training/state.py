"""What training changes: parameters, optimiser, step; and the optimiser itself."""

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from kd_jax.types import Batch, Outputs


@flax.struct.dataclass
class TrainState:
    """Everything a step updates. Teachers, weights and the run's key are arguments of the step, not state."""

    step: jax.Array  # int32, steps taken
    params: dict  # float32
    constants: dict  # flax collections that are read, never trained: the input standardisation
    opt_state: optax.OptState
    memory: dict = flax.struct.field(default_factory=dict)  # {term: collections} of terms that remember


OWNED = "terms"  # the part of `params` that belongs to terms, not to the model: {term: params}


def model_params(params: dict) -> dict:
    """What belongs to the model alone: what is evaluated, and kept as the best."""
    return {name: value for name, value in params.items() if name != OWNED}


def make_optimizer(
    learning_rate: float, *, plateau_patience: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Adam whose rate is halved when the epoch's mean loss has not fallen for `plateau_patience` epochs (0 = never)."""
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=learning_rate)
    if not plateau_patience:
        return optax.with_extra_args_support(optax.chain(adam))
    return optax.chain(
        adam,
        optax.contrib.reduce_on_plateau(
            factor=0.5, patience=plateau_patience, accumulation_size=steps_per_epoch, min_scale=1e-3
        ),
    )


def current_learning_rate(state: TrainState) -> jax.Array:
    """Adam's rate after the plateau rule."""
    scale = state.opt_state[1].scale if len(state.opt_state) > 1 else 1.0
    return state.opt_state[0].hyperparams["learning_rate"] * scale


def create_train_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    input_size: int,
    constants: dict | None = None,
    terms: Mapping[str, nn.Module] | None = None,
    teachers: Sequence[Outputs] = (),
    num_classes: int = 0,
) -> TrainState:
    """Initialises a model that reads `[B, T, input_size]`; `constants` replace the collections that are not trained.

    `terms`: the modules of those that own something, which see outputs as wide as those of `teachers`, `[T, H]` and
    `[T, C]`.
    """

    def one(outputs):
        return jax.tree.map(lambda x: jnp.zeros((1, 1, x.shape[-1])), outputs)

    def init():
        mask = jnp.ones((1, 1), bool)
        variables = model.init(key, jnp.zeros((1, 1, input_size)), mask)
        params = variables.pop("params")
        memory = {}
        if terms:
            student = model.apply({"params": params, **variables}, jnp.zeros((1, 1, input_size)), mask)
            batch = Batch(mask[..., None], jnp.zeros((1, 1, num_classes)), mask, jnp.zeros(1, jnp.int32))
            params[OWNED] = {}
            for index, (term, module) in enumerate(terms.items()):
                keys = dict(zip(("params", "sample"), jax.random.split(jax.random.fold_in(key, index)), strict=True))
                owned = dict(module.init(keys, student, [one(t) for t in teachers], batch))
                params[OWNED][term], memory[term] = owned.pop("params", {}), owned
        return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params), memory)

    state = jax.jit(init)()
    return state if constants is None else state.replace(constants=constants)
