"""Feature files: shapes, files with several modalities, padding, and messages."""

import json

import numpy as np
import pytest

from kd_jax.data import base, feature_files, manifests, timing
from kd_jax.data.annotations.cleaning import Annotated, Labels, annotate, check_action
from kd_jax.data.checks import (
    CLIPPED,
    CROPPED,
    LATE,
    LENGTH_DIFFERS,
    NO_MANIFEST,
    PADDED,
    SKIPPED,
    TOO_SHORT,
    UNANNOTATED,
    Findings,
)
from kd_jax.data.feature_files import check_file
from kd_jax.data.feature_folders import FeatureFolder

TABLE = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
EXPECTED = TABLE.astype(np.float16)


def save(path, array, **arrays):
    np.savez(path, **arrays) if arrays else np.savez(path, array) if path.suffix == ".npz" else np.save(path, array)
    return path


@pytest.mark.parametrize(
    "array, channels_first",
    [
        (TABLE, False),
        (TABLE.astype(np.float16), False),
        (TABLE.astype(np.float64), False),
        (TABLE.reshape(7, 1, 1, 4), False),
        (TABLE[None], False),
        (TABLE[None, :, None], False),
        (np.asfortranarray(TABLE), False),
        (TABLE.T, True),
        (TABLE.T[None], True),
        (TABLE.T[None, :, :, None, None], True),
        (TABLE.T.copy(), True),
    ],
    ids=["T,D", "float16", "float64", "T,1,1,D", "1,T,D", "1,T,1,D", "Fortran", "D,T", "1,D,T", "1,D,T,1,1", "copied"],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_every_shape_in_use(tmp_path, array, channels_first, suffix):
    path, findings = save(tmp_path / f"v.{suffix}", array), Findings()
    folder = FeatureFolder(("rgb",), tmp_path, channels_first)
    assert check_file(folder, path, "v", findings) == (7, 4)
    findings.raise_problems()
    loaded = folder.load(path, "v")
    assert loaded.dtype == array.dtype
    loaded = base.to_dtype(loaded, "float16")
    np.testing.assert_array_equal(loaded, EXPECTED)


@pytest.mark.parametrize("channels_first, shape", [(False, (7,)), (False, (7, 2, 4)), (True, (4,)), (True, (4, 2, 7))])
def test_other_shapes_are_refused(tmp_path, channels_first, shape):
    path, findings = save(tmp_path / "v.npy", np.ones(shape)), Findings()
    assert check_file(FeatureFolder(("rgb",), tmp_path, channels_first), path, "v", findings) is None
    (kind,) = findings.problems
    is_grid = len(shape) == 3 and not (channels_first and shape[0] == 1)
    assert kind == ("feature shape, see --pool=mean for grids of tokens" if is_grid else "feature shape")
    assert str(list(shape)) in findings.problems[kind][0]


def test_an_npz_holds_one_array(tmp_path):
    path, findings = save(tmp_path / "v.npz", None, rgb=TABLE, flow=TABLE), Findings()
    folder = FeatureFolder(("rgb",), tmp_path)
    assert check_file(folder, path, "v", findings) is None
    assert "it holds 2 arrays (rgb, flow), expected one" in findings.problems["unreadable feature file"][0]
    (tmp_path / "w.npz").write_bytes(path.read_bytes()[:100])
    (tmp_path / "x.npz").write_bytes(save(tmp_path / "x.npy", TABLE).read_bytes())
    objects = save(tmp_path / "y.npz", np.array([["x"], [None]], object))
    for broken in (tmp_path / "w.npz", tmp_path / "x.npz", objects):
        assert check_file(folder, broken, broken.stem, findings) is None
    assert len(findings.problems["unreadable feature file"]) == 3
    assert findings.problems["feature type"] == [f"rgb: {objects}: object, expected real numbers"]


@pytest.fixture
def folders(tmp_path):
    return [FeatureFolder(("rgb", "flow"), tmp_path / "i3d"), FeatureFolder(("pose",), tmp_path / "pose")]


def fill(folders, lengths):
    """Writes files of 6 and 3 channels for {video: (T of the first folder, T of the second)}."""
    for folder, size in zip(folders, (6, 3), strict=True):
        folder.path.mkdir(exist_ok=True)
        for video, of_folders in lengths.items():
            length = of_folders[folders.index(folder)]
            save(folder.path / f"{video}.npy", np.arange(length * size, dtype=np.float32).reshape(length, size))


def annotated(video, duration, rows=(), **others) -> Annotated:
    findings = Findings()
    checked = [check_action(video, list(row), Labels("abcdefghi"), findings) for row in rows]
    return annotate(video, "train", duration, checked, findings, **others)


def match(videos, folders, findings, **options):
    shapes = {}
    for video in videos:
        shapes[video.id], found = feature_files.check_video_files(video.id, folders)
        findings.add(found.as_json())
    return feature_files.match(videos, folders, shapes, findings, timing.Timing(**{"fps": 30.0, **options}))


def test_two_modalities_in_one_file(folders):
    fill(folders, {"v": (5, 4)})
    findings = Findings()
    (matched,), sizes = match([annotated("v", 10.0)], folders, findings)
    assert sizes == {"rgb": 3, "flow": 3, "pose": 3}
    video = feature_files.load(matched)
    whole = np.arange(30).reshape(5, 6)[:4]
    np.testing.assert_array_equal(video.features["rgb"], whole[:, :3])
    np.testing.assert_array_equal(video.features["flow"], whole[:, 3:])
    assert video.features["pose"].shape == (4, 3)
    assert findings.handled[CROPPED] == ["v: rgb+flow 5, pose 4"]


def test_channels_that_do_not_divide_into_modalities(tmp_path):
    folder = FeatureFolder(("rgb", "flow"), tmp_path)
    save(tmp_path / "v.npy", np.ones((4, 7)))
    shapes, findings = feature_files.check_video_files("v", [folder])
    assert shapes == {} and "D = 7 has no 2 equal parts (rgb, flow)" in findings.problems["wrong dimension"][0]


def test_two_files_for_one_video_and_none(tmp_path):
    folder = FeatureFolder(("rgb",), tmp_path)
    for suffix in ("npy", "npz"):
        save(tmp_path / f"v.{suffix}", TABLE)
    assert "remove one" in feature_files.check_video_files("v", [folder])[1].problems["two feature files"][0]
    shapes, findings = feature_files.check_video_files("w", [folder])
    assert shapes == {} and list(findings.problems) == ["missing feature file, see --skip_missing"]
    shapes, findings = feature_files.check_video_files("w", [folder], skip_missing=True)
    assert shapes is None and not findings.problems and len(findings.handled[SKIPPED]) == 1
    findings = Findings()
    assert feature_files.check_folders([folder], ["v", "w"], findings) == [folder] and not findings.handled
    feature_files.check_folders([folder], ["v"], findings)
    assert not findings.handled
    save(tmp_path / "z.npy", TABLE)
    feature_files.check_folders([folder], ["v"], findings)
    assert findings.handled[UNANNOTATED] == [f"rgb: {tmp_path / 'z.npy'}"]


def test_padding_aligns_overlapping_windows_with_their_centres(folders):
    """16 frames every 4 of a 100-frame video: 22 windows with centres 8, 12, … 92. Row i must be at 4i."""
    fill(folders, {"v": (22, 22)})
    findings = Findings()
    video = annotated("v", 100 / 25, fps=25.0)
    (matched,), _ = match([video], folders, findings, stride=4, window=16)
    loaded = feature_files.load(matched)
    assert loaded.num_snippets == 25 and findings.handled[PADDED] == ["v: 2 before, 1 after 22"]
    windows = 8 + 4 * np.arange(22)
    first = np.arange(22) * 3.0  # the first channel of pose in the file
    for i, value in enumerate(loaded.features["pose"][:, 0]):
        nearest = np.abs(windows - 4 * i).argmin()
        assert value == first[nearest], i


@pytest.mark.parametrize("length", [25, 26, 12], ids=["one per stride", "one more", "another stride"])
def test_features_of_another_length_are_not_padded(folders, length):
    fill(folders, {"v": (length, length)})
    findings = Findings()
    (matched,), _ = match([annotated("v", 100 / 25, fps=25.0)], folders, findings, stride=4, window=16)
    assert feature_files.load(matched).num_snippets == length
    assert findings.handled.get(LENGTH_DIFFERS, []) == (
        ["v: 12 snippets every 0.16 s end at 2.4 s, but the video at 4 s"] if length == 12 else []
    )
    assert matched.grid.length == (4.0 if length == 12 else pytest.approx(0.16 * length))


def test_a_duration_known_only_from_the_features(folders):
    fill(folders, {"v": (5, 5)})
    findings = Findings()
    rows = [(0, 10.0, 40.0), (1, 70.0, 90.0), (2, 80.0, 85.0)]
    (matched,), _ = match([annotated("v", np.inf, rows)], folders, findings, stride=16)
    video = feature_files.load(matched)
    assert video.duration == 80
    np.testing.assert_array_equal(video.segments, [[0, 10, 40], [1, 70, 80]])
    np.testing.assert_array_equal(video.written, rows)
    assert {kind: len(cases) for kind, cases in findings.handled.items()} == {CLIPPED: 1, LATE: 1, TOO_SHORT: 1}


MADE = {
    "modality": "pose",
    "weights_sha256": "12ab",
    "sampling": {"stride": 8},
    "sampled_fps": None,
    "dtype": "float32",
    "seconds_per_snippet": 0.5,
}


WHOLE = MADE | {"sampling": {"length": 16, "stride": 8}, "fps": 16.0, "frames": 48, "snippets": 5}


@pytest.mark.parametrize(
    "changes, kind, case",
    [
        ({}, "", ""),
        ({"fps": float("nan")}, "unreadable manifest", "fps is NaN, expected a number above 0"),
        ({"fps": "16"}, "unreadable manifest", 'fps is "16", expected a number above 0'),
        ({"frames": -4}, "unreadable manifest", "frames is -4, expected a number above 0"),
        ({"sampling": {"length": 0, "stride": 8}}, "unreadable manifest", "sampling.length is 0, expected a number"),
        ({"sampling": "x"}, "unreadable manifest", 'sampling is "x", expected an object'),
        ({"sampling": {"length": 16, "stride": 16}}, "unreadable manifest", "its stride and fps make 1 s per snippet"),
        ({"modality": "flow"}, "features of another modality", 'it describes features of "flow", expected pose; give'),
        ({"snippets": 7}, "features of another extraction", "5 rows, but its manifest v.json counts 7; extract the"),
    ],
)
def test_a_manifest_that_cannot_be_that_of_the_features_is_a_problem(changes, kind, case, folders):
    fill(folders, {"v": (5, 5)})
    (folders[1].path / "v.json").write_text(json.dumps(WHOLE | changes))
    findings = Findings()
    match([annotated("v", 3.0)], folders, findings)
    assert list(findings.problems) == [kind] * bool(kind)
    assert all(case in line and "v.json" in line for line in findings.problems[kind])


def test_a_manifest_without_a_field_is_a_problem(folders):
    (folders[1].path).mkdir()
    (folders[1].path / "v.json").write_text(json.dumps({name: WHOLE[name] for name in WHOLE if name != "sampling"}))
    findings = Findings()
    assert manifests.read_manifest(folders[1].path / "v.npy", findings) is None
    assert "v.json: the field sampling is missing; extract" in findings.problems["unreadable manifest"][0]


@pytest.mark.parametrize(
    "stated, problem, noted",
    [
        ({}, "", 0),
        ({"a": MADE, "b": MADE | {"seconds_per_snippet": 0.9, "frames": 7}, "c": MADE}, "", 0),
        ({"a": MADE, "b": MADE}, "", 1),
        ({"a": MADE, "b": MADE, "c": {"title": "no manifest"}}, "", 1),
        ({"a": MADE, "b": MADE, "c": MADE | {"sampling": {"stride": 4}}}, 'sampling {"stride": 4}, others', 0),
        ({"a": MADE, "b": MADE | {"dtype": "bfloat16", "sampled_fps": 5.0}, "c": MADE}, "sampled_fps 5.0, others n", 0),
    ],
)
def test_manifests_say_how_features_were_made_if_all_agree(stated, problem, noted, folders):
    fill(folders, dict.fromkeys("abc", (5, 5)))
    for video, manifest in stated.items():
        (folders[1].path / f"{video}.json").write_text(json.dumps(manifest))
        (folders[0].path / f"{video}.json").write_text("{")  # how two modalities were made is unknown
    findings = Findings()
    matched, _ = match([annotated(video, 10.0) for video in "abc"], folders, findings)
    made = feature_files.how_made(matched, folders, findings)
    assert made == ({"pose": MADE} if stated and not noted else {})
    found = findings.problems["features made in different ways"]
    assert len(found) == bool(problem) and all(problem in line for line in found)
    assert len(findings.handled[NO_MANIFEST]) == noted
