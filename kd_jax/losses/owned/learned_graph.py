"""Graph Distillation from several teachers, with learned edges."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.losses.cross_modal import angle
from kd_jax.masking import mask_out, masked_mean, masked_pair
from kd_jax.types import Batch, Outputs


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
            logits = angle(*masked_pair("learned_graph", student.logits, teacher.logits, mask))
            features = angle(*masked_pair("learned_graph", student.features, teacher.features, mask))
            losses.append(self.logits_weight * logits + self.features_weight * features)
        shares = jax.nn.softmax(jnp.stack(scores, axis=-1))
        return masked_mean(jnp.sum(shares * jnp.stack(losses, axis=-1), axis=-1), mask)
