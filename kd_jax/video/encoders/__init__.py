"""Frozen encoders of snippets: frames, optical flow or skeletons to features."""

from kd_jax.video.encoders.agcn import AGCN
from kd_jax.video.encoders.i3d import I3D
from kd_jax.video.encoders.protocol import Encoder
from kd_jax.video.encoders.videoprism import VideoPrism

__all__ = ["AGCN", "I3D", "Encoder", "VideoPrism"]
