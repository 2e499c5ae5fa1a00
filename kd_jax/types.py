"""The two values that travel through a step, and the shape letters of every docstring.

Letters: B videos, T snippets, D input features, H hidden features, C classes.
A padded snippet and a padded video are the same thing: False in `mask`.
"""

import flax.struct
import jax


@flax.struct.dataclass
class Batch:
    """Padded videos, as one model reads them.

    Attributes:
      features: `[B, T, D]`, of the one modality the model reads; what other modalities have to say reaches the step as
        the `Outputs` of teachers.
      labels: `[B, T, C]`, 1 where the class is active in the snippet.
      mask: `[B, T]` bool, True where a real snippet stands.
      first: `[B]` int32, the number of each video's first snippet among those of all training videos; a term with a
        memory of them needs it.
    """

    features: jax.Array
    labels: jax.Array
    mask: jax.Array
    first: jax.Array | None = None


@flax.struct.dataclass
class Outputs:
    """What a detector computes, by name; loss terms pick fields.

    Attributes:
      features: `[B, T, H]`, the temporal filter's output, which distillation reads.
      logits: `[B, T, C]`, before sigmoid or softmax; with a softmax head the last one is the background.
      earlier_logits: the same of earlier stages, of a filter in stages while it trains: each has a task loss too.
    """

    features: jax.Array
    logits: jax.Array
    earlier_logits: tuple[jax.Array, ...] = ()
