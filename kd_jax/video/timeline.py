"""A picture of what was found in a video: frames along the top, a row of bars for each class below.

draw(Path('kitchen.png'), frames, duration=61.5, detections=table, classes=names)
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax.files import write_atomically

FLATTEST = 8  # how many times as wide as high the frames are, together, at least
MOST_CLASSES = 20  # rows that a picture has; those with the best detections


def draw(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    duration: float,
    detections: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Writes the picture, whole or not at all.

    Args:
      path: of the .png file.
      frames: `[height, width, 3]` uint8 each, at even distances; none where flow was read.
      duration: of the video, seconds.
      detections: `[N, 4]`: class, start, end in seconds, score.
      classes: all names.
    """
    try:
        from matplotlib.figure import Figure  # here, because only pictures need it
    except ImportError:
        raise ValueError("a picture needs matplotlib; pip install -e .[video]") from None
    best = {int(c): detections[detections[:, 0] == c, 3].max() for c in np.unique(detections[:, 0])}
    shown = sorted(sorted(best, key=best.get, reverse=True)[:MOST_CLASSES])
    figure = Figure(figsize=(12, 2.2 + 0.3 * max(len(shown), 1)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 0.3 * max(len(shown), 1) + 0.2])
    if len(frames):
        strip = _strip(frames)
        above.imshow(strip, extent=(0, duration, 0, 1), aspect="auto")
        above.set_box_aspect(strip.shape[0] / strip.shape[1])
        above.set_anchor("S")
    above.set_xlim(0, duration)
    above.set_ylim(0, 1)
    above.axis("off")
    for row, label in enumerate(shown):
        of_class = detections[detections[:, 0] == label]
        color = f"C{label % 10}"
        for _, start, end, score in of_class:
            below.barh(row, end - start, left=start, height=0.7, color=color, alpha=float(np.clip(score, 0.15, 1)))
    below.set_yticks(range(len(shown)), [classes[label] for label in shown])
    below.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    below.set_xlabel("seconds; a bar is the darker, the higher its score")
    below.grid(axis="x", alpha=0.3)
    left_out = len(best) - len(shown)
    if left_out:
        figure.suptitle(f"{left_out} more classes were found, less surely")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    write_atomically(path, stream.getvalue())


def _strip(frames: Sequence[np.ndarray]) -> np.ndarray:
    """The frames side by side, white around each where they are few: at least `FLATTEST` times as wide as high."""
    height, width = frames[0].shape[:2]
    slot = max(width + width // 25, -(-FLATTEST * height // len(frames)))
    strip = np.full((height, slot * len(frames), 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        left = i * slot + (slot - width) // 2
        strip[:, left : left + width] = frame
    return strip
