"""I3D: Inception-v1 inflated to video, an encoder of RGB and of optical flow.

    encoder = I3D(num_classes=400)
    encoded = encoder.apply(variables, clips)  # clips [B, F, height, width, 3 or 2], from -1 to 1
    encoded.features                           # [B, T, 1024]; 16 frames of 224 × 224 give T = 1

The network is that of Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, with the arithmetic of the
public code: TensorFlow's 'SAME' padding, batch normalisation by running statistics, a bias in the last layer only.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.video.encoders.layers import Encoded, FrozenBatchNorm


class Convolution(NamedTuple):
    """A convolution: kernel and strides over (time, height, width), and output channels."""

    kernel: tuple[int, int, int]
    strides: tuple[int, int, int]
    channels: int


class Pooling(NamedTuple):
    """Max pooling: kernel and strides over (time, height, width)."""

    kernel: tuple[int, int, int]
    strides: tuple[int, int, int]


class Inception(NamedTuple):
    """Channels of four parallel branches: 1×1 | 1×1 → 3×3 | 1×1 → 3×3 | pooling → 1×1."""

    b0: int
    b1: tuple[int, int]
    b2: tuple[int, int]
    b3: int


LAYERS: dict[str, Convolution | Pooling | Inception] = {
    "Conv3d_1a_7x7": Convolution((7, 7, 7), (2, 2, 2), 64),
    "MaxPool3d_2a_3x3": Pooling((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": Convolution((1, 1, 1), (1, 1, 1), 64),
    "Conv3d_2c_3x3": Convolution((3, 3, 3), (1, 1, 1), 192),
    "MaxPool3d_3a_3x3": Pooling((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": Inception(64, (96, 128), (16, 32), 32),
    "Mixed_3c": Inception(128, (128, 192), (32, 96), 64),
    "MaxPool3d_4a_3x3": Pooling((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": Inception(192, (96, 208), (16, 48), 64),
    "Mixed_4c": Inception(160, (112, 224), (24, 64), 64),
    "Mixed_4d": Inception(128, (128, 256), (24, 64), 64),
    "Mixed_4e": Inception(112, (144, 288), (32, 64), 64),
    "Mixed_4f": Inception(256, (160, 320), (32, 128), 128),
    "MaxPool3d_5a_2x2": Pooling((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": Inception(256, (160, 320), (32, 128), 128),
    "Mixed_5c": Inception(384, (192, 384), (48, 128), 128),
}
ENDPOINTS = tuple(LAYERS)  # as published, in order
WINDOW, STRIDE = 16, 8  # frames per feature, and frames from one feature to the next


class _Unit(nn.Module):
    """Convolution, batch normalisation (folded into the kernel), ReLU."""

    channels: int
    kernel: tuple[int, int, int] = (1, 1, 1)
    strides: tuple[int, int, int] = (1, 1, 1)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (*self.kernel, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        scale, shift = FrozenBatchNorm(self.channels, epsilon=1e-3, name="bn")(x.ndim)
        x = _convolve(x, (kernel * scale).astype(self.dtype), self.strides)
        return nn.relu(x + shift.astype(self.dtype))


def _convolve(x: jax.Array, kernel: jax.Array, strides) -> jax.Array:
    """Convolves `[B, F, height, width, in]` with 'SAME' padding, in a faster formulation on a CPU."""
    if kernel.shape[0] == 1:
        return _convolve_volume(x, kernel, strides)
    faster = _convolve_by_pairs if kernel.shape[0] == 3 and tuple(strides) == (1, 1, 1) else _convolve_frames
    cpu, default = (functools.partial(convolve, strides=strides) for convolve in (faster, _convolve_volume))
    return jax.lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _convolve_volume(x, kernel, strides):
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)


def _convolve_images(x, kernel, strides=(1, 1)):
    """Convolves each frame with a kernel `[height, width, in, out]`."""
    frames = x.reshape(-1, *x.shape[2:])
    y = jax.lax.conv_general_dilated(frames, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _convolve_frames(x, kernel, strides):
    """Convolves images that have the channels of all frames under the kernel.

    XLA's CPU convolution is three times as fast on images as on volumes.
    """
    taps, count = kernel.shape[0], -(-x.shape[1] // strides[0])
    padded = max((count - 1) * strides[0] + taps - x.shape[1], 0)
    x = jnp.pad(x, ((0, 0), (padded // 2, padded - padded // 2), (0, 0), (0, 0), (0, 0)))
    seen = [x[:, i : i + (count - 1) * strides[0] + 1 : strides[0]] for i in range(taps)]
    kernel = jnp.concatenate(list(kernel), axis=2)
    return _convolve_images(jnp.concatenate(seen, axis=-1), kernel, strides[1:])


def _convolve_by_pairs(x, kernel, strides):
    """Computes two frames of three taps with four image convolutions instead of six (Winograd's F(2, 3) over time)."""
    frames, (first, second, third) = x.shape[1], kernel
    x = jnp.pad(x, ((0, 0), (1, 1 + frames % 2), (0, 0), (0, 0), (0, 0)))
    a, b, c, d = (x[:, i : x.shape[1] - 2 + i // 2 * 2 : 2] for i in range(4))
    ends = first + third
    left, right = _convolve_images(a - c, first), _convolve_images(b - d, third)
    total = _convolve_images(b + c, (ends + second) / 2)
    difference = _convolve_images(c - b, (ends - second) / 2)
    y = jnp.stack([left + total + difference, total - difference - right], axis=2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :frames]


class _MaxPool(nn.Module):
    """Max pooling with zero padding, as in the public code; inputs come from a ReLU, so none is below 0."""

    kernel: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)

    @nn.compact
    def __call__(self, x):
        if max(self.strides) > 1:
            return nn.max_pool(x, self.kernel, self.strides, "SAME")
        for axis in (1, 2, 3):  # the maximum of three, axis by axis, takes a third of the time on a CPU
            length, pads = x.shape[axis], [(int(axis == a),) * 2 for a in range(x.ndim)]
            padded = jnp.pad(x, pads)
            before, after = (jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in (0, 2))
            x = jnp.maximum(jnp.maximum(before, x), after)
        return x


class _Inception(nn.Module):
    """Four parallel branches, with the public names of their units."""

    channels: Inception
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        unit = functools.partial(_Unit, dtype=self.dtype)
        b0, b1, b2, b3 = self.channels
        branches = [
            unit(b0, name="b0")(x),
            unit(b1[1], (3, 3, 3), name="b1b")(unit(b1[0], name="b1a")(x)),
            unit(b2[1], (3, 3, 3), name="b2b")(unit(b2[0], name="b2a")(x)),
            unit(b3, name="b3b")(_MaxPool((3, 3, 3))(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """Computes features and class scores of clips, one per 16 frames, every 8 frames.

    `apply(…, capture_intermediates=True, mutable="intermediates")` also returns the outputs of `ENDPOINTS`.
    """

    num_classes: int = 400  # C of the weights: 400 for Kinetics, 157 for Charades
    width: float = 1.0  # fraction of the published channels, for experiments
    final_endpoint: str = ENDPOINTS[-1]  # the last layer; features are means over its map
    dtype: jnp.dtype = jnp.float32  # precision of the computation; parameters, features and logits are float32

    @nn.compact
    def __call__(self, clips: jax.Array) -> Encoded:
        """Encodes clips; raises ValueError for other shapes, or an unknown endpoint.

        Args:
          clips: `[B, F, height, width, 3]` RGB or `[B, F, height, width, 2]` flow, from -1 to 1.

        Returns:
          `Encoded`. Features are means over the last layer's map and over 16 frames, which are two of its steps. At
          224 × 224 this is the (2, 7, 7) window of the public code, which requires that size. The logits are computed
          from the features, without dropout.
        """
        if self.final_endpoint not in ENDPOINTS:
            raise ValueError(f"final_endpoint={self.final_endpoint!r}; choose one of {', '.join(ENDPOINTS)}")
        if clips.ndim != 5 or clips.shape[-1] not in (2, 3):
            raise ValueError(f"clips must be [B, F, height, width, 3 or 2], got {list(clips.shape)}")
        x, frames = clips.astype(self.dtype), 1  # frames per step of x
        for name, layer in LAYERS.items():
            if isinstance(layer, Inception):
                x = _Inception(jax.tree.map(self._channels, layer), dtype=self.dtype, name=name)(x)
            elif isinstance(layer, Pooling):
                x = _MaxPool(layer.kernel, layer.strides, name=name)(x)
            else:
                channels = self._channels(layer.channels)
                x = _Unit(channels, layer.kernel, layer.strides, dtype=self.dtype, name=name)(x)
            frames *= 1 if isinstance(layer, Inception) else layer.strides[0]
            if name == self.final_endpoint:
                break
        x = x.astype(jnp.float32).mean((2, 3))  # [B, steps, channels]
        features = nn.avg_pool(x, (min(WINDOW // frames, x.shape[1]),), (STRIDE // frames,))
        return Encoded(features, nn.Dense(self.num_classes, name="logits")(features))

    def embed(self, clips: jax.Array) -> jax.Array:
        """Returns one row of features per clip, `[B, 1024]`: the mean over the T features of a clip."""
        return self(clips).features.mean(1)

    def _channels(self, published: int) -> int:
        return max(1, round(published * self.width))
