"""Writes report.html, one page on finished experiments that needs no network and no other file.

    kd-jax report workdir/demo
    kd-jax report workdir/demo workdir/demo_pdan --output=comparison.html

The page holds the results with intervals over seeds, a timeline browser of the test videos, the average precision of
each class, learning curves, the figures of `kd_jax.analyse`, the configs and the versions. Training writes it too.
"""

import sys
from collections.abc import Sequence

from etils import epath

from kd_jax import interrupts, runtime
from kd_jax.analysis.figures import make_figures
from kd_jax.analysis.finished import open_experiment
from kd_jax.analysis.report import make_report
from kd_jax.command_line import Parser, any_path, disk_path
from kd_jax.files import make_folder, write_atomically


def parser() -> Parser:
    """The options of this command."""
    options = Parser("kd_jax.report", __doc__)
    options.add_argument(
        "workdirs", type=any_path, nargs="*", metavar="WORKDIR", help="Folder of a finished experiment."
    )
    output = "The page to write; default: report.html in the workdir, or comparison.html for several."
    options.add_argument("--output", type=any_path, metavar="FILE", help=output)
    options.add_argument("--data_dir", type=disk_path, help="Folder of the records, if they have moved.")
    return options


def write_report(
    workdirs: Sequence[epath.PathLike], output: str | None = None, data_dir: str | None = None
) -> epath.Path:
    """Writes the page on experiments and returns its path.

    Args:
      workdirs: folders of finished experiments.
      output: the file; None = report.html in the workdir, or comparison.html in the current folder for several.
      data_dir: folder of the records, if they have moved.

    Raises FileNotFoundError or ValueError as `open_experiment` does, and OSError if the file cannot be written.
    """
    experiments = [open_experiment(workdir, data_dir) for workdir in workdirs]
    default = "comparison.html" if len(experiments) > 1 else experiments[0].workdir / "report.html"
    path = epath.Path(output or default)
    make_folder(path.parent, "output")
    figures = [make_figures(experiment, experiment.workdir / "figures") for experiment in experiments]
    write_atomically(path, make_report(experiments, figures).encode())
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`; None reads those of the program."""
    options = parser()
    given = options.parse_args(argv)
    if not given.workdirs:
        options.error("name the workdir of a finished experiment, e.g. workdir/demo")
    if len(set(given.workdirs)) < len(given.workdirs):
        options.error("one workdir is named twice; name each once")
    runtime.start()
    try:
        path = write_report(given.workdirs, given.output, given.data_dir)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.report: {error}")
    print(f"{path}: open it in a browser")


if __name__ == "__main__":
    interrupts.run("kd_jax.report", main)
