"""Times of snippets: how features were cut from their videos, and whether that agrees with the durations.

cut = Cut(step=4 / 30, window=16 / 30)                  # 16 frames every 4 frames, at 30 frames per second
front, num_snippets, grid = place(cut, 22, duration=3.4)
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.data import checks
from kd_jax.data.annotations.cleaning import Annotated
from kd_jax.data.annotations.units import MOST, OTHER_UNIT, as_between, common_factor
from kd_jax.data.checks import Findings, short
from kd_jax.data.feature_folders import TIME_STAMPS
from kd_jax.data.feature_tables import open_array
from kd_jax.data.manifests import MODALITIES, STEP, read_manifest
from kd_jax.segments import Grid

MOST_MISSING = 1000  # snippets that are added to a video, whatever its window
SHORTEST, LONGEST = 1e-3, 600.0  # seconds from one snippet to the next, beyond which a unit must be wrong


@dataclass(frozen=True)
class Cut:
    """How the rows of a feature file were cut from their video, in seconds."""

    step: float  # from one row to the next
    window: float  # that a row covers; the first window starts with the video
    source: Path | None = field(default=None, compare=False)  # the file that states it; None for options

    @property
    def start(self) -> float:
        """The start of the first snippet; a snippet has the length `step` and the centre of its window."""
        return (self.window - self.step) / 2

    @property
    def label_at(self) -> float:
        """The position of labels, as in `Grid`: snippets that touch are labelled at their start, as public loaders do.

        Snippets of windows that overlap, or have gaps, are labelled at their centre.
        """
        return 0.0 if math.isclose(self.window, self.step, rel_tol=1e-6) else 0.5

    @property
    def is_plausible(self) -> bool:
        """Whether neither step nor window is so short or long that a unit must be wrong."""
        return SHORTEST <= self.step <= LONGEST and self.window <= LONGEST

    def described(self) -> str:
        """Returns step and window, for messages."""
        return f"every {self.step:.4g} s, {self.window:.4g} s long"

    def grid(self, num_rows: int) -> Grid:
        """Returns the times of the rows, in seconds."""
        return Grid(self.start, num_rows * self.step, self.label_at)

    def covered(self, num_rows: int) -> float:
        """Returns the end of the last window."""
        return (num_rows - 1) * self.step + self.window


class Placed(NamedTuple):
    """Where the rows of a feature file are among the snippets of a video."""

    front: int  # copies of the first row that precede it; copies of the last one follow it up to `num_snippets`
    num_snippets: int
    grid: Grid  # in seconds

    def rows(self, num_rows: int) -> np.ndarray:
        """Returns the row that each snippet has, `[num_snippets]`."""
        return np.clip(np.arange(self.num_snippets) - self.front, 0, num_rows - 1)


def place(cut: Cut, num_rows: int, duration: float) -> Placed:
    """Adds the snippets at both ends of a video that have no row because windows must lie inside the video.

    `duration` is in seconds. If more snippets are missing than a window explains, none is added.
    """
    missing = math.floor(duration / cut.step + 0.5) - num_rows
    if not 0 < missing <= min(cut.window / cut.step, MOST_MISSING) + 1:
        missing = 0
    front = min(missing, max(0, math.floor(cut.start / cut.step + 0.5)))
    num_snippets = num_rows + missing
    return Placed(front, num_snippets, Grid(cut.start - front * cut.step, num_snippets * cut.step, cut.label_at))


def nearest_rows(cut: Cut, num_rows: int, other: Cut, num_other: int) -> np.ndarray:
    """Returns the row of another feature file of the same video that is nearest to each row, `[num_rows]`."""
    centres = cut.start + (np.arange(num_rows) + 0.5) * cut.step
    return np.clip(np.floor((centres - other.start) / other.step + 1e-9), 0, num_other - 1).astype(int)


def read_timestamps(path: Path) -> Cut:
    """Reads `<video>_timestamps_ms.npy` of video_features: for each row the time at which its window ends, in ms.

    The first window starts at 0. Raises ValueError or OSError for another content, or for times that are uneven.
    """
    times = np.atleast_1d(open_array(path)).astype(np.float64) / 1000
    if times.ndim != 1 or len(times) < 2 or not np.isfinite(times).all() or times[0] < 0:
        raise ValueError(f"{path} holds {list(times.shape)} values, expected at least two finite times in milliseconds")
    steps = np.diff(times)
    step = float(np.median(steps))
    if step <= 0 or np.abs(times - times[0] - np.arange(len(times)) * step).max() > max(step, 0.01 * times[-1]):
        raise ValueError(
            f"{path}: its times must rise evenly, but they are from {steps.min():.4g} to {steps.max():.4g} s apart"
        )
    return Cut(float(times[-1] - times[0]) / (len(times) - 1), float(times[0]), path)


@dataclass(frozen=True)
class Timing:
    """What the command and the data set say about the times of snippets."""

    fps: float  # frames per second of a video whose annotation has none
    unit: str = "seconds"  # 'seconds' or 'frames', of the annotation
    stride: float | None = None  # frames from one snippet to the next; None if unknown
    window: float | None = None  # frames that one snippet covers; None if unknown
    is_assumed: bool = False  # whether `fps` is a mere default, which says nothing about these videos
    features_fps: float | None = None  # frames per second that `stated` counts in; None for those of each video
    # {name of the folder: (frames from one snippet to the next, frames that one covers)}, as the command says
    stated: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def in_seconds(self, time: float) -> float:
        """Converts a time of the annotation to seconds."""
        return time / self.fps if self.unit == "frames" else time

    def cut(self, annotated: Annotated, modality: str, path: Path, findings: Findings) -> Cut | None:
        """Returns how a file was cut: as the command says, its manifest or its time stamps; None if they do not."""
        stated = stated_cut(annotated.id, modality, path, findings)
        if modality not in self.stated:
            return stated
        if not (fps := self.features_fps or annotated.fps or (0.0 if self.is_assumed else self.fps)):
            remedy = "give --fps, or --videos=DIR with the videos"
            findings.problem("fps", f"{annotated.id}: --stride counts frames, but their rate is unknown; {remedy}")
            return None
        of_options = _cut_at(fps, *self.stated[modality])
        if stated and not _agree(stated, of_options):
            case = f"{modality}: {path}: a snippet {stated.described()}, but --stride, --window and --fps make it"
            remedy = "leave --stride and --window out, or make the features again"
            findings.problem("stride", f"{case} {of_options.described()}; {remedy}")
        return of_options

    def public_cut(self, annotated: Annotated) -> Cut | None:
        """Returns how the public features of the data set are cut, if their windows overlap."""
        fps = annotated.fps or self.fps
        return _cut_at(fps, self.stride, self.window) if self.stride and self.window else None


def _agree(stated: Cut, of_options: Cut) -> bool:
    """Whether steps are equal and, if a manifest states them, windows too; time stamps may be those of frames."""
    pairs = [(stated.step, of_options.step)]
    if stated.source and stated.source.suffix == ".json":
        pairs.append((stated.window, of_options.window))
    return all(math.isclose(*pair, rel_tol=0.01) for pair in pairs)


def _cut_at(fps: float, stride: float, window: float) -> Cut:
    return Cut(stride / fps, window / fps)


def stated_cut(video: str, modality: str, path: Path, findings: Findings) -> Cut | None:
    """Returns how a file was cut by the files next to it, a manifest or time stamps."""
    manifest, stamps = read_manifest(path, findings), path.with_name(f"{video}{TIME_STAMPS}.npy")
    if manifest:
        source = path.with_suffix(".json")
        if modality in MODALITIES and manifest["modality"] != modality:
            case = f"{source}: it describes features of {short(manifest['modality'])}, expected {modality}"
            findings.problem(
                "features of another modality", f"{case}; give another folder, or another name to this one"
            )
        if manifest.keys() >= {"fps"} and "length" in manifest["sampling"]:
            window = manifest["sampling"]["length"] / manifest["fps"]
            return _plausible(Cut(manifest[STEP], window, source), findings)
    if stamps.is_file():
        try:
            return _plausible(read_timestamps(stamps), findings)
        except (OSError, ValueError) as error:
            findings.problem("time stamps", f"{modality}: {error}")
    return None


def _plausible(cut: Cut, findings: Findings) -> Cut | None:
    """Returns the cut that a file states; None after a problem."""
    if cut.is_plausible:
        return cut
    case = f"{cut.source}: a snippet every {cut.step:.4g} s with a window of {cut.window:.4g} s"
    findings.problem("snippet length", f"{case}; correct or delete this file")
    return None


class Length(NamedTuple):
    """What is known about the length of a video."""

    video: str
    num_rows: int  # of its features
    duration: float  # seconds, of the annotation
    cut: Cut | None  # of its features, or of the public ones; None if unknown

    @property
    def end(self) -> float:
        """The end of the last row in seconds; the duration if it is unknown how the rows were cut."""
        return self.cut.covered(self.num_rows) if self.cut else self.duration

    @property
    def fits(self) -> bool:
        """Whether the rows end within a window of the end of the video."""
        window = max(self.cut.window, self.cut.step) if self.cut else 0.0
        return abs(self.end - self.duration) <= window * (1 + 1e-6)


def compare_lengths(lengths: Sequence[Length], findings: Findings) -> None:
    """Compares the features of each video with its duration, and reports what differs by more than a window.

    A factor that most videos share is reported once. Without a `Cut`, the videos are compared with each other.
    """
    lengths = [length for length in lengths if 0 < length.duration < math.inf]
    for video, num_rows, duration, cut in lengths:
        known = cut or Cut(duration / num_rows, duration / num_rows)
        if not known.is_plausible:
            case = f"{video}: {duration:.4g} s and {num_rows} snippets, so a snippet lasts {known.step:.4g} s"
            case += f" and its window {known.window:.4g} s" if cut and cut.window > LONGEST else ""
            findings.problem("snippet length", f"{case}; check the unit of the times and --unit, --fps, --stride")
    _compare_with_durations([length for length in lengths if length.cut], findings)
    _compare_with_each_other([length for length in lengths if not length.cut], findings)


def _compare_with_durations(lengths: Sequence[Length], findings: Findings) -> None:
    """Compares the time that the rows cover with the duration."""
    differ = np.array([not length.fits for length in lengths], bool)
    factor, explained = common_factor(np.array([length.end / length.duration for length in lengths]))
    if factor and differ.sum() >= MOST * len(lengths):
        case = f"the snippets last {factor:.4g} times the duration in {explained.sum()} of {len(lengths)} videos"
        findings.note(checks.FACTOR, f"{case}{as_between(factor)}")
        differ &= ~explained
    for length in itertools.compress(lengths, differ):
        assert length.cut
        ratio, source = length.end / length.duration, length.cut.source
        if source and not 1 / OTHER_UNIT < ratio < OTHER_UNIT and (units := as_between(ratio)):
            case = f"{source}: its times end at {length.end:.4g} s, but {length.video} at {length.duration:.4g} s"
            findings.problem("snippet length", f"{case}{units}; correct or delete this file")
            continue
        case = f"{length.video}: {length.num_rows} snippets every {length.cut.step:.4g} s end at {length.end:.4g} s"
        findings.note(checks.LENGTH_DIFFERS, f"{case}, but the video at {length.duration:.4g} s")


def _compare_with_each_other(lengths: Sequence[Length], findings: Findings) -> None:
    """Compares the seconds per snippet of videos whose rows are taken to divide the duration."""
    if not lengths:
        return
    seconds = np.array([length.duration / length.num_rows for length in lengths])
    usual = float(np.median(seconds))
    off = [abs(length.num_rows * usual - length.duration) for length in lengths]
    differ = [of for of, by in zip(lengths, off, strict=True) if by > max(2 * usual, 0.02 * of.duration)]
    if len(lengths) - len(differ) < MOST * len(lengths):
        span = f"{seconds.min():.4g} to {seconds.max():.4g} s"
        findings.note(checks.LENGTHS_VARY, f"{span}; do the durations belong to these features?")
        return
    for video, num_rows, duration, _ in differ:
        here = f"{video}: a snippet lasts {duration / num_rows:.4g} s, {usual:.4g} s in most videos"
        case = f"{here} ({num_rows} snippets, {duration:.4g} s); are its features complete?"
        findings.note(checks.LENGTH_DIFFERS, case)
