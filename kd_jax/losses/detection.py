"""Task losses of the detector: sigmoid for concurrent actions, softmax with a background class for sparse ones."""

import jax
import jax.numpy as jnp

from kd_jax.masking import check_mask, mask_out, masked_mean, reduce_snippets


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
    entropy = -jnp.sum(_with_background(labels) * jax.nn.log_softmax(logits), axis=-1)
    return reduce_snippets("softmax_cross_entropy_with_background", entropy, mask, reduction)


def _with_background(labels: jax.Array) -> jax.Array:
    """The label distribution with the background last, `[B, T, C] -> [B, T, C+1]`."""
    total = jnp.sum(labels, axis=-1, keepdims=True)
    background = total <= 0
    return jnp.concatenate([labels / jnp.where(background, 1.0, total), background.astype(jnp.float32)], axis=-1)


def competence(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """How much of the labels a teacher explains, over all valid snippets of a batch.

    `K = max(0, 1 − L / E)`, where L is the task loss of the teacher and E that of the best constant prediction, the
    base rates of the classes in the batch. A teacher that predicts the labels exactly has 1; one that is no better
    than the base rates has 0. No gradient reaches the teacher.

    Args:
      logits: of the teacher, `[B, T, C]`, or `[B, T, C+1]` with the background last.
      labels: `[B, T, C]`, in [0, 1].
      mask: `[B, T]` bool.

    Returns: a float32 scalar in [0, 1]; 0 for an empty mask, and if no label changes.
    References: [default], the pseudo-R² of McFadden (1974); docs/evidence.md has what it gains.
    """
    is_dense = logits.shape[-1] == labels.shape[-1]
    loss = (sigmoid_cross_entropy if is_dense else softmax_cross_entropy_with_background)(logits, labels, mask)
    labels = labels.astype(jnp.float32)
    shares = [labels, 1.0 - labels] if is_dense else [_with_background(labels)]
    rates = [masked_mean(share, mask, axis=(0, 1)) for share in shares]
    constant = -sum(jnp.sum(rate * jnp.log(jnp.maximum(rate, 1e-30))) for rate in rates)
    explained = jnp.where(constant > 1e-6, 1.0 - loss / jnp.maximum(constant, 1e-6), 0.0)
    return jax.lax.stop_gradient(jnp.clip(explained, 0.0, 1.0))
