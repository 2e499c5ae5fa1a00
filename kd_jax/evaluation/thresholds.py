"""Thresholds from which a snippet counts as action: the one with the best F1, and why a threshold finds nothing.

best_threshold([(probabilities, labels)], "dense")     # Suggestion(threshold=0.31, f1=45.2, default_f1=38.0)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.evaluation.proposals import DEFAULT_THRESHOLDS, DEFAULTS, THRESHOLDS
from kd_jax.segments import Grid, clock

_CANDIDATES = np.arange(1, 100) / 100


class Suggestion(NamedTuple):
    """A threshold for the default rule of a head, and its F1 in percent over all snippets and classes."""

    threshold: float
    f1: float
    default_f1: float  # with the default threshold


def default_threshold(head: str, proposals: str | None = None) -> float:
    """Returns the threshold of a rule, the lowest one of 'multi_threshold'; None for the rule of the head."""
    if proposals == "multi_threshold":
        return THRESHOLDS[0]
    return DEFAULT_THRESHOLDS["dense" if (proposals or DEFAULTS[head]) == "classes" else "sparse"]


def compared_scores(table: np.ndarray, head: str, proposals: str | None = None) -> np.ndarray:
    """Returns what a rule compares with its threshold.

    Args:
      table: `[T, C]` probabilities, or `[T, C + 1]` with the background last if the head is sparse.
      proposals: a key of `PROPOSALS`; None for the default of the head.

    Returns `[T, 1]`, 1 - background, for the rules of a sparse head that look for actions of any class; otherwise the
    probabilities of the classes, `[T, C]`.
    """
    if head == "sparse" and proposals != "classes":
        return 1 - table[:, -1:]
    return table[:, :-1] if head == "sparse" else table


def best_threshold(pairs: Iterable[tuple[np.ndarray, np.ndarray]], head: str) -> Suggestion | None:
    """Finds the threshold, 0.01 to 0.99, with the best F1 of snippets; of equal ones, that nearest the default.

    Args:
      pairs: (probabilities as in `compared_scores`, labels `[T, C]`) of each video.

    Returns None if no snippet is labelled. For a sparse head, F1 is that of one decision per snippet: any action, or
    background.
    """
    default = DEFAULT_THRESHOLDS[head]
    found, right, wanted = np.zeros(len(_CANDIDATES) + 1), np.zeros(len(_CANDIDATES) + 1), 0
    for table, labels in pairs:
        scores, classes = compared_scores(table, head), np.asarray(labels) > 0
        active = classes if scores.shape == classes.shape else classes.max(axis=1, keepdims=True)
        reached = np.searchsorted(_CANDIDATES, scores, side="right")  # the number of thresholds that a score reaches
        found += np.bincount(reached.ravel(), minlength=len(found))
        right += np.bincount(reached[active], minlength=len(found))
        wanted += active.sum()
    if not wanted:
        return None
    f1 = 200 * right[::-1].cumsum()[-2::-1] / (found[::-1].cumsum()[-2::-1] + wanted)
    best = min(np.flatnonzero(f1 == f1.max()), key=lambda i: abs(_CANDIDATES[i] - default))
    return Suggestion(float(_CANDIDATES[best]), float(f1[best]), float(f1[round(100 * default) - 1]))


def explain_nothing(
    tables: Mapping[str, np.ndarray],
    grids: Mapping[str, Grid],
    classes: Sequence[str],
    head: str,
    proposals: str | None,
    threshold: float,
) -> str:
    """Explains why a rule finds nothing: the highest probability, and a threshold that would find something.

    Args:
      tables, grids: {video: probabilities as in `compared_scores`}, {video: the times of its snippets in seconds}.
      classes: their names.
      head, proposals, threshold: the head, the rule and its threshold, see `compared_scores` and `default_threshold`.

    Returns '' if a snippet reaches the threshold. If nothing was found nevertheless, it is after the end of its video.
    """
    scores = {video: compared_scores(table, head, proposals) for video, table in tables.items()}
    video = max(scores, key=lambda name: scores[name].max())
    snippet, highest = int(scores[video].max(axis=1).argmax()), float(scores[video].max())
    if highest >= threshold:
        return ""
    name = classes[int(tables[video][snippet, : len(classes)].argmax())]
    grid = grids[video]
    at = clock(grid.start + (snippet + 0.5) * grid.length / len(scores[video]))
    what = "probability of any action" if scores[video].shape[1] < len(classes) else "probability"
    where = f"{name}, {at}" + (f" in {video}" if len(tables) > 1 else "")
    simple = f"--proposals={DEFAULTS[head]} " if proposals == "multi_threshold" else ""
    remedy = f"{simple}--threshold={0.9 * highest:.2g} finds something"
    return f"No snippet reaches the threshold {threshold:.3g}; the highest {what} is {highest:.2g} ({where}); {remedy}"
