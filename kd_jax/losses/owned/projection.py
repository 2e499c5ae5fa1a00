"""A projection head for losses that compare embeddings instead of features."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import unit


class ProjectionHead(nn.Module):
    """Linear map to `width` dimensions and L2 normalisation, `[B, T, H] -> [B, T, width]`, float32.

    `crd` needs one head for the student and one for the teacher. `atomic` can also compare the outputs of two heads,
    which is off by default [default]. The teacher's head then gets no gradient from `atomic`, which
    stops the gradient at its second argument.
    """

    width: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return unit(nn.Dense(self.width, name="linear")(x.astype(jnp.float32)))
