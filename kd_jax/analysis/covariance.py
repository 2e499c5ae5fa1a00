"""Correlation matrices of features, and how far they are from those of the two-stream.

distance(channel_correlation(student), channel_correlation(teacher))
spectrum_distance(channel_correlation(student), channel_correlation(teacher))      # any order of channels
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.cluster import hierarchy

from kd_jax.analysis import style
from kd_jax.analysis.saliency import densest_span
from kd_jax.analysis.study import Drawing, Study
from kd_jax.evaluation import intervals

_THRESHOLD = 0.5  # [supp, Figure 5]
_SPAN = 120  # snippets of the drawn matrices
_MOST_SNIPPETS, _MOST_VIDEOS = 1000, 24  # that the numbers read, evenly spaced
MEASURES = {
    "snippets": "snippet form: ‖R − R two-stream‖ / T",
    "snippets at 0.5": "snippet form at 0.5: share of entries that differ",
    "spectrum": "channel form: distance of the sorted eigenvalues, from 0 to 1",
    "channels": "channel form: ‖R − R two-stream‖ / H",
    "channels at 0.5": "channel form at 0.5: share of entries that differ",
}


def channel_correlation(features: np.ndarray) -> np.ndarray:
    """Correlates the channels of `[T, H]` features over time: `[H, H]`; a constant channel has correlation 0."""
    return _gram(features.astype(np.float64).T)


def snippet_correlation(features: np.ndarray) -> np.ndarray:
    """Correlates the snippets of `[T, H]` features over channels: `[T, T]`; a constant snippet has correlation 0."""
    return _gram(features.astype(np.float64))


def _gram(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    constant = length <= 1e-5 * np.linalg.norm(rows, axis=1, keepdims=True)  # as in kd_jax.losses.global_context
    unit = np.where(constant, 0, centred / np.where(constant, 1, length))
    return unit @ unit.T


def distance(matrix: np.ndarray, other: np.ndarray) -> float:
    """Computes `‖A − B‖_F / N` of two `[N, N]` matrices, the root of the loss `global_context`."""
    return float(np.linalg.norm(matrix - other) / len(matrix))


def distance_at(matrix: np.ndarray, other: np.ndarray, threshold: float) -> float:
    """Returns the share of entries that are at or above the threshold in one of two `[N, N]` matrices alone."""
    return float(np.mean((matrix >= threshold) != (other >= threshold)))


def spectrum_distance(matrix: np.ndarray, other: np.ndarray) -> float:
    """Compares the sorted eigenvalues of two `[N, N]` positive semi-definite matrices, each divided by its trace.

    Returns half of the sum of absolute differences, from 0 to 1. It does not depend on the order of the channels, nor
    on any rotation, so it also compares networks that were trained independently. NaN if a matrix is 0.
    """
    spectra = [np.maximum(np.linalg.eigvalsh(each), 0) for each in (matrix, other)]
    if not all(spectrum.sum() > 0 for spectrum in spectra):
        return float("nan")
    return float(np.abs(np.subtract(*(spectrum / spectrum.sum() for spectrum in spectra))).sum() / 2)


def measure(features: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Computes all MEASURES between the `[T, H]` features of one video and those of the reference."""
    stride = -(-len(features) // _MOST_SNIPPETS)
    snippets, other_snippets = (snippet_correlation(each[::stride]) for each in (features, reference))
    channels, other_channels = (channel_correlation(each) for each in (features, reference))
    return {
        "snippets": distance(snippets, other_snippets),
        "snippets at 0.5": distance_at(snippets, other_snippets, _THRESHOLD),
        "spectrum": spectrum_distance(channels, other_channels),
        "channels": distance(channels, other_channels),
        "channels at 0.5": distance_at(channels, other_channels, _THRESHOLD),
    }


def cluster_order(matrix: np.ndarray) -> np.ndarray:
    """Returns an order of the channels of an `[H, H]` correlation in which correlated ones are neighbours."""
    return hierarchy.leaves_list(hierarchy.linkage(matrix, "average"))


@style.styled
def draw(features: Mapping[str, np.ndarray], reference: str, notes: Mapping[str, Sequence[str]]) -> Figure:
    """Draws the matrices of each run, a column each: channels and snippets, raw and thresholded.

    Args:
      features: {run: `[T, H]` of one span}.
      reference: the run whose channels are clustered; all runs have its order.
      notes: {run: a text below its channels and one below its snippets}.
    """
    order = cluster_order(channel_correlation(features[reference]))
    kinds = {"channels": lambda f: channel_correlation(f)[np.ix_(order, order)], "snippets": snippet_correlation}
    figure = style.new_figure(2.1 * len(features) + 0.9, 9.2)
    axes = figure.subplots(4, len(features), squeeze=False)
    for column, (run, own) in enumerate(features.items()):
        style.write_panel_title(axes[0, column], style.readable(run))
        for line, (kind, correlate) in enumerate(kinds.items()):
            matrix = correlate(own)
            raw, cut = axes[2 * line, column], axes[2 * line + 1, column]
            image = raw.imshow(matrix, cmap=style.DIVERGING + "_r", vmin=-1, vmax=1, interpolation="nearest")
            cut.imshow(matrix >= _THRESHOLD, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
            cut.set_xlabel(notes[run][line], fontsize=8)
            if column == 0:
                raw.set_ylabel(f"{kind}: correlation")
                cut.set_ylabel(f"{kind}: at least {_THRESHOLD:g}")
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set(visible=True, color=style.GRID)
    for line in (0, 2):
        figure.colorbar(image, ax=axes[line], aspect=12, pad=0.01)
    return figure


def make(study: Study) -> Drawing:
    """Draws the matrices of plain student, teachers, two-stream and augmented student.

    The features of the two-stream are the mean of those of its streams, as where it is a teacher. Its logits are means
    as well. The distances are means over test videos and seeds.
    """
    roles = study.roles
    study.need(vanilla=roles.vanilla, augmented=roles.augmented, two_stream=roles.two_stream)
    names = list(dict.fromkeys((roles.vanilla, *roles.teachers, roles.two_stream, roles.augmented)))
    videos = list(study.labels)
    chosen = videos[:: -(-len(videos) // _MOST_VIDEOS)]
    means: dict[str, dict[str, float]] = {}
    table = []
    for name in (name for name in names if name != roles.two_stream):
        seeds = []
        for index in range(study.num_seeds):
            own, reference = study.outputs(name, index), study.outputs(roles.two_stream, index)
            found = [measure(own[video].features, reference[video].features) for video in chosen]
            seeds.append([np.nanmean([each[key] for each in found]) for key in MEASURES])
        mean, width = intervals.over_seeds(np.array(seeds))
        means[name] = dict(zip(MEASURES, mean.tolist(), strict=True))
        for key, value, half in zip(MEASURES, mean.tolist(), width.tolist(), strict=True):
            row = {"run": name, "distance to": roles.two_stream, "measure": MEASURES[key]}
            table.append(row | {"value": value, "±": half})
    span = densest_span(list(study.labels.values()), _SPAN)
    drawn = {name: study.outputs(name, 0)[videos[span.video]].features[span.start : span.stop] for name in names}
    notes = {
        name: (
            f"channels {value['channels']:.3f}, spectrum {value['spectrum']:.3f}",
            f"snippets {value['snippets']:.3f}",
        )
        for name, value in means.items()
    }
    figure = draw(drawn, roles.two_stream, {**notes, roles.two_stream: ("distances are to this", "")})
    return Drawing(figure, table, _sentences(means, roles.two_stream))


def _sentences(means: Mapping[str, Mapping[str, float]], two_stream: str) -> list[str]:
    def listed(key: str) -> str:
        return ", ".join(f"{name} {values[key]:.3f}" for name, values in means.items())

    return [
        f"Distance to {two_stream}, correlation of snippets: {listed('snippets')}.",
        f"Eigenvalues of the correlation of channels: {listed('spectrum')}.",
        f"Channel by channel, which independent networks do not share: {listed('channels')}.",
    ]
