"""The main job: python -m kd_jax.main --config=configs/demo.py [--workdir=DIR] [--config.FIELD=VALUE …]

Trains the experiment's runs, evaluates them, prints one table. The same command again continues what was interrupted.
"""

import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from kd_jax import runtime
from kd_jax.training import experiment
from kd_jax.training.plan import prepare
from kd_jax.training.table import markdown
from kd_jax.training.terms import TERMS

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, e.g. configs/demo.py or configs/tsu.py:smoke."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the results, gs://… too; default: workdir/<name of the config>."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "In a job of several processes: HOST:PORT of the first, or 'auto' (SLURM, Open MPI, TPU pod)."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator=HOST:PORT.")
_PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0 on.")
_RESUME = flags.DEFINE_bool("resume", True, "Continue what is half done; --noresume trains every run anew.")


def parse_flags(argv):
    """absl's parser, with mistakes in a config told in one sentence instead of a traceback."""

    try:
        return flags.FLAGS(argv)
    except Exception as error:  # a config file is a program: it may raise anything
        sys.exit(f"kd_jax.main: {config_mistake(error, argv)}")


def config_mistake(error: Exception, argv: list[str]) -> str:
    """One sentence: where in the config file or the arguments, what is wrong, what was perhaps meant."""
    text = str(error).strip().removeprefix("Configuration is not available because of an earlier failure to load: ")
    files = [a.partition("=")[2].partition(":")[0] for a in argv if a.startswith("--config=")]
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if files and f.filename.endswith(files[-1])]
    if "Traceback" in text:  # ml_collections quotes the traceback of a config file: the reason stands last
        lines = re.findall(rf'{re.escape(files[-1])}", line (\d+)', text)
        text = text.splitlines()[-1].removeprefix("ValueError: ")
    text = text.replace("\\n", " ").replace("\\", "")
    if unknown := re.search(r'Key "(\S+?)" does not exist', text) or re.match(
        r"""["']*(\w+)["']* Did you mean""", text
    ):
        meant = re.search(r'Did you mean "(\w+)"', text)
        text = f"there is no field {unknown[1]!r}" + (f"; did you mean {meant[1]!r}?" if meant else "")
        text += " (kd_jax/config.py lists them all)"
    elif name := re.fullmatch(r"""["']+(\w+)["']+""", text):
        text = _missing_entry(name[1], "" if lines else " ".join(argv))
    if lines:
        text = f"{files[-1]}, line {lines[-1]}: {text}"
    elif fields := [f for f in (a.partition("=")[0] for a in argv) if f.startswith("--config.") and f not in text]:
        text += f", among {', '.join(fields)}"
    return " ".join(text.split())


def _missing_entry(name: str, flags_given: str) -> str:
    """Why nobody can change what the config does not have."""
    section = re.search(rf"--config\.(?:\w+\.)*?(\w+)\.{name}\b", flags_given)
    section = section and section[1]
    if section in ("weights", "options"):
        return f"there is no distillation term {name!r}; known terms: {', '.join(TERMS)}"
    if section == "runs":
        return f"there is no run {name!r} to change; the config file names the runs"
    wholes = {"teachers": "'DIR'", "published": "'32.8'", "fusions": "('RUN', 'RUN')", "choices": "('RUN', 'RUN')"}
    if section in wholes:
        whole = f"{{{name!r}: {wholes[section]}}}"
        return f'there is no entry {name!r} to change; give the whole, e.g. --config.{section}="{whole}"'
    return f"there is no field {name!r} (kd_jax/config.py lists them all)"


def _name_of(file: str) -> str:
    """Of an experiment, as a folder: `configs/ablation.py:/home/me/mine.py,smoke` is ablation_mine,smoke."""
    path, colon, variant = file.partition(":")
    words = [Path(word).name.removesuffix(".py") for word in variant.split(",")]
    return Path(path).stem + ("_" + ",".join(words) if colon else "")


def _stop(*_):
    """Ctrl-C: out at once, as by a kill, which every file survives; an exception amid JAX or orbax crashes or hangs."""
    os.write(2, b"\nkd_jax.main: interrupted; the same command continues from the last checkpoint\n")
    os._exit(128 + signal.SIGINT)


def main(argv):
    imports, started = time.process_time(), time.perf_counter()  # no clock has run longer: seconds of CPU
    if len(argv) > 1:
        sys.exit(f"kd_jax.main: unexpected argument {argv[1]!r}; options start with --")
    if not flags.FLAGS["config"].present:
        sys.exit("kd_jax.main: name an experiment, e.g. --config=configs/demo.py")
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    if not Path(file.partition(":")[0]).is_file():
        sys.exit(f"kd_jax.main: there is no config file {file}; name one with --config, e.g. configs/demo.py")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored, as for `&`
        signal.signal(signal.SIGINT, _stop)
    try:
        runtime.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.main: {error}")
    devices = time.perf_counter() - started
    workdir = _WORKDIR.value or f"workdir/{_name_of(file)}"
    try:
        source = prepare(_CONFIG.value, workdir, _RESUME.value)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.main: {error}")
    data = time.perf_counter() - started - devices
    logging.info("started: imports %.1f s, devices %.1f s, data %.1f s", imports, devices, data)
    try:
        results = experiment.perform(_CONFIG.value, workdir, source, resume=_RESUME.value)
    except FloatingPointError as error:
        sys.exit(f"kd_jax.main: {error}")
    except Exception as error:
        if _COORDINATOR.value is None:
            raise
        traceback.print_exc()
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(
            f"kd_jax.main: this process of the job failed, or lost another one ({reason}); stop them all, start again: "
            "they continue from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # JAX would wait for the other processes, and abort
    if runtime.is_first():
        print(f"\n{markdown(results)}\nSaved in {workdir}/results.md and results.json.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
