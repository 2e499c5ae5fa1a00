"""Makes the figures of a finished experiment, from its workdir and its records.

    kd-jax analyse workdir/demo --figures=tsne,saliency

Each figure is a .png with an .svg and its numbers as .csv next to it. docs/analysis.md shows them.
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from kd_jax import interrupts
from kd_jax.analysis.figures import FIGURES, make_figures
from kd_jax.analysis.finished import open_experiment
from kd_jax.command_line import Parser, any_path, disk_path, positive


def parser() -> Parser:
    """The options of this command."""
    options = Parser("kd_jax.analyse", __doc__)
    add = options.add_argument
    add("workdir", metavar="WORKDIR", type=any_path, help="Folder of a finished experiment, e.g. workdir/demo.")
    add("--figures", type=names, help=f"Some of {','.join(FIGURES)} (all).")
    classes = "Names of the classes in tsne and confusion (the 12 that the plain student confuses most and distillation"
    add("--classes", type=names, default=(), help=f"{classes} changes most).")
    add("--perplexity", type=positive, help="Of t-SNE (30); about the number of neighbours that a snippet has.")
    add("--output", type=any_path, help="Folder for the figures (WORKDIR/figures).")
    add("--data_dir", type=disk_path, help="Folder of the records, if they have moved.")
    return options


def names(text: str) -> list[str]:
    """Reads names that commas separate; a repeated name counts once."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise argparse.ArgumentTypeError("give at least one name, and commas between several")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`; None reads those of the program."""
    given = parser().parse_args(argv)
    output = epath.Path(given.output or epath.Path(given.workdir) / "figures")
    try:
        experiment = open_experiment(given.workdir, given.data_dir)
        options = {"classes": given.classes, "perplexity": given.perplexity}
        made = make_figures(experiment, output, given.figures, **options)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.analyse: {error}")
    for name, figure in made.items():
        print(f"{name}: {' '.join(figure.sentences)}")
    if all(figure.path is None for figure in made.values()):
        sys.exit("kd_jax.analyse: none of these figures can be made from this experiment")
    print(f"Saved in {output}, each as .png, .svg and .csv.")


if __name__ == "__main__":
    interrupts.run("kd_jax.analyse", main)
