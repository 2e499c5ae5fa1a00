"""Builds records from annotations and features.

    kd-jax build --list                   what each data set needs
    kd-jax build --dataset=utd_mhad --archive=UTD-MHAD --output=data/utd_mhad
    kd-jax build --dataset=custom --annotations=annotations.csv --videos=DIR --test_fraction=0.3 \\
        --features=rgb=DIR --features=flow=DIR --output=data/mine

All input is checked before anything is written. report.json lists every case that was dropped or clipped.
"""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep import execution, utd_mhad
from data_prep.annotations import add_options, collect_entries, hold_out, read_options
from data_prep.report import Row, describe_report, make_report
from kd_jax import interrupts
from kd_jax.command_line import Parser, at_least, disk_path, named_number, named_path
from kd_jax.data import base, feature_files, records, synthetic
from kd_jax.data.annotations import DATASETS, describe
from kd_jax.data.annotations.cleaning import Annotated, check_splits, check_units
from kd_jax.data.annotations.common_layout import read_classes, read_entries
from kd_jax.data.checks import Findings
from kd_jax.data.feature_files import Matched
from kd_jax.data.feature_folders import FeatureFolder, parse_place
from kd_jax.data.precision import Statistics
from kd_jax.data.staging import check_free, scratch, staged
from kd_jax.data.timing import Cut, Timing
from kd_jax.files import why_not_written

VIDEOS_PER_TASK = 8  # of the check
OWN_OPTIONS = ("videos", "test", "test_fraction", "label_from")  # only for 'custom'
OF_FILES = (  # only for data sets with annotation and feature files
    *("annotations", "classes", "features", "channels_first", "pool", "unit", "fps", "features_fps", "stride"),
    *("window", *OWN_OPTIONS, "workers", "runner", "beam_options"),
)
TEST_LIST = "test.txt"  # the names of the test videos, next to the records; `--test` reads it
VALIDATION_LIST = "validation.txt"  # those of the validation videos, if the user chose them; `--validation` reads it
SMALL = 512 * 2**20  # bytes of features below which a second process does not pay off


@dataclasses.dataclass(frozen=True)
class Options:
    """What to build, and how. Values of `head`, `unit`, `fps`, `stride`, `window` replace the data set's own.

    `stride` and `window` are a number for all features, or {name: number} with the names of `features`; the name '' is
    that of all others.
    """

    dataset: str  # a key of DATASETS
    output: str | None = None  # folder of the records; optional with `check`
    annotations: Sequence[str] = ()  # files
    classes: str | None = None  # file; None for the data set's own names, or those in the annotations of 'custom'
    # 'MODALITY=FOLDER' entries, see `parse_place`; 'rgb+flow=FOLDER' for files that hold both
    features: Sequence[str] = ()
    channels_first: Sequence[str] = ()  # the part before '=' of `features` whose files are `[D, T]`
    pool: str | None = None  # 'mean' for files that are grids of tokens, `[T, N, D]`
    head: str | None = None
    unit: str | None = None  # only for 'custom'
    fps: float | None = None  # of the ground truth
    features_fps: float | None = None  # of the frames that `stride` and `window` count; None for `fps`
    stride: float | Mapping[str, float] | None = None
    window: float | Mapping[str, float] | None = None
    skip_missing: bool = False  # leave out, and list, videos that lack a feature file
    overwrite: bool = False  # replace older records in `output`
    check: bool = False  # read everything and write nothing
    archive: str | None = None  # folder of the clips of 'utd_mhad'
    seed: int | None = None  # of the synthetic set, of 'utd_mhad' and of `test_fraction`, 0 by default
    videos: str | None = None  # this and the next three: only for 'custom', see `data_prep.annotations`
    test: str | None = None
    test_fraction: float | None = None
    label_from: str | None = None
    validation: str | None = None  # file with the names of training videos that choose the best epoch
    workers: int | None = None  # processes; None for one per processor, or a single one if there is little to read
    runner: str | None = None  # of an Apache Beam pipeline, which replaces `workers`
    beam_options: Sequence[str] = ()  # of the runner


def build_records(options: Options) -> tuple[base.Info, dict]:
    """Builds the records of one data set.

    Returns:
      Info and the report, as they are stored in the folder.

    Raises:
      DataError: listing all problems in the input.
      ValueError: for options that contradict each other.
      FileExistsError: if `output` is not free.
    """
    description, output = describe(options.dataset), Path(options.output or "")
    if not options.check:
        if not options.output:
            raise ValueError("--output is missing: the folder for the records (or --check, to write nothing)")
        check_free(output, marker=records.INFO_FILE, overwrite=options.overwrite)
    if options.dataset == "utd_mhad":
        return _build_from_archive(options, description)
    if options.dataset == "synthetic":
        return _build_synthetic(options)
    _check_options(options, description)
    folders = parse_features(options.features, options.channels_first, pool=bool(options.pool))
    stated = _stated_frames(options, description, folders)
    chosen = {name: getattr(options, name) for name in ("head", "unit", "fps")}
    description = dataclasses.replace(description, **{name: value for name, value in chosen.items() if value})
    findings = Findings()
    annotated, names, facts = _read_annotations(options, description, folders, findings)
    with _beam(options) as beam:
        run = functools.partial(execution.run, workers=options.workers or _workers(annotated, folders), beam=beam)
        timing = _timing(options, description, stated, folders[0].name)
        videos, sizes, dtypes = _match_features(annotated, folders, findings, timing, options.skip_missing, run)
        with_durations = {video.annotated.id: video.annotated for video in videos}  # of data sets that lack them
        check_units([with_durations.get(video.id, video) for video in annotated], findings)
        extraction = feature_files.how_made(videos, folders, findings)
        findings.raise_problems()
        info = _make_info(options, description, names, sizes, videos, extraction, dtypes)
        rows = [
            Row(v.annotated.split, v.annotated.segments, v.annotated.duration, v.num_snippets, v.grid) for v in videos
        ]
        facts += _describe_times(info, videos, stated)
        features = {folder.name: folder.described for folder in folders}
        source = {"annotations": list(options.annotations), "features": features}
        expected_seconds = timing.stride / timing.fps if timing.stride else None
        report = make_report(info, rows, findings.handled, source, expected_seconds=expected_seconds, facts=facts)
        if not options.check:
            _write(output, info, videos, report, run, overwrite=options.overwrite)
    return info, report


def _read_annotations(
    options: Options, description: base.Description, folders: Sequence[FeatureFolder], findings: Findings
) -> tuple[list[Annotated], Sequence[str], list[str]]:
    """Reads the annotation files; returns the videos, the names of the classes, and lines for the report."""
    names = read_classes(Path(options.classes), findings) if options.classes else description.names
    if names and description.names and len(names) != len(description.names):
        expected = f"{options.dataset} has {len(description.names)}"
        findings.problem("class list", f"{options.classes}: {len(names)} names; {expected}")
    where, facts = ", ".join(options.annotations), list[str]()
    if options.dataset == "custom":
        given = read_options(options, unit=description.unit)
        entries, names, facts = collect_entries(options.annotations, names, given, folders, findings)
        annotated = read_entries(entries, names, findings, where=where)
    else:
        assert description.read
        annotated = description.read([Path(path) for path in options.annotations], names, findings)
    annotated = hold_out(annotated, options.validation, findings)
    check_splits(annotated, where, findings)
    return annotated, names, facts + _describe_splits(annotated, options)


def _describe_splits(annotated: Sequence[Annotated], options: Options) -> list[str]:
    """Lines for the report: what chose the validation videos, and that there is nothing to score in the test."""
    facts, test = [], [video for video in annotated if video.split == "test"]
    if held_out := sum(video.validation for video in annotated):
        source = f"--validation={options.validation}" if options.validation else "the annotations (subset validation)"
        facts.append(f"validation: {held_out} of the training videos, named by {source}")
    if not any(len(video.segments) for video in test):
        why = f"none of the {len(test)} test videos has an action" if test else "there are no test videos"
        facts.append(f"{why}: runs will have predictions and no test scores")
    return facts


def _check_options(options: Options, description: base.Description) -> None:
    """Raises ValueError for options that are missing, invalid, or without effect on a data set that has files."""
    dataset = options.dataset
    own = {name: getattr(options, name) for name in OWN_OPTIONS}
    if options.test_fraction is None:
        _refuse(dataset, "has no seed", {"seed": options.seed is not None})
    _refuse(dataset, "has annotation and feature files", {"archive": options.archive})
    if dataset != "custom":
        _refuse(dataset, f"is in {description.unit}", {"unit": options.unit})
        _refuse(dataset, "has annotations of a known format", own)
    if options.test and options.test_fraction is not None:
        raise ValueError("--test lists the test videos and --test_fraction draws them; leave one out")
    if options.features_fps and not (options.stride or options.window):
        raise ValueError("--features_fps without --stride, whose frames it counts, would be ignored; leave it out")
    if lacking := [f"--{name}" for name in ("annotations", "features") if not getattr(options, name)]:
        raise ValueError(f"--dataset={dataset} also needs {', '.join(lacking)}; `--list` shows a whole command")
    for name in ("fps", "features_fps", "stride", "window"):
        given = getattr(options, name)
        for value in given.values() if isinstance(given, Mapping) else [given]:
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name}={value}; it must be a finite number above 0")
    if options.beam_options and not options.runner:
        raise ValueError("--beam_options are those of a --runner; name one")
    if options.workers and options.runner:
        raise ValueError("--workers is for this machine only; a --runner has --beam_options for it")


def _build_synthetic(options: Options) -> tuple[base.Info, dict]:
    vain = {name: getattr(options, name) for name in (*OF_FILES, "archive", "head", "skip_missing", "validation")}
    _refuse(options.dataset, "is made from a seed", vain)
    seed = options.seed or 0
    info, splits = synthetic.make(seed)
    rows = [Row(s, v.segments, v.duration, v.num_snippets, v.grid) for s, videos in splits.items() for v in videos]
    report = make_report(info, rows, {}, {"seed": seed})
    if not options.check:
        records.write(Path(options.output or ""), info, splits, report, overwrite=options.overwrite)
    return info, report


def _build_from_archive(options: Options, description: base.Description) -> tuple[base.Info, dict]:
    """Builds the records of UTD-MHAD, whose sequences are made of the clips in its archive."""
    _refuse(options.dataset, "is made of the clips in --archive", {name: getattr(options, name) for name in OF_FILES})
    if not options.archive:
        raise ValueError(f"--dataset={options.dataset} also needs --archive; `--list` shows a whole command")
    findings, seed = Findings(), options.seed or 0
    made = utd_mhad.make_sequences(Path(options.archive), seed, findings, skip_missing=options.skip_missing)
    annotated = hold_out([video for video, _ in made], options.validation, findings)
    check_splits(annotated, options.archive, findings)
    findings.raise_problems()
    info = base.Info(
        name=options.dataset,
        classes=description.names,
        head=options.head or description.head,
        modalities={modality: features.shape[1] for modality, features in made[0][1].items()},
        unit=description.unit,
        fps=description.fps,
        seconds_per_snippet=utd_mhad.FRAMES_PER_SNIPPET / description.fps,
    )
    splits: dict[str, list[base.Video]] = {split: [] for split in base.SPLITS}
    for video, (_, features) in zip(annotated, made, strict=True):
        row = base.Video(video.id, features, video.segments, video.duration, validation=video.validation)
        splits[video.split].append(row)
    rows = [Row(s, v.segments, v.duration, v.num_snippets, v.grid) for s, videos in splits.items() for v in videos]
    source, facts = {"archive": options.archive, "seed": seed}, _describe_splits(annotated, options)
    report = make_report(info, rows, findings.handled, source, facts=facts)
    if not options.check:
        records.write(Path(options.output or ""), info, splits, report, overwrite=options.overwrite)
    return info, report


def _stated_frames(
    options: Options, description: base.Description, folders: Sequence[FeatureFolder]
) -> dict[str, tuple[float, float]]:
    """Returns {name of a folder: (stride, window)} in frames, of the folders for which the options state one of them.

    Raises ValueError for a name that is none of the folders', or a window without a stride.
    """
    found: dict[str, dict[str, float]] = {}
    for option in ("stride", "window"):
        given = getattr(options, option) or {}
        numbers = given if isinstance(given, Mapping) else {"": given}
        names = [folder.name for folder in folders]
        if unknown := [name for name in numbers if name and name not in names]:
            raise ValueError(f"--{option}={unknown[0]}=…: {unknown[0]} is none of --features ({', '.join(names)})")
        for name in names:
            if value := numbers.get(name) or numbers.get(""):
                found.setdefault(name, {})[option] = value
    stated = {}
    for name, frames in found.items():
        stride = frames.get("stride") or description.stride
        if not stride:
            raise ValueError("--window needs --stride: frames from one snippet to the next")
        stated[name] = (stride, frames.get("window") or description.window or stride)
    return stated


def _refuse(dataset: str, reason: str, options: Mapping) -> None:
    """Raises ValueError if an option is set that has no effect on the data set."""
    if given := [f"--{name}" for name, value in options.items() if value]:
        raise ValueError(f"--dataset={dataset} {reason}: {', '.join(given)} would be ignored; leave it out")


def parse_features(
    features: Iterable[str], channels_first: Iterable[str] = (), *, pool: bool = False
) -> list[FeatureFolder]:
    """Parses 'MODALITY=FOLDER' or 'MODALITY+MODALITY=FOLDER' entries; FOLDER as in `feature_folders.parse_place`.

    It raises ValueError for an entry in another form, a repeated modality, or an unknown name in `channels_first`.
    """
    folders, seen = [], set()
    for text in features:
        name, equals, folder = text.partition("=")
        modalities = tuple(name.split("+"))
        if not equals or not all(map(base.is_name, modalities)) or not folder:
            expected = "MODALITY=FOLDER, e.g. --features=rgb=features/rgb, or rgb+flow=FOLDER for files that hold both"
            raise ValueError(f"--features={text}: expected {expected}; a modality's name is letters, digits and _")
        for modality in modalities:
            if modality in seen:
                raise ValueError(f"--features names {modality!r} twice")
            seen.add(modality)
        try:
            path, pattern, array = parse_place(folder)
        except ValueError as error:
            raise ValueError(f"--features={text}: {error}") from None
        folders.append(FeatureFolder(modalities, path, name in channels_first, pool, pattern, array))
    known = {folder.name for folder in folders}
    if unknown := [name for name in channels_first if name not in known]:
        raise ValueError(f"--channels_first={unknown[0]} is none of --features ({', '.join(sorted(known))})")
    return folders


@contextlib.contextmanager
def _beam(options: Options) -> Iterator[execution.Beam | None]:
    """Yields where the pipeline of a runner runs, with a scratch folder; None without a runner."""
    if not options.runner:
        yield None
        return
    with scratch(Path(options.output)) if options.output else interrupts.temporary_folder() as folder:
        yield execution.Beam(options.runner, tuple(options.beam_options), Path(folder))


def _workers(annotated: Sequence[Annotated], folders: Sequence[FeatureFolder]) -> int:
    paths = {path for video in annotated for folder in folders for path in folder.find(video.id)}
    if sum(path.stat().st_size for path in paths) <= SMALL:
        return 1
    from kd_jax.runtime import num_processors  # here because it imports JAX, which takes a second

    return num_processors()


def _match_features(
    annotated: Sequence[Annotated],
    folders: Sequence[FeatureFolder],
    findings: Findings,
    timing: Timing,
    skip_missing: bool,
    run: Callable,
) -> tuple[list[Matched], dict[str, int], dict[str, str]]:
    """Reads all feature files; returns the videos without a problem, {modality: D} and `Info.dtypes`."""
    ids = [video.id for video in annotated]
    present = feature_files.check_folders(folders, ids, findings)
    tasks = [(ids[i : i + VIDEOS_PER_TASK], present, skip_missing) for i in range(0, len(ids), VIDEOS_PER_TASK)]
    shapes: dict = {}
    statistics = {folder.name: Statistics() for folder in present}
    for result in _run_all(run, check_videos, tasks, "checking"):
        shapes |= result["shapes"]
        findings.add(result["findings"])
        for name, found in result["statistics"].items():
            statistics[name].merge(Statistics.from_json(found))
    feature_files.refuse_transposed(present, shapes, findings)
    matched, sizes = feature_files.match(annotated, folders, shapes, findings, timing)
    return matched, sizes, feature_files.stored_dtypes(present, statistics, findings)


def _run_all(run: Callable, function: Callable, tasks: Sequence[tuple], title: str) -> list[dict]:
    """Runs tasks, whose first arguments are videos, with a progress bar; returns the results in order."""
    results = {}
    total = sum(len(task[0]) for task in tasks)
    with tqdm(total=total, desc=title, unit="video", disable=None, leave=False) as bar:
        for index, result in run(function, tasks):
            results[index] = result
            bar.update(len(tasks[index][0]))
    return [results[index] for index in range(len(tasks))]


def check_videos(ids: Sequence[str], folders: Sequence[FeatureFolder], skip_missing: bool) -> dict:
    """Reads the feature files of some videos, as one task; returns shapes, findings and statistics as JSON."""
    shapes, findings, statistics = {}, Findings(), dict[str, Statistics]()
    for video in ids:
        shapes[video], found = feature_files.check_video_files(video, folders, statistics, skip_missing=skip_missing)
        findings.add(found.as_json())
    found_statistics = {name: of_folder.as_json() for name, of_folder in statistics.items()}
    return {"shapes": shapes, "findings": findings.as_json(), "statistics": found_statistics}


def _make_info(
    options: Options,
    description: base.Description,
    names: Sequence[str],
    sizes: dict[str, int],
    videos: Sequence[Matched],
    extraction: dict[str, dict],
    dtypes: dict[str, str],
) -> base.Info:
    folder_name = Path(options.output or "").resolve().name
    known = [video.cut for video in videos if video.cut]
    seconds = [v.cut.step if v.cut else v.length.duration / v.num_snippets for v in videos]
    return base.Info(
        name=folder_name if options.dataset == "custom" and base.is_name(folder_name) else options.dataset,
        classes=tuple(names),
        head=description.head,
        modalities=sizes,
        unit=description.unit,
        fps=description.fps,
        seconds_per_snippet=float(np.median(seconds)),
        extraction=extraction,
        first_snippet=float(np.median([cut.start for cut in known])) if known else 0.0,
        label_at=known[0].label_at if known else 0.0,
        dtypes=dtypes,
    )


def _timing(
    options: Options, description: base.Description, stated: Mapping[str, tuple[float, float]], first: str
) -> Timing:
    """What the options and the data set say about the times of snippets; `first` is the name of the first folder."""
    stride, window = description.stride, description.window
    if first in stated:  # in frames of the ground truth
        scale = description.fps / options.features_fps if options.features_fps else 1.0
        stride, window = (frames * scale for frames in stated[first])
    return Timing(
        fps=description.fps,
        unit=description.unit,
        stride=stride,
        window=window,
        is_assumed=options.dataset == "custom",
        features_fps=options.features_fps or options.fps,
        stated=stated,
    )


def _describe_times(info: base.Info, videos: Sequence[Matched], stated: Mapping) -> list[str]:
    """Says in a line of the report where the times of snippets come from."""
    known = [video for video in videos if video.cut]
    if not known:
        return ["times: the snippets of each video divide its duration evenly (--stride and --fps state their times)"]
    cut = known[0].cut
    assert cut
    sources = dict.fromkeys(_source_of(video.cut, stated) for video in known if video.cut)
    step, window = f"{info.seconds_per_snippet:.4g} s", f"{cut.window:.4g} s of video"
    facts = [f"times: a snippet every {step}, from {window}, from {' and '.join(sources)}"]
    if rest := len(videos) - len(known):
        facts.append(f"times: of {rest} videos unknown; their snippets divide the duration evenly")
    return facts


def _source_of(cut: Cut, stated: Mapping) -> str:
    if cut.source:
        return "manifests" if cut.source.suffix == ".json" else "time stamps"
    return "--stride" if stated else "the windows of the public features"


def _write(output: Path, info: base.Info, videos: Sequence[Matched], report: dict, run: Callable, *, overwrite: bool):
    with staged(output, marker=records.INFO_FILE, overwrite=overwrite) as folder:
        groups: list[tuple[str, Sequence[Matched]]] = []
        for split in base.SPLITS:
            of_split = [video for video in videos if video.annotated.split == split]
            by_size = records.group_by_size(of_split, lambda v: records.video_bytes(v.num_snippets, info))
            groups += [(split, group) for group in by_size]
        tasks = [(group, str(folder / f"shard-{i}"), info) for i, (_, group) in enumerate(groups)]
        shards: dict[str, list[records.Shard]] = {split: [] for split in base.SPLITS}
        for (split, _), result in zip(groups, _run_all(run, write_shard, tasks, "writing"), strict=True):
            shards[split].append(records.Shard(**result))
        records.finish(folder, info, shards, report)
        annotated = sorted((video.annotated for video in videos), key=lambda video: video.id)
        test = [video.id for video in annotated if video.split == "test"]
        (folder / TEST_LIST).write_text("".join(f"{video}\n" for video in test), encoding="utf-8")
        if held_out := [video.id for video in annotated if video.validation]:
            (folder / VALIDATION_LIST).write_text("".join(f"{video}\n" for video in held_out), encoding="utf-8")


def write_shard(videos: Sequence[Matched], path: str, info: base.Info) -> dict:
    """Reads the features of some videos and writes them as one shard, as one task."""
    loaded = (feature_files.load(video, info.dtypes) for video in videos)
    return dataclasses.asdict(records.write_shard(Path(path), info, loaded))


def describe_data_sets() -> Iterator[str]:
    """Yields the lines of --list: what each data set needs."""
    for name, description in DATASETS.items():
        yield f"{name} — {description.title}"
        yield f"  {description.head} head; scored with {', '.join(description.protocols)}"
        yield from (f"  {line}".rstrip() for line in description.needs.splitlines())
        yield ""


def parser() -> Parser:
    """Returns the parser of the command line."""
    options = Parser("data_prep.build", __doc__)
    several: dict = {"action": "append", "default": []}
    add = options.add_argument
    add("--list", action="store_true", help="Print what each data set needs, and stop.")
    add("--dataset", choices=list(DATASETS), help="Data set.")
    add("--output", type=disk_path, help="Folder for the records.")
    add("--annotations", type=disk_path, **several, help="Annotation file; repeat it if there are several.")
    add("--archive", type=disk_path, help="Folder of the unpacked archive, for utd_mhad.")
    names = "The default is the data set's own names; for custom, the names in the annotations."
    add(
        "--classes",
        type=disk_path,
        help=f"File of class names, one per line; the line number from 0 is the class id. {names}",
    )
    files = "Folder of <video>.npy or .npz files, once per modality; rgb+flow=FOLDER if a file has both. Other names "
    files += "and formats: 'DIR/v_{video}_rgb.npy', 'DIR/{video}.npz:rgb', 'FILE.h5:{video}'; also .csv and .pt."
    add("--features", type=named_path, **several, metavar="MODALITY=FOLDER", help=files)
    add("--channels_first", **several, help="MODALITY of --features whose files are [D, T].")
    add("--pool", choices=["mean"], help="Average grids of tokens, [T, N, D], to [T, D].")
    add("--head", choices=["dense", "sparse"], help="Concurrent actions, or one at a time with background.")
    add("--unit", choices=["seconds", "frames"], help="Unit of times in the file, for custom (seconds).")
    add("--fps", type=float, help="Frames per second of the ground truth (the data set's own; custom: 25).")
    of_features = "Frames per second of the videos that the features were made of, which --stride counts (--fps)."
    add("--features_fps", type=float, help=of_features)
    stride = "Frames from one snippet to the next (that of the public features); MODALITY=FRAMES for one of --features."
    add("--stride", type=named_number, **several, metavar="FRAMES", help=stride)
    window = "Frames that one snippet covers (that of the public features, or the stride); MODALITY=FRAMES as above."
    add("--window", type=named_number, **several, metavar="FRAMES", help=window)
    add("--skip_missing", action="store_true", help="Leave out, and list, videos or clips that lack a file.")
    add("--overwrite", action="store_true", help="Replace older records in --output.")
    add("--check", action="store_true", help="Read and check everything, write nothing.")
    add("--workers", type=at_least(1), help="Processes (one per processor; 1 for little data).")
    add("--runner", help="Run as an Apache Beam pipeline: DirectRunner, FlinkRunner, SparkRunner and others.")
    example = "--beam_options=--flink_master=HOST"
    add("--beam_options", **several, help=f"Option of the runner, e.g. {example}; repeat it for several.")
    add_options(options)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`, or those of the process."""
    command_line = parser()
    given = vars(command_line.parse_args(argv))
    if given.pop("list"):
        print("\n".join(describe_data_sets()).rstrip())
        return
    if not given["dataset"]:
        command_line.error(f"--dataset is missing: one of {', '.join(DATASETS)}; `--list` shows what each needs")
    for name in ("stride", "window"):
        if len(frames := dict(given[name])) < len(given[name]):
            command_line.error(f"--{name} is given twice for one modality; leave one out")
        given[name] = frames
    options = Options(**given)
    try:
        _, report = build_records(options)
    except (ValueError, FileExistsError, BlockingIOError) as error:
        sys.exit(f"data_prep.build: {error}")
    except OSError as error:
        reason = why_not_written(error, options.output or "") or error
        sys.exit(f"data_prep.build: {options.output} cannot be written ({reason}); choose another --output")
    print(describe_report(report))
    written = f"Records are in {options.output}; {Path(options.output or '') / records.REPORT_FILE} lists every case"
    print("There is no problem. Nothing was written (--check)." if options.check else written)


if __name__ == "__main__":
    interrupts.run("data_prep.build", main)
