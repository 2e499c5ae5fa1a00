"""Frame mAP by the length of actions, and by the number of concurrent actions.

frame_map_by_length(scores, segments, durations)["XS"]["mean_over_present_classes"]
frame_map_by_concurrency(scores, labels)["2"]["mean_over_present_classes"]
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kd_jax.evaluation.metrics.frame_map import frame_map
from kd_jax.evaluation.metrics.length_bins import THUMOS14_LENGTH_BINS, check_length_bins, in_length_bin
from kd_jax.evaluation.metrics.segment_rows import TRUTH_COLUMNS, read_rows
from kd_jax.segments import labels_from_segments

CONCURRENCY_BINS = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "4 or more": (4, np.inf)}  # {name: (at least, at most)}


def frame_map_by_length(
    scores: Sequence[np.ndarray],
    segments: Sequence[np.ndarray],
    durations: Sequence[float],
    *,
    bins: Mapping[str, tuple[float, float]] = THUMOS14_LENGTH_BINS,
) -> dict[str, dict]:
    """Computes frame mAP for the actions of each bin of lengths.

    In a bin, the positives of a class are the snippets inside one of its actions of these lengths. Snippets that are
    only inside its actions of other lengths are left out of the ranking of that class. All other snippets are its
    negatives, the same in every bin. AP therefore rises with the share of positives: compare methods within a bin, not
    bins with each other.

    Args:
      scores: per video `[T, C]`, higher means more confident.
      segments: per video `[N, 3]` rows (class, start, end), in seconds; `labels_from_segments` labels the snippets.
      durations: seconds of each video.
      bins: {name: (longer than, at most)}, in seconds, `longer than < end - start <= at most`.

    Returns {name: the result of `frame_map`, and `num_positives`, the number of positive snippets, summed over
    classes}. Raises ValueError for lists of unequal length, bins that are empty or reversed, and as in `frame_map` and
    `labels_from_segments`.
    """
    name = "frame_map_by_length"
    if not len(scores) == len(segments) == len(durations) or not len(scores):
        found = f"{len(scores)}, {len(segments)} and {len(durations)}"
        expected = "must hold the same videos, at least one"
        raise ValueError(f"{name}: scores, segments and durations {expected}; got {found}.")
    scores = [np.asarray(s) for s in scores]
    for video, s in enumerate(scores):
        if s.ndim != 2:
            raise ValueError(f"{name}: scores[{video}] must be [T, C]; got shape {s.shape}.")
    cut = cut_by_length([s.shape for s in scores], segments, durations, bins=bins)
    return {
        key: frame_map(scores, labels, left_out=left_out) | {"num_positives": sum(int(t.sum()) for t in labels)}
        for key, (labels, left_out) in cut.items()
    }


def cut_by_length(
    shapes: Sequence[tuple[int, int]],
    segments: Sequence[np.ndarray],
    durations: Sequence[float],
    *,
    bins: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Labels the snippets of each bin of `frame_map_by_length`.

    Args:
      shapes: (T, C) of each video.
      segments, durations, bins: as in `frame_map_by_length`; one entry for each shape.

    Returns {name: (labels, left_out)}, as `frame_map` reads them: per video `[T, C]` uint8 and bool.
    """
    name = "frame_map_by_length"
    check_length_bins(name, bins)
    cut: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {key: ([], []) for key in bins}
    for video, (shape, rows, duration) in enumerate(zip(shapes, segments, durations, strict=True)):
        num_snippets, num_classes = shape
        read = read_rows(f"{name}: segments", {video: rows}, {video: 0}, num_classes, TRUTH_COLUMNS)
        table = np.stack([read.class_id, read.start, read.end], axis=1)
        for (labels, left_out), limits in zip(cut.values(), bins.values(), strict=True):
            if num_snippets == 0:
                labels.append(np.zeros(shape, np.uint8))
                left_out.append(np.zeros(shape, bool))
                continue
            inside = in_length_bin(read.start, read.end, limits)
            labels.append(labels_from_segments(table[inside], duration, num_snippets, num_classes))
            others = labels_from_segments(table[~inside], duration, num_snippets, num_classes)
            left_out.append((others == 1) & (labels[-1] == 0))
    return cut


def frame_map_by_concurrency(
    scores: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    bins: Mapping[str, tuple[float, float]] = CONCURRENCY_BINS,
    with_background: bool = False,
) -> dict[str, dict]:
    """Computes frame mAP on the snippets with a certain number of active classes.

    In a bin, only these snippets exist, as if the others had been cut out. The share of positives, and with it the
    score of a random ranking, rises with the number of active classes: compare methods within a bin, not bins with each
    other. There is no published definition. Snippets without any action are in no bin, unless `with_background` adds
    them to every bin as negatives. Then detection counts as well as recognition.

    Args:
      scores: per video `[T, C]`, higher means more confident.
      labels: per video `[T, C]`, 0 or 1; instances of one class that overlap are one active class.
      bins: {name: (at least, at most)} active classes.
      with_background: rank snippets without any action in every bin.

    Returns {name: the result of `frame_map`, and `num_snippets` in the bin, without the background}. Raises ValueError
    for bins that are empty or reversed, and as in `frame_map`.
    """
    name = "frame_map_by_concurrency"
    if not bins:
        raise ValueError(f"{name}: bins must name at least one bin of numbers of classes.")
    for key, limits in bins.items():
        if len(limits) != 2 or not 1 <= limits[0] <= limits[1]:
            raise ValueError(f"{name}: bins[{key!r}] must be (at least, at most), from 1 on; got {limits}.")
    scores, labels = [np.asarray(s) for s in scores], [np.asarray(t) for t in labels]
    for video, t in enumerate(labels):
        if len(scores) != len(labels) or t.ndim != 2 or scores[video].shape != t.shape:
            found = f"{len(scores)} and {len(labels)} videos, labels {t.shape} for video {video}"
            raise ValueError(f"{name}: scores and labels must be lists of one [T, C] array per video; got {found}.")
    counts = [(t != 0).sum(axis=1) for t in labels]
    result = {}
    for key, (at_least, at_most) in bins.items():
        inside = [(n >= at_least) & (n <= at_most) for n in counts]
        ranked = [i | (n == 0) for i, n in zip(inside, counts, strict=True)] if with_background else inside
        result[key] = frame_map(
            [s[r] for s, r in zip(scores, ranked, strict=True)], [t[r] for t, r in zip(labels, ranked, strict=True)]
        ) | {"num_snippets": sum(int(i.sum()) for i in inside)}
    return result
