"""One record layout for every data set: videos with features, segments and a duration, as TFDS ArrayRecord shards.

    write('data/mine', info, {'train': videos, 'test': more})          # the values may be generators
    info = read_info('data/mine')
    videos = read('data/mine', 'train', modalities=['rgb'])            # only these features are decoded

The folder is also a TFDS data set: `tfds.builder_from_directory('data/mine').as_data_source('train')`. TensorFlow is
not needed to write or read it. Features are stored as raw float16, uncompressed: on one server core that wrote 290 MB/s
and read 580 MB/s, against 100 and 450 MB/s with ArrayRecord's default compression; and what is not asked for is not
copied.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "test")
INFO_FILE = "kd_jax.json"  # Info, the size of every shard and the checksums of every video; written last
REPORT_FILE = "report.json"
SHARD_BYTES = 256 * 2**20  # a shard is closed once it holds this much
WRITER_OPTIONS = "group_size:1,uncompressed"  # one video is one chunk: random access by video
FORMAT = 2


@dataclass(frozen=True, eq=False)
class Video:
    """One video.

    Attributes:
      id: its name, unique in the data set; also the name of its feature files.
      features: {modality: `[T, D]`} float16 or float32, with one T for all of them.
      segments: `[N, 3]` float64 rows (class, start, end), in the data set's unit of time; they may overlap.
      duration: in the same unit.
    """

    id: str
    features: dict[str, np.ndarray]
    segments: np.ndarray
    duration: float

    @property
    def num_snippets(self) -> int:
        """T."""
        if not self.features:
            raise ValueError(f"video {self.id!r} was read without features, so its number of snippets is not known")
        return len(next(iter(self.features.values())))


@dataclass(frozen=True)
class Info:
    """What all videos of a data set share.

    Attributes:
      name: letters, digits and _; it names the shards.
      classes: names by class id; the background of a sparse head is not among them.
      head: 'dense' (concurrent actions, sigmoid) or 'sparse' (one action at a time, softmax with background).
      modalities: {modality: D}.
      unit: 'seconds' or 'frames', of segments and durations.
      fps: frames per second. The resolution of the ground truth when scores are up-sampled, and the way from frames to
        seconds when the unit is frames.
      seconds_per_snippet: the median over all videos.
    """

    name: str
    classes: tuple[str, ...]
    head: str
    modalities: dict[str, int]
    unit: str
    fps: float
    seconds_per_snippet: float

    def seconds(self, value: float) -> float:
        """A time of this data set in seconds."""
        return value / self.fps if self.unit == "frames" else value

    def num_frames(self, video: Video) -> int:
        """The number of frames of a video: its duration in seconds times `fps`, rounded, at least 1."""
        frames = video.duration if self.unit == "frames" else video.duration * self.fps
        return max(1, round(frames))


@dataclass(frozen=True)
class Description:
    """What is known of a data set before its files are seen: an entry of DATASETS.

    Attributes:
      head, unit, fps: as in Info; defaults where the builder has an option for them.
      num_classes: None where the user's files decide.
      classes: where the class names come from.
      protocols: the metrics it is published with.
    """

    head: str
    unit: str
    fps: float
    num_classes: int | None
    classes: str
    protocols: tuple[str, ...]


def check_info(info: Info) -> None:
    """Raises ValueError, naming the field, for an Info that no reader could use."""
    if not is_name(info.name):
        raise ValueError(f"Info.name={info.name!r}; use letters, digits and _, a letter first")
    if not info.classes or len(set(info.classes)) != len(info.classes):
        raise ValueError(f"Info.classes needs at least one name and no name twice; got {len(info.classes)} names")
    if info.head not in ("dense", "sparse"):
        raise ValueError(f"Info.head={info.head!r}; choose 'dense' or 'sparse'")
    if info.unit not in ("seconds", "frames"):
        raise ValueError(f"Info.unit={info.unit!r}; choose 'seconds' or 'frames'")
    if not info.modalities:
        raise ValueError("Info.modalities is empty; a data set needs at least one")
    for modality, size in info.modalities.items():
        if not is_name(modality) or size < 1:
            raise ValueError(
                f"Info.modalities has {modality!r}: {size}; use letters, digits and _, and D of at least 1"
            )
    for field in ("fps", "seconds_per_snippet"):
        if not 0 < getattr(info, field) < math.inf:
            raise ValueError(f"Info.{field}={getattr(info, field)}; it must be a finite number above 0")


def check_video(video: Video, info: Info) -> None:
    """Raises ValueError, naming the video, for anything that contradicts `info` or does not fit float16."""
    if not is_file_name(video.id):
        raise ValueError(f"video id {video.id!r} cannot be the name of a file in a folder")
    if video.features.keys() != info.modalities.keys():
        raise ValueError(
            f"video {video.id!r} has the modalities {', '.join(video.features) or 'none'}; "
            f"the data set {info.name!r} has {', '.join(info.modalities)}"
        )
    for modality, features in video.features.items():
        if features.shape != (video.num_snippets, info.modalities[modality]) or not len(features):
            raise ValueError(
                f"video {video.id!r}: {modality} has shape {features.shape}, expected "
                f"({video.num_snippets}, {info.modalities[modality]}) and at least one snippet"
            )
    segments = video.segments
    if segments.ndim != 2 or segments.shape[1] != 3 or not np.isfinite(segments).all():
        raise ValueError(f"video {video.id!r}: segments must be finite numbers [N, 3], got shape {segments.shape}")
    if len(segments) and not np.isin(segments[:, 0], np.arange(len(info.classes))).all():
        raise ValueError(f"video {video.id!r} has a class that is not one of 0 … {len(info.classes) - 1}")
    if not 0 < video.duration < math.inf:
        raise ValueError(f"video {video.id!r} has the duration {video.duration}; it must be above 0")


def is_file_name(name: str) -> bool:
    """Whether `name` names a file inside a folder, and none outside it."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(c in "/\\" or not c.isprintable() for c in name)
        and len(name.encode()) <= 200
    )


def is_name(name: str) -> bool:
    """Whether `name` can be that of a modality or a data set: letters, digits and _, a letter first."""
    return re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) is not None


def to_float16(features: np.ndarray) -> np.ndarray:
    """Features as float16; ValueError where one is not finite or would not be after conversion (beyond 65504)."""
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(features, np.float16)
    if not np.isfinite(converted).all():
        if not np.isfinite(features).all():
            raise ValueError("holds values that are not finite numbers")
        raise ValueError(f"holds values up to {np.abs(features).max():g}, but float16 ends at 65504; rescale them")
    return converted


def write(
    directory: str | os.PathLike,
    info: Info,
    splits: Mapping[str, Iterable[Video]],
    report: Mapping | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a data set, whole or not at all.

    Videos are written as they come: only one of them is in memory at a time. Everything goes to a sibling folder that
    takes the final name when it is complete.

    Args:
      directory: of the data set; it must not exist, or be empty.
      info: what the videos share.
      splits: {'train': videos, 'test': videos}; iterated once.
      report: what is known of how the data was made, stored beside it as report.json.
      overwrite: replace an older data set in `directory`; anything else there is never deleted.

    Raises:
      FileExistsError: if `directory` holds something else, or an older data set without `overwrite`.
      ValueError: for a video that contradicts `info`, comes twice, or does not fit float16.
    """
    check_info(info)
    if set(splits) != set(SPLITS):
        raise ValueError(f"splits must be {', '.join(SPLITS)}; got {', '.join(splits) or 'none'}")
    directory = Path(os.path.abspath(directory))
    check_writable(directory, overwrite=overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f".{directory.name}.unfinished-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _write_into(unfinished, info, splits, report)
        if directory.exists():
            replaced = directory.with_name(f".{directory.name}.replaced-{os.getpid()}")
            directory.rename(replaced)
            unfinished.rename(directory)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_writable(directory: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Raises FileExistsError unless `directory` is free, or holds a data set that may be overwritten."""
    directory = Path(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not (directory / INFO_FILE).is_file():
        raise FileExistsError(
            f"{directory} is not empty and holds no records of kd_jax, so it is left alone; choose another folder"
        )
    if not overwrite:
        raise FileExistsError(
            f"{directory} already holds records; choose another folder, or replace them with --overwrite"
        )


def _write_into(directory: Path, info: Info, splits: Mapping[str, Iterable[Video]], report: Mapping | None) -> None:
    from tensorflow_datasets.core import folder_dataset
    from tensorflow_datasets.core.splits import SplitInfo

    features = _features(info, info.modalities)
    seen: set[str] = set()
    stored, split_infos = {}, []
    for split in SPLITS:
        written: list[dict[str, int]] = []
        shards = _write_shards(directory, split, _serialized(splits[split], info, features, seen, written))
        files = {}
        for number, (path, _) in enumerate(shards):
            final = f"{info.name}-{split}.array_record-{number:05d}-of-{len(shards):05d}"
            path.rename(directory / final)
            files[final] = (directory / final).stat().st_size
        lengths = [length for _, length in shards]
        stored[split] = {"videos": sum(lengths), "shards": files, "crc32": written}
        if shards:
            split_infos.append(SplitInfo(name=split, shard_lengths=lengths, num_bytes=sum(files.values())))
    if not split_infos:
        raise ValueError("there are no videos in any split; a data set needs at least one")
    folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=split_infos,
        check_data=False,  # that check needs TensorFlow
        description=f"{info.name}: videos for kd_jax; {INFO_FILE} holds classes and units.",
    )
    if report is not None:
        (directory / REPORT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    content = {"format": FORMAT, "info": dataclasses.asdict(info), "splits": stored}
    (directory / INFO_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _features(info: Info, modalities: Iterable[str]):
    """The TFDS features of a record, with these modalities of it."""
    from tensorflow_datasets import features as tfds

    return tfds.FeaturesDict(
        {
            "id": tfds.Text(),
            "duration": tfds.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
            "segments": tfds.Tensor(shape=(None, 3), dtype=np.float64, encoding="bytes"),
            "features": {
                m: tfds.Tensor(shape=(None, info.modalities[m]), dtype=np.float16, encoding="bytes") for m in modalities
            },
        }
    )


def checksums(video: Video) -> dict[str, int]:
    """{modality: CRC-32 of its float16 features, '': of all the rest}. Of the content: equal builds differ in bytes."""
    rest = f"{video.id} {float(video.duration)!r}".encode() + np.asarray(video.segments, np.float64).tobytes()
    arrays = {modality: np.ascontiguousarray(array, np.float16) for modality, array in video.features.items()}
    return {"": zlib.crc32(rest), **{modality: zlib.crc32(array) for modality, array in arrays.items()}}


def fingerprint(info: Info, checksums_of: Mapping[str, Sequence[Mapping[str, int]]]) -> str:
    """A short name of a data set: the same only for the same Info and the same `checksums` of each split's videos."""
    text = json.dumps([dataclasses.asdict(info), checksums_of], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _serialized(
    videos: Iterable[Video], info: Info, features, seen: set[str], written: list[dict[str, int]]
) -> Iterator[bytes]:
    """The videos as records; their checksums are appended to `written`."""
    for video in videos:
        check_video(video, info)
        if video.id in seen:
            raise ValueError(f"video {video.id!r} comes twice; an id names one video of one split")
        seen.add(video.id)
        arrays = {}
        for modality in info.modalities:
            try:
                arrays[modality] = to_float16(video.features[modality])
            except ValueError as error:
                raise ValueError(f"video {video.id!r}: {modality} {error}") from None
        written.append(checksums(dataclasses.replace(video, features=arrays)))
        yield features.serialize_example(
            {
                "id": video.id,
                "duration": float(video.duration),
                "segments": np.ascontiguousarray(video.segments, np.float64),
                "features": arrays,
            }
        )


def _write_shards(directory: Path, split: str, records: Iterable[bytes]) -> list[tuple[Path, int]]:
    """Writes records into shards of about SHARD_BYTES; returns their (path, number of records)."""
    from array_record.python.array_record_module import ArrayRecordWriter

    def call(action, *arguments):  # array_record says "disk full" as a RuntimeError
        try:
            action(*arguments)
        except RuntimeError as error:
            raise OSError(str(error)) from None

    shards, writer, size = [], None, 0
    try:
        for record in records:
            if writer is not None and size + len(record) > SHARD_BYTES:
                full, writer = writer, None
                call(full.close)
            if writer is None:
                shards.append((directory / f"{split}-{len(shards)}", 0))
                writer, size = ArrayRecordWriter(str(shards[-1][0]), WRITER_OPTIONS), 0
            call(writer.write, record)
            size += len(record)
            shards[-1] = (shards[-1][0], shards[-1][1] + 1)
    finally:
        if writer is not None:
            call(writer.close)
    return shards


def _read_content(directory: str | os.PathLike) -> dict:
    directory = Path(directory)
    remedy = f"build them with `python -m data_prep.build … --output={directory}`, or name another folder"
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise FileNotFoundError(f"no records in {directory}: it {what}; {remedy}")
    path = directory / INFO_FILE
    if not path.is_file():
        names = sorted(p.name for p in directory.iterdir())
        listing = ", ".join(names[:5]) + (f" … and {len(names) - 5} more" if len(names) > 5 else "")
        raise FileNotFoundError(
            f"no records in {directory}: no {INFO_FILE} there, only {listing or 'nothing'}; {remedy}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from None
    if found != FORMAT:
        raise ValueError(f"{path} has the format {found}, this version reads {FORMAT}; {remedy}")
    return content


def read_info(directory: str | os.PathLike) -> Info:
    """What the videos of a data set share.

    Raises:
      FileNotFoundError: if there is no finished data set in `directory`.
    """
    info = dict(_read_content(directory)["info"])
    info["classes"] = tuple(info["classes"])
    return Info(**info)


def read_fingerprint(directory: str | os.PathLike) -> str:
    """The `fingerprint` of the records in a folder.

    Raises:
      FileNotFoundError: if there is no finished data set in `directory`.
    """
    splits = _read_content(directory)["splits"]
    return fingerprint(read_info(directory), {split: stored["crc32"] for split, stored in splits.items()})


def read(
    directory: str | os.PathLike, split: str, modalities: Sequence[str] | None = None, *, first: int | None = None
) -> list[Video]:
    """Reads a split.

    Args:
      directory: where `write` wrote.
      split: 'train' or 'test'.
      modalities: those to decode; None = all, empty = none.
      first: read only so many videos from the start; None = all.

    Returns:
      The videos in the order they were written; features are read-only float16 arrays.

    Raises:
      FileNotFoundError: if there is no finished data set in `directory`, or one of its shards is gone.
      ValueError: for an unknown split or modality, or a shard that is not what was written.
    """
    content = _read_content(directory)
    info = read_info(directory)
    if split not in content["splits"]:
        raise ValueError(f"{directory} has no split {split!r}; it has {', '.join(content['splits'])}")
    modalities = tuple(info.modalities) if modalities is None else tuple(modalities)
    for modality in modalities:
        if modality not in info.modalities:
            raise ValueError(
                f"{directory} has no modality {modality!r}; it has {', '.join(info.modalities)}. "
                f"Build it anew with --features={modality}=DIR to add it"
            )
    stored = content["splits"][split]
    _check_shards(Path(directory), stored["shards"])
    wanted = stored["videos"] if first is None else min(first, stored["videos"])
    if not wanted:
        return []
    features = _features(info, modalities)
    try:
        records = itertools.islice(_records(directory, split), wanted)
        videos = [
            _to_video(features.deserialize_example_np(record), modalities, written)
            for record, written in zip(records, stored["crc32"], strict=False)
        ]
    except Exception as error:  # array_record and TFDS raise whatever they like
        raise ValueError(
            f"{directory}: a shard of {split} is damaged ({type(error).__name__}: {str(error)[:200]}); build it anew"
        ) from error
    if len(videos) != wanted:
        raise ValueError(f"{directory}: {split} has {len(videos)} of {wanted} videos; build it anew")
    return videos


def _records(directory: str | os.PathLike, split: str) -> Iterator[bytes]:
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(os.path.abspath(directory)).as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    return (source[i] for i in range(len(source)))


def _to_video(record: Mapping, modalities: Sequence[str], written: Mapping[str, int]) -> Video:
    video = Video(
        id=record["id"].decode(),
        features={m: record["features"][m] for m in modalities},
        segments=record["segments"],
        duration=float(record["duration"]),
    )
    if any(checksum != written[part] for part, checksum in checksums(video).items()):
        raise ValueError(f"{video.id!r} is not what was written there; was a shard swapped or changed?")
    return video


def _check_shards(directory: Path, shards: Mapping[str, int]) -> None:
    for name, size in shards.items():
        path = directory / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is gone: the data set is not whole; build it anew, or copy the shard again"
            )
        if path.stat().st_size != size:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes of {size}: the shard is not what was written; "
                "build the data set anew, or copy the shard again"
            )
