"""Confusion between classes, before and after distillation.

shares = confusion([probabilities], [labels])          # [C, K], the share of each class's snippets taken for each class
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_jax.analysis import style
from kd_jax.analysis.study import NUM_CLASSES, Drawing, Study
from kd_jax.evaluation.scoring import probabilities

_COLUMNS = 16  # classes that a snippet may be taken for; the sum of all others is one column
_SHOWN_FROM = 0.1  # shares from here on are also written as a number


def confusion(scores: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """Computes the share of the snippets of each class that are taken for each class.

    A snippet of several classes counts once for each. There, the other classes of the snippet are left out, so a class
    is never confused with one that is also right. The class that the snippet is taken for has the highest score.

    Args:
      scores: per video `[T, C]`, or `[T, C + 1]` with the background last, comparable between classes.
      labels: per video `[T, C]`, 0 or 1.

    Returns `[C, C]` or `[C, C + 1]`: row c holds shares that sum to 1; NaN for a class without a snippet.
    """
    num_classes, num_columns = labels[0].shape[1], scores[0].shape[1]
    counts = np.zeros((num_classes, num_columns))
    for table, active in zip(scores, labels, strict=True):
        snippet, class_id = np.nonzero(active)
        rows, others = table[snippet].astype(np.float64), active[snippet] != 0
        others[np.arange(len(others)), class_id] = False
        rows[:, :num_classes][others] = -np.inf
        np.add.at(counts, (class_id, rows.argmax(axis=1)), 1)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)


def most_changed(before: np.ndarray, after: np.ndarray, count: int) -> np.ndarray:
    """Returns the `count` classes that are confused most before and change most, in ascending order.

    They have the largest product of the share that was confused, `1 - before[c, c]`, and the share that is taken for
    another class after than before. If nothing changes, they are those that are confused most. Classes without a
    snippet are left out.
    """
    diagonal = np.diagonal(before[:, : len(before)])
    changed = np.abs(after - before).sum(axis=1) / 2
    interest = (1 - diagonal) * (changed if np.nansum(changed) > 0 else 1)
    order = np.argsort(-interest, kind="stable")  # NaN is last
    return np.sort(order[np.isfinite(interest[order])][:count])


def mean_confusion(study: Study, name: str) -> np.ndarray:
    """Computes `confusion` of a run or fusion on the test videos, the mean over seeds."""
    labels = list(study.labels.values())
    tables = [
        confusion([probabilities(table, study.head) for table in study.logits(name, index).values()], labels)
        for index in range(study.num_seeds)
    ]
    return np.mean(tables, axis=0)


def choose_classes(study: Study) -> list[int]:
    """Returns the classes that figures show: those of the user, or the most interesting ones, see `most_changed`."""
    known = study.experiment.source.info.classes
    if study.classes:
        return [known.index(name) for name in study.classes]
    study.need(vanilla=study.roles.vanilla)
    before = mean_confusion(study, study.roles.vanilla)
    after = mean_confusion(study, study.roles.augmented) if study.roles.augmented else before
    return most_changed(before, after, NUM_CLASSES).tolist()


def choose_columns(tables: Sequence[np.ndarray], classes: Sequence[int], count: int) -> list[int]:
    """Returns the classes, and those that they are most often taken for, up to `count`, in ascending order."""
    num_classes = len(tables[0])
    mass = np.sum([table[list(classes), :num_classes].sum(axis=0) for table in tables], axis=0)
    others = [c for c in np.argsort(-mass, kind="stable").tolist() if c not in classes]
    return sorted([*classes, *others[: max(count - len(classes), 0)]])


def select(table: np.ndarray, classes: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """Selects rows and columns of a confusion; the sum of all other classes and the background are the last columns."""
    num_classes = len(table)
    others = [c for c in range(num_classes) if c not in columns]
    parts = [table[np.ix_(classes, columns)]]
    parts += [table[np.ix_(classes, others)].sum(axis=1, keepdims=True)] if others else []
    parts += [table[classes][:, num_classes:]] if table.shape[1] > num_classes else []
    return np.concatenate(parts, axis=1)


@style.styled
def draw(
    before: np.ndarray, after: np.ndarray, rows: Sequence[str], columns: Sequence[str], titles: Sequence
) -> Figure:
    """Draws two confusions and their difference, `[R, K]` each, with the names of rows and columns."""
    width, height = 0.29 * len(columns), 0.29 * len(rows)
    labels = 0.085 * max(map(len, columns))  # below the matrices, in inches
    figure = style.new_figure(3 * width + 2.0, height + labels + 0.8)
    axes = figure.subplots(1, 3, sharey=True)
    limit = max(0.05, float(np.nanmax(np.abs(after - before))))
    _draw_matrix(axes[0], before, columns, style.SEQUENTIAL, (0, 1))
    _draw_matrix(axes[1], after, columns, style.SEQUENTIAL, (0, 1))
    _draw_matrix(axes[2], after - before, columns, style.DIVERGING + "_r", (-limit, limit))
    for axis, title in zip(axes, (*titles, "change"), strict=True):
        style.write_panel_title(axis, title, "percent" if axis is not axes[2] else "points")
    axes[0].set_yticks(range(len(rows)), [style.readable(name) for name in rows])
    axes[0].set_ylabel("a snippet of")
    axes[1].set_xlabel("is taken for")
    return figure


def _draw_matrix(axis: Axes, table: np.ndarray, columns: Sequence[str], colors: str, limits: tuple[float, float]):
    axis.imshow(table, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="equal", interpolation="nearest")
    signed = limits[0] < 0
    for (row, column), value in np.ndenumerate(table):
        if abs(value) >= (_SHOWN_FROM / 4 if signed else _SHOWN_FROM):
            dark = abs(value) > 0.6 * limits[1]
            text = f"{100 * value:+.0f}" if signed else f"{100 * value:.0f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if dark else style.INK)
    axis.set_xticks(range(len(columns)), [style.readable(name) for name in columns], rotation=90)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def make(study: Study) -> Drawing:
    """Draws the confusion of the plain and of the distilled student, and the change."""
    roles, info = study.roles, study.experiment.source.info
    study.need(vanilla=roles.vanilla, augmented=roles.augmented)
    classes = choose_classes(study)
    tables = [mean_confusion(study, name) for name in (roles.vanilla, roles.augmented)]
    own = [np.nanmean(np.diagonal(table[:, : len(table)])) for table in tables]
    chosen = choose_columns(tables, classes, _COLUMNS)
    before, after = (select(table, classes, chosen) for table in tables)
    rows = [info.classes[c] for c in classes]
    columns = [info.classes[c] for c in chosen] + (["all others"] if len(chosen) < len(info.classes) else [])
    columns += ["background"] if tables[0].shape[1] > len(info.classes) else []
    figure = draw(before, after, rows, columns, [style.readable(n) for n in (roles.vanilla, roles.augmented)])
    table = [
        {"class": row, "taken for": column, roles.vanilla: float(before[i, j]), roles.augmented: float(after[i, j])}
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
    change = after - before
    change[range(len(rows)), [chosen.index(c) for c in classes]] = 0
    i, j = np.unravel_index(np.argmax(np.abs(change)), change.shape)
    overall = f"{roles.vanilla} takes {100 * own[0]:.1f} % of the snippets for their class, {roles.augmented}"
    moved = f"{rows[i]} is taken for {columns[j]} in {100 * before[i, j]:.0f} %, then {100 * after[i, j]:.0f} %"
    return Drawing(figure, table, [f"{overall} {100 * own[1]:.1f} % (mean over classes).", f"Largest change: {moved}."])
