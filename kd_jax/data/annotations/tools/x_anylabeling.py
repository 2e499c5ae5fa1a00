"""X-AnyLabeling: the JSON file that its Video Classifier writes next to a video.

    {"version": "1.0.0", "type": "video_classification", "video": "kitchen.mp4", "fps": 30.0, "duration_ms": 120000,
     "segments": [{"label": "cut", "start_ms": 1000, "end_ms": 3500, "start_frame": 30, "end_frame": 105}]}

Its files of one image each have no times and are refused.

Source: X-AnyLabeling, docs/en/video_classifier.md.
"""

from collections.abc import Mapping

from kd_jax.data.annotations.common_layout import list_field
from kd_jax.data.annotations.tools.media import video_name
from kd_jax.data.checks import TIMES_DIFFER, Findings, number, short

MAX_FRAMES = 2  # by which a frame number may differ from the time in milliseconds


def read(content: Mapping, where: str, findings: Findings) -> dict[str, dict]:
    """Reads the segments of the video."""
    if not isinstance(content.get("video"), str) or not content["video"]:
        findings.problem("annotation layout", f"{where}: video {short(content.get('video'))}, expected a file name")
        return {}
    video, fps = video_name(content["video"]), number(content.get("fps"))
    actions = []
    for segment in list_field(video, dict(content), "segments", findings):
        if not isinstance(segment, dict) or not {"label", "start_ms", "end_ms"} <= segment.keys():
            findings.problem("action", f"{video}: {short(segment)}, expected label, start_ms and end_ms")
            continue
        times = [number(segment[f"{name}_ms"]) / 1000 for name in ("start", "end")]
        frames = [number(segment.get(f"{name}_frame")) for name in ("start", "end")]
        if any(abs(time * fps - frame) > MAX_FRAMES for time, frame in zip(times, frames, strict=True)):
            findings.note(TIMES_DIFFER, f"{video}: {short(segment)}, {fps:g} frames per second")
        actions.append([segment["label"], *times])
    known = {"duration": number(content["duration_ms"]) / 1000} if "duration_ms" in content else {}
    known |= {"fps": fps} if fps > 0 else {}
    return {video: {"actions": actions, "unit": "seconds", **known}}
