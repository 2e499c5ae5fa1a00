"""Graph Distillation from several teachers, with learned edges."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.losses.cross_modal import cosine_distance
from kd_jax.masking import mask_out, masked_mean, masked_pair
from kd_jax.types import Batch, Outputs


class LearnedGraph(nn.Module):
    """Graph Distillation from several teachers with a learned weight per teacher and snippet.

    `L = mean_t Σ_j a_j · ( 20 (1 − cos logits) + 2 (1 − cos features) )` with `a = softmax_j w·tanh([P u_S, Q_j u_j])`,
    where u concatenates the features and logits of the snippet. The weights a are learned with the student, from the
    same loss. With one teacher this equals `graph_distillation`.

    Attributes:
      num_snippets: unused; every term with parameters takes it.
      width: output width of the projections P and Q.
      logits_weight, features_weight: the weights of the two parts.

    References: Luo et al., Graph Distillation for Action Detection with Privileged Modalities, ECCV 2018, §3.3. There,
      too, the weights depend on the features and logits of both sides; the form of the score is [default].
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

        def concatenated(outputs: Outputs) -> jax.Array:
            parts = (mask_out(x.astype(jnp.float32), mask) for x in (outputs.features, outputs.logits))
            return jnp.concatenate(list(parts), axis=-1)

        own = nn.Dense(self.width, name="student")(jax.lax.stop_gradient(concatenated(student)))
        scores, losses = [], []
        for i, teacher in enumerate(teachers):
            theirs = nn.Dense(self.width, name=f"teacher_{i}")(jax.lax.stop_gradient(concatenated(teacher)))
            scores.append(nn.Dense(1, name=f"score_{i}")(jnp.tanh(jnp.concatenate([own, theirs], axis=-1)))[..., 0])
            logits = cosine_distance(*masked_pair("learned_graph", student.logits, teacher.logits, mask))
            features = cosine_distance(*masked_pair("learned_graph", student.features, teacher.features, mask))
            losses.append(self.logits_weight * logits + self.features_weight * features)
        edges = jax.nn.softmax(jnp.stack(scores, axis=-1))
        return masked_mean(jnp.sum(edges * jnp.stack(losses, axis=-1), axis=-1), mask)
