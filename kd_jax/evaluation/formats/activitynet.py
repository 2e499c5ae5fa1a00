"""ActivityNet-style JSON, also read by the THUMOS14 tools of ActionFormer and OpenTAD.

    {"version": "VERSION 1.3", "external_data": {},
     "results": {"video7": [{"label": "Diving", "score": 0.93, "segment": [3.2, 9.9]}]}}

Segments are [start, end] in seconds. A label is the name of a class; a number is read as its id, from 0.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.evaluation.formats.problems import (
    Problems,
    check_detections,
    check_video,
    class_id_of_label,
    class_id_of_name,
    class_ids,
    existing,
    has_fields,
    load_json,
    score_of,
    short,
    times_of,
)
from kd_jax.files import write_atomically


def write_activitynet(
    path: Path,
    detections: Mapping[str, np.ndarray],
    classes: Sequence[str],
    *,
    version: str = "VERSION 1.3",
    external_data: Mapping | None = None,
) -> None:
    """Writes detections as the ActivityNet and THUMOS14 tools read them, times in seconds.

    Args:
      path: of the JSON file.
      detections: {video: `[N, 4]`}; a video without detections keeps an empty list.
      classes: names by class id.
      version: of the data set's release, as in the official example.
      external_data: what the submission says of it; None = {}.

    Raises:
      ValueError: as `write_native`.
    """
    names = list(class_ids(classes))
    results = {
        video: [
            {"label": names[int(c)], "score": score, "segment": [start, end]} for c, start, end, score in table.tolist()
        ]
        for video, table in check_detections(detections, len(names)).items()
    }
    content = {"version": version, "results": results, "external_data": dict(external_data or {})}
    write_atomically(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())


def read_activitynet(path: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads detections from ActivityNet-style JSON, written here or by another tool.

    Only `results` is needed, and of its entries label, score and segment; what else stands there is not read.

    Args:
      path: of the JSON file.
      classes: names by class id.

    Returns:
      {video: `[N, 4]`}.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming video, entry, field and value of everything that is wrong.
    """
    path = existing(path)
    problems = Problems(path)
    ids = class_ids(classes)
    content = load_json(path, dict, problems)
    problems.check()
    results = content.get("results")
    if not isinstance(results, dict):
        what = short(results) if "results" in content else f"missing, there are {short(list(content))}"
        raise ValueError(f"{path}: results: {what}; expected {{video: [{{label, score, segment}}]}}")
    detections = {}
    for video, entries in results.items():
        check_video(video, problems)
        if not isinstance(entries, list):
            problems.add(f"results[{video!r}]", f"{short(entries)}, expected a list")
            continue
        rows = []
        for number, entry in enumerate(entries):
            where = f"results[{video!r}] entry {number}"
            if not isinstance(entry, dict):
                problems.add(where, f"{short(entry)}, expected an object with label, score and segment")
                continue
            if not has_fields(where, entry, ("label", "score", "segment"), problems):
                continue
            label, segment = entry["label"], entry["segment"]
            if not isinstance(segment, list) or len(segment) != 2:
                problems.add(f"{where} segment", f"{short(segment)}, expected [start, end] in seconds")
                continue
            if isinstance(label, (int, float)):
                class_id = class_id_of_label(f"{where} label", label, len(ids), 0, problems)
            else:
                class_id = class_id_of_name(f"{where} label", label, ids, problems)
            score = score_of(f"{where} score", entry["score"], problems)
            rows.append((class_id, *times_of(where, segment, problems), score))
        detections[video] = np.array(rows, np.float64).reshape(-1, 4)
    problems.check()
    return detections
