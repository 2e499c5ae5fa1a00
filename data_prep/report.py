"""The report of a build: counts, lengths, every case that was handled, and notes on possible mistakes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.data import base
from kd_jax.segments import Grid

# Limits in seconds, beyond which seconds and frames were probably mixed up.
LONGEST_SNIPPET, SHORTEST_SNIPPET = 60.0, 0.01


class Row(NamedTuple):
    """The facts about one video that the report counts."""

    split: str
    segments: np.ndarray
    duration: float
    num_snippets: int
    grid: Grid  # the times of the snippets, in the same unit


def make_report(
    info: base.Info,
    rows: Sequence[Row],
    handled: Mapping,
    source: Mapping,
    *,
    expected_seconds: float | None = None,
    facts: Sequence[str] = (),
) -> dict:
    """Returns the report as it is stored in the folder of the records.

    Args:
      rows: one per video.
      handled: {kind of finding: [one line per case]}.
      source: files and folders that the data came from.
      expected_seconds: of a snippet of the public features, if known.
      facts: what was recognised and where values come from, one line each.
    """

    def per_split(count) -> dict:
        return {split: count([row for row in rows if row.split == split]) for split in base.SPLITS}

    lengths = np.array([row.num_snippets for row in rows])
    seconds = np.array([info.seconds(row.grid.length) / row.num_snippets for row in rows])
    mean, median = round(float(lengths.mean()), 1), info.seconds_per_snippet
    return {
        "dataset": info.name,
        "source": dict(source),
        "videos": per_split(len),
        "actions": per_split(lambda rows: sum(len(row.segments) for row in rows)),
        "snippets": per_split(lambda rows: sum(row.num_snippets for row in rows)),
        "hours": per_split(lambda rows: round(sum(info.seconds(row.duration) for row in rows) / 3600, 3)),
        "facts": list(facts),
        "classes": len(info.classes),
        "modalities": dict(info.modalities),
        "dtypes": {modality: info.dtype(modality).name for modality in info.modalities},
        "snippets_per_video": {"min": int(lengths.min()), "mean": mean, "max": int(lengths.max())},
        "seconds_per_snippet": {"min": float(seconds.min()), "median": median, "max": float(seconds.max())},
        "notes": _notes(info, rows, seconds, expected_seconds),
        "handled": {kind: list(cases) for kind, cases in sorted(handled.items())},
    }


def _notes(info: base.Info, rows: Sequence[Row], seconds: np.ndarray, expected: float | None) -> list[str]:
    """Notes on valid input that looks like a mistake."""
    notes, shortest, longest, typical = [], seconds.min(), seconds.max(), info.seconds_per_snippet
    span = f"{shortest:.4g} to {longest:.4g} s"
    if expected and not 0.8 < typical / expected < 1.25:
        found = f"a snippet lasts {typical:.4g} s, but {expected:.4g} s in the public features"
        notes.append(f"{found}: does the stride differ?")
    if longest > LONGEST_SNIPPET or shortest < SHORTEST_SNIPPET:
        notes.append(f"a snippet lasts {span}: are the times of the annotations really {info.unit}? (--unit, --fps)")
    annotated = {row.split for row in rows if len(row.segments)} | {"train"}  # a test without actions is a fact
    for split in filter(annotated.__contains__, base.SPLITS):
        present = {int(c) for row in rows if row.split == split for c in row.segments[:, 0]}
        if absent := [name for i, name in enumerate(info.classes) if i not in present]:
            more = f" … and {len(absent) - 8} more" if len(absent) > 8 else ""
            notes.append(f"{split} has no action of {len(absent)} classes: {', '.join(absent[:8])}{more}")
    if info.head == "sparse":
        labels = (row.grid.labels(row.segments, row.num_snippets, len(info.classes)) for row in rows)
        if several := sum(int((table.sum(axis=1) > 1).sum()) for table in labels):
            notes.append(f"{several} snippets carry several classes at once, but the head is sparse (--head=dense?)")
    return notes


def describe_report(report: Mapping) -> str:
    """Returns the report as text for the terminal."""
    snippets, seconds = report["snippets_per_video"], report["seconds_per_snippet"]
    lines = [f"{report['dataset']}: {report['classes']} classes", *(f"  {fact}" for fact in report["facts"])]
    lines += [
        f"  {split:6}{report['videos'][split]:>6} videos {report['actions'][split]:>8} actions "
        f"{report['snippets'][split]:>9} snippets {report['hours'][split]:>9.2f} hours"
        for split in base.SPLITS
    ]
    lines += [
        f"  {modality}: [T, {size}] {report['dtypes'][modality]}" for modality, size in report["modalities"].items()
    ]
    lines += [
        f"  T from {snippets['min']} to {snippets['max']}, mean {snippets['mean']}; "
        f"{seconds['min']:.4g} to {seconds['max']:.4g} s per snippet, median {seconds['median']:.4g}"
    ]
    lines += [f"  {kind}: {len(cases)}, e.g. {cases[0]}" for kind, cases in report["handled"].items()]
    lines += [f"  note: {note}" for note in report["notes"]]
    return "\n".join(lines)
