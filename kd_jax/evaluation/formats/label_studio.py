"""Tasks of Label Studio with detections as pre-annotations, so that a person corrects predictions.

    [{"data": {"video": "kitchen.mp4", "fps": 25.0},
      "predictions": [{"model_version": "kd_jax", "score": 0.93, "result": [
          {"id": "region_0", "type": "timelinelabels", "from_name": "actions", "to_name": "video", "score": 0.93,
           "value": {"ranges": [{"start": 81, "end": 270}], "timelinelabels": ["cut bread"]}}]}]}]

`kd_jax.data.annotations.tools.label_studio` describes the layout and reads the corrected tasks.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.data.annotations.tools.label_studio import labelling_config, make_regions, make_task
from kd_jax.data.checks import Findings
from kd_jax.evaluation.formats import fields
from kd_jax.files import write_atomically


class VideoFile(NamedTuple):
    """A video file that was predicted."""

    path: Path
    fps: float  # frames per second


def write_label_studio(
    path: Path, detections: Mapping[str, np.ndarray], classes: Sequence[str], files: Mapping[str, VideoFile]
) -> None:
    """Writes a task per video, and the labelling config of the project as an .xml file next to it.

    Times are rounded to whole frames, and a region has at least one. `files` holds the video files by name; DataError
    if one is missing. Raises ValueError as in `write_native`.
    """
    names = list(fields.class_ids(classes))
    findings = Findings("the detections to write")
    for video in [video for video in detections if video not in files]:
        findings.problem("video file", f"{video}: its file and frames per second are unknown")
    findings.raise_problems()
    tasks = []
    for video, table in fields.check_detections(detections, len(names)).items():
        rows = table.tolist()
        regions = make_regions([(names[int(c)], start, end) for c, start, end, _ in rows], files[video].fps)
        result = [region | {"score": score} for region, (*_, score) in zip(regions, rows, strict=True)]
        prediction: dict = {"model_version": "kd_jax", "result": result}
        if result:
            prediction["score"] = float(table[:, 3].mean())
        file, fps = files[video]
        tasks.append(make_task(file.name, {"fps": fps}, predictions=[prediction]))
    write_atomically(path, (json.dumps(tasks, ensure_ascii=False) + "\n").encode())
    write_atomically(path.with_suffix(".xml"), labelling_config(names).encode())
