"""Batches: lengths, order, masks, and batches from disk."""

import dataclasses
import gc
import itertools
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax import sharding
from kd_jax.data import base, records
from kd_jax.data.batches import (
    AHEAD,
    Example,
    attach_teacher,
    bucket_lengths,
    collate,
    group_into_batches,
    iterate_epoch,
    make_examples,
)
from kd_jax.types import Outputs

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=30)


def examples_of(lengths, width=3, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Example(str(i), rng.standard_normal((n, width), np.float32), (rng.random((n, classes)) < 0.3).astype(np.uint8))
        for i, n in enumerate(lengths)
    ]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 5))
def test_buckets_pad_as_few_snippets_as_possible(lengths, num_buckets, batch_size):
    def padded_total(buckets):
        return sum(length for length, _ in group_into_batches(lengths, buckets, batch_size, range(len(lengths))))

    buckets = bucket_lengths(lengths, num_buckets, batch_size)
    sizes = sorted({-(-n // 16) * 16 for n in lengths})
    others = itertools.combinations(sizes[:-1], min(num_buckets, len(sizes)) - 1)
    best = min(padded_total((*other, sizes[-1])) for other in others)
    assert len(buckets) <= num_buckets
    assert padded_total(buckets) == best
    assert {length for length, _ in group_into_batches(lengths, buckets, batch_size, range(len(lengths)))} == set(
        buckets
    )


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_has_every_video_once_in_as_few_batches_as_possible(lengths, batch_size, num_buckets, seed):
    buckets = bucket_lengths(lengths, num_buckets, batch_size)
    order = np.random.default_rng(seed).permutation(len(lengths))
    batches = group_into_batches(lengths, buckets, batch_size, order)
    assert sorted(i for _, indices in batches for i in indices) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert all(length in buckets and length >= max(lengths[i] for i in indices) for length, indices in batches)


def test_a_video_longer_than_every_bucket_is_refused():
    with pytest.raises(ValueError, match="40 snippets does not fit the longest bucket of 32"):
        group_into_batches([40], [16, 32], 1, [0])


def test_collate_by_hand():
    teacher = Outputs(np.full((2, 1), 7, np.float32), np.full((2, 2), 8, np.float32), teaches=np.ones((2, 1), bool))
    example = Example(
        "a", np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([[0, 1], [1, 0]], np.uint8), (teacher,)
    )
    batch, teachers = collate([example], length=3, rows=2)
    np.testing.assert_array_equal(batch.features, [[[1, 2], [3, 4], [0, 0]], np.zeros((3, 2))])
    np.testing.assert_array_equal(batch.labels, [[[0, 1], [1, 0], [0, 0]], np.zeros((3, 2))])
    np.testing.assert_array_equal(batch.mask, [[True, True, False], [False] * 3])
    np.testing.assert_array_equal(teachers[0].features[0, :, 0], [7, 7, 0])
    np.testing.assert_array_equal(teachers[0].logits[0, :, 1], [8, 8, 0])
    np.testing.assert_array_equal(teachers[0].teaches[:, :, 0], [[True, True, False], [False] * 3])


def test_the_order_depends_on_seed_and_epoch_alone():
    mesh, examples = sharding.data_mesh(), examples_of([5, 40, 17, 33, 20, 8])

    def order(seed, epoch):
        return [tuple(i) for i, _, _ in iterate_epoch(examples, (32, 48), 2, mesh, seed=seed, epoch=epoch)]

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2, 3)}) > 3


def test_batches_keep_dtype_and_values():
    examples = examples_of([5, 9])
    examples = [Example(e.id, e.features.astype(np.float16), e.labels) for e in examples]
    ((indices, batch, teachers),) = iterate_epoch(examples, (16,), 2, sharding.data_mesh())
    assert batch.features.dtype == np.float16 and batch.mask.dtype == bool and teachers == ()
    for row, index in enumerate(indices):
        np.testing.assert_array_equal(batch.features[row, : len(examples[index].features)], examples[index].features)
    assert int(jax.numpy.sum(batch.mask)) == 14


def test_teacher_outputs_of_another_length_are_refused():
    outputs = [Outputs(np.zeros((4, 1)), np.zeros((4, 2)))]
    with pytest.raises(ValueError, match="video '0': the teacher has 4 snippets and the student 5"):
        attach_teacher(examples_of([5]), outputs)


def examples_from(directory, **options):
    return make_examples(records.read(directory, "train", ["rgb"], **options), "rgb", 2)


def one_epoch(examples, batch_size=2, **order):
    buckets = bucket_lengths([len(e.features) for e in examples], 3, batch_size)
    return iterate_epoch(examples, buckets, batch_size, sharding.data_mesh(), **order)


@pytest.mark.parametrize("order", [{"seed": 1, "epoch": 2}, {}], ids=["training", "prediction"])
def test_an_epoch_from_disk_is_the_one_from_memory_bit_for_bit(twelve_videos, order):
    rng = np.random.default_rng(3)
    epochs = []
    examples = examples_from(twelve_videos)
    outputs = [Outputs(*(rng.standard_normal((len(e.features), n), np.float32) for n in (4, 2))) for e in examples]
    for of_source in (examples, examples_from(twelve_videos, on_disk=True)):
        of_source = attach_teacher(of_source, outputs)
        epochs.append([(np.array(i), *jax.device_get(arrays)) for i, *arrays in one_epoch(of_source, 5, **order)])
    assert isinstance(of_source[0].features, base.OnDisk)
    chex.assert_trees_all_equal(*epochs)
    chex.assert_trees_all_equal_dtypes(*epochs)


def test_an_epoch_reads_each_video_once_and_few_batches_ahead(twelve_videos):
    alive, read, most = weakref.WeakSet(), [], 0

    class Tracked(np.ndarray):
        """An array that can be an element of a WeakSet."""

        __hash__ = object.__hash__

    def load_of(index, features):
        def load():
            array = np.array(features.load()).view(Tracked)
            alive.add(array)
            read.append(index)
            return array

        return load

    examples = [
        dataclasses.replace(e, features=dataclasses.replace(e.features, load=load_of(i, e.features)))
        for i, e in enumerate(examples_from(twelve_videos, on_disk=True))
    ]
    taken = 0
    for indices, _, _ in one_epoch(examples, seed=0, epoch=1):
        taken += len(indices)
        time.sleep(0.05)  # lets the threads read as far ahead as they can
        most = max(most, len(alive))
        assert len(read) <= taken + 2 * AHEAD
    assert sorted(read) == list(range(12))
    gc.collect()
    assert most <= AHEAD and not alive


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("grain")]


def test_an_interrupted_epoch_stops_its_threads(twelve_videos):
    batches = one_epoch(examples_from(twelve_videos, on_disk=True), seed=0)
    next(batches)
    assert threads()
    batches.close()
    for thread in threads():
        thread.join(timeout=10)
    assert not threads()


def test_a_damaged_record_is_a_clear_error(twelve_videos):
    (shard,) = twelve_videos.glob("*train*")
    content = shard.read_bytes()
    place = content.index(b"v7")
    examples = examples_from(twelve_videos, on_disk=True)
    shard.write_bytes(content[:place] + b"w" + content[place + 1 :])
    with pytest.raises(ValueError, match=r"mine-train.array_record-\S+ is damaged \(.*\); build the data set again"):
        list(one_epoch(examples, seed=0))


TWO_PROCESSES = """
import sys
import jax
import numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from kd_jax import sharding
from kd_jax.data import base
from kd_jax.data.batches import Example, iterate_epoch

def load(i):
    read.append(i)
    return np.full((i + 1, 3), i, np.float16)

read, mesh = [], sharding.data_mesh()
examples = [
    Example(str(i), base.OnDisk((i + 1, 3), lambda i=i: load(i)), np.zeros((i + 1, 2), np.uint8)) for i in range(6)
]
for indices, batch, _ in iterate_epoch(examples, (16,), 4, mesh, seed=0, epoch=1):
    assert batch.features.shape == (4, 16, 3) and batch.mask.shape == (4, 16)
    for piece in batch.features.addressable_shards:
        (row,) = range(*piece.index[0].indices(4))
        expected = np.zeros((16, 3))
        if row < len(indices):
            expected[: indices[row] + 1] = indices[row]
        np.testing.assert_array_equal(piece.data[0], expected)
    lengths = jax.jit(lambda mask: mask.sum(1), out_shardings=sharding.replicate(0, mesh).sharding)(batch.mask)
    assert list(map(int, lengths)) == [i + 1 for i in indices] + [0] * (4 - len(indices))
print(sorted(read))
"""


@pytest.mark.slow
def test_each_of_two_processes_reads_only_the_videos_of_its_rows():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, address, str(i)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], results
    read = [set(map(int, out.splitlines()[-1][1:-1].split(","))) for out, _ in results]
    assert read[0] | read[1] == set(range(6)) and not read[0] & read[1]
    assert sorted(map(len, read)) == [2, 4]  # two of the four videos of the first batch each; the last batch has two
