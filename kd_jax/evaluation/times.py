"""Times of detections compared with those of their videos and of the ground truth.

describe_late(detections, truth)       # '3 of 4 detections start after the end of their video: …', or ''
describe_unit(detections, truth, 25)   # 'divided by 25, …, as between seconds and frames at 25 per second', or ''
"""

import math

import numpy as np

from kd_jax.data.annotations.units import FACTORS, OR_MORE, as_between
from kd_jax.evaluation.metrics.segment_matching import pairs_of_one_class, temporal_iou
from kd_jax.evaluation.metrics.segment_rows import Rows, Tables, read_both
from kd_jax.evaluation.protocols import Truth

CLEAR, BETTER = 0.4, 3  # the mean tIoU that another unit must reach, and how many times that of the times as they are


def describe_late(detections: Tables, truth: Truth) -> str:
    """Returns how many detections start after the end of their video, with the unit that fits if most do; or ''.

    Raises ValueError if all of them start there.
    """
    known = {video: table for video, table in detections.items() if truth.durations.get(video, math.inf) < math.inf}
    late = {video: table[table[:, 1] >= truth.durations[video]] for video, table in known.items()}
    total, count = sum(map(len, known.values())), sum(map(len, late.values()))
    if not count:
        return ""
    video = next(video for video, rows in late.items() if len(rows))
    example = f"{video} lasts {truth.durations[video]:.4g} s and has one at {late[video][0, 1]:.4g} s"
    units = ""
    if 2 * count > total:
        last = [table[:, 2].max() / truth.durations[v] for v, table in known.items() if len(table)]
        ratio = float(np.quantile(last, 0.9))
        units = f"; the ratio is {ratio:.3g} or more{as_between(ratio, *OR_MORE)}"
    if count == total:
        raise ValueError(f"all {total} detections start after the end of their video: {example}{units}")
    return f"{count} of {total} detections start after the end of their video: {example}{units}"


def describe_empty(detections: Tables) -> str:
    """Returns how many detections have no length, so that they overlap nothing; '' if none does."""
    empty = {video: table[table[:, 2] <= table[:, 1]] for video, table in detections.items()}
    count, total = sum(map(len, empty.values())), sum(map(len, detections.values()))
    if not count:
        return ""
    video = next(video for video, rows in empty.items() if len(rows))
    return f"{count} of {total} detections end where they start, such as one of {video} at {empty[video][0, 1]:.4g} s"


def describe_unit(detections: Tables, truth: Truth, fps: float) -> str:
    """Returns the factor that makes detections overlap the actions of their class; '' if none does clearly better.

    Times fit as well as the mean, over the actions, of the highest tIoU with a detection.
    """
    found, truths, _ = read_both("describe_unit", detections, truth.written, truth.num_classes)
    own = _overlap(found, truths, 1.0)
    if own * BETTER >= 1:
        return ""
    overlaps = {factor: _overlap(found, truths, factor) for factor in (fps, 1 / fps, *FACTORS)}
    factor = max(overlaps, key=lambda key: overlaps[key])
    if overlaps[factor] < max(CLEAR, BETTER * own):
        return ""
    compared = f"the mean tIoU of an action with its best detection is {overlaps[factor]:.2f} instead of {own:.2f}"
    units = f", as between seconds and frames at {fps:g} per second" if factor in (fps, 1 / fps) else as_between(factor)
    return f"if times are divided by {factor:.4g}, {compared}{units}"


def _overlap(found: Rows, truths: Rows, factor: float) -> float:
    """Returns the mean of the highest tIoU of each ground truth, with the times of detections divided by a factor."""
    scaled = found._replace(start=found.start / factor, end=found.end / factor)
    pairs = pairs_of_one_class(scaled, truths, temporal_iou, minimum=1e-9)
    best = np.zeros(len(truths.start))
    np.maximum.at(best, pairs.truth, pairs.overlap)
    return float(best.mean()) if len(best) else 1.0
