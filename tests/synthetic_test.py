"""The synthetic set is reproducible and consistent, and flow shows what RGB must learn."""

import numpy as np

from kd_jax.data import base, synthetic
from kd_jax.evaluation.metrics.frame_map import frame_map
from kd_jax.segments import labels_from_segments


def labels_of(video, info):
    return labels_from_segments(video.segments, video.duration, video.num_snippets, len(info.classes))


def test_videos_agree_with_info():
    info, splits = synthetic.tiny()
    base.check_info(info)
    for video in splits["train"] + splits["test"]:
        base.check_video(video, info)
        assert 20 <= video.num_snippets <= 40
        assert {f.dtype for f in video.features.values()} == {np.dtype(np.float16)}
        assert video.duration == video.num_snippets * info.seconds_per_snippet
        assert (video.segments[:, 1] >= 0).all() and (video.segments[:, 2] <= video.duration).all()
    assert len(set(info.modalities.values())) == 3, "different widths catch a mix-up of modalities"


def test_equal_seeds_give_equal_data():
    first, again, other = (synthetic.tiny(seed)[1]["train"][1] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.features["rgb"], again.features["rgb"])
    np.testing.assert_array_equal(first.segments, again.segments)
    assert (
        first.features["rgb"].shape != other.features["rgb"].shape
        or (first.features["rgb"] != other.features["rgb"]).any()
    )


def test_a_larger_set_starts_with_the_smaller():
    small, large = (synthetic.make(num_train=n, num_test=1, length=(20, 40))[1]["train"] for n in (1, 3))
    np.testing.assert_array_equal(small[0].features["flow"], large[0].features["flow"])


def windows(features):
    padded = np.pad(features.astype(np.float64), ((2, 2), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(features)] for i in range(5)] + [np.ones((len(features), 1))], axis=1)


def test_flow_knows_more_than_rgb_and_both_more_than_either():
    info, splits = synthetic.make()
    labels = {split: [labels_of(v, info) for v in videos] for split, videos in splits.items()}
    targets = np.concatenate(labels["train"]).astype(np.float64)
    assert targets.sum(axis=0).min() > 50, "every class can be learnt"
    assert (targets.sum(axis=1) > 1).mean() > 0.1, "actions happen at once"
    scores, value = {}, {}
    for modality in ("rgb", "flow"):
        inputs = np.concatenate([windows(v.features[modality]) for v in splits["train"]])
        weights = np.linalg.solve(inputs.T @ inputs + 30 * np.eye(inputs.shape[1]), inputs.T @ targets)
        scores[modality] = [windows(v.features[modality]) @ weights for v in splits["test"]]
        value[modality] = frame_map(scores[modality], labels["test"])["mean_over_present_classes"]
    fused = [a + b for a, b in zip(scores["rgb"], scores["flow"], strict=True)]
    both = frame_map(fused, labels["test"])["mean_over_present_classes"]
    assert 25 < value["rgb"] < value["flow"] - 10 < both - 10 < 75, (value, both)
