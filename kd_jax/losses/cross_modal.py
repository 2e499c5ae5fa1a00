"""Snippet-by-snippet imitation of another modality's features and logits: hint (FitNet, MARS), Graph Distillation."""

import jax
import jax.numpy as jnp

from kd_jax.masking import masked_mean, masked_pair, unit
from kd_jax.types import Outputs


def hint(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean squared difference of the features, `L = mean_t mean_h (f^S − f^T)²`.

    Args:
      student: `[B, T, H]`.
      teacher: `[B, T, H]`; no gradient reaches it.
      mask: `[B, T]` bool.

    Returns:
      A scalar, float32, the mean over valid snippets of all videos; 0 for an empty mask.

    Raises:
      ValueError: if the shapes disagree.

    References:
      Romero et al., FitNets, ICLR 2015; with weight 50 it is MARS (Crasto et al., CVPR 2019); with 0.5 the L2 hint of
      Chen et al., NIPS 2017 (METHOD §5).
    """
    student, teacher = masked_pair("hint", student, teacher, mask)
    return masked_mean(jnp.square(student - teacher), mask)


def cosine_imitation(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """`L = mean_t 1 − cos(s_t, p_t)`: the direction of every snippet's vector, features or logits.

    A vector of zeros has the cosine 0.

    Args:
      student: `[B, T, H]`.
      teacher: `[B, T, H]`; no gradient reaches it.
      mask: `[B, T]` bool.

    Returns:
      A scalar, float32, the mean over valid snippets of all videos; 0 for an empty mask.

    Raises:
      ValueError: if the shapes disagree.

    References:
      Luo et al., Graph Distillation for Action Detection with Privileged Modalities, ECCV 2018 (METHOD §5).
    """
    student, teacher = masked_pair("cosine_imitation", student, teacher, mask)
    return masked_mean(angle(student, teacher), mask)


def angle(one: jax.Array, other: jax.Array) -> jax.Array:
    """`1 − cos` of the vectors of two arrays, `[B, T]`."""
    return 1 - jnp.sum(unit(one) * unit(other), axis=-1)


def graph_distillation(
    student: Outputs, teacher: Outputs, mask: jax.Array, *, logits_weight: float = 20.0, features_weight: float = 2.0
) -> jax.Array:
    """Graph Distillation with one teacher: directions of logits and of features, `20 L(logits) + 2 L(features)`.

    L is `cosine_imitation`. The published graph, whose edges weigh several teachers, has one edge here.

    Args:
      student, teacher: Outputs of `[B, T, H]` features and `[B, T, C]` logits; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      logits_weight, features_weight: of the two parts.

    Returns:
      A scalar, float32; 0 for an empty mask.

    Raises:
      ValueError: if the shapes disagree, or for arrays alone.

    References:
      Luo et al., Graph Distillation for Action Detection with Privileged Modalities, ECCV 2018; the weights are those
      of METHOD §5.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if not isinstance(outputs, Outputs):
            raise ValueError(
                f"graph_distillation: {name} must be kd_jax.types.Outputs(features, logits), not a "
                f"{type(outputs).__name__}."
            )
    logits = cosine_imitation(student.logits, teacher.logits, mask)
    return logits_weight * logits + features_weight * cosine_imitation(student.features, teacher.features, mask)
