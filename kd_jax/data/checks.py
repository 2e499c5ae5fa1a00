"""Findings: what is wrong with a user's files, reported all at once, and what was dirty and handled.

    findings = Findings()
    findings.note(DUPLICATE, "kitchen_1: [3, 0.5, 4]")                     # handled, counted, listed in the report
    findings.problem("duration", "kitchen_2: -1, expected a number above 0")
    findings.raise_problems()                                              # DataError that lists every problem

The functions below read files and values; each reports what it cannot read to a `Findings`.
"""

import contextlib
import difflib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from kd_jax.data.base import is_file_name
from kd_jax.data.text_files import decode, normalize, unescape

LINES_PER_KIND = 20  # problems of one kind that the error lists; it counts the others
MOST_PROBLEMS = 100_000  # with more, a file is not what it should be, and to list its entries takes minutes
NAMES_PER_LINE = 3  # of the cases that one line joins

# Kinds of dirt that are handled. They are the keys of 'handled' in report.json.
DUPLICATE = "dropped: exact duplicate of another action"
EMPTY = "dropped: end at or before start"
LATE = "dropped: starts at or past the duration"
CLIPPED = "clipped: end past the duration"
AMBIGUOUS = "set aside: ambiguous segment, neither right nor wrong"
NO_ACTIONS = "kept: video without actions"
TOO_SHORT = "kept: action too short to label any snippet"
CROPPED = "cropped: modalities differ by one snippet"
PADDED = "padded: first and last snippet repeated where windows must lie inside the video"
LENGTH_DIFFERS = "kept: length of the snippets and of the video differ by more than a snippet"
LENGTHS_VARY = "kept: the length of a snippet varies from video to video"
FACTOR = "kept: the snippets and the durations differ by a constant factor"
RESAMPLED = "resampled: features whose snippets have other times than those of the first --features"
CONVERTED = "converted: features that are integers, bool or bfloat16"
BEYOND_FLOAT16 = "stored as float32: features beyond 65504, where float16 ends"
ROUNDED = "stored as float32, twice the size: features that float16 rounds away"
NO_MANIFEST = "kept: feature file without a manifest although others have one; how it was made is not recorded"
UNANNOTATED = "ignored: feature file without annotation"
UNLISTED = "ignored: label file that the split does not list"
NO_SPAN = "ignored: region that is not a span of time"
NOT_SUBMITTED = "ignored: Label Studio task that has no submitted annotation"
TIMES_DIFFER = "kept: time in milliseconds, although the file's frame number differs by more than two frames"
DURATION_DIFFERS = "kept: duration of the annotation, although that of the video or its features differs"
TRIMMED = "ignored: video of a subset that is neither trained nor tested on"
SKIPPED = "skipped: video without a feature file"
NO_CLIP = "left out: clip without a file in the archive"
NO_CLIP_NAME = "ignored: .mat file with another name than those of clips"
CLIPS_CROPPED = "cropped: depth and skeleton of a clip differ in length"
ENCODED = "read: text file in another encoding than UTF-8"
GUESSED = "read: text file whose encoding is a guess; if the example is wrong, convert the file to UTF-8"
TIERS = "ignored: some tiers of an ELAN file"
UNITS_DIFFER = "kept: times and durations that are probably not in one unit"

Content = TypeVar("Content", dict, list)


class DataError(ValueError):
    """Input that cannot be used. The message lists every problem."""


class Findings:
    """Collects what is wrong with the input and what was dirty and handled."""

    def __init__(self, subject: str | Path = "the input"):
        self.subject = subject  # what is read or written; the error names it
        self.problems: dict[str, list[str]] = defaultdict(list)  # {kind: one line per case} of what is wrong
        self.handled: dict[str, list[str]] = defaultdict(list)  # the same for what was dirty and handled

    def problem(self, kind: str, case: str) -> None:
        """Adds something wrong; `case` names place, value and what was expected.

        Raises DataError when there are MOST_PROBLEMS.
        """
        self.problems[kind].append(case)
        if sum(map(len, self.problems.values())) >= MOST_PROBLEMS:
            self.raise_problems("reading stopped there, and nothing was written")

    def note(self, kind: str, case: str) -> None:
        """Adds something dirty that was handled; `kind` is one of the constants above."""
        self.handled[kind].append(case)

    def as_json(self) -> dict:
        """Returns problems and handled cases as plain JSON, for another process."""
        return {"problems": dict(self.problems), "handled": dict(self.handled)}

    def add(self, other: Mapping) -> None:
        """Adds what another Findings returned from `as_json`."""
        for mine, others in ((self.problems, other["problems"]), (self.handled, other["handled"])):
            for kind, cases in others.items():
                mine[kind] += cases

    def raise_problems(self, consequence: str = "nothing was written") -> None:
        """Raises DataError with all problems, grouped by kind, if there are any."""
        if not self.problems:
            return
        total = sum(map(len, self.problems.values()))
        lines = [f"{total} {'problem' if total == 1 else 'problems'} in {self.subject}; {consequence}"]
        for kind, cases in self.problems.items():
            shown = list(join_repeated(cases).items())
            lines.append(f"{kind} ({len(cases)}):")
            lines += [f"  {line}" for line, _ in shown[:LINES_PER_KIND]]
            if left := sum(count for _, count in shown[LINES_PER_KIND:]):
                lines.append(f"  … and {left} more")
        raise DataError("\n".join(lines))


def join_repeated(cases: Sequence[str]) -> dict[str, int]:
    """Joins cases `NAME: sentence` of one sentence to `NAME, NAME, NAME, … (9 in all): sentence`, if more than three.

    Returns {line: number of its cases}, in the order of the first cases.
    """
    tails = [_tails(case) for case in cases]
    counts = Counter(tail for of_case in tails for tail in of_case)
    groups: dict[str, list[str]] = defaultdict(list)  # {sentence, or whole case: names}
    for case, of_case in zip(cases, tails, strict=True):
        tail = next((tail for tail in of_case if counts[tail] > NAMES_PER_LINE), None)
        groups[tail or case].append(case.removesuffix(f": {tail}") if tail else "")
    joined: dict[str, int] = {}
    for sentence, names in groups.items():
        different = list(dict.fromkeys(filter(None, names)))  # a case may come once for each modality
        first, more = ", ".join(different[:NAMES_PER_LINE]), len(different) > NAMES_PER_LINE
        heading = f"{first}, … ({len(different)} in all): " if more else f"{first}: " if first else ""
        joined[heading + sentence] = len(names)
    return joined


def _tails(case: str) -> list[str]:
    """Returns what follows each colon before a semicolon and outside brackets and quotes, the longest part first."""
    parts = case.split(": ")
    heads = [": ".join(parts[:i]) for i in range(1, len(parts))]
    closed = [all(head.count(a) == head.count(b) for a, b in ("()", "[]", "{}")) for head in heads]
    return [
        case[len(head) + 2 :]
        for head, is_closed in zip(heads, closed, strict=True)
        if is_closed and head.count('"') % 2 == 0 and "; " not in head
    ]


def load_json(path: Path, kind: type[Content], expected: str, findings: Findings) -> Content:
    """Reads a JSON object with at least one key and none twice, or a list; returns an empty `kind` after a problem."""
    text = read_text(path, findings)
    return kind() if text is None else parse_json(text, path, kind, expected, findings)


def parse_json(text: str, path: Path, kind: type[Content], expected: str, findings: Findings) -> Content:
    """Reads the text of a JSON file as `load_json` does; names are in one Unicode form, see `text_files.normalize`."""

    def to_dict(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:  # json keeps the last of equal keys
        entry = dict(pairs)
        counts = Counter(key for key, _ in pairs) if len(entry) < len(pairs) else {}
        for key, count in [(key, count) for key, count in counts.items() if count > 1]:
            case = f"{path}: the key {key!r} occurs {count} times in one object; remove all but one"
            findings.problem("repeated key", case)
        return entry

    try:
        content = json.loads(normalize(unescape(text)), object_pairs_hook=to_dict)
    except (ValueError, RecursionError) as error:
        findings.problem("unreadable file", f"{path}: not readable as JSON ({reason(error)})")
        return kind()
    if not isinstance(content, kind) or content == {}:
        findings.problem("layout", f"{path}: {short(content)}, expected {expected}")
        return kind()
    return content


def read_text(path: Path, findings: Findings) -> str | None:
    """Reads a text file as `text_files.decode` does, and notes an encoding other than UTF-8; GB18030 is a guess.

    Returns None and reports a problem if it cannot be read.
    """
    try:
        text, encoding = decode(path.read_bytes())
    except (OSError, ValueError) as error:
        findings.problem("unreadable file", f"{path}: not readable as text ({reason(error)})")
        return None
    if encoding != "UTF-8":
        words = [word for word in text.split() if not word.isascii()]
        shown = f", e.g. {short(words[0])}" if words else ""
        findings.note(GUESSED if encoding == "GB18030" else ENCODED, f"{path}: {encoding}{shown}")
    return text


def check_common(what: str, names: Collection[str], where: str, others: Collection[str]) -> str:
    """Compares two sets of names that must overlap.

    Returns a sentence that shows a name of each if they have none in common; '' if they have, or if one is empty.

    Args:
      what: the first set, e.g. 'the annotations'.
      names: of videos or classes, in one Unicode form.
      where: the second set, e.g. 'the folder features/rgb'.
    """
    if not names or not others or not set(names).isdisjoint(others):
        return ""
    known = sorted(others)[:1000]
    pairs = [(difflib.get_close_matches(name, known, 1, 0.0)[0], name) for name in sorted(names)[:20]]
    closest, name = max(pairs, key=lambda pair: difflib.SequenceMatcher(None, *pair).ratio())
    return f"none of the {len(names)} names in {what}, such as {name!r}, is in {where}, which has {closest!r}"


def check_video_id(video: object, findings: Findings, where: str = "", *, blanks: bool = True) -> bool:
    """Whether an id can name a file in a folder and none outside it; without `blanks`, whether it is one word."""
    if not isinstance(video, str) or not is_file_name(video):
        expected = 'the name of a file in a folder (no separators, control characters, "..")'
        case = f"video {short(video)}, expected {expected}"
    elif not blanks and video.split() != [video]:
        case = f"video {video!r} has blanks, which separate the fields of this format; rename it"
    else:
        return True
    findings.problem("video id", f"{where}: {case}" if where else case)
    return False


def number(value: object) -> float:
    """Returns a JSON number as float; NaN for every other value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    with contextlib.suppress(OverflowError):
        return float(value)
    return math.inf


def parse(text: str) -> float | str:
    """Returns the number in a text, or the text itself, which `number` turns into NaN."""
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text


def short(value: object) -> str:
    """Returns a value as printable JSON of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    text = text if text.isprintable() else json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def reason(error: Exception) -> str:
    """Returns why something could not be read, in one line; the type of the error is named unless it is ValueError."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = str(error).partition("\n")[0]
    if type(error) is ValueError and message:
        return message
    return f"{type(error).__name__}: {message[:120] or 'no details'}"
