"""Extraction of features: what the command writes, resumes and refuses, and the path from pixels to detections."""

import contextlib
import functools
import importlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import cv2
import jax
import numpy as np
import pytest

import kd_jax
from data_prep import build, extract, prefetch, stickfigures
from kd_jax import predict
from kd_jax.files import read_arrays, read_json
from kd_jax.inference.video_files import list_videos
from kd_jax.video import encode as encode_module
from kd_jax.video.encode import batched, encode_batches, encode_video
from kd_jax.video.encoders import AGCN, Encoder
from kd_jax.video.encoders.weights import random_variables, read_weights, write_weights
from kd_jax.video.skeletons import cut_snippets, normalize, read_skeletons
from kd_jax.video.videos import Sampling, VideoError, probe_video
from kd_jax.video.videos import cut_snippets as cut_video

ROOT = Path(__file__).parents[1]
ROUNDING = 1e-4  # error of features of size 1 after 57 layers


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Draw three short videos of stick figures and make their encoders."""
    folder = tmp_path_factory.mktemp("figures") / "made"
    with mock.patch.object(stickfigures, "num_processors", lambda: 1):  # draws in this process
        run(stickfigures, f"--output={folder}", "--train=2", "--test=1", "--seconds=4")
    return folder


def run(command, *arguments, code=0):
    """Run a command in this process and return what it prints and the message that it ends with."""
    printed, ended = io.StringIO(), None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            command.main(arguments)
        except SystemExit as exit:
            ended = exit.code
    message = ended if isinstance(ended, str) else ""
    assert (1 if message else ended or 0) == code, printed.getvalue() + message
    return printed.getvalue() + message


def run_process(module, *arguments):
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result.stdout + result.stderr


def settings(figures, modality="rgb", **sampling):
    sampling = {"size": stickfigures.SIZE, "shorter_side": stickfigures.SHORTER_SIDE, **sampling}
    fps = stickfigures.FPS if modality == "pose" else None  # skeleton files do not state it
    return extract.Settings(modality, figures / "weights" / f"{modality}.npz", Sampling(**sampling), fps, "float32")


@functools.partial(jax.jit, static_argnums=0)
def features_of(model, variables, clips):
    """Return the first features of each clip, `[B, D]`."""
    return model.apply(variables, clips).features[:, 0]


def encode_alone(weights, clips):
    """Encode clips without batching or scaling."""
    return features_of(weights.model, weights.variables, clips)


def test_figures_are_what_their_annotations_and_skeletons_say(figures):
    annotations = json.loads((figures / "annotations.json").read_text())
    classes = (figures / "classes.txt").read_text().split("\n")[:-1]
    assert [entry["subset"] for entry in annotations.values()] == ["training", "training", "testing"]
    for name, entry in annotations.items():
        video = probe_video(figures / "videos" / f"{name}.mp4")
        assert (video.num_frames, video.fps) == (round(entry["duration"] * stickfigures.FPS), stickfigures.FPS)
        bodies = read_skeletons(figures / "skeletons" / f"{name}.skeleton")
        assert len(bodies) == video.num_frames and np.median(bodies[:, 0, :, 2]) > 2
        assert entry["actions"] and all(
            0 <= a < b <= entry["duration"] and c < len(classes) for c, a, b in entry["actions"]
        )


def test_actions_move_in_the_direction_of_their_name():
    for down, up in (("sit down", "stand up"), ("lower arms", "raise arms")):
        for name, sign in ((down, -1), (up, 1)):
            begin = stickfigures.Pose(
                seat=float(name == "stand up"), lift=(2.7, 2.7) if name == "lower arms" else (0.1, 0.1)
            )
            act = stickfigures.ACTIONS[name][1]
            joint = 0 if "s" in name[:2] else 7
            heights = [stickfigures.joints(act(begin, t, 2.0))[joint, 1] for t in (0, 0.5, 1)]
            assert np.all(sign * np.diff(heights) > 0.1), name


def test_features_are_those_of_the_snippets_and_the_manifest_describes_them(figures, tmp_path):
    path = figures / "videos" / "figure_000.mp4"
    made = settings(figures, stride=8)
    assert extract.extract_features(tmp_path, made, [("a", path)], batch_size=4, workers=0, progress=False) == {}
    features, manifest = np.load(tmp_path / "a.npy"), json.loads((tmp_path / "a.json").read_text())
    weights = read_weights(figures / "weights" / "rgb.npz")
    clips = np.stack(list(cut_video(probe_video(path), "rgb", made.sampling)))
    expected = encode_alone(weights, clips / np.float32(127.5) - 1)
    np.testing.assert_allclose(features, expected, atol=ROUNDING)
    assert features.dtype == np.float32 and len(features) == manifest["snippets"] == made.sampling.count(
        manifest["frames"]
    )
    assert manifest["fps"] == 15 and manifest["seconds_per_snippet"] == pytest.approx(8 / 15)
    assert manifest["file"] == "figure_000.mp4" and len(manifest["weights_sha256"]) == 64
    assert manifest["sampling"]["stride"] == 8 and {"jax", "av"} <= manifest["versions"].keys()


@pytest.fixture(scope="module")
def features(figures, tmp_path_factory):
    """Extract a row of features every 4 frames of all figures: {modality: folder}."""
    folders = {}
    for modality, source in (("rgb", "videos"), ("flow", "videos"), ("pose", "skeletons")):
        folders[modality] = tmp_path_factory.mktemp(modality)
        files = list(extract.files_of(figures / source, modality)[0].items())
        made = settings(figures, modality, stride=4)
        workers = 2 if modality == "pose" else 0  # tests below read RGB and flow in other processes
        assert not extract.extract_features(
            folders[modality], made, files, batch_size=6, workers=workers, progress=False
        )
    return folders


@pytest.mark.slow
def test_all_modalities_of_a_recording_have_equal_lengths_whatever_the_batch(figures, features, tmp_path):
    lengths = [{path.name: len(np.load(path)) for path in sorted(folder.glob("*.npy"))} for folder in features.values()]
    assert lengths[0] == lengths[1] == lengths[2] and len(lengths[0]) == 3
    for modality, source in (("rgb", "videos"), ("pose", "skeletons")):
        (name, path), *_ = extract.files_of(figures / source, modality)[0].items()
        made = settings(figures, modality, stride=4)
        assert not extract.extract_features(tmp_path, made, [(modality, path)], batch_size=3, workers=0, progress=False)
        expected = np.load(features[modality] / f"{name}.npy")
        np.testing.assert_allclose(np.load(tmp_path / f"{modality}.npy"), expected, atol=ROUNDING)


@pytest.mark.slow
def test_features_are_bitwise_equal_whatever_else_is_extracted(figures, features, tmp_path):
    """A video is encoded alone, with others, again, in another process, as a task of a pipeline, and by predict."""
    made, paths = settings(figures, stride=4), extract.files_of(figures / "videos", "rgb")[0]
    weights = read_weights(made.weights)
    for number, (name, path) in enumerate(paths.items()):
        expected = np.load(features["rgb"] / f"{name}.npy")
        assert len(expected) % 6  # the last batch is not full
        output = tmp_path / name
        output.mkdir()
        company = [*list(paths.items())[number:], *list(paths.items())[:number]]
        extract.extract_features(output, made, company, batch_size=6, workers=number, progress=False)
        np.testing.assert_array_equal(np.load(output / f"{name}.npy"), expected)
        assert extract.extract_one(str(output), made, name, str(path), 6) is None
        np.testing.assert_array_equal(np.load(output / f"{name}.npy"), expected)
        own, _ = encode_video(weights.encoder(), probe_video(path), made.sampling, batch_size=6)
        np.testing.assert_array_equal(own, expected)


MODULE = """
import numpy as np
from kd_jax.video.encoders import Encoder

def make(weights):
    def encode(snippets):
        assert snippets.dtype == np.float32 and snippets.shape[1:] == (8, 64, 64, 3)
        return RETURNED
    return Encoder(encode, num_features=6, window=8, size=64, shorter_side=72, mean=(0, 0.5, 1), std=2)
"""


def user_encoder(name, folder, monkeypatch, returned="snippets[:, ::7].mean((2, 3)).reshape(-1, 6)"):
    """Make the working directory one with a module of this name, and return its option."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    extract.encoder_of.cache_clear()
    (folder / f"{name}.py").write_text(MODULE.replace("RETURNED", returned))
    importlib.invalidate_caches()
    return f"--encoder={name}:make"


def test_an_encoder_of_the_user_goes_through_the_same_steps(figures, tmp_path, monkeypatch):
    encoder = user_encoder("mine", tmp_path / "here", monkeypatch)
    command = [f"--videos={figures / 'videos'}", "--modality=rgb", encoder]
    run(extract, *command, f"--output={tmp_path / 'a'}", "--workers=2")
    manifest, path = read_json(tmp_path / "a" / "figure_001.json"), figures / "videos" / "figure_001.mp4"
    assert manifest["encoder"] == "mine:make" and len(manifest["weights_sha256"]) == 64
    sampling = {"length": 8, "stride": 8, "last": "repeat", "size": 64, "shorter_side": 72}
    assert manifest["sampling"] == sampling
    clips = np.stack(list(cut_video(probe_video(path), "rgb", Sampling(**sampling))))
    expected = ((clips[:, ::7].mean((2, 3)) / 255 - (0, 0.5, 1)) / 2).reshape(-1, 6)
    features = np.load(tmp_path / "a" / "figure_001.npy")
    np.testing.assert_allclose(features, expected, atol=1e-5)

    run(extract, f"--videos={path}", *command[1:], f"--output={tmp_path / 'b'}", "--workers=0")
    np.testing.assert_array_equal(np.load(tmp_path / "b" / "figure_001.npy"), features)
    options = predict.parser().parse_args([encoder])
    config = {"modality": "rgb", "input_size": 6, "extraction": manifest}
    read = predict.read_own_encoder(options, config)
    own, frames = encode_video(read, probe_video(path), Sampling(**sampling), batch_size=8, num_frames=2)
    np.testing.assert_array_equal(own, features)
    assert frames[0].shape == (64, 64, 3) and frames[0].dtype == np.uint8
    for change, message in (
        ({"input_size": 1024}, "--encoder=mine:make give 6 features of rgb; the run reads 1024 of rgb"),
        (
            {"extraction": manifest | {"weights_sha256": "0123"}},
            "are not the encoder that made the run's features (0123",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            predict.read_own_encoder(options, config | change)
    assert "features of 0 files, 3 were finished before" in run(extract, *command, f"--output={tmp_path / 'a'}")
    user_encoder("mine", tmp_path / "here", monkeypatch, "snippets[:, :2].mean((2, 3)).reshape(-1, 6)")
    assert "has other settings (weights_sha256: " in run(extract, *command, f"--output={tmp_path / 'a'}", code=1)
    weights = [f"--weights={figures / 'weights' / 'rgb.npz'}", f"--output={tmp_path / 'c'}"]
    run(extract, *command, *weights, "--workers=0")
    assert read_json(tmp_path / "c" / "figure_001.json")["weights_sha256"] != manifest["weights_sha256"]


def test_a_jax_encoder_of_the_user_is_compiled(figures, monkeypatch):
    traces = []

    def apply(variables, snippets):
        traces.append(snippets.shape)
        return snippets.mean((1, 2, 3)) * variables["scale"]

    function = jax.tree_util.Partial(apply, {"scale": np.float32(2)})
    encoder = Encoder(function, 3, window=2, size=4, shorter_side=4, mean=0, std=1)
    clips = np.random.default_rng(0).integers(0, 256, (4, 2, 4, 4, 3), np.uint8)
    found = [rows for _, rows in encode_batches(encoder, enumerate([clips, clips]), batch_size=4)]
    np.testing.assert_allclose(found[1], 2 * clips.mean((1, 2, 3)) / 255, rtol=1e-5)
    assert len(traces) == 1


def test_mistakes_of_an_encoder_end_in_one_sentence(figures, tmp_path, monkeypatch):
    video = [f"--videos={figures / 'videos' / 'figure_000.mp4'}", "--modality=rgb", f"--output={tmp_path / 'out'}"]
    for number, (returned, message) in enumerate(
        [
            (
                "snippets.mean((2, 3)).reshape(len(snippets), -1)",
                r"returned float32 [8, 24]; it must return floats [8, 6]",
            ),
            (
                "np.zeros((len(snippets) - 1, 6))",
                "returned float64 [7, 6]; it must return floats [8, 6] for 8 snippets",
            ),
            ("np.zeros((len(snippets), 6), int)", "returned int64 [8, 6]; it must return floats [8, 6] for 8 snippets"),
            ("None", "returned object []; it must return floats [8, 6] for 8 snippets"),
            ("[[0.0], [0.0, 1.0]]", "returned list, which is no NumPy array ("),
            ("np.full((len(snippets), 6), np.nan)", "figure_000.mp4: its features are not finite; check the encoder"),
        ]
    ):
        encoder = user_encoder(f"wrong_{number}", tmp_path / "here", monkeypatch, returned)
        assert message in run(extract, *video, encoder, "--workers=0", code=1).splitlines()[-1]
    (tmp_path / "here" / "odd.py").write_text(
        "import kd_jax\nnumber = 3\ndef no_arguments(): pass\ndef plain(weights): return len\n"
        "def encoder(weights):\n"
        "    from kd_jax.video.encoders import Encoder\n"
        "    return Encoder(len, num_features=0)\n"
    )
    (tmp_path / "here" / "lacks.py").write_text("import not_installed")
    for option, message in (
        ("none:make", "none cannot be imported (ModuleNotFoundError: No module named 'none')"),
        ("lacks:make", "lacks cannot be imported (ModuleNotFoundError: No module named 'not_installed')"),
        ("odd", "--encoder=odd must be MODULE:FUNCTION, for example my_encoder:make for make in my_encoder.py"),
        ("here/odd.py:plain", "must be MODULE:FUNCTION"),
        ("odd:absent", "odd.py has no function absent"),
        ("odd:number", "odd.py has no function number"),
        ("odd:no_arguments", "no_arguments must take one argument, the file of weights or None"),
        ("odd:plain", "plain returned a builtin_function_or_method, not a kd_jax.video.encoders.Encoder"),
        ("odd:encoder", "Encoder(num_features=0); it must be a whole number of at least 1"),
    ):
        assert message in run(extract, *video, f"--encoder={option}", code=1).splitlines()[-1]
    encoder = user_encoder("right", tmp_path / "here", monkeypatch)
    for more, message in (
        ("--dtype=bfloat16", "--dtype would have no effect on an --encoder"),
        ("--modality=flow", "--encoder=right:make is for rgb, not --modality=flow"),
        ("--weights=none.pth", "none.pth: there is no such file of encoder weights"),
    ):
        assert message in run(extract, *video, encoder, more, code=1).splitlines()[-1]
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"function": 3}, "Encoder(function=3); it must be a function of snippets"),
        ({"modality": "depth"}, "Encoder(modality='depth'); choose one of rgb, flow, pose"),
        ({"window": 1.5}, "Encoder(window=1.5); it must be a whole number of at least 1"),
        ({"mean": (0.5, 0.5)}, "Encoder(mean=(0.5, 0.5)); it must be one number, or three"),
        ({"mean": float("nan")}, "Encoder(mean=nan); it must be one number, or three"),
        ({"std": (1, 0, 1)}, "Encoder(std=(1, 0, 1)); it must be above 0"),
    ],
)
def test_fields_of_an_encoder_are_checked(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Encoder(**{"function": len, "num_features": 3} | fields)


@pytest.mark.parametrize("count, devices, rows", [(8, 1, 8), (5, 1, 8), (4, 1, 4), (1, 1, 1), (1, 4, 4), (3, 2, 4)])
def test_the_end_of_a_video_is_filled_up_to_the_next_half(count, devices, rows):
    assert encode_module._num_rows(count, 8, mock.Mock(size=devices)) == rows
    assert encode_module._num_rows(1, 6, mock.Mock(size=devices)) == {1: 3, 2: 6, 4: 4}[devices]


def extract_command(figures, videos, output, *more):
    weights = figures / "weights" / "rgb.npz"
    return [f"--videos={videos}", "--modality=rgb", f"--weights={weights}", f"--output={output}", *more]


def copy(figures, folder, **names):
    """Make a folder with copies of figures; `names` is {new name without its ending: number}."""
    folder.mkdir()
    for name, number in names.items():
        (folder / f"{name}.mp4").write_bytes((figures / "videos" / f"figure_{number:03d}.mp4").read_bytes())
    return folder


def test_the_command_resumes_and_lists_broken_files(figures, tmp_path):
    folder, output = copy(figures, tmp_path / "videos", a=0, b=1, c=2, S001C001P001R001A001_rgb=0), tmp_path / "rgb"
    (folder / "b.mkv").write_bytes((folder / "b.mp4").read_bytes())
    (folder / "text.avi").write_text("no video")
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:5000])
    for name in ("notes.txt", "a.srt", "b.srt", "c.srt"):
        (folder / name).write_text("no video")
    (folder / "more").mkdir()
    command = extract_command(figures, folder, output)
    printed = run(extract, *command, "--workers=2", code=1)
    assert f"{output}: features of 3 files\n" in printed and "4 could not be used" in printed
    assert "b.mkv and b.mp4 would both become b.npy; rename one" in printed
    for name in ("text.avi", "cut.mp4"):
        assert f"{name} cannot be read as a video" in printed
    assert "gone.mp4: there is no such file or folder" in printed
    assert "the ending is not that of a video: a.srt, b.srt, c.srt, … (4 in all)" in printed
    assert "its subfolders are not searched: more" in printed
    assert "6/6 " in printed and "c: 6 snippets" in printed and "cut: could not be used" in printed
    written = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert set(written) == {f"{name}.{end}" for name in ("a", "c", "S001C001P001R001A001") for end in ("npy", "json")}

    for name in ("b.mkv", "text.avi", "gone.mp4", "cut.mp4"):
        (folder / name).unlink()
    (output / "a.npy").unlink()  # as if it had been interrupted there
    (output / "S001C001P001R001A001.npy").write_bytes(b"")
    command += ["--workers=0"]
    printed = run(extract, *command)
    assert f"{output}: features of 3 files, 1 was finished before" in printed
    assert (output / "c.npy").stat().st_mtime_ns == written["c.npy"]

    (folder / "c.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "a.mp4").rename(folder / "d.mp4")
    printed = run(extract, *command, code=1)
    assert f"{output}: features of 1 file, 2 were finished before" in printed
    assert f"{output / 'c.npy'} was made of another file than {folder / 'c.mp4'} (bytes: " in printed
    printed = run(extract, *command, "--stride=8", code=1)
    assert ".npy has other settings (sampling: " in printed and "choose another --output" in printed


def test_features_may_be_next_to_the_videos_but_overwrite_no_other_file(figures, tmp_path):
    folder = copy(figures, tmp_path / "videos", a=0, b=1)
    (folder / "b.json").write_text('{"title": "b"}')
    command = extract_command(figures, folder, folder, "--workers=0")
    printed = run(extract, *command, code=1)
    assert "features of 1 file\n" in printed and "b.json is not a manifest of features and is left alone" in printed
    assert (folder / "b.json").read_text() == '{"title": "b"}'
    (folder / "b.json").unlink()
    np.save(folder / "b.npy", np.zeros(5))
    printed = run(extract, *command, code=1)
    assert "b.npy has no manifest b.json and is left alone" in printed and len(np.load(folder / "b.npy")) == 5
    (folder / "b.npy").unlink()
    assert "features of 1 file, 1 was finished before" in run(extract, *command)
    assert "features of 0 files, 2 were finished before" in run(extract, *command)

    (folder / "a.mp4").rename(folder / "film")
    command = extract_command(figures, folder / "film", tmp_path / "one", "--workers=0")
    assert "features of 1 file\n" in run(extract, *command)
    np.testing.assert_array_equal(np.load(tmp_path / "one" / "film.npy"), np.load(folder / "a.npy"))


def test_invalid_options_are_refused_in_one_sentence(figures, tmp_path):
    (tmp_path / "file").touch()
    np.save(tmp_path / "a.npy", np.zeros(3))
    good = {"videos": figures / "videos", "modality": "rgb", "weights": figures / "weights" / "rgb.npz"}
    good |= {"output": tmp_path / "out"}
    pose = {"videos": None, "skeletons": figures / "skeletons", "modality": "pose"}
    pose |= {"weights": figures / "weights" / "pose.npz"}
    cases = [
        (dict.fromkeys(good), "--modality is missing; for example --videos=DIR --modality=rgb --weights="),
        ({"videos": tmp_path / "none"}, "none: there is no such folder or file"),
        ({"videos": figures / "weights"}, "weights has no video file (.avi, "),
        ({"output": tmp_path / "file"}, f"--output={tmp_path / 'file'} cannot be made (File exists)"),
        ({"weights": tmp_path / "a.npy"}, "a.npy is not a file of encoder weights (it is no .npz file, or cut short)"),
        ({"modality": "flow"}, "are for rgb, not --modality=flow"),
        ({"flow": "dis"}, "--flow would have no effect on rgb; leave it out"),
        ({**pose, "size": 80, "shorter_side": 90}, "--shorter_side, --size would have no effect on pose"),
        ({"beam_options": "--x=1"}, "--beam_options would have no effect on this machine"),
        ({"runner": "DirectRunner", "workers": 1}, "--workers would have no effect on a --runner"),
        ({"size": 0}, "size=0; it must be at least 1"),
    ]
    for change, message in cases:
        arguments = [f"--{name}={value}" for name, value in {**good, **change}.items() if value is not None]
        assert message in run(extract, *arguments, code=1)
    assert not (tmp_path / "out").exists()


def test_help_shows_how_a_video_is_cut():
    for command in (extract, predict):
        printed = run(command, "--help")
        assert all(
            f"  --{name} " in printed for name in ("length", "stride", "last", "size", "shorter_side", "flow", "fps")
        )


@pytest.mark.slow
def test_an_interruption_leaves_no_incomplete_file(figures, tmp_path):
    output, videos = tmp_path / "out", copy(figures, tmp_path / "videos", **{f"video_{i}": i % 3 for i in range(5)})
    command = extract_command(figures, videos, output, "--stride=2", "--workers=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep.extract", *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background it is ignored
    )
    assert "CPU cores" in process.stderr.readline()
    assert process.stderr.readline().startswith("1/5 ")  # one file is done
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in printed
    assert printed.splitlines()[-1] == "data_prep.extract: interrupted; run the same command again"
    ends = time.monotonic() + 10  # of Python's own process that tracks resources
    while left := [child for child in children if Path(f"/proc/{child}").exists()]:
        assert time.monotonic() < ends, left
        time.sleep(0.1)
    assert len(children) > 2  # the workers, too
    names = sorted(path.name for path in output.iterdir())
    tables = [name for name in names if name.endswith(".npy")]
    assert set(names) >= {name.replace(".npy", ".json") for name in tables}
    assert not any(name.startswith(".") for name in names)
    printed = run(extract, *command)
    assert f"features of {5 - len(tables)} file" in printed


@pytest.mark.slow
def test_a_pipeline_gives_the_same(figures, tmp_path):
    command = [f"--videos={figures / 'videos'}", "--modality=flow", f"--weights={figures / 'weights' / 'flow.npz'}"]
    run(extract, *command, f"--output={tmp_path / 'here'}")
    videos = copy(figures, tmp_path / "videos", figure_000=0, figure_001=1, figure_002=2)
    (videos / "broken.mp4").write_text("no video")
    command[0] = f"--videos={videos}"
    printed = run(extract, *command, f"--output={tmp_path / 'beam'}", "--runner=DirectRunner", code=1)
    assert "features of 3 files" in printed and "broken.mp4 cannot be read as a video" in printed
    for path in (tmp_path / "here").iterdir():
        if path.suffix == ".npy":
            np.testing.assert_array_equal(np.load(path), np.load(tmp_path / "beam" / path.name))
    assert {path.name for path in (tmp_path / "beam").iterdir()} == {
        path.name for path in (tmp_path / "here").iterdir()
    }


def _count(start, stop, end):
    """Count and then end in the way `end` names. It is an item for the tests of `prefetch`."""
    yield from range(start, stop)
    if end == "error":
        raise VideoError("it went wrong")
    if end == "death":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_reader_ends_without_a_word_when_its_consumer_has_ended(monkeypatch):
    monkeypatch.setattr(prefetch.execution, "end_with_parent", lambda parent: None)
    ours, theirs = multiprocessing.Pipe()
    ours.send((0, 3, ""))
    ours.close()
    prefetch._serve(_count, theirs, os.getppid())


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_item_gives_its_messages_in_order_and_a_failure_affects_no_other(workers):
    items = [(0, 3, ""), (10, 12, "error"), (20, 22, "death" if workers else ""), (30, 35, ""), (40, 40, "")]
    messages = {index: [] for index in range(len(items))}
    for index, message in prefetch.run(_count, items, workers=workers):
        messages[index].append(message)
    for index, (start, stop, end) in enumerate(items):
        *numbers, last = messages[index]
        assert numbers == list(range(start, stop))
        assert isinstance(last, prefetch.Failed if end else prefetch.Finished)
    assert messages[1][-1] == "it went wrong" and (not workers or "ended (-9)" in messages[2][-1])
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("given", [1, 2])  # damaged behind the last snippet, too
def test_features_of_a_video_that_breaks_off_are_not_written(given, figures, tmp_path, monkeypatch):
    def broken(path, settings, batch_size):
        yield {"frames": 16 * given, "fps": 15.0, "snippets": 2, "seconds_per_snippet": 1.0}
        for _ in range(given):
            yield np.zeros((1, 16, 80, 80, 3), np.uint8)
        raise VideoError(f"{path} is damaged")

    monkeypatch.setattr(extract, "read_batches", broken)
    files = [("a", tmp_path / "a.mp4")]
    failed = extract.extract_features(tmp_path, settings(figures), files, batch_size=1, workers=0, progress=False)
    assert failed == {"a": f"{tmp_path / 'a.mp4'} is damaged"} and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_encoder_of_one_person_sees_the_first(figures, tmp_path):
    model = AGCN(3, width=0.25)
    write_weights(
        tmp_path / "one.npz", model, random_variables(model, "pose", 0, 1), modality="pose", source={}, persons=1
    )
    command = [f"--skeletons={figures / 'skeletons'}", "--modality=pose", f"--weights={tmp_path / 'one.npz'}"]
    run(extract, *command, f"--output={tmp_path / 'out'}", "--workers=0")
    weights = read_weights(tmp_path / "one.npz")
    bodies = normalize(read_skeletons(figures / "skeletons" / "figure_000.skeleton"))
    first = next(cut_snippets(bodies[:, :1], Sampling()))
    (alone,) = encode_alone(weights, first[None])
    np.testing.assert_allclose(np.load(tmp_path / "out" / "figure_000.npy")[0], alone, atol=ROUNDING)


@pytest.mark.slow
def test_a_killed_drawing_starts_again(tmp_path):
    left = tmp_path / f".figures.unfinished-{socket.gethostname()}-99999999" / "videos"
    left.mkdir(parents=True)
    (left / ".half.mp4").touch()
    run_process("data_prep.stickfigures", f"--output={tmp_path / 'figures'}", "--train=1", "--test=1", "--seconds=4")
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]
    names = {str(path.relative_to(tmp_path / "figures")) for path in (tmp_path / "figures").rglob("*.*")}
    assert {"videos/figure_000.mp4", "skeletons/figure_001.skeleton", "annotations.json"} <= names
    assert "videos/.half.mp4" not in names


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_encoding_keeps_keys_and_order_for_every_size_of_the_last_batch(count, figures):
    weights = read_weights(figures / "weights" / "pose.npz")
    bodies = read_skeletons(figures / "skeletons" / "figure_000.skeleton")
    made = cut_snippets(normalize(bodies), Sampling(stride=2))
    clips = [clip for clip, _ in zip(made, range(count), strict=False)]
    found = list(
        encode_batches(weights.encoder(), ((f"batch {i}", b) for i, b in enumerate(batched(clips, 4))), batch_size=4)
    )
    assert [key for key, _ in found] == [f"batch {i}" for i in range(-(-count // 4))]
    for feature, clip in zip((row for _, rows in found for row in rows), clips, strict=True):
        (alone,) = encode_alone(weights, clip[None])
        np.testing.assert_allclose(feature, alone, atol=ROUNDING)


@pytest.mark.slow
def test_eight_devices_encode_as_one(figures, tmp_path):
    program = f"""
import jax, numpy as np
from pathlib import Path
from kd_jax.video.encode import batched, encode_batches
from kd_jax.video.encoders.weights import read_weights
clips = np.random.default_rng(0).normal(0, [[[0.3]], [[0.0]]], (11, 16, 2, 25, 3)).astype(np.float32)  # one body
weights = read_weights(Path({str(figures / "weights" / "pose.npz")!r}))
assert jax.device_count() == DEVICES
rows = [rows for _, rows in encode_batches(weights.encoder(), enumerate(batched(clips, 6)), batch_size=6)]
np.save({str(tmp_path)!r} + "/DEVICES.npy", np.concatenate(rows))
"""
    for devices in ("1", "8"):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-c", program.replace("DEVICES", devices)]
        result = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "8.npy"), np.load(tmp_path / "1.npy"), atol=ROUNDING)


@pytest.fixture(scope="module")
def trained(figures, features, tmp_path_factory):
    """Make a folder with records of all figures and an RGB run that was distilled on them."""
    folder = tmp_path_factory.mktemp("trained")
    annotations = [f"--annotations={figures / 'annotations.json'}", f"--classes={figures / 'classes.txt'}"]
    folders = [f"--features={modality}={folder}" for modality, folder in features.items()]
    printed = run(build, "--dataset=custom", *annotations, *folders, f"--output={folder / 'records'}")
    assert "a snippet lasts" not in printed
    settings = [f"--config.dataset.data_dir={folder / 'records'}", "--config.dataset.validation_fraction=0.0"]
    settings += ["--config.training.epochs=1", "--config.model.hidden=8", "--config.seeds=1"]
    table = run_process(
        "kd_jax.main", "--config=configs/stickfigures.py", *settings, f"--workdir={folder}", "--noreport"
    )
    assert "flow_teacher + pose_teacher" in table or "flow_teacher, pose_teacher" in table
    return folder


def predict_command(figures, trained):
    """Return the options that predict the test video: the run, the video, the encoder and the threshold."""
    return [
        f"--run={trained / 'augmented_rgb'}",
        f"--video={figures / 'videos' / 'figure_002.mp4'}",
        f"--encoder_weights={figures / 'weights' / 'rgb.npz'}",
        "--threshold=0.3",
    ]


@pytest.mark.slow
def test_from_pixels_to_detections(figures, features, trained, tmp_path):
    command = predict_command(figures, trained)
    truth = f"--annotations={figures / 'annotations.json'}"
    kinds = [f"--format={kind}" for kind in ("native", "pku_mmd", "label_studio")]
    printed = run(predict, *command, truth, f"--output={tmp_path / 'out'}", *kinds)
    manifest = read_json(features["rgb"] / "figure_002.json")
    seconds = manifest["seconds_per_snippet"]
    assert "1 video, " in printed and f"{seconds:.4g} s a snippet" in printed and "figure_002.png" in printed
    scores = read_arrays(tmp_path / "out" / "scores.npz")["figure_002"]
    subset = read_json(figures / "annotations.json")["figure_002"]["subset"]
    records = [f"--features={trained / 'records'}", f"--split={subset.removesuffix('ing')}"]
    run(predict, command[0], command[-1], *records, f"--output={tmp_path / 'same'}")
    np.testing.assert_allclose(scores, read_arrays(tmp_path / "same" / "scores.npz")["figure_002"], atol=1e-4)
    found, same = (
        [
            (d["class"], d["start"], d["end"])
            for d in json.loads((tmp_path / out / "detections.json").read_text())
            if d["video"] == "figure_002"
        ]
        for out in ("out", "same")
    )
    assert found and sorted(found) == sorted(same)
    loaded, weights = kd_jax.load(trained / "augmented_rgb"), figures / "weights" / "rgb.npz"
    of_video = loaded.detect_video(figures / "videos" / "figure_002.mp4", weights, threshold=0.3)
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert of_video == [(d["class"], d["start"], d["end"], d["score"]) for d in written]
    (tmp_path / "folder").mkdir()
    shutil.copy(figures / "videos" / "figure_002.mp4", tmp_path / "folder")
    (tmp_path / "folder" / "notes.txt").touch()
    of_folder = [f"--video={tmp_path / 'folder'}" if "--video" in part else part for part in command]
    run(predict, *of_folder, f"--output={tmp_path / 'of_folder'}")
    assert json.loads((tmp_path / "of_folder" / "detections.json").read_text()) == written
    printed = run(predict, *command, "--stride=8", "--fps=15", f"--output={tmp_path / 'coarse'}")
    assert manifest["fps"] == 15 and f"{8 / 15:.4g} s a snippet" in printed  # options override the run's sampling
    picture = cv2.imread(str(tmp_path / "out" / "figure_002.png"))
    assert picture.shape[1] > 1000 and picture[: len(picture) // 3].std() > 20  # frames along the top
    assert (tmp_path / "out" / "pku_mmd" / "figure_002.txt").exists()
    page = (tmp_path / "out" / "figure_002.html").read_text()
    (content,) = re.findall(r'id="data">(.*?)</script>', page)
    (video,) = json.loads(content)["videos"]
    actions = read_json(figures / "annotations.json")["figure_002"]["actions"]
    np.testing.assert_allclose(video["truth"], actions, atol=1e-3)
    assert (tmp_path / "out" / video["file"]).samefile(figures / "videos" / "figure_002.mp4")
    assert (tmp_path / "out" / video["picture"]).exists() and video["snippets"] == len(scores)
    (task,) = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert task["data"] == {"video": "figure_002.mp4", "fps": 15.0}
    assert len(task["predictions"][0]["result"]) == len(found)
    (tmp_path / "others.json").write_text('{"x": {"subset": "testing", "duration": 1, "actions": []}}')
    wrong = f"--annotations={tmp_path / 'others.json'}"
    assert "such as 'figure_002', is in" in run(predict, *command, wrong, f"--output={tmp_path}", code=1)

    damaged = bytearray((figures / "videos" / "figure_002.mp4").read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 400] = bytes(400)
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    more = [f"--video={tmp_path / name}" for name in ("damaged.mp4", "none.mp4")]  # do not affect the others
    printed = run(predict, *more, *command, f"--output={tmp_path / 'most'}", code=1)
    assert "1 video, " in printed and "2 could not be used:" in printed
    assert "damaged.mp4 is damaged" in printed and "none.mp4: there is no such file or folder" in printed
    np.testing.assert_array_equal(read_arrays(tmp_path / "most" / "scores.npz")["figure_002"], scores)


@pytest.mark.slow
def test_predictions_of_videos_refuse_other_encoders_and_options_without_effect(figures, trained, tmp_path):
    command = predict_command(figures, trained)
    _, video, encoder, threshold = command
    other = read_weights(figures / "weights" / "rgb.npz")
    write_weights(tmp_path / "other.npz", other.model, other.variables, modality="rgb", source={"file": "another"})
    for option, replacement, message in (
        (encoder, f"--encoder_weights={figures / 'weights' / 'flow.npz'}", "features of flow; the run reads"),
        (video, f"--video={figures / 'classes.txt'}", "classes.txt cannot be read as a video"),
        (encoder, f"--encoder_weights={tmp_path / 'other.npz'}", "are not the weights that made the run's features"),
        (threshold, "--flow=dis", "--flow would have no effect on rgb; leave it out"),
        (threshold, "--seconds_per_snippet=1", "--seconds_per_snippet would have no effect on --video"),
        (threshold, "--stride=0", "stride=0; it must be at least 1"),
    ):
        changed = [replacement if part == option else part for part in command]
        printed = run(predict, *changed, f"--output={tmp_path / 'none'}", code=1)
        assert message in printed.splitlines()[-1]


def test_videos_of_folders_are_listed(tmp_path):
    names = "films/a.mp4 films/b.MOV films/.c.mp4 films/notes.txt frames/one/1.jpg other/x.txt more/a.avi"
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    films, frames = tmp_path / "films", tmp_path / "frames"
    assert list_videos([films]) == {"a": films / "a.mp4", "b": films / "b.MOV"}
    assert list_videos([frames]) == list_videos([frames / "one"]) == {"one": frames / "one"}
    for places, message in (
        ([tmp_path / "other"], f"{tmp_path / 'other'} has no video file ("),
        ([films, films / "a.mp4", tmp_path / "more"], "have the same name; predict them into two --output folders"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            list_videos(places)


def test_folders_of_frames_are_videos(tmp_path):
    for folder in ("clip_1", "clip_2"):
        (tmp_path / "frames" / folder).mkdir(parents=True)
        for number in (1, 2):
            (tmp_path / "frames" / folder / f"{folder}-{number:06d}.jpg").touch()
    (tmp_path / "frames" / "notes").mkdir()
    files, failed, notes = extract.files_of(tmp_path / "frames", "rgb")
    assert files == {name: tmp_path / "frames" / name for name in ("clip_1", "clip_2")} and not failed
    assert notes == [f"{tmp_path / 'frames'}: its subfolders are not searched: notes"]
    (tmp_path / "frames" / "film.mp4").touch()  # then the pictures are its thumbnails
    files, _, notes = extract.files_of(tmp_path / "frames", "rgb")
    assert list(files) == ["film"] and notes[0].endswith("its subfolders are not searched: clip_1, clip_2, notes")
    one, _, _ = extract.files_of(tmp_path / "frames" / "clip_1", "flow")
    assert one == {"clip_1": tmp_path / "frames" / "clip_1"}
