"""What training changes: parameters, optimiser, step; and the optimiser itself."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


@flax.struct.dataclass
class TrainState:
    """Everything a step updates. Teachers, weights and the run's key are arguments of the step, not state."""

    step: jax.Array  # int32, steps taken
    params: dict  # float32
    constants: dict  # flax collections that are read, never trained: the input standardisation
    opt_state: optax.OptState


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
) -> TrainState:
    """Initialises a model that reads `[B, T, input_size]`; `constants` replace the collections that are not trained."""

    def init():
        variables = model.init(key, jnp.zeros((1, 1, input_size)), jnp.ones((1, 1), bool))
        params = variables.pop("params")
        return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))

    state = jax.jit(init)()
    return state if constants is None else state.replace(constants=constants)
