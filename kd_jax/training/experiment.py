"""A list of runs → one table of results.

    source = prepare(config, 'workdir/demo')
    results = perform(config, 'workdir/demo', source)

Runs are trained teachers first, each in a folder of its own; what is finished is skipped, what is half done goes on.
`prepare` checks the names, numbers, options, data and folders of a config before anything is trained.
"""

from collections.abc import Sequence

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from kd_jax import runtime
from kd_jax.config import teaching_runs
from kd_jax.data.source import Source
from kd_jax.files import write_atomically, write_json
from kd_jax.training.plan import run_directory, seeds, training_order
from kd_jax.training.run import Run, score_predictions, scoring_of, shape_of, train_runs
from kd_jax.training.table import markdown, tabulate
from kd_jax.training.teachers import Teacher, given_folders


def make_run(config: ConfigDict, workdir: epath.Path, name: str, seed: int) -> Run:
    """A run of the experiment, and where it and its teachers are."""

    def teacher(of: str) -> Teacher:
        if of in config.teachers:
            return Teacher(of, given_folders(config.teachers[of]))
        members = config.fusions.get(of, (of,))
        return Teacher(of, tuple(run_directory(config, workdir, member, seed) for member in members))

    start = config.runs[name].starts_from
    return Run(
        name,
        seed,
        run_directory(config, workdir, name, seed),
        tuple(map(teacher, config.runs[name].teachers)),
        run_directory(config, workdir, start, seed) if start else None,
    )


def side_by_side(config: ConfigDict, order: Sequence[str]) -> list[list[str]]:
    """The names of the runs in groups that can train side by side: of equal shape, with teachers in earlier groups."""
    groups: list[list[str]] = []
    for name in order:
        teachers = teaching_runs(config, name)
        earliest = max((i + 1 for i, group in enumerate(groups) if teachers & set(group)), default=0)
        alike = (g for g in groups[earliest:] if shape_of(config, g[0]) == shape_of(config, name))
        if (group := next(alike, None)) is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def perform(config: ConfigDict, workdir: epath.PathLike, source: Source, resume: bool = True) -> dict:
    """Trains what is not finished, fuses streams, and writes results.json and results.md into the workdir.

    Returns:
      {'rows': [{'run', 'modality', 'teachers', 'scores': {column: [one per seed]}, 'gain', 'test'}], …}, as in
      results.json; 'test' holds every measure of every protocol, per class too.
    """
    order, workdir = training_order(config), epath.Path(workdir)
    runtime.wait_for_all("the workdir has been checked")
    if not resume and runtime.is_first():
        for name in order:
            (workdir / name).rmtree(missing_ok=True)  # `prepare` has seen that it is a run's folder
    runtime.wait_for_all("the workdir is ready")
    scores: dict[str, list[dict]] = {name: [] for name in (*config.runs, *config.fusions)}
    for names in side_by_side(config, order):
        runs = [make_run(config, workdir, name, seed) for name in names for seed in seeds(config)]
        results = train_runs(config, runs, source, show_parameters=names[0] == order[0])
        for run, result in zip(runs, results, strict=True):
            scores[run.name].append(result)
    for name, streams in config.fusions.items():
        for seed in seeds(config):
            directories = [run_directory(config, workdir, stream, seed) for stream in streams]
            scores[name].append(score_predictions(directories, source, scoring_of(config)))
    results = tabulate(config, source, scores)
    if runtime.is_first():
        write_json(workdir / "results.json", results)
        write_atomically(workdir / "results.md", markdown(results).encode())
    logging.info("results in %s", workdir / "results.md")
    return results
