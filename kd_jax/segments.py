"""Seconds ↔ snippets, both ways: labels from segments, resampled scores, segments from scores.

    labels = labels_from_segments(video.segments, video.duration, num_snippets=video.num_snippets, num_classes=51)
    found = segments_from_scores(probabilities, seconds_per_snippet=0.64, threshold=0.5)

Two readings of "where a snippet is" meet here, both from public code. As ground truth, snippet i of n is the *instant*
`i·duration/n` and it is positive if that instant lies strictly inside a segment; hence no segment that starts at 0 or
later labels snippet 0. As a detection, snippet i covers the *interval* `[i, i + 1)` times its length.
"""

from typing import NamedTuple

import numpy as np


class Detection(NamedTuple):
    """One predicted action: times in seconds, `score` in [0, 1]."""

    class_id: int
    start: float
    end: float
    score: float


def _instants(duration: float, num_snippets: int) -> np.ndarray:
    # i / (n / duration), not i * duration / n: the public loaders divide twice, and the last bit decides strictness.
    return np.arange(num_snippets) / (num_snippets / duration)


def snippets_inside(segments: np.ndarray, duration: float, num_snippets: int) -> tuple[np.ndarray, np.ndarray]:
    """First and stop index, `[N]` each, of the snippets strictly inside each segment; first >= stop where none is."""
    instants = _instants(duration, num_snippets)
    first = np.searchsorted(instants, segments[:, 1], side="right")
    return first, np.searchsorted(instants, segments[:, 2], side="left")


def labels_from_segments(segments: np.ndarray, duration: float, num_snippets: int, num_classes: int) -> np.ndarray:
    """Marks the snippets inside each segment: snippet i of n iff `start < i·duration/n < end`, strict at both ends.

    The rule of all public loaders (super-events, PDAN, TSU evaluation), bit for bit.

    Args:
      segments: `[N, 3]` rows (class, start, end), in the unit of `duration`; they may overlap or touch nothing.
      duration: of the video, above 0.
      num_snippets: T; the number of frames gives labels at frame resolution.
      num_classes: C.

    Returns:
      `[T, C]` uint8.

    Raises:
      ValueError: for a shape other than `[N, 3]`, a duration or T that is not positive, a class outside 0 … C-1.
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


def _runs(active: np.ndarray) -> np.ndarray:
    """`[R, 2]` first and stop index of every run of True in a `[T]` array."""
    edges = np.diff(np.concatenate([[0], active.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def segments_from_labels(labels: np.ndarray, duration: float) -> np.ndarray:
    """The widest segments that carry these labels; the inverse of `labels_from_segments`.

    A run of snippets a … b gives a segment from the instant of snippet a-1 to that of snippet b+1, both outside it by
    the strict rule. So labels → segments → labels is the identity always (a run from snippet 0 starts before 0), and
    segments → labels → segments for aligned segments: start and end are instants of snippets at least two apart (or
    end = duration), sorted by class and start, and segments of one class do not overlap.

    Args:
      labels: `[T, C]`, nonzero where the class is active.
      duration: of the video.

    Returns:
      `[N, 3]` float64 rows (class, start, end), sorted by class and start.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not len(labels) or not duration > 0:
        raise ValueError(f"labels must be [T, C] with T > 0 and duration > 0, got {labels.shape} and {duration}")
    num_snippets = len(labels)
    instants = np.append(_instants(duration, num_snippets), duration)
    before = np.append(-instants[1], instants[:-1])  # before[a]: the instant of snippet a-1
    rows = [
        (class_id, before[a], instants[b])
        for class_id in range(labels.shape[1])
        for a, b in _runs(labels[:, class_id] != 0)
    ]
    return np.array(rows, np.float64).reshape(-1, 3)


def resample_scores(scores: np.ndarray, num_frames: int, *, method: str = "nearest") -> np.ndarray:
    """Brings snippet scores to another resolution, such as that of the ground truth.

    Args:
      scores: `[T, C]`.
      num_frames: F.
      method: 'nearest': frame f takes snippet `floor(f·T/F)`, each snippet repeated, as the TSU evaluation does;
        'linear': interpolated between the centres of snippets, constant beyond the first and last.

    Returns:
      `[F, C]`, in the dtype of `scores`.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or not len(scores) or num_frames < 1:
        raise ValueError(f"scores must be [T, C] with T > 0 and num_frames > 0, got {scores.shape} and {num_frames}")
    num_snippets = len(scores)
    if method == "nearest":
        return scores[np.arange(num_frames) * num_snippets // num_frames]
    if method != "linear":
        raise ValueError(f"method={method!r} is unknown; choose 'nearest' or 'linear'")
    position = np.clip((np.arange(num_frames) + 0.5) * num_snippets / num_frames - 0.5, 0, num_snippets - 1)
    low = np.minimum(position.astype(np.int64), max(num_snippets - 2, 0))
    weight = (position - low)[:, None]
    high = np.minimum(low + 1, num_snippets - 1)
    return (scores[low] * (1 - weight) + scores[high] * weight).astype(scores.dtype)


def segments_from_scores(scores: np.ndarray, seconds_per_snippet: float, *, threshold: float = 0.5) -> list[Detection]:
    """Dense head: per class, every run of snippets with `score >= threshold`; its score is the mean over the run.

    Args:
      scores: `[T, C]` probabilities, independent per class.
      seconds_per_snippet: snippet i covers `[i, i + 1)` times this.
      threshold: [default] 0.5.

    Returns:
      Detections, by class and start.
    """
    scores = _scores(scores)
    return [
        Detection(class_id, float(a * seconds_per_snippet), float(b * seconds_per_snippet), float(column[a:b].mean()))
        for class_id, column in enumerate(scores.T)
        for a, b in _runs(column >= threshold)
    ]


def segments_from_background(
    probabilities: np.ndarray, seconds_per_snippet: float, *, threshold: float = 0.4
) -> list[Detection]:
    """Sparse head: every run of `1 - background >= threshold` is one action, of its most probable class.

    Class = argmax over the non-background probabilities averaged over the run, score = that average; no suppression
    of overlaps, as there are none. The rule of the public Graph Distillation code (Luo et al., ECCV 2018).

    Args:
      probabilities: `[T, C + 1]`, rows sum to 1, background last.
      seconds_per_snippet: snippet i covers `[i, i + 1)` times this.
      threshold: 0.4 in that code.

    Returns:
      Detections, by start.
    """
    probabilities = _scores(probabilities)
    if probabilities.shape[1] < 2:
        raise ValueError(f"probabilities must be [T, C + 1] with the background last, got {probabilities.shape}")
    found = []
    for a, b in _runs(1 - probabilities[:, -1] >= threshold):
        mean = probabilities[a:b, :-1].mean(axis=0)
        class_id = int(mean.argmax())
        found.append(
            Detection(class_id, float(a * seconds_per_snippet), float(b * seconds_per_snippet), float(mean[class_id]))
        )
    return found


def _scores(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 2:
        raise ValueError(f"scores must be [T, C], got shape {scores.shape}")
    return scores.astype(np.float64)
