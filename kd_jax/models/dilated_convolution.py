"""Convolution over time with three taps, dilated, as few and dense matrix products.

The outputs at t and t + d are computed together, from four products of half the length instead of six: Winograd's
minimal filtering F(2, 3). It is exact but for rounding, and nothing beyond the reach of a tap enters an output.

Not `lax.conv_general_dilated`: inside a `lax.scan`, XLA's CPU convolution falls to a single-threaded loop, 100 times
slower.

References:
  Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, §4.1.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.layers import add_bias, bias_init, kernel_init, product


class DilatedConv(nn.Module):
    """Convolution of three taps `t − d, t, t + d` with zero padding, `[B, T, D] -> [B, T, features]`.

    Attributes:
      features: output channels.
      max_dilation: a multiple of every d it will be called with.
      dtype: of the computation.
    """

    features: int
    max_dilation: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, dilation: jax.Array | int) -> jax.Array:
        width, length = x.shape[-1], x.shape[1]
        kernel = self.param("kernel", kernel_init, (3, width, self.features), jnp.float32)
        bias = self.param("bias", bias_init(3 * width), (self.features,), jnp.float32).astype(self.dtype)
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (0, -length % (2 * self.max_dilation)), (0, 0)))
        # Only x waits for the backward pass: its pairs and their sums are cheap to make again.
        convolve = jax.checkpoint(functools.partial(_convolve, most=self.max_dilation), prevent_cse=False)
        return add_bias(convolve(x, kernel, dilation)[:, :length], bias)


def _convolve(x: jax.Array, kernel: jax.Array, dilation: jax.Array | int, most: int) -> jax.Array:
    """The convolution with `kernel` `[3, D, H]`; T is a multiple of 2·`dilation`, which is at most `most`."""
    first, second = split(x, dilation)
    before, after = shift(second, dilation, most), shift(first, -dilation, most)  # t − d and t + 2d
    sums = before - second, first + second, second - first, after - first
    outer, middle = (kernel[0] + kernel[2]) / 2, kernel[1] / 2
    kernels = kernel[0], outer + middle, outer - middle, kernel[2]
    zero, one, two, three = (product(s, k.astype(x.dtype)) for s, k in zip(sums, kernels, strict=True))
    return merge(zero + one + two, one - two + three, dilation)


@jax.custom_vjp
def split(x: jax.Array, dilation: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The first and the second snippet of every pair t, t + `dilation`, `[B, T, H]` → twice `[B, T/2, H]`."""
    pair = jnp.arange(x.shape[1] // 2)
    first = pair // dilation * (2 * dilation) + pair % dilation
    return _gather(x, first), _gather(x, first + dilation)


@jax.custom_vjp
def merge(first: jax.Array, second: jax.Array, dilation: jax.Array | int) -> jax.Array:
    """The inverse of `split`."""
    pairs = first.shape[1]
    snippet = jnp.arange(2 * pairs)
    pair = snippet // (2 * dilation) * dilation + snippet % dilation
    return _gather(jnp.concatenate([first, second], axis=1), pair + snippet // dilation % 2 * pairs)


# Each is the other's gradient; JAX's own scatters into an array of zeros.
split.defvjp(
    lambda x, dilation: (split(x, dilation), dilation),
    lambda dilation, gradients: (merge(*gradients, dilation), None),
)
merge.defvjp(
    lambda first, second, dilation: (merge(first, second, dilation), dilation),
    lambda dilation, gradient: (*split(gradient, dilation), None),
)


@jax.custom_batching.custom_vmap
def _gather(x, order):
    # Every video its own indices, because XLA on CPU transposes the result when all videos share them.
    indices = jnp.broadcast_to(order[None, :, None], (len(x), len(order), 1))
    return jnp.take_along_axis(x, indices, axis=1, mode="clip")


@_gather.def_vmap
def _gather_side_by_side(size, is_batched, x, order):
    """Runs that train side by side are more videos; JAX's own rule would have them share the indices."""
    if is_batched[1]:
        return jax.vmap(lambda x, order: x[:, order], [0 if each else None for each in is_batched])(x, order), True
    merged = _gather(x.reshape(-1, *x.shape[2:]), order)
    return merged.reshape(*x.shape[:2], *merged.shape[1:]), True


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
