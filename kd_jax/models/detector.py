"""The detector: a temporal filter and a 1×1 classifier.

model = Detector('ss_tcn', num_outputs=157)
variables = model.init(jax.random.key(0), features, mask)
outputs = model.apply(variables, features, mask)  # Outputs(features [B, T, H], logits [B, T, C])
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import check_mask, mask_out
from kd_jax.models.bottleneck import Bottleneck
from kd_jax.models.layers import pointwise
from kd_jax.models.lstm import BiLSTM
from kd_jax.models.pdan import PDAN
from kd_jax.models.ss_tcn import MSTCN, SSTCN
from kd_jax.models.tgm import TGM, TGMSuperEvents
from kd_jax.types import Outputs, describe


class TemporalFilter(Protocol):
    """What the detector expects of a temporal filter, a flax module.

    Attributes:
      hidden: H, channels of the output.
      num_layers: number of layers; its default is the filter's own.
      dropout: dropout rate.
      dtype: dtype of the computation; parameters stay float32.
      receptive_field: number of snippets that one output sees, itself in the middle; None for the whole video.
    """

    hidden: int
    num_layers: int
    dropout: float
    dtype: jnp.dtype

    @property
    def receptive_field(self) -> int | None: ...

    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to features `[B, T, H]`; the padding must not change them."""
        ...


@dataclasses.dataclass(frozen=True)
class Filter:
    """An entry of `FILTERS`: a temporal filter and how the detector uses it.

    Attributes:
      make: the class; called with hidden, dropout, dtype and, if the user sets it, num_layers.
      num_stages: default number of stages. Each has its own filter and classifier, and reads the logits of the previous
        stage.
      between: applied to the logits before the next stage reads them; None leaves them unchanged.
      takes_num_outputs: whether `make` is also called with num_outputs, the number of logits.
    """

    make: Callable[..., TemporalFilter]
    num_stages: int = 1
    between: Callable[[jax.Array], jax.Array] | None = None
    takes_num_outputs: bool = False


FILTERS = {
    "ss_tcn": Filter(SSTCN),
    "pdan": Filter(PDAN),
    "tgm": Filter(TGM),
    "tgm_gaussian": Filter(functools.partial(TGM, curve="gaussian")),
    "tgm_super_events": Filter(TGMSuperEvents, takes_num_outputs=True),
    "ms_tcn": Filter(MSTCN, num_stages=4, between=jax.nn.softmax),
    "bilstm": Filter(BiLSTM),
    "bottleneck": Filter(Bottleneck),
}


class Detector(nn.Module):
    """Temporal filter and 1×1 classifier, from snippets to `Outputs`, in one or several stages.

    Parameters, features and logits are float32 for every dtype. The classifier, which is small, computes in float32, so
    that bfloat16 does not round the logits.

    Attributes:
      filter: a key of `FILTERS`.
      num_outputs: C, or C + 1 with a softmax head, where the last logit is the background.
      hidden, dropout, dtype: of the filter, as in `TemporalFilter`; dropout in [0, 1).
      num_layers: number of layers of the filter (of each stage); None for the filter's default.
      standardize: first normalise the input by the collection 'standardization', `mean` and `std` `[D]`, in float32.
        They start as 0 and 1. The caller sets them, std positive, and they are saved in the checkpoint.
      num_stages: number of stages; None for the filter's default, 4 for MS-TCN and 1 for the others.
      entry: the entry of `FILTERS`, looked up at construction. It is part of the detector's identity, by which programs
        are cached, so replacing an entry of `FILTERS` compiles new programs for later detectors.

    Raises: ValueError for an unknown filter or a dropout rate out of range, at construction.
    """

    filter: str
    num_outputs: int
    hidden: int = 256
    num_layers: int | None = None
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    standardize: bool = False
    num_stages: int | None = None
    entry: Filter = None  # type: ignore[assignment]  # set in __post_init__

    def __post_init__(self):
        if self.entry is None:
            if self.filter not in FILTERS:
                raise ValueError(f"Detector: unknown filter {self.filter!r}; known ones are {sorted(FILTERS)}.")
            self.entry = FILTERS[self.filter]
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Detector: dropout must be in [0, 1), got {self.dropout}.")
        super().__post_init__()

    @property
    def receptive_field(self) -> int | None:
        """Number of snippets that one output sees, itself in the middle; None for the whole video."""
        field = self._make_filter(parent=None).receptive_field
        return None if field is None else 1 + self._stages * (field - 1)

    @property
    def last_head(self) -> str:
        """The name, among the parameters, of the classifier that computes the logits."""
        return f"head_{self._stages}" if self._stages > 1 else "head"

    @property
    def _stages(self) -> int:
        return self.num_stages or self.entry.num_stages

    def _make_filter(self, **options: Any) -> TemporalFilter:
        if self.num_layers is not None:
            options["num_layers"] = self.num_layers
        if self.entry.takes_num_outputs:
            options["num_outputs"] = self.num_outputs
        return self.entry.make(hidden=self.hidden, dropout=self.dropout, dtype=self.dtype, **options)

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> Outputs:
        """Detect in `x` `[B, T, D]`, any float dtype, under `mask` `[B, T]` bool; `train` needs the rng 'dropout'.

        Returns: features `[B, T, H]` and logits `[B, T, C]` of the last stage, float32, 0 in the padding; in training
          also the logits of the earlier stages.
        Raises: ValueError if the shapes disagree, or the filter changes B or T or has another number of channels.
        """
        check_mask("Detector", mask, x=x)
        if self.standardize:
            mean = self.variable("standardization", "mean", jnp.zeros, (x.shape[-1],), jnp.float32)
            std = self.variable("standardization", "std", jnp.ones, (x.shape[-1],), jnp.float32)
            x = (x.astype(jnp.float32) - mean.value[None, None, :]) / std.value[None, None, :]
        logits: list[jax.Array] = []
        for stage in range(self._stages):
            suffix = f"_{stage + 1}" if stage else ""
            if stage:
                x = mask_out(self.entry.between(logits[-1]) if self.entry.between else logits[-1], mask)
            with jax.named_scope("filter"):
                features = self._make_filter(name=f"temporal_filter{suffix}")(x, mask, train=train)
                wanted = (*mask.shape, self.hidden)
                if not isinstance(features, jax.Array) or features.shape != wanted:
                    goal = f"it must return features [B, T, hidden], here {list(wanted)}"
                    raise ValueError(f"the filter {self.filter} returned {describe(features)}; {goal}")
                features = features.astype(jnp.float32)
            with jax.named_scope("head"):
                logits.append(mask_out(pointwise(features, self.num_outputs, name=f"head{suffix}"), mask))
        return Outputs(features=features, logits=logits[-1], earlier_logits=tuple(logits[:-1]) if train else ())
