"""PDAN: residual layers of attention over three dilated taps, separately for each channel."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import cpu_kernels
from kd_jax.models.layers import pointwise
from kd_jax.models.residual import ResidualLayer, ResidualStack


class AttentionLayer(ResidualLayer):
    """Residual layer that mixes the snippets by `DilatedAttention`."""

    def mix(self, h: jax.Array) -> jax.Array:
        return DilatedAttention(self.hidden, self.dilation, self.dtype, name="attention")(h)


class DilatedAttention(nn.Module):
    """Attention over the taps `t − d, t, t + d`, `[B, T, D] -> [B, T, features]`.

    `w_k = softmax_k(q_t · k_{t+kd})` for every channel, without scaling; `out_t = Σ_k w_k (v_{t+kd} + r_k)` with
    learned `r`. A tap outside of the video has key 0 and value `r_k`, and takes part in the softmax. d is `dilation`.
    """

    features: int
    dilation: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        query, key, value = (
            pointwise(x, self.features, name=name, dtype=self.dtype, use_bias=False, kernel_init=init)
            for name in ("query", "key", "value")
        )
        relative = self.param("relative", nn.initializers.normal(1.0), (3, self.features), jnp.float32)
        weights = nn.softmax(query[None] * taps(key, self.dilation), axis=0)
        return jnp.sum(weights * (taps(value, self.dilation) + relative.astype(self.dtype)[:, None, None]), axis=0)


def taps(x: jax.Array, dilation: int) -> jax.Array:
    """The snippets t − d, t and t + d for every t, 0 outside of the video: `[B, T, H] -> [3, B, T, H]`."""
    length, padded = x.shape[1], jnp.pad(x, ((0, 0), (dilation, dilation), (0, 0)))
    return jnp.stack([padded[:, start : start + length] for start in (0, dilation, 2 * dilation)])


class PDAN(ResidualStack):
    """Pyramid dilated attention network: SS-TCN with `DilatedAttention` in place of its convolution.

    References: Dai et al., PDAN, WACV 2021 [code]. The public code does not mask the first 1×1 convolution,
      so its bias leaks from the padding into the last valid snippets of a short video; here it is masked. A further
      stage reads the logits of the previous one without a softmax.
    """

    layer = AttentionLayer
    mix_on_cpu = staticmethod(cpu_kernels.mix_by_attention)
