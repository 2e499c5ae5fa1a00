"""One video's annotation, whatever file it comes from: checked, and its dirt handled and counted.

rows = [row for action in actions if (row := check_action("kitchen_1", action, labels, findings)) is not None]
video = annotate("kitchen_1", "train", 61.5, rows, findings)
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kd_jax.data import base
from kd_jax.data.checks import CLIPPED, DUPLICATE, EMPTY, LATE, NO_ACTIONS, Findings, number, short


@dataclass(frozen=True, eq=False)
class Annotated:
    """A video of an annotation file; times in the file's unit.

    Attributes:
      id: its name.
      split: 'train' or 'test'; '' after a problem.
      duration: infinite where the file does not tell it, until `settle`.
      segments, written, ambiguous: as in `base.Video`.
      fps: of this video, where the file tells it.
    """

    id: str
    split: str
    duration: float
    segments: np.ndarray
    written: np.ndarray
    ambiguous: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    fps: float | None = None


@dataclass
class Labels:
    """The class numbers that a file may use: `first` … `first + count - 1`; count 0 = not known, so not checked."""

    count: int
    first: int = 0
    seen: Counter = field(default_factory=Counter)


def annotate(video: str, split: str, duration: float, rows: Sequence[tuple], findings: Findings, **others) -> Annotated:
    """Cleans the checked rows (class, start, end) of one video; `others` are further fields of Annotated."""
    written = [row for row in rows if row[2] >= row[1]]  # no script can score an end before its start
    segments = _clean(video, rows, duration, findings)
    if not len(segments):
        findings.note(NO_ACTIONS, video)
    return Annotated(video, split, duration, segments, _table(written), **others)


def settle(video: Annotated, duration: float, findings: Findings) -> Annotated:
    """Gives a duration to a video whose annotation does not tell it."""
    segments = _clean(video.id, video.segments.tolist(), duration, findings)
    if len(video.segments) and not len(segments):
        findings.note(NO_ACTIONS, video.id)
    return replace(video, duration=duration, segments=segments)


def _clean(video: str, rows: Sequence[Sequence[float]], duration: float, findings: Findings) -> np.ndarray:
    """Drops duplicates and what is empty or late, clips at the duration; `[N, 3]`, in the order of the file."""
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


def check_video(video: str, where, findings: Findings) -> bool:
    """Whether an id, which stands in the file `where`, can name a file in a folder, and none outside it."""
    if base.is_file_name(video):
        return True
    findings.problem(
        "video id",
        f'{where}: {video!r} is not the name of a file in a folder (no separators, control characters, "..")',
    )
    return False


def check_duration(video: str, value, findings: Findings, *, field: str = "duration") -> float:
    """The duration (or another number above 0) as float; NaN after naming what is wrong with it."""
    duration = number(value)
    if 0 < duration < math.inf:
        return duration
    findings.problem(field, f"{video}: {short(value)}, expected a number above 0")
    return math.nan


def check_action(video: str, action, labels: Labels, findings: Findings, *, shown: str = "") -> tuple | None:
    """(class from 0, start, end) of a list of three numbers, as floats; None after naming what is wrong with it.

    Args:
      video: its name, for messages.
      action: [class, start, end] as the file has it.
      labels: the class numbers that may stand there; counts those seen.
      findings: gets what is wrong.
      shown: how the action is called in messages; its JSON by default.
    """
    case = f"{video}: {shown or short(action)}"
    if not isinstance(action, (list, tuple)) or len(action) != 3:
        findings.problem("action", f"{case}, expected [class, start, end]")
        return None
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
    span = check_span(case, start, end, findings)
    return span and (class_id, *span)


def check_span(case: str, start: float, end: float, findings: Findings) -> tuple | None:
    """(start, end) if both are finite and not before the video; None after naming what is wrong."""
    if not (math.isfinite(start) and math.isfinite(end)):
        findings.problem("time", f"{case}: start and end must be finite numbers")
    elif start < 0:
        findings.problem("time", f"{case}: it starts before the video")
    else:
        return start, end
    return None


def check_splits(videos: Sequence[Annotated], source: str, findings: Findings) -> None:
    """Both splits need videos; where one has a problem with its split, that is enough."""
    splits = {video.split for video in videos}
    for split in base.SPLITS:
        if videos and not splits & {split, ""}:
            findings.problem(
                "empty split", f"{source}: none of its {len(videos)} videos is for {split}, so it would be empty"
            )


def _table(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 3)
