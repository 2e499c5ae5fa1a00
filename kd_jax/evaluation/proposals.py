"""Scores → detections: which stretches of a video are actions, of which class, and how sure.

    found = segments_from_scores(probabilities, seconds_per_snippet=0.64, threshold=0.5)
    found = choose("multi_threshold", "sparse", convention="start")(probabilities, 0.64, duration=61.5)

A detection table is `[N, 4]` float64 rows (class, start s, end s, score), sorted by class, start and end, whatever made
it; `kd_jax.evaluation.formats` writes and reads such tables, `kd_jax.evaluation.metrics` scores them.

A model says for each snippet whether an action is on, so the end of an action is known only to lie between the last
snippet inside and the first one outside: half-way between their instants is taken. What the instant of snippet i is,
the *convention* says; s stands for the seconds per snippet:

    convention   snippet i is the instant     a run of snippets a … b-1 becomes
    'start'      its start, i·s               [(a - ½)·s, (b - ½)·s]
    'centre'     its centre, (i + ½)·s        [a·s, b·s]

'start' is how ground truth becomes labels (`labels_from_segments`, all public loaders). It therefore gives the labels
back: `labels_from_segments` of such detections marks exactly the snippets of the runs, except snippet 0, which no
segment that starts at 0 or later can mark. 'centre' is the reading of detectors (Graph Distillation, and the feature
grid of ActionFormer and OpenTAD): a run covers the intervals `[i·s, (i + 1)·s)` of its snippets, and the centres inside
a detection are those of its run, the first and the last included. Graph Distillation names the last *frame*
of a run, one frame before the end used here. Both are half a snippet apart; [default] 'centre'.

Either way a start before 0 becomes 0 and, where a duration is given, an end past it becomes the duration; what lies
past the duration altogether is dropped.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from kd_jax.segments import runs

CONVENTIONS = {"start": -0.5, "centre": 0.0}  # from the index of a snippet to the boundary before it, in snippets
HEADS = ("dense", "sparse")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of segments_from_thresholds [default]
SUPPRESSION = {  # what soft-NMS multiplies a score with, given the tIoU with a better detection
    "gaussian": lambda tiou, sigma, max_tiou: np.exp(-(tiou**2) / sigma),
    "linear": lambda tiou, sigma, max_tiou: np.where(tiou >= max_tiou, 1 - tiou, 1.0),
    "hard": lambda tiou, sigma, max_tiou: np.where(tiou >= max_tiou, 0.0, 1.0),
}


def segments_from_scores(
    scores: np.ndarray,
    seconds_per_snippet: float,
    *,
    head: str = "dense",
    threshold: float = 0.5,
    convention: str = "centre",
    duration: float | None = None,
    min_length: int = 1,
    max_gap: int = 0,
) -> np.ndarray:
    """Per class, every run of snippets with `score >= threshold`; its score is the mean over the run.

    Args:
      scores: `[T, C]` probabilities, or `[T, C + 1]` with the background last for a sparse head, which is left out.
      seconds_per_snippet: s of the module's table.
      head: 'dense' or 'sparse'.
      threshold: [default] 0.5.
      convention: 'start' or 'centre', see above.
      duration: of the video in seconds; None = not known, ends are not clipped.
      min_length: shorter runs, in snippets, are left out; applied after gaps are closed.
      max_gap: two runs of a class with at most so many snippets between them are one, whose score is the mean over all
        of its snippets, those between included.

    Returns:
      A detection table.

    Raises:
      ValueError: for scores that are not finite `[T, C]`, or an option out of its range.
    """
    scores = _scores(scores, head)
    classes = scores[:, :-1] if head == "sparse" else scores
    class_id, first, stop = _clean_runs(classes >= _finite("threshold", threshold), min_length, max_gap)
    # One long column, class after class: the runs are its slices.
    mean = _means(classes.T.reshape(-1, 1), class_id * len(scores) + first, class_id * len(scores) + stop)[:, 0]
    return _table(class_id, first, stop, mean, seconds_per_snippet, convention, duration)


def segments_from_background(
    probabilities: np.ndarray,
    seconds_per_snippet: float,
    *,
    head: str = "sparse",
    threshold: float = 0.4,
    convention: str = "centre",
    duration: float | None = None,
    min_length: int = 1,
    max_gap: int = 0,
) -> np.ndarray:
    """Every run of `1 - background >= threshold` is one action, of its most probable class.

    Class = argmax over the non-background probabilities averaged over the run, score = that average; no suppression
    of overlaps, as there are none. The rule of the public Graph Distillation code (Luo et al., ECCV 2018), which keeps
    the background in column 0.

    Args:
      probabilities: `[T, C + 1]`, rows sum to 1, background last.
      head: 'sparse'; a dense head has no background probability and is refused.
      threshold: 0.4 in that code.
      seconds_per_snippet, convention, duration, min_length, max_gap: as in `segments_from_scores`.

    Returns:
      A detection table.

    Raises:
      ValueError: as `segments_from_scores`.
    """
    if head != "sparse":
        raise ValueError(
            f"head={head!r} has no background probability; choose 'classes' or 'multi_threshold' proposals"
        )
    probabilities = _scores(probabilities, head)
    active = 1 - probabilities[:, -1:] >= _finite("threshold", threshold)
    _, first, stop = _clean_runs(active, min_length, max_gap)
    mean = _means(probabilities[:, :-1], first, stop)
    class_id = mean.argmax(axis=1)
    return _table(class_id, first, stop, mean.max(axis=1), seconds_per_snippet, convention, duration)


def segments_from_thresholds(
    scores: np.ndarray,
    seconds_per_snippet: float,
    *,
    head: str = "dense",
    thresholds: Sequence[float] = THRESHOLDS,
    convention: str = "centre",
    duration: float | None = None,
    min_length: int = 1,
    max_gap: int = 0,
    suppression: str = "gaussian",
    sigma: float = 0.5,
    max_tiou: float = 0.3,
    min_score: float = 0.001,
) -> np.ndarray:
    """The head's simple rule at several thresholds, then soft-NMS: nested proposals instead of one cut.

    The rule is `segments_from_scores` for a dense head, `segments_from_background` for a sparse one; what several
    thresholds propose alike counts once. The thresholds are our [default]; proposals at many thresholds are common in
    weakly supervised detection (for instance W-TALC, Paul et al., ECCV 2018).

    Args:
      scores: `[T, C]`, or `[T, C + 1]` with the background last for a sparse head.
      head: 'dense' or 'sparse'.
      thresholds: on the class probability (dense) or on `1 - background` (sparse).
      seconds_per_snippet, convention, duration, min_length, max_gap: as in `segments_from_scores`.
      suppression, sigma, max_tiou, min_score: as `method` and so on in `soft_nms`.

    Returns:
      A detection table.

    Raises:
      ValueError: as `segments_from_scores` and `soft_nms`.
    """
    _one_of("head", head, HEADS)
    thresholds = np.atleast_1d(thresholds).tolist()
    if not thresholds:
        raise ValueError("thresholds is empty; give at least one")
    rule = segments_from_scores if head == "dense" else segments_from_background
    options = {"convention": convention, "duration": duration, "min_length": min_length, "max_gap": max_gap}
    tables = [rule(scores, seconds_per_snippet, head=head, threshold=value, **options) for value in thresholds]
    found = _sorted(np.concatenate(tables))
    last_alike = np.append((found[1:, :3] != found[:-1, :3]).any(axis=1), True)[: len(found)]
    return soft_nms(found[last_alike], method=suppression, sigma=sigma, max_tiou=max_tiou, min_score=min_score)


def soft_nms(
    detections: np.ndarray,
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    max_tiou: float = 0.3,
    min_score: float = 0.001,
) -> np.ndarray:
    """Within each class, lowers the score of what overlaps a better detection (Bodla et al., ICCV 2017).

    The best detection is kept and the scores of the others are multiplied with a weight of their tIoU with it, again
    and again. tIoU = intersection / union of the two intervals, 0 where both are empty.

    Args:
      detections: `[N, 4]` rows (class, start, end, score) of one video, in any order.
      method: the weight; 'gaussian': `exp(-tIoU² / sigma)`; 'linear': `1 - tIoU` where tIoU >= max_tiou, else 1;
        'hard': 0 where tIoU >= max_tiou, else 1, the classical suppression. A vanishing sigma suppresses all overlap.
      sigma: of 'gaussian', above 0; 0.5 in the paper.
      max_tiou: of 'linear' and 'hard'; 0.3 in the paper.
      min_score: what is below, or falls below, is dropped; the paper's Gaussian keeps all above 0.001.

    Returns:
      A detection table; every order of the input gives the same.

    Raises:
      ValueError: for a table that is not finite `[N, 4]`, or an option out of its range.
    """
    weight = SUPPRESSION[_one_of("method", method, SUPPRESSION)]
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma} must be a number above 0; to suppress every overlap choose a small one")
    if not 0 < max_tiou <= 1:
        raise ValueError(f"max_tiou={max_tiou} must be above 0 and at most 1")
    _finite("min_score", min_score)
    detections = np.asarray(detections, np.float64)
    if detections.size == 0:
        return np.zeros((0, 4))
    if detections.ndim != 2 or detections.shape[1] != 4 or not np.isfinite(detections).all():
        raise ValueError(
            f"detections must be finite rows (class, start, end, score), [N, 4]; got shape {detections.shape}"
        )
    ordered = detections[np.lexsort((detections[:, 2], detections[:, 1], -detections[:, 3], detections[:, 0]))]
    per_class = np.split(ordered, np.flatnonzero(np.diff(ordered[:, 0])) + 1)
    kept = [_suppress(rows, lambda tiou: weight(tiou, sigma, max_tiou), min_score) for rows in per_class]
    return _sorted(np.concatenate(kept))


def _suppress(rows: np.ndarray, weight: Callable[[np.ndarray], np.ndarray], min_score: float) -> np.ndarray:
    """`soft_nms` of one class."""
    class_id, start, end, score = rows.T
    kept = []
    alive = score >= min_score
    while True:
        start, end, score = start[alive], end[alive], score[alive]
        if not len(score):
            return np.array(kept, np.float64).reshape(-1, 4)
        best = score.argmax()
        kept.append((class_id[0], start[best], end[best], score[best]))
        shared = np.maximum(np.minimum(end, end[best]) - np.maximum(start, start[best]), 0)
        union = (end - start) + (end[best] - start[best]) - shared
        score = score * weight(shared / np.where(union > 0, union, 1))
        alive = score >= min_score
        alive[best] = False


PROPOSALS = {  # name: function of (scores, seconds_per_snippet, *, head, convention, duration, …)
    "classes": segments_from_scores,
    "background": segments_from_background,
    "multi_threshold": segments_from_thresholds,
}
DEFAULTS = {"dense": "classes", "sparse": "background"}  # head: name


def choose(name: str | None, head: str, *, threshold: float | None = None, **options) -> Callable[..., np.ndarray]:
    """A rule of PROPOSALS with its options: a function of (scores, seconds_per_snippet, duration=None).

    Args:
      name: a key of PROPOSALS; None = the one that DEFAULTS has for the head.
      head: 'dense' or 'sparse'.
      threshold: None = the rule's own.
      options: those of the rule, such as `convention`.

    Raises:
      ValueError: for an unknown name or head, a rule that the head has no scores for, a threshold given to
        'multi_threshold', or options out of range; so all is checked before there are any scores.
    """
    _one_of("head", head, HEADS)
    name = DEFAULTS[head] if name is None else _one_of("proposals", name, PROPOSALS)
    if threshold is not None:
        if name == "multi_threshold":
            raise ValueError(f"threshold={threshold}: multi_threshold proposals use several; leave it out")
        options["threshold"] = threshold
    rule = functools.partial(PROPOSALS[name], head=head, **options)
    try:
        rule(np.zeros((1, 2)), 1.0)
    except TypeError as error:
        raise ValueError(f"the proposals {name!r} do not have this option: {error}") from None
    return rule


def _scores(scores: np.ndarray, head: str) -> np.ndarray:
    _one_of("head", head, HEADS)
    scores = np.asarray(scores)
    if scores.ndim != 2:
        raise ValueError(f"scores must be [T, C], got shape {scores.shape}")
    if head == "sparse" and scores.shape[1] < 2:
        raise ValueError(f"probabilities must be [T, C + 1] with the background last, got shape {scores.shape}")
    scores = scores.astype(np.float64)
    if not np.isfinite(scores).all():
        snippet, class_id = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(f"scores must be finite numbers, got {scores[snippet, class_id]} at [{snippet}, {class_id}]")
    return scores


def _clean_runs(active: np.ndarray, min_length: int, max_gap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`runs`, without gaps up to `max_gap` and without those that are shorter than `min_length`."""
    if min_length < 1 or max_gap < 0:
        raise ValueError(f"min_length={min_length} must be at least 1 and max_gap={max_gap} at least 0 snippets")
    column, first, stop = runs(active)
    joined = (column[1:] == column[:-1]) & (first[1:] - stop[:-1] <= max_gap)
    opens, closes = np.append(True, ~joined)[: len(column)], np.append(~joined, True)[: len(column)]
    column, first, stop = column[opens], first[opens], stop[closes]
    long = stop - first >= min_length
    return column[long], first[long], stop[long]


def _means(values: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The mean of `values[first:stop]` for each of R slices: `[N, C]` → `[R, C]`."""
    padded = np.concatenate([values, np.zeros((1, values.shape[1]))])  # so that stop = N is an index
    if not len(first):
        return padded[:0]
    sums = np.add.reduceat(padded, np.stack([first, stop], axis=1).ravel(), axis=0)[::2]
    return sums / (stop - first)[:, None]


def _table(class_id, first, stop, score, seconds_per_snippet, convention, duration) -> np.ndarray:
    """Runs as a detection table, in seconds."""
    shift = CONVENTIONS[_one_of("convention", convention, CONVENTIONS)]
    if not 0 < seconds_per_snippet < math.inf:
        raise ValueError(f"seconds_per_snippet={seconds_per_snippet} must be a number above 0")
    if duration is not None and not 0 < duration < math.inf:
        raise ValueError(f"duration={duration} must be a number of seconds above 0, or None")
    start = np.maximum((first + shift) * seconds_per_snippet, 0)
    end = (stop + shift) * seconds_per_snippet
    if duration is not None:
        end = np.minimum(end, duration)
    table = np.stack([class_id, start, end, score], axis=1).astype(np.float64)
    return _sorted(table[end > start])


def _sorted(table: np.ndarray) -> np.ndarray:
    return table[np.lexsort((table[:, 3], table[:, 2], table[:, 1], table[:, 0]))]


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number")
    return value


def _one_of(name: str, value: str, known) -> str:
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; choose {' or '.join(repr(key) for key in known)}")
    return value
