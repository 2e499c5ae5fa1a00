"""Pairs and greedy matching equal loops, for any chunk size; average precision by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.evaluation.metrics import segment_matching as matching
from kd_jax.evaluation.metrics.ranked_precision import average_precision_of_ranks, average_precisions, mean_over_present
from kd_jax.evaluation.metrics.segment_rows import Rows


def test_temporal_iou_by_hand():
    start, end = np.array([0.0, 0, 0, 5, 5, 0]), np.array([10.0, 10, 10, 5, 5, 10])
    other_start, other_end = np.array([0.0, 5, 10, 5, 0, 2]), np.array([10.0, 15, 20, 5, 10, 4])
    found = matching.temporal_iou(start, end, other_start, other_end)
    np.testing.assert_allclose(found, [1, 5 / 15, 0, 0, 0, 2 / 10])
    np.testing.assert_array_equal(matching.temporal_iou(other_start, other_end, start, end), found)


@st.composite
def tables(draw, max_size):
    row = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 8), st.integers(0, 5))
    rows = np.array(draw(st.lists(row, max_size=max_size)), np.int64).reshape(-1, 4)
    return Rows(rows[:, 0], rows[:, 1], rows[:, 2] / 1.0, (rows[:, 2] + rows[:, 3]) / 1.0, np.zeros(len(rows)))


@settings(max_examples=100, deadline=None)
@given(tables(12), tables(8), st.sampled_from([1, 3, 1000]), st.sampled_from([0.0, 0.3]))
def test_pairs_equal_the_loop_for_any_chunk_size(detections, truths, at_once, minimum):
    expected = []
    for d, (video, class_id, start, end, _) in enumerate(zip(*detections, strict=True)):
        for t, (truth_video, truth_class, truth_start, truth_end, _) in enumerate(zip(*truths, strict=True)):
            value = float(matching.temporal_iou(*np.array([[start], [end], [truth_start], [truth_end]]))[0])
            if (video, class_id) == (truth_video, truth_class) and value >= minimum:
                expected.append((d, t, value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_PAIRS_AT_ONCE", at_once)
        pairs = matching.pairs_of_one_class(detections, truths, matching.temporal_iou, minimum=minimum)
    assert list(zip(*(column.tolist() for column in pairs), strict=True)) == expected


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_matching_equals_the_loop(data):
    num_detections, num_truths = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 6))
    cells = [(d, t) for d in range(num_detections) for t in range(num_truths)]
    chosen = data.draw(st.lists(st.sampled_from(cells), unique=True)) if cells else []
    overlaps = data.draw(st.lists(st.sampled_from([0.2, 0.5, 1.0]), min_size=len(chosen), max_size=len(chosen)))
    overlap, free, expected = dict(zip(chosen, overlaps, strict=True)), set(range(num_truths)), []
    for d in range(num_detections):
        ranked = sorted((overlap[d, t], t) for t in free if (d, t) in overlap)
        expected.append(ranked[-1][1] if ranked else -1)
        free.discard(expected[-1])
    index = np.array(chosen, np.int64).reshape(-1, 2)
    pairs = matching.Pairs(index[:, 0], index[:, 1], np.array(overlaps))
    assert matching.match_greedily(pairs, num_detections, num_truths).tolist() == expected


def test_average_precision_by_hand():
    # + − + − − +, four ground truths. At the hits: 1, 2/3, 3/6; interpolated the same, as precision falls.
    positive = np.array([1, 0, 1, 0, 0, 1], bool)
    for interpolated in (True, False):
        found = average_precision_of_ranks(positive, 4, interpolated=interpolated)
        assert found == pytest.approx((1 + 2 / 3 + 1 / 2) / 4)
    # − + +: at the hits 1/2, 2/3; interpolated 2/3, 2/3.
    rising = np.array([0, 1, 1], bool)
    assert average_precision_of_ranks(rising, 2, interpolated=False) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision_of_ranks(rising, 2, interpolated=True) == pytest.approx(2 / 3)
    assert average_precision_of_ranks(rising[:0], 2, interpolated=True) == 0
    assert np.isnan(average_precision_of_ranks(rising, 0, interpolated=True))


def test_groups_are_ranked_separately_and_can_leave_detections_out():
    positive, group = np.array([[0, 1, 1, 0, 1]], bool), np.array([0, 1, 0, 2, 0])
    result = average_precisions(positive, group, np.array([0, 0, 1, 3]), 4, interpolated=False)
    np.testing.assert_allclose(result, [[(1 / 2 + 2 / 3) / 2, 1, np.nan, 0]])
    np.testing.assert_allclose(mean_over_present(result), [(7 / 12 + 1) / 3])
    left_out = np.array([[1, 0, 0, 0, 0]], bool)
    result = average_precisions(positive, group, np.array([0, 0, 1, 3]), 4, interpolated=False, left_out=left_out)
    np.testing.assert_allclose(result, [[1, 1, np.nan, 0]])
    np.testing.assert_array_equal(mean_over_present(np.full((2, 3), np.nan)), [np.nan, np.nan])
