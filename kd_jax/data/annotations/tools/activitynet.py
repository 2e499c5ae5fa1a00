"""ActivityNet: ground truth in JSON, times in seconds. The files of ActionFormer and OpenTAD have the same layout.

    {"version": "1.3", "taxonomy": [],
     "database": {"kitchen": {"subset": "training", "duration": 61.5,
                              "annotations": [{"label": "cut", "segment": [3.2, 10.8]}]}}}

Source: activity-net.org, page Download.
"""

from collections.abc import Mapping

from kd_jax.data.annotations.common_layout import list_field, only_objects
from kd_jax.data.checks import Findings, short


def read(content: Mapping, where: str, findings: Findings) -> dict[str, dict]:
    """Reads the videos of the database."""
    database = content["database"]
    if not isinstance(database, dict) or not database:
        findings.problem("annotation layout", f"{where}: database {short(database)}, expected {{video: …}}")
        return {}
    entries = {}
    for video, entry in only_objects(database, findings).items():
        actions = []
        for action in list_field(video, entry, "annotations", findings):
            segment = action.get("segment") if isinstance(action, dict) else None
            if isinstance(segment, list) and len(segment) == 2 and "label" in action:
                actions.append([action["label"], *segment])
            else:
                expected = '{"label": NAME, "segment": [start, end]}'
                findings.problem("action", f"{video}: {short(action)}, expected {expected}")
        known = {name: entry[name] for name in ("subset", "duration", "fps") if name in entry}
        entries[video] = {"actions": actions, "unit": "seconds", **known}
    return entries


def write(entries: Mapping[str, Mapping]) -> dict:
    """Returns the content of a file with videos in the common layout, times in seconds."""
    database = {}
    for video, entry in entries.items():
        known = {name: entry[name] for name in ("subset", "duration", "fps") if name in entry}
        annotations = [{"label": label, "segment": [start, end]} for label, start, end in entry["actions"]]
        database[video] = {**known, "annotations": annotations}
    return {"version": "kd_jax", "taxonomy": [], "database": database}
