"""Frame mAP: average precision of every class over all snippets of all videos.

frame_map([scores_of_video_1, scores_of_video_2], [labels_1, labels_2])["mean_over_present_classes"]
"""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_CLASSES_AT_ONCE = 16  # one cache line of float32; class by class, each line would be fetched 16 times
_WORTH_THREADS = 2**21  # scores in a block from which on sorting in threads is faster


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes average precision per class: the mean over positives of the precision at the rank of the positive.

    It is not interpolated. The sort is stable: if scores are equal, the earlier row ranks first. A class without
    positives (`~labels.any(axis=0)`) has 0.

    Args:
      scores: `[N, C]`, higher means more confident, on any monotone scale.
      labels: `[N, C]`, 0 or 1.

    Returns `[C]` float64, in [0, 1]. Raises ValueError if the shapes disagree, a score is NaN or a label is neither 0
    nor 1.

    References:
      apmeter.py of the public training codes, in which the order of equal scores is undefined.
    """
    return _per_class([np.asarray(scores)], [np.asarray(labels)])[0]


def frame_map(
    scores: np.ndarray | Sequence[np.ndarray],
    labels: np.ndarray | Sequence[np.ndarray],
    *,
    left_out: np.ndarray | Sequence[np.ndarray] | None = None,
) -> dict:
    """Computes frame mAP in percent, ranking the snippets of all videos together.

    Two means are in use. The published one is over the classes that occur: its code divides the sum of the APs by the
    number of non-zero APs, and a class with a positive has an AP above 0. The mean over all classes counts an absent
    class as 0; some training logs report it.

    Args:
      scores: per video `[T, C]`, or one array `[N, C]`.
      labels: the same shapes, 0 or 1.
      left_out: the same shapes, bool; True leaves the snippet out of the ranking of that class. None ranks all.

    Returns:
      `mean_over_present_classes`: percent, NaN if no class has a positive.
      `mean_over_all_classes`: percent.
      `per_class`: `[C]` percent, NaN for a class without positives.

    Raises ValueError if shapes or lengths disagree, a score is NaN or a label is neither 0 nor 1.
    """
    if isinstance(scores, np.ndarray) != isinstance(labels, np.ndarray):
        found = f"{type(scores).__name__} and {type(labels).__name__}"
        expected = "both be arrays or both be lists of one array per video"
        raise ValueError(f"frame_map: scores and labels must {expected}; got {found}.")
    excluded = None if left_out is None else _as_list(left_out)
    precision, present = _per_class(_as_list(scores), _as_list(labels), excluded)
    return {
        "mean_over_present_classes": float(100 * precision[present].mean()) if present.any() else float("nan"),
        "mean_over_all_classes": float(100 * precision.mean()),
        "per_class": np.where(present, 100 * precision, np.nan),
    }


def _as_list(tables: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    return [tables] if isinstance(tables, np.ndarray) else [np.asarray(table) for table in tables]


def _per_class(
    scores: list[np.ndarray], labels: list[np.ndarray], left_out: list[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns average precision `[C]` and which classes have a positive `[C]`, from one `[T, C]` array per video."""
    num_classes = _check_shapes(scores, labels)
    if left_out is not None and [out.shape for out in left_out] != [s.shape for s in scores]:
        raise ValueError("frame_map: left_out must hold one [T, C] array per video, of the shape of its scores.")
    precision, present = np.zeros(num_classes), np.zeros(num_classes, bool)
    for first in range(0, num_classes, _CLASSES_AT_ONCE):
        block = slice(first, first + _CLASSES_AT_ONCE)
        block_scores = np.ascontiguousarray(np.concatenate([s[:, block] for s in scores]).T)
        block_scores = block_scores if block_scores.dtype.kind == "f" else block_scores.astype(np.float64)
        block_labels = np.concatenate([t[:, block] for t in labels]).T
        positive = np.ascontiguousarray(block_labels == 1)
        if not np.all(positive | (block_labels == 0)):
            raise ValueError(f"frame_map: labels must be 0 or 1; got other values in classes from {first} on.")
        if np.isnan(block_scores).any():
            bad = np.flatnonzero(np.isnan(block_scores).any(axis=1)) + first
            raise ValueError(f"frame_map: scores must not be NaN; got NaN in classes {bad.tolist()}.")
        ranked_scores, ranked_positive = list(block_scores), list(positive)
        if left_out is not None:
            ranked = ~np.concatenate([out[:, block].astype(bool) for out in left_out]).T
            ranked_scores = [row[keep] for row, keep in zip(block_scores, ranked, strict=True)]
            ranked_positive = [row[keep] for row, keep in zip(positive, ranked, strict=True)]
        present[block] = [row.any() for row in ranked_positive]
        # Sorting releases the interpreter lock, but a small block is sorted before threads have started.
        with ThreadPoolExecutor() if block_scores.size >= _WORTH_THREADS else contextlib.nullcontext() as pool:
            precision[block] = list((pool.map if pool else map)(_one_class, ranked_scores, ranked_positive))
    return precision, present


def _one_class(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the mean precision at the ranks of the positives, 0 without any."""
    ranks = np.flatnonzero(_ranked(scores, positive)) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else 0.0


def _ranked(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Sorts `positive` by descending scores; rows with equal scores keep their order.

    Scores of at most 32 bits are sorted as unsigned integers (score, row, label). No two are equal, so NumPy's
    vectorized sort keeps the order, in less than half the time of a stable argsort.
    """
    if scores.dtype.itemsize > 4 or len(scores) >= 2**31:
        return positive[np.argsort(-scores, kind="stable")]
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 turns −0 into 0
    # The bits of negative floats increase as the float decreases; those of the others must be flipped.
    keys = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF)).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(scores), dtype=np.uint64) << np.uint64(1)
    keys |= positive
    keys.sort()
    return (keys & np.uint64(1)).astype(bool)


def _check_shapes(scores: list[np.ndarray], labels: list[np.ndarray]) -> int:
    """Returns the number of classes; raises unless both lists hold `[T, C]` arrays of pairwise equal shapes."""
    if len(scores) != len(labels) or not scores:
        found = f"got {len(scores)} and {len(labels)}"
        raise ValueError(f"frame_map: scores and labels must hold the same videos, at least one; {found}.")
    num_classes = scores[0].shape[-1] if scores[0].ndim else 0
    for video, (s, t) in enumerate(zip(scores, labels, strict=True)):
        if s.ndim != 2 or s.shape != t.shape or s.shape[1] != num_classes or num_classes == 0:
            found = f"scores {s.shape} and labels {t.shape} for video {video}, and C = {num_classes} for video 0"
            raise ValueError(f"frame_map: scores and labels must be [T, C] with one C for all videos; got {found}.")
    return num_classes
