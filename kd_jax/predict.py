"""Predicts the actions in whole videos: a table of scores and a list of detections.

    kd-jax predict --run=workdir/demo/augmented_rgb --features=DIR_OR_NPY --output=OUT

This reads `<video>.npy` files of the run's modality, or one split of a folder of records. It writes OUT/scores.npz,
{video: `[T, C]` probabilities}, and OUT/detections.json, [{video, class, start, end, score}] in seconds. No annotation
is needed. --format chooses formats of official evaluation scripts, see `kd_jax.evaluation.formats`.

    kd-jax predict --run=workdir/tsu/augmented_rgb --video=kitchen.mp4 \\
        --encoder_weights=weights/i3d_rgb.npz --output=OUT

This reads a video with the encoder that made the run's features; `--encoder=MODULE:FUNCTION` names an encoder of your
own. It also writes OUT/<video>.png, which shows frames of the video above a timeline of the detections. If `kd-jax
extract` made the features, the run knows how videos are cut into snippets; options override this. If snippets of the
video would last over 10 % longer or shorter than those of the run, the video is sampled at another rate so that they
last as long.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from absl import logging
from etils import epath

from kd_jax import interrupts, runtime
from kd_jax.analysis import timelines
from kd_jax.analysis.page import make_page
from kd_jax.analysis.timelines import Lane, Recording, Timeline
from kd_jax.command_line import Parser, add_run, any_path, at_least, between, disk_path
from kd_jax.data import base, feature_files, records, synthetic, timing
from kd_jax.data.annotations import custom
from kd_jax.data.checks import ENCODED, GUESSED, UNITS_DIFFER, Findings, join_repeated
from kd_jax.data.feature_folders import FeatureFolder, parse_place
from kd_jax.data.modality_names import check_modality
from kd_jax.data.staging import replaced
from kd_jax.data.text_files import normalize
from kd_jax.evaluation import formats
from kd_jax.evaluation.proposals import CONVENTIONS, PROPOSALS
from kd_jax.evaluation.scoring import in_seconds
from kd_jax.evaluation.thresholds import default_threshold, explain_nothing
from kd_jax.files import make_folder, write_atomically
from kd_jax.inference import video_files
from kd_jax.inference.loading import load
from kd_jax.inference.trained_detector import TrainedDetector, stored_dtype
from kd_jax.inference.video_files import Encoded, VideoFiles, check_encoder, encode, how_extracted, list_videos
from kd_jax.lock import held
from kd_jax.segments import Grid
from kd_jax.training.checkpoints import TrainedRun
from kd_jax.training.run_config import COPY_AGAIN, read_run_results
from kd_jax.video import timeline, videos
from kd_jax.video.encoders.protocol import Encoder
from kd_jax.video.encoders.weights import read_encoder

SYNTHETIC = "synthetic"  # --features of the synthetic set, unless there is such a file or folder


def features_place(text: str) -> str:
    """Reads PLACE or MODALITY=PLACE, with a path on a disk."""
    name, equals, place = text.partition("=")
    return f"{name}={disk_path(place)}" if equals and base.is_name(name) else disk_path(text)


def parser() -> Parser:
    """The options of this command."""
    options = Parser("kd_jax.predict", __doc__)
    add = options.add_argument
    add_run(options)
    what = "A feature file, a folder of <video>.npy, a pattern as for kd-jax build, a folder of records, or"
    what += f" '{SYNTHETIC}', the data of the demo. MODALITY=PLACE states the modality; once for each in a fusion."
    add("--features", type=features_place, action="append", metavar="[MODALITY=]PLACE", help=what)
    add("--channels_first", action="store_true", default=None, help="With feature files: they are [D, T].")
    add("--pool", choices=["mean"], help="With feature files: average grids of tokens, [T, N, D], to [T, D].")
    what = "A video file or a folder of them, instead of features; may be repeated."
    add("--video", type=disk_path, action="append", help=what)
    add("--encoder_weights", type=disk_path, help="With --video: the encoder's, from kd-jax convert-weights.")
    add("--encoder", help="With --video: MODULE:FUNCTION of the encoder, as for kd-jax extract.")
    add("--annotations", type=disk_path, help="With --video: ground truth for the page, a file as for kd-jax build.")
    add("--fps", type=float, help="With --video: frames per second to sample it at.")
    videos.add_options(options, "as the run's features, else ")
    add("--split", choices=list(base.SPLITS), help="With records: which videos (test).")
    add("--output", type=any_path, help="Folder for scores.npz and detections.json.")
    what = f"What to write (native): {', '.join(formats.FORMATS)}; may be repeated."
    add("--format", action="append", choices=list(formats.FORMATS), metavar="FORMAT", help=what)
    add("--proposals", choices=list(PROPOSALS), help="From scores to detections (dense: classes, sparse: background).")
    threshold = "Probability from which a snippet counts as action (classes 0.5, background 0.4)."
    add("--threshold", type=between(0, 1), help=threshold)
    convention = "Instant that the score of a snippet describes: its start or its centre (centre)."
    add("--convention", choices=list(CONVENTIONS), default="centre", help=convention)
    add(
        "--seconds_per_snippet",
        type=between(timing.SHORTEST, timing.LONGEST),
        help="Instead of the snippet length of the run.",
    )
    batch_size = "Whole videos, or snippets of a video, per forward pass (8)."
    add("--batch_size", type=at_least(1), default=8, help=batch_size)
    return options


Tables = dict[str, dict[str, base.Features]]  # {video: {modality: [T, D]}}


@dataclasses.dataclass
class Inputs:
    """The videos to predict; every mapping is {video: value}."""

    features: Mapping[str, np.ndarray | base.OnDisk]  # [T, D], in memory or on disk
    grids: dict[str, Grid]  # the times of the snippets, in seconds
    durations: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds, where they are known


def name_places(given: Sequence[str], detector: TrainedDetector) -> dict[str, tuple[str, bool]]:
    """Returns {modality: (place, whether the user stated the modality)} of --features=[MODALITY=]PLACE.

    Raises ValueError, with the remedy, unless there is one place for each modality that the run reads.
    """
    found: dict[str, tuple[str, bool]] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if equals and base.is_name(name) and not Path(text).exists():
            named = {name: (place, True)}
        elif len(detector.inputs) == 1 or holds_videos(text):
            named = dict.fromkeys(detector.inputs, (text, False))
        else:
            named = {"": (text, False)}
        if named.keys() - detector.inputs.keys() or named.keys() & found.keys():
            break
        found |= named
    else:
        if found.keys() == detector.inputs.keys():
            return found
    wanted = " ".join(f"--features={modality}=PLACE" for modality in detector.inputs)
    shown = " ".join(f"--features={text}" for text in given)
    raise ValueError(f"{shown}: {detector.name} reads {' and '.join(detector.inputs)}; give {wanted}, or records")


def holds_videos(place: str) -> bool:
    """Whether a place is a folder of records, or SYNTHETIC."""
    path = Path(place)
    return (path / records.INFO_FILE).is_file() or (place == SYNTHETIC and not path.exists())


def find_features(
    place: str | Path, modality: str, *, is_stated: bool = False, channels_first: bool = False, pool: bool = False
) -> tuple[FeatureFolder, dict[str, Path]]:
    """Finds a feature file, or those of a folder or pattern.

    `is_stated` says that the user stated the modality. Returns the folder and {video: file}. Raises FileNotFoundError
    if there is none, and ValueError if names show several modalities or another one.
    """
    folder = FeatureFolder((modality,), Path(place), channels_first, pool)
    remedy = "give a folder of <video>.npy files, a pattern, one file, or records"
    if not any(character in str(place) for character in "{*?") and not folder.path.exists():
        raise FileNotFoundError(f"--features={place}: there is no such file or folder; {remedy}")
    if folder.path.is_file():
        files = {normalize(folder.path.stem): folder.path}
    else:
        path, pattern, array = parse_place(str(place))
        folder = dataclasses.replace(folder, path=path, pattern=pattern, array=array)
        files = folder.files()
    if not files or not all(file.exists() for file in files.values()):
        raise FileNotFoundError(f"--features={place}: no feature file there; {remedy}")
    check_modality(folder, files, str(place), is_stated=is_stated)
    return folder, files


def read_features(
    place: str | Path,
    modality: str,
    input_size: int,
    dtype: str = "float16",
    *,
    channels_first: bool = False,
    pool: bool = False,
) -> dict[str, np.ndarray]:
    """Reads a feature file, or those of a folder or pattern, as the builder of records does.

    `dtype` is the type in which records store them. Raises FileNotFoundError or ValueError, which lists every file that
    cannot be used.
    """
    folder, files = find_features(place, modality, channels_first=channels_first, pool=pool)
    return _read_tables(folder, files, input_size, dtype)


def _read_tables(
    folder: FeatureFolder, files: Mapping[str, Path], input_size: int, dtype: str
) -> dict[str, np.ndarray]:
    """Reads the files that `find_features` found, as `read_features` does."""
    findings, features, modality = Findings(), {}, folder.name

    def check(rows: np.ndarray, first: int) -> None:
        base.to_dtype(rows, dtype, first)

    for video, file in sorted(files.items()):
        if len(found := folder.find(video)) > 1:
            findings.problem("two feature files", f"{modality}: {found[0]} and {found[1]}; remove one")
            continue
        shape = feature_files.check_file(folder, file, video, findings, check)
        if shape and shape[1] != input_size:
            findings.problem("wrong dimension", f"{modality}: {file}: D = {shape[1]}, the run reads {input_size}")
        elif shape:
            features[video] = base.to_dtype(folder.load(file, video), dtype)
    findings.raise_problems()
    return features


def read_inputs(place: str | Path, split: str | None, run: TrainedRun, seconds: float | None, **layout: bool) -> Inputs:
    """Reads a feature file, those of a folder or pattern, or one split of a folder of records for a run.

    `split` is that of records (None: 'test'), `seconds` the duration of a snippet of feature files (None: the run's),
    and `layout` holds options of `find_features`. The place SYNTHETIC is the synthetic set, as if it were records.
    Raises FileNotFoundError or ValueError, which names the file or option and the remedy.
    """
    modality, size, path = run.config["modality"], run.config["input_size"], Path(place)
    if not holds_videos(str(place)):
        if split:
            raise ValueError(f"--split={split} would have no effect on {path}, which holds no records; leave it out")
        folder, files = find_features(place, modality, **layout)
        tables = _read_tables(folder, files, size, stored_dtype(run.config))
        return Inputs(tables, _find_times(files, tables, run, seconds))
    if seconds:
        raise ValueError(f"{path} holds records, which know their durations; leave out --seconds_per_snippet")
    if layout.get("channels_first") or layout.get("pool"):
        raise ValueError(f"{path} holds records, which are [T, D]; leave out --channels_first and --pool")
    is_folder, split = (path / records.INFO_FILE).is_file(), split or "test"
    info, splits = (records.read_info(path), {}) if is_folder else synthetic.make()
    if info.modalities.get(modality) != size:
        known = ", ".join(f"{name} of D = {width}" for name, width in info.modalities.items())
        raise ValueError(f"{path} has {known}; the run reads {modality} of D = {size}")
    found = records.read(path, split, [modality], on_disk=True) if is_folder else splits[split]
    if not found:
        raise ValueError(f"{path}: {split} has no videos; choose another --split")
    durations = {video.id: info.seconds(video.duration) for video in found}
    features = {video.id: video.features[modality] for video in found}
    return Inputs(features, {video.id: in_seconds(video, info) for video in found}, durations)


def join_modalities(inputs: Mapping[str, Inputs]) -> Tables:
    """Returns {video: {modality: features}} of the inputs of each modality; ValueError if a video lacks one."""
    everything = sorted({video for of in inputs.values() for video in of.features})
    for modality, of_modality in inputs.items():
        if lacking := [video for video in everything if video not in of_modality.features]:
            found = f"{len(lacking)} of {len(everything)} videos have no features of {modality}, such as {lacking[0]!r}"
            raise ValueError(f"{found}; the run reads {' and '.join(inputs)} of each")
    return {video: {modality: of.features[video] for modality, of in inputs.items()} for video in everything}


def _find_times(
    files: Mapping[str, Path], tables: Mapping[str, np.ndarray], run: TrainedRun, seconds: float | None
) -> dict[str, Grid]:
    """Returns {video: the times of its snippets}: as `seconds`, the manifest of its features or the run says."""
    findings, grids = Findings(), {}
    for video, table in tables.items():
        cut = None if seconds else timing.stated_cut(video, run.config["modality"], files[video], findings)
        grids[video] = cut.grid(len(table)) if cut else run.grid(len(table), seconds)
    findings.raise_problems()
    return grids


def open_videos(given: argparse.Namespace, detector: TrainedDetector) -> VideoFiles:
    """Opens the video files and the encoder, without decoding the videos.

    Raises FileNotFoundError or ValueError if the encoder does not fit the run, or no file can be used.
    """
    if len(detector.inputs) > 1:
        remedy = "extract the features of each with kd-jax extract, and give --features"
        reads = " and ".join(detector.inputs)
        raise ValueError(f"{detector.name} reads {reads}, and the encoder of --video makes one of them; {remedy}")
    run = detector.members[0]
    files = list_videos([Path(path) for path in given.video])
    encoder, made = read_own_encoder(given, run.config), how_extracted(run.config)
    sampling = videos.sampling(given, encoder.modality, encoder.sampling | made["sampling"])
    return video_files.open_videos(files, encoder, run.config, sampling, given.fps)


def read_own_encoder(given: argparse.Namespace, config: Mapping) -> Encoder:
    """Reads the encoder of the options and checks that it made the features of the run with this config.json."""
    if not given.encoder_weights and not given.encoder:
        needed = "--encoder_weights, those of the encoder that made the run's features, or --encoder"
        raise ValueError(f"--video needs {needed}")
    weights = Path(given.encoder_weights) if given.encoder_weights else None
    encoder = read_encoder(given.encoder, weights, dtype=how_extracted(config)["dtype"])
    names = [("encoder", given.encoder), ("encoder_weights", given.encoder_weights)]
    option = " ".join(f"--{name}={value}" for name, value in names if value)
    check_encoder(encoder, config, option, "encoder" if given.encoder else "weights")
    return encoder


def read_truth(path: str, files: Mapping[str, videos.Video], classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the actions of these videos, {video: `[N, 3]` rows (class, start s, end s)}, from an annotation file.

    Raises ValueError if the file cannot be read or has none of the videos.
    """
    findings = Findings(path)
    media = {name: custom.Media(video.duration, video.fps, video.path) for name, video in files.items()}
    known = custom.read_actions([Path(path)], classes, media, findings)
    findings.raise_problems("nothing was read")
    for kind in (ENCODED, GUESSED, UNITS_DIFFER):
        for case in findings.handled.get(kind, ()):
            logging.warning("--annotations: %s: %s", kind, case)
    return known


def write_page(path: epath.Path, recording: Recording, classes: Sequence[str], threshold: float) -> None:
    """Writes a page that plays a video above a timeline of the probabilities of a run."""
    lanes = [Lane(run, "augmented") for run in recording.probabilities]
    content = timelines.as_json(Timeline(classes, lanes, [recording], threshold))
    page = make_page("video.html", title=recording.id, data=content, scripts=["timeline.js"])
    write_atomically(path, page.encode())


def link(file: Path, folder: epath.Path) -> str:
    """Returns the URL of a local file, relative to a page in a folder; that of the file itself from a bucket."""
    if "://" in os.fspath(folder):
        return file.absolute().as_uri()
    return quote(Path(os.path.relpath(file, folder)).as_posix())


def _check_options(given: argparse.Namespace) -> None:
    if lacking := [f"--{name}" for name in ("run", "output") if not getattr(given, name)]:
        example = "--run=workdir/demo/augmented_rgb --features=DIR --output=DIR (--help lists all options)"
        raise ValueError(f"{', '.join(lacking)} must be given; for instance {example}")
    if bool(given.features) == bool(given.video):
        raise ValueError("give either --features or --video")
    if given.video:
        videos.refuse_vain(given, ["seconds_per_snippet", "split", "channels_first", "pool"], "--video")
    else:
        names = [field.name for field in dataclasses.fields(videos.Sampling)]
        videos.refuse_vain(given, ["encoder_weights", "encoder", "annotations", "fps", *names], "--features")


def read_all(given: argparse.Namespace, detector: TrainedDetector) -> tuple[Tables, Inputs]:
    """Reads the features of each modality that the run reads, as the options say; the times are those of the first."""
    layout = {"channels_first": bool(given.channels_first), "pool": bool(given.pool)}
    found = {}
    for modality, (place, is_stated) in name_places(given.features, detector).items():
        if Path(place) == Path(given.output):
            raise ValueError(f"--output={given.output} holds the features; choose another folder")
        options = layout if holds_videos(place) else {**layout, "is_stated": is_stated}
        run = detector.reader(modality)
        found[modality] = read_inputs(place, given.split, run, given.seconds_per_snippet, **options)
    return join_modalities(found), next(iter(found.values()))


def predict_videos(given: argparse.Namespace) -> tuple[str, list[str]]:
    """Predicts the videos that the options name and writes every file.

    Returns one line that says what was written, and a sentence for each video that cannot be used. Raises ValueError or
    OSError, one sentence with the remedy.
    """
    _check_options(given)
    detector = load(given.run, seeds=given.seeds)
    classes = detector.classes
    rule = detector.rule(given.proposals, given.threshold, given.convention)
    chosen, output = given.format or ["native"], epath.Path(given.output)
    files, encoded, tables = None, Encoded(), Tables()
    if given.video:
        files = open_videos(given, detector)
    else:
        tables, inputs = read_all(given, detector)
    opened = files.opened if files else {}
    known = {name: formats.VideoFile(video.path, video.fps) for name, video in opened.items()}
    formats.check_formats(chosen, list(opened or tables), len(classes), known)
    truth = read_truth(given.annotations, opened, classes) if given.annotations else {}
    make_folder(output, "output")
    with held(output):
        if files:
            (modality,), config = detector.inputs, detector.members[0].config
            encoded = encode(files, given.batch_size, stored_dtype(config), num_frames=12)
            inputs = Inputs(encoded.features, encoded.grids, encoded.durations)
            tables = join_modalities({modality: inputs})
        grids, durations = inputs.grids, inputs.durations
        scores = detector.predict(tables, batch_size=given.batch_size, progress="predicting")
        found = {video: rule(table, grids[video], duration=durations.get(video)) for video, table in scores.items()}
        # The last window of a feature file ends with its video, as far as the file shows.
        times = {v: (grid, durations.get(v) or 2 * grid.start + grid.length) for v, grid in grids.items()}
        threshold = given.threshold
        if threshold is None:
            threshold = default_threshold(detector.head, given.proposals)
        choice = detector.head, given.proposals, threshold
        predicted: dict[str, Any] = {"scores": scores, "detections": found, "classes": classes}
        with replaced(output) as new:
            paths = formats.write(new, chosen, **predicted, files=known, times=times)
            for name, frames in encoded.frames.items():
                picture, page = new / f"{name}.png", new / f"{name}.html"
                source = opened[name].path
                links = {"file": None if source.is_dir() else link(source, output), "picture": quote(picture.name)}
                duration, table = durations[name], scores[name][:, : len(classes)]
                why = "" if len(found[name]) else explain_nothing({name: scores[name]}, grids, classes, *choice)
                content = timeline.Found(duration, found[name], table, grids[name], classes, threshold, why)
                timeline.draw(picture, frames, content, title=f"{name}, {detector.title}")
                shown = {detector.title: grids[name].resample(table, duration, len(table))}
                recording = Recording(name, duration, truth.get(name), shown, **links)
                write_page(page, recording, classes, threshold)
                paths += [picture, page]
    paths = [output / path.name for path in paths]
    browser = f"; open {paths[-1]} in a browser" if encoded.frames else ""
    counts = [_count(len(scores), "video"), _count(sum(map(len, found.values())), "detection")]
    written = ", ".join(map(str, paths))
    steps = [grid.length / len(scores[video]) for video, grid in grids.items()]
    report = f"{', '.join(counts)}, {_range(steps)} s a snippet: {written}{browser}"
    why = "" if any(map(len, found.values())) else explain_nothing(scores, grids, classes, *choice)
    advice = suggest_threshold(detector) if given.threshold is None and given.proposals is None else ""
    return ". ".join(filter(None, [report, why, advice])), encoded.broken


def suggest_threshold(detector: TrainedDetector) -> str:
    """Names the threshold with the best F1 in validation, if it is at least a point better; '' for an ensemble."""
    if len(detector.members) > 1:
        return ""
    results = read_run_results(epath.Path(detector.name), COPY_AGAIN) or {}  # an exported folder has none
    found = results.get("threshold")
    if found is None or found["f1"] < found["default_f1"] + 1:
        return ""
    better = f"{found['f1']:.1f} % instead of {found['default_f1']:.1f} %"
    return f"In validation, --threshold={found['threshold']:g} has the best F1 of snippets, {better}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s'[: number != 1]}"


def _range(values: Sequence[float]) -> str:
    """'0.64', or '0.13 to 0.16'."""
    return " to ".join(dict.fromkeys(f"{value:.4g}" for value in (min(values), max(values))))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`; None reads those of the program."""
    given = parser().parse_args(argv)
    runtime.start()
    try:
        report, broken = predict_videos(given)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"kd_jax.predict: {error}")
    print(report)
    if broken:
        sys.exit("\n".join([f"kd_jax.predict: {len(broken)} could not be used:", *join_repeated(broken)]))


if __name__ == "__main__":
    interrupts.run("kd_jax.predict", main)
