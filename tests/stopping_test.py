"""SIGTERM ends a training with everything saved; a full disk or a deleted folder ends it in one sentence."""

import contextlib
import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kd_jax.files import DamagedFileError, read_arrays, read_json, why_not_written
from kd_jax.lock import held
from kd_jax.training import experiment
from kd_jax.training import run as run_module
from kd_jax.training.clock import describe_time, read_time
from kd_jax.training.plan import prepare
from kd_jax.training.session import Session, StopRequested
from tests.experiment_test import tiny_config

ROOT = Path(__file__).parents[1]


class Stopped(Exception):
    pass


class Stopping(Session):
    """Stops when it has been asked `count` times, as if SIGTERM had come before."""

    def __init__(self, count):
        super().__init__()
        self._count = count

    def check_signal(self):
        self._count -= 1
        if self._count == 0:
            raise StopRequested

    def stop(self):
        raise Stopped


@pytest.fixture(autouse=True)
def groups_of_one_two_and_four_steps(monkeypatch):
    monkeypatch.setattr(run_module, "PAUSE", math.inf)


def small_config(**training):
    config = tiny_config(epochs=2, checkpoint_every=2, batch_size=1, **training)  # three steps an epoch
    del config.runs.augmented_rgb, config.runs.flow_teacher, config.fusions.two_stream
    return config


def perform(config, workdir, session=None):
    return experiment.perform(config, workdir, prepare(config, workdir), session=session)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    perform(small_config(), workdir)
    return workdir


def assert_equal(ours, theirs):
    ours, theirs = ours / "vanilla_rgb", theirs / "vanilla_rgb"
    for split in ("validation", "test"):
        a, b = (read_arrays(run / f"predictions_{split}.npz") for run in (ours, theirs))
        assert a.keys() == b.keys()
        for video in a:
            np.testing.assert_array_equal(a[video], b[video])
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (ours, theirs)]
    for entry in [*logs[0], *logs[1]]:
        del entry["seconds"], entry["snippets_per_second"]
    assert logs[0] == logs[1]
    assert read_json(ours / "results.json") == read_json(theirs / "results.json")


def exhaustive(*values):
    return [pytest.param(value, marks=(pytest.mark.slow, pytest.mark.exhaustive)) for value in values]


@pytest.mark.parametrize("data", ["resident", *exhaustive("streamed")])
@pytest.mark.parametrize("count", [1, 2, *exhaustive(3, 4, 5)])
def test_a_stop_within_an_epoch_changes_no_bit(count, data, whole, tmp_path):
    config = small_config(data=data)
    with pytest.raises(Stopped):
        perform(config, tmp_path, Stopping(count))
    run = tmp_path / "vanilla_rgb"
    # Before the first step, within an epoch, before its validation, and the same in the second epoch.
    number = {1: None, 2: 5, 3: 7, 4: 8, 5: 11}[count]  # epoch · 4 + steps
    saved = sorted(path.name for path in run.glob("stopped/*"))
    assert saved == ([f"{number}", f"metrics_{number}.npz"] if number else [])
    with contextlib.suppress(Stopped):
        perform(config, tmp_path, Stopping(2))  # a second stop, in another step
    perform(config, tmp_path)
    assert_equal(tmp_path, whole)
    assert not (run / "stopped").exists()


@pytest.mark.parametrize("damage", ["metrics", *exhaustive("checkpoint", "no metrics")])
def test_a_damaged_stop_is_passed_over(damage, whole, tmp_path, caplog):
    with pytest.raises(Stopped):
        perform(small_config(), tmp_path, Stopping(3))
    (metrics,) = (tmp_path / "vanilla_rgb" / "stopped").glob("*.npz")
    if damage == "checkpoint":
        shutil.rmtree(metrics.parent / "7" / "state")
    elif damage == "metrics":
        metrics.write_bytes(metrics.read_bytes()[:-30])
    else:
        metrics.unlink()
    perform(small_config(), tmp_path)
    assert "stopped/7 is damaged" in caplog.text and "it is passed over" in caplog.text
    assert_equal(tmp_path, whole)


def test_the_time_is_summed_over_restarts(tmp_path):
    with pytest.raises(Stopped):
        perform(small_config(), tmp_path, Stopping(3))
    results = perform(small_config(), tmp_path)
    first, second = read_json(tmp_path / "starts.json")["starts"]
    assert first["unsaved"] == second["unsaved"] == 0 and first["productive"] > 0 and second["before"] > 0
    assert results["time"] == read_time(tmp_path) and results["time"]["restarts"] == 1
    assert results["time"]["lost"] == second["before"]
    assert results["time"]["productive"] == first["productive"] + second["productive"]
    assert perform(small_config(), tmp_path)["time"] == results["time"]  # a start that trains nothing is not a restart
    line = (tmp_path / "results.md").read_text().splitlines()[-1]
    assert line == describe_time(results["time"]) and "; 1 restart cost " in line


@pytest.mark.parametrize(
    "spent, line",
    [
        ((59.4, 20, 0, 0), "Time: 59 s training and evaluation, 20 s compiling; no restart"),
        ((9000, 119, 1, 130), "Time: 2.5 h training and evaluation, 119 s compiling; 1 restart cost 2.17 min"),
        (
            (720000, 7000, 12, 7000),
            "Time: 200 h training and evaluation, 117 min compiling; 12 restarts cost 117 min",
        ),
    ],
)
def test_the_line_on_time(spent, line):
    assert describe_time(dict(zip(("productive", "compiling", "restarts", "lost"), spent, strict=True))) == line


@pytest.mark.parametrize("what", ["workdir", *exhaustive("run", "config.json", "results")])
def test_what_is_deleted_meanwhile_is_there_at_the_end_or_is_an_error(what, whole, tmp_path, monkeypatch):
    """It is deleted before the first epoch is validated, or the results before the table is written."""
    workdir = tmp_path / "work"
    paths = {"run": "vanilla_rgb", "workdir": "", "config.json": "vanilla_rgb/config.json", "results": "vanilla_rgb"}

    def delete(*_):
        path = workdir / paths[what]
        path.unlink() if path.is_file() else shutil.rmtree(path)

    def then(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments: (real(*arguments), delete())[0])

    then(*((experiment, "tabulate") if what == "results" else (run_module, "_validate")))
    session, source = Session(), prepare(small_config(), workdir)
    message = "was deleted or replaced while this program" if what == "workdir" else "was deleted while the experiment"
    with held(workdir) as session.lock, pytest.raises(DamagedFileError, match=message):
        experiment.perform(small_config(), workdir, source, session=session)
    assert what == "config.json" or not (workdir / "vanilla_rgb").exists()
    monkeypatch.undo()
    perform(small_config(), workdir)
    assert_equal(workdir, whole)


def test_why_a_folder_was_not_written(tmp_path):
    page = ValueError(f"RESOURCE_EXHAUSTED: Error writing {tmp_path}/x [OS error 28: ENOSPC No space left on device]")
    assert why_not_written(page, "/other") == "No space left on device"
    chained = RuntimeError("write failed")
    chained.__cause__ = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert why_not_written(chained, tmp_path) == "Disk quota exceeded"
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / "x"))
    assert why_not_written(missing, tmp_path) == "No such file or directory"
    assert why_not_written(missing, "/other") is None and why_not_written(KeyError("x"), tmp_path) is None


@pytest.mark.parametrize("size", exhaustive(1_000, 20_000, 60_000))
def test_a_limit_on_files_ends_in_one_sentence(size, tmp_path):
    command = [sys.executable, "-m", "kd_jax.main", "--config=tests/teacher_and_student.py", f"--workdir={tmp_path}"]
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **limit)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    assert "cannot be written (File too large); the same command continues" in failed.stderr
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "build", *exhaustive("report", "analyse")])
def test_a_limit_on_files_ends_other_commands_in_one_sentence(command, whole, tmp_path):
    run, output = whole / "vanilla_rgb", tmp_path / "output"
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "a.npy", np.ones((9, read_json(run / "config.json")["input_size"]), np.float32))
    more = {
        "report": ["kd_jax.report", f"{whole}", f"--output={output}/report.html"],
        "analyse": ["kd_jax.analyse", str(whole), "--figures=learning_curves"],
        "predict": ["kd_jax.predict", f"--run={run}", f"--features={tmp_path}/features", "--format=pku_mmd"],
        "build": ["data_prep.build", "--dataset=synthetic"],
    }[command]
    more += [] if command == "report" else [f"--output={output}"]
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))}
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
    failed = subprocess.run([sys.executable, "-m", *more], **options, **limit)
    lines = [line for line in failed.stderr.splitlines() if line.startswith(more[0])]
    assert failed.returncode == 1 and "Traceback" not in failed.stderr and len(lines) == 1, failed.stderr
    assert "cannot be written (File too large); " in lines[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "a.npy"]
    subprocess.run([sys.executable, "-m", *more], **options, check=True)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_sigterm_saves_ends_with_143_and_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "kd_jax.main", "--config=tests/teacher_and_student.py", "--noreport"]
    command += ["--config.training.epochs=100", "--config.training.checkpoint_every=80"]
    work = tmp_path / "stopped"
    with subprocess.Popen([*command, f"--workdir={work}"], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        log, deadline = work / "flow_teacher" / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < deadline and not (log.exists() and log.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        started, (_, stderr) = time.monotonic(), process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - started < 25 and "stopped by SIGTERM" in stderr, stderr
    epochs = len(log.read_text().splitlines())
    assert epochs and any((work / "flow_teacher" / "stopped").iterdir())
    for workdir in (work, tmp_path / "whole"):
        done = subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, check=True, capture_output=True, text=True)
        assert (f"continues after epoch {epochs} of 100" in done.stderr) == (workdir == work)
    for path in work.glob("*/predictions_*.npz"):
        ours, theirs = read_arrays(path), read_arrays(tmp_path / "whole" / path.relative_to(work))
        for video in ours:
            np.testing.assert_array_equal(ours[video], theirs[video])
