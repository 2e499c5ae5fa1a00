"""Outputs of frozen teachers for the training videos: a run, an ensemble of runs, or features of another model.

    teacher = Teacher("flow_teacher", (epath.Path("workdir/tsu/flow_teacher"),))
    examples = attach_teachers(examples, [teacher], source, batch_size=8, num_buckets=4)

Teachers see whole videos without dropout, so their outputs never change and are computed once per run.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from absl import logging
from etils import epath

from kd_jax.data.base import Info, Video, to_dtype
from kd_jax.data.batches import Example, attach_teacher, make_examples
from kd_jax.data.checks import Findings
from kd_jax.data.feature_files import check_file
from kd_jax.data.feature_folders import FeatureFolder
from kd_jax.data.source import Source
from kd_jax.files import checked_path, read_json, sha256
from kd_jax.inference.predict import check_outputs, run_detector
from kd_jax.training import checkpoints
from kd_jax.training.logs import summary
from kd_jax.training.run_config import COPY_AGAIN, read_run_config, read_run_results
from kd_jax.types import Outputs


@dataclass(frozen=True)
class Teacher:
    """Folders of finished runs or of features; the outputs of several folders are averaged."""

    name: str
    folders: tuple[epath.Path, ...]


def attach_teachers(
    examples: Sequence[Example], teachers: Sequence[Teacher], source: Source, **forward
) -> Sequence[Example]:
    """The training videos with the outputs of each teacher; `forward` are options of `run_detector`."""
    for teacher in teachers:
        members = [_outputs(folder, examples, source, forward) for folder in teacher.folders]
        outputs = members[0] if len(members) == 1 else list(map(_mean, zip(*members, strict=True)))
        blind = 1 - np.mean(np.concatenate([of_video.teaches for of_video in outputs]))
        if blind:
            what = "teacher %s: its input is 0 in %.3g %% of the snippets, where it is ignored"
            logging.info(what, teacher.name, 100 * blind)
        examples = attach_teacher(examples, outputs)
    return examples


def _outputs(folder: epath.Path, examples: Sequence[Example], source: Source, forward: Mapping) -> list[Outputs]:
    """Outputs of every training video, in the order of the examples; a folder of features has logits of width 0."""
    if given_run(folder) is None:
        features = FeatureFolder(("teacher",), Path(folder))
        files = features.files()
        tables = [np.asarray(features.load(files[example.id], example.id), np.float32) for example in examples]
        return [
            Outputs(table, np.zeros((len(table), 0), np.float32), teaches=table.any(axis=1, keepdims=True))
            for table in tables
        ]
    teacher = checkpoints.load_run(folder)
    if results := read_run_results(folder, COPY_AGAIN):
        logging.info("teacher %s: %s", teacher.config["run"], summary(results))
    modality = teacher.config["modality"]
    videos = source.videos("train", [modality])
    own = make_examples(videos, modality, len(source.info.classes))
    outputs = run_detector(teacher.model, teacher.variables, own, progress="teacher", **forward)
    found = {video.id: of_video for video, of_video in zip(videos, outputs, strict=True)}
    check_outputs(f"the outputs of the teacher {folder} for video", found)
    return outputs


def _mean(members: Sequence[Outputs]) -> Outputs:
    """The mean of several teachers' outputs for a video, in each snippet of those that teach there."""
    teaches = np.array([each.teaches for each in members])
    share = np.where(teaches.any(axis=0), teaches, True).astype(np.float32)
    share /= share.sum(axis=0)
    tables = ([getattr(each, name) for each in members] for name in ("features", "logits"))
    features, logits = (np.sum(share * np.array(table), axis=0) for table in tables)
    return Outputs(features, logits, teaches=teaches.any(axis=0))


def given_folders(entry: str | os.PathLike | Sequence[str | os.PathLike]) -> tuple[epath.Path, ...]:
    """The folders of an entry of config.teachers, one or several; ValueError if the entry is neither."""
    folders = entry if isinstance(entry, (tuple, list)) else (entry,)
    if not folders or not all(isinstance(folder, (str, os.PathLike)) and folder for folder in folders):
        raise ValueError("it must be a folder, or several in a tuple")
    return tuple(epath.Path(checked_path(folder)) for folder in folders)


def given_run(folder: epath.Path) -> dict | None:
    """The content of a run's config.json, None for a folder without; ValueError if config.json cannot be read."""
    found = _read(folder / "config.json") if folder.is_dir() else None
    if found is None or not {"run", "seconds_per_snippet"} & found.keys():  # other models have a config.json, too
        return None
    return read_run_config(folder, COPY_AGAIN)


def _read(path: epath.Path) -> dict | None:
    return read_json(path, f"copy all of {path.parent} again")


def fingerprint(folder: epath.Path) -> str:
    """A hash of what determines the outputs of a given teacher: a run's model and parameters, or all feature files."""
    if given_run(folder) is not None:
        results = folder / "results.json"
        changed = (results.stat().mtime, results.read_bytes()) if results.exists() else ()  # times in whole seconds
        return _of_run(folder, *changed)
    files = sorted(FeatureFolder(("features",), Path(folder)).files().items())
    stats = ((video, path, path.stat()) for video, path in files)
    return _of_files(tuple((video, path, stat.st_size, stat.st_mtime_ns) for video, path, stat in stats))


@functools.lru_cache(maxsize=16)  # called for each run and seed; the other arguments change with results.json
def _of_run(folder: epath.Path, *_) -> str:
    run = checkpoints.load_run(folder)
    digest = hashlib.sha256(json.dumps([run.config["filter"], run.config["model"]], sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.variables):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=16)
def _of_files(files: Sequence[tuple[str, Path, int, int]]) -> str:
    return hashlib.sha256(json.dumps([(video, sha256(path)) for video, path, *_ in files]).encode()).hexdigest()


def describe_given(folder: epath.Path, videos: Sequence[Video], info: Info) -> tuple[int, int]:
    """The widths of the features and of the logits (0 without any) of a teacher from outside the experiment.

    The folder holds a finished run, or `<video>.npy`, `[T, D]`, for every training video. Raises FileNotFoundError or
    ValueError, with the remedy, if it does not fit the records.
    """
    config = given_run(folder)
    if config is None:
        return _check_features(folder, videos), 0
    if list(config["classes"]) != list(info.classes) or config["head"] != info.head:
        own, ours = f"{len(config['classes'])} classes ({config['head']})", f"{len(info.classes)} of these records"
        remedy = "name a run that was trained for them"
        raise ValueError(f"the run {folder} knows {own}, which are not the {ours} ({info.head}); {remedy}")
    modality, size = config["modality"], config["input_size"]
    if info.modalities.get(modality) != size:
        known = ", ".join(f"{name!r} of {width}" for name, width in info.modalities.items())
        raise ValueError(f"the run {folder} reads {modality!r} of {size} features; the records have {known}")
    fingerprint(folder)  # reads the results and the parameters, so that their damage or lack is reported here
    return config["model"]["hidden"], config["model"]["num_outputs"]


def _check_features(folder: epath.Path, videos: Sequence[Video]) -> int:
    """The width of the features in a folder that has a file for every video."""
    on_disk = "://" not in str(folder)
    own = FeatureFolder(("teacher",), Path(folder))
    files = own.files() if on_disk and folder.is_dir() else {}
    if not files:
        remedy = "" if on_disk else "; features in a bucket are not read, copy them to a disk"
        raise FileNotFoundError(f"{folder} is neither a run (no config.json) nor a folder of <video>.npy files{remedy}")
    findings = Findings()

    def check(rows: np.ndarray, first: int) -> None:
        to_dtype(rows, "float32", first)

    widths: dict[int, Path] = {}
    for video in videos:
        if video.id not in files:
            findings.problem("missing feature file", f"{folder / video.id}.npy")
        elif len(found := own.find(video.id)) > 1:
            findings.problem("two feature files", " and ".join(map(str, found)))
        elif shape := check_file(own, files[video.id], video.id, findings, check):
            widths.setdefault(shape[1], files[video.id])
            if shape[0] != video.num_snippets:
                findings.problem("snippets", f"{files[video.id]}: {shape[0]}, the records have {video.num_snippets}")
    if len(widths) > 1:
        shown = ", ".join(f"{width} in {path}" for width, path in [*widths.items()][:3])
        findings.problem("feature dimension", f"all files must have one; {shown}")
    findings.raise_problems("nothing was trained")
    return next(iter(widths))
