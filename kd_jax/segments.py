"""Segments in seconds and labels of snippets: conversion in both directions, and resampling of scores.

    labels = labels_from_segments(video.segments, video.duration, num_snippets=video.num_snippets, num_classes=51)

In ground truth, snippet i of n is the *instant* `i·duration/n`. It is positive if the instant lies strictly inside a
segment, so no segment that starts at 0 or later labels snippet 0. `kd_jax.evaluation.proposals` converts predictions to
segments and describes a second convention for the position of a snippet. A `Grid` applies the same rules to snippets
that start later, or do not end with the video.
"""

from typing import NamedTuple

import numpy as np


class Grid(NamedTuple):
    """The times of the T snippets of a video.

    Snippet i covers `[start + i·step, start + (i + 1)·step]`, where `step = length / T`. `Grid(0, duration)` divides
    the whole video, as all public loaders do.
    """

    start: float
    length: float
    label_at: float = 0.0  # the position of the label inside a snippet: 0 is its start, 0.5 its centre

    def scale(self, factor: float) -> "Grid":
        """Returns the same times in another unit, `factor` of which are one of this unit."""
        return Grid(self.start * factor, self.length * factor, self.label_at)

    def shift(self, segments: np.ndarray, num_snippets: int) -> np.ndarray:
        """Returns `[N, 3]` rows (class, start, end) with times relative to the label of the first snippet."""
        first = self.start + self.label_at * self.length / num_snippets
        return np.asarray(segments, np.float64).reshape(-1, 3) - np.array([0.0, first, first])

    def labels(self, segments: np.ndarray, num_snippets: int, num_classes: int) -> np.ndarray:
        """Returns `[T, C]` labels of `[N, 3]` rows (class, start, end), see `labels_from_segments`."""
        return labels_from_segments(self.shift(segments, num_snippets), self.length, num_snippets, num_classes)

    def snippets_inside(self, segments: np.ndarray, num_snippets: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns first and stop index, `[N]` each, of the snippets whose label is inside each segment."""
        return snippets_inside(self.shift(segments, num_snippets), self.length, num_snippets)

    def resample(self, scores: np.ndarray, duration: float, num_frames: int) -> np.ndarray:
        """Returns `[F, C]` scores of F frames that divide the whole video of this duration, see `resample_scores`.

        Frames outside the grid have the scores of its first or last snippet.
        """
        if (self.start, self.length) == (0, duration):
            return resample_scores(scores, num_frames)
        times = np.arange(num_frames) * duration / num_frames
        index = np.floor((times - self.start) / self.length * len(scores) + 1e-9).astype(int)  # a start is inside
        return np.asarray(scores)[np.clip(index, 0, len(scores) - 1)]


def clock(seconds: float, digits: int = 0) -> str:
    """Writes a time as 1:30 or 1:02:03, with `digits` decimals."""
    total = round(abs(seconds), digits)
    minutes, rest = divmod(total, 60)
    hours, minutes = divmod(int(minutes), 60)
    width = digits + 3 if digits else 2
    sign = "-" if seconds < 0 < total else ""
    text = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{sign}{text}:{rest:0{width}.{digits}f}"


def _instants(duration: float, num_snippets: int) -> np.ndarray:
    # Divide twice, like the public loaders: i * duration / n can differ in the last bit, and then a label differs.
    return np.arange(num_snippets) / (num_snippets / duration)


def snippets_inside(segments: np.ndarray, duration: float, num_snippets: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns first and stop index, `[N]` each, of the snippets strictly inside each segment.

    For a segment without a snippet inside, first >= stop.
    """
    instants = _instants(duration, num_snippets)
    first = np.searchsorted(instants, segments[:, 1], side="right")
    return first, np.searchsorted(instants, segments[:, 2], side="left")


def labels_from_segments(segments: np.ndarray, duration: float, num_snippets: int, num_classes: int) -> np.ndarray:
    """Marks the snippets strictly inside each segment: `start < i·duration/n < end` for snippet i of n.

    This is bit for bit the rule of all public loaders (super-events, PDAN, TSU evaluation).

    Args:
      segments: `[N, 3]` rows (class, start, end), in the unit of `duration`; they may overlap or contain no snippet.
      num_snippets: T; use the number of frames for labels at frame resolution.

    Returns `[T, C]` uint8. Raises ValueError for a shape other than `[N, 3]`, a duration or T that is not positive, a
    class outside 0 … C-1.
    """
    segments = np.asarray(segments, np.float64)
    if segments.size == 0:
        segments = segments.reshape(0, 3)
    if segments.ndim != 2 or segments.shape[1] != 3:
        raise ValueError(f"segments must be [N, 3] rows (class, start, end), got shape {segments.shape}")
    if not duration > 0 or num_snippets < 1:
        raise ValueError(f"labels need duration > 0 and at least one snippet, got {duration} and {num_snippets}")
    classes = segments[:, 0].astype(np.int64)
    if len(classes) and (classes.min() < 0 or classes.max() >= num_classes or (classes != segments[:, 0]).any()):
        bad = segments[(classes < 0) | (classes >= num_classes) | (classes != segments[:, 0]), 0]
        raise ValueError(f"class {bad[0]:g} is not one of 0 … {num_classes - 1}")
    first, stop = snippets_inside(segments, duration, num_snippets)
    labels = np.zeros((num_snippets, num_classes), np.uint8)
    for class_id, a, b in zip(classes, first, stop, strict=True):
        labels[a:b, class_id] = 1
    return labels


def runs(active: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the runs of True in each column of `[T, C]`.

    Returns column, first and stop index, `[R]` each, sorted by column and first index.
    """
    active = np.asarray(active, bool)
    padded = np.zeros((active.shape[1], len(active) + 2), np.int8)
    padded[:, 1:-1] = active.T
    edges = np.diff(padded, axis=1)
    column, first = np.nonzero(edges == 1)
    return column, first, np.nonzero(edges == -1)[1]


def segments_from_labels(labels: np.ndarray, duration: float) -> np.ndarray:
    """Returns the widest segments with these labels; the inverse of `labels_from_segments`.

    A run of snippets a … b becomes a segment from the instant of snippet a-1 to that of snippet b+1, which are outside
    by the strict rule. A run from snippet 0 starts before 0. Labels → segments → labels is always the identity.
    Segments → labels → segments is the identity for aligned segments: start and end are instants of snippets at least
    two apart (or end = duration), rows are sorted by class and start, and segments of one class do not overlap.

    Args:
      labels: `[T, C]`, nonzero where the class is active.

    Returns `[N, 3]` float64 rows (class, start, end), sorted by class and start.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not len(labels) or not duration > 0:
        raise ValueError(f"labels must be [T, C] with T > 0 and duration > 0, got {labels.shape} and {duration}")
    num_snippets = len(labels)
    instants = np.append(_instants(duration, num_snippets), duration)
    before = np.append(-instants[1], instants[:-1])  # before[a]: the instant of snippet a-1
    class_id, first, stop = runs(labels != 0)
    return np.stack([class_id, before[first], instants[stop]], axis=1)


def resample_scores(scores: np.ndarray, num_frames: int) -> np.ndarray:
    """Resamples snippet scores to another resolution, such as that of the ground truth.

    Frame f has the scores of snippet `floor(f·T/F)`, as in the TSU evaluation.

    Args:
      scores: `[T, C]`.
      num_frames: F.

    Returns `[F, C]`, in the dtype of `scores`. Raises ValueError for scores that are not `[T, C]` with T > 0, or F
    below 1.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or not len(scores) or num_frames < 1:
        raise ValueError(f"scores must be [T, C] with T > 0 and num_frames > 0, got {scores.shape} and {num_frames}")
    return scores[np.arange(num_frames) * len(scores) // num_frames]
