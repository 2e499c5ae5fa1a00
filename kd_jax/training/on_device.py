"""A training set that lives on the device: an epoch is one compiled program, the host sends indices and reads means.

    data = put([examples], max(buckets), mesh)
    train_epoch = make_train_epoch(train_step, buckets, mesh)
    states, metrics = jax.jit(train_epoch)(states, data, sets, buckets_of, rows, weights, keys)   # metrics: `[S, P]`

Videos lie one after the other in one table, without padding; a step cuts its batch out of it. What a batch holds is
bit for bit what `epoch` would have sent. P runs of equal shape train side by side on one table, each
with its own seed, weights, rate and teachers.
"""

import functools
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import sharding
from kd_jax.data.batches import Example
from kd_jax.runtime import host_memory
from kd_jax.training.state import TrainState
from kd_jax.types import Batch, Outputs

SHARE = 0.5  # of a device's memory that the training set may take; the rest is for the step


@flax.struct.dataclass
class Resident:
    """Videos on the device; N is the number of their snippets, and of one longest bucket of zeros after them.

    Attributes:
      features: `[N, D]`, in the dtype of the examples.
      labels: `[N, C]` uint8.
      teachers: what each frozen teacher says, `[U, N, H]` and `[U, N, C]` float32, in each of U sets of teachers.
      starts, lengths: `[V + 1]` int32, of each video and of an empty one.
    """

    features: jax.Array
    labels: jax.Array
    teachers: tuple[Outputs, ...]
    starts: jax.Array
    lengths: jax.Array


def num_bytes(sets: Sequence[Sequence[Example]]) -> int:
    """What these videos take on a device: their features once, what teachers say of them once a set."""
    arrays = [a for e in sets[0] for a in (e.features, e.labels)]
    arrays += [a for examples in sets for e in examples for a in jax.tree.leaves(e.teachers)]
    return sum(array.nbytes for array in arrays)


def memory_limit() -> int:
    """Bytes that a program may use on a device; on CPU half of the machine's, whose other half holds the videos."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", host_memory() // 2)


def fits(sets: Sequence[Sequence[Example]]) -> bool:
    """Whether they take no more than SHARE of a device's memory."""
    return num_bytes(sets) <= SHARE * memory_limit()


def put(sets: Sequence[Sequence[Example]], longest: int, mesh: jax.sharding.Mesh) -> Resident:
    """Copies the videos to every device of the mesh; each process reads its part, the devices exchange the rest.

    Args:
      sets: U times the same videos, each time with other teachers, or once.
      longest: the longest bucket.
      mesh: of the devices.
    """
    examples = sets[0]

    lengths = np.array([*(len(e.features) for e in examples), 0], np.int32)
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
    rows = sharding.device_rows(int(starts[-1]) + longest, mesh)

    def table(arrays, held):
        """The rows `held` of the videos one after the other."""
        out = np.zeros((len(held), arrays[0].shape[-1]), arrays[0].dtype)
        for start, array in zip(starts, arrays, strict=False):
            first, last = np.searchsorted(held, [start, start + len(array)])
            if first < last:  # one by one, and only these: they may be on disk
                out[first:last] = np.asarray(array)[held[first:last] - start]
        return out

    def tables_of(teacher, field):
        return np.stack([table([getattr(e.teachers[teacher], field) for e in examples], every) for examples in sets])

    every, local = np.arange(rows), np.array(sharding.local_rows(rows, mesh))
    features = table([e.features for e in examples], local)
    data = Resident(
        features=features if len(local) == rows else sharding.shard(features, rows, mesh),
        labels=table([e.labels for e in examples], every),
        teachers=tuple(
            Outputs(tables_of(teacher, "features"), tables_of(teacher, "logits"))
            for teacher in range(len(examples[0].teachers))
        ),
        starts=starts,
        lengths=lengths,
    )
    return sharding.replicate(data, mesh)


def take(data: Resident, which: jax.Array, rows: jax.Array, length: int) -> tuple[Batch, tuple[Outputs, ...]]:
    """Cuts out a batch of whole videos.

    Args:
      data: the training set.
      which: the set of teachers, from 0 on.
      rows: `[B]` indices of videos; V is the empty one.
      length: T, at least that of each.

    Returns:
      The batch and the teachers' outputs, 0 where the mask is False.
    """
    mask = jnp.arange(length)[None, :] < data.lengths[rows][:, None]

    def cut(tables, which=0):
        def piece(start):
            return jax.lax.dynamic_slice(tables, (which, start, 0), (1, length, tables.shape[-1]))[0]

        return jnp.where(mask[..., None], jax.vmap(piece)(data.starts[rows]), jnp.zeros((), tables.dtype))

    batch = Batch(cut(data.features[None]), cut(data.labels[None]), mask, data.starts[rows])
    return batch, jax.tree.map(lambda tables: cut(tables, which), data.teachers)


def index_plan(
    batches: Sequence[tuple[int, Sequence[int]]], buckets: Sequence[int], num_videos: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's batches as arrays: `[S]` which bucket, `[S, rows]` which videos, filled up with the empty one."""
    table = np.full((len(batches), rows), num_videos, np.int32)
    for line, (_, indices) in zip(table, batches, strict=True):
        line[: len(indices)] = indices
    return np.array([list(buckets).index(length) for length, _ in batches], np.int32), table


def make_train_epoch(train_step: Callable, buckets: Sequence[int], mesh: jax.sharding.Mesh) -> Callable:
    """Returns `train_epoch(states, data, sets, buckets_of, rows, weights, keys) -> (states, metrics)`, for `jax.jit`.

    All but `data` and `buckets_of` `[S]` have an axis for the P runs: the states, the `weights` and the `keys` as their
    first, `sets` `[P]` (which teachers), `rows` `[S, P, B]`, the metrics `[S, P]`.

    Args:
      train_step: from `make_train_step`.
      buckets: the padded lengths; each is compiled once.
      mesh: the rows of a batch are spread over its axis `data`.
    """
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def step_of(length, data, which, state, rows, weights, key):
        rows = jax.lax.with_sharding_constraint(rows, spread)
        batch, teachers = take(data, which, rows, length)
        return train_step(state, teachers, batch, weights, key)

    def train_epoch(states: TrainState, data: Resident, sets, buckets_of, rows, weights: dict, keys: jax.Array):
        def body(states, item):
            bucket, rows = item
            every_run = jax.vmap if len(keys) > 1 else _alone
            branches = [every_run(functools.partial(step_of, length, data)) for length in buckets]
            return jax.lax.switch(bucket, branches, sets, states, rows, weights, keys)

        return jax.lax.scan(body, states, (buckets_of, rows))

    return train_epoch


def _alone(function: Callable) -> Callable:
    """`jax.vmap` for one run: the same program as without it."""

    def mapped(*arguments):
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], arguments)))

    return mapped
