"""THUMOS14: 20 sports actions, from the JSON of ActionFormer or OpenTAD.

    {"database": {video: {"subset": …, "duration": s, "fps": …, "annotations": [{"label": …, "segment": [s, s]}]}}}

OpenTAD tells the number of frames instead of fps.

The challenge trains on its 200 validation videos and tests on 213 test videos. ActionFormer calls them so; OpenTAD
calls the first training and the second validation. Segments labelled Ambiguous are set aside: they are no action, and
a detection there is no mistake (the kit of the challenge; ActionFormer and OpenTAD leave them out).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax.data import base
from kd_jax.data.annotations.cleaning import Annotated, annotate, check_duration, check_span, check_video
from kd_jax.data.annotations.common_layout import one_file
from kd_jax.data.checks import AMBIGUOUS, TRIMMED, Findings, load_json_object, number, short

NAMES = (
    "BaseballPitch",
    "BasketballDunk",
    "Billiards",
    "CleanAndJerk",
    "CliffDiving",
    "CricketBowling",
    "CricketShot",
    "Diving",
    "FrisbeeCatch",
    "GolfSwing",
    "HammerThrow",
    "HighJump",
    "JavelinThrow",
    "LongJump",
    "PoleVault",
    "Shotput",
    "SoccerPenalty",
    "TennisSwing",
    "ThrowDiscus",
    "VolleyballSpiking",
)
# Which subsets a file has → what they are used for.
SUBSETS = {
    frozenset({"validation", "test"}): {"validation": "train", "test": "test"},
    frozenset({"training", "validation"}): {"training": "train", "validation": "test"},
    frozenset({"training", "testing"}): {"training": "train", "testing": "test"},
    frozenset({"training", "test"}): {"training": "train", "test": "test"},
    # The training videos of the challenge are trimmed clips of one action each.
    frozenset({"training", "validation", "test"}): {"training": "", "validation": "train", "test": "test"},
}


def read_annotations(paths: Sequence[Path], names: Sequence[str], findings: Findings) -> list[Annotated]:
    """Reads the JSON file.

    Args, returns: as `common_layout.read_annotations`; labels are found by their name.
    """
    path = one_file(paths, findings)
    content = load_json_object(path, findings) if path else {}
    database = content.get("database", {})
    if content and not (isinstance(database, dict) and database):
        findings.problem("annotation layout", f'{path}: expected {{"database": {{video: …}}}} with at least one video')
        return []
    entries = {}
    for name, entry in database.items():
        if not isinstance(entry, dict):
            findings.problem("annotation layout", f"{name}: {short(entry)} is not an object")
        elif missing := [field for field in ("subset", "duration", "annotations") if field not in entry]:
            findings.problem("annotation layout", f"{name}: the field {', '.join(missing)} is missing")
        elif check_video(name, path, findings):
            entries[name] = entry
    subsets = {name: str(entry["subset"]).lower() for name, entry in entries.items()}
    meaning = SUBSETS.get(frozenset(subsets.values()))
    if entries and meaning is None:
        meaning = _one_split(subsets)
        if not meaning:
            first = {subset: name for name, subset in reversed(subsets.items())}
            found = ", ".join(f"{short(subset)} ({name})" for subset, name in sorted(first.items()))
            findings.problem("subset", f"{path}: {found}; expected validation and test, or training and validation")
    videos, class_of = [], {name: i for i, name in enumerate(names)}
    for name, entry in entries.items():
        split = (meaning or {}).get(subsets[name], "")
        if meaning and not split:
            findings.note(TRIMMED, f"{name}: {subsets[name]}")
        else:
            videos.append(_read_video(name, entry, split, class_of, findings))
    return videos


def _one_split(subsets: dict[str, str]) -> dict[str, str]:
    """A file of one subset is of the test videos if their names say so, or of the training videos."""
    if len(set(subsets.values())) != 1:
        return {}
    kinds = {word for name in subsets for word in ("video_test_", "video_validation_") if name.startswith(word)}
    split = {"video_test_": "test", "video_validation_": "train"}.get(kinds.pop()) if len(kinds) == 1 else None
    return dict.fromkeys(subsets.values(), split) if split else {}


def _read_video(name: str, entry: dict, split: str, class_of: dict[str, int], findings: Findings) -> Annotated:
    duration = check_duration(name, entry["duration"], findings)
    fps = None
    if "fps" in entry:
        fps = check_duration(name, entry["fps"], findings, field="fps")
    elif "frame" in entry:  # OpenTAD: how many the video has
        fps = check_duration(name, entry["frame"], findings, field="frame") / duration
    fps = fps if fps and math.isfinite(fps) else None
    actions = entry["annotations"]
    if not isinstance(actions, list):
        findings.problem("annotation layout", f"{name}: annotations is {short(actions)}, expected a list")
        actions = []
    rows, ambiguous = [], []
    for action in actions:
        label = action.get("label") if isinstance(action, dict) else None
        segment = action.get("segment") if isinstance(action, dict) else None
        if not isinstance(label, str) or not isinstance(segment, list) or len(segment) != 2:
            findings.problem("action", f'{name}: {short(action)}, expected {{"label": NAME, "segment": [start, end]}}')
            continue
        span = check_span(f"{name}: {short(action)}", *map(number, segment), findings)
        if label.lower() == "ambiguous":
            if span and span[1] >= span[0]:
                ambiguous.append(span)
            findings.note(AMBIGUOUS, f"{name}: {short(segment)}")
        elif class_of and label not in class_of:
            findings.problem("class", f"{name}: {short(action)}: the label {short(label)} is unknown")
        elif span:
            rows.append((float(class_of.get(label, 0)), *span))
    return annotate(
        name, split, duration, rows, findings, ambiguous=np.array(ambiguous, np.float64).reshape(-1, 2), fps=fps
    )


DESCRIPTION = base.Description(
    title="THUMOS14: 20 sparse actions",
    needs="""\
thumos14.json (ActionFormer) or thumos_14_anno.json (OpenTAD): {"database": {video: …}}
I3D features of the same projects: <video>.npy, [T, 2048] = rgb ‖ flow, 16 frames every 4 frames

python -m data_prep.build --dataset=thumos14 --annotations=thumos14.json --features=rgb+flow=I3D_DIR \\
    --output=data/thumos14""",
    head="sparse",
    unit="seconds",
    fps=30.0,  # of most videos; the file tells each one's own
    names=NAMES,
    protocols=("detection_map_thumos14", "detection_map_thumos14_kit", "frame_map"),
    read=read_annotations,
    stride=4,
    window=16,
)
