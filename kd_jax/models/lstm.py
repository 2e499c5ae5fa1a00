"""Bidirectional LSTM: the usual baseline that sees the whole video."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
from kd_jax.models.layers import Dropout, contract_rows, pointwise


class BiLSTM(nn.Module):
    """Bidirectional LSTM: half of the channels read the video forwards, half backwards.

    Kernels begin as flax's cells have them, each gate's recurrent one orthogonal, biases as everywhere here [default].

    Attributes:
      hidden: H, channels, even.
      num_layers: layers, each with dropout after it.
      dropout: rate.
      dtype: of the computation; parameters, and what the cells remember, stay float32.
      receptive_field: None, because every output sees the whole video.
    """

    hidden: int = 256
    num_layers: int = 1
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    receptive_field = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to features `[B, T, H]`, 0 in the padding.

        Raises:
          ValueError: for an odd number of channels.
        """
        if self.hidden % 2:
            raise ValueError(f"BiLSTM: hidden must be even, one half for each direction; got {self.hidden}.")
        x = mask_out(x.astype(self.dtype), mask)
        for i in range(self.num_layers):
            x = BothWays(self.hidden // 2, self.dtype, name=f"layer_{i}")(x, mask)
            x = Dropout(self.dropout)(x, deterministic=not train)
        return mask_out(x, mask)


class BothWays(nn.Module):
    """One LSTM from the first snippet to the last, one back, `[B, T, D] -> [B, T, 2 · features]`, in one loop.

    What reads the input is one product over all snippets, outside of the loop.

    Attributes:
      features: of each direction.
      dtype: of the products.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        size, lecun = self.features, nn.initializers.lecun_normal()
        gates = pointwise(x, 8 * size, name="input", dtype=self.dtype, kernel_init=lecun)
        kernel = self.param("recurrent", _orthogonal, (2, size, 4 * size), jnp.float32)
        gates = _turn(jnp.moveaxis(gates.reshape(*mask.shape, 2, 4 * size), (1, 2), (0, 1)))
        valid = _turn(jnp.broadcast_to(mask.T[:, None], (mask.shape[1], 2, mask.shape[0])))
        hidden = _turn(recur(gates, kernel.astype(self.dtype), valid))
        return jnp.moveaxis(hidden, (0, 1), (1, 2)).reshape(*mask.shape, 2 * size).astype(self.dtype)


def _turn(x):
    """`[T, 2, …]` with the second direction's time turned round."""
    return jnp.stack([x[:, 0], x[::-1, 1]], axis=1)


def _orthogonal(key, shape, dtype):
    """An orthogonal matrix for each direction and gate."""
    directions, size, width = shape
    keys = jax.random.split(key, (directions, width // size))
    each = jax.vmap(jax.vmap(lambda key: nn.initializers.orthogonal()(key, (size, size), dtype)))(keys)
    return jnp.moveaxis(each, 1, 2).reshape(shape)


@jax.custom_vjp
def recur(gates: jax.Array, kernel: jax.Array, mask: jax.Array) -> jax.Array:
    """An LSTM: `i, f, g, o = gates_t + h_{t−1} K`, `c_t = σ(f) c_{t−1} + σ(i) tanh g`, `h_t = σ(o) tanh c_t`.

    The backward pass keeps the gates' gradients and makes the kernel's of them in one product at the end; JAX's own
    adds to an array of the kernel's size in every step.

    Args:
      gates: `[T, 2, B, 4h]`, what the input says, for two directions.
      kernel: K, `[2, h, 4h]`, of the same type as `gates`.
      mask: `[T, 2, B]` bool; where it is False, h and c are 0.

    Returns:
      h, `[T, 2, B, h]`, float32.
    """
    return _recur_forward(gates, kernel, mask)[0]


def _multiply(x, kernel):
    """`[2, B, n] × [2, n, m] -> [2, B, m]`, float32."""
    return jnp.einsum("dbn,dnm->dbm", x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def _recur_forward(gates, kernel, mask):
    def step(carry, now):
        hidden, cell = carry
        said, valid = now
        i, f, g, o = jnp.split(said.astype(jnp.float32) + _multiply(hidden, kernel), 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        cell = mask_out(f * cell + i * g, valid)
        hidden = mask_out(o * jnp.tanh(cell), valid)
        return (hidden, cell), (hidden, cell, jnp.concatenate([i, f, g, o], axis=-1))

    start = jnp.zeros((*gates.shape[1:3], kernel.shape[1]), jnp.float32)
    _, (hidden, cells, opened) = jax.lax.scan(step, (start, start), (gates, mask))
    return hidden, (hidden, cells, opened, kernel, mask)


def _recur_backward(saved, gradient):
    hidden, cells, opened, kernel, mask = saved
    transposed = jnp.swapaxes(kernel, 1, 2)

    def before(x):
        return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    def step(carry, now):
        of_hidden, of_cell = carry
        given, cell, earlier, gates, valid = now
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        squashed = jnp.tanh(cell)
        of_hidden = mask_out(given + of_hidden, valid)
        of_cell = mask_out(of_cell, valid) + of_hidden * o * (1 - squashed**2)
        of_gates = jnp.concatenate(
            [
                of_cell * g * i * (1 - i),
                of_cell * earlier * f * (1 - f),
                of_cell * i * (1 - g**2),
                of_hidden * squashed * o * (1 - o),
            ],
            axis=-1,
        )
        return (_multiply(of_gates, transposed), of_cell * f), of_gates

    start = jnp.zeros_like(hidden[0])
    along = (gradient, cells, before(cells), opened, mask)
    of_gates = jax.lax.scan(step, (start, start), along, reverse=True)[1]
    # Videos before snippets, so that rows of the videos of one device stay there.
    rows, columns = (jnp.moveaxis(x, 0, 2).astype(kernel.dtype) for x in (before(hidden), of_gates))
    of_kernel = [contract_rows(*(x[way].reshape(-1, x.shape[-1]) for x in (rows, columns))) for way in range(2)]
    return of_gates.astype(kernel.dtype), jnp.stack(of_kernel), None


recur.defvjp(_recur_forward, _recur_backward)
