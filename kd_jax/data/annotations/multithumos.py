"""MultiTHUMOS: 65 dense sports actions in the THUMOS14 videos. Its annotation file counts classes from 1."""

import functools

from kd_jax.data import base
from kd_jax.data.annotations.common_layout import read_annotations

DESCRIPTION = base.Description(
    title="MultiTHUMOS: 65 dense actions",
    needs="""\
multithumos.json (super-events, PDAN), with classes 1 … 65, times in seconds
one folder of <video>.npy per modality, [T, 1024] or [T, 1, 1, 1024]
class names (optional): --classes=class_list.txt ("1 BaseballPitch" …); otherwise class_01 … class_65

kd-jax build --dataset=multithumos --annotations=multithumos.json \\
    --features=rgb=RGB_DIR --features=flow=FLOW_DIR --output=data/multithumos""",
    head="dense",
    unit="seconds",
    fps=30.0,  # most videos; some have 25. It only sets the resolution of up-sampled scores
    names=tuple(f"class_{i:02d}" for i in range(1, 66)),
    protocols=("frame_map",),
    read=functools.partial(read_annotations, first_class=1),
)
