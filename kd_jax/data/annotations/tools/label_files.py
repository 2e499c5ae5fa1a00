"""One file of labels per video: segments, as PKU-MMD and TSU have them, or labels of frames.

    0002-L.txt      1,320,455,1        label,start,end and perhaps more, separated by commas or blanks
    P02T01C06.csv   Walk,17,262        the same below a header; a column start_frame has frames
    P03_cereals.txt take_bowl          the label of a frame in each line (Breakfast, 50Salads, GTEA)
    video7.npy      [F, C]             0 or 1 for each frame and class; also {video: [F, C]} in one .npz

Frame f covers `[f, f + 1) / fps`. A run of frames a … b becomes the segment [a, b + 1), which is moved forward by a
thousandth of a frame, so that the strict rule of `kd_jax.segments` labels frame a, and frame b + 1 not.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kd_jax.data.annotations.common_layout import SHIFT
from kd_jax.data.checks import Findings, number, parse, read_text, reason, short
from kd_jax.data.feature_tables import array_names, open_array
from kd_jax.data.text_files import normalize
from kd_jax.segments import runs

FRAME_LABELS = "labels of frames"
_ENDINGS = (".txt", ".csv", ".npy")


def read(folder: Path, findings: Findings) -> tuple[str, dict[str, dict]]:
    """Reads all `.txt`, `.csv` or `.npy` files of a folder, or of the folders in it.

    Returns a name of the format and {video: entry}; ('', {}) after a problem.
    """
    paths = sorted(path for ending in _ENDINGS for path in folder.rglob(f"*{ending}") if path.name[0] != ".")
    files = {normalize(path.stem): path for path in paths}
    endings = sorted({path.suffix for path in paths})
    if len(endings) != 1:
        case = f"{folder}: it has {' and '.join(endings) or 'no'} files; expected one {', '.join(_ENDINGS)} per video"
        findings.problem("annotation files", case)
        return "", {}
    for path in paths:
        if (other := files[normalize(path.stem)]) != path:
            findings.problem("repeated video", f"{path} and {other} are of the same video; remove one")
    if endings == [".npy"]:
        return FRAME_LABELS, {video: _read_table(path, "", findings) for video, path in files.items()}
    lines = {video: _lines(path, findings) for video, path in files.items()}
    if any(map(_segment, [line for of_video in lines.values() for line in of_video])):
        return "text files", {video: _read_segments(files[video], lines[video], findings) for video in lines}
    return FRAME_LABELS, {video: _read_frames(files[video], lines[video], findings) for video in lines}


def read_archive(path: Path, findings: Findings) -> tuple[str, dict[str, dict]]:
    """Reads {video: `[F, C]`} from an `.npz` file."""
    try:
        names = array_names(path)
    except (OSError, ValueError) as error:
        findings.problem("unreadable file", f"{path}: {reason(error)}")
        return "", {}
    return FRAME_LABELS, {normalize(name): _read_table(path, name, findings) for name in names}


def _lines(path: Path, findings: Findings) -> list[str]:
    lines = [line.strip() for line in (read_text(path, findings) or "").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _segment(line: str) -> tuple[str, float, float] | None:
    """Splits a line into label, start and end; None if it is not a segment."""
    fields = re.split(r"\s*[,;\t]\s*", line) if re.search(r"[,;\t]", line) else line.split()
    times = [number(parse(field)) for field in fields[1:3]]
    return (fields[0], times[0], times[1]) if len(times) == 2 and not np.isnan(times).any() else None


def _read_segments(path: Path, lines: list[str], findings: Findings) -> dict:
    """Reads lines label,start,end; the unit of the times is left to the caller unless a header has it."""
    header = lines[0] if lines and not _segment(lines[0]) and "start" in lines[0].lower() else ""
    actions = []
    for index, line in enumerate(lines, 1):
        if segment := _segment(line):
            label, start, end = segment
            actions.append([int(label) if re.fullmatch(r"\d{1,18}", label) else label, start, end])
        elif line and not (header and index == 1):
            findings.problem("action", f"{path} line {index}: {short(line)}, expected label,start,end")
    return {"actions": actions} | ({"unit": "frames"} if "frame" in header.lower() else {})


def _read_frames(path: Path, lines: list[str], findings: Findings) -> dict:
    """Reads the label of a frame in each line."""
    if not lines or not all(lines):
        place = f"line {lines.index('') + 1} is empty" if lines else "it is empty"
        findings.problem("labels", f"{path}: {place}; expected a label in each line")
        return {"actions": []}
    starts = [i for i, line in enumerate(lines) if not i or line != lines[i - 1]]
    return _entry(zip((lines[i] for i in starts), starts, [*starts[1:], len(lines)], strict=True), len(lines))


def _read_table(path: Path, name: str, findings: Findings) -> dict:
    """Reads a table of 0 and 1, whose columns are the classes by number; `name` is that of the array in an archive."""
    where = f"{path}: {name}" if name else str(path)
    try:
        table = open_array(path, name)
    except (OSError, ValueError) as error:
        findings.problem("unreadable file", f"{where}: {reason(error)}")
        return {"actions": []}
    if table.ndim != 2 or not table.size or table.dtype.kind not in "fiub" or not np.isin(table, (0, 1)).all():
        case = f"{where}: {table.dtype} {list(table.shape)}, expected [F, C], 0 or 1 for each frame and class"
        findings.problem("labels", case)
        return {"actions": []}
    found = (column.tolist() for column in runs(np.asarray(table) != 0))
    return _entry(zip(*found, strict=True), len(table)) | {"num_columns": table.shape[1]}


def _entry(found: Iterable[tuple[str | int, int, int]], num_frames: int) -> dict:
    """Returns the entry of a video with runs (label, first frame, stop frame)."""
    actions = [[label, max(first - SHIFT, 0.0), stop - SHIFT] for label, first, stop in found]
    return {"actions": actions, "unit": "frames", "num_labelled_frames": num_frames}
