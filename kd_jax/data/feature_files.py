"""Feature files: finds and checks them, matches them with the annotation, and loads them as `[T, D]`.

    folder = FeatureFolder(("rgb", "flow"), Path("i3d"))                 # [T, 2048] = rgb ‖ flow
    shapes, findings = check_video_files("video_1", [folder])            # for each video, in any process
    matched, sizes = match(videos, [folder], shapes, findings, …)        # once, for all videos
    video = load(matched[0])                                             # base.Video

`feature_folders` finds the files, and `feature_tables` reads them.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_jax.data import base, checks
from kd_jax.data.annotations.cleaning import Annotated, with_duration
from kd_jax.data.annotations.units import as_between
from kd_jax.data.checks import Findings, reason, short
from kd_jax.data.feature_folders import FeatureFolder, describe_absence
from kd_jax.data.feature_tables import LISTS, array_names, as_table, is_real, open_array, shown_names
from kd_jax.data.manifests import FIELDS, STEP, read_manifest
from kd_jax.data.precision import Statistics
from kd_jax.data.timing import Cut, Length, Timing, compare_lengths, nearest_rows, place
from kd_jax.segments import Grid

FEW_ACTIONS = 5  # fewer may all be too short to label a snippet
CHUNK_VALUES = 2**20  # values of a feature file that are checked at once


@dataclass(frozen=True, eq=False)
class Matched:
    """An annotated video whose feature files passed all checks."""

    annotated: Annotated  # with a finite duration
    files: tuple[tuple[FeatureFolder, Path], ...]  # (folder, file) of each folder
    rows: tuple[np.ndarray, ...]  # for each file, `[T]`: the row that each snippet has
    length: Length  # of the video and of its first file
    cut: Cut | None  # how its rows were cut from the video; None if they are taken to divide the duration
    grid: Grid  # the times of the snippets in the unit of `annotated`

    @property
    def num_snippets(self) -> int:
        """T of the record."""
        return len(self.rows[0])


Shape = tuple[int, int]  # (T, D)


def check_folders(folders: Sequence[FeatureFolder], videos: Sequence[str], findings: Findings) -> list[FeatureFolder]:
    """Returns the folders with features of these videos; reports one problem for each other folder."""
    present = []
    for folder in folders:
        what = "file" if folder.is_file else "folder"
        if not (folder.path.is_file() if folder.is_file else folder.path.is_dir()):
            findings.problem("missing feature folder", f"{folder.name}: {folder.path} is not a {what}")
            continue
        try:
            names = array_names(folder.path) if folder.is_file else []
        except (OSError, ValueError) as error:
            findings.problem("unreadable feature file", f"{folder.name}: {folder.path}: {reason(error)}")
            continue
        files = folder.files()
        if videos and not files.keys() & set(videos):
            findings.problem("missing feature folder", describe_absence(folder, names, videos))
            continue
        present.append(folder)
        for name in sorted(files.keys() - set(videos)):
            findings.note(checks.UNANNOTATED, f"{folder.name}: {folder.place(files[name], name)}")
    return present


def check_video_files(
    video: str,
    folders: Sequence[FeatureFolder],
    statistics: dict[str, Statistics] | None = None,
    *,
    skip_missing: bool = False,
) -> tuple[dict[str, Shape] | None, Findings]:
    """Reads every feature file of a video once, in parts.

    Returns {name of the folder: (T, D)} of the files without a problem, and the findings. With `skip_missing`, None if
    a file is missing. `statistics`, {name of the folder: statistics of its channels}, gets those of the files.
    """
    shapes, findings, skipped = {}, Findings(), False
    for folder in folders:
        paths = folder.find(video)
        if len(paths) > 1:
            findings.problem("two feature files", f"{folder.name}: {paths[0]} and {paths[1]}; remove one")
        elif paths:
            own = Statistics()
            if shape := check_file(folder, paths[0], video, findings, own.add):
                shapes[folder.name] = shape
            if own.largest:
                case = f"{folder.name}: {folder.place(paths[0], video)}: values up to {own.largest:g}"
                findings.note(checks.BEYOND_FLOAT16, case)
            if statistics is not None:
                statistics.setdefault(folder.name, Statistics()).merge(own)
        elif skip_missing:
            findings.note(checks.SKIPPED, f"{video}: {folder.expected(video)}")
            skipped = True
        else:
            findings.problem("missing feature file, see --skip_missing", f"{folder.name}: {folder.expected(video)}")
    return None if skipped else shapes, findings


def check_file(
    folder: FeatureFolder,
    path: Path,
    video: str,
    findings: Findings,
    check: Callable[[np.ndarray, int], object] = base.check_finite,
) -> Shape | None:
    """Returns (T, D) of one feature file; None after a problem.

    `check` is called with parts `[N, D]` of the file and the index of their first row, and raises ValueError for values
    that cannot be used.
    """
    place = f"{folder.name}: {folder.place(path, video)}"
    try:
        array = open_array(path, folder.array_of(video))
    except (OSError, ValueError) as error:
        findings.problem("unreadable feature file", f"{place}: {reason(error)}")
        return None
    if not is_real(array.dtype):
        findings.problem("feature type", f"{place}: {array.dtype}, expected real numbers")
        return None
    table = as_table(array, channels_first=folder.channels_first, pool=folder.pool)
    if table is None:
        is_grid = as_table(array, channels_first=folder.channels_first, pool=True) is not None
        kind = "feature shape, see --pool=mean for grids of tokens" if is_grid else "feature shape"
        if folder.pool and not folder.channels_first and array.ndim > 3:
            kind += f", see --channels_first={folder.name} for [D, T, …]"
        expected = "[D, T]" if folder.channels_first else "[T, D]"
        several = folder.array and not folder.is_file and path.suffix.lower() in LISTS
        others = f"; the file holds {shown_names(array_names(path))}" if several else ""
        findings.problem(kind, f"{place}: {list(array.shape)}, expected {expected}{others}")
        return None
    if not len(table):
        findings.problem("no snippets", f"{place}: {list(array.shape)}")
        return None
    counted = (read_manifest(path, Findings()) or {}).get("snippets", len(table))  # damage is reported with the times
    if counted != len(table):
        case = f"{place}: {len(table)} rows, but its manifest {path.with_suffix('.json').name} counts {counted}"
        findings.problem("features of another extraction", f"{case}; extract the features again")
        return None
    num_channels, num_parts = table.shape[1], len(folder.modalities)
    rows = max(1, CHUNK_VALUES // num_channels)
    try:
        for first in range(0, len(table), rows):
            check(table[first : first + rows], first)
    except ValueError as error:
        findings.problem("feature values", f"{place} {error}")
        return None
    if array.dtype.kind != "f":
        findings.note(checks.CONVERTED, f"{place}: {array.dtype}")
    if num_channels % num_parts:
        parts = f"{num_parts} equal parts ({', '.join(folder.modalities)})"
        findings.problem("wrong dimension", f"{place}: D = {num_channels} has no {parts}")
        return None
    return len(table), num_channels


def refuse_transposed(
    folders: Sequence[FeatureFolder], shapes: Mapping[str, dict[str, Shape] | None], findings: Findings
) -> None:
    """Reports one problem for a folder whose files have one T and many D, and takes its shapes out of `shapes`.

    `shapes` is {video: {folder name: (T, D)}}. The axes of such files are exchanged: T differs from video to video.
    """
    for folder in folders:
        of_folder = [found[folder.name] for found in shapes.values() if found and folder.name in found]
        lengths, sizes = {length for length, _ in of_folder}, Counter(size for _, size in of_folder)
        usual = max(sizes.values(), default=0)
        if len(lengths) != 1 or len(sizes) < 2 or (len(sizes) == 2 and 2 * usual > len(of_folder)):
            continue
        axes, remedy = ("columns", "without") if folder.channels_first else ("rows", "with")
        other = "rows" if folder.channels_first else "columns"
        found = f"all {len(of_folder)} files have {min(lengths)} {axes}, and from {min(sizes)} to {max(sizes)} {other}"
        shape = "[T, D]" if folder.channels_first else "[D, T]"
        case = f"{folder.name}: {found}, so they are {shape}; build {remedy} --channels_first={folder.name}"
        findings.problem("exchanged axes", case)
        for of_video in filter(None, shapes.values()):
            of_video.pop(folder.name, None)


def stored_dtypes(
    folders: Sequence[FeatureFolder], statistics: Mapping[str, Statistics], findings: Findings
) -> dict[str, str]:
    """Returns {modality: 'float32'} of the modalities that float16 cannot hold, and notes their channels."""
    dtypes = {}
    for folder in folders:
        of_folder = statistics.get(folder.name, Statistics())
        rounded = of_folder.rounded_away()
        for modality, part in zip(folder.modalities, np.array_split(rounded, len(folder.modalities)), strict=True):
            if part.any() or of_folder.largest:
                dtypes[modality] = "float32"
        if rounded.any():
            first = int(rounded.argmax())
            case = f"{folder.name}: {rounded.sum()} of {len(rounded)} channels, e.g. channel {first}"
            remedy = "standardise them before saving, or train with --config.model.standardize=true"
            findings.note(checks.ROUNDED, f"{case}: {of_folder.describe(first)}; {remedy}")
    return dtypes


def match(
    videos: Sequence[Annotated],
    folders: Sequence[FeatureFolder],
    shapes: Mapping[str, Mapping[str, Shape] | None],
    findings: Findings,
    timing: Timing,
) -> tuple[list[Matched], dict[str, int]]:
    """Compares the files of each video with each other, with those of other videos, and with the annotation.

    Args:
      folders: all that the user named.
      shapes: {video: {folder name: (T, D)}} from `check_video_files`; None for a skipped video.
      findings: gets problems and what was resampled, cropped, padded, clipped or too short.
      timing: what is known about the times of snippets.

    Returns the videos without a problem, and {modality: D}.
    """
    found_sizes = {
        f.name: [found[f.name][1] for found in shapes.values() if found and f.name in found] for f in folders
    }
    sizes = {name: Counter(found).most_common(1)[0][0] for name, found in found_sizes.items() if found}
    for split in base.SPLITS:
        of_split = [video.id for video in videos if video.split == split]
        if of_split and all(shapes.get(video, {}) is None for video in of_split):
            findings.problem("empty split", f"{split}: none of its {len(of_split)} videos has all feature files")
    matched = []
    for video in videos:
        found = shapes.get(video.id, {})
        if found is not None and _check_sizes(video.id, folders, found, sizes, findings):
            rows = {folder.name: found[folder.name][0] for folder in folders}
            if (of_video := _match_rows(video, folders, rows, findings, timing)) is not None:
                matched.append(of_video)
    compare_lengths([of_video.length for of_video in matched], findings)
    _check_labels(matched, findings)
    modalities = {
        modality: sizes[folder.name] // len(folder.modalities)
        for folder in folders
        if folder.name in sizes
        for modality in folder.modalities
    }
    return matched, modalities


def _match_rows(
    video: Annotated, folders: Sequence[FeatureFolder], num_rows: dict[str, int], findings: Findings, timing: Timing
) -> Matched | None:
    """Chooses the rows of each file that are the snippets of a video; None after a problem."""
    files = tuple((folder, folder.find(video.id)[0]) for folder in folders)
    cuts = [timing.cut(video, folder.name, path, findings) for folder, path in files]
    rows = _align(video.id, num_rows, cuts, [path for _, path in files], findings)
    if rows is None:
        return None
    cut, common = next((cut for cut in cuts if cut), None), len(rows[0])
    if math.isinf(video.duration) and timing.stride:
        video = with_duration(video, common * timing.stride, findings)
    duration, snippets = timing.in_seconds(video.duration), np.arange(common)
    length, grid = Length(video.id, common, duration, cut or timing.public_cut(video)), Grid(0.0, video.duration)
    if not cut and length.fits:
        cut = length.cut
    if cut and cut.is_plausible and 0 < duration < math.inf:  # `compare_lengths` reports others
        placed = place(cut, common, duration)
        snippets = placed.rows(common)
        grid = placed.grid.scale(video.duration / duration)
        if missing := placed.num_snippets - common:
            findings.note(checks.PADDED, f"{video.id}: {placed.front} before, {missing - placed.front} after {common}")
    return Matched(video, files, tuple(of[snippets] for of in rows), length, cut, grid)


def _align(
    video: str, num_rows: Mapping[str, int], cuts: Sequence[Cut | None], paths: Sequence[Path], findings: Findings
) -> list[np.ndarray] | None:
    """Returns the row of each file at each snippet of the first file, `[T]`; None after a problem.

    Files whose snippets have other times than those of the first file are resampled; all others must have one T.
    """
    first = cuts[0]
    known = {name: cut for name, cut in zip(num_rows, cuts, strict=True) if cut}
    resampled = {name: cut for name, cut in known.items() if first and not _same_times(first, cut)}
    others = {name: count for name, count in num_rows.items() if name not in resampled}
    if not _agree_in_length(video, others, findings):
        return None
    if resampled:
        case = ", ".join(f"{name} every {cut.step:.4g} s" for name, cut in known.items())
        findings.note(checks.RESAMPLED, f"{video}: {case}")
        files = [(cut, count, path) for cut, count, path in zip(cuts, num_rows.values(), paths, strict=True) if cut]
        for other in files[1:]:
            _compare_ends(video, files[0], other, findings)
    common = min(others.values())
    return [
        nearest_rows(first, common, resampled[name], count) if first and name in resampled else np.arange(common)
        for name, count in num_rows.items()
    ]


def _same_times(one: Cut, other: Cut) -> bool:
    """Whether the snippets of two files of a video have the same times: equal steps, and starts within one."""
    return abs(one.step / other.step - 1) < 1e-3 and abs(one.start - other.start) < one.step


def _compare_ends(video: str, first: tuple[Cut, int, Path], other: tuple[Cut, int, Path], findings: Findings) -> None:
    """Reports a problem if the rows of two modalities, (cut, T, file), end more than both windows apart."""
    (cut, rows, _), (other_cut, other_rows, _) = first, other
    end, other_end = cut.covered(rows), other_cut.covered(other_rows)
    if abs(end - other_end) > max(cut.window, cut.step) + max(other_cut.window, other_cut.step):
        files = [f"{of.source or file} ends at {of.covered(count):.4g} s" for of, count, file in (first, other)]
        remedy = f"{as_between(other_end / end)}; correct the times or complete the features"
        findings.problem("modalities disagree in time", f"{video}: {', '.join(files)}{remedy}")


def _check_sizes(
    video: str, folders: Sequence[FeatureFolder], found: Mapping[str, Shape], sizes: dict[str, int], findings: Findings
) -> bool:
    """Whether all files of a video were found, with the D of the other videos."""
    good = len(found) == len(folders)
    for folder in folders:
        if folder.name in found and found[folder.name][1] != sizes[folder.name]:
            path, size = folder.find(video)[0], found[folder.name][1]
            case = f"{folder.name}: {path}: D = {size}, most files have {sizes[folder.name]}"
            findings.problem("wrong dimension", case)
            good = False
    return good


def _agree_in_length(video: str, num_rows: Mapping[str, int], findings: Findings) -> bool:
    """Whether the files of a video have one T, or differ by one."""
    case = f"{video}: " + ", ".join(f"{name} {length}" for name, length in num_rows.items())
    difference = max(num_rows.values()) - min(num_rows.values())
    if difference > 1:
        example = " ".join(f"--stride={name}=FRAMES" for name in num_rows)
        remedy = f"complete them or, if their times differ, state the frames between two rows of each, {example}"
        findings.problem("modalities disagree in T", f"{case}; {remedy}")
    elif difference:
        findings.note(checks.CROPPED, case)
    return difference <= 1


def _check_labels(videos: Sequence[Matched], findings: Findings) -> None:
    """Notes actions without a snippet inside; if these are nearly all, they are a problem."""
    total = unlabelled = 0
    for video in videos:
        annotated = video.annotated
        total += len(annotated.segments)
        if annotated.duration > 0:
            first, stop = video.grid.snippets_inside(annotated.segments, video.num_snippets)
            unlabelled += int((first >= stop).sum())
            for class_id, start, end in annotated.segments[first >= stop]:
                findings.note(checks.TOO_SHORT, f"{annotated.id}: [{class_id:g}, {start:.10g}, {end:.10g}]")
    if total >= FEW_ACTIONS and unlabelled > 0.9 * total and "snippet length" not in findings.problems:
        sources = [video.cut.source for video in videos if video.cut and video.cut.source]
        remedy = "check the unit of the times" + (f", also of those in {sources[0]}" if sources else "")
        case = f"{unlabelled} of {total} actions label no snippet"
        factor = "".join(f" ({note})" for note in findings.handled.get(checks.FACTOR, ()))
        findings.problem("labels", f"{case}; {remedy}, and --unit, --fps, --stride{factor}")


def load(video: Matched, dtypes: Mapping[str, str] | None = None) -> base.Video:
    """Reads the features of a video into memory, as float16, or as `dtypes` {modality: type} says."""
    features: dict[str, base.Features] = {}
    of, dtypes = video.annotated, dtypes or {}
    for (folder, path), rows in zip(video.files, video.rows, strict=True):
        dtype = np.result_type(*(dtypes.get(modality, "float16") for modality in folder.modalities))
        table = base.to_dtype(folder.load(path, of.id), dtype)[rows]
        parts = np.split(table, len(folder.modalities), axis=1)
        features |= zip(folder.modalities, parts, strict=True)
    known_grid = video.grid if video.cut else None
    return base.Video(of.id, features, of.segments, of.duration, of.written, of.ambiguous, known_grid, of.validation)


def how_made(videos: Sequence[Matched], folders: Sequence[FeatureFolder], findings: Findings) -> dict[str, dict]:
    """Returns how features were extracted, for the modalities whose files all have a manifest.

    Manifests of one modality that differ are problems. Files without a manifest are noted if others have one. Returns
    {modality: `manifests.FIELDS` and `seconds_per_snippet`, the median time from one snippet to the next}. This time
    differs from duration / T, which is longer if snippets overlap, in short videos much longer.
    """
    made = {}
    for folder in folders:
        paths = [path for video in videos for of, path in video.files if of == folder]
        manifests = {path: manifest for path in paths if (manifest := read_manifest(path, Findings()))}
        if len(folder.modalities) > 1 or not manifests:
            continue
        if without := [path for path in paths if path not in manifests]:
            for path in without:
                findings.note(checks.NO_MANIFEST, f"{folder.name}: {path}")
            continue
        ways = {path: {name: manifest[name] for name in FIELDS} for path, manifest in manifests.items()}
        usual = json.loads(Counter(map(json.dumps, ways.values())).most_common(1)[0][0])
        for path, way in ways.items():
            if others := [name for name in FIELDS if way[name] != usual[name]]:
                differ = "; ".join(f"{name} {short(way[name])}, others {short(usual[name])}" for name in others)
                findings.problem("features made in different ways", f"{folder.name}: {path}: {differ}")
        seconds = float(np.median([manifest[STEP] for manifest in manifests.values()]))
        made[folder.name] = usual | {STEP: seconds}
    return made
