"""Snippet-by-snippet imitation of another modality's features and logits: hint (FitNet, MARS), Graph Distillation."""

import functools

import jax
import jax.numpy as jnp

from kd_jax.masking import masked_pair, reduce_snippets, unit
from kd_jax.types import Outputs


def hint(student: jax.Array, teacher: jax.Array, mask: jax.Array, *, reduction: str = "mean") -> jax.Array:
    """Mean squared difference of the features, `L = mean_t mean_h (f^S − f^T)²`.

    Args:
      student, teacher: `[B, T, H]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    References: Romero et al., FitNets, ICLR 2015. Weight 50 gives MARS (Crasto et al., CVPR 2019); weight 0.5 gives the
      L2 hint of Chen et al., NIPS 2017.
    """
    student, teacher = masked_pair("hint", student, teacher, mask)
    return reduce_snippets("hint", jnp.square(student - teacher), mask, reduction)


def cosine_imitation(student: jax.Array, teacher: jax.Array, mask: jax.Array, *, reduction: str = "mean") -> jax.Array:
    """Mean cosine distance of the snippets' vectors (features or logits), `L = mean_t 1 − cos(s_t, p_t)`.

    A vector of zeros has the cosine 0.

    Args:
      student, teacher: `[B, T, H]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    References: Luo et al., Graph Distillation for Action Detection with Privileged Modalities, ECCV 2018.
    """
    student, teacher = masked_pair("cosine_imitation", student, teacher, mask)
    return reduce_snippets("cosine_imitation", cosine_distance(student, teacher), mask, reduction)


def cosine_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """`1 − cos` of corresponding vectors, `[B, T, H], [B, T, H] -> [B, T]`."""
    return 1 - jnp.sum(unit(a) * unit(b), axis=-1)


def graph_distillation(
    student: Outputs,
    teacher: Outputs,
    mask: jax.Array,
    *,
    logits_weight: float = 20.0,
    features_weight: float = 2.0,
    reduction: str = "mean",
) -> jax.Array:
    """Graph Distillation with one teacher: cosine distances of logits and features, `20 L(logits) + 2 L(features)`.

    L is `cosine_imitation`. The published graph has one weighted edge per teacher; with one teacher it has one edge.

    Args:
      student, teacher: Outputs with `[B, T, H]` features and `[B, T, C]` logits; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      logits_weight, features_weight: the weights of the two parts.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    Raises: ValueError if student or teacher is not an `Outputs`.
    References: Luo et al., Graph Distillation for Action Detection with Privileged Modalities, ECCV 2018. The default
      weights are those of the public code.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if not isinstance(outputs, Outputs):
            raise ValueError(
                f"graph_distillation: {name} must be kd_jax.types.Outputs(features, logits), not a "
                f"{type(outputs).__name__}."
            )
    cosine = functools.partial(cosine_imitation, mask=mask, reduction=reduction)
    logits = cosine(student.logits, teacher.logits)
    return logits_weight * logits + features_weight * cosine(student.features, teacher.features)
