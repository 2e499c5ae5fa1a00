"""Parts that the encoders share: their output, and batch normalisation without a training mode."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Encoded:
    """The output of an encoder for B clips, float32; T per clip."""

    features: jax.Array  # [B, T, D], the input of a temporal filter
    logits: jax.Array  # [B, T, C], for the classes that the encoder was trained for


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by running statistics, returned as a scale and a shift per channel."""

    channels: int
    epsilon: float  # added to the variance

    @nn.compact
    def __call__(self, ndim: int) -> tuple[jax.Array, jax.Array]:
        """Returns `scale` and `shift` of `x * scale + shift`, `[1, …, channels]` with `ndim` axes."""
        scale = self.param("scale", nn.initializers.ones, (self.channels,))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,)).value
        var = self.variable("batch_stats", "var", jnp.ones, (self.channels,)).value
        scale = scale * jax.lax.rsqrt(var + self.epsilon)
        shape = (1,) * (ndim - 1) + (self.channels,)
        return scale.reshape(shape), (bias - mean * scale).reshape(shape)
