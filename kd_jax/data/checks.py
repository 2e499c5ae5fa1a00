"""What is wrong with a user's files, and what was dirty and handled; told all at once.

findings = Findings()
findings.note(DUPLICATE, "kitchen_1: [3, 0.5, 4]")          # handled, counted, shown
findings.problem("duration", "kitchen_2: -1, expected a number above 0")
findings.raise_problems()                                    # DataError: everything that is wrong
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

LINES_PER_KIND = 10  # of problems, in the error

# Kinds of dirt that were handled; the keys stand in report.json.
DUPLICATE = "dropped: exact duplicate of another action"
EMPTY = "dropped: end at or before start"
LATE = "dropped: starts at or past the duration"
CLIPPED = "clipped: end past the duration"
AMBIGUOUS = "set aside: ambiguous segment, neither right nor wrong"
NO_ACTIONS = "kept: video without actions"
TOO_SHORT = "kept: action too short to label any snippet"
CROPPED = "cropped: modalities differ by one snippet"
PADDED = "padded: first and last snippet repeated, so that snippet i is centred at i strides"
CONVERTED = "converted: features that are not floating point"
UNTOLD = "kept: feature file without a manifest, which others have, so that runs do not know how features were made"
UNANNOTATED = "ignored: feature file without annotation"
UNLISTED = "ignored: label file that the split does not list"
TRIMMED = "ignored: video of a subset that is neither trained nor tested on"
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

    def as_json(self) -> dict:
        """Both as plain JSON, for another process."""
        return {"problems": dict(self.problems), "handled": dict(self.handled)}

    def add(self, other: Mapping) -> None:
        """Adds what `as_json` of another one gave."""
        for mine, others in ((self.problems, other["problems"]), (self.handled, other["handled"])):
            for kind, cases in others.items():
                mine[kind] += cases

    def raise_problems(self, consequence: str = "nothing was written") -> None:
        """Raises DataError with all problems at once, if there are any."""
        if not self.problems:
            return
        total = sum(map(len, self.problems.values()))
        lines = [f"{total} {'problem' if total == 1 else 'problems'} in the input; {consequence}"]
        for kind, cases in self.problems.items():
            lines.append(f"{kind} ({len(cases)}):")
            lines += [f"  {case}" for case in cases[:LINES_PER_KIND]]
            if len(cases) > LINES_PER_KIND:
                lines.append(f"  … and {len(cases) - LINES_PER_KIND} more")
        raise DataError("\n".join(lines))


def load_json_object(path: Path, findings: Findings) -> dict:
    """The object that a JSON file holds, {} after naming what is wrong with it; a key that repeats is a problem."""
    repeated = Counter()

    def pairs_to_dict(pairs):  # json itself keeps the last of equal keys without a word
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                repeated[key] += count
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=pairs_to_dict)
    except (OSError, ValueError, RecursionError) as error:
        findings.problem("unreadable annotations", f"{path}: {reason(error)}")
        return {}
    for key, count in repeated.items():
        findings.problem("repeated key", f"{path}: {key!r} stands {count} times in one object; only one can be meant")
    if not isinstance(content, dict) or not content:
        findings.problem("annotation layout", f"{path}: expected an object with at least one video")
        return {}
    return content


def read_text(path: Path, findings: Findings) -> str | None:
    """The content of a text file, None after naming what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        findings.problem("unreadable annotations", f"{path}: {reason(error)}")
        return None


def number(value) -> float:
    """A JSON number as float; NaN for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def parse_number(text: str) -> float:
    """A number written in a text file as float; NaN for everything else."""
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def short(value) -> str:
    """A value as JSON of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def reason(error: Exception) -> str:
    """Why something could not be read, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no details'}"
