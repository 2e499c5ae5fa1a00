"""Label Studio: tasks in JSON, with annotations by a person or predictions of a model.

    [{"data": {"video": "kitchen.mp4", "fps": 25},
      "annotations": [{"result": [{"type": "timelinelabels", "from_name": "actions", "to_name": "video",
                                   "value": {"ranges": [{"start": 26, "end": 100}], "timelinelabels": ["cut"]}}]}]}]

Frames are counted from 1, and the end is the last frame inside. They are frames of the project's labelling config, not
of the video: `<Video frameRate>` is 24 unless it is set. The files written here therefore have `fps` in each task, for
a config with `frameRate="$fps"`, as `labelling_config` makes it. Regions of type `labels` are in seconds.

Source: labelstud.io, pages Label Studio Task Format, TimelineLabels, Video and Audio.
"""

from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import quoteattr

from kd_jax.data.annotations.tools.media import is_media, video_name
from kd_jax.data.checks import NO_SPAN, NOT_SUBMITTED, Findings, number, short

CONTROL, OBJECT = "actions", "video"  # names of the tags in the labelling config
FRAME_RATE = "the frameRate of Label Studio's Video tag (24 unless it is set)"
FACTS = ("fps", "duration", "subset")  # of a video, kept in the data of its task

Region = tuple[str, float, float]  # (label, start, end), seconds


def labelling_config(classes: Sequence[str]) -> str:
    """Returns the labelling config, XML, of a project for tasks of `make_task`."""
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in classes)
    video = f'  <Video name="{OBJECT}" value="$video" frameRate="$fps" timelineHeight="120"/>\n'
    timeline = f'  <TimelineLabels name="{CONTROL}" toName="{OBJECT}">\n{labels}  </TimelineLabels>\n'
    return f"<View>\n{video}{timeline}</View>\n"


def make_task(video: str, facts: Mapping, **annotated: Sequence[Mapping]) -> dict:
    """Returns a task: the file or URL of a video, facts such as its fps, and `annotations=` or `predictions=`."""
    return {"data": {"video": video, **facts}, **annotated}


def make_regions(actions: Iterable[Region], fps: float) -> list[dict]:
    """Returns regions of whole frames, those nearest to the times; an action has at least one frame."""
    regions = []
    for i, (label, start, end) in enumerate(actions):
        first = max(round(start * fps), 0) + 1
        span = {"start": first, "end": max(first, round(end * fps))}
        region = {"id": f"region_{i}", "from_name": CONTROL, "to_name": OBJECT, "type": "timelinelabels"}
        regions.append(region | {"value": {"ranges": [span], "timelinelabels": [label]}})
    return regions


def write(entries: Mapping[str, Mapping]) -> list[dict]:
    """Returns the tasks of videos in the common layout with `fps`, times in seconds."""
    tasks = []
    for video, entry in entries.items():
        facts = {name: entry[name] for name in FACTS if name in entry}
        result = make_regions(entry["actions"], entry["fps"])
        tasks.append(make_task(f"{video}.mp4", facts, annotations=[{"result": result}]))
    return tasks


def read(content: list | dict, where: str, findings: Findings, label_from: str = "") -> dict[str, dict]:
    """Reads the annotations of tasks, or of one task; with `label_from`, only those of the control with this name."""
    entries: dict[str, dict] = {}
    controls: set[str] = set()
    for i, task in enumerate(content if isinstance(content, list) else [content]):
        place = f"{where} task {i}"
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict):
            findings.problem("annotation layout", f"{place}: {short(task)} has no data; export as JSON, not JSON-MIN")
        elif (video := _video_of(data, place, findings)) and (result := _result(task, video, findings)) is not None:
            if video in entries:
                findings.problem("repeated video", f"{place}: {video} occurs twice; remove all but one")
            controls |= {str(region.get("from_name")) for region in result if isinstance(region, dict)}
            entries[video] = _read_regions(result, f"{place} ({video})", findings, label_from)
            entries[video] |= {name: data[name] for name in FACTS if name in data}
    if label_from and controls and label_from not in controls:
        case = f"{where}: there is no control {label_from!r} (--label_from), but {', '.join(sorted(controls))}"
        findings.problem("control", case)
    return entries


def _video_of(data: Mapping, where: str, findings: Findings) -> str:
    """Returns the name of the video of a task; '' after a problem."""
    files = [value for value in data.values() if isinstance(value, str) and is_media(_video_file(value))]
    named = data.get("video") if isinstance(data.get("video"), str) else files[0] if len(files) == 1 else None
    if isinstance(named, str) and named:
        return video_name(named)
    findings.problem("annotation layout", f"{where}: data {short(data)} does not name one video")
    return ""


def _video_file(text: str) -> str:
    """Returns a path or URL without a query, so that its ending is that of the file."""
    return text if "local-files/?d=" in text else text.partition("?")[0]


def _result(task: Mapping, video: str, findings: Findings) -> list | None:
    """Returns the regions of the only annotation of a task that was submitted; None without one."""
    given = task.get("annotations", [])
    submitted = (
        [a for a in given if isinstance(a, dict) and not a.get("was_cancelled")] if isinstance(given, list) else []
    )
    chosen = [a for a in submitted if a.get("ground_truth")] or submitted
    if len(chosen) > 1:
        case = f"{video}: {len(chosen)} annotations; delete all but one, or mark one as ground truth"
        findings.problem("several annotations", case)
    elif not chosen:
        predicted = ", but predictions, which nobody has submitted" if task.get("predictions") else ""
        findings.note(NOT_SUBMITTED, f"{video}: no annotation{predicted}")
    elif not isinstance(chosen[0].get("result"), list):
        findings.problem("annotation layout", f"{video}: result {short(chosen[0].get('result'))}, expected a list")
    else:
        return chosen[0]["result"]
    return None


def _read_regions(result: list, where: str, findings: Findings, label_from: str) -> dict:
    frames, seconds, lengths = [], [], set()
    for region in result:
        value = region.get("value") if isinstance(region, dict) else None
        if not isinstance(value, dict) or label_from not in ("", region.get("from_name")):
            continue
        spans = value.get("ranges")
        if isinstance(labels := value.get("timelinelabels"), list) and isinstance(spans, list):
            spans = [span if isinstance(span, dict) else {} for span in spans]
            frames += [[c, number(s.get("start")) - 1, number(s.get("end"))] for s in spans for c in labels]
        elif isinstance(labels := value.get("labels"), list) and {"start", "end"} <= value.keys():
            seconds += [[label, number(value["start"]), number(value["end"])] for label in labels]
            lengths |= {region["original_length"]} if isinstance(region.get("original_length"), (int, float)) else set()
        else:
            findings.note(NO_SPAN, f"{where}: {short(region)}")
    if frames and seconds:
        remedy = "use --label_from with the name of one control"
        findings.problem("time", f"{where}: some regions are in frames, others in seconds; {remedy}")
    length = {"duration": lengths.pop()} if len(lengths) == 1 else {}
    of_frames = {"actions": frames, "unit": "frames", "frame_rate": FRAME_RATE}
    return of_frames if frames else {"actions": seconds, "unit": "seconds", **length}
