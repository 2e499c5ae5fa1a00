"""SKD, holistic: a critic that distinguishes teacher and student by the logits of a whole video."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out, masked_mean, real_videos
from kd_jax.types import Batch, Outputs


class Critic(nn.Module):
    """Scores whole videos, `[B, T, C], [B, T] -> [B]`: two convolutions of three snippets to `width`, mean, linear."""

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
    """Adversarial distillation (WGAN-GP): a critic D distinguishes the logits z of student and teacher.

    The student minimises `−mean D(z^S)` over videos. The critic minimises
    `mean D(z^S) − mean D(z^T) + λ mean (‖∇D(z')‖ − 1)²`, where the rng 'sample' draws z' between z^S and z^T. Both
    take one step at the same time. The returned value is the critic's loss. The critic's parameters and the student's
    logits each get the gradient of their own loss: `2 D(sg z^S) − D(z^S)`, where sg stops the gradient, has the value
    of D(z^S), the same gradient at the critic's parameters, and the opposite gradient at z^S. The loss is summed over
    teachers, each with its own critic.

    Attributes:
      num_snippets: unused; every term with parameters takes it.
      width: the critic's number of channels.
      penalty: λ.

    References: Liu et al., Structured Knowledge Distillation, CVPR 2019, §3.2. Weight 0.1. The published
      critic reads an image and its score map; this one is small, and reads only logits over time [default].
    """

    num_snippets: int
    width: int = 64
    penalty: float = 10.0

    @nn.compact
    def __call__(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> jax.Array:
        if self.width < 1:
            raise ValueError(f"holistic: width must be at least 1, got {self.width}.")
        mask, real, total = batch.mask, real_videos(batch.mask), jnp.zeros(())
        own = mask_out(student.logits.astype(jnp.float32), mask)
        share = jax.random.uniform(self.make_rng("sample"), (len(mask), 1, 1))
        for i, teacher in enumerate(teachers):
            target = mask_out(jax.lax.stop_gradient(teacher.logits).astype(jnp.float32), mask)
            critic = Critic(self.width, name=f"critic_{i}")
            frozen = jax.lax.stop_gradient(own)
            between = share * frozen + (1 - share) * target
            scores = 2 * critic(frozen, mask) - critic(own, mask) - critic(target, mask)
            slope = jax.vjp(lambda z, critic=critic: jnp.sum(critic(z, mask)), between)[1](jnp.ones(()))[0]
            square = jnp.sum(jnp.square(slope), axis=(1, 2))
            norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
            total += masked_mean(scores + self.penalty * jnp.square(norm - 1), real)
        return total
