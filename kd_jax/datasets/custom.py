"""Your own data: an annotation file, a list of class names, and a folder of `<video>.npy` per modality.

    findings = Findings()
    annotated = read_annotations(Path('annotations.json'), num_classes=20, findings=findings)
    videos = check_features(annotated, {'rgb': Path('rgb'), 'flow': Path('flow')}, findings)
    findings.raise_problems()                     # everything that is wrong, in one error
    base.write('data/mine', info, {'train': (load(v) for v in videos if v.split == 'train'), …})

The annotation file has the layout that TSU, Charades and MultiTHUMOS share:
`{video: {"subset": "training" or "testing", "duration": 61.5, "actions": [[class, start, end], …]}}`.
What is dirty is handled on purpose and counted; what is wrong is refused; nothing is skipped in silence.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_jax.datasets import base
from kd_jax.segments import snippets_inside

DESCRIPTION = base.Description(
    head="dense",
    unit="seconds",
    fps=25.0,
    num_classes=None,
    classes="classes.txt, line number = class id",
    protocols=("frame_map", "frame_map_upsampled"),
)
SUBSETS = {"training": "train", "testing": "test"}
CHUNK_VALUES = 2**20  # feature files are checked so many values at a time
LINES_PER_KIND = 10  # of problems, in the error

# Kinds of dirt that were handled; the keys stand in report.json.
DUPLICATE = "dropped: exact duplicate of another action"
EMPTY = "dropped: end at or before start"
LATE = "dropped: starts at or past the duration"
CLIPPED = "clipped: end past the duration"
NO_ACTIONS = "kept: video without actions"
TOO_SHORT = "kept: action too short to label any snippet"
CROPPED = "cropped: modalities differ by one snippet"
CONVERTED = "converted: features that are not floating point"
UNANNOTATED = "ignored: feature file without annotation"
SKIPPED = "skipped: video without a feature file"


class DataError(ValueError):
    """Input that cannot become records; the message lists every problem."""


class Findings:
    """What is wrong with the input, and what was dirty and handled: {kind: [one line per case]}."""

    def __init__(self):
        self.problems: dict[str, list[str]] = defaultdict(list)
        self.handled: dict[str, list[str]] = defaultdict(list)

    def problem(self, kind: str, case: str) -> None:
        self.problems[kind].append(case)

    def note(self, kind: str, case: str) -> None:
        self.handled[kind].append(case)

    def raise_problems(self) -> None:
        """Raises DataError with all problems at once, if there are any."""
        if not self.problems:
            return
        total = sum(map(len, self.problems.values()))
        lines = [f"{total} {'problem' if total == 1 else 'problems'} in the input; nothing was written"]
        for kind, cases in self.problems.items():
            lines.append(f"{kind} ({len(cases)}):")
            lines += [f"  {case}" for case in cases[:LINES_PER_KIND]]
            if len(cases) > LINES_PER_KIND:
                lines.append(f"  … and {len(cases) - LINES_PER_KIND} more")
        raise DataError("\n".join(lines))


@dataclass(frozen=True, eq=False)
class Annotated:
    """A video of the annotation file, cleaned: times in the file's unit."""

    id: str
    split: str
    duration: float
    segments: np.ndarray  # [N, 3]


@dataclass(frozen=True, eq=False)
class Checked:
    """A video whose feature files were read once and found good."""

    annotated: Annotated
    paths: dict[str, Path]
    num_snippets: int


def read_classes(path: Path, findings: Findings) -> tuple[str, ...]:
    """Reads class names, one a line, line number = class id."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        findings.problem("unreadable class list", f"{path}: {_reason(error)}")
        return ()
    for name, count in Counter(names).items():
        if not name:
            findings.problem("class list", f"{path}: an empty line within the list; the line number is the class id")
        elif count > 1:
            findings.problem("class list", f"{path}: {name!r} stands there {count} times")
    if not names:
        findings.problem("class list", f"{path}: it is empty")
    return tuple(names)


def read_annotations(path: Path, num_classes: int, findings: Findings) -> list[Annotated]:
    """Reads and cleans an annotation file of the common layout.

    Args:
      path: of the JSON file.
      num_classes: classes must be 0 … C-1; 0 = the class list could not be read, so they are not checked.
      findings: gets what is wrong, and what was dropped or clipped.

    Returns:
      The videos in the order of the file. One that has a problem comes with what could be read of it, so that its
      feature files are checked too: call `findings.raise_problems` before using any.
    """
    entries = _load_json(path, findings)
    videos, classes = [], Counter()
    for name, entry in entries.items():
        if not base.is_file_name(name):
            findings.problem(
                "video id", f'{name!r} is not the name of a file in a folder (no separators, control characters, "..")'
            )
        if not isinstance(entry, dict):
            findings.problem("annotation layout", f"{name}: {_short(entry)} is not an object")
            entry = {}
        elif missing := [field for field in ("subset", "duration", "actions") if field not in entry]:
            findings.problem("annotation layout", f"{name}: the field {', '.join(missing)} is missing")
        subset = entry.get("subset")
        split = SUBSETS.get(subset, "") if isinstance(subset, str) else ""
        if "subset" in entry and not split:
            findings.problem("subset", f"{name}: {_short(subset)}, expected {' or '.join(SUBSETS)}")
        duration = _number(entry.get("duration"))
        if "duration" in entry and not 0 < duration < math.inf:
            findings.problem("duration", f"{name}: {_short(entry['duration'])}, expected a number above 0")
        actions = entry.get("actions", [])
        if not isinstance(actions, list):
            findings.problem("annotation layout", f"{name}: actions is {_short(actions)}, expected a list")
            actions = []
        rows = [row for action in actions if (row := _check_action(name, action, num_classes, classes, findings))]
        if base.is_file_name(name):
            videos.append(Annotated(name, split, duration, _clean(name, rows, duration, findings)))
    if num_classes and classes and min(classes) == 1 and max(classes) == num_classes:
        findings.problem(
            "class ids", f"they run from 1 to {num_classes}: this file counts from 1, subtract 1 from each"
        )
    splits = {e.get("subset") for e in entries.values() if isinstance(e, dict)} if entries else SUBSETS
    for subset, split in SUBSETS.items():
        if subset not in splits:
            findings.problem("empty split", f"{path}: no video has the subset {subset!r}, so {split} would be empty")
    return videos


def _load_json(path: Path, findings: Findings) -> dict:
    repeated = Counter()

    def pairs_to_dict(pairs):  # json itself keeps the last of equal keys without a word
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                repeated[key] += count
        return dict(pairs)

    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=pairs_to_dict)
    except (OSError, ValueError, RecursionError) as error:
        findings.problem("unreadable annotations", f"{path}: {_reason(error)}")
        return {}
    for key, count in repeated.items():
        findings.problem("repeated key", f"{path}: {key!r} stands {count} times in one object; only one can be meant")
    if not isinstance(entries, dict) or not entries:
        findings.problem("annotation layout", f"{path}: expected an object {{video: …}} with at least one video")
        return {}
    return entries


def _check_action(name: str, action, num_classes: int, classes: Counter, findings: Findings) -> tuple | None:
    """(class, start, end) as floats; what is wrong with it goes to `findings`."""
    if not isinstance(action, list) or len(action) != 3:
        findings.problem("action", f"{name}: {_short(action)}, expected [class, start, end]")
        return None
    class_id, start, end = map(_number, action)
    if not class_id.is_integer():
        findings.problem("class", f"{name}: {_short(action)}: the class is not an integer")
        return None
    classes[int(class_id)] += 1
    if num_classes and not 0 <= class_id < num_classes:
        findings.problem("class", f"{name}: {_short(action)}: the class is not one of 0 … {num_classes - 1}")
    if not (math.isfinite(start) and math.isfinite(end)):
        findings.problem("time", f"{name}: {_short(action)}: start and end must be finite numbers")
        return None
    if start < 0:
        findings.problem("time", f"{name}: {_short(action)}: it starts before the video")
    return class_id, start, end


def _clean(name: str, rows: Sequence[tuple], duration: float, findings: Findings) -> np.ndarray:
    """Drops duplicates and what is empty or late, clips at the duration; `[N, 3]`, in the order of the file."""
    kept, seen = [], set()
    for class_id, start, end in rows:
        case = f"{name}: [{class_id:g}, {start:.10g}, {end:.10g}]"
        if (class_id, start, end) in seen:
            findings.note(DUPLICATE, case)
            continue
        seen.add((class_id, start, end))
        if start >= duration:
            findings.note(LATE, f"{case}, duration {duration:.10g}")
        elif end <= start:
            findings.note(EMPTY, case)
        else:
            if end > duration:
                findings.note(CLIPPED, f"{case}, duration {duration:.10g}")
            kept.append((class_id, start, min(end, duration)))
    if not kept:
        findings.note(NO_ACTIONS, name)
    return np.array(kept, np.float64).reshape(-1, 3)


def check_features(
    videos: Sequence[Annotated],
    folders: Mapping[str, Path],
    findings: Findings,
    *,
    skip_missing: bool = False,
    on_video: Callable[[], object] | None = None,
) -> tuple[list[Checked], dict[str, int]]:
    """Reads every feature file once, a part at a time.

    Args:
      videos: from `read_annotations`.
      folders: {modality: folder of `<video>.npy`, `[T, D]` or `[T, 1, 1, D]`}.
      findings: gets what is wrong, and what was cropped, converted, skipped or ignored.
      skip_missing: leave out videos without a feature file instead of refusing them.
      on_video: called after each video, for a progress bar.

    Returns:
      The videos that have no problem, and {modality: D}.
    """
    present = {m: folder for m, folder in folders.items() if folder.is_dir()}
    for modality, folder in folders.items():
        if modality not in present:
            findings.problem("missing feature folder", f"{modality}: {folder} is not a folder")
        elif videos and not any((folder / f"{video.id}.npy").is_file() for video in videos):
            names = sorted(path.name for path in folder.glob("*.npy"))
            there = f"{len(names)} other .npy files, e.g. {names[0]}" if names else "no .npy file at all"
            findings.problem("missing feature folder", f"{modality}: {folder} has no file <video>.npy, but {there}")
            del present[modality]
    shapes: dict[str, dict[str, tuple[int, int]]] = {m: {} for m in folders}  # modality → video → (T, D)
    skipped = set()
    for video in videos:
        for modality, folder in present.items():
            path = folder / f"{video.id}.npy"
            if path.is_file():
                shape = check_file(modality, path, findings)
                if shape:
                    shapes[modality][video.id] = shape
            elif skip_missing:
                findings.note(SKIPPED, f"{video.id}: {path} ({video.split})")
                skipped.add(video.id)
            else:
                findings.problem("missing feature file, see --skip_missing", f"{modality}: {path}")
        if on_video:
            on_video()
    sizes = {m: Counter(d for _, d in s.values()).most_common(1)[0][0] for m, s in shapes.items() if s}
    checked = [c for v in videos if v.id not in skipped and (c := _check_shapes(v, folders, shapes, sizes, findings))]
    for split in SUBSETS.values():
        of_split = [video.id for video in videos if video.split == split]
        if of_split and skipped.issuperset(of_split):
            findings.problem("empty split", f"{split}: none of its {len(of_split)} videos has all feature files")
    known = {video.id for video in videos}
    for modality, folder in present.items():
        for name in sorted(path.stem for path in folder.glob("*.npy") if path.stem not in known):
            findings.note(UNANNOTATED, f"{modality}: {folder / name}.npy")
    return checked, {m: sizes[m] for m in folders if m in sizes}


def check_file(modality: str, path: Path, findings: Findings) -> tuple[int, int] | None:
    """(T, D) of one feature file, or None after naming what is wrong with it."""
    try:
        array = _open(path)
    except (OSError, ValueError, EOFError, TypeError) as error:
        findings.problem("unreadable feature file", f"{modality}: {path}: {_reason(error)}")
        return None
    if array.dtype.kind not in "fiub":
        findings.problem("feature type", f"{modality}: {path}: {array.dtype}, expected real numbers")
        return None
    shape = array.shape
    if len(shape) < 2 or any(n != 1 for n in shape[1:-1]) or not shape[-1]:
        findings.problem("feature shape", f"{modality}: {path}: {list(shape)}, expected [T, D] or [T, 1, 1, D]")
        return None
    if not shape[0]:
        findings.problem("no snippets", f"{modality}: {path}: {list(shape)}")
        return None
    rows = max(1, CHUNK_VALUES // shape[-1])
    try:
        for first in range(0, shape[0], rows):
            base.to_float16(array[first : first + rows])
    except ValueError as error:
        findings.problem("feature values", f"{modality}: {path} {error}")
        return None
    if array.dtype.kind != "f":
        findings.note(CONVERTED, f"{modality}: {path}: {array.dtype}")
    return shape[0], shape[-1]


def _open(path: Path) -> np.ndarray:
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


def _check_shapes(video: Annotated, folders, shapes, sizes, findings: Findings) -> Checked | None:
    """Compares one video's modalities with each other and with those of other videos."""
    found = {m: shapes[m][video.id] for m in folders if video.id in shapes[m]}
    good = len(found) == len(folders)
    for modality, (_, size) in found.items():
        if size != sizes[modality]:
            path = folders[modality] / f"{video.id}.npy"
            findings.problem("wrong dimension", f"{modality}: {path}: D = {size}, most files have {sizes[modality]}")
            good = False
    lengths = {m: length for m, (length, _) in found.items()}
    if not lengths:
        return None
    text = f"{video.id}: " + ", ".join(f"{m} {n}" for m, n in lengths.items())
    difference = max(lengths.values()) - min(lengths.values())
    if difference > 1:
        findings.problem("modalities disagree in T", f"{text}; all need the same snippets")
        good = False
    if not good:
        return None
    if difference:
        findings.note(CROPPED, text)
    num_snippets = min(lengths.values())
    if video.duration > 0:
        first, stop = snippets_inside(video.segments, video.duration, num_snippets)
        for class_id, start, end in video.segments[first >= stop]:
            findings.note(TOO_SHORT, f"{video.id}: [{class_id:g}, {start:.10g}, {end:.10g}]")
    return Checked(video, {m: folder / f"{video.id}.npy" for m, folder in folders.items()}, num_snippets)


def load(video: Checked) -> base.Video:
    """Reads the features of a checked video into memory, as float16, cropped to the T that its modalities share."""
    features = {modality: load_file(path)[: video.num_snippets] for modality, path in video.paths.items()}
    annotated = video.annotated
    return base.Video(annotated.id, features, annotated.segments, annotated.duration)


def load_file(path: Path) -> np.ndarray:
    """`[T, D]` float16: a feature file that `check_file` found good."""
    array = np.load(path, allow_pickle=False)
    return base.to_float16(array.reshape(len(array), -1))


def seconds_per_snippet(videos: Iterable[Checked], unit: str, fps: float) -> np.ndarray:
    """`[V]`: the length of a snippet in each video."""
    scale = fps if unit == "frames" else 1.0
    return np.array([video.annotated.duration / scale / video.num_snippets for video in videos])


def _number(value) -> float:
    """A JSON number as float; NaN for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no details'}"
