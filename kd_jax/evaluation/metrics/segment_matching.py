"""Matching of detections and ground truth: tIoU, candidate pairs, greedy matching.

pairs = pairs_of_one_class(found, truths, temporal_iou, minimum=0.5)  # found: Rows, the most confident first
matched = match_greedily(pairs, len(found.start), len(truths.start))  # [N] index of a ground truth, or -1
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kd_jax.evaluation.metrics.segment_rows import Rows

_PAIRS_AT_ONCE = 2_000_000  # bounds memory: most candidate pairs do not overlap and are dropped


class Pairs(NamedTuple):
    """Candidate pairs, `[P]` each: indices of a detection and of a ground truth, and their overlap."""

    detection: np.ndarray
    truth: np.ndarray
    overlap: np.ndarray

    def take(self, index: np.ndarray) -> "Pairs":
        """Selects pairs by a boolean or integer index."""
        return Pairs(*(column[index] for column in self))


def temporal_iou(start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    """Computes tIoU elementwise: intersection over union, and 0 if the union is empty."""
    both = np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), 0)
    either = (end - start) + (other_end - other_start) - both
    return np.divide(both, either, out=np.zeros_like(either), where=either > 0)


def pairs_of_one_class(detections: Rows, truths: Rows, overlap: Callable, *, minimum: float) -> Pairs:
    """Finds all pairs of the same video and class with `overlap(start, end, other_start, other_end) >= minimum`.

    Args:
      overlap: an elementwise function of arrays, such as `temporal_iou`.

    Returns the pairs, sorted by detection and then by ground truth.
    """
    num_classes = 1 + max(detections.class_id.max(initial=0), truths.class_id.max(initial=0))
    truth_group = truths.video * num_classes + truths.class_id
    order = np.argsort(truth_group, kind="stable")
    group = detections.video * num_classes + detections.class_id
    first = np.searchsorted(truth_group[order], group, side="left")
    counts = np.searchsorted(truth_group[order], group, side="right") - first
    total = np.concatenate([[0], np.cumsum(counts)])
    parts, begin = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))], 0
    while begin < len(counts):
        stop = max(np.searchsorted(total, total[begin] + _PAIRS_AT_ONCE, side="right") - 1, begin + 1)
        detection = np.repeat(np.arange(begin, stop), counts[begin:stop])
        place = np.arange(len(detection)) - (total[detection] - total[begin])  # index of the truth in its group
        truth = order[first[detection] + place]
        value = overlap(detections.start[detection], detections.end[detection], truths.start[truth], truths.end[truth])
        parts.append(Pairs(detection, truth, value).take(value >= minimum))
        begin = stop
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def match_greedily(pairs: Pairs, num_detections: int, num_truths: int) -> np.ndarray:
    """Matches one to one: in the order of their index, detections take the free ground truth that overlaps them most.

    If overlaps are equal, the later ground truth is taken, as by the reversed argsort of the public evaluation codes.

    The algorithm is deferred acceptance (Gale and Shapley, 1962), which needs a few rounds of array operations and no
    loop over detections. In each round, every unmatched detection proposes to the best ground truth that has not
    rejected it, and each ground truth keeps the proposal of the first detection and rejects the others. All ground
    truths prefer detections in the same order, so the result is the greedy matching.

    Args:
      pairs: the candidates, in any order.

    Returns `[N]` index of the ground truth of each detection, -1 for none.
    """
    pairs = pairs.take(np.lexsort((-pairs.truth, -pairs.overlap, pairs.detection)))
    edges = np.searchsorted(pairs.detection, np.arange(num_detections + 1))
    choice, stop = edges[:-1].copy(), edges[1:]  # the pair that each detection proposes next
    nobody = num_detections
    holder = np.full(num_truths, nobody)
    proposing = np.flatnonzero(choice < stop)
    while len(proposing):
        wanted = pairs.truth[choice[proposing]]
        before = holder[wanted]
        np.minimum.at(holder, wanted, proposing)
        now = holder[wanted]
        dismissed = before[(now != before) & (before != nobody)]
        rejected = np.unique(np.concatenate([proposing[now != proposing], dismissed]))
        choice[rejected] += 1
        proposing = rejected[choice[rejected] < stop[rejected]]
    matched = np.full(num_detections, -1)
    taken = np.flatnonzero(holder != nobody)
    matched[holder[taken]] = taken
    return matched
