"""What the public detection codes do to dirty ground truth before they score, by the name of the code."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kd_jax.evaluation.metrics.segment_matching import pairs_of_one_class, temporal_iou
from kd_jax.evaluation.metrics.segment_rows import Rows


class Cleaning(NamedTuple):
    """What a code does to ground truth of (nearly) no length or of (nearly) equal rows; seconds.

    Attributes:
      drops_below: shorter ground truths are dropped.
      duplicate_tolerance: one whose start and end are both this close to those of an earlier one that was kept, of
        the same video and class, is dropped; -1 keeps all.
      empty_matches_empty: a detection and a ground truth of length 0 at the same time match at every tIoU, as the
        0/0 of the ActivityNet code does; otherwise nothing matches a segment of length 0.
    """

    drops_below: float = 0.0
    duplicate_tolerance: float = -1.0
    empty_matches_empty: bool = False


CLEANINGS = {
    "opentad": Cleaning(drops_below=np.nextafter(0, 1), duplicate_tolerance=1e-3),
    "actionformer": Cleaning(drops_below=1e-3, duplicate_tolerance=1e-3),
    "activitynet": Cleaning(empty_matches_empty=True),
    "none": Cleaning(),
}


def clean(truths: Rows, cleaning: str) -> Rows:
    """The ground truths that a code keeps, in their order; `cleaning` is a key of `CLEANINGS`."""
    rule = CLEANINGS[cleaning]
    truths = truths.take(truths.end - truths.start >= rule.drops_below)
    close = pairs_of_one_class(truths, truths, _closeness, minimum=-rule.duplicate_tolerance)
    kept = np.ones(len(truths.start), bool)
    for later, earlier in zip(close.detection, close.truth, strict=True):  # in the order of `later`
        if earlier < later and kept[earlier]:
            kept[later] = False
    return truths.take(kept)


def iou_of_cleaned(cleaning: str) -> Callable:
    """The tIoU that a code computes on what its cleaning keeps."""
    return _iou_of_empty_segments if CLEANINGS[cleaning].empty_matches_empty else temporal_iou


def _closeness(start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    return -np.maximum(np.abs(start - other_start), np.abs(end - other_end))


def _iou_of_empty_segments(
    start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray
) -> np.ndarray:
    """tIoU, but infinite for two segments of length 0 at the same time: the NaN of 0/0 sorts above every number."""
    empty = (end == start) & (other_end == other_start) & (start == other_start)
    return np.where(empty, np.inf, temporal_iou(start, end, other_start, other_end))
