"""bfloat16 computation with float32 parameters and losses: the same loss curve, and the same scores."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import config as schema
from kd_jax.evaluation.scoring import Scoring, score_split
from kd_jax.inference.predict import SplitPredictor
from kd_jax.training.checkpoints import load_run
from kd_jax.training.experiment import seeded_run
from kd_jax.training.plan import prepare
from kd_jax.training.run import train_runs
from kd_jax.training.run_config import build_model

MAP = "frame_map/present_classes"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_bfloat16_trains_and_scores_like_float32(tmp_path):
    curves, runs = {}, {}
    for dtype in ("float32", "bfloat16"):
        config = schema.load("demo")
        config.training.update({"epochs": 6, "checkpoint_every": 6})
        config.model.dtype = dtype
        source = prepare(config, tmp_path)
        train_runs(config, [seeded_run(config, tmp_path / dtype, "flow_teacher", 0, source)], source)
        lines = (tmp_path / dtype / "flow_teacher" / "metrics.jsonl").read_text().splitlines()
        curves[dtype] = [json.loads(line)["loss"] for line in lines]
        runs[dtype] = load_run(tmp_path / dtype / "flow_teacher")
        leaves = jax.tree.leaves(runs[dtype].variables["params"])
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"], rtol=0.02)
    assert curves["bfloat16"] != curves["float32"] and curves["float32"][-1] < 0.9 * curves["float32"][0]

    own = []
    for name, trained in runs.items():  # the same parameters, computed in either way
        scores = []
        for dtype in ("float32", "bfloat16"):
            model = build_model({**trained.config, "model": {**trained.config["model"], "dtype": dtype}})
            predictor = SplitPredictor(model, source, "test", "flow", batch_size=8, num_buckets=2)
            (logits,) = predictor(jax.tree.map(lambda x: x[None], trained.variables))
            assert all(table.dtype == np.float32 for table in logits.values())
            scores.append(score_split(logits, predictor.videos, source.info, Scoring(("frame_map",)))[MAP])
        assert scores[0] > 20 and abs(scores[0] - scores[1]) < 0.3 and scores[0] != scores[1]
        own.append(scores[0 if name == "float32" else 1])
    assert abs(own[0] - own[1]) < 0.3  # trained and computed in either way
