"""Source: the videos of an experiment, from records on disk or from the synthetic set in memory."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from kd_jax.data import base, records, synthetic
from kd_jax.data.annotations import describe
from kd_jax.runtime import host_memory

HOST_SHARE = 0.5  # the share of the host's memory that the features of an experiment may take
REMEDIES = {  # how to get a split with an action in it
    "validation": "choose others with dataset.validation_seed or hold out more with dataset.validation_fraction",
    "test": "give annotated videos the subset 'testing' when you build the records",
}


@dataclass(frozen=True)
class Source:
    """The videos of an experiment."""

    info: base.Info  # what they share
    fingerprint: str  # a hash of the content, equal only for equal videos
    read: Callable[[str, tuple[str, ...]], list[base.Video]]  # ('train' or 'test', modalities) → videos
    validation: frozenset[str]  # ids of the training videos that are held out

    def videos(self, split: str, modalities: Sequence[str]) -> list[base.Video]:
        """Returns the videos of 'train', 'validation' or 'test' with these modalities; 'train' has no held-out ones."""
        if split == "test":
            return self.read("test", tuple(modalities))
        held_out = split == "validation"
        return [v for v in self.read("train", tuple(modalities)) if (v.id in self.validation) == held_out]


def open_source(
    name: str,
    data_dir: str,
    modalities: Sequence[str],
    *,
    validation_fraction: float,
    validation_seed: int,
    max_videos: int = 0,
    synthetic_fallback: bool = False,
    streamed: bool = False,
) -> Source:
    """Opens a data set and holds out its validation videos.

    Args:
      name: a key of DATASETS.
      data_dir: the folder of its records; unused for the synthetic set.
      modalities: those that the experiment reads.
      validation_fraction, validation_seed: share of the training videos that is held out, and the seed that draws them.
      max_videos: the most videos to read of each split; 0 = all.
      synthetic_fallback: use the synthetic set if `data_dir` does not exist.
      streamed: always leave features on disk. By default they are read into memory if those of all `modalities` take no
        more than HOST_SHARE of the host's memory.

    Raises FileNotFoundError if there are no records; ValueError for an unknown data set, a modality that the records
    lack, no training videos left, or validation or test videos without any action.
    """
    describe(name)  # raises for an unknown name
    first = max_videos or None
    if name == "synthetic":
        data = _open_synthetic((), first)
    elif synthetic_fallback and not Path(data_dir).exists():
        logging.warning("no records in %s: the SYNTHETIC set replaces %s (smoke variant)", data_dir, name)
        data = _open_synthetic(tuple(modalities), first)
    else:
        data = _open_records(name, data_dir, modalities, first, streamed)
    _check_modalities(data.info, modalities)
    train_ids = [video.id for video in data.listed["train"]]
    held_out = frozenset(split_validation(train_ids, validation_fraction, validation_seed)[1])
    _check_actions(data.listed, held_out, with_features=bool(modalities))
    return Source(data.info, data.fingerprint, data.read, held_out)


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
        remedy = f"build records with `python -m data_prep.build --dataset={name} …`"
        raise FileNotFoundError(f"dataset.data_dir is empty: {remedy} and pass --config.dataset.data_dir=DIR")
    if "://" in str(data_dir):
        raise ValueError(f"dataset.data_dir={data_dir}: records are read from a disk; copy them there")
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


def _check_actions(listed: Mapping[str, Sequence[base.Video]], held_out: frozenset[str], with_features: bool) -> None:
    """Raises ValueError if the validation or test videos have no action, so that no score exists."""
    validation = [video for video in listed["train"] if video.id in held_out]
    for split, videos in (("validation", validation), ("test", listed["test"])):
        if (videos or split == "test") and not any(len(video.segments) for video in videos):
            what = f"none of the {len(videos)} {split} videos has an action"
            raise ValueError(f"{what}, so nothing can be scored; {REMEDIES[split]}")
    inside = (v.grid.snippets_inside(v.segments, v.num_snippets) for v in validation)
    if validation and with_features and not any((first < stop).any() for first, stop in inside):
        what = f"no action of the {len(validation)} validation videos has a snippet inside"
        raise ValueError(f"{what}, so nothing can be scored; {REMEDIES['validation']}")


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


def split_validation(ids: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Splits training ids into (train, validation), each sorted; validation is empty only if `fraction` is 0."""
    ids = sorted(ids)
    if not fraction:
        return ids, []
    count = max(1, round(fraction * len(ids)))
    if count >= len(ids):
        what = f"dataset.validation_fraction={fraction} of {len(ids)} training videos"
        raise ValueError(f"{what} leaves none to train on; lower it")
    chosen = {ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]}
    return [i for i in ids if i not in chosen], [i for i in ids if i in chosen]
