"""A workdir may be gs://bucket/folder. Killing, resuming, skipping and reading work as in a local workdir.

gcp-storage-emulator serves the bucket. It implements the protocol of Google Cloud Storage for one client at a time.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects
from gcsfs.core import GCSFileSystem

from kd_jax import checked_cache
from kd_jax.files import read_arrays
from kd_jax.training.checkpoints import Checkpoints, read_checkpoint, saved_epochs
from kd_jax.training.teachers import fingerprint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONFIG_WITH_TEACHER_IN_BUCKET = """
from kd_jax import config as schema
from tests import teacher_and_student


def get_config(variant=""):
    config = teacher_and_student.get_config()
    with config.unlocked():
        config.teachers.given = "gs://kdjax/work/flow_teacher"
        config.runs.augmented_rgb.teachers = ("given",)
        config.runs = schema.make_runs(augmented_rgb=config.runs.augmented_rgb)
    return config
"""


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket named kdjax, as a file system. Environment variables lead the started programs to it."""
    original_download = objects.download

    def download(request, response, storage, *arguments, **options):
        original_download(request, response, storage, *arguments, **options)
        if response.status.value < 300:  # tensorstore needs this header; the emulator omits it
            stored = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["X-Goog-Generation"] = stored["generation"]

    monkeypatch.setattr(objects, "download", download)
    with server.create_server("localhost", 0, in_memory=True, default_bucket="kdjax") as emulator:
        address = f"http://localhost:{emulator._api._httpd.server_port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # otherwise gcsfs looks for credentials
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        yield GCSFileSystem(endpoint_url=address, token="anon", use_listings_cache=False)


def read_bucket_arrays(bucket, path: str) -> dict[str, np.ndarray]:
    with bucket.open(path) as stream:
        file = np.load(stream, allow_pickle=False)
        return {name: file[name] for name in file.files}


def run(module: str, *arguments: str) -> str:
    """Run a command of kd_jax and return its output."""
    command = [sys.executable, "-m", f"kd_jax.{module}", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.mark.exhaustive
def test_an_experiment_in_a_bucket(bucket, tmp_path):
    experiment = ["--config=tests/teacher_and_student.py", "--config.training.epochs=4", "--noreport"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "kd_jax.main", *experiment, "--workdir=gs://kdjax/work"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal, deadline = "kdjax/work/flow_teacher/metrics.jsonl", time.monotonic() + 200
    while not (bucket.exists(journal) and bucket.cat(journal).count(b"\n") >= 2):
        assert killed.poll() is None and time.monotonic() < deadline, "no two epochs were written"
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and bucket.cat(journal).count(b"\n") < 4

    assert "flow_teacher: continues after epoch" in run("main", *experiment, "--workdir=gs://kdjax/work")
    run("main", *experiment, f"--workdir={tmp_path / 'work'}")
    for name in ("flow_teacher", "augmented_rgb"):
        whole = read_arrays(tmp_path / "work" / name / "predictions_test.npz")
        stored = read_bucket_arrays(bucket, f"kdjax/work/{name}/predictions_test.npz")
        assert stored.keys() == whole.keys()
        for video in whole:
            np.testing.assert_array_equal(stored[video], whole[video])
        entries = map(json.loads, bucket.cat(f"kdjax/work/{name}/metrics.jsonl").splitlines())
        assert [entry["epoch"] for entry in entries] == [*range(1, 5)]
    events = [path for path in bucket.ls("kdjax/work/augmented_rgb", detail=False) if "tfevents" in path]
    assert events and sum(bucket.size(path) for path in events) > 1000
    contents = (bucket.cat("kdjax/work/results.json"), (tmp_path / "work" / "results.json").read_bytes())
    stored, whole = ({**json.loads(text), "time": None, "sha256": None} for text in contents)
    assert stored == whole

    printed = run("main", *experiment[:-1], "--workdir=gs://kdjax/work")
    assert "augmented_rgb, seed 0: finished before" in printed and "Open gs://kdjax/work/report.html" in printed
    np.save(tmp_path / "video.npy", np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32))
    run(
        "predict",
        "--run=gs://kdjax/work/augmented_rgb",
        f"--features={tmp_path / 'video.npy'}",
        "--output=gs://kdjax/out",
    )
    assert len(read_bucket_arrays(bucket, "kdjax/out/scores.npz")["video"]) == 40

    (tmp_path / "given.py").write_text(CONFIG_WITH_TEACHER_IN_BUCKET)
    student = [f"--config={tmp_path / 'given.py'}", "--config.training.epochs=1", f"--workdir={tmp_path / 'given'}"]
    assert "teacher flow_teacher: best epoch" in run("main", *student)
    taught = json.loads((tmp_path / "given" / "augmented_rgb" / "config.json").read_text())["teachers"]
    folder = "gs://kdjax/work/flow_teacher"
    assert taught == {
        "given": {"folder": folder, "fingerprint": fingerprint(epath.Path(tmp_path / "work" / "flow_teacher"))}
    }


def test_a_missing_bucket_is_an_error(bucket):
    result = subprocess.run(
        [sys.executable, "-m", "kd_jax.main", "--config=configs/demo.py:smoke", "--workdir=gs://nobucket/work"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1 and "gs://nobucket/work cannot be written" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2, result.stderr  # versions and devices, and the error


def test_a_checkpoint_in_a_bucket_counts_once_it_is_marked(bucket):
    """orbax writes `commit_success.txt` last, because a bucket has no rename."""
    folder = epath.Path("gs://kdjax/marked")
    state, other = {"w": np.arange(3.0)}, {"w": np.zeros(3)}
    with Checkpoints(folder, after_epoch=0) as keeper:
        keeper.save(1, state, state)
        keeper.save(2, other, other)
    assert saved_epochs(folder) == [1, 2]
    assert bucket.exists("kdjax/marked/checkpoints/2/commit_success.txt")
    bucket.rm("kdjax/marked/checkpoints/2/commit_success.txt")
    assert saved_epochs(folder) == [1]
    np.testing.assert_array_equal(read_checkpoint(folder, 1, other, other)[0]["w"], state["w"])
    with Checkpoints(folder, after_epoch=1) as keeper:
        keeper.save(2, other, state)
    assert saved_epochs(folder) == [1, 2]
    restored, best = read_checkpoint(folder, 2, state, other)
    np.testing.assert_array_equal(restored["w"], other["w"])
    np.testing.assert_array_equal(best["w"], state["w"])


def test_compiled_programs_in_a_bucket_are_checked(bucket):
    cache = checked_cache.CheckedCache("gs://kdjax/programs", max_size=-1)
    assert cache.get("program") is None
    cache.put("program", b"code")
    assert cache.get("program") == b"code"
    (path,) = bucket.ls("kdjax/programs", detail=False)
    bucket.pipe(path, bucket.cat(path)[:-1] + b"E")
    assert cache.get("program") is None and not bucket.exists(path)
    cache.put("program", b"code")
    assert cache.get("program") == b"code"
