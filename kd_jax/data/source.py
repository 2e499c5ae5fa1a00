"""Source: the videos of an experiment, from records on disk or from the synthetic set in memory."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from kd_jax.data import base, records, synthetic
from kd_jax.data.annotations import describe
from kd_jax.files import checked_path, is_address
from kd_jax.runtime import host_memory

HOST_SHARE = 0.5  # the share of the host's memory that the features of an experiment may take
REMEDY = "choose others with dataset.validation_seed or hold out more with dataset.validation_fraction"


@dataclass(frozen=True)
class Validation:
    """The training videos that are held out to choose the best epoch."""

    ids: frozenset[str]
    rule: str  # what chose them: 'named by the records', or fields of config.dataset with their values
    groups: tuple[str, ...] = ()  # the groups that are held out, if whole groups are drawn


@dataclass(frozen=True)
class Source:
    """The videos of an experiment."""

    info: base.Info  # what they share
    fingerprint: str  # a hash of the content, equal only for equal videos
    read: Callable[[str, tuple[str, ...]], list[base.Video]]  # ('train' or 'test', modalities) → videos
    validation: Validation
    num_snippets: Mapping[str, int]  # {video: T} of all splits; {} for a source without modalities

    def videos(self, split: str, modalities: Sequence[str]) -> list[base.Video]:
        """Returns the videos of 'train', 'validation' or 'test' with these modalities; 'train' has no held-out ones."""
        if split == "test":
            return self.read("test", tuple(modalities))
        held_out = split == "validation"
        return [v for v in self.read("train", tuple(modalities)) if (v.id in self.validation.ids) == held_out]

    def scored_videos(self, split: str) -> list[base.Video]:
        """Returns the videos of 'validation' or 'test', without features; [] if none has an action to score."""
        videos = self.videos(split, [])
        return videos if any(len(video.segments) for video in videos) else []


def open_source(
    name: str,
    data_dir: str,
    modalities: Sequence[str],
    *,
    validation_fraction: float,
    validation_seed: int,
    validation_groups: str = "",
    max_videos: int = 0,
    synthetic_fallback: bool = False,
    streamed: bool = False,
) -> Source:
    """Opens a data set and holds out its validation videos.

    Args:
      name: a key of DATASETS.
      data_dir: the folder of its records; empty for the synthetic set.
      modalities: those that the experiment reads.
      validation_fraction, validation_seed, validation_groups: how `choose_validation` draws the videos to hold out.
      max_videos: the most videos to read of each split; 0 = all.
      synthetic_fallback: use the synthetic set if `data_dir` does not exist.
      streamed: always leave features on disk. By default they are read into memory if those of all `modalities` take no
        more than HOST_SHARE of the host's memory.

    Raises FileNotFoundError if there are no records; ValueError for an unknown data set, a modality that the records
    lack, no training videos left, fields that contradict the records, or validation videos without any action.
    """
    describe(name)  # raises for an unknown name
    if is_address(data_dir):
        raise ValueError(f"dataset.data_dir={data_dir}: records are read from a disk; copy them there")
    if name == "synthetic" and data_dir:
        raise ValueError(f"dataset.data_dir={data_dir}, but dataset.name='synthetic' reads no records; set the name")
    data_dir = checked_path(data_dir)
    first = max_videos or None
    if name == "synthetic":
        data = _open_synthetic((), first)
    elif synthetic_fallback and not Path(data_dir).exists():
        logging.warning("no records in %s: the SYNTHETIC set replaces %s (smoke variant)", data_dir, name)
        data = _open_synthetic(tuple(modalities), first)
    else:
        data = _open_records(name, data_dir, modalities, first, streamed)
    _check_modalities(data.info, modalities)
    chosen = choose_validation(data.listed["train"], validation_fraction, validation_seed, validation_groups)
    held_out = [video for video in data.listed["train"] if video.id in chosen.ids]
    _check_actions(data.listed["train"], held_out, with_features=bool(modalities))
    num_snippets = {v.id: v.num_snippets for videos in data.listed.values() for v in videos if v.features}
    return Source(data.info, data.fingerprint, data.read, chosen, num_snippets)


class _Data(NamedTuple):
    """A data set before its validation videos are held out."""

    info: base.Info
    fingerprint: str
    listed: dict[str, list[base.Video]]  # the videos of each split; features of records are on disk
    read: Callable[[str, tuple[str, ...]], list[base.Video]]


def _open_synthetic(modalities: tuple[str, ...], first: int | None) -> _Data:
    info, splits, fingerprint = _synthetic_as(modalities)
    listed = {split: videos[:first] for split, videos in splits.items()}
    return _Data(info, fingerprint, listed, lambda split, _: listed[split])


def _open_records(name: str, data_dir: str, modalities: Sequence[str], first: int | None, streamed: bool) -> _Data:
    if not data_dir:
        remedy = f"build records with `kd-jax build --dataset={name} …`"
        raise FileNotFoundError(f"dataset.data_dir is empty: {remedy} and pass --config.dataset.data_dir=DIR")
    info, fingerprint = records.read_info(data_dir), records.read_fingerprint(data_dir)
    _check_modalities(info, modalities)
    listed = {s: records.read(data_dir, s, modalities, first=first, on_disk=True) for s in base.SPLITS}
    num_bytes = sum(f.nbytes for videos in listed.values() for video in videos for f in video.features.values())
    on_disk = streamed or num_bytes > HOST_SHARE * host_memory()

    @functools.lru_cache(maxsize=4)  # both splits without features, and both with those of the last modality
    def read(split: str, wanted: tuple[str, ...]) -> list[base.Video]:
        return records.read(data_dir, split, wanted, first=first, on_disk=on_disk)

    return _Data(info, fingerprint, listed, read)


def _check_modalities(info: base.Info, modalities: Sequence[str]) -> None:
    if missing := [m for m in modalities if m not in info.modalities]:
        found = f"no modality {missing[0]!r}; it has {', '.join(info.modalities)}"
        remedy = "change the modality of the run, or build the records with it"
        raise ValueError(f"the data set {info.name!r} has {found}: {remedy}")


def _check_actions(training: Sequence[base.Video], validation: Sequence[base.Video], with_features: bool) -> None:
    """Raises ValueError if all training videos have no action, or those for validation, so that no score exists."""
    if training and not any(len(video.segments) for video in training):
        what = f"none of the {len(training)} training videos has an action"
        raise ValueError(f"{what}, so nothing can be learned; build the records from annotations of these videos")
    if validation and not any(len(video.segments) for video in validation):
        what = f"none of the {len(validation)} validation videos has an action"
        raise ValueError(f"{what}, so nothing can be scored; {REMEDY}")
    inside = (v.grid.snippets_inside(v.segments, v.num_snippets) for v in validation)
    if validation and with_features and not any((first < stop).any() for first, stop in inside):
        what = f"no action of the {len(validation)} validation videos has a snippet inside"
        raise ValueError(f"{what}, so nothing can be scored; {REMEDY}")


@functools.lru_cache(maxsize=1)
def _synthetic_as(modalities: tuple[str, ...]) -> tuple[base.Info, dict[str, list[base.Video]], str]:
    """Makes the synthetic set with these modalities, or all of its own for (), and its fingerprint.

    Missing modalities are replaced by unused ones.
    """
    info, splits = synthetic.make()
    unused = [m for m in info.modalities if m not in modalities]
    chosen = {m: m if m in info.modalities else unused.pop(0) for m in modalities} or {m: m for m in info.modalities}
    info = replace(info, modalities={m: info.modalities[source] for m, source in chosen.items()})
    splits = {
        split: [replace(v, features={m: v.features[source] for m, source in chosen.items()}) for v in videos]
        for split, videos in splits.items()
    }
    checksums = {split: [records.checksums(video) for video in videos] for split, videos in splits.items()}
    return info, splits, records.fingerprint(info, checksums)


def choose_validation(videos: Sequence[base.Video], fraction: float, seed: int, groups: str = "") -> Validation:
    """Chooses the training videos to hold out: those that the records name, or a draw of videos or of whole groups.

    Args:
      videos: for training.
      fraction: share of the videos, or of the groups, to draw; 0 draws none.
      seed: of the draw.
      groups: a regular expression. Its first group in the name of a video, or else its match, is the video's group.
        '' draws single videos.

    Raises ValueError for fields that contradict the records or leave no video to train on, and for a video without a
    group.
    """
    if named := [video.id for video in videos if video.validation]:
        others = {"fraction=0": not fraction, f"seed={seed}": seed, f"groups={groups!r}": groups}
        if given := [f"dataset.validation_{field}" for field, differs in others.items() if differs]:
            what = f"{given[0]} has no effect, because the records name {len(named)} validation videos"
            raise ValueError(f"{what}; leave it out, or build the records without them")
        if len(named) == len(videos):
            raise ValueError("the records name all training videos for validation; build them with others to train on")
        return Validation(frozenset(named), "named by the records")
    ids = [video.id for video in videos]
    rule = f"dataset.validation_fraction={fraction}, validation_seed={seed}"
    if not groups:
        return Validation(frozenset(split_validation(ids, fraction, seed)[1]), rule)
    group_of = _find_groups(ids, groups)
    kept, held_out = split_validation(sorted(set(group_of.values())), fraction, seed, f"groups by {groups!r}")
    chosen = frozenset(video for video, group in group_of.items() if group in held_out)
    return Validation(
        chosen,
        f"{rule}, validation_groups={groups!r}: {len(held_out)} of {len(kept + held_out)} groups",
        tuple(held_out),
    )


def _find_groups(ids: Sequence[str], groups: str) -> dict[str, str]:
    """Returns {video: group}; raises ValueError for a video without one."""
    field = f"dataset.validation_groups={groups!r}"
    try:
        matches = {video: re.search(groups, video) for video in ids}
    except re.error as error:
        raise ValueError(f"{field} is not a regular expression ({error})") from None
    found = {video: match[1] if match.re.groups else match[0] for video, match in matches.items() if match}
    if lacking := [video for video in ids if not found.get(video)]:
        raise ValueError(
            f"{field} matches {len(ids) - len(lacking)} of {len(ids)} training videos, and not {lacking[0]!r}; every "
            "video needs a group"
        )
    return found


def split_validation(
    names: Sequence[str], fraction: float, seed: int, what: str = "training videos"
) -> tuple[list[str], list[str]]:
    """Splits names into (train, validation), each sorted; validation is empty only if `fraction` is 0."""
    names = sorted(names)
    if not fraction:
        return names, []
    count = max(1, round(fraction * len(names)))
    if count >= len(names):
        held_out = f"dataset.validation_fraction={fraction} of {len(names)} {what}"
        raise ValueError(f"{held_out} leaves none to train on; lower it")
    chosen = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:count]}
    return [name for name in names if name not in chosen], [name for name in names if name in chosen]
