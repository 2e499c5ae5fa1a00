"""Kinds of false positives among detections, after DETAD.

kinds = classify({"video": detections}, {"video": actions}, num_classes=20)
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from kd_jax.analysis import style
from kd_jax.analysis.study import Drawing, Study, Unavailable
from kd_jax.evaluation.metrics.segment_matching import match_greedily, pairs_of_one_class, temporal_iou
from kd_jax.evaluation.metrics.segment_rows import Rows, Tables, read_both
from kd_jax.evaluation.scoring import make_predictions

KINDS = ("true positive", "double detection", "wrong label", "localisation", "confusion", "background")
_COLORS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#B8B8B8")
_MULTIPLES = (1, 10)  # of the number of actions: how many detections are counted; the figure shows the first


class Classified(NamedTuple):
    """Detections, the most confident first, `[N]` each."""

    class_id: np.ndarray
    kind: np.ndarray  # an index into KINDS


def classify(
    detections: Tables,
    ground_truth: Tables,
    *,
    num_classes: int,
    minimum: float = 0.5,
    background: float = 0.1,
) -> Classified:
    """Gives each detection the kind of its error.

    The kinds are, in this order: *true positive*: matched to an action of its class, tIoU of at least `minimum`, each
    action to one detection, the most confident first. *Double detection*: such an overlap with an action of its class
    that is already matched. *Wrong label*: such an overlap with an action of another class. *Localisation*: tIoU of at
    least `background` with an action of its class. *Confusion*: the same with one of another class. *Background*: none
    of these.

    DETAD looks only at the action with the largest overlap. Here the own class comes first, because actions may be
    concurrent: a detection that also overlaps an action of another class is not a confusion.

    Args:
      detections: {video: `[N, 4]` rows (class, start, end, score)}.
      ground_truth: {video: `[M, 3]` rows (class, start, end)}.

    Raises ValueError as `kd_jax.evaluation.metrics.segment_rows.read_both` does.

    References:
      Alwassel et al., Diagnosing Error in Temporal Action Detectors, ECCV 2018, Section 4.
    """
    found, truths, _ = read_both("classify", detections, ground_truth, num_classes)
    found = found.ranked()
    one_class, any_truth = (rows._replace(class_id=np.zeros_like(rows.class_id)) for rows in (found, truths))
    own = pairs_of_one_class(found, truths, temporal_iou, minimum=background)
    matched = match_greedily(own.take(own.overlap >= minimum), len(found.start), len(truths.start)) >= 0
    best = _largest(found, own)
    best_of_any = _largest(found, pairs_of_one_class(one_class, any_truth, temporal_iou, minimum=background))
    conditions = [matched, best >= minimum, best_of_any >= minimum, best >= background, best_of_any >= background]
    return Classified(found.class_id, np.select(conditions, range(5), default=5))


def _largest(found: Rows, pairs) -> np.ndarray:
    largest = np.full(len(found.start), -1.0)
    np.maximum.at(largest, pairs.detection, pairs.overlap)
    return largest


def count_kinds(classified: Classified, num_truths: np.ndarray, multiple: int) -> np.ndarray:
    """Counts the kinds among the most confident detections of each class: `[6]`, in the order of KINDS.

    Args:
      num_truths: `[C]`, the number of actions of each class.
      multiple: in each class, this multiple of the number of its actions is counted.
    """
    counts = np.zeros(len(KINDS), np.int64)
    for class_id, actions in enumerate(num_truths):
        kinds = classified.kind[classified.class_id == class_id][: multiple * actions]
        counts += np.bincount(kinds, minlength=len(KINDS))
    return counts


@style.styled
def draw(shares: Mapping[str, np.ndarray], caption: str) -> Figure:
    """Draws a bar per run: the share of each kind, `[6]`; the rest of the bar has no detection."""
    figure = style.new_figure(8.2, 0.5 * len(shares) + 1.5)
    axis = figure.subplots()
    names = list(shares)
    left = np.zeros(len(names))
    for kind, (title, color, hatch) in enumerate(zip(KINDS, _COLORS, style.HATCHES, strict=True)):
        width = np.array([100 * shares[name][kind] for name in names])
        bars = axis.barh(range(len(names)), width, 0.68, left=left, color=color, label=title)
        for bar in bars:
            bar.set(hatch=hatch, edgecolor="white", linewidth=0.8)
        for row, (start, size) in enumerate(zip(left, width, strict=True)):
            if size >= 4:
                box = {"facecolor": "white", "alpha": 0.8, "pad": 1, "linewidth": 0}
                text = axis.text(start + size / 2, row, f"{size:.0f}", ha="center", va="center", fontsize=7.5)
                text.set_bbox(box)
        left += width
    axis.set_yticks(range(len(names)), [style.readable(name) for name in names])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.02 * left.max())
    axis.set_xlabel(caption)
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left", ncols=6, fontsize=8, handlelength=1.6, columnspacing=1.0)
    return figure


def make(study: Study) -> Drawing:
    """Draws the kinds of the detections of teachers, plain and augmented student and two-stream, mean over seeds."""
    roles, truth = study.roles, study.truth
    study.need(vanilla=roles.vanilla)
    names = list(dict.fromkeys(name for name in (*roles.compared(), roles.two_stream) if name))
    class_ids = np.concatenate([rows[:, 0] for rows in truth.segments.values()]).astype(np.int64)
    num_truths = np.bincount(class_ids, minlength=truth.num_classes)
    shares, table = {}, []
    for name in names:
        counts = np.mean([_counts(study, name, index, num_truths) for index in range(study.num_seeds)], axis=0)
        shares[name] = counts[0] / num_truths.sum()
        for multiple, row in zip(_MULTIPLES, counts.tolist(), strict=True):
            kinds = dict(zip(KINDS, row, strict=True))
            table.append({"run": name, "detections per action": multiple, "actions": int(num_truths.sum()), **kinds})
    if not any(share.any() for share in shares.values()):
        raise Unavailable("no run has a detection")
    figure = draw(shares, "the most confident detections, as many as actions in each class; percent of the actions")
    return Drawing(figure, table, _sentences(shares, names))


def _counts(study: Study, name: str, index: int, num_truths: np.ndarray) -> list[np.ndarray]:
    truth, scoring = study.truth, study.detecting
    predictions = make_predictions(study.logits(name, index), truth, study.head, scoring, logits=True)
    found = classify(predictions.detections or {}, truth.segments, num_classes=truth.num_classes)
    return [count_kinds(found, num_truths, multiple) for multiple in _MULTIPLES]


def _sentences(shares: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    lines = []
    for kind, title in enumerate(KINDS):
        listed = ", ".join(f"{name} {100 * shares[name][kind]:.0f} %" for name in names)
        lines.append((max(shares[name][kind] for name in names), f"{title}: {listed}"))
    false = sorted(lines[1:], reverse=True)[:2]
    return ["Share of the actions: " + "; ".join(line for _, line in [lines[0], *false]) + "."]
