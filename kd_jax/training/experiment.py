"""The runs of an experiment → one table of results.

    source = prepare(config, 'workdir/demo')
    results = perform(config, 'workdir/demo', source)

Teachers are trained before their students, each run in its own folder. Finished runs are skipped, and interrupted runs
continue.
"""

from collections.abc import Sequence

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from kd_jax import runtime
from kd_jax.config import as_json, teaching_runs
from kd_jax.data.source import Source
from kd_jax.files import checked_path, write_atomically, write_json
from kd_jax.training import clock
from kd_jax.training.plan import make_manifest, run_directory, seeds, training_order
from kd_jax.training.run import Run, check_files, train_runs
from kd_jax.training.scores import PREDICTIONS, score_predictions, scoring_of
from kd_jax.training.session import Session
from kd_jax.training.table import markdown, tabulate
from kd_jax.training.teachers import Teacher, given_folders
from kd_jax.training.terms import TERMS


def perform(
    config: ConfigDict,
    workdir: epath.PathLike,
    source: Source,
    *,
    resume: bool = True,
    profile: bool = False,
    session: Session | None = None,
) -> dict:
    """Trains what is not finished, fuses streams, and writes results.json and results.md into the workdir.

    Args:
      config, workdir: an experiment and its folder, which `plan.prepare` has checked.
      source: from `prepare`.
      resume: False deletes the runs of the config first.
      profile: write a trace of a few steps into a folder `profile` of the first run of each program.
      session: of the program; None in a notebook.

    Raises FloatingPointError if a run diverged. Runs that do not need it are trained first.

    Returns the content of results.json: {'rows': [{'run', 'modality', 'teachers', 'scores': {column: [one per seed]},
    'gain', 'test'}], 'environment', 'config', …}. 'test' holds every measure of every protocol, also per class.
    """
    session = session or Session()
    order, workdir = training_order(config), epath.Path(checked_path(workdir))
    runtime.wait_for_all("the workdir has been checked")
    if not resume and runtime.is_first():
        for name in order:
            (workdir / name).rmtree(missing_ok=True)  # `prepare` has checked that the folder is a run
        (workdir / clock.FILE).unlink(missing_ok=True)
    session.clock.open(workdir)
    runtime.wait_for_all("the workdir is ready")
    scores, scoring = _train(config, workdir, source, session, profile), scoring_of(config, source.info.head)
    for name, streams in config.fusions.items():
        of_seeds = [[run_directory(config, workdir, stream, seed) for stream in streams] for seed in seeds(config)]
        scores[name] = [score_predictions(directories, source, scoring) for directories in of_seeds]
    results = {**tabulate(config, source, scores), "environment": runtime.environment(), "config": as_json(config)}
    if runtime.is_first():
        session.check_workdir()
        for directory in [run_directory(config, workdir, name, seed) for name in order for seed in seeds(config)]:
            check_files(directory, ("config.json", "results.json", *PREDICTIONS.values()))
        results["time"] = clock.read_time(workdir)
        write_json(workdir / "results.json", results)
        write_atomically(workdir / "results.md", markdown(results).encode())
    logging.info("results in %s", workdir / "results.md")
    return results


def _train(
    config: ConfigDict, workdir: epath.Path, source: Source, session: Session, profile: bool
) -> dict[str, list[dict]]:
    """Trains the runs that are not finished, teachers first; returns {run: the content of each seed's results.json}."""
    results: dict[str, list[dict]] = {name: [] for name in config.runs}
    order, failures, untrained = training_order(config), list[str](), set[str]()
    for names in groups(config, order):
        untrained |= {name for name in names if teaching_runs(config, name) & untrained}
        if not (ready := [name for name in names if name not in untrained]):
            continue
        runs = [seeded_run(config, workdir, name, seed, source) for name in ready for seed in seeds(config)]
        try:
            options = {"show_parameters": names[0] == order[0], "profile": profile}
            for run, result in zip(runs, train_runs(config, runs, source, session, **options), strict=True):
                results[run.name].append(result)
        except FloatingPointError as error:
            failures.append(str(error))
            untrained |= {run.name for run in runs if not (run.directory / "results.json").exists()}
    if failures:
        raise FloatingPointError(f"{'; '.join(failures)}; without results: {', '.join(sorted(untrained))}")
    return results


def seeded_run(config: ConfigDict, workdir: epath.Path, name: str, seed: int, source: Source) -> Run:
    """A run of the config with one seed: its folder, its manifest and the folders of its teachers."""

    def make_teacher(entry: str) -> Teacher:
        if entry in config.teachers:
            return Teacher(entry, given_folders(config.teachers[entry]))
        members = config.fusions.get(entry, (entry,))
        return Teacher(entry, tuple(run_directory(config, workdir, member, seed) for member in members))

    directory, manifest = run_directory(config, workdir, name, seed), make_manifest(config, name, seed, source)
    teachers, start = tuple(map(make_teacher, config.runs[name].teachers)), config.runs[name].starts_from
    starts_from = run_directory(config, workdir, start, seed) if start else None
    return Run(name, seed, directory, manifest, teachers, starts_from)


def groups(config: ConfigDict, order: Sequence[str]) -> list[list[str]]:
    """The names of the runs in groups that share a program; the teachers of a group are in earlier groups."""
    found: list[list[str]] = []
    for name in order:
        teachers = teaching_runs(config, name)
        earliest = max((i + 1 for i, group in enumerate(found) if teachers & set(group)), default=0)
        alike = (g for g in found[earliest:] if _program_key(config, g[0]) == _program_key(config, name))
        if (group := next(alike, None)) is None:
            found.append(group := [])
        group.append(name)
    return found


def _program_key(config: ConfigDict, name: str) -> tuple:
    """Equal for runs that can share a program; they differ in seed, weights, learning rate and teachers.

    In a program, every run computes every term, with weight 0 where it does not use the term. The widths of the
    teachers are therefore part of the key, and so are costly terms.
    """

    def width(teacher):  # of a teacher from outside the experiment: its name instead
        return teacher if teacher in config.teachers else config.runs[config.fusions.get(teacher, (teacher,))[0]].hidden

    run = config.runs[name]
    costly = tuple(term for term, weight in run.weights.items() if weight and TERMS[term].costly)
    shape = run.modality, run.filter, run.hidden, run.num_layers
    return *shape, tuple(map(width, run.teachers)), run.balance, costly, str(run.options)
