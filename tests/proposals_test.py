"""Proposals: values by hand, and laws of detections, labels, thresholds and suppression."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kd_jax.evaluation.proposals import (
    CONVENTIONS,
    DEFAULTS,
    PROPOSALS,
    choose,
    segments_from_background,
    segments_from_scores,
    segments_from_thresholds,
    soft_nms,
)
from kd_jax.segments import labels_from_segments

SECONDS = st.floats(0.01, 100)
LABELS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.integers(0, 1))
SCORES = arrays.arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(0, 1))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def random_detections(rng, count, num_classes=3):
    start = rng.integers(0, 240, count) / 4  # quarters of a second: tIoU is 0 or not near it
    end = start + rng.integers(1, 80, count) / 4
    return np.stack([rng.integers(0, num_classes, count), start, end, rng.uniform(0.01, 1, count)], axis=1)


def test_classes_by_hand():
    scores = np.array([[0.6, 0.1], [0.8, 0.5], [0.2, 0.1], [0.9, 0.1]])
    found = segments_from_scores(scores, 2.0)
    np.testing.assert_allclose(found, [[0, 0, 4, 0.7], [0, 6, 8, 0.9], [1, 2, 4, 0.5]])
    assert found.dtype == np.float64
    assert segments_from_scores(scores, 2.0, threshold=0.95).shape == (0, 4)
    sparse = np.concatenate([scores, np.ones((4, 1))], axis=1)  # the background is ignored
    np.testing.assert_array_equal(segments_from_scores(sparse, 2.0, head="sparse"), found)


def test_background_by_hand():
    # Action probability 0.1, 0.5, 0.7, 0.3, 0.4: two runs. In the first, class 1 has the larger mean, not the peak.
    probabilities = np.array([[0.1, 0.0, 0.9], [0.4, 0.1, 0.5], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.25, 0.25, 0.5]])
    found = segments_from_background(probabilities, 0.5)
    np.testing.assert_allclose(found, [[0, 2.0, 2.5, 0.25], [1, 0.5, 1.5, 0.35]])


def test_conventions_by_hand():
    # Snippets 0, 2 and 3 of four are active. Centres lie at 1, 3, 5, 7 s, starts at 0, 2, 4, 6 s.
    scores = np.array([[1.0], [0.0], [1.0], [1.0]])
    centre = segments_from_scores(scores, 2.0, convention="centre")
    np.testing.assert_array_equal(centre, [[0, 0, 2, 1], [0, 4, 8, 1]])
    start = segments_from_scores(scores, 2.0, convention="start")  # the first would begin at -1 s
    np.testing.assert_array_equal(start, [[0, 0, 1, 1], [0, 3, 7, 1]])


def test_ends_are_clipped_at_the_duration():
    scores = np.array([[0.0], [1.0], [0.0], [1.0]])
    clipped = segments_from_scores(scores, 2.0, duration=7.5)
    np.testing.assert_array_equal(clipped, [[0, 2, 4, 1], [0, 6, 7.5, 1]])
    np.testing.assert_array_equal(segments_from_scores(scores, 2.0, duration=6.0), [[0, 2, 4, 1]])


def test_short_runs_and_gaps_by_hand():
    column = np.array([[0.9], [0.1], [0.8], [0.0], [0.0], [0.6], [0.0]])
    joined = segments_from_scores(column, 1.0, max_gap=1)
    np.testing.assert_allclose(joined, [[0, 0, 3, 0.6], [0, 5, 6, 0.6]])
    np.testing.assert_allclose(segments_from_scores(column, 1.0, max_gap=1, min_length=2), [[0, 0, 3, 0.6]])
    both = segments_from_scores(np.repeat(column, 2, axis=1), 1.0, max_gap=9)  # never across classes
    np.testing.assert_allclose(both, [[0, 0, 6, 0.4], [1, 0, 6, 0.4]])
    background = np.concatenate([column, 1 - column], axis=1)
    np.testing.assert_allclose(segments_from_background(background, 1.0, max_gap=1, min_length=2), [[0, 0, 3, 0.6]])


@given(LABELS, SECONDS)
def test_law_start_inverts_labels(labels, seconds):
    num_snippets, num_classes = labels.shape
    found = segments_from_scores(labels, seconds, convention="start", duration=num_snippets * seconds)
    back = labels_from_segments(found[:, :3], num_snippets * seconds, num_snippets, num_classes)
    expected = labels.copy()
    expected[0] = 0  # no segment that starts at 0 or later marks it
    np.testing.assert_array_equal(back, expected)


@given(LABELS, SECONDS)
def test_law_centre_contains_the_centres_of_its_run(labels, seconds):
    # On a grid twice as fine the odd instants are the centres of the snippets.
    num_snippets, num_classes = labels.shape
    found = segments_from_scores(labels, seconds, convention="centre", duration=num_snippets * seconds)
    fine = labels_from_segments(found[:, :3], num_snippets * seconds, 2 * num_snippets, num_classes)
    np.testing.assert_array_equal(fine[1::2], labels)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(1, 3)), max_size=6), SECONDS)
def test_law_background_recovers_separate_actions(actions, seconds):
    # (class, length, background before it); the first snippet is background, as in every annotation.
    labels = [np.eye(4)[[3]]]
    for class_id, length, gap in actions:
        labels += [np.eye(4)[[3] * gap], np.eye(4)[[class_id] * length]]
    probabilities = np.concatenate(labels)
    num_snippets = len(probabilities)
    found = segments_from_background(probabilities, seconds, convention="start")
    assert len(found) == len(actions) and (found[:, 3] == 1).all()
    back = labels_from_segments(found[:, :3], num_snippets * seconds, num_snippets, 3)
    np.testing.assert_array_equal(back, probabilities[:, :3])


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("threshold", [0.3, 0.7])
@given(SCORES)
def test_law_one_threshold_is_the_simple_rule(convention, threshold, scores):
    options = {"convention": convention, "duration": len(scores) * 0.5}
    single = {"thresholds": [threshold], "min_score": 0.0}
    simple = segments_from_scores(scores, 0.5, threshold=threshold, **options)
    np.testing.assert_array_equal(segments_from_thresholds(scores, 0.5, **single, **options), simple)
    sparse = softmax(np.concatenate([scores, 1 - scores[:, :1]], axis=1))
    simple = segments_from_background(sparse, 0.5, threshold=threshold, **options)
    several = segments_from_thresholds(sparse, 0.5, head="sparse", **single, **options)
    np.testing.assert_array_equal(several, simple)


def test_thresholds_by_hand():
    # At 0.2 the whole video, at 0.5 and 0.8 the same inner run: two proposals, not three.
    scores = np.array([[0.3], [0.9], [0.9], [0.3]])
    found = segments_from_thresholds(scores, 1.0, thresholds=(0.2, 0.5, 0.8), sigma=0.5)
    # The outer one has mean 0.6 and tIoU 2/4 with the inner.
    np.testing.assert_allclose(found, [[0, 0, 4, 0.6 * np.exp(-0.25 / 0.5)], [0, 1, 3, 0.9]])


def test_law_classes_and_time_do_not_mix():
    scores = np.random.default_rng(0).random((200, 5))
    for name in ("classes", "multi_threshold"):
        found = PROPOSALS[name](scores, 0.5)
        order = np.array([3, 0, 4, 1, 2])
        permuted = PROPOSALS[name](scores[:, order], 0.5)
        permuted[:, 0] = order[permuted[:, 0].astype(int)]
        np.testing.assert_array_equal(permuted[np.lexsort(permuted.T[::-1])], found[np.lexsort(found.T[::-1])])
        longer = PROPOSALS[name](np.concatenate([scores, np.zeros((7, 5))]), 0.5)
        np.testing.assert_array_equal(longer, found)


def test_soft_nms_by_hand():
    # tIoU of the first two: 4/6, of the first and third: 0; the last is another class.
    table = np.array([[0, 0, 5, 0.9], [0, 1, 6, 0.8], [0, 7, 8, 0.1], [1, 0, 5, 0.7]])
    expected = table.copy()
    expected[1, 3] = 0.8 * np.exp(-((4 / 6) ** 2) / 0.5)
    np.testing.assert_allclose(soft_nms(table), expected)
    expected[1, 3] = 0.8 * (1 - 4 / 6)
    np.testing.assert_allclose(soft_nms(table, method="linear", max_tiou=0.6), expected)
    np.testing.assert_array_equal(soft_nms(table, method="linear", max_tiou=0.7), table)
    np.testing.assert_array_equal(soft_nms(table, method="hard", max_tiou=0.6), table[[0, 2, 3]])
    np.testing.assert_array_equal(soft_nms(table, min_score=0.75, method="hard", max_tiou=1), table[:2])
    assert soft_nms(np.zeros((0, 4))).shape == soft_nms([]).shape == (0, 4)


def hard_nms(table, max_tiou):
    """Keeps, best first, each detection that does not overlap a kept one of its class by `max_tiou` or more."""
    kept = []
    for c, s, e, score in sorted(table.tolist(), key=lambda row: -row[3]):
        overlaps = [max(0, min(e, b) - max(s, a)) / (max(e, b) - min(s, a)) for k, a, b, _ in kept if k == c]
        if not any(value >= max_tiou for value in overlaps):
            kept.append([c, s, e, score])
    return sorted(kept)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_law_suppression_in_the_limit(seed, count):
    table = random_detections(np.random.default_rng(seed), count)
    tiny = np.nextafter(0, 1)  # any overlap
    np.testing.assert_array_equal(soft_nms(table, sigma=1e-12), hard_nms(table, 1e-4))
    for max_tiou in (1e-4, 0.3, 0.7):
        np.testing.assert_array_equal(soft_nms(table, method="hard", max_tiou=max_tiou), hard_nms(table, max_tiou))
    same = soft_nms(table, sigma=1e300, min_score=tiny)  # an unlimited sigma changes nothing
    np.testing.assert_allclose(same, sorted(table.tolist()))


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
@given(st.integers(0, 2**32 - 1))
def test_law_suppression(method, seed):
    rng = np.random.default_rng(seed)
    table = random_detections(rng, 30)
    table[:10, 3] = 0.5  # ties
    found = soft_nms(table, method=method)
    np.testing.assert_array_equal(soft_nms(table[rng.permutation(30)], method=method), found)
    alone = [soft_nms(table[table[:, 0] == class_id], method=method) for class_id in range(3)]
    np.testing.assert_array_equal(np.concatenate(alone), found)
    assert (found[:, 3] <= table[:, 3].max()).all()


def test_empty_intervals_do_not_divide_by_zero():
    table = np.array([[0, 1, 1, 0.9], [0, 1, 1, 0.8], [0, 0, 2, 0.7]])
    np.testing.assert_array_equal(soft_nms(table, method="hard"), table[[2, 1, 0]])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: segments_from_scores(np.zeros(3), 1.0), r"\[T, C\], got shape \(3,\)"),
        (lambda: segments_from_scores(np.array([[0, np.nan]]), 1.0), r"finite numbers, got nan at \[0, 1\]"),
        (lambda: segments_from_scores(np.zeros((2, 1)), 0.0), "seconds_per_snippet=0.0 must be a number above 0"),
        (lambda: segments_from_scores(np.zeros((2, 1)), 1.0, threshold=np.nan), "threshold=nan must be a finite"),
        (
            lambda: segments_from_scores(np.zeros((2, 1)), 1.0, convention="end"),
            "convention=.end.* .start. or .centre.",
        ),
        (lambda: segments_from_scores(np.zeros((2, 1)), 1.0, duration=0.0), "duration=0.0 must be"),
        (lambda: segments_from_scores(np.zeros((2, 1)), 1.0, min_length=0), "min_length=0 must be at least 1"),
        (lambda: segments_from_scores(np.zeros((2, 1)), 1.0, head="both"), "head='both'.*'dense' or 'sparse'"),
        (lambda: segments_from_background(np.ones((3, 1)), 1.0), r"\[T, C \+ 1\] with the background last"),
        (lambda: segments_from_background(np.ones((3, 2)), 1.0, head="dense"), "no background probability; choose"),
        (lambda: segments_from_thresholds(np.zeros((2, 1)), 1.0, thresholds=()), "thresholds is empty"),
        (lambda: soft_nms(np.zeros((2, 3))), r"\[N, 4\]; got shape \(2, 3\)"),
        (lambda: soft_nms(np.full((1, 4), np.inf)), "finite rows"),
        (lambda: soft_nms(np.zeros((1, 4)), method="soft"), "method='soft'.*'gaussian' or 'linear' or 'hard'"),
        (lambda: soft_nms(np.zeros((1, 4)), sigma=0), "sigma=0 must be a number above 0"),
        (lambda: soft_nms(np.zeros((1, 4)), max_tiou=0), "max_tiou=0 must be above 0"),
        (lambda: choose("nms", "dense"), "proposals='nms'.*'classes' or 'background' or 'multi_threshold'"),
        (lambda: choose(None, "wide"), "head='wide'"),
        (lambda: choose("background", "dense"), "no background probability"),
        (lambda: choose("multi_threshold", "dense", threshold=0.5), "threshold=0.5.*leave it out"),
        (lambda: choose("classes", "dense", sigma=0.5), "'classes' do not have this option.*sigma"),
        (lambda: choose("multi_threshold", "dense", sigma=-1), "sigma=-1"),
        (lambda: choose(None, "dense", threshold=np.inf), "threshold=inf"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_every_rule_by_name(name, head):
    if (name, head) == ("background", "dense"):
        return  # refused above
    scores = softmax(np.random.default_rng(0).standard_normal((50, 4)) * 3)
    found = choose(name, head, convention="start")(scores, 0.5, duration=20.0)
    assert len(found) and (found[:, 0] < (3 if head == "sparse" else 4)).all()
    assert (found[:, 1] >= 0).all() and (found[:, 1] < found[:, 2]).all() and (found[:, 2] <= 20).all()
    if name == DEFAULTS[head]:
        np.testing.assert_array_equal(choose(None, head, convention="start")(scores, 0.5, duration=20.0), found)
