"""The numbers behind the figures: values by hand, and laws."""

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.analysis import (
    breakdown,
    confusion,
    covariance,
    embedding,
    errors,
    learning_curves,
    per_class,
    sensitivity,
    style,
)
from kd_jax.analysis import saliency as boundary_saliency
from kd_jax.analysis.study import Unavailable
from kd_jax.evaluation import intervals
from kd_jax.evaluation.metrics.frame_map import frame_map
from kd_jax.evaluation.metrics.frame_map_breakdown import frame_map_by_concurrency, frame_map_by_length
from kd_jax.evaluation.protocols import Predictions, Truth
from kd_jax.losses import boundary_level
from kd_jax.segments import labels_from_segments
from kd_jax.training import diagnosis


def test_the_interval_over_seeds_by_hand():
    mean, half = intervals.over_seeds(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    np.testing.assert_allclose(mean, [2, 5])
    np.testing.assert_allclose(half, [4.302653 / np.sqrt(3), 0], rtol=1e-6)  # t of 2 degrees of freedom, deviation 1
    mean, half = intervals.over_seeds(np.array([[1.0, 5.0]]))
    assert mean.tolist() == [1, 5] and np.isnan(half).all()


def test_a_gain_is_paired_and_has_an_interval_and_a_mark_by_hand():
    gain = intervals.differences([5.0, 7.0, 9.0], [4.0, 5.0, 6.0])
    half = 4.302653 / np.sqrt(3)
    assert gain == [1, 2, 3] and intervals.paired_interval(gain) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert intervals.describe_gain(gain) == "+2.00 [-0.48, +4.48]"
    assert not intervals.excludes_zero(intervals.paired_interval(gain))
    same = [0.5, 0.5]  # a deviation of 0
    assert intervals.describe_gain(same) == "+0.50 [+0.50, +0.50]"
    assert intervals.excludes_zero(intervals.paired_interval(same))
    assert not intervals.excludes_zero(intervals.paired_interval([0.0, 0.0]))
    assert intervals.describe_gain([-0.001]) == "+0.00" and intervals.paired_interval([3.0]) is None
    assert not intervals.excludes_zero(None)
    for missing in (None, [], [1.0, None]):
        assert intervals.differences(missing, [1.0, 2.0]) is intervals.differences([1.0, 2.0], missing) is None
    assert intervals.paired_interval(None) is None


@pytest.mark.parametrize("size", [100, 25])
def test_the_bootstrap_over_videos_is_that_of_a_mean(size):
    values = np.random.default_rng(0).normal(size=100)
    found = intervals.Bootstrap(2000, size, 100).half_width(lambda videos: np.array([values[videos].mean(), 3.0]))
    np.testing.assert_allclose(found, [1.96 * values.std() / 10, 0], rtol=0.05)
    assert np.isnan(intervals.Bootstrap(3, 1, 1).half_width(lambda videos: np.array([1.0]))).all()
    missing = intervals.Bootstrap(20, 4, 4).half_width(lambda videos: np.array([np.nan, 1.0]))
    assert np.isnan(missing[0]) and missing[1] == 0


def test_the_cost_of_the_bootstrap_is_bounded():
    within = intervals.Bootstrap.within
    assert within(1000, 20, 50, at_most=30) == (30, 50, 50) and within(1000, 50, 50, at_most=30) == (20, 50, 50)
    assert within(1000, 1000, 50, at_most=30) == (10, 5, 50)  # 10 draws of a tenth
    assert within(1000, 1e9, 50, at_most=30) == (10, 1, 50)


def test_intervals_in_words():
    assert intervals.signed(1.74, 0.36) == "+1.7 ± 0.4" and intervals.signed(-0.06, np.nan) == "-0.1"
    assert intervals.describe_seeds(3) == "95 % interval over 3 seeds"
    every, fewer = intervals.Bootstrap(30, 24, 24), intervals.Bootstrap(10, 6, 24)
    assert str(every) == "95 % interval by bootstrap over the 24 test videos, one seed, 30 draws"
    assert str(fewer) == "95 % interval by bootstrap over the 24 test videos, one seed, 10 draws of 6 videos"


def test_learning_curves_are_means_over_seeds_up_to_the_shortest_log():
    seeds = [[{"task": 4.0, "a": 1.0}, {"task": 2.0}], [{"task": 6.0}, {"task": 4.0}, {"task": 0.0}]]
    found = learning_curves.curves(seeds)
    assert found["task"].tolist() == [5, 3] and np.isnan(found["a"]).all()


def test_runs_that_still_improve_have_their_best_epoch_among_the_last_tenth_in_half_of_the_seeds():
    best = {"all": [8, 8], "half": [8, 3], "third": [8, 3, 3], "none": [2, 3], "unknown": []}
    assert [name for name, epochs in best.items() if diagnosis.still_improving(epochs, 8)] == ["all", "half"]
    assert not diagnosis.still_improving([1], 1)
    assert [epoch for epoch in range(1, 31) if diagnosis.still_improving([epoch], 30)] == [28, 29, 30]


def test_disagreements_count_pairs_in_another_order():
    validation, test = {"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 3.0, "b": 1.0, "c": 2.0}
    assert diagnosis.disagreements(validation, test) == (1, 3)  # b and c
    assert diagnosis.disagreements(validation, validation) == (0, 3)
    assert diagnosis.disagreements({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}) == (0, 1)  # a tie
    assert diagnosis.disagreements({}, {}) == (0, 0)


def test_confusion_by_hand():
    labels = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    scores = np.array([[0.9, 0.1, 0.2, 0], [0.1, 0.2, 0.8, 0], [0.5, 0.9, 0.1, 0], [0.9, 0, 0, 0]])
    # Class 0: snippet 0 right, snippet 1 taken for 2, snippet 2 right, because class 1 is there as well.
    expected = [[2 / 3, 0, 1 / 3, 0], [0, 1, 0, 0], [np.nan] * 4, [np.nan] * 4]
    np.testing.assert_allclose(confusion.confusion([scores], [labels]), expected)
    halves = confusion.confusion([scores[:1], scores[1:]], [labels[:1], labels[1:]])
    np.testing.assert_allclose(halves, expected)
    with_background = np.concatenate([scores, [[0], [1], [1], [1]]], axis=1)
    np.testing.assert_allclose(confusion.confusion([with_background], [labels])[0], [1 / 3, 0, 0, 0, 2 / 3])
    assert confusion.confusion([with_background], [labels])[1].tolist() == [0, 0, 0, 0, 1]


def test_the_classes_that_are_confused_most_and_change_most():
    before = np.array([[0.9, 0.1, 0], [0.5, 0.5, 0], [np.nan] * 3])
    after = np.array([[0.8, 0.2, 0], [0.4, 0.6, 0], [np.nan] * 3])
    assert confusion.most_changed(before, after, 1).tolist() == [1]  # 0.5 · 0.1 against 0.1 · 0.1
    assert confusion.most_changed(before, after, 9).tolist() == [0, 1]
    assert confusion.most_changed(before, before, 1).tolist() == [1]


def test_selected_rows_of_a_confusion_still_sum_to_one():
    table = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.1, 0.2], [0, 0, 1, 0]])
    np.testing.assert_allclose(confusion.select(table, [1, 0], [1, 0]), [[0.6, 0.1, 0.1, 0.2], [0.3, 0.4, 0.2, 0.1]])
    np.testing.assert_allclose(confusion.select(table[:, :3], [0, 1, 2], [0, 1, 2]), table[:, :3])
    assert confusion.choose_columns([table], [0], 2) == [0, 1] and confusion.choose_columns([table], [2], 1) == [2]


def test_sampled_snippets_have_one_of_the_classes_and_come_from_the_right_video():
    rng = np.random.default_rng(0)
    labels = [(rng.random((size, 5)) < 0.3).astype(np.uint8) for size in (40, 60)]
    sample = embedding.sample_snippets(labels, [3, 1], per_class=7, seed=0)
    assert sample.class_id.tolist() == [3] * 7 + [1] * 7 and len(set(sample.row)) == 14
    active = np.concatenate(labels)[sample.row][:, [3, 1]]
    np.testing.assert_array_equal(active, np.stack([sample.class_id == 3, sample.class_id == 1], axis=1))
    assert (sample.video == (sample.row >= 40)).all()
    for one, other in zip(sample, embedding.sample_snippets(labels, [3, 1], per_class=7, seed=0), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (sample.row != embedding.sample_snippets(labels, [3, 1], per_class=7, seed=1).row).any()
    few = embedding.sample_snippets([np.array([[1, 0], [1, 1], [0, 1]])], [0, 1], per_class=7, seed=0)
    assert few.row.tolist() == [0, 2]  # snippet 1 has both classes


def test_neighbours_are_those_of_other_videos():
    features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    classes, videos = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert embedding.neighbour_accuracy(features, classes, videos, neighbours=1) == 1
    # Each class in one video: the only neighbours are of the other class.
    assert embedding.neighbour_accuracy(features, classes, np.array([0, 0, 1, 1]), neighbours=1) == 0
    assert np.isnan(embedding.neighbour_accuracy(features, classes, np.zeros(4), neighbours=1))
    # One near neighbour outweighs two far ones: cosines 1, 0.1 and 0.1 for snippet 0.
    rows = np.array([[1, 0, 0], [1, 0, 0], [0.1, 0.995, 0], [0.1, 0, 0.995]])
    videos, classes = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])
    assert embedding.neighbour_accuracy(rows[:3], classes[:3], videos[:3], neighbours=2) == pytest.approx(2 / 3)
    assert embedding.neighbour_accuracy(rows, classes, videos, neighbours=3) == pytest.approx(2 / 4)


def test_silhouette_by_hand():
    features = np.array([[1.0, 0], [2, 0], [0, 1], [1, 1]])
    # Cosine distances: 0 inside class 0, h inside class 1, h from (1, 1) to class 0, and 1 from (0, 1) to it.
    h = 1 - np.sqrt(0.5)
    assert embedding.silhouette(features, np.array([0, 0, 1, 1])) == pytest.approx(np.mean([1, 1, 1 - h, 0]))


def test_the_projection_is_repeatable_and_keeps_clusters_apart():
    rng = np.random.default_rng(0)
    features = np.repeat(np.eye(3, 8), 12, axis=0) + 0.05 * rng.normal(size=(36, 8))
    points = embedding.project(features, perplexity=5)
    np.testing.assert_array_equal(points, embedding.project(4 * features, perplexity=5))  # the length has no effect
    classes = np.repeat(np.arange(3), 12)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(36, np.inf))
    assert (classes[distances.argmin(axis=1)] == classes).all()
    with pytest.raises(ValueError, match="--perplexity=36 must be below the number of snippets, 36"):
        embedding.project(features, perplexity=36)


def test_saliency_by_hand_and_as_in_the_loss():
    features = np.array([[0.0, 0], [1, -1], [1, -1], [4, 0]])
    assert boundary_saliency.saliency(features).tolist() == [2, 0, 4]
    drawn = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    expected = boundary_level.saliency(jnp.asarray(drawn)[None], jnp.ones((1, 9), bool))[0]
    np.testing.assert_allclose(boundary_saliency.saliency(drawn), expected, rtol=1e-5)


def test_boundaries_and_their_neighbourhood():
    labels = np.array([[0, 0], [1, 0], [1, 0], [1, 0], [1, 0], [0, 1]], np.uint8)
    assert boundary_saliency.boundaries(labels).tolist() == [True, False, False, False, True]
    near = boundary_saliency.widen(boundary_saliency.boundaries(labels), 1)
    assert near.tolist() == [True, True, False, True, True]
    assert boundary_saliency.widen(np.array([False, True]), 3).tolist() == [True, True]


def test_contrast_by_hand():
    labels = np.array([[0], [0], [0], [1], [1], [1], [1]])  # a boundary at pair 2, near are pairs 1 … 3
    curve = np.array([1.0, 2, 4, 3, 2, 1])
    found = boundary_saliency.contrast([curve], [labels])
    assert found["ratio"] == pytest.approx(3 / (4 / 3)) and found["chance"] == 0.5
    # Ranked 4 +, 3 +, 2 + (pair 1 before pair 4), 2 −, 1 −, 1 −.
    assert found["average_precision"] == 1
    assert boundary_saliency.contrast([5 * curve], [labels]) == pytest.approx(found)


def test_the_densest_span():
    quiet, busy = np.zeros((9, 1), int), np.array([[0, 0, 0, 1, 0, 1, 0, 0, 0]]).T
    assert boundary_saliency.densest_span([quiet, busy], 5) == (1, 2, 7)
    assert boundary_saliency.densest_span([quiet, busy], 50) == (1, 0, 9)
    assert boundary_saliency.densest_span([quiet, quiet], 4) == (0, 0, 4)  # the first of equal ones


def test_the_densest_span_has_no_better_one():
    rng = np.random.default_rng(1)
    labels = [(rng.random((size, 2)) < 0.2).astype(int) for size in (5, 30, 21)]
    span = boundary_saliency.densest_span(labels, 8)
    spans = [(v, t, t + min(8, len(x))) for v, x in enumerate(labels) for t in range(len(x) - min(8, len(x)) + 1)]
    counts = [boundary_saliency.boundaries(labels[v][a:b]).sum() for v, a, b in spans]
    assert span == spans[int(np.argmax(counts))]


def test_correlations_are_those_of_numpy_and_of_the_loss():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 12, 5)).astype(np.float32)
    np.testing.assert_allclose(covariance.channel_correlation(student), np.corrcoef(student.T), atol=1e-6)
    np.testing.assert_allclose(covariance.snippet_correlation(student), np.corrcoef(student), atol=1e-6)
    for relation, correlate in {
        "channel": covariance.channel_correlation,
        "snippet": covariance.snippet_correlation,
    }.items():
        both = (jnp.asarray(each)[None] for each in (student, teacher))
        loss = losses.global_context(*both, jnp.ones((1, 12), bool), relation=relation)
        found = covariance.distance(correlate(student), correlate(teacher))
        assert found**2 == pytest.approx(float(loss), rel=1e-4)
    student[:, 2] = 7
    assert not covariance.channel_correlation(student)[2].any()  # constant


def test_distances_of_matrices_by_hand():
    one, other = np.eye(2), np.array([[1, 0.6], [0.6, 1]])
    assert covariance.distance(one, other) == pytest.approx(np.sqrt(2 * 0.36) / 2)
    assert covariance.distance_at(one, other, 0.5) == 0.5 and covariance.distance_at(one, other, 0.7) == 0
    # Eigenvalues 1, 1 against 1.6, 0.4; as shares ½, ½ against 0.8, 0.2.
    assert covariance.spectrum_distance(one, other) == pytest.approx(0.3)
    assert np.isnan(covariance.spectrum_distance(one, np.zeros((2, 2))))


def test_the_spectrum_and_the_snippets_do_not_depend_on_the_order_of_channels():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 6))
    found = covariance.measure(features[:, rng.permutation(6)], features)
    assert found["spectrum"] == pytest.approx(0, abs=1e-9) and found["snippets"] == pytest.approx(0, abs=1e-9)
    assert found["channels"] > 0.05 and found.keys() == covariance.MEASURES.keys()
    assert covariance.measure(features, features) == pytest.approx(dict.fromkeys(covariance.MEASURES, 0), abs=1e-9)


def test_clustered_channels_are_neighbours():
    blocks = np.kron(np.eye(2), np.ones((2, 2)))[np.ix_([0, 2, 1, 3], [0, 2, 1, 3])]  # 0 with 2, 1 with 3
    order = covariance.cluster_order(blocks).tolist()
    assert sorted(order) == [0, 1, 2, 3] and {frozenset(order[:2]), frozenset(order[2:])} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }


def setting(atomic=1.0, boundary=0.1, negatives=1, others=""):
    weights = {"atomic": atomic, "boundary": boundary}
    return sensitivity.Setting({term: value for term, value in weights.items() if value}, negatives, others)


def test_series_are_runs_that_differ_in_one_choice():
    settings = {
        "all": setting(),
        "heavy": setting(atomic=30),
        "none": setting(atomic=0),
        "other": setting(atomic=3, others="other"),
        "two": setting(boundary=0.2),
        "n4": setting(negatives=4),
        "n2": setting(negatives=2),
        "both": setting(atomic=10, negatives=2),
    }
    assert sensitivity.find_series(settings) == {
        "atomic": {0: "none", 1: "all", 30: "heavy"},
        sensitivity.NEGATIVES: {1: "all", 2: "n2", 4: "n4"},
    }  # the boundary has two values alone
    assert sensitivity.find_series({}) == {}


def test_kinds_of_errors_by_hand():
    actions = {"v": np.array([[0, 0, 10], [1, 20, 30]]), "empty": np.zeros((0, 3))}
    detections = {
        "v": np.array(
            [
                [0, 0, 9, 0.9],  # true positive
                [0, 1, 10, 0.8],  # double detection
                [0, 20, 29, 0.7],  # wrong label
                [1, 20, 23, 0.6],  # tIoU 0.3: localisation
                [1, 0, 3, 0.5],  # tIoU 0.3 with an action of class 0: confusion
                [0, 12, 18, 0.4],  # background
                [0, 0, 200, 0.3],  # tIoU 0.05: background
            ]
        ),
        "empty": np.array([[1, 0, 9, 0.65]]),  # background
    }
    found = errors.classify(detections, actions, num_classes=2)
    names = [errors.KINDS[kind] for kind in found.kind]
    assert names == [
        *("true positive", "double detection", "wrong label", "background", "localisation", "confusion"),
        *("background", "background"),
    ]
    assert errors.count_kinds(found, np.array([1, 1]), 1).tolist() == [1, 0, 0, 0, 0, 1]
    assert errors.count_kinds(found, np.array([1, 1]), 3).tolist() == [1, 1, 1, 1, 1, 1]


def test_the_own_class_comes_before_a_concurrent_action():
    actions = {"v": np.array([[0, 0, 10], [1, 0, 10]])}
    found = errors.classify({"v": np.array([[0, 0, 4, 0.5], [1, 0, 10, 0.4]])}, actions, num_classes=2)
    assert [errors.KINDS[kind] for kind in found.kind] == ["localisation", "true positive"]
    actions = {"v": np.array([[0, 0, 4], [1, 0, 10]])}
    found = errors.classify({"v": np.array([[0, 0, 10, 0.5]])}, actions, num_classes=2)
    assert errors.KINDS[found.kind[0]] == "wrong label"  # its overlap with the other class is that of a true positive


def test_distances_to_a_boundary_by_hand():
    labels = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 0, 1], [0, 0, 1]])
    expected = [[2, 1, np.inf], [1, 1, np.inf], [1, 1, np.inf], [1, 1, np.inf], [1, 2, np.inf]]
    np.testing.assert_array_equal(breakdown.distance_to_boundary(labels), expected)


def test_frame_map_by_distance_by_hand():
    labels = [np.array([[0], [0], [1], [1], [1], [1], [0]])]
    scores = [np.array([[0.9], [0.2], [0.3], [0.8], [0.7], [0.1], [0.0]])]
    cut = breakdown.cut_snippets(labels, [np.array([[0, 1.5, 5.5]])], [7.0], {"all": (0, np.inf)})
    # Distance 1: snippets 1, 2, 5, 6; ranked 2 +, 1 −, 5 +, 6 −. Distance 2: 0, 3, 4; ranked 0 −, 3 +, 4 +.
    found = breakdown.break_down(scores, cut, [0])["distance"]
    assert found["1"] == pytest.approx(100 * (1 + 2 / 3) / 2) and found["2"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert np.isnan(found["3–4"])


def test_breaking_down_equals_each_measure_on_the_drawn_videos():
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=(size, 3)).astype(np.float32) for size in (30, 40)]
    segments = [np.array([[0, 2.2, 9.3], [1, 4.1, 20.2], [2, 8.3, 9.9]]), np.array([[1, 0.5, 2.4], [0, 9.1, 33.3]])]
    durations, videos = [30.0, 40.0], [1, 0, 1]
    labels = [labels_from_segments(*given, len(s), 3) for *given, s in zip(segments, durations, scores, strict=True)]
    bins = breakdown.choose_length_bins(segments)
    found = breakdown.break_down(scores, breakdown.cut_snippets(labels, segments, durations, bins), videos)
    own, truth = [scores[v] for v in videos], [labels[v] for v in videos]
    by_length = frame_map_by_length(own, [segments[v] for v in videos], [durations[v] for v in videos], bins=bins)
    by_concurrency = frame_map_by_concurrency(own, truth)
    for kind, expected in (("length", by_length), ("concurrent actions", by_concurrency)):
        values = {name: result["mean_over_present_classes"] for name, result in expected.items()}
        np.testing.assert_equal(found[kind], values)
    distances = [breakdown.distance_to_boundary(table) for table in truth]
    for name, (low, high) in breakdown.DISTANCE_BINS.items():
        left_out = [(table < low) | (table > high) for table in distances]
        expected = frame_map(own, truth, left_out=left_out)["mean_over_present_classes"]
        np.testing.assert_equal(found["distance"][name], expected)


def test_length_bins_suit_the_actions():
    short, long = np.array([[0, 0, 4], [0, 1, 9]]), np.array([[0, 0, 90], [0, 1, 40]])
    assert "XS" in breakdown.choose_length_bins([short]) and breakdown.choose_length_bins([short])["XS"] == (0, 3)
    assert breakdown.choose_length_bins([long])["XS"] == (0, 30)


def small_truth():
    segments = {"a": np.array([[0, 0.5, 3.5]]), "b": np.array([[0, 1.5, 2.5], [1, 0.5, 4.5]])}
    return Truth(segments, segments, dict.fromkeys(segments, 6.0), dict.fromkeys(segments, 6), num_classes=3)


def test_scores_of_classes_are_those_of_the_protocol():
    truth, rng = small_truth(), np.random.default_rng(0)
    predictions = Predictions({video: rng.random((6, 3)) for video in truth.segments})
    expected = frame_map(list(predictions.scores.values()), truth.labels(dict.fromkeys("ab", 6)))["per_class"]
    np.testing.assert_allclose(per_class.class_scores(predictions, truth, "frame_map"), expected)
    found = Predictions(detections={"a": np.array([[0, 0.5, 3.5, 0.9]]), "b": np.array([[0, 1.5, 2.1, 0.8]])})
    # Class 0: the second detection has tIoU 0.6, so it is right at 0.1, 0.3 and 0.5. Class 1 is never found.
    np.testing.assert_allclose(per_class.class_scores(found, truth, "event_map"), [100, 0, np.nan])
    with pytest.raises(Unavailable, match="the protocol detection_map_by_length has no score per class"):
        per_class.class_scores(found, truth, "detection_map_by_length")


def test_resampled_videos_count_as_often_as_they_are_drawn():
    truth, rng = small_truth(), np.random.default_rng(0)
    predictions = Predictions({video: rng.random((6, 3)) for video in truth.segments})
    again, its_truth = per_class.resample(predictions, truth, np.array([0, 1]))
    same = per_class.class_scores(again, its_truth, "frame_map")
    np.testing.assert_allclose(same, per_class.class_scores(predictions, truth, "frame_map"))
    twice, its_truth = per_class.resample(predictions, truth, np.array([1, 1]))
    labels = truth.labels(dict.fromkeys("ab", 6))[1]
    expected = frame_map([predictions.scores["b"]] * 2, [labels] * 2)["per_class"]
    np.testing.assert_allclose(per_class.class_scores(twice, its_truth, "frame_map"), expected)


def test_tables_are_written_with_every_column_and_without_missing_values():
    rows = [{"run": "a, b", "value": 1 / 3}, {"run": "c", "value": float("nan"), "count": 2}, {"value": None}]
    assert style.as_csv(rows) == 'run,value,count\n"a, b",0.333333,\nc,,2\n,,\n'


def test_equal_figures_are_equal_files(tmp_path):
    for name in ("one", "v1.5"):
        figure = style.new_figure(2, 2)
        figure.subplots().fill_between([0, 1], [1, 2], label="é")
        style.save(figure, [{"x": 1}], tmp_path / name)
    for suffix in ("png", "svg", "csv"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"v1.5.{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{suffix}" for name in ("one", "v1.5") for suffix in ("csv", "png", "svg")
    )


def test_looks_of_roles_differ_in_lightness_line_and_marker():
    def lightness(color):
        return sum(w * int(color[i : i + 2], 16) for w, i in ((0.299, 1), (0.587, 3), (0.114, 5)))

    looks = style.ROLES
    for kind in zip(*looks.values(), strict=True):
        assert len(set(map(str, kind))) == len(looks)
    assert abs(lightness(looks["vanilla"].color) - lightness(looks["augmented"].color)) > 60
