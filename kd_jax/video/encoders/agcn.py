"""AGCN: adaptive graph convolutions over the joints of skeletons, an encoder of 3D pose.

    encoder = AGCN(num_classes=60)
    encoded = encoder.apply(variables, skeletons)  # [B, F, persons, 25, 3], metres
    encoded.features                               # [B, 1, 256]

The network is the joint stream of Shi et al., "Two-Stream Adaptive Graph Convolutional Networks", CVPR 2019, with the
arithmetic of its public code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.video.encoders.layers import Encoded, FrozenBatchNorm
from kd_jax.video.skeletons import JOINTS

# The parent of each joint. The root is 20, the spine between the shoulders.
_PARENTS = [1, 20, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, None, 22, 7, 24, 11]
BLOCKS = [(64, 1)] * 4 + [(128, 2), (128, 1), (128, 1), (256, 2), (256, 1), (256, 1)]  # (channels, stride)
ENDPOINTS = tuple(f"l{i + 1}" for i in range(len(BLOCKS)))  # as published


def adjacency() -> np.ndarray:
    """Returns `[3, 25, 25]`: self-links, inward links and outward links.

    A column sums to 1, or to 0 if the joint has no such link.
    """
    inward = np.zeros((JOINTS, JOINTS), np.float32)
    for joint, parent in enumerate(_PARENTS):
        if parent is not None:
            inward[parent, joint] = 1
    graphs = np.stack([np.eye(JOINTS, dtype=np.float32), inward, inward.T])
    return graphs / np.maximum(graphs.sum(axis=1, keepdims=True), 1)


class _Convolution(nn.Module):
    """Convolution over frames of `[N, F, V, channels]`, with a bias and batch normalisation folded into the kernel."""

    channels: int
    frames: int = 1
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.frames, 1, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        scale, shift = FrozenBatchNorm(self.channels, epsilon=1e-5, name="bn")(x.ndim)
        half = self.frames // 2
        kernel, padding, layout = (kernel * scale).astype(self.dtype), ((half, half), (0, 0)), ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (self.stride, 1), padding, dimension_numbers=layout)
        return x + (bias.reshape(shift.shape) * scale + shift).astype(self.dtype)


class _Graph(nn.Module):
    """Graph convolution over joints; links are those of the skeleton plus learnt ones plus data-dependent ones."""

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        fixed = adjacency()
        learnt = self.param("links", nn.initializers.constant(1e-6), fixed.shape)
        inner = self.channels // 4
        y: jax.Array | int = 0
        for i in range(len(fixed)):
            a, b = (nn.Dense(inner, dtype=self.dtype, name=f"{part}_{i}")(x) for part in ("a", "b"))
            similar = jnp.einsum("nfvc,nfwc->nvw", a, b, preferred_element_type=jnp.float32)
            links = nn.softmax(similar / (inner * x.shape[1]), axis=1) + (fixed[i] + learnt[i])[None]
            mixed = jnp.einsum("nfvc,nvw->nfwc", x, links.astype(self.dtype))
            y = y + nn.Dense(self.channels, dtype=self.dtype, name=f"out_{i}")(mixed)
        scale, shift = FrozenBatchNorm(self.channels, epsilon=1e-5, name="bn")(x.ndim)
        y = y * scale.astype(self.dtype) + shift.astype(self.dtype)
        if x.shape[-1] != self.channels:
            x = _Convolution(self.channels, dtype=self.dtype, name="down")(x)
        return nn.relu(y + x)


class _Block(nn.Module):
    """A graph convolution and a convolution over 9 frames, with a residual connection."""

    channels: int
    stride: int
    residual: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        y = _Graph(self.channels, self.dtype, name="graph")(x)
        y = _Convolution(self.channels, 9, self.stride, self.dtype, name="frames")(y)
        if x.shape[-1] != self.channels or self.stride > 1:
            x = _Convolution(self.channels, 1, self.stride, self.dtype, name="residual")(x) if self.residual else x
        return nn.relu(y + x if self.residual else y)


class AGCN(nn.Module):
    """Computes one feature vector and class scores per clip of skeletons.

    `apply(…, capture_intermediates=True, mutable="intermediates")` also returns the outputs of `ENDPOINTS`,
    `[B · persons, F', 25, channels]`.
    """

    num_classes: int = 60  # C of the weights: 60 for NTU RGB+D, 51 for PKU-MMD
    width: float = 1.0  # fraction of the published channels, for experiments
    dtype: jnp.dtype = jnp.float32  # precision of the computation; parameters, features and logits are float32

    @nn.compact
    def __call__(self, skeletons: jax.Array) -> Encoded:
        """Encodes clips; raises ValueError for other shapes.

        Args:
          skeletons: `[B, F, persons, 25, 3]`, 0 where a person is absent; weights fix the number of persons.

        Returns:
          `Encoded` with T = 1. Features are means over frames, joints and then persons, absent ones included.
        """
        if skeletons.ndim != 5 or skeletons.shape[3:] != (JOINTS, 3):
            raise ValueError(f"skeletons must be [B, F, persons, {JOINTS}, 3], got {list(skeletons.shape)}")
        batch, frames, persons = skeletons.shape[:3]
        scale, shift = FrozenBatchNorm(persons * JOINTS * 3, epsilon=1e-5, name="data_bn")(3)
        x = skeletons.astype(jnp.float32).reshape(batch, frames, -1) * scale + shift
        x = x.reshape(batch, frames, persons, JOINTS, 3).swapaxes(1, 2).reshape(-1, frames, JOINTS, 3)
        x = x.astype(self.dtype)
        for i, (channels, stride) in enumerate(BLOCKS):
            channels = max(4, round(channels * self.width))
            x = _Block(channels, stride, residual=i > 0, dtype=self.dtype, name=ENDPOINTS[i])(x)
        x = x.astype(jnp.float32).mean((1, 2)).reshape(batch, persons, -1).mean(1)
        return Encoded(x[:, None], nn.Dense(self.num_classes, name="fc")(x)[:, None])

    def embed(self, skeletons: jax.Array) -> jax.Array:
        """Returns one row of features per clip, `[B, 256]`."""
        return self(skeletons).features.mean(1)
