"""Scoring: perfect predictions get 100 under every protocol, and values that do not exist are None."""

import json

import numpy as np
import pytest

from kd_jax.data import base
from kd_jax.data.annotations import DATASETS
from kd_jax.evaluation.metrics.event_map import event_map
from kd_jax.evaluation.metrics.frame_map import frame_map
from kd_jax.evaluation.protocols import PROTOCOLS, Predictions, score
from kd_jax.evaluation.scoring import Scoring, make_truth, probabilities, ranking_scores, score_split
from kd_jax.segments import labels_from_segments

T, SECONDS = 40, 0.5
INFO = base.Info("mine", ("a", "b"), "dense", {"rgb": 3}, "seconds", 1 / SECONDS, SECONDS)
SPARSE = base.Info("mine", ("a", "b"), "sparse", {"rgb": 3}, "seconds", 1 / SECONDS, SECONDS)
# Actions of 2, 4, 8 and 13 seconds; two are concurrent in the second video.
SEGMENTS = {
    "v": np.array([[0, 1.9, 3.9], [1, 6.1, 10.1]]),
    "w": np.array([[0, 1.2, 14.2], [1, 4.9, 12.9]]),
}
VIDEOS = [base.Video(name, {}, rows, T * SECONDS) for name, rows in SEGMENTS.items()]
LABELS = {name: labels_from_segments(rows, T * SECONDS, T, 2) for name, rows in SEGMENTS.items()}


def perfect() -> Predictions:
    detections = {v: np.column_stack([rows, np.linspace(0.9, 0.8, len(rows))]) for v, rows in SEGMENTS.items()}
    instants = {
        name: np.stack([((rows[:, 1:2] <= t) & (t <= rows[:, 2:3]) & (rows[:, :1] == [0, 1])).any(0) for t in times])
        for name, rows in SEGMENTS.items()
        for times in [np.arange(25) / 25 * (T * SECONDS)]
    }
    return Predictions(
        {v: t.astype(float) for v, t in LABELS.items()}, detections, {v: t * 1.0 for v, t in instants.items()}
    )


@pytest.mark.parametrize("name", PROTOCOLS)
def test_perfect_predictions_get_100(name):
    values, per_class = score(perfect(), make_truth(VIDEOS, INFO), [name])
    assert values and all(key.startswith(f"{name}/") for key in values)
    assert np.nanmin(list(values.values())) == pytest.approx(100) and np.nanmax(list(values.values())) == pytest.approx(
        100
    )
    assert all(np.allclose(row, 100) for row in per_class.values())
    assert all(f"{name}/{measure}" in values for measure in PROTOCOLS[name].columns)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_random_predictions_get_less(name):
    rng = np.random.default_rng(0)
    wrong = Predictions(
        {v: rng.random(t.shape) for v, t in LABELS.items()},
        {v: np.array([[0, 15.0, 19.0, 0.9], [1, 15.0, 19.0, 0.8]]) for v in LABELS},
        {v: rng.random((25, 2)) for v in LABELS},
    )
    values, _ = score(wrong, make_truth(VIDEOS, INFO), [name])
    assert np.nanmin(list(values.values())) < 95


def test_the_protocols_of_every_data_set_exist():
    for name, description in DATASETS.items():
        assert description.protocols and set(description.protocols) <= set(PROTOCOLS), name


def test_scores_of_dense_logits_equal_the_metrics():
    rng = np.random.default_rng(1)
    logits = {name: rng.standard_normal((T, 2)).astype(np.float32) for name in SEGMENTS}
    results = score_split(logits, VIDEOS, INFO, Scoring(("frame_map", "event_map"), threshold=0.6))
    frames = frame_map(list(logits.values()), list(LABELS.values()))
    assert results["frame_map/present_classes"] == frames["mean_over_present_classes"]
    assert results["per_class"]["frame_map"] == dict(zip("ab", frames["per_class"], strict=True))
    rule = Scoring(("event_map",), threshold=0.6).rule("dense")
    found = {v: rule(1 / (1 + np.exp(-t.astype(np.float64))), SECONDS, duration=T * SECONDS) for v, t in logits.items()}
    events = event_map(found, SEGMENTS, num_classes=2)
    assert results["event_map/mAP_action@0.3"] == pytest.approx(events["mAP_action"][1])
    json.dumps(results, allow_nan=False)


def test_weak_detections_are_ranked_too():
    """A student that is right but unsure, with probabilities from 0.05 to 0.3, gets the event mAP of a sure one."""
    unsure = {v: np.where(labels > 0, -0.85, -2.95) for v, labels in LABELS.items()}
    ranked = Scoring(("event_map",)).with_defaults("dense")
    assert ranked == Scoring(("event_map",), "classes", 0.1)
    assert score_split(unsure, VIDEOS, INFO, ranked)["event_map/mAP_action@0.5"] == pytest.approx(100)
    chosen = Scoring(("event_map",), "classes", 0.5)
    assert chosen.with_defaults("dense") == chosen
    assert score_split(unsure, VIDEOS, INFO, chosen)["event_map/mAP_action@0.5"] == 0
    assert Scoring(("event_map",)).with_defaults("sparse") == Scoring(("event_map",), "background", 0.4)
    assert Scoring(("event_map",), "multi_threshold").with_defaults("dense").threshold is None


def test_sparse_logits_rank_by_probability_and_detect_by_background():
    logits = {}
    for name, labels in LABELS.items():
        background = 1.0 - labels.max(axis=1, keepdims=True)
        logits[name] = 8 * np.concatenate([labels * [1.0, 1.01], background], axis=1)
    results = score_split(logits, VIDEOS, SPARSE, Scoring(("frame_map", "event_map")))
    shifted = {v: np.exp(t) / np.exp(t).sum(axis=1, keepdims=True) for v, t in logits.items()}
    expected = frame_map([t[:, :2] for t in shifted.values()], list(LABELS.values()))
    assert results["frame_map/present_classes"] == pytest.approx(expected["mean_over_present_classes"])
    # w is one run without background, so its two actions get one proposal, with the class that is active longer.
    assert results["per_class"]["event_map@0.3"] == {"a": pytest.approx(100), "b": pytest.approx(50)}


def test_absent_values_are_none():
    videos = [base.Video("v", {}, SEGMENTS["v"][:1], T * SECONDS)]
    results = score_split({"v": np.zeros((T, 2))}, videos, INFO, Scoring(("frame_map", "charades_localize")))
    assert results["per_class"]["frame_map"]["b"] is None and results["charades_localize/official_mean"] is None
    json.dumps(results, allow_nan=False)


def test_messages_for_what_cannot_be_scored():
    with pytest.raises(ValueError, match="no prediction for 1 of 2 videos, first 'w'"):
        score_split({"v": np.zeros((T, 2))}, VIDEOS, INFO, Scoring(("frame_map",)))
    with pytest.raises(ValueError, match="protocol 'frame_mapp' is unknown; known protocols: frame_map, "):
        score_split({}, [], INFO, Scoring(("frame_mapp",)))
    with pytest.raises(ValueError, match="event_map needs detections, and these predictions hold none"):
        score(Predictions(), make_truth(VIDEOS, INFO), ["event_map"])
    with pytest.raises(ValueError, match="has no background probability"):
        Scoring(("frame_map",), proposals="background").check("dense")
    with pytest.raises(ValueError, match="there is no protocol"):
        Scoring(()).check("dense")


def test_probabilities_by_hand():
    np.testing.assert_allclose(probabilities(np.array([[0.0, np.log(3)]]), "dense"), [[0.5, 0.75]])
    np.testing.assert_allclose(probabilities(np.log([[1.0, 3.0]]), "sparse"), [[0.25, 0.75]])
    assert np.isfinite(probabilities(np.array([[-1e4, 1e4]]), "dense")).all()


def test_ranking_scores_by_hand():
    logits = np.log([[1.0, 3.0]])
    assert ranking_scores(logits, "dense") is logits
    np.testing.assert_allclose(ranking_scores(logits, "sparse"), [[np.log(0.25)]])


def test_overlaps_of_whole_frames_are_exact():
    """Frames 0 … 3k of 0 … 10k have an overlap of exactly 0.3, which counts; in seconds it can round to less."""
    info = base.Info("mine", ("a",), "dense", {"rgb": 3}, "frames", 30.0, 0.5)
    videos = [base.Video(f"v{k}", {}, np.array([[0, k, 11.0 * k]]), 12.0 * k) for k in range(1, 100)]
    truth = make_truth(videos, info)
    found = {f"v{k}": np.array([[0, k / 30, 4 * k / 30, 0.5]]) for k in range(1, 100)}
    in_seconds = event_map(found, truth.segments, num_classes=1, thresholds=[0.3])["mAP_video"][0]
    assert in_seconds < 100  # so the conversion to frames matters
    values, _ = score(Predictions(detections=found), truth, ["event_map", "event_map_strict"])
    assert values["event_map/mAP_video@0.3"] == values["event_map_strict/mAP_video@0.3"] == 100


def test_official_protocols_use_the_rows_as_written():
    rows = np.array([[0, 1.0, 3.0], [0, 1.0, 3.0]])
    video = base.Video("v", {}, rows[:1], 10.0, written=rows)
    found = Predictions(detections={"v": np.array([[0, 1.0, 3.0, 0.5]])})
    values, _ = score(found, make_truth([video], INFO), ["event_map", "event_map_strict"])
    assert (values["event_map/mAP_video@0.5"], values["event_map_strict/mAP_video@0.5"]) == (50, 100)


def test_detections_in_ambiguous_segments_are_ignored_by_the_kit():
    segments, ambiguous = np.array([[0, 1.0, 3.0]]), np.array([[5.0, 8.0]])
    found = Predictions(detections={"v": np.array([[0, 5.0, 8.0, 0.9], [0, 1.0, 3.0, 0.5]])})
    values = {}
    for name, video in {
        "plain": base.Video("v", {}, segments, 10.0),
        "kit": base.Video("v", {}, segments, 10.0, ambiguous=ambiguous),
    }.items():
        truth = make_truth([video], SPARSE)
        values[name] = score(found, truth, ["detection_map_thumos14_kit"])[0]["detection_map_thumos14_kit/mAP@0.5"]
    assert values == {"plain": 50, "kit": 100}


def test_frames_become_seconds():
    video = base.Video("v", {}, np.array([[1, 20.0, 50.0]]), 100.0)
    info = base.Info("mine", ("a", "b"), "dense", {"rgb": 3}, "frames", 20.0, 0.8)
    truth = make_truth([video], info)
    np.testing.assert_array_equal(truth.segments["v"], [[1, 1.0, 2.5]])
    assert truth.durations == {"v": 5.0} and truth.num_frames == {"v": 100}
