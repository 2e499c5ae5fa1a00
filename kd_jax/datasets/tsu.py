"""Toyota Smarthome Untrimmed: 51 dense daily-living actions, times in frames, one feature per 16 frames.

    python -m data_prep.build --dataset=tsu --annotations=smarthome_CS_51.json --features=rgb=DIR --features=flow=DIR …

The annotation files (`smarthome_CS_51.json`, `smarthome_CV_51.json`) and feature folders have the layout that `custom`
reads. They hold no class names: --classes=classes.txt gives them, otherwise classes are called class_00 … class_50.
"""

from kd_jax.datasets import base

DESCRIPTION = base.Description(
    head="dense",
    unit="frames",
    fps=20.0,  # of the released videos; it only turns frames into seconds, hence an option: --fps
    num_classes=51,
    classes="classes.txt where given, otherwise class_00 … class_50",
    protocols=("frame_map_upsampled", "frame_map"),
)
CLASSES = tuple(f"class_{i:02d}" for i in range(51))
