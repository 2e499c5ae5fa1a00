"""The detector: a temporal filter and a 1×1 classifier.

model = Detector('ss_tcn', num_outputs=157)
variables = model.init(jax.random.key(0), features, mask)
outputs = model.apply(variables, features, mask)  # Outputs(features [B, T, H], logits [B, T, C])
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import check_mask, mask_out
from kd_jax.models.layers import pointwise
from kd_jax.models.ss_tcn import SSTCN
from kd_jax.types import Outputs

FILTERS = {
    "ss_tcn": SSTCN,
}


class Detector(nn.Module):
    """Temporal filter + 1×1 head, from snippets to `Outputs`.

    Parameters are float32 whatever the dtype; features and logits come back as float32, and the head, which is small,
    computes in float32, so that bfloat16 does not round the logits.

    Attributes:
      filter: a key of `FILTERS`.
      num_outputs: C, or C + 1 with a softmax head, whose last logit is the background.
      hidden: H, channels of the filter.
      num_layers: layers of the filter.
      dropout: rate inside the filter.
      dtype: of the filter's computation.
      standardize: normalise the input by the collection 'standardization', `mean` and `std` `[D]`, first of all and in
        float32. They start as 0 and 1; the caller sets them, std positive, and they travel with the checkpoint.
    """

    filter: str
    num_outputs: int
    hidden: int = 256
    num_layers: int = 5
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    standardize: bool = False

    @property
    def receptive_field(self) -> int:
        """Snippets that one output sees, itself in the middle."""
        return FILTERS[self.filter](hidden=self.hidden, num_layers=self.num_layers).receptive_field

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> Outputs:
        """Detect in `x` `[B, T, D]`, any float dtype, under `mask` `[B, T]` bool.

        Args:
          x: snippet features; what stands in the padding does not matter.
          mask: True where a snippet is real.
          train: whether dropout is on; it then needs the rng 'dropout'.

        Returns:
          Features `[B, T, H]` and logits `[B, T, C]`, float32, 0 in the padding.

        Raises:
          ValueError: if the filter is unknown or the shapes disagree.
        """
        if self.filter not in FILTERS:
            raise ValueError(f"Detector: unknown filter {self.filter!r}; known ones are {sorted(FILTERS)}.")
        check_mask("Detector", mask, x=x)
        if self.standardize:
            mean = self.variable("standardization", "mean", jnp.zeros, (x.shape[-1],), jnp.float32)
            std = self.variable("standardization", "std", jnp.ones, (x.shape[-1],), jnp.float32)
            x = (x.astype(jnp.float32) - mean.value[None, None, :]) / std.value[None, None, :]
        temporal_filter = FILTERS[self.filter](
            hidden=self.hidden,
            num_layers=self.num_layers,
            dropout=self.dropout,
            dtype=self.dtype,
            name="temporal_filter",
        )
        features = temporal_filter(x, mask, train=train).astype(jnp.float32)
        logits = mask_out(pointwise(features, self.num_outputs, name="head"), mask)
        return Outputs(features=features, logits=logits)
