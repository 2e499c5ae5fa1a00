"""The command line: a first-time user's wrong turns end in one sentence."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kd_jax import main

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("as_users_run")

WRONG_TURNS = {
    "no config": ([], "name an experiment"),
    "missing config file": (
        ["--config=configs/nope.py"],
        "kd_jax.main: there is no config file configs/nope.py; name one",
    ),
    "unknown variant": (["--config=configs/demo.py:smoky"], "unknown config variant 'smoky'"),
    "typo in a field": (
        ["--config=configs/demo.py", "--config.training.epoch=3"],
        "there is no field 'epoch'; did you mean 'epochs'?",
    ),
    "wrong type": (["--config=configs/demo.py", "--config.training.epochs=many"], "epochs"),
    "missing data": (["--config=configs/tsu.py"], "data/tsu"),
    "modality": (["--config=configs/demo.py", "--config.runs.flow_teacher.modality=depth"], "no modality 'depth'"),
    "teacher": (
        ["--config=configs/demo.py", "--config.runs.augmented_rgb.teachers=('flou',)"],
        "names 'flou', but no run",
    ),
    "workdir": (["--config=configs/demo.py", "--workdir=setup.cfg/work"], "cannot be written"),
    "scheme": (["--config=configs/demo.py", "--workdir=s3://bucket/work"], "must be a folder or gs://BUCKET/FOLDER"),
    "bucket": (["--config=configs/tsu.py", "--config.dataset.data_dir=gs://b/records"], "records are read from a disk"),
    "typo in a term": (
        ["--config=configs/demo.py", "--config.runs.augmented_rgb.weights.atom=3"],
        "there is no field 'atom'",
    ),
    "form": (["--config=configs/demo.py", "--config.runs.augmented_rgb.options.atomic.form=x"], "form must be one of"),
    "seed": (["--config=configs/demo.py", "--config.seed=-1"], "seed=-1"),
    "entry": (
        ["--config=configs/demo.py", "--config.teachers.pub=DIR"],
        """there is no entry 'pub' to change; give the whole, e.g. --config.teachers="{'pub': 'DIR'}\"""",
    ),
    "method": (
        ["--config=configs/demo.py", "--config.runs.augmented_rgb.weights.mars=50"],
        "there is no distillation term 'mars'; known terms: atomic, ",
    ),
    "run": (["--config=configs/demo.py", "--config.runs.nobody.filter=pdan"], "there is no run 'nobody' to change"),
    "section": (
        ["--config=configs/demo.py", "--config.foo.bar=1"],
        "there is no field 'foo' (kd_jax/config.py lists",
    ),
    "stray argument": (["--config=configs/demo.py", "training.epochs=3"], "unexpected argument"),
}


@pytest.mark.parametrize("turn", WRONG_TURNS)
def test_one_sentence_that_says_what_to_do(turn):
    arguments, message = WRONG_TURNS[turn]
    result = subprocess.run(
        [sys.executable, "-m", "kd_jax.main", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode != 0
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "line, message",
    [
        ("config.trainig = 4", "mine.py, line 5: there is no field 'trainig'; did you mean 'training'? (configs/"),
        ("default.make_run('rgb', filtr='x')", "mine.py, line 5: there is no field 'filtr'; did you mean 'filter'?"),
        ("config.training.epochs = 'many'", "mine.py, line 5: "),
        ("undefined", "mine.py, line 5: name 'undefined' is not defined"),
        ("config.(", "mine.py, line 5"),
    ],
)
def test_a_mistake_in_a_config_file_is_placed(line, message, tmp_path):
    head = "from kd_jax import config as schema\n\ndef get_config():\n    config = schema.get_config()\n"
    (tmp_path / "mine.py").write_text(f"{head}    {line}\n    return config\n")
    result = subprocess.run(
        [sys.executable, "-m", "kd_jax.main", f"--config={tmp_path / 'mine.py'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0 and message in result.stderr and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--processes=2", "--process=0"], "need --coordinator=HOST:PORT"),
        (["--coordinator=localhost:9"], "needs --processes=N and --process=I"),
        (
            ["--coordinator=localhost", "--processes=2", "--process=0"],
            "needs a port, e.g. ",
        ),
        (
            ["--coordinator=localhost:9", "--processes=2", "--process=2"],
            "--process=2 of --processes=2; they are counted from 0",
        ),
        (["--coordinator=auto"], "no SLURM, Open MPI or TPU job was found; say"),
    ],
)
def test_a_job_that_cannot_be_joined(flags, message):
    command = [sys.executable, "-m", "kd_jax.main", "--config=configs/demo.py:smoke", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    "file, folder",
    [
        ("configs/demo.py", "demo"),
        ("configs/demo.py:smoke", "demo_smoke"),
        ("configs/ablation.py:sphere,smoke", "ablation_sphere,smoke"),
        ("configs/ablation.py:/home/me/mine.py,smoke", "ablation_mine,smoke"),
        ("/home/me/mine.py", "mine"),
    ],
)
def test_every_experiment_has_a_folder_of_its_own(file, folder):
    assert main._name_of(file) == folder


@pytest.mark.slow
def test_divergence_and_interruption_end_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "kd_jax.main", "--config=configs/demo.py:smoke"]
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    diverging = [*command, f"--workdir={tmp_path / 'a'}", "--config.training.learning_rate=1e30"]
    result = subprocess.run(diverging, timeout=120, **options)
    assert result.returncode == 1 and "diverged in epoch 1" in result.stderr and "Traceback" not in result.stderr
    endless = [*command, f"--workdir={tmp_path / 'b'}", "--config.training.epochs=100000"]
    endless += ["--config.training.checkpoint_every=1"]  # most of the time goes into saving
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # in the background it is ignored
    with subprocess.Popen(endless, **options, **heard) as process:
        logs, deadline = tmp_path / "b" / "flow_teacher" / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < deadline and not (logs.exists() and logs.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        killer = threading.Timer(60, process.kill)
        killer.start()
        stderr = process.communicate()[1]
        killer.cancel()
    assert process.returncode == 130 and "the same command continues" in stderr and "Traceback" not in stderr, stderr
