"""The annotation layout that TSU, Charades, MultiTHUMOS and your own data share, and lists of class names.

    {video: {"subset": "training" or "testing", "duration": 61.5, "actions": [[class, start, end], …]}}

A class is its number or its name. The subset "validation" has training videos that choose the best epoch.

Dirt is cleaned by rules and counted; errors are refused. No entry is skipped without a report.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.data.annotations.cleaning import Annotated, Labels, annotate, check_action, check_positive
from kd_jax.data.checks import Findings, check_video_id, load_json, number, read_text, short

SUBSETS = {"training": "train", "validation": "train", "testing": "test"}  # validation videos are held out of train
SHIFT = 1e-3  # of a frame, by which the segments of labels of frames are moved forward
MANY_ACTIONS = 5  # fewer may all be mistakes
NEEDS = ("subset", "duration")  # of every video, next to its actions


def load_one_file(paths: Sequence[Path], expected: str, findings: Findings) -> dict:
    """Reads the JSON object of a data set with one annotation file; returns {} after a problem."""
    if len(paths) != 1:
        findings.problem("annotation files", f"expected one --annotations, got {len(paths)}")
        return {}
    return load_json(paths[0], dict, expected, findings)


def only_objects(entries: Mapping[str, object], findings: Findings) -> dict[str, dict]:
    """Returns the entries that are objects; reports the others."""
    for video, entry in entries.items():
        if not isinstance(entry, dict):
            findings.problem("annotation layout", f"{video}: {short(entry)} is not an object")
    return {video: entry for video, entry in entries.items() if isinstance(entry, dict)}


def check_fields(video: str, entry: object, fields: Sequence[str], findings: Findings) -> dict:
    """Returns the entry of a video, or {} if it is not an object; reports that and missing fields."""
    if not isinstance(entry, dict):
        findings.problem("annotation layout", f"{video}: {short(entry)} is not an object")
        return {}
    if missing := [field for field in fields if field not in entry]:
        findings.problem("annotation layout", f"{video}: the field {', '.join(missing)} is missing")
    return entry


def list_field(video: str, entry: dict, field: str, findings: Findings) -> list:
    """Returns the list in a field, or [] after reporting that the field holds something else."""
    value = entry.get(field, [])
    if isinstance(value, list):
        return value
    findings.problem("annotation layout", f"{video}: {field} is {short(value)}, expected a list")
    return []


def read_annotations(
    paths: Sequence[Path], names: Sequence[str], findings: Findings, *, first_class: int = 0
) -> list[Annotated]:
    """Reads and cleans an annotation file of the common layout.

    Classes are numbered from `first_class` in the file; they are not checked if `names` is empty. Returns the videos in
    the order of the file. A video with a problem has what could be read of it, so that its feature files can be checked
    too. Call `findings.raise_problems` before using any.
    """
    entries = load_one_file(paths, "an object with at least one video", findings)
    return read_entries(entries, names, findings, where=str(paths[0]) if paths else "", first_class=first_class)


def read_entries(
    entries: Mapping[str, object],
    names: Sequence[str],
    findings: Findings,
    *,
    where: str,
    first_class: int = 0,
    needs: Sequence[str] = NEEDS,
    remedy: str = "subtract 1 from each",
) -> list[Annotated]:
    """Checks and cleans {video: entry}, like `read_annotations`; `where` is the file or files they come from.

    A video without a field that is not in `needs` has the split '' or an infinite duration. `remedy` is what to do if
    the classes are counted from 1.
    """
    labels = Labels(names, first_class)
    videos = [_read_video(name, entry, labels, needs, findings) for name, entry in entries.items()]
    labels.report_unknown(findings)
    if names and not first_class and labels.seen and min(labels.seen) == 1 and max(labels.seen) == len(names):
        case = f"they run from 1 to {len(names)}: the file counts from 1; {remedy}"
        findings.problem("class ids", case)
    if not findings.problems:
        _check_order(entries, videos, where, findings)
    return [video for video in videos if check_video_id(video.id, findings, where)]


def _check_order(entries: Mapping[str, Any], videos: Sequence[Annotated], where: str, findings: Findings) -> None:
    """Reports that most actions end before they start, as in a file of (class, start, length)."""
    total = sum(len(entry["actions"]) for entry in entries.values())
    backward = total - sum(len(video.written) for video in videos)
    if total >= MANY_ACTIONS and 2 * backward > total:
        remedy = "give the start and the end of each, not its length"
        findings.problem("action", f"{where}: {backward} of {total} actions end before they start; {remedy}")


def _read_video(name: str, entry: object, labels: Labels, needs: Sequence[str], findings: Findings) -> Annotated:
    entry = check_fields(name, entry, (*needs, "actions"), findings)
    subset = entry.get("subset")
    split = SUBSETS.get(subset, "") if isinstance(subset, str) else ""
    if "subset" in entry and not split:
        findings.problem("subset", f"{name}: {short(subset)}, expected training, validation or testing")
    duration = math.nan if "duration" in needs else math.inf
    if "duration" in entry:
        duration = check_positive(name, "duration", entry["duration"], findings)
    actions = list_field(name, entry, "actions", findings)
    rows = [row for action in actions if (row := check_action(name, action, labels, findings))]
    fps, validation = number(entry.get("fps")), subset == "validation"
    known_fps = fps if 0 < fps < math.inf else None
    video = annotate(name, split, duration, rows, findings, fps=known_fps, validation=validation)
    frames = number(entry.get("num_labelled_frames"))
    if frames > 0:  # the strict rule labels frame 0 only if the segment starts before it
        video.segments[video.segments[:, 1] == 0, 1] = -SHIFT * duration / frames
    return video


def read_classes(path: Path, findings: Findings) -> tuple[str, ...]:
    """Reads class names, one per line; the line number, from 0, is the class id.

    Numbers before the names are removed if all lines have them, in order: `c000 Holding …` (Charades) or
    `1 BaseballPitch` (MultiTHUMOS).
    """
    text = read_text(path, findings)
    if text is None:
        return ()
    names = [line.strip() for line in text.rstrip().splitlines()]
    numbered = [match for name in names if (match := re.fullmatch(r"c?(\d{1,18})[\s:,]+(.+)", name))]
    numbers = [int(match[1]) for match in numbered]
    if numbers and numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(names))):
        names = [match[2] for match in numbered]
    for name, count in Counter(names).items():
        if not name:
            findings.problem("class list", f"{path}: an empty line within the list; the line number is the class id")
        elif count > 1:
            findings.problem("class list", f"{path}: {name!r} occurs {count} times")
    if not names:
        findings.problem("class list", f"{path}: it is empty")
    return tuple(names)
