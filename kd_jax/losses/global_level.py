"""Global contextual distillation: compares the correlation matrices of student and teacher over a whole video."""

import jax
import jax.numpy as jnp

from kd_jax.losses.grams import gram, gram_distance, num_pairs
from kd_jax.masking import mask_out, masked_mean, masked_pair, real_videos, unit

# A channel or snippet counts as constant, and hence uncorrelated, if its variance is below this share of its mean
# square. A smaller variance is float32 rounding of the mean.
_CONSTANT_SHARE = 1e-10


def global_context(student: jax.Array, teacher: jax.Array, mask: jax.Array, *, relation: str = "channel") -> jax.Array:
    """Squared distance between the correlation matrices of student and teacher, averaged over real videos.

    `channel` [default] correlates the channels over the video: `Fc = F − mean_t F`, `R = D^{-½} FcᵀFc D^{-½}` (`H×H`),
    `L = ‖R_S − R_T‖²_F / H²`. `snippet` correlates the snippets: `R = AAᵀ` (`T×T`), where the rows of `A` are centred
    over channels and L2-normalised, and `L = ‖R_S − R_T‖²_F / T²`, where T counts the valid snippets of the video. The
    widths may then differ. Correlations with a constant channel or snippet are 0.

    Args:
      student, teacher: `[B, T, H]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      relation: 'channel' or 'snippet'.

    Returns: a float32 scalar, the mean over videos with valid snippets; 0 for an empty mask.
    Raises: ValueError if the relation is unknown.
    References: The global level of Augmented-RGB: a covariance matrix is [supp]. Correlation instead of
      covariance, the choice of channel or snippet, and the division by H² or T² are [default].
    """
    if relation not in ("channel", "snippet"):
        raise ValueError(f"global_context: relation must be 'channel' or 'snippet', got {relation!r}.")
    student, teacher = masked_pair("global_context", student, teacher, mask, same_width=relation == "channel")
    distance = _channel_distance if relation == "channel" else _snippet_distance
    return masked_mean(distance(student, teacher, mask), real_videos(mask))


def _channel_distance(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """`‖R_S − R_T‖²_F / H²` per video, `[B]`."""

    def correlation(features: jax.Array) -> jax.Array:
        centred = mask_out(features - masked_mean(features, mask, axis=1)[:, None], mask)
        square = jnp.sum(features * features, axis=1, keepdims=True)
        return gram(unit(centred, axis=1, floor=_CONSTANT_SHARE * square))

    difference = correlation(student) - correlation(teacher)
    return jnp.mean(difference * difference, axis=(1, 2))


def _snippet_distance(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """`‖AAᵀ − BBᵀ‖²_F / T²` per video, `[B]`, without a `T×T` matrix."""

    def rows(features: jax.Array) -> jax.Array:
        centred = features - jnp.mean(features, axis=-1, keepdims=True)
        square = jnp.sum(features * features, axis=-1, keepdims=True)
        return unit(mask_out(centred, mask), floor=_CONSTANT_SHARE * square)

    return gram_distance(rows(student), rows(teacher)) / num_pairs(mask)
