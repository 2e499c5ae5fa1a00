"""Prediction files: readers and writers of the formats of official evaluation scripts and of this project.

    write_activitynet(Path('thumos.json'), {'video7': found}, classes)
    detections = read_activitynet(Path('thumos.json'), classes)   # also files of ActionFormer, OpenTAD and others

| module | holds | read by |
|---|---|---|
| `native` | `scores.npz`: {video: `[T, C]`}; `detections.json`: a list of {video, class, start, end, score} | kd_jax |
| `activitynet` | JSON with {results: {video: [{label, score, segment}]}} | ActivityNet, THUMOS14 |
| `pku_mmd` | a folder of `<video>.txt`, lines `label,start,end,confidence` in frames | PKU-MMD, TSU event mAP |
| `charades` | a text file of lines `video frame score × 157`, 25 frames per video | Charades_v1_localize.m |
| `csv_table` | CSV `video,label,start,end,score` | spreadsheets, pandas |
| `webvtt` | a folder of `<video>.vtt`, subtitles | video players |
| `fiftyone` | JSON of temporal detections with timestamps | FiftyOne |
| `label_studio` | JSON tasks with pre-annotations, and the config of a project | Label Studio |

In memory, detections are {video: `[N, 4]`} float64 rows (class, start s, end s, score), see
`kd_jax.evaluation.proposals`. Their order is that of the file and decides between equal scores. Numbers are written
with enough digits to read the same number in the same dtype; only times in the frames of PKU-MMD may differ in the last
bit. A writer that fails leaves the previous file. A reader raises one DataError with all problems, up to 20 of a kind.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from kd_jax.data.checks import Findings, check_video_id
from kd_jax.evaluation.formats.activitynet import read_activitynet, write_activitynet
from kd_jax.evaluation.formats.charades import charades_frames, read_charades, write_charades
from kd_jax.evaluation.formats.csv_table import read_csv, write_csv
from kd_jax.evaluation.formats.fiftyone import write_fiftyone
from kd_jax.evaluation.formats.label_studio import VideoFile, write_label_studio
from kd_jax.evaluation.formats.native import read_native, read_scores, write_native, write_scores
from kd_jax.evaluation.formats.pku_mmd import read_pku_mmd, write_pku_mmd
from kd_jax.evaluation.formats.webvtt import write_webvtt
from kd_jax.evaluation.metrics.charades import NUM_CLASSES as CHARADES_CLASSES
from kd_jax.evaluation.metrics.segment_rows import Tables
from kd_jax.segments import Grid

__all__ = [
    "FORMATS", "VideoFile", "charades_frames", "check_formats", "read_activitynet", "read_charades", "read_csv",
    "read_native", "read_pku_mmd", "read_scores", "write", "write_activitynet", "write_charades", "write_csv",
    "write_fiftyone", "write_label_studio", "write_native", "write_pku_mmd", "write_scores", "write_webvtt",
]  # fmt: skip

FORMATS = {  # format: the files that `write` puts into a folder
    "native": ("scores.npz", "detections.json"),
    "activitynet": ("activitynet.json",),
    "pku_mmd": ("pku_mmd",),
    "charades": ("charades_localize.txt",),
    "csv": ("detections.csv",),
    "webvtt": ("webvtt",),
    "fiftyone": ("fiftyone.json",),
    "label_studio": ("label_studio.json", "label_studio.xml"),
}


def check_formats(formats: Iterable[str], videos: Iterable[str], num_classes: int, files: Collection[str] = ()) -> None:
    """Raises DataError if these predictions cannot be written in one of the formats.

    `files` holds the names of the videos whose files are known.
    """
    findings = Findings("the predictions to write")
    formats = list(formats)
    for name in [name for name in formats if name not in FORMATS]:
        findings.problem("format", f"{name!r} is unknown; known formats: {', '.join(FORMATS)}")
    if "charades" in formats and num_classes != CHARADES_CLASSES:
        case = f"{num_classes} classes, the format charades has {CHARADES_CLASSES}; choose another format"
        findings.problem("format", case)
    for video in videos:
        check_video_id(video, findings, blanks="charades" not in formats)
        if "label_studio" in formats and video not in files:
            case = (
                f"{video!r}: label_studio needs its frames per second; predict from --video, or choose another format"
            )
            findings.problem("format", case)
    findings.raise_problems()


def write(
    directory: Path,
    formats: Iterable[str],
    *,
    scores: Tables,
    detections: Tables,
    classes: Sequence[str],
    files: Mapping[str, VideoFile] | None = None,
    times: Mapping[str, tuple[Grid, float]] | None = None,
) -> list[Path]:
    """Writes predictions into a folder in each of the formats, under the names in FORMATS.

    Args:
      directory: an existing folder; files with these names are replaced.
      scores: {video: `[T, C]`}, or `[T, C + 1]` with the background last.
      detections: {video: `[N, 4]`}.
      files: the video files by name, for `label_studio`.
      times: {video: (the times of its snippets, its duration)}, for `charades`; the snippets of other videos divide
        their durations evenly.

    Returns the files and folders that were written. Raises ValueError as in `check_formats` and the writers of the
    formats.
    """
    formats, files, times = list(dict.fromkeys(formats)), files or {}, times or {}
    check_formats(formats, scores, len(classes), files)
    paths = {name: [directory / file for file in FORMATS[name]] for name in formats}
    if "native" in paths:
        write_scores(paths["native"][0], scores)
        write_native(paths["native"][1], detections, classes)
    if "activitynet" in paths:
        write_activitynet(paths["activitynet"][0], detections, classes)
    if "pku_mmd" in paths:
        write_pku_mmd(paths["pku_mmd"][0], detections, len(classes), overwrite=True)
    if "charades" in paths:
        tables = {video: table[:, : len(classes)] for video, table in scores.items()}
        frames = {video: charades_frames(table, *times.get(video, ())) for video, table in tables.items()}
        write_charades(paths["charades"][0], frames)
    if "csv" in paths:
        write_csv(paths["csv"][0], detections, classes)
    if "webvtt" in paths:
        write_webvtt(paths["webvtt"][0], detections, classes)
    if "fiftyone" in paths:
        write_fiftyone(paths["fiftyone"][0], detections, classes)
    if "label_studio" in paths:
        write_label_studio(paths["label_studio"][0], detections, classes, files)
    return [path for group in paths.values() for path in group]
