"""A table with a row per action: CSV, separated by commas, semicolons or tabs, with a header.

    video,label,start,end
    kitchen.mp4,cut,3.2,10.8
    kitchen.mp4,wash,00:12.500,00:20

Times are in seconds, or mm:ss or hh:mm:ss with a fraction. Columns may be in any order and have one of the usual names
(`COLUMNS`), among them duration and subset. A row with a video alone is a video without actions.
"""

import csv
import io
import re
from collections.abc import Mapping

from kd_jax.data.annotations.tools.media import video_name
from kd_jax.data.checks import Findings, number, parse, short

COLUMNS = {  # field: names of its column, in small letters with _ for all other characters and without a unit
    "video": ("video", "video_id", "video_name", "video_file", "file", "filename", "file_name", "media", "media_file"),
    "label": ("label", "class", "class_name", "action", "activity", "event", "category", "behavior", "behaviour"),
    "start": ("start", "start_time", "begin", "begin_time", "onset", "from", "t_start"),
    "end": ("end", "end_time", "stop", "stop_time", "finish", "offset", "to", "t_end"),
    "duration": ("duration", "video_duration", "video_length"),
    "subset": ("subset", "split", "set"),
}
NEEDED = ("video", "label", "start", "end")


def read(text: str, where: str, findings: Findings) -> dict[str, dict]:
    """Reads the rows. Times with colons are in seconds; the unit of others is left to the caller."""
    head = text.lstrip("\n").partition("\n")[0]
    delimiter = max(",;\t", key=lambda d: len({field for name in head.split(d) if (field := _field(name))}))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    entries: dict[str, dict] = {}
    try:
        header = next((row for row in rows if row), [])
        places = _places(header, where, findings)
        for row in rows if places else ():
            place = f"{where} line {rows.line_num}"
            cells = {field: row[i].strip() for field, i in places.items() if i < len(row)}
            if not any(map(str.strip, row)):
                continue
            if not cells.get("video") or (len(row) > len(header) and any(row[len(header) :])):
                findings.problem("annotation layout", f"{place}: {short(row)}, expected {', '.join(header)}")
                continue
            entry = entries.setdefault(video_name(cells["video"]), {"actions": []})
            _read_facts(entry, cells, place, findings)
            _read_action(entry, cells, place, findings)
    except csv.Error as error:
        findings.problem("annotation layout", f"{where}: {error}")
    return entries


def _field(name: str) -> str:
    """Returns the field that a column is for, or ''."""
    name = re.sub(r"\W+", "_", name.strip().strip('"').lower()).strip("_")
    name = re.sub(r"_(s|sec|secs|seconds)$", "", name)
    return next((field for field, names in COLUMNS.items() if name in names), "")


def _places(header: list[str], where: str, findings: Findings) -> dict[str, int]:
    """Returns {field: number of its column}; {} after a problem."""
    places: dict[str, int] = {}
    for i, name in enumerate(header):
        field = _field(name)
        if field in places:
            both = f"{header[places[field]]!r} and {name!r}"
            findings.problem("annotation layout", f"{where}: the columns {both} are both for the {field}; rename one")
            return {}
        places |= {field: i} if field else {}
    if missing := [field for field in NEEDED if field not in places]:
        found = f"no column {', '.join(missing)}; its first line is {short(header)}"
        findings.problem("annotation layout", f"{where}: {found}, expected {', '.join(NEEDED)}")
        return {}
    return places


def _read_facts(entry: dict, cells: Mapping[str, str], where: str, findings: Findings) -> None:
    """Adds duration and subset of the video, which must be equal in all of its rows."""
    for name, value in (("duration", _time(cells.get("duration", ""))), ("subset", cells.get("subset", ""))):
        if cells.get(name) and entry.setdefault(name, value) != value:
            case = f"{where}: {name} {short(cells[name])}, but {short(entry[name])} in an earlier row of this video"
            findings.problem(name, case)


def _read_action(entry: dict, cells: Mapping[str, str], where: str, findings: Findings) -> None:
    label, *written = (cells.get(field, "") for field in ("label", "start", "end"))
    if not label and not any(written):
        return
    times = [_time(text) for text in written]
    for field, text, time in zip(("start", "end"), written, times, strict=True):
        if isinstance(time, str):
            findings.problem("time", f"{where}: {field} {short(text)}, expected seconds, mm:ss.fff or hh:mm:ss.fff")
    if not label:
        findings.problem("class", f"{where}: the label is empty")
    elif not any(isinstance(time, str) for time in times):
        entry["actions"].append([label, *times])
    if any(":" in text for text in written):
        entry["unit"] = "seconds"


def _time(text: str) -> float | str:
    """Returns the seconds of 12.5, 12,5, 01:12.5 or 00:01:12.5; the text itself if it is none of these."""
    text = text.replace(",", ".")
    if clock := re.fullmatch(r"(?:(\d+):([0-5]?\d)|(\d+)):([0-5]?\d(?:\.\d+)?)", text, re.ASCII):
        hours, minutes, only_minutes, seconds = clock.groups()
        return 3600 * float(hours or 0) + 60 * float(minutes or only_minutes) + float(seconds)
    return number(parse(text)) if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text, re.ASCII | re.IGNORECASE) else text


def write(entries: Mapping[str, Mapping]) -> str:
    """Returns the table of videos in the common layout, times in seconds."""
    stream = io.StringIO()
    facts = [name for name in ("duration", "subset") if any(name in entry for entry in entries.values())]
    table = csv.writer(stream, lineterminator="\n")
    table.writerow([*NEEDED, *facts])
    for video, entry in entries.items():
        known = [entry.get(name, "") for name in facts]
        table.writerows([video, *action, *known] for action in entry["actions"] or [("", "", "")])
    return stream.getvalue()
