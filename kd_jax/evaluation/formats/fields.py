"""Checks of the values in prediction files, shared by readers and writers.

A check returns the value as a number. It reports anything else to `findings` and returns NaN, so a reader can collect
all problems before `findings.raise_problems()`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.data.checks import Findings, check_video_id, number, short
from kd_jax.evaluation.metrics.segment_rows import Tables


def check_detections(detections: Tables, num_classes: int) -> dict[str, np.ndarray]:
    """Returns {video: `[N, 4]`} as float64; raises DataError for tables that the readers would refuse."""
    findings = Findings("the detections to write")
    tables = {}
    for video, rows in detections.items():
        check_video_id(video, findings)
        table = np.asarray(rows, np.float64)
        table = table.reshape(0, 4) if table.size == 0 else table
        if table.ndim != 2 or table.shape[1] != 4 or not np.isfinite(table).all():
            case = f"{video!r}: shape {list(table.shape)}, expected finite rows (class, start, end, score)"
            findings.problem("detections", case)
            continue
        bad = ~np.isin(table[:, 0], np.arange(num_classes)) | (table[:, 2] < table[:, 1])
        for row in table[bad]:
            values = ", ".join(f"{value:g}" for value in row)
            expected = f"expected a class of 0 … {num_classes - 1} and start <= end"
            findings.problem("detections", f"{video!r}: ({values}): {expected}")
        tables[video] = table
    findings.raise_problems()
    return tables


def object_with(where: str, entry: object, fields: Sequence[str], findings: Findings) -> dict | None:
    """Returns the entry if it is an object with all these fields; otherwise reports a problem and returns None."""
    if not isinstance(entry, dict):
        names = f"{', '.join(fields[:-1])} and {fields[-1]}"
        findings.problem("layout", f"{where}: {short(entry)}, expected an object with {names}")
        return None
    if missing := [field for field in fields if field not in entry]:
        case = f"{where}: the field {', '.join(missing)} is missing, it has {short(list(entry))}"
        findings.problem("layout", case)
        return None
    return entry


def class_ids(classes: Sequence[str]) -> dict[str, int]:
    """Returns {name: class id}; raises ValueError if there is no name, or a name occurs twice."""
    ids = {name: class_id for class_id, name in enumerate(classes)}
    if not ids or len(ids) != len(classes):
        raise ValueError(f"classes needs at least one name and no name twice; got {len(classes)} names")
    return ids


def class_of_name(where: str, value: object, ids: Mapping[str, int], findings: Findings) -> float:
    """Returns the class id of a name."""
    if isinstance(value, str) and value in ids:
        return ids[value]
    case = f"{where}: {short(value)}, expected one of the {len(ids)} classes {short(list(ids))}"
    findings.problem("class", case)
    return math.nan


def class_of_label(where: str, value: object, num_classes: int, first: int, findings: Findings) -> float:
    """Returns the class id of a number that counts classes from `first`."""
    class_id = number(value) - first
    if class_id.is_integer() and 0 <= class_id < num_classes:
        return class_id
    hint = ""
    if class_id in (-1, num_classes):
        other = first - 1 if class_id == -1 else first + 1
        hint = f"; does the file count from {other}? It is read as counting from {first}"
    case = f"{where}: {short(value)}, expected an integer of {first} … {first + num_classes - 1}{hint}"
    findings.problem("class", case)
    return math.nan


def start_and_end(where: str, values: Sequence, findings: Findings) -> tuple[float, float]:
    """Returns two finite times, the end not before the start."""
    start, end = (
        finite(f"{where} {name}", value, findings) for name, value in zip(("start", "end"), values, strict=True)
    )
    if end < start:
        findings.problem("end before start", f"{where} end: {end:.10g}, before the start {start:.10g}")
    return start, end


def finite(where: str, value: object, findings: Findings) -> float:
    """Returns a finite number."""
    result = number(value)
    if math.isfinite(result):
        return result
    findings.problem("number", f"{where}: {short(value)}, expected a finite number")
    return math.nan


def existing(path: str | Path) -> Path:
    """Returns the path of a file; raises FileNotFoundError if there is none."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; name the file with the predictions")
    return path
