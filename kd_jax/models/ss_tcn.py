"""SS-TCN, the default temporal filter: five residual layers of dilated convolution, no normalisation."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
from kd_jax.models.dilated_convolution import DilatedConv
from kd_jax.models.layers import Dropout, pointwise


class ResidualLayer(nn.Module):
    """`h + dropout(conv1×1(relu(conv3(h, dilation))))`, masked; the attributes are those of SSTCN."""

    hidden: int
    max_dilation: int
    dropout: float
    dtype: jnp.dtype
    train: bool

    @nn.compact
    def __call__(self, h: jax.Array, dilation: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        u = nn.relu(DilatedConv(self.hidden, self.max_dilation, self.dtype, name="dilated")(h, dilation))
        u = pointwise(u, self.hidden, dtype=self.dtype, name="pointwise")
        return mask_out(h + Dropout(self.dropout)(u, deterministic=not self.train), mask), None


class SSTCN(nn.Module):
    """Single-stage temporal convolutional network.

    `h = conv1×1(x)`, then for i = 0 … num_layers − 1: `u = relu(conv3(h, dilation 2^i))`,
    `h = h + dropout(conv1×1(u))`, masked after every step, so that padding says nothing.

    The layers are one `scan` over stacked parameters, `layers/…` with a leading axis of num_layers: they compile once,
    and each hands a finished array to the next. Unrolled, XLA's CPU backend fuses the whole backward chain of additions
    into every weight gradient and computes it again for each of them, half of a distillation step.

    Attributes:
      hidden: H, channels of every layer.
      num_layers: residual layers; the receptive field is `receptive_field` snippets.
      dropout: rate inside the residual branch.
      dtype: of the computation; parameters stay float32.

    References:
      Stage 1 of MS-TCN (Farha and Gall, CVPR 2019), METHOD §3 [code]. The public code leaves the first 1×1 unmasked, so
      its bias leaks from the padding into the last valid snippets of a short video; here it is masked too.
    """

    hidden: int = 256
    num_layers: int = 5
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @property
    def receptive_field(self) -> int:
        """Snippets that one output sees: 63 for 5 layers."""
        return 2 ** (self.num_layers + 1) - 1

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to features `[B, T, H]`, 0 in the padding."""
        x = mask_out(x.astype(self.dtype), mask)
        h = mask_out(pointwise(x, self.hidden, dtype=self.dtype, name="input"), mask)
        dilations = 2 ** jnp.arange(self.num_layers)
        layers = nn.scan(
            ResidualLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.num_layers,
        )(self.hidden, 2 ** (self.num_layers - 1), self.dropout, self.dtype, train, name="layers")
        return layers(h, dilations, mask)[0]
