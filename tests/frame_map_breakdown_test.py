"""Frame mAP by length and by concurrency: values by hand, masks written as loops, and messages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.evaluation.metrics.frame_map import average_precision, frame_map
from kd_jax.evaluation.metrics.frame_map_breakdown import frame_map_by_concurrency, frame_map_by_length
from kd_jax.evaluation.metrics.length_bins import ACTIVITYNET_LENGTH_BINS, THUMOS14_LENGTH_BINS
from kd_jax.segments import labels_from_segments

BINS = {"short": (0, 3), "long": (3, np.inf)}


def test_length_by_hand():
    # One class, snippets at 0 … 9 s. Short: snippets 1, 2. Long: 4 … 8. Scores fall with time, from snippet 9 down.
    segments = [np.array([[0, 0.5, 2.5], [0, 3.5, 8.5]])]
    scores = [np.arange(10.0)[:, None]]
    result = frame_map_by_length(scores, segments, [10], bins=BINS)
    # Short: ranked 9 −, 3 −, 2 +, 1 +, 0 −. Long: 9 −, 8 … 4 +, then negatives.
    assert result["short"]["mean_over_present_classes"] == pytest.approx(100 * (1 / 3 + 2 / 4) / 2)
    expected = 100 * np.mean([1 / 2, 2 / 3, 3 / 4, 4 / 5, 5 / 6])
    assert result["long"]["mean_over_present_classes"] == pytest.approx(expected)
    assert (result["short"]["num_positives"], result["long"]["num_positives"]) == (2, 5)


def test_a_snippet_in_a_short_and_a_long_action_is_a_positive_of_both():
    segments = [np.array([[0, 0.5, 2.5], [0, 0.5, 8.5]])]
    result = frame_map_by_length([np.arange(10.0)[:, None]], segments, [10], bins=BINS)
    # Short: snippets 1, 2 are positive, 3 … 8 are left out: ranked 9 −, 2 +, 1 +, 0 −.
    np.testing.assert_allclose(result["short"]["per_class"], [100 * (1 / 2 + 2 / 3) / 2])
    assert result["long"]["num_positives"] == 8


def test_named_bins_touch_and_reach_infinity():
    for bins in (THUMOS14_LENGTH_BINS, ACTIVITYNET_LENGTH_BINS):
        edges = list(bins.values())
        assert [high for _, high in edges] == [low for low, _ in edges[1:]] + [np.inf]
        assert edges[0][0] == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_length_equals_masking_by_hand(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    row = st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 6)).map(lambda r: (r[0], r[1], r[1] + r[2]))
    videos = data.draw(st.lists(st.tuples(st.integers(1, 20), st.lists(row, max_size=5)), min_size=1, max_size=3))
    scores = [rng.integers(0, 5, (n, 3)).astype(np.float32) for n, _ in videos]
    segments = [np.array(rows, float).reshape(-1, 3) for _, rows in videos]
    result = frame_map_by_length(scores, segments, [12.0] * len(videos), bins=BINS)
    for name, (low, high) in BINS.items():
        for class_id in range(3):
            ranked = []
            for s, rows in zip(scores, segments, strict=True):
                for i, value in enumerate(s[:, class_id]):
                    lengths = [e - b for c, b, e in rows if c == class_id and b < i / (len(s) / 12.0) < e]
                    if not lengths or any(low < length <= high for length in lengths):
                        ranked.append((value, bool(lengths)))
            values, labels = np.array([[v] for v, _ in ranked]), np.array([[t] for _, t in ranked])
            expected = 100 * average_precision(values, labels)[0] if labels.any() else np.nan
            np.testing.assert_allclose(result[name]["per_class"][class_id], expected)


def test_one_bin_for_all_lengths_is_frame_map():
    rng = np.random.default_rng(0)
    scores = [rng.random((50, 4)), rng.random((0, 4)), rng.random((30, 4))]
    starts = [rng.uniform(0, 40, n) for n in (6, 0, 5)]
    segments = [np.column_stack([rng.integers(0, 4, len(s)), s, s + rng.uniform(1, 9, len(s))]) for s in starts]
    durations = [50, 5, 45]
    labels = [
        labels_from_segments(rows, d, len(s), 4) if len(s) else np.zeros((0, 4))
        for s, rows, d in zip(scores, segments, durations, strict=True)
    ]
    result = frame_map_by_length(scores, segments, durations, bins={"all": (0, np.inf)})["all"]
    np.testing.assert_equal({k: v for k, v in result.items() if k != "num_positives"}, frame_map(scores, labels))
    assert result["num_positives"] == sum(t.sum() for t in labels)


def test_concurrency_by_hand():
    labels = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]])
    scores = np.array([[9, 0, 0], [1, 3, 0], [2, 2, 0], [1, 0, 1], [2, 1, 2], [0, 0, 0]])
    result = frame_map_by_concurrency([scores[:3], scores[3:]], [labels[:3], labels[3:]])
    assert {name: r["num_snippets"] for name, r in result.items()} == {"1": 2, "2": 2, "3": 1, "4 or more": 0}
    np.testing.assert_allclose(result["1"]["per_class"], [50, 50, np.nan])  # rows 1, 2: both classes − above +
    np.testing.assert_allclose(result["2"]["per_class"], [100, 50, 100])  # rows 3, 4
    np.testing.assert_allclose(result["3"]["per_class"], [100, 100, 100])
    assert np.isnan(result["4 or more"]["mean_over_present_classes"])
    # Row 0 has the highest score of class 0, and the first of equal ones of classes 1 and 2.
    result = frame_map_by_concurrency([scores], [labels], bins={"3": (3, 3)}, with_background=True)
    assert result["3"]["num_snippets"] == 1
    np.testing.assert_allclose(result["3"]["per_class"], [50, 50, 50])


def test_concurrency_bins_cut_the_videos():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((200, 5)).astype(np.float32), (rng.random((200, 5)) < 0.3).astype(np.uint8)
    count = labels.sum(axis=1)
    result = frame_map_by_concurrency([scores[:90], scores[90:]], [labels[:90], labels[90:]])
    for name, inside in (("1", count == 1), ("2", count == 2), ("3", count == 3), ("4 or more", count >= 4)):
        expected = frame_map(scores[inside], labels[inside])
        assert result[name].pop("num_snippets") == inside.sum()
        np.testing.assert_equal(result[name], expected)
    everything = frame_map_by_concurrency([scores], [labels], bins={"all": (1, np.inf)}, with_background=True)["all"]
    assert everything.pop("num_snippets") == (count > 0).sum()
    np.testing.assert_equal(everything, frame_map(scores, labels))


def test_perfect_scores_give_100_in_every_bin():
    segments = [np.array([[0, 1, 3], [1, 2, 9], [2, 2.5, 9]])]
    labels = [labels_from_segments(segments[0], 20, 100, 3)]
    for result in (frame_map_by_length(labels, segments, [20]), frame_map_by_concurrency(labels, labels)):
        means = [r["mean_over_present_classes"] for r in result.values()]
        np.testing.assert_array_equal([m for m in means if not np.isnan(m)], 100)


def test_refusals_name_function_argument_and_value():
    scores, segments, labels = [np.zeros((4, 2))], [np.zeros((0, 3))], [np.zeros((4, 2))]
    with pytest.raises(ValueError, match=r"frame_map_by_length: .*same videos, at least one; got 1, 1 and 2"):
        frame_map_by_length(scores, segments, [1, 2])
    with pytest.raises(ValueError, match=r"frame_map_by_length: scores\[0\] must be \[T, C\]; got shape \(4,\)"):
        frame_map_by_length([np.zeros(4)], segments, [1])
    with pytest.raises(ValueError, match=r"frame_map_by_length: segments\[0\] row 0: class 2 is not one of 0 … 1"):
        frame_map_by_length(scores, [[[2, 0, 1]]], [1])
    with pytest.raises(ValueError, match=r"frame_map_by_length: bins\['x'\] must be .* got \(3, 1\)"):
        frame_map_by_length(scores, segments, [1], bins={"x": (3, 1)})
    with pytest.raises(ValueError, match=r"duration > 0"):
        frame_map_by_length(scores, segments, [0])
    with pytest.raises(ValueError, match=r"frame_map_by_concurrency: bins\['x'\] must be .*, from 1 on; got \(0, 1\)"):
        frame_map_by_concurrency(scores, labels, bins={"x": (0, 1)})
    with pytest.raises(ValueError, match=r"frame_map_by_concurrency: bins must name at least one"):
        frame_map_by_concurrency(scores, labels, bins={})
    with pytest.raises(
        ValueError, match=r"frame_map_by_concurrency: .*got 2 and 1 videos, labels \(4, 2\) for video 0"
    ):
        frame_map_by_concurrency(scores * 2, labels)
