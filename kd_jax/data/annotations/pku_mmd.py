"""PKU-MMD: 51 sparse actions, one text file of labels per video and one split file.

    0002-L.txt          label,start,end,confidence per line; label 1 … 51, times in frames at 30 frames per second
    cross-subject.txt   four lines: a heading, the training videos, a heading, the test videos (also cross-view.txt)

The files do not contain the length of a video. It is taken as T snippets of 16 frames.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from kd_jax.data import base
from kd_jax.data.annotations.cleaning import Action, Annotated, Labels, annotate, check_action
from kd_jax.data.checks import UNLISTED, Findings, check_common, check_video_id, parse, read_text, short
from kd_jax.data.text_files import normalize

LINES = ("a heading", "the training videos", "a heading", "the test videos")


def read_annotations(paths: Sequence[Path], names: Sequence[str], findings: Findings) -> list[Annotated]:
    """Reads the folder of label files and the split file, in either order.

    Arguments and result are those of `common_layout.read_annotations`; durations are infinite.
    """
    folders, files = [p for p in paths if p.is_dir()], [p for p in paths if not p.is_dir()]
    if len(folders) != 1 or len(files) != 1:
        expected = "--annotations=FOLDER_OF_LABEL_FILES and --annotations=cross-subject.txt (or cross-view.txt)"
        findings.problem("annotation files", f"expected {expected}; got {', '.join(map(str, paths))}")
        return []
    split_of = _read_split(files[0], findings)
    labels, videos = Labels(names, first=1), []
    label_files = {normalize(path.stem): path for path in folders[0].glob("*.txt")}
    if apart := check_common(str(files[0]), split_of, str(folders[0]), label_files):
        findings.problem("missing label file", apart)
        return []
    for video, split in split_of.items():
        if check_video_id(video, findings, str(files[0])):
            if path := label_files.get(video):
                videos.append(annotate(video, split, math.inf, _read_labels(path, video, labels, findings), findings))
            else:
                findings.problem("missing label file", f"{folders[0] / video}.txt")
    labels.report_unknown(findings)
    for name in sorted(label_files.keys() - split_of.keys()):
        findings.note(UNLISTED, str(label_files[name]))
    return videos


def _read_split(path: Path, findings: Findings) -> dict[str, str]:
    """Returns {video: split}. The lines are read by position, because the official headings are misspelt."""
    text = read_text(path, findings)
    if text is None:
        return {}
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if len(lines) != len(LINES):
        findings.problem("split file", f"{path}: {len(lines)} lines, expected {len(LINES)}: {', '.join(LINES)}")
        return {}
    split_of: dict[str, str] = {}
    for split, line in zip(base.SPLITS, lines[1::2], strict=True):
        for video in filter(None, (part.strip() for part in line.split(","))):
            if split_of.setdefault(video, split) != split:
                findings.problem("split file", f"{path}: {video} is listed for training and for test")
    return split_of


def _read_labels(path: Path, video: str, labels: Labels, findings: Findings) -> list[Action]:
    rows = []
    for i, line in enumerate((read_text(path, findings) or "").splitlines(), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        shown = f"line {i} of {path.name}, {short(line)}"
        if len(fields) not in (3, 4):
            findings.problem("action", f"{video}: {shown}, expected label,start,end,confidence")
        elif row := check_action(video, [parse(field) for field in fields[:3]], labels, findings, shown=shown):
            rows.append(row)
    return rows


DESCRIPTION = base.Description(
    title="PKU-MMD: 51 sparse actions",
    needs="""\
Train_Label_PKU_final/<video>.txt, and cross-subject.txt or cross-view.txt
one folder of <video>.npy per modality (I3D 1024, AGCN 256), one row per 16 frames; other strides: --stride
class names (optional): --classes=FILE of 51 lines; otherwise action_01 … action_51

kd-jax build --dataset=pku_mmd --annotations=Train_Label_PKU_final --annotations=cross-subject.txt \\
    --features=rgb=RGB_DIR --features=flow=FLOW_DIR --features=pose=POSE_DIR --output=data/pku_mmd""",
    head="sparse",
    unit="frames",
    fps=30.0,
    names=tuple(f"action_{i:02d}" for i in range(1, 52)),
    protocols=("event_map", "frame_map"),
    read=read_annotations,
    stride=16,
)
