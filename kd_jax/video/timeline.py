"""Pictures of detections: frames along the top, one row of bars per class below.

draw(Path('kitchen.png'), frames, duration=61.5, detections=table, classes=names)
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax.files import write_atomically

MIN_ASPECT = 8  # least width divided by height of the row of frames
MAX_CLASSES = 20  # rows of bars; the classes with the highest scores are shown


def draw(
    path: Path, frames: Sequence[np.ndarray], *, duration: float, detections: np.ndarray, classes: Sequence[str]
) -> None:
    """Writes the picture as a .png file, atomically; raises ValueError if matplotlib is not installed.

    Args:
      frames: evenly spaced frames, `[height, width, 3]` uint8; empty if only flow was read.
      duration: seconds of the video.
      detections: `[N, 4]` rows (class, start s, end s, score).
      classes: all class names.
    """
    try:
        from matplotlib.figure import Figure  # here because only pictures need it
    except ImportError:
        raise ValueError("a picture needs matplotlib; pip install -e .[video]") from None
    best = {int(c): float(detections[detections[:, 0] == c, 3].max()) for c in np.unique(detections[:, 0])}
    shown = sorted(sorted(best, key=lambda c: best[c], reverse=True)[:MAX_CLASSES])
    rows = max(len(shown), 1)
    figure = Figure(figsize=(12, 2.2 + 0.3 * rows), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 0.3 * rows + 0.2])
    if len(frames):
        strip = _strip(frames)
        above.imshow(strip, extent=(0, duration, 0, 1), aspect="auto")
        above.set_box_aspect(strip.shape[0] / strip.shape[1])
        above.set_anchor("S")
    above.set_xlim(0, duration)
    above.set_ylim(0, 1)
    above.axis("off")
    for row, label in enumerate(shown):
        for _, start, end, score in detections[detections[:, 0] == label]:
            alpha = float(np.clip(score, 0.15, 1))
            below.barh(row, end - start, left=start, height=0.7, color=f"C{label % 10}", alpha=alpha)
    below.set_yticks(range(len(shown)), [classes[label] for label in shown])
    below.set_ylim(rows - 0.5, -0.5)
    below.set_xlabel("seconds; darker bars have higher scores")
    below.grid(axis="x", alpha=0.3)
    if hidden := len(best) - len(shown):
        figure.suptitle(f"{hidden} more classes were found, with lower scores")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    write_atomically(path, stream.getvalue())


def _strip(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Joins the frames to a row at least `MIN_ASPECT` times as wide as high, with white gaps if there are few."""
    height, width = frames[0].shape[:2]
    slot = max(width + width // 25, -(-MIN_ASPECT * height // len(frames)))
    strip = np.full((height, slot * len(frames), 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        left = i * slot + (slot - width) // 2
        strip[:, left : left + width] = frame
    return strip
