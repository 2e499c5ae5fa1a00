"""Scores saved predictions, of kd_jax or any other tool, against public annotation files. It does not load JAX.

    kd-jax evaluate --dataset=thumos14 --annotations=thumos14.json --predictions=detections.json

Predictions are snippet scores (.npz), detections (.json of kd_jax or ActivityNet, .csv, a folder of PKU-MMD text files)
or the text file of Charades localize; kd_jax/evaluation/formats describes the formats. Annotations may also be the
folder of THUMOS14's kit and, with --dataset=custom, folders of text files or of labels per frame.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax import interrupts
from kd_jax.command_line import Parser, at_least, between, disk_path, positive
from kd_jax.data import base
from kd_jax.data.annotations import DATASETS, describe
from kd_jax.data.annotations.cleaning import Annotated
from kd_jax.data.annotations.common_layout import read_classes
from kd_jax.data.annotations.custom import ReadOptions, read_truth
from kd_jax.data.checks import GUESSED, Findings, check_common
from kd_jax.data.timing import Cut, Length, compare_lengths
from kd_jax.evaluation import formats, proposals, times
from kd_jax.evaluation.protocols import PROTOCOLS, Predictions, Truth, check_protocols, score
from kd_jax.evaluation.scoring import RANKING_THRESHOLDS, Scoring, as_results, make_predictions, make_truth
from kd_jax.files import write_atomically


def parser() -> Parser:
    """Returns the options of this command."""
    options = Parser("kd_jax.evaluate", __doc__)
    add, datasets = options.add_argument, [name for name, description in DATASETS.items() if description.read]
    add("--dataset", choices=datasets, required=True, help="Whose annotations they are.")
    add(
        "--annotations",
        type=disk_path,
        action="append",
        required=True,
        help="A public annotation file or folder; may be repeated.",
    )
    add(
        "--predictions",
        type=disk_path,
        required=True,
        help="A .npz, .json, .csv or .txt file or a folder, see kd_jax/evaluation/formats.",
    )
    add("--classes", type=disk_path, help="File of class names, one per line; line number = class id.")
    add("--split", choices=list(base.SPLITS), default="test", help="Which videos (test).")
    add("--test", type=disk_path, help="With custom: file with the names of the test videos, one a line.")
    protocols = f"Instead of those of the data set's benchmark; may be repeated. One of {', '.join(PROTOCOLS)}."
    add("--protocols", action="append", choices=list(PROTOCOLS), metavar="PROTOCOL", help=protocols)
    tiou = "tIoU threshold instead of those of the benchmark, for detections; may be repeated."
    add("--tiou", action="append", type=between(1e-6, 1), help=tiou)
    add("--logits", action="store_true", default=None, help="The scores are logits, not probabilities.")
    add("--proposals", choices=list(proposals.PROPOSALS), help="From scores to detections; default: the head's own.")
    own = ", ".join(f"{rule} {value:g}" for rule, value in RANKING_THRESHOLDS.items())
    add("--threshold", type=between(0, 1), help=f"Threshold of the proposals ({own}).")
    convention = "Where a snippet is in time, see kd_jax/evaluation/proposals.py (centre)."
    add("--convention", choices=list(proposals.CONVENTIONS), help=convention)
    first = "Number of the first class in folders of text files (predictions: 1; TSU has 0)."
    add("--first_label", type=at_least(0), help=first)
    add("--head", choices=["dense", "sparse"], help="Instead of the data set's own.")
    add("--unit", choices=["seconds", "frames"], help="With custom: unit of times in the annotations.")
    add("--fps", type=positive, help="Frames per second; default: the data set's own.")
    add("--stride", type=positive, help="Frames from one snippet of the scores to the next (they divide the duration).")
    add("--window", type=positive, help="Frames that one snippet covers, with --stride (the stride).")
    add("--output", type=disk_path, help="JSON file for every value, also per class.")
    return options


def read_predictions(path: Path, info: base.Info, *, first_label: int) -> tuple[str, dict[str, np.ndarray]]:
    """Reads predictions in any format that kd_jax/evaluation/formats has a reader for.

    Args:
      path: `.npz` of snippet scores, `.txt` of Charades localize, `.json` of kd_jax or ActivityNet, `.csv`, or a
        folder of PKU-MMD text files, whose first class has the number `first_label`.
      info: classes and frames per second.

    Returns the kind of the predictions, 'scores', 'instants' or 'detections', and {video: array}. Raises
    FileNotFoundError or ValueError, which names file, line, value and remedy.
    """
    if path.is_dir():
        found = formats.read_pku_mmd(path, len(info.classes), first_label=first_label, frames_per_second=info.fps)
        return "detections", found
    if path.suffix == ".npz":
        return "scores", formats.read_scores(path)
    if path.suffix == ".txt":
        return "instants", formats.read_charades(path, num_classes=len(info.classes))
    if path.suffix == ".csv":
        return "detections", formats.read_csv(path, info.classes)
    if path.suffix == ".json":
        own = path.is_file() and path.read_bytes().lstrip()[:1] == b"["
        read = formats.read_native if own else formats.read_activitynet
        return "detections", read(path, info.classes)
    kinds = ".npz of scores, .json or .csv of detections, .txt of Charades localize, or folder of PKU-MMD files"
    raise FileNotFoundError(f"{path} is no {kinds}")


def evaluate_predictions(given: argparse.Namespace) -> None:
    """Scores the predictions that the options name and prints every value.

    Raises ValueError or OSError, one sentence that names file or option and the remedy.
    """
    if given.output and not (folder := Path(given.output).absolute().parent).is_dir():
        raise ValueError(f"--output={given.output}: there is no folder {folder}; make it first")
    info, annotated, findings = _read_truth(given)
    first_label = 1 if given.first_label is None else given.first_label
    kind, arrays = read_predictions(Path(given.predictions), info, first_label=first_label)
    if not arrays:
        raise ValueError(f"{given.predictions}: no prediction for any of {len(annotated)} videos; it is empty")
    if apart := check_common(given.predictions, arrays, ", ".join(given.annotations), [v.id for v in annotated]):
        raise ValueError(f"{apart}; rename one of them")
    scoring = _choose_scoring(kind, info.head, given)
    scores = arrays if kind == "scores" else {}
    truth = make_truth([_as_video(video, scores.get(video.id), info, given) for video in annotated], info)
    _check_durations(truth, scoring.protocols, kind)
    of_split = {video: array for video, array in arrays.items() if video in truth.segments}
    if kind == "scores":
        if not given.logits:
            _check_probabilities(of_split, given.predictions)
        predictions = make_predictions(of_split, truth, info.head, scoring, logits=bool(given.logits))
    else:
        predictions = Predictions(**{kind: of_split})
    notes = _compare_times(of_split, truth, info.fps, given) if kind == "detections" else []
    if kind == "scores" and given.stride:
        notes = _compare_stride(of_split, annotated, info, given)
    scored = score(predictions, truth, scoring.protocols, thresholds=tuple(sorted(set(given.tiou or ()))))
    results = as_results(*scored, info.classes)
    _report(info, truth, kind, arrays, (findings, notes), results, given)


def _choose_scoring(kind: str, head: str, given: argparse.Namespace) -> Scoring:
    """Returns how to score; raises ValueError for options that these predictions do not allow or do not need."""
    wanted = given.protocols or describe(given.dataset).protocols
    check_protocols(wanted)
    _refuse_idle_options(kind, wanted, given)
    servable = [name for name in wanted if kind in ("scores", PROTOCOLS[name].needs)]  # snippet scores serve all
    protocols = tuple(given.protocols or servable)
    if not protocols:
        reason = f"{given.predictions} holds {kind}, but {', '.join(wanted)} cannot be computed from them"
        can = ", ".join(name for name, protocol in PROTOCOLS.items() if protocol.needs == kind)
        raise ValueError(f"{reason}; choose --protocols that can: {can}")
    if given.tiou and not any(PROTOCOLS[name].thresholds for name in protocols):
        raise ValueError(f"--tiou has no effect on {', '.join(protocols)}; leave it out")
    chosen = Scoring(protocols, given.proposals or "", given.threshold, given.convention or "centre")
    scoring = chosen.with_defaults(head)
    scoring.check(head)
    return scoring


def _refuse_idle_options(kind: str, wanted: Sequence[str], given: argparse.Namespace) -> None:
    """Raises ValueError for an option that has no effect on these predictions."""
    names = ("proposals", "threshold", "convention", "head", "first_label", "logits", "stride", "window")
    folders = [given.predictions, *(given.annotations if given.dataset == "custom" else ())]
    used = {"first_label"} if any(Path(folder).is_dir() for folder in folders) else set()
    if kind == "scores":
        used |= {"logits", "head", "stride", *(["window"] if given.stride else [])}
        if any(PROTOCOLS[name].needs == "detections" for name in wanted):
            used |= {"proposals", "threshold", "convention"}
    if idle := [f"--{name}" for name in names if getattr(given, name) is not None and name not in used]:
        raise ValueError(f"{', '.join(idle)} would be ignored for these predictions and protocols; leave it out")


def _read_truth(given: argparse.Namespace) -> tuple[base.Info, list[Annotated], Findings]:
    """Reads the videos of the split: their classes, annotations, and what was cleaned."""
    description, findings = describe(given.dataset), Findings()
    is_custom = given.dataset == "custom"
    for option, fact in (("unit", f"is in {description.unit}"), ("test", "states its test videos")):
        if getattr(given, option) and not is_custom:
            raise ValueError(f"--dataset={given.dataset} {fact}: --{option} would be ignored; leave it out")
    names = read_classes(Path(given.classes), findings) if given.classes else description.names
    assert description.read is not None  # as for every choice of --dataset
    paths = [Path(path) for path in given.annotations]
    if is_custom:
        options = ReadOptions(given.unit or description.unit, given.fps, test=given.test, needs=("subset",))
        first_class = (given.first_label or 0) if any(path.is_dir() for path in paths) else 0
        annotated, names = read_truth(paths, names, given.split, options, findings, first_class)
    else:
        annotated = description.read(paths, names, findings)
    findings.raise_problems("nothing was scored")
    if not names:
        raise ValueError(f"--dataset={given.dataset} also needs --classes, a file with one name a line")
    head, unit, fps = (getattr(given, field) or getattr(description, field) for field in ("head", "unit", "fps"))
    info = base.Info(given.dataset, names, head, {}, unit, fps, seconds_per_snippet=math.nan)
    of_split = [video for video in annotated if video.split == given.split]
    if not of_split:
        raise ValueError(f"{', '.join(given.annotations)}: none of the {len(annotated)} videos is for {given.split}")
    return info, of_split, findings


def _as_video(video: Annotated, table: np.ndarray | None, info: base.Info, given: argparse.Namespace) -> base.Video:
    """Makes a video of annotations, whose scores are at the times that --stride states.

    A duration that the annotations do not state is that of the scores.
    """
    stride, duration, grid = given.stride or describe(given.dataset).stride, video.duration, None
    if stride and table is not None:
        per_second, cut = info.fps if info.unit == "frames" else 1.0, _cut(video, stride, info, given)
        duration = cut.covered(len(table)) * per_second if math.isinf(duration) else duration
        if given.stride:
            grid = cut.grid(len(table)).scale(per_second)
    return base.Video(video.id, {}, video.segments, duration, video.written, video.ambiguous, grid)


def _cut(video: Annotated, stride: float, info: base.Info, given: argparse.Namespace) -> Cut:
    """Returns how the scores of a video were cut, in seconds; frames are those of --fps or of the video."""
    fps = given.fps or video.fps or info.fps
    if given.dataset == "custom" and not (given.fps or video.fps):
        raise ValueError(f"--stride counts frames, but the rate of {video.id} is unknown; give --fps")
    return Cut(stride / fps, (given.window or stride) / fps)


def _compare_stride(
    scores: Mapping[str, np.ndarray], annotated: Sequence[Annotated], info: base.Info, given: argparse.Namespace
) -> list[str]:
    """Returns notes about videos that end elsewhere than their scores do with --stride."""
    known = [video for video in annotated if video.id in scores]
    cuts = [_cut(video, given.stride, info, given) for video in known]
    lengths = [
        Length(video.id, len(scores[video.id]), info.seconds(video.duration), cut)
        for video, cut in zip(known, cuts, strict=True)
    ]
    findings = Findings(given.predictions)
    compare_lengths(lengths, findings)
    findings.raise_problems("nothing was scored")
    return [f"{kind}: {len(cases)}, e.g. {cases[0]}" for kind, cases in findings.handled.items()]


def _check_durations(truth: Truth, protocols: Sequence[str], kind: str) -> None:
    """Raises ValueError if a protocol needs durations that the annotations do not state."""
    unknown = [video for video, duration in truth.durations.items() if math.isinf(duration)]
    if unknown and (kind == "scores" or any(PROTOCOLS[name].needs != "detections" for name in protocols)):
        what = f"the annotations do not state the duration of {len(unknown)} videos, such as {unknown[0]}"
        raise ValueError(f"{what}; give --stride, frames from one snippet of the scores to the next, or add durations")


def _check_probabilities(tables: Mapping[str, np.ndarray], path: str) -> None:
    for video, table in tables.items():
        if table.size and (table.min() < 0 or table.max() > 1):
            scores = f"the scores of {video!r} go from {table.min():.4g} to {table.max():.4g}"
            raise ValueError(f"{path}: {scores}, so they are not probabilities; if they are logits, give --logits")


def _compare_times(detections: Mapping[str, np.ndarray], truth: Truth, fps: float, given) -> list[str]:
    """Returns notes about times of detections that cannot be right; raises ValueError if all are outside."""
    unit = times.describe_unit(detections, truth, fps)
    try:
        late = times.describe_late(detections, truth)
    except ValueError as error:
        raise ValueError(f"{given.predictions}: {error}{unit and f'; {unit}'}") from None
    return [note for note in (late, times.describe_empty(detections), unit) if note]


def _report(
    info: base.Info, truth: Truth, kind: str, arrays: Mapping, remarks: tuple[Findings, list[str]], results: dict, given
) -> None:
    """Prints the videos, what was cleaned, what is missing and every value; writes --output."""
    findings, notes = remarks
    actions = sum(map(len, truth.written.values()))
    print(f"{info.name}, {given.split}: {len(truth.segments)} videos, {actions} actions, {len(info.classes)} classes")
    for change, cases in sorted(findings.handled.items()):
        example = f", e.g. {cases[0]}" if change == GUESSED else ""
        print(f"  annotations, both splits: {change}: {len(cases)}{example}")
    missing, unknown = truth.segments.keys() - arrays.keys(), arrays.keys() - truth.segments.keys()
    if missing:
        effect = "; event_map, like the official script, leaves their actions out: write empty files for them"
        effect = effect if any(key.startswith("event_map/") for key in results) else ""
        print(f"  note: {len(missing)} videos without predictions, e.g. {min(missing)}{effect}")
    if unknown:
        print(f"  note: {len(unknown)} videos predicted that are not of this split, ignored, e.g. {min(unknown)}")
    for note in notes:
        print(f"  note: {note}")
    print(f"{kind} of {given.predictions}, percent:")
    values = {key: value for key, value in results.items() if key != "per_class"}
    width = max(map(len, values))
    for key, value in values.items():
        print(f"  {key:<{width}}  {'–' if value is None else f'{value:.2f}':>6}")
    if None in values.values():
        print("  –: does not exist, because a class has no ground truth in these videos (an official mean is then NaN)")
    if given.output:
        write_atomically(Path(given.output), (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
        print(f"With every class in {given.output}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`; None reads those of the program."""
    given = parser().parse_args(argv)
    try:
        evaluate_predictions(given)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.evaluate: {error}")


if __name__ == "__main__":
    interrupts.run("kd_jax.evaluate", main)
