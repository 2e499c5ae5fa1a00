"""Proposals: scores of snippets become detections.

    found = segments_from_scores(probabilities, seconds_per_snippet=0.64, threshold=0.5)
    found = choose("multi_threshold", "sparse", convention="start")(probabilities, 0.64, duration=61.5)

A detection table is `[N, 4]` float64 rows (class, start s, end s, score), sorted by class, start and end. All rules
return such tables, `kd_jax.evaluation.formats` writes and reads them, and `kd_jax.evaluation.metrics` scores them.

The boundary of an action is the midpoint between the instants of the last snippet inside and the first one outside.
The *convention* defines the instant of snippet i; s is the seconds per snippet:

    convention   snippet i is the instant     a run of snippets a … b-1 becomes
    'start'      its start, i·s               [(a - ½)·s, (b - ½)·s]
    'centre'     its centre, (i + ½)·s        [a·s, b·s]

'start' is the convention of ground truth labels (`labels_from_segments`, all public loaders). It inverts them:
`labels_from_segments` of such detections marks exactly the snippets of the runs, except snippet 0, which no segment
that starts at 0 or later can mark. 'centre', the default, is the convention of detectors (ActionFormer, OpenTAD, and
Graph Distillation, which ends one frame earlier): a detection contains the centres of exactly the snippets of its run.
Starts are clipped at 0 and ends at the duration, if known; a detection that starts after it is dropped.

A `Grid` in place of s moves the snippets to their times. Windows that overlap are labelled at their centres, so the two
conventions are one there.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kd_jax.evaluation.metrics.segment_matching import temporal_iou
from kd_jax.segments import Grid, runs

DEFAULT_THRESHOLDS = {"dense": 0.5, "sparse": 0.4}  # {head: threshold of its rule}
DEFAULTS = {"dense": "classes", "sparse": "background"}  # {head: its rule in PROPOSALS}
CONVENTIONS = {"start": -0.5, "centre": 0.0}  # from the index of a snippet to the boundary before it, in snippets
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # default of segments_from_thresholds
Rule = Callable[..., np.ndarray]  # (scores, seconds_per_snippet, *, head, convention, duration, …) → detection table
SUPPRESSION: dict[str, Callable] = {  # factor of a score, given the tIoU with a better detection
    "gaussian": lambda tiou, sigma, max_tiou: np.exp(-(tiou**2) / sigma),
    "linear": lambda tiou, sigma, max_tiou: np.where(tiou >= max_tiou, 1 - tiou, 1.0),
    "hard": lambda tiou, sigma, max_tiou: np.where(tiou >= max_tiou, 0.0, 1.0),
}


def segments_from_scores(
    scores: np.ndarray,
    seconds_per_snippet: float | Grid,
    *,
    head: str = "dense",
    threshold: float = DEFAULT_THRESHOLDS["dense"],
    convention: str = "centre",
    duration: float | None = None,
    min_length: int = 1,
    max_gap: int = 0,
) -> np.ndarray:
    """Makes a detection of each run of snippets with `score >= threshold`, per class; its score is the mean of the run.

    Args:
      scores: `[T, C]` probabilities, or `[T, C + 1]` for a sparse head, whose last column, the background, is ignored.
      seconds_per_snippet: s in the table of the module docstring, or the `Grid` of the snippets in seconds.
      threshold: lowest score of a snippet in a run.
      convention: 'start' or 'centre', see the module docstring.
      duration: seconds of the video; None if unknown, and then ends are not clipped.
      min_length: runs of fewer snippets are dropped, after gaps are closed.
      max_gap: two runs of a class with at most this many snippets between them are joined. The score is then the mean
        over all snippets, including those between.

    Returns a detection table. Raises ValueError for scores that are not finite `[T, C]`, or an option out of range.
    """
    scores = _check_scores(scores, head)
    classes = scores[:, :-1] if head == "sparse" else scores
    class_id, first, stop = _clean_runs(classes >= _finite("threshold", threshold), min_length, max_gap)
    # The runs are slices of one long column, class after class.
    mean = _means(classes.T.reshape(-1, 1), class_id * len(scores) + first, class_id * len(scores) + stop)[:, 0]
    return _table((class_id, first, stop, mean), seconds_per_snippet, len(scores), convention, duration)


def segments_from_background(
    probabilities: np.ndarray,
    seconds_per_snippet: float | Grid,
    *,
    head: str = "sparse",
    threshold: float = DEFAULT_THRESHOLDS["sparse"],
    convention: str = "centre",
    duration: float | None = None,
    min_length: int = 1,
    max_gap: int = 0,
) -> np.ndarray:
    """Makes a detection of each run of `1 - background >= threshold`, with its most probable class.

    Class probabilities are averaged over the run; the class is the largest average, and the score is its value.
    Detections do not overlap, so none is suppressed. This is the rule of the public Graph Distillation code (Luo et
    al., ECCV 2018), which has the background in column 0.

    Args:
      probabilities: `[T, C + 1]`, rows sum to 1, background last.
      head: 'sparse'; a dense head has no background probability and is refused.
      threshold: lowest `1 - background` of a snippet in a run; 0.4 in that code.
      seconds_per_snippet, convention, duration, min_length, max_gap: as in `segments_from_scores`.

    Returns a detection table. Raises ValueError as in `segments_from_scores`.
    """
    if head != "sparse":
        remedy = "choose 'classes' or 'multi_threshold' proposals"
        raise ValueError(f"head={head!r} has no background probability; {remedy}")
    probabilities = _check_scores(probabilities, head)
    active = 1 - probabilities[:, -1:] >= _finite("threshold", threshold)
    _, first, stop = _clean_runs(active, min_length, max_gap)
    mean = _means(probabilities[:, :-1], first, stop)
    found = mean.argmax(axis=1), first, stop, mean.max(axis=1)
    return _table(found, seconds_per_snippet, len(probabilities), convention, duration)


def segments_from_thresholds(
    scores: np.ndarray,
    seconds_per_snippet: float | Grid,
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
    """Applies the head's simple rule at several thresholds, then soft-NMS.

    The rule is `segments_from_scores` for a dense head and `segments_from_background` for a sparse one. If segments are
    equal, the one with the highest score is kept. The thresholds are our choice; proposals at many thresholds are
    common in weakly supervised detection, for instance in W-TALC (Paul et al., ECCV 2018).

    Args:
      scores: `[T, C]`, or `[T, C + 1]` with the background last for a sparse head.
      thresholds: one or more thresholds of that rule.
      seconds_per_snippet, convention, duration, min_length, max_gap: as in `segments_from_scores`.
      suppression: the `method` of `soft_nms`.
      sigma, max_tiou, min_score: as in `soft_nms`.

    Returns a detection table. Raises ValueError as in `segments_from_scores` and `soft_nms`.
    """
    _one_of("head", head, DEFAULTS)
    if not np.size(thresholds):
        raise ValueError("thresholds is empty; give at least one")
    simple = segments_from_scores if head == "dense" else segments_from_background
    rule = functools.partial(
        simple, head=head, convention=convention, duration=duration, min_length=min_length, max_gap=max_gap
    )
    tables = [rule(scores, seconds_per_snippet, threshold=value) for value in np.atleast_1d(thresholds).tolist()]
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
    """Lowers the scores of detections that overlap a better one of their class (Bodla et al., ICCV 2017).

    Repeatedly, the best detection is kept, and the scores of the others are multiplied by a weight, a function of their
    tIoU with it. tIoU is intersection / union of the two intervals, and 0 if both are empty.

    Args:
      detections: `[N, 4]` rows (class, start, end, score) of one video, in any order.
      method: the weight. 'gaussian': `exp(-tIoU² / sigma)`; 'linear': `1 - tIoU` if tIoU >= max_tiou, else 1; 'hard',
        the classical suppression: 0 if tIoU >= max_tiou, else 1.
      sigma: for 'gaussian', above 0; 0.5 in the paper. A smaller sigma suppresses more.
      max_tiou: for 'linear' and 'hard', above 0 and at most 1; 0.3 in the paper.
      min_score: a detection whose score is or falls below it is dropped; 0.001 in the paper, for 'gaussian'.

    Returns a detection table, which does not depend on the order of the input. Raises ValueError for a table that is
    not finite `[N, 4]`, or an option out of range.
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
        expected = "finite rows (class, start, end, score), [N, 4]"
        raise ValueError(f"detections must be {expected}; got shape {detections.shape}")
    ordered = detections[np.lexsort((detections[:, 2], detections[:, 1], -detections[:, 3], detections[:, 0]))]
    per_class = np.split(ordered, np.flatnonzero(np.diff(ordered[:, 0])) + 1)
    kept = [_suppress(rows, lambda tiou: weight(tiou, sigma, max_tiou), min_score) for rows in per_class]
    return _sorted(np.concatenate(kept))


def _suppress(rows: np.ndarray, weight: Callable[[np.ndarray], np.ndarray], min_score: float) -> np.ndarray:
    """Applies `soft_nms` to one class."""
    class_id, start, end, score = rows.T
    kept: list[tuple[float, float, float, float]] = []
    alive = score >= min_score
    while True:
        start, end, score = start[alive], end[alive], score[alive]
        if not len(score):
            return np.array(kept, np.float64).reshape(-1, 4)
        best = score.argmax()
        kept.append((class_id[0], start[best], end[best], score[best]))
        score = score * weight(temporal_iou(start, end, start[best], end[best]))
        alive = score >= min_score
        alive[best] = False


PROPOSALS: dict[str, Rule] = {
    "classes": segments_from_scores,
    "background": segments_from_background,
    "multi_threshold": segments_from_thresholds,
}


def choose(name: str | None, head: str, *, threshold: float | None = None, **options) -> Rule:
    """Returns a rule of PROPOSALS with its options, a function of (scores, seconds_per_snippet, duration=None).

    All arguments are checked here, before there are any scores.

    Args:
      name: a key of PROPOSALS; None = the default of the head.
      threshold: None = the default of the rule.
      options: other options of the rule, such as `convention` or `min_length`.

    Raises ValueError for an unknown name or head, a rule that the head has no scores for, a threshold for
    'multi_threshold', or an option that is unknown or out of range.
    """
    _one_of("head", head, DEFAULTS)
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


def _check_scores(scores: np.ndarray, head: str) -> np.ndarray:
    """Returns the scores as float64; raises ValueError unless they are finite and of the shape of the head."""
    _one_of("head", head, DEFAULTS)
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
    """Returns the `runs`, joined over gaps up to `max_gap`, that are at least `min_length` long."""
    if min_length < 1 or max_gap < 0:
        raise ValueError(f"min_length={min_length} must be at least 1 and max_gap={max_gap} at least 0 snippets")
    column, first, stop = runs(active)
    joined = (column[1:] == column[:-1]) & (first[1:] - stop[:-1] <= max_gap)
    opens, closes = np.append(True, ~joined)[: len(column)], np.append(~joined, True)[: len(column)]
    column, first, stop = column[opens], first[opens], stop[closes]
    long = stop - first >= min_length
    return column[long], first[long], stop[long]


def _means(values: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Averages each of R slices `values[first:stop]`: `[N, C]` → `[R, C]`."""
    padded = np.concatenate([values, np.zeros((1, values.shape[1]))])  # so that stop = N is an index
    if not len(first):
        return padded[:0]
    sums = np.add.reduceat(padded, np.stack([first, stop], axis=1).ravel(), axis=0)[::2]
    return sums / (stop - first)[:, None]


def _table(
    rows: tuple[np.ndarray, ...],
    seconds_per_snippet: float | Grid,
    num_snippets: int,
    convention: str,
    duration: float | None,
) -> np.ndarray:
    """Converts runs (class, first, stop, score) to a detection table in seconds."""
    class_id, first, stop, score = rows
    shift = CONVENTIONS[_one_of("convention", convention, CONVENTIONS)]
    origin = 0.0
    if isinstance(seconds_per_snippet, Grid):
        grid, origin = seconds_per_snippet, seconds_per_snippet.start
        seconds_per_snippet = grid.length / num_snippets
        shift *= 1 - 2 * grid.label_at  # the two conventions are one if labels are those of the centres
    if not 0 < seconds_per_snippet < math.inf:
        raise ValueError(f"seconds_per_snippet={seconds_per_snippet} must be a number above 0")
    if duration is not None and not 0 < duration < math.inf:
        raise ValueError(f"duration={duration} must be a number of seconds above 0, or None")
    start = np.maximum(origin + (first + shift) * seconds_per_snippet, 0)
    end = origin + (stop + shift) * seconds_per_snippet
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


def _one_of(name: str, value: str, known: Iterable[str]) -> str:
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; choose {' or '.join(repr(key) for key in known)}")
    return value
