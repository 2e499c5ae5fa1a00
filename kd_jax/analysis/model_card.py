"""The model card of an exported detector: README.md in the layout of a Hugging Face repository.

card = make_card(detector, Facts(results, row, scores, checks=("…",), license="cc-by-4.0"))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from kd_jax import __version__
from kd_jax.evaluation.intervals import describe_gain, over_seeds
from kd_jax.inference.trained_detector import TrainedDetector

_MEASURES = (
    "frame mAP: average precision of the snippets, mean over the classes with actions in these videos;",
    "all classes: over every class; up-sampled: at the frame rate of the ground truth.",
)


@dataclass(frozen=True)
class Facts:
    """What is known about a detector beyond its own files."""

    results: Mapping | None = None  # results.json of its experiment
    row: Mapping | None = None  # its row of the table
    threshold: Mapping | None = None  # that of its results.json
    scores: Mapping[str, str] = field(default_factory=dict)  # {title: value on the test videos, with its interval}
    interval: str = ""  # what their intervals are; "" without any
    checks: Sequence[str] = ()  # sentences about the verification
    license: str = ""  # of the weights, an identifier of SPDX


def make_card(detector: TrainedDetector, facts: Facts) -> str:
    """Returns the model card of a detector as Markdown, with the metadata that a hub reads at its top."""
    reads = " and ".join(f"{modality} features `[T, {size}]`" for modality, size in detector.inputs.items())
    background = ", and of a background in the last column" if detector.head == "sparse" else ""
    lines = [
        *("---", "library_name: kd_jax", f"license: {facts.license or 'other'}"),
        *("tags: [temporal-action-detection, knowledge-distillation, jax]", "---", ""),
        *(f"# {detector.title}", ""),
        f"Temporal action detection: {reads} of a video become probabilities of {len(detector.classes)} classes",
        f"for each snippet{background}. Snippets are {detector.seconds_per_snippet:g} s apart.",
        f"Exported by kd_jax {__version__}.",
        *_usage(detector),
        *("", "## Data", "", *_data(detector, facts.results)),
        *("", "## Training", "", *_training(detector, facts.row)),
        *("", "## Results", "", *_results(facts)),
        *("", "## Verification", "", *(f"- {sentence}" for sentence in facts.checks)),
        *("", "## Licence", ""),
        f"- Weights: {facts.license or 'not stated; fill in, and the field license at the top of this file.'}",
        "- Data that the weights were trained on: fill in; its terms may limit the use of the weights.",
        "- kd_jax: Apache-2.0. `flatbuffers.zip` is the package flatbuffers: Apache-2.0.",
    ]
    return "\n".join(lines) + "\n"


def _usage(detector: TrainedDetector) -> list[str]:
    several = "{" + ", ".join(f'"{modality}": {modality}_features' for modality in detector.inputs) + "}"
    features = "features" if len(detector.inputs) == 1 else several
    shape = f"[T, {next(iter(detector.inputs.values()))}]" if len(detector.inputs) == 1 else "each [T, D]"
    return [
        *("", "## How to call it", "", "With only jax (0.9 or newer), in this folder:", ""),
        *("```py", "import detector", ""),
        *(f"probabilities = detector.predict({features})  # {shape} -> [T, C]", "```", ""),
        *("A batch `[B, T, D]` also needs a mask, `[B, T]` bool, which is False in the padding.", ""),
        *("With [kd_jax](https://github.com/kd-jax/kd_jax):", "", "```py", "import kd_jax", ""),
        'run = kd_jax.load("FOLDER")  # this folder, or huggingface_hub.snapshot_download("OWNER/NAME")',
        *(f"for found in run.detect({features}):", "    print(found.class_, found.start, found.end, found.score)"),
        *("```", "", f"Classes, in the order of the columns: {', '.join(detector.classes)}."),
    ]


def _data(detector: TrainedDetector, results: Mapping | None) -> list[str]:
    lines = []
    if results:
        validation = results.get("validation", {})
        lines += [f"- Data set: {results['dataset']}, with {results['test_videos']} test videos."]
        if validation.get("videos"):
            rule = validation.get("rule", "chosen by an older version")
            lines += [f"- Validation, which chose the epoch: {validation['videos']} videos, {rule}."]
    else:
        lines += ["- Data set: fill in."]
    for run in {run.config["modality"]: run for run in detector.members}.values():
        made = run.config.get("extraction") or {}
        encoder = ", ".join(f"{name} {value}" for name, value in made.items() if isinstance(value, (str, int, float)))
        what = f"extracted by kd_jax: {encoder}" if made else "how they were made is not recorded; fill in"
        lines += [f"- {run.config['modality']} features, D = {run.config['input_size']}: {what}."]
    return lines


def _training(detector: TrainedDetector, row: Mapping | None) -> list[str]:
    lines = []
    for run in detector.members:
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(run.variables["params"]))
        name = f"{run.config['run']}, seed {run.config.get('seed', 0)}"
        what = f"{run.config['modality']} → {run.config['filter']}, hidden {run.model.hidden}, {count:,} parameters"
        teachers = ", ".join(run.config.get("teachers") or ()) or "none"
        task = {"task": run.config["task_weight"]} if "task_weight" in run.config else {}
        weighed = {**task, **(run.config.get("weights") or {})}
        weights = ", ".join(f"{term} {weight:.3g}" for term, weight in weighed.items())
        lines += [f"- {name}: {what}; teachers: {teachers}{f' ({weights})' if weights else ''}."]
    if len(detector.members) > 1:
        lines += ["- The logits of these runs are averaged."]
    return lines


def _results(facts: Facts) -> list[str]:
    lines = []
    if facts.scores:
        lines += ["On the test videos, in percent:", "", "| measure | this detector |", "| --- | ---: |"]
        lines += [f"| {title} | {value} |" for title, value in facts.scores.items()]
        lines += ["", f"± is {facts.interval}."] if facts.interval else []
        lines += ["", *_MEASURES]
    if facts.row and facts.results and len(facts.results["seeds"]) > 1:
        lines += ["", f"Mean of {len(facts.results['seeds'])} seeds of {facts.row['run']}, 95 % interval:", ""]
        for title, values in facts.row["scores"].items():
            if None not in values:
                mean, half = map(float, over_seeds(np.array(values)))
                lines += [f"- {title}: {mean:.2f} [{max(mean - half, 0):.2f}, {min(mean + half, 100):.2f}]"]
    if facts.row and facts.results and facts.row.get("gain"):
        gain = f"{describe_gain(facts.row['gain'])} points of {facts.results['gain_of']}"
        lines += ["", f"Gain over {facts.row['baseline']}, with the same seed: {gain}."]
    if facts.threshold:
        best, default = (f"{facts.threshold[name]:.1f} %" for name in ("f1", "default_f1"))
        where = f"threshold={facts.threshold['threshold']:g} has the best F1 of snippets in validation, {best}"
        lines += ["", f"For `run.detect`, {where}; the default has {default}."]
    return lines or ["Not known: the results of the experiment are not there; fill in."]
