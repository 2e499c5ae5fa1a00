"""Logits of whole videos → {protocol: value}, in percent.

Every protocol is a named function of kd_jax/metrics; this file only brings scores and labels to the resolution that a
protocol asks for. Frame mAP is reported under both of its named means, because published code differs in them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kd_jax.datasets import base
from kd_jax.metrics.frame_map import frame_map
from kd_jax.segments import labels_from_segments, resample_scores

SNIPPET = "frame_map"  # one score a snippet
UPSAMPLED = "frame_map_upsampled"  # snippets repeated to the ground truth's frame rate


def ranking_scores(logits: np.ndarray, head: str) -> np.ndarray:
    """`[T, C]` scores that rank snippets: logits (dense), log-probabilities without the background (sparse)."""
    if head == "dense":
        return logits
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))[:, :-1]


def evaluate(
    logits: Mapping[str, np.ndarray], videos: Sequence[base.Video], info: base.Info, *, upsampled: bool = True
) -> dict:
    """Scores one split.

    Args:
      logits: {video id: `[T, C]`, with the background logit last if the head is sparse}.
      videos: the ground truth; every one must have logits.
      info: classes, head and frame rate.
      upsampled: also score at `info.fps`.

    Returns:
      {'frame_map/present_classes', 'frame_map/all_classes', the same for 'frame_map_upsampled': percent;
      'per_class': {class name: AP in percent, None without ground truth}}.

    Raises:
      ValueError: for a video without logits.
    """
    missing = [video.id for video in videos if video.id not in logits]
    if missing:
        raise ValueError(f"no prediction for {len(missing)} of {len(videos)} videos, first {missing[0]!r}")
    num_classes = len(info.classes)
    scores = [ranking_scores(logits[video.id], info.head) for video in videos]

    def at(lengths):
        labels = [
            labels_from_segments(video.segments, video.duration, length, num_classes)
            for video, length in zip(videos, lengths, strict=True)
        ]
        return frame_map(
            [resample_scores(s, n) if len(s) != n else s for s, n in zip(scores, lengths, strict=True)], labels
        )

    snippet = at([len(s) for s in scores])
    results = _named(SNIPPET, snippet)
    if upsampled:
        results |= _named(UPSAMPLED, at([info.num_frames(video) for video in videos]))
    results["per_class"] = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(info.classes, snippet["per_class"], strict=True)
    }
    return results


def _named(protocol: str, result: Mapping) -> dict[str, float]:
    return {
        f"{protocol}/present_classes": float(result["mean_over_present_classes"]),
        f"{protocol}/all_classes": float(result["mean_over_all_classes"]),
    }
