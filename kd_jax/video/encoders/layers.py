"""What the encoders share: what they return, and batch normalisation that has been trained."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Encoded:
    """Of B clips.

    Attributes:
      features: float32 `[B, T, D]`, T of them a clip, what a temporal filter reads.
      logits: float32 `[B, T, C]`, of the classes that the encoder was trained for.
    """

    features: jax.Array
    logits: jax.Array


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by running statistics, as what it does to a channel.

    Attributes:
      channels: how many.
      epsilon: added to the variance.
    """

    channels: int
    epsilon: float

    @nn.compact
    def __call__(self, ndim: int) -> tuple[jax.Array, jax.Array]:
        """`scale` and `shift`, `[1, …, channels]`: x becomes `x * scale + shift`. So a kernel can take the scale in."""
        scale = self.param("scale", nn.initializers.ones, (self.channels,))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,)).value
        var = self.variable("batch_stats", "var", jnp.ones, (self.channels,)).value
        scale = scale * jax.lax.rsqrt(var + self.epsilon)
        shape = (1,) * (ndim - 1) + (self.channels,)
        return scale.reshape(shape), (bias - mean * scale).reshape(shape)
