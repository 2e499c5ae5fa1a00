"""Says whether distillation is worth it, and with which weights, before hours are spent.

    kd-jax advise --config=mine.py [--minutes=20] [--workdir=DIR] [--config.FIELD=VALUE …]

It trains the teachers, the plain student and a few distilled students of an experiment: the first distilled run with
the weights of its terms times 0.1, 1 and 3 (soft labels stay as they are), and with soft labels alone. One epoch is
measured, and the minutes decide how many epochs and seeds are trained. Validation videos choose the weights, test
videos show the gain. The same command continues.
"""

import argparse
import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from kd_jax import config as schema
from kd_jax import interrupts
from kd_jax.command_line import Parser, any_path, disk_path, positive
from kd_jax.evaluation.intervals import describe_gain, differences, excludes_zero, paired_interval
from kd_jax.files import write_atomically
from kd_jax.main import begin, fail, lock_workdir, mistakes_end, name_of, read_options
from kd_jax.training import experiment
from kd_jax.training.clock import Clock
from kd_jax.training.diagnosis import early_end
from kd_jax.training.plan import prepare
from kd_jax.training.session import Session
from kd_jax.training.table import for_terminal, markdown
from kd_jax.training.teachers import given_folders, given_run

FACTORS = 0.1, 3.0  # of the weights of the config's distilled run, which is tried unchanged, too
SOFT_LABELS = 0.7  # share of the teacher's probabilities in the labels
FAIR = 0.25  # of the epochs, from which a trial may advise against distillation
SHORT = 0.3  # of the time: an epoch that is shorter is measured twice
SEEDS = 2, 5  # the fewest, and the most if all epochs fit the time


def parser() -> Parser:
    """The options of this command; those that start with `--config.` are fields of the config."""
    options = Parser("kd_jax.advise", __doc__)
    config = "Experiment: a file such as configs/mine.py, or one that kd_jax ships, e.g. tsu."
    options.add_argument("--config", type=disk_path, metavar="FILE[:VARIANT]", help=config)
    minutes = "About how long to train, compiling included; default: 20."
    options.add_argument("--minutes", type=positive, default=20.0, help=minutes)
    options.add_argument("--workdir", type=any_path, help="Folder for the runs; default: workdir/NAME_advice.")
    again = "Train every run anew."
    options.add_argument("--noresume", dest="resume", action="store_false", help=again)
    return options


class Trial(NamedTuple):
    """The experiment that is tried."""

    config: ConfigDict
    options: dict[str, list[str]]  # {distilled run: the options that give the user's own run these weights}


def make_trial(given: ConfigDict, name: str) -> Trial:
    """Makes the teachers, the plain student and the distilled students with several weights.

    Args:
      given: the user's experiment, which is not changed.
      name: of the experiment, for errors.

    Raises ValueError if the experiment has no baseline, no distilled run of its modality, or no validation videos.
    """
    if not given.dataset.validation_fraction:
        remedy = "set dataset.validation_fraction, e.g. --config.dataset.validation_fraction=0.25"
        raise ValueError(f"{name} has no validation videos, which choose weights; {remedy}")
    config, options = schema.from_json(schema.as_json(given)).unlock(), {}
    student, distilled = schema.remove_students(config, name)
    config.fusions.update({title: runs for title, runs in given.fusions.items() if set(runs) <= set(config.runs)})
    for title, run in _make_students(config, student, distilled).items():
        options[title] = list(_changes(f"--config.runs.{student}", distilled.to_dict(), run.to_dict()))
        run.baseline = None  # that of the trial
        schema.add_run(config, title, run)
    return Trial(config, options)


def _make_students(config: ConfigDict, student: str, distilled: ConfigDict) -> dict[str, ConfigDict]:
    """The distilled students: the weights times each factor, and soft labels if all teachers have logits."""
    made = {student: schema.make_run(**distilled.to_dict())}
    for factor in FACTORS:
        run = schema.make_run(**distilled.to_dict())
        others = {term: weight for term, weight in run.weights.items() if term != "soft_labels"}
        run.weights.update({term: float(f"{weight * factor:.3g}") for term, weight in others.items()})
        made[f"{student}_x{factor:g}".replace(".", "p")] = run
    outside = [given_folders(config.teachers[name]) for name in distilled.teachers if name in config.teachers]
    if all(given_run(folder) for folders in outside for folder in folders):
        same = {field: distilled[field] for field in ("teachers", "baseline", "starts_from")}
        mixed = schema.soft_labels(SOFT_LABELS)
        if distilled.balance != "gradient":  # the others mean the same here, and another one is another program
            mixed["balance"] = distilled.balance
        made[f"{student}_soft_labels"] = schema.make_like(distilled, **mixed, **same)
    return made


def _changes(place: str, old: Mapping, new: Mapping) -> Iterator[str]:
    """The options that change the fields of a run from `old` to `new`."""
    for field, value in new.items():
        if isinstance(value, dict):
            yield from _changes(f"{place}.{field}", old[field], value)
        elif value != old[field]:
            yield f"{place}.{field}={value}"


def plan_budget(seconds: float, per_epoch: float, epochs: int, seeds: int) -> tuple[int, int]:
    """Returns how many epochs and seeds fit the time: all epochs first, then more seeds.

    Args:
      seconds: that are left.
      per_epoch: seconds of one epoch of all runs with one seed.
      epochs, seeds: of the experiment; the result has at least one epoch and the seeds of SEEDS.
    """
    fewest, most = (max(seeds, count) for count in SEEDS)
    affordable = int(max(seconds, 0.0) / max(per_epoch, 1e-3))
    if affordable >= epochs * fewest:
        return epochs, min(most, affordable // epochs)
    return max(1, affordable // fewest), fewest


def shorten(config: ConfigDict, epochs: int, seeds: int) -> ConfigDict:
    """Returns the experiment with these numbers of epochs and seeds; its warm-up is shortened in proportion."""
    short = schema.from_json(schema.as_json(config)).unlock()
    warmup = config.training.warmup_epochs * epochs // config.training.epochs
    short.training.update({"epochs": epochs, "warmup_epochs": warmup})
    short.seeds = seeds
    return short.lock()


def recommend(results: Mapping, commands: Mapping[str, str], epochs: int, minutes: float) -> list[str]:
    """Returns paragraphs: whether distillation is worth it, with which weights, and how sure that is.

    Args:
      results: content of results.json of the trial.
      commands: {distilled run: the command that trains it}, that of the config first.
      epochs: of the user's experiment.
      minutes: that the trial was given.
    """
    rows, plain = {row["run"]: row for row in results["rows"]}, results["baseline"]
    validation = {name: float(np.mean(rows[name]["scores"]["validation"])) for name in (plain, *commands)}
    best = max(commands, key=lambda name: validation[name])
    if validation[best] <= validation[plain]:
        none = f"none of the {len(commands)} distilled students is better than {plain} in validation"
        if results["epochs"] < FAIR * epochs or early_end(results):
            return [f"Too short to say: {none}.", *_limits(results, epochs, minutes)]
        return [f"Distillation is not worth it with these weights: {none}.", *_limits(results, epochs, minutes)]
    gain, where = rows[best]["gain"], "on the test videos"
    if gain is None:
        scores = rows[best]["scores"]["validation"], rows[plain]["scores"]["validation"]
        gain, where = differences(*scores), "in validation, which also chose it, so this is optimistic"
    assert gain is not None  # all validation scores exist
    own = next(iter(commands))
    lead = differences(rows[best]["scores"]["validation"], rows[own]["scores"]["validation"])
    over = f" ({describe_gain(lead)} over {own})" if lead and best != own else ""
    shown = f"{best} has the best validation score{over}; its gain over {plain} is {describe_gain(gain)} points {where}"
    if not excludes_zero(paired_interval(gain)):
        unsure = f"Inconclusive: {shown}. The interval contains 0."
        command = f"If you try it, these are the best weights so far:\n\n    {commands[best]}"
        return [unsure, *_limits(results, epochs, minutes), command]
    sure, limits = f"{shown}. The interval excludes 0.", _limits(results, epochs, minutes, unsure=False)
    if np.mean(gain) < 0:
        return [f"Distillation is not worth it: {sure}", *limits]
    return [f"Distillation is worth it: {sure}", *limits, f"Train it with:\n\n    {commands[best]}"]


def _limits(results: Mapping, epochs: int, minutes: float, *, unsure: bool = True) -> list[str]:
    """What the trial does not show, and what would."""
    trained, seeds = results["epochs"], len(results["seeds"])
    short = f"The runs have {trained} of {epochs} epochs and {seeds} seeds"
    if trained < epochs:
        return [f"{short}; more epochs may change this: --minutes={2 * minutes:g}."]
    if late := early_end(results):
        return [f"{short}. {late}"]
    if unsure and seeds < SEEDS[1]:
        return [f"{short}; more seeds narrow the interval: --minutes={2 * minutes:g}."]
    return [f"{short}; more seeds narrow the interval: --config.seeds={2 * seeds}."] if unsure else []


def _perform(config: ConfigDict, workdir: epath.Path, session: Session, resume: bool) -> dict:
    """Trains an experiment and returns its results; a mistake in it ends the program before."""
    with mistakes_end("kd_jax.advise"):
        source = prepare(config, workdir, resume)
    session.clock = Clock()  # each workdir has its own record of time
    return experiment.perform(config, workdir, source, session=session, resume=resume)


def _measure(
    config: ConfigDict, workdir: epath.Path, session: Session, given: argparse.Namespace
) -> tuple[float, float]:
    """Trains one epoch of each run; returns the seconds that are left, and those of an epoch without compiling.

    The first epoch includes work of JAX that is not repeated. If it was short, it is trained again and measured.
    """
    one, budget = shorten(config, 1, 1), 60 * given.minutes
    first = _perform(one, workdir / "first_epoch", session, given.resume)["time"]
    left, per_epoch = budget - first["productive"] - 2 * first["compiling"], first["productive"]  # compiles again
    if per_epoch < SHORT * budget:
        per_epoch = _perform(one, workdir / "second_epoch", session, given.resume)["time"]["productive"]
        left -= per_epoch
    return left, per_epoch


def _advise(
    trial: Trial, epochs: int, seeds: int, given: argparse.Namespace, workdir: epath.Path, session: Session
) -> dict:
    """Measures an epoch and trains the trial; `epochs` and `seeds` are those of the user's experiment."""
    left, per_epoch = _measure(trial.config, workdir, session, given)
    fitting, seeds = plan_budget(left, per_epoch, epochs, seeds)
    what = f"{len(trial.config.runs)} runs, {seeds} seeds, {fitting} of {epochs} epochs"
    logging.info("trains %s: about %.1f minutes and compiling", what, fitting * seeds * per_epoch / 60)
    return _perform(shorten(trial.config, fitting, seeds), workdir / f"{fitting}_epochs", session, given.resume)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`; None reads those of the program."""
    given, overrides = read_options(parser(), argv)
    with contextlib.ExitStack() as stack:
        with mistakes_end("kd_jax.advise"):
            config, session = begin("kd_jax.advise", given.config, overrides, stack)
            trial = make_trial(config, given.config)
            workdir = lock_workdir(given.workdir or f"workdir/{name_of(given.config)}_advice", session, stack)
        command = ["kd-jax", "train", f"--config={given.config}", *(f"--config.{field}" for field in overrides)]
        commands = {name: shlex.join([*command, *options]) for name, options in trial.options.items()}
        try:
            results = _advise(trial, config.training.epochs, config.seeds, given, workdir, session)
            advice = recommend(results, commands, config.training.epochs, given.minutes)
            below = "\n\n".join(["", *advice]) + "\n"
            write_atomically(workdir / "advice.md", (markdown(results, is_trial=True).rstrip() + below).encode())
            print(f"\n{for_terminal(results, is_trial=True).rstrip()}{below}\nSaved in {workdir}/advice.md.")
        except Exception as error:
            fail(error, workdir, session, program="kd_jax.advise")


if __name__ == "__main__":
    interrupts.run("kd_jax.advise", main)
