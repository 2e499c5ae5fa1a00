"""Segments and labels: values by hand, labels of the public code, and laws of both directions."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kd_jax.segments import labels_from_segments, resample_scores, segments_from_labels

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"

DURATIONS = st.floats(0.1, 1e5)
LABELS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.integers(0, 1))


def test_labels_by_hand():
    # Three snippets of 3 s: instants 0, 1, 2. Class 0 holds instant 1; class 1 touches 1 and 2 only with its ends.
    segments = np.array([[0, 0.5, 1.5], [1, 1.0, 2.0], [2, 0.0, 3.0]])
    expected = [[0, 0, 0], [1, 0, 1], [0, 0, 1]]
    labels = labels_from_segments(segments, 3.0, 3, 3)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)


def test_no_segments_no_labels():
    np.testing.assert_array_equal(labels_from_segments(np.zeros((0, 3)), 3.0, 3, 2), np.zeros((3, 2)))
    np.testing.assert_array_equal(labels_from_segments([], 3.0, 3, 2), np.zeros((3, 2)))


def assert_golden(path):
    golden = np.load(path, allow_pickle=False)
    num_classes = int(golden["num_classes"])
    for i, (num_snippets, duration) in enumerate(zip(golden["num_snippets"], golden["duration"], strict=True)):
        expected = np.unpackbits(golden[f"v{i}/labels_packed"])[: num_snippets * num_classes]
        labels = labels_from_segments(golden[f"v{i}/actions"], duration, int(num_snippets), num_classes)
        np.testing.assert_array_equal(labels, expected.reshape(num_snippets, num_classes))
        np.testing.assert_array_equal(labels.sum(axis=0), golden[f"v{i}/label_count_per_class"])


def test_labels_equal_the_public_code():
    assert_golden(DATA / "frame_labels_synth.npz")


def test_labels_equal_the_public_code_on_real_annotations():
    path = SHARED / "golden/tsu_labels.npz"
    if not path.exists():
        pytest.skip(f"{path} is missing; real annotations may not be committed")
    assert_golden(path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros((2, 2)), 1.0, 3, 2), r"\[N, 3\]"),
        ((np.array([[2, 0, 1.0]]), 1.0, 3, 2), r"class 2 is not one of 0 … 1"),
        ((np.array([[-1, 0, 1.0]]), 1.0, 3, 2), r"class -1"),
        ((np.array([[0.5, 0, 1.0]]), 1.0, 3, 2), r"class 0.5"),
        ((np.zeros((0, 3)), 0.0, 3, 2), r"duration > 0"),
        ((np.zeros((0, 3)), 1.0, 0, 2), r"at least one snippet"),
    ],
)
def test_labels_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        labels_from_segments(*arguments)


@given(LABELS, DURATIONS)
def test_law_labels_segments_labels(labels, duration):
    segments = segments_from_labels(labels, duration)
    np.testing.assert_array_equal(labels_from_segments(segments, duration, *labels.shape), labels)


@given(st.data(), DURATIONS, st.integers(2, 40))
def test_law_segments_labels_segments_when_aligned(data, duration, num_snippets):
    # Aligned: ends are instants of snippets at least two apart; segments of a class follow each other.
    rows = []
    for class_id in range(3):
        cuts = sorted(data.draw(st.sets(st.integers(0, num_snippets), max_size=8)))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False):
            if end - start >= 2:
                instant = [i / (num_snippets / duration) if i < num_snippets else duration for i in (start, end)]
                rows.append([class_id, *instant])
    segments = np.array(rows, np.float64).reshape(-1, 3)
    labels = labels_from_segments(segments, duration, num_snippets, 3)
    np.testing.assert_array_equal(segments_from_labels(labels, duration), segments)


def test_segments_from_labels_by_hand():
    labels = np.array([[1, 0], [0, 1], [0, 1]])
    np.testing.assert_array_equal(segments_from_labels(labels, 6.0), [[0, -2, 2], [1, 0, 6]])
    assert segments_from_labels(np.zeros((3, 2)), 6.0).shape == (0, 3)


def test_resample_by_hand():
    scores = np.array([[0.0], [4.0]], np.float32)
    np.testing.assert_array_equal(resample_scores(scores, 5)[:, 0], [0, 0, 0, 4, 4])
    np.testing.assert_array_equal(resample_scores(scores, 1)[:, 0], [0])
    assert resample_scores(scores, 4).dtype == np.float32


@given(st.integers(1, 30), st.integers(1, 8))
def test_law_resampling(num_snippets, factor):
    scores = np.random.default_rng(0).random((num_snippets, 2))
    np.testing.assert_allclose(resample_scores(scores, num_snippets), scores)
    larger = resample_scores(scores, num_snippets * factor)
    assert larger.shape == (num_snippets * factor, 2)
    assert scores.min() - 1e-12 <= larger.min() and larger.max() <= scores.max() + 1e-12
    np.testing.assert_array_equal(larger, np.repeat(scores, factor, axis=0))
