"""The annotation layout that TSU, Charades, MultiTHUMOS and your own data share, and lists of class names.

    {video: {"subset": "training" or "testing", "duration": 61.5, "actions": [[class, start, end], …]}}

What is dirty is handled on purpose and counted; what is wrong is refused; nothing is skipped in silence.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kd_jax.data.annotations.cleaning import Annotated, Labels, annotate, check_action, check_duration, check_video
from kd_jax.data.checks import Findings, load_json_object, reason, short

SUBSETS = {"training": "train", "testing": "test"}


def one_file(paths: Sequence[Path], findings: Findings) -> Path | None:
    """The annotation file of a data set that has one."""
    if len(paths) == 1:
        return paths[0]
    findings.problem("annotation files", f"expected one --annotations, got {len(paths)}")
    return None


def read_annotations(
    paths: Sequence[Path], names: Sequence[str], findings: Findings, *, first_class: int = 0
) -> list[Annotated]:
    """Reads and cleans an annotation file of the common layout.

    Args:
      paths: the JSON file.
      names: of the classes; empty = the class list could not be read, so classes are not checked.
      findings: gets what is wrong, and what was dropped or clipped.
      first_class: the number of the first class in the file.

    Returns:
      The videos in the order of the file. One that has a problem comes with what could be read of it, so that its
      feature files are checked too: call `findings.raise_problems` before using any.
    """
    path = one_file(paths, findings)
    entries = load_json_object(path, findings) if path else {}
    labels = Labels(len(names), first_class)
    videos = [video for name, entry in entries.items() if (video := _read_video(name, entry, path, labels, findings))]
    if labels.count and not first_class and labels.seen and min(labels.seen) == 1 and max(labels.seen) == labels.count:
        findings.problem(
            "class ids", f"they run from 1 to {labels.count}: this file counts from 1, subtract 1 from each"
        )
    return videos


def _read_video(name: str, entry, path: Path, labels: Labels, findings: Findings) -> Annotated | None:
    good_name = check_video(name, path, findings)
    if not isinstance(entry, dict):
        findings.problem("annotation layout", f"{name}: {short(entry)} is not an object")
        entry = {}
    elif missing := [field for field in ("subset", "duration", "actions") if field not in entry]:
        findings.problem("annotation layout", f"{name}: the field {', '.join(missing)} is missing")
    subset = entry.get("subset")
    split = SUBSETS.get(subset, "") if isinstance(subset, str) else ""
    if "subset" in entry and not split:
        findings.problem("subset", f"{name}: {short(subset)}, expected {' or '.join(SUBSETS)}")
    duration = check_duration(name, entry["duration"], findings) if "duration" in entry else float("nan")
    actions = entry.get("actions", [])
    if not isinstance(actions, list):
        findings.problem("annotation layout", f"{name}: actions is {short(actions)}, expected a list")
        actions = []
    rows = [row for action in actions if (row := check_action(name, action, labels, findings))]
    return annotate(name, split, duration, rows, findings) if good_name else None


def read_classes(path: Path, findings: Findings) -> tuple[str, ...]:
    """Reads class names, one a line; the line number is the class id.

    Numbers before the names are taken off if all lines have them, in order: `c000 Holding …` (Charades) or
    `1 BaseballPitch` (MultiTHUMOS).
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        findings.problem("unreadable class list", f"{path}: {reason(error)}")
        return ()
    numbered = [re.fullmatch(r"c?(\d+)[\s:,]+(.+)", name) for name in names]
    if names and all(numbered):
        numbers = [int(match[1]) for match in numbered]
        if numbers == list(range(numbers[0], numbers[0] + len(names))) and numbers[0] in (0, 1):
            names = [match[2] for match in numbered]
    for name, count in Counter(names).items():
        if not name:
            findings.problem("class list", f"{path}: an empty line within the list; the line number is the class id")
        elif count > 1:
            findings.problem("class list", f"{path}: {name!r} stands there {count} times")
    if not names:
        findings.problem("class list", f"{path}: it is empty")
    return tuple(names)
