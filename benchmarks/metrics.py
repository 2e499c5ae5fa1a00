"""Time and memory of the metrics at the sizes of published data sets, on random inputs.

    python -m benchmarks.metrics [--snippets=3000000] [--output=FILE.json]

Frame mAP on Charades-like scores (157 classes, float32), event mAP on 50,000 proposals, detection mAP on 200,000.
"""

import numpy as np
from absl import flags

from benchmarks import measuring
from kd_jax.evaluation.metrics.detection_map import detection_map
from kd_jax.evaluation.metrics.event_map import event_map, event_map_strict
from kd_jax.evaluation.metrics.frame_map import frame_map

CLASSES, SNIPPETS_PER_VIDEO = 157, 3000


def frames(snippets: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Makes scores and labels of videos of 3,000 snippets, about 3 % positive."""
    rng = np.random.default_rng(0)
    scores, labels = [], []
    for first in range(0, snippets, SNIPPETS_PER_VIDEO):
        shape = (min(SNIPPETS_PER_VIDEO, snippets - first), CLASSES)
        labels.append((rng.random(shape, np.float32) < 0.03).view(np.uint8))
        scores.append(rng.random(shape, np.float32) + 0.5 * labels[-1].astype(np.float32))
    return scores, labels


def segments(num_detections: int, videos: int, classes: int, seconds: float) -> tuple[dict, dict]:
    """Makes {video: detections} and {video: ground truth}: half of the detections are jittered ground truths."""
    rng = np.random.default_rng(1)
    found, truth, each = {}, {}, num_detections // videos

    def draw(count):
        start = rng.uniform(0, seconds, count)
        return np.stack([rng.integers(0, classes, count), start, start + rng.gamma(2, 5, count)], axis=1)

    for video in range(videos):
        rows = draw(each // 8)
        hits = rows[rng.integers(0, len(rows), each // 2)] + rng.normal(0, 0.5, (each // 2, 3)) * [0, 1, 1]
        both = np.concatenate([hits, draw(each - len(hits))])
        both[:, 2] = np.maximum(both[:, 2], both[:, 1] + 0.1)
        found[f"v{video}"] = np.column_stack([both, rng.random(len(both))])
        truth[f"v{video}"] = rows
    return found, truth


def main(arguments, shape):
    snippets, count = arguments.snippets, arguments.detections
    events, crowded = segments(count, 132, 51, 200.0), segments(count, 1, 1, 2e4)
    many = segments(4 * count, 213, 20, 220.0)
    calls = {
        f"event_map, {count:,} in 132 videos": lambda: event_map(*events, num_classes=51),
        f"event_map_strict, {count:,} in 132 videos": lambda: event_map_strict(*events, num_classes=51),
        f"event_map, {count:,} in one video and class": lambda: event_map(*crowded, num_classes=1),
        f"detection_map, {4 * count:,} in 213 videos": lambda: detection_map(*many, num_classes=20),
    }
    rows = [{"protocol": name, "seconds": measuring.seconds(call)} for name, call in calls.items()]
    scores, labels = frames(snippets)
    time, memory = measuring.peak_memory(lambda: measuring.seconds(lambda: frame_map(scores, labels)))
    row = {"protocol": f"frame_map, {snippets:,} × {CLASSES} float32", "seconds": time, "used GB": memory["peak GB"]}
    rows.append({**row, "scores GB": sum(array.nbytes for array in scores) / 1e9})
    return "metrics", rows, {}


if __name__ == "__main__":
    flags.DEFINE_integer("snippets", 3_000_000, "Snippets for frame mAP.", 1000)
    flags.DEFINE_integer("detections", 50_000, "Detections for event mAP; detection mAP gets 4 times as many.", 3000)
    measuring.run(main)
