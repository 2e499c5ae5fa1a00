"""Distillation of the teacher's probabilities, for sigmoid heads and for softmax heads with the background last."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.detection import sigmoid_cross_entropy, softmax_cross_entropy_with_background
from kd_jax.masking import check_mask, masked_pair, reduce_snippets


def logit_distillation(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    *,
    activation: str,
    temperature: float = 4.0,
    reduction: str = "mean",
) -> jax.Array:
    """Divergence of the student's softened probabilities from the teacher's, averaged over valid snippets.

    `softmax`: `L = τ² mean_t KL( softmax(z^T / τ) ‖ softmax(z^S / τ) )`. `sigmoid`: classes are independent,
    `L = τ² mean_t Σ_c KL( σ(z^T_c / τ) ‖ σ(z^S_c / τ) )`, summed over classes like the task loss. Both are 0 where
    student and teacher agree.

    Args:
      student, teacher: logits `[B, T, C]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      activation: the activation of the head, 'softmax' or 'sigmoid'.
      temperature: τ.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    Raises: ValueError if the activation is unknown or the temperature is not above 0.
    References: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015. Equal to RepDistiller's code,
      which uses τ = 4. The binary form is [default].
    """
    if isinstance(temperature, (int, float)) and not 0 < temperature < np.inf:
        raise ValueError(f"logit_distillation: temperature must be a finite number above 0, got {temperature}.")
    student, teacher = masked_pair("logit_distillation", student, teacher, mask)
    student, teacher = student / temperature, teacher / temperature
    if _is_softmax("logit_distillation", activation):
        divergence = jax.nn.softmax(teacher) * (jax.nn.log_softmax(teacher) - jax.nn.log_softmax(student))
    else:
        target = jax.nn.sigmoid(teacher)
        divergence = target * (jax.nn.log_sigmoid(teacher) - jax.nn.log_sigmoid(student))
        divergence += (1 - target) * (jax.nn.log_sigmoid(-teacher) - jax.nn.log_sigmoid(-student))
    divergence = jnp.sum(divergence, axis=-1)
    return temperature**2 * reduce_snippets("logit_distillation", divergence, mask, reduction)


def soft_labels(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    *,
    labels: jax.Array,
    seen: jax.Array | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Task loss with the teacher's probabilities as labels, summed over classes and averaged over valid snippets.

    Snippets that the teacher has not seen keep their labels. The cross-entropy is linear in its target, so with the
    weight w, and `1 − w` for the task, the student learns from `(1 − w) · labels + w · probabilities`.

    Args:
      student, teacher: logits `[B, T, C]`, or `[B, T, C+1]` with the background last; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      labels: `[B, T, C]`, in [0, 1].
      seen: `[B, T]` bool, False where the teacher had no input; None: it has seen all snippets.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    References: [default]; docs/evidence.md has what it gains.
    """
    check_mask("soft_labels", mask, labels=labels, seen=None if seen is None else seen[..., None])
    if student.shape[-1] - labels.shape[-1] not in (0, 1):
        what = f"student {student.shape}, labels {labels.shape}"
        raise ValueError(f"soft_labels: student must have as many classes as labels, or one more; got {what}.")
    student, teacher = masked_pair("soft_labels", student, teacher, mask)
    is_dense = student.shape[-1] == labels.shape[-1]
    task = sigmoid_cross_entropy if is_dense else softmax_cross_entropy_with_background
    activation = "sigmoid" if is_dense else "softmax"
    taught = mask if seen is None else mask & seen
    entropy = soft_cross_entropy(
        student, teacher, taught, activation=activation, background_weight=1.0, reduction="none"
    )
    entropy += task(student, labels, mask & ~taught, reduction="none")
    return reduce_snippets("soft_labels", entropy, mask, reduction)


def soft_cross_entropy(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    *,
    activation: str,
    background_weight: float = 1.5,
    reduction: str = "mean",
) -> jax.Array:
    """Cross-entropy to the teacher's probabilities with a weight on the background, averaged over valid snippets.

    `softmax`: `L = mean_t −Σ_c w_c p^T_c log p^S_c`; `w` is `background_weight` for the last class and 1 elsewhere.
    `sigmoid`: `L = mean_t Σ_c −[ p^T_c log p^S_c + (1 − p^T_c) log(1 − p^S_c) ]`; it has no background class.
    With a weight above 1 the minimum has more background probability than the teacher; below 1 it has less.

    Args:
      student, teacher: logits `[B, T, C]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      activation: the activation of the head, 'softmax' or 'sigmoid'.
      background_weight: 1.5 is the value of Chen et al.; 1 gives the pixel-wise term of SKD.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    Raises: ValueError if the activation is unknown or the weight is negative.
    References: Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, NIPS 2017, eq. 2;
      L_soft and the hard loss have weight 0.5 each there. Liu et al., Structured Knowledge Distillation, CVPR 2019, eq.
      1 (weight 10).
    """
    if isinstance(background_weight, (int, float)) and not 0 <= background_weight < np.inf:
        raise ValueError(f"soft_cross_entropy: background_weight must not be negative, got {background_weight}.")
    student, teacher = masked_pair("soft_cross_entropy", student, teacher, mask)
    if _is_softmax("soft_cross_entropy", activation):
        weight = jnp.ones(student.shape[-1]).at[-1].set(background_weight)[None, None]
        entropy = -weight * jax.nn.softmax(teacher) * jax.nn.log_softmax(student)
    else:
        target = jax.nn.sigmoid(teacher)
        entropy = -target * jax.nn.log_sigmoid(student) - (1 - target) * jax.nn.log_sigmoid(-student)
    return reduce_snippets("soft_cross_entropy", jnp.sum(entropy, axis=-1), mask, reduction)


def _is_softmax(name: str, activation: str) -> bool:
    """Whether the activation is softmax; ValueError if it is neither softmax nor sigmoid."""
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"{name}: activation must be 'softmax' or 'sigmoid', got {activation!r}.")
    return activation == "softmax"
