"""All figures of a finished experiment.

    made = make_figures(open_experiment("workdir/demo"), "workdir/demo/figures")
    made["learning_curves"].path, made["learning_curves"].sentences

Each figure is a .png, with an .svg and its numbers as .csv next to it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from kd_jax.analysis import (
    breakdown,
    confusion,
    covariance,
    embedding,
    errors,
    learning_curves,
    per_class,
    saliency,
    sensitivity,
    style,
)
from kd_jax.analysis.finished import FinishedExperiment
from kd_jax.analysis.study import FigureFunction, Study, Unavailable
from kd_jax.files import make_folder
from kd_jax.lock import held


class Figure(NamedTuple):
    """A kind of figure."""

    title: str  # in a report
    make: FigureFunction


FIGURES = {
    "learning_curves": Figure("Learning curves", learning_curves.make),
    "tsne": Figure("Features of snippets (t-SNE)", embedding.make),
    "saliency": Figure("Boundary saliency", saliency.make),
    "covariance": Figure("Covariance of features", covariance.make),
    "sensitivity": Figure("Sensitivity to the weights", sensitivity.make),
    "per_class": Figure("Gain per class", per_class.make),
    "breakdown": Figure("Where the gain comes from", breakdown.make),
    "confusion": Figure("Confusion between classes", confusion.make),
    "errors": Figure("Kinds of false positives", errors.make),
}
OF_TRAINING = ("learning_curves",)  # the figures that need no actions in the test videos


class Made(NamedTuple):
    """A figure that was made, or the reason why it was not."""

    path: epath.Path | None  # of the .png; None if this experiment does not have what the figure shows
    sentences: list[str]  # what its numbers say, or why there is none


def make_figures(
    experiment: FinishedExperiment,
    output: epath.PathLike,
    names: Sequence[str] | None = None,
    *,
    classes: Sequence[str] = (),
    perplexity: float | None = None,
) -> dict[str, Made]:
    """Makes the figures of a finished experiment, and writes OUTPUT/NAME.png, .svg and .csv.

    Args:
      output: the folder, made if it does not exist.
      names: keys of FIGURES; None = all.
      classes: names of the classes that `tsne` and `confusion` show; () = those that the plain student confuses most
        and distillation changes most.
      perplexity: of t-SNE; None = 30, or less where there are few snippets.

    Returns {name: Made}. Raises ValueError for an unknown figure, a class that is unknown or does not occur, or a
    perplexity that is not below the number of snippets; OSError if the folder is in use or cannot be written.
    """
    names = list(FIGURES) if names is None else names
    if unknown := [name for name in names if name not in FIGURES]:
        raise ValueError(f"there is no figure {unknown[0]!r}; known figures: {', '.join(FIGURES)}")
    study, output = Study(experiment, classes, perplexity), epath.Path(output)
    make_folder(output)
    made = {}
    with held(output):
        for name in names:
            try:
                if name not in OF_TRAINING and not experiment.source.scored_videos("test"):
                    raise Unavailable("no test video has an action, so there are no test scores")
                drawing = FIGURES[name].make(study)
            except Unavailable as reason:
                made[name] = Made(None, [f"Not made: {reason}."])
                continue
            style.save(drawing.figure, drawing.table, output / name)
            made[name] = Made(output / f"{name}.png", drawing.sentences)
    return made
