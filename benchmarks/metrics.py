"""Time and memory of the protocols at the sizes that researchers score, on inputs made from a seed.

    python -m benchmarks.metrics [--snippets=3000000] [--output=FILE.json]

Frame mAP on Charades-like scores (157 classes, float32), event mAP on 50,000 proposals, detection mAP on 200,000.
"""

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags

from kd_jax.metrics.detection_map import detection_map
from kd_jax.metrics.event_map import event_map, event_map_strict
from kd_jax.metrics.frame_map import frame_map

_SNIPPETS = flags.DEFINE_integer("snippets", 3_000_000, "Rows of the frame mAP's scores.", lower_bound=1000)
_OUTPUT = flags.DEFINE_string("output", None, "Also write the figures to this JSON file.")
CLASSES, ROWS_A_VIDEO = 157, 3000


def frames() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores and labels of videos of 3,000 snippets, about 3 % positive."""
    rng = np.random.default_rng(0)
    scores, labels = [], []
    for first in range(0, _SNIPPETS.value, ROWS_A_VIDEO):
        shape = (min(ROWS_A_VIDEO, _SNIPPETS.value - first), CLASSES)
        labels.append((rng.random(shape, np.float32) < 0.03).view(np.uint8))
        scores.append(rng.random(shape, np.float32) + 0.5 * labels[-1].astype(np.float32))
    return scores, labels


def segments(num_detections: int, videos: int, classes: int, seconds: float) -> tuple[dict, dict]:
    """{video: detections}, {video: ground truth}: half of the detections are jittered ground truths."""
    rng = np.random.default_rng(1)
    found, truth = {}, {}
    each = num_detections // videos
    for video in range(videos):
        start = rng.uniform(0, seconds, each // 8)
        rows = np.stack([rng.integers(0, classes, len(start)), start, start + rng.gamma(2, 5, len(start))], axis=1)
        hits = rows[rng.integers(0, len(rows), each // 2)] + rng.normal(0, 0.5, (each // 2, 3)) * [0, 1, 1]
        start = rng.uniform(0, seconds, each - len(hits))
        misses = np.stack([rng.integers(0, classes, len(start)), start, start + rng.gamma(2, 5, len(start))], axis=1)
        both = np.concatenate([hits, misses])
        both[:, 2] = np.maximum(both[:, 2], both[:, 1] + 0.1)
        found[f"v{video}"] = np.column_stack([both, rng.random(len(both))])
        truth[f"v{video}"] = rows
    return found, truth


def timed(name: str, call: Callable[[], dict], report: dict) -> None:
    started = time.perf_counter()
    call()
    report[name] = {"seconds": time.perf_counter() - started}
    print(f"{name:<44}{report[name]['seconds']:>8.2f} s", flush=True)


def main(argv):
    del argv
    report: dict = {"cores": os.cpu_count()}
    events = segments(50_000, 132, 51, 200.0)
    crowded = segments(50_000, 1, 1, 2e4)
    timed("event_map, 50,000 in 132 videos", lambda: event_map(*events, num_classes=51), report)
    timed("event_map_strict, 50,000 in 132 videos", lambda: event_map_strict(*events, num_classes=51), report)
    timed("event_map, 50,000 in one video and class", lambda: event_map(*crowded, num_classes=1), report)
    thumos = segments(200_000, 213, 20, 220.0)
    timed("detection_map, 200,000 in 213 videos", lambda: detection_map(*thumos, num_classes=20), report)
    scores, labels = frames()
    size = sum(array.nbytes for array in scores)
    name = f"frame_map, {_SNIPPETS.value:,} × {CLASSES} float32"
    timed(name, lambda: frame_map(scores, labels), report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report[name] |= {"peak_bytes": peak, "score_bytes": size}
    print(f"peak memory {peak / 1e9:.2f} GB, {peak / size:.1f} times the scores ({size / 1e9:.2f} GB)")
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
