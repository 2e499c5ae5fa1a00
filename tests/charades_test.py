"""Charades v1 localize: values by hand, values of the official script, and messages."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.evaluation.metrics.charades import charades_localize, time_point_labels, time_points

DATA = pathlib.Path(__file__).parent / "data"  # invented videos, outputs of Charades_v1_localize.m


def golden(name):
    data = np.load(DATA / f"{name}.npz")
    videos = [str(v) for v in data["video_ids"]]
    segments = {}
    for video, actions in zip(videos, data["actions"], strict=True):  # "c092 11.90 21.20;c147 0.00 12.60"
        rows = [[float(x) for x in action[1:].split()] for action in str(actions).split(";") if action]
        segments[video] = np.array(rows).reshape(-1, 3)
    scores = np.where(data["present"][:, None], data["scores"], -np.inf).reshape(len(videos), 25, 157)
    return data, dict(zip(videos, scores, strict=True)), segments, dict(zip(videos, data["length"], strict=True))


def slow(scores, segments, durations, num_classes):
    """Computes AP per class as a loop over ranks, in [0, 1]; None for a class that never occurs."""
    result = []
    for class_id in range(num_classes):
        ranked = []
        for video in segments:
            for j in range(25):
                t = j / 25 * durations[video]
                label = any(c == class_id and start <= t <= end for c, start, end in segments[video])
                ranked.append((scores[video][j][class_id] if video in scores else -np.inf, label))
        ranked.sort(key=lambda pair: -pair[0])
        hits = [rank for rank, (_, label) in enumerate(ranked, 1) if label]
        result.append(sum((k + 1) / rank for k, rank in enumerate(hits)) / len(hits) if hits else None)
    return result


@pytest.mark.parametrize("name", ["charades_localize_synth", "charades_localize_synth_nan"])
def test_official_script(name):
    data, scores, segments, durations = golden(name)
    labels = np.concatenate([time_point_labels(segments[v], durations[v]) for v in segments])
    expected = np.unpackbits(data["labels_packed"])[: labels.size].reshape(labels.shape)
    np.testing.assert_array_equal(labels, expected)
    result = charades_localize(scores, segments, durations)
    np.testing.assert_allclose(result["per_class"] / 100, data["ap"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(result["official_mean"] / 100, data["mAP"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(result["official_weighted_mean"] / 100, data["wap"], rtol=0, atol=1e-9)


def test_a_class_that_never_occurs_makes_only_the_official_means_nan():
    data, *arguments = golden("charades_localize_synth_nan")
    result = charades_localize(*arguments)
    assert np.isnan(result["official_mean"])
    assert np.isnan(result["official_weighted_mean"])
    assert result["mean_over_present_classes"] == pytest.approx(100 * np.nanmean(data["ap"]), abs=1e-9)
    num_positives = np.unpackbits(data["labels_packed"])[: 40 * 25 * 157].reshape(-1, 157).sum(axis=0)
    weighted = 100 * np.nansum(data["ap"] * num_positives) / num_positives.sum()
    assert result["weighted_mean_over_present_classes"] == pytest.approx(weighted, abs=1e-9)


def test_twenty_five_instants_and_both_ends_inclusive():
    np.testing.assert_allclose(time_points(50), 2 * np.arange(25), rtol=1e-15)
    labels = time_point_labels(np.array([[1, 4, 8], [0, 47, 50], [1, 9, 9.5]]), 50, num_classes=3)
    assert labels.shape == (25, 3)
    np.testing.assert_array_equal(np.flatnonzero(labels[:, 1]), [2, 3, 4])  # 4, 6, 8; none in 9 … 9.5
    np.testing.assert_array_equal(np.flatnonzero(labels[:, 0]), [24])  # 48; 50 is not an instant
    assert not labels[:, 2].any()


def test_by_hand():
    # Class 0 is active at instants 0, 1; class 1 at instant 24. Class 0 in the order of scores: + (3), − (2), + (1).
    # Class 1: all scores equal, so the order of time: 1/25.
    scores = np.zeros((25, 2))
    scores[[0, 7, 1], 0] = [3, 2, 1]
    segments = {"video": np.array([[0, 0, 1], [1, 24, 24]])}
    result = charades_localize({"video": scores}, segments, {"video": 25.0}, num_classes=2)
    first, second = 100 * (1 + 2 / 3) / 2, 100 / 25
    np.testing.assert_allclose(result["per_class"], [first, second])
    assert result["official_mean"] == result["mean_over_present_classes"] == pytest.approx((first + second) / 2)
    assert result["official_weighted_mean"] == pytest.approx((2 * first + second) / 3)


def test_a_missing_video_ranks_last():
    data, scores, segments, durations = golden("charades_localize_synth")
    gone = str(data["video_ids"][3])
    least = scores | {gone: np.full((25, 157), -np.inf)}
    without = {video: s for video, s in scores.items() if video != gone}
    np.testing.assert_equal(
        charades_localize(without, segments, durations), charades_localize(least, segments, durations)
    )


def test_perfect_scores_give_100_and_nothing_annotated_gives_nan():
    _, _, segments, durations = golden("charades_localize_synth")
    perfect = {video: time_point_labels(rows, durations[video]) for video, rows in segments.items()}
    result = charades_localize(perfect, segments, durations)
    assert result["official_mean"] == result["official_weighted_mean"] == 100
    empty = charades_localize({}, {"video": np.zeros((0, 3))}, {"video": 1.0})
    assert all(np.isnan(value).all() for value in empty.values())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_equals_the_loop(data):
    num_classes = data.draw(st.integers(1, 3))
    durations = data.draw(st.dictionaries(st.sampled_from("abc"), st.integers(1, 60), min_size=1))
    row = st.tuples(st.integers(0, num_classes - 1), st.integers(0, 30), st.integers(0, 30))
    segments = {
        v: np.array([(c, s, s + n) for c, s, n in data.draw(st.lists(row, max_size=4))], float).reshape(-1, 3)
        for v in durations
    }
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    scores = {v: rng.integers(0, 4, (25, num_classes)).astype(float) for v in durations if rng.random() < 0.8}
    result = charades_localize(scores, segments, durations, num_classes=num_classes)
    expected = slow(scores, segments, durations, num_classes)
    np.testing.assert_allclose(result["per_class"], [np.nan if ap is None else 100 * ap for ap in expected])


def test_refusals_name_argument_video_and_value():
    scores, segments, durations = {"v": np.zeros((25, 2))}, {"v": np.zeros((0, 3))}, {"v": 10.0}

    def score(scores=scores, segments=segments, durations=durations):
        return charades_localize(scores, segments, durations, num_classes=2)

    score()
    with pytest.raises(ValueError, match=r"charades_localize: scores\['v'\] must be \[25, 2\]; got shape \(24, 2\)"):
        score({"v": np.zeros((24, 2))})
    with pytest.raises(ValueError, match=r"scores\['v'\] must not be NaN; got NaN at instant 3, class 1"):
        score({"v": np.where(np.arange(50).reshape(25, 2) == 7, np.nan, 0)})
    with pytest.raises(ValueError, match=r"scores\['v'\] must be an array of numbers"):
        score({"v": "high"})
    with pytest.raises(ValueError, match=r"scores must be of videos in segments; 1 of 1 are not, first 'w'"):
        score({"w": scores["v"]})
    with pytest.raises(ValueError, match=r"segments\['v'\] row 0: class 2 is not one of 0 … 1"):
        score(segments={"v": [[2, 0, 1]]})
    with pytest.raises(ValueError, match=r"segments\['v'\] row 0: start and end .* got 3 and 1"):
        score(segments={"v": [[0, 3, 1]]})
    with pytest.raises(ValueError, match=r"segments must hold at least one video"):
        score({}, {})
    with pytest.raises(ValueError, match=r"scores must be a mapping from video to array; got list"):
        score([scores["v"]])
    for bad in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"durations\['v'\] must be one number above 0; got {float(bad)}"):
            score(durations={"v": bad})
    with pytest.raises(ValueError, match=r"durations\['v'\] must be one number above 0; got nan"):
        score(durations={})
