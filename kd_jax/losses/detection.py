"""Task losses of the detector: sigmoid for concurrent actions, softmax with a background class for sparse ones."""

import jax
import jax.numpy as jnp

from kd_jax.masking import check_mask, mask_out, reduce_snippets


def sigmoid_cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, *, reduction: str = "mean"
) -> jax.Array:
    """Binary cross-entropy, summed over classes and averaged over valid snippets.

    Classes are independent, so actions may overlap (Charades, TSU, MultiTHUMOS).
    `L = mean_t Σ_c [ −y log σ(z) − (1 − y) log(1 − σ(z)) ]`.

    Args:
      logits: `[B, T, C]`.
      labels: `[B, T, C]`, in [0, 1].
      mask: `[B, T]` bool.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    References: The public training code sums over classes [code]. That code also sums over the padding;
      this does not.
    """
    check_mask("sigmoid_cross_entropy", mask, logits=logits, labels=labels)
    if logits.shape != labels.shape:
        raise ValueError(
            f"sigmoid_cross_entropy: labels must have the shape of logits; got logits {logits.shape}, "
            f"labels {labels.shape}, mask {mask.shape}."
        )
    logits, labels = (mask_out(x.astype(jnp.float32), mask) for x in (logits, labels))
    entropy = -labels * jax.nn.log_sigmoid(logits) - (1.0 - labels) * jax.nn.log_sigmoid(-logits)
    entropy = jnp.sum(entropy, axis=-1)
    return reduce_snippets("sigmoid_cross_entropy", entropy, mask, reduction)


def softmax_cross_entropy_with_background(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, *, reduction: str = "mean"
) -> jax.Array:
    """Cross-entropy over the classes and one background class, averaged over valid snippets.

    It suits sparsely labelled videos (PKU-MMD, THUMOS14). The background is the LAST logit: its target is 1 where no
    class is active. Elsewhere the target is the label distribution, normalised over the active classes.
    `L = mean_t −Σ_c p_c log softmax(z)_c`, with `p = [y, 0] / Σ y`, or `[0, …, 0, 1]` where `Σ y = 0`.

    Args:
      logits: `[B, T, C+1]`.
      labels: `[B, T, C]`, non-negative.
      mask: `[B, T]` bool.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    References: The extra class is [supp]. Sharing a snippet evenly between simultaneous actions is [default].
    """
    check_mask("softmax_cross_entropy_with_background", mask, logits=logits, labels=labels)
    if logits.shape[-1] != labels.shape[-1] + 1:
        raise ValueError(
            "softmax_cross_entropy_with_background: logits must have one more class than labels, the last of them the "
            f"background; got logits {logits.shape}, labels {labels.shape}, mask {mask.shape}."
        )
    logits, labels = (mask_out(x.astype(jnp.float32), mask) for x in (logits, labels))
    total = jnp.sum(labels, axis=-1, keepdims=True)
    background = total <= 0
    target = jnp.concatenate([labels / jnp.where(background, 1.0, total), background.astype(jnp.float32)], axis=-1)
    entropy = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)
    return reduce_snippets("softmax_cross_entropy_with_background", entropy, mask, reduction)
