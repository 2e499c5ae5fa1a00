"""What every data set is made of: videos with features, segments and a duration, and what all of them share.

    video = Video("kitchen_1", {"rgb": features}, segments=np.array([[2, 0.5, 4.0]]), duration=61.5)
    check_video(video, info)                # ValueError, naming the video, for anything that contradicts `info`

`kd_jax.data.records` writes and reads them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Features that stay where they are stored: `np.asarray(features)` reads them, each time anew.

    Attributes:
      shape: (T, D).
      load: reads the `[T, D]` float16 array; any thread may call it.
    """

    shape: tuple[int, int]
    load: Callable[[], np.ndarray]
    dtype: ClassVar[np.dtype] = np.dtype(np.float16)

    @property
    def nbytes(self) -> int:
        """Of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.load(), dtype)


@dataclass(frozen=True, eq=False)
class Video:
    """One video.

    Attributes:
      id: its name, unique in the data set; also the name of its feature files.
      features: {modality: `[T, D]`} float16 or float32, or OnDisk, with one T for all of them.
      segments: `[N, 3]` float64 rows (class, start, end), in the data set's unit of time, cleaned: within the video,
        none empty, none twice; they may overlap.
      duration: in the same unit.
      written: `[M, 3]` rows as the annotation file has them, which is what official scripts score segments against;
        `segments` where the data set has no dirt.
      ambiguous: `[K, 2]` rows (start, end), where a detection is neither right nor wrong; only THUMOS14 has any.
    """

    id: str
    features: dict[str, np.ndarray | OnDisk]
    segments: np.ndarray
    duration: float
    written: np.ndarray | None = None
    ambiguous: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def __post_init__(self):
        if self.written is None:
            object.__setattr__(self, "written", self.segments)

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
      extraction: {modality: how its features were extracted}, see `feature_files.how_made`; only where that is known.
    """

    name: str
    classes: tuple[str, ...]
    head: str
    modalities: dict[str, int]
    unit: str
    fps: float
    seconds_per_snippet: float
    extraction: dict[str, dict] = field(default_factory=dict)

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
      title: its name, and what its actions are like.
      needs: the public files, and the command that builds records of them.
      head, unit, fps: as in Info; defaults where the builder has an option for them.
      names: of the classes, () where only the user's list has them; a list of the same length may replace them.
      protocols: keys of `kd_jax.evaluation.protocols.PROTOCOLS`: those it is published with, the first one first.
      read: (annotation files, class names, findings) → videos; None if it has no files.
      stride: frames from one snippet to the next, where the public features all have the same.
      window: frames that one snippet sees, if more than `stride`.
    """

    title: str
    needs: str
    head: str
    unit: str
    fps: float
    names: tuple[str, ...]
    protocols: tuple[str, ...]
    read: Callable | None
    stride: float | None = None
    window: float | None = None


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
    for name in ("fps", "seconds_per_snippet"):
        if not 0 < getattr(info, name) < math.inf:
            raise ValueError(f"Info.{name}={getattr(info, name)}; it must be a finite number above 0")


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
    for name, columns in (("segments", 3), ("written", 3), ("ambiguous", 2)):
        rows = getattr(video, name)
        if rows.ndim != 2 or rows.shape[1] != columns or not np.isfinite(rows).all():
            raise ValueError(
                f"video {video.id!r}: {name} must be finite numbers [N, {columns}], got shape {rows.shape}"
            )
        if len(rows) and columns == 3 and not np.isin(rows[:, 0], np.arange(len(info.classes))).all():
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


def check_finite(features: np.ndarray) -> None:
    """ValueError where a value is not finite."""
    if not np.isfinite(features).all():
        raise ValueError("holds values that are not finite numbers")


def to_float16(features: np.ndarray) -> np.ndarray:
    """Features as float16; ValueError where one is not finite or would not be after conversion (beyond 65504)."""
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(features, np.float16)
    if not np.isfinite(converted).all():
        check_finite(features)
        raise ValueError(f"holds values up to {np.abs(features).max():g}, but float16 ends at 65504; rescale them")
    return converted
