"""Videos → padded, masked batches on the device mesh.

    examples = make_examples(videos, 'rgb', num_classes=51)
    buckets = bucket_lengths([len(e.features) for e in examples], num_buckets=4, batch_size=2)
    for indices, batch, teachers in epoch(examples, buckets, 2, data_mesh(), seed=0, epoch=3): ...

Whole videos travel: no cropping. A video is padded to one of a few lengths, so that a step compiles a few times and
then never again. The order of an epoch depends on (seed, epoch) alone, so a resumed run sees what it would have seen.

Features that do not fit the host's memory stay in their records: `epoch` reads each video when its batch comes near, a
few batches ahead. These batches, the labels and the teachers' outputs are what streaming keeps in memory.
"""

import contextlib
import functools
import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kd_jax.datasets import base, describe, records, synthetic
from kd_jax.segments import labels_from_segments, snippets_inside
from kd_jax.types import Batch, Outputs

LENGTH_MULTIPLE = 16  # bucket lengths are rounded up to this many snippets
HOST_SHARE = 0.5  # of the host's memory that the features of an experiment may take
AHEAD = 2  # batches that are read from disk while a step runs, a thread each


@dataclass(frozen=True)
class Example:
    """One video as the model sees it, on the host."""

    id: str
    features: np.ndarray | base.OnDisk  # [T, D]
    labels: np.ndarray  # [T, C] uint8
    teachers: tuple[Outputs, ...] = ()  # what each frozen teacher says of it: [T, H], [T, C]


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


def host_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that the machine has, or what a container or a batch job may take of them where that is less.

    On Linux such limits are those of the control groups (version 2 or 1) that a process is in, and of their parents.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            folder, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = folder / path.lstrip("/")
        for file in (parent / name for parent in (group, *group.parents) if parent.is_relative_to(folder)):
            limit = file.read_text().strip() if file.exists() else "max"
            total = total if limit == "max" else min(total, int(limit))
    return total


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


def make_examples(videos: Sequence[base.Video], modality: str, num_classes: int) -> list[Example]:
    """Pairs one modality of each video with its snippet labels."""
    return [
        Example(
            video.id,
            video.features[modality],
            labels_from_segments(video.segments, video.duration, video.num_snippets, num_classes),
        )
        for video in videos
    ]


def attach_teacher(examples: Sequence[Example], outputs: Sequence[Outputs]) -> list[Example]:
    """Adds a teacher's outputs, computed once, to every example."""
    for example, output in zip(examples, outputs, strict=True):
        if len(output.features) != len(example.features):
            raise ValueError(
                f"video {example.id!r}: the teacher has {len(output.features)} snippets and the student "
                f"{len(example.features)}; both modalities need the same snippet stride"
            )
    return [replace(e, teachers=(*e.teachers, o)) for e, o in zip(examples, outputs, strict=True)]


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


def bucket_lengths(lengths: Sequence[int], num_buckets: int, batch_size: int) -> tuple[int, ...]:
    """The `num_buckets` padded lengths with which the batches of `plan` waste the fewest snippets, ascending.

    Exact, by dynamic programming over the distinct rounded lengths.
    """
    rounded = -(-np.asarray(lengths) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    sizes, counts = np.unique(rounded, return_counts=True)
    batches = np.concatenate([[0], np.cumsum(counts) // batch_size])  # what is left over joins the next bucket
    batches[-1] = -(-len(rounded) // batch_size)
    best = np.concatenate([[0.0], batches[1:] * sizes])  # best[j]: padded total of the j shortest sizes, one bucket
    choices = []
    for _ in range(min(num_buckets, len(sizes)) - 1):
        cost = best[:-1, None] + (batches[None, 1:] - batches[:-1, None]) * sizes[None, :]
        cost[np.tril_indices(len(sizes), -1)] = np.inf  # a bucket holds at least one size
        choices.append(cost.argmin(axis=0))
        best = np.concatenate([[0.0], cost.min(axis=0)])
    ends = [len(sizes) - 1]
    for choice in reversed(choices):
        ends.append(choice[ends[-1]] - 1)
    ends = sorted(end for end in ends if end >= 0)
    used = [end for before, end in zip([-1, *ends], ends, strict=False) if batches[end + 1] > batches[before + 1]]
    return tuple(int(size) for size in sizes[used])


def plan(lengths: Sequence[int], buckets: Sequence[int], batch_size: int, order: Sequence[int]) -> list:
    """Groups videos of like length into batches: [(padded length, indices), …], ceil(N / batch_size) of them.

    `order` decides who shares a batch. What is left over in a bucket joins the next longer one, so that only the last
    batch may be short.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > max(buckets):
        raise ValueError(f"a video of {lengths.max()} snippets does not fit the longest bucket of {max(buckets)}")
    batches, waiting, lower = [], [], 0
    for bucket in sorted(buckets):
        waiting += [i for i in order if lower < lengths[i] <= bucket]
        lower = bucket
        while len(waiting) >= batch_size or (waiting and bucket == max(buckets)):
            batches.append((bucket, waiting[:batch_size]))
            waiting = waiting[batch_size:]
    return batches


def plan_epoch(
    lengths: Sequence[int], buckets: Sequence[int], batch_size: int, *, seed: int | None = None, epoch: int = 0
) -> list[tuple[int, list[int]]]:
    """An epoch's batches: [(padded length, indices), …].

    With a seed, (seed, epoch) draws who shares a batch; the sequence of padded lengths is drawn from the epoch alone,
    so that runs of other seeds can go through one compiled program side by side. Without, they come in order of length.
    """
    if seed is None:
        return plan(lengths, buckets, batch_size, [int(i) for i in np.argsort(lengths, kind="stable")])
    rng = np.random.default_rng([seed, epoch])
    batches = plan(lengths, buckets, batch_size, [int(i) for i in rng.permutation(len(lengths))])
    batches = [batches[i] for i in rng.permutation(len(batches))]
    waiting = {length: iter([batch for batch in batches if batch[0] == length]) for length in buckets}
    sequence = np.random.default_rng(epoch).permutation(sorted(length for length, _ in batches))
    return [next(waiting[length]) for length in sequence]


def collate(
    examples: Sequence[Example],
    length: int,
    rows: int,
    *,
    like: Example | None = None,
    starts: Sequence[int] | None = None,
) -> tuple[Batch, tuple[Outputs, ...]]:
    """Stacks examples into host arrays of `rows` videos × `length` snippets; what is padded is masked.

    `like` tells sizes and dtypes where there may be no examples. `starts` become `Batch.first`, as in `resident.take`.
    """
    like = like or examples[0]

    def stack(of: Callable[[Example], np.ndarray]):
        out = _zeros((rows, length, of(like).shape[-1]), of(like).dtype)
        for row, example in zip(out, examples, strict=False):
            row[: len(of(example))] = of(example)
        return out

    mask = np.zeros((rows, length), bool)
    for row, example in zip(mask, examples, strict=False):
        row[: len(example.features)] = True
    teachers = tuple(
        Outputs(stack(lambda e, i=i: e.teachers[i].features), stack(lambda e, i=i: e.teachers[i].logits))
        for i in range(len(like.teachers))
    )
    first = None if starts is None else np.array(starts, np.int32)
    return Batch(stack(lambda e: e.features), stack(lambda e: e.labels), mask, first), teachers


def data_mesh() -> jax.sharding.Mesh:
    """One axis, `data`, over all devices: videos are spread, parameters are replicated."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As np.zeros, but given back at once: malloc has an arena for each thread, and there what is freed stays.

    With 24 TSU-length videos the process grew to 0.7 GB, and with np.zeros to 1.4 GB.
    """
    count = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(count * dtype.itemsize, 1)), dtype, count).reshape(shape)


def local_rows(rows: int, mesh: jax.sharding.Mesh) -> list[int]:
    """Those rows of a batch that the devices of this process hold, ascending; of one process: all."""
    spread = NamedSharding(mesh, PartitionSpec("data"))
    held = {index.indices(rows) for (index,) in spread.addressable_devices_indices_map((rows,)).values()}
    return sorted(row for bounds in held for row in range(*bounds))


def shard(tree, rows: int, mesh: jax.sharding.Mesh):
    """Spreads the leading axis of every array, of `rows`, over the mesh; the arrays hold its `local_rows`."""
    spread = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(spread, array, (rows, *array.shape[1:])), tree
    )


def replicate(tree, mesh: jax.sharding.Mesh):
    """Puts a copy of every array on each device; each process gives the same values, or arrays spread over all."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)

    def put(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.jit(lambda x: x, out_shardings=everywhere)(x)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index])

    return jax.tree.map(put, tree)


def fetch(tree, mesh: jax.sharding.Mesh):
    """Copies arrays, however spread, to the host of every process."""
    return jax.device_get(tree if jax.process_count() == 1 else replicate(tree, mesh))


def device_rows(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """The batch size rounded up to a multiple of the devices; the extra rows are padded videos."""
    return -(-batch_size // mesh.size) * mesh.size


def epoch(
    examples: Sequence[Example],
    buckets: Sequence[int],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    *,
    seed: int | None = None,
    epoch: int = 0,
) -> Iterator[tuple[list[int], Batch, tuple[Outputs, ...]]]:
    """Yields (indices of the videos, batch, teachers' outputs) on the device, in the order of `plan_epoch`.

    From disk, AHEAD batches are read and sent while the caller works on one; closing the generator stops the threads.
    Features in memory need none: a step is under way when it is called, and the next batch is copied meanwhile. Each
    process reads only the videos of its own rows.

    Raises:
      ValueError: for a record that is damaged, when its batch comes.
    """
    import grain  # here, because it takes a second

    lengths, rows = [len(e.features) for e in examples], device_rows(batch_size, mesh)
    local = local_rows(rows, mesh)

    starts = np.cumsum([0, *lengths])

    def prepare(planned):
        length, indices = planned
        own = [indices[row] for row in local if row < len(indices)]
        first = starts[own + [len(examples)] * (len(local) - len(own))]
        batch = collate([examples[i] for i in own], length, len(local), like=examples[0], starts=first)
        return indices, *shard(batch, rows, mesh)

    batches = grain.MapDataset.source(plan_epoch(lengths, buckets, batch_size, seed=seed, epoch=epoch)).map(prepare)
    ahead = AHEAD if any(isinstance(e.features, base.OnDisk) for e in examples) else 0
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    with contextlib.closing(iter(batches.to_iter_dataset(options))) as prepared:
        yield from prepared
