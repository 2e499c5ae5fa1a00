"""Finished experiments, opened from their workdir and records, and the command that makes their figures."""

import dataclasses
import shutil

import numpy as np
import pytest

from kd_jax import analyse
from kd_jax import config as schema
from kd_jax.analysis.finished import open_experiment
from kd_jax.data import records, synthetic
from kd_jax.files import read_json, write_json
from kd_jax.training import experiment
from kd_jax.training.plan import prepare

pytestmark = pytest.mark.slow  # a demo experiment


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Train a teacher, a plain and a distilled student and a choice among two on records, two seeds each."""
    folder = tmp_path_factory.mktemp("finished")
    info, splits = synthetic.make()
    info = dataclasses.replace(info, name="mine")
    records.write(folder / "records", info, {split: videos[:4] for split, videos in splits.items()}, {})
    config = schema.get_config()
    config.dataset.update({"name": "custom", "data_dir": str(folder / "records"), "validation_fraction": 0.3})
    config.model.update({"hidden": 8, "num_layers": 2})
    config.training.update({"epochs": 2, "length_buckets": 1})
    distilled = {weight: schema.make_run("rgb", ("flow",), {"boundary": weight}) for weight in (0.1, 0.2)}
    config.runs = schema.make_runs(
        flow=schema.make_run("flow"), rgb=schema.make_run("rgb"), light=distilled[0.1], heavy=distilled[0.2]
    )
    config.fusions.both = ("flow", "rgb")
    config.choices.tuned = ("light", "heavy")
    config.update({"baseline": "rgb", "seeds": 2})
    experiment.perform(config, folder / "workdir", prepare(config, folder / "workdir"))
    return folder / "workdir"


def test_every_row_of_the_table_is_opened(workdir):
    found = open_experiment(workdir)
    assert list(found.runs) == ["flow", "rgb", "tuned"] and found.seeds == [0, 1]
    tuned = found.runs["tuned"]
    chosen = found.row("tuned")["chosen"]
    assert [run.directory for run in tuned] == [workdir / chosen, workdir / chosen / "seed_1"]
    assert [run.config["seed"] for run in tuned] == [0, 1] and all(len(run.epochs) == 2 for run in tuned)
    flow, rgb, both = (found.logits(name, 1) for name in ("flow", "rgb", "both"))
    for video in both:
        np.testing.assert_allclose(both[video], (flow[video] + rgb[video]) / 2, rtol=1e-6)


def test_outputs_are_those_that_were_scored(workdir):
    found = open_experiment(workdir)
    for run in found.runs["rgb"]:
        saved = found.logits("rgb", run.seed)
        outputs = found.outputs(run)
        assert outputs.keys() == saved.keys() and len(saved) == 4
        for video, output in outputs.items():
            np.testing.assert_allclose(output.logits, saved[video], rtol=1e-4, atol=1e-4)
            assert output.features.shape == (len(saved[video]), 8)


def test_files_of_another_run_are_not_taken_for_those_of_a_run(workdir, tmp_path, caplog):
    folder = tmp_path / "workdir"
    shutil.copytree(workdir, folder)
    rgb, flow = folder / "rgb", folder / "flow"
    shutil.copy(flow / "metrics.jsonl", rgb / "metrics.jsonl")
    shutil.copy(flow / "predictions_test.npz", rgb / "predictions_test.npz")
    found = open_experiment(folder)
    assert f"{rgb / 'metrics.jsonl'} is not what the run wrote; its curves may be wrong" in caplog.text
    with pytest.raises(ValueError, match=f"{rgb / 'predictions_test.npz'} is not what the run wrote; run its"):
        found.logits("rgb", 0)
    shutil.copy(flow / "config.json", rgb / "config.json")
    with pytest.raises(ValueError, match=f"{rgb / 'config.json'} is that of the run flow; restore the folder"):
        open_experiment(folder)


def test_records_may_have_moved_but_must_be_the_same(workdir, tmp_path):
    moved, folder = tmp_path / "moved", tmp_path / "workdir"
    shutil.copytree(workdir, folder)
    shutil.copytree(workdir.parent / "records", moved)
    results = read_json(folder / "results.json")
    write_json(folder / "results.json", {**results, "data_dir": str(tmp_path / "gone")})
    with pytest.raises(FileNotFoundError, match="gone.*--data_dir=DIR"):
        open_experiment(folder)
    assert open_experiment(folder, str(moved)).source.info == open_experiment(workdir).source.info
    info, splits = synthetic.make(seed=1)
    records.write(tmp_path / "other", info, splits, {})
    with pytest.raises(ValueError, match="other: these are not the videos of"):
        open_experiment(folder, str(tmp_path / "other"))


def test_a_workdir_without_a_finished_experiment_is_named(workdir, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished experiment"):
        open_experiment(tmp_path)
    with pytest.raises(FileNotFoundError, match="no finished experiment"):
        open_experiment(workdir / "rgb")  # a run, whose results.json has no rows
    with pytest.raises(ValueError, match="no run or fusion 'rbg'; it has flow, rgb, tuned, both"):
        open_experiment(workdir).row("rbg")
    folder = tmp_path / "copy"
    shutil.copytree(workdir, folder)
    shutil.rmtree(folder / "rgb" / "seed_1")
    with pytest.raises(FileNotFoundError, match="rgb/seed_1 is gone or has not finished"):
        open_experiment(folder)


def test_the_command_makes_figures_from_workdir_and_records(workdir, tmp_path, capsys):
    analyse.main([str(workdir), "--figures=saliency,tsne", "--perplexity=9", f"--output={tmp_path / 'out'}"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["saliency", "tsne"]
    assert "4 test videos: flow " in lines[0] and "Silhouette: flow " in lines[1]
    assert lines[-1] == f"Saved in {tmp_path / 'out'}, each as .png, .svg and .csv."
    assert len(list((tmp_path / "out").iterdir())) == 6


@pytest.mark.parametrize(
    "mistake, sentence",
    [
        ("--figures=tnse", "there is no figure 'tnse'; known figures: "),
        ("--figures=,", "--figures: give at least one name"),
        ("--figures=tsne --perplexity=5000", "--perplexity=5000 must be below the number of snippets"),
        ("--classes=cup", "--classes: there is no class 'cup'; known classes: "),
        ("--data_dir=nowhere", "cannot be read .*--data_dir=DIR"),
    ],
)
def test_a_mistake_ends_the_command_in_one_sentence(workdir, mistake, sentence, tmp_path):
    with pytest.raises(SystemExit, match=f"^kd_jax.analyse: .*{sentence}"):
        analyse.main([str(workdir), *mistake.split(), f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_workdir_without_an_experiment_is_named():
    with pytest.raises(SystemExit, match="^kd_jax.analyse: .*nowhere holds no finished experiment"):
        analyse.main(["nowhere"])
