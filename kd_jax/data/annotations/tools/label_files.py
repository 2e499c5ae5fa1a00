"""A folder with one file of labels per video: segments, as PKU-MMD and TSU have them, or a label per frame.

    0002-L.txt      1,320,455,1        label,start,end and perhaps a confidence, separated by commas or blanks
    P03_cereals.txt take_bowl          the label of a frame in each line (Breakfast, 50Salads, GTEA)
    video7.npy      [F, C]             0 or 1 for each frame and class

The label at frame f is that of the instant f / fps, as in `kd_jax.segments`. A run of frames a … b therefore becomes
the segment from a - ½ to b + ½ frames, which starts at 0 at the earliest.
"""

import re
from pathlib import Path

import numpy as np

from kd_jax.data.checks import Findings, parse, read_text, reason, short
from kd_jax.data.feature_tables import open_array
from kd_jax.data.text_files import normalize
from kd_jax.segments import runs

NO_ACTION = ("background", "bg", "none")  # labels, in small letters, of frames without an action
_SEGMENT = re.compile(r"\S+?[,\s]+[-+\d.e]+[,\s]+[-+\d.e]+([,\s]+[-+\d.e]+)?")


def read(folder: Path, findings: Findings) -> tuple[str, dict[str, dict]]:
    """Reads all `.txt` or `.npy` files. Returns a name of the format and {video: entry}; ('', {}) after a problem."""
    tables = {normalize(path.stem): path for path in sorted(folder.glob("*.npy"))}
    texts = {normalize(path.stem): path for path in sorted(folder.glob("*.txt"))}
    if bool(tables) == bool(texts):
        found = f"{len(texts)} .txt and {len(tables)} .npy files"
        case = f"{folder}: {found}; expected a folder with one .txt, or one .npy, for each video"
        findings.problem("annotation files", case)
        return "", {}
    if tables:
        return "labels of frames", {video: _read_table(path, findings) for video, path in tables.items()}
    lines = {
        video: [line.strip() for line in (read_text(path, findings) or "").splitlines()]
        for video, path in texts.items()
    }
    first = next((line for of_video in lines.values() for line in of_video if line), "")
    if _SEGMENT.fullmatch(first):
        return "text files", {video: _read_segments(texts[video], lines[video], findings) for video in lines}
    return "labels of frames", {video: _read_frames(of_video) for video, of_video in lines.items()}


def _read_segments(path: Path, lines: list[str], findings: Findings) -> dict:
    """Reads lines label,start,end; the unit of the times is left to the caller."""
    actions = []
    for number, line in enumerate(lines, 1):
        fields = [field for field in re.split(r"[,\s]+", line) if field]
        if len(fields) in (3, 4):
            actions.append(
                [int(fields[0]) if re.fullmatch(r"\d{1,18}", fields[0]) else fields[0], *map(parse, fields[1:3])]
            )
        elif fields:
            findings.problem("action", f"{path} line {number}: {short(line)}, expected label,start,end,confidence")
    return {"actions": actions}


def _read_frames(lines: list[str]) -> dict:
    """Reads the label of a frame in each line."""
    while lines and not lines[-1]:
        lines.pop()
    names = [name for name in dict.fromkeys(lines) if name and name.lower() not in NO_ACTION]
    active = np.array([[line == name for name in names] for line in lines], bool).reshape(len(lines), len(names))
    return _entry(active, names)


def _read_table(path: Path, findings: Findings) -> dict:
    """Reads a table of 0 and 1, whose columns are the classes by number."""
    try:
        table = open_array(path)
    except (OSError, ValueError) as error:
        findings.problem("unreadable file", f"{path}: {reason(error)}")
        return {"actions": []}
    if table.ndim != 2 or table.dtype.kind not in "fiub" or not np.isin(table, (0, 1)).all():
        case = f"{path}: {table.dtype} {list(table.shape)}, expected [F, C], 0 or 1 for each frame and class"
        findings.problem("labels", case)
        return {"actions": []}
    return _entry(np.asarray(table) != 0, list(range(table.shape[1])))


def _entry(active: np.ndarray, labels: list) -> dict:
    column, first, stop = runs(active)
    spans = zip(column.tolist(), first.tolist(), stop.tolist(), strict=True)
    actions = [[labels[c], max(a - 0.5, 0.0), b - 0.5] for c, a, b in spans]
    return {"actions": actions, "unit": "frames", "num_frames": len(active)}
