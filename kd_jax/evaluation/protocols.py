"""PROTOCOLS: the evaluation protocols of published results, by name.

    predictions = Predictions(scores={'video7': table}, detections={'video7': found})
    values, per_class = score(predictions, truth, ["frame_map", "event_map"])     # percent

Each entry converts predictions to the form that its function in `kd_jax.evaluation.metrics` reads.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kd_jax.evaluation.metrics.charades import charades_localize
from kd_jax.evaluation.metrics.detection_map import (
    ACTIVITYNET_THRESHOLDS,
    THUMOS14_KIT_THRESHOLDS,
    THUMOS14_THRESHOLDS,
    detection_map,
    detection_map_by_length,
)
from kd_jax.evaluation.metrics.event_map import EVENT_THRESHOLDS, event_map, event_map_strict
from kd_jax.evaluation.metrics.frame_map import frame_map
from kd_jax.evaluation.metrics.frame_map_breakdown import frame_map_by_concurrency, frame_map_by_length
from kd_jax.evaluation.metrics.length_bins import ACTIVITYNET_LENGTH_BINS, THUMOS14_LENGTH_BINS
from kd_jax.evaluation.metrics.segment_rows import Tables
from kd_jax.segments import Grid, labels_from_segments

# Up-sampled scores take memory for every frame. A duration or frame rate that gives more of them must be wrong.
FRAMES_PER_SNIPPET, FEW_FRAMES = 1000, 2**22
Scored = tuple[dict[str, float], dict[str, np.ndarray]]  # {measure: percent}, {measure: `[C]` percent per class}


@dataclass(frozen=True)
class Predictions:
    """The predictions of a method; each protocol reads one attribute, and None means that the method has none."""

    # {video: `[T, C]`}, without background; they rank the snippets of a class, on any monotone scale
    scores: Tables | None = None
    detections: Tables | None = None  # {video: `[N, 4]` rows (class, start s, end s, score)}; their order decides ties
    instants: Tables | None = None  # {video: `[25, C]`}, scores at the 25 instants of Charades


@dataclass(frozen=True)
class Truth:
    """The ground truth of one split."""

    segments: Tables  # {video: `[N, 3]` rows (class, start s, end s)}, cleaned; these are the videos that are scored
    written: Tables  # the rows as the annotation file has them, with duplicates, as official scripts read them
    durations: Mapping[str, float]  # {video: seconds}
    num_frames: Mapping[str, int]  # {video: frames}, the resolution of up-sampled scores
    num_classes: int  # C
    # {video: `[M, 2]` rows (start s, end s)} in which a detection is neither right nor wrong
    ambiguous: Tables = field(default_factory=dict)
    units_per_second: float = 1.0  # frames per second of an annotation file in frames; 1 for one in seconds
    grids: Mapping[str, Grid] = field(default_factory=dict)  # {video: the times of its snippets in seconds}

    def grid(self, video: str) -> Grid:
        """Returns the times of the snippets of a video; they divide its duration evenly unless `grids` has them."""
        return self.grids.get(video) or Grid(0.0, self.durations[video])

    def labels(self, num_snippets: Mapping[str, int]) -> list[np.ndarray]:
        """Returns the labels `[T, C]` of the snippets of each video, with T from `num_snippets`."""
        return [
            self.grid(video).labels(segments, num_snippets[video], self.num_classes)
            for video, segments in self.segments.items()
        ]

    def relative(self, tables: Tables) -> tuple[list[np.ndarray], list[float]]:
        """Returns the segments of each video relative to its first snippet of `tables`, and the length of its grid."""
        grids = {video: self.grid(video) for video in self.segments}
        rows = [grids[video].shift(table, len(tables[video])) for video, table in self.segments.items()]
        return rows, [grid.length for grid in grids.values()]

    def frame_labels(self) -> list[np.ndarray]:
        """Returns the labels `[F, C]` of the frames of each video."""
        return [
            labels_from_segments(segments, self.durations[video], self.num_frames[video], self.num_classes)
            for video, segments in self.segments.items()
        ]


@dataclass(frozen=True)
class Protocol:
    """One way of scoring."""

    needs: str  # the attribute of `Predictions` that it reads
    # (that attribute, truth) → values and values per class; with the keyword `thresholds` if the protocol has any
    score: Callable[..., Scored]
    columns: Mapping[str, str]  # {measure: title} of the columns in a table of results; results.json has all measures
    thresholds: tuple[float, ...] = ()  # tIoUs of the benchmark, in (0, 1]; () if the protocol matches no segments


def _frame_map(scores: Tables, truth: Truth) -> Scored:
    labels = truth.labels({video: len(scores[video]) for video in truth.segments})
    return _frame_map_means(frame_map([scores[video] for video in truth.segments], labels))


def check_frames(num_frames: Mapping[str, int], num_snippets: Mapping[str, int]) -> None:
    """Raises ValueError if up-sampling would repeat the scores of each snippet too often."""
    frames, snippets = sum(num_frames.values()), sum(num_snippets[video] for video in num_frames)
    if frames > max(FEW_FRAMES, FRAMES_PER_SNIPPET * snippets):
        video = max(num_frames, key=lambda video: num_frames[video] / num_snippets[video])
        case = f"{video!r} has {num_frames[video]} frames and {num_snippets[video]} snippets"
        what = f"{frames} frames, duration times frame rate, of {snippets} snippets cannot be scored ({case})"
        raise ValueError(f"{what}; correct duration or frame rate, or leave out frame_map_upsampled")


def _frame_map_upsampled(scores: Tables, truth: Truth) -> Scored:
    check_frames(truth.num_frames, {video: len(scores[video]) for video in truth.segments})
    upsampled = [
        truth.grid(video).resample(scores[video], truth.durations[video], truth.num_frames[video])
        for video in truth.segments
    ]
    return _frame_map_means(frame_map(upsampled, truth.frame_labels()))


def _frame_map_means(result: Mapping) -> Scored:
    means = {mean: result[f"mean_over_{mean}"] for mean in ("present_classes", "all_classes")}
    return means, {"": result["per_class"]}


def _frame_map_by_length(scores: Tables, truth: Truth) -> Scored:
    tables = [scores[video] for video in truth.segments]
    return _by_bin(frame_map_by_length(tables, *truth.relative(scores)), "mean_over_present_classes")


def _frame_map_by_concurrency(scores: Tables, truth: Truth) -> Scored:
    labels = truth.labels({video: len(scores[video]) for video in truth.segments})
    tables = [scores[video] for video in truth.segments]
    return _by_bin(frame_map_by_concurrency(tables, labels), "mean_over_present_classes")


def _by_bin(results: Mapping[str, Mapping], measure: str) -> Scored:
    return {name: result[measure] for name, result in results.items()}, {}


def _charades_localize(instants: Tables, truth: Truth) -> Scored:
    result = charades_localize(instants, truth.written, truth.durations, num_classes=truth.num_classes)
    per_class = result.pop("per_class")
    return result, {"": per_class}


def _at(thresholds: Sequence[float], values: Iterable, name: str) -> dict:
    return {f"{name}@{threshold:.10g}": value for threshold, value in zip(thresholds, values, strict=True)}


def _in_file_units(segments: Tables, per_second: float) -> Tables:
    """Converts seconds to frames and removes rounding errors, which could move an overlap below its threshold."""
    if per_second == 1:
        return segments
    tables = {video: np.array(rows, np.float64) for video, rows in segments.items()}
    for table in tables.values():
        table[:, 1:3] = np.round(table[:, 1:3] * per_second, 6)
    return tables


def _event(function: Callable[..., dict], rows: str) -> Callable[..., Scored]:
    def score(detections: Tables, truth: Truth, *, thresholds: Sequence[float]) -> Scored:
        found = _in_file_units(detections, truth.units_per_second)
        actions = _in_file_units(getattr(truth, rows), truth.units_per_second)
        result = function(found, actions, num_classes=truth.num_classes, thresholds=thresholds)
        limits = result["thresholds"]
        means = [_at(limits, result[mean], mean) for mean in ("mAP_action", "mAP_video")]
        return means[0] | means[1], _at(limits, result["per_class"], "")

    return score


def _detection(**options) -> Callable[..., Scored]:
    def score(detections: Tables, truth: Truth, *, thresholds: Sequence[float]) -> Scored:
        choices = options | {"thresholds": thresholds}
        choices |= {"ignored": truth.ambiguous} if options.get("matching") == "by_ground_truth" else {}
        result = detection_map(detections, truth.written, num_classes=truth.num_classes, **choices)
        values = _at(result["thresholds"], result["mAP"], "mAP") | {"average_mAP": result["average_mAP"]}
        return values, _at(result["thresholds"], result["per_class"], "")

    return score


def _detection_by_length(bins: Mapping[str, tuple[float, float]]) -> Callable[..., Scored]:
    def score(detections: Tables, truth: Truth, *, thresholds: Sequence[float]) -> Scored:
        results = detection_map_by_length(
            detections, truth.written, num_classes=truth.num_classes, bins=bins, thresholds=thresholds
        )
        return _by_bin(results, "average_mAP")

    return score


_THUMOS14_COLUMNS = {"mAP@0.3": "mAP@0.3", "mAP@0.5": "@0.5", "mAP@0.7": "@0.7", "average_mAP": "average"}
_THUMOS14_KIT = {"average_precision": "non_interpolated", "matching": "by_ground_truth", "cleaning": "none"}
_EVENT_COLUMNS = {f"mAP_action@{threshold}": f"event@{threshold}" for threshold in (0.1, 0.3, 0.5)}
PROTOCOLS: dict[str, Protocol] = {
    "frame_map": Protocol("scores", _frame_map, {"present_classes": "frame mAP", "all_classes": "all classes"}),
    "frame_map_upsampled": Protocol("scores", _frame_map_upsampled, {"present_classes": "up-sampled"}),
    "frame_map_by_length": Protocol("scores", _frame_map_by_length, {}),
    "frame_map_by_concurrency": Protocol("scores", _frame_map_by_concurrency, {}),
    "charades_localize": Protocol(
        "instants", _charades_localize, {"official_mean": "localize", "mean_over_present_classes": "present"}
    ),
    "event_map": Protocol("detections", _event(event_map, "written"), _EVENT_COLUMNS, EVENT_THRESHOLDS),
    "event_map_strict": Protocol(
        "detections", _event(event_map_strict, "segments"), {"mAP_action@0.5": "strict@0.5"}, EVENT_THRESHOLDS
    ),
    # THUMOS14 as ActionFormer and OpenTAD score it, and as the kit of the challenge does.
    "detection_map_thumos14": Protocol("detections", _detection(), _THUMOS14_COLUMNS, THUMOS14_THRESHOLDS),
    "detection_map_thumos14_kit": Protocol(
        "detections", _detection(**_THUMOS14_KIT), {"average_mAP": "kit"}, THUMOS14_KIT_THRESHOLDS
    ),
    "detection_map_activitynet": Protocol(
        "detections",
        _detection(cleaning="activitynet"),
        {"mAP@0.5": "mAP@0.5", "mAP@0.75": "@0.75", "average_mAP": "average"},
        ACTIVITYNET_THRESHOLDS,
    ),
    "detection_map_by_length": Protocol(
        "detections", _detection_by_length(THUMOS14_LENGTH_BINS), {}, THUMOS14_THRESHOLDS
    ),
    "detection_map_by_length_activitynet": Protocol(
        "detections", _detection_by_length(ACTIVITYNET_LENGTH_BINS), {}, ACTIVITYNET_THRESHOLDS
    ),
}
SHIPPED = dict(PROTOCOLS)  # config files may add others


def check_protocols(names: Sequence[str]) -> None:
    """Raises ValueError that lists the known names for an unknown protocol, or if there are none."""
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        what = f"the protocol {unknown[0]!r} is unknown" if unknown else "there is no protocol to score with"
        raise ValueError(f"{what}; known protocols: {', '.join(PROTOCOLS)}")


def check_complete(tables: Tables, truth: Truth) -> None:
    """Raises ValueError unless every video of the ground truth has a table."""
    if missing := [video for video in truth.segments if video not in tables]:
        raise ValueError(f"no prediction for {len(missing)} of {len(truth.segments)} videos, first {missing[0]!r}")


def score(
    predictions: Predictions, truth: Truth, names: Sequence[str], *, thresholds: Sequence[float] = ()
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores predictions under several protocols.

    Args:
      predictions: what these protocols need; `scores` must have every video of the ground truth.
      names: keys of PROTOCOLS.
      thresholds: tIoUs in (0, 1], instead of those of each protocol that has any; () keeps them.

    Returns {'protocol/measure': percent} and {'protocol' or 'protocol@threshold': `[C]` percent}. A value that does not
    exist is NaN, for instance the AP of a class without ground truth. Raises ValueError for an unknown protocol,
    predictions that it cannot read, or a video without scores.
    """
    check_protocols(names)
    values: dict[str, float] = {}
    per_class: dict[str, np.ndarray] = {}
    for name in names:
        protocol = PROTOCOLS[name]
        tables: Tables | None = getattr(predictions, protocol.needs)
        if tables is None:
            raise ValueError(f"the protocol {name} needs {protocol.needs}, and these predictions hold none")
        if protocol.needs == "scores":
            check_complete(tables, truth)
        limits = {"thresholds": thresholds or protocol.thresholds} if protocol.thresholds else {}
        measures, classes = _check_scored(name, protocol.score(tables, truth, **limits), truth.num_classes)
        values |= {f"{name}/{measure}": float(value) for measure, value in measures.items()}
        per_class |= {f"{name}{measure}": value for measure, value in classes.items()}
    return values, per_class


def _check_scored(name: str, found: Any, num_classes: int) -> Scored:
    """Returns what a protocol returned; ValueError unless that is `Scored`."""
    wanted = f"({{measure: percent}}, {{'' or '@0.5', …: [{num_classes}] percent}})"
    is_pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Mapping) for part in found)
    if not is_pair:
        raise ValueError(f"the protocol {name} returned a {type(found).__name__}; it must return two dicts, {wanted}")
    for measure, value in found[0].items():
        if np.shape(value) or not np.issubdtype(np.asarray(value).dtype, np.number):
            raise ValueError(f"the protocol {name} returned {value!r} as {measure}; it must be a number in {wanted}")
    for key, row in found[1].items():
        if np.shape(row) != (num_classes,):
            shape = list(np.shape(row))
            raise ValueError(f"the protocol {name} returned {shape} values per class, {key!r}; it must return {wanted}")
    return found
