"""Probabilities and ground truth of videos → the data that `pages/timeline.js` draws.

    timeline = Timeline(["walk"], [Lane("rgb", "vanilla")], [Recording("v1", 61.5, truth, {"rgb": probabilities})])
    as_json(timeline)

Probabilities have 8 bits in the page. If the page would become too large, it has the videos on which two runs differ
most.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BUDGET = 8_000_000  # characters of compressed probabilities in a page


@dataclass(frozen=True)
class Lane:
    """A run that is drawn."""

    name: str
    role: str  # a key of `style.ROLES`; decides the colour
    shown: bool = True  # at first; a checkbox changes it


@dataclass(frozen=True, eq=False)
class Recording:
    """A video, its ground truth and what runs predict."""

    id: str
    duration: float  # seconds
    truth: np.ndarray | None  # `[N, 3]` rows (class, start s, end s); None if it is unknown
    probabilities: Mapping[str, np.ndarray]  # {run: `[T, C]`}
    file: str | None = None  # URL of the video, relative to the page
    picture: str | None = None  # URL of a picture that replaces the video where it cannot be played


@dataclass(frozen=True)
class Timeline:
    """Recordings with the same classes, for one timeline browser."""

    classes: Sequence[str]
    lanes: Sequence[Lane]
    recordings: Sequence[Recording]
    threshold: float = 0.5  # where the slider starts
    compared: tuple[str, str] | None = None  # two runs, whose differences can be looked for
    available: int = 0  # number of videos that there are, if the page does not hold all


def quantise(probabilities: np.ndarray) -> str:
    """Returns `[T, C]` probabilities as base64 of T · C bytes, snippet after snippet, deflated; 255 is 1."""
    values = np.round(np.clip(probabilities, 0, 1) * 255).astype(np.uint8)
    return base64.b64encode(zlib.compress(values.tobytes())).decode()


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the mean absolute difference of two tables `[T, C]`, a mean over snippets and classes."""
    return float(np.abs(one.astype(np.float64) - other).mean())


def select_recordings(
    recordings: Sequence[Recording], compared: tuple[str, str] | None, budget: int = BUDGET
) -> list[Recording]:
    """Returns all recordings if their tables fit the budget, else those on which two runs differ most, in order.

    Args:
      compared: the two runs; None keeps the first recordings.
      budget: characters of the compressed tables. At least one recording is kept.
    """
    order = list(range(len(recordings)))
    if compared:
        tables = [[recording.probabilities[run] for run in compared] for recording in recordings]
        order.sort(key=lambda i: -difference(*tables[i]))
    kept: list[int] = []
    for i in order:
        budget -= sum(len(quantise(table)) for table in recordings[i].probabilities.values())
        if kept and budget < 0:
            break
        kept.append(i)
    return [recordings[i] for i in sorted(kept)]


def as_json(timeline: Timeline) -> dict:
    """Returns a timeline as `pages/timeline.js` reads it."""
    return {
        "classes": list(timeline.classes),
        "runs": [{"name": lane.name, "role": lane.role, "shown": lane.shown} for lane in timeline.lanes],
        "threshold": timeline.threshold,
        "compared": timeline.compared,
        "available": timeline.available or len(timeline.recordings),
        "videos": [_recording(recording) for recording in timeline.recordings],
    }


def _recording(recording: Recording) -> dict:
    rows = None if recording.truth is None else [[int(c), round(a, 3), round(b, 3)] for c, a, b in recording.truth]
    table = next(iter(recording.probabilities.values()))
    return {
        "id": recording.id,
        "duration": recording.duration,
        "snippets": len(table),
        "truth": rows,
        "scores": {run: quantise(table) for run, table in recording.probabilities.items()},
        "file": recording.file,
        "picture": recording.picture,
    }
