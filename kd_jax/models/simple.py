"""The usual baselines: no view over time at all, and a view over all of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
from kd_jax.models.layers import Dropout, pointwise


class Bottleneck(nn.Module):
    """Layers of `dropout(relu(conv1×1(x)))`: every snippet for itself.

    Attributes:
      hidden: H, channels.
      num_layers: layers.
      dropout: rate after each.
      dtype: of the computation; parameters stay float32.
    """

    hidden: int = 256
    num_layers: int = 1
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    receptive_field = 1

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to features `[B, T, H]`, 0 in the padding."""
        x = mask_out(x.astype(self.dtype), mask)
        for i in range(self.num_layers):
            x = nn.relu(pointwise(x, self.hidden, dtype=self.dtype, name=f"layer_{i}"))
            x = Dropout(self.dropout)(x, deterministic=not train)
        return mask_out(x, mask)


class BiLSTM(nn.Module):
    """Bidirectional LSTM: half of the channels read the video forwards, half backwards.

    Attributes:
      hidden: H, channels, even.
      num_layers: layers, each with dropout after it.
      dropout: rate.
      dtype: of the computation; parameters stay float32.
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

        The valid snippets of a video stand together at its beginning.

        Raises:
          ValueError: for an odd number of channels.
        """
        if self.hidden % 2:
            raise ValueError(f"BiLSTM: hidden must be even, one half for each direction; got {self.hidden}.")
        x = mask_out(x.astype(self.dtype), mask)
        lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
        for i in range(self.num_layers):
            one_way = [nn.RNN(nn.OptimizedLSTMCell(self.hidden // 2, dtype=self.dtype)) for _ in range(2)]
            x = nn.Bidirectional(*one_way, name=f"layer_{i}")(x, seq_lengths=lengths)
            x = Dropout(self.dropout)(x, deterministic=not train)
        return mask_out(x, mask)
