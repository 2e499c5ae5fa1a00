"""Boundary distillation: compares how much student and teacher features change from one snippet to the next."""

import jax
import jax.numpy as jnp

from kd_jax.masking import check_mask, mask_out, masked_pair, pair_mask, reduce_snippets


def saliency(features: jax.Array, mask: jax.Array) -> jax.Array:
    """Measure the change of the features between consecutive snippets, `s_t = ‖f_{t+1} − f_t‖₁`.

    Features are `[B, T, H]`, the mask `[B, T]` bool. The result is `[B, T-1]`, float32, and 0 where one snippet of the
    pair is padding.

    References: The boundary level of Augmented-RGB [supp Fig. 4: one scalar curve per stream].
    """
    check_mask("saliency", mask, features=features)
    features = mask_out(features.astype(jnp.float32), mask)
    return mask_out(jnp.sum(_absolute(jnp.diff(features, axis=1)), axis=-1), pair_mask(mask))


def boundary(
    student: jax.Array, teacher: jax.Array, mask: jax.Array, *, form: str = "curve", reduction: str = "mean"
) -> jax.Array:
    """L1 distance between the boundary saliency of student and teacher.

    Features change where actions begin and end, so the student learns to change at the same snippets as the teacher.
    `curve` [default]: `L = mean_t | ‖Δf^S_t‖₁ − ‖Δf^T_t‖₁ |`. This compares only the size of each change, so the
    widths may differ. `vector`: `L = mean_t ‖Δf^S_t − Δf^T_t‖₁`. This also compares the direction.

    Args:
      student, teacher: `[B, T, H]`; no gradient reaches the teacher.
      mask: `[B, T]` bool; a pair of snippets counts only if both are valid.
      form: 'curve' or 'vector'.
      reduction: 'mean', or 'none' for the value of each pair of consecutive snippets.

    Returns: a float32 scalar, the mean over valid pairs of all videos, 0 if there is none; with reduction 'none'
      `[B, T-1]`, 0 where one snippet of the pair is padding.
    Raises: ValueError if the form or the reduction is unknown.
    References: The boundary level of Augmented-RGB: L1 distance of saliency curves [supp]; the L1 norm over
      channels, not divided by their number, is [default].
    """
    if form not in ("curve", "vector"):
        raise ValueError(f"boundary: form must be 'curve' or 'vector', got {form!r}.")
    student, teacher = masked_pair("boundary", student, teacher, mask, same_width=form == "vector")
    if form == "curve":
        distance = _absolute(saliency(student, mask) - saliency(teacher, mask))
    else:
        distance = jnp.sum(_absolute(jnp.diff(student, axis=1) - jnp.diff(teacher, axis=1)), axis=-1)
    return reduce_snippets("boundary", distance, pair_mask(mask), reduction)


def _absolute(x: jax.Array) -> jax.Array:
    """`|x|` with gradient 0 at 0, where `jnp.abs` has gradient 1. Channels that already agree then get no gradient."""
    return jnp.maximum(x, -x)
