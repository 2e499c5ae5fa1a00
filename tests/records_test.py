"""Records: round trips through kd_jax and TFDS, overwriting, and messages for damage and wrong arguments."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kd_jax.data import base, records
from kd_jax.files import read_json, write_json
from tests.fuzz_test import damage

ROOT = Path(__file__).parents[1]
INFO = base.Info("mine", ("a", "b", "ü"), "dense", {"rgb": 4, "flow": 3}, "seconds", 25.0, 0.5)


def make_video(name, num_snippets=5, num_segments=2, dtype=np.float16):
    rng = np.random.default_rng(num_snippets)
    features = {m: rng.standard_normal((num_snippets, d)).astype(dtype) for m, d in INFO.modalities.items()}
    segments = np.array([[i % 3, 0.1 + i, 1 / 3 + i] for i in range(num_segments)], np.float64).reshape(-1, 3)
    return base.Video(name, features, segments, num_snippets / 3)


@pytest.fixture
def stored(tmp_path):
    splits = {"train": [make_video(f"v{i}", 3 + i, i) for i in range(4)], "test": [make_video("ü x", 1)]}
    records.write(tmp_path / "records", INFO, splits, {"found": 5})
    return tmp_path / "records", splits


def assert_same(read, written):
    assert [v.id for v in read] == [v.id for v in written]
    for a, b in zip(read, written, strict=True):
        assert a.duration == b.duration
        np.testing.assert_array_equal(a.segments, b.segments)
        assert a.segments.dtype == np.float64 and a.segments.shape == b.segments.shape
        for modality, features in a.features.items():
            assert features.dtype == np.float16
            np.testing.assert_array_equal(features, b.features[modality].astype(np.float16))


def test_round_trip(stored):
    directory, splits = stored
    assert records.read_info(directory) == INFO
    assert list(records.read_info(directory).modalities) == ["rgb", "flow"]
    for split in base.SPLITS:
        assert_same(records.read(directory, split), splits[split])
    assert json.loads((directory / records.REPORT_FILE).read_text()) == {"found": 5}


def test_only_requested_modalities_are_decoded(stored):
    directory, splits = stored
    assert list(records.read(directory, "train", ["flow"])[0].features) == ["flow"]
    bare = records.read(directory, "train", [])[0]
    assert bare.features == {} and bare.id == splits["train"][0].id
    with pytest.raises(ValueError, match="was read without features"):
        _ = bare.num_snippets


def test_fields_across_blocks_and_calls_are_what_was_written(tmp_path):
    """Every record here crosses a block of the file at another place; one of them needs two calls of the system."""
    info = dataclasses.replace(INFO, modalities={"rgb": 1024, "flow": 3})
    rng = np.random.default_rng(0)
    lengths = [1, 30, 31, 32, 33, 64, 100, 16_500, 7]
    features = [
        {m: rng.integers(0, 99, (n, d)).astype(np.float16) for m, d in info.modalities.items()} for n in lengths
    ]
    videos = [
        dataclasses.replace(make_video(f"v{i}", n), features=f)
        for i, (n, f) in enumerate(zip(lengths, features, strict=True))
    ]
    records.write(tmp_path / "records", info, {"train": videos, "test": []})
    assert_same(records.read(tmp_path / "records", "train"), videos)
    for modality in info.modalities:
        assert_same(records.read(tmp_path / "records", "train", [modality]), videos)


def test_every_flipped_bit_of_what_is_read_is_found(stored):
    directory, splits = stored
    (shard,) = directory.glob("*train*")
    content, video = shard.read_bytes(), splits["train"][2]
    fields = {"rgb": video.features["rgb"].tobytes(), "segments": video.segments.tobytes(), "id": b"v2"}
    for name, field in fields.items():
        start = content.index(field)
        for place in range(start, start + len(field)):
            changed = bytes([content[place] ^ 1 << place % 8])
            shard.write_bytes(content[:place] + changed + content[place + 1 :])
            with pytest.raises(ValueError, match=f"{shard.name} is damaged .* build the data set again"):
                records.read(directory, "train", ["rgb"])
            assert name != "rgb" or len(records.read(directory, "train", ["flow"])) == 4


def test_features_stay_on_disk_until_an_array_is_made(stored):
    directory, splits = stored
    videos = records.read(directory, "train", on_disk=True)
    flow = videos[2].features["flow"]
    assert isinstance(flow, base.OnDisk) and videos[2].num_snippets == len(flow) == 5
    in_memory = splits["train"][2].features["flow"]
    assert (flow.shape, flow.dtype, flow.nbytes) == (in_memory.shape, in_memory.dtype, in_memory.nbytes)
    assert np.asarray(flow, np.float32).dtype == np.float32
    arrays = [dataclasses.replace(v, features={m: np.asarray(f) for m, f in v.features.items()}) for v in videos]
    assert_same(arrays, splits["train"])


def test_everything_but_features_is_read_without_the_shard(stored):
    directory, splits = stored
    (shard,) = directory.glob("*train*")
    shard.write_bytes(bytes(shard.stat().st_size))
    for read in (records.read(directory, "train", []), records.read(directory, "train", on_disk=True)):
        for video, written in zip(read, splits["train"], strict=True):
            assert (video.id, video.duration) == (written.id, written.duration)
            for name in records.TABLES:
                np.testing.assert_array_equal(getattr(video, name), getattr(written, name))
                assert getattr(video, name).shape == getattr(written, name).shape
    with pytest.raises(ValueError, match=f"{shard.name} is damaged .* build the data set again"):
        np.asarray(read[1].features["rgb"])


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_videos_file_is_detected(stored, damage):
    directory, _ = stored
    path = directory / records.VIDEOS_FILE
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    if damage != "gone":
        path.write_text("".join(lines[:-2]) if damage == "cut" else "".join(lines).replace('"v2"', '"v9"'))
    with pytest.raises(ValueError, match=r"videos\.jsonl is damaged.*build the data set again"):
        records.read(directory, "train", [])


def test_records_of_an_older_version_are_refused(stored):
    directory, _ = stored
    path = directory / records.INFO_FILE
    write_json(path, {**read_json(path), "format": 3})
    with pytest.raises(ValueError, match=r"has the format 3, this version reads 4; build them with"):
        records.read_info(directory)


def test_only_the_first_videos_are_read(stored):
    directory, splits = stored
    assert_same(records.read(directory, "train", first=2), splits["train"][:2])
    assert_same(records.read(directory, "train", first=99), splits["train"])


def test_tfds_reads_the_folder(stored):
    import tensorflow_datasets as tfds

    directory, splits = stored
    builder = tfds.builder_from_directory(directory)
    source = builder.as_data_source("train")
    assert len(source) == builder.info.splits["train"].num_examples == 4
    assert source[2]["id"] == b"v2"
    np.testing.assert_array_equal(source[2]["features"]["flow"], splits["train"][2].features["flow"])


def test_float32_is_stored_as_float16(tmp_path):
    video = make_video("v", dtype=np.float32)
    records.write(tmp_path / "r", INFO, {"train": [video], "test": []})
    assert_same(records.read(tmp_path / "r", "train"), [video])
    assert records.read(tmp_path / "r", "test") == []


def test_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "SHARD_BYTES", 500)
    videos = [make_video(f"v{i}", 10) for i in range(7)]
    records.write(tmp_path / "r", INFO, {"train": iter(videos), "test": iter([make_video("w")])})
    assert len(list((tmp_path / "r").glob("mine-train.array_record-*-of-*"))) > 2
    assert_same(records.read(tmp_path / "r", "train"), videos)


def test_no_tensorflow(tmp_path):
    code = f"""
import sys
from kd_jax.data import records, synthetic
info, splits = synthetic.tiny()
records.write({str(tmp_path / "r")!r}, info, splits)
assert len(records.read({str(tmp_path / "r")!r}, 'train')) == 4
print(sorted({{'tensorflow', 'torch', 'jax'}} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


class Interrupted(BaseException):
    """A BaseException that, unlike KeyboardInterrupt, pytest does not handle itself."""


@pytest.mark.parametrize("old", [False, True], ids=["new folder", "over older records"])
def test_an_interrupted_write_leaves_nothing(tmp_path, old):
    directory = tmp_path / "r"
    if old:
        records.write(directory, INFO, {"train": [make_video("old")], "test": []})

    def videos():
        yield make_video("v")
        raise Interrupted

    with pytest.raises(Interrupted):
        records.write(directory, INFO, {"train": videos(), "test": []}, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == (["r"] if old else [])
    if old:
        assert [v.id for v in records.read(directory, "train")] == ["old"]


def test_overwriting_needs_the_option_and_replaces_only_records(tmp_path):
    directory = tmp_path / "r"
    records.write(directory, INFO, {"train": [make_video("old")], "test": []})
    with pytest.raises(FileExistsError, match="already holds records.*--overwrite"):
        records.write(directory, INFO, {"train": [make_video("new")], "test": []})
    records.write(directory, INFO, {"train": [make_video("new")], "test": []}, overwrite=True)
    assert [v.id for v in records.read(directory, "train")] == ["new"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").touch()
    with pytest.raises(FileExistsError, match="holds no records of kd_jax, so it is left alone"):
        records.write(tmp_path / "home", INFO, {"train": [make_video("v")], "test": []}, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "r"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": "../x"}, "cannot be the name of a file"),
        ({"duration": 0.0}, "duration 0.0"),
        ({"segments": np.array([[3, 0.0, 1.0]])}, "class that is not one of 0 … 2"),
        ({"segments": np.array([[0, 0.0, np.nan]])}, "finite"),
        ({"segments": np.zeros((1, 2))}, r"\[N, 3\]"),
        ({"features": {"rgb": np.zeros((2, 4))}}, "has the modalities rgb; the data set 'mine' has rgb, flow"),
        ({"features": {"rgb": np.zeros((2, 4)), "flow": np.zeros((3, 3))}}, r"flow has shape \(3, 3\)"),
        ({"features": {"rgb": np.zeros((2, 4)), "flow": np.full((2, 3), np.nan)}}, "flow holds values that are not"),
        ({"features": {"rgb": np.full((2, 4), 7e4), "flow": np.zeros((2, 3))}}, "rgb holds values up to 70000.*65504"),
    ],
)
def test_a_bad_video_is_refused(tmp_path, change, message):
    video = dataclasses.replace(make_video("v"), **change)
    with pytest.raises(ValueError, match=message):
        records.write(tmp_path / "r", INFO, {"train": [video], "test": []})
    assert not list(tmp_path.iterdir())


def test_an_id_names_one_video_of_one_split(tmp_path):
    with pytest.raises(ValueError, match="'v' occurs twice"):
        records.write(tmp_path / "r", INFO, {"train": [make_video("v")], "test": [make_video("v")]})


@pytest.mark.parametrize("field, value", [("head", "both"), ("unit", "hours"), ("fps", 0.0), ("name", "a/b")])
def test_a_bad_info_is_refused(tmp_path, field, value):
    with pytest.raises(ValueError, match=rf"Info\.{field}="):
        records.write(tmp_path / "r", dataclasses.replace(INFO, **{field: value}), {"train": [], "test": []})


def test_missing_records(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; build them with `kd-jax build"):
        records.read_info(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no kd_jax\.json there, only notes\.txt"):
        records.read(tmp_path, "train")
    (tmp_path / records.INFO_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"kd_jax\.json is damaged .*; build them with"):
        records.read_info(tmp_path)


def test_unknown_split_and_modality(stored):
    directory, _ = stored
    with pytest.raises(ValueError, match="no split 'val'; it has train, test"):
        records.read(directory, "val")
    with pytest.raises(ValueError, match=r"no modality 'pose'; it has rgb, flow.*--features=pose=DIR"):
        records.read(directory, "train", ["pose"])


def test_damage_is_detected(stored):
    directory, _ = stored
    (shard,) = directory.glob("*train*")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"mine-train.* has \d+ bytes of \d+"):
        records.read(directory, "train")
    place = content.index(b"flow") + 40  # inside the features of a video
    shard.write_bytes(content[:place] + bytes(b ^ 1 for b in content[place : place + 4]) + content[place + 4 :])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged .* build the data set again"):
        records.read(directory, "train")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="mine-train.* is missing: the data set is incomplete"):
        records.read(directory, "train")
    records.read(directory, "test")


def test_a_swapped_shard_of_equal_size_is_detected(tmp_path):
    videos = [make_video("v", 9), make_video("w", 9)]
    for name, video in zip("ab", videos, strict=True):
        records.write(tmp_path / name, INFO, {"train": [video], "test": []})
    (mine,), (other,) = ((tmp_path / name).glob("*train*") for name in "ab")
    assert mine.stat().st_size == other.stat().st_size
    mine.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match="'w' is not what was written; was a shard swapped"):
        records.read(tmp_path / "a", "train")


def test_the_fingerprint_depends_on_the_content(tmp_path):
    def fingerprint(name, videos, info=INFO):
        records.write(tmp_path / name, info, {"train": videos, "test": []})
        return records.read_fingerprint(tmp_path / name)

    v, w = make_video("v"), make_video("w")
    changed = dataclasses.replace(w, features={**w.features, "flow": w.features["flow"] + np.float16(1)})
    later = dataclasses.replace(w, segments=w.segments + np.array([[0, 0.5, 0.5]]))
    first = fingerprint("first", [v, w])
    assert fingerprint("again", [v, w]) == first
    others = [[w, v], [v], [v, changed], [v, later], [v, dataclasses.replace(w, duration=9.0)]]
    others = [fingerprint(f"other {i}", videos) for i, videos in enumerate(others)]
    others.append(fingerprint("fps", [v, w], dataclasses.replace(INFO, fps=30.0)))
    assert len({first, *others}) == 7


def test_info_converts_times():
    frames = dataclasses.replace(INFO, unit="frames", fps=20.0)
    video = dataclasses.replace(make_video("v"), duration=101.0)
    assert frames.seconds(101) == 5.05 and frames.num_frames(video) == 101
    assert INFO.seconds(101) == 101 and INFO.num_frames(video) == 2525
    assert INFO.num_frames(dataclasses.replace(video, duration=0.001)) == 1


def test_videos_for_validation_are_read_back_and_counted_apart(twelve_videos, tmp_path):
    info = records.read_info(twelve_videos)
    videos = {split: records.read(twelve_videos, split) for split in base.SPLITS}
    chosen = [dataclasses.replace(video, validation=i in (5, 7, 9)) for i, video in enumerate(videos["train"])]
    records.write(tmp_path / "named", info, videos | {"train": chosen})
    assert [v.id for v in records.read(tmp_path / "named", "train") if v.validation] == ["v5", "v7", "v9"]
    first = records.read(tmp_path / "named", "train", ["rgb"], first=2)
    assert [video.id for video in first] == ["v0", "v1", "v5", "v7"]
    np.testing.assert_array_equal(first[2].features["rgb"], videos["train"][5].features["rgb"])
    assert records.read_fingerprint(tmp_path / "named") != records.read_fingerprint(twelve_videos)
    assert "validation" not in (twelve_videos / records.VIDEOS_FILE).read_text()  # as in older records


def content_of(directory):
    videos = [v for split in base.SPLITS for v in records.read(directory, split)]
    arrays = [{m: features.tobytes() for m, features in video.features.items()} for video in videos]
    known = [(v.id, v.duration, v.segments.tolist(), v.written.tolist(), v.known_grid) for v in videos]
    return records.read_info(directory), records.read_fingerprint(directory), known, arrays


def test_damaged_records_are_the_same_data_set_or_the_file_is_named(stored):
    directory, _ = stored
    written, rng = content_of(directory), random.Random(0)
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        changes = [b"", None, content[: len(content) // 2]]
        changes += [damage(content, rng) for _ in range(400 if path.name == records.INFO_FILE else 30)]
        if path.name == records.INFO_FILE:
            fields = json.loads(content)
            changes += [json.dumps({k: v for k, v in fields.items() if k != name}).encode() for name in fields]
        for changed in changes:
            path.unlink() if changed is None else path.write_bytes(changed)
            try:
                assert content_of(directory) == written
            except (ValueError, FileNotFoundError) as error:
                assert path.name in str(error) and "\n" not in str(error), (error, changed)
            path.write_bytes(content)
