"""The text format of the official Charades_v1_localize.m: lines `video frame score × 157`, 25 frames per video.

    write_charades(Path('localize.txt'), {video: charades_frames(table) for video, table in scores.items()})
    frames = read_charades(Path('localize.txt'))

The 1,863 test videos give 46,575 lines.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from kd_jax.data.checks import Findings, check_video_id, parse, reason, short
from kd_jax.data.text_files import normalize
from kd_jax.evaluation.formats.fields import existing
from kd_jax.evaluation.metrics.charades import NUM_CLASSES, NUM_TIME_POINTS
from kd_jax.files import write_atomically
from kd_jax.segments import Grid, resample_scores


def charades_frames(scores: np.ndarray, grid: Grid | None = None, duration: float = 0.0) -> np.ndarray:
    """Samples snippet scores at the 25 times of the Charades localization protocol.

    Frame j of 1 … 25 is the time `(j - 1) / 25 · duration`. It has the scores of the snippet that covers this time.
    Without a grid, snippet i covers `[i, i + 1) · duration / T`, so frame j has the scores of snippet
    `floor((j - 1) · T / 25)`, whatever the duration.

    Args:
      scores: `[T, C]`.
      grid: the times of the snippets.
      duration: of the video, in the unit of the grid; read only with a grid.

    Returns `[25, C]`, in the dtype of `scores`.
    """
    return grid.resample(scores, duration, NUM_TIME_POINTS) if grid else resample_scores(scores, NUM_TIME_POINTS)


def write_charades(path: Path, frames: Mapping[str, np.ndarray], *, num_classes: int = NUM_CLASSES) -> None:
    """Writes lines `video frame score × 157`, frames from 1 to 25, for Charades_v1_localize.m.

    Args:
      frames: {video: `[25, C]`}, from `charades_frames`. A frame whose scores are all -inf is not written, because the
        script gives missing frames -inf.
      num_classes: C, 157 in the official script.

    Raises DataError for another shape, scores that are neither finite nor -inf, or a video id that is not a file name
    or has blanks.
    """
    findings = Findings("the scores to write")
    lines = []
    for video, table in frames.items():
        table = np.asarray(table)
        if not check_video_id(video, findings, blanks=False):
            continue
        if table.shape != (NUM_TIME_POINTS, num_classes) or table.dtype.kind not in "fiu":
            expected = f"expected numbers [{NUM_TIME_POINTS}, {num_classes}]"
            remedy = "charades_frames converts snippet scores to 25 frames"
            findings.problem("scores", f"{video!r}: {table.dtype} {list(table.shape)}, {expected}; {remedy}")
            continue
        if not (table < np.inf).all():  # also False for NaN
            case = f"{video!r}: holds NaN or inf; expected finite numbers, or -inf for a missing score"
            findings.problem("scores", case)
            continue
        digits = "%.9g" if table.dtype in (np.float16, np.float32) else "%.17g"  # enough to read the same value back
        pattern = " ".join(["%s %d", *[digits] * num_classes])
        lines += [pattern % (video, i, *row) for i, row in enumerate(table.tolist(), 1) if max(row) > -math.inf]
    findings.raise_problems()
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def read_charades(path: Path, *, num_classes: int = NUM_CLASSES) -> dict[str, np.ndarray]:
    """Reads lines `video frame score × 157`, like Charades_v1_localize.m.

    If the frames start at 0, 1 is added to all of them, with a warning, as in the script. Errors that the script does
    not handle are refused: a frame outside 1 … 25, a frame that occurs twice, another number of scores.

    Args:
      num_classes: C, 157 in the official script.

    Returns {video: `[25, C]`} float64, -inf in missing frames; videos in the order of the file. Raises
    FileNotFoundError if there is no such file; DataError naming line, field and value of every problem.
    """
    path = existing(path)
    findings = Findings(path)
    lines = _read_lines(path, num_classes, findings)
    first = 0 if min((line.frame for line in lines), default=1) == 0 else 1
    if not first:
        logging.warning("%s counts frames from 0; 1 is added to all of them, as the official script does", path)
    frames: dict[str, np.ndarray] = {}
    seen: dict[tuple[str, int], int] = {}
    for line in lines:
        frame = f"line {line.number}: frame {line.frame} of {line.video!r}"
        if not first <= line.frame < first + NUM_TIME_POINTS:
            expected = f"{first} … {first + NUM_TIME_POINTS - 1}" + ("" if first else " in a file that has a frame 0")
            findings.problem("frame", f"{frame}, expected {expected}")
            continue
        if (before := seen.setdefault((line.video, line.frame), line.number)) != line.number:
            findings.problem("frame", f"{frame} is already in line {before}")
            continue
        if line.video not in frames:
            frames[line.video] = np.full((NUM_TIME_POINTS, num_classes), -np.inf)
        frames[line.video][line.frame - first] = line.scores
    findings.raise_problems("nothing was read")
    return frames


class _Line(NamedTuple):
    number: int  # from 1
    video: str
    frame: int
    scores: np.ndarray  # [C]


def _read_lines(path: Path, num_classes: int, findings: Findings) -> list[_Line]:
    lines, i = [], 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for i, text in enumerate(file, 1):
                if text.strip() and (line := _parse_line(i, text, num_classes, findings)):
                    lines.append(line)
    except (UnicodeDecodeError, OSError) as error:
        findings.problem("unreadable file", f"after line {i}: not readable as text ({reason(error)})")
    return lines


def _parse_line(i: int, text: str, num_classes: int, findings: Findings) -> _Line | None:
    where = f"line {i}"
    video, *rest = normalize(text).split()
    if not check_video_id(video, findings, where):
        return None
    if not rest or not re.fullmatch(r"-?[0-9]{1,9}", rest[0]):
        found = short(rest[0]) if rest else "missing"
        expected = f"expected `video frame score × {num_classes}`"
        findings.problem("frame", f"{where}: frame {found} of {video!r}, {expected}")
        return None
    frame = int(rest[0])
    if len(rest) - 1 != num_classes:
        case = f"{where}: {len(rest) - 1} scores of {video!r}, frame {frame}; expected {num_classes}"
        findings.problem("scores", case)
        return None
    try:
        scores = np.array(list(map(float, rest[1:])))
        good = bool((scores < np.inf).all()) and text.count("_") == video.count("_")  # float reads 1_0 as 10
    except ValueError:
        good = False
    if not good:
        score = next(score for score in rest[1:] if isinstance(value := parse(score), str) or not value < math.inf)
        expected = "expected a finite number or -inf"
        findings.problem("scores", f"{where}: score {short(score)} of {video!r}, frame {frame}; {expected}")
        return None
    return _Line(i, video, frame, scores)
