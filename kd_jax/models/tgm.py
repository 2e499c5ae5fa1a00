"""TGM: temporal Gaussian mixtures, kernels over time of few parameters, shared by all channels of the input."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
from kd_jax.models.dilated_convolution import shift
from kd_jax.models.layers import Dropout, bias_init, kernel_init, pointwise

CURVES = ("cauchy", "gaussian")


class TGM(nn.Module):
    """Temporal Gaussian mixture layers beside the snippet's own features.

    The layers turn 1 → 8 → 8 → 8 images `[T, D]` of the video; then
    `features = relu(conv1×1(relu([dropout(x), dropout(max over the 8)])))`.

    Attributes:
      hidden: H, channels of the last 1×1 convolution.
      num_layers: mixture layers.
      dropout: rate before the last 1×1 convolution.
      dtype: of the computation; parameters stay float32.
      curve: 'cauchy', as the released code has it, or 'gaussian', as the paper says.
      channels: images of a layer.
      taps: L, snippets a kernel covers, odd.
      mixture: N, curves that the kernels of a layer are mixed of.

    References:
      Piergiovanni and Ryoo, Temporal Gaussian Mixture Layer for Videos, ICML 2019; METHOD §3 [code]. Nothing is masked
      there, so that biases leak from the padding; here every layer is. The released code's `delta`, which has no
      effect, and its uninitialised attention (N(0, 1) here) are left out.
    """

    hidden: int = 256
    num_layers: int = 3
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    curve: str = "cauchy"
    channels: int = 8
    taps: int = 5
    mixture: int = 16

    @property
    def receptive_field(self) -> int:
        """Snippets that one output sees: 13 for three layers of five taps."""
        return 1 + self.num_layers * (self.taps - 1)

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to features `[B, T, H]`, 0 in the padding."""
        x = mask_out(x.astype(self.dtype), mask)
        images = x[..., None]
        for i in range(self.num_layers):
            images = MixtureLayer(self.channels, self.taps, self.mixture, self.curve, combine=i > 0, name=f"layer_{i}")(
                images
            )
            images = mask_out(images, mask)
        both = jnp.concatenate(
            [Dropout(self.dropout)(y, deterministic=not train) for y in (x, jnp.max(images, axis=-1))], axis=-1
        )
        return mask_out(nn.relu(pointwise(nn.relu(both), self.hidden, dtype=self.dtype, name="hidden")), mask)


class TGMGaussian(TGM):
    """TGM with the Gaussian curves of its paper."""

    curve: str = "gaussian"


class MixtureLayer(nn.Module):
    """Convolution over time with kernels mixed of N curves, `[B, T, D, C_in] -> [B, T, D, channels]`.

    Curve n has the centre `μ = (L − 1)(tanh c_n + 1)/2` and the width `g = exp(1.5 − 2|tanh γ_n|)`: `cauchy`
    `1/(π g (1 + ((l − μ)/g)²))`, `gaussian` `exp(−(l − μ)²/(2g²))`, each divided by its sum over the L taps. The kernel
    of an output and an input image is a mixture of them by softmax attention. Without `combine` there is one input
    image, and that is all; with it, `out = relu(Σ_in a_in (x_in ∗ k_in) + b)` for every output.

    Attributes:
      channels: output images.
      taps, mixture, curve: L, N and the curve, as in `TGM`.
      combine: whether a 1×1 convolution and a ReLU follow.
    """

    channels: int
    taps: int
    mixture: int
    curve: str
    combine: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.curve not in CURVES or self.taps % 2 == 0:
            raise ValueError(f"TGM: curve must be one of {CURVES} and taps odd; got {self.curve!r}, {self.taps}.")
        inputs = x.shape[-1]
        half, normal = nn.initializers.normal(0.5), nn.initializers.normal(1.0)
        center, width = (self.param(name, half, (self.mixture,), jnp.float32) for name in ("center", "gamma"))
        attention = self.param("attention", normal, (self.channels, inputs, self.mixture), jnp.float32)
        curves = _curves(center, width, self.taps, self.curve)
        kernels = jnp.einsum("oin,nl->lio", jax.nn.softmax(attention), curves)  # [L, C_in, channels]
        bias = 0.0
        if self.combine:
            mix = self.param("kernel", kernel_init, (inputs, self.channels), jnp.float32)
            bias = self.param("bias", bias_init(inputs), (self.channels,), jnp.float32).astype(x.dtype)
            kernels, bias = kernels * mix[None], bias[None, None, None]
        kernels, reach = kernels.astype(x.dtype), self.taps // 2
        flat = x.reshape(*x.shape[:2], -1)
        moved = [shift(flat, reach - tap, reach).reshape(x.shape) for tap in range(self.taps)]
        out = sum(m @ kernel for m, kernel in zip(moved, kernels, strict=True)) + bias
        return nn.relu(out) if self.combine else out


def _curves(center, width, taps, curve):
    """`[N, L]`, every row of sum 1."""
    middle = (taps - 1) * (jnp.tanh(center) + 1) / 2
    g = jnp.exp(1.5 - 2 * jnp.abs(jnp.tanh(width)))[:, None]
    distance = (jnp.arange(taps, dtype=jnp.float32)[None] - middle[:, None]) / g
    values = 1 / (jnp.pi * g * (1 + distance**2)) if curve == "cauchy" else jnp.exp(-(distance**2) / 2)
    return values / (jnp.sum(values, axis=1, keepdims=True) + 1e-6)  # the released code's guard
