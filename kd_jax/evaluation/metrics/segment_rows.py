"""Rows: segments of all videos, checked, with one array per column.

    found, truths, videos = read_both("my_metric", detections, ground_truth, num_classes=51)

Rows are in the order of the mapping and of its arrays, which decides ties.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing

TRUTH_COLUMNS = ("class", "start", "end")
DETECTION_COLUMNS = ("class", "start", "end", "score")
REGION_COLUMNS = ("start", "end")  # a region has no class
Video = TypeVar("Video")  # an id or a number
Tables = Mapping[str, np.ndarray]  # {video: rows}


class Rows(NamedTuple):
    """Segments of all videos, one `[N]` array per column, sorted by video; columns that were not read are 0."""

    video: np.ndarray
    class_id: np.ndarray
    start: np.ndarray
    end: np.ndarray
    score: np.ndarray

    def take(self, index: np.ndarray) -> "Rows":
        """Selects rows by a boolean or integer index."""
        return Rows(*(column[index] for column in self))

    def ranked(self) -> "Rows":
        """Sorts the rows by descending score; equal scores keep their order."""
        return self.take(np.argsort(-self.score, kind="stable"))


def read_both(
    function: str, detections: Tables, ground_truth: Tables, num_classes: int
) -> tuple[Rows, Rows, list[str]]:
    """Checks detections and ground truth and reads them into Rows.

    Args:
      detections: {video: `[N, 4]` rows (class, start, end, score)}.
      ground_truth: {video: `[M, 3]` rows (class, start, end)}.

    Returns the detections and the ground truth, each in the order of its mapping, and the videos that `Rows.video`
    indexes: those of `detections`, then those that are only in `ground_truth`. Raises ValueError naming function,
    argument, video and value; see `read_rows`.
    """
    check_mapping(function, "detections", detections)
    check_mapping(function, "ground_truth", ground_truth)
    if num_classes < 1:
        raise ValueError(f"{function}: num_classes must be at least 1; got {num_classes}.")
    index = {video: i for i, video in enumerate(dict.fromkeys([*detections, *ground_truth]))}
    found = read_rows(f"{function}: detections", detections, index, num_classes, DETECTION_COLUMNS)
    truths = read_rows(f"{function}: ground_truth", ground_truth, index, num_classes, TRUTH_COLUMNS)
    return found, truths, list(index)


def check_mapping(function: str, argument: str, value: object) -> None:
    """Raises ValueError unless the value is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{function}: {argument} must be a mapping from video to array; got {type(value).__name__}.")


def read_rows(
    name: str,
    segments: Mapping[Video, np.ndarray],
    index: Mapping[Video, int],
    num_classes: int,
    columns: Sequence[str],
) -> Rows:
    """Checks one mapping of segments and reads it into Rows, in its order.

    Args:
      segments: {video: `[N, len(columns)]`}; an empty array may have any shape.
      index: {video: its number in `Rows.video`}.
      columns: some of `DETECTION_COLUMNS`, including start and end.

    Returns the rows. Raises ValueError for another shape, a class that is not one of 0 … C-1, a time that is not
    finite, an end before its start, or a score that is NaN.
    """
    width = len(columns)
    tables, videos = [np.zeros((0, width))], [np.zeros(0, np.int64)]
    for video, rows in segments.items():
        table = numbers(f"{name}[{video!r}]", rows)
        table = table.reshape(0, width) if table.size == 0 else table
        if table.ndim != 2 or table.shape[1] != width:
            expected = f"[N, {width}] rows ({', '.join(columns)})"
            raise ValueError(f"{name}[{video!r}] must be {expected}; got shape {table.shape}.")
        _check_values(f"{name}[{video!r}]", dict(zip(columns, table.T, strict=True)), num_classes)
        tables.append(table)
        videos.append(np.full(len(table), index[video], np.int64))
    table = np.concatenate(tables)
    read = dict(zip(columns, np.ascontiguousarray(table.T), strict=True))
    values = [read.get(column, np.zeros(len(table))) for column in DETECTION_COLUMNS]
    return Rows(np.concatenate(videos), values[0].astype(np.int64), *values[1:])


def numbers(name: str, values: np.typing.ArrayLike) -> np.ndarray:
    """Returns the values as float64; raises ValueError with their name if they are not an array of numbers."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers; {error}.") from None


def _check_values(where: str, read: Mapping[str, np.ndarray], num_classes: int) -> None:
    if "class" in read:
        classes = read["class"]
        unknown = ~((classes >= 0) & (classes < num_classes) & (classes == np.floor(classes)))
        if unknown.any():
            row = unknown.argmax()
            raise ValueError(f"{where} row {row}: class {classes[row]:g} is not one of 0 … {num_classes - 1}.")
    start, end = read["start"], read["end"]
    backward = ~(np.isfinite(start) & np.isfinite(end) & (end >= start))
    if backward.any():
        row = backward.argmax()
        found = f"{start[row]:g} and {end[row]:g}"
        raise ValueError(f"{where} row {row}: start and end must be finite and start <= end; got {found}.")
    if "score" in read and np.isnan(read["score"]).any():
        raise ValueError(f"{where} row {np.isnan(read['score']).argmax()}: the score is NaN.")


def check_thresholds(function: str, thresholds: Sequence[float]) -> np.ndarray:
    """Returns the thresholds as `[K]` float64; raises ValueError unless there is one and all are in (0, 1]."""
    values = np.asarray(thresholds, np.float64)
    if values.ndim != 1 or not len(values) or not ((values > 0) & (values <= 1)).all():
        raise ValueError(f"{function}: thresholds must be one or more numbers in (0, 1]; got {thresholds}.")
    return values
