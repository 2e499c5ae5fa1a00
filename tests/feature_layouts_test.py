"""Layouts of feature files: patterns of names, formats, shapes, damaged headers, and precision."""

import json
import pickle
import re
import shlex
import struct
import unicodedata
import zipfile

import ml_dtypes
import numpy as np
import pytest

from data_prep.build import Options, build_records, parse_features
from data_prep.report import describe_report
from kd_jax.data import base, checks, records
from kd_jax.data.batches import collate, make_examples
from kd_jax.data.checks import DataError, Findings
from kd_jax.data.feature_files import check_file, check_folders
from kd_jax.data.feature_folders import FeatureFolder, parse_place
from kd_jax.data.feature_tables import as_table, open_array
from kd_jax.data.precision import Statistics
from kd_jax.files import read_json, write_json
from kd_jax.predict import read_features, read_inputs
from kd_jax.segments import Grid
from kd_jax.training.checkpoints import TrainedRun
from kd_jax.training.run import fit_standardization

D = 6
LENGTHS = {"a": 20, "b": 14, "v[1]*": 9}  # a video whose name has the characters of a glob
RNG = np.random.default_rng(0)
TABLES = {video: RNG.standard_normal((length, D)).astype(np.float32) for video, length in LENGTHS.items()}


def write(path, array, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays) if arrays else np.save(path, array)


def each(path_of, change=lambda x: x):
    """Writes one file a video; returns a function of the folder."""
    return lambda root: [write(root / path_of(video), change(table)) for video, table in TABLES.items()]


def build(root, place, **options):
    """Builds records from `--features=rgb=PLACE` below `root` and returns the report and the features by video."""
    subsets = dict.fromkeys(LENGTHS, "training") | {"b": "testing"}
    annotations = {
        video: {"subset": subsets[video], "duration": length / 2, "actions": [["x", 0.6, 3.0]]}
        for video, length in LENGTHS.items()
    }
    (root / "annotations.json").write_text(json.dumps(annotations))
    files = {"annotations": [str(root / "annotations.json")], "features": [f"rgb={root / place}"]}
    _, report = build_records(Options("custom", str(root / "out"), **files, **options))
    videos = [video for split in base.SPLITS for video in records.read(root / "out", split)]
    return report, {video.id: video.features["rgb"] for video in videos}


def assert_stored(features, dtype=np.float16, tables=TABLES):
    assert features.keys() == tables.keys()
    for video, table in features.items():
        assert table.dtype == dtype
        np.testing.assert_array_equal(table, np.asarray(tables[video], dtype))


def csv(heading=""):
    def fill(root):
        root.mkdir(parents=True, exist_ok=True)
        for video, table in TABLES.items():
            np.savetxt(root / f"{video}.csv", table, "%.9g", ",", header=heading, comments="")

    return fill


def torch_files(form, **save_options):
    def fill(root):
        torch = pytest.importorskip("torch", reason="pip install 'kd_jax[torch]'")
        root.mkdir(parents=True, exist_ok=True)
        for video, table in TABLES.items():
            torch.save(form(torch.tensor(table)), root / f"{video}.pt", **save_options)

    return fill


def hdf5_all(name_of):
    def fill(root):
        h5py = pytest.importorskip("h5py", reason="pip install 'kd_jax[features]'")
        root.mkdir(parents=True, exist_ok=True)
        with h5py.File(root / "all.h5", "w") as file:
            for video, table in TABLES.items():
                file[name_of(video)] = table

    return fill


def hdf5_each(root):
    h5py = pytest.importorskip("h5py", reason="pip install 'kd_jax[features]'")
    root.mkdir(parents=True, exist_ok=True)
    for video, table in TABLES.items():
        with h5py.File(root / f"{video}.h5", "w") as file:
            file["rgb"], file["fps"] = table, 25.0


def npz(root):
    for video, table in TABLES.items():
        write(root / f"{video}.npz", None, rgb=table, flow=table + 1, fps=np.array(25.0))


def npz_all(root):
    write(root / "all.npz", None, **TABLES)


LAYOUTS = {  # {name: (fills a folder, what follows --features=rgb=FOLDER/, options)}
    "suffix": (each(lambda v: f"{v}_rgb.npy"), "{video}_rgb.npy", {}),
    "prefix": (each(lambda v: f"v_{v}.npy"), "v_{video}.npy", {}),
    "folder of the video": (each(lambda v: f"{v}/rgb.npy"), "{video}/rgb.npy", {}),
    "folder and name": (each(lambda v: f"x {v}/{v}.mp4.npy"), "x {video}/{video}.mp4.npy", {}),
    "subfolders": (each(lambda v: f"{'test' if v == 'b' else 'train'}/{v}.npy"), "", {}),
    "glob characters": (each(lambda v: f"[ab]*/{v}.npy"), "[ab]*/{video}.npy", {}),
    "npz": (npz, "{video}.npz:rgb", {}),
    "one npz": (npz_all, "all.npz:{video}", {}),
    "csv": (csv(), "{video}.csv", {}),
    "csv with names": (csv("".join(f"x{i}," for i in range(D))[:-1]), "{video}.csv", {}),
    "csv with numbers": (csv("0,1,2,3,4,5"), "{video}.csv", {}),
    "pt": (torch_files(lambda x: x), "{video}.pt", {}),
    "pt with gradient": (torch_files(lambda x: x.requires_grad_()), "{video}.pt", {}),
    "pt of old torch": (torch_files(lambda x: x, _use_new_zipfile_serialization=False), "{video}.pt", {}),
    "pt of a dict": (torch_files(lambda x: {"rgb": x, "mask": x[:, 0], "fps": 25}), "{video}.pt:rgb", {}),
    "hdf5 a video": (hdf5_each, "{video}.h5:rgb", {}),
    "hdf5": (hdf5_all(lambda v: v), "all.h5", {}),
    "hdf5 with groups": (hdf5_all(lambda v: f"{v}/rgb"), "all.h5:{video}/rgb", {}),
    "[1, T, D]": (each(lambda v: f"{v}.npy", lambda x: x[None]), "", {}),
    "[T, 1, 1, D]": (each(lambda v: f"{v}.npy", lambda x: x[:, None, None]), "", {}),
    "[T, D, 1, 1, 1]": (each(lambda v: f"{v}.npy", lambda x: x[..., None, None, None]), "", {}),
    "[1, T, D, 1, 1]": (each(lambda v: f"{v}.npy", lambda x: x[None, ..., None, None]), "", {}),
    "[D, T]": (each(lambda v: f"{v}.npy", lambda x: x.T), "", {"channels_first": ["rgb"]}),
    "[1, D, T]": (each(lambda v: f"{v}.npy", lambda x: x.T[None]), "", {"channels_first": ["rgb"]}),
    "[T, N, D]": (each(lambda v: f"{v}.npy", lambda x: np.stack([x, x, x], 1)), "", {"pool": "mean"}),
    "[T, H, W, D]": (
        each(lambda v: f"{v}.npy", lambda x: np.stack([x] * 4, 1).reshape(-1, 2, 2, D)),
        "",
        {"pool": "mean"},
    ),
    "[1, D, T, H, W]": (
        each(lambda v: f"{v}.npy", lambda x: np.broadcast_to(x.T[None, ..., None, None], (1, *x.T.shape, 2, 2))),
        "",
        {"channels_first": ["rgb"], "pool": "mean"},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_builds_the_same_records(layout, tmp_path):
    fill, place, options = LAYOUTS[layout]
    fill(tmp_path / "features")
    report, features = build(tmp_path, f"features/{place}", **options)
    assert_stored(features)
    assert report["handled"] == {} and report["dtypes"] == {"rgb": "float16"}


def test_prediction_lists_a_folder_once(tmp_path, monkeypatch):
    LAYOUTS["suffix"][0](tmp_path / "f")
    (tmp_path / "f" / "a_timestamps_ms.npy").unlink(missing_ok=True)
    listed = []
    own = FeatureFolder.files
    monkeypatch.setattr(FeatureFolder, "files", lambda self: listed.append(self) or own(self))
    config = {"modality": "rgb", "input_size": D, "seconds_per_snippet": 2.0, "first_snippet": 0.5}
    inputs = read_inputs(tmp_path / "f/{video}_rgb.npy", None, TrainedRun(None, {}, config), None)
    assert_stored(inputs.features)
    assert len(listed) == 1 and inputs.grids["a"] == Grid(0.5, 2.0 * len(TABLES["a"]))


def test_prediction_reads_the_same_layouts(tmp_path):
    for layout in ("suffix", "npz", "one npz", "csv", "[D, T]", "[T, N, D]"):
        fill, place, options = LAYOUTS[layout]
        folder = tmp_path / layout
        fill(folder)
        options = {"channels_first": "channels_first" in options, "pool": "pool" in options}
        assert_stored(read_features(f"{folder}/{place}", "rgb", D, **options))
    single = read_features(tmp_path / "csv" / "a.csv", "rgb", D, "float32")
    assert_stored(single, np.float32, {"a": TABLES["a"]})


@pytest.mark.parametrize(
    "layout, place, suggested",
    [
        ("suffix", "", "{video}_rgb.npy, which fits 3 of 3 videos, e.g. 'a'"),
        ("prefix", "", "v_{video}.npy, which fits 3 of 3"),
        ("folder of the video", "", "{video}/rgb.npy, which fits 3 of 3"),
        ("csv", "", "{video}.csv, which fits 3 of 3"),
        ("suffix", "{video}_flow.npy", "{video}_rgb.npy, which fits 3 of 3"),
        ("data/a", "", "data_{video}_data.npy, which fits 3 of 3"),
        ("npz", "x_{video}.npz:rgb", "{video}.npz:rgb, which fits 3 of 3"),
        ("hdf5 with groups", "all.h5", "all.h5:{video}/rgb, which fits 3 of 3"),
    ],
)
def test_names_that_do_not_fit_are_one_problem_with_the_pattern_that_would(layout, place, suggested, tmp_path):
    fill = LAYOUTS[layout][0] if layout in LAYOUTS else each(lambda v: f"data_{v}_data.npy")
    fill(tmp_path / "f")
    with pytest.raises(DataError) as caught:
        build(tmp_path, f"f/{place}")
    lines = str(caught.value).splitlines()
    shown = suggested if suggested.startswith("all") else f"f/{suggested}"
    pattern, count = (shown if shown[0] == "f" else f"f/{shown}").split(",", 1)
    assert len(lines) == 3 and f"write --features='rgb={tmp_path}/{pattern}',{count}" in lines[2]


def test_names_of_other_videos_are_shown(tmp_path):
    write(tmp_path / "f/zz9.npy", TABLES["a"])
    with pytest.raises(
        DataError,
        match=r"has no file <video>\.npy: none of the 3 names .*, such as 'a', is in .*, which has 'zz9'$",
    ):
        build(tmp_path, "f")


def test_names_are_found_in_any_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    write(tmp_path / f"f/{decomposed}/{decomposed}_rgb.npy", TABLES["a"])
    folder = FeatureFolder(("rgb",), tmp_path / "f", pattern="{video}/{video}_rgb.npy")
    assert list(folder.files()) == [composed] and folder.find(composed) == list(folder.files().values())
    write(tmp_path / "all.npz", None, **{decomposed: TABLES["a"]})
    folder = FeatureFolder(("rgb",), tmp_path / "all.npz", array="{video}")
    np.testing.assert_array_equal(folder.load(*folder.find(composed), composed), TABLES["a"])


def test_no_pattern_leads_out_of_its_folder(tmp_path):
    write(tmp_path / "secret.npy", TABLES["a"])
    (tmp_path / "f").mkdir()
    for pattern in ("", "{video}.npy", "v_{video}.npy"):
        folder = FeatureFolder(("rgb",), tmp_path / "f", pattern=pattern)
        assert [folder.find(video) for video in ("../secret", "..", "x/../../secret", "")] == [[]] * 4
    with pytest.raises(ValueError, match="must be a plain path below DIR"):
        parse_place("DIR/{video}/../../secret.npy")


@pytest.mark.parametrize(
    "text, message",
    [
        ("DIR/{vid}_rgb.npy", r"write \{video\} in place of the name of the video, as in DIR/\{video\}_rgb\.npy"),
        ("DIR/*_rgb.npy", r"as in DIR/\{video\}_rgb\.npy"),
        ("DIR/v1.npy", r"as in DIR/\{video\}\.npy"),
        ("all.npz:v1", r"one file for all videos needs an array for each, as in all\.npz:\{video\}"),
        ("DIR/{video}.pkl", r"feature files end in \.npy, .*, not in \.pkl; convert them"),
    ],
)
def test_places_that_cannot_be_meant(text, message):
    with pytest.raises(ValueError, match=f"--features=rgb=.*{message}"):
        parse_features([f"rgb={text}"])


@pytest.mark.parametrize("library, suffix, extra", [("h5py", ".h5", "features"), ("torch", ".pt", "torch")])
def test_a_missing_library_is_one_sentence(library, suffix, extra, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == library else True)
    with pytest.raises(ValueError, match=rf"{suffix} files need {library}.*pip install 'kd_jax\[{extra}\]'"):
        parse_features([f"rgb=DIR/{{video}}{suffix}"])


def test_a_name_that_occurs_in_two_subfolders_is_a_mistake(tmp_path):
    for name in ("rgb/a.npy", "flow/a.npy", "rgb/b.npy", "rgb/v[1]*.npy"):
        write(tmp_path / "f" / name, TABLES["a"])
    with pytest.raises(DataError, match=r"two feature files \(1\):\n.*flow/a.npy and .*rgb/a.npy; remove one"):
        build(tmp_path, "f")
    mixed = r"files of different modalities, .*flow/a.npy \(flow\) and .*rgb/a.npy \(rgb\); "
    with pytest.raises(ValueError, match=mixed + r"state .*='rgb=.*rgb/\{video\}.npy"):
        read_features(tmp_path / "f", "rgb", D)
    for name in ("one/a.npy", "two/a.npy", "two/b.npy"):
        write(tmp_path / "g" / name, TABLES["a"])
    with pytest.raises(DataError, match=r"two feature files \(1\):\n.*one/a.npy and .*two/a.npy; remove one"):
        read_features(tmp_path / "g", "rgb", D)
    write(tmp_path / "f/other.npy", TABLES["a"])  # now only the folder itself counts
    findings = Findings()
    assert check_folders([FeatureFolder(("rgb",), tmp_path / "f")], list(LENGTHS), findings) == []


@pytest.mark.parametrize(
    "change, channels_first, axes, remedy",
    [
        (lambda x: x.T, (), "6 rows, and from 9 to 20 columns, so they are [D, T]", "with"),
        (lambda x: x.T[None], (), "6 rows, and from 9 to 20 columns, so they are [D, T]", "with"),
        (lambda x: x, ("rgb",), "6 columns, and from 9 to 20 rows, so they are [T, D]", "without"),
        (lambda x: x[None], ("rgb",), "6 columns, and from 9 to 20 rows, so they are [T, D]", "without"),
    ],
)
def test_exchanged_axes_are_one_problem(change, channels_first, axes, remedy, tmp_path):
    each(lambda v: f"{v}.npy", change)(tmp_path / "f")
    with pytest.raises(DataError) as caught:
        build(tmp_path, "f", channels_first=channels_first)
    lines = str(caught.value).splitlines()
    assert lines[1:] == ["exchanged axes (1):", f"  rgb: all 3 files have {axes}; build {remedy} --channels_first=rgb"]


def test_a_wrong_dimension_among_videos_of_one_length_is_not_taken_for_exchanged_axes(tmp_path):
    for video in LENGTHS:
        write(tmp_path / f"f/{video}.npy", np.ones((8, D if video != "b" else D + 1)))
    with pytest.raises(DataError, match=r"wrong dimension \(1\):\n.*b.npy: D = 7, most files have 6"):
        build(tmp_path, "f")


def test_grids_of_tokens_are_averaged_only_on_request():
    grid = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(as_table(grid, pool=True), [[4, 5, 6, 7], [16, 17, 18, 19]])
    assert as_table(grid) is None
    assert as_table(np.ones((5, 8, 3, 3)), pool=True) is None  # [T, D, 3, 3] would be averaged over D
    np.testing.assert_array_equal(as_table(np.ones((5, 3, 3, 8)), pool=True), np.ones((5, 8)))
    assert as_table(grid.astype(ml_dtypes.bfloat16), pool=True).dtype == np.float32


def test_bfloat16_is_read_and_counted(tmp_path):
    each(lambda v: f"{v}.npy", lambda x: x.astype(ml_dtypes.bfloat16))(tmp_path / "f")
    assert np.load(tmp_path / "f/a.npy").dtype == "V2"
    report, features = build(tmp_path, "f")
    assert_stored(features, tables={video: table.astype(ml_dtypes.bfloat16) for video, table in TABLES.items()})
    assert report["handled"] == {
        checks.CONVERTED: [f"rgb: {tmp_path / 'f' / f'{video}.npy'}: bfloat16" for video in LENGTHS]
    }
    records_of_two_bytes = np.zeros((4, 3), [("x", "u1"), ("y", "u1")])
    write(tmp_path / "g.npy", records_of_two_bytes)
    folder, findings = FeatureFolder(("rgb",), tmp_path), Findings()
    assert check_file(folder, tmp_path / "g.npy", "g", findings) is None and findings.problems["feature type"]


PRESSURE = np.array([0, 0, 1013.25, 0, 0, 0]), np.array([1, 1, 0.05, 1, 1, 1])


@pytest.mark.parametrize(
    "change, rounded, note",
    [
        (lambda x: x * np.float32(1e-10), 6, "± 1.1e-10, where float16 has steps of 6e-08"),
        (lambda x: (x * PRESSURE[1] + PRESSURE[0]).astype(np.float32), 1, "e.g. channel 2: 1013.2"),
        (lambda x: x * PRESSURE[1] + PRESSURE[0], 1, "e.g. channel 2: 1013.2"),
        (lambda x: (x * 1e-10).astype(ml_dtypes.bfloat16), 6, "± 1.1e-10, where float16 has steps of 6e-08"),
    ],
    ids=["1e-10", "1013.25 ± 0.05", "float64", "bfloat16"],
)
def test_channels_that_float16_rounds_away_are_stored_as_float32(change, rounded, note, tmp_path):
    each(lambda v: f"{v}.npy", change)(tmp_path / "f")
    report, features = build(tmp_path, "f")
    assert_stored(features, np.float32, {video: change(table) for video, table in TABLES.items()})
    (case,) = report["handled"][checks.ROUNDED]
    assert case.startswith(f"rgb: {rounded} of 6 channels, e.g. channel") and note in case
    assert case.endswith("standardise them before saving, or train with --config.model.standardize=true")
    assert "rgb: [T, 6] float32" in describe_report(report)
    info = records.read_info(tmp_path / "out")
    assert info.dtypes == {"rgb": "float32"} and records.video_bytes(10, info) == 240
    (on_disk,) = (video.features["rgb"] for video in records.read(tmp_path / "out", "test", on_disk=True))
    assert on_disk.dtype == np.float32 and on_disk.nbytes == 14 * 6 * 4
    np.testing.assert_array_equal(on_disk, features["b"])


def test_values_beyond_float16_are_stored_as_float32_and_named(tmp_path):
    each(lambda v: f"{v}.npy", lambda x: x)(tmp_path / "f")
    large = TABLES["b"].copy()
    large[3, 1] = 7e4
    write(tmp_path / "f/b.npy", large)
    report, features = build(tmp_path, "f")
    assert_stored(features, np.float32, TABLES | {"b": large})
    assert report["handled"] == {checks.BEYOND_FLOAT16: [f"rgb: {tmp_path / 'f/b.npy'}: values up to 70000"]}


@pytest.mark.parametrize(
    "channel",
    [np.zeros(400), np.full(400, 0.1), np.full(400, 1e-10), 100 + RNG.standard_normal(400), RNG.standard_normal(400)],
    ids=["zero", "constant", "tiny constant", "100 ± 1", "normal"],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_float16_holds_stays_float16(channel, dtype):
    statistics = Statistics()
    statistics.add(channel.astype(dtype)[:, None])
    assert not statistics.rounded_away().any() and not statistics.largest


def test_statistics_of_parts_are_those_of_the_whole():
    rows = RNG.standard_normal((8, 5)) * 1e-9 + 1
    whole, parts = Statistics(), Statistics()
    whole.add(rows)
    for part in (rows[:3], rows[3:4], rows[4:]):
        own = Statistics()
        own.add(part)
        parts.merge(Statistics.from_json(json.loads(json.dumps(own.as_json()))))
    parts.merge(Statistics())
    np.testing.assert_allclose(parts.mean, rows.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(parts.squares, whole.squares, rtol=1e-6)
    np.testing.assert_allclose(whole.squares, rows.var(axis=0) * 8, rtol=1e-6)
    np.testing.assert_allclose(parts.errors, ((rows - rows.astype(np.float16)) ** 2).sum(axis=0))
    assert parts.count == 8 and parts.rounded_away().all()


def test_one_modality_of_a_file_is_stored_as_float32(tmp_path):
    each(lambda v: f"{v}.npy", lambda x: x * np.float32([1, 1, 1, 1, 1, 1e-10]))(tmp_path / "f")
    (tmp_path / "annotations.json").write_text(
        json.dumps(
            {v: {"subset": "testing" if v == "b" else "training", "duration": 5.0, "actions": []} for v in LENGTHS}
        )
    )
    files = {"annotations": [str(tmp_path / "annotations.json")], "features": [f"rgb+flow={tmp_path / 'f'}"]}
    (tmp_path / "classes.txt").write_text("x\n")
    info, _ = build_records(Options("custom", str(tmp_path / "out"), classes=str(tmp_path / "classes.txt"), **files))
    assert info.dtypes == {"flow": "float32"}
    (video,) = records.read(tmp_path / "out", "test")
    np.testing.assert_array_equal(video.features["rgb"], TABLES["b"][:, :3].astype(np.float16))
    np.testing.assert_array_equal(video.features["flow"], TABLES["b"][:, 3:] * np.float32([1, 1, 1e-10]))


def test_records_without_the_field_are_float16(tmp_path):
    each(lambda v: f"{v}.npy")(tmp_path / "f")
    build(tmp_path, "f")
    before, path = records.read_fingerprint(tmp_path / "out"), tmp_path / "out" / records.INFO_FILE
    content = read_json(path)
    assert content["info"].pop("dtypes") == {}
    write_json(path, content)
    assert records.read_info(tmp_path / "out").dtype("rgb") == np.float16
    assert records.read_fingerprint(tmp_path / "out") == before
    assert records.read(tmp_path / "out", "test")[0].features["rgb"].dtype == np.float16


def header(shape="(3, 4)", descr="'<f4'", order="False"):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


DAMAGED = {
    "negative": header("(-3, -4)") + bytes(48),
    "2^64": header(f"({2**64}, 4)") + bytes(48),
    "terabytes": header(f"({2**30}, 1024)") + bytes(48),
    "cut short": header() + bytes(40),
    "a second array": header() + bytes(48) + header() + bytes(48),
    "not a type": header(descr="'<q9'") + bytes(48),
    "text": header(descr="'<U900000000'") + bytes(48),
    "brackets": header("((" * 400) + bytes(48),
    "tokens": header("(3, 4") + bytes(48),
    "python 2": header("(3L, 4") + bytes(48),
    "not a tuple": header("'34'") + bytes(48),
    "no shape": b"\x93NUMPY\x01\x00\x04\x00{ }\n",
    "long header": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "empty": b"",
    "another file": pickle.dumps([1, 2]),
}


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_headers_are_a_problem_of_their_file(damage, suffix, tmp_path):
    path = tmp_path / f"v{suffix}"
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", DAMAGED[damage])
    else:
        path.write_bytes(DAMAGED[damage])
    findings = Findings()
    assert check_file(FeatureFolder(("rgb",), tmp_path), path, "v", findings) is None
    ((case,),) = findings.problems.values()
    assert str(path) in case


def test_archives_that_expand_without_end_are_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    size = 2**27
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        member.write(header(f"({size // 4096}, 1024)"))
        for _ in range(64):
            member.write(bytes(size // 64))
    with pytest.raises(ValueError, match=r"states an array of 134217\d+ bytes, but stores 13\d+ bytes"):
        open_array(path)
    h5py = pytest.importorskip("h5py", reason="pip install 'kd_jax[features]'")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("x", (2**30, 1024), "f4", chunks=(64, 1024))
    with pytest.raises(ValueError, match="states an array of 4398046511104 bytes, but stores 0 bytes"):
        open_array(tmp_path / "bomb.h5", "x")


def test_hdf5_does_not_lead_out_of_its_file(tmp_path):
    h5py = pytest.importorskip("h5py", reason="pip install 'kd_jax[features]'")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((3, 4))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["link"] = h5py.ExternalLink("secret.h5", "x")
        file.create_dataset("raw", (3, 4), "f4", external=[(str(tmp_path / "secret.h5"), 0, 48)])
    for name in ("link", "raw"):
        with pytest.raises(ValueError, match="is stored in another file; copy it into this one"):
            open_array(tmp_path / "v.h5", name)


@pytest.mark.parametrize(
    "text", ["1,5;2\n-3,25;4e2\n", "a;b\n1.5;2\n-3.25;400\n", "1.5,2\n-3.25,400\n", "1.5 2\n-3.25 400\n"]
)
def test_tables_with_semicolons_and_decimal_commas(text, tmp_path):
    (tmp_path / "v.csv").write_text(text)
    np.testing.assert_array_equal(open_array(tmp_path / "v.csv"), [[1.5, 2], [-3.25, 400]])


def test_an_array_of_another_shape_shows_the_other_arrays(tmp_path):
    (tmp_path / "f").mkdir()
    for video, table in TABLES.items():
        np.savez(tmp_path / "f" / f"{video}.npz", features=table, fps=np.float64(25))
    with pytest.raises(DataError, match=r"npz:fps: \[\], expected .*; the file holds 2 arrays \(features, fps\)"):
        build(tmp_path, "f/{video}.npz:fps")


def test_suggested_patterns_are_quoted_for_the_shell(tmp_path):
    write(tmp_path / "my features/x_a.npy", TABLES["a"])
    with pytest.raises(DataError) as error:
        build(tmp_path, "my features")
    option = re.search(r"write (--features=.*), which fits", str(error.value))[1]
    assert shlex.split(option) == [f"--features=rgb={tmp_path}/my features/x_{{video}}.npy"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,2\n3\n", "line 2: columns: 1, in the first row 2, expected rows of numbers with decimal points"),
        ("1,x\n2,3\n", 'line 1: "x" is not a number, expected rows of numbers with decimal points, separated by'),
        ("1,5\t2\n", 'line 1: "5.*2" is not a number, expected rows of numbers with decimal points'),
        ("\n1,2\n", "its first line is empty"),
        (",0,1\n0,5,6\n1,7,8\n2,9,1\n", "its first column counts the rows"),
        ("a,b\n0,5\n1,6\n2,7\n", "its first column counts the rows"),
    ],
)
def test_tables_that_are_no_plain_numbers(text, message, tmp_path):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_array(tmp_path / "v.csv")


def test_torch_files_are_never_unpickled_freely(tmp_path):
    torch = pytest.importorskip("torch", reason="pip install 'kd_jax[torch]'")

    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save(Touch(), tmp_path / "v.pt")
    torch.save(torch.zeros(1).expand(2**40), tmp_path / "expanded.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in {
        "v": "Weights only load failed",
        "expanded": "states an array of",
        "list": "it holds a list",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_array(tmp_path / f"{name}.pt")
    assert not (tmp_path / "touched").exists()


def test_float32_features_reach_models_and_predictions_unchanged(tmp_path):
    each(lambda v: f"{v}.npy", lambda x: x * np.float32(1e-10))(tmp_path / "f")
    build(tmp_path, "f")
    videos = records.read(tmp_path / "out", "train", on_disk=True)
    examples = make_examples(videos, "rgb", 1)
    batch, _ = collate(examples, 32, 2)
    assert batch.features.dtype == np.float32
    np.testing.assert_array_equal(batch.features[0, :20], TABLES["a"] * np.float32(1e-10))
    both = np.concatenate([TABLES["a"], TABLES["v[1]*"]]) * 1e-10
    deviations = both.std(axis=0)
    for by, expected in (("channel", deviations), ("modality", np.full(D, np.sqrt(np.mean(deviations**2))))):
        for limit, scale in ((128.0, 1), (D / 4, 4)):
            constants = fit_standardization(examples, by, limit)["standardization"]
            np.testing.assert_allclose(constants["std"], scale * expected, rtol=1e-6)
    config = {"modality": "rgb", "input_size": D, "seconds_per_snippet": 0.5, "features_dtype": "float32"}
    inputs = read_inputs(tmp_path / "f", None, TrainedRun(None, {}, config), None)
    assert_stored(inputs.features, np.float32, {video: table * np.float32(1e-10) for video, table in TABLES.items()})
    del config["features_dtype"]  # a run of an earlier version
    assert read_inputs(tmp_path / "f", None, TrainedRun(None, {}, config), None).features["a"].dtype == np.float16
    with pytest.raises(ValueError, match=r"which are \[T, D\]; leave out --channels_first and --pool"):
        read_inputs(tmp_path / "out", None, TrainedRun(None, {}, config), None, pool=True)
