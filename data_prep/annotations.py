"""Annotations of your own data, as the commands read them: with durations from videos or from manifests of features.

add_options(parser)                                                  # --label_from, --videos, --test, …
entries, names, facts = collect_entries(["a.eaf", "b.eaf"], (), options, folders, findings)
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from kd_jax.command_line import Parser, at_least, between, disk_path
from kd_jax.data import manifests
from kd_jax.data.annotations import custom
from kd_jax.data.annotations.cleaning import Annotated
from kd_jax.data.annotations.custom import Media, ReadOptions, read_list
from kd_jax.data.checks import Findings, check_common, number
from kd_jax.data.feature_folders import FeatureFolder
from kd_jax.video import videos


def add_options(parser: Parser) -> None:
    """Adds the options of the commands that read annotations of your own data."""
    add = parser.add_argument_group("your own annotations").add_argument
    add(
        "--videos",
        type=disk_path,
        help="Folder of the videos; durations and frame rates are theirs (of frames in folders: --fps).",
    )
    add("--test", type=disk_path, help="File with the names of the test videos, one a line.")
    add("--test_fraction", type=between(0, 1), help="Part of the videos to draw for testing; 0 for none.")
    add(
        "--validation",
        type=disk_path,
        help="File with the names of training videos that choose the best epoch, one a line.",
    )
    add("--seed", type=at_least(0), help="Seed of --test_fraction, and of the sets synthetic and utd_mhad (0).")
    add(
        "--label_from",
        help="Where the class is: tier, value or a tier (ELAN), attribute (VIA), control (Label Studio).",
    )


def read_options(given, **others) -> ReadOptions:
    """Returns the options of `add_options`, and `--fps`, as `ReadOptions`; `others` are further fields."""
    known = {name: getattr(given, name) for name in ("fps", "test", "test_fraction", "videos")}
    return ReadOptions(**known, label_from=given.label_from or "", seed=given.seed or 0, **others)


def collect_entries(
    paths: Sequence[str],
    names: Sequence[str],
    options: ReadOptions,
    features: Sequence[FeatureFolder],
    findings: Findings,
) -> tuple[custom.Entries, tuple[str, ...], list[str]]:
    """Reads annotation files into the common layout.

    Args:
      paths: annotation files.
      names: of the classes; () for those found in the annotations.
      features: folders whose manifests state the durations of videos.

    Returns {video: entry}, the names of the classes, and lines for the report.
    """
    found, formats = custom.read_files([Path(path) for path in paths], names, options, findings)
    facts = [f"{path}: {name}" for path, name in formats.items() if name]
    if not names:
        names = custom.class_names(found, findings)
        facts.append(f"classes: the {len(names)} names in the annotations, sorted")
    media = _from_manifests(found, features)
    media |= _from_videos(found, Path(options.videos), options.fps, findings) if options.videos else {}
    entries, more = custom.fill_in(found, media, options, findings)
    return entries, tuple(names), facts + more


def hold_out(videos: Sequence[Annotated], path: str | None, findings: Findings) -> list[Annotated]:
    """Returns the videos; if a file is given, those that it lists are held out for validation."""
    if not path:
        return list(videos)
    if stated := [video.id for video in videos if video.validation]:
        what = f"--validation={path}: the annotations state the validation videos too, such as {stated[0]}"
        findings.problem("validation list", f"{what}; leave out one of the two")
    split_of = {video.id: video.split for video in videos}
    listed = read_list(path, "validation list", split_of.keys(), findings)
    for video in sorted(listed & split_of.keys()):
        if split_of[video] == "test":
            findings.problem("validation list", f"{path}: {video} is a test video; list training videos")
    if not listed and not findings.problems:
        findings.problem("validation list", f"{path}: it lists no video")
    return [replace(video, validation=video.id in listed) for video in videos]


def _from_manifests(entries: Iterable[str], features: Sequence[FeatureFolder]) -> dict[str, Media]:
    """Returns what the manifests next to feature files state about videos."""
    found: dict[str, Media] = {}
    for video in entries:
        for path in [file for folder in features for file in folder.find(video)]:
            manifest = manifests.read_manifest(path, Findings()) or {}  # damage is reported with the features
            frames, fps = number(manifest.get("frames")), number(manifest.get("fps"))
            if frames > 0 and fps > 0:
                found.setdefault(video, Media(frames / fps, fps, path.with_suffix(".json")))
    return found


def _from_videos(entries: custom.Entries, folder: Path, fps: float | None, findings: Findings) -> dict[str, Media]:
    """Returns what the videos of these names in a folder state; folders of frames have `fps` frames per second."""
    found: dict[str, Media] = {}
    if not folder.is_dir():
        findings.problem("videos", f"--videos={folder} is not a folder")
        return found
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in videos.SUFFIXES]
    files = files or [path for path in sorted(folder.iterdir()) if videos.is_frame_folder(path)]
    if apart := check_common("the annotations", entries, f"--videos={folder}", list(map(videos.name_of, files))):
        findings.problem("videos", apart)
    for path in files:
        name = videos.name_of(path)
        if name not in entries:
            continue
        if name in found:
            findings.problem("videos", f"{found[name].source} and {path.name} have the same name; remove one")
            continue
        try:
            video = videos.probe_video(path, fps if path.is_dir() else None)
        except videos.VideoError as error:
            findings.problem("videos", str(error))
        else:
            found[name] = Media(video.duration, video.fps, path)
    if not found and entries and not findings.problems:
        findings.problem("videos", f"--videos={folder} has no video of the annotations, such as {min(entries)}.mp4")
    return found
