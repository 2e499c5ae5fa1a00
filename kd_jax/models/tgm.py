"""TGM: temporal Gaussian mixtures, kernels over time of few parameters, shared by all channels of the input."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
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
        images, valid = x[None], mask[None, :, :, None]
        for i in range(self.num_layers):
            images = MixtureLayer(self.channels, self.taps, self.mixture, self.curve, combine=i > 0, name=f"layer_{i}")(
                images
            )
            images = jnp.where(valid, images, jnp.zeros((), self.dtype))
        parts = [Dropout(self.dropout)(y, deterministic=not train) for y in (x, largest(images))]
        parts = nn.relu(jnp.concatenate([*parts, *self._beside(x, mask)], axis=-1))
        return mask_out(nn.relu(pointwise(parts, self.hidden, dtype=self.dtype, name="hidden")), mask)

    def _beside(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
        """What else the last convolution reads, `[B, T, …]`."""
        return ()


class TGMGaussian(TGM):
    """TGM with the Gaussian curves of its paper."""

    curve: str = "gaussian"


class TGMSuperEvents(TGM):
    """TGM with super-events, `Hierarchy` in the released code: what the whole video holds, beside every snippet.

    Attributes:
      num_outputs: super-events, one a logit of the detector, which sets it.

    References:
      Piergiovanni and Ryoo, Learning Latent Super-Events, CVPR 2018 [code]. There the curves reach into the padding;
      here they end with the video, as there without padding. In training they are not dropped out here, there they are.
    """

    num_outputs: int = 1

    @property
    def receptive_field(self) -> None:
        """An output sees all of the video."""
        return None

    def _beside(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
        found = SuperEvents(self.num_outputs, name="super_events")(x, mask)
        return (jnp.broadcast_to(found[:, None].astype(x.dtype), (*mask.shape, self.num_outputs)),)


class SuperEvents(nn.Module):
    """`[B, T, D] -> [B, K]`, float32: K weightings of two sums of the video.

    Each of the two is, channel by channel, the largest of three sums over the video under a Cauchy curve, as in
    `MixtureLayer` with the valid snippets as taps: `[B, D]`. Super-event k is
    `Σ_d m_kd (σ(w_k) p_d + (1 − σ(w_k)) q_d)`.

    Attributes:
      number: K.
      curves: of each of the two.
    """

    number: int
    curves: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        half = nn.initializers.normal(0.5)
        center, width = (self.param(name, half, (2, self.curves), jnp.float32) for name in ("center", "gamma"))
        share = nn.sigmoid(self.param("share", nn.initializers.zeros_init(), (self.number,), jnp.float32))
        matrix = self.param("kernel", kernel_init, (x.shape[-1], self.number), jnp.float32)
        length, every = jnp.sum(mask, axis=1, dtype=jnp.float32)[:, None, None], (len(x), 2, self.curves)
        center, width = jnp.broadcast_to(center, every), jnp.broadcast_to(width, every)
        curves = _curves(center, width, mask.shape[1], "cauchy", length, mask[:, None, None])  # [B, 2, curves, T]
        sums = jnp.einsum("bsct,btd->bscd", curves, x.astype(jnp.float32))
        first, second = jnp.moveaxis(jnp.max(sums, axis=2) @ matrix, 1, 0)  # [B, K]
        return share[None] * first + (1 - share)[None] * second


class MixtureLayer(nn.Module):
    """Convolution over time with kernels mixed of N curves, `[C_in, B, T, D] -> [channels, B, T, D]`.

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
        inputs = len(x)
        half, normal = nn.initializers.normal(0.5), nn.initializers.normal(1.0)
        center, width = (self.param(name, half, (self.mixture,), jnp.float32) for name in ("center", "gamma"))
        attention = self.param("attention", normal, (self.channels, inputs, self.mixture), jnp.float32)
        curves = _curves(center, width, self.taps, self.curve)
        kernels = jnp.einsum("oin,nl->lio", jax.nn.softmax(attention), curves)  # [L, C_in, channels]
        if not self.combine:
            return convolve(x, kernels)
        mix = self.param("kernel", kernel_init, (inputs, self.channels), jnp.float32)
        bias = self.param("bias", bias_init(inputs), (self.channels,), jnp.float32).astype(x.dtype)
        return nn.relu(convolve(x, kernels * mix[None]) + bias[:, None, None, None])


@jax.custom_vjp
def convolve(images: jax.Array, kernels: jax.Array) -> jax.Array:
    """`out_o[t] = Σ_l Σ_i k_lio · images_i[t + l − (L − 1)/2]`, zeros outside.

    So few and so small kernels are sums of whole images, an output after the other, sooner than matrix products.

    Args:
      images: `[C_in, B, T, D]`.
      kernels: `[L, C_in, C_out]`, float32, L odd.

    Returns:
      `[C_out, B, T, D]`, of the images' type, summed in float32.
    """
    padded, length = _pad(images, len(kernels)), images.shape[2]

    def one(weights):
        total = jnp.zeros((), jnp.float32)
        for tap, of_tap in enumerate(weights):
            for image, weight in zip(padded, of_tap, strict=True):
                total = total + weight * image[:, tap : tap + length].astype(jnp.float32)
        return total.astype(images.dtype)

    return jax.lax.map(one, jnp.moveaxis(kernels, 2, 0))


def _convolve_backward(saved, gradient):
    images, kernels = saved
    back = convolve(gradient, jnp.swapaxes(kernels[::-1], 1, 2))
    of_kernels = functools.partial(_correlate, taps=len(kernels))
    # In pieces both arrays stay in a core's cache; on an accelerator a loop of small products would wait for itself.
    pieces = functools.partial(of_kernels, piece=16)
    return back, jax.lax.platform_dependent(images, gradient, cpu=pieces, default=of_kernels)


convolve.defvjp(lambda images, kernels: (convolve(images, kernels), (images, kernels)), _convolve_backward)


def _pad(images, taps, more=0):
    reach = taps // 2
    return jnp.pad(images, ((0, 0), (0, 0), (reach, reach + more), (0, 0)))


def _correlate(images, gradient, taps, piece=None):
    """`[L, C_in, C_out]`: sums over videos, snippets and features; `piece` snippets at a time."""
    length = images.shape[2]
    piece = piece or length
    count = -(-length // piece)
    more = count * piece - length
    images, gradient = _pad(images, taps, more), jnp.pad(gradient, ((0, 0), (0, 0), (0, more), (0, 0)))

    def rows(x):
        return x.reshape(len(x), -1)

    def add(total, start):
        window = jax.lax.dynamic_slice_in_dim(images, start, piece + taps - 1, axis=2)
        part = rows(jax.lax.dynamic_slice_in_dim(gradient, start, piece, axis=2))
        moved = [rows(window[:, :, tap : tap + piece]) for tap in range(taps)]
        products = [jnp.einsum("in,on->io", x, part, preferred_element_type=jnp.float32) for x in moved]
        return total + jnp.stack(products), None

    start = jnp.zeros((taps, len(images), len(gradient)), jnp.float32)
    return jax.lax.scan(add, start, piece * jnp.arange(count))[0]


@jax.custom_vjp
def largest(images: jax.Array) -> jax.Array:
    """The largest of the images, `[C, …] -> […]`; the first of equals gets the gradient."""
    return functools.reduce(jnp.maximum, images)


def _largest_forward(images):
    best = largest(images)
    return best, (images, best)


def _largest_backward(saved, gradient):
    images, best = saved

    def one(free, image):
        chosen = (image == best) & free
        return free & ~chosen, jnp.where(chosen, gradient, jnp.zeros((), gradient.dtype))

    return (jax.lax.scan(one, jnp.ones(best.shape, bool), images)[1],)


largest.defvjp(_largest_forward, _largest_backward)


def _curves(center, width, taps, curve, length=None, valid=True):
    """`[…, N] -> […, N, taps]`, every row of sum 1: curves over `length` valid taps, all of them if it is None."""
    place = jnp.arange(taps, dtype=jnp.float32).reshape((1,) * center.ndim + (taps,))
    middle = ((taps if length is None else length) - 1) * (jnp.tanh(center) + 1) / 2
    g = jnp.exp(1.5 - 2 * jnp.abs(jnp.tanh(width)))[..., None]
    distance = (place - middle[..., None]) / g
    values = 1 / (jnp.pi * g * (1 + distance**2)) if curve == "cauchy" else jnp.exp(-(distance**2) / 2)
    values = jnp.where(valid, values, 0)
    return values / (jnp.sum(values, axis=-1, keepdims=True) + 1e-6)  # the released code's guard
