"""Convolution over time with three taps, dilated, as few and dense matrix products.

The outputs at t and t + d are computed together, from four products of half the length instead of six: Winograd's
minimal filtering F(2, 3). It is exact but for rounding, and nothing beyond the reach of a tap enters an output.

Not `lax.conv_general_dilated`: inside a `lax.scan`, XLA's CPU convolution falls to a single-threaded loop, 100 times
slower.

References:
  Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, §4.1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.layers import bias_init, kernel_init


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
        outer, middle = (kernel[0] + kernel[2]) / 2, kernel[1] / 2
        kernels = jnp.stack([kernel[0], outer + middle, outer - middle, kernel[2]]).astype(self.dtype)
        # Whole blocks of 2d snippets.
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (0, -length % (2 * self.max_dilation)), (0, 0)))
        return _convolve(x, kernels, dilation)[:, :length] + bias[None, None]


@jax.custom_vjp
def _convolve(x: jax.Array, kernels: jax.Array, dilation: jax.Array | int) -> jax.Array:
    """The convolution with F(2, 3)'s four `kernels` `[4, D, H]`; T is a multiple of 2·`dilation`."""
    zero, one, two, three = (sums @ kernel for sums, kernel in zip(_sums(x, dilation), kernels, strict=True))
    is_first, pair = _pair_of_snippet(x.shape[1], dilation)
    zero, one, two, three = (_rows(array, pair) for array in (zero, one, two, three))
    return one + jnp.where(is_first, zero + two, three - two)


def _convolve_forward(x, kernels, dilation):
    return _convolve(x, kernels, dilation), (x, kernels, dilation)


def _convolve_backward(saved, gradient):
    # By hand: JAX's gradient of a gather is a scatter, though these only reorder.
    x, kernels, dilation = saved
    first = _first_of_pair(x.shape[1], dilation)
    a, b = _rows(gradient, first), _rows(gradient, first + dilation)
    gradients = a, a + b, a - b, b
    of_kernels = [
        jax.lax.dot_general(s.reshape(-1, s.shape[-1]), g.reshape(-1, g.shape[-1]), (((0,), (0,)), ((), ())))
        for s, g in zip(_sums(x, dilation), gradients, strict=True)
    ]
    zero, one, two, three = (g @ kernel.T for g, kernel in zip(gradients, kernels, strict=True))
    is_first, pair = _pair_of_snippet(x.shape[1], dilation)
    as_first = _rows(three, pair - dilation, pair >= dilation) - _rows(three, pair) - _rows(two, pair)
    as_second = _rows(zero, pair + dilation, pair + dilation < zero.shape[1]) - _rows(zero, pair) + _rows(two, pair)
    return _rows(one, pair) + jnp.where(is_first, as_first, as_second), jnp.stack(of_kernels), None


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _sums(x: jax.Array, dilation: jax.Array | int) -> tuple[jax.Array, ...]:
    """What F(2, 3)'s four kernels are multiplied with, each `[B, T/2, D]`, a row a pair of snippets."""
    first, length = _first_of_pair(x.shape[1], dilation), x.shape[1]
    before = _rows(x, first - dilation, first >= dilation)
    a, b = _rows(x, first), _rows(x, first + dilation)
    after = _rows(x, first + 2 * dilation, first + 2 * dilation < length)
    return before - b, a + b, b - a, after - a


def _first_of_pair(length: int, dilation: jax.Array | int) -> jax.Array:
    """The earlier snippet of every pair (t, t + d), `[T/2]`."""
    pair = jnp.arange(length // 2)
    return pair // dilation * (2 * dilation) + pair % dilation


def _pair_of_snippet(length: int, dilation: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Whether each snippet is the earlier one of its pair, `[1, T, 1]`, and the pair's number, `[T]`."""
    snippet = jnp.arange(length)
    pair = snippet // (2 * dilation) * dilation + snippet % dilation
    return (snippet // dilation % 2 == 0)[None, :, None], pair


def _rows(x: jax.Array, index: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """`x[:, index]`, 0 where not `valid`."""
    # A video's own indices, because XLA on CPU transposes the result when all videos share them.
    each = jnp.broadcast_to(index[None, :, None], (len(x), len(index), 1))
    rows = jnp.take_along_axis(x, each, axis=1, mode="clip")
    return rows if valid is None else jnp.where(valid[None, :, None], rows, 0)
