"""Your own data: an annotation file in the common layout, a class list, and one folder of features per modality."""

from kd_jax.data import base
from kd_jax.data.annotations.common_layout import read_annotations

DESCRIPTION = base.Description(
    title="your own data",
    needs="""\
annotations.json   {"kitchen_1": {"subset": "training", "duration": 61.5, "actions": [[0, 3.2, 10.8], …]}, …}
classes.txt        one name per line; the line number, from 0, is the class id
one folder of <video>.npy per modality

python -m data_prep.build --dataset=custom --annotations=annotations.json --classes=classes.txt \\
    --features=rgb=RGB_DIR --features=flow=FLOW_DIR --output=data/mine""",
    head="dense",
    unit="seconds",
    fps=25.0,
    names=(),
    protocols=("frame_map", "frame_map_upsampled"),
    read=read_annotations,
)
