"""CSV with the columns video, label, start, end, score; times are in seconds.

video,label,start,end,score
kitchen_1,cut bread,3.2,10.8,0.93
"""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.data.checks import Findings, check_video_id, parse, read_text, short
from kd_jax.evaluation.formats import fields
from kd_jax.files import write_atomically

COLUMNS = ("video", "label", "start", "end", "score")


def write_csv(path: Path, detections: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """Writes detections as CSV, a line each. This format does not contain videos without detections.

    Raises ValueError as in `write_native`.
    """
    names = list(fields.class_ids(classes))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for video, table in fields.check_detections(detections, len(names)).items():
        writer.writerows([video, names[int(class_id)], *values] for class_id, *values in table.tolist())
    write_atomically(path, text.getvalue().encode())


def read_csv(path: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads detections from CSV: {video: `[N, 4]`}, without the videos that have no detections.

    The first line names the columns, in any order; other columns are ignored. They are separated by commas, or by
    semicolons or tabs if the first line has no comma. Raises FileNotFoundError if there is no such file; DataError
    naming line, column and value of every problem.
    """
    path, ids = fields.existing(path), fields.class_ids(classes)
    findings = Findings(path)
    whole = read_text(path, findings) or ""
    text = whole.lstrip("\n")
    skipped = len(whole) - len(text)  # blank lines
    header = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    if missing := [name for name in COLUMNS if name not in reader.fieldnames]:
        findings.problem("layout", f"the first line is {short(header)}; it lacks the column {', '.join(missing)}")
    findings.raise_problems("nothing was read")
    rows = defaultdict(list)
    try:
        for row in reader:
            where = f"line {skipped + reader.line_num}"
            if not check_video_id(row["video"], findings, where):
                continue
            class_id = fields.class_of_name(f"{where} label", row["label"], ids, findings)
            start, end, score = (parse(row[name] or "") for name in ("start", "end", "score"))
            times = fields.start_and_end(where, (start, end), findings)
            rows[row["video"]].append((class_id, *times, fields.finite(f"{where} score", score, findings)))
    except csv.Error as error:
        findings.problem("layout", f"line {skipped + reader.line_num}: {error}")
    findings.raise_problems("nothing was read")
    return {video: np.array(found, np.float64).reshape(-1, 4) for video, found in rows.items()}
