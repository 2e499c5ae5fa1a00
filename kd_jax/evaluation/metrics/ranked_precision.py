"""Average precision of ranked detections, per class or per video."""

from collections.abc import Sequence

import numpy as np


def average_precision_of_ranks(positive: np.ndarray, num_truths: int, *, interpolated: bool) -> float:
    """Computes the average precision of one ranked list.

    Args:
      positive: `[N]` bool, most confident first: whether the detection is a true positive.
      num_truths: M, the number of ground truths.
      interpolated: the precision at a rank is the highest one at this or any later rank (all points, as in
        PASCAL VOC 2011 and ActivityNet); otherwise the precision at the rank itself (THUMOS14).

    Returns the sum of the precisions at the true positives, divided by M; NaN if M is 0.
    """
    if num_truths == 0:
        return float("nan")
    precision = np.cumsum(positive) / np.arange(1, len(positive) + 1)
    if interpolated:
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[positive].sum() / num_truths)


def split_by(group: np.ndarray, num_groups: int) -> list[np.ndarray]:
    """Returns the indices of the members of each group 0 … G-1, in ascending order."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.searchsorted(group[order], np.arange(1, num_groups)))[:num_groups]


def average_precisions(
    positive: Sequence[np.ndarray],
    group: np.ndarray,
    truth_group: np.ndarray,
    num_groups: int,
    *,
    interpolated: bool,
    left_out: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Computes the average precision of every group at every threshold, as a fraction.

    Args:
      positive: per threshold `[N]` bool, most confident first: whether the detection is a true positive.
      group: `[N]`, the class (or video) of each detection, 0 … G-1.
      truth_group: `[M]`, the group of each ground truth.
      interpolated: see `average_precision_of_ranks`.
      left_out: per threshold `[N]` bool: whether the detection is left out of the ranking.

    Returns `[K, G]`, NaN for a group without ground truth.
    """
    members = split_by(group, num_groups)
    num_truths = np.bincount(truth_group, minlength=num_groups)
    result = np.full((len(positive), num_groups), np.nan)
    for k, is_true in enumerate(positive):
        for g in np.flatnonzero(num_truths):
            index = members[g] if left_out is None else members[g][~left_out[k][members[g]]]
            result[k, g] = average_precision_of_ranks(is_true[index], num_truths[g], interpolated=interpolated)
    return result


def mean_over_present(values: np.ndarray) -> np.ndarray:
    """Averages the columns of `[K, G]` that are not NaN: `[K]`, NaN if there is no such column."""
    present = ~np.isnan(values).any(axis=0)
    return values[:, present].mean(axis=1) if present.any() else np.full(len(values), np.nan)
