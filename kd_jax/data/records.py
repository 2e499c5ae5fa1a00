"""Records: the layout in which every data set is stored, a TFDS data set of ArrayRecord shards.

    write('data/mine', info, {'train': videos, 'test': more})          # the values may be generators
    info = read_info('data/mine')
    videos = read('data/mine', 'train', modalities=['rgb'])            # only these features are decoded
    videos = read('data/mine', 'train', ['rgb'], on_disk=True)         # features are read when an array is made

The folder is also a TFDS data set, `tfds.builder_from_directory('data/mine').as_data_source('train')`. TensorFlow is
not needed. Features are float16, or float32 (see `Info.dtypes`). They are uncompressed, so that `shards` can read one
modality alone; its checksum then takes most of the time. All else is also in videos.jsonl, so reading without features,
or with `on_disk`, opens no shard.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kd_jax.data.base import SPLITS, Features, Info, OnDisk, Video, check_info, check_video, to_dtype
from kd_jax.data.checks import short
from kd_jax.data.shards import find_records, read_fields
from kd_jax.data.staging import staged
from kd_jax.files import read_json, sha256, write_json
from kd_jax.segments import Grid

INFO_FILE = "kd_jax.json"  # Info and the size of every shard; written last
VIDEOS_FILE = "videos.jsonl"  # one line per video: everything but the features, and checksums
TFDS_FILES = ("dataset_info.json", "features.json")  # what TFDS needs to read the folder
REPORT_FILE = "report.json"
SHARD_BYTES = 256 * 2**20  # the most that the features of a shard take, unless a single video takes more
WRITER_OPTIONS = "group_size:1,uncompressed"  # one video is one chunk: random access by video
FORMAT = 4
TABLES = {"segments": 3, "written": 3, "ambiguous": 2}  # fields of Video that are tables: number of columns


Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """A shard that was written."""

    file: str  # its name
    size: int  # in bytes
    videos: tuple[dict, ...]  # the entries of VIDEOS_FILE, in order, without the split


def write(
    directory: str | os.PathLike,
    info: Info,
    splits: Mapping[str, Iterable[Video]],
    report: Mapping | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a data set; after an error nothing is left.

    At most one shard of videos is in memory at a time. The files go to a sibling folder that gets the final name when
    it is complete.

    Args:
      directory: of the data set; it must be empty or not exist.
      info: what the videos share.
      splits: {'train': videos, 'test': videos}; each is iterated once.
      report: how the data was made, stored in the folder as report.json.
      overwrite: replace an older data set in `directory`; anything else there is never deleted.

    Raises FileExistsError if `directory` holds something else, or an older data set and `overwrite` is False;
    ValueError for a video that contradicts `info`, occurs twice, or does not fit the type of its features.
    """
    check_info(info)
    if set(splits) != set(SPLITS):
        raise ValueError(f"splits must be {', '.join(SPLITS)}; got {', '.join(splits) or 'none'}")
    with staged(Path(directory), marker=INFO_FILE, overwrite=overwrite) as folder:
        shards = {}
        for split in SPLITS:
            groups = enumerate(group_by_size(splits[split], lambda video: video_bytes(video.num_snippets, info)))
            shards[split] = [write_shard(folder / f"{split}-{number}", info, videos) for number, videos in groups]
        finish(folder, info, shards, report)


def video_bytes(num_snippets: int, info: Info) -> int:
    """Returns the size of the features of a video in a shard."""
    return num_snippets * sum(size * info.dtype(modality).itemsize for modality, size in info.modalities.items())


def group_by_size(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Splits items, in order, into groups of at most SHARD_BYTES; a larger item is a group of one."""
    group: list[Item] = []
    total = 0
    for item in items:
        size = size_of(item)
        if group and total + size > SHARD_BYTES:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


def write_shard(path: Path, info: Info, videos: Iterable[Video]) -> Shard:
    """Writes one shard.

    Raises ValueError for a video that contradicts `info` or does not fit the type of its features; OSError if the disk
    is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    def call(action: Callable, *arguments: bytes) -> None:  # array_record raises RuntimeError if the disk is full
        try:
            action(*arguments)
        except RuntimeError as error:
            raise OSError(str(error)) from None

    features = _features(info)
    written = []
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    try:
        for video in videos:
            check_video(video, info)
            video = _as_stored(video, info)
            written.append(_entry(video))
            record = {"id": video.id, "duration": float(video.duration), "features": video.features}
            call(writer.write, features.serialize_example(record | _tables(video)))
    finally:
        call(writer.close)
    return Shard(path.name, path.stat().st_size, tuple(written))


def _tables(video: Video) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(getattr(video, name), np.float64) for name in TABLES}


def _entry(video: Video) -> dict:
    """Returns the line of a video in VIDEOS_FILE. JSON keeps every bit of a float64."""
    known = {"id": video.id, "snippets": video.num_snippets, "duration": float(video.duration)}
    if video.known_grid:  # older records have none
        known["grid"] = list(video.known_grid)
    if video.validation:
        known["validation"] = True
    return known | {name: table.tolist() for name, table in _tables(video).items()} | {"crc32": checksums(video)}


def finish(folder: Path, info: Info, shards: Mapping[str, Sequence[Shard]], report: Mapping | None) -> None:
    """Makes a data set of the shards in a folder: names them and writes the files that TFDS and `read` need.

    `info` is the one that the shards were written with. Raises ValueError if a video occurs twice, or there are none.
    """
    from tensorflow_datasets.core import folder_dataset
    from tensorflow_datasets.core.splits import SplitInfo

    entries = [(split, video) for split, of_split in shards.items() for shard in of_split for video in shard.videos]
    _check_ids([video["id"] for _, video in entries])
    stored, split_infos = {}, []
    for split, of_split in shards.items():
        files = {}
        for number, shard in enumerate(of_split):
            final = f"{info.name}-{split}.array_record-{number:05d}-of-{len(of_split):05d}"
            (folder / shard.file).rename(folder / final)
            files[final] = shard.size
        lengths = [len(shard.videos) for shard in of_split]
        stored[split] = {"videos": sum(lengths), "shards": files}
        if of_split:
            split_infos.append(SplitInfo(name=split, shard_lengths=lengths, num_bytes=sum(files.values())))
    folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(info),
        split_infos=split_infos,
        check_data=False,  # the check needs TensorFlow
        description=f"{info.name}: videos for kd_jax; {INFO_FILE} holds classes and units.",
    )
    if report is not None:
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [json.dumps({"split": split, **video}, ensure_ascii=False) + "\n" for split, video in entries]
    (folder / VIDEOS_FILE).write_text("".join(lines), encoding="utf-8")
    checked = {name: sha256(folder / name) for name in (VIDEOS_FILE, *TFDS_FILES)}
    content = {"format": FORMAT, "info": dataclasses.asdict(info), "splits": stored, "files": checked}
    write_json(folder / INFO_FILE, content)


def _check_ids(ids: Sequence[str]) -> None:
    if not ids:
        raise ValueError("there are no videos in any split; a data set needs at least one")
    video, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise ValueError(f"video {video!r} occurs twice; an id names one video of one split")


def _features(info: Info):
    """Returns the TFDS features of a record."""
    from tensorflow_datasets import features as tfds

    def tensor(shape: tuple, dtype: type | np.dtype) -> tfds.Tensor:
        return tfds.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    return tfds.FeaturesDict(
        {
            "id": tfds.Text(),
            "duration": tensor((), np.float64),
            **{name: tensor((None, columns), np.float64) for name, columns in TABLES.items()},
            "features": {m: tensor((None, info.modalities[m]), info.dtype(m)) for m in info.modalities},
        }
    )


def checksums(video: Video) -> dict[str, int]:
    """Returns {modality: CRC-32 of its features as stored, '': CRC-32 of everything else}.

    They are checksums of the content, because the files of two equal builds can differ.
    """
    tables = {name: table.tolist() for name, table in _tables(video).items()}
    known = (video.id, float(video.duration), tables, *([list(video.known_grid)] if video.known_grid else []))
    known += ("validation",) if video.validation else ()
    parts = {"": zlib.crc32(repr(known).encode())}
    for modality, features in video.features.items():
        parts[modality] = zlib.crc32(np.ascontiguousarray(features).data)
    return parts


def fingerprint(info: Info, checksums_of: Mapping[str, Sequence[Mapping[str, int]]]) -> str:
    """Returns a short hash, equal only for an equal Info and equal `checksums` of the videos of each split."""
    known = dataclasses.asdict(info)
    # Not content: the videos have the times of their snippets, and the checksums imply the types of the features.
    for name in ("extraction", "first_snippet", "label_at", "dtypes"):
        del known[name]
    text = json.dumps([known, checksums_of], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_stored(video: Video, info: Info) -> Video:
    arrays = {}
    for modality, features in video.features.items():
        try:
            arrays[modality] = to_dtype(features, info.dtype(modality))
        except ValueError as error:
            raise ValueError(f"video {video.id!r}: {modality} {error}") from None
    return dataclasses.replace(video, features=arrays)


def _read_content(directory: str | os.PathLike) -> tuple[Info, dict[str, dict]]:
    """Reads INFO_FILE; returns what the videos share, and {split: its number of videos and its shards}."""
    directory = Path(directory)
    remedy = f"build them with `kd-jax build … --output={directory}`, or name another folder"
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise FileNotFoundError(f"no records in {directory}: it {what}; {remedy}")
    path = directory / INFO_FILE
    if not path.is_file():
        names = sorted(p.name for p in directory.iterdir())
        listing = ", ".join(names[:5]) + (f" … and {len(names) - 5} more" if len(names) > 5 else "")
        found = f"no {INFO_FILE} there, only {listing or 'nothing'}"
        raise FileNotFoundError(f"no records in {directory}: {found}; {remedy}")
    content = read_json(path, remedy) or {}
    if (version := content.get("format")) != FORMAT:
        raise ValueError(f"{path} has the format {version}, this version reads {FORMAT}; {remedy}")
    try:
        info = Info(**content["info"] | {"classes": tuple(content["info"]["classes"])})
        check_info(info)
        for split, of in content["splits"].items():
            counts = [of["videos"], *of["shards"].values()]
            if split not in SPLITS or any(type(count) is not int or count < 0 for count in counts):
                raise ValueError(f"the split {split!r} has {short(of)}")
        changed = [name for name, digest in content.get("files", {}).items() if sha256(directory / name) != digest]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); build the data set again") from None
    except OSError as error:
        raise ValueError(f"{error.filename} is damaged ({error.strerror}); build the data set again") from None
    if changed:
        raise ValueError(f"{directory / changed[0]} is damaged (it is not what was written); build the data set again")
    return info, content["splits"]


def _read_entries(directory: str | os.PathLike) -> dict[str, list[dict]]:
    """Reads {split: entries of VIDEOS_FILE} and checks that they are complete and unchanged."""
    path = Path(directory) / VIDEOS_FILE
    _, splits = _read_content(directory)
    entries: dict[str, list[dict]] = {split: [] for split in splits}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            video = json.loads(line)
            entries[video.pop("split")].append(video)
            if checksums(_to_video(video, {}))[""] != video["crc32"][""]:
                raise ValueError(f"{video['id']!r} is not what was written")
            if type(video["snippets"]) is not int or video["snippets"] < 1:
                raise ValueError(f"{video['id']!r} has {video['snippets']!r} snippets")
        if any(len(entries[split]) != stored["videos"] for split, stored in splits.items()):
            raise ValueError("lines are missing")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); build the data set again") from None
    return entries


def read_info(directory: str | os.PathLike) -> Info:
    """Reads what the videos of a data set share.

    Raises FileNotFoundError if there is no finished data set in `directory`; ValueError if its description is damaged
    or has another format.
    """
    return _read_content(directory)[0]


def read_fingerprint(directory: str | os.PathLike) -> str:
    """Reads the `fingerprint` of the records in a folder.

    Raises FileNotFoundError if there is no finished data set in `directory`; ValueError if the data set is damaged.
    """
    checksums_of = {split: [video["crc32"] for video in of] for split, of in _read_entries(directory).items()}
    return fingerprint(read_info(directory), checksums_of)


def read(
    directory: str | os.PathLike,
    split: str,
    modalities: Sequence[str] | None = None,
    *,
    first: int | None = None,
    on_disk: bool = False,
) -> list[Video]:
    """Reads a split.

    Args:
      split: 'train' or 'test'.
      modalities: those to decode; None = all, empty = none.
      first: the number of videos to read, from the start; None = all. Videos for validation are counted apart.
      on_disk: leave the features in their records, see `base.OnDisk`; damage is found when the features are read.

    Returns the videos in the order in which they were written; features are read-only arrays, or OnDisk. Raises
    FileNotFoundError if there is no finished data set in `directory`, or a shard is missing; ValueError for an unknown
    split or modality, or a shard that has changed.
    """
    info, splits = _read_content(directory)
    if split not in splits:
        raise ValueError(f"{directory} has no split {split!r}; it has {', '.join(splits)}")
    modalities = tuple(info.modalities) if modalities is None else tuple(modalities)
    if missing := [m for m in modalities if m not in info.modalities]:
        known, remedy = ", ".join(info.modalities), f"Build it again with --features={missing[0]}=DIR to add it"
        raise ValueError(f"{directory} has no modality {missing[0]!r}; it has {known}. {remedy}")
    _check_shards(Path(directory), splits[split]["shards"])
    entries = _first_of_each(_read_entries(directory)[split], first)
    if not entries or not modalities:
        return [_to_video(entry, {}) for _, entry in entries]
    records = _Records(directory, split, splits[split]["shards"], info)
    if on_disk:
        return [_to_video(e, {m: records.on_disk(i, e, m) for m in modalities}) for i, e in entries]
    return [_to_video(entry, records.features(i, entry, modalities)) for i, entry in entries]


def _first_of_each(entries: Sequence[Mapping], first: int | None) -> list[tuple[int, Mapping]]:
    """Returns (index, entry) of the first videos for training, and of the first ones for validation."""
    groups: dict[bool, list[tuple[int, Mapping]]] = {False: [], True: []}
    for index, entry in enumerate(entries):
        groups[bool(entry.get("validation"))].append((index, entry))
    return sorted(groups[False][:first] + groups[True][:first], key=lambda found: found[0])


def _to_video(entry: Mapping, features: Mapping[str, Features]) -> Video:
    tables = {name: np.array(entry[name], np.float64).reshape(-1, columns) for name, columns in TABLES.items()}
    grid, validation = Grid(*entry["grid"]) if "grid" in entry else None, entry.get("validation", False)
    duration = entry["duration"]
    return Video(entry["id"], features, duration=duration, known_grid=grid, validation=validation, **tables)


@contextlib.contextmanager
def _named_damage(path: os.PathLike) -> Iterator[None]:
    """Turns every exception of the libraries that read a file into a ValueError with its name and the remedy."""
    try:
        yield
    except Exception as error:  # array_record and TFDS document no exception types
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path} is damaged ({cause}); build the data set again, or copy this file again") from error


class _Records:
    """The records of a split, read in any order and by any number of threads."""

    def __init__(self, directory: str | os.PathLike, split: str, shards: Iterable[str], info: Info):
        self._info, self._paths = info, [Path(directory) / name for name in shards]
        with _named_damage(path := Path(directory) / TFDS_FILES[0]):
            (stored,) = (found for found in json.loads(path.read_bytes())["splits"] if found["name"] == split)
            self._ends = np.cumsum([0, *map(int, stored["shardLengths"])]).tolist()
        self._places: dict[int, list[int]] = {}  # {index of a shard that was read: places of its records}

    def features(self, index: int, entry: Mapping, modalities: Sequence[str]) -> Mapping[str, Features]:
        """Reads features of a video and checks them against its entry in VIDEOS_FILE."""
        shard = bisect.bisect(self._ends, index) - 1
        path, first = self._paths[shard], self._ends[shard]
        with _named_damage(path):
            if shard not in self._places:
                self._places[shard] = find_records(path, self._ends[shard + 1] - first)
            names = {"id", "duration", *TABLES, *(f"features/{m}" for m in modalities)}
            stored = read_fields(path, self._places[shard][index - first], names)
            tables: dict[str, Any] = {
                name: stored[name].view(np.float64).reshape(-1, columns) for name, columns in TABLES.items()
            }
            features = {m: self._array(stored[f"features/{m}"], m) for m in modalities}
            (duration,), name = stored["duration"].view(np.float64).tolist(), stored["id"].tobytes().decode()
            video = dataclasses.replace(_to_video(entry, features), id=name, duration=duration, **tables)
            if any(checksum != entry["crc32"][part] for part, checksum in checksums(video).items()):
                raise ValueError(f"{video.id!r} is not what was written; was a shard swapped or changed?")
        return video.features

    def _array(self, content: np.ndarray, modality: str) -> np.ndarray:
        return content.view(self._info.dtype(modality)).reshape(-1, self._info.modalities[modality])

    def on_disk(self, index: int, entry: Mapping, modality: str) -> OnDisk:
        """Returns features of a video that are read when they are used."""
        shape = (entry["snippets"], self._info.modalities[modality])
        dtype = self._info.dtype(modality)
        return OnDisk(shape, lambda: np.asarray(self.features(index, entry, [modality])[modality]), dtype)


def _check_shards(directory: Path, shards: Mapping[str, int]) -> None:
    """Raises unless every shard has the size with which it was written."""
    for name, size in shards.items():
        path, remedy = directory / name, "build the data set again, or copy the shard again"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the data set is incomplete; {remedy}")
        if (found := path.stat().st_size) != size:
            raise ValueError(f"{path} has {found} bytes of {size}: the shard has changed; {remedy}")
