"""This project's own files: `scores.npz`, {video: `[T, C]`}, and `detections.json`, a list of single detections."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.evaluation.formats.problems import (
    Problems,
    check_detections,
    check_video,
    class_id_of_name,
    class_ids,
    existing,
    has_fields,
    load_json,
    reason,
    score_of,
    short,
    times_of,
)
from kd_jax.files import write_arrays, write_atomically


def write_scores(path: Path, scores: Mapping[str, np.ndarray]) -> None:
    """Writes {video: `[T, C]`} as `.npz`, in the dtypes given.

    Raises:
      ValueError: for what `read_scores` would refuse.
    """
    scores = {video: np.asarray(table) for video, table in scores.items()}
    problems = Problems("scores to write")
    _check_scores(scores, problems)
    problems.check()
    write_arrays(path, scores)


def read_scores(path: Path) -> dict[str, np.ndarray]:
    """Reads {video: `[T, C]`} from an `.npz`; nothing is unpickled.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for a file that is not an .npz of finite real `[T, C]` with T > 0 and one C for all, or video ids that
        are no file names.
    """
    path = existing(path)
    problems = Problems(path)
    scores: dict[str, np.ndarray] = {}
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array; write {video: scores} with np.savez")
    except Exception as error:  # zip and NumPy raise whatever they like on a damaged file
        raise ValueError(f"{path} is not a readable .npz file ({reason(error)}); write it again") from None
    with archive:
        for video, count in Counter(archive.files).items():
            if count > 1:
                problems.add(repr(video), f"it stands there {count} times; only one can be meant")
            try:
                scores[video] = archive[video]
            except Exception as error:
                problems.add(repr(video), f"not readable ({reason(error)}); expected an array of numbers [T, C]")
    _check_scores(scores, problems)
    problems.check()
    return scores


def _check_scores(scores: Mapping[str, np.ndarray], problems: Problems) -> None:
    sizes = Counter(table.shape[1] for table in scores.values() if isinstance(table, np.ndarray) and table.ndim == 2)
    usual = sizes.most_common(1)[0][0] if sizes else None
    for video, table in scores.items():
        check_video(video, problems)
        if not isinstance(table, np.ndarray) or table.dtype.kind not in "fiu":
            problems.add(repr(video), f"{getattr(table, 'dtype', 'no array')}, expected real numbers [T, C]")
        elif table.ndim != 2 or not table.size:
            problems.add(repr(video), f"shape {list(table.shape)}, expected [T, C] with T and C above 0")
        elif table.shape[1] != usual:
            problems.add(repr(video), f"{table.shape[1]} classes, most videos have {usual}")
        elif not np.isfinite(table).all():
            snippet, class_id = np.argwhere(~np.isfinite(table))[0]
            value = table[snippet, class_id]
            problems.add(repr(video), f"{value} at snippet {snippet}, class {class_id}; expected finite numbers")


def write_native(path: Path, detections: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """Writes detections as a JSON list of {video, class, start, end, score}, one a line, times in seconds.

    A video without detections leaves no trace in this format.

    Args:
      path: of the file.
      detections: {video: `[N, 4]`}.
      classes: names by class id.

    Raises:
      ValueError: for a table that is not finite `[N, 4]`, a class without a name, an end before its start, or a video
        id that is no file name.
    """
    names = list(class_ids(classes))
    lines = [
        json.dumps(
            {"video": video, "class": names[int(class_id)], "start": start, "end": end, "score": score},
            ensure_ascii=False,
        )
        for video, table in check_detections(detections, len(names)).items()
        for class_id, start, end, score in table.tolist()
    ]
    write_atomically(path, ("[" + ",".join(f"\n  {line}" for line in lines) + "\n]\n").encode())


def read_native(path: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads what `write_native` wrote: {video: `[N, 4]`}, without the videos that have no detections.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming entry, field and value of everything that is wrong.
    """
    path = existing(path)
    problems = Problems(path)
    ids = class_ids(classes)
    entries = load_json(path, list, problems)
    rows = defaultdict(list)
    for number, entry in enumerate(entries):
        where = f"entry {number}"
        if not isinstance(entry, dict):
            problems.add(where, f"{short(entry)}, expected an object with video, class, start, end and score")
            continue
        if not has_fields(where, entry, ("video", "class", "start", "end", "score"), problems):
            continue
        if check_video(entry["video"], problems, where):
            class_id = class_id_of_name(f"{where} class", entry["class"], ids, problems)
            start, end = times_of(where, (entry["start"], entry["end"]), problems)
            rows[entry["video"]].append((class_id, start, end, score_of(f"{where} score", entry["score"], problems)))
    problems.check()
    return {video: np.array(found, np.float64).reshape(-1, 4) for video, found in rows.items()}
