"""Saved predictions, of this project or any other tool, scored against public annotation files; without JAX.

    python -m kd_jax.evaluate --dataset=thumos14 --annotations=thumos14.json --predictions=detections.json

Predictions are read in every format of kd_jax/evaluation/formats: snippet scores (.npz), detections (.json of this project or
ActivityNet's, a folder of PKU-MMD text files), or the text file of Charades localize.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from kd_jax.data import base
from kd_jax.data.annotations import DATASETS, describe
from kd_jax.data.annotations.cleaning import Annotated
from kd_jax.data.annotations.common_layout import read_classes
from kd_jax.data.checks import Findings
from kd_jax.evaluation import formats, proposals
from kd_jax.evaluation.protocols import PROTOCOLS, Predictions, Truth, check_protocols, score
from kd_jax.evaluation.scoring import Scoring, as_results, make_predictions, make_truth
from kd_jax.files import write_json


def read_predictions(path: Path, info: base.Info, *, first_label: int) -> tuple[str, dict[str, np.ndarray]]:
    """Reads predictions in any format of kd_jax/evaluation/formats: what they are, and {video: array}.

    Args:
      path: `.npz` of snippet scores, `.txt` of Charades localize, `.json` of this project or ActivityNet's, or a folder
        of PKU-MMD text files.
      info: classes and frames per second.
      first_label: the number of the first class in PKU-MMD files.

    Returns:
      'scores', 'instants' or 'detections', and the arrays.

    Raises:
      FileNotFoundError, ValueError: naming file, line, value and remedy.
    """
    if path.is_dir():
        found = formats.read_pku_mmd(path, len(info.classes), first_label=first_label, frames_per_second=info.fps)
        return "detections", found
    if path.suffix == ".npz":
        return "scores", formats.read_scores(path)
    if path.suffix == ".txt":
        return "instants", formats.read_charades(path, num_classes=len(info.classes))
    if path.suffix == ".json":
        own = path.is_file() and path.read_bytes().lstrip()[:1] == b"["
        read = formats.read_native if own else formats.read_activitynet
        return "detections", read(path, info.classes)
    raise FileNotFoundError(
        f"{path} is no .npz of scores, .json of detections, .txt of Charades localize, or folder of PKU-MMD files"
    )


def servable(protocols: Sequence[str], what: str) -> tuple[str, ...]:
    """Those of the protocols that predictions of this kind can be scored with: snippet scores serve all of them."""
    return tuple(name for name in protocols if what in ("scores", PROTOCOLS[name].needs))


def main(argv):
    if len(argv) > 1:
        sys.exit(f"kd_jax.evaluate: unexpected argument {argv[1]!r}; options start with --")
    arguments = flags.FLAGS
    try:
        _check_output(arguments.output)
        info, annotated, stride, findings = _read_truth(arguments)
        first_label = 1 if arguments.first_label is None else arguments.first_label
        what, arrays = read_predictions(Path(arguments.predictions), info, first_label=first_label)
        wanted = arguments.protocols or describe(arguments.dataset).protocols
        check_protocols(wanted)
        _refuse_idle_options(what, wanted, arguments)
        scoring = Scoring(
            tuple(arguments.protocols) or servable(wanted, what),
            arguments.proposals or "",
            arguments.threshold,
            arguments.convention or "centre",
        )
        if not scoring.protocols:
            raise ValueError(
                f"{arguments.predictions} holds {what}, but {', '.join(wanted)} cannot be computed from them; "
                "choose --protocols that can"
            )
        scoring.check(info.head)
        truth = make_truth([_as_video(video, arrays.get(video.id), stride) for video in annotated], info)
        of_split = {video: array for video, array in arrays.items() if video in truth.segments}
        if what == "scores":
            _check_probabilities(of_split, arguments)
            predictions = make_predictions(of_split, truth, info.head, scoring, logits=arguments.logits)
        else:
            predictions = Predictions(**{what: of_split})
        results = as_results(*score(predictions, truth, scoring.protocols), info.classes)
        _report(info, truth, what, arrays, findings, results, arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.evaluate: {error}")


def _check_output(output: str | None) -> None:
    if output and not Path(output).absolute().parent.is_dir():
        raise ValueError(f"--output={output}: there is no folder {Path(output).absolute().parent}; make it first")


def _refuse_idle_options(what: str, wanted: Sequence[str], arguments) -> None:
    """Raises ValueError for an option that these predictions make no use of."""
    given = {name: getattr(arguments, name) is not None for name in ("proposals", "threshold", "convention", "head")}
    given |= {"logits": arguments.logits, "first_label": arguments.first_label is not None}
    used = {"first_label"} if Path(arguments.predictions).is_dir() else set()
    if what == "scores":
        used = {"logits", "head"}
        if any(PROTOCOLS[name].needs == "detections" for name in wanted):
            used |= {"proposals", "threshold", "convention"}
    if idle := [f"--{name}" for name in given if given[name] and name not in used]:
        raise ValueError(f"{', '.join(idle)} would be ignored for these predictions and protocols; leave it out")


def _read_truth(arguments) -> tuple[base.Info, list[Annotated], float | None, Findings]:
    """What the annotation files say of the split, and what had to be cleaned."""
    description, findings = describe(arguments.dataset), Findings()
    if arguments.unit and arguments.dataset != "custom":
        raise ValueError(
            f"--dataset={arguments.dataset} is in {description.unit}: --unit would be ignored; leave it out"
        )
    if arguments.fps is not None and not 0 < arguments.fps < math.inf:
        raise ValueError(f"--fps={arguments.fps}; it must be a finite number above 0")
    names = read_classes(Path(arguments.classes), findings) if arguments.classes else description.names
    annotated = description.read([Path(path) for path in arguments.annotations], names, findings)
    findings.raise_problems()
    if not names:
        raise ValueError(f"--dataset={arguments.dataset} also needs --classes, a file with one name a line")
    info = base.Info(
        name=arguments.dataset,
        classes=names,
        head=arguments.head or description.head,
        modalities={},
        unit=arguments.unit or description.unit,
        fps=arguments.fps or description.fps,
        seconds_per_snippet=math.nan,
    )
    of_split = [video for video in annotated if video.split == arguments.split]
    if not of_split:
        raise ValueError(
            f"{', '.join(arguments.annotations)}: none of the {len(annotated)} videos is for {arguments.split}"
        )
    return info, of_split, description.stride, findings


def _as_video(video: Annotated, table: np.ndarray | None, stride: float | None) -> base.Video:
    """Annotations that do not tell the duration: it is T · `stride` frames of the predicted scores."""
    unknown = math.isinf(video.duration) and table is not None and stride is not None
    duration = len(table) * stride if unknown else video.duration
    return base.Video(video.id, {}, video.segments, duration, video.written, video.ambiguous)


def _check_probabilities(tables: Mapping[str, np.ndarray], arguments) -> None:
    if arguments.logits:
        return
    for video, table in tables.items():
        if table.size and (table.min() < 0 or table.max() > 1):
            raise ValueError(
                f"{arguments.predictions}: the scores of {video!r} go from {table.min():.4g} to {table.max():.4g}, so "
                "they are no probabilities; if they are logits, say --logits"
            )


def _report(info, truth: Truth, what: str, arrays: Mapping, findings: Findings, results: dict, arguments) -> None:
    actions = sum(map(len, truth.written.values()))
    print(
        f"{info.name}, {arguments.split}: {len(truth.segments)} videos, {actions} actions, {len(info.classes)} classes"
    )
    for kind, cases in sorted(findings.handled.items()):
        print(f"  annotations, both splits: {kind}: {len(cases)}")
    missing, unknown = truth.segments.keys() - arrays.keys(), arrays.keys() - truth.segments.keys()
    if missing:
        print(f"  note: {len(missing)} videos without predictions, e.g. {min(missing)}{_of_missing(results)}")
    if unknown:
        print(f"  note: {len(unknown)} videos predicted that are not of this split, ignored, e.g. {min(unknown)}")
    print(f"{what} of {arguments.predictions}, percent:")
    values = {key: value for key, value in results.items() if key != "per_class"}
    width = max(map(len, values))
    for key, value in values.items():
        print(f"  {key:<{width}}  {'–' if value is None else f'{value:.2f}':>6}")
    if None in values.values():
        print("  –: does not exist, because a class has no ground truth in these videos (an official mean is then NaN)")
    if arguments.output:
        write_json(Path(arguments.output), results)
        print(f"With every class in {arguments.output}")


def _of_missing(results: Mapping) -> str:
    """What the protocols make of them; event mAP, like its script, knows predicted videos only."""
    quirky = any(key.startswith("event_map/") for key in results)
    return (
        "; event_map, like the official script, leaves their actions out: write empty files for them" if quirky else ""
    )


if __name__ == "__main__":
    flags.DEFINE_enum("dataset", None, [name for name in DATASETS if name != "synthetic"], "Which.", required=True)
    flags.DEFINE_multi_string("annotations", None, "Public annotation file; repeat it for several.", required=True)
    flags.DEFINE_string(
        "predictions", None, ".npz, .json, .txt, or a folder: see kd_jax/evaluation/formats.", required=True
    )
    flags.DEFINE_string("classes", None, "Class names, one a line; line number = class id.")
    flags.DEFINE_enum("split", "test", list(base.SPLITS), "Which videos.")
    flags.DEFINE_multi_enum("protocols", [], list(PROTOCOLS), "Instead of those the data set is published with.")
    flags.DEFINE_boolean("logits", False, "The scores are logits, not probabilities.")
    flags.DEFINE_enum("proposals", None, list(proposals.PROPOSALS), "Scores → detections; default: the head's own.")
    flags.DEFINE_float("threshold", None, "Of the proposals; default: the rule's own.", lower_bound=0, upper_bound=1)
    flags.DEFINE_enum(
        "convention",
        None,
        list(proposals.CONVENTIONS),
        "Where a snippet is, see kd_jax/evaluation/proposals.py; default: centre.",
    )
    flags.DEFINE_integer(
        "first_label", None, "PKU-MMD files: the number of the first class; default 1 (TSU: 0).", lower_bound=0
    )
    flags.DEFINE_enum("head", None, ["dense", "sparse"], "Instead of the data set's own.")
    flags.DEFINE_enum("unit", None, ["seconds", "frames"], "custom: of the times in the annotations.")
    flags.DEFINE_float("fps", None, "Frames per second; default: the data set's own.")
    flags.DEFINE_string("output", None, "JSON file for every value, per class too.")
    app.run(main)
