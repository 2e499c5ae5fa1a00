"""Toyota Smarthome Untrimmed: 51 dense daily-living actions. Times are in frames; one feature covers 16 frames."""

from kd_jax.data import base
from kd_jax.data.annotations.common_layout import read_annotations

DESCRIPTION = base.Description(
    title="Toyota Smarthome Untrimmed: 51 dense actions",
    needs="""\
smarthome_CS_51.json or smarthome_CV_51.json (cross-subject, cross-view), from the data set's owners
one folder of <video>.npy per modality, [T, 1024] or [T, 1, 1, 1024] (pose 256), one row per 16 frames
class names (optional): --classes=FILE of 51 lines; otherwise class_00 … class_50

kd-jax build --dataset=tsu --annotations=smarthome_CS_51.json \\
    --features=rgb=RGB_DIR --features=flow=FLOW_DIR --output=data/tsu""",
    head="dense",
    unit="frames",
    fps=20.0,  # the released videos; --fps replaces it. It only converts frames to seconds
    names=tuple(f"class_{i:02d}" for i in range(51)),
    protocols=("frame_map_upsampled", "frame_map", "event_map"),
    read=read_annotations,
    stride=16,
)
