"""Learning curves: losses, gradient norms and the validation score of every epoch, and what they warn of."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_jax.analysis import style
from kd_jax.analysis.study import Drawing, Roles, Study, Unavailable
from kd_jax.training.diagnosis import disagreements, still_improving
from kd_jax.training.logs import SELECTION

_VALIDATION = f"validation/{SELECTION}"
_HIGHLIGHTED = 6  # runs whose curves are named; the others are grey


def curves(records: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, np.ndarray]:
    """Averages the logs of a run over its seeds.

    Args:
      records: per seed, a record {key: value} per epoch, as in metrics.jsonl.

    Returns {key: `[E]`, the mean over seeds}, NaN for an epoch in which a seed lacks the key. E is the number of epochs
    of the shortest log.
    """
    num_epochs = min(map(len, records), default=0)
    keys = dict.fromkeys(key for seed in records for record in seed for key in record)
    return {
        key: np.array([np.mean([seed[e].get(key, np.nan) for seed in records]) for e in range(num_epochs)])
        for key in keys
    }


@style.styled
def draw(
    logs: Mapping[str, Mapping[str, np.ndarray]],
    best_epochs: Mapping[str, int],
    weights: Mapping[str, float],
    roles: Roles,
) -> Figure:
    """Draws validation score, task loss, the weighted terms of the augmented run and, if kept, gradient norms.

    Args:
      logs: {run: `curves`}.
      best_epochs: {run: best epoch}, marked on the curve; {} for means over seeds, whose best epochs differ.
      weights: {term: factor} of the augmented run, by which its losses and norms are multiplied; 1 = as they are.
    """
    named = [name for name in logs if roles.of(name) != "other"] + [n for n in logs if roles.of(n) == "other"]
    named = named[:_HIGHLIGHTED]
    terms = logs.get(roles.augmented, {})
    weighted = {"task": 1.0, **weights}
    shown = {term: weight * terms[term] for term, weight in weighted.items() if term in terms}
    gradients = {t: weight * terms[f"gradient/{t}"] for t, weight in weighted.items() if f"gradient/{t}" in terms}
    unit = "" if set(weights.values()) == {1.0} else "weight · "
    panels = {"validation frame mAP": _VALIDATION, "task loss": "task"}
    panels = {title: key for title, key in panels.items() if any(key in log for log in logs.values())}
    count = len(panels) + bool(weights and shown) + bool(gradients)
    figure = style.new_figure(3.4 * max(count, 1), 3.8)
    axes = list(np.atleast_1d(figure.subplots(1, max(count, 1))))
    for axis, (title, key) in zip(axes, panels.items(), strict=False):
        _draw_runs(axis, {name: log[key] for name, log in logs.items() if key in log}, named, roles)
        if key == _VALIDATION:
            _mark_best(axis, {name: logs[name][key] for name in named if key in logs[name]}, best_epochs, roles)
        style.write_panel_title(axis, title)
    if weights and shown:
        _draw_terms(axes[len(panels)], shown)
        style.write_panel_title(axes[len(panels)], f"{style.readable(roles.augmented)}: {unit}loss")
    if gradients:
        _draw_terms(axes[-1], gradients)
        style.write_panel_title(axes[-1], f"{unit}gradient at features")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.grid(axis="y")
    _write_legend(axes[0])
    return figure


def _draw_runs(axis: Axes, values: Mapping[str, np.ndarray], named: Sequence[str], roles: Roles) -> None:
    others = [(color, line) for line in ((0, (2, 2)), (0, (8, 2))) for color in style.COLORS[4:]]
    extra = iter(others * len(named))
    for name, curve in sorted(
        values.items(), key=lambda item: named.index(item[0]) if item[0] in named else len(named)
    ):
        epochs, role = np.arange(1, len(curve) + 1), roles.of(name)
        if name not in named:
            label = None if "others" in axis.get_legend_handles_labels()[1] else "others"
            axis.plot(epochs, curve, color="#C4C4C4", linewidth=0.8, label=label, zorder=1)
            continue
        color, line = next(extra) if role == "other" else style.ROLES[role][:2]
        axis.plot(epochs, curve, color=color, linestyle=line, label=style.readable(name), zorder=3)


def _write_legend(axis: Axes) -> None:
    axis.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.2), ncols=2, fontsize=8, columnspacing=1.2)


def _mark_best(axis: Axes, values: Mapping[str, np.ndarray], best: Mapping[str, int], roles: Roles) -> None:
    for name, curve in values.items():
        if name in best:
            epoch, look = best[name], style.ROLES[roles.of(name)]
            axis.plot(epoch, curve[epoch - 1], look.marker, color=look.color, markeredgecolor=style.INK, zorder=4)


def _draw_terms(axis: Axes, values: Mapping[str, np.ndarray]) -> None:
    lines = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
    for i, (term, curve) in enumerate(values.items()):
        color, line = style.COLORS[i % len(style.COLORS)], lines[i % len(lines)]
        axis.plot(np.arange(1, len(curve) + 1), curve, color=color, linestyle=line, label=style.readable(term))
    if all((curve[np.isfinite(curve)] > 0).all() for curve in values.values()):
        axis.set_yscale("log")
    _write_legend(axis)


def make(study: Study) -> Drawing:
    """Draws the learning curves of all runs of an experiment."""
    runs = {name: seeds for name, seeds in study.experiment.runs.items() if all(run.epochs for run in seeds)}
    if not runs:
        raise Unavailable("no run has kept its metrics.jsonl")
    logs = {name: curves([run.epochs for run in seeds]) for name, seeds in runs.items()}
    best = {name: [run.results["best_epoch"] for run in seeds] for name, seeds in runs.items()}
    weights: Mapping[str, float] = {}
    if study.roles.augmented:
        row = study.experiment.row(study.roles.augmented)  # with balance='gradient' a weight multiplies no loss
        weights = {"task": row.get("task_weight", 1.0), **row["weights"]}
        if row["balance"] == "gradient":
            weights = dict.fromkeys(weights, 1.0)
    marked = {name: epochs[0] for name, epochs in best.items() if study.num_seeds == 1}
    figure = draw(logs, marked, weights, study.roles)
    table = [
        {"run": name, "seed": run.seed, "best epoch": run.results["best_epoch"], **record}
        for name, seeds in runs.items()
        for run in seeds
        for record in run.epochs
    ]
    return Drawing(figure, table, _sentences(study, logs, best))


def _sentences(study: Study, logs: Mapping, best: Mapping[str, Sequence[int]]) -> list[str]:
    rows = {row["run"]: row["scores"] for row in study.experiment.results["rows"] if row["run"] in logs}
    gain_of = study.experiment.results["gain_of"]
    scored = {name: scores for name, scores in rows.items() if scores.get("validation") and scores.get(gain_of)}
    validation = {name: float(np.mean(scores["validation"])) for name, scores in scored.items()}
    test = {name: float(np.mean(scores[gain_of])) for name, scores in scored.items()}
    epochs = ", ".join(f"{name} {np.mean(best[name]):.0f} of {len(logs[name]['epoch'])}" for name in list(logs)[:4])
    sentences = [f"Best epoch: {epochs}{', …' if len(logs) > 4 else ''}."]
    lengths = {name: len(log["epoch"]) for name, log in logs.items()}
    if validation and (late := [name for name, epochs in best.items() if still_improving(epochs, lengths[name])]):
        sentences.append(f"Still improving in the last tenth of the epochs, train longer: {', '.join(late)}.")
    differing, pairs = disagreements(validation, test)
    if differing:
        first, second = (max(scores, key=scores.__getitem__) for scores in (validation, test))
        lead = "" if first == second else f": {first} is first in validation, {second} in {gain_of} on the test videos"
        sentences.append(f"Validation and test order {differing} of {pairs} pairs of runs differently{lead}.")
    return sentences
