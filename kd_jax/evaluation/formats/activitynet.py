"""ActivityNet-style JSON, also read by the THUMOS14 tools of ActionFormer and OpenTAD.

    {"version": "VERSION 1.3", "external_data": {},
     "results": {"video7": [{"label": "Diving", "score": 0.93, "segment": [3.2, 9.9]}]}}

Segments are [start, end] in seconds. A label is the name of a class; a number is read as a class id, from 0.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.data.checks import Findings, check_video_id, load_json, short
from kd_jax.evaluation.formats import fields
from kd_jax.files import write_atomically


def write_activitynet(
    path: Path,
    detections: Mapping[str, np.ndarray],
    classes: Sequence[str],
    *,
    version: str = "VERSION 1.3",
    external_data: Mapping | None = None,
) -> None:
    """Writes detections in the format of the ActivityNet and THUMOS14 tools, times in seconds.

    Args:
      detections: {video: `[N, 4]`}; a video without detections keeps an empty list.
      version: version of the data set, as in the official example.
      external_data: the statement about external data of a challenge submission; None = {}.

    Raises ValueError as in `write_native`.
    """
    names = list(fields.class_ids(classes))
    results = {
        video: [
            {"label": names[int(c)], "score": score, "segment": [start, end]} for c, start, end, score in table.tolist()
        ]
        for video, table in fields.check_detections(detections, len(names)).items()
    }
    content = {"version": version, "results": results, "external_data": dict(external_data or {})}
    write_atomically(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())


def read_activitynet(path: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads detections from ActivityNet-style JSON, written here or by another tool.

    Only `results` is needed, and in its entries label, score and segment. Other fields are ignored. Returns {video:
    `[N, 4]`}. Raises FileNotFoundError if there is no such file; DataError naming video, entry, field and value of
    every problem.
    """
    path, ids = fields.existing(path), fields.class_ids(classes)
    findings = Findings(path)
    content = load_json(path, dict, "an object with results", findings)
    findings.raise_problems("nothing was read")
    results = content.get("results")
    if not isinstance(results, dict):
        found = short(results) if "results" in content else f"missing, there are {short(list(content))}"
        findings.problem("layout", f"results: {found}; expected {{video: [{{label, score, segment}}]}}")
        results = {}
    detections = {}
    for video, entries in results.items():
        check_video_id(video, findings, "results")
        if not isinstance(entries, list):
            findings.problem("layout", f"results[{video!r}]: {short(entries)}, expected a list")
            continue
        rows = [_read_entry(f"results[{video!r}] entry {i}", entry, ids, findings) for i, entry in enumerate(entries)]
        detections[video] = np.array([row for row in rows if row], np.float64).reshape(-1, 4)
    findings.raise_problems("nothing was read")
    return detections


def _read_entry(where: str, entry: object, ids: Mapping[str, int], findings: Findings) -> tuple | None:
    values = fields.object_with(where, entry, ("label", "score", "segment"), findings)
    if values is None:
        return None
    label, segment = values["label"], values["segment"]
    if not isinstance(segment, list) or len(segment) != 2:
        findings.problem("segment", f"{where} segment: {short(segment)}, expected [start, end] in seconds")
        return None
    if isinstance(label, (int, float)):
        class_id = fields.class_of_label(f"{where} label", label, len(ids), 0, findings)
    else:
        class_id = fields.class_of_name(f"{where} label", label, ids, findings)
    score = fields.finite(f"{where} score", values["score"], findings)
    return class_id, *fields.start_and_end(where, segment, findings), score
