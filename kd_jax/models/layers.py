"""Layers that temporal filters share: 1×1 convolution, dilated convolution, dropout with cheap random bits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

# PyTorch's default, U(±1/√fan_in) for kernels and biases, because the published filters were trained with it; flax's
# lecun_normal has √3 times its standard deviation and a zero bias.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in: int) -> nn.initializers.Initializer:
    """U(±1/√fan_in), PyTorch's default for the bias of a layer with `fan_in` inputs."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1, 1) * fan_in**-0.5

    return init


def pointwise(x: jax.Array, features: int, *, name: str, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """1×1 convolution over time, `[B, T, D] -> [B, T, features]`, a submodule `name` of the calling module."""
    dense = nn.Dense(
        features,
        dot_general=lambda x, kernel, *_, **__: product(x, kernel),
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init(x.shape[-1]),
        name=name,
    )
    return dense(x)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, `[B, T, D] × [D, H] -> [B, T, H]`.

    The gradient of the kernel is a product of the two arrays as they lie in memory; JAX's own order of the operands
    makes XLA on CPU transpose one of them first.
    """
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(saved, gradient):
    x, kernel = saved
    rows, columns = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return gradient @ kernel.T, jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))


product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def shift(x: jax.Array, steps: jax.Array | int, most: int) -> jax.Array:
    """`x` `[B, T, H]` moved `steps` snippets later (earlier if negative), zeros moving in; |steps| ≤ `most`."""
    padded = jnp.pad(x, ((0, 0), (most, most), (0, 0)))
    return jax.lax.dynamic_slice_in_dim(padded, most - steps, x.shape[1], axis=1)


def _shift_forward(x, steps, most):
    return shift(x, steps, most), steps


def _shift_backward(most, steps, gradient):
    return shift(gradient, -steps, most), None  # back again; JAX's own gradient writes into an array of zeros


shift.defvjp(_shift_forward, _shift_backward)


class DilatedConv(nn.Module):
    """Convolution of three taps `t − d, t, t + d` with zero padding, `[B, T, D] -> [B, T, features]`.

    Three matrix products whose results are shifted, not `lax.conv_general_dilated`: inside a `lax.scan`, XLA's CPU
    convolution falls to a single-threaded loop, 100 times slower.

    Attributes:
      features: output channels.
      max_dilation: the largest d it will be called with.
      dtype: of the computation.
    """

    features: int
    max_dilation: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, dilation: jax.Array | int) -> jax.Array:
        width = x.shape[-1]
        kernel = self.param("kernel", kernel_init, (3, width, self.features), jnp.float32).astype(self.dtype)
        bias = self.param("bias", bias_init(3 * width), (self.features,), jnp.float32).astype(self.dtype)
        x, most = x.astype(self.dtype), self.max_dilation
        earlier = shift(product(x, kernel[0]), dilation, most)
        later = shift(product(x, kernel[2]), -dilation, most)
        return earlier + product(x, kernel[1]) + later + bias[None, None, :]


class Dropout(nn.Module):
    """Dropout that spends 8 random bits on an element instead of 32; rng stream 'dropout'.

    Four elements share one 32-bit word: the generator was a large part of a CPU step. The rate is therefore rounded to
    a multiple of 1/256, and what is kept is scaled by the exact inverse of the rounded keep probability.

    Attributes:
      rate: probability of dropping, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        if not 0 <= self.rate < 1:
            raise ValueError(f"Dropout: rate must be in [0, 1), got {self.rate}.")
        threshold = min(round(self.rate * 256), 255)
        if deterministic or threshold == 0:
            return x
        words = jax.random.bits(self.make_rng("dropout"), (*x.shape[:-1], -(-x.shape[-1] // 4)), jnp.uint32)
        eighths = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
        return jnp.where(eighths >= threshold, x * (256 / (256 - threshold)), jnp.zeros((), x.dtype))
