"""WebVTT: a subtitle file per video, whose cues name the class and the score. Every video player shows it.

WEBVTT

00:00:03.200 --> 00:00:10.800
cut bread (0.93)
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from kd_jax.evaluation.formats import fields
from kd_jax.files import make_folder, write_atomically


def write_webvtt(folder: Path, detections: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """Writes a file `<video>.vtt` per video into a folder, which is made if it does not exist.

    Cues are sorted by start. Times are rounded to milliseconds, negative ones to 0, and a cue lasts a millisecond at
    least. Raises ValueError as in `write_native`.
    """
    names = list(fields.class_ids(classes))
    tables = fields.check_detections(detections, len(names))
    make_folder(folder)
    for video, table in tables.items():
        cues = ["WEBVTT"]
        for class_id, start, end, score in table[np.argsort(table[:, 1], kind="stable")].tolist():
            first = max(0, round(1000 * start))
            times = f"{_clock(first)} --> {_clock(max(first + 1, round(1000 * end)))}"
            name = " ".join(names[int(class_id)].split())  # an empty line would end the cue
            cues.append(f"{times}\n{escape(name, quote=False)} ({score:.2f})")
        write_atomically(folder / f"{video}.vtt", ("\n\n".join(cues) + "\n").encode())


def _clock(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{milliseconds:03d}"
