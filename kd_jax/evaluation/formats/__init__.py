"""Predictions in files: the formats that official evaluation scripts read, and this project's own, written and read.

    write_activitynet(Path('thumos.json'), {'video7': found}, classes)
    detections = read_activitynet(Path('thumos.json'), classes)   # also what ActionFormer, OpenTAD and others wrote

| module | holds | read by |
|---|---|---|
| `native` | `scores.npz`: {video: `[T, C]`}; `detections.json`: a list of {video, class, start, end, score} | kd_jax |
| `activitynet` | JSON with {results: {video: [{label, score, segment}]}} | ActivityNet, THUMOS14 |
| `pku_mmd` | a folder of `<video>.txt`, lines `label,start,end,confidence` in frames | PKU-MMD, TSU event mAP |
| `charades` | a text of lines `video frame score × 157`, 25 frames a video | Charades_v1_localize.m |

In memory detections are {video: `[N, 4]`} float64 rows (class, start s, end s, score), see `kd_jax.evaluation.proposals`, in the
order of the file: it decides between equal scores. Numbers are written with the digits it takes to read the same
number in the same dtype (times in PKU-MMD's frames: but for the last bit). Writers leave a whole file, or what was
there before. Readers raise one ValueError with everything that is wrong with a file, up to 20 lines; a video id that
could not name a file in a folder is refused, so it may be used for one.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.evaluation.formats.activitynet import read_activitynet, write_activitynet
from kd_jax.evaluation.formats.charades import CHARADES_CLASSES, charades_frames, read_charades, write_charades
from kd_jax.evaluation.formats.native import read_native, read_scores, write_native, write_scores
from kd_jax.evaluation.formats.pku_mmd import read_pku_mmd, write_pku_mmd
from kd_jax.evaluation.formats.problems import Problems, check_video

__all__ = [
    "FORMATS",
    "charades_frames",
    "check_formats",
    "read_activitynet",
    "read_charades",
    "read_native",
    "read_pku_mmd",
    "read_scores",
    "write",
    "write_activitynet",
    "write_charades",
    "write_native",
    "write_pku_mmd",
    "write_scores",
]

FORMATS = {  # format: what `write` leaves in a folder
    "native": ("scores.npz", "detections.json"),
    "activitynet": ("activitynet.json",),
    "pku_mmd": ("pku_mmd",),
    "charades": ("charades_localize.txt",),
}


def check_formats(formats: Iterable[str], videos: Iterable[str], num_classes: int) -> None:
    """Raises ValueError for a format that these predictions cannot have, before there are any.

    Args:
      formats: keys of FORMATS.
      videos: the ids.
      num_classes: C, without the background.
    """
    problems = Problems("predictions to write")
    formats = list(formats)
    for name in formats:
        if name not in FORMATS:
            problems.add("", f"the format {name!r} is unknown; known formats: {', '.join(FORMATS)}")
    if "charades" in formats and num_classes != CHARADES_CLASSES:
        problems.add("", f"{num_classes} classes, the format charades has {CHARADES_CLASSES}; choose another format")
    for video in videos:
        check_video(video, problems, blanks="charades" not in formats)
    problems.check()


def write(
    directory: Path,
    formats: Iterable[str],
    *,
    scores: Mapping[str, np.ndarray],
    detections: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> list[Path]:
    """Writes predictions into a folder, under the names in FORMATS.

    Args:
      directory: it must exist; files of the same name are replaced.
      formats: keys of FORMATS.
      scores: {video: `[T, C]`}, or `[T, C + 1]` with the background last.
      detections: {video: `[N, 4]`}.
      classes: names by class id.

    Returns:
      The files and folders written.

    Raises:
      ValueError: as the writers of the formats.
    """
    formats = list(dict.fromkeys(formats))
    check_formats(formats, scores, len(classes))
    paths = {name: [directory / file for file in FORMATS[name]] for name in formats}
    if "native" in paths:
        write_scores(paths["native"][0], scores)
        write_native(paths["native"][1], detections, classes)
    if "activitynet" in paths:
        write_activitynet(paths["activitynet"][0], detections, classes)
    if "pku_mmd" in paths:
        write_pku_mmd(paths["pku_mmd"][0], detections, len(classes), overwrite=True)
    if "charades" in paths:
        frames = {video: charades_frames(table[:, : len(classes)]) for video, table in scores.items()}
        write_charades(paths["charades"][0], frames)
    return [path for group in paths.values() for path in group]
