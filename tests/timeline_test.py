"""The picture of detections: frames keep their shape, bars are drawn at the times of actions."""

import cv2
import numpy as np
import pytest

from kd_jax.video import timeline

RED = np.full((40, 40, 3), [255, 0, 0], np.uint8)


def extent(picture, color):
    """Left, top, width and height of all that has this colour (blue, green, red)."""
    rows, columns = np.nonzero((picture == color).all(-1))
    return columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1


@pytest.mark.parametrize("count", [1, 2, 6, 12])
def test_frames_keep_their_shape_and_stand_above_their_time(count, tmp_path):
    found = np.array([[1, 4.0, 6.0, 1.0]])
    frames = [RED if i == count - 1 else RED * 0 for i in range(count)]
    timeline.draw(tmp_path / "a.png", frames, duration=10.0, detections=found, classes=["sit", "stand"])
    picture = cv2.imread(str(tmp_path / "a.png"))
    left, top, width, height = extent(picture, [0, 0, 255])
    assert abs(width - height) <= 3 and height > 60
    bar, below, wide, _ = extent(picture, [14, 127, 255])  # matplotlib's second colour
    assert below > top + height
    begin = bar - 2 * wide  # 4 of 10 seconds, and the bar is 2
    middle = (left + width / 2 - begin) / (5 * wide)
    assert middle == pytest.approx((count - 0.5) / count, abs=0.02)


def test_without_frames_there_are_the_bars(tmp_path):
    timeline.draw(tmp_path / "a.png", [], duration=10.0, detections=np.array([[0, 4.0, 6.0, 1.0]]), classes=["sit"])
    left, _, width, _ = extent(cv2.imread(str(tmp_path / "a.png")), [180, 119, 31])  # matplotlib's first colour
    assert left > 2 * width
