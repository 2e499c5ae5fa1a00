"""Frame mAP: values by hand, values of the published code, and messages."""

import pathlib

import numpy as np
import pytest

from kd_jax.evaluation.metrics import frame_map as metric

GOLDEN = np.load(pathlib.Path(__file__).parent / "data" / "frame_map.npz")  # random scores, outputs of apmeter.py


def golden(name):
    scores, labels = GOLDEN[f"{name}/scores"], GOLDEN[f"{name}/targets"]
    cuts = np.cumsum(GOLDEN[f"{name}/video_lengths"])[:-1]
    return scores, labels, np.split(scores, cuts), np.split(labels, cuts)


def test_by_hand():
    # Class 0 in the order of scores: row 2 +, row 0 −, row 1 +: precisions 1/1 and 2/3. Class 1: row 1 −, row 0 +,
    # row 2 −: 1/2. Class 2 has no positive.
    scores = np.array([[0.5, 0.6, 0.1], [0.2, 0.7, 0.2], [0.9, 0.1, 0.3]])
    labels = np.array([[0, 1, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(metric.average_precision(scores, labels), [(1 + 2 / 3) / 2, 1 / 2, 0])
    result = metric.frame_map(scores, labels)
    assert result["mean_over_present_classes"] == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)
    assert result["mean_over_all_classes"] == pytest.approx(100 * (5 / 6 + 1 / 2) / 3)
    np.testing.assert_allclose(result["per_class"], [100 * 5 / 6, 50, np.nan])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_equal_scores_rank_in_the_order_of_rows(dtype):
    # Order: rows 3, 4 (7), then rows 0, 2 (0; −0 is equal), then row 1 (−2): + − | − + | +.
    scores = np.array([[0], [-2], [-0.0], [7], [7]]).astype(dtype)
    labels = np.array([[0], [1], [1], [1], [0]])
    np.testing.assert_allclose(metric.average_precision(scores, labels), [(1 / 1 + 2 / 4 + 3 / 5) / 3])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_scale_and_infinities(dtype):
    scores = np.array([[np.inf], [-1e4], [1.0], [-np.inf], [-1e-3], [0.0]], dtype)
    labels = np.array([[0], [1], [1], [1], [0], [1]])  # − | 1: + | 0: + | −0.001: − | −10⁴: + | −∞: +
    np.testing.assert_allclose(metric.average_precision(scores, labels), [(1 / 2 + 2 / 3 + 3 / 5 + 4 / 6) / 4])


def test_published_code_without_ties():
    scores, labels, score_list, label_list = golden("notie")
    np.testing.assert_allclose(metric.average_precision(scores, labels), GOLDEN["notie/ap"], atol=1e-5)
    result = metric.frame_map(score_list, label_list)
    assert result["mean_over_present_classes"] == pytest.approx(GOLDEN["notie/final"], rel=1e-5)
    assert result["mean_over_all_classes"] == pytest.approx(GOLDEN["notie/plain_mean_x100"], rel=1e-5)


def test_published_code_with_ties():
    scores, labels, score_list, label_list = golden("ties")
    precision = metric.average_precision(scores, labels)
    np.testing.assert_allclose(precision, GOLDEN["ties/ap_stable_order"], atol=1e-5)
    bounds = np.sort(GOLDEN["ties/ap_best_worst"], axis=1)
    assert ((precision >= bounds[:, 0] - 1e-9) & (precision <= bounds[:, 1] + 1e-9)).all()
    result = metric.frame_map(score_list, label_list)
    assert result["mean_over_present_classes"] == pytest.approx(GOLDEN["ties/final_stable_order"], rel=1e-5)


def test_published_code_on_padded_videos_cut_to_their_length():
    mask = GOLDEN["masked/mask"].astype(bool)
    scores = [s[m] for s, m in zip(GOLDEN["masked/scores_unmasked"], mask, strict=True)]
    labels = [t[m] for t, m in zip(GOLDEN["masked/targets"], mask, strict=True)]
    result = metric.frame_map(scores, labels)
    np.testing.assert_allclose(np.nan_to_num(result["per_class"]), 100 * GOLDEN["masked/ap_valid_only"], atol=1e-3)
    assert result["mean_over_present_classes"] == pytest.approx(GOLDEN["masked/final_valid_only"], rel=1e-5)


def test_appended_empty_videos_change_nothing():
    _, _, scores, labels = golden("notie")
    nothing = np.zeros((0, scores[0].shape[1]), np.float32)
    np.testing.assert_equal(metric.frame_map([*scores, nothing], [*labels, nothing]), metric.frame_map(scores, labels))


def test_both_sorts_agree_on_many_ties_and_more_classes_than_a_block():
    rng = np.random.default_rng(0)
    scores = rng.integers(-20, 20, (500, 37)).astype(np.float32) / 8
    labels = rng.random((500, 37)) < 0.1
    expected = metric.average_precision(scores.astype(np.float64), labels)
    np.testing.assert_array_equal(metric.average_precision(scores, labels), expected)


def test_no_class_present():
    result = metric.frame_map(np.zeros((3, 2)), np.zeros((3, 2)))
    assert np.isnan(result["mean_over_present_classes"])
    assert result["mean_over_all_classes"] == 0


def test_refusals_name_what_is_wrong():
    scores, labels = np.zeros((3, 2)), np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"NaN in classes \[1\]"):
        metric.frame_map(np.array([[0, 0], [0, np.nan]]), labels[:2])
    with pytest.raises(ValueError, match=r"got scores \(3, 2\) and labels \(2, 2\) for video 0"):
        metric.average_precision(scores, labels[:2])
    with pytest.raises(ValueError, match=r"same videos.*got 1 and 2"):
        metric.frame_map([scores], [labels, labels])
    with pytest.raises(ValueError, match=r"one C for all videos.*\(3, 1\).*video 1, and C = 2"):
        metric.frame_map([scores, scores[:, :1]], [labels, labels[:, :1]])
    with pytest.raises(ValueError, match=r"got 0 and 0"):
        metric.frame_map([], [])
    with pytest.raises(ValueError, match=r"labels must be 0 or 1"):
        metric.frame_map(scores, labels + 0.5)
    with pytest.raises(ValueError, match=r"both be arrays or both be lists.*ndarray and list"):
        metric.frame_map(scores, [labels])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_left_out_snippets_are_not_ranked(dtype):
    _, _, scores, labels = golden("ties")
    scores = [s.astype(dtype) for s in scores]
    rng = np.random.default_rng(0)
    left_out = [rng.random(s.shape) < 0.3 for s in scores]
    result = metric.frame_map(scores, labels, left_out=left_out)
    pooled = [np.concatenate(x) for x in (scores, labels, left_out)]
    for class_id in range(pooled[0].shape[1]):
        kept = ~pooled[2][:, class_id]
        alone = metric.frame_map(*(x[kept, class_id : class_id + 1] for x in pooled[:2]))
        assert result["per_class"][class_id] == pytest.approx(alone["per_class"][0], nan_ok=True)
    np.testing.assert_equal(
        metric.frame_map(pooled[0], pooled[1], left_out=pooled[2])["per_class"], result["per_class"]
    )
    nothing = metric.frame_map(scores, labels, left_out=[np.ones(s.shape, bool) for s in scores])
    assert np.isnan(nothing["per_class"]).all()
    with pytest.raises(ValueError, match="left_out must hold one"):
        metric.frame_map(scores, labels, left_out=left_out[1:])
