"""What the readers and writers share: one error for everything that is wrong with a file, and the checks of a field.

A check returns the value it was given, as a number; what is wrong goes to `problems`, and stands for NaN until
`problems.check()` raises.
"""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.data.base import is_file_name

LINES_SHOWN = 20  # of problems, in an error


class Problems:
    """Everything that is wrong with a file, told in one ValueError."""

    def __init__(self, subject: str | Path):
        self.subject = subject
        self.count = 0
        self.lines: list[str] = []

    def add(self, where: str, what: str) -> None:
        self.count += 1
        if self.count <= LINES_SHOWN:
            self.lines.append(f"{where}: {what}" if where else what)

    def check(self) -> None:
        """Raises ValueError if there are any."""
        if self.count == 1:
            raise ValueError(f"{self.subject}: {self.lines[0]}")
        if self.count:
            more = [f"… and {self.count - LINES_SHOWN} more"] if self.count > LINES_SHOWN else []
            raise ValueError("\n  ".join([f"{self.subject}: {self.count} problems", *self.lines, *more]))


def check_video(video, problems: Problems, where: str = "", *, blanks: bool = True) -> bool:
    """Whether the id could name a file in a folder, and none outside it; without `blanks`, whether it is one word."""
    if not is_file_name(video):
        what = f"video {short(video)}, expected the name of a file in a folder (no separators, control characters)"
    elif not blanks and video.split() != [video]:
        what = f"video {video!r} has blanks, which separate the fields of this format; rename it"
    else:
        return True
    problems.add(where, what)
    return False


def check_detections(detections: Mapping[str, np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
    """{video: `[N, 4]`} float64; ValueError for a table that no reader would give back."""
    problems = Problems("detections to write")
    tables = {}
    for video, rows in detections.items():
        check_video(video, problems)
        table = np.asarray(rows, np.float64)
        table = table.reshape(0, 4) if table.size == 0 else table
        if table.ndim != 2 or table.shape[1] != 4 or not np.isfinite(table).all():
            problems.add(repr(video), f"shape {list(table.shape)}, expected finite rows (class, start, end, score)")
            continue
        bad = ~np.isin(table[:, 0], np.arange(num_classes)) | (table[:, 2] < table[:, 1])
        for row in table[bad]:
            values = ", ".join(f"{value:g}" for value in row)
            problems.add(repr(video), f"({values}): expected a class of 0 … {num_classes - 1} and start <= end")
        tables[video] = table
    problems.check()
    return tables


def has_fields(where: str, entry: Mapping, fields: Sequence[str], problems: Problems) -> bool:
    """Whether an object has all these fields."""
    missing = [field for field in fields if field not in entry]
    if missing:
        problems.add(where, f"the field {', '.join(missing)} is missing, it has {short(list(entry))}")
    return not missing


def class_ids(classes: Sequence[str]) -> dict[str, int]:
    """{name: class id}; ValueError for a name that stands there twice."""
    ids = {name: class_id for class_id, name in enumerate(classes)}
    if not ids or len(ids) != len(classes):
        raise ValueError(f"classes needs at least one name and no name twice; got {len(classes)} names")
    return ids


def class_id_of_name(where: str, value, ids: Mapping[str, int], problems: Problems) -> float:
    """The class of a name."""
    if isinstance(value, str) and value in ids:
        return ids[value]
    problems.add(where, f"{short(value)}, expected one of the {len(ids)} classes {short(list(ids))}")
    return math.nan


def class_id_of_label(where: str, value, num_classes: int, first: int, problems: Problems) -> float:
    """The class of a label that counts from `first`."""
    class_id = number(value) - first
    if class_id.is_integer() and 0 <= class_id < num_classes:
        return class_id
    other = {-1: first - 1, num_classes: first + 1}.get(class_id)
    hint = "" if other is None else f"; does the file count from {other}? It is read as counting from {first}"
    problems.add(where, f"{short(value)}, expected an integer of {first} … {first + num_classes - 1}{hint}")
    return math.nan


def times_of(where: str, values: Sequence, problems: Problems) -> tuple[float, float]:
    """Start and end, the end not before the start."""
    start, end = map(number, values)
    for name, value, time in zip(("start", "end"), values, (start, end), strict=True):
        if not math.isfinite(time):
            problems.add(f"{where} {name}", f"{short(value)}, expected a finite number")
    if end < start:
        problems.add(f"{where} end", f"{end:.10g}, before the start {start:.10g}")
    return start, end


def score_of(where: str, value, problems: Problems) -> float:
    """A finite number."""
    score = number(value)
    if not math.isfinite(score):
        problems.add(where, f"{short(value)}, expected a finite number")
    return score


def number(value) -> float:
    """A real number as float; NaN for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    with contextlib.suppress(OverflowError):
        return float(value)
    return math.inf


def parse(text: str) -> float | str:
    """The number in a text, or the text itself, which every check refuses."""
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return text


def existing(path: str | Path) -> Path:
    """The path of a file that is there."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; name the file with the predictions")
    return path


def read_text(path: Path, problems: Problems) -> str:
    """The content of a UTF-8 file, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.add(path.name, f"not readable as text ({reason(error)})")
        return ""


def load_json(path: Path, kind: type, problems: Problems):
    """The content of a JSON file, of type list or dict; what is wrong goes to `problems`, and nothing comes back."""

    def pairs_to_dict(pairs):  # json itself keeps the last of equal keys without a word
        found = dict(pairs)
        if len(found) < len(pairs):
            for key, count in Counter(key for key, _ in pairs).items():
                if count > 1:
                    problems.add(repr(key), f"it stands {count} times in one object; only one can be meant")
        return found

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=pairs_to_dict)
    except (OSError, ValueError, RecursionError) as error:
        problems.add("", f"not readable as JSON ({reason(error)})")
        return kind()
    if not isinstance(content, kind):
        names = {list: "a list of detections", dict: "an object with results"}
        problems.add("", f"{short(content)}, expected {names[kind]}")
        return kind()
    return content


def short(value) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    text = text if text.isprintable() else json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def reason(error: Exception) -> str:
    """An error of another library in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no details'}"
