"""What the encoders share: what they return, and batch normalisation that has been trained."""

from collections.abc import Callable

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

    Where the collection 'batch_stats' is mutable, they become those of the call's own input, so that
    `model.apply(variables, clips, mutable='batch_stats')` fits a network to what it will see.

    Attributes:
      channels: how many.
      epsilon: added to the variance.
    """

    channels: int
    epsilon: float

    @nn.compact
    def __call__(self, ndim: int, inputs: Callable[[], jax.Array]) -> tuple[jax.Array, jax.Array]:
        """`scale` and `shift`, `[1, …, channels]`: x becomes `x * scale + shift`. So a kernel can take the scale in.

        `inputs` makes x, which is only needed for its statistics.
        """
        scale = self.param("scale", nn.initializers.ones, (self.channels,))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (self.channels,))
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            x = inputs().astype(jnp.float32).reshape(-1, self.channels)
            mean.value, var.value = x.mean(0), x.var(0)
        scale = scale * jax.lax.rsqrt(var.value + self.epsilon)
        shape = (1,) * (ndim - 1) + (self.channels,)
        return scale.reshape(shape), (bias - mean.value * scale).reshape(shape)
