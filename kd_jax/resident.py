"""A training set that lives on the device: an epoch is one compiled program, the host sends indices and reads means.

    data = put(examples, buckets, mesh)
    train_epoch = make_train_epoch(train_step, buckets)
    state, metrics = jax.jit(train_epoch)(state, data, buckets_of, rows, weights, key)   # metrics: `[S]` each

Videos lie one after the other in one table, without padding; a step cuts its batch out of it. What a batch holds is
bit for bit what `input_pipeline.epoch` would have sent.
"""

import functools
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.input_pipeline import Example, host_memory, replicate
from kd_jax.train_state import TrainState
from kd_jax.types import Batch, Outputs

SHARE = 0.5  # of a device's memory that the training set may take; the rest is for the step


@flax.struct.dataclass
class Resident:
    """Videos on the device; N is the number of their snippets, and of one longest bucket of zeros after them.

    Attributes:
      features: `[N, D]`, in the dtype of the examples.
      labels: `[N, C]` uint8.
      teachers: what each frozen teacher says, `[N, H]` and `[N, C]` float32.
      starts, lengths: `[V + 1]` int32, of each video and of an empty one.
    """

    features: jax.Array
    labels: jax.Array
    teachers: tuple[Outputs, ...]
    starts: jax.Array
    lengths: jax.Array


def num_bytes(examples: Sequence[Example]) -> int:
    """What these videos take on a device."""
    arrays = (a for e in examples for a in (e.features, e.labels, *jax.tree.leaves(e.teachers)))
    return sum(array.nbytes for array in arrays)


def fits(examples: Sequence[Example]) -> bool:
    """Whether they take no more than SHARE of a device's memory; on CPU it holds the host's own copy too."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return num_bytes(examples) <= SHARE * statistics.get("bytes_limit", host_memory() / 2)


def put(examples: Sequence[Example], longest: int, mesh: jax.sharding.Mesh) -> Resident:
    """Copies the videos to every device of the mesh.

    Args:
      examples: with as many teachers each.
      longest: the longest bucket.
      mesh: of the devices.
    """

    def table(arrays):
        width = arrays[0].shape[-1]
        out = np.zeros((sum(map(len, arrays)) + longest, width), arrays[0].dtype)
        start = 0
        for array in arrays:  # one by one: they may be on disk
            out[start : start + len(array)] = array
            start += len(array)
        return out

    lengths = np.array([*(len(e.features) for e in examples), 0], np.int32)
    teachers = tuple(
        Outputs(table([o.features for o in outputs]), table([o.logits for o in outputs]))
        for outputs in zip(*[e.teachers for e in examples], strict=True)
    )
    data = Resident(
        features=table([e.features for e in examples]),
        labels=table([e.labels for e in examples]),
        teachers=teachers,
        starts=np.cumsum([0, *lengths[:-1]], dtype=np.int32),
        lengths=lengths,
    )
    return replicate(data, mesh)


def take(data: Resident, rows: jax.Array, length: int) -> tuple[Batch, tuple[Outputs, ...]]:
    """Cuts out a batch of whole videos.

    Args:
      data: the training set.
      rows: `[B]` indices of videos; V is the empty one.
      length: T, at least that of each.

    Returns:
      The batch and the teachers' outputs, 0 where the mask is False.
    """
    mask = jnp.arange(length)[None, :] < data.lengths[rows][:, None]

    def cut(table):
        pieces = jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(table, start, length))(data.starts[rows])
        return jnp.where(mask[..., None], pieces, jnp.zeros((), table.dtype))

    return Batch(cut(data.features), cut(data.labels), mask), jax.tree.map(cut, data.teachers)


def index_plan(
    batches: Sequence[tuple[int, Sequence[int]]], buckets: Sequence[int], num_videos: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's batches as arrays: `[S]` which bucket, `[S, rows]` which videos, filled up with the empty one."""
    table = np.full((len(batches), rows), num_videos, np.int32)
    for line, (_, indices) in zip(table, batches, strict=True):
        line[: len(indices)] = indices
    return np.array([list(buckets).index(length) for length, _ in batches], np.int32), table


def make_train_epoch(train_step: Callable, buckets: Sequence[int], mesh: jax.sharding.Mesh) -> Callable:
    """Returns `train_epoch(state, data, buckets_of, rows, weights, key) -> (state, metrics)`, pure, for `jax.jit`.

    Args:
      train_step: from `distill.make_train_step`.
      buckets: the padded lengths; each is compiled once.
      mesh: the rows of a batch are spread over its axis `data`.
    """
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def step_of(length, state, data, rows, weights, key):
        rows = jax.lax.with_sharding_constraint(rows, spread)
        batch, teachers = take(data, rows, length)
        return train_step(state, teachers, batch, weights, key)

    def train_epoch(state: TrainState, data: Resident, buckets_of, rows, weights: dict, key: jax.Array):
        def body(state, item):
            bucket, rows = item
            branches = [functools.partial(step_of, length) for length in buckets]
            return jax.lax.switch(bucket, branches, state, data, rows, weights, key)

        return jax.lax.scan(body, state, (buckets_of, rows))

    return train_epoch
