"""Features from videos and skeletons: what is written, what goes on, what is refused, and a whole way to detections."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from data_prep import ahead, extract, stickfigures
from kd_jax.encode import encode
from kd_jax.encoders.weights import read_weights
from kd_jax.files import read_arrays
from kd_jax.videos import Sampling, VideoError, probe, snippets

ROOT = Path(__file__).parents[1]
ROUNDING = 1e-4  # of features of size 1, behind 57 layers


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Three short videos of stick figures, and their encoders."""
    folder = tmp_path_factory.mktemp("figures") / "made"
    run("data_prep.stickfigures", f"--output={folder}", "--train=2", "--test=1", "--seconds=4")
    return folder


def run(module, *arguments, code=0):
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == code, result.stdout + result.stderr[-3000:]
    return result.stdout + result.stderr


def settings(figures, modality="rgb", **sampling):
    sampling = {"size": stickfigures.SIZE, "shorter_side": stickfigures.SHORTER_SIDE, **sampling}
    return extract.Settings(modality, figures / "weights" / f"{modality}.npz", Sampling(**sampling), None, "float32")


def test_figures_are_what_their_annotations_and_skeletons_say(figures):
    annotations = json.loads((figures / "annotations.json").read_text())
    classes = (figures / "classes.txt").read_text().split("\n")[:-1]
    assert [entry["subset"] for entry in annotations.values()] == ["training", "training", "testing"]
    for name, entry in annotations.items():
        video = probe(figures / "videos" / f"{name}.mp4")
        assert (video.num_frames, video.fps) == (round(entry["duration"] * stickfigures.FPS), stickfigures.FPS)
        bodies = extract.skeletons.read(figures / "skeletons" / f"{name}.skeleton")
        assert len(bodies) == video.num_frames and np.median(bodies[:, 0, :, 2]) > 2
        assert entry["actions"] and all(
            0 <= a < b <= entry["duration"] and c < len(classes) for c, a, b in entry["actions"]
        )


def test_actions_move_as_they_are_called():
    for down, up in (("sit down", "stand up"), ("lower arms", "raise arms")):
        for name, sign in ((down, -1), (up, 1)):
            begin = stickfigures.Pose(
                seat=float(name == "stand up"), lift=(2.7, 2.7) if name == "lower arms" else (0.1, 0.1)
            )
            act = stickfigures.ACTIONS[name][1]
            joint = 0 if "s" in name[:2] else 7
            heights = [stickfigures.joints(act(begin, t, 2.0))[joint, 1] for t in (0, 0.5, 1)]
            assert np.all(sign * np.diff(heights) > 0.1), name


def test_features_are_those_of_the_snippets_and_the_manifest_tells_of_them(figures, tmp_path):
    path = figures / "videos" / "figure_000.mp4"
    made = settings(figures, stride=8)
    assert extract.extract(tmp_path, made, [("a", path)], batch_size=4, workers=0, progress=False) == {}
    features, manifest = np.load(tmp_path / "a.npy"), json.loads((tmp_path / "a.json").read_text())
    weights = read_weights(figures / "weights" / "rgb.npz")
    clips = np.stack(list(snippets(probe(path), "rgb", made.sampling)))
    expected = jax.jit(weights.model.apply)(weights.variables, clips / np.float32(127.5) - 1).features[:, 0]
    np.testing.assert_allclose(features, expected, atol=ROUNDING)
    assert features.dtype == np.float32 and len(features) == manifest["snippets"] == made.sampling.count(
        manifest["frames"]
    )
    assert manifest["fps"] == 15 and manifest["seconds_per_snippet"] == pytest.approx(8 / 15)
    assert manifest["file"] == "figure_000.mp4" and len(manifest["weights_sha256"]) == 64
    assert manifest["sampling"]["stride"] == 8 and {"jax", "av"} <= manifest["versions"].keys()


@pytest.fixture(scope="module")
def features(figures, tmp_path_factory):
    """{modality: folder} of the features of all figures, a row every 4 frames."""
    folders = {}
    for modality, source in (("rgb", "videos"), ("flow", "videos"), ("pose", "skeletons")):
        folders[modality] = tmp_path_factory.mktemp(modality)
        files = list(extract.files_of(figures / source, modality).items())
        made = settings(figures, modality, stride=4)
        assert not extract.extract(folders[modality], made, files, batch_size=8, workers=2, progress=False)
    return folders


def test_all_modalities_of_a_recording_have_equal_lengths_whatever_the_batch(figures, features, tmp_path):
    lengths = [{path.name: len(np.load(path)) for path in sorted(folder.glob("*.npy"))} for folder in features.values()]
    assert lengths[0] == lengths[1] == lengths[2] and len(lengths[0]) == 3
    for modality, source in (("rgb", "videos"), ("pose", "skeletons")):
        (name, path), *_ = extract.files_of(figures / source, modality).items()
        made = settings(figures, modality, stride=4)
        assert not extract.extract(tmp_path, made, [(modality, path)], batch_size=3, workers=0, progress=False)
        expected = np.load(features[modality] / f"{name}.npy")
        np.testing.assert_allclose(np.load(tmp_path / f"{modality}.npy"), expected, atol=ROUNDING)


def test_the_command_goes_on_names_what_is_broken_and_refuses_other_settings(figures, tmp_path):
    folder, output = tmp_path / "videos", tmp_path / "rgb"
    folder.mkdir()
    for name in ("figure_000", "figure_001"):
        (folder / f"{name}.mp4").write_bytes((figures / "videos" / f"{name}.mp4").read_bytes())
    (folder / "figure_001.avi").write_text("no video")
    (folder / "cut.mp4").write_bytes((folder / "figure_000.mp4").read_bytes()[:5000])
    command = [
        f"--videos={folder}",
        "--modality=rgb",
        f"--weights={figures / 'weights' / 'rgb.npz'}",
        f"--out={output}",
    ]
    told = run("data_prep.extract", *command, code=1)
    assert f"{output}: features of 2 files" in told and "2 could not be used" in told
    assert "figure_001.avi cannot be read as a video" in told and "cut.mp4 cannot be read" in told
    written = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert set(written) == {f"{name}.{end}" for name in ("figure_000", "figure_001.mp4") for end in ("npy", "json")}

    (folder / "cut.mp4").unlink()
    (folder / "figure_001.avi").unlink()
    (output / "figure_000.json").unlink()  # as if it had been interrupted there
    (folder / "figure_001.mp4").rename(folder / "figure_001.m4v")
    told = run("data_prep.extract", *command)
    assert f"{output}: features of 2 files" in told  # the one that was interrupted, and one of another name
    assert (output / "figure_001.mp4.npy").stat().st_mtime_ns == written["figure_001.mp4.npy"]
    assert "features of 0 files, 2 were finished before" in run("data_prep.extract", *command)
    told = run("data_prep.extract", *command, "--stride=8", code=1)
    assert "was made otherwise (sampling: " in told and "choose another --output" in told
    assert "are for rgb, not --modality=flow" in run(
        "data_prep.extract", *[part.replace("=rgb", "=flow") for part in command], code=1
    )


def test_a_pipeline_gives_the_same(figures, tmp_path):
    command = [f"--videos={figures / 'videos'}", "--modality=flow", f"--weights={figures / 'weights' / 'flow.npz'}"]
    run("data_prep.extract", *command, f"--output={tmp_path / 'here'}")
    (tmp_path / "videos").mkdir()
    for path in (figures / "videos").iterdir():
        (tmp_path / "videos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "videos" / "broken.mp4").write_text("no video")
    command[0] = f"--videos={tmp_path / 'videos'}"
    told = run("data_prep.extract", *command, f"--output={tmp_path / 'beam'}", "--runner=DirectRunner", code=1)
    assert "features of 3 files" in told and "broken.mp4 cannot be read as a video" in told
    for path in (tmp_path / "here").iterdir():
        if path.suffix == ".npy":
            np.testing.assert_allclose(np.load(path), np.load(tmp_path / "beam" / path.name), atol=ROUNDING)
    assert {path.name for path in (tmp_path / "beam").iterdir()} == {
        path.name for path in (tmp_path / "here").iterdir()
    }


def _count(start, stop, end):
    """For the tests of `ahead`: a task that counts, and then goes wrong if it is told to."""
    yield from range(start, stop)
    if end == "error":
        raise VideoError("it went wrong")
    if end == "death":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_item_gives_its_messages_in_order_and_a_failure_costs_no_other(workers):
    items = [(0, 3, ""), (10, 12, "error"), (20, 22, "death" if workers else ""), (30, 35, ""), (40, 40, "")]
    messages = {index: [] for index in range(len(items))}
    for index, message in ahead.run(_count, items, workers=workers):
        messages[index].append(message)
    for index, (start, stop, end) in enumerate(items):
        *numbers, last = messages[index]
        assert numbers == list(range(start, stop))
        assert isinstance(last, ahead.Failed if end else ahead.Finished)
    assert messages[1][-1] == "it went wrong" and (not workers or "ended (-9)" in messages[2][-1])
    assert not multiprocessing.active_children()


def test_features_of_a_video_that_breaks_off_are_not_written(figures, tmp_path, monkeypatch):
    def broken(path, settings):
        yield {"frames": 48, "fps": 15.0, "snippets": 3, "seconds_per_snippet": 1.0}
        yield np.zeros((16, 80, 80, 3), np.uint8)
        raise VideoError(f"{path} is damaged")

    monkeypatch.setattr(extract, "read", broken)
    files = [("a", tmp_path / "a.mp4")]
    failed = extract.extract(tmp_path, settings(figures), files, batch_size=1, workers=0, progress=False)
    assert failed == {"a": f"{tmp_path / 'a.mp4'} is damaged"} and not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_encoding_keeps_keys_and_order_whatever_fills_the_last_batch(count, figures):
    weights = read_weights(figures / "weights" / "pose.npz")
    bodies = extract.skeletons.read(figures / "skeletons" / "figure_000.skeleton")
    made = extract.skeletons.snippets(extract.skeletons.normalize(bodies), Sampling(stride=2))
    clips = [clip for clip, _ in zip(made, range(count), strict=False)]
    found = list(encode(weights, ((f"clip {i}", clip) for i, clip in enumerate(clips)), batch_size=4))
    assert [key for key, _ in found] == [f"clip {i}" for i in range(count)]
    for (_, feature), clip in zip(found, clips, strict=True):
        alone = jax.jit(weights.model.apply)(weights.variables, clip[None]).features[0, 0]
        np.testing.assert_allclose(feature, alone, atol=ROUNDING)


def test_eight_devices_encode_as_one(figures, tmp_path):
    program = f"""
import jax, numpy as np
from pathlib import Path
from kd_jax.encode import encode
from kd_jax.encoders.weights import read_weights
clips = np.random.default_rng(0).normal(0, [[[0.3]], [[0.0]]], (11, 16, 2, 25, 3)).astype(np.float32)  # one body
weights = read_weights(Path({str(figures / "weights" / "pose.npz")!r}))
assert jax.device_count() == DEVICES
rows = [row for _, row in encode(weights, enumerate(clips), batch_size=6)]
np.save({str(tmp_path)!r} + "/DEVICES.npy", np.stack(rows))
"""
    for devices in ("1", "8"):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-c", program.replace("DEVICES", devices)]
        result = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "8.npy"), np.load(tmp_path / "1.npy"), atol=ROUNDING)


def test_from_pixels_to_detections(figures, features, tmp_path):
    annotations = [f"--annotations={figures / 'annotations.json'}", f"--classes={figures / 'classes.txt'}"]
    folders = [f"--features={modality}={folder}" for modality, folder in features.items()]
    told = run("data_prep.build", "--dataset=custom", *annotations, *folders, f"--output={tmp_path / 'records'}")
    assert "snippets last" not in told
    work = tmp_path / "work"
    settings = [f"--config.dataset.data_dir={tmp_path / 'records'}", "--config.dataset.validation_fraction=0.0"]
    settings += ["--config.training.epochs=1", "--config.model.hidden=8", f"--workdir={work}"]
    table = run("kd_jax.main", "--config=configs/stickfigures.py", *settings)
    assert "flow_teacher + pose_teacher" in table or "flow_teacher, pose_teacher" in table

    video = figures / "videos" / "figure_002.mp4"
    encoder = f"--encoder_weights={figures / 'weights' / 'rgb.npz'}"
    command = [
        f"--run={work / 'augmented_rgb'}",
        f"--video={video}",
        encoder,
        "--stride=4",
        "--fps=15",
        "--threshold=0.3",
    ]
    told = run("kd_jax.predict", *command, f"--output={tmp_path / 'out'}", "--format=native", "--format=pku_mmd")
    assert "1 videos" in told and "0.2667 s a snippet" in told and "figure_002.png" in told
    scores = read_arrays(tmp_path / "out" / "scores.npz")["figure_002"]
    run(
        "kd_jax.predict",
        command[0],
        f"--features={features['rgb'] / 'figure_002.npy'}",
        f"--output={tmp_path / 'same'}",
    )
    np.testing.assert_allclose(scores, read_arrays(tmp_path / "same" / "scores.npz")["figure_002"], atol=1e-4)
    picture = cv2.imread(str(tmp_path / "out" / "figure_002.png"))
    assert picture.shape[1] > 1000 and picture[: len(picture) // 3].std() > 20  # frames along the top
    assert (tmp_path / "out" / "pku_mmd" / "figure_002.txt").exists()

    for change, message in (
        ({encoder: f"--encoder_weights={figures / 'weights' / 'flow.npz'}"}, "features of flow; the run reads"),
        ({f"--video={video}": f"--video={figures / 'classes.txt'}"}, "classes.txt cannot be read as a video"),
    ):
        changed = [part for part in (change.get(part, part) for part in command) if part]
        told = run("kd_jax.predict", *changed, f"--output={tmp_path / 'none'}", code=1)
        assert message in told.splitlines()[-1]
