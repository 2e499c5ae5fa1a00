"""SKD, holistic: a critic that tells the teacher's logits of a whole video from the student's."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out, masked_mean, real_videos
from kd_jax.types import Batch, Outputs


class Critic(nn.Module):
    """A score of a whole video, `[B, T, C]`, `[B, T]` -> `[B]`: two convolutions over three snippets, mean, linear.

    Attributes:
      width: channels.
    """

    width: int = 64

    @nn.compact
    def __call__(self, logits: jax.Array, mask: jax.Array) -> jax.Array:
        x = mask_out(logits, mask)
        for i in range(2):
            wide = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
            x = jnp.concatenate([wide[:, :-2], x, wide[:, 2:]], axis=-1)
            x = mask_out(nn.leaky_relu(nn.Dense(self.width, name=f"layer_{i}")(x), 0.2), mask)
        return nn.Dense(1, name="score")(masked_mean(x, mask, axis=1))[:, 0]


class HolisticDistillation(nn.Module):
    """The student's logits shall look like the teacher's to a critic that learns to tell them apart (WGAN-GP).

    Student: `−mean D(z^S)` over videos. Critic: `mean D(z^S) − mean D(z^T) + λ mean (‖∇D(z')‖ − 1)²`, z' anywhere
    between the two, one step beside each step of the student. The value, and what a log shows, is the critic's; its
    gradients are those of either's own loss: `2 D(sg z^S) − D(z^S)` has the value of D(z^S), its gradient at the
    critic's parameters and the opposite one at the student's logits. Summed over teachers, each with a critic.

    Attributes:
      num_snippets: of all training videos; not used.
      width: the critic's channels.
      penalty: λ.

    References:
      Liu et al., Structured Knowledge Distillation, CVPR 2019, §3.2, weight 0.1 (METHOD §5). Its critic sees an image's
      score map and the image; this one is small, sees time, and logits alone [default].
    """

    num_snippets: int
    width: int = 64
    penalty: float = 10.0

    @nn.compact
    def __call__(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> jax.Array:
        if self.width < 1:
            raise ValueError(f"holistic: width must be at least 1, got {self.width}.")
        mask, real, total = batch.mask, real_videos(batch.mask), 0.0
        own = mask_out(student.logits.astype(jnp.float32), mask)
        share = jax.random.uniform(self.make_rng("sample"), (len(mask), 1, 1))
        for i, teacher in enumerate(teachers):
            goal = mask_out(jax.lax.stop_gradient(teacher.logits).astype(jnp.float32), mask)
            critic = Critic(self.width, name=f"critic_{i}")
            fixed = jax.lax.stop_gradient(own)
            between = share * fixed + (1 - share) * goal
            scores = 2 * critic(fixed, mask) - critic(own, mask) - critic(goal, mask)
            slope = jax.vjp(lambda z, critic=critic: jnp.sum(critic(z, mask)), between)[1](jnp.ones(()))[0]
            square = jnp.sum(jnp.square(slope), axis=(1, 2))
            norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
            total += masked_mean(scores + self.penalty * jnp.square(norm - 1), real)
        return total
