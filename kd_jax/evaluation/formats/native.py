"""The files of this project: `scores.npz`, {video: `[T, C]`}, and `detections.json`, a list of detections."""

import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.data.checks import Findings, check_video_id, load_json, reason
from kd_jax.data.text_files import normalize
from kd_jax.evaluation.formats import fields
from kd_jax.files import read_member, write_arrays, write_atomically


def write_scores(path: Path, scores: Mapping[str, np.ndarray]) -> None:
    """Writes {video: `[T, C]`} as `.npz`, keeping the dtypes.

    Raises DataError for scores that `read_scores` would refuse.
    """
    scores = {video: np.asarray(table) for video, table in scores.items()}
    findings = Findings("the scores to write")
    _check_scores(scores, findings)
    findings.raise_problems()
    write_arrays(path, scores)


def read_scores(path: Path) -> dict[str, np.ndarray]:
    """Reads {video: `[T, C]`} from an `.npz` file, without unpickling.

    Raises FileNotFoundError if there is no such file; ValueError for a file that is not an .npz of finite real `[T, C]`
    with T > 0 and one C, or video ids that are not file names.
    """
    path = fields.existing(path)
    findings = Findings(path)
    scores: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as stream:
            if stream.read(6) == b"\x93NUMPY":
                raise ValueError("it holds one array; write {video: scores} with np.savez")
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises exceptions of many types for a damaged file
        raise ValueError(f"{path} is not a readable .npz file ({reason(error)}); write it again") from None
    with archive:
        members = [(info, normalize(info.filename.removesuffix(".npy"))) for info in archive.infolist()]
        for video, count in Counter(video for _, video in members).items():
            if count > 1:
                findings.problem("repeated video", f"{video!r}: it occurs {count} times; remove all but one")
        for info, video in members:
            try:
                scores[video] = read_member(archive, info)
            except Exception as error:
                case = f"{video!r}: not readable ({reason(error)}); expected an array of numbers [T, C]"
                findings.problem("scores", case)
    _check_scores(scores, findings)
    findings.raise_problems("nothing was read")
    return scores


def _check_scores(scores: Mapping[str, np.ndarray], findings: Findings) -> None:
    sizes = Counter(table.shape[1] for table in scores.values() if table.ndim == 2)
    usual = sizes.most_common(1)[0][0] if sizes else None
    for video, table in scores.items():
        check_video_id(video, findings)
        if table.dtype.kind not in "fiu":
            case = f"{table.dtype}, expected real numbers [T, C]"
        elif table.ndim != 2 or not table.size:
            case = f"shape {list(table.shape)}, expected [T, C] with T and C above 0"
        elif table.shape[1] != usual:
            case = f"{table.shape[1]} classes, most videos have {usual}"
        elif not np.isfinite(table).all():
            snippet, class_id = np.argwhere(~np.isfinite(table))[0]
            case = f"{table[snippet, class_id]} at snippet {snippet}, class {class_id}; expected finite numbers"
        else:
            continue
        findings.problem("scores", f"{video!r}: {case}")


def write_native(path: Path, detections: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """Writes detections as a JSON list of {video, class, start, end, score}, one per line, times in seconds.

    This format does not contain videos without detections.

    Args:
      detections: {video: `[N, 4]`}.

    Raises ValueError for a table that is not finite `[N, 4]`, a class without a name, an end before its start, or a
    video id that is not a file name.
    """
    names = list(fields.class_ids(classes))
    entries = (
        {"video": video, "class": names[int(class_id)], "start": start, "end": end, "score": score}
        for video, table in fields.check_detections(detections, len(names)).items()
        for class_id, start, end, score in table.tolist()
    )
    lines = [f"\n  {json.dumps(entry, ensure_ascii=False)}" for entry in entries]
    write_atomically(path, ("[" + ",".join(lines) + "\n]\n").encode())


def read_native(path: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the file of `write_native`: {video: `[N, 4]`}, without the videos that have no detections.

    Raises FileNotFoundError if there is no such file; DataError naming entry, field and value of every problem.
    """
    path, ids = fields.existing(path), fields.class_ids(classes)
    findings = Findings(path)
    rows = defaultdict(list)
    for i, entry in enumerate(load_json(path, list, "a list of detections", findings)):
        where = f"entry {i}"
        values = fields.object_with(where, entry, ("video", "class", "start", "end", "score"), findings)
        if values and check_video_id(values["video"], findings, where):
            class_id = fields.class_of_name(f"{where} class", values["class"], ids, findings)
            times = fields.start_and_end(where, (values["start"], values["end"]), findings)
            rows[values["video"]].append((class_id, *times, fields.finite(f"{where} score", values["score"], findings)))
    findings.raise_problems("nothing was read")
    return {video: np.array(found, np.float64).reshape(-1, 4) for video, found in rows.items()}
