"""Videos with features, segments and a duration, and the Info that the videos of a data set share.

    video = Video("kitchen_1", {"rgb": features}, segments=np.array([[2, 0.5, 4.0]]), duration=61.5)
    check_video(video, info)                # ValueError that names the video if it contradicts `info`

`kd_jax.data.records` writes and reads them.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kd_jax.segments import Grid

SPLITS = ("train", "test")
FLOAT16 = np.dtype(np.float16)
STORED = ("float16", "float32")  # types of stored features


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Features that stay in their records: each `np.asarray(features)` reads them again."""

    shape: tuple[int, int]  # (T, D)
    load: Callable[[], np.ndarray]  # reads the `[T, D]` array; it may be called from any thread
    dtype: np.dtype = FLOAT16

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.load(), dtype)


Features = np.ndarray | OnDisk  # [T, D]


@dataclass(frozen=True, eq=False)
class Video:
    """One video."""

    id: str  # its name, unique in the data set; also the name of its feature files
    features: Mapping[str, Features]  # {modality: `[T, D]`} float16 or float32, or OnDisk; all have the same T
    # `[N, 3]` float64 rows (class, start, end) in the data set's unit of time. They are cleaned: inside the video, not
    # empty, without duplicates. They may overlap.
    segments: np.ndarray
    duration: float  # in the same unit
    # `[M, 3]` rows of the annotation file, unchanged; official scripts score against them. None means `segments`
    written: np.ndarray = None  # type: ignore[assignment]  # __post_init__ replaces None
    # `[K, 2]` rows (start, end) in which a detection is neither right nor wrong; only THUMOS14 has any
    ambiguous: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))
    # the times of the snippets, in the same unit; None if they divide the duration evenly
    known_grid: Grid | None = None
    validation: bool = False  # a training video that the user chose for validation

    def __post_init__(self):
        if self.written is None:
            object.__setattr__(self, "written", self.segments)

    @property
    def grid(self) -> Grid:
        """The times of the snippets."""
        return self.known_grid or Grid(0.0, self.duration)

    @property
    def num_snippets(self) -> int:
        """T."""
        if not self.features:
            raise ValueError(f"video {self.id!r} was read without features, so its number of snippets is unknown")
        return len(next(iter(self.features.values())))


@dataclass(frozen=True)
class Info:
    """What all videos of a data set share."""

    name: str  # letters, digits and _; shard files start with it
    classes: tuple[str, ...]  # names by class id, without the background of a sparse head
    head: str  # 'dense' (concurrent actions, sigmoid) or 'sparse' (one action at a time, softmax with background)
    modalities: dict[str, int]  # {modality: D}
    unit: str  # 'seconds' or 'frames', of segments and durations
    # frames per second. It sets the resolution of the ground truth when scores are up-sampled, and converts frames to
    # seconds when the unit is frames.
    fps: float
    seconds_per_snippet: float  # from one snippet to the next, the median over all videos
    # {modality: how its features were extracted}, see `feature_files.how_made`; only modalities for which that is known
    extraction: dict[str, dict] = dataclasses.field(default_factory=dict)
    first_snippet: float = 0.0  # seconds from the start of a video to the first row of its feature file
    label_at: float = 0.0  # as in `segments.Grid`
    # {modality: 'float32'} of the modalities that float16 cannot hold, see `precision`; the others are float16
    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)

    def dtype(self, modality: str) -> np.dtype:
        """Returns the type in which the features of a modality are stored."""
        return np.dtype(self.dtypes.get(modality, np.float16))

    def seconds(self, value: float) -> float:
        """Converts a time of this data set to seconds."""
        return value / self.fps if self.unit == "frames" else value

    def num_frames(self, video: Video) -> int:
        """Returns the number of frames of a video: its duration in seconds times `fps`, rounded, at least 1."""
        return max(1, round(video.duration if self.unit == "frames" else video.duration * self.fps))


@dataclass(frozen=True)
class Description:
    """An entry of DATASETS: what is known about a data set before its files are read."""

    title: str  # the name of the data set and the kind of its actions
    needs: str  # the public files and the command that builds records from them
    head: str  # head, unit, fps: as in Info; the builder has options that replace them
    unit: str
    fps: float
    names: tuple[str, ...]  # of the classes; a class list may replace them by as many others; () if it must give them
    protocols: tuple[str, ...]  # keys of `protocols.PROTOCOLS`: those of published results, the main one first
    # (annotation files, class names, findings) → list of `annotations.cleaning.Annotated`; None without such files
    read: Callable[..., list] | None
    stride: float | None = None  # frames from one snippet to the next, if all public features have the same
    window: float | None = None  # frames that one snippet covers, if more than `stride`


def check_info(info: Info) -> None:
    """Raises ValueError that names the field if no reader could use this Info."""
    if not is_name(info.name):
        raise ValueError(f"Info.name={info.name!r}; use letters, digits and _, a letter first")
    if not info.classes or len(set(info.classes)) != len(info.classes):
        raise ValueError(f"Info.classes needs at least one name and no name twice; got {len(info.classes)} names")
    for field, one, other in (("head", "dense", "sparse"), ("unit", "seconds", "frames")):
        if (value := getattr(info, field)) not in (one, other):
            raise ValueError(f"Info.{field}={value!r}; choose {one!r} or {other!r}")
    if not info.modalities:
        raise ValueError("Info.modalities is empty; a data set needs at least one")
    for modality, size in info.modalities.items():
        if not is_name(modality) or size < 1:
            remedy = "use letters, digits and _, and D of at least 1"
            raise ValueError(f"Info.modalities has {modality!r}: {size}; {remedy}")
    for modality, dtype in info.dtypes.items():
        if modality not in info.modalities or dtype not in STORED:
            remedy = f"name a modality, and {' or '.join(STORED)}"
            raise ValueError(f"Info.dtypes has {modality!r}: {dtype!r}; {remedy}")
    for name in ("fps", "seconds_per_snippet"):
        if not 0 < (value := getattr(info, name)) < math.inf:
            raise ValueError(f"Info.{name}={value}; it must be a finite number above 0")


def check_video(video: Video, info: Info) -> None:
    """Raises ValueError that names the video if it contradicts `info`."""
    if not is_file_name(video.id):
        raise ValueError(f"video id {video.id!r} cannot be the name of a file in a folder")
    if video.features.keys() != info.modalities.keys():
        found, expected = ", ".join(video.features) or "none", f"{info.name!r} has {', '.join(info.modalities)}"
        raise ValueError(f"video {video.id!r} has the modalities {found}; the data set {expected}")
    for modality, features in video.features.items():
        shape = (video.num_snippets, info.modalities[modality])
        if features.shape != shape or not len(features):
            expected = f"{shape} and at least one snippet"
            raise ValueError(f"video {video.id!r}: {modality} has shape {features.shape}, expected {expected}")
    for name, columns in (("segments", 3), ("written", 3), ("ambiguous", 2)):
        rows, expected = getattr(video, name), f"finite numbers [N, {columns}]"
        if rows.ndim != 2 or rows.shape[1] != columns or not np.isfinite(rows).all():
            raise ValueError(f"video {video.id!r}: {name} must be {expected}, got shape {rows.shape}")
        if len(rows) and columns == 3 and not np.isin(rows[:, 0], np.arange(len(info.classes))).all():
            raise ValueError(f"video {video.id!r} has a class that is not one of 0 … {len(info.classes) - 1}")
    if not 0 < video.duration < math.inf:
        raise ValueError(f"video {video.id!r} has the duration {video.duration}; it must be a finite number above 0")
    if not (np.isfinite(video.grid).all() and video.grid.length > 0):
        raise ValueError(f"video {video.id!r} has the grid {video.grid}; it must be finite, with a length above 0")


def is_file_name(name: str) -> bool:
    """Whether `name` can name a file inside a folder and none outside it."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(c in "/\\" or not c.isprintable() for c in name)
        and len(name.encode()) <= 200
    )


def is_name(name: str) -> bool:
    """Whether `name` can name a modality or a data set: letters, digits and _, a letter first."""
    return re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) is not None


def check_finite(features: np.ndarray, first: int = 0) -> None:
    """Raises ValueError for a value that is not finite, and names its snippet; row 0 of `features` is snippet `first`.

    Args:
      features: `[T, D]` of any real type.
    """
    if not (finite := np.isfinite(features)).all():
        row, column = np.argwhere(~finite)[0]
        case = f"snippet {first + row} has {float(features[row, column])}"
        raise ValueError(f"holds values that are not finite numbers: {case}; repair or remove the snippet")


LARGEST = 1e18  # magnitude of a feature; variances and losses square it in float32


def to_dtype(features: Features, dtype: np.dtype | str, first: int = 0) -> np.ndarray:
    """Converts features to 'float16' or 'float32'.

    Raises ValueError if a value is not finite or exceeds the largest of the type, or `LARGEST`, and names its snippet;
    row 0 of `features` is snippet `first`. All features that a detector reads pass this check.
    """
    dtype = np.dtype(dtype)
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(features, dtype)
    if not (np.isfinite(converted) if dtype == np.float16 else np.abs(converted) <= LARGEST).all():
        features = np.asarray(features)
        check_finite(features, first)
        sizes = np.abs(features).max(axis=1)
        row, largest = int(sizes.argmax()), np.finfo(dtype).max
        limit = f"but {dtype} ends at {largest:.6g}" if sizes.max() > largest else "whose squares float32 cannot hold"
        raise ValueError(f"holds values up to {float(sizes[row]):g}, in snippet {first + row}, {limit}; rescale them")
    return converted
