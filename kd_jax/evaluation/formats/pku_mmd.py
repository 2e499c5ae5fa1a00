"""A folder of `<video>.txt`, lines `label,start,end,confidence`: what the event mAP of PKU-MMD and TSU reads.

PKU-MMD counts labels from 1 and time in frames at 30 per second; the evaluation code of TSU counts labels from 0.
"""

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kd_jax.evaluation.formats.problems import (
    Problems,
    check_detections,
    check_video,
    class_id_of_label,
    parse,
    read_text,
    score_of,
    short,
    times_of,
)


def write_pku_mmd(
    directory: Path,
    detections: Mapping[str, np.ndarray],
    num_classes: int,
    *,
    first_label: int = 1,
    frames_per_second: float = 30.0,
    overwrite: bool = False,
) -> None:
    """Writes a folder of `<video>.txt`, lines `label,start,end,confidence`; a video without detections: an empty file.

    Args:
      directory: of the files; it appears when all are written.
      detections: {video: `[N, 4]`}, times in seconds.
      num_classes: C.
      first_label: the label of class 0; 1 in PKU-MMD, 0 in the evaluation code of TSU.
      frames_per_second: of the times in the files; 30 in PKU-MMD. 1 writes seconds. Fractions of frames are kept: the
        official scripts read real numbers.
      overwrite: replace a folder that holds nothing but .txt files.

    Raises:
      FileExistsError: if `directory` is not empty and not to be overwritten.
      ValueError: as `write_native`, or for a rate that is not above 0.
    """
    _check_rate(frames_per_second)
    tables = check_detections(detections, num_classes)
    directory = Path(os.path.abspath(directory))
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; name a folder for the files of the videos")
    if directory.is_dir() and (entries := list(directory.iterdir())):
        if not overwrite:
            raise FileExistsError(f"{directory} is not empty; choose another folder, or remove it")
        if not all(map(_is_table, entries)):
            raise FileExistsError(f"{directory} holds more than .txt files, so it is left alone; choose another folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished, replaced = (directory.with_name(f".{directory.name}.{w}-{os.getpid()}") for w in ("new", "old"))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        for video, table in tables.items():
            lines = [
                f"{int(c) + first_label},{_digits(s * frames_per_second)},{_digits(e * frames_per_second)},{p!r}\n"
                for c, s, e, p in table.tolist()
            ]
            (unfinished / f"{video}.txt").write_text("".join(lines), encoding="utf-8")
        if directory.exists():
            directory.rename(replaced)
        unfinished.rename(directory)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_pku_mmd(
    directory: Path, num_classes: int, *, first_label: int = 1, frames_per_second: float = 30.0
) -> dict[str, np.ndarray]:
    """Reads a folder of `<video>.txt`, lines `label,start,end,confidence`: predictions, or PKU-MMD's own labels.

    As in the official script commas and blanks separate alike. Empty lines are skipped; an empty file is a video
    without detections.

    Args:
      directory: of the files.
      num_classes, first_label, frames_per_second: as in `write_pku_mmd`.

    Returns:
      {video: `[N, 4]`}, times in seconds, videos sorted by name.

    Raises:
      FileNotFoundError: if there is no such folder, or no .txt file in it.
      ValueError: naming file, line, field and value of everything that is wrong.
    """
    _check_rate(frames_per_second)
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a folder; give the one that holds <video>.txt files")
    entries = sorted(entry for entry in directory.iterdir() if entry.suffix == ".txt" or entry.name[:1] != ".")
    paths = [entry for entry in entries if _is_table(entry)]
    if not paths:
        inside = [entry.name for entry in entries if entry.is_dir() and any(entry.glob("*.txt"))]
        hint = f"; did you mean {directory / inside[0]}?" if inside else ""
        raise FileNotFoundError(f"{directory} has no <video>.txt file{hint}")
    problems = Problems(directory)
    for entry in entries:
        if not _is_table(entry):
            problems.add(entry.name, "not a .txt file; only <video>.txt files can stand in this folder")
    detections = {}
    for path in paths:
        check_video(path.stem, problems)
        rows = []
        for number, line in enumerate(read_text(path, problems).splitlines(), 1):
            fields = line.replace(",", " ").split()
            where = f"{path.name} line {number}"
            if fields and len(fields) != 4:
                problems.add(where, f"{len(fields)} fields in {short(line)}, expected label,start,end,confidence")
            elif fields:
                label, start, end, confidence = map(parse, fields)
                class_id = class_id_of_label(f"{where} label", label, num_classes, first_label, problems)
                score = score_of(f"{where} confidence", confidence, problems)
                rows.append((class_id, *times_of(where, (start, end), problems), score))
        detections[path.stem] = np.array(rows, np.float64).reshape(-1, 4) / [1, frames_per_second, frames_per_second, 1]
    problems.check()
    return detections


def _check_rate(frames_per_second: float) -> None:
    if not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second={frames_per_second} must be a number above 0; 1 for times in seconds")


def _is_table(path: Path) -> bool:
    return path.suffix == ".txt" and path.is_file()


def _digits(value: float) -> str:
    """All the digits of a number, without `.0` where it is whole."""
    return str(int(value)) if value.is_integer() else repr(value)
