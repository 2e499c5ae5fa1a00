"""Annotations + features → records.

    python -m data_prep.build --dataset=custom --annotations=annotations.json --classes=classes.txt \\
        --features=rgb=DIR --features=flow=DIR --output=data/mine

reads `<video>.npy` from each folder, checks everything before it writes anything, says what it found, dropped and
clipped, and leaves details in report.json beside the records. See data_prep/README.md for each data set's files.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags
from tqdm import tqdm

from kd_jax.datasets import DATASETS, base, custom, describe, synthetic, tsu
from kd_jax.segments import labels_from_segments

# Beyond these, a mix-up of seconds and frames is likelier than such data.
LONGEST_SNIPPET, SHORTEST_SNIPPET = 60.0, 0.01
MOST_VARIATION = 2.0  # of the snippet's length from video to video


class Row(NamedTuple):
    """What the report counts of one video."""

    split: str
    segments: np.ndarray
    duration: float
    num_snippets: int


def build(
    dataset: str,
    output: str,
    *,
    annotations: str | None = None,
    classes: str | None = None,
    features: Sequence[str] = (),
    head: str | None = None,
    unit: str | None = None,
    fps: float | None = None,
    skip_missing: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
) -> tuple[base.Info, dict]:
    """Builds the records of one data set.

    Args:
      dataset: a key of DATASETS.
      output: folder of the records.
      annotations, classes: files; the class list is optional where the data set's own size is known.
      features: 'MODALITY=FOLDER' each.
      head, unit, fps: instead of the data set's own; head and unit only for 'custom'.
      skip_missing: leave out, and list, videos that lack a feature file.
      overwrite: replace older records in `output`.
      seed: of the synthetic set, 0 by default.

    Returns:
      Info and the report, as they stand in the folder.

    Raises:
      custom.DataError: listing all that is wrong with the input.
      ValueError: for options that contradict each other.
      FileExistsError: if `output` is not free.
    """
    description = describe(dataset)
    base.check_writable(output, overwrite=overwrite)
    files = {"annotations": annotations, "classes": classes, "features": features}
    choices = {"head": head, "unit": unit}
    if dataset == "synthetic":
        _refuse(dataset, "is made from a seed", {**files, **choices, "fps": fps, "skip_missing": skip_missing})
        info, splits = synthetic.make(seed or 0)
        rows = [Row(s, v.segments, v.duration, v.num_snippets) for s, videos in splits.items() for v in videos]
        report = make_report(info, rows, {}, {"seed": seed or 0})
        base.write(output, info, splits, report, overwrite=overwrite)
        return info, report
    _refuse(dataset, "has no seed", {"seed": seed is not None})
    if dataset != "custom":
        _refuse(dataset, f"is {description.head}, in {description.unit}", choices)
    needed = ["annotations", "features"] + ([] if description.num_classes else ["classes"])
    if lacking := [f"--{name}" for name in needed if not files[name]]:
        raise ValueError(f"--dataset={dataset} also needs {', '.join(lacking)}")
    fps = description.fps if fps is None else fps
    if not 0 < fps < float("inf"):
        raise ValueError(f"--fps={fps}; it must be a finite number above 0")
    unit = unit or description.unit
    folders = parse_features(features)

    findings = custom.Findings()
    names = custom.read_classes(Path(classes), findings) if classes else tsu.CLASSES
    if names and description.num_classes and len(names) != description.num_classes:
        findings.problem("class list", f"{classes}: {len(names)} names; {dataset} has {description.num_classes}")
    annotated = custom.read_annotations(Path(annotations), len(names), findings)
    with tqdm(total=len(annotated), desc="checking", unit="video", disable=None, leave=False) as bar:
        videos, sizes = custom.check_features(
            annotated, folders, findings, skip_missing=skip_missing, on_video=bar.update
        )
    findings.raise_problems()

    folder_name = Path(output).resolve().name
    info = base.Info(
        name=folder_name if dataset == "custom" and base.is_name(folder_name) else dataset,
        classes=names,
        head=head or description.head,
        modalities=sizes,
        unit=unit,
        fps=fps,
        seconds_per_snippet=float(np.median(custom.seconds_per_snippet(videos, unit, fps))),
    )
    rows = [Row(v.annotated.split, v.annotated.segments, v.annotated.duration, v.num_snippets) for v in videos]
    source = {"annotations": str(annotations), "features": {m: str(folder) for m, folder in folders.items()}}
    report = make_report(info, rows, findings.handled, source)
    with tqdm(total=len(videos), desc="writing", unit="video", disable=None, leave=False) as bar:

        def load(split: str) -> Iterator[base.Video]:
            for video in videos:
                if video.annotated.split == split:
                    yield custom.load(video)
                    bar.update()

        base.write(output, info, {split: load(split) for split in base.SPLITS}, report, overwrite=overwrite)
    return info, report


def _refuse(dataset: str, reason: str, options: Mapping) -> None:
    """Raises ValueError if an option is set that this data set would ignore."""
    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        raise ValueError(f"--dataset={dataset} {reason}: {', '.join(given)} would be ignored; leave it out")


def parse_features(features: Iterable[str]) -> dict[str, Path]:
    """{modality: folder} from 'MODALITY=FOLDER' each."""
    folders: dict[str, Path] = {}
    for text in features:
        modality, equals, folder = text.partition("=")
        if not equals or not base.is_name(modality) or not folder:
            raise ValueError(
                f"--features={text}: expected MODALITY=FOLDER, e.g. --features=rgb=features/rgb; "
                "a modality's name is letters, digits and _"
            )
        if modality in folders:
            raise ValueError(f"--features names {modality!r} twice")
        folders[modality] = Path(folder)
    return folders


def make_report(info: base.Info, rows: Sequence[Row], handled: Mapping, source: Mapping) -> dict:
    """What a user should know of the records: counts, lengths, and every case that was handled, by kind."""

    def per_split(count) -> dict:
        return {split: count([row for row in rows if row.split == split]) for split in base.SPLITS}

    lengths = np.array([row.num_snippets for row in rows])
    seconds = np.array([info.seconds(row.duration) / row.num_snippets for row in rows])
    return {
        "dataset": info.name,
        "source": dict(source),
        "videos": per_split(len),
        "actions": per_split(lambda rows: sum(len(row.segments) for row in rows)),
        "snippets": per_split(lambda rows: sum(row.num_snippets for row in rows)),
        "hours": per_split(lambda rows: round(sum(info.seconds(row.duration) for row in rows) / 3600, 3)),
        "classes": len(info.classes),
        "modalities": dict(info.modalities),
        "snippets_per_video": {
            "min": int(lengths.min()),
            "mean": round(float(lengths.mean()), 1),
            "max": int(lengths.max()),
        },
        "seconds_per_snippet": {
            "min": float(seconds.min()),
            "median": info.seconds_per_snippet,
            "max": float(seconds.max()),
        },
        "notes": _notes(info, rows, seconds),
        "handled": {kind: list(cases) for kind, cases in sorted(handled.items())},
    }


def _notes(info: base.Info, rows: Sequence[Row], seconds: np.ndarray) -> list[str]:
    """What is allowed but looks like a mistake."""
    notes = []
    if seconds.max() > LONGEST_SNIPPET or seconds.min() < SHORTEST_SNIPPET:
        notes.append(
            f"a snippet lasts {seconds.min():.4g} to {seconds.max():.4g} s: are the times of the annotations really "
            f"{info.unit}? (--unit, --fps)"
        )
    elif seconds.max() > MOST_VARIATION * seconds.min():
        notes.append(
            f"the length of a snippet varies from {seconds.min():.4g} to {seconds.max():.4g} s: "
            "do durations and features belong together?"
        )
    for split in base.SPLITS:
        present = {int(c) for row in rows if row.split == split for c in row.segments[:, 0]}
        absent = [name for i, name in enumerate(info.classes) if i not in present]
        if absent:
            more = f" … and {len(absent) - 8} more" if len(absent) > 8 else ""
            notes.append(f"{split} has no action of {len(absent)} classes: {', '.join(absent[:8])}{more}")
    if info.head == "sparse":
        labels = (labels_from_segments(r.segments, r.duration, r.num_snippets, len(info.classes)) for r in rows)
        several = sum(int((table.sum(axis=1) > 1).sum()) for table in labels)
        if several:
            notes.append(f"{several} snippets carry several classes at once, but the head is sparse (--head=dense?)")
    return notes


def describe_report(report: Mapping) -> str:
    """The report as the lines a user sees."""
    snippets, seconds = report["snippets_per_video"], report["seconds_per_snippet"]
    lines = [f"{report['dataset']}: {report['classes']} classes"]
    lines += [
        f"  {split:6}{report['videos'][split]:>6} videos {report['actions'][split]:>8} actions "
        f"{report['snippets'][split]:>9} snippets {report['hours'][split]:>9.2f} hours"
        for split in base.SPLITS
    ]
    lines += [f"  {modality}: [T, {size}] float16" for modality, size in report["modalities"].items()]
    lines += [
        f"  T from {snippets['min']} to {snippets['max']}, mean {snippets['mean']}; "
        f"{seconds['min']:.4g} to {seconds['max']:.4g} s per snippet, median {seconds['median']:.4g}"
    ]
    for kind, cases in report["handled"].items():
        lines.append(f"  {kind}: {len(cases)}, e.g. {cases[0]}")
    lines += [f"  note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def main(argv):
    if len(argv) > 1:
        sys.exit(f"data_prep.build: unexpected argument {argv[1]!r}; options start with --")
    options = {name: flags.FLAGS[name].value for name in OPTIONS}
    try:
        _, report = build(**options)
    except (ValueError, FileExistsError) as error:
        sys.exit(f"data_prep.build: {error}")
    except OSError as error:
        sys.exit(f"data_prep.build: {options['output']} cannot be written ({error}); choose another --output")
    print(describe_report(report))
    print(f"Records in {options['output']}; every case by name in {Path(options['output']) / base.REPORT_FILE}")


OPTIONS = (
    "dataset",
    "annotations",
    "classes",
    "features",
    "output",
    "head",
    "unit",
    "fps",
    "skip_missing",
    "overwrite",
    "seed",
)

if __name__ == "__main__":
    flags.DEFINE_enum("dataset", None, list(DATASETS), "Which data set.", required=True)
    flags.DEFINE_string("output", None, "Folder for the records.", required=True)
    flags.DEFINE_string("annotations", None, "JSON file: {video: {subset, duration, actions: [[class, start, end]]}}.")
    flags.DEFINE_string("classes", None, "Class names, one a line; line number = class id.")
    flags.DEFINE_multi_string("features", [], "MODALITY=FOLDER of <video>.npy; once per modality.")
    flags.DEFINE_enum("head", None, ["dense", "sparse"], "custom: concurrent actions, or one at a time. Default dense.")
    flags.DEFINE_enum("unit", None, ["seconds", "frames"], "custom: of the times in the file. Default seconds.")
    flags.DEFINE_float("fps", None, "Frames per second of the ground truth. Default: custom 25, tsu 20.")
    flags.DEFINE_boolean("skip_missing", False, "Leave out, and list, videos that lack a feature file.")
    flags.DEFINE_boolean("overwrite", False, "Replace older records in --output.")
    flags.DEFINE_integer("seed", None, "synthetic: which one. Default 0.")
    app.run(main)
