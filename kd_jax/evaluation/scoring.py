"""Scoring: logits of whole videos become {protocol/measure: value} in percent.

    scoring = Scoring(("frame_map", "event_map")).with_defaults(info.head)
    results = score_split(logits, videos, info, scoring)

This module makes the ranking scores, detections and instants that `kd_jax.evaluation.protocols` read.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kd_jax.data import base
from kd_jax.evaluation.metrics.charades import NUM_TIME_POINTS
from kd_jax.evaluation.proposals import DEFAULT_THRESHOLDS, DEFAULTS, Rule, choose
from kd_jax.evaluation.protocols import PROTOCOLS, SHIPPED, Predictions, Truth, check_complete, check_protocols, score
from kd_jax.segments import Grid

# {rule: threshold if none is chosen}. mAP ranks detections: a weak one costs little, a missing one costs recall.
RANKING_THRESHOLDS = {"classes": 0.1, "background": DEFAULT_THRESHOLDS["sparse"]}


@dataclass(frozen=True)
class Scoring:
    """How to score predictions."""

    protocols: tuple[str, ...]  # keys of PROTOCOLS
    # the rule that makes detections of scores, a key of `proposals.PROPOSALS`; '' = the head's default
    proposals: str = ""
    # None = that of the rule, as for detections that are read; `with_defaults` sets one that is better for ranking
    threshold: float | None = None
    # the position of a snippet in time, 'start' or 'centre', see `kd_jax.evaluation.proposals`
    convention: str = "centre"

    def rule(self, head: str) -> Rule:
        """Returns the function from probabilities to detections; raises ValueError as `proposals.choose` does."""
        return choose(self.proposals or None, head, threshold=self.threshold, convention=self.convention)

    def with_defaults(self, head: str) -> "Scoring":
        """Returns a copy with the head's rule, and the rule's threshold for ranking, where none is chosen."""
        proposals = self.proposals or DEFAULTS[head]
        threshold = RANKING_THRESHOLDS.get(proposals) if self.threshold is None else self.threshold
        return dataclasses.replace(self, proposals=proposals, threshold=threshold)

    def as_json(self) -> dict:
        """Returns the fields as they are read back from JSON: lists instead of tuples."""
        return {**dataclasses.asdict(self), "protocols": list(self.protocols)}

    @classmethod
    def from_json(cls, fields: Mapping) -> "Scoring":
        """Returns what `as_json` was called on."""
        return cls(**{**fields, "protocols": tuple(fields["protocols"])})

    def check(self, head: str) -> None:
        """Raises ValueError for protocols or proposals that do not exist or do not fit the head."""
        check_protocols(self.protocols)
        self.rule(head)


def probabilities(logits: np.ndarray, head: str) -> np.ndarray:
    """Applies sigmoid (dense) or softmax (sparse, with the background last) to `[T, C]` logits."""
    if head == "dense":
        return np.exp(-np.logaddexp(0, -logits))
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def ranking_scores(logits: np.ndarray, head: str) -> np.ndarray:
    """Returns `[T, C]` scores that rank snippets: logits (dense) or log-probabilities without background (sparse)."""
    if head == "dense":
        return logits
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))[:, :-1]


def make_predictions(
    tables: Mapping[str, np.ndarray], truth: Truth, head: str, scoring: Scoring, *, logits: bool
) -> Predictions:
    """Makes what the protocols of `scoring` read.

    Args:
      tables: {video: `[T, C]`, or `[T, C + 1]` with the background last if the head is sparse}.
      truth: its durations place the snippets in time.
      scoring: the protocols, and how scores become detections.
      logits: True if the tables hold logits, False if they hold probabilities.

    Raises ValueError for a video without a table, or an unknown protocol.
    """
    check_protocols(scoring.protocols)
    check_complete(tables, truth)
    needs = {PROTOCOLS[name].needs for name in scoring.protocols}
    columns = slice(None) if head == "dense" else slice(-1)
    rank = functools.partial(ranking_scores, head=head) if logits else lambda table: table[:, columns]
    scores = {video: rank(tables[video]) for video in truth.segments}
    found, instants = None, None
    if "detections" in needs:
        rule = scoring.rule(head)
        found = {}
        for video, duration in truth.durations.items():
            table = probabilities(tables[video], head) if logits else tables[video]
            found[video] = rule(table, truth.grid(video), duration=duration)
    if "instants" in needs:
        instants = {
            video: truth.grid(video).resample(table, truth.durations[video], NUM_TIME_POINTS)
            for video, table in scores.items()
        }
    return Predictions(scores, found, instants)


def make_truth(videos: Sequence[base.Video], info: base.Info) -> Truth:
    """Returns the ground truth of these videos in seconds; a duration may be infinite if no protocol needs it."""
    scale = np.array([1.0, info.seconds(1.0), info.seconds(1.0)])
    return Truth(
        segments={video.id: video.segments * scale for video in videos},
        written={video.id: video.written * scale for video in videos},
        durations={video.id: info.seconds(video.duration) for video in videos},
        num_frames={video.id: info.num_frames(video) for video in videos if video.duration < math.inf},
        num_classes=len(info.classes),
        ambiguous={video.id: video.ambiguous * scale[1:] for video in videos},
        units_per_second=info.fps if info.unit == "frames" else 1.0,
        grids={video.id: in_seconds(video, info) for video in videos},
    )


def in_seconds(video: base.Video, info: base.Info) -> Grid:
    """Returns the times of the snippets of a video in seconds."""
    return Grid(info.seconds(video.grid.start), info.seconds(video.grid.length), video.grid.label_at)


def score_split(
    logits: Mapping[str, np.ndarray], videos: Sequence[base.Video], info: base.Info, scoring: Scoring
) -> dict:
    """Scores the logits of one split.

    Args:
      logits: {video id: `[T, C]`, or `[T, C + 1]` with the background last if the head is sparse}.
      videos: the ground truth; each needs logits.
      info: classes, head and frame rate.
      scoring: the protocols, and how scores become detections.

    Returns {'protocol/measure': percent or None, 'per_class': {protocol: {class: AP in percent or None}}}. None is a
    value that does not exist. Raises ValueError for a video without logits, or an unknown protocol.
    """
    truth = make_truth(videos, info)
    predictions = make_predictions(logits, truth, info.head, scoring, logits=True)
    return as_results(*score(predictions, truth, scoring.protocols), info.classes)


def try_own_protocols(
    videos: Sequence[base.Video], num_snippets: Mapping[str, int], info: base.Info, scoring: Scoring
) -> None:
    """Scores the labels themselves with the protocols that a config file has added; `num_snippets` has T of each video.

    Raises ValueError, which names the protocol, if it fails, or has no value for one of its columns.
    """
    num_classes = len(info.classes)
    for name in scoring.protocols:
        if PROTOCOLS[name] is SHIPPED.get(name):
            continue
        tables = {v.id: v.grid.labels(v.segments, num_snippets[v.id], num_classes) for v in videos}
        logits = {video: np.where(table, 10.0, -10.0) for video, table in tables.items()}
        if info.head == "sparse":
            logits = {video: np.pad(table, [(0, 0), (0, 1)]) for video, table in logits.items()}
        values = score_split(logits, videos, info, dataclasses.replace(scoring, protocols=(name,)))
        for measure in PROTOCOLS[name].columns:
            if values.get(f"{name}/{measure}") is None:
                known = {key.partition("/")[2]: value for key, value in values.items() if "/" in key}
                found = ", ".join(f"{key} {'NaN' if value is None else value}" for key, value in known.items())
                lacking = f"the protocol {name} returned {found or 'nothing'} for scores equal to the labels"
                raise ValueError(f"{lacking}; it must return a number for its column {measure!r}")


def as_results(values: Mapping[str, float], per_class: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict:
    """Converts what `protocols.score` returns to plain JSON: None for NaN, classes by name."""

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    named = {
        key: {name: plain(value) for name, value in zip(classes, row, strict=True)} for key, row in per_class.items()
    }
    return {**{key: plain(value) for key, value in values.items()}, "per_class": named}
