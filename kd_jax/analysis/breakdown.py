"""Where the gain comes from: by length of the actions, number of concurrent actions and distance to a boundary.

break_down(scores, cut_snippets(labels, segments, durations, bins), range(5))["distance"]["1"]   # at a boundary
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from kd_jax.analysis import style
from kd_jax.analysis.study import Drawing, Study, Unavailable
from kd_jax.evaluation import intervals
from kd_jax.evaluation.metrics.frame_map import frame_map
from kd_jax.evaluation.metrics.frame_map_breakdown import CONCURRENCY_BINS, cut_by_length
from kd_jax.evaluation.metrics.length_bins import ACTIVITYNET_LENGTH_BINS, THUMOS14_LENGTH_BINS
from kd_jax.evaluation.scoring import ranking_scores

DISTANCE_BINS = {"1": (1, 1), "2": (2, 2), "3–4": (3, 4), "5–8": (5, 8), "9 or more": (9, np.inf)}
_DRAWS, _BUDGET = 30, 1e7  # of the bootstrap; the budget counts scores of a run
_MEAN = "mean_over_present_classes"
Values = dict[str, dict[str, float]]  # {kind: {bin: frame mAP}}
Cut = Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]  # {bin: labels and left_out of `frame_map`}


def distance_to_boundary(labels: np.ndarray) -> np.ndarray:
    """Returns how far each snippet is from the nearest start or end of an action of each class, `[T, C]`, in snippets.

    The last snippet before a boundary and the first one after it have distance 1. The start and the end of the video
    are not boundaries. A class without a boundary is infinitely far.
    """
    num_snippets = len(labels)
    change = np.diff(labels.astype(np.int8), axis=0) != 0  # [T - 1, C]: between snippets t and t + 1
    result = np.full(labels.shape, np.inf)
    index = np.arange(num_snippets)
    for class_id, column in enumerate(change.T):
        places = np.concatenate([[-np.inf], np.flatnonzero(column) + 0.5, [np.inf]])
        following = np.searchsorted(places, index)
        result[:, class_id] = np.minimum(index - places[following - 1], places[following] - index) + 0.5
    return result


def _cut(labels: Sequence[np.ndarray], values: Sequence[np.ndarray], bins: Mapping[str, tuple[float, float]]) -> Cut:
    """Leaves out the snippets whose value, per video `[T, C]` or `[T, 1]`, is not in the bin."""

    def outside(value: np.ndarray, shape: tuple, at_least: float, at_most: float) -> np.ndarray:
        return np.broadcast_to((value < at_least) | (value > at_most), shape)

    return {
        name: (labels, [outside(v, t.shape, *limits) for v, t in zip(values, labels, strict=True)])
        for name, limits in bins.items()
    }


def cut_snippets(
    labels: Sequence[np.ndarray],
    segments: Sequence[np.ndarray],
    durations: Sequence[float],
    length_bins: Mapping[str, tuple[float, float]],
) -> dict[str, Cut]:
    """Finds the snippets of each bin by length, concurrency and distance to a boundary.

    A bin of distances scores a class only on snippets at these distances from a boundary of its own actions, inside or
    outside: the first bin measures boundary precision, the last one classification. The share of positives differs, so
    compare methods within a bin, not bins with each other. There is no published definition.

    Args:
      labels: per video `[T, C]`.
      segments: per video `[N, 3]` rows (class, start, end) in seconds.
      durations: in seconds.
      length_bins: as in `frame_map_by_length`.

    Returns {'length', 'concurrent actions', 'distance': {bin: tables}}.
    """
    concurrent = [(table != 0).sum(axis=1, keepdims=True) for table in labels]
    return {
        "length": cut_by_length([table.shape for table in labels], segments, durations, bins=length_bins),
        "concurrent actions": _cut(labels, concurrent, CONCURRENCY_BINS),
        "distance": _cut(labels, [distance_to_boundary(table) for table in labels], DISTANCE_BINS),
    }


def break_down(scores: Sequence[np.ndarray], cut: Mapping[str, Cut], videos: Sequence[int] | np.ndarray) -> Values:
    """Computes frame mAP in each bin of `cut_snippets`, over the videos at these indices, some of which may repeat.

    Args:
      scores: per video `[T, C]`.

    Returns {'length', 'concurrent actions', 'distance': {bin: percent}}.
    """
    own = [scores[v] for v in videos]

    def measure(labels: Sequence[np.ndarray], left_out: Sequence[np.ndarray]) -> float:
        return frame_map(own, [labels[v] for v in videos], left_out=[left_out[v] for v in videos])[_MEAN]

    return {kind: {name: measure(*tables) for name, tables in bins.items()} for kind, bins in cut.items()}


def choose_length_bins(segments: Sequence[np.ndarray]) -> Mapping[str, tuple[float, float]]:
    """Returns the published bins that suit the actions: those of ActivityNet if half of them last more than 18 s."""
    table = np.concatenate(segments)
    is_long = len(table) > 0 and np.median(table[:, 2] - table[:, 1]) > 18
    return ACTIVITYNET_LENGTH_BINS if is_long else THUMOS14_LENGTH_BINS


@style.styled
def draw(
    values: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    roles: Mapping[str, str],
    gains: Mapping[str, tuple[np.ndarray, np.ndarray]],
    bins: Mapping[str, Sequence[str]],
    titles: Mapping[str, str],
    caption: str,
) -> Figure:
    """Draws a panel per kind with the frame mAP of each run in each bin, and the gain above.

    Args:
      values: {kind: {run: (means `[B]`, half-widths of the intervals `[B]`)}}.
      roles: {run: key of `style.ROLES`}.
      gains: {kind: (means, half-widths)} of the augmented run over the plain one.
      bins: {kind: names of the B bins}.
      titles: {kind: title}.
      caption: what the intervals are.
    """
    sizes = [len(bins[kind]) + 0.5 for kind in values]
    figure = style.new_figure(0.68 * sum(sizes) + 0.8, 3.9)
    axes = np.atleast_1d(figure.subplots(1, len(values), sharey=True, width_ratios=sizes))
    for axis, (kind, runs) in zip(axes, values.items(), strict=True):
        places = np.arange(len(bins[kind]))
        for number, (run, (means, widths)) in enumerate(runs.items()):
            look, shift = style.ROLES[roles[run]], 0.22 * (number - (len(runs) - 1) / 2)
            options = {"color": look.color, "capsize": 2, "label": style.readable(run), "zorder": 3}
            axis.errorbar(places + shift, means, np.nan_to_num(widths), fmt=look.marker, **options)
        for place, mean, half in zip(places, *gains[kind], strict=True):
            if np.isfinite(mean):
                text = f"{mean:+.1f}" + ("" if np.isnan(half) else f"\n±{half:.1f}")
                weight = "bold" if abs(mean) > half else "normal"
                where = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
                axis.annotate(text, (place, 1.01), fontsize=7.5, fontweight=weight, **where)
        axis.set_xticks(places, bins[kind])
        axis.set_xlim(-0.6, len(places) - 0.4)
        axis.set_title(titles[kind], loc="left", pad=24)
        axis.grid(axis="y")
    axes[0].set_ylabel("frame mAP, percent")
    axes[0].set_ylim(0, None)
    style.write_legend_and_caption(figure, axes[0], caption)
    return figure


def make(study: Study) -> Drawing:
    """Draws the frame mAP of teachers, plain and augmented student by length, concurrency and distance."""
    roles, truth = study.roles, study.truth
    study.need(vanilla=roles.vanilla, augmented=roles.augmented)
    names, labels = roles.compared(), list(study.labels.values())
    segments, durations = truth.relative(study.labels)
    length_bins = choose_length_bins(segments)
    cut = cut_snippets(labels, segments, durations, length_bins)

    def scores_of(name: str, index: int) -> list[np.ndarray]:
        return [ranking_scores(table, study.head) for table in study.logits(name, index).values()]

    every = range(len(labels))
    found = {name: [break_down(scores_of(name, i), cut, every) for i in range(study.num_seeds)] for name in names}
    kinds = {
        kind: bins
        for kind, values in found[names[0]][0].items()
        if len(bins := [name for name, value in values.items() if np.isfinite(value)]) > 1  # some bins are empty
    }
    if not kinds:
        raise Unavailable("all actions have one length, one distance to a boundary and no concurrent ones")
    arrays = {
        name: {kind: np.array([[values[kind][b] for b in bins] for values in seeds]) for kind, bins in kinds.items()}
        for name, seeds in found.items()
    }
    values = {kind: {name: intervals.over_seeds(arrays[name][kind]) for name in names} for kind in kinds}
    gains = {kind: intervals.over_seeds(arrays[roles.augmented][kind] - arrays[roles.vanilla][kind]) for kind in kinds}
    how = intervals.describe_seeds(study.num_seeds)
    if study.num_seeds == 1:
        cost = sum(map(np.size, labels))
        bootstrap = intervals.Bootstrap.within(_BUDGET, cost, len(labels), at_most=_DRAWS)
        pair = [scores_of(name, 0) for name in (roles.augmented, roles.vanilla)]
        gains, how = _with_intervals(gains, pair, cut, kinds, bootstrap), str(bootstrap)
    titles = {
        "length": "length of the action, s",
        "concurrent actions": "concurrent actions",
        "distance": "snippets to a boundary",
    }
    shown = {**kinds, "length": [f"{name}\n{_limits(length_bins[name])}" for name in kinds.get("length", [])]}
    caption = f"above: gain over {style.readable(roles.vanilla)}, {how}"
    figure = draw(values, {name: roles.of(name) for name in names}, gains, shown, titles, caption)
    table = [
        {"by": kind, "bin": name, **{run: float(values[kind][run][0][b]) for run in names}}
        | {"gain": float(gains[kind][0][b]), "±": float(gains[kind][1][b])}
        for kind, bins in kinds.items()
        for b, name in enumerate(bins)
    ]
    return Drawing(figure, table, _sentences(kinds, gains))


def _with_intervals(
    gains: Mapping, pair: Sequence, cut: Mapping[str, Cut], kinds: Mapping, bootstrap: intervals.Bootstrap
) -> dict:
    """Adds intervals over the test videos to the gains of one seed."""

    def gain(videos: np.ndarray) -> np.ndarray:
        after, before = (break_down(scores, cut, videos) for scores in pair)
        return np.concatenate([[after[k][b] - before[k][b] for b in bins] for k, bins in kinds.items()])

    edges = np.cumsum([len(means) for means, _ in gains.values()])[:-1]
    parts = np.split(bootstrap.half_width(gain), edges)
    return {kind: (means, half) for (kind, (means, _)), half in zip(gains.items(), parts, strict=True)}


def _limits(limits: tuple[float, float]) -> str:
    low, high = limits
    return f"> {low:g}" if high == np.inf else f"≤ {high:g}" if low == 0 else f"{low:g}–{high:g}"


def _sentences(kinds: Mapping[str, Sequence[str]], gains: Mapping) -> list[str]:
    lines = []
    for kind, bins in kinds.items():
        means, widths = gains[kind]
        present = [b for b in range(len(bins)) if np.isfinite(means[b])]
        listed = ", ".join(f"{bins[b]} {intervals.signed(means[b], widths[b])}" for b in present)
        lines.append(f"Gain in frame mAP by {kind}: {listed}.")
    return lines
