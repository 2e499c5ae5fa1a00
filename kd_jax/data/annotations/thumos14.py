"""THUMOS14: 20 sports actions, from the JSON file of ActionFormer or OpenTAD.

    {"database": {video: {"subset": …, "duration": s, "fps": …, "annotations": [{"label": …, "segment": [s, s]}]}}}

OpenTAD has the number of frames, `frame`, instead of `fps`. `read_annotations` also reads the folder of the kit.

The challenge trains on its 200 validation videos and tests on 213 test videos. ActionFormer uses these names; OpenTAD
calls the two subsets training and validation. Segments labelled Ambiguous are not actions, and a detection there is
neither right nor wrong, as in the kit of the challenge. (ActionFormer and OpenTAD leave these segments out.)
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from kd_jax.data import base
from kd_jax.data.annotations.cleaning import (
    Action,
    Annotated,
    Labels,
    annotate,
    check_action,
    check_positive,
    check_times,
)
from kd_jax.data.annotations.common_layout import check_fields, list_field, load_one_file
from kd_jax.data.checks import AMBIGUOUS, TRIMMED, Findings, check_video_id, number, parse, read_text, short

NAMES = (
    "BaseballPitch", "BasketballDunk", "Billiards", "CleanAndJerk", "CliffDiving", "CricketBowling", "CricketShot",
    "Diving", "FrisbeeCatch", "GolfSwing", "HammerThrow", "HighJump", "JavelinThrow", "LongJump", "PoleVault",
    "Shotput", "SoccerPenalty", "TennisSwing", "ThrowDiscus", "VolleyballSpiking",
)  # fmt: skip
# The subsets of a file → the split that each is used for.
SUBSETS = {
    frozenset({"validation", "test"}): {"validation": "train", "test": "test"},
    frozenset({"training", "validation"}): {"training": "train", "validation": "test"},
    frozenset({"training", "testing"}): {"training": "train", "testing": "test"},
    frozenset({"training", "test"}): {"training": "train", "test": "test"},
    # The training videos of the challenge are trimmed clips of one action each.
    frozenset({"training", "validation", "test"}): {"training": "", "validation": "train", "test": "test"},
}
KIT_SPLITS = {"val": "train", "test": "test"}  # ending of a file of the kit → split
FIELDS = ("subset", "duration", "annotations")


def read_annotations(paths: Sequence[Path], names: Sequence[str], findings: Findings) -> list[Annotated]:
    """Reads the JSON file, or the folder of the kit.

    Arguments and result are those of `common_layout.read_annotations`; classes are found by their name.
    """
    if len(paths) == 1 and paths[0].is_dir():
        return _read_kit(paths[0], names, findings)
    layout = '{"database": {video: …}} with at least one video'
    content = load_one_file(paths, layout, findings)
    database = content.get("database")
    if content and not (isinstance(database, dict) and database):
        findings.problem("annotation layout", f"{paths[0]}: expected {layout}")
    entries = {}
    for name, entry in (database if isinstance(database, dict) else {}).items():
        entry = check_fields(name, entry, FIELDS, findings)
        if all(field in entry for field in FIELDS) and check_video_id(name, findings, str(paths[0])):
            entries[name] = entry
    if not entries:
        return []
    subsets = {name: str(entry["subset"]).lower() for name, entry in entries.items()}
    split_of = SUBSETS.get(frozenset(subsets.values())) or _split_by_names(subsets)
    if not split_of:
        first = {subset: name for name, subset in reversed(subsets.items())}
        found = ", ".join(f"{short(subset)} ({name})" for subset, name in sorted(first.items()))
        case = f"{paths[0]}: {found}; expected validation and test, or training and validation"
        findings.problem("subset", case)
    videos, labels = [], Labels(names)
    for name, entry in entries.items():
        split = split_of.get(subsets[name], "")
        if split_of and not split:
            findings.note(TRIMMED, f"{name}: {subsets[name]}")
        else:
            videos.append(_read_video(name, entry, split, labels, findings))
    labels.report_unknown(findings)
    return videos


def _read_kit(folder: Path, names: Sequence[str], findings: Findings) -> list[Annotated]:
    """Reads the folder of the challenge's kit: `<Class>_val.txt`, `<Class>_test.txt`, lines `video start end`.

    The files have no durations, which stay infinite, and no video without an action.
    """
    labels = Labels(names)
    rows: dict[tuple[str, str], list[Action]] = defaultdict(list)  # by video and split
    spans: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)  # ambiguous
    files = [path for path in sorted(folder.glob("*_*.txt")) if path.stem.rsplit("_", 1)[1] in KIT_SPLITS]
    if not files:
        expected = "files BaseballPitch_val.txt, BaseballPitch_test.txt, … of the kit of the challenge"
        findings.problem("annotation files", f"{folder}: expected {expected}")
    for path in files:
        label, ending = path.stem.rsplit("_", 1)
        for index, line in enumerate((read_text(path, findings) or "").splitlines(), 1):
            where, fields = f"{path.name} line {index}", line.split()
            if not fields:
                continue
            if len(fields) != 3 or not check_video_id(fields[0], findings, where):
                findings.problem("action", f"{where}: {short(line)}, expected video start end")
                continue
            video, (start, end) = (fields[0], KIT_SPLITS[ending]), (number(parse(field)) for field in fields[1:])
            if label != "Ambiguous":
                row = check_action(video[0], [label, start, end], labels, findings, shown=where)
                rows[video] += [row] if row else []
            elif check_times(where, start, end, findings):
                spans[video].append((start, end))
                findings.note(AMBIGUOUS, f"{video[0]}: {short([start, end])}")
    labels.report_unknown(findings)
    return [
        annotate(video, split, math.inf, rows[video, split], findings, ambiguous=spans[video, split])
        for video, split in sorted(rows.keys() | spans.keys())
    ]


def _split_by_names(subsets: dict[str, str]) -> dict[str, str]:
    """Returns {subset: split} of a file with one subset, from the official video names; {} if they do not agree."""
    if len(set(subsets.values())) != 1:
        return {}
    prefixes = {"video_test_": "test", "video_validation_": "train"}
    found = {split for name in subsets for prefix, split in prefixes.items() if name.startswith(prefix)}
    return dict.fromkeys(subsets.values(), found.pop()) if len(found) == 1 else {}


def _read_video(name: str, entry: dict, split: str, labels: Labels, findings: Findings) -> Annotated:
    duration = check_positive(name, "duration", entry["duration"], findings)
    fps = math.nan
    if "fps" in entry:
        fps = check_positive(name, "fps", entry["fps"], findings)
    elif "frame" in entry:  # OpenTAD: the number of frames
        fps = check_positive(name, "frame", entry["frame"], findings) / duration
    rows, ambiguous = [], []
    for action in list_field(name, entry, "annotations", findings):
        label = action.get("label") if isinstance(action, dict) else None
        segment = action.get("segment") if isinstance(action, dict) else None
        if not isinstance(label, str) or not isinstance(segment, list) or len(segment) != 2:
            findings.problem("action", f'{name}: {short(action)}, expected {{"label": NAME, "segment": [start, end]}}')
            continue
        if label.lower() == "ambiguous":
            start, end = map(number, segment)
            if check_times(f"{name}: {short(action)}", start, end, findings) and end >= start:
                ambiguous.append((start, end))
            findings.note(AMBIGUOUS, f"{name}: {short(segment)}")
        elif row := check_action(name, [label, *segment], labels, findings, shown=short(action)):
            rows.append(row)
    known_fps = fps if math.isfinite(fps) else None
    return annotate(name, split, duration, rows, findings, ambiguous=ambiguous, fps=known_fps)


DESCRIPTION = base.Description(
    title="THUMOS14: 20 sparse actions",
    needs="""\
thumos14.json (ActionFormer) or thumos_14_anno.json (OpenTAD): {"database": {video: …}}
I3D features of the same projects: <video>.npy, [T, 2048] = rgb ‖ flow, 16 frames every 4 frames

kd-jax build --dataset=thumos14 --annotations=thumos14.json --features=rgb+flow=I3D_DIR \\
    --output=data/thumos14""",
    head="sparse",
    unit="seconds",
    fps=30.0,  # most videos; the file has that of each
    names=NAMES,
    protocols=("detection_map_thumos14", "detection_map_thumos14_kit", "frame_map"),
    read=read_annotations,
    stride=4,
    window=16,
)
