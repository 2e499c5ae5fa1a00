"""Videos on the device: a step cuts out the batch that the host would send, and an epoch compiles once."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax import sharding
from kd_jax.data.batches import Example, bucket_lengths, collate, iterate_epoch, schedule_epoch
from kd_jax.models import Detector
from kd_jax.training import on_device
from kd_jax.training.state import Optimization, create_train_state
from kd_jax.training.step import Program, Settings, make_train_step
from kd_jax.training.terms import choose_term
from kd_jax.types import Outputs

WIDTH, CLASSES, HIDDEN = 5, 3, 8


def examples_of(lengths, teachers=1):
    rng = np.random.default_rng(len(lengths))
    return [
        Example(
            str(i),
            rng.standard_normal((n, WIDTH)).astype(np.float16),
            (rng.random((n, CLASSES)) < 0.3).astype(np.uint8),
            tuple(
                Outputs(
                    rng.standard_normal((n, HIDDEN), np.float32),
                    rng.standard_normal((n, CLASSES), np.float32),
                    teaches=rng.random((n, 1)) < 0.5,
                )
                for _ in range(teachers)
            ),
        )
        for i, n in enumerate(lengths)
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_a_batch_is_what_the_host_would_have_sent(lengths, batch_size, num_buckets, teachers):
    examples, mesh = examples_of(lengths, teachers), sharding.data_mesh()
    buckets = bucket_lengths(lengths, num_buckets, batch_size)
    data = on_device.put([examples], max(buckets), mesh)
    batches = schedule_epoch(lengths, buckets, batch_size, seed=1, epoch=2)
    rows = sharding.device_rows(batch_size, mesh)
    for bucket, of_videos in zip(*on_device.index_plan(batches, buckets, len(examples), rows), strict=True):
        length = buckets[bucket]
        starts = np.cumsum([0, *lengths])[of_videos]
        own = [examples[i] for i in of_videos if i < len(examples)]
        sent = collate(own, length, rows, starts=starts)
        taken = on_device.take(data, 0, of_videos, length)
        chex.assert_trees_all_equal(taken, sent)
        chex.assert_trees_all_equal_dtypes(taken, sent)


def test_each_run_reads_its_own_set_of_teachers():
    sets = [examples_of([5, 9], teachers=2), examples_of([5, 9], teachers=2)]
    sets[1] = [
        dataclasses.replace(
            e, teachers=tuple(Outputs(o.features + 1, o.logits - 1, teaches=~o.teaches) for o in e.teachers)
        )
        for e in sets[1]
    ]
    data = on_device.put(sets, 16, sharding.data_mesh())
    for which, examples in enumerate(sets):
        chex.assert_trees_all_equal(
            on_device.take(data, which, np.array([1, 0]), 16),
            collate(examples[::-1], 16, 2, starts=[5, 0]),
        )
    once = on_device.num_bytes([sets[0]])
    assert on_device.num_bytes(sets) == once + sum(a.nbytes for e in sets[1] for a in jax.tree.leaves(e.teachers))


def training(examples, buckets):
    model = Detector("ss_tcn", num_outputs=CLASSES, hidden=HIDDEN, num_layers=2)
    weights = {"atomic": jnp.float32(1), "global_context": jnp.float32(2), "boundary": jnp.float32(0.1)}
    optimization = Optimization(plateau_patience=2, steps_per_epoch=3)
    program = Program(model, "dense", tuple(map(choose_term, weights)), optimization)
    state = create_train_state(model, optimization.make(), jax.random.key(0), WIDTH)
    settings = Settings({"task": jnp.float32(1), **weights}, jnp.float32(1e-2), jax.random.key(3))
    return program, state, settings


@pytest.mark.slow
def test_an_epoch_of_resident_videos_is_an_epoch_of_streamed_ones_and_compiles_once():
    lengths = [5, 40, 17, 33, 20]
    examples, buckets, mesh = examples_of(lengths), (32, 48), sharding.data_mesh()
    program, streamed, given = training(examples, buckets)
    streamed = sharding.replicate(streamed, mesh)
    states = sharding.replicate(jax.tree.map(lambda x: x[None], streamed), mesh)
    each = jax.tree.map(lambda x: x[None], given)
    data = on_device.put([examples], max(buckets), mesh)
    chex.clear_trace_counter()
    # One program with a branch for each bucket; a second trace would be a second compilation.
    train_epoch = jax.jit(chex.assert_max_traces(on_device.make_train_epoch(program, buckets, mesh), n=1))
    sent_step = jax.jit(make_train_step(program))
    rows = sharding.device_rows(2, mesh)
    for number in (1, 2, 3):
        buckets_of, videos = on_device.index_plan(
            schedule_epoch(lengths, buckets, 2, seed=7, epoch=number), buckets, len(examples), rows
        )
        arguments = np.zeros(1, np.int32), buckets_of, videos[:, None], each, np.array([0, 3], np.int32)
        states, stacked = train_epoch(states, data, *arguments)
        losses = []
        for _, batch, teachers in iterate_epoch(examples, buckets, 2, mesh, seed=7, epoch=number):
            streamed, measured = sent_step(streamed, teachers, batch, given)
            losses.append(measured["loss"])
        np.testing.assert_allclose(stacked["loss"][:, 0], losses, rtol=1e-5)
    state = jax.tree.map(lambda x: x[0], states)
    chex.assert_trees_all_close(state.params, streamed.params, rtol=1e-4, atol=1e-6)
    assert int(state.step) == int(streamed.step) == 9


def test_what_does_not_fit_is_streamed(monkeypatch):
    examples = examples_of([5, 40])
    per_snippet = 2 * WIDTH + CLASSES + 4 * (HIDDEN + CLASSES) + 1  # of bytes; the last is `teaches`
    assert on_device.num_bytes([examples]) == 45 * per_snippet
    assert on_device.fits([examples])
    monkeypatch.setattr(on_device, "SHARE", 1e-15)
    assert not on_device.fits([examples])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_sequence_of_lengths_does_not_depend_on_the_seed(seed):
    lengths = list(np.random.default_rng(0).integers(1, 200, 30))
    buckets = bucket_lengths(lengths, 4, 4)
    sequences = {
        tuple(length for length, _ in schedule_epoch(lengths, buckets, 4, seed=s, epoch=5)) for s in (seed, seed + 10)
    }
    videos = {
        tuple(map(tuple, (indices for _, indices in schedule_epoch(lengths, buckets, 4, seed=s, epoch=5))))
        for s in (seed, seed + 10)
    }
    assert len(sequences) == 1 and len(videos) == 2
