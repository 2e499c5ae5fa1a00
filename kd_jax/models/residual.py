"""The stack of residual layers that SS-TCN, MS-TCN and PDAN share; only what mixes the snippets differs."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
from kd_jax.models.layers import Dropout, pointwise


class ResidualLayer(nn.Module):
    """`h + dropout(conv1×1(relu(mix(h, dilation))))`, masked; the attributes are those of ResidualStack."""

    mix: Callable[[], nn.Module]
    hidden: int
    dropout: float
    dtype: jnp.dtype
    train: bool

    @nn.compact
    def __call__(self, h: jax.Array, dilation: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        u = pointwise(nn.relu(self.mix()(h, dilation)), self.hidden, dtype=self.dtype, name="pointwise")
        return mask_out(h + Dropout(self.dropout)(u, deterministic=not self.train), mask), None


class ResidualStack(nn.Module):
    """A 1×1 convolution, then residual layers i = 0, 1, … that mix the snippets t − 2^i, t, t + 2^i.

    The layers are one `scan` over stacked parameters, `layers/…` with a leading axis of num_layers: they compile once,
    and each hands a finished array to the next. Unrolled, XLA's CPU backend fuses the whole backward chain of additions
    into every weight gradient and computes it again for each of them, half of a distillation step.

    Attributes:
      hidden: H, channels of every layer.
      num_layers: residual layers; the receptive field is `receptive_field` snippets.
      dropout: rate inside the residual branch.
      dtype: of the computation; parameters stay float32.
    """

    hidden: int = 256
    num_layers: int = 5
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @property
    def receptive_field(self) -> int:
        """Snippets that one output sees: 63 for 5 layers."""
        return 2 ** (self.num_layers + 1) - 1

    @property
    def mix(self) -> Callable[[], nn.Module]:
        """Makes what a layer does over time: a module `[B, T, H], dilation -> [B, T, H]`."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to features `[B, T, H]`, 0 in the padding."""
        x = mask_out(x.astype(self.dtype), mask)
        h = mask_out(pointwise(x, self.hidden, dtype=self.dtype, name="input"), mask)
        layers = nn.scan(
            ResidualLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.num_layers,
        )(self.mix, self.hidden, self.dropout, self.dtype, train, name="layers")
        return layers(h, 2 ** jnp.arange(self.num_layers), mask)[0]
