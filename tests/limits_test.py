"""A number in a file does not decide how much memory a command takes: docs/reliability.md states the limits."""

import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kd_jax.data.feature_tables import open_array
from kd_jax.evaluation import protocols
from kd_jax.evaluation.formats import read_scores
from kd_jax.evaluation.protocols import Predictions, Truth, check_frames, score
from kd_jax.files import read_arrays

ROOT = Path(__file__).parents[1]
MEASURE = """
import re, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
finally:
    status = open("/proc/self/status").read()  # getrusage would start at the peak of the process that forked this one
    print("peak", int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024)
"""
COMMON = {"kitchen": {"subset": "testing", "duration": 20.0, "actions": [["cut", 1.2, 4.8], ["wash", 4.0, 9.6]]}}
DETECTIONS = [{"video": "kitchen", "class": "cut", "start": 1.5, "end": 2.0, "score": 0.5}]


def peak(*command):
    """Runs a command of kd_jax; returns what it printed and the most memory that it took, in MiB."""
    ended = subprocess.run([sys.executable, "-c", MEASURE, *command], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr, int(ended.stdout.rsplit("peak ", 1)[1])


def test_a_wrong_duration_is_refused_before_scores_are_up_sampled():
    scores = {"right": np.zeros((300, 2)), "wrong": np.zeros((300, 2))}
    rows = {video: np.array([[0, 1.0, 4.0]]) for video in scores}
    truth = Truth(rows, rows, {"right": 192.0, "wrong": 1e9}, {"right": 4800, "wrong": 25 * 10**9}, 2)
    with pytest.raises(ValueError, match=r"'wrong' has 25000000000 frames and 300 snippets.*leave out frame_map_upsa"):
        score(Predictions(scores), truth, ["frame_map_upsampled"])
    score(Predictions(scores), truth, ["frame_map"])


def test_few_frames_and_those_of_long_snippets_are_scored():
    check_frames({"v": protocols.FEW_FRAMES}, {"v": 1})
    check_frames({"v": 1000 * 10_000}, {"v": 10_000})


@pytest.mark.parametrize("read", [read_arrays, read_scores, open_array])
def test_a_header_is_compared_with_the_size_of_its_member_before_it_is_read(read, tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.zeros((5000, 1250)))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", stream.getvalue().replace(b"(5000, 1250)", b"(9000, 1250)"))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"states \[9000, 1250\] float64, 90000000 bytes, but 50000000 bytes follow"):
        read(tmp_path / "x.npz")
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 2**20


@pytest.mark.slow
@pytest.mark.parametrize("duration", [20.0, 1e9, 1e15, 1e300])
def test_evaluate_takes_as_much_memory_for_any_duration(duration, tmp_path):
    common = {"kitchen": {**COMMON["kitchen"], "duration": duration}}
    (tmp_path / "truth.json").write_text(json.dumps(common))
    np.savez(tmp_path / "scores.npz", kitchen=np.random.default_rng(0).random((300, 2)))
    command = ["kd_jax.evaluate", "--dataset=custom", f"--annotations={tmp_path / 'truth.json'}", "--fps=25"]
    error, used = peak(*command, f"--predictions={tmp_path / 'scores.npz'}")
    assert used < 400 and ("leave out frame_map_upsampled" in error) == (duration > 20), error


@pytest.mark.slow
@pytest.mark.parametrize("time", [1.5, 1e9, 1e15, 1e300])
def test_evaluate_takes_as_much_memory_for_any_time_of_a_detection(time, tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(COMMON))
    (tmp_path / "found.json").write_text(json.dumps([*DETECTIONS, {**DETECTIONS[0], "end": time}]))
    command = ["kd_jax.evaluate", "--dataset=custom", f"--annotations={tmp_path / 'truth.json'}"]
    command += ["--protocols=event_map", "--protocols=detection_map_thumos14"]
    error, used = peak(*command, f"--predictions={tmp_path / 'found.json'}")
    assert used < 400, error


@pytest.mark.slow
@pytest.mark.parametrize("duration", [20.0, 1e9, 1e15])
def test_build_takes_as_much_memory_for_any_duration(duration, tmp_path):
    (tmp_path / "features").mkdir()
    common = {name: {**COMMON["kitchen"], "subset": name, "duration": duration} for name in ("training", "testing")}
    for name in common:
        np.save(tmp_path / "features" / f"{name}.npy", np.ones((300, 4), np.float32))
    (tmp_path / "truth.json").write_text(json.dumps(common))
    (tmp_path / "classes.txt").write_text("cut\nwash\n")
    command = ["data_prep.build", "--dataset=custom", f"--annotations={tmp_path / 'truth.json'}", "--fps=25"]
    error, used = peak(*command, "--features", f"rgb={tmp_path / 'features'}", f"--output={tmp_path / 'records'}")
    assert used < 600 and (tmp_path / "records").exists() == (duration == 20), error
