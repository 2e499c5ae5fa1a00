"""Annotations + features → records.

    python -m data_prep.build --list                   what each data set needs
    python -m data_prep.build --dataset=custom --annotations=annotations.json --classes=classes.txt \\
        --features=rgb=DIR --features=flow=DIR --output=data/mine

checks everything before it writes anything, says what it found, dropped and clipped, and leaves details in report.json
beside the records. --check stops there. --workers uses several processes, --runner an Apache Beam pipeline.
"""

import contextlib
import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from tqdm import tqdm

from data_prep import execution
from data_prep.report import Row, describe_report, make_report
from kd_jax.data import base, feature_files, records, synthetic
from kd_jax.data.annotations import DATASETS, describe
from kd_jax.data.annotations.cleaning import Annotated, check_splits
from kd_jax.data.annotations.common_layout import read_classes
from kd_jax.data.checks import Findings
from kd_jax.data.feature_files import FeatureFolder, Matched
from kd_jax.data.staging import check_free, scratch, staged

VIDEOS_PER_TASK = 8  # of the check
SMALL = 512 * 2**20  # bytes of features below which more than one process is not worth its start


def build(
    dataset: str,
    output: str | None,
    *,
    annotations: Sequence[str] = (),
    classes: str | None = None,
    features: Sequence[str] = (),
    channels_first: Sequence[str] = (),
    head: str | None = None,
    unit: str | None = None,
    fps: float | None = None,
    stride: float | None = None,
    skip_missing: bool = False,
    overwrite: bool = False,
    check: bool = False,
    seed: int | None = None,
    workers: int | None = None,
    runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> tuple[base.Info, dict]:
    """Builds the records of one data set.

    Args:
      dataset: a key of DATASETS.
      output: folder of the records; with `check` it may be None.
      annotations, classes: files; the class list is optional where the data set's own size is known.
      features: 'MODALITY=FOLDER' each; 'rgb+flow=FOLDER' for files that hold both.
      channels_first: those of `features`, by the name before '=', whose files are `[D, T]`.
      head, unit, fps, stride: instead of the data set's own; unit only for 'custom'.
      skip_missing: leave out, and list, videos that lack a feature file.
      overwrite: replace older records in `output`.
      check: read everything and write nothing.
      seed: of the synthetic set, 0 by default.
      workers: processes; None = as many as there are processors, 1 where there is little to read.
      runner, beam_options: an Apache Beam pipeline instead, and its options.

    Returns:
      Info and the report, as they stand in the folder.

    Raises:
      DataError: listing all that is wrong with the input.
      ValueError: for options that contradict each other.
      FileExistsError: if `output` is not free.
    """
    description = describe(dataset)
    if not check:
        check_free(Path(_output(output)), marker=records.INFO_FILE, overwrite=overwrite)
    files = {"annotations": annotations, "classes": classes, "features": features, "channels_first": channels_first}
    if description.read is None:
        choices = {"head": head, "unit": unit, "fps": fps, "stride": stride, "skip_missing": skip_missing}
        work = {"workers": workers, "runner": runner, "beam_options": beam_options}
        _refuse(dataset, "is made from a seed", {**files, **choices, **work})
        return _build_synthetic(output, seed or 0, overwrite=overwrite, check=check)
    _refuse(dataset, "has no seed", {"seed": seed is not None})
    if dataset != "custom":
        _refuse(dataset, f"is in {description.unit}", {"unit": unit})
    if not description.stride:
        _refuse(dataset, "takes T snippets to last as long as the video", {"stride": stride})
    needed = ["annotations", "features"] + ([] if description.names else ["classes"])
    if lacking := [f"--{name}" for name in needed if not files[name]]:
        raise ValueError(f"--dataset={dataset} also needs {', '.join(lacking)}; `--list` shows a whole command")
    for name, value in {"fps": fps, "stride": stride}.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name}={value}; it must be a finite number above 0")
    description = dataclasses.replace(
        description,
        head=head or description.head,
        unit=unit or description.unit,
        fps=fps or description.fps,
        stride=stride or description.stride,
    )
    folders = parse_features(features, channels_first)
    if beam_options and not runner:
        raise ValueError("--beam_options are those of a --runner; name one")
    if workers and runner:
        raise ValueError("--workers is for this machine alone; a --runner has --beam_options for it")

    findings = Findings()
    names = read_classes(Path(classes), findings) if classes else description.names
    if names and description.names and len(names) != len(description.names):
        findings.problem("class list", f"{classes}: {len(names)} names; {dataset} has {len(description.names)}")
    annotated = description.read([Path(path) for path in annotations], names, findings)
    check_splits(annotated, ", ".join(annotations), findings)
    with _beam(runner, beam_options, output) as beam:
        where = {"workers": workers or _workers(annotated, folders), "beam": beam}
        videos, sizes = _check(annotated, folders, findings, description, skip_missing, **where)
        extraction = feature_files.how_made(videos, folders, findings)
        findings.raise_problems()
        info = _make_info(dataset, output, description, names, sizes, videos, extraction)
        rows = [Row(v.annotated.split, v.annotated.segments, v.annotated.duration, v.num_snippets) for v in videos]
        source = {"annotations": list(annotations), "features": {folder.name: str(folder.path) for folder in folders}}
        expected = description.stride and description.stride / description.fps
        report = make_report(info, rows, findings.handled, source, expected_seconds=expected)
        if not check:
            _write(Path(output), info, videos, report, overwrite=overwrite, **where)
    return info, report


def _output(output: str | None) -> str:
    if not output:
        raise ValueError("--output is missing: the folder for the records (or --check, to write nothing)")
    return output


def _build_synthetic(output: str | None, seed: int, *, overwrite: bool, check: bool) -> tuple[base.Info, dict]:
    info, splits = synthetic.make(seed)
    rows = [Row(s, v.segments, v.duration, v.num_snippets) for s, videos in splits.items() for v in videos]
    report = make_report(info, rows, {}, {"seed": seed})
    if not check:
        records.write(output, info, splits, report, overwrite=overwrite)
    return info, report


def _refuse(dataset: str, reason: str, options: Mapping) -> None:
    """Raises ValueError if an option is set that this data set would ignore."""
    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        raise ValueError(f"--dataset={dataset} {reason}: {', '.join(given)} would be ignored; leave it out")


def parse_features(features: Iterable[str], channels_first: Iterable[str] = ()) -> list[FeatureFolder]:
    """The folders of 'MODALITY=FOLDER' or 'MODALITY+MODALITY=FOLDER' each."""
    folders, seen = [], set()
    for text in features:
        name, equals, folder = text.partition("=")
        modalities = tuple(name.split("+"))
        if not equals or not all(map(base.is_name, modalities)) or not folder:
            raise ValueError(
                f"--features={text}: expected MODALITY=FOLDER, e.g. --features=rgb=features/rgb, or rgb+flow=FOLDER "
                "for files that hold both; a modality's name is letters, digits and _"
            )
        for modality in modalities:
            if modality in seen:
                raise ValueError(f"--features names {modality!r} twice")
            seen.add(modality)
        folders.append(FeatureFolder(modalities, Path(folder), name in channels_first))
    known = {folder.name for folder in folders}
    if unknown := [name for name in channels_first if name not in known]:
        raise ValueError(f"--channels_first={unknown[0]} is none of --features ({', '.join(sorted(known))})")
    return folders


@contextlib.contextmanager
def _beam(runner: str | None, options: Sequence[str], output: str | None) -> Iterator[execution.Beam | None]:
    if not runner:
        yield None
        return
    with scratch(Path(output)) if output else tempfile.TemporaryDirectory() as folder:
        yield execution.Beam(runner, tuple(options), Path(folder))


def _workers(annotated: Sequence[Annotated], folders: Sequence[FeatureFolder]) -> int:
    paths = (path for video in annotated for folder in folders for path in folder.find(video.id))
    return (os.cpu_count() or 1) if sum(path.stat().st_size for path in paths) > SMALL else 1


def _check(annotated, folders, findings: Findings, description: base.Description, skip_missing: bool, **where):
    """Reads all feature files: the videos without a problem, and {modality: D}."""
    ids = [video.id for video in annotated]
    present = feature_files.check_folders(folders, ids, findings)
    groups = [ids[i : i + VIDEOS_PER_TASK] for i in range(0, len(ids), VIDEOS_PER_TASK)]
    results = {}
    with tqdm(total=len(ids), desc="checking", unit="video", disable=None, leave=False) as bar:
        tasks = [(group, present, skip_missing) for group in groups]
        for index, result in execution.run(check_videos, tasks, **where):
            results[index] = result
            bar.update(len(groups[index]))
    shapes = {}
    for index in sorted(results):
        shapes |= results[index]["shapes"]
        findings.add(results[index]["findings"])
    return feature_files.match(
        annotated,
        folders,
        shapes,
        findings,
        fps=description.fps,
        stride=description.stride,
        window=description.window,
    )


def check_videos(ids: Sequence[str], folders: Sequence[FeatureFolder], skip_missing: bool) -> dict:
    """One task: the shapes of these videos' files, and what was found."""
    shapes, findings = {}, Findings()
    for video in ids:
        shapes[video], found = feature_files.check_video_files(video, folders, skip_missing=skip_missing)
        findings.add(found.as_json())
    return {"shapes": shapes, "findings": findings.as_json()}


def _make_info(
    dataset: str, output: str | None, description: base.Description, names, sizes, videos, extraction
) -> base.Info:
    folder_name = Path(output or "").resolve().name
    scale = description.fps if description.unit == "frames" else 1.0
    seconds = [video.annotated.duration / scale / video.num_snippets for video in videos]
    return base.Info(
        name=folder_name if dataset == "custom" and base.is_name(folder_name) else dataset,
        classes=tuple(names),
        head=description.head,
        modalities=sizes,
        unit=description.unit,
        fps=description.fps,
        seconds_per_snippet=float(np.median(seconds)),
        extraction=extraction,
    )


def _write(output: Path, info: base.Info, videos: Sequence[Matched], report: dict, *, overwrite: bool, **where):
    with staged(output, marker=records.INFO_FILE, overwrite=overwrite) as folder:
        tasks, split_of = [], []
        for split in base.SPLITS:
            of_split = [video for video in videos if video.annotated.split == split]
            for group in records.group_by_size(of_split, lambda v: records.video_bytes(v.num_snippets, info)):
                tasks.append((str(folder / f"shard-{len(tasks)}"), info, group))
                split_of.append(split)
        shards: dict[int, records.Shard] = {}
        with tqdm(total=len(videos), desc="writing", unit="video", disable=None, leave=False) as bar:
            for index, result in execution.run(write_shard, tasks, **where):
                shards[index] = records.Shard(**result)
                bar.update(len(tasks[index][2]))
        in_order = {split: [shards[i] for i in sorted(shards) if split_of[i] == split] for split in base.SPLITS}
        records.finish(folder, info, in_order, report)


def write_shard(path: str, info: base.Info, videos: Sequence[Matched]) -> dict:
    """One task: reads the features of these videos and writes them as one shard."""
    return dataclasses.asdict(records.write_shard(Path(path), info, map(feature_files.load, videos)))


def describe_data_sets() -> Iterator[str]:
    """What each data set needs, as the lines a user sees."""
    for name, description in DATASETS.items():
        yield f"{name} — {description.title}"
        yield f"  {description.head} head; scored with {', '.join(description.protocols)}"
        yield from (f"  {line}".rstrip() for line in description.needs.splitlines())
        yield ""


def main(argv):
    if len(argv) > 1:
        sys.exit(f"data_prep.build: unexpected argument {argv[1]!r}; options start with --")
    if flags.FLAGS.list:
        print("\n".join(describe_data_sets()).rstrip())
        return
    options = {name: flags.FLAGS[name].value for name in OPTIONS}
    try:
        if not options["dataset"]:
            raise ValueError(f"--dataset is missing: one of {', '.join(DATASETS)}; `--list` says what each needs")
        _, report = build(**options)
    except (ValueError, FileExistsError) as error:
        sys.exit(f"data_prep.build: {error}")
    except OSError as error:
        sys.exit(f"data_prep.build: {options['output']} cannot be written ({error}); choose another --output")
    except KeyboardInterrupt:
        sys.exit("\ndata_prep.build: stopped; nothing was written")
    print(describe_report(report))
    if options["check"]:
        print("Nothing is wrong, and nothing was written (--check).")
    else:
        print(f"Records in {options['output']}; every case by name in {Path(options['output']) / records.REPORT_FILE}")


OPTIONS = (
    "dataset",
    "output",
    "annotations",
    "classes",
    "features",
    "channels_first",
    "head",
    "unit",
    "fps",
    "stride",
    "skip_missing",
    "overwrite",
    "check",
    "seed",
    "workers",
    "runner",
    "beam_options",
)

if __name__ == "__main__":
    flags.DEFINE_boolean("list", False, "Say what each data set needs, and stop.")
    flags.DEFINE_enum("dataset", None, list(DATASETS), "Which data set.")
    flags.DEFINE_string("output", None, "Folder for the records.")
    flags.DEFINE_multi_string("annotations", [], "Public annotation file; repeat it where there are several.")
    flags.DEFINE_string("classes", None, "Class names, one a line; line number = class id.")
    flags.DEFINE_multi_string(
        "features", [], "MODALITY=FOLDER of <video>.npy or .npz, once per modality; rgb+flow=FOLDER if a file has both."
    )
    flags.DEFINE_multi_string("channels_first", [], "MODALITY of --features whose files are [D, T].")
    flags.DEFINE_enum("head", None, ["dense", "sparse"], "Concurrent actions, or one at a time with background.")
    flags.DEFINE_enum("unit", None, ["seconds", "frames"], "custom: of the times in the file. Default seconds.")
    flags.DEFINE_float("fps", None, "Frames per second of the ground truth, if not the data set's own (custom: 25).")
    flags.DEFINE_float("stride", None, "Frames from one snippet to the next, if not those of the public features.")
    flags.DEFINE_boolean("skip_missing", False, "Leave out, and list, videos that lack a feature file.")
    flags.DEFINE_boolean("overwrite", False, "Replace older records in --output.")
    flags.DEFINE_boolean("check", False, "Read and check everything, write nothing.")
    flags.DEFINE_integer("seed", None, "synthetic: which one. Default 0.")
    flags.DEFINE_integer("workers", None, "Processes. Default: all processors, 1 for little data.", lower_bound=1)
    flags.DEFINE_string("runner", None, "Build as an Apache Beam pipeline: DirectRunner, FlinkRunner, SparkRunner, …")
    flags.DEFINE_multi_string("beam_options", [], "Option of the runner, e.g. --beam_options=--flink_master=HOST.")
    app.run(main)
