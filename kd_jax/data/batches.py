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
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from kd_jax.data import base
from kd_jax.segments import labels_from_segments
from kd_jax.sharding import device_rows, local_rows, shard
from kd_jax.types import Batch, Outputs

LENGTH_MULTIPLE = 16  # bucket lengths are rounded up to this many snippets
AHEAD = 2  # batches that are read from disk while a step runs, a thread each


@dataclass(frozen=True)
class Example:
    """One video as the model sees it, on the host."""

    id: str
    features: np.ndarray | base.OnDisk  # [T, D]
    labels: np.ndarray  # [T, C] uint8
    teachers: tuple[Outputs, ...] = ()  # what each frozen teacher says of it: [T, H], [T, C]


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

    `like` tells sizes and dtypes where there may be no examples. `starts` become `Batch.first`, as in `on_device.take`.
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


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As np.zeros, but given back at once: malloc has an arena for each thread, and there what is freed stays.

    With 24 TSU-length videos the process grew to 0.7 GB, and with np.zeros to 1.4 GB.
    """
    count = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(count * dtype.itemsize, 1)), dtype, count).reshape(shape)


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
