"""Charades: 157 dense everyday actions, from `charades.json` or the official CSV files.

A CSV file has the columns id, length and actions (`c092 11.90 21.20;c147 0.00 12.60`) among others. Its file name
contains the split.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from kd_jax.data import base
from kd_jax.data.annotations import common_layout
from kd_jax.data.annotations.cleaning import Annotated, Labels, annotate, check_action, check_positive
from kd_jax.data.checks import Findings, check_video_id, parse, read_text, short

COLUMNS = ("id", "length", "actions")


def read_annotations(paths: Sequence[Path], names: Sequence[str], findings: Findings) -> list[Annotated]:
    """Reads one JSON file of the common layout, or Charades_v1_train.csv and Charades_v1_test.csv.

    Arguments and result are those of `common_layout.read_annotations`.
    """
    if not any(path.suffix.lower() == ".csv" for path in paths):
        return common_layout.read_annotations(paths, names, findings)
    labels = Labels(names)
    videos: dict[str, Annotated] = {}
    for path in paths:
        splits = [split for split in base.SPLITS if split in path.name.lower()]
        if len(splits) != 1:
            case = f"{path}: the name does not contain the split; call it …train.csv or …test.csv"
            findings.problem("annotation files", case)
        for video in _read_csv(path, splits[0] if len(splits) == 1 else "", labels, findings):
            if video.id in videos:
                findings.problem("repeated video", f"{path}: {video.id} occurs twice; remove all but one")
            videos[video.id] = video
    labels.report_unknown(findings)
    return list(videos.values())


def _read_csv(path: Path, split: str, labels: Labels, findings: Findings) -> list[Annotated]:
    text = read_text(path, findings)
    if text is None:
        return []
    videos: list[Annotated] = []
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
        if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
            findings.problem("annotation layout", f"{path}: no column {', '.join(missing)} in its first line")
            return []
        for row in reader:
            where = f"{path.name} line {reader.line_num}"
            if None in row.values() or "" in row:
                findings.problem("annotation layout", f"{where}: {short(row['id'])}: not as many fields as columns")
            elif check_video_id(row["id"], findings, where):
                videos.append(_read_row(row, split, labels, findings))
    except csv.Error as error:
        findings.problem("annotation layout", f"{path}: {error}")
    return videos


def _read_row(row: dict[str, str], split: str, labels: Labels, findings: Findings) -> Annotated:
    video = row["id"]
    duration = check_positive(video, "length", parse(row["length"]), findings)
    rows = []
    for text in row["actions"].split(";") if row["actions"].strip() else []:
        label, *times = text.rsplit(maxsplit=2) if text.strip() else [""]
        is_code = label[:1] == "c" and label[1:].isdecimal()
        if len(times) != 2 or not (is_code or label in labels.names):
            findings.problem("action", f"{video}: {short(text)}, expected cNNN START END")
            continue
        action = [float(label[1:]) if is_code else label, *map(parse, times)]
        if checked := check_action(video, action, labels, findings, shown=short(text)):
            rows.append(checked)
    return annotate(video, split, duration, rows, findings)


DESCRIPTION = base.Description(
    title="Charades: 157 dense actions",
    needs="""\
Charades_v1_train.csv and Charades_v1_test.csv (AI2), or charades.json in the common layout
one folder of <video>.npy per modality, [T, 1024] or [T, 1, 1, 1024], one row per 8 frames at 24 frames per second
class names (optional): --classes=Charades_v1_classes.txt; otherwise c000 … c156

kd-jax build --dataset=charades --annotations=Charades_v1_train.csv \\
    --annotations=Charades_v1_test.csv --features=rgb=RGB_DIR --features=flow=FLOW_DIR --output=data/charades""",
    head="dense",
    unit="seconds",
    fps=24.0,
    names=tuple(f"c{i:03d}" for i in range(157)),
    protocols=("charades_localize", "frame_map"),
    read=read_annotations,
    stride=8,
)
