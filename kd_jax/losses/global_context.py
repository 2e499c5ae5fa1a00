"""Global contextual relation: the covariance structure of a whole video, student's against teacher's."""

import jax
import jax.numpy as jnp

from kd_jax.losses.grams import gram, gram_distance, num_pairs
from kd_jax.masking import mask_out, masked_mean, masked_pair, real_videos, unit

# A channel or snippet counts as constant, hence uncorrelated, when its variance is below this share of its mean square:
# that is what float32 rounding of the mean leaves of a constant.
_CONSTANT = 1e-10


def global_context(student: jax.Array, teacher: jax.Array, mask: jax.Array, *, relation: str = "channel") -> jax.Array:
    """Squared distance between the correlation matrices of student and teacher, averaged over real videos.

    `channel` [default]: which features go together over the video. `Fc = F − mean_t F`, `R = D^{-½} FcᵀFc D^{-½}`
    (`H×H`), `L = ‖R_S − R_T‖²_F / H²`. `snippet`: which snippets resemble each other, `R = AAᵀ` (`T×T`) with the rows
    of `A` centred over channels and L2-normalised, `L = ‖R_S − R_T‖²_F / T²`, T the number of valid snippets of the
    video; the widths may differ. Correlations with a constant channel or snippet are 0.

    Args:
      student: `[B, T, H]`.
      teacher: `[B, T, H]`; no gradient reaches it.
      mask: `[B, T]` bool.
      relation: 'channel' or 'snippet'.

    Returns:
      A scalar, float32; videos without valid snippets do not count, and if there is no other the loss is 0.

    Raises:
      ValueError: if the shapes disagree or the relation is unknown.

    References:
      METHOD §2, Global: a covariance matrix is [supp]; correlation instead of covariance, channel against snippet, and
      the division by H² or T² are [default].
    """
    if relation not in ("channel", "snippet"):
        raise ValueError(f"global_context: relation must be 'channel' or 'snippet', got {relation!r}.")
    student, teacher = masked_pair("global_context", student, teacher, mask, same_width=relation == "channel")
    distance = _channel_distance if relation == "channel" else _snippet_distance
    return masked_mean(distance(student, teacher, mask), real_videos(mask))


def _channel_distance(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """`‖R_S − R_T‖²_F / H²` per video, `[B]`."""

    def correlation(features):
        centred = mask_out(features - masked_mean(features, mask, axis=1)[:, None], mask)
        square = jnp.sum(features * features, axis=1, keepdims=True)
        return gram(unit(centred, axis=1, floor=_CONSTANT * square))

    difference = correlation(student) - correlation(teacher)
    return jnp.mean(difference * difference, axis=(1, 2))


def _snippet_distance(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """`‖AAᵀ − BBᵀ‖²_F / T²` per video, `[B]`, without a `T×T` matrix."""

    def rows(features):
        centred = features - jnp.mean(features, axis=-1, keepdims=True)
        square = jnp.sum(features * features, axis=-1, keepdims=True)
        return unit(mask_out(centred, mask), floor=_CONSTANT * square)

    return gram_distance(rows(student), rows(teacher)) / num_pairs(mask)
