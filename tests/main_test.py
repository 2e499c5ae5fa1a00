"""The command line: each mistake of a first-time user ends in one sentence."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kd_jax import config as schema
from kd_jax import main
from kd_jax.lock import held

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("as_users_run")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """The shipped configs are found from anywhere; `main` may set what Ctrl-C does."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def mistake(*arguments):
    """Return the sentence with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        main.main(list(arguments))
    assert isinstance(ended.value.code, str) and len(ended.value.code.splitlines()) == 1
    assert ended.value.code.startswith("kd_jax.main: ")
    return ended.value.code


WRONG_TURNS = {
    "no config": ([], "name an experiment"),
    "missing config file": (
        ["--config=configs/nope.py"],
        "there is no config file configs/nope.py; give a PATH.py, or the name of a shipped one: ablation, charades, ",
    ),
    "unknown variant": (["--config=configs/demo.py:smoky"], "unknown config variant 'smoky'"),
    "typo in a field": (
        ["--config=configs/demo.py", "--config.training.epoch=3"],
        "there is no field 'epoch'; did you mean 'epochs'?",
    ),
    "wrong type": (
        ["--config=configs/demo.py", "--config.training.epochs=many"],
        "--config.training.epochs=many: expected an integer",
    ),
    "no value": (["--config=configs/demo.py", "--config.training.epochs"], "write --config.training.epochs=VALUE"),
    "missing data": (["--config=configs/tsu.py"], "data/tsu"),
    "modality": (["--config=configs/demo.py", "--config.runs.flow_teacher.modality=depth"], "no modality 'depth'"),
    "teacher": (
        ["--config=configs/demo.py", "--config.runs.augmented_rgb.teachers=('flou',)"],
        "names 'flou', but no run",
    ),
    "workdir": (["--config=configs/demo.py", f"--workdir={Path(__file__)}/work"], "cannot be written"),
    "scheme": (
        ["--config=configs/demo.py", "--workdir=s3://bucket/work"],
        "must be a path on a disk or gs://BUCKET/PATH",
    ),
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
    "stray argument": (["--config=configs/demo.py", "training.epochs=3"], "unexpected argument 'training.epochs=3'"),
    "digits": (
        ["--config=configs/demo.py", f"--config.training.batch_size={10**4000}"],
        "training.batch_size is a whole number of about 4000 digits; it must be below 9223372036854775808",
    ),
    "more digits": (
        ["--config=configs/demo.py", "--config.training.batch_size=" + "7" * 5000],
        "--config.training.batch_size=77777777777…7777777777777777777: expected an integer",
    ),
    "digits of an option": (
        ["--config=configs/demo.py", "--processes=" + "7" * 5000],
        "--processes: invalid int value: '777777777777777777777777777777777777777…7777777777777777777'",
    ),
    "typo in an option": (["--config=configs/demo.py", "--worcdir=a"], "did you mean --workdir?"),
}


@pytest.mark.parametrize("turn", WRONG_TURNS)
def test_one_sentence_that_says_what_to_do(turn):
    arguments, message = WRONG_TURNS[turn]
    assert message in mistake(*arguments)


@pytest.mark.parametrize("resume", [[], ["--noresume"]])
def test_a_second_experiment_in_one_workdir_is_refused(tmp_path, resume):
    with held(tmp_path):
        message = mistake("--config=configs/demo.py:smoke", f"--workdir={tmp_path}", *resume)
        assert f"{tmp_path} is in use by process {os.getpid()} on " in message
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_program_ends_with_the_sentence_alone():
    command = [sys.executable, "-m", "kd_jax.main", "--config=configs/demo.py", "--config.training.epoch=3"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "there is no field 'epoch'; did you mean 'epochs'?" in result.stderr


@pytest.mark.parametrize(
    "path, text, value",
    [
        ("training.epochs", "80", 80),
        ("training.learning_rate", "1", 1.0),
        ("training.data", "streamed", "streamed"),
        ("model.standardize", "true", True),
        ("model.standardize", "0", False),
        ("model.num_layers", "3", 3),
        ("model.num_layers", "None", None),
        ("evaluation.protocols", "('frame_map', 'event_map')", ("frame_map", "event_map")),
        ("evaluation.protocols", "['frame_map']", ("frame_map",)),
        ("evaluation.protocols", "frame_map", ("frame_map",)),
        ("evaluation.protocols", "()", ()),
        ("runs.augmented_rgb.weights.atomic", "3", 3.0),
        ("runs.augmented_rgb.options.atomic.margin", "1e-1", 0.1),
    ],
)
def test_an_override_has_the_type_of_its_field(path, text, value):
    config = schema.load("demo")
    schema.override(config, path, text)
    for name in path.split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    "path, text, message",
    [
        ("training.epochs", "1.5", "--config.training.epochs=1.5: expected an integer"),
        ("training.epochs", "None", "expected an integer"),
        ("training.learning_rate", "fast", "expected a number"),
        ("model.standardize", "maybe", "expected true or false"),
        ("model.num_layers", "many", "expected an integer"),
        ("evaluation.protocols", "a b", "expected a tuple, e.g. "),
        ("training", "3", "expected a dict, e.g. "),
        ("training.epochs.more", "3", "'epochs' is a value, it has no field 'more'"),
        ("runs.augmented_rgb.weights", "{'boundry': 1}", "there is no field 'boundry'; did you mean 'boundary'?"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(path, text, message):
    config = schema.load("demo")
    with pytest.raises(ValueError, match=re.escape(message)):
        schema.override(config, path, text)
    assert config == schema.load("demo")


def test_a_dict_replaces_entries_and_changes_fields():
    config = schema.load("demo")
    schema.override(config, "fusions", "{'late': ('vanilla_rgb', 'augmented_rgb'), 'early': ('flow_teacher',)}")
    assert list(config.fusions) == ["late", "early"]  # the table keeps this order
    schema.override(config, "runs.augmented_rgb", "{'hidden': 8, 'weights': {'boundary': 7}}")
    run = config.runs.augmented_rgb
    assert (run.hidden, run.weights.boundary, run.weights.atomic) == (8, 7.0, schema.WEIGHTS["atomic"])


def test_a_users_file_precedes_a_shipped_one(tmp_path):
    (tmp_path / "configs").mkdir()
    assert schema.find_file("configs/tsu.py") == schema.FOLDER / "tsu.py"  # the folder alone does not hide ours
    assert schema.find_file("tsu") == schema.FOLDER / "tsu.py"
    (tmp_path / "configs" / "tsu.py").write_text("raise ValueError('mine')")
    assert schema.find_file("configs/tsu.py") == Path("configs/tsu.py")
    assert schema.find_file("tsu") == schema.FOLDER / "tsu.py"
    assert "configs/tsu.py, line 1: mine" in mistake("--config=configs/tsu.py")
    (tmp_path / "tsu").write_text("no config file")
    assert schema.find_file("tsu") == schema.FOLDER / "tsu.py"


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "config.trainig = 4",
            'mine.py, line 5: Key "trainig" does not exist and cannot be added since the config is locked. '
            'Did you mean "training" instead of "trainig"? (kd_jax/config.py lists every field)',
        ),
        ("schema.make_run('rgb', filtr='x')", 'mine.py, line 5: Key "filtr" does not exist '),
        ("schema.make_run('rgb', filtr='x')", 'Did you mean "filter" instead of "filtr"? (kd_jax/config.py lists'),
        ("config.training.epochs = 'many'", "mine.py, line 5: Could not override field 'epochs'"),
        ("undefined", "mine.py, line 5: name 'undefined' is not defined"),
        ("config.(", "mine.py, line 5: invalid syntax"),
    ],
)
def test_a_mistake_in_a_config_file_is_reported_with_its_line(line, message, tmp_path):
    head = "from kd_jax import config as schema\n\ndef get_config():\n    config = schema.get_config()\n"
    (tmp_path / "mine.py").write_text(f"{head}    {line}\n    return config\n")
    assert message in mistake(f"--config={tmp_path / 'mine.py'}")
    (tmp_path / "later.py").write_text(f"{head}    config.seed = 1\n    {line}\n    return config\n")
    assert message.replace("line 5", "line 6").replace("mine", "later") in mistake(f"--config={tmp_path / 'later.py'}")


@pytest.mark.parametrize(
    "returned, message",
    [
        ("None", "config is None; make it with kd_jax.config.get_config"),
        ("ConfigDict()", "config has no field 'dataset'; make it with kd_jax.config.get_config"),
        (
            "changed(runs={'a': {'modality': 'rgb'}})",
            "config.runs.a has no field 'filter'; make it with kd_jax.config.mak",
        ),
        ("changed(runs={'a': 'rgb'})", "config.runs.a is 'rgb'; make it with kd_jax.config.make_run"),
        (
            "changed(training={'epochs': 3})",
            "config.training has no field 'batch_size'; make it with kd_jax.config.get",
        ),
    ],
)
def test_a_config_that_lacks_fields_is_refused(returned, message, tmp_path):
    head = "from ml_collections import ConfigDict\nfrom kd_jax import config as schema\n"
    changed = "def changed(**fields): return ConfigDict({**schema.get_config().to_dict(), **fields})\n"
    (tmp_path / "mine.py").write_text(f"{head}{changed}def get_config(): return {returned}\n")
    for more in ([], ["--config.training.epochs=2"]):
        assert f"mine.py: {message}" in mistake(f"--config={tmp_path / 'mine.py'}", *more)


def test_a_mistake_in_a_file_that_another_one_reads_is_reported_with_that_file(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return undefined\n")
    assert "mine.py, line 2: name 'undefined' is not" in mistake(f"--config=ablation:{tmp_path / 'mine.py'}")


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
    ],
)
def test_an_incomplete_description_of_a_job_is_refused(flags, message):
    assert message in mistake("--config=configs/demo.py:smoke", *flags)


def test_a_job_that_does_not_exist_is_refused():
    command = [sys.executable, "-m", "kd_jax.main", "--config=configs/demo.py:smoke", "--coordinator=auto"]
    message = "no SLURM, Open MPI or TPU job was found; give"
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    "file, folder",
    [
        ("configs/demo.py", "demo"),
        ("configs/demo.py:smoke", "demo_smoke"),
        ("configs/ablation.py:sphere,smoke", "ablation_sphere,smoke"),
        ("configs/ablation.py:/home/me/mine.py,smoke", "ablation_mine,smoke"),
        ("configs/filters.py:utd_mhad:inertial", "filters_utd_mhad_inertial"),
        ("configs/filters.py:/runs/T12:00/mine.py:half,smoke", "filters_mine_half,smoke"),
        ("configs/filters.py:my.python.py", "filters_my.python"),
        ("/home/me/mine.py", "mine"),
    ],
)
def test_every_experiment_has_its_own_folder(file, folder):
    assert main.name_of(file) == folder


@pytest.mark.slow
def test_divergence_ends_in_one_sentence():
    small = ["--config.model.hidden=8", "--config.model.num_layers=2", "--config.training.learning_rate=1e30"]
    assert "diverged in epoch 1" in mistake("--config=configs/demo.py:smoke", *small)


@pytest.mark.slow
def test_an_interruption_ends_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "kd_jax.main", "--config=configs/demo.py:smoke"]
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    endless = [*command, f"--workdir={tmp_path / 'b'}", "--config.training.epochs=100000"]
    endless += ["--config.training.checkpoint_every=1"]  # most of the time is spent on saving
    not_ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # as in the background
    with subprocess.Popen(endless, **options, **not_ignored) as process:
        logs, deadline = tmp_path / "b" / "flow_teacher" / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < deadline and not (logs.exists() and logs.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        killer = threading.Timer(60, process.kill)
        killer.start()
        stderr = process.communicate()[1]
        killer.cancel()
    assert process.returncode == 130 and "the same command continues" in stderr and "Traceback" not in stderr, stderr
