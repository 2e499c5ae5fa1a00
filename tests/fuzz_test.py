"""Readers of files: a damaged or absurd file gives a result, or ValueError or OSError that names it.

    KD_JAX_FUZZ=20000 pytest tests/fuzz_test.py              # number of damaged files for each reader
    PYTHONPATH=. python tests/fuzz_test.py 20000 ELAN "VIA 3"    # only these readers

Every damaged file is made from a valid one with a fixed seed. The readers run in a process whose memory is limited.
"""

import io
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"
SAMPLES = DATA / "annotations"
MEMORY = 2 * 2**30  # bytes that the process may use
SECONDS = 10.0  # that a reader may take for one file of a few kilobytes
DEFAULT = 150  # damaged files for each reader
VIDEO = "kitchen"
VALUES = (
    "", None, True, [], {}, [[]], [0, 1], {"a": 1}, "nan", "../x", "\x00", "\ud800", "x" * 5000, 0, -1, 0.5, 2**63,
    -(2**63), 2**64, 10**400, 1e308, 5e-324, -1e300, math.nan, math.inf, -math.inf,
)  # fmt: skip
WORDS = (
    "", "0", "-1", "1e999", "1e308", "5e-324", "nan", "-inf", "None", "1_0", "٣", "²", "0x1", "9" * 5000, str(2**63),
    str(2**64), "1e15", "../x", '"', ",", "\t", "{", "[" * 3000, "\ud7ff", "\x00", "é",
)  # fmt: skip
SHAPES = (
    "()", "(0,)", "(-1, 4)", "(4, -8)", f"({2**64},)", f"({2**63}, {2**63})", f"(0, {2**62})", "(1 << 3,)", "(8, 4",
    "8", "(2.0, 4)", "(True, 4)", "('8', 4)", "None", f"({10**12}, 4)", f"(1, {2**28}, 4)", "(" + "1," * 70 + ")",
    "(9" + "9" * 5000 + ",)",
)  # fmt: skip
TYPES = (
    "'|O'",
    "'<f3'",
    "'V2'",
    "'<U4'",
    "'|S0'",
    "'<M8[s]'",
    "[('a', '<f4')]",
    "'<f16'",
    "'<c16'",
    "3",
    "''",
    "'|V0'",
)


OUT_OF_MEMORY = r"(?i)MemoryError|unable to allocate|cannot allocate memory|out of memory|bad_alloc"


class Hang(BaseException):
    """A reader took longer than SECONDS; no reader catches it."""


class Reader(NamedTuple):
    """How a reader is called, and valid files for it."""

    read: Callable[[Path], object]  # of a folder that holds the files of one of `inputs`
    inputs: list[dict[str, bytes]]  # each {name: content}; one of the files is damaged at a time


# Valid files.


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(arrays: dict[str, np.ndarray], compressed: bool = False) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


def samples(*names: str) -> list[dict[str, bytes]]:
    return [{name: (SAMPLES / name).read_bytes()} for name in names]


TABLE = np.arange(32, dtype=np.float32).reshape(8, 4)
MANIFEST = {
    "modality": "rgb",
    "weights_sha256": "0" * 64,
    "sampling": {"length": 16, "stride": 8},
    "sampled_fps": None,
    "dtype": "float32",
    "seconds_per_snippet": 0.32,
    "snippets": 8,
    "frames": 80,
    "fps": 25.0,
    "file": "kitchen.mp4",
    "bytes": 0,
}
COMMON = {
    "kitchen": {"subset": "training", "duration": 20.0, "fps": 25.0, "actions": [[0, 1.2, 4.8], [1, 4.0, 9.6]]},
    "hall": {"subset": "testing", "duration": 8.0, "actions": [[1, 0.0, 2.4]]},
}
THUMOS = {
    "database": {
        "kitchen": {"subset": "Validation", "duration": 20.0, "fps": 30.0, "annotations": [
            {"label": "Diving", "segment": [1.0, 2.0]}, {"label": "Ambiguous", "segment": [3.0, 4.0]}]},
        "hall": {"subset": "Test", "duration": 8.0, "frame": 240, "annotations": [
            {"label": "Billiards", "segment": [1.0, 2.5]}]},
    }
}  # fmt: skip
CHARADES = b"id,length,actions\nkitchen,20.5,c092 11.90 21.20;c147 0.00 12.60\nhall,8,\n"
DETECTIONS = [{"video": "kitchen", "class": "cut", "start": 1.5, "end": 2.0, "score": 0.5}]
DETECTIONS_CSV = b"video,label,start,end,score\nv,cut,1,2,.5\n"
SUBMISSION = {"results": {"kitchen": [{"label": "cut", "score": 0.93, "segment": [3.2, 9.9]}]}}
CHARADES_SCORES = "".join(f"kitchen {i} {' '.join(['0.5'] * 157)}\n" for i in range(1, 4)).encode()


def skeleton() -> bytes:
    body = "7205 0 1 1 1 1 0 0.1 -0.1 2\n25\n" + ("0.1 0.2 3.0 " + "1 " * 8 + "2\n") * 25
    return ("2\n" + "1\n" + body + "1\n" + body).encode()


# Readers, from files to what the commands use.


def read_features(suffix: str, video_array: str = "") -> Callable[[Path], object]:
    from kd_jax.data.checks import Findings
    from kd_jax.data.feature_files import check_file
    from kd_jax.data.feature_folders import FeatureFolder
    from kd_jax.data.feature_tables import array_names

    def read(folder: Path) -> object:
        path, findings = folder / f"{VIDEO}{suffix}", Findings()
        features = FeatureFolder(("rgb",), folder, pattern=f"{{video}}{suffix}", array=video_array)
        shape = check_file(features, path, VIDEO, findings)
        findings.raise_problems()
        if suffix != ".npy" and suffix != ".csv":
            try:
                array_names(path)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path}: {error}") from error
        table = features.load(path, VIDEO)
        assert table.shape == shape
        return np.asarray(table).sum()

    return read


def match(folder: Path, videos: list, timing) -> None:
    """Matches annotated videos with the features that the folder `features` has, and loads them."""
    from kd_jax.data.annotations.cleaning import check_splits, check_units
    from kd_jax.data.checks import Findings
    from kd_jax.data.feature_files import check_video_files, how_made, load
    from kd_jax.data.feature_files import match as match_files
    from kd_jax.data.feature_folders import FeatureFolder

    folders, findings = [FeatureFolder(("rgb",), folder)], Findings(", ".join(map(str, sorted(folder.iterdir()))))
    check_splits(videos, str(folder), findings)
    check_units(videos, findings)
    videos = [video for video in videos if folders[0].find(video.id)]
    shapes = {}
    for video in videos:
        shapes[video.id], found = check_video_files(video.id, folders)
        findings.add(found.as_json())
    matched, _ = match_files(videos, folders, shapes, findings, timing)
    how_made(matched, folders, findings)
    findings.raise_problems()
    for video in matched:
        assert load(video, {"rgb": "float32"}).features["rgb"].nbytes < 2**30


def read_annotations(dataset: str, *names: str) -> Callable[[Path], object]:
    """The reader of a data set; `names` are the paths that it gets, all files of the folder without them."""
    from kd_jax.data.annotations import describe
    from kd_jax.data.checks import Findings
    from kd_jax.data.timing import Timing

    description = describe(dataset)

    def read(folder: Path) -> object:
        paths = [folder / name for name in names] or sorted(folder.iterdir())
        findings = Findings(", ".join(map(str, sorted(folder.rglob("*")))))
        videos = description.read(paths, description.names, findings)
        findings.raise_problems()
        with tempfile.TemporaryDirectory(dir=folder.parent) as features:
            for video in (VIDEO, "hall"):
                np.save(Path(features) / f"{video}.npy", TABLE)
            match(
                Path(features),
                videos,
                Timing(description.fps, description.unit, description.stride, description.window),
            )
        return videos

    return read


def read_own(name: str = "", classes: tuple[str, ...] = ()) -> Callable[[Path], object]:
    """The reader of annotations of tools; `name` is the path that it gets, all files of the folder without it."""
    from data_prep.annotations import collect_entries
    from kd_jax.data.annotations import common_layout
    from kd_jax.data.annotations.custom import ReadOptions
    from kd_jax.data.checks import Findings

    def read(folder: Path) -> object:
        paths = [folder / name] if name else sorted(folder.iterdir())
        findings = Findings(", ".join(map(str, sorted(folder.rglob("*")))))
        options = ReadOptions(fps=25.0, needs=())
        entries, names, _ = collect_entries(list(map(str, paths)), classes, options, [], findings)
        common_layout.read_entries(entries, names, findings, where=str(paths[0]), needs=())
        findings.raise_problems()
        return entries

    return read


def read_manifest(folder: Path) -> object:
    """All that reads the manifest of a feature file."""
    from data_prep.annotations import _from_manifests
    from data_prep.extract import unfinished
    from kd_jax.data.annotations.cleaning import Annotated
    from kd_jax.data.feature_folders import FeatureFolder
    from kd_jax.data.timing import Timing

    none = np.zeros((0, 3))
    settings = SimpleNamespace(described=lambda: {"sampling": MANIFEST["sampling"], "dtype": "float32"})
    match(folder, [Annotated(VIDEO, "train", 3.2, none, none)], Timing(25.0))
    _from_manifests([VIDEO], [FeatureFolder(("rgb",), folder)])
    return unfinished(folder, settings, {VIDEO: folder / "kitchen.mp4"})


def read_class_list(folder: Path) -> object:
    from kd_jax.data.annotations.common_layout import read_classes
    from kd_jax.data.annotations.custom import read_list
    from kd_jax.data.checks import Findings

    findings = Findings()
    read_list(str(folder / "classes.txt"), "test list", {"cut"}, Findings())
    names = read_classes(folder / "classes.txt", findings)
    findings.raise_problems()
    return names


def read_records(parent: Path) -> object:
    from kd_jax.data import records
    from kd_jax.data.source import open_source

    folder = parent / "records"
    for split in ("train", "test"):
        for video in records.read(folder, split, ["rgb"], on_disk=True):
            assert video.features["rgb"].nbytes >= 0
    source = open_source("custom", str(folder), ["rgb"], validation_fraction=0.0, validation_seed=0)
    return [source.videos(split, ["rgb"]) for split in ("train", "test")]


def make_records() -> dict[str, bytes]:
    from kd_jax.data import base, records

    info = base.Info("custom", ("cut", "wash"), "dense", {"rgb": 4}, "seconds", 25.0, 0.5)
    videos = [base.Video(name, {"rgb": TABLE}, np.array([[1.0, 0.5, 2.0]]), 4.0) for name in (VIDEO, "hall")]
    with tempfile.TemporaryDirectory() as folder:
        records.write(Path(folder) / "records", info, {"train": videos[:1], "test": videos[1:]})
        return {path.name: path.read_bytes() for path in (Path(folder) / "records").iterdir()}


def make_weights() -> dict[str, bytes]:
    from kd_jax.video.encoders.videoprism import VideoPrism
    from kd_jax.video.encoders.weights import random_variables, write_weights

    model = VideoPrism(4, 2, 4, 1, 1, 2, 2, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        choices: dict = {"modality": "rgb", "source": {}, "window": 2, "size": 4, "shorter_side": 4}
        write_weights(path, model, random_variables(model, "rgb", 0), **choices)
        return {"weights.npz": path.read_bytes()}


def hdf5() -> bytes:
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["rgb"] = TABLE
        file.create_dataset("flow", data=TABLE, compression="gzip")
    return stream.getvalue()


def read_encoder(folder: Path) -> object:
    from kd_jax.video.encoders import weights

    return weights.read_encoder(None, folder / "weights.npz")


def make_readers() -> dict[str, Callable[[], Reader]]:
    """Returns {name: function that makes the reader}."""
    from data_prep import tensorflow_checkpoint
    from kd_jax.evaluation import formats
    from kd_jax.video import skeletons

    classes, one = ["cut", "wash"], {VIDEO: TABLE}
    checkpoint = {path.name: path.read_bytes() for path in DATA.glob("tensorflow_checkpoint.*")}
    frames, spans = b"cut\ncut\nbackground\nwash\n", b"1,10,40,1\n2,30,90,0.5\n"
    named, below = b"cut,10,40,1\nwash 30 90\n", b"event,start_frame,end_frame\ncut,10,40\n"
    labels = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0]], np.uint8)
    split = b"Training videos\nkitchen,\nValidation videos\nhall\n"
    x_anylabeling = [f"x_anylabeling_{video}.json" for video in (VIDEO, "hall")]
    spans_of = {"hall.txt": spans, "kitchen.txt": spans}
    of_formats: dict[str, tuple[Callable[[Path], object], dict[str, bytes]]] = {
        "scores": (lambda f: formats.read_scores(f / "s.npz"), {"s.npz": npz(one)}),
        "native": (lambda f: formats.read_native(f / "d.json", classes), {"d.json": as_json(DETECTIONS)}),
        "activitynet": (lambda f: formats.read_activitynet(f / "a.json", classes), {"a.json": as_json(SUBMISSION)}),
        "csv": (lambda f: formats.read_csv(f / "d.csv", classes), {"d.csv": DETECTIONS_CSV}),
        "charades": (lambda f: formats.read_charades(f / "c.txt"), {"c.txt": CHARADES_SCORES}),
        "pku_mmd": (lambda f: formats.read_pku_mmd(f, 2), spans_of),
    }  # fmt: skip
    return {
        ".npy": lambda: Reader(read_features(".npy"), [{"kitchen.npy": npy(a)} for a in (TABLE, TABLE.astype("f2").T)]),
        ".npz": lambda: Reader(
            read_features(".npz"), [{"kitchen.npz": npz({"rgb": TABLE}, deflated)} for deflated in (False, True)]
        ),
        "features .csv": lambda: Reader(read_features(".csv"), [{"kitchen.csv": b"a,b\n1.5,2\n3,4e2\n"}]),
        "features .h5": lambda: Reader(read_features(".h5", "rgb"), [{"kitchen.h5": hdf5()}]),
        "manifest": lambda: Reader(
            read_manifest,
            [
                {"kitchen.json": as_json(MANIFEST), "kitchen.npy": npy(TABLE)},
                {"kitchen_timestamps_ms.npy": npy(np.arange(1, 9) * 640.0), "kitchen.npy": npy(TABLE)},
            ],
        ),
        "common layout": lambda: Reader(
            read_annotations("custom"), [{"c.json": as_json(COMMON)}, *samples("common.json")]
        ),
        "CSV": lambda: Reader(read_own(), samples("table.csv")),
        "ActivityNet": lambda: Reader(read_own(), samples("activitynet.json")),
        "VIA 3": lambda: Reader(read_own(), samples("via.csv", "via_segments.csv")),
        "ELAN": lambda: Reader(read_own(), samples("elan_kitchen.eaf", "elan_hall.eaf")),
        "Label Studio": lambda: Reader(read_own(), samples("label_studio.json", "label_studio_seconds.json")),
        "X-AnyLabeling": lambda: Reader(read_own(), samples(*x_anylabeling)),
        "label folder": lambda: Reader(
            read_own("labels"),
            [{f"labels/kitchen{end}": text} for end, text in ((".txt", frames), (".txt", named), (".csv", below))],
        ),
        "label folder of arrays": lambda: Reader(
            read_own("labels", ("cut", "wash", "mix")), [{"labels/kitchen.npy": npy(labels)}]
        ),
        "labels in an archive": lambda: Reader(
            read_own("labels.npz", ("cut", "wash", "mix")), [{"labels.npz": npz({VIDEO: labels})}]
        ),
        "tsu": lambda: Reader(read_annotations("tsu"), [{"tsu.json": as_json(COMMON)}]),
        "multithumos": lambda: Reader(
            read_annotations("multithumos"), [{"m.json": as_json(COMMON).replace(b"[0,", b"[2,")}]
        ),
        "charades": lambda: Reader(
            read_annotations("charades"),
            [{"train.csv": CHARADES, "test.csv": CHARADES.replace(b"hall", b"yard").replace(b"kitchen", b"den")}],
        ),
        "thumos14": lambda: Reader(read_annotations("thumos14"), [{"thumos.json": as_json(THUMOS)}]),
        "thumos14 kit": lambda: Reader(
            read_annotations("thumos14", "kit"),
            [{"kit/Diving_val.txt": b"kitchen  1.0 2.5\n", "kit/Ambiguous_test.txt": b"hall 3 4\n"}],
        ),
        "pku_mmd": lambda: Reader(
            read_annotations("pku_mmd", "labels", "cross-subject.txt"),
            [{"cross-subject.txt": split, "labels/kitchen.txt": spans, "labels/hall.txt": spans}],
        ),
        "class list": lambda: Reader(read_class_list, [{"classes.txt": text} for text in (b"cut\nwash\n", b"1 cut\n")]),
        "skeletons": lambda: Reader(lambda f: skeletons.read_skeletons(f / "s.skeleton"), [{"s.skeleton": skeleton()}]),
        "skeletons of PKU-MMD": lambda: Reader(
            lambda f: skeletons.read_skeletons(f / "s.txt"), [{"s.txt": ("0.5 " * 150 + "\n").encode() * 3}]
        ),
        "TensorFlow checkpoint": lambda: Reader(
            lambda f: tensorflow_checkpoint.read(f / "tensorflow_checkpoint"), [checkpoint]
        ),
        "encoder weights": lambda: Reader(read_encoder, [make_weights()]),
        "records": lambda: Reader(
            read_records, [{f"records/{name}": content for name, content in make_records().items()}]
        ),
        **{f"predictions, {name}": lambda of=of: Reader(of[0], [of[1]]) for name, of in of_formats.items()},
    }


# Damage.


def nodes(tree: object) -> Iterator[tuple[dict | list, object]]:
    """All (container, key) of a JSON tree."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from nodes(value)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """Replaces, removes or renames a value."""
    tree = json.loads(content)
    container, key = rng.choice([(None, None), *nodes(tree)])
    value = rng.choice(VALUES)
    if container is None:
        return json.dumps(value if rng.random() < 0.3 else [tree]).encode()
    if rng.random() < 0.15:
        del container[key]
    elif isinstance(container, dict) and rng.random() < 0.2:
        container[str(value)] = container.pop(key)
    elif isinstance(container, list) and rng.random() < 0.2:
        container.insert(key, value)
    else:
        container[key] = value
    return json.dumps(tree).encode()


def damage_header(content: bytes, rng: random.Random) -> bytes:
    """Replaces shape, type or another part of the header of a .npy file, with its right length."""
    size = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + size].decode("latin-1"), content[10 + size :]
    kind = rng.randrange(4)
    if kind == 0:
        header = re.sub(r"\([^)]*\)", lambda _: rng.choice(SHAPES), header)
    elif kind == 1:
        header = re.sub(r"'[<|][^']*'", lambda _: rng.choice(TYPES), header)
    elif kind == 2:
        header = damage_text(header.encode(), rng).decode("latin-1")
    else:
        header = re.sub("False", lambda _: rng.choice(("True", "0", "'", "None, 'x': 1", "(" * 300)), header)
    encoded = header.encode("latin-1", "replace")[: 2**16 - 1]
    return content[:8] + len(encoded).to_bytes(2, "little") + encoded + data


def damage_archive(content: bytes, rng: random.Random) -> bytes:
    """Damages a member of a .npz file, so that its checksum fits; or adds, renames or inflates one."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name, kind = rng.choice(sorted(members)), rng.randrange(6)
    if kind == 0:
        members[rng.choice(("x.npy", "notes.txt", "../x.npy", f"./{name}", ".npy"))] = members.pop(name)
    elif kind == 1:  # a bomb: the header states what the member inflates to
        size = rng.choice((10**6, 3 * 10**8))
        header = npy(np.empty(0, np.uint8)).replace(b"(0,), }", f"({size}, 4), }}".encode())[:128]
        members[name] = header + bytes(min(size * 4, 10**8 if rng.random() < 0.05 else 10**6))
    else:
        members[name] = damage(members[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return stream.getvalue()


def damage_text(content: bytes, rng: random.Random) -> bytes:
    """Replaces a word or a number, repeats a line, or changes the encoding."""
    text = content.decode("utf-8-sig")
    kind = rng.randrange(6)
    if kind == 0:
        lines = text.splitlines(keepends=True) or [""]
        at = rng.randrange(len(lines))
        lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [lines[at][::-1]], ["\n"], [lines[at]] * 300))
        text = "".join(lines)
    elif found := list(re.finditer(r"-?\d+(?:\.\d+)?" if kind < 4 else r"\w+|[^\w\s]", text)):
        chosen = rng.choice(found)
        text = text[: chosen.start()] + rng.choice(WORDS) + text[chosen.end() :]
    if rng.random() < 0.05:
        return text.encode(rng.choice(("utf-16", "utf-16-le", "gb18030", "utf-8-sig", "utf-32")), "replace")
    return text.encode("utf-8", "replace")


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, inserts, removes or repeats bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + length] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF))]) * length
        elif kind == 2:
            changed[at:at] = rng.randbytes(length)
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def damage(content: bytes, rng: random.Random) -> bytes:
    """Damages the content of a file in a way that its format suggests, or its bytes."""
    special: list[Callable[[bytes, random.Random], bytes]] = []
    if content[:2] == b"PK":
        special.append(damage_archive)
    elif content[:6] == b"\x93NUMPY":
        special.append(damage_header)
    elif b"\0" not in content:
        special.append(damage_text)
        if content[:1] in (b"{", b"["):
            special += [damage_json] * 2
    if special and rng.random() < 0.7:
        try:
            return rng.choice(special)(content, rng)
        except Exception:
            pass  # an earlier damage left nothing of the format
    return damage_bytes(content, rng)


# The process that reads.


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and those during whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check(reader: Reader, folder: Path, inputs: dict[str, bytes]) -> str:
    """Reads the files; returns what is wrong with how that ends, or ''."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(folder)
    except (ValueError, OSError) as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        names = ["hall", *(word for file in inputs for word in (*Path(file).parts, Path(file).stem))]
        if not any(word in str(error) for word in names):
            return f"the message names no file: {type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
        if any(isinstance(cause, MemoryError) for cause in causes(error)) or re.search(OUT_OF_MEMORY, str(error)):
            return f"too much memory: {error}\n{traceback.format_exc(limit=-3)}"
        return ""
    except (Exception, Hang):
        signal.setitimer(signal.ITIMER_PROF, 0)
        return traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def fuzz(name: str, reader: Reader, count: int, root: Path) -> Iterator[str]:
    """Yields what is wrong with the end of `count` damaged files of a reader."""
    for number, inputs in enumerate(reader.inputs):
        folder = root / str(number)
        for file, content in inputs.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        reader.read(folder)
    for seed in range(count):
        rng = random.Random(f"{name} {seed}")
        number = rng.randrange(len(reader.inputs))
        inputs, folder = reader.inputs[number], root / str(number)
        file = rng.choice(sorted(inputs))
        content = inputs[file]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            content = damage(content, rng)
        (folder / file).write_bytes(content)
        if wrong := check(reader, folder, inputs):
            yield f"{name}, seed {seed}, {file} {content[:200]!r}: {wrong}"
        (folder / file).write_bytes(inputs[file])


def raise_hang(*_) -> None:
    raise Hang


def main(count: int, names: list[str]) -> None:
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    os.environ["JAX_PLATFORMS"] = "cpu"
    readers = make_readers()
    signal.signal(signal.SIGPROF, raise_hang)
    found = False
    for name in names or readers:
        reader = readers[name]()
        with tempfile.TemporaryDirectory() as folder:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            started = resource.getrusage(resource.RUSAGE_SELF)
            for wrong in fuzz(name, reader, count, Path(folder)):
                found = True
                print(wrong, flush=True)
            used = resource.getrusage(resource.RUSAGE_SELF)
            seconds = used.ru_utime + used.ru_stime - started.ru_utime - started.ru_stime
            print(f"{name}: {count} files, {seconds:.1f} s, peak {used.ru_maxrss / 2**20:.2f} GiB", file=sys.stderr)
    sys.exit(1 if found else 0)


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_by_name():
    count = os.environ.get("KD_JAX_FUZZ", str(DEFAULT))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run([sys.executable, __file__, count], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, f"{ended.stdout[-20000:]}\n{ended.stderr[-3000:]}"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
