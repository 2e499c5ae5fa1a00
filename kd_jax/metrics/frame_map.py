"""Frame mAP: average precision of every class over all snippets of all videos.

frame_map([scores_of_video_1, scores_of_video_2], [labels_1, labels_2])["mean_over_present_classes"]
"""

from collections.abc import Sequence

import numpy as np

_CLASSES_AT_ONCE = 16  # one cache line of float32 per snippet: reading class by class would fetch each line 16 times


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision per class: the mean over positives of the precision at the positive's rank.

    Not interpolated. Among equal scores the earlier row ranks first (a stable sort). A class without positives has 0;
    `labels.any(axis=0)` tells which do.

    Args:
      scores: `[N, C]`, higher means more confident; any monotone scale will do.
      labels: `[N, C]`, 0 or 1.

    Returns:
      `[C]` float64, in [0, 1].

    Raises:
      ValueError: if the shapes disagree, a score is NaN or a label is neither 0 nor 1.

    References:
      apmeter.py of the public training codes, whose order among equal scores is undefined.
    """
    return _per_class([scores], [labels])[0]


def frame_map(scores: np.ndarray | Sequence[np.ndarray], labels: np.ndarray | Sequence[np.ndarray]) -> dict:
    """Frame mAP, in percent, ranking the snippets of all videos together.

    Two means are in use. Over the classes present is the published one: its code divides the sum of the APs by the
    number of non-zero APs, and a class with a positive always has a positive AP. Over all classes counts an absent
    class as 0; some training logs show it.

    Args:
      scores: per video `[T, C]`, or one array `[N, C]`.
      labels: the same shapes, 0 or 1.

    Returns:
      `mean_over_present_classes`: percent, NaN if no class has a positive.
      `mean_over_all_classes`: percent.
      `per_class`: `[C]` percent, NaN for a class without positives.

    Raises:
      ValueError: if shapes or lengths disagree, a score is NaN or a label is neither 0 nor 1.
    """
    if isinstance(scores, np.ndarray) != isinstance(labels, np.ndarray):
        raise ValueError(
            "frame_map: scores and labels must both be arrays or both be lists of one array per video; "
            f"got {type(scores).__name__} and {type(labels).__name__}."
        )
    if isinstance(scores, np.ndarray):
        scores, labels = [scores], [labels]
    precision, present = _per_class(scores, labels)
    return {
        "mean_over_present_classes": float(100 * precision[present].mean()) if present.any() else float("nan"),
        "mean_over_all_classes": float(100 * precision.mean()),
        "per_class": np.where(present, 100 * precision, np.nan),
    }


def _per_class(scores: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Average precision `[C]` and which classes have a positive `[C]`, from one `[T, C]` array per video."""
    scores, labels = [np.asarray(s) for s in scores], [np.asarray(t) for t in labels]
    num_classes = _check(scores, labels)
    precision, present = np.zeros(num_classes), np.zeros(num_classes, bool)
    for first in range(0, num_classes, _CLASSES_AT_ONCE):
        block = slice(first, first + _CLASSES_AT_ONCE)
        block_scores = np.ascontiguousarray(np.concatenate([s[:, block] for s in scores]).T)
        if block_scores.dtype.kind != "f":
            block_scores = block_scores.astype(np.float64)
        block_labels = np.concatenate([t[:, block] for t in labels]).T
        positive = np.ascontiguousarray(block_labels == 1)
        if not np.all(positive | (block_labels == 0)):
            raise ValueError(f"frame_map: labels must be 0 or 1; got other values in classes from {first} on.")
        if np.isnan(block_scores).any():
            bad = np.flatnonzero(np.isnan(block_scores).any(axis=1)) + first
            raise ValueError(f"frame_map: scores must not be NaN; got NaN in classes {bad.tolist()}.")
        for c, (s, p) in enumerate(zip(block_scores, positive, strict=True), start=first):
            present[c] = p.any()
            precision[c] = _one_class(s, p) if present[c] else 0.0
    return precision, present


def _one_class(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean precision at the ranks of the positives, of which there is at least one.

    A positive ranks behind the positives before it and the negatives that score higher. Counting those needs sorted
    values only, a quarter of the time of a stable argsort, which is left for positives that tie with a negative.
    """
    hits, misses = np.sort(scores[positive])[::-1], np.sort(scores[~positive])
    not_higher = np.searchsorted(misses, hits, side="right")
    count = np.arange(1, len(hits) + 1)
    if np.array_equal(not_higher, np.searchsorted(misses, hits, side="left")):
        ranks = count + len(misses) - not_higher
    else:
        ranks = np.flatnonzero(positive[np.argsort(-scores, kind="stable")]) + 1
    return float(np.mean(count / ranks))


def _check(scores: list[np.ndarray], labels: list[np.ndarray]) -> int:
    """The number of classes; raises unless both lists hold `[T, C]` arrays of pairwise equal shapes."""
    if len(scores) != len(labels) or not scores:
        raise ValueError(
            "frame_map: scores and labels must hold the same videos, at least one; "
            f"got {len(scores)} and {len(labels)}."
        )
    num_classes = scores[0].shape[-1] if scores[0].ndim else 0
    for video, (s, t) in enumerate(zip(scores, labels, strict=True)):
        if s.ndim != 2 or s.shape != t.shape or s.shape[1] != num_classes or num_classes == 0:
            raise ValueError(
                f"frame_map: scores and labels must be [T, C] with one C for all videos; got scores {s.shape} and "
                f"labels {t.shape} for video {video}, and C = {num_classes} for video 0."
            )
    return num_classes
