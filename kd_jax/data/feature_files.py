"""Feature files: found, read once and checked, brought to `[T, D]` float16, and paired with their annotation.

    folder = FeatureFolder(("rgb", "flow"), Path("i3d"))                 # [T, 2048] = rgb ‖ flow
    shapes, findings = check_video_files("video_1", [folder])            # of each video, in any process
    matched, sizes = match(videos, [folder], shapes, findings, …)        # all videos together
    video = load(matched[0])                                             # base.Video

A file is `.npy`, or `.npz` with one array; `[T, D]`, `[T, 1, 1, D]`, or `[D, T]` where asked for; of any real type.
"""

import json
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_jax.data import base
from kd_jax.data.annotations.cleaning import Annotated, settle
from kd_jax.data.checks import (
    CONVERTED,
    CROPPED,
    PADDED,
    SKIPPED,
    TOO_SHORT,
    UNANNOTATED,
    UNTOLD,
    Findings,
    reason,
    short,
)
from kd_jax.files import read_json
from kd_jax.segments import snippets_inside

CHUNK_VALUES = 2**20  # feature files are checked so many values at a time
SUFFIXES = (".npy", ".npz")
MADE = ("modality", "weights_sha256", "sampling", "sampled_fps", "dtype")  # in <video>.json, by data_prep.extract
UNREADABLE = (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class FeatureFolder:
    """A folder of `<video>.npy` or `<video>.npz`.

    Attributes:
      modalities: what a file holds; several share its channels in equal parts, in this order.
      path: the folder.
      channels_first: the files are `[D, T]`.
    """

    modalities: tuple[str, ...]
    path: Path
    channels_first: bool = False

    @property
    def name(self) -> str:
        """As in --features=NAME=FOLDER."""
        return "+".join(self.modalities)

    def files(self) -> dict[str, Path]:
        """{video: file} of all feature files; of two for one video, the `.npz`."""
        return {path.stem: path for suffix in SUFFIXES for path in sorted(self.path.glob(f"*{suffix}"))}

    def find(self, video: str) -> list[Path]:
        """The files of one video; more than one is a mistake."""
        return [path for suffix in SUFFIXES if (path := self.path / f"{video}{suffix}").is_file()]


@dataclass(frozen=True, eq=False)
class Matched:
    """An annotated video whose feature files were read once and found good.

    Attributes:
      annotated: with its duration.
      files: of each folder.
      num_snippets: T of the record.
      cropped: T that the modalities share in the files.
      front: so many copies of the first snippet come before it; the rest up to `num_snippets` follow the last.
    """

    annotated: Annotated
    files: tuple[tuple[FeatureFolder, Path], ...]
    num_snippets: int
    cropped: int
    front: int = 0


def check_folders(folders: Sequence[FeatureFolder], videos: Sequence[str], findings: Findings) -> list[FeatureFolder]:
    """The folders that hold features of these videos; for the others one problem each, not one for every video."""
    present = []
    for folder in folders:
        if not folder.path.is_dir():
            findings.problem("missing feature folder", f"{folder.name}: {folder.path} is not a folder")
            continue
        files = folder.files()
        if videos and not files.keys() & set(videos):
            there = (
                f"{len(files)} other feature files, e.g. {files[min(files)].name}"
                if files
                else "no feature file at all"
            )
            findings.problem(
                "missing feature folder", f"{folder.name}: {folder.path} has no file <video>.npy, but {there}"
            )
            continue
        present.append(folder)
        for name in sorted(files.keys() - set(videos)):
            findings.note(UNANNOTATED, f"{folder.name}: {files[name]}")
    return present


def check_video_files(
    video: str, folders: Sequence[FeatureFolder], *, skip_missing: bool = False
) -> tuple[dict[str, tuple[int, int]] | None, Findings]:
    """Reads every feature file of a video once, a part at a time.

    Returns:
      {name of the folder: (T, D)} of the files without a problem, None if the video is left out, and what was found.
    """
    shapes, findings, complete = {}, Findings(), True
    for folder in folders:
        paths = folder.find(video)
        if len(paths) > 1:
            findings.problem("two feature files", f"{folder.name}: {paths[0]} and {paths[1]}; only one can be meant")
        elif paths:
            if shape := check_file(folder.name, paths[0], findings, channels_first=folder.channels_first):
                if shape[1] % len(folder.modalities):
                    parts = f"{len(folder.modalities)} equal parts ({', '.join(folder.modalities)})"
                    findings.problem("wrong dimension", f"{folder.name}: {paths[0]}: D = {shape[1]} has no {parts}")
                else:
                    shapes[folder.name] = shape
        elif skip_missing:
            findings.note(SKIPPED, f"{video}: {folder.path / video}.npy")
            complete = False
        else:
            findings.problem("missing feature file, see --skip_missing", f"{folder.name}: {folder.path / video}.npy")
    return shapes if complete else None, findings


def check_file(
    modality: str,
    path: Path,
    findings: Findings,
    *,
    channels_first: bool = False,
    check: Callable[[np.ndarray], object] = base.to_float16,
) -> tuple[int, int] | None:
    """(T, D) of one feature file, or None after naming what is wrong with it; `check` raises for bad values."""
    try:
        array = _open(path)
    except UNREADABLE as error:
        findings.problem("unreadable feature file", f"{modality}: {path}: {reason(error)}")
        return None
    if array.dtype.kind not in "fiub":
        findings.problem("feature type", f"{modality}: {path}: {array.dtype}, expected real numbers")
        return None
    shape, expected = list(array.shape), "[D, T]" if channels_first else "[T, D] or [T, 1, 1, D]"
    table = _as_table(array, channels_first)
    if table is None:
        findings.problem("feature shape", f"{modality}: {path}: {shape}, expected {expected}")
        return None
    if not len(table):
        findings.problem("no snippets", f"{modality}: {path}: {shape}")
        return None
    rows = max(1, CHUNK_VALUES // table.shape[1])
    try:
        for first in range(0, len(table), rows):
            check(table[first : first + rows])
    except ValueError as error:
        findings.problem("feature values", f"{modality}: {path} {error}")
        return None
    if array.dtype.kind != "f":
        findings.note(CONVERTED, f"{modality}: {path}: {array.dtype}")
    return table.shape


def load_file(path: Path, *, channels_first: bool = False) -> np.ndarray:
    """`[T, D]` float16: a feature file that `check_file` found good."""
    return base.to_float16(load_table(path, channels_first=channels_first))


def load_table(path: Path, *, channels_first: bool = False) -> np.ndarray:
    """The same in the type of the file."""
    return _as_table(_open(path), channels_first)


def _as_table(array: np.ndarray, channels_first: bool) -> np.ndarray | None:
    """`[T, D]`; None for a shape that cannot be read so."""
    if channels_first:
        array = array.reshape(array.shape[1:]) if array.ndim == 3 and len(array) == 1 else array
        return array.T if array.ndim == 2 and len(array) else None
    if array.ndim < 2 or any(n != 1 for n in array.shape[1:-1]) or not array.shape[-1]:
        return None
    return array.reshape(len(array), array.shape[-1])


def _open(path: Path) -> np.ndarray:
    """The array of a file; that of a `.npy` is mapped, not read."""
    if path.suffix == ".npz":
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise ValueError("it is not a .npz file")
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            if len(arrays.files) != 1:
                raise ValueError(f"it holds {len(arrays.files)} arrays ({', '.join(arrays.files[:5])}), expected one")
            return arrays[arrays.files[0]]
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("it is not a .npy file")
        file.seek(0)
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header.get(version, np.lib.format.read_array_header_2_0)(file)
    if dtype.hasobject or 0 in shape:  # neither can be mapped
        return np.empty((0,) * len(shape) if dtype.hasobject else shape, dtype)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def match(
    videos: Sequence[Annotated],
    folders: Sequence[FeatureFolder],
    shapes: Mapping[str, Mapping[str, tuple[int, int]] | None],
    findings: Findings,
    *,
    fps: float,
    stride: float | None,
    window: float | None,
) -> tuple[list[Matched], dict[str, int]]:
    """Compares the files of each video with each other, with those of the other videos, and with the annotation.

    Args:
      videos: annotated.
      folders: all that were asked for.
      shapes: {video: {folder name: (T, D)}} from `check_video_files`; None = left out.
      findings: gets what is wrong, cropped, padded, too short, and what a duration that is now known settles.
      fps: frames per second of a video that does not tell its own.
      stride, window: frames from one snippet to the next, and seen by one; None if not known.

    Returns:
      The videos without a problem, and {modality: D}.
    """
    sizes = {}
    for folder in folders:
        counts = Counter(found[folder.name][1] for found in shapes.values() if found and folder.name in found)
        if counts:
            sizes[folder.name] = counts.most_common(1)[0][0]
    for split in base.SPLITS:
        of_split = [video.id for video in videos if video.split == split]
        if of_split and all(shapes.get(video, {}) is None for video in of_split):
            findings.problem("empty split", f"{split}: none of its {len(of_split)} videos has all feature files")
    matched = []
    for video in videos:
        found = shapes.get(video.id, {})
        if found is not None and _check_shapes(video.id, folders, found, sizes, findings):
            files = tuple((folder, folder.find(video.id)[0]) for folder in folders)
            cropped = min(length for length, _ in found.values())
            matched.append(_match_one(video, files, cropped, findings, fps, stride, window))
    modalities = {
        modality: sizes[folder.name] // len(folder.modalities)
        for folder in folders
        if folder.name in sizes
        for modality in folder.modalities
    }
    return matched, modalities


def _check_shapes(video: str, folders, found: Mapping, sizes: Mapping, findings: Findings) -> bool:
    good = len(found) == len(folders)
    for folder in folders:
        if folder.name in found and found[folder.name][1] != sizes[folder.name]:
            path, size = folder.find(video)[0], found[folder.name][1]
            findings.problem(
                "wrong dimension", f"{folder.name}: {path}: D = {size}, most files have {sizes[folder.name]}"
            )
            good = False
    lengths = {name: length for name, (length, _) in found.items()}
    if not lengths:
        return False
    text = f"{video}: " + ", ".join(f"{name} {length}" for name, length in lengths.items())
    difference = max(lengths.values()) - min(lengths.values())
    if difference > 1:
        findings.problem("modalities disagree in T", f"{text}; all need the same snippets")
        return False
    if difference and good:
        findings.note(CROPPED, text)
    return good


def _match_one(
    video: Annotated, files: tuple, cropped: int, findings: Findings, fps: float, stride: float | None, window
) -> Matched:
    num_snippets, front = cropped, 0
    if math.isinf(video.duration):
        video = settle(video, cropped * stride, findings)
    elif stride and window and video.duration > 0:
        # Windows that overlap end before the video does, and the first is centred half a window after its start.
        missing = round(video.duration * (video.fps or fps) / stride) - cropped
        if 0 < missing <= window / stride + 1:
            front = min(missing, round(window / stride / 2))
            num_snippets += missing
            findings.note(PADDED, f"{video.id}: {front} before, {missing - front} after {cropped}")
    if video.duration > 0:
        first, stop = snippets_inside(video.segments, video.duration, num_snippets)
        for class_id, start, end in video.segments[first >= stop]:
            findings.note(TOO_SHORT, f"{video.id}: [{class_id:g}, {start:.10g}, {end:.10g}]")
    return Matched(video, files, num_snippets, cropped, front)


def load(video: Matched) -> base.Video:
    """Reads the features of a video into memory, as float16."""
    features = {}
    for folder, path in video.files:
        table = load_file(path, channels_first=folder.channels_first)[: video.cropped]
        table = np.pad(table, ((video.front, video.num_snippets - video.cropped - video.front), (0, 0)), mode="edge")
        parts = np.split(table, len(folder.modalities), axis=1)
        features |= dict(zip(folder.modalities, parts, strict=True))
    annotated = video.annotated
    return base.Video(
        annotated.id, features, annotated.segments, annotated.duration, annotated.written, annotated.ambiguous
    )


def is_manifest(content) -> bool:
    """Whether JSON is what `data_prep.extract` writes beside a feature file."""
    return isinstance(content, dict) and content.keys() >= {*MADE, "seconds_per_snippet"}


def how_made(videos: Sequence[Matched], folders: Sequence[FeatureFolder], findings: Findings) -> dict[str, dict]:
    """How features were extracted: of the modalities whose files all have a manifest beside them.

    Manifests of one modality that differ are problems; files without one, where others have one, are noted.

    Returns:
      {modality: its fields MADE, and the median seconds from one snippet to the next}. (A video's duration / T is
      longer where snippets overlap, much so in a short video.)
    """
    made = {}
    for folder in folders:
        paths = [path for video in videos for of, path in video.files if of == folder]
        manifests = {path: told for path in paths if (told := _manifest(path.with_suffix(".json")))}
        if len(folder.modalities) > 1 or not manifests:
            continue
        if untold := [path for path in paths if path not in manifests]:
            for path in untold:
                findings.note(UNTOLD, f"{folder.name}: {path}")
            continue
        ways = {path: {name: told[name] for name in MADE} for path, told in manifests.items()}
        most = json.loads(Counter(map(json.dumps, ways.values())).most_common(1)[0][0])
        for path, way in ways.items():
            if others := [name for name in MADE if way[name] != most[name]]:
                differ = "; ".join(f"{name} {short(way[name])}, others {short(most[name])}" for name in others)
                findings.problem("features made in different ways", f"{folder.name}: {path}: {differ}")
        seconds = float(np.median([told["seconds_per_snippet"] for told in manifests.values()]))
        made[folder.name] = most | {"seconds_per_snippet": seconds}
    return made


def _manifest(path: Path) -> dict | None:
    try:
        content = read_json(path)
    except (ValueError, OSError):
        return None
    return content if is_manifest(content) else None
