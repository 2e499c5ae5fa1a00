"""The picture of detections: frames keep their shape, bars and probabilities are drawn at their times, as 1:30."""

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from kd_jax.segments import Grid, clock
from kd_jax.video import timeline

RED = np.full((40, 40, 3), [255, 0, 0], np.uint8)
BLUE, ORANGE = [180, 119, 31], [14, 127, 255]  # matplotlib's first two colours


def extent(picture, color):
    """Left, top, width and height of all that has this colour (blue, green, red)."""
    rows, columns = np.nonzero((picture == color).all(-1))
    return columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1


def found(detections, probabilities, **options):
    table = np.array(detections, float).reshape(-1, 4)
    return timeline.Found(10.0, table, probabilities, Grid(0.0, 10.0), ["sit", "stand"], **options)


def draw(path, frames, what):
    timeline.draw(path, frames, what, title="a")
    return cv2.imread(str(path))


@pytest.mark.parametrize("count", [1, 2, 6, 12])
def test_frames_keep_their_shape_and_stand_above_their_time(count, tmp_path):
    frames = [RED if i == count - 1 else RED * 0 for i in range(count)]
    picture = draw(tmp_path / "a.png", frames, found([[1, 4.0, 6.0, 1.0]], np.zeros((5, 2))))
    left, top, width, height = extent(picture, [0, 0, 255])
    assert abs(width - height) <= 3 and height > 60
    bar, below, wide, _ = extent(picture, ORANGE)
    assert below > top + height
    begin = bar - 2 * wide  # 4 of 10 seconds, and the bar is 2
    middle = (left + width / 2 - begin) / (5 * wide)
    assert middle == pytest.approx((count - 0.5) / count, abs=0.02)


def test_without_frames_there_are_the_bars(tmp_path):
    picture = draw(tmp_path / "a.png", [], found([[0, 4.0, 6.0, 1.0]], np.zeros((5, 2))))
    left, _, width, _ = extent(picture, BLUE)
    assert left > 2 * width


def test_probabilities_are_drawn_below_the_bars(tmp_path):
    table = np.zeros((5, 2))
    table[3, 0] = 1.0
    bars, both = (
        draw(tmp_path / "a.png", [], found([[0, 2.0, 4.0, 1.0]], t, threshold=0.5)) for t in (0 * table, table)
    )
    left, top, width, height = extent(bars, BLUE)
    full_left, full_top, full_width, full_height = extent(both, BLUE)
    assert (full_left, full_top) == (left, top)
    assert full_width == pytest.approx(3 * width, abs=10)  # the bar is at 2 to 4 seconds, the probability at 6 to 8
    assert full_height == pytest.approx(height * 0.83 / 0.36, abs=4)


def test_without_detections_the_most_probable_classes_have_a_row():
    assert found([], np.array([[0.1, 0.3]])).shown() == ([0, 1], 0)
    assert found([[1, 0, 1, 0.5]], np.array([[0.1, 0.3]])).shown() == ([1], 0)
    many = timeline.Found(
        9, np.array([[c, 0, 1, c / 30] for c in range(25)]), np.zeros((1, 25)), Grid(0, 9), ["c"] * 25
    )
    assert many.shown() == (list(range(5, 25)), 5)


def test_times_are_minutes_and_seconds():
    written = {90: "1:30", 0: "0:00", 59.6: "1:00", 3723: "1:02:03", -2: "-0:02", -0.2: "0:00"}
    assert {seconds: clock(seconds) for seconds in written} == written
    assert [clock(4.5, digits=1), clock(59.96, digits=1), clock(np.float32(90))] == ["0:04.5", "1:00.0", "1:30"]
    axis = Figure().subplots()
    timeline.show_times(axis, 100.0)
    assert [label.get_text() for label in axis.get_xticklabels()][1:4] == ["0:00", "0:10", "0:20"]
