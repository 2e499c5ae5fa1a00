"""VIA 3, the VGG Image Annotator for video: its CSV export, times in seconds.

    # Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)
    # ATTRIBUTE = {"1":{"aname":"TEMPORAL-SEGMENTS","type":4,"options":{"cut":"Cut"},…}}
    # CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata
    "1_j5sJvB9h","[""kitchen.mp4""]",0,"[3.2,10.8]","[]","{""1"":""cut""}"

The export of only temporal segments, with the columns temporal_segment_start and temporal_segment_end, is read too.
Rows of a single frame or of the whole file are not segments.

Source: the comments at the head of these files.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping

from kd_jax.data.annotations.tools.media import video_name
from kd_jax.data.checks import NO_SPAN, Findings, parse, reason, short

CHECKBOX = 2  # type of an attribute of which several options can be chosen, written with commas


def read(text: str, where: str, findings: Findings, label_from: str = "") -> dict[str, dict]:
    """Reads the segments; `label_from` names the attribute with the class, needed if segments have several."""
    comments = dict(re.findall(r'^"?# *(\w+) *= *(.*)$', text, re.MULTILINE))
    columns = [name.strip() for name in comments["CSV_HEADER"].strip(', "').split(",")]
    try:
        attributes = json.loads(comments.get("ATTRIBUTE", "{}"))
        attributes = {key: value for key, value in attributes.items() if isinstance(value, dict)}
    except (ValueError, AttributeError, RecursionError) as error:
        findings.problem("annotation layout", f"{where}: its line ATTRIBUTE is not JSON ({reason(error)})")
        return {}
    entries: dict[str, dict] = {}
    lines = text.splitlines()
    rows = csv.reader(line if not line.lstrip('"').startswith("#") else "" for line in lines)
    for row in _rows(rows, where, findings):
        place = f"{where} line {rows.line_num}"
        cells = dict(zip(columns, row, strict=False))
        if not row or not any(row):
            continue
        try:
            files, chosen = json.loads(cells["file_list"]), json.loads(cells["metadata"])
            times = _times(cells)
        except (KeyError, ValueError, RecursionError) as error:
            findings.problem(
                "annotation layout", f"{place}: {short(row)}: {reason(error)}; expected {', '.join(columns)}"
            )
            continue
        if not isinstance(files, list) or len(files) != 1 or not isinstance(files[0], str) or not files[0]:
            findings.problem("annotation layout", f"{place}: file_list {short(files)}, expected one file")
            continue
        entry = entries.setdefault(video_name(files[0]), {"actions": [], "unit": "seconds"})
        if not isinstance(times, list) or len(times) != 2:
            findings.note(NO_SPAN, f"{place}: {short(row)}")
        elif labels := _labels(chosen, attributes, place, findings, label_from):
            entry["actions"] += [[label, *times] for label in labels]
    return entries


def _rows(reader, where: str, findings: Findings) -> Iterator[list[str]]:
    """Yields the rows; ends with a problem at the first line that is no CSV."""
    try:
        yield from reader
    except csv.Error as error:
        findings.problem("annotation layout", f"{where} line {reader.line_num}: {error}")


def _times(cells: Mapping[str, str]) -> object:
    if "temporal_coordinates" in cells:
        return json.loads(cells["temporal_coordinates"])
    times = (cells[f"temporal_segment_{name}"] for name in ("start", "end"))
    return [parse(time) for time in times if time not in ("", "undefined")]


def _labels(chosen: object, attributes: Mapping, where: str, findings: Findings, label_from: str) -> list[str]:
    """Returns the classes of a segment; [] after a problem. `chosen` is {attribute, by id or name: option or text}."""
    chosen = chosen if isinstance(chosen, dict) else {}
    values = {str(attributes.get(key, {}).get("aname", key)): (key, value) for key, value in chosen.items()}
    name = label_from or (next(iter(values)) if len(values) == 1 else "")
    if name not in values:
        found = f"the attributes {', '.join(values)}" if values else "no attribute"
        case = f"{where}: the segment has {found}; name the one with the class by --label_from"
        findings.problem("class", case)
        return []
    key, value = values[name]
    attribute = attributes.get(key, {})
    options = attribute.get("options") if isinstance(attribute.get("options"), dict) else {}
    parts = str(value).split(",") if attribute.get("type") == CHECKBOX else [str(value)]
    labels = [str(options.get(part, part)).strip() for part in parts]
    if not all(labels):
        findings.problem("class", f"{where}: the attribute {name} is empty; choose a class in VIA")
        return []
    return labels
