"""Where the videos of an experiment come from: records on disk, or the synthetic set in memory."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from absl import logging

from kd_jax.data import base, records, synthetic
from kd_jax.data.annotations import describe
from kd_jax.runtime import host_memory
from kd_jax.segments import snippets_inside

HOST_SHARE = 0.5  # of the host's memory that the features of an experiment may take


@dataclass(frozen=True)
class Source:
    """Where an experiment's videos come from: records on disk, or the synthetic set in memory."""

    info: base.Info
    fingerprint: str  # of the content: the same only for the same videos
    read: Callable[[str, tuple[str, ...]], list[base.Video]]  # ('train' or 'test', modalities) → videos
    validation: frozenset[str]  # training videos held out

    def videos(self, split: str, modalities: Sequence[str]) -> list[base.Video]:
        """The videos of 'train', 'validation' or 'test' with these modalities, the held-out ones apart."""
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
      data_dir: its records; the synthetic set has none.
      modalities: what the experiment reads.
      validation_fraction, validation_seed: which training videos are held out.
      max_videos: read at most so many videos of each split; 0 = all.
      synthetic_fallback: take the synthetic set where data_dir holds no records.
      streamed: leave features in their records even where those of all these modalities take no more than HOST_SHARE of
        the host's memory.

    Raises:
      FileNotFoundError: if there are no records.
      ValueError: for an unknown data set, a modality that the records lack, no training videos left, or validation or
        test videos without a single action.
    """
    describe(name)
    if synthetic_fallback and name != "synthetic" and not Path(data_dir).exists():
        logging.warning("no records in %s: the SYNTHETIC set stands in for %s (smoke variant)", data_dir, name)
        info, splits, fingerprint = _synthetic_as(tuple(modalities))
    elif name == "synthetic":
        info, splits, fingerprint = _synthetic_as(())
    else:
        if not data_dir:
            raise FileNotFoundError(
                f"dataset.data_dir is empty: build records with `python -m data_prep.build --dataset={name} …` "
                "and pass --config.dataset.data_dir=DIR"
            )
        if "://" in str(data_dir):
            raise ValueError(f"dataset.data_dir={data_dir}: records are read from a disk; copy them there")
        info, splits, fingerprint = records.read_info(data_dir), None, records.read_fingerprint(data_dir)
    lacking = [m for m in modalities if m not in info.modalities]
    if lacking:
        raise ValueError(
            f"the data set {info.name!r} has no modality {lacking[0]!r}; it has {', '.join(info.modalities)}: "
            "change the modality of the run, or build the records with it"
        )

    first = max_videos or None
    # To look at sizes and lengths alone: the features of records stay on disk.
    listed = splits or {s: records.read(data_dir, s, modalities, first=first, on_disk=True) for s in base.SPLITS}
    if splits is None and not streamed:
        features = (f for videos in listed.values() for video in videos for f in video.features.values())
        streamed = sum(f.nbytes for f in features) > HOST_SHARE * host_memory()

    @functools.lru_cache(maxsize=4)  # no features of both splits, and the features last asked for
    def read(split, wanted):
        if splits is not None:
            return splits[split][:first]
        return records.read(data_dir, split, wanted, first=first, on_disk=streamed)

    train_ids = [video.id for video in read("train", ())]
    held_out = split_validation(train_ids, validation_fraction, validation_seed)[1]
    source = Source(info, fingerprint, read, frozenset(held_out))
    remedies = {
        "validation": "choose others with dataset.validation_seed or hold out more with dataset.validation_fraction",
        "test": "give annotated videos the subset 'testing' when you build the records",
    }
    for split, remedy in remedies.items():
        videos = source.videos(split, [])
        if (videos or split == "test") and not any(len(video.segments) for video in videos):
            raise ValueError(
                f"none of the {len(videos)} {split} videos has an action, so nothing can be scored; {remedy}"
            )
    validation = [video for video in listed["train"] if video.id in source.validation]
    if validation and modalities and not any(_sees_an_action(video) for video in validation):
        raise ValueError(
            f"no action of the {len(validation)} validation videos has a snippet inside, so nothing can be scored; "
            f"{remedies['validation']}"
        )
    return source


def _sees_an_action(video: base.Video) -> bool:
    first, stop = snippets_inside(video.segments, video.duration, video.num_snippets)
    return bool((first < stop).any())


@functools.lru_cache(maxsize=1)
def _synthetic_as(modalities: tuple[str, ...]) -> tuple[base.Info, dict[str, list[base.Video]], str]:
    """The synthetic set and its fingerprint; modalities it lacks are played by those it has and nobody asked for."""
    info, splits = synthetic.make()
    spare = [m for m in info.modalities if m not in modalities]
    played = {m: m if m in info.modalities else spare.pop(0) for m in modalities} or {m: m for m in info.modalities}
    info = replace(info, modalities={m: info.modalities[source] for m, source in played.items()})
    splits = {
        split: [replace(v, features={m: v.features[source] for m, source in played.items()}) for v in videos]
        for split, videos in splits.items()
    }
    checksums = {split: [records.checksums(video) for video in videos] for split, videos in splits.items()}
    return info, splits, records.fingerprint(info, checksums)


def split_validation(ids: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Splits training ids into (train, validation); the validation part is never empty unless fraction is 0."""
    ids = sorted(ids)
    if not fraction:
        return ids, []
    count = max(1, round(fraction * len(ids)))
    if count >= len(ids):
        raise ValueError(
            f"dataset.validation_fraction={fraction} of {len(ids)} training videos leaves none to train on; lower it"
        )
    chosen = {ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]}
    return [i for i in ids if i not in chosen], [i for i in ids if i in chosen]
