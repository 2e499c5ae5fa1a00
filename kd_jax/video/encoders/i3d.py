"""I3D: Inception-v1 inflated to video, the encoder of RGB and of optical flow.

    encoder = I3D(num_classes=400)
    encoded = encoder.apply(variables, clips)  # clips [B, F, height, width, 3 or 2], from -1 to 1
    encoded.features                           # [B, T, 1024]; 16 frames of 224 × 224 give T = 1

Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, with the arithmetic of the public TensorFlow and
PyTorch code: TensorFlow's 'SAME' padding, batch normalisation by running statistics with epsilon 1e-3, no bias but the
last layer's. It is an encoder that has been trained: there is no training mode.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.video.encoders.layers import Encoded, FrozenBatchNorm

# name: kernel and stride over (time, height, width), and channels of a convolution; or channels of an Inception block's
# four branches: 1×1 | 1×1 → 3×3 | 1×1 → 3×3 | pooling → 1×1.
LAYERS = {
    "Conv3d_1a_7x7": ((7, 7, 7), (2, 2, 2), 64),
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2), None),
    "Conv3d_2b_1x1": ((1, 1, 1), (1, 1, 1), 64),
    "Conv3d_2c_3x3": ((3, 3, 3), (1, 1, 1), 192),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2), None),
    "Mixed_3b": (64, (96, 128), (16, 32), 32),
    "Mixed_3c": (128, (128, 192), (32, 96), 64),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2), None),
    "Mixed_4b": (192, (96, 208), (16, 48), 64),
    "Mixed_4c": (160, (112, 224), (24, 64), 64),
    "Mixed_4d": (128, (128, 256), (24, 64), 64),
    "Mixed_4e": (112, (144, 288), (32, 64), 64),
    "Mixed_4f": (256, (160, 320), (32, 128), 128),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2), None),
    "Mixed_5b": (256, (160, 320), (32, 128), 128),
    "Mixed_5c": (384, (192, 384), (48, 128), 128),
}
ENDPOINTS = tuple(LAYERS)  # as published, in order
_SPAN = 16, 8  # frames that a feature tells of, and from one feature to the next


class _Unit(nn.Module):
    """Convolution, batch normalisation (taken into the kernel), ReLU."""

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
    """With 'SAME' padding, `[B, F, height, width, in]`; on a CPU as fewer, faster products."""
    if kernel.shape[0] == 1:
        return _convolve_at_once(x, kernel, strides)
    faster = _convolve_by_pairs if kernel.shape[0] == 3 and tuple(strides) == (1, 1, 1) else _convolve_frames
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: faster(x, kernel, strides),
        default=lambda x, kernel: _convolve_at_once(x, kernel, strides),
    )


def _convolve_at_once(x, kernel, strides):
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)


def _convolve_images(x, kernel, strides=(1, 1)):
    """Each frame for itself, by a kernel without time."""
    frames = x.reshape(-1, *x.shape[2:])
    y = jax.lax.conv_general_dilated(frames, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _convolve_frames(x, kernel, strides):
    """The frames that a kernel sees as channels side by side: Eigen is three times as fast on images as on volumes."""
    taps, count = kernel.shape[0], -(-x.shape[1] // strides[0])
    padded = max((count - 1) * strides[0] + taps - x.shape[1], 0)
    x = jnp.pad(x, ((0, 0), (padded // 2, padded - padded // 2), (0, 0), (0, 0), (0, 0)))
    seen = [x[:, i : i + (count - 1) * strides[0] + 1 : strides[0]] for i in range(taps)]
    kernel = jnp.concatenate(list(kernel), axis=2)
    return _convolve_images(jnp.concatenate(seen, axis=-1), kernel, strides[1:])


def _convolve_by_pairs(x, kernel, strides):
    """Two frames of three taps from four products instead of six: Winograd's F(2, 3), over time alone."""
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
    """Padded with zeros, as the public code does; no value behind a ReLU is below."""

    kernel: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)

    @nn.compact
    def __call__(self, x):
        if max(self.strides) > 1:
            return nn.max_pool(x, self.kernel, self.strides, "SAME")
        for axis in (1, 2, 3):  # the largest of three, axis by axis: a third of the time on a CPU
            length, pads = x.shape[axis], [(int(axis == a),) * 2 for a in range(x.ndim)]
            padded = jnp.pad(x, pads)
            before, after = (jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in (0, 2))
            x = jnp.maximum(jnp.maximum(before, x), after)
        return x


class _Inception(nn.Module):
    """Four branches side by side; the public names of their units."""

    branches: tuple
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        first, (second_in, second), (third_in, third), fourth = self.branches
        unit = {"dtype": self.dtype}
        one = _Unit(first, name="b0", **unit)(x)
        two = _Unit(second, (3, 3, 3), name="b1b", **unit)(_Unit(second_in, name="b1a", **unit)(x))
        three = _Unit(third, (3, 3, 3), name="b2b", **unit)(_Unit(third_in, name="b2a", **unit)(x))
        four = _Unit(fourth, name="b3b", **unit)(_MaxPool((3, 3, 3))(x))
        return jnp.concatenate([one, two, three, four], axis=-1)


class I3D(nn.Module):
    """Clips → features and class scores, one for each 8 frames but the last 8.

    What a layer of `ENDPOINTS` gave, `apply` returns too if asked:
    `capture_intermediates=True, mutable="intermediates"`.

    Attributes:
      num_classes: C of the weights: 400 of Kinetics, 157 of Charades.
      width: 1 is the published network; a fraction has that part of each layer's channels, to try things out.
      final_endpoint: the last layer, one of `ENDPOINTS`; the network ends there, and features are means over its map.
      dtype: of the computation; parameters, features and logits are float32.
    """

    num_classes: int = 400
    width: float = 1.0
    final_endpoint: str = ENDPOINTS[-1]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, clips: jax.Array) -> Encoded:
        """Encodes clips.

        Args:
          clips: `[B, F, height, width, 3]` RGB or `[B, F, height, width, 2]` flow, from -1 to 1.

        Returns:
          `Encoded`. Features are means over the last layer's whole map and 16 frames, which are two of its steps: at
          224 × 224, the (2, 7, 7) of the public code, which needs that size. The logits are theirs, without dropout.

        Raises:
          ValueError: for other shapes, or an unknown endpoint.
        """
        if self.final_endpoint not in ENDPOINTS:
            raise ValueError(f"final_endpoint={self.final_endpoint!r}; choose one of {', '.join(ENDPOINTS)}")
        if clips.ndim != 5 or clips.shape[-1] not in (2, 3):
            raise ValueError(f"clips must be [B, F, height, width, 3 or 2], got {list(clips.shape)}")
        x, stride = clips.astype(self.dtype), 1  # frames a step
        for name, layer in LAYERS.items():
            if len(layer) == 4:
                x = _Inception(jax.tree.map(self._channels, layer), self.dtype, name=name)(x)
            elif layer[2] is None:
                x = _MaxPool(*layer[:2], name=name)(x)
            else:
                x = _Unit(self._channels(layer[2]), *layer[:2], self.dtype, name=name)(x)
            stride *= layer[1][0] if len(layer) == 3 else 1
            if name == self.final_endpoint:
                break
        x = x.astype(jnp.float32).mean((2, 3))  # [B, steps, channels]
        window, step = (frames // stride for frames in _SPAN)
        features = nn.avg_pool(x, (min(window, x.shape[1]),), (step,))
        return Encoded(features, nn.Dense(self.num_classes, name="logits")(features))

    def _channels(self, published: int) -> int:
        return max(1, round(published * self.width))
