"""Event mAP: the PKU-MMD protocol exactly like its script, and a variant without the quirks of the script.

    result = event_map(detections, ground_truth, num_classes=51)
    dict(zip(result["thresholds"], result["mAP_action"]))   # {0.1: …, 0.3: …, 0.5: …}, percent

Both take {video: `[N, 4]` rows (class, start, end, score)} and {video: `[M, 3]` rows (class, start, end)}, in any unit
of time. Classes are 0 … C-1; those of PKU-MMD, 1 … 51, must be shifted.
"""

from collections.abc import Sequence

import numpy as np

from kd_jax.evaluation.metrics.ranked_precision import average_precisions, mean_over_present, split_by
from kd_jax.evaluation.metrics.segment_matching import match_greedily, pairs_of_one_class, temporal_iou
from kd_jax.evaluation.metrics.segment_rows import Rows, Tables, check_thresholds, read_both

EVENT_THRESHOLDS = (0.1, 0.3, 0.5)


def event_map(
    detections: Tables, ground_truth: Tables, *, num_classes: int, thresholds: Sequence[float] = EVENT_THRESHOLDS
) -> dict:
    """Computes the event mAP of the PKU-MMD and TSU evaluation scripts, including their quirks.

    Each detection is matched, independently of all others, to the ground truth of its video and class with the largest
    overlap, if the overlap reaches the threshold (`>=`). If overlaps are equal, the later row is matched. Then
    detections are removed by ascending score; if scores are equal, the earlier row is removed first. Whenever a
    *matched* one is removed, `AP += P_max · (R_old - R_new)`, with P_max the highest precision at the start or after
    removing a matched one.

    The quirks, which `event_map_strict` does not have:
      * Several detections may share one ground truth, even if another one is free. Precision counts it once, but all of
        them are matched, so a duplicate that is less confident than the first detection costs nothing.
      * Only the last of identical ground truths can be matched.
      * Precision is not evaluated after removing an unmatched detection, and after removing a matched one that is
        already missing. So one true detection above one false one gives 50.
      * Overlap is intersection over hull, and 0 if the hull has no length.
      * Only the videos in `detections` exist: ground truth of others is ignored, also in the recall.
      * `mAP_action` divides by all classes, and a class without ground truth counts as 0. `mAP_video` divides by all
        videos in `detections`, and a video without detections or ground truth counts as 0.

    Args:
      detections: {video: `[N, 4]` rows (class, start, end, score)}; the order of videos and rows decides ties.
      ground_truth: {video: `[M, 3]` rows (class, start, end)}.
      thresholds: K overlaps in (0, 1].

    Returns:
      `thresholds`: `[K]`.
      `mAP_action`: `[K]` percent, mean over the classes, each ranked over all videos (mAP_a).
      `mAP_video`: `[K]` percent, mean over the videos, each ranked over all classes (mAP_v); NaN without a video.
      `per_class`: `[K, C]` percent, 0 for a class without ground truth.

    Raises ValueError for rows of another shape, a class outside 0 … C-1, a NaN, an end before its start, or a threshold
    outside (0, 1].

    References:
      Liu et al., PKU-MMD, 2017, and the evaluation code of Toyota Smarthome Untrimmed.
    """
    limits = check_thresholds("event_map", thresholds)
    found, truths, _ = read_both("event_map", detections, ground_truth, num_classes)
    truths = truths.take(truths.video < len(detections))  # videos of `detections` have the lowest numbers
    removal = found.take(np.argsort(found.score, kind="stable"))
    best_truth, overlap = _best_truth(removal, truths)
    matched = [np.where(overlap >= limit, best_truth, -1) for limit in limits]
    per_class = _removal_average_precisions(matched, removal.class_id, truths.class_id, num_classes)
    per_video = _removal_average_precisions(matched, removal.video, truths.video, len(detections))
    return {
        "thresholds": limits,
        "mAP_action": per_class.mean(axis=1),
        "mAP_video": per_video.mean(axis=1) if len(detections) else np.full(len(limits), np.nan),
        "per_class": per_class,
    }


def _removal_average_precisions(
    matched: Sequence[np.ndarray], group: np.ndarray, truth_group: np.ndarray, num_groups: int
) -> np.ndarray:
    """Computes the average precision by removal of each group at each threshold, `[K, G]` percent."""
    members = split_by(group, num_groups)
    counts = np.bincount(truth_group, minlength=num_groups)
    values = [[_removal_average_precision(m[members[g]], counts[g]) for g in range(num_groups)] for m in matched]
    return 100 * np.array(values).reshape(len(matched), num_groups)


def _hull_overlap(start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    """Computes intersection over hull: tIoU if the segments overlap, negative if they do not."""
    hull = np.maximum(end, other_end) - np.minimum(start, other_start)
    both = np.minimum(end, other_end) - np.maximum(start, other_start)
    return np.divide(both, hull, out=np.zeros_like(hull), where=hull > 0)


def _best_truth(detections: Rows, truths: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Returns the last ground truth with the largest overlap and that overlap, `[N]` each; -1 and 0 without one."""
    pairs = pairs_of_one_class(detections, truths, _hull_overlap, minimum=np.nextafter(0, 1))
    pairs = pairs.take(np.lexsort((pairs.truth, pairs.overlap, pairs.detection)))
    last = np.flatnonzero(np.diff(pairs.detection, append=-1))
    best, overlap = np.full(len(detections.start), -1), np.zeros(len(detections.start))
    best[pairs.detection[last]], overlap[pairs.detection[last]] = pairs.truth[last], pairs.overlap[last]
    return best, overlap


def _removal_average_precision(matched: np.ndarray, num_truths: int) -> float:
    """Computes the average precision by removal of one group.

    Args:
      matched: `[N]`, the ground truth of each detection or -1, least confident first.

    Returns a fraction; 0 without detections or without ground truth.
    """
    if len(matched) == 0 or num_truths == 0:
        return 0.0
    remaining = np.arange(len(matched) - 1, -1, -1)  # number of detections left after removing each
    is_matched = matched >= 0
    last_of_truth = np.zeros(len(matched), bool)  # its removal loses a ground truth
    last_of_truth[len(matched) - 1 - np.unique(matched[::-1], return_index=True)[1]] = True
    last_of_truth &= is_matched
    still_found = last_of_truth.sum() - np.cumsum(last_of_truth)
    precision = still_found / np.maximum(remaining, 1)
    start = last_of_truth.sum() / len(matched)
    highest = np.maximum(np.maximum.accumulate(np.where(is_matched, precision, 0)), start)
    return float(highest[last_of_truth].sum() / num_truths)


def event_map_strict(
    detections: Tables, ground_truth: Tables, *, num_classes: int, thresholds: Sequence[float] = EVENT_THRESHOLDS
) -> dict:
    """Computes event mAP without the quirks of `event_map`.

    Detections, by descending score, take the free ground truth of their video and class with the highest tIoU, if it
    reaches the threshold (`>=`). If scores are equal, the earlier row is first; if tIoUs are equal, the later ground
    truth is taken. All others, such as duplicates, are false positives. Precision at a rank is the highest one at this
    or any later rank. The videos of both mappings count; one without detections lowers the recall.

    Classes without ground truth have no AP and are not in the mean over classes. Videos without ground truth are not in
    the mean over videos; their detections are false positives in `mAP_action`. `mAP_action` equals `detection_map` with
    these thresholds and `cleaning="none"`.

    Args:
      detections: {video: `[N, 4]` rows (class, start, end, score)}; the order of videos and rows decides ties.
      ground_truth: {video: `[M, 3]` rows (class, start, end)}.
      thresholds: K tIoUs in (0, 1].

    Returns:
      `thresholds`: `[K]`.
      `mAP_action`: `[K]` percent, mean over the classes with ground truth; NaN without any.
      `mAP_video`: `[K]` percent, mean over the videos with ground truth; NaN without any.
      `per_class`: `[K, C]` percent, NaN for a class without ground truth.

    Raises ValueError as in `event_map`.
    """
    limits = check_thresholds("event_map_strict", thresholds)
    found, truths, videos = read_both("event_map_strict", detections, ground_truth, num_classes)
    found = found.ranked()
    pairs = pairs_of_one_class(found, truths, temporal_iou, minimum=limits.min())
    size = len(found.start), len(truths.start)
    true = [match_greedily(pairs.take(pairs.overlap >= limit), *size) >= 0 for limit in limits]
    per_class = average_precisions(true, found.class_id, truths.class_id, num_classes, interpolated=True)
    per_video = average_precisions(true, found.video, truths.video, len(videos), interpolated=True)
    return {
        "thresholds": limits,
        "mAP_action": 100 * mean_over_present(per_class),
        "mAP_video": 100 * mean_over_present(per_video),
        "per_class": 100 * per_class,
    }
