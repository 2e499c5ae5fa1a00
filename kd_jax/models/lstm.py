"""Bidirectional LSTM: the usual baseline that sees the whole video."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
from kd_jax.models import cpu_kernels
from kd_jax.models.layers import Dropout, pointwise


class BiLSTM(nn.Module):
    """Bidirectional LSTM: half of the channels read the video forwards, half backwards.

    Kernels start as in flax's LSTM cells, the recurrent one of each gate orthogonal; biases start as in PyTorch.
    Attributes are those of `TemporalFilter`; `hidden` is even, and the cell states stay float32 for every dtype.
    """

    hidden: int = 256
    num_layers: int = 1
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    receptive_field = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to `[B, T, H]`, 0 in the padding; ValueError if H is odd."""
        if self.hidden % 2:
            raise ValueError(f"BiLSTM: hidden must be even, one half for each direction; got {self.hidden}.")
        x = mask_out(x.astype(self.dtype), mask)
        for i in range(self.num_layers):
            x = BothDirections(self.hidden // 2, self.dtype, name=f"layer_{i}")(x, mask)
            x = Dropout(self.dropout)(x, deterministic=not train)
        return mask_out(x, mask)


class BothDirections(nn.Module):
    """One LSTM forwards and one backwards in time, in one loop: `[B, T, D] -> [B, T, 2 · features]`."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        size, lecun = self.features, nn.initializers.lecun_normal()
        gates = pointwise(x, 8 * size, name="input", dtype=self.dtype, kernel_init=lecun)
        kernel = self.param("recurrent", _orthogonal, (2, size, 4 * size), jnp.float32)
        gates = _reverse_second(jnp.moveaxis(gates.reshape(*mask.shape, 2, 4 * size), (1, 2), (0, 1)))
        valid = _reverse_second(jnp.broadcast_to(mask.T[:, None], (mask.shape[1], 2, mask.shape[0])))
        recur = cpu_kernels.by_platform(run_lstm, cpu_kernels.run_lstm)
        hidden = _reverse_second(recur(gates, kernel.astype(self.dtype), valid))
        return jnp.moveaxis(hidden, (0, 1), (1, 2)).reshape(*mask.shape, 2 * size).astype(self.dtype)


def run_lstm(gates: jax.Array, kernel: jax.Array, mask: jax.Array) -> jax.Array:
    """Run `i, f, g, o = gates_t + h_{t−1} K`, `c_t = σ(f) c_{t−1} + σ(i) tanh g`, `h_t = σ(o) tanh c_t`.

    For two directions, `gates` `[T, 2, B, 4h]` is the contribution of the input, and `kernel` K `[2, h, 4h]` has its
    dtype. Where `mask` `[T, 2, B]` is False, h and c are 0. Returns h, `[T, 2, B, h]`, float32.
    """

    def step(carry, inputs):
        hidden, cell = carry
        gates, valid = inputs
        recurrent = jnp.einsum("dbn,dnm->dbm", hidden.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
        i, f, g, o = jnp.split(gates.astype(jnp.float32) + recurrent, 4, axis=-1)
        cell = mask_out(nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g), valid)
        hidden = mask_out(nn.sigmoid(o) * jnp.tanh(cell), valid)
        return (hidden, cell), hidden

    start = jnp.zeros((*gates.shape[1:3], kernel.shape[1]), jnp.float32)
    return jax.lax.scan(step, (start, start), (gates, mask))[1]


def _reverse_second(x):
    """`[T, 2, …]` with the time of the second direction reversed."""
    return jnp.stack([x[:, 0], x[::-1, 1]], axis=1)


def _orthogonal(key, shape, dtype):
    """An orthogonal matrix for each direction and gate."""
    directions, size, width = shape
    keys = jax.random.split(key, (directions, width // size))
    each = jax.vmap(jax.vmap(lambda key: nn.initializers.orthogonal()(key, (size, size), dtype)))(keys)
    return jnp.moveaxis(each, 1, 2).reshape(shape)
