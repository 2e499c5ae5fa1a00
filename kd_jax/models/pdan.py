"""PDAN: residual layers of attention over three dilated taps, each channel for itself."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.dilated_convolution import shift
from kd_jax.models.layers import pointwise
from kd_jax.models.residual import ResidualStack

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class PDAN(ResidualStack):
    """Pyramid dilated attention network: SS-TCN with `DilatedAttention` for its convolution.

    References:
      Dai et al., PDAN, WACV 2021, METHOD §3 [code]. The public code leaves the first 1×1 unmasked, so its bias leaks
      from the padding into the last valid snippets of a short video; here it is masked too. A further stage reads the
      logits of the one before as they are.
    """

    @property
    def mix(self) -> Callable[[], nn.Module]:
        most = 2 ** (self.num_layers - 1)
        return functools.partial(DilatedAttention, self.hidden, most, self.dtype, name="attention")


class DilatedAttention(nn.Module):
    """Attention over the taps `t − d, t, t + d`, `[B, T, D] -> [B, T, features]`.

    `w_k = softmax_k(q_t · k_{t+kd})` of every channel, not scaled; `out_t = Σ_k w_k (v_{t+kd} + r_k)`, `r` learned. A
    tap outside has key 0 and value `r_k`, and its share of the softmax.

    Attributes:
      features: output channels.
      max_dilation: the largest d it will be called with.
      dtype: of the computation.
    """

    features: int
    max_dilation: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, dilation: jax.Array | int) -> jax.Array:
        query, key, value = (
            pointwise(x, self.features, name=name, dtype=self.dtype, use_bias=False, kernel_init=_kernel_init)
            for name in ("query", "key", "value")
        )
        relative = self.param("relative", nn.initializers.normal(1.0), (3, self.features), jnp.float32)
        # Only query, key and value wait for the backward pass; the taps and their weights are cheap to make again.
        attend = jax.checkpoint(functools.partial(_attend, most=self.max_dilation), prevent_cse=False)
        return attend(query, key, value, relative.astype(self.dtype), dilation)


def _attend(query, key, value, relative, dilation, most):
    # A snippet of the past arrives by a shift to later times.
    keys, values = ((shift(x, dilation, most), x, shift(x, -dilation, most)) for x in (key, value))
    scores = [query * tap for tap in keys]
    largest = functools.reduce(jnp.maximum, scores)
    weights = [jnp.exp(score - jax.lax.stop_gradient(largest)) for score in scores]
    mixed = sum(w * (tap + r[None, None]) for w, tap, r in zip(weights, values, relative, strict=True))
    return mixed / sum(weights)
