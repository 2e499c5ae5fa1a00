"""t-SNE of snippet features, and two numbers that do not depend on the picture: silhouette and neighbour accuracy.

sample = sample_snippets(labels, classes=[0, 3, 5], per_class=40, seed=0)
features = np.concatenate(...)[sample.row]                     # [N, H]
silhouette(features, sample.class_id), neighbour_accuracy(features, sample.class_id, sample.video)
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.patheffects
import numpy as np
from matplotlib.figure import Figure

from kd_jax.analysis import style
from kd_jax.analysis.confusion import choose_classes
from kd_jax.analysis.study import Drawing, Study, Unavailable
from kd_jax.evaluation import intervals

_PER_CLASS, _NEIGHBOURS = 40, 10
_PANELS = 9  # runs that are drawn; the table has them all
_ITERATIONS = 500  # of t-SNE; a few hundred points do not move after that


class Sample(NamedTuple):
    """Snippets, `[N]` each: their row among all snippets, their video and their class, as indices."""

    row: np.ndarray
    video: np.ndarray
    class_id: np.ndarray


def sample_snippets(labels: Sequence[np.ndarray], classes: Sequence[int], *, per_class: int, seed: int) -> Sample:
    """Draws up to `per_class` snippets of each class.

    A snippet has one colour in the picture, so it can be drawn only if exactly one of `classes` is active. Other
    classes, which the picture does not show, may be active as well.

    Args:
      labels: per video `[T, C]`, 0 or 1.
      seed: of the draw; equal seeds draw equal snippets.

    Returns the sample, sorted by class and row.
    """
    video = np.repeat(np.arange(len(labels)), [len(table) for table in labels])
    active = np.concatenate(labels)[:, list(classes)] != 0
    rng = np.random.default_rng(seed)
    rows, class_ids = [], []
    for column, class_id in enumerate(classes):
        found = np.flatnonzero(active[:, column] & (active.sum(axis=1) == 1))
        rows.append(np.sort(rng.permutation(found)[:per_class]))
        class_ids.append(np.full(len(rows[-1]), class_id))
    row = np.concatenate(rows)
    return Sample(row, video[row], np.concatenate(class_ids))


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Divides each row of `[N, H]` by its length; a row of zeros stays."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def neighbour_accuracy(
    features: np.ndarray, class_id: np.ndarray, video: np.ndarray, *, neighbours: int = _NEIGHBOURS
) -> float:
    """Computes the share of snippets that their nearest neighbours in other videos assign to their class.

    Neighbours are those with the highest cosine. Each votes with its cosine, so a nearer one counts more; a cosine
    below 0 has no vote.

    Args:
      features: `[N, H]`.
      class_id, video: `[N]`, of each snippet.

    Returns a share of the snippets; NaN if no other video has any.
    """
    if len(np.unique(video)) < 2:
        return float("nan")
    rows = unit_rows(features.astype(np.float64))
    cosines = rows @ rows.T
    cosines[video[:, None] == video[None]] = -np.inf
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
    weights = np.maximum(np.take_along_axis(cosines, nearest, axis=1), 0)
    known, column = np.unique(class_id, return_inverse=True)
    votes = np.zeros((len(rows), len(known)))
    np.add.at(votes, (np.arange(len(rows))[:, None], column[nearest]), weights)
    return float(np.mean(votes.argmax(axis=1) == column))


def silhouette(features: np.ndarray, class_id: np.ndarray) -> float:
    """Computes the mean silhouette of the classes in `[N, H]` features, with cosine distances.

    The silhouette of a snippet is `(b - a) / max(a, b)`, with its mean distance a to its own class and b to the nearest
    other class. It is 1 for compact classes, 0 for classes that overlap, and negative if others are nearer.

    References: Rousseeuw, Silhouettes, 1987.
    """
    from sklearn.metrics import silhouette_score  # imported late: it takes a second

    return float(silhouette_score(features, class_id, metric="cosine"))


def project(features: np.ndarray, *, perplexity: float) -> np.ndarray:
    """Computes t-SNE of `[N, H]` features, divided by their lengths, from a PCA start: `[N, 2]`.

    Raises ValueError if the perplexity is not below N.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if perplexity >= len(features):
        raise ValueError(f"--perplexity={perplexity:g} must be below the number of snippets, {len(features)}")
    tsne = TSNE(init="pca", perplexity=perplexity, max_iter=_ITERATIONS, random_state=0)
    with threadpool_limits(1):  # its threads wait for each other: on a busy machine one is many times faster
        return tsne.fit_transform(unit_rows(features).astype(np.float32))


@style.styled
def draw(
    points: Mapping[str, np.ndarray], class_id: np.ndarray, names: Mapping[int, str], notes: Mapping[str, str]
) -> Figure:
    """Draws one panel of points per run.

    Args:
      points: {run: `[N, 2]`}.
      class_id: `[N]`.
      names: {class: name}; each has a colour, a marker and a number, which is also written where its points are.
      notes: {run: text below its panel}.
    """
    columns = len(points) if len(points) < 4 else -(-len(points) // 2) if len(points) < 7 else 3
    lines = -(-len(points) // columns)
    figure = style.new_figure(3.5 * columns, 3.4 * lines + 0.9)
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axis in axes[len(points) :]:
        axis.set_visible(False)
    for axis, (run, places) in zip(axes, points.items(), strict=False):
        for number, class_name in enumerate(names):
            own = places[class_id == class_name]
            look = {"marker": style.MARKERS[number % len(style.MARKERS)], "edgecolors": "white", "linewidths": 0.3}
            label = f"{number + 1}  {style.readable(names[class_name])}"
            axis.scatter(*own.T, s=24, color=style.COLORS[number % len(style.COLORS)], label=label, alpha=0.9, **look)
        halo = [matplotlib.patheffects.withStroke(linewidth=2.5, foreground="white")]
        for number, class_name in enumerate(names):
            if len(own := places[class_id == class_name]):
                center = own[np.argmin(np.linalg.norm(own - np.median(own, axis=0), axis=1))]
                axis.text(*center, str(number + 1), ha="center", va="center", weight="bold", path_effects=halo)
        style.write_panel_title(axis, style.readable(run))
        axis.set_xlabel(notes.get(run, ""), fontsize=8.5)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set(visible=True, color=style.GRID)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2 * columns, 6), handletextpad=0.1)
    return figure


def make(study: Study) -> Drawing:
    """Draws t-SNE of the teachers and of all students for the first seed; the numbers are means over seeds."""
    study.need(vanilla=study.roles.vanilla)
    classes, labels = choose_classes(study), list(study.labels.values())
    names = study.roles.compared(all_distilled=True)
    samples = [sample_snippets(labels, classes, per_class=_PER_CLASS, seed=seed) for seed in range(study.num_seeds)]
    if len(np.unique(samples[0].class_id)) < 2:
        raise Unavailable("fewer than two of the classes have a snippet without another of them")
    points: dict[str, np.ndarray] = {}
    measured, table = {}, []
    for name in names:
        features = [_sampled(study, name, index, sample) for index, sample in enumerate(samples)]
        values = [
            (silhouette(rows, sample.class_id), neighbour_accuracy(rows, sample.class_id, sample.video))
            for rows, sample in zip(features, samples, strict=True)
        ]
        measured[name] = intervals.over_seeds(np.array(values))
        if len(points) < _PANELS:
            points[name] = project(features[0], perplexity=study.perplexity or min(30.0, (len(features[0]) - 1) / 3))
        table.append(_row(name, "", *measured[name]))
    notes = {
        name: f"accuracy of neighbours {100 * mean[1]:.0f} %, silhouette {mean[0]:.2f}"
        for name, (mean, _) in measured.items()
    }
    known = study.experiment.source.info.classes
    figure = draw(points, samples[0].class_id, {c: known[c] for c in classes}, notes)
    for name, places in points.items():
        for place, class_id in zip(places.tolist(), samples[0].class_id, strict=True):
            table.append({"run": name, "class": known[class_id], "x": place[0], "y": place[1]})
    return Drawing(figure, table, _sentences(study, measured, len(classes)))


def _sampled(study: Study, name: str, index: int, sample: Sample) -> np.ndarray:
    return np.concatenate([output.features for output in study.outputs(name, index).values()])[sample.row]


def _row(name: str, class_name: str, mean: np.ndarray, width: np.ndarray) -> dict:
    row: dict[str, object] = {"run": name, "class": class_name, "x": None, "y": None}
    for key, value, half in zip(("silhouette", "neighbour accuracy"), mean, width, strict=True):
        row |= {key: float(value), f"{key} ±": float(half)}
    return row


def _sentences(study: Study, measured: Mapping, num_classes: int) -> list[str]:
    shown = [name for name in study.roles.compared() if name in measured]
    accuracy = ", ".join(f"{name} {100 * measured[name][0][1]:.1f} %" for name in shown)
    separation = ", ".join(f"{name} {measured[name][0][0]:.3f}" for name in shown)
    first = f"Accuracy of the {_NEIGHBOURS} nearest neighbours in other videos among {num_classes} classes: {accuracy}."
    return [first, f"Silhouette: {separation}."]
