"""Draws docs/images/detections.png from a finished demo: what three detectors predict for one test video.

    kd-jax train --config=demo --workdir=workdir/demo
    python docs/images/make.py workdir/demo

The video is the one in which distillation gains most, so the picture shows more than the mean gain.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kd_jax.data import synthetic
from kd_jax.evaluation.metrics.frame_map import frame_map
from kd_jax.evaluation.scoring import probabilities
from kd_jax.files import read_arrays, read_json
from kd_jax.segments import labels_from_segments
from kd_jax.video.timeline import show_times

PANELS = {
    "flow_teacher": "Flow teacher",
    "vanilla_rgb": "RGB alone",
    "augmented_rgb": "RGB, distilled from flow",
}
NUM_CLASSES = 6  # rows of a panel: the pairs of similar classes with the most snippets
SECONDS = 120


def choose_video(predictions: dict, labels: dict) -> str:
    def frame_map_of(run, video):
        return frame_map([predictions[run][video]], [labels[video]])["mean_over_present_classes"]

    return max(labels, key=lambda video: frame_map_of("augmented_rgb", video) - frame_map_of("vanilla_rgb", video))


def draw(workdir: Path, output: Path) -> None:
    info, videos = synthetic.make()
    labels = {
        video.id: labels_from_segments(video.segments, video.duration, video.num_snippets, len(info.classes))
        for video in videos["test"]
    }
    predictions = {run: read_arrays(workdir / run / "predictions_test.npz") for run in PANELS}
    rows = {row["run"]: row for row in read_json(workdir / "results.json")["rows"]}
    scores = {run: rows[run]["scores"]["frame mAP"][0] for run in PANELS}
    video = choose_video(predictions, labels)
    count = round(SECONDS / info.seconds_per_snippet)
    truth = labels[video][:count].T
    pairs = truth.reshape(-1, 2, truth.shape[1]).sum((1, 2)).argsort()[::-1][: NUM_CLASSES // 2]
    shown = [2 * pair + motion for pair in sorted(pairs) for motion in (0, 1)]

    figure = Figure(figsize=(9.6, 5.2), layout="constrained", facecolor="white")
    axes = figure.subplots(len(PANELS), 1, sharex=True, sharey=True)
    end = truth.shape[1] * info.seconds_per_snippet
    for axis, (run, title) in zip(axes, PANELS.items(), strict=True):
        table = probabilities(predictions[run][video], info.head)[:count].T[shown]
        image = axis.imshow(table, aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=(0, end, len(shown), 0))
        for row, active in enumerate(truth[shown]):
            edges = np.flatnonzero(np.diff(np.pad(active.astype(int), 1))) * info.seconds_per_snippet
            for start, stop in edges.reshape(-1, 2):
                outline = Rectangle((start, row + 0.1), stop - start, 0.8, fill=False, color="#d55e00", linewidth=1.5)
                axis.add_patch(outline)
        axis.set_title(f"{title}: {scores[run]:.1f} frame mAP", loc="left", fontsize=11, fontweight="bold")
        axis.set_yticks(np.arange(len(shown)) + 0.5, [info.classes[i].replace("_", " ") for i in shown], fontsize=9)
        axis.hlines(range(2, len(shown), 2), 0, end, colors="0.8", lw=0.8)
        show_times(axis, end)
        axis.tick_params(length=0)
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderpad": 0}
    axes[0].legend([outline], ["ground truth"], handlelength=1.2, frameon=False, **place)
    figure.colorbar(image, ax=axes, label="probability", aspect=40, pad=0.01)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).with_name("detections.png"))
