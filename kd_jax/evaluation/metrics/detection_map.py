"""Detection mAP of THUMOS14 and ActivityNet, with the variants of the public evaluation codes by name.

    result = detection_map(detections, ground_truth, num_classes=20)          # tIoU 0.3:0.1:0.7, as OpenTAD
    result["mAP"], result["average_mAP"]                                      # percent

Both mappings are {video: rows}: `[N, 4]` (class, start, end, score) and `[M, 3]` (class, start, end). What the codes
call mAP differs in four places. Each is an option:

| code | average_precision | matching | cleaning | tIoU |
|---|---|---|---|---|
| OpenTAD | interpolated | by_confidence | opentad | by data set |
| ActionFormer | interpolated | by_confidence | actionformer | by data set |
| ActivityNet | interpolated | by_confidence | activitynet | `ACTIVITYNET_THRESHOLDS` |
| THUMOS14 kit | non_interpolated | by_ground_truth | none | `THUMOS14_KIT_THRESHOLDS`, with `ignored` |

average_precision: 'interpolated' takes the highest precision at this or any later rank; 'non_interpolated' is the mean
over ground truths of the precision at the rank where each is found.

matching: with 'by_confidence', detections in the order of their ranks take the free ground truth of the same video and
class with the highest tIoU. If tIoUs are equal, the later row is taken. The threshold is reached by `>=`. With
'by_ground_truth', ground truths in the order of rows take the free detection with the highest tIoU. If tIoUs are equal,
the more confident detection is taken. tIoU must be above the threshold.

The official kit of THUMOS14 was run on 2,875 real detections: `detection_map` agrees to 5e-11 at all seven tIoU. The
kit ranks true before false positives of equal score. Copies of it with the 11-point AP of PASCAL VOC 2007 exist; this
AP is not offered here.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.evaluation.metrics.ground_truth_cleaning import CLEANINGS, clean, iou_of_cleaned
from kd_jax.evaluation.metrics.length_bins import THUMOS14_LENGTH_BINS, check_length_bins, in_length_bin
from kd_jax.evaluation.metrics.ranked_precision import average_precisions, mean_over_present
from kd_jax.evaluation.metrics.segment_matching import Pairs, match_greedily, pairs_of_one_class
from kd_jax.evaluation.metrics.segment_rows import (
    REGION_COLUMNS,
    Rows,
    Tables,
    check_mapping,
    check_thresholds,
    read_both,
    read_rows,
)

# Decimal numbers. A code that computes them in steps can differ in the last bit (ActivityNet: 0.8999999999999999).
THUMOS14_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
THUMOS14_KIT_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
ACTIVITYNET_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
AVERAGE_PRECISIONS = ("interpolated", "non_interpolated")
MATCHINGS = ("by_confidence", "by_ground_truth")


def detection_map(
    detections: Tables,
    ground_truth: Tables,
    *,
    num_classes: int,
    thresholds: Sequence[float] = THUMOS14_THRESHOLDS,
    average_precision: str = "interpolated",
    matching: str = "by_confidence",
    cleaning: str = "opentad",
    ignored: Tables | None = None,
    recall_multiples: Sequence[int] = (1, 5),
) -> dict:
    """Computes the mean average precision of detections at several tIoUs.

    Per class, the detections of all videos are ranked by descending score. Equal scores keep the order of the mapping
    and its rows; the public codes leave that order undefined. A detection without a match is a false positive, also in
    a video without ground truth. Classes without ground truth are in no mean.

    Args:
      detections: {video: `[N, 4]` rows (class, start, end, score)}.
      ground_truth: {video: `[M, 3]` rows (class, start, end)}, in seconds because `cleaning` has tolerances in seconds.
      thresholds: K tIoUs in (0, 1].
      average_precision: 'interpolated' or 'non_interpolated', see the module docstring.
      matching: 'by_confidence' or 'by_ground_truth', see the module docstring.
      cleaning: how the ground truth is cleaned, a key of `CLEANINGS`.
      ignored: {video: `[A, 2]` rows (start, end)}, ambiguous in any class. A detection without a match that overlaps
        one, however little, is left out of the ranking (THUMOS14 kit).
      recall_multiples: the R multiples for `recall`; 1 and 5 are those of ActionFormer.

    Returns:
      `thresholds`: `[K]`.
      `mAP`: `[K]` percent, mean over the classes with ground truth; NaN if there are none.
      `average_mAP`: mean of `mAP`.
      `per_class`: `[K, C]` percent, NaN for a class without ground truth.
      `recall`: `[K, R]` percent, mean of `recall_per_class` over the classes with ground truth.
      `recall_per_class`: `[K, R, C]` percent of the ground truths that are reached by any of the `multiple · n` most
        confident detections of their video and class, where n is the number of ground truths of that video and class.
        A detection may reach several ground truths; `ignored` has no effect.

    Raises ValueError for rows of another shape, a class outside 0 … C-1, a NaN, an end before its start, a threshold
    outside (0, 1], or an unknown option.

    References:
      Caba Heilbron et al., ActivityNet, CVPR 2015; Jiang et al., THUMOS challenge, 2014; Zhang et al., ActionFormer,
      ECCV 2022 (recall).
    """
    name = "detection_map"
    options = _Options(name, num_classes, thresholds, average_precision, matching, cleaning)
    found = _match(detections, ground_truth, ignored, options)
    if not len(recall_multiples) or min(recall_multiples) < 1:
        raise ValueError(f"{name}: recall_multiples must be one or more positive numbers; got {recall_multiples}.")
    recall = 100 * _recall(found, recall_multiples, num_classes)
    mean_recall = np.stack([mean_over_present(r) for r in recall.swapaxes(0, 1)], axis=1)
    return _summary(found, options) | {"recall": mean_recall, "recall_per_class": recall}


def detection_map_by_length(
    detections: Tables,
    ground_truth: Tables,
    *,
    num_classes: int,
    bins: Mapping[str, tuple[float, float]] = THUMOS14_LENGTH_BINS,
    thresholds: Sequence[float] = THUMOS14_THRESHOLDS,
    average_precision: str = "interpolated",
    matching: str = "by_confidence",
    cleaning: str = "opentad",
    ignored: Tables | None = None,
) -> dict[str, dict]:
    """Computes detection mAP for the ground truths of each bin of lengths.

    Detections are matched once, to all ground truths. In a bin, ground truths of other lengths are ignored: they are
    not positives, and detections matched to them are not ranked. Detections without a match are false positives in
    every bin, whatever their length. DETAD (Alwassel et al., ECCV 2018) does the same. It also normalizes the precision
    by the number of positives, which is not done here: compare methods within a bin, not bins with each other.

    Args:
      bins: {name: (longer than, at most)}, in seconds, `longer than < end - start <= at most`.
      others: as in `detection_map`.

    Returns {name: `thresholds`, `mAP`, `average_mAP` and `per_class` as in `detection_map`, and `num_ground_truths`}.
    Raises ValueError as in `detection_map`, and for bins that are empty or reversed.
    """
    name = "detection_map_by_length"
    check_length_bins(name, bins)
    options = _Options(name, num_classes, thresholds, average_precision, matching, cleaning)
    found = _match(detections, ground_truth, ignored, options)
    inside = {key: in_length_bin(found.truths.start, found.truths.end, limits) for key, limits in bins.items()}
    return {
        key: _summary(found, options, counted) | {"num_ground_truths": int(counted.sum())}
        for key, counted in inside.items()
    }


class _Options(NamedTuple):
    """The options of `detection_map`, and the name of the function for messages."""

    function: str
    num_classes: int
    thresholds: Sequence[float]
    average_precision: str
    matching: str
    cleaning: str


class _Matched(NamedTuple):
    """Detections by rank, the ground truth after cleaning, and their matches."""

    detections: Rows
    truths: Rows
    pairs: Pairs  # those with tIoU at or above the lowest threshold
    thresholds: np.ndarray
    matched: np.ndarray  # [K, N] index of a ground truth, -1 for none
    ambiguous: np.ndarray  # [N] bool: the detection overlaps an ignored segment


def _match(detections: Tables, ground_truth: Tables, ignored: Tables | None, options: _Options) -> _Matched:
    """Checks all arguments of `detection_map` and matches at every threshold."""
    for argument, value, known in (
        ("average_precision", options.average_precision, AVERAGE_PRECISIONS),
        ("matching", options.matching, MATCHINGS),
        ("cleaning", options.cleaning, tuple(CLEANINGS)),
    ):
        if value not in known:
            raise ValueError(f"{options.function}: {argument}={value!r} is unknown; choose one of {', '.join(known)}.")
    limits = check_thresholds(options.function, options.thresholds)
    found, truths, videos = read_both(options.function, detections, ground_truth, options.num_classes)
    found, truths = found.ranked(), clean(truths, options.cleaning)
    pairs = pairs_of_one_class(found, truths, iou_of_cleaned(options.cleaning), minimum=limits.min())
    if options.matching == "by_confidence":
        match, reached = match_greedily, [pairs.overlap >= limit for limit in limits]
    else:
        match, reached = _match_by_ground_truth, [pairs.overlap > limit for limit in limits]
    matched = np.stack([match(pairs.take(index), len(found.start), len(truths.start)) for index in reached])
    ambiguous = _overlaps_ignored(options.function, found, ignored, videos)
    return _Matched(found, truths, pairs, limits, matched, ambiguous)


def _summary(found: _Matched, options: _Options, counted: np.ndarray | None = None) -> dict:
    """Computes mAP over the ground truths that are `counted`, `[M]` bool; None counts all."""
    counted = np.ones(len(found.truths.start), bool) if counted is None else counted
    is_matched = found.matched >= 0
    true = is_matched & np.append(counted, False)[found.matched]  # index -1 takes the appended element
    per_class = 100 * average_precisions(
        list(true),
        found.detections.class_id,
        found.truths.class_id[counted],
        options.num_classes,
        interpolated=options.average_precision == "interpolated",
        left_out=list((is_matched & ~true) | (~is_matched & found.ambiguous)),
    )
    mean = mean_over_present(per_class)
    return {"thresholds": found.thresholds, "mAP": mean, "average_mAP": float(mean.mean()), "per_class": per_class}


def _intersection(start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    return np.minimum(end, other_end) - np.maximum(start, other_start)


def _match_by_ground_truth(pairs: Pairs, num_detections: int, num_truths: int) -> np.ndarray:
    """Applies `match_greedily` with exchanged roles; if overlaps are equal, the first detection is taken."""
    last = num_detections - 1
    detection_of = match_greedily(Pairs(pairs.truth, last - pairs.detection, pairs.overlap), num_truths, num_detections)
    matched = np.full(num_detections, -1)
    taken = np.flatnonzero(detection_of >= 0)
    matched[last - detection_of[taken]] = taken
    return matched


def _overlaps_ignored(function: str, found: Rows, ignored: Tables | None, videos: Sequence[str]) -> np.ndarray:
    """Returns `[N]` bool: whether a detection overlaps an ignored segment of its video."""
    ambiguous = np.zeros(len(found.start), bool)
    if ignored is not None:
        check_mapping(function, "ignored", ignored)
        index = {video: i for i, video in enumerate(dict.fromkeys([*videos, *ignored]))}
        regions = read_rows(f"{function}: ignored", ignored, index, 1, REGION_COLUMNS)
        one_class = found._replace(class_id=np.zeros_like(found.class_id))
        overlapping = pairs_of_one_class(one_class, regions, _intersection, minimum=np.nextafter(0, 1))
        ambiguous[overlapping.detection] = True
    return ambiguous


def _recall(found: _Matched, multiples: Sequence[int], num_classes: int) -> np.ndarray:
    """Returns `recall_per_class` as fractions."""
    detections, truths = found.detections, found.truths
    group = detections.video * num_classes + detections.class_id
    truth_group = truths.video * num_classes + truths.class_id
    order = np.argsort(group, kind="stable")
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order], side="left")
    sizes = np.bincount(truth_group, minlength=group.max(initial=-1) + 1)
    totals = np.bincount(truths.class_id, minlength=num_classes)
    recall = np.full((len(found.thresholds), len(multiples), num_classes), np.nan)
    for k, limit in enumerate(found.thresholds):
        for r, multiple in enumerate(multiples):
            among_top = rank < multiple * sizes[group]
            pairs = found.pairs.take((found.pairs.overlap >= limit) & among_top[found.pairs.detection])
            reached = np.bincount(truths.class_id[np.unique(pairs.truth)], minlength=num_classes)
            np.divide(reached, totals, out=recall[k, r], where=totals > 0)
    return recall
