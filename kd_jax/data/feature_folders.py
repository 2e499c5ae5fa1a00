"""Where feature files are: folders, patterns of names, and files that hold an array for each video.

path, pattern, array = parse_place("i3d/v_{video}_rgb.npy")
folder = FeatureFolder(("rgb",), path, pattern=pattern, array=array)
folder.find("kitchen_1")  # [Path("i3d/v_kitchen_1_rgb.npy")]
"""

import contextlib
import functools
import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_jax.data import base
from kd_jax.data.checks import check_common
from kd_jax.data.feature_tables import LISTS, READERS, array_names, as_table, check_suffix, open_array
from kd_jax.data.text_files import find_file, normalize

SUFFIXES = (".npy", ".npz")  # of files without a pattern
TIME_STAMPS = "_timestamps_ms"  # ends the name of a file that `timing.read_timestamps` reads
VIDEO = "{video}"  # in a pattern
SEARCHED_FILES, SEARCHED_NAMES = 20_000, 200  # files that are listed, and compared, to suggest a pattern


@dataclass(frozen=True)
class FeatureFolder:
    """Where the feature files of a modality are, and how they are arranged."""

    modalities: tuple[str, ...]  # those in a file; several modalities are equal parts of its channels, in this order
    path: Path  # of the folder; or of one file that holds an array for each video
    channels_first: bool = False  # the files are `[D, T]`
    pool: bool = False  # grids of tokens are averaged
    # below the folder, with {video} for the name of a video; '' for <video>.npy or .npz in the folder, or, if it holds
    # no such files, in its subfolders
    pattern: str = ""
    array: str = ""  # name of the array in a file, which may contain {video}; '' for its only array

    @property
    def name(self) -> str:
        """The NAME of --features=NAME=FOLDER."""
        return "+".join(self.modalities)

    @property
    def described(self) -> str:
        """The FOLDER of --features=NAME=FOLDER."""
        return self.expected(VIDEO) if self.pattern or self.array else str(self.path)

    @property
    def is_file(self) -> bool:
        """Whether one file holds the features of all videos."""
        return not self.pattern and bool(self.array)

    def files(self) -> dict[str, Path]:
        """Returns {video: file} of all feature files; the `.npz` if a video has two."""
        return {video: paths[-1] for video, paths in self._list().items()}

    def find(self, video: str) -> list[Path]:
        """Returns the files of one video; two are a mistake."""
        if not base.is_file_name(video):  # it might lead out of the folder
            return []
        if self.is_file:
            return [self.path] if normalize(self.array.replace(VIDEO, video)) in self._arrays else []
        if not self.pattern and self._nested:
            return self._nested.get(video, [])
        names = [self.pattern.replace(VIDEO, video)] if self.pattern else [f"{video}{suffix}" for suffix in SUFFIXES]
        return [path for name in names if (path := find_file(self.path, name)).is_file()]

    def array_of(self, video: str) -> str:
        """Returns the name of the array of a video in its file."""
        name = self.array.replace(VIDEO, video)
        return self._arrays.get(normalize(name), name) if self.is_file else name

    def load(self, path: Path, video: str) -> np.ndarray:
        """Reads the features of a video from its file, which passed all checks, as `[T, D]` in the type of the file."""
        array = open_array(path, self.array_of(video))
        table = as_table(array, channels_first=self.channels_first, pool=self.pool)
        assert table is not None, f"{path} was not checked"
        return table

    def place(self, path: Path, video: str) -> str:
        """Returns where the features of a video are in a file, for messages."""
        return f"{path}:{self.array_of(video)}" if self.array else str(path)

    def expected(self, video: str = f"<{VIDEO[1:-1]}>") -> str:
        """Returns where the features of a video should be, for messages."""
        place = self.path / (self.pattern or ("" if self.is_file else f"{VIDEO}.npy"))
        return f"{place}{':' if self.array else ''}{self.array}".replace(VIDEO, video)

    def _list(self) -> dict[str, list[Path]]:
        """Returns {video: files}, sorted by the names of the files."""
        if self.is_file:
            names = [(name, self.path) for name in self._arrays]
            return _match_names(self.array, names)
        if self.pattern:
            depth = self.pattern.count("/")
            paths = sorted(self.path.glob("*/" * depth + "*"))
            return _match_names(self.pattern, [(path.relative_to(self.path).as_posix(), path) for path in paths])
        return self._nested or _by_stem(path for suffix in SUFFIXES for path in sorted(self.path.glob(f"*{suffix}")))

    @functools.cached_property
    def _nested(self) -> dict[str, list[Path]]:
        """{video: files} of the subfolders; empty if the folder itself holds feature files."""
        if not self.path.is_dir() or any(path.suffix in SUFFIXES for path in self.path.iterdir()):
            return {}
        return _by_stem(path for suffix in SUFFIXES for path in sorted(self.path.rglob(f"*{suffix}")))

    @functools.cached_property
    def _arrays(self) -> dict[str, str]:
        """{name in NFC: name} of the arrays in the file; empty if it cannot be read, which `check_folders` reports."""
        with contextlib.suppress(OSError, ValueError):
            return {normalize(name): name for name in array_names(self.path)}
        return {}


def _by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        if not path.stem.endswith(TIME_STAMPS):
            found.setdefault(normalize(path.stem), []).append(path)
    return found


def _match_names(pattern: str, names: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    """Returns {video: [file]} of the (name, file) pairs whose name follows a pattern."""
    first, *others = map(re.escape, normalize(pattern).split(VIDEO))
    form = re.compile(first + "(?P<video>[^/]+)" + "(?P=video)".join(others))
    return {match["video"]: [path] for name, path in names if (match := form.fullmatch(normalize(name)))}


def parse_place(text: str) -> tuple[Path, str, str]:
    """Parses where features are, as a user writes it.

        DIR                      <video>.npy or .npz in a folder or in its subfolders
        DIR/v_{video}_rgb.npy    files whose names or folders follow a pattern
        DIR/{video}.npz:rgb      an array with a name in each file
        FILE.h5:{video}          one file with an array for each video

    Returns (folder or file, pattern, name of the array) as in `FeatureFolder`. Raises ValueError with the remedy.
    """
    form = re.fullmatch(rf"(.+({'|'.join(map(re.escape, LISTS))})):(.+)", text, re.IGNORECASE)
    place, array = (form[1], form[3]) if form else (text, "")
    parts = place.split("/")
    first = next((i for i, part in enumerate(parts) if VIDEO in part), len(parts))
    folder = "/".join(parts[:first]) or ("/" if first else ".")
    pattern = "/".join(parts[first:])
    if pattern:
        check_suffix(Path(pattern).suffix.lower())
        if {"", ".", ".."} & set(parts[first:]):
            raise ValueError(f"{pattern!r} must be a plain path below {folder}")
    elif Path(place).is_dir():
        return Path(place), "", ""
    elif Path(place).suffix.lower() in LISTS:
        check_suffix(Path(place).suffix.lower())
        array = array or VIDEO
        if VIDEO not in array:
            raise ValueError(f"one file for all videos needs an array for each, as in {place}:{VIDEO}")
    elif Path(place).suffix.lower() in READERS or re.search(r"[*?]|\{\w*\}", place):
        name, count = re.subn(r"[*?]+|\{\w*\}", lambda _: VIDEO, Path(place).name)
        example = Path(place).parent / (name if count else f"{VIDEO}{Path(place).suffix}")
        raise ValueError(f"write {VIDEO} in place of the name of the video, as in {example}")
    return Path(folder), pattern, array


def describe_absence(folder: FeatureFolder, arrays: Sequence[str], videos: Sequence[str]) -> str:
    """Says that no name fits: an example of both sides, and the pattern that would fit, if there is one."""
    if folder.is_file:
        what, names, expected = "array", list(arrays), folder.array.replace(VIDEO, "<video>")
    else:
        what, expected = "file", folder.expected().removeprefix(f"{folder.path}/")
        below = (path for path in folder.path.rglob("*") if path.suffix.lower() in READERS and path.is_file())
        some = itertools.islice(below, SEARCHED_FILES)
        names = sorted(normalize(path.relative_to(folder.path).as_posix()) for path in some)
    absent = f"there is no feature {what}"
    why = check_common("the annotations", videos, str(folder.path), folder.files() or names) or absent
    case = f"{folder.name}: {folder.path} has no {what} {expected}: {why}"
    pattern, count = _suggest_pattern(names, videos, folder.modalities)
    if not count:
        return case
    array = f":{folder.array}" if folder.array else ""
    place = f"{folder.path}:{pattern}" if folder.is_file else f"{folder.path}/{pattern}{array}"
    found = f"fits {count} of {len(videos)} videos, e.g. {min(videos)!r}"
    return f"{case}; write --features={shlex.quote(f'{folder.name}={place}')}, which {found}"


def _suggest_pattern(names: Sequence[str], videos: Sequence[str], modalities: Sequence[str]) -> tuple[str, int]:
    """Returns the pattern that fits most videos, of several one with a modality, and how many; ('', 0) without one."""
    found: Counter[str] = Counter()
    for name, video in itertools.product(names[:SEARCHED_NAMES], videos):
        if video in name:
            parts = name.split(video)
            found.update({VIDEO.join(parts)})
            found.update(video.join(parts[:i]) + VIDEO + video.join(parts[i:]) for i in range(1, len(parts)))
    usual, known = [pattern for pattern, _ in found.most_common(20)], set(names)
    counts = {pattern: sum(pattern.replace(VIDEO, video) in known for video in videos) for pattern in usual}

    def rank(item: tuple[str, int]) -> tuple:
        pattern, count = item
        return count, any(modality in pattern for modality in modalities), pattern

    return max(counts.items(), key=rank, default=("", 0))
