"""The threshold with the best F1 in validation, and why a rule finds nothing; by hand."""

import numpy as np
import pytest

from kd_jax.evaluation.thresholds import best_threshold, compared_scores, default_threshold, explain_nothing
from kd_jax.segments import Grid


def test_the_best_threshold_of_a_dense_head():
    table, labels = np.array([[0.30, 0.10], [0.25, 0.05], [0.20, 0.60]]), np.array([[1, 0], [1, 0], [0, 1]])
    found = best_threshold([(table, labels)], "dense")
    assert found == (0.25, 100.0, pytest.approx(50.0))  # from 0.21 to 0.25 all three are found; with 0.5 one is


def test_a_sparse_head_decides_between_action_and_background():
    table, labels = np.array([[0.2, 0.1, 0.7], [0.15, 0.1, 0.75], [0.0, 0.1, 0.9]]), np.array([[1, 0], [0, 1], [0, 0]])
    assert best_threshold([(table[:2], labels[:2]), (table[2:], labels[2:])], "sparse") == (0.25, 100.0, 0.0)
    np.testing.assert_allclose(compared_scores(table, "sparse"), [[0.3], [0.25], [0.1]])
    np.testing.assert_array_equal(compared_scores(table, "sparse", "classes"), table[:, :2])


def test_every_threshold_is_compared_with_a_direct_count():
    rng = np.random.default_rng(0)
    table, labels = rng.random((50, 3)).round(2), rng.random((50, 3)) < 0.4
    scores = [
        200 * (labels & (table >= t)).sum() / ((table >= t).sum() + labels.sum()) for t in np.arange(1, 100) / 100
    ]
    found = best_threshold([(table, labels)], "dense")
    assert found.f1 == pytest.approx(max(scores)) == pytest.approx(scores[round(100 * found.threshold) - 1])
    assert found.default_f1 == pytest.approx(scores[49])


def test_without_labels_there_is_no_threshold():
    assert best_threshold([(np.ones((2, 2)), np.zeros((2, 2)))], "dense") is None
    assert best_threshold([], "dense") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("dense", None, None),
            "No snippet reaches the threshold 0.5; the highest probability is 0.3 (sit, 1:30); --threshold=0.27 finds",
        ),
        (("dense", "multi_threshold", None), ""),  # 0.1 is reached
        (("dense", None, 0.3), ""),
        (
            ("sparse", None, None),
            "the threshold 0.4; the highest probability of any action is 0.35 (sit, 1:30); --threshold=0.32 finds",
        ),
        (("sparse", "classes", None), "the threshold 0.5; the highest probability is 0.3 (sit, 1:30)"),
        (("sparse", "classes", 0.45), "the threshold 0.45; the highest probability is 0.3 (sit, 1:30)"),
    ],
)
def test_the_explanation_names_the_highest_probability(options, said):
    table = np.array([[0.1, 0.05], [0.3, 0.05], [0.2, 0.01]])
    if options[0] == "sparse":
        table = np.column_stack([table, 1 - table.sum(axis=1)])
    head, proposals, threshold = options
    threshold = threshold or default_threshold(head, proposals)
    text = explain_nothing({"v": table}, {"v": Grid(0, 180.0)}, ["sit", "stand"], head, proposals, threshold)
    assert said in text and bool(said) == bool(text)
