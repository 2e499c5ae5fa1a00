"""A value that is not finite stops its run; the message has the step, the part of the loss and the videos."""

import json

import numpy as np
import pytest

from kd_jax import config as schema
from kd_jax.data.batches import Example, bucket_lengths, schedule_epoch
from kd_jax.training import divergence, experiment
from kd_jax.training.plan import prepare
from kd_jax.types import Outputs


def steps(**metrics):
    defaults = {"loss": 1.0, "task": 0.5, "atomic": 0.5, "gradient_norm": 1.0, "learning_rate": 1e-3, "snippets": 8}
    return {name: np.full(3, value, np.float32) for name, value in defaults.items()} | {
        name: np.array(values, np.float32) for name, values in metrics.items()
    }


def test_finite_metrics_have_no_bad_step():
    assert divergence.first_bad_step(steps()) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("metric", ["loss", "atomic", "gradient_norm", "gradient/atomic"])
def test_the_first_bad_step_is_found_in_every_metric(metric, value):
    assert divergence.first_bad_step(steps(**{metric: [1, value, np.nan]})) == 1


@pytest.mark.parametrize(
    "metrics, what, causes",
    [
        ({"task": [1, np.nan, 1], "atomic": [1, 2, np.nan]}, "the loss of task is nan", ["task"]),
        ({"gradient/task": [1, 1, 1], "gradient/atomic": [1, np.inf, 1]}, "the gradient of atomic", ["atomic"]),
        ({"gradient_norm": [1, np.inf, 1]}, "the gradient norm is inf and the loss 1, mostly from atomic", ["atomic"]),
    ],
)
def test_the_part_that_causes_it_is_named(metrics, what, causes):
    text, found = divergence.blame(steps(**metrics), 1, {"task": 1.0, "atomic": 5.0})
    assert text.startswith(what) and found == causes


def test_videos_with_bad_values_are_named():
    good = Example("good", np.zeros((4, 2), np.float16), np.zeros((4, 1), np.uint8))
    features = np.zeros((4, 2), np.float16)
    features[2, 1] = np.nan
    bad = Example("bad", features, good.labels)
    taught = Example("taught", good.features, good.labels, (Outputs(np.full((4, 3), np.inf), np.zeros((4, 1))),))
    assert divergence.find_damage([good]) is None
    assert divergence.find_damage([good, bad]) == "video 'bad': its features are not finite in snippet 2"
    assert "video 'taught': the output of its teacher" in divergence.find_damage([taught])


def one_teacher_and_two_students(**training):
    config = schema.get_config()
    config.dataset.update({"name": "synthetic", "max_videos": 4, "validation_fraction": 0.3})
    config.model.update({"hidden": 4, "num_layers": 1})
    config.training.update({"epochs": 2, "length_buckets": 1, "checkpoint_every": 1, **training})
    config.runs = schema.make_runs(
        teacher=schema.make_run("flow"),
        student=schema.make_run("rgb", "teacher", {"atomic": 1e30}),
        of_student=schema.make_run("rgb", "student", {"atomic": 0.1}),
        plain=schema.make_run("rgb", hidden=3),
    )
    config.baseline = "plain"
    return config


@pytest.mark.slow
@pytest.mark.parametrize("data", ["resident", "streamed"])
def test_an_infinite_gradient_stops_its_run_and_those_it_teaches(data, tmp_path):
    config = one_teacher_and_two_students(clip_norm=1.0, data=data)
    source = prepare(config, tmp_path)
    with pytest.raises(FloatingPointError) as error:
        experiment.perform(config, tmp_path, source)
    message, videos = str(error.value), source.videos("train", ["rgb"])
    lengths = [video.num_snippets for video in videos]
    buckets = bucket_lengths(lengths, num_buckets=1, batch_size=2)
    batch = [videos[i].id for i in schedule_epoch(lengths, buckets, 2, seed=0, epoch=1)[0][1]]
    assert "student, seed 0: training diverged in epoch 1, step 1 of 2 (the gradient norm is inf and" in message
    assert "mostly from atomic" in message and "lower training.learning_rate or the weight of atomic" in message
    assert f"with the videos {', '.join(batch)}; there is no checkpoint yet; " in message
    assert message.endswith("without results: of_student, student")
    assert (tmp_path / "plain" / "results.json").exists() and not (tmp_path / "of_student").exists()
    assert not (tmp_path / "student" / "metrics.jsonl").exists()
    for path in tmp_path.glob("*/metrics.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)
