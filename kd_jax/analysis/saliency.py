"""Boundary saliency: how much features change from one snippet to the next, and whether that marks boundaries.

curve = saliency(features)                                     # [T - 1]
contrast([curve], [labels])["ratio"]
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_jax.analysis import style
from kd_jax.analysis.study import Drawing, Study, Unavailable
from kd_jax.evaluation import intervals
from kd_jax.evaluation.metrics.frame_map import average_precision
from kd_jax.video.timeline import show_times

_SPAN = 120  # snippets that the figure shows
_LANES = 8  # classes that it shows


class Span(NamedTuple):
    """Snippets start … stop - 1 of a video."""

    video: int
    start: int
    stop: int


def saliency(features: np.ndarray) -> np.ndarray:
    """Computes `s_t = ‖f_{t+1} − f_t‖₁` of `[T, H]` features: `[T - 1]`, as `kd_jax.losses.boundary` compares it."""
    return np.abs(np.diff(features.astype(np.float64), axis=0)).sum(axis=1)


def boundaries(labels: np.ndarray) -> np.ndarray:
    """Returns `[T - 1]` bool: whether an action starts or ends between snippet t and t + 1 of `[T, C]` labels."""
    return (np.diff(labels.astype(np.int8), axis=0) != 0).any(axis=1)


def widen(marked: np.ndarray, by: int) -> np.ndarray:
    """Marks also the `by` entries before and after each True entry of `[N]`."""
    kernel = np.ones(2 * by + 1)
    return np.convolve(marked.astype(np.float64), kernel)[by : by + len(marked)] > 0.5


def contrast(curves: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, float]:
    """Measures how well saliency marks the pairs of snippets within ±1 snippet of a boundary.

    Args:
      curves: per video `[T - 1]`, the saliency; their scale may be any, the same for all videos.
      labels: per video `[T, C]`.

    Returns:
      `ratio`: mean saliency within ±1 snippet of a boundary over the mean elsewhere.
      `average_precision`: of saliency as a detector of these pairs, all videos ranked together, from 0 to 1.
      `chance`: the share of these pairs, which is the average precision of a random detector.
    """
    near = np.concatenate([widen(boundaries(table), 1) for table in labels])
    values = np.concatenate(curves)
    elsewhere = values[~near].mean() if (~near).any() else np.nan
    precision = average_precision(values[:, None], near[:, None].astype(np.uint8))[0]
    return {
        "ratio": float(values[near].mean() / elsewhere) if near.any() else float("nan"),
        "average_precision": float(precision),
        "chance": float(near.mean()),
    }


def densest_span(labels: Sequence[np.ndarray], length: int) -> Span:
    """Finds the span of at most `length` snippets with the most boundaries; the first of several."""
    best, most = Span(0, 0, min(length, len(labels[0]))), -1
    for video, table in enumerate(labels):
        size = min(length, len(table))
        total = np.concatenate([[0, 0], np.cumsum(boundaries(table))])  # total[t]: between snippets 0 … t - 1
        counts = total[size:] - total[1 : len(total) - size + 1]
        if len(counts) and counts.max() > most:
            start, most = int(counts.argmax()), int(counts.max())
            best = Span(video, start, start + size)
    return best


@style.styled
def draw(
    curves: Mapping[str, np.ndarray],
    roles: Mapping[str, str],
    labels: np.ndarray,
    names: Sequence[str],
    times: np.ndarray,
    notes: Mapping[str, str],
) -> Figure:
    """Draws a curve per run over a span, and the actions below.

    Args:
      curves: {run: `[T - 1]` saliency}.
      roles: {run: key of `style.ROLES`}.
      labels: `[T, C]` of the span; the classes with the most snippets are drawn.
      names: of the C classes.
      times: `[T]` seconds, of the snippets.
      notes: {run: text at the right of its title}.
    """
    counts = labels.sum(axis=0, dtype=np.int64)
    shown = np.sort(np.argsort(-counts, kind="stable")[: min(_LANES, int((counts > 0).sum()))])
    heights = [1.0] * len(curves) + [0.22 * len(shown) + 0.1]
    figure = style.new_figure(8.6, 1.25 * sum(heights) + 0.7)
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    between = (times[1:] + times[:-1]) / 2
    marks = between[boundaries(labels)]
    for axis, (run, curve) in zip(axes, curves.items(), strict=False):
        look = style.ROLES[roles[run]]
        for mark in marks:
            axis.axvline(mark, color=style.GRID, linewidth=0.8, zorder=0)
        axis.fill_between(between, curve, color=look.color, alpha=0.18, linewidth=0)
        axis.plot(between, curve, color=look.color, linestyle="-", linewidth=1.3)
        style.write_panel_title(axis, style.readable(run), notes.get(run, ""))
        axis.set_ylim(0, None)
        axis.locator_params(axis="y", nbins=3, integer=True)
    axes[0].set_ylabel("saliency / mean")
    _draw_actions(axes[-1], labels[:, shown], [names[c] for c in shown], times)
    for mark in marks:
        axes[-1].axvline(mark, color=style.GRID, linewidth=0.8, zorder=0)
    show_times(axes[-1], times[-1], start=times[0])
    return figure


def _draw_actions(axis: Axes, labels: np.ndarray, names: Sequence[str], times: np.ndarray) -> None:
    step = times[1] - times[0]
    for lane, column in enumerate(labels.T):
        edges = np.flatnonzero(np.diff(np.pad(column.astype(np.int8), 1)))
        bars = [(times[0] + (a - 0.5) * step, (b - a) * step) for a, b in edges.reshape(-1, 2)]
        axis.broken_barh(bars, (lane + 0.15, 0.7), facecolors=style.MUTED)
    axis.set_ylim(len(names), 0)
    axis.set_yticks(np.arange(len(names)) + 0.5, [style.readable(name) for name in names])
    axis.tick_params(axis="y", length=0)
    style.write_panel_title(axis, "ground truth")


def make(study: Study) -> Drawing:
    """Draws the saliency of teachers, plain and augmented student over the span with the most boundaries."""
    study.need(vanilla=study.roles.vanilla)
    labels, names = list(study.labels.values()), study.roles.compared()
    if not any(boundaries(table).any() for table in labels):
        raise Unavailable("no action of the test videos starts or ends between two snippets")
    span = densest_span(labels, _SPAN)
    curves, measured, table = {}, {}, []
    for name in names:
        seeds = []
        for index in range(study.num_seeds):
            found = [saliency(output.features) for output in study.outputs(name, index).values()]
            seeds.append(contrast(found, labels))
            if index == 0:
                curves[name] = found[span.video][span.start : span.stop - 1] / np.concatenate(found).mean()
        for key in seeds[0]:
            mean, width = intervals.over_seeds(np.array([seed[key] for seed in seeds]))
            measured[name, key] = float(mean)
            table.append({"run": name, "measure": key, "value": float(mean), "±": float(width)})
    video = list(study.labels)[span.video]
    grid, num_snippets = study.truth.grid(video), len(labels[span.video])
    times = grid.start + (np.arange(span.start, span.stop) + grid.label_at) * grid.length / num_snippets
    notes = {
        name: f"at boundaries ×{measured[name, 'ratio']:.2f}, AP {100 * measured[name, 'average_precision']:.0f} %"
        for name in names
    }
    roles = {name: study.roles.of(name) for name in names}
    inside = labels[span.video][span.start : span.stop]
    figure = draw(curves, roles, inside, study.experiment.source.info.classes, times, notes)
    for name, curve in curves.items():
        for time, value in zip(((times[1:] + times[:-1]) / 2).tolist(), curve.tolist(), strict=True):
            table.append({"run": name, "measure": f"saliency / mean, {video}", "value": value, "seconds": time})
    return Drawing(figure, table, _sentences(names, measured, study.experiment.results["test_videos"]))


def _sentences(names: Sequence[str], measured: Mapping[tuple[str, str], float], num_videos: int) -> list[str]:
    ratios = ", ".join(f"{name} {measured[name, 'ratio']:.2f}" for name in names)
    precisions = ", ".join(f"{name} {100 * measured[name, 'average_precision']:.1f} %" for name in names)
    chance = 100 * measured[names[0], "chance"]
    return [
        f"Saliency within ±1 snippet of a boundary over that elsewhere, {num_videos} test videos: {ratios}.",
        f"Average precision as a detector of boundaries: {precisions}; chance {chance:.1f} %.",
    ]
