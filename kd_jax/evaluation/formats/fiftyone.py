"""FiftyOne's JSON of temporal detections, which it reads with the videos:

    fiftyone.Dataset.from_dir(
        dataset_type=fiftyone.types.FiftyOneTemporalDetectionDataset,
        data_path="videos", labels_path="OUT/fiftyone.json", label_field="kd_jax",
    )

A label is an index into `classes`; timestamps are [start, stop] in seconds. Source: the page *Loading data* of the
documentation of FiftyOne, FiftyOneTemporalDetectionDataset.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.evaluation.formats import fields
from kd_jax.files import write_atomically


def write_fiftyone(path: Path, detections: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """Writes detections for FiftyOne; a video is the name of its file without the ending.

    A video without detections has an empty list. Raises ValueError as in `write_native`.
    """
    names = list(fields.class_ids(classes))
    labels = {
        video: [
            {"label": int(class_id), "timestamps": [start, end], "confidence": score}
            for class_id, start, end, score in table.tolist()
        ]
        for video, table in fields.check_detections(detections, len(names)).items()
    }
    content = {"classes": names, "labels": labels}
    write_atomically(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())
