"""Snippet-by-snippet imitation of another modality's features and logits: hint (FitNet, MARS), Graph Distillation."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out, masked_mean, masked_pair, unit
from kd_jax.types import Batch, Outputs


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
    return masked_mean(_angle(student, teacher), mask)


def _angle(one: jax.Array, other: jax.Array) -> jax.Array:
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


class LearnedGraph(nn.Module):
    """Graph Distillation from several teachers, whose shares every snippet chooses.

    `L = mean_t Σ_j a_j · ( 20 (1 − cos logits) + 2 (1 − cos features) )`, `a = softmax_j w·tanh([P u_S, Q_j u_j])` of
    the snippet, u being features and logits beside each other. The shares are learned with the student, from the same
    loss. With one teacher it is `graph_distillation`.

    Attributes:
      num_snippets: of all training videos; not used.
      width: of the projections P and Q.
      logits_weight, features_weight: of the two parts.

    References:
      Luo et al., Graph Distillation for Action Detection with Privileged Modalities, ECCV 2018, §3.3. That the shares
      depend on features and logits of both sides is published; the form of the score is [default].
    """

    num_snippets: int
    width: int = 64
    logits_weight: float = 20.0
    features_weight: float = 2.0

    @nn.compact
    def __call__(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> jax.Array:
        if self.width < 1:
            raise ValueError(f"learned_graph: width must be at least 1, got {self.width}.")
        mask = batch.mask

        def both(outputs):
            parts = (mask_out(x.astype(jnp.float32), mask) for x in (outputs.features, outputs.logits))
            return jnp.concatenate(list(parts), axis=-1)

        own = nn.Dense(self.width, name="student")(jax.lax.stop_gradient(both(student)))
        scores, losses = [], []
        for i, teacher in enumerate(teachers):
            theirs = nn.Dense(self.width, name=f"teacher_{i}")(jax.lax.stop_gradient(both(teacher)))
            scores.append(nn.Dense(1, name=f"score_{i}")(jnp.tanh(jnp.concatenate([own, theirs], axis=-1)))[..., 0])
            logits = _angle(*masked_pair("learned_graph", student.logits, teacher.logits, mask))
            features = _angle(*masked_pair("learned_graph", student.features, teacher.features, mask))
            losses.append(self.logits_weight * logits + self.features_weight * features)
        shares = jax.nn.softmax(jnp.stack(scores, axis=-1))
        return masked_mean(jnp.sum(shares * jnp.stack(losses, axis=-1), axis=-1), mask)
