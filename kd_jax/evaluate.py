"""Scores saved predictions, of kd_jax or any other tool, against public annotation files. It does not load JAX.

    python -m kd_jax.evaluate --dataset=thumos14 --annotations=thumos14.json --predictions=detections.json

Predictions are snippet scores (.npz), detections (.json of kd_jax or ActivityNet, .csv, a folder of PKU-MMD text files)
or the text file of Charades localize; kd_jax/evaluation/formats describes the formats.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.command_line import Parser, at_least, between
from kd_jax.data import base
from kd_jax.data.annotations import DATASETS, describe
from kd_jax.data.annotations.cleaning import Annotated
from kd_jax.data.annotations.common_layout import read_classes
from kd_jax.data.checks import Findings
from kd_jax.evaluation import formats, proposals
from kd_jax.evaluation.protocols import PROTOCOLS, Predictions, Truth, check_protocols, score
from kd_jax.evaluation.scoring import Scoring, as_results, make_predictions, make_truth
from kd_jax.files import write_json


def parser() -> Parser:
    """The options of this command."""
    options = Parser("kd_jax.evaluate", __doc__)
    add, datasets = options.add_argument, [name for name in DATASETS if name != "synthetic"]
    add("--dataset", choices=datasets, required=True, help="Whose annotations they are.")
    add("--annotations", action="append", required=True, help="A public annotation file; may be repeated.")
    add(
        "--predictions",
        required=True,
        help="A .npz, .json, .csv or .txt file or a folder, see kd_jax/evaluation/formats.",
    )
    add("--classes", help="File of class names, one per line; line number = class id.")
    add("--split", choices=list(base.SPLITS), default="test", help="Which videos (test).")
    protocols = f"Instead of those of the data set's benchmark; may be repeated. One of {', '.join(PROTOCOLS)}."
    add("--protocols", action="append", choices=list(PROTOCOLS), metavar="PROTOCOL", help=protocols)
    add("--logits", action="store_true", help="The scores are logits, not probabilities.")
    add("--proposals", choices=list(proposals.PROPOSALS), help="From scores to detections; default: the head's own.")
    add("--threshold", type=between(0, 1), help="Threshold of the proposals; default: the rule's own.")
    convention = "Where a snippet is in time, see kd_jax/evaluation/proposals.py (centre)."
    add("--convention", choices=list(proposals.CONVENTIONS), help=convention)
    add("--first_label", type=at_least(0), help="Number of the first class in PKU-MMD files (1; TSU has 0).")
    add("--head", choices=["dense", "sparse"], help="Instead of the data set's own.")
    add("--unit", choices=["seconds", "frames"], help="With custom: unit of times in the annotations.")
    add("--fps", type=float, help="Frames per second; default: the data set's own.")
    add("--output", help="JSON file for every value, also per class.")
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
    info, annotated, stride, findings = _read_truth(given)
    first_label = 1 if given.first_label is None else given.first_label
    kind, arrays = read_predictions(Path(given.predictions), info, first_label=first_label)
    wanted = given.protocols or describe(given.dataset).protocols
    check_protocols(wanted)
    _refuse_idle_options(kind, wanted, given)
    servable = [name for name in wanted if kind in ("scores", PROTOCOLS[name].needs)]  # snippet scores serve all
    protocols = tuple(given.protocols or servable)
    scoring = Scoring(protocols, given.proposals or "", given.threshold, given.convention or "centre")
    if not protocols:
        reason = f"{given.predictions} holds {kind}, but {', '.join(wanted)} cannot be computed from them"
        raise ValueError(f"{reason}; choose --protocols that can")
    scoring.check(info.head)
    truth = make_truth([_as_video(video, arrays.get(video.id), stride) for video in annotated], info)
    of_split = {video: array for video, array in arrays.items() if video in truth.segments}
    if kind == "scores":
        _check_probabilities(of_split, given)
        predictions = make_predictions(of_split, truth, info.head, scoring, logits=given.logits)
    else:
        predictions = Predictions(**{kind: of_split})
    results = as_results(*score(predictions, truth, scoring.protocols), info.classes)
    _report(info, truth, kind, arrays, findings, results, given)


def _refuse_idle_options(kind: str, wanted: Sequence[str], given: argparse.Namespace) -> None:
    """Raises ValueError for an option that has no effect on these predictions."""
    options = {name: getattr(given, name) for name in ("proposals", "threshold", "convention", "head", "first_label")}
    options["logits"] = given.logits or None
    used = {"first_label"} if Path(given.predictions).is_dir() else set()
    if kind == "scores":
        used = {"logits", "head"}
        if any(PROTOCOLS[name].needs == "detections" for name in wanted):
            used |= {"proposals", "threshold", "convention"}
    if idle := [f"--{name}" for name, value in options.items() if value is not None and name not in used]:
        raise ValueError(f"{', '.join(idle)} would be ignored for these predictions and protocols; leave it out")


def _read_truth(given: argparse.Namespace) -> tuple[base.Info, list[Annotated], float | None, Findings]:
    """Reads the videos of the split: their classes, annotations, frames per snippet, and what was cleaned."""
    description, findings = describe(given.dataset), Findings()
    if given.unit and given.dataset != "custom":
        raise ValueError(f"--dataset={given.dataset} is in {description.unit}: --unit would be ignored; leave it out")
    if given.fps is not None and not 0 < given.fps < math.inf:
        raise ValueError(f"--fps={given.fps}; it must be a finite number above 0")
    names = read_classes(Path(given.classes), findings) if given.classes else description.names
    assert description.read is not None  # only the synthetic set has no annotation files
    annotated = description.read([Path(path) for path in given.annotations], names, findings)
    findings.raise_problems()
    if not names:
        raise ValueError(f"--dataset={given.dataset} also needs --classes, a file with one name a line")
    head, unit, fps = (getattr(given, field) or getattr(description, field) for field in ("head", "unit", "fps"))
    info = base.Info(given.dataset, names, head, {}, unit, fps, seconds_per_snippet=math.nan)
    of_split = [video for video in annotated if video.split == given.split]
    if not of_split:
        raise ValueError(f"{', '.join(given.annotations)}: none of the {len(annotated)} videos is for {given.split}")
    return info, of_split, description.stride, findings


def _as_video(video: Annotated, table: np.ndarray | None, stride: float | None) -> base.Video:
    """Makes a video of annotations. A duration that they do not state is T · `stride` frames of the scores."""
    duration = video.duration
    if math.isinf(duration) and table is not None and stride is not None:
        duration = len(table) * stride
    return base.Video(video.id, {}, video.segments, duration, video.written, video.ambiguous)


def _check_probabilities(tables: Mapping[str, np.ndarray], given: argparse.Namespace) -> None:
    for video, table in {} if given.logits else tables.items():
        if table.size and (table.min() < 0 or table.max() > 1):
            scores = f"the scores of {video!r} go from {table.min():.4g} to {table.max():.4g}"
            remedy = "so they are no probabilities; if they are logits, give --logits"
            raise ValueError(f"{given.predictions}: {scores}, {remedy}")


def _report(
    info: base.Info, truth: Truth, kind: str, arrays: Mapping, findings: Findings, results: dict, given
) -> None:
    """Prints the videos, what was cleaned, what is missing and every value; writes --output."""
    actions = sum(map(len, truth.written.values()))
    print(f"{info.name}, {given.split}: {len(truth.segments)} videos, {actions} actions, {len(info.classes)} classes")
    for change, cases in sorted(findings.handled.items()):
        print(f"  annotations, both splits: {change}: {len(cases)}")
    missing, unknown = truth.segments.keys() - arrays.keys(), arrays.keys() - truth.segments.keys()
    if missing:
        effect = "; event_map, like the official script, leaves their actions out: write empty files for them"
        effect = effect if any(key.startswith("event_map/") for key in results) else ""
        print(f"  note: {len(missing)} videos without predictions, e.g. {min(missing)}{effect}")
    if unknown:
        print(f"  note: {len(unknown)} videos predicted that are not of this split, ignored, e.g. {min(unknown)}")
    print(f"{kind} of {given.predictions}, percent:")
    values = {key: value for key, value in results.items() if key != "per_class"}
    width = max(map(len, values))
    for key, value in values.items():
        print(f"  {key:<{width}}  {'–' if value is None else f'{value:.2f}':>6}")
    if None in values.values():
        print("  –: does not exist, because a class has no ground truth in these videos (an official mean is then NaN)")
    if given.output:
        write_json(Path(given.output), results)
        print(f"With every class in {given.output}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`; None reads those of the program."""
    given = parser().parse_args(argv)
    try:
        evaluate_predictions(given)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.evaluate: {error}")


if __name__ == "__main__":
    main()
