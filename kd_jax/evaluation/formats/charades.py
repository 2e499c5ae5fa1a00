"""Lines `video frame score × 157`, 25 frames a video: what the official Charades_v1_localize.m reads.

    write_charades(Path('localize.txt'), {video: charades_frames(table) for video, table in scores.items()})
    frames = read_charades(Path('localize.txt'))

All 1,863 test videos are 46,575 lines.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging

from kd_jax.evaluation.formats.problems import Problems, check_video, existing, parse, reason, short
from kd_jax.files import write_atomically
from kd_jax.segments import resample_scores

CHARADES_CLASSES = 157
CHARADES_FRAMES = 25  # of every video: frame j of 1 … 25 is the time (j - 1) / 25 · length


def charades_frames(scores: np.ndarray) -> np.ndarray:
    """Snippet scores at the 25 times of the Charades localization protocol.

    Time `(j - 1) / 25 · length` lies in snippet `floor((j - 1) · T / 25)`, whose scores it takes: snippet i covers
    `[i, i + 1)` times length / T, so no length is needed.

    Args:
      scores: `[T, C]`.

    Returns:
      `[25, C]`, in the dtype of `scores`.
    """
    return resample_scores(scores, CHARADES_FRAMES, method="nearest")


def write_charades(path: Path, frames: Mapping[str, np.ndarray], *, num_classes: int = CHARADES_CLASSES) -> None:
    """Writes lines `video frame score × 157`, frame from 1 to 25, as Charades_v1_localize.m reads them.

    Args:
      path: of the text file.
      frames: {video: `[25, C]`}, from `charades_frames`; a frame of which all scores are -inf is not written: the
        script gives missing frames -inf.
      num_classes: C, 157 in the official script.

    Raises:
      ValueError: for another shape, scores that are neither finite nor -inf, or a video id that is no file name or has
        blanks.
    """
    problems = Problems("scores to write")
    chunks = []
    for video, table in frames.items():
        table = np.asarray(table)
        if not check_video(video, problems, blanks=False):
            continue
        if table.shape != (CHARADES_FRAMES, num_classes) or table.dtype.kind not in "fiu":
            problems.add(
                repr(video),
                f"{table.dtype} {list(table.shape)}, expected numbers [{CHARADES_FRAMES}, {num_classes}]; "
                "charades_frames brings snippet scores to 25 frames",
            )
            continue
        if not (table < np.inf).all():  # also False for NaN
            problems.add(repr(video), "holds NaN or inf; expected finite numbers, or -inf for what is missing")
            continue
        number = "%.9g" if table.dtype in (np.float16, np.float32) else "%.17g"  # enough to read the same value back
        pattern = " ".join(["%s %d", *[number] * num_classes])
        for frame, row in enumerate(table.tolist(), 1):
            if max(row) > -math.inf:
                chunks.append(pattern % (video, frame, *row))
    problems.check()
    chunks.append("")
    write_atomically(path, "\n".join(chunks).encode())


def read_charades(path: Path, *, num_classes: int = CHARADES_CLASSES) -> dict[str, np.ndarray]:
    """Reads lines `video frame score × 157`, as Charades_v1_localize.m does.

    A file whose frames start at 0 is shifted by one, with a warning, as the script does. What that script overlooks
    or trips over is refused: a frame outside of 1 … 25, a frame that stands there twice, another number of scores.

    Args:
      path: of the text file.
      num_classes: C, 157 in the official script.

    Returns:
      {video: `[25, C]`} float64, -inf in the frames that the file does not have; videos in the order of the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming line, field and value of everything that is wrong.
    """
    path = existing(path)
    problems = Problems(path)
    lines = []  # (number, video, frame, scores)
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and (parsed := _charades_line(line, num_classes, f"line {number}", problems)):
                    lines.append((number, *parsed))
    except (UnicodeDecodeError, OSError) as error:
        problems.add(f"after line {number}", f"not readable as text ({reason(error)})")
    first = 1 if min((frame for _, _, frame, _ in lines), default=1) else 0
    if not first:
        logging.warning("%s counts frames from 0; 1 is added to all of them, as the official script does", path)
    frames: dict[str, np.ndarray] = {}
    seen: dict[tuple[str, int], int] = {}
    for number, video, frame, scores in lines:
        if not first <= frame < first + CHARADES_FRAMES:
            expected = f"{first} … {first + CHARADES_FRAMES - 1}" + ("" if first else " in a file that has a frame 0")
            problems.add(f"line {number}", f"frame {frame} of {video!r}, expected {expected}")
            continue
        if seen.setdefault((video, frame), number) != number:
            problems.add(f"line {number}", f"frame {frame} of {video!r} stands already in line {seen[video, frame]}")
            continue
        if video not in frames:
            frames[video] = np.full((CHARADES_FRAMES, num_classes), -np.inf)
        frames[video][frame - first] = scores
    problems.check()
    return frames


def _charades_line(line: str, num_classes: int, where: str, problems: Problems) -> tuple[str, int, np.ndarray] | None:
    video, *rest = line.split()
    if not check_video(video, problems, where):
        return None
    if not rest or not re.fullmatch(r"-?[0-9]{1,9}", rest[0]):
        value = short(rest[0]) if rest else "missing"
        problems.add(where, f"frame {value} of {video!r}, expected `video frame score × {num_classes}`")
        return None
    frame = int(rest[0])
    if len(rest) - 1 != num_classes:
        problems.add(where, f"{len(rest) - 1} scores of {video!r}, frame {frame}; expected {num_classes}")
        return None
    try:
        scores = np.array(list(map(float, rest[1:])))
        good = bool((scores < np.inf).all()) and line.count("_") == video.count("_")  # float reads 1_0 as 10
    except ValueError:
        good = False
    if not good:
        value = next(text for text in rest[1:] if isinstance(score := parse(text), str) or not score < math.inf)
        problems.add(where, f"score {short(value)} of {video!r}, frame {frame}; expected a finite number or -inf")
        return None
    return video, frame, scores
