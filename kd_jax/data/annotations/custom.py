"""Your own data: annotation files of any tool, and one folder of features per modality.

entries, formats = read_files(paths, names, ReadOptions(), findings)    # what the files state
entries, facts = fill_in(entries, media, ReadOptions(), findings)       # seconds, durations, subsets
videos = common_layout.read_entries(entries, names, findings, where="export.json")
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data import base, feature_tables
from kd_jax.data.annotations import common_layout, tools
from kd_jax.data.annotations.cleaning import Annotated, check_units
from kd_jax.data.annotations.tools import label_files
from kd_jax.data.annotations.tools.media import video_name
from kd_jax.data.annotations.units import as_between, common_factor
from kd_jax.data.checks import DURATION_DIFFERS, TRIMMED, Findings, check_common, number, read_text

SUBSETS = {  # in small letters → subset of the common layout
    **dict.fromkeys(("training", "train"), "training"),
    **dict.fromkeys(("testing", "test"), "testing"),
    **dict.fromkeys(("validation", "val", "valid"), "validation"),
}
# Labels, in small letters, of frames without an action: GTEA, 50Salads, Breakfast.
NO_ACTION = ("background", "bg", "none", "sil", "action_start", "action_end")
TOLERANCE = 1.0, 0.01  # seconds and part of a duration by which another source may differ without a note


@dataclass(frozen=True)
class ReadOptions:
    """What the command line says about annotation files."""

    unit: str = "seconds"  # 'seconds' or 'frames': of times in files that leave it open
    fps: float | None = None  # frames per second of times that are frames
    label_from: str = ""  # where the class is, see `tools.read_file`
    test: str | None = None  # file with the names of the test videos, one a line
    test_fraction: float | None = None  # part of the videos that is drawn for testing
    seed: int = 0  # of this draw
    videos: str | None = None  # folder of the videos
    needs: Sequence[str] = common_layout.NEEDS  # what every entry must have after `fill_in`


@dataclass(frozen=True)
class Media:
    """What a video file, or the manifest of features, states about a video."""

    seconds: float
    fps: float
    source: Path


Entries = dict[str, dict[str, Any]]  # {video: entry of the common layout}, with values that are not checked yet


def read_files(
    paths: Sequence[Path], names: Sequence[str], options: ReadOptions, findings: Findings
) -> tuple[Entries, dict[str, str]]:
    """Reads annotation files. Returns {video: entry} and {path: name of its format}; entries are not checked yet."""
    entries: Entries = {}
    formats = {}
    for path in paths:
        name, found = tools.read_file(path, findings, options.label_from)
        formats[str(path)] = name
        for video in found.keys() & entries.keys():
            findings.problem("repeated video", f"{path}: {video} is in another file too; remove it from one")
        if options.unit == "frames" and any("unit" in entry for entry in found.values()):
            findings.problem("unit", f"{path}: the unit of its times is known; leave --unit out")
        if names:
            _name_columns(found, names, findings)
        if names and name in ("CSV", label_files.FRAME_LABELS):
            _read_numbers(found, names)
        _drop_background(found, names)
        entries |= found
    if not entries and not findings.problems:
        findings.problem("annotation files", f"{', '.join(formats)}: no annotated video")
    used = set(formats.values()) - {""}
    if options.label_from and used and not used & set(tools.LABELLED):
        case = f"--label_from={options.label_from} has no effect on {', '.join(sorted(used))}; leave it out"
        findings.problem("option", case)
    return entries, formats


def _name_columns(entries: Entries, names: Sequence[str], findings: Findings) -> None:
    """Names the classes of tables, where they are columns; reports a table with another number of columns."""
    for video, entry in entries.items():
        if (columns := entry.get("num_columns", len(names))) != len(names):
            case = f"{video}: {columns} columns, but {len(names)} classes; expected [F, C], frames by classes"
            findings.problem("labels", case)
        elif "num_columns" in entry:
            entry["actions"] = [[names[column], start, end] for column, start, end in entry["actions"]]


def _drop_background(entries: Entries, names: Sequence[str]) -> None:
    """Removes the labels of frames without an action, unless they are names of classes."""
    absent = set(NO_ACTION).difference(names)
    for entry in entries.values():
        if "num_labelled_frames" in entry:
            entry["actions"] = [action for action in entry["actions"] if str(action[0]).lower() not in absent]


def _read_numbers(entries: Entries, names: Sequence[str]) -> None:
    """Turns class numbers, which a table has as text, into numbers, unless they are names of classes."""
    for action in _actions(entries):
        if isinstance(action[0], str) and re.fullmatch(r"\d{1,18}", action[0]) and action[0] not in names:
            action[0] = int(action[0])


def class_names(entries: Entries, findings: Findings) -> tuple[str, ...]:
    """Returns the names of the classes in the entries, sorted; reports classes that are numbers."""
    labels = [action[0] for action in _actions(entries) if action]
    if any(isinstance(label, (int, float)) for label in labels):
        findings.problem("class list", "the annotations number their classes; give the list of names by --classes")
    names = tuple(sorted({label for label in labels if isinstance(label, str)}))
    if entries and not names and not findings.problems:
        findings.problem("class list", f"none of the {len(entries)} videos has an action")
    return names


def _actions(entries: Entries) -> Iterable[list]:
    """Yields all actions that are lists."""
    for entry in entries.values():
        if isinstance(actions := entry.get("actions"), list):
            yield from (action for action in actions if isinstance(action, list))


def fill_in(
    entries: Entries, media: Mapping[str, Media], options: ReadOptions, findings: Findings
) -> tuple[Entries, list[str]]:
    """Adds what the files leave out: times in seconds, durations and subsets.

    Returns the entries, and lines for the report. An entry that lacks something is reported and left out.
    """
    used: Counter[str] = Counter()
    filled: Entries = {}
    for video, entry in entries.items():
        known = {name: value for name, value in entry.items() if name not in ("unit", "frame_rate")}
        if entry.get("unit") != "frames":
            filled[video] = known
        elif converted := _in_seconds(video, entry, media.get(video), options, findings, used):
            filled[video] = {name: converted[name] for name in converted if name not in ("unit", "frame_rate")}
    _add_durations(filled, media, options, findings, used)
    facts = [f"{what}: {count} video{'s'[: count != 1]}" for what, count in used.items()]
    return _with_subsets(filled, set(entries), options, findings, facts), facts


def _in_seconds(
    video: str, entry: dict, media: Media | None, options: ReadOptions, findings: Findings, used: Counter
) -> dict | None:
    """Converts actions in frames; None after a problem."""
    rate = entry.get("frame_rate", "the frames per second of the labels")
    stated = number(entry["fps"]) if "fps" in entry else math.nan
    if stated > 0 and options.fps and abs(stated - options.fps) > 0.001 * options.fps:
        findings.problem("fps", f"{video}: --fps={options.fps:g}, but its annotation has {stated:g}; leave --fps out")
        return None
    sources = [("the annotations", stated), ("--fps", options.fps or 0.0), ("the videos", media.fps if media else 0.0)]
    known = [(source, fps) for source, fps in sources if 0 < fps < math.inf]
    if not known:
        remedy = f"give --fps, {rate}{', or --videos=DIR' if 'duration' in options.needs else ''}"
        findings.problem("fps", f"{video}: its times are frames; {remedy}")
        return None
    source, fps = known[0]
    used[f"frames converted with {fps:g} per second, from {source}"] += 1
    actions = [[label, start / fps, end / fps] for label, start, end in entry["actions"]]
    length = {"duration": entry["num_labelled_frames"] / fps} if "num_labelled_frames" in entry else {}
    return entry | length | {"fps": fps, "actions": actions}


def _add_durations(
    entries: Entries, media: Mapping[str, Media], options: ReadOptions, findings: Findings, used: Counter
) -> None:
    """Adds durations that the entries do not state, and compares those that they state."""
    scale = (options.fps or DESCRIPTION.fps) if options.unit == "frames" else 1.0
    some_stated = any("duration" in entry for entry in entries.values())
    differ: dict[str, float] = {}  # stated duration over that of the other source
    for video, entry in list(entries.items()):
        rate = number(entry.get("fps"))
        if options.unit == "frames" and abs(rate / scale - 1) > 0.01:
            case = f"{video}: its times are frames, converted with {scale:g} per second, but it has {rate:g}"
            findings.problem("fps", f"{case}; give --fps={rate:g}, or times in seconds if rates differ")
        if found := media.get(video):
            entry.setdefault("fps", found.fps)
        if "duration" in entry:
            stated = number(entry["duration"])
            if found and abs(stated / scale - found.seconds) > max(TOLERANCE[0], TOLERANCE[1] * found.seconds):
                differ[video] = stated / scale / found.seconds
        elif found:
            entry["duration"] = found.seconds * scale
            used[f"durations from {found.source.parent}"] += 1
        elif "duration" in options.needs and (options.videos or not some_stated):  # otherwise a missing field
            others = "give --videos=DIR, or features with the manifests of data_prep.extract"
            remedy = f"add a column or field `duration`, or {others}"
            if options.videos:
                remedy = f"--videos={options.videos} has no video of this name; add it, or state the duration"
            findings.problem("duration", f"{video}: the annotation does not state it; {remedy}")
            del entries[video]
    factor, explained = common_factor(np.array(list(differ.values())))
    if factor:
        times = f"stated durations are {factor:.4g} times those of the videos or features"
        findings.note(DURATION_DIFFERS, f"{times} in most of {len(differ)} videos{as_between(factor)}")
    for video, is_explained in zip(differ, explained, strict=True):
        if not is_explained:
            stated, found = number(entries[video]["duration"]), media[video]
            case = f"{video}: {stated:.10g} {options.unit}, but {found.seconds:.10g} seconds in {found.source}"
            findings.note(DURATION_DIFFERS, case)


def _with_subsets(
    entries: Entries, videos: Set[str], options: ReadOptions, findings: Findings, facts: list[str]
) -> Entries:
    """Gives each video the subset that the options or the files state; `videos` are all that the files annotate."""
    is_stated = any("subset" in entry for entry in entries.values())
    if options.test or options.test_fraction is not None:
        if options.test:
            test, rule = read_list(options.test, "test list", videos, findings), f"--test={options.test}"
        else:
            test = _draw(options, entries, videos, findings)
            rule = f"--test_fraction={options.test_fraction}, seed {options.seed}"
        facts.append(f"split by {rule}{', instead of the subsets in the annotations' if is_stated else ''}")
        return {v: entry | {"subset": "testing" if v in test else "training"} for v, entry in entries.items()}
    if entries and "subset" in options.needs and not is_stated:
        remedy = "give --test=LIST, a file with the names of the test videos, --test_fraction=0.3, or 0 for none"
        case = f"the annotations do not state which of the {len(entries)} videos are for testing; {remedy}"
        findings.problem("subset", case)
        return {}
    return _with_subsets_of_files(entries, findings)


def _with_subsets_of_files(entries: Entries, findings: Findings) -> Entries:
    """Gives each video the name that its subset has in the common layout.

    If the videos of the test subset have no actions, which are then secret, they are left out, and the videos of the
    validation subset are for testing.
    """
    stated = {video: entry["subset"] for video, entry in entries.items() if isinstance(entry.get("subset"), str)}
    subsets = {video: SUBSETS.get(name.lower(), name) for video, name in stated.items()}
    tested = [video for video, subset in subsets.items() if subset == "testing"]
    if "validation" in subsets.values() and not any(entries[video].get("actions") for video in tested):
        for video in tested:
            findings.note(TRIMMED, f"{video}: {stated[video]}, without actions")
        entries = {video: entry for video, entry in entries.items() if video not in tested}
        subsets = {video: "testing" if subset == "validation" else subset for video, subset in subsets.items()}
    return {v: entry | {"subset": subsets[v]} if v in subsets else entry for v, entry in entries.items()}


def _bare_name(name: str) -> str:
    """Returns the name of a video without the ending of a video, a feature file or a text file."""
    name = video_name(name)
    return Path(name).stem if Path(name).suffix.lower() in (*feature_tables.SUFFIXES, ".txt", ".json") else name


def read_list(path: str, kind: str, videos: Set[str], findings: Findings) -> set[str]:
    """Reads the videos that a file lists, one a line, with or without the ending of a file.

    Names that are none of `videos` are problems of this kind.
    """
    lines = (read_text(Path(path), findings) or "").splitlines()
    names = [video_name(line) for line in lines if line.strip()]
    bare = Counter(map(_bare_name, videos))
    by_bare_name = {_bare_name(video): video for video in videos if bare[_bare_name(video)] == 1}
    names = [name if name in videos else by_bare_name.get(_bare_name(name), name) for name in names]
    if len(names) > 1 and (apart := check_common(path, names, "the annotations", videos)):
        findings.problem(kind, apart)
        return set()
    for name in [name for name in names if name not in videos]:
        closest = difflib.get_close_matches(name, videos, 1)
        remedy = f"did you mean {closest[0]}?" if closest else f"one of the {len(videos)} is {min(videos, default='')}"
        findings.problem(kind, f"{path}: {name} is not an annotated video; {remedy}")
    return set(names)


def _draw(options: ReadOptions, entries: Entries, videos: Set[str], findings: Findings) -> set[str]:
    """Draws a part of the videos, the same for the same names and seed; at least one is drawn, and one is not."""
    if options.test_fraction == 0:
        return set()
    if len(entries) < 2:  # fewer than are annotated if some have a problem that was reported
        if len(videos) == 1:
            findings.problem("subset", "--test_fraction needs two videos at least, the annotations have 1")
        return set()
    names, fraction = sorted(entries), options.test_fraction or 0.0
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    drawn = np.random.default_rng(options.seed).permutation(len(names))[:count]
    return {names[i] for i in drawn}


def read_actions(
    paths: Sequence[Path], names: Sequence[str], media: Mapping[str, Media], findings: Findings
) -> dict[str, np.ndarray]:
    """Reads the actions of the videos in `media`, whatever their subset, from annotation files.

    Returns {video: `[N, 3]` rows (class, start s, end s)}, cleaned.
    """
    found, _ = read_files(paths, names, ReadOptions(), findings)
    where = ", ".join(map(str, paths))
    if apart := check_common("the videos", media, where, found):
        findings.problem("video id", apart)
    known = {v: entry | {"subset": "testing"} for v, entry in found.items() if v in media}
    entries, _ = fill_in(known, media, ReadOptions(), findings)
    videos = common_layout.read_entries(entries, names, findings, where=where)
    check_units(videos, findings)
    return {video.id: video.segments for video in videos}


def read_truth(
    paths: Sequence[Path], names: Sequence[str], split: str, options: ReadOptions, findings: Findings, first_class: int
) -> tuple[list[Annotated], tuple[str, ...]]:
    """Reads annotation files to score predictions with: durations may be unknown, and subsets where all videos count.

    Returns the videos, those without a subset in `split`, and the names of the classes. `first_class` is the number of
    the first class in files that have numbers.
    """
    found, _ = read_files(paths, names, options, findings)
    names = tuple(names) or class_names(found, findings)
    if not any("subset" in entry for entry in found.values()):
        subset = {"train": "training", "test": "testing"}[split]
        found = {v: entry | {"subset": subset} for v, entry in found.items()}
    entries, _ = fill_in(found, {}, options, findings)
    where = ", ".join(map(str, paths))
    remedy = "give --first_label=1" if any(path.is_dir() for path in paths) else "subtract 1 from each"
    choices: dict = {"where": where, "first_class": first_class, "needs": options.needs, "remedy": remedy}
    return common_layout.read_entries(entries, names, findings, **choices), names


def read_annotations(paths: Sequence[Path], names: Sequence[str], findings: Findings) -> list[Annotated]:
    """Reads and cleans annotation files that state subsets and durations.

    Arguments and result are those of `common_layout.read_annotations`. `data_prep.annotations` adds what other files
    leave out.
    """
    found, _ = read_files(paths, names, ReadOptions(), findings)
    entries, _ = fill_in(found, {}, ReadOptions(), findings)
    return common_layout.read_entries(entries, names, findings, where=", ".join(map(str, paths)))


DESCRIPTION = base.Description(
    title="your own data",
    needs="""\
annotation files   of VIA 3, ELAN, Label Studio, X-AnyLabeling, ActivityNet; CSV video,label,start,end; or
                   {"kitchen_1": {"subset": "training", "duration": 61.5, "actions": [["cut", 3.2, 10.8], …]}, …}
--test=LIST, --test_fraction=0.3   if the annotations do not state which videos are for testing
--validation=LIST  training videos that choose the best epoch (drawn in training, unless the annotations state them)
--videos=DIR       if they do not state durations, and the features have no manifests
--classes=FILE     one name per line, the line number from 0 is the class id (the names in the annotations, sorted)
one folder of <video>.npy per modality

kd-jax build --dataset=custom --annotations=annotations.csv --test_fraction=0.3 --videos=VIDEO_DIR \\
    --features=rgb=RGB_DIR --features=flow=FLOW_DIR --output=data/mine""",
    head="dense",
    unit="seconds",
    fps=25.0,
    names=(),
    protocols=("frame_map", "frame_map_upsampled"),
    read=read_annotations,
)
