"""Batches: lengths, order, masks, the validation split."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax import input_pipeline
from kd_jax.input_pipeline import Example
from kd_jax.types import Outputs

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=30)


def examples_of(lengths, width=3, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Example(str(i), rng.standard_normal((n, width), np.float32), (rng.random((n, classes)) < 0.3).astype(np.uint8))
        for i, n in enumerate(lengths)
    ]


def padded_total(lengths, buckets):
    return sum(min(b for b in buckets if b >= n) for n in lengths)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 4))
def test_buckets_waste_as_little_as_possible(lengths, num_buckets):
    buckets = input_pipeline.bucket_lengths(lengths, num_buckets)
    sizes = sorted({-(-n // 16) * 16 for n in lengths})
    others = itertools.combinations(sizes[:-1], min(num_buckets, len(sizes)) - 1)
    best = min(padded_total(lengths, (*other, sizes[-1])) for other in others)
    assert len(buckets) <= num_buckets
    assert padded_total(lengths, buckets) == best


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_visits_every_video_once_in_as_few_batches_as_possible(lengths, batch_size, num_buckets, seed):
    buckets = input_pipeline.bucket_lengths(lengths, num_buckets)
    order = np.random.default_rng(seed).permutation(len(lengths))
    batches = input_pipeline.plan(lengths, buckets, batch_size, order)
    assert sorted(i for _, indices in batches for i in indices) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert all(length in buckets and length >= max(lengths[i] for i in indices) for length, indices in batches)


def test_a_video_longer_than_every_bucket_is_refused():
    with pytest.raises(ValueError, match="40 snippets does not fit the longest bucket of 32"):
        input_pipeline.plan([40], [16, 32], 1, [0])


def test_collate_by_hand():
    teacher = Outputs(np.full((2, 1), 7, np.float32), np.full((2, 2), 8, np.float32))
    example = Example(
        "a", np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([[0, 1], [1, 0]], np.uint8), (teacher,)
    )
    batch, teachers = input_pipeline.collate([example], length=3, rows=2)
    np.testing.assert_array_equal(batch.features, [[[1, 2], [3, 4], [0, 0]], np.zeros((3, 2))])
    np.testing.assert_array_equal(batch.labels, [[[0, 1], [1, 0], [0, 0]], np.zeros((3, 2))])
    np.testing.assert_array_equal(batch.mask, [[True, True, False], [False] * 3])
    np.testing.assert_array_equal(teachers[0].features[0, :, 0], [7, 7, 0])
    np.testing.assert_array_equal(teachers[0].logits[0, :, 1], [8, 8, 0])


def test_the_order_depends_on_seed_and_epoch_alone():
    mesh, examples = input_pipeline.data_mesh(), examples_of([5, 40, 17, 33, 20, 8])

    def order(seed, epoch):
        return [tuple(i) for i, _, _ in input_pipeline.epoch(examples, (32, 48), 2, mesh, seed=seed, epoch=epoch)]

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2, 3)}) > 3


def test_batches_keep_dtype_and_values():
    examples = examples_of([5, 9])
    examples = [Example(e.id, e.features.astype(np.float16), e.labels) for e in examples]
    ((indices, batch, teachers),) = input_pipeline.epoch(examples, (16,), 2, input_pipeline.data_mesh())
    assert batch.features.dtype == np.float16 and batch.mask.dtype == bool and teachers == ()
    for row, index in enumerate(indices):
        np.testing.assert_array_equal(batch.features[row, : len(examples[index].features)], examples[index].features)
    assert int(jax.numpy.sum(batch.mask)) == 14


@pytest.mark.parametrize("fraction, held_out", [(0, 0), (0.01, 1), (0.2, 2), (0.5, 5)])
def test_validation_split(fraction, held_out):
    ids = [f"v{i}" for i in range(10)]
    train, validation = input_pipeline.split_validation(ids[::-1], fraction, seed=3)
    assert (len(validation), sorted(train + validation)) == (held_out, ids)
    assert input_pipeline.split_validation(ids, fraction, seed=3) == (train, validation)


def test_validation_must_leave_training_videos():
    with pytest.raises(ValueError, match=r"validation_fraction=0.9 of 2 training videos leaves none"):
        input_pipeline.split_validation(["a", "b"], 0.9, 0)


def test_a_teacher_of_other_length_is_refused():
    outputs = [Outputs(np.zeros((4, 1)), np.zeros((4, 2)))]
    with pytest.raises(ValueError, match="video '0': the teacher has 4 snippets and the student 5"):
        input_pipeline.attach_teacher(examples_of([5]), outputs)
