"""TGM: temporal Gaussian mixtures, kernels over time with few parameters that all input channels share."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
from kd_jax.models import cpu_kernels
from kd_jax.models.layers import Dropout, bias_init, kernel_init, pointwise

CURVES = ("cauchy", "gaussian")


class TGM(nn.Module):
    """Temporal Gaussian mixture layers next to the features of the snippet itself.

    The first layer turns the video, one image `[T, D]`, into 8 images; each later layer turns 8 into 8. Then
    `features = relu(conv1×1(relu([dropout(x), dropout(max over the 8)])))`.

    Attributes, next to those of `TemporalFilter`:
      curve: 'cauchy' as in the released code, or 'gaussian' as in the paper.
      channels: number of output images of a layer.
      taps: L, number of snippets that a kernel covers, odd.
      mixture: N, number of curves that a layer mixes into its kernels.

    References: Piergiovanni and Ryoo, Temporal Gaussian Mixture Layer for Videos, ICML 2019 [code]. The
      released code does not mask, so biases leak from the padding; here every layer is masked. Its parameter `delta`,
      which has no effect, is left out, and its uninitialised attention starts as N(0, 1).
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
    def receptive_field(self) -> int | None:
        """Number of snippets that one output sees: 13 for three layers of five taps."""
        return 1 + self.num_layers * (self.taps - 1)

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to features `[B, T, H]`, 0 in the padding."""
        x = mask_out(x.astype(self.dtype), mask)
        images, valid = x[None], mask[None, :, :, None]
        for i in range(self.num_layers):
            layer = MixtureLayer(self.channels, self.taps, self.mixture, self.curve, i > 0, name=f"layer_{i}")
            images = layer(images)
            images = jnp.where(valid, images, jnp.zeros((), self.dtype))
        parts = [Dropout(self.dropout)(y, deterministic=not train) for y in (x, jnp.max(images, axis=0))]
        joined = nn.relu(jnp.concatenate([*parts, *self._extra_inputs(x, mask)], axis=-1))
        return mask_out(nn.relu(pointwise(joined, self.hidden, dtype=self.dtype, name="hidden")), mask)

    def _extra_inputs(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
        """Further inputs of the last convolution, `[B, T, …]`."""
        return ()


class TGMSuperEvents(TGM):
    """TGM with super-events, `Hierarchy` in the released code: every snippet also reads a summary of the whole video.

    There are `num_outputs` super-events, one for each logit; the detector sets it.

    References: Piergiovanni and Ryoo, Learning Latent Super-Events, CVPR 2018 [code]. In the released code the curves
      reach into the padding; here they end with the video, which is the same without padding. The released code applies
      dropout to the super-events in training; here they have none.
    """

    num_outputs: int = 1

    @property
    def receptive_field(self) -> None:
        """None, because an output sees the whole video."""
        return None

    def _extra_inputs(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
        events = SuperEvents(self.num_outputs, name="super_events")(x, mask)
        return (jnp.broadcast_to(events[:, None].astype(x.dtype), (*mask.shape, self.num_outputs)),)


class SuperEvents(nn.Module):
    """K weighted sums of two poolings of the video, `[B, T, D] -> [B, K]`, float32.

    A pooling `[B, D]` is, for each channel, the largest of three sums over the video. A sum is weighted by a Cauchy
    curve as in `MixtureLayer`, with the valid snippets as taps. Super-event k of the poolings p and q is
    `Σ_d m_kd (σ(w_k) p_d + (1 − σ(w_k)) q_d)`. K is `num_events`.
    """

    num_events: int
    curves: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        half = nn.initializers.normal(0.5)
        center, width = (self.param(name, half, (2, self.curves), jnp.float32) for name in ("center", "gamma"))
        share = nn.sigmoid(self.param("share", nn.initializers.zeros_init(), (self.num_events,), jnp.float32))
        matrix = self.param("kernel", kernel_init, (x.shape[-1], self.num_events), jnp.float32)
        length, every = jnp.sum(mask, axis=1, dtype=jnp.float32)[:, None, None], (x.shape[0], 2, self.curves)
        center, width = jnp.broadcast_to(center, every), jnp.broadcast_to(width, every)
        curves = _curves(center, width, mask.shape[1], "cauchy", length, mask[:, None, None])  # [B, 2, curves, T]
        sums = jnp.einsum("bsct,btd->bscd", curves, x.astype(jnp.float32))
        first, second = jnp.moveaxis(jnp.max(sums, axis=2) @ matrix, 1, 0)  # [B, K]
        return share[None] * first + (1 - share)[None] * second


class MixtureLayer(nn.Module):
    """Convolution over time with kernels mixed from N curves, `[C_in, B, T, D] -> [channels, B, T, D]`.

    Curve n has the centre `μ = (L − 1)(tanh c_n + 1)/2` and the width `g = exp(1.5 − 2|tanh γ_n|)`: `cauchy`
    `1/(π g (1 + ((l − μ)/g)²))`, `gaussian` `exp(−(l − μ)²/(2g²))`, each divided by its sum over the L taps. The kernel
    between an input and an output image is a mixture of the curves by softmax attention. Without `combine` there is one
    input image and the outputs are the convolutions; with it, `out = relu(Σ_in a_in (x_in ∗ k_in) + b)`.

    L is `taps`, N `mixture`.
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
        inputs = len(x)
        half, normal = nn.initializers.normal(0.5), nn.initializers.normal(1.0)
        center, width = (self.param(name, half, (self.mixture,), jnp.float32) for name in ("center", "gamma"))
        attention = self.param("attention", normal, (self.channels, inputs, self.mixture), jnp.float32)
        curves = _curves(center, width, self.taps, self.curve)
        convolve = cpu_kernels.by_platform(convolve_images, cpu_kernels.convolve_images)
        kernels = jnp.einsum("oin,nl->lio", jax.nn.softmax(attention), curves)  # [L, C_in, channels]
        if not self.combine:
            return convolve(x, kernels)
        mix = self.param("kernel", kernel_init, (inputs, self.channels), jnp.float32)
        bias = self.param("bias", bias_init(inputs), (self.channels,), jnp.float32).astype(x.dtype)
        return nn.relu(convolve(x, kernels * mix[None]) + bias[:, None, None, None])


def convolve_images(images: jax.Array, kernels: jax.Array) -> jax.Array:
    """Convolve over time: `out_o[t] = Σ_l Σ_i k_lio · images_i[t + l − (L − 1)/2]`, zeros outside.

    Images are `[C_in, B, T, D]`, kernels `[L, C_in, C_out]`, float32, L odd; the result is `[C_out, B, T, D]`.
    """
    reach, layout = len(kernels) // 2, ("CNHW", "HWIO", "CNHW")  # height is time
    kernels = kernels[:, None].astype(images.dtype)
    return jax.lax.conv_general_dilated(images, kernels, (1, 1), ((reach, reach), (0, 0)), dimension_numbers=layout)


def _curves(center, width, taps, curve, length=None, valid=True):
    """Curves over `length` valid taps, or over all taps: `[…, N] -> […, N, taps]`, where every row sums to 1."""
    place = jnp.arange(taps, dtype=jnp.float32).reshape((1,) * center.ndim + (taps,))
    middle = ((taps if length is None else length) - 1) * (jnp.tanh(center) + 1) / 2
    g = jnp.exp(1.5 - 2 * jnp.abs(jnp.tanh(width)))[..., None]
    distance = (place - middle[..., None]) / g
    values = 1 / (jnp.pi * g * (1 + distance**2)) if curve == "cauchy" else jnp.exp(-(distance**2) / 2)
    values = jnp.where(valid, values, 0)
    return values / (jnp.sum(values, axis=-1, keepdims=True) + 1e-6)  # as in the released code
