"""Trains the runs of an experiment, evaluates them, prints one table and writes a report.

    kd-jax train --config=demo [--workdir=DIR] [--config.FIELD=VALUE …]

The same command continues an experiment that was interrupted.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from kd_jax import config as schema
from kd_jax import interrupts, runtime
from kd_jax.command_line import Parser, any_path, disk_path, shorten
from kd_jax.data import synthetic
from kd_jax.data.source import Source
from kd_jax.files import DamagedFileError, checked_path, why_not_written
from kd_jax.lock import held
from kd_jax.training import experiment
from kd_jax.training.diagnosis import best_student
from kd_jax.training.plan import check_config, open_workdir, prepare
from kd_jax.training.session import Session
from kd_jax.training.table import for_terminal


def parser() -> Parser:
    """The options of this command; those that start with `--config.` are fields of the config."""
    options = Parser("kd_jax.main", __doc__)
    add = options.add_argument
    config = "Experiment: a file such as configs/mine.py:smoke, or one that kd_jax ships, e.g. tsu."
    add("--config", type=disk_path, metavar="FILE[:VARIANT]", help=config)
    add("--workdir", type=any_path, help="Folder for the results, or gs://…; default: workdir/NAME of the config.")
    coordinator = "In a job of several processes: HOST:PORT of the first, or 'auto' (SLURM, Open MPI, TPU pod)."
    add("--coordinator", help=coordinator)
    add("--processes", type=int, help="Number of processes, with --coordinator=HOST:PORT.")
    add("--process", type=int, help="Index of this process, from 0.")
    add("--noresume", dest="resume", action="store_false", help="Train every run anew.")
    add("--noreport", dest="report", action="store_false", help="Write neither report.html nor figures.")
    profile = "Write a trace of a few steps of each compiled program to WORKDIR/RUN/profile (TensorBoard, Perfetto)."
    add("--profile", action="store_true", help=profile)
    return options


def read_options(options: Parser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options and the overrides of the config, `FIELD=VALUE`; a mistake ends the program."""
    given, rest = options.parse_known_args(argv)
    overrides = [argument.removeprefix("--config.") for argument in rest if argument.startswith("--config.")]
    options.refuse([argument for argument in rest if not argument.startswith("--config.")])
    if not given.config:
        options.error("name an experiment, e.g. --config=demo")
    return given, overrides


def read_config(given: str, overrides: Sequence[str]) -> ConfigDict:
    """Returns the config of `FILE[:VARIANT]` with the overrides `FIELD=VALUE`.

    Raises FileNotFoundError without this file, and ValueError for an error in it or an override that does not fit.
    """
    name, _, variant = given.partition(":")
    path = schema.find_file(name)
    try:
        config = schema.load(name, variant)
        schema.check_complete(config)
    except Exception as error:  # a config file is a program: it may raise anything
        raise ValueError(config_mistake(error, path)) from error
    for field, equals, value in (override.partition("=") for override in overrides):
        if not equals:
            raise ValueError(f"--config.{field} has no value; write --config.{field}=VALUE")
        schema.override(config, field, value)
    return config


def config_mistake(error: Exception, path: Path) -> str:
    """One sentence on an error that a config file has raised: the file, the line and the reason."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name in ("get_config", "<module>")]
    frames = [frame for frame in frames if frame.filename != schema.__file__]
    file, line = (frames[-1].filename, frames[-1].lineno) if frames else (path, None)
    if isinstance(error, SyntaxError):
        file, line = error.filename or file, error.lineno
    while error.args and isinstance(error.args[0], Exception):  # ml_collections puts one error into another
        error = error.args[0]
    reason = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    reason, listed, rest = reason.partition(" Other fields present")
    if listed:  # all fields of the section follow, and perhaps a guess in the last line
        guess = rest.splitlines()[-1]
        reason += f" {guess}" if guess.startswith("Did you mean") else ""
        reason += " (kd_jax/config.py lists every field)"
    place = f"{file}, line {line}" if line else str(file)
    return " ".join(f"{place}: {reason or type(error).__name__}".split())


def name_of(file: str) -> str:
    """The name of an experiment's folder: `configs/ablation.py:/home/me/mine.py,smoke` becomes ablation_mine,smoke."""
    path, colon, variant = file.partition(":")
    words = [re.sub(r"\.py(?=:|$)", "", Path(word).name).replace(":", "_") for word in variant.split(",")]
    return Path(path).stem + ("_" + ",".join(words) if colon else "")


def fail(
    error: Exception, workdir: epath.Path, session: Session, in_job: bool = False, program: str = "kd_jax.main"
) -> NoReturn:
    """Ends the program with a sentence on an error that the user or the disk has caused; raises any other error.

    A process of a job ends at once; otherwise JAX would wait for the other processes and then abort.
    """
    message = None
    try:
        session.check_workdir()
    except DamagedFileError as lost:
        error = lost
    if isinstance(error, (FloatingPointError, MemoryError, DamagedFileError)):
        message = str(error)
    elif reason := why_not_written(error, workdir):
        message = f"{workdir} cannot be written ({reason}); the same command continues"
    elif isinstance(error, OSError):
        message = str(error) if error.errno is None else f"{error}; the same command continues when this is mended"
    if in_job:
        if not message:
            traceback.print_exc()
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "stop all of them and start them again: they continue from the last checkpoint"
        message = f"this process of the job failed, or lost another one ({message}); {remedy}"
        print(f"{program}: {message}", file=sys.stderr, flush=True)
        os._exit(1)
    if message:
        sys.exit(f"{program}: {message}")
    raise error


def begin(
    program: str, file: str, overrides: Sequence[str], stack: contextlib.ExitStack, job: Sequence = ()
) -> tuple[ConfigDict, Session]:
    """Reads the config and starts JAX; signals are handled until the stack is closed.

    Args:
      program: its name, for messages.
      file, overrides: the config, as in `read_config`.
      stack: of the program.
      job: arguments of `runtime.start`.

    Raises ValueError or OSError, one sentence.
    """
    session = Session(program, launch=time.process_time())  # counts from the launch, so it includes the imports
    interrupts.end_at_once(program, "the same command continues from the last checkpoint")
    stack.enter_context(session.listening())
    config = read_config(file, overrides)
    runtime.start(*job, precision=config.model.dtype)
    check_config(config)
    return config, session


def lock_workdir(folder: str, session: Session, stack: contextlib.ExitStack) -> epath.Path:
    """Makes the workdir and locks it until the stack is closed.

    Raises ValueError or OSError, one sentence; in every process of the job if the workdir is in use.
    """
    workdir, message = open_workdir(folder), ""
    if runtime.is_first():
        try:
            session.lock = stack.enter_context(held(workdir))
        except OSError as error:
            message = str(error)
    if runtime.any_process(bool(message)):
        raise OSError(message or "the first process of the job has reported why it cannot use the workdir")
    return workdir


@contextlib.contextmanager
def mistakes_end(program: str) -> Iterator[None]:
    """Ends the program with the sentence of a ValueError or OSError that the block raises."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"{program}: {shorten(str(error))}")


def _write_report(workdir: epath.Path) -> str:
    """Writes report.html and returns a sentence on it. An error loses nothing, because the results are on disk."""
    try:
        from kd_jax import report  # here because matplotlib and scikit-learn take seconds to import

        logging.info("draws the figures and writes the report")
        return f"Open {report.write_report([workdir])} in a browser to see them."
    except Exception as error:
        if why_not_written(error, workdir):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"The report was not written ({reason}); `kd-jax report {workdir}` tries again."


def _next_step(config: ConfigDict, run: str, workdir: epath.Path, source: Source) -> str:
    """A command, as typed in this shell, that predicts the test videos with `run`; '' without test videos."""
    is_synthetic = source.info.name == "synthetic"
    if not source.videos("test", []) or (is_synthetic and config.runs[run].modality not in synthetic.MODALITIES):
        return ""  # other modalities of a smoke variant are replaced by those of the synthetic set
    is_script = Path(sys.argv[0]).name == "kd-jax"
    name, program = ("kd-jax", sys.argv[0]) if is_script else ("python", sys.executable)
    if shutil.which(name) == program:
        program = name
    elif Path(program).is_relative_to(Path.cwd()):
        program = os.path.relpath(program)
    command = [program, "predict"] if is_script else [program, "-m", "kd_jax.predict"]
    data = source.info.name if is_synthetic else checked_path(config.dataset.data_dir)
    options = [f"--run={workdir / run}", f"--features={data}", "--output=predictions"]
    return f"Next: {shlex.join([*command, *options])}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`; None reads those of the program."""
    imports, started = time.process_time(), time.perf_counter()  # process_time() counts from the launch
    given, overrides = read_options(parser(), argv)
    with contextlib.ExitStack() as stack:
        with mistakes_end("kd_jax.main"):
            job = given.coordinator, given.processes, given.process
            config, session = begin("kd_jax.main", given.config, overrides, stack, job)
            devices = time.perf_counter() - started
            workdir = lock_workdir(given.workdir or f"workdir/{name_of(given.config)}", session, stack)
            source = prepare(config, workdir, given.resume)
        data = time.perf_counter() - started - devices
        logging.info("started: imports %.1f s, devices %.1f s, data %.1f s", imports, devices, data)
        try:
            options = {"resume": given.resume, "profile": given.profile}
            results = experiment.perform(config, workdir, source, session=session, **options)
            if runtime.is_first():
                print(f"\n{for_terminal(results)}\nSaved in {workdir}/results.md (all columns) and results.json.")
                if next_step := _next_step(config, best_student(results), workdir, source):
                    print(next_step)
                if given.report:
                    print(_write_report(workdir))
        except Exception as error:
            fail(error, workdir, session, in_job=given.coordinator is not None)


if __name__ == "__main__":
    interrupts.run("kd_jax.main", main)
