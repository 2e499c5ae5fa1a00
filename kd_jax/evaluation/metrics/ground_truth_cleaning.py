"""CLEANINGS: how each public detection code cleans the ground truth before it scores."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kd_jax.evaluation.metrics.segment_matching import pairs_of_one_class, temporal_iou
from kd_jax.evaluation.metrics.segment_rows import Rows


class Cleaning(NamedTuple):
    """How a code treats duplicates and ground truths of length 0. Times are in seconds."""

    drops_below: float = 0.0  # shorter ground truths are dropped
    # a ground truth is dropped if its start and end are both this close to those of an earlier one of the same video
    # and class that was kept; -1 keeps all
    duplicate_tolerance: float = -1.0
    # True: a detection and a ground truth of length 0 at the same time match at every tIoU, because of a 0/0 in the
    # ActivityNet code. False: nothing matches a segment of length 0.
    empty_matches_empty: bool = False


CLEANINGS = {
    "opentad": Cleaning(drops_below=np.nextafter(0, 1), duplicate_tolerance=1e-3),
    "actionformer": Cleaning(drops_below=1e-3, duplicate_tolerance=1e-3),
    "activitynet": Cleaning(empty_matches_empty=True),
    "none": Cleaning(),
}


def clean(truths: Rows, cleaning: str) -> Rows:
    """Returns the ground truths that a code keeps, in their order; `cleaning` is a key of `CLEANINGS`."""
    rule = CLEANINGS[cleaning]
    truths = truths.take(truths.end - truths.start >= rule.drops_below)
    close = pairs_of_one_class(truths, truths, _closeness, minimum=-rule.duplicate_tolerance)
    kept = np.ones(len(truths.start), bool)
    for later, earlier in zip(close.detection, close.truth, strict=True):  # in the order of `later`
        if earlier < later and kept[earlier]:
            kept[later] = False
    return truths.take(kept)


def iou_of_cleaned(cleaning: str) -> Callable:
    """Returns the function with which a code computes tIoU after its cleaning."""
    return _iou_of_empty_segments if CLEANINGS[cleaning].empty_matches_empty else temporal_iou


def _closeness(start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    return -np.maximum(np.abs(start - other_start), np.abs(end - other_end))


def _iou_of_empty_segments(
    start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray
) -> np.ndarray:
    """Computes tIoU, infinite for two segments of length 0 at the same time: the NaN of 0/0 sorts above all numbers."""
    empty = (end == start) & (other_end == other_start) & (start == other_start)
    return np.where(empty, np.inf, temporal_iou(start, end, other_start, other_end))
