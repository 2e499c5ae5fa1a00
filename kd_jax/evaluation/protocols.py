"""The protocols a data set is published with, by name: predictions and ground truth → named values in percent.

    predictions = Predictions(scores={'video7': table}, detections={'video7': found})
    values, per_class = PROTOCOLS["event_map"].score(predictions, truth)

Each entry brings predictions to the form that its function of `kd_jax.evaluation.metrics` reads, and says what it needs of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kd_jax.evaluation.metrics.charades import charades_localize
from kd_jax.evaluation.metrics.detection_map import (
    ACTIVITYNET_THRESHOLDS,
    THUMOS14_KIT_THRESHOLDS,
    detection_map,
    detection_map_by_length,
)
from kd_jax.evaluation.metrics.event_map import event_map, event_map_strict
from kd_jax.evaluation.metrics.frame_map import frame_map
from kd_jax.evaluation.metrics.frame_map_breakdown import frame_map_by_concurrency, frame_map_by_length
from kd_jax.evaluation.metrics.length_bins import ACTIVITYNET_LENGTH_BINS, THUMOS14_LENGTH_BINS
from kd_jax.segments import labels_from_segments, resample_scores


@dataclass(frozen=True)
class Predictions:
    """What a method says of the videos; each protocol reads one of the three.

    Attributes:
      scores: {video: `[T, C]`}, without background; they rank the snippets of a class, on any monotone scale.
      detections: {video: `[N, 4]` rows (class, start s, end s, score)}; their order decides ties.
      instants: {video: `[25, C]`}, scores at the 25 instants of Charades.
    """

    scores: Mapping[str, np.ndarray] | None = None
    detections: Mapping[str, np.ndarray] | None = None
    instants: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Truth:
    """The ground truth of one split.

    Attributes:
      segments: {video: `[N, 3]` rows (class, start s, end s)}, of every video that counts; cleaned.
      written: the same as the annotation file has them, duplicates and all: what official scripts see.
      durations: {video: seconds}.
      num_frames: {video: frames}, the resolution of up-sampled scores.
      num_classes: C.
      ambiguous: {video: `[M, 2]` rows (start s, end s)}, where a detection is neither right nor wrong.
      units_per_second: of the annotation file: its frames a second, 1 if it is in seconds.
    """

    segments: Mapping[str, np.ndarray]
    written: Mapping[str, np.ndarray]
    durations: Mapping[str, float]
    num_frames: Mapping[str, int]
    num_classes: int
    ambiguous: Mapping[str, np.ndarray] = field(default_factory=dict)
    units_per_second: float = 1.0

    def labels(self, num_snippets: Mapping[str, int]) -> list[np.ndarray]:
        """`[T, C]` of each video at the resolution asked for."""
        return [
            labels_from_segments(segments, self.durations[video], num_snippets[video], self.num_classes)
            for video, segments in self.segments.items()
        ]


@dataclass(frozen=True)
class Protocol:
    """One way of scoring.

    Attributes:
      needs: the attribute of Predictions that it reads.
      score: (predictions, truth) → ({measure: percent}, {measure: `[C]` percent per class}).
      columns: {measure: title} of what a table shows; the rest stands in results.json.
    """

    needs: str
    score: Callable[[Predictions, Truth], tuple[dict, dict]]
    columns: Mapping[str, str]


def _means(result: Mapping, suffix: str = "") -> dict:
    return {f"{mean}{suffix}": result[f"mean_over_{mean}"] for mean in ("present_classes", "all_classes")}


def _frame_map(predictions: Predictions, truth: Truth):
    scores = [predictions.scores[video] for video in truth.segments]
    result = frame_map(scores, truth.labels({v: len(predictions.scores[v]) for v in truth.segments}))
    return _means(result), {"": result["per_class"]}


def _frame_map_upsampled(predictions: Predictions, truth: Truth):
    scores = [resample_scores(predictions.scores[video], truth.num_frames[video]) for video in truth.segments]
    result = frame_map(scores, truth.labels(truth.num_frames))
    return _means(result), {"": result["per_class"]}


def _frame_map_by_length(predictions: Predictions, truth: Truth):
    scores = [predictions.scores[video] for video in truth.segments]
    durations = [truth.durations[video] for video in truth.segments]
    return _by_bin(frame_map_by_length(scores, list(truth.segments.values()), durations))


def _frame_map_by_concurrency(predictions: Predictions, truth: Truth):
    scores = [predictions.scores[video] for video in truth.segments]
    labels = truth.labels({v: len(predictions.scores[v]) for v in truth.segments})
    return _by_bin(frame_map_by_concurrency(scores, labels))


def _by_bin(results: Mapping[str, Mapping]):
    return {name: result["mean_over_present_classes"] for name, result in results.items()}, {}


def _charades_localize(predictions: Predictions, truth: Truth):
    result = charades_localize(predictions.instants, truth.written, truth.durations, num_classes=truth.num_classes)
    per_class = result.pop("per_class")
    return result, {"": per_class}


def _at(thresholds: Sequence[float], values: Sequence[float], name: str) -> dict:
    return {f"{name}@{threshold:g}": value for threshold, value in zip(thresholds, values, strict=True)}


def _in_file_units(segments: Mapping[str, np.ndarray], per_second: float) -> Mapping[str, np.ndarray]:
    """Whole frames stay whole: an overlap of exactly the threshold counts, and must not hang on a last bit."""
    if per_second == 1:
        return segments
    tables = {video: np.array(rows, np.float64) for video, rows in segments.items()}
    for table in tables.values():
        table[:, 1:3] = np.round(table[:, 1:3] * per_second, 6)
    return tables


def _event(function, rows: str):
    def score(predictions: Predictions, truth: Truth):
        found = _in_file_units(predictions.detections, truth.units_per_second)
        actions = _in_file_units(getattr(truth, rows), truth.units_per_second)
        result = function(found, actions, num_classes=truth.num_classes)
        values = {}
        for mean in ("mAP_action", "mAP_video"):
            values |= _at(result["thresholds"], result[mean], mean)
        return values, _at(result["thresholds"], result["per_class"], "")

    return score


def _detection(**options):
    def score(predictions: Predictions, truth: Truth):
        choices = options | ({"ignored": truth.ambiguous} if options.get("matching") == "by_ground_truth" else {})
        result = detection_map(predictions.detections, truth.written, num_classes=truth.num_classes, **choices)
        values = _at(result["thresholds"], result["mAP"], "mAP") | {"average_mAP": result["average_mAP"]}
        return values, _at(result["thresholds"], result["per_class"], "")

    return score


def _detection_by_length(bins: Mapping, **options):
    def score(predictions: Predictions, truth: Truth):
        results = detection_map_by_length(
            predictions.detections, truth.written, num_classes=truth.num_classes, bins=bins, **options
        )
        return {name: result["average_mAP"] for name, result in results.items()}, {}

    return score


_THUMOS14_COLUMNS = {"mAP@0.3": "mAP@0.3", "mAP@0.5": "@0.5", "mAP@0.7": "@0.7", "average_mAP": "average"}
_EVENT_COLUMNS = {f"mAP_action@{threshold}": f"event@{threshold}" for threshold in (0.1, 0.3, 0.5)}
PROTOCOLS: dict[str, Protocol] = {
    "frame_map": Protocol("scores", _frame_map, {"present_classes": "frame mAP", "all_classes": "all classes"}),
    "frame_map_upsampled": Protocol("scores", _frame_map_upsampled, {"present_classes": "up-sampled"}),
    "frame_map_by_length": Protocol("scores", _frame_map_by_length, {}),
    "frame_map_by_concurrency": Protocol("scores", _frame_map_by_concurrency, {}),
    "charades_localize": Protocol(
        "instants", _charades_localize, {"official_mean": "localize", "mean_over_present_classes": "present"}
    ),
    "event_map": Protocol("detections", _event(event_map, "written"), _EVENT_COLUMNS),
    "event_map_strict": Protocol("detections", _event(event_map_strict, "segments"), {"mAP_action@0.5": "strict@0.5"}),
    # THUMOS14 as ActionFormer and OpenTAD report it, and as the kit of the challenge does.
    "detection_map_thumos14": Protocol("detections", _detection(), _THUMOS14_COLUMNS),
    "detection_map_thumos14_kit": Protocol(
        "detections",
        _detection(
            thresholds=THUMOS14_KIT_THRESHOLDS,
            average_precision="non_interpolated",
            matching="by_ground_truth",
            cleaning="none",
        ),
        {"average_mAP": "kit"},
    ),
    "detection_map_activitynet": Protocol(
        "detections",
        _detection(thresholds=ACTIVITYNET_THRESHOLDS, cleaning="activitynet"),
        {"mAP@0.5": "mAP@0.5", "mAP@0.75": "@0.75", "average_mAP": "average"},
    ),
    "detection_map_by_length": Protocol("detections", _detection_by_length(THUMOS14_LENGTH_BINS), {}),
    "detection_map_by_length_activitynet": Protocol(
        "detections", _detection_by_length(ACTIVITYNET_LENGTH_BINS, thresholds=ACTIVITYNET_THRESHOLDS), {}
    ),
}


def check_protocols(names: Sequence[str]) -> None:
    """Raises ValueError, listing the known names, for a protocol that does not exist, or none at all."""
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        what = f"the protocol {unknown[0]!r} is unknown" if unknown else "there is no protocol to score with"
        raise ValueError(f"{what}; known protocols: {', '.join(PROTOCOLS)}")


def score(predictions: Predictions, truth: Truth, names: Sequence[str]) -> tuple[dict, dict]:
    """Scores predictions under several protocols.

    Args:
      predictions: with all that these protocols need; a video of the ground truth must be in `scores`.
      truth: the ground truth.
      names: keys of PROTOCOLS.

    Returns:
      {'protocol/measure': percent} and {'protocol' or 'protocol@threshold': `[C]` percent}; NaN where a value does not
      exist (a class without ground truth).

    Raises:
      ValueError: for an unknown protocol, predictions it cannot read, or a video without scores.
    """
    check_protocols(names)
    values, per_class = {}, {}
    for name in names:
        protocol = PROTOCOLS[name]
        given = getattr(predictions, protocol.needs)
        if given is None:
            raise ValueError(f"the protocol {name} needs {protocol.needs}, and these predictions hold none")
        if protocol.needs == "scores" and (missing := [video for video in truth.segments if video not in given]):
            raise ValueError(f"no prediction for {len(missing)} of {len(truth.segments)} videos, first {missing[0]!r}")
        measures, classes = protocol.score(predictions, truth)
        values |= {f"{name}/{measure}": float(value) for measure, value in measures.items()}
        per_class |= {f"{name}{measure}": value for measure, value in classes.items()}
    return values, per_class
