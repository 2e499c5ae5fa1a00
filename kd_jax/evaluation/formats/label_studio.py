"""Tasks of Label Studio with detections as pre-annotations, so that a person corrects predictions.

    [{"data": {"video": "kitchen.mp4", "fps": 25.0},
      "predictions": [{"model_version": "kd_jax", "score": 0.93, "result": [
          {"id": "region_0", "type": "timelinelabels", "from_name": "actions", "to_name": "video", "score": 0.93,
           "value": {"ranges": [{"start": 81, "end": 270}], "timelinelabels": ["cut bread"]}}]}]}]

Frames are counted from 1, and the end is the last frame inside. Label Studio assumes 24 frames per second unless the
project's labelling config says `frameRate="$fps"`, as `labelling_config` does. Source: the pages *Label Studio Task
Format*, *Import pre-annotated data*, *Video* and *TimelineLabels* of labelstud.io.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np

from kd_jax.data.checks import Findings
from kd_jax.evaluation.formats import fields
from kd_jax.files import write_atomically


class VideoFile(NamedTuple):
    """A video file that was predicted."""

    path: Path
    fps: float  # frames per second


def labelling_config(classes: Sequence[str]) -> str:
    """Returns the labelling config, XML, of a project that reads the tasks."""
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in classes)
    video = '  <Video name="video" value="$video" frameRate="$fps" timelineHeight="120"/>\n'
    return f'<View>\n{video}  <TimelineLabels name="actions" toName="video">\n{labels}  </TimelineLabels>\n</View>\n'


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
        regions = [_region(i, row, names, files[video].fps) for i, row in enumerate(table.tolist())]
        prediction = {"model_version": "kd_jax", "result": regions}
        if regions:
            prediction["score"] = float(table[:, 3].mean())
        data = {"video": files[video].path.name, "fps": files[video].fps}
        tasks.append({"data": data, "predictions": [prediction]})
    write_atomically(path, (json.dumps(tasks, ensure_ascii=False) + "\n").encode())
    write_atomically(path.with_suffix(".xml"), labelling_config(names).encode())


def _region(index: int, row: Sequence[float], names: Sequence[str], fps: float) -> dict:
    class_id, start, end, score = row
    first = max(round(start * fps), 0) + 1
    return {
        "id": f"region_{index}",
        "type": "timelinelabels",
        "from_name": "actions",
        "to_name": "video",
        "value": {
            "ranges": [{"start": first, "end": max(first, round(end * fps))}],
            "timelinelabels": [names[int(class_id)]],
        },
        "score": score,
    }
