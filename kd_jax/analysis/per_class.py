"""The gain of every class in the main metric of the experiment, sorted, with intervals."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kd_jax.analysis import style
from kd_jax.analysis.study import Drawing, Study, Unavailable
from kd_jax.evaluation import intervals
from kd_jax.evaluation.protocols import Predictions, Truth, score
from kd_jax.evaluation.scoring import make_predictions

_DRAWS, _BUDGET = 100, 2e8  # of the bootstrap; the budget counts scores of a run
_MOST = 40  # classes that are drawn: those at both ends


def class_scores(predictions: Predictions, truth: Truth, protocol: str) -> np.ndarray:
    """Computes the AP of every class under a protocol, `[C]` percent, the mean over its thresholds, if it has several.

    NaN for a class without ground truth, also where the protocol counts it as 0. Raises Unavailable if the protocol has
    no score per class.
    """
    _, per_class = score(predictions, truth, [protocol])
    if not per_class:
        raise Unavailable(f"the protocol {protocol} has no score per class")
    occurring = np.unique(np.concatenate([rows[:, 0] for rows in truth.segments.values()])).astype(int)
    result = np.full(truth.num_classes, np.nan)
    result[occurring] = np.mean(list(per_class.values()), axis=0)[occurring]
    return result


def resample(predictions: Predictions, truth: Truth, draw: np.ndarray) -> tuple[Predictions, Truth]:
    """Returns the predictions and the truth of the videos at the indices `draw`; a repeated video counts repeatedly."""
    videos = list(truth.segments)

    def take(tables: Mapping | None) -> Any:
        if tables is None:
            return None
        return {f"{n}": tables[videos[v]] for n, v in enumerate(draw) if videos[v] in tables}

    per_video = ("segments", "written", "durations", "num_frames", "ambiguous", "grids")
    fields: dict[str, Any] = {name: take(getattr(truth, name)) for name in per_video}
    drawn = dataclasses.replace(truth, **fields)
    return Predictions(take(predictions.scores), take(predictions.detections), take(predictions.instants)), drawn


@style.styled
def draw(
    names: Sequence[str],
    scores: Mapping[str, np.ndarray],
    roles: Mapping[str, str],
    gains: tuple[np.ndarray, np.ndarray],
    titles: tuple[str, str],
    caption: str,
) -> Figure:
    """Draws the score of every class, and the gain of the augmented run, the largest first.

    Args:
      names: of the C classes.
      scores: {run: `[C]`}.
      roles: {run: key of `style.ROLES`}.
      gains: `[C]` means and `[C]` half-widths of their intervals, NaN for a class or an interval that does not exist.
      titles: of the two panels.
      caption: what the intervals are.
    """
    means, widths = gains
    order = np.argsort(-means, kind="stable")[: int(np.isfinite(means).sum())]
    if len(order) > _MOST:
        order = np.concatenate([order[: _MOST // 2], order[-_MOST // 2 :]])
    rows = np.arange(len(order))
    figure = style.new_figure(8.4, 0.24 * len(order) + 1.5)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
    for run, values in scores.items():
        look = style.ROLES[roles[run]]
        options = {"linestyle": "none", "color": look.color, "label": style.readable(run), "zorder": 3}
        left.plot(values[order], rows, marker=look.marker, **options)
    ends = [scores[run][order] for run in scores if roles[run] in ("vanilla", "augmented")]
    left.hlines(rows, *ends, color=style.MUTED, linewidth=2, alpha=0.6, zorder=2)
    certain = np.abs(means[order]) > widths[order]
    look = style.ROLES["augmented"]
    right.axvline(0, color=style.INK, linewidth=0.8)
    right.errorbar(means[order], rows, xerr=widths[order], fmt="none", ecolor=look.color, capsize=2, linewidth=1.2)
    right.scatter(means[order][certain], rows[certain], color=look.color, zorder=3, s=26)
    right.scatter(means[order][~certain], rows[~certain], facecolor="white", edgecolor=look.color, zorder=3, s=26)
    left.set_yticks(rows, [style.readable(names[c]) for c in order])
    left.set_ylim(len(order) - 0.4, -0.6)
    for axis, title in zip((left, right), titles, strict=True):
        style.write_panel_title(axis, title)
        axis.grid(axis="y" if axis is left else "both")
        axis.tick_params(axis="y", length=0)
    left.set_xlabel("percent")
    right.set_xlabel("points; filled: the interval leaves out 0")
    style.write_legend_and_caption(figure, left, caption)
    return figure


def make(study: Study) -> Drawing:
    """Draws the gain of the augmented student over the plain one in each class."""
    roles, truth = study.roles, study.truth
    study.need(vanilla=roles.vanilla, augmented=roles.augmented)
    protocol, names = study.scoring.protocols[0], study.roles.compared()
    predictions = {
        name: [
            make_predictions(study.logits(name, index), truth, study.head, study.scoring, logits=True)
            for index in range(study.num_seeds)
        ]
        for name in names
    }
    scores = {name: np.array([class_scores(p, truth, protocol) for p in found]) for name, found in predictions.items()}
    means, widths = intervals.over_seeds(scores[roles.augmented] - scores[roles.vanilla])
    caption = intervals.describe_seeds(study.num_seeds)
    if study.num_seeds == 1:
        before, after = predictions[roles.vanilla][0], predictions[roles.augmented][0]
        cost = sum(map(np.size, study.labels.values()))

        def gain(videos: np.ndarray) -> np.ndarray:
            return np.subtract(*(class_scores(*resample(p, truth, videos), protocol) for p in (after, before)))

        bootstrap = intervals.Bootstrap.within(_BUDGET, cost, len(truth.segments), at_most=_DRAWS)
        widths, caption = bootstrap.half_width(gain), str(bootstrap)
    classes = study.experiment.source.info.classes
    shown = {name: values.mean(axis=0) for name, values in scores.items()}
    run_roles = {name: roles.of(name) for name in names}
    titles = (f"AP ({style.readable(protocol)})", f"gain over {style.readable(roles.vanilla)}")
    figure = draw(classes, shown, run_roles, (means, widths), titles, caption)
    table = [
        {"class": name, **{run: float(values[c]) for run, values in shown.items()}}
        | {"gain": float(means[c]), "±": float(widths[c])}
        for c, name in enumerate(classes)
    ]
    return Drawing(figure, table, _sentences(classes, means, widths, caption))


def _sentences(classes: Sequence[str], means: np.ndarray, widths: np.ndarray, caption: str) -> list[str]:
    present = np.flatnonzero(np.isfinite(means)).tolist()
    certain = [c for c in present if abs(means[c]) > widths[c]]
    better, worse = (sum(sign * means[c] > 0 for c in present) for sign in (1, -1))
    first = f"{better} classes of {len(present)} gain and {worse} lose"
    if not certain:
        return [f"{first}; no interval leaves out 0 ({caption})."]
    up, down = (sum(sign * means[c] > 0 for c in certain) for sign in (1, -1))
    ranked = sorted(certain, key=lambda c: -abs(means[c]))[:3]
    listed = ", ".join(f"{classes[c]} {intervals.signed(means[c], widths[c])}" for c in ranked)
    return [f"{first}; the interval leaves out 0 for {up} that gain and {down} that lose ({caption}): {listed}."]
