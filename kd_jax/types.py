"""The two values that pass through a training step, and the shape letters of every docstring.

Letters: B videos, T snippets, D input features, H hidden features, C classes.
The mask is False for padded snippets and for every snippet of a padded video.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

Array = Any  # a jax.Array within a step; a np.ndarray, or only the shape of one, on the host


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Padded videos in one modality, as a model reads them.

    Attributes:
      features: `[B, T, D]`, the modality that the model reads. Other modalities enter a step as teachers' `Outputs`.
      labels: `[B, T, C]`, 1 where the class is active in the snippet.
      mask: `[B, T]` bool, True at real snippets.
      first: `[B]` int32, the position of each video's first snippet in the list of all training snippets. Terms that
        keep a memory of snippets need it.
    """

    features: Array
    labels: Array
    mask: Array
    first: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
    """What a detector computes, by name; each loss term selects fields.

    Attributes:
      features: `[B, T, H]`, the output of the temporal filter, which distillation compares.
      logits: `[B, T, C]`, before sigmoid or softmax. For a softmax head the last class is the background.
      earlier_logits: the logits of the earlier stages of a multi-stage filter during training. Each stage has a task
        loss.
      teaches: `[B, T, 1]` bool, of a frozen teacher: where terms compare with it. False where its input is 0 in every
        channel, for instance because no camera sees a person. None: everywhere.
    """

    features: Array
    logits: Array
    earlier_logits: tuple[Array, ...] = ()
    teaches: Array | None = None


def describe(value: object) -> str:
    """Returns what a function of the user returned, in words: 'float32 [2, 4]', 'a tuple'."""
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"
