"""A folder of `<video>.txt` with lines `label,start,end,confidence`, for the event mAP scripts of PKU-MMD and TSU.

PKU-MMD counts labels from 1 and time in frames at 30 per second. The evaluation code of TSU counts labels from 0.
"""

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kd_jax.data.checks import Findings, check_video_id, parse, read_text, short
from kd_jax.data.text_files import normalize
from kd_jax.evaluation.formats.fields import check_detections, class_of_label, finite, start_and_end
from kd_jax.files import make_folder, write_atomically


def write_pku_mmd(
    directory: Path,
    detections: Mapping[str, np.ndarray],
    num_classes: int,
    *,
    first_label: int = 1,
    frames_per_second: float = 30.0,
    overwrite: bool = False,
) -> None:
    """Writes a folder of `<video>.txt` with lines `label,start,end,confidence`.

    A video without detections gets an empty file.

    Args:
      directory: the folder; it appears when all files are written.
      detections: {video: `[N, 4]`}, times in seconds.
      first_label: the label of class 0; 1 in PKU-MMD, 0 in the evaluation code of TSU.
      frames_per_second: rate of the frames that the files count; 30 in PKU-MMD, 1 for seconds. Fractions of frames are
        kept, because the official scripts read real numbers.
      overwrite: replace a folder that holds only .txt files.

    Raises FileExistsError if `directory` is not empty and may not be overwritten; ValueError as in `write_native`, also
    for a rate that is not above 0.
    """
    _check_rate(frames_per_second)
    tables = check_detections(detections, num_classes)
    directory = Path(os.path.abspath(directory))
    _check_free(directory, overwrite=overwrite)
    make_folder(directory.parent)
    unfinished, replaced = (directory.with_name(f".{directory.name}.{w}-{os.getpid()}") for w in ("new", "old"))
    shutil.rmtree(unfinished, ignore_errors=True)
    make_folder(unfinished)
    try:
        for video, table in tables.items():
            lines = [
                f"{int(c) + first_label},{_digits(s * frames_per_second)},{_digits(e * frames_per_second)},{p!r}\n"
                for c, s, e, p in table.tolist()
            ]
            write_atomically(unfinished / f"{video}.txt", "".join(lines).encode())
        if directory.exists():
            directory.rename(replaced)
        unfinished.rename(directory)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_pku_mmd(
    directory: Path, num_classes: int, *, first_label: int = 1, frames_per_second: float = 30.0
) -> dict[str, np.ndarray]:
    """Reads a folder of `<video>.txt` with lines `label,start,end,confidence`: predictions, or the labels of PKU-MMD.

    Commas and blanks both separate fields, as in the official script. Empty lines are ignored. An empty file is a video
    without detections.

    Args:
      num_classes, first_label, frames_per_second: as in `write_pku_mmd`.

    Returns {video: `[N, 4]`}, times in seconds, videos sorted by name. Raises FileNotFoundError if there is no such
    folder, or no .txt file in it; DataError naming file, line, field and value of every problem.
    """
    _check_rate(frames_per_second)
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a folder; name the folder of the <video>.txt files")
    entries = sorted(entry for entry in directory.iterdir() if entry.suffix == ".txt" or entry.name[:1] != ".")
    paths = [entry for entry in entries if _is_table(entry)]
    if not paths:
        inside = [entry.name for entry in entries if entry.is_dir() and any(entry.glob("*.txt"))]
        hint = f"; did you mean {directory / inside[0]}?" if inside else ""
        raise FileNotFoundError(f"{directory} has no <video>.txt file{hint}")
    findings = Findings(directory)
    for entry in entries:
        if not _is_table(entry):
            findings.problem("other file", f"{entry.name}: not a .txt file; move it out of this folder")
    seconds = [1, frames_per_second, frames_per_second, 1]
    detections = {}
    for path in paths:
        video = normalize(path.stem)
        check_video_id(video, findings)
        lines = enumerate((read_text(path, findings) or "").splitlines(), 1)
        rows = [
            row
            for i, line in lines
            if (row := _parse_line(f"{path.name} line {i}", line, num_classes, first_label, findings))
        ]
        detections[video] = np.array(rows, np.float64).reshape(-1, 4) / seconds
    findings.raise_problems("nothing was read")
    return detections


def _parse_line(where: str, line: str, num_classes: int, first_label: int, findings: Findings) -> tuple | None:
    fields = line.replace(",", " ").split()
    if not fields:
        return None
    if len(fields) != 4:
        expected = "expected label,start,end,confidence"
        findings.problem("layout", f"{where}: {len(fields)} fields in {short(line)}, {expected}")
        return None
    label, start, end, confidence = map(parse, fields)
    class_id = class_of_label(f"{where} label", label, num_classes, first_label, findings)
    score = finite(f"{where} confidence", confidence, findings)
    return class_id, *start_and_end(where, (start, end), findings), score


def _check_free(directory: Path, *, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; name a folder for the files of the videos")
    entries = list(directory.iterdir()) if directory.is_dir() else []
    if entries and not overwrite:
        raise FileExistsError(f"{directory} is not empty; choose another folder, or remove it")
    if not all(map(_is_table, entries)):
        raise FileExistsError(f"{directory} holds more than .txt files, so it is not replaced; choose another folder")


def _check_rate(frames_per_second: float) -> None:
    if not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second={frames_per_second} must be a number above 0; 1 for times in seconds")


def _is_table(path: Path) -> bool:
    return path.suffix == ".txt" and path.is_file()


def _digits(value: float) -> str:
    """Formats a number with all its digits, a whole number without `.0`."""
    return str(int(value)) if value.is_integer() else repr(value)
