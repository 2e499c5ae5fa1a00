"""Training videos that stay on the device: an epoch is one compiled program, and the host sends indices only.

    data = put([examples], max(buckets), mesh)
    train_epoch = jax.jit(make_train_epoch(program, buckets, mesh))
    states, metrics = train_epoch(states, data, set_of_run, buckets_of, rows, settings, (0, S))   # metrics: `[S, P]`

Videos lie one after another in one table, without padding, and each step cuts its batch out of it. The batch has the
same bits as the one that the host would have sent. P runs train in one program on one table; each has its own seed,
weights, learning rate and teachers.
"""

import functools
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import sharding
from kd_jax.data.batches import Example
from kd_jax.runtime import device_memory
from kd_jax.training.state import TrainState
from kd_jax.training.step import Program, Settings, make_gradient, make_update
from kd_jax.types import Array, Batch, Outputs

SHARE = 0.5  # the part of a device's memory that training videos may take; the rest is for the step


@flax.struct.dataclass
class Resident:
    """Videos on the device. N is the number of their snippets plus one longest bucket of zeros."""

    features: Array  # [N, D], in the dtype of the examples
    labels: Array  # [N, C] uint8
    teachers: tuple[Outputs, ...]  # one for each teacher of a set, [U, N, …], for U sets
    starts: Array  # [V + 1] int32, of each video and of an empty one
    lengths: Array  # [V + 1] int32


def num_bytes(teacher_sets: Sequence[Sequence[Example]]) -> int:
    """Bytes that these videos take on a device: features and labels once, the outputs of teachers once per set."""
    arrays = [array for example in teacher_sets[0] for array in (example.features, example.labels)]
    arrays += [a for examples in teacher_sets for example in examples for a in jax.tree.leaves(example.teachers)]
    return sum(array.nbytes for array in arrays)


def memory_limit() -> int:
    """Bytes that a program may use on a device; on a CPU half of the host's, as `Source` may use the rest."""
    return device_memory(host_share=2)


def fits(teacher_sets: Sequence[Sequence[Example]]) -> bool:
    """Whether these videos take at most SHARE of a device's memory."""
    return num_bytes(teacher_sets) <= SHARE * memory_limit()


def put(teacher_sets: Sequence[Sequence[Example]], longest: int, mesh: jax.sharding.Mesh) -> Resident:
    """Copies the videos to every device of the mesh. Each process reads its part, and the devices exchange the rest.

    Args:
      teacher_sets: the same videos U times, each time with the outputs of another set of teachers.
      longest: the length of the longest bucket.
      mesh: the devices.
    """
    examples = teacher_sets[0]
    lengths = np.array([*(len(example.features) for example in examples), 0], np.int32)
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
    size = sharding.device_rows(int(starts[-1]) + longest, mesh)
    every, local = np.arange(size), np.array(sharding.local_rows(size, mesh))

    def of_videos(videos):
        outputs = [example.teachers for example in videos]
        return jax.tree.map(lambda *arrays: _table(arrays, starts, every), *outputs)

    features = _table([example.features for example in examples], starts, local)
    data = Resident(
        features=features if len(local) == size else sharding.shard(features, size, mesh),
        labels=_table([example.labels for example in examples], starts, every),
        teachers=jax.tree.map(lambda *tables: np.stack(tables), *map(of_videos, teacher_sets)),
        starts=starts,
        lengths=lengths,
    )
    return sharding.replicate(data, mesh)


def _table(arrays: Sequence, starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The given rows of all arrays, one after another; arrays on disk are read one by one, and only where needed."""
    out = np.zeros((len(rows), arrays[0].shape[-1]), arrays[0].dtype)
    for start, array in zip(starts, arrays, strict=False):
        first, last = np.searchsorted(rows, [start, start + len(array)])
        if first < last:
            out[first:last] = np.asarray(array)[rows[first:last] - start]
    return out


def take(data: Resident, teacher_set: jax.Array, rows: jax.Array, length: int) -> tuple[Batch, tuple[Outputs, ...]]:
    """Cuts out a batch of whole videos.

    Args:
      data, teacher_set: the training videos, and the index of the set of teachers.
      rows: `[B]` indices of videos; V is the empty one.
      length: T, at least the length of each video.

    Returns the batch and the teachers' outputs, 0 where the mask is False.
    """
    mask = jnp.arange(length)[None, :] < data.lengths[rows][:, None]

    def cut(tables, index=0):
        def piece(start):
            return jax.lax.dynamic_slice(tables, (index, start, 0), (1, length, tables.shape[-1]))[0]

        return jnp.where(mask[..., None], jax.vmap(piece)(data.starts[rows]), jnp.zeros((), tables.dtype))

    batch = Batch(cut(data.features[None]), cut(data.labels[None]), mask, data.starts[rows])
    return batch, jax.tree.map(lambda tables: cut(tables, teacher_set), data.teachers)


def index_plan(
    batches: Sequence[tuple[int, Sequence[int]]], buckets: Sequence[int], num_videos: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """The batches of an epoch as arrays: the bucket of each, `[S]`, and its videos, `[S, rows]`; V is the empty one."""
    table = np.full((len(batches), rows), num_videos, np.int32)
    for line, (_, indices) in zip(table, batches, strict=True):
        line[: len(indices)] = indices
    return np.array([list(buckets).index(length) for length, _ in batches], np.int32), table


def make_train_epoch(program: Program, buckets: Sequence[int], mesh: jax.sharding.Mesh) -> Callable:
    """Returns a function for `jax.jit`: `train_epoch(states, data, set_of_run, buckets_of, rows, settings, bounds)`.

    It returns the states and the metrics, `[S, P]`, after the steps from `bounds[0]` to before `bounds[1]`; the metrics
    of other steps are 0. `states` and `settings` have a leading axis for the P runs. `set_of_run` `[P]` is the set of
    teachers of each run, `buckets_of` is `[S]`, `rows` `[S, P, B]`.

    Args:
      program: the step.
      buckets: the padded lengths; the gradient is compiled once for each, the update once for all.
      mesh: the rows of a batch are spread over its axis `data`.
    """
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    compute, update = make_gradient(program), make_update(program)

    def gradient_of(length, data, teacher_set, state, rows, settings):
        rows = jax.lax.with_sharding_constraint(rows, spread)
        batch, teachers = take(data, teacher_set, rows, length)
        return compute(state, teachers, batch, settings)

    def train_epoch(states: TrainState, data: Resident, set_of_run, buckets_of, rows, settings: Settings, bounds):
        every_run = jax.vmap if len(set_of_run) > 1 else _single

        @functools.partial(jax.jit, inline=True)  # traced once, although it is called twice
        def step(i, states):
            branches = [every_run(functools.partial(gradient_of, length, data)) for length in buckets]
            computed = jax.lax.switch(buckets_of[i], branches, set_of_run, states, rows[i], settings)
            return every_run(update)(states, *computed, settings)

        def body(i, carry):
            states, table = carry
            states, metrics = step(i, states)
            return states, jax.tree.map(lambda column, x: column.at[i].set(x), table, metrics)

        _, shapes = jax.eval_shape(step, bounds[0], states)
        table = jax.tree.map(lambda x: jnp.zeros((len(buckets_of), *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(bounds[0], bounds[1], body, (states, table))  # bounds are values, so it compiles once

    return train_epoch


def _single(function: Callable) -> Callable:
    """`jax.vmap` over an axis of size 1, without batching the operations."""

    def mapped(*arguments):
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], arguments)))

    return mapped
