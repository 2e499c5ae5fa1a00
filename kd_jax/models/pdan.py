"""PDAN: residual layers of attention over three dilated taps, each channel for itself."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.dilated_convolution import shift
from kd_jax.models.layers import pointwise, sum_rows
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
        return attend(query, key, value, relative.astype(self.dtype), dilation, self.max_dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(query, key, value, relative, dilation, most):
    """What `DilatedAttention` makes of query, key and value `[B, T, H]` and `r` `[3, H]`; `dilation` is at most `most`.

    Only these wait for the backward pass. It moves finished arrays over time, where JAX's own would move, and XLA
    compute again for every move, the gradient of each tap.
    """
    weights = _weights(query, _taps(key, dilation, most))
    return _mix(weights, _taps(value, dilation, most), relative)


def _taps(x, dilation, most):
    return shift(x, dilation, most), x, shift(x, -dilation, most)  # what is past arrives by a shift to later times


def _weights(query, keys):
    scores = [query * key for key in keys]
    largest = functools.reduce(jnp.maximum, scores)
    weights = [jnp.exp(score - largest) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


def _mix(weights, values, relative):
    return sum(w * (v + r[None, None]) for w, v, r in zip(weights, values, relative, strict=True))


def _attend_forward(query, key, value, relative, dilation, most):
    return attend(query, key, value, relative, dilation, most), (query, key, value, relative, dilation)


def _attend_backward(most, saved, gradient):
    query, key, value, relative, dilation = saved
    keys, values = _taps(key, dilation, most), _taps(value, dilation, most)
    weights = _weights(query, keys)
    mixed = _mix(weights, values, relative)
    pulls = [weight * gradient for weight in weights]  # at a tap's value; times value − mixed, at its score
    of_query = sum(
        p * (v + r[None, None] - mixed) * k for p, v, r, k in zip(pulls, values, relative, keys, strict=True)
    )
    # Back from the taps to their snippets: there v + r is at hand, and query and mixed are the ones that move.
    back = [_taps(x, -dilation, most) for x in (*pulls, query, query * mixed)]
    arrived = [moved[tap] for tap, moved in enumerate(back[:3])]
    of_value = sum(arrived)
    of_key = sum(
        p * ((value + r[None, None]) * q - qm) for p, r, q, qm in zip(arrived, relative, back[3], back[4], strict=True)
    )
    return of_query, of_key, of_value, jnp.stack([sum_rows(pull) for pull in pulls]), None


attend.defvjp(_attend_forward, _attend_backward)
