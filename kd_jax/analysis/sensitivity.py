"""Gain against the weight of each level, one at a time, and against the number of negatives."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_jax.analysis import style
from kd_jax.analysis.study import Drawing, Study, Unavailable
from kd_jax.config import PUBLISHED_WEIGHTS
from kd_jax.evaluation import intervals

_FEWEST = 3  # values that make a curve
NEGATIVES = "number of negatives N"
_PUBLISHED = {**PUBLISHED_WEIGHTS, NEGATIVES: 1.0}


class Setting(NamedTuple):
    """What a distilled run was trained with."""

    weights: Mapping[str, float]  # {term: weight}
    num_negatives: int  # of the atomic term
    others: object  # all other choices, comparable by ==

    def without(self, parameter: str) -> tuple:
        """Returns all choices but one."""
        weights = {term: weight for term, weight in self.weights.items() if term != parameter and weight}
        return weights, self.num_negatives if parameter != NEGATIVES else None, self.others

    def value(self, parameter: str) -> float:
        """Returns one choice: a weight, 0 if the term is not used, or the number of negatives."""
        return self.num_negatives if parameter == NEGATIVES else self.weights.get(parameter, 0.0)


def find_series(settings: Mapping[str, Setting]) -> dict[str, dict[float, str]]:
    """Finds the runs that differ in one weight, or in the number of negatives, alone.

    Args:
      settings: {run: setting}, of distilled runs.

    Returns {parameter: {value: run}}, sorted by value, for each parameter with at least three values; of several such
    sets of runs the largest, and of these the first.
    """
    series = {}
    for parameter in _PUBLISHED:
        groups: list[dict[float, str]] = []
        keys: list[tuple] = []
        for name, setting in settings.items():
            rest = setting.without(parameter)
            if rest not in keys:
                keys.append(rest)
                groups.append({})
            groups[keys.index(rest)].setdefault(setting.value(parameter), name)
        largest = max(groups, key=len, default={})
        if len(largest) >= _FEWEST:
            series[parameter] = dict(sorted(largest.items()))
    return series


@style.styled
def draw(
    series: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    published: Mapping[str, float],
    metric: str,
    caption: str,
) -> Figure:
    """Draws a panel per parameter.

    Args:
      series: {parameter: (values, mean gains, half-widths of the intervals)}.
      published: {parameter: the value of the paper}, marked by a line.
      metric: what the gain is a gain of.
      caption: what the intervals are.
    """
    figure = style.new_figure(2.9 * len(series) + 0.4, 3.2)
    axes = np.atleast_1d(figure.subplots(1, len(series), sharey=True))
    for axis, (parameter, (values, means, widths)) in zip(axes, series.items(), strict=True):
        places = _on_log_axis(axis, values)
        look = style.ROLES["augmented"]
        axis.errorbar(places, means, np.nan_to_num(widths), fmt=look.marker, color=look.color, capsize=2.5, zorder=3)
        axis.plot(places, means, color=look.color, zorder=2)
        axis.axhline(0, color=style.INK, linewidth=0.8)
        axis.axvline(published[parameter], color=style.MUTED, linestyle=(0, (4, 2)), linewidth=1, zorder=1)
        at_left = published[parameter] <= min(places)
        axis.annotate(
            f"published {published[parameter]:g}",
            (published[parameter], 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(3 if at_left else -2, 0),
            textcoords="offset points",
            rotation=90,
            ha="left" if at_left else "right",
            va="top",
            fontsize=7.5,
        )
        title = parameter if parameter == NEGATIVES else f"weight of {style.readable(parameter)}"
        style.write_panel_title(axis, title)
        axis.grid(axis="y")
    axes[0].set_ylabel(f"gain in {metric}, points")
    figure.supxlabel(caption, fontsize=8.5)
    return figure


def _on_log_axis(axis: Axes, values: Sequence[float]) -> list[float]:
    """Makes the x axis logarithmic, with a place at its left for 0, and returns the places of the values."""
    positive = [value for value in values if value > 0]
    axis.set_xscale("log")
    if len(positive) == len(values):
        if all(value == int(value) for value in values):
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.minorticks_off()
        return list(values)
    zero = min(positive) / 4
    ticks = [10.0**power for power in range(-6, 7) if min(positive) <= 10.0**power <= max(positive)]
    ticks = ticks[:: -(-len(ticks) // 4)]
    axis.set_xticks([zero, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    axis.minorticks_off()
    return [value or zero for value in values]


def make(study: Study) -> Drawing:
    """Draws the gain of the distilled runs that differ in one weight, or in the number of negatives, alone."""
    study.need(vanilla=study.roles.vanilla, augmented=study.roles.augmented)
    rows = {name: study.experiment.row(name) for name in study.roles.distilled}
    rows = {name: row for name, row in rows.items() if row["gain"] is not None and None not in row["gain"]}
    series = find_series({name: _setting(study, name, row) for name, row in rows.items()})
    if not series:
        reason = f"no {_FEWEST} distilled runs differ in the weight of one level, or in the number of negatives, alone"
        raise Unavailable(f"{reason}; `kd-jax train --config=sensitivity:NAME` trains them on the data of NAME")
    curves, table, sentences = {}, [], []
    metric, baseline = study.experiment.results["gain_of"], study.roles.vanilla
    for parameter, runs in series.items():
        found = [intervals.over_seeds(np.array(rows[name]["gain"])) for name in runs.values()]
        means, widths = (np.array(column, np.float64) for column in zip(*found, strict=True))
        curves[parameter] = (list(runs), means, widths)
        for value, name, mean, half in zip(runs, runs.values(), means.tolist(), widths.tolist(), strict=True):
            row = {"parameter": parameter, "value": float(value), "run": name, f"gain over {baseline}": mean}
            table.append(row | {"±": half, "published": _PUBLISHED[parameter]})
        best = int(means.argmax())
        where = f"{list(runs)[best]:.3g}, {intervals.signed(means[best], widths[best])}"
        sentences.append(f"{parameter}: best at {where}; the paper has {_PUBLISHED[parameter]:g}.")
    one_seed = f"gain over {baseline}, one seed, no interval"
    caption = intervals.describe_seeds(study.num_seeds) if study.num_seeds > 1 else one_seed
    figure = draw(curves, _PUBLISHED, metric, caption)
    return Drawing(figure, table, [f"Gain in {metric} over {baseline}.", *sentences])


def _setting(study: Study, name: str, row: Mapping) -> Setting:
    config = study.experiment.runs[name][0].config
    options = {term: dict(chosen) for term, chosen in config["options"].items()}
    negatives = options.get("atomic", {}).pop("num_negatives", 1)
    options = {term: chosen for term, chosen in options.items() if chosen}
    others = (row["balance"], row.get("task_weight", 1.0), row["teachers"], config["filter"], config["model"], options)
    return Setting(row["weights"], int(negatives), others)
