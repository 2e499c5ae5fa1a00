"""What temporal filters share: the initial values of PyTorch, the 1×1 convolution, dropout."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import cpu_kernels

# PyTorch's default, U(±1/√fan_in) for kernels and biases, because the published filters were trained with it. flax's
# lecun_normal has √3 times its standard deviation and a zero bias.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in: int) -> nn.initializers.Initializer:
    """U(±1/√fan_in), PyTorch's default for the bias of a layer with `fan_in` inputs."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1, 1) * fan_in**-0.5

    return init


def pointwise(x: jax.Array, features: int, *, name: str, dtype: jnp.dtype = jnp.float32, **options) -> jax.Array:
    """1×1 convolution over time, `[B, T, D] -> [B, T, features]`, a submodule `name` of the calling module.

    `options` are those of `flax.linen.Dense`, for instance `use_bias` and `kernel_init`.
    """
    options = {"kernel_init": kernel_init, "bias_init": bias_init(x.shape[-1])} | options
    return nn.Dense(features, dtype=dtype, name=name, **options)(x)


class Dropout(nn.Module):
    """`flax.linen.Dropout` with cheaper random bits on a CPU; rng stream 'dropout', `rate` in [0, 1)."""

    rate: float

    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0:
            return x

        def plain(key, x):
            kept = jax.random.bernoulli(key, 1 - self.rate, x.shape)
            return jnp.where(kept, x / (1 - self.rate), jnp.zeros((), x.dtype))

        on_cpu = functools.partial(cpu_kernels.dropout, rate=self.rate)
        return cpu_kernels.by_platform(plain, on_cpu)(self.make_rng("dropout"), x)
