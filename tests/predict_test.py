"""Whole videos are predicted in any batch, and the command predicts videos without annotations."""

import contextlib
import functools
import io
import json
import math
import os
import re
import shlex
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
from kd_jax.data.source import open_source
from kd_jax.evaluation import formats
from kd_jax.evaluation.proposals import choose
from kd_jax.files import read_arrays, read_json, write_json
from kd_jax.inference.predict import fuse, run_detector
from kd_jax.lock import held
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


def test_a_threshold_is_suggested(run, tmp_path):
    results, path = read_json(run / "results.json"), tmp_path / "copy" / "results.json"
    assert results["threshold"].keys() == {"threshold", "f1", "default_f1"}
    shutil.copytree(run, path.parent)
    write_json(path, results | {"threshold": {"threshold": 0.21, "f1": 45.25, "default_f1": 38.0}})
    said = command(path.parent, "synthetic", tmp_path / "out").stdout
    assert "In validation, --threshold=0.21 has the best F1 of snippets, 45.2 % instead of 38.0 %" in said
    nothing = command(path.parent, "synthetic", tmp_path / "out", "--threshold=1").stdout
    (highest,) = re.findall(r"No snippet reaches the threshold 1; the highest probability is (0\.\d+) ", nothing)
    table = np.concatenate(list(read_arrays(tmp_path / "out" / "scores.npz").values()))
    assert float(highest) == pytest.approx(table.max(), rel=0.05) and "In validation" not in nothing
    assert "0 detections" in nothing and re.search(r"\(\w+, \d+:\d\d in test_\d+\); --threshold=0.\d+ finds", nothing)
    write_json(path, {key: value for key, value in results.items() if key != "threshold"})  # of an older version
    assert "In validation" not in command(path.parent, "synthetic", tmp_path / "out").stdout


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
    for name in (
        "narrow.npy",
        "nan.npy holds values that are not finite numbers: snippet 0 has nan; repair",
        "text.npy",
    ):
        assert name in result.stderr
    assert not (tmp_path / "out" / "scores.npz").exists()


def test_two_predictions_into_one_folder(run, tmp_path):
    options = [f"--run={run}", "--features=synthetic", f"--output={tmp_path}"]
    with held(tmp_path):
        result = run_command(predict_command, *options)
        assert result.returncode == 1 and not (tmp_path / "scores.npz").exists()
        assert f"kd_jax.predict: {tmp_path} is in use by process {os.getpid()} on " in result.stderr


def test_command_line_with_an_output_that_cannot_be_made(run, tmp_path):
    np.save(
        tmp_path / "one.npy", np.zeros((4, json.loads((run / "config.json").read_text())["input_size"]), np.float32)
    )
    (tmp_path / "file").touch()
    result = command(run, tmp_path / "one.npy", tmp_path / "file" / "out")
    assert result.returncode == 1 and "cannot be made" in result.stderr and "--output=" in result.stderr


def test_command_line_without_a_run(tmp_path):
    result = command(tmp_path / "none", tmp_path, tmp_path / "out")
    assert result.returncode == 1 and "is not a run" in result.stderr and "Traceback" not in result.stderr


def test_command_line_with_places_that_do_not_exist(run, tmp_path):
    for place in ("none.npy", "folder/none.npy", "folder"):
        result = command(run, tmp_path / place, tmp_path / "out")
        assert f"--features={tmp_path / place}: there is no such file or folder; give a" in result.stderr
    np.save(tmp_path / "a.npy", np.zeros((4, json.loads((run / "config.json").read_text())["input_size"]), np.float32))
    result = command(run, tmp_path, f"{tmp_path}/")
    assert f"--output={tmp_path}/ holds the features; choose another folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.fixture(scope="module")
def loaded(run):
    return kd_jax.load(run)


def drawn(run, *lengths, seed=0):
    """Return features of several lengths for a loaded run of one modality, float16 as in records."""
    rng, ((_, size),) = np.random.default_rng(seed), run.inputs.items()
    return [rng.standard_normal((length, size), np.float32).astype(np.float16) for length in lengths]


def test_a_loaded_run_predicts_what_the_command_writes(run, loaded, tmp_path):
    config = json.loads((run / "config.json").read_text())
    assert loaded.inputs == {"rgb": config["input_size"]} and loaded.head == "dense"
    assert repr(loaded) == f"TrainedDetector('{run}': rgb [T, 64] -> 12 classes, dense)"
    long, short = drawn(loaded, 30, 7)
    np.save(tmp_path / "one.npy", long)
    options = ["--seconds_per_snippet=0.5", "--threshold=0.3"]
    assert command(run, tmp_path / "one.npy", tmp_path / "out", *options).returncode == 0
    found = loaded(long)
    assert found.shape == (30, len(loaded.classes)) and found.dtype == np.float32
    np.testing.assert_array_equal(found, read_arrays(tmp_path / "out" / "scores.npz")["one"])
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    detections = loaded.detect(long, seconds=0.5, threshold=0.3)
    assert [(d["class"], d["start"], d["end"], d["score"]) for d in written] == detections and detections
    assert detections[0]._fields == ("class_", "start", "end", "score")
    ends = [detection.end for detection in loaded.detect(long, seconds=0.5, threshold=0.3, duration=3.25)]
    assert max(ends) <= 3.25 < max(detection.end for detection in detections)

    for same in (jnp.asarray(long, jnp.float32), long.astype(np.float64), {"rgb": long}):
        np.testing.assert_array_equal(loaded(same), found)
    listed = loaded([short, long])
    assert [table.shape[0] for table in listed] == [7, 30] and loaded([]) == []
    np.testing.assert_allclose(listed[1], found, atol=1e-6)
    batch = np.full((3, 40, long.shape[1]), np.nan, np.float16)  # NaN in the padding has no effect
    batch[0, :7], batch[2, :30] = short, long
    mask = np.arange(40) < np.array([7, 0, 30])[:, None]
    tables = loaded(batch, mask)
    assert tables.shape == (3, 40, 12) and not tables[~mask].any()
    np.testing.assert_allclose(tables[2, :30], found, atol=1e-6)
    np.testing.assert_allclose(tables[0, :7], listed[0], atol=1e-6)


def nan_at(table, snippet):
    return np.where(np.arange(len(table))[:, None] == snippet, np.nan, table)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r, x: r(x[:, 1:]), r"the array features has shape \[4, 63\]; expected \[T, 64\]"),
        (lambda r, x: r(x[:0]), r"the array features has shape \[0, 64\]; expected \[T, 64\]"),
        (lambda r, x: r(x[0]), r"the array features has shape \[64\]; expected"),
        (lambda r, x: r([x, x[:, :9]]), r"the array features\[1\] has shape \[4, 9\]"),
        (lambda r, x: r(x.astype(complex)), "features has dtype complex128; expected a real number type"),
        (
            lambda r, x: r(nan_at(x, 2)),
            "array features holds values that are not finite numbers: snippet 2 has nan; rep",
        ),
        (lambda r, x: r([x, nan_at(x, 3)]), r"array features\[1\] holds values .*: snippet 3 has nan"),
        (
            lambda r, x: r({"rgb": x + 1e6}),
            r"features\['rgb'\] holds values up to 1e.06, in snippet 0, but float16 ends",
        ),
        (lambda r, x: r({"flow": x}), r"a mapping of 'flow', but .*augmented_rgb reads \{'rgb': rgb_features\}"),
        (lambda r, x: r(x[None]), r"shape \[1, 4, 64\], a batch; give mask=, \[B, T\] bool, or a list of videos"),
        (lambda r, x: r(x, np.ones(4, bool)), "mask belongs to a batch .* and features is not a batch; leave it out"),
        (lambda r, x: r(x[None], np.ones((1, 3), bool)), r"mask is bool \[1, 3\]; it must be bool \[1, 4\]"),
        (lambda r, x: r(x[None], np.ones((1, 4))), r"mask is float64 \[1, 4\]; it must be bool \[1, 4\]"),
        (lambda r, x: r(x[None], np.array([[True, False, True, False]])), "mask of video 0 is False before a True"),
        (lambda r, x: r([x], batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda r, x: r.detect([x]), r"detect reads one video, \[T, D\]; call it for each video of the list or batch"),
        (lambda r, x: r.detect(x[None]), r"detect reads one video, \[T, D\]; call it for each video of the list or b"),
        (lambda r, x: r.detect(x, seconds=0), "seconds=0 must be from 0.001 to"),
        (lambda r, x: r.detect(x, threshold=50), "threshold=50 must be a probability, from 0 to 1"),
        (lambda r, x: r.detect(x, proposals="peaks"), "proposals='peaks' is unknown; choose 'classes' or"),
        (lambda r, x: r.detect(x, duration=-1.0), "duration=-1.0 must be a number of seconds above 0"),
        (lambda r, x: r.detect_video("a.mp4", "none.npz"), "none.npz: there is no such file of encoder weights"),
        (lambda r, x: kd_jax.load(r.name, seeds=3), "seeds=3 is unknown; choose 'one' or 'all'"),
    ],
)
def test_a_loaded_run_refuses_what_it_cannot_read(loaded, call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(loaded, np.zeros((4, 64), np.float32))


@pytest.fixture(scope="module")
def seeded(run, tmp_path_factory):
    """A workdir whose runs have three seeds; those of flow_teacher are further seeds of the other runs' weights."""
    workdir = tmp_path_factory.mktemp("seeded") / "work"
    shutil.copytree(run.parent, workdir)
    for name in ("flow_teacher", "vanilla_rgb"):
        for seed in (1, 2):
            shutil.copytree(run.parent / name, workdir / name / f"seed_{seed}")
    for seed, other in ((1, "augmented_rgb"), (2, "augmented_rgb")):
        shutil.rmtree(workdir / "vanilla_rgb" / f"seed_{seed}")
        shutil.copytree(run.parent / other, workdir / "vanilla_rgb" / f"seed_{seed}")
    return workdir


def logits(loaded, features):
    p = loaded(features).astype(np.float64)
    return np.log(p / (1 - p))


def test_seeds_and_fusions_average_logits(seeded, tmp_path):
    """The mean of the logits, as evaluation averages saved predictions."""
    plain, other = kd_jax.load(seeded / "vanilla_rgb"), kd_jax.load(seeded / "vanilla_rgb" / "seed_1")
    assert len(plain.members) == len(other.members) == 1
    (rgb,), (flow,) = drawn(plain, 30), drawn(kd_jax.load(seeded / "flow_teacher"), 30)
    every = kd_jax.load(seeded / "vanilla_rgb", seeds="all")
    assert len(every.members) == 3 and repr(every).endswith("dense, mean of 3 runs)")
    expected = (logits(plain, rgb) + 2 * logits(other, rgb)) / 3
    np.testing.assert_allclose(logits(every, rgb), expected, atol=1e-4)

    fusion = kd_jax.load(seeded / "two_stream")
    assert fusion.inputs == {"flow": 48, "rgb": 64}
    teacher = logits(kd_jax.load(seeded / "flow_teacher"), flow)
    both = {"rgb": rgb, "flow": flow}
    np.testing.assert_allclose(logits(fusion, both), (teacher + logits(plain, rgb)) / 2, atol=1e-4)
    second = kd_jax.load(seeded / "two_stream" / "seed_1")
    np.testing.assert_allclose(logits(second, both), (teacher + logits(other, rgb)) / 2, atol=1e-4)
    all_seeds = kd_jax.load(seeded / "two_stream", seeds="all")
    np.testing.assert_allclose(logits(all_seeds, both), (teacher + expected) / 2, atol=1e-4)
    assert [len(table) for table in fusion({"rgb": [rgb, rgb[:5]], "flow": [flow, flow[:5]]})] == [30, 5]

    for name, table in both.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "one.npy", table)
    places = [f"--features={name}={tmp_path / name}" for name in both]
    options = [f"--run={seeded / 'two_stream'}", f"--output={tmp_path / 'out'}"]
    assert run_command(predict_command, *options, *places).returncode == 0
    np.testing.assert_array_equal(read_arrays(tmp_path / "out" / "scores.npz")["one"], fusion(both))
    options = [f"--run={seeded / 'vanilla_rgb'}", "--seeds=all", f"--output={tmp_path / 'all'}", places[0]]
    assert run_command(predict_command, *options).returncode == 0
    np.testing.assert_array_equal(read_arrays(tmp_path / "all" / "scores.npz")["one"], every(rgb))


def test_fusions_predict_what_evaluation_saved(run, tmp_path):
    """The command reads the synthetic set, whose test videos the experiment has predicted and fused."""
    options = [f"--run={run.parent / 'two_stream'}", "--features=synthetic", f"--output={tmp_path / 'out'}"]
    assert run_command(predict_command, *options).returncode == 0
    scores = read_arrays(tmp_path / "out" / "scores.npz")
    saved = [read_arrays(run.parent / name / "predictions_test.npz") for name in ("flow_teacher", "vanilla_rgb")]
    for video, table in fuse(saved).items():
        np.testing.assert_allclose(scores[video], 1 / (1 + np.exp(-table)), atol=1e-5)


def test_what_load_and_predict_refuse_of_ensembles(seeded, tmp_path):
    (rgb,) = drawn(kd_jax.load(seeded / "vanilla_rgb"), 30)
    fusion, names = kd_jax.load(seeded / "two_stream"), "flow_teacher, vanilla_rgb, augmented_rgb, two_stream"
    for call, message in (
        (lambda: kd_jax.load(seeded), f"{seeded} is an experiment, not a run; name one of {seeded}/flow_teacher, "),
        (lambda: kd_jax.load(seeded / "fusion"), f"fusion is not a run (no config.json there); {seeded} has {names}"),
        (lambda: kd_jax.load(tmp_path / "x"), "is not a run (no config.json there); give a run of a workdir, e.g. w"),
        (lambda: kd_jax.load(seeded / "two_stream" / "seed_7"), "seed_7 is not a run (no config.json there)"),
        (lambda: kd_jax.load(seeded / "two_stream" / "seed_1", seeds="all"), "seed_1 is one seed; give "),
        (lambda: fusion(rgb), "features are those of one modality, but "),
        (lambda: fusion({"rgb": rgb, "flow": rgb[:9, :48]}), "features[0]: the modalities differ in T, rgb 30, flow 9"),
        (lambda: fusion.detect_video("a.mp4", "w.npz"), "reads flow and rgb, and an encoder makes one of them"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            call()
        assert message in str(refused.value)
    shutil.copytree(seeded, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "flow_teacher" / "seed_2")
    with pytest.raises(ValueError, match="different numbers of seeds: flow_teacher 2, vanilla_rgb 3; complete"):
        kd_jax.load(tmp_path / "work" / "two_stream", seeds="all")
    table = read_json(tmp_path / "work" / "results.json")
    for wrong, message in (
        ({"rows": [1]}, r"rows is \[1\], but must be a list of rows"),
        ({"seeds": [math.inf]}, r"seeds is \[Infinity\], but must be a list of whole numbers"),
        ({"rows": [table["rows"][0], table["rows"][1] | {"test": []}]}, r"some rows have scores of the test videos"),
    ):
        (tmp_path / "work" / "results.json").write_text(json.dumps(table | wrong))
        with pytest.raises(ValueError, match=rf"results.json: {message}.*; run its experiment again"):
            kd_jax.load(tmp_path / "work" / "two_stream")
    np.save(tmp_path / "a.npy", rgb)
    for places, message in (
        ([tmp_path / "a.npy"], "reads flow and rgb; give --features=flow=PLACE --features=rgb=PLACE, or records"),
        ([f"pose={tmp_path / 'a.npy'}"], "give --features=flow=PLACE --features=rgb=PLACE, or records"),
        ([f"rgb={tmp_path / 'a.npy'}"], "give --features=flow=PLACE --features=rgb=PLACE, or records"),
    ):
        given = [f"--features={place}" for place in places]
        result = run_command(predict_command, f"--run={seeded / 'two_stream'}", *given, f"--output={tmp_path / 'out'}")
        assert result.returncode == 1 and message in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "names, place, message",
    [  # files of the RGB run's size, what is given after --features=, and the refusal; '' if they are read
        ("a b", "in", ""),
        ("a_rgb b_rgb", "in", ""),
        ("a_rgb a_flow", "in/{video}_rgb.npy", ""),
        ("a_rgb a_flow", "rgb=in/{video}_rgb.npy", ""),
        ("flow_tutorial cup", "rgb=in/{video}.npy", ""),
        ("a_flow b_flow", "rgb=in", ""),
        ("rgb/a flow/a", "rgb=in/rgb", ""),
        (
            "a_rgb a_flow",
            "in",
            "a_rgb.npy (rgb); state which to read by a pattern, such as --features='rgb=in/{video}_rgb.npy'",
        ),
        ("rgb-a flow-a", "rgb=in", "such as --features='rgb=in/rgb-{video}.npy'"),
        ("a_RGB b_thermal", "in", "such as --features='rgb=in/{video}_RGB.npy'"),
        ("a_rgb a", "in", "has files of different modalities, in/a.npy (none in its name) and in/a_rgb.npy (rgb)"),
        ("rgb/a flow/a", "in", "such as --features='rgb=in/rgb/{video}.npy'"),
        ("a_flow b_flow", "in", "--features=in names flow, and the run reads rgb; if these are features of rgb, give"),
        (
            "flow/a",
            "in/flow",
            "--features=in/flow names flow, and the run reads rgb; if these are features of rgb, give",
        ),
        ("a_flow b_flow", "in/{video}_flow.npy", "names flow, and the run reads rgb; if these"),
        ("a_flow b", "flow=in", "augmented_rgb reads rgb; give --features=rgb=PLACE, or records"),
    ],
)
def test_a_folder_never_mixes_modalities(loaded, tmp_path, monkeypatch, names, place, message):
    monkeypatch.chdir(tmp_path)
    for name in names.split():
        Path(f"in/{name}.npy").parent.mkdir(parents=True, exist_ok=True)
        np.save(f"in/{name}.npy", np.zeros((4, 64), np.float32))
    given = predict_command.parser().parse_args(arguments(loaded.name, place, "out"))
    if message:
        with pytest.raises(ValueError) as refused:
            predict_command.read_all(given, loaded)
        assert message in str(refused.value)
    else:
        tables, _ = predict_command.read_all(given, loaded)
        assert tables and all(of.keys() == {"rgb"} for of in tables.values())


def test_manifests_state_the_modality(run, tmp_path):
    fields = {"weights_sha256": "0", "sampling": {}, "sampled_fps": None, "dtype": "float32", "seconds_per_snippet": 1}
    for name, modality in (("a_rgb", "flow"), ("b", "rgb")):
        np.save(tmp_path / f"{name}.npy", np.zeros((4, 64), np.float32))
        (tmp_path / f"{name}.json").write_text(json.dumps({**fields, "modality": modality}))
    result = command(run, tmp_path, tmp_path / "out")
    assert f"different modalities, {tmp_path}/a_rgb.npy (flow) and {tmp_path}/b.npy (rgb); state which" in result.stderr
    (tmp_path / "b.json").unlink()
    result = command(run, f"rgb={tmp_path}/{{video}}_rgb.npy", tmp_path / "out")
    assert "a_rgb.json says that they are features of flow, and the run reads rgb; give those of rgb" in result.stderr


def test_the_next_step_of_the_demo_runs_as_printed(run, tmp_path, monkeypatch):
    result = run_command(main, "--config=demo:smoke", f"--workdir={run.parent}", "--noreport", *SMALL)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Next: ")]
    _, program, *rest = shlex.split(line)
    assert os.path.abspath(shutil.which(program)) == sys.executable and rest[:2] == ["-m", "kd_jax.predict"]
    monkeypatch.chdir(tmp_path)
    predicted = run_command(predict_command, *rest[2:])
    assert predicted.returncode == 0 and predicted.stdout.startswith("24 videos, "), predicted.stderr
    scores = read_arrays(tmp_path / "predictions" / "scores.npz")
    saved = read_arrays(run / "predictions_test.npz")
    for video, table in saved.items():
        np.testing.assert_allclose(scores[video], 1 / (1 + np.exp(-table)), atol=1e-5)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "bin" / "kd-jax"), "train"])
    source = open_source("synthetic", "", ["rgb"], validation_fraction=0.2, validation_seed=0)
    config = SimpleNamespace(runs={"augmented_rgb": SimpleNamespace(modality="rgb")})
    command = main._next_step(config, "augmented_rgb", run.parent, source)
    assert shlex.split(command)[1:] == ["bin/kd-jax", "predict", *rest[2:]]
    monkeypatch.setattr("shutil.which", {"kd-jax": str(tmp_path / "bin" / "kd-jax")}.get)
    command = main._next_step(config, "augmented_rgb", run.parent, source)
    assert shlex.split(command)[1:3] == ["kd-jax", "predict"]


@pytest.mark.parametrize("page", ["README.md", "docs/inference.md"])
def test_the_documented_calls_of_a_loaded_run_work(run, loaded, tmp_path, monkeypatch, page):
    (tmp_path / "workdir").mkdir()
    (tmp_path / "workdir" / "demo").symlink_to(run.parent)
    monkeypatch.chdir(tmp_path)
    (features,), (flow,) = drawn(loaded, 30), drawn(kd_jax.load(run.parent / "flow_teacher"), 30)
    (block,) = re.findall(r"```py\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names = {"kd_jax": kd_jax, "features": features, "flow_features": flow}
    exec(block, names)
    assert names["probabilities"].shape == (30, 12) and isinstance(names["detections"], list)
