"""Checks and cleans the annotation of one video, whatever file it comes from.

rows = [row for action in actions if (row := check_action("kitchen_1", action, labels, findings)) is not None]
video = annotate("kitchen_1", "train", 61.5, rows, findings)
"""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kd_jax.data import base
from kd_jax.data.annotations.units import FRAME_RATES, OR_LESS, OR_MORE, OTHER_UNIT, as_between
from kd_jax.data.checks import CLIPPED, DUPLICATE, EMPTY, LATE, NO_ACTIONS, UNITS_DIFFER, Findings, number, short

Action = tuple[float, float, float]  # (class, start, end)

SLOWEST, FASTEST = 1e-3, 1e5  # frames per second that a video can have


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
    validation: bool = False  # whether the file or the user chose this training video to be held out


@dataclass
class Labels:
    """The classes of a file: numbers from `first`, or their `names`; both are unchecked without names.

    `check_action` counts numbers and unknown classes. Call `report_unknown` after the last action.
    """

    names: Sequence[str]
    first: int = 0
    seen: Counter[int] = field(default_factory=Counter)
    unknown: Counter[str | float] = field(default_factory=Counter)
    places: dict[str | float, str] = field(default_factory=dict)  # the first action of each unknown class

    def find(self, label: str | float, case: str) -> float | None:
        """Returns the class id of a number or name; None, and a count, for a class that is not in the list."""
        if isinstance(label, str):
            class_id = self.names.index(label) if label in self.names else -1.0
        else:
            self.seen[int(label)] += 1
            class_id = label - self.first
        if not self.names or 0 <= class_id < len(self.names):
            return max(class_id, 0.0)
        self.unknown[label] += 1
        self.places.setdefault(label, case)
        return None

    def report_unknown(self, findings: Findings) -> None:
        """Reports each class that is not in the list once, with its first action and the number of its actions."""
        for label, count in self.unknown.items():
            known: object = f"{self.first} … {self.first + len(self.names) - 1}"
            if isinstance(label, str):
                known = short(list(self.names))
                if closest := difflib.get_close_matches(label, self.names, 1):
                    known = f"{known}; did you mean {closest[0]!r}?"
            more = f" ({count} actions have this class)" if count > 1 else ""
            findings.problem("class", f"{self.places[label]}: the class is not one of {known}{more}")


def annotate(
    video: str,
    split: str,
    duration: float,
    rows: Sequence[Action],
    findings: Findings,
    *,
    ambiguous: Sequence[tuple[float, float]] = (),
    fps: float | None = None,
    validation: bool = False,
) -> Annotated:
    """Cleans the checked rows (class, start, end) of one video."""
    if fps and not SLOWEST <= fps <= FASTEST:
        findings.problem("fps", f"{video}: {fps:g} frames per second, expected {SLOWEST:g} to {FASTEST:g}; correct it")
    written = [row for row in rows if row[2] >= row[1]]  # no script can score an end before its start
    segments = _clean(video, rows, duration, findings)
    if not len(segments):
        findings.note(NO_ACTIONS, video)
    spans = np.array(ambiguous, np.float64).reshape(-1, 2)
    return Annotated(video, split, duration, segments, _table(written), spans, fps, validation)


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

    The class is a number or a name of `labels`, which counts classes that are not in its list. Messages name the action
    as `shown`, by default its JSON.
    """
    case = f"{video}: {shown or short(action)}"
    if not isinstance(action, (list, tuple)) or len(action) != 3:
        findings.problem("action", f"{case}, expected [class, start, end]")
        return None
    label = action[0] if isinstance(action[0], str) else number(action[0])
    if isinstance(label, float) and not label.is_integer():
        findings.problem("class", f"{case}: the class is neither an integer nor a name")
        return None
    class_id = labels.find(label, case)
    start, end = map(number, action[1:])
    good = check_times(case, start, end, findings)
    return (class_id, start, end) if good and class_id is not None else None


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
    """Reports that there are no training videos, or none that are not held out, unless a split is already a problem."""
    splits = {video.split for video in videos}
    if videos and not splits & {"train", ""}:
        case = f"{source}: none of its {len(videos)} videos is for train, so it would be empty"
        findings.problem("empty split", case)
    elif videos and "" not in splits and all(video.validation for video in videos if video.split == "train"):
        case = f"{source}: all training videos are for validation; leave some to train on"
        findings.problem("empty split", case)


def check_units(videos: Sequence[Annotated], findings: Findings) -> None:
    """Compares the times of actions with the durations of their videos, which must be in one unit.

    Problems: a split of which more than half of the actions start at or after the end of their video; a video of which
    more than half do, many times later. Notes: other videos of which nearly all do; actions that all lie within the
    first tenth of their videos, in nearly all videos.
    """
    timed = [v for v in videos if 0 < v.duration < math.inf and len(v.written)]
    late = {video.id: int((video.written[:, 1] >= video.duration).sum()) for video in timed}
    reached = {video.id: float(video.written[:, 2].max() / video.duration) for video in timed}
    for split in base.SPLITS:
        of_split = [video for video in timed if video.split == split]
        total, later = sum(len(v.written) for v in of_split), sum(late[v.id] for v in of_split)
        if 2 * later > total:
            what = f"{later} of {total} actions of {split} start at or after the end of their video"
            usual = np.quantile([reached[v.id] for v in of_split if late[v.id]], 0.9)
            findings.problem("units", f"{what}; {_ratio_of(float(usual))}; give times and durations in one unit")
            continue
        for video in of_split:
            if late[video.id] < 2 or 2 * late[video.id] <= len(video.written):
                continue
            what = f"{video.id}: {late[video.id]} of {len(video.written)} actions start at or after its end"
            if reached[video.id] >= OTHER_UNIT:
                case = f"{what}; {_ratio_of(reached[video.id])}; give times and durations in one unit"
                findings.problem("units", case)
            elif late[video.id] >= 0.9 * len(video.written):
                findings.note(UNITS_DIFFER, f"{what}, {video.duration:.10g}")
    if len(timed) > 2 and (usual := np.quantile(list(reached.values()), 0.9)) < 1 / FRAME_RATES[0]:
        what = f"in {len(timed)} videos, the last action ends within the first {100 * usual:.2g} % of the video"
        ratio = float(1 / usual)
        findings.note(UNITS_DIFFER, f"{what}; the ratio is {ratio:.3g} or less{as_between(ratio, *OR_LESS)}")


def _ratio_of(ratio: float) -> str:
    """Describes the time at which the last action ends, divided by the duration."""
    return f"the ratio is {ratio:.3g} or more{as_between(ratio, *OR_MORE)}"


def _table(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 3)
