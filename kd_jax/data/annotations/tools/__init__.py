"""Files of annotation tools, translated into the common layout.

    findings = Findings()
    name, entries = read_file(Path("export.json"), findings)   # ("Label Studio", {video: {"actions": …, …}})

A reader returns {video: entry}. An entry has `actions`, a list of [label, start, end], and `unit`, 'seconds' or
'frames', unless the file leaves it open; `frame_rate` says in words what the rate of its frames is. It has `subset`,
`duration` (seconds) and `fps` if the file states them. The values are not checked yet; `common_layout` does that for
all formats.

    write_file(Path("tasks.json"), "label_studio", entries)   # the reverse; times in seconds

| module | reads | writes |
|---|---|---|
| `segment_table` | CSV with a row per action | yes |
| `activitynet` | ground truth of ActivityNet | yes |
| `label_studio` | JSON export | yes |
| `via` | CSV export of VIA 3 | |
| `elan` | `.eaf` | |
| `x_anylabeling` | JSON of the Video Classifier | |
| `label_files` | a folder of text files with segments, or with a label per frame | |
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from kd_jax.data.annotations.common_layout import only_objects
from kd_jax.data.annotations.tools import (
    activitynet,
    elan,
    label_files,
    label_studio,
    segment_table,
    via,
    x_anylabeling,
)
from kd_jax.data.checks import Findings, parse_json, read_text, short
from kd_jax.data.text_files import normalize
from kd_jax.files import write_atomically

COMMON = "the common layout"
WRITTEN = ("activitynet", "csv", "json", "label_studio")  # formats of `write_file`; json is the common layout
LABELLED = ("ELAN", "Label Studio", "VIA 3")  # formats in which --label_from chooses what the classes are
# Files that a tool writes but that hold no annotated times: words that only they have → what to do.
REFUSED = {
    "_via_settings": "it is a project of VIA 2, which has no times; annotate in VIA 3",
    "vid_list": "it is a project of VIA 3; export it as CSV",
    "results": "it holds predictions; the annotations of ActivityNet have a database",
    "imagePath": "it annotates one image and has no times; use the Video Classifier of X-AnyLabeling",
}


def read_file(path: Path, findings: Findings, label_from: str = "") -> tuple[str, dict]:
    """Reads an annotation file of any format, which its content shows.

    Args:
      label_from: where the class is if the file has several labels: 'tier', 'value' or the name of a tier (ELAN), the
        name of an attribute (VIA 3) or of a control (Label Studio).

    Returns the name of the format and {video: entry}; ('', {}) after a problem.
    """
    if path.is_dir():
        return label_files.read(path, findings)
    if path.suffix == ".npz":
        return label_files.read_archive(path, findings)
    text, label_from = read_text(path, findings), normalize(label_from)
    if text is None:
        return "", {}
    start = text.lstrip()[:1]
    if not start:
        findings.problem("annotation layout", f"{path}: it is empty")
        return "", {}
    if start in "{[":
        return _read_json(text, path, findings, label_from)
    if start == "<":
        return "ELAN", elan.read(text, str(path), findings, label_from)
    if re.search(r'^"?# *CSV_HEADER *=', text, re.MULTILINE):
        return "VIA 3", via.read(text, str(path), findings, label_from)
    return "CSV", segment_table.read(text, str(path), findings)


def _read_json(text: str, path: Path, findings: Findings, label_from: str) -> tuple[str, dict]:
    kind: type = list if text.lstrip().startswith("[") else dict
    where = str(path)
    content = parse_json(text, path, kind, "an object with at least one video, or a list of tasks", findings)
    if not content:
        if isinstance(content, list) and not findings.problems:
            findings.problem("annotation layout", f"{path}: [], expected an object with at least one video, or tasks")
        return "", {}
    if isinstance(content, dict) and any(isinstance(e, dict) and "actions" in e for e in content.values()):
        return COMMON, _common_layout(content, findings)
    if isinstance(content, list) or {"data", "annotations"} <= content.keys():
        return "Label Studio", label_studio.read(content, where, findings, label_from)
    if "database" in content:
        return "ActivityNet", activitynet.read(content, where, findings)
    if content.get("type") == "video_classification":
        return "X-AnyLabeling", x_anylabeling.read(content, where, findings)
    project = content["project"] if isinstance(content.get("project"), dict) else {}
    for word, remedy in REFUSED.items():
        if word in content or word in project:
            findings.problem("annotation layout", f"{path}: {remedy}")
            return "", {}
    if not any(isinstance(entry, dict) for entry in content.values()):
        known = f"{short(list(content))} are the keys of no format that is read (data_prep/README.md lists them)"
        findings.problem("annotation layout", f"{path}: {known}; expected an object with at least one video")
        return "", {}
    return COMMON, _common_layout(content, findings)


def _common_layout(content: Mapping, findings: Findings) -> dict[str, dict]:
    """Returns the entries of a file in the common layout, without fields that only other readers set."""
    set_by_readers = ("unit", "frame_rate", "num_labelled_frames", "num_columns")  # the command line states the unit
    return {
        video: {name: value for name, value in entry.items() if name not in set_by_readers}
        for video, entry in only_objects(content, findings).items()
    }


def write_file(path: Path, to: str, entries: Mapping[str, Mapping]) -> None:
    """Writes videos of the common layout, times in seconds, in a format of WRITTEN; Label Studio needs their `fps`."""
    if to == "csv":
        content = segment_table.write(entries)
    else:
        tree: object = dict(entries)
        if to != "json":
            tree = activitynet.write(entries) if to == "activitynet" else label_studio.write(entries)
        content = json.dumps(tree, ensure_ascii=False, indent=1) + "\n"
    write_atomically(path, content.encode())
