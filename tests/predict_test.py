"""Whole videos are predicted in any batch, and the command predicts videos without annotations."""

import contextlib
import functools
import io
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax
from kd_jax import main, report
from kd_jax import predict as predict_command
from kd_jax.analysis import figures
from kd_jax.data import records, synthetic
from kd_jax.data.batches import Example
from kd_jax.evaluation import formats
from kd_jax.evaluation.proposals import choose
from kd_jax.files import read_arrays
from kd_jax.inference.predict import fuse, run_detector
from kd_jax.models import Detector

ROOT = Path(__file__).parents[1]
SMALL = ["--config.model.hidden=8", "--config.model.num_layers=2"]


def test_batches_and_buckets_change_nothing():
    model = Detector("ss_tcn", num_outputs=3, hidden=8, num_layers=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1, 4)), jnp.ones((1, 1), bool))
    rng = np.random.default_rng(0)
    videos = [rng.standard_normal((n, 4), np.float32) for n in (1, 33, 7, 20)]
    examples = [Example(str(i), v, np.zeros((len(v), 0), np.uint8)) for i, v in enumerate(videos)]
    apply = jax.jit(model.apply)
    expected = [apply(variables, video[None], jnp.ones((1, len(video)), bool)) for video in videos]
    calls = []
    for batch_size, buckets in ((1, 1), (3, 2)):
        options = {"batch_size": batch_size, "num_buckets": buckets, "before_batch": lambda: calls.append(None)}
        outputs = run_detector(model, variables, examples, **options)
        for alone, output in zip(expected, outputs, strict=True):
            np.testing.assert_allclose(output.logits, alone.logits[0], atol=1e-5)
            np.testing.assert_allclose(output.features, alone.features[0], atol=1e-5)
    assert len(calls) == 4 + 2


def test_no_videos_no_outputs():
    assert run_detector(None, {}, [], batch_size=2, num_buckets=2) == []


def test_fusion_is_the_mean_of_logits():
    fused = fuse([{"a": np.array([[1.0, 5.0]])}, {"a": np.array([[3.0, -5.0]])}])
    np.testing.assert_array_equal(fused["a"], [[2.0, 0.0]])
    with pytest.raises(ValueError, match="different videos"):
        fuse([{"a": np.zeros(1)}, {"b": np.zeros(1)}])


def run_command(module, *arguments):
    """Run a command in this process and return its exit code and what a terminal would show."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        code, before = 0, signal.getsignal(signal.SIGINT)
        try:
            module.main(list(arguments))
        except SystemExit as ended:
            code = 1 if isinstance(ended.code, str) else ended.code
            print(ended.code, file=stderr)
        finally:
            signal.signal(signal.SIGINT, before)
    return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("work")
    result = run_command(main, "--config=demo:smoke", f"--workdir={workdir}", "--noreport", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "gain over vanilla_rgb" in result.stdout and not (workdir / "report.html").exists()
    return workdir / "augmented_rgb"


@pytest.mark.slow
def test_a_report_that_cannot_be_written_loses_no_results(run, monkeypatch):
    def fail(workdirs):
        raise OSError("disk full")

    monkeypatch.setattr(report, "write_report", fail)
    result = run_command(main, "--config=demo:smoke", f"--workdir={run.parent}", *SMALL)
    assert result.returncode == 0 and "Saved in" in result.stdout
    remedy = f"The report was not written (OSError: disk full); `kd-jax report {run.parent}` tries again."
    assert result.stdout.splitlines()[-1] == remedy


@pytest.mark.slow
def test_training_ends_with_a_report_that_compares_with_others(run, tmp_path, monkeypatch):
    quick = functools.partial(figures.make_figures, names=["learning_curves"])
    monkeypatch.setattr(report, "make_figures", quick)
    workdir, other = run.parent, tmp_path / "other"
    result = run_command(main, "--config=demo:smoke", f"--workdir={workdir}", *SMALL)
    assert result.stdout.splitlines()[-1] == f"Open {workdir / 'report.html'} in a browser to see them."
    page = (workdir / "report.html").read_text()
    assert len(page) < 5e6 and "augmented_rgb" in page and "data:image/" in page
    shutil.copytree(workdir, other)
    both = run_command(report, str(workdir), str(other), f"--output={tmp_path / 'both.html'}")
    assert both.stdout == f"{tmp_path / 'both.html'}: open it in a browser\n"
    assert f"{workdir.name} / augmented_rgb" in (tmp_path / "both.html").read_text()
    (other / "results.json").unlink()
    gone = run_command(report, str(other))
    assert gone.returncode == 1 and "holds no finished experiment" in gone.stderr


def command(run, features, output, *more):
    return run_command(predict_command, *arguments(run, features, output), *more)


def arguments(run, features, output):
    return [f"--run={run}", f"--features={features}", f"--output={output}"]


def test_command_line_on_a_folder(run, tmp_path):
    size = json.loads((run / "config.json").read_text())["input_size"]
    (tmp_path / "in").mkdir()
    for name, shape in (("one", (30, size)), ("two", (5, 1, 1, size))):
        np.save(tmp_path / "in" / f"{name}.npy", np.random.default_rng(0).standard_normal(shape).astype(np.float16))
    options = [*arguments(run, tmp_path / "in", tmp_path / "out"), "--threshold=0.3"]
    program = [sys.executable, "-m", "kd_jax.predict", *options]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    scores = read_arrays(tmp_path / "out" / "scores.npz")
    assert {name: table.shape[0] for name, table in scores.items()} == {"one": 30, "two": 5}
    assert all((table >= 0).all() and (table <= 1).all() for table in scores.values())
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(found) == predict_count(scores, 0.3)
    assert all(d.keys() == {"video", "class", "start", "end", "score"} and d["end"] > d["start"] for d in found)


def predict_count(scores, threshold):
    """Count the runs of scores at or above the threshold by their first snippets."""
    above = [np.concatenate([np.zeros((1, t.shape[1]), bool), t >= threshold]) for t in scores.values()]
    return sum(int((a[1:] & ~a[:-1]).sum()) for a in above)


def test_a_failed_prediction_leaves_the_files_of_the_one_before(run, tmp_path, monkeypatch):
    rng, size = np.random.default_rng(0), json.loads((run / "config.json").read_text())["input_size"]
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "video.npy", rng.standard_normal((20, size), np.float32))
    output, more = tmp_path / "out", ["--format=native", "--format=webvtt", "--threshold=0.1"]
    assert command(run, tmp_path / "features", output, *more).returncode == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert {path.name for path in before} == {"scores.npz", "detections.json", "video.vtt"}
    np.save(tmp_path / "features" / "video.npy", rng.standard_normal((30, size), np.float32))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(formats, "write_webvtt", fail)
        failed = command(run, tmp_path / "features", output, *more)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"kd_jax.predict: {output} cannot be written (No space left on device); run the")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    (output / "webvtt" / "notes.txt").write_text("mine")
    refused = command(run, tmp_path / "features", output, *more)
    assert f"{output / 'webvtt'} also holds notes.txt, so it is left alone; choose another folder" in refused.stderr
    assert before.items() <= {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}.items()
    (output / "webvtt" / "notes.txt").unlink()
    assert command(run, tmp_path / "features", output, *more).returncode == 0
    assert not any(path.read_bytes() == content for path, content in before.items())
    assert sorted(path.name for path in output.iterdir()) == ["detections.json", "scores.npz", "webvtt"]


def test_command_line_in_official_formats(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    np.save(tmp_path / "one.npy", np.random.default_rng(0).standard_normal((30, config["input_size"]), np.float32))
    options = ["--format=native", "--format=activitynet", "--format=pku_mmd", "--convention=start"]
    result = command(run, tmp_path / "one.npy", tmp_path / "out", "--proposals=multi_threshold", *options)
    assert result.returncode == 0, result.stderr
    scores = formats.read_scores(tmp_path / "out" / "scores.npz")
    rule = choose("multi_threshold", config["head"], convention="start")
    found = rule(scores["one"], config["seconds_per_snippet"])
    assert len(found)
    classes = config["classes"]
    native = formats.read_native(tmp_path / "out" / "detections.json", classes)
    np.testing.assert_array_equal(native["one"], found)
    activitynet = formats.read_activitynet(tmp_path / "out" / "activitynet.json", classes)
    np.testing.assert_array_equal(activitynet["one"], found)
    pku_mmd = formats.read_pku_mmd(tmp_path / "out" / "pku_mmd", len(classes))
    np.testing.assert_allclose(pku_mmd["one"], found)


def test_command_line_on_records_knows_durations(run, tmp_path):
    info, splits = synthetic.make()
    splits["test"] = [
        replace(video, duration=video.duration * (1 + i % 2)) for i, video in enumerate(splits["test"][:4])
    ]
    records.write(tmp_path / "records", info, splits)
    result = command(run, tmp_path / "records", tmp_path / "out", "--proposals=multi_threshold")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("4 videos, ") and "0.64 to 1.28 s a snippet" in result.stdout
    scores = formats.read_scores(tmp_path / "out" / "scores.npz")
    found = formats.read_native(tmp_path / "out" / "detections.json", info.classes)
    rule = choose("multi_threshold", info.head)
    for i, video in enumerate(splits["test"]):
        expected = rule(scores[video.id], 0.64 * (1 + i % 2), duration=video.duration)
        np.testing.assert_allclose(found[video.id], expected)
    result = command(run, tmp_path / "records", tmp_path / "again", "--seconds_per_snippet=1")
    assert result.returncode == 1 and "which know their durations" in result.stderr


@pytest.mark.parametrize(
    "option, message",
    [
        ("--proposals=background", "no background probability"),
        ("--format=charades", "the format charades has 157"),
        ("--format=label_studio", "label_studio needs its frames per second; predict from --video"),
        ("--annotations=a.json", "--annotations would have no effect on --features; leave it out"),
        ("--stride=8", "--stride would have no effect on --features; leave it out"),
        ("--encoder_weights=a.npz", "--encoder_weights would have no effect on --features"),
        ("--split=train", "--split=train would have no effect on"),
        ("--video=a.mp4", "give either --features or --video"),
        ("--run=", "--run must be given; for instance --run="),
        ("--threshold=2", "--threshold: 2 must be a number from 0 to 1"),
        ("--seconds_per_snippet=0", "--seconds_per_snippet: 0 must be a number from 0.001 to 600"),
        ("--seconds_per_snippet=1e7", "--seconds_per_snippet: 1e7 must be a number from 0.001 to 600"),
        ("--batch_size=0", "--batch_size: 0 must be an integer of at least 1"),
        ("--proposal=peaks", "unexpected argument '--proposal=peaks'; did you mean --proposals?"),
    ],
)
def test_command_line_refuses_what_the_run_cannot_give(run, tmp_path, option, message):
    size = json.loads((run / "config.json").read_text())["input_size"]
    np.save(tmp_path / "one.npy", np.zeros((4, size), np.float32))
    result = command(run, tmp_path / "one.npy", tmp_path / "out", option)
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_command_line_lists_every_bad_file(run, tmp_path):
    np.save(tmp_path / "narrow.npy", np.zeros((4, 3), np.float32))
    np.save(tmp_path / "nan.npy", np.full((4, json.loads((run / "config.json").read_text())["input_size"]), np.nan))
    (tmp_path / "text.npy").write_text("no array")
    result = command(run, tmp_path, tmp_path / "out")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "3 problems in the input" in result.stderr
    for name in ("narrow.npy", "nan.npy", "text.npy"):
        assert name in result.stderr
    assert not (tmp_path / "out" / "scores.npz").exists()


def test_command_line_with_an_output_that_cannot_be_made(run, tmp_path):
    np.save(
        tmp_path / "one.npy", np.zeros((4, json.loads((run / "config.json").read_text())["input_size"]), np.float32)
    )
    (tmp_path / "file").touch()
    result = command(run, tmp_path / "one.npy", tmp_path / "file" / "out")
    assert result.returncode == 1 and "cannot be made" in result.stderr and "--output=" in result.stderr


def test_command_line_without_a_run(tmp_path):
    result = command(tmp_path / "none", tmp_path, tmp_path / "out")
    assert result.returncode == 1 and "is no run" in result.stderr and "Traceback" not in result.stderr


def test_a_loaded_run_predicts_what_the_command_writes(run, tmp_path):
    detect = kd_jax.load(run)
    size = json.loads((run / "config.json").read_text())["input_size"]
    assert (detect.input_size, detect.modality, detect.head) == (size, "rgb", "dense")
    features = np.random.default_rng(0).standard_normal((30, size), np.float32).astype(np.float16)  # as in files
    np.save(tmp_path / "one.npy", features)
    assert command(run, tmp_path / "one.npy", tmp_path / "out").returncode == 0
    found = detect(features)
    assert found.shape == (30, len(detect.classes)) and found.dtype == np.float32
    np.testing.assert_array_equal(found, read_arrays(tmp_path / "out" / "scores.npz")["one"])
    np.testing.assert_allclose(detect(jnp.asarray(features, jnp.float32)), found, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table[:, 1:], r"shape \[4, \d+\]; expected \[T, \d+\]"),
        (lambda table: table[None], r"shape \[1, 4, \d+\]; expected"),
        (lambda table: table[:0], r"shape \[0, \d+\]; expected"),
        (lambda table: table.astype(complex), "dtype complex128; expected a real number type"),
        (lambda table: np.where(np.arange(4)[:, None] == 2, np.nan, table), "features of snippet 2 are not finite"),
    ],
)
def test_a_loaded_run_refuses_features_that_it_cannot_read(run, change, message):
    detect = kd_jax.load(run)
    with pytest.raises(ValueError, match=message):
        detect(change(np.zeros((4, detect.input_size), np.float32)))
