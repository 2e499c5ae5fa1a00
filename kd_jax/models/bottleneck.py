"""Bottleneck: the usual baseline that sees one snippet at a time."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
from kd_jax.models.layers import Dropout, pointwise


class Bottleneck(nn.Module):
    """Layers of `dropout(relu(conv1×1(x)))`, applied to each snippet separately; attributes as in `TemporalFilter`."""

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
