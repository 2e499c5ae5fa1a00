"""Pictures of detections: frames along the top; below, a row per class with bars and the probabilities.

draw(Path("kitchen.png"), frames, found, title="kitchen")
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kd_jax.files import write_atomically
from kd_jax.segments import Grid, clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_ASPECT = 8  # least width divided by height of the row of frames
MAX_CLASSES = 20  # rows of bars; the classes with the highest scores are shown
MAX_WITHOUT = 3  # rows where nothing was found
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)  # seconds between ticks


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a video."""

    duration: float  # seconds
    detections: np.ndarray  # `[N, 4]` rows (class, start s, end s, score)
    probabilities: np.ndarray  # `[T, C]`
    grid: Grid  # the times of the T snippets, in seconds
    classes: Sequence[str]  # all C names
    threshold: float = 0.5  # of a snippet that counts as action
    explanation: str = ""  # why nothing was found

    def shown(self) -> tuple[list[int], int]:
        """Returns the classes with a row, and how many more were found."""
        best = {int(row[0]): 0.0 for row in self.detections}
        for label, _, _, score in self.detections:
            best[int(label)] = max(best[int(label)], float(score))
        count = MAX_CLASSES
        if not best:
            best, count = dict(enumerate(self.probabilities.max(axis=0))), MAX_WITHOUT
        kept = sorted(sorted(best, key=lambda c: best[c], reverse=True)[:count])
        return kept, len(best) - len(kept) if len(self.detections) else 0


def draw(path: Path, frames: Sequence[np.ndarray], found: Found, *, title: str) -> None:
    """Writes the picture as a .png file, atomically.

    Args:
      frames: evenly spaced frames, `[height, width, 3]` uint8; empty if only flow was read.
      found: the detections and probabilities; without detections the most probable classes have a row.
      title: of the picture, e.g. the names of video and run.
    """
    from matplotlib.figure import Figure  # here because only pictures need it

    (shown, hidden), rows = found.shown(), max(len(found.shown()[0]), 1)
    strip = _strip(frames) if len(frames) else np.full((1, 1000, 3), 255, np.uint8)
    heights = [10.5 * strip.shape[0] / strip.shape[1], 0.5 * rows + 0.2]  # inches
    figure = Figure(figsize=(12, sum(heights) + 1.1), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    if len(frames):
        above.imshow(strip, extent=(0, found.duration, 0, 1), aspect="auto")
        above.set_box_aspect(strip.shape[0] / strip.shape[1])
        above.set_anchor("S")
    above.set_xlim(0, found.duration)
    above.set_ylim(0, 1)
    above.axis("off")
    for row, label in enumerate(shown):
        _draw_row(below, row, label, found)
    below.set_yticks(range(len(shown)), [found.classes[label] for label in shown])
    below.set_ylim(rows - 0.45, -0.55)
    below.spines[["top", "right"]].set_visible(False)
    show_times(below, found.duration)
    below.grid(axis="x", alpha=0.3)
    reached = f"full colour from the threshold {found.threshold:.3g}"
    below.set_xlabel(f"bars: detections, darker with a higher score; below them: the probability, {reached}")
    more = f"{hidden} more classes were found, with lower scores" if hidden else found.explanation
    figure.suptitle(title + (f"\n{more}" if more else ""), x=0.01, ha="left")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    write_atomically(path, stream.getvalue())


def _draw_row(axis: "Axes", row: int, label: int, found: Found) -> None:
    """Draws the bars of a class, and below them the strip of its probability."""
    color = f"C{label % 10}"
    for _, start, end, score in found.detections[found.detections[:, 0] == label]:
        alpha = float(np.clip(score, 0.15, 1))
        axis.barh(row - 0.25, end - start, left=start, height=0.36, color=color, alpha=alpha)
    values = found.probabilities[:, label]
    edges = found.grid.start + np.arange(len(values) + 1) * found.grid.length / len(values)
    bottom = row + 0.4
    axis.stairs(bottom - 0.4 * values, edges, baseline=bottom, fill=True, color=color, alpha=0.3, linewidth=0)
    high = np.where(values >= found.threshold, values, 0)
    axis.stairs(bottom - 0.4 * high, edges, baseline=bottom, fill=True, color=color, linewidth=0)
    axis.axhline(bottom, color="0.8", linewidth=0.6, zorder=0)


def show_times(axis: "Axes", end: float, start: float = 0.0) -> None:
    """Marks times from `start` to `end` seconds on the x axis, as 1:30."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    axis.set_xlim(start, end)
    step = next((step for step in _STEPS if step >= (end - start) / 12), _STEPS[-1])
    axis.xaxis.set_major_locator(MultipleLocator(step))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds, digits=int(step < 1))))


def _strip(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Joins the frames to a row at least `MIN_ASPECT` times as wide as high, with white gaps if there are few."""
    height, width = frames[0].shape[:2]
    slot = max(width + width // 25, -(-MIN_ASPECT * height // len(frames)))
    strip = np.full((height, slot * len(frames), 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        left = i * slot + (slot - width) // 2
        strip[:, left : left + width] = frame
    return strip
