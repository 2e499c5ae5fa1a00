"""Checks and cleans the annotation of one video, whatever file it comes from.

rows = [row for action in actions if (row := check_action("kitchen_1", action, labels, findings)) is not None]
video = annotate("kitchen_1", "train", 61.5, rows, findings)
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kd_jax.data import base
from kd_jax.data.checks import CLIPPED, DUPLICATE, EMPTY, LATE, NO_ACTIONS, Findings, number, short

Action = tuple[float, float, float]  # (class, start, end)


@dataclass(frozen=True, eq=False)
class Annotated:
    """A video of an annotation file. Times are in the file's unit; segments, written, ambiguous: as in `base.Video`."""

    id: str
    split: str  # 'train' or 'test'; '' if the file has a problem there
    duration: float  # infinite if the file does not have it, until `with_duration`
    segments: np.ndarray
    written: np.ndarray
    ambiguous: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    fps: float | None = None  # frames per second of this video, if the file has it


@dataclass
class Labels:
    """The classes of a file: numbers `first` … `first + count - 1`, `count` 0 if it is unknown, or `names`."""

    count: int
    first: int = 0
    names: Sequence[str] = ()  # that a file may use instead of numbers
    seen: Counter[int] = field(default_factory=Counter)


def annotate(
    video: str,
    split: str,
    duration: float,
    rows: Sequence[Action],
    findings: Findings,
    *,
    ambiguous: Sequence[tuple[float, float]] = (),
    fps: float | None = None,
) -> Annotated:
    """Cleans the checked rows (class, start, end) of one video."""
    written = [row for row in rows if row[2] >= row[1]]  # no script can score an end before its start
    segments = _clean(video, rows, duration, findings)
    if not len(segments):
        findings.note(NO_ACTIONS, video)
    spans = np.array(ambiguous, np.float64).reshape(-1, 2)
    return Annotated(video, split, duration, segments, _table(written), spans, fps)


def with_duration(video: Annotated, duration: float, findings: Findings) -> Annotated:
    """Gives a duration to a video whose annotation has none, and clips its segments there."""
    segments = _clean(video.id, video.segments.tolist(), duration, findings)
    if len(video.segments) and not len(segments):
        findings.note(NO_ACTIONS, video.id)
    return replace(video, duration=duration, segments=segments)


def _clean(video: str, rows: Iterable[Sequence[float]], duration: float, findings: Findings) -> np.ndarray:
    """Drops duplicate, empty and late rows and clips at the duration; `[N, 3]` in the order of the file."""
    kept, seen = [], set()
    for class_id, start, end in rows:
        case = f"{video}: [{class_id:g}, {start:.10g}, {end:.10g}]"
        if (class_id, start, end) in seen:
            findings.note(DUPLICATE, case)
            continue
        seen.add((class_id, start, end))
        if start >= duration:
            findings.note(LATE, f"{case}, duration {duration:.10g}")
        elif end <= start:
            findings.note(EMPTY, case)
        else:
            if end > duration:
                findings.note(CLIPPED, f"{case}, duration {duration:.10g}")
            kept.append((class_id, start, min(end, duration)))
    return _table(kept)


def check_positive(video: str, field: str, value: object, findings: Findings) -> float:
    """Returns a number above 0 as float; reports any other value under `field` and returns NaN."""
    positive = number(value)
    if 0 < positive < math.inf:
        return positive
    findings.problem(field, f"{video}: {short(value)}, expected a number above 0")
    return math.nan


def check_action(video: str, action: object, labels: Labels, findings: Findings, *, shown: str = "") -> Action | None:
    """Returns (class from 0, start, end) of [class, start, end] in a file; None after a problem.

    The class is a number or a name. `labels` counts the class numbers. Messages name the action as `shown`, by default
    its JSON.
    """
    case = f"{video}: {shown or short(action)}"
    if not isinstance(action, (list, tuple)) or len(action) != 3:
        findings.problem("action", f"{case}, expected [class, start, end]")
        return None
    if isinstance(action[0], str) and labels.names:
        if action[0] not in labels.names:
            findings.problem("class", f"{case}: the class is not one of {short(list(labels.names))}")
            return None
        action = [labels.names.index(action[0]) + labels.first, *action[1:]]
    class_id, start, end = map(number, action)
    if not class_id.is_integer():
        findings.problem("class", f"{case}: the class is not an integer")
        return None
    labels.seen[int(class_id)] += 1
    class_id -= labels.first
    if labels.count and not 0 <= class_id < labels.count:
        last = labels.first + labels.count - 1
        findings.problem("class", f"{case}: the class is not one of {labels.first} … {last}")
        return None
    return (class_id, start, end) if check_times(case, start, end, findings) else None


def check_times(case: str, start: float, end: float, findings: Findings) -> bool:
    """Whether start and end are finite and the start is not negative; reports a problem otherwise."""
    if not (math.isfinite(start) and math.isfinite(end)):
        findings.problem("time", f"{case}: start and end must be finite numbers")
    elif start < 0:
        findings.problem("time", f"{case}: it starts before the video")
    else:
        return True
    return False


def check_splits(videos: Sequence[Annotated], source: str, findings: Findings) -> None:
    """Reports a split without videos, unless the split of a video is already a problem."""
    for split in base.SPLITS if videos else ():
        if not {video.split for video in videos} & {split, ""}:
            case = f"{source}: none of its {len(videos)} videos is for {split}, so it would be empty"
            findings.problem("empty split", case)


def _table(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 3)
