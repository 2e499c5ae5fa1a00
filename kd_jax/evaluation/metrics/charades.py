"""Charades v1 localize: frame mAP at 25 instants of every video, equal to that of the official script.

scores = {"AO8RW": probabilities_at(time_points(33.67))}                 # [25, 157]
charades_localize(scores, segments, durations)["official_mean"]          # percent
"""

from collections.abc import Mapping

import numpy as np

from kd_jax.evaluation.metrics.frame_map import average_precision
from kd_jax.evaluation.metrics.segment_rows import TRUTH_COLUMNS, Tables, check_mapping, numbers, read_rows

NUM_TIME_POINTS = 25
NUM_CLASSES = 157


def time_points(duration: float) -> np.ndarray:
    """Returns the 25 instants `j/25 · duration`, j = 0 … 24, in the unit of `duration`, without the end."""
    return np.arange(NUM_TIME_POINTS) / NUM_TIME_POINTS * duration  # divide first: the last bit can decide a label


def time_point_labels(segments: np.ndarray, duration: float, *, num_classes: int = NUM_CLASSES) -> np.ndarray:
    """Marks the instants inside each segment, including both ends, which `labels_from_segments` excludes.

    Args:
      segments: `[N, 3]` rows (class, start, end), in the unit of `duration`; they may overlap.

    Returns `[25, C]` uint8. Raises ValueError for another shape, a class outside 0 … C-1, a NaN, an end before its
    start, a duration not above 0.
    """
    return _labels("time_point_labels", {"": segments}, {"": duration}, num_classes)[""]


def charades_localize(
    scores: Tables, segments: Tables, durations: Mapping[str, float], *, num_classes: int = NUM_CLASSES
) -> dict:
    """Computes the mean average precision of the Charades localization challenge.

    Per class, the instants of all videos are ranked by descending score; equal scores keep the order of videos in
    `segments` and of time. AP is the mean over positives of the precision at their rank, without interpolation. As in
    the official script, an instant without prediction has the score -inf: use a row of -inf, or leave out the video.
    Instants without any action are ranked like all others.

    Args:
      scores: {video: `[25, C]` at `time_points(duration)`}.
      segments: {video: `[N, 3]` rows (class, start, end) in seconds} of the videos to score; `[0, 3]` without actions.
      durations: {video: seconds}, the column `length` of the official file.

    Returns:
      `official_mean`: percent, over all classes; NaN, as in the official script, if a class never occurs.
      `official_weighted_mean`: percent, weighted by the positives of each class ("wap"); NaN likewise.
      `mean_over_present_classes`: percent, over the classes that occur; NaN if there are none.
      `weighted_mean_over_present_classes`: percent, weighted by the positives of each class.
      `per_class`: `[C]` percent, NaN for a class that never occurs.

    Raises ValueError naming argument, video and value: for another shape, a NaN, a class outside 0 … C-1, an end before
    its start, a duration that is missing or not above 0, scores of a video that is not in `segments`.

    References:
      Sigurdsson et al., Hollywood in Homes, ECCV 2016; Charades_v1_localize.m.
    """
    name = "charades_localize"
    _check_videos(name, scores, segments, durations)
    labels = np.concatenate(list(_labels(name, segments, durations, num_classes).values()))
    pooled = np.full((len(segments), NUM_TIME_POINTS, num_classes), -np.inf)
    for row, video in enumerate(segments):
        if video in scores:
            pooled[row] = _check_scores(f"{name}: scores[{video!r}]", scores[video], num_classes)
    num_positives = labels.sum(axis=0, dtype=np.int64)
    present = num_positives > 0
    per_class = np.where(present, 100 * average_precision(pooled.reshape(-1, num_classes), labels), np.nan)
    mean = float(per_class[present].mean()) if present.any() else float("nan")
    weighted = float(np.average(per_class[present], weights=num_positives[present])) if present.any() else float("nan")
    return {
        "official_mean": mean if present.all() else float("nan"),
        "official_weighted_mean": weighted if present.all() else float("nan"),
        "mean_over_present_classes": mean,
        "weighted_mean_over_present_classes": weighted,
        "per_class": per_class,
    }


def _check_videos(function: str, scores: Mapping, segments: Mapping, durations: Mapping) -> None:
    for argument, value in (("scores", scores), ("segments", segments), ("durations", durations)):
        check_mapping(function, argument, value)
    if not segments:
        raise ValueError(f"{function}: segments must hold at least one video.")
    if unknown := [video for video in scores if video not in segments]:
        found = f"{len(unknown)} of {len(scores)} are not, first {unknown[0]!r}"
        raise ValueError(f"{function}: scores must be of videos in segments; {found}.")


def _labels(function: str, segments: Tables, durations: Mapping[str, float], num_classes: int) -> dict[str, np.ndarray]:
    """Returns {video: `[25, C]` uint8}."""
    labels = {}
    for video, rows in segments.items():
        duration = numbers(f"{function}: durations[{video!r}]", durations.get(video, np.nan))
        if duration.ndim or not 0 < duration < np.inf:
            raise ValueError(f"{function}: durations[{video!r}] must be one number above 0; got {duration}.")
        read = read_rows(f"{function}: segments", {video: rows}, {video: 0}, num_classes, TRUTH_COLUMNS)
        instants = time_points(float(duration))
        inside = (read.start[:, None] <= instants) & (instants <= read.end[:, None])
        labels[video] = np.zeros((NUM_TIME_POINTS, num_classes), np.uint8)
        row, instant = np.nonzero(inside)
        labels[video][instant, read.class_id[row]] = 1
    return labels


def _check_scores(where: str, scores: np.ndarray, num_classes: int) -> np.ndarray:
    values = numbers(where, scores)
    if values.shape != (NUM_TIME_POINTS, num_classes):
        raise ValueError(f"{where} must be [{NUM_TIME_POINTS}, {num_classes}]; got shape {values.shape}.")
    if np.isnan(values).any():
        instant, class_id = np.argwhere(np.isnan(values))[0]
        raise ValueError(f"{where} must not be NaN; got NaN at instant {instant}, class {class_id}.")
    return values
