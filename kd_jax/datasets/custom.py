"""Your own data: an annotation file, a list of class names, and a folder of `<video>.npy` per modality."""

from kd_jax.datasets import base

DESCRIPTION = base.Description(
    head="dense",
    unit="seconds",
    fps=25.0,
    num_classes=None,
    classes="classes.txt, line number = class id",
    protocols=("frame_map", "frame_map_upsampled"),
)
