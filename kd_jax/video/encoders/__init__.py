"""Frozen encoders of snippets: frames, optical flow or skeletons to features."""

from kd_jax.video.encoders.agcn import AGCN
from kd_jax.video.encoders.i3d import I3D

__all__ = ["AGCN", "I3D"]
