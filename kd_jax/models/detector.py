"""The detector: a temporal filter and a 1×1 classifier.

model = Detector('ss_tcn', num_outputs=157)
variables = model.init(jax.random.key(0), features, mask)
outputs = model.apply(variables, features, mask)  # Outputs(features [B, T, H], logits [B, T, C])
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import check_mask, mask_out
from kd_jax.models.bottleneck import Bottleneck
from kd_jax.models.layers import pointwise
from kd_jax.models.lstm import BiLSTM
from kd_jax.models.pdan import PDAN
from kd_jax.models.ss_tcn import MSTCN, SSTCN
from kd_jax.models.tgm import TGM, TGMGaussian, TGMSuperEvents
from kd_jax.types import Outputs

# A filter is a module `(x [B, T, D], mask [B, T], train=) -> [B, T, hidden]` with the attributes hidden, num_layers and
# its default, dropout, dtype, and the number of snippets that an output sees as `receptive_field`, None for all. One
# that is stacked in stages says how many, `stages`, and what a stage reads of the logits before it, `between`.
FILTERS = {
    "ss_tcn": SSTCN,
    "pdan": PDAN,
    "tgm": TGM,
    "tgm_gaussian": TGMGaussian,
    "tgm_super_events": TGMSuperEvents,
    "ms_tcn": MSTCN,
    "bilstm": BiLSTM,
    "bottleneck": Bottleneck,
}


class Detector(nn.Module):
    """Temporal filter + 1×1 head, from snippets to `Outputs`, in one or several stages.

    Parameters are float32 whatever the dtype; features and logits come back as float32, and the head, which is small,
    computes in float32, so that bfloat16 does not round the logits.

    Attributes:
      filter: a key of `FILTERS`.
      num_outputs: C, or C + 1 with a softmax head, whose last logit is the background.
      hidden: H, channels of the filter.
      num_layers: layers of the filter (of each stage); None for the filter's own default.
      dropout: rate inside the filter.
      dtype: of the filter's computation.
      standardize: normalise the input by the collection 'standardization', `mean` and `std` `[D]`, first of all and in
        float32. They start as 0 and 1; the caller sets them, std positive, and they travel with the checkpoint.
      num_stages: None for the filter's own: 4 for MS-TCN, else 1.
    """

    filter: str
    num_outputs: int
    hidden: int = 256
    num_layers: int | None = None
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    standardize: bool = False
    num_stages: int | None = None

    @property
    def receptive_field(self) -> int | None:
        """Snippets that one output sees, itself in the middle; None for all of the video."""
        field = self._filter(parent=None).receptive_field
        return field and 1 + self._stages * (field - 1)

    @property
    def _stages(self) -> int:
        return self.num_stages or getattr(FILTERS[self.filter], "stages", 1)

    @property
    def last_head(self) -> str:
        """The name, among the parameters, of the classifier that gives the logits."""
        return f"head_{self._stages}" if self._stages > 1 else "head"

    def _filter(self, **options) -> nn.Module:
        kind = FILTERS[self.filter]
        options |= {} if self.num_layers is None else {"num_layers": self.num_layers}
        options |= {"num_outputs": self.num_outputs} if hasattr(kind, "num_outputs") else {}
        return kind(hidden=self.hidden, dropout=self.dropout, dtype=self.dtype, **options)

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> Outputs:
        """Detect in `x` `[B, T, D]`, any float dtype, under `mask` `[B, T]` bool.

        Args:
          x: snippet features; what stands in the padding does not matter.
          mask: True where a snippet is real.
          train: whether dropout is on; it then needs the rng 'dropout'.

        Returns:
          Features `[B, T, H]` and logits `[B, T, C]` of the last stage, float32, 0 in the padding; in training also the
          logits of the stages before.

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
        between, stages = getattr(FILTERS[self.filter], "between", lambda logits: logits), []
        for stage in range(self._stages):
            suffix = f"_{stage + 1}" if stage else ""
            x = mask_out(between(stages[-1]), mask) if stage else x
            features = self._filter(name=f"temporal_filter{suffix}")(x, mask, train=train).astype(jnp.float32)
            stages.append(mask_out(pointwise(features, self.num_outputs, name=f"head{suffix}"), mask))
        return Outputs(features=features, logits=stages[-1], earlier_logits=tuple(stages[:-1]) if train else ())
