"""The teacher's probabilities as targets, for softmax heads (the last logit is the background) and sigmoid heads."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.masking import masked_mean, masked_pair


def logit_distillation(
    student: jax.Array, teacher: jax.Array, mask: jax.Array, *, activation: str, temperature: float = 4.0
) -> jax.Array:
    """Divergence of the student's softened probabilities from the teacher's, averaged over valid snippets.

    `softmax`: `L = τ² mean_t KL( softmax(z^T / τ) ‖ softmax(z^S / τ) )`. `sigmoid`: every class is a yes or no of its
    own, `L = τ² mean_t Σ_c KL( σ(z^T_c / τ) ‖ σ(z^S_c / τ) )`, the divergences of the classes summed as those of the
    task loss are. Either is 0 where student and teacher agree.

    Args:
      student: logits `[B, T, C]`.
      teacher: logits `[B, T, C]`; no gradient reaches them.
      mask: `[B, T]` bool.
      activation: 'softmax' or 'sigmoid', of the head.
      temperature: τ.

    Returns:
      A scalar, float32; 0 for an empty mask.

    Raises:
      ValueError: if the shapes disagree, the activation is unknown or the temperature is not above 0.

    References:
      Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015; equal to RepDistiller's code, whose τ
      is 4. The binary form is METHOD §5 [default].
    """
    if isinstance(temperature, (int, float)) and not 0 < temperature < np.inf:
        raise ValueError(f"logit_distillation: temperature must be a finite number above 0, got {temperature}.")
    student, teacher = masked_pair("logit_distillation", student, teacher, mask)
    student, teacher = student / temperature, teacher / temperature
    if _is_softmax("logit_distillation", activation):
        goal, log_goal, log_student = jax.nn.softmax(teacher), jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
        divergence = goal * (log_goal - log_student)
    else:
        goal = jax.nn.sigmoid(teacher)
        divergence = goal * (jax.nn.log_sigmoid(teacher) - jax.nn.log_sigmoid(student))
        divergence += (1 - goal) * (jax.nn.log_sigmoid(-teacher) - jax.nn.log_sigmoid(-student))
    return temperature**2 * masked_mean(jnp.sum(divergence, axis=-1), mask)


def soft_cross_entropy(
    student: jax.Array, teacher: jax.Array, mask: jax.Array, *, activation: str, background_weight: float = 1.5
) -> jax.Array:
    """Cross-entropy to the teacher's probabilities, averaged over valid snippets; background errors weigh more.

    `softmax`: `L = mean_t −Σ_c w_c p^T_c log p^S_c`, `w` being `background_weight` for the last class and 1 else.
    `sigmoid`: `L = mean_t Σ_c −[ p^T_c log p^S_c + (1 − p^T_c) log(1 − p^S_c) ]`; there is no background to weigh.
    With another weight than 1 the least loss is at more background than the teacher says, or less.

    Args:
      student: logits `[B, T, C]`.
      teacher: logits `[B, T, C]`; no gradient reaches them.
      mask: `[B, T]` bool.
      activation: 'softmax' or 'sigmoid', of the head.
      background_weight: 1.5 as Chen et al. have it; 1 is the pixel-wise term of SKD.

    Returns:
      A scalar, float32; 0 for an empty mask.

    Raises:
      ValueError: if the shapes disagree, the activation is unknown or the weight is negative.

    References:
      Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, NIPS 2017, eq. 2, where
      L_soft and the hard loss weigh 0.5 each; Liu et al., Structured Knowledge Distillation, CVPR 2019, eq. 1
      (weight 10).
    """
    if isinstance(background_weight, (int, float)) and not 0 <= background_weight < np.inf:
        raise ValueError(f"soft_cross_entropy: background_weight must not be negative, got {background_weight}.")
    student, teacher = masked_pair("soft_cross_entropy", student, teacher, mask)
    if _is_softmax("soft_cross_entropy", activation):
        weight = jnp.ones(student.shape[-1]).at[-1].set(background_weight)[None, None]
        entropy = -weight * jax.nn.softmax(teacher) * jax.nn.log_softmax(student)
    else:
        goal = jax.nn.sigmoid(teacher)
        entropy = -goal * jax.nn.log_sigmoid(student) - (1 - goal) * jax.nn.log_sigmoid(-student)
    return masked_mean(jnp.sum(entropy, axis=-1), mask)


def _is_softmax(name: str, activation: str) -> bool:
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"{name}: activation must be 'softmax' or 'sigmoid', got {activation!r}.")
    return activation == "softmax"
