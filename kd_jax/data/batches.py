"""Batches: videos become padded, masked arrays on the device mesh.

    examples = make_examples(videos, 'rgb', num_classes=51)
    buckets = bucket_lengths([len(e.features) for e in examples], num_buckets=4, batch_size=2)
    for indices, batch, teachers in iterate_epoch(examples, buckets, 2, data_mesh(), seed=0, epoch=3): ...

Videos are never cropped. Each is padded to one of a few lengths, the buckets, so a step compiles once per bucket. The
order of an epoch depends only on (seed, epoch), so a resumed run sees the same batches as an uninterrupted one.

Features that do not fit the host's memory stay in their records; `iterate_epoch` reads them a few batches ahead.
"""

import contextlib
import math
import mmap
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from kd_jax.data import base
from kd_jax.sharding import device_rows, local_rows, shard
from kd_jax.types import Batch, Outputs

LENGTH_MULTIPLE = 16  # bucket lengths are rounded up to this many snippets
AHEAD = 2  # batches that are read from disk while a step runs, one thread for each


@dataclass(frozen=True)
class Example:
    """One video as a model reads it, on the host."""

    id: str  # of the video
    features: base.Features  # `[T, D]` of one modality
    labels: np.ndarray  # `[T, C]` uint8
    teachers: tuple[Outputs, ...] = ()  # the outputs of each frozen teacher for this video, `[T, …]`


def make_examples(videos: Sequence[base.Video], modality: str, num_classes: int) -> list[Example]:
    """Pairs one modality of each video with its snippet labels."""
    labels = [v.grid.labels(v.segments, v.num_snippets, num_classes) for v in videos]
    return [Example(v.id, v.features[modality], of_video) for v, of_video in zip(videos, labels, strict=True)]


def attach_teacher(examples: Sequence[Example], outputs: Sequence[Outputs]) -> list[Example]:
    """Adds the outputs of one more teacher, one for each example.

    Raises ValueError if the output for a video does not have the T of its example.
    """
    for example, output in zip(examples, outputs, strict=True):
        if len(output.features) != len(example.features):
            found = f"the teacher has {len(output.features)} snippets and the student {len(example.features)}"
            raise ValueError(f"video {example.id!r}: {found}; both modalities need the same snippet stride")
    return [replace(e, teachers=(*e.teachers, o)) for e, o in zip(examples, outputs, strict=True)]


def bucket_lengths(lengths: Sequence[int], num_buckets: int, batch_size: int) -> tuple[int, ...]:
    """Chooses at most `num_buckets` padded lengths, ascending, so that `group_into_batches` pads the fewest snippets.

    The result is optimal among multiples of LENGTH_MULTIPLE, by dynamic programming over the distinct rounded lengths.
    """
    rounded = -(-np.asarray(lengths) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    sizes, counts = np.unique(rounded, return_counts=True)
    batches = np.concatenate([[0], np.cumsum(counts) // batch_size])  # an incomplete batch joins the next bucket
    batches[-1] = -(-len(rounded) // batch_size)
    best = np.concatenate([[0.0], batches[1:] * sizes])  # best[j]: padded total of the j shortest sizes
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


Batches = list[tuple[int, list[int]]]  # (padded length, indices of the videos) of each batch


def group_into_batches(
    lengths: Sequence[int], buckets: Sequence[int], batch_size: int, order: Sequence[int]
) -> Batches:
    """Groups videos of similar length into ceil(N / batch_size) batches.

    Videos that are close in `order` share a batch. The videos that do not fill a batch of their bucket join the next
    longer bucket, so only the last batch may be smaller. Raises ValueError if a video is longer than every bucket.
    """
    if len(lengths) and max(lengths) > max(buckets):
        raise ValueError(f"a video of {max(lengths)} snippets does not fit the longest bucket of {max(buckets)}")
    batches: Batches = []
    waiting: list[int] = []
    lower = 0
    for bucket in sorted(buckets):
        waiting += [i for i in order if lower < lengths[i] <= bucket]
        lower = bucket
        while len(waiting) >= batch_size or (waiting and bucket == max(buckets)):
            batches.append((bucket, waiting[:batch_size]))
            waiting = waiting[batch_size:]
    return batches


def schedule_epoch(
    lengths: Sequence[int], buckets: Sequence[int], batch_size: int, *, seed: int | None = None, epoch: int = 0
) -> Batches:
    """Returns the batches of an epoch in their order.

    With a seed, (seed, epoch) determines which videos share a batch. The sequence of padded lengths depends only on the
    epoch, so runs with different seeds can share one compiled program. Without a seed, videos are in order of length.
    """
    if seed is None:
        return group_into_batches(lengths, buckets, batch_size, np.argsort(lengths, kind="stable").tolist())
    rng = np.random.default_rng([seed, epoch])
    batches = group_into_batches(lengths, buckets, batch_size, rng.permutation(len(lengths)).tolist())
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
    starts: Sequence[int] | np.ndarray | None = None,
) -> tuple[Batch, tuple[Outputs, ...]]:
    """Stacks examples into host arrays of `rows` videos × `length` snippets; the mask is False in padding.

    Args:
      examples: at most `rows`; they fill the first ones.
      like: an example with the sizes and dtypes; needed if `examples` may be empty.
      starts: the values of `Batch.first`; None leaves it out.

    Returns the batch, and the outputs of each teacher.
    """
    like = like or examples[0]

    def stack(arrays: Sequence[Any], like: Any) -> np.ndarray:
        out = _zeros((rows, length, like.shape[-1]), like.dtype)
        for row, array in zip(out, arrays, strict=False):
            row[: len(array)] = array
        return out

    teachers = tuple(
        jax.tree.map(lambda like, *arrays: stack(arrays, like), teacher, *(e.teachers[i] for e in examples))
        for i, teacher in enumerate(like.teachers)
    )
    features = stack([e.features for e in examples], like.features)
    labels = stack([e.labels for e in examples], like.labels)
    mask = stack([np.ones((len(e.features), 1), bool) for e in examples], np.zeros((0, 1), bool))[:, :, 0]
    first = None if starts is None else np.array(starts, np.int32)
    return Batch(features, labels, mask, first), teachers


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns zeros in a memory mapping, which is released as soon as the array is freed.

    malloc keeps an arena per thread and does not return freed memory. With 24 videos of the length of TSU the process
    grew to 0.7 GB; with np.zeros it grew to 1.4 GB.
    """
    count = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(count * dtype.itemsize, 1)), dtype, count).reshape(shape)


def iterate_epoch(
    examples: Sequence[Example],
    buckets: Sequence[int],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    *,
    seed: int | None = None,
    epoch: int = 0,
    steps: slice = slice(None),
) -> Generator[tuple[list[int], Batch, tuple[Outputs, ...]]]:
    """Yields (indices of the videos, batch, teachers' outputs) on the device, in the order of `schedule_epoch`.

    `steps` chooses some of them.

    If features are on disk, AHEAD threads read and send the next batches while the caller works on one; closing the
    generator stops them. Features in memory need no threads, because JAX runs a step asynchronously while the next
    batch is copied. Each process reads only the videos of its own rows. Raises ValueError at the batch of a damaged
    record.
    """
    import grain  # its import takes a second

    lengths, rows = [len(e.features) for e in examples], device_rows(batch_size, mesh)
    starts, local = np.cumsum([0, *lengths]), local_rows(rows, mesh)

    def prepare(scheduled: tuple[int, list[int]]) -> tuple:
        length, indices = scheduled
        own = [indices[row] for row in local if row < len(indices)]
        first = starts[own + [len(examples)] * (len(local) - len(own))]
        batch = collate([examples[i] for i in own], length, len(local), like=examples[0], starts=first)
        return indices, *shard(batch, rows, mesh)

    schedule = schedule_epoch(lengths, buckets, batch_size, seed=seed, epoch=epoch)[steps]
    batches = grain.MapDataset.source(schedule).map(prepare)
    ahead = AHEAD if any(isinstance(e.features, base.OnDisk) for e in examples) else 0
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    with contextlib.closing(iter(batches.to_iter_dataset(options))) as prepared:
        yield from prepared
