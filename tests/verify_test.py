"""`kd-jax verify` reports every damaged, changed or foreign file of a workdir, and trains it again to compare."""

import json
import re
import shutil

import numpy as np
import pytest
from etils import epath

import kd_jax
from kd_jax import config as schema
from kd_jax import runtime, verify
from kd_jax.analysis.finished import open_experiment
from kd_jax.evaluation.scoring import Scoring
from kd_jax.files import DamagedFileError, read_arrays, read_json, sha256, write_arrays, write_json
from kd_jax.training import clock, experiment, provenance
from kd_jax.training.plan import prepare
from kd_jax.training.results_file import read_table
from kd_jax.training.run_config import read_run_config, read_run_results
from kd_jax.verify import AGAIN


def tiny_config():
    config = schema.get_config()
    config.dataset.update({"name": "synthetic", "max_videos": 4, "validation_fraction": 0.3})
    config.model.update({"hidden": 8, "num_layers": 2})
    config.training.update({"epochs": 2, "length_buckets": 1, "checkpoint_every": 1, "learning_rate": 1e-2})
    config.runs = schema.make_runs(
        flow=schema.make_run("flow"), rgb=schema.make_run("rgb", ("flow",), {"global_context": 1.0})
    )
    config.fusions.both = ("flow", "rgb")
    config.baseline = ""
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config, workdir = tiny_config(), tmp_path_factory.mktemp("finished") / "work"
    experiment.perform(config, workdir, prepare(config, workdir))
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return epath.Path(shutil.copytree(finished, tmp_path / "work"))


def problems_of(workdir):
    return "\n".join(verify.verify(workdir)[1])


def change_json(path, **changes):
    write_json(path, {**read_json(path), **changes})


def test_a_workdir_that_was_scored_by_another_rule_is_intact(tmp_path, monkeypatch):
    """The fusion is checked with the scoring that its runs recorded, not with that of today."""
    config = tiny_config()
    config.evaluation.protocols = ("event_map_strict",)
    with monkeypatch.context() as patched:
        patched.setattr(Scoring, "with_defaults", lambda self, head: self)
        experiment.perform(config, tmp_path, prepare(config, tmp_path))
    assert problems_of(epath.Path(tmp_path)) == ""


def test_a_whole_workdir(finished, capsys):
    verify.main([str(finished)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[-1] == "All files are intact and consistent."
    cells = {line.split()[0]: line.split()[1:] for line in lines[:3]}
    assert cells["run"] == list(verify.CHECKS)
    assert cells["flow"] == ["ok"] * 5 + ["–", "ok"] and cells["rgb"] == ["ok"] * 7


def test_a_run_states_where_it_comes_from(finished):
    found = read_json(finished / "rgb" / "provenance.json")
    (session,) = found["sessions"]
    assert session["environment"] == runtime.environment() and session["after_epoch"] == 0
    assert {"kd_jax", "jax", "orbax-checkpoint", "numpy", "devices"} <= session["environment"].keys()
    assert session["command"] and session["started"] <= found["ended"] and list(found["teachers"]) == ["flow"]
    assert {"metrics.jsonl", "predictions_test.npz", "checkpoints/2/best/manifest.ocdbt"} <= found["files"].keys()


def test_changed_files_are_reported(workdir):
    flow, rgb = workdir / "flow", workdir / "rgb"
    shutil.copy(flow / "predictions_test.npz", rgb / "predictions_test.npz")
    log = rgb / "metrics.jsonl"
    log.write_text(log.read_text() + log.read_text().splitlines()[0] + "\n")
    change_json(flow / "results.json", test={**read_json(flow / "results.json")["test"], "frame_map/all_classes": 99.0})
    (workdir / "results.md").write_text("no table")
    found = problems_of(workdir)
    assert f"{rgb / 'predictions_test.npz'} is not what the run wrote; run its experiment again" in found
    assert f"{log} is not what the run wrote; the results do not need it; delete {rgb} and run" in found
    assert f"{flow / 'results.json'} has other scores than its predictions; delete it and run" in found
    assert "results.md" not in found  # it is compared when the runs are whole


def test_damaged_files_are_reported(workdir):
    flow, rgb = workdir / "flow", workdir / "rgb"
    (rgb / "config.json").write_text("{")
    (flow / "checkpoints" / "2" / "state" / "manifest.ocdbt").unlink()
    change_json(flow / "results.json", best_epoch=7)
    (workdir / "starts.json").write_text("null")
    found = problems_of(workdir)
    assert f"{workdir / 'starts.json'} is damaged (it holds no JSON object); delete it" in found
    assert f"{rgb / 'config.json'} is damaged" in found and f"or delete {rgb} and run its experiment again" in found
    damaged = f"the checkpoint {flow / 'checkpoints' / '2'} is damaged"
    assert damaged in found and f"delete it, delete {flow / 'results.json'}, and run its experiment again" in found
    assert f"{flow / 'results.json'} names the best epoch 7, metrics.jsonl " in found


def test_what_does_not_belong_together_is_reported(workdir, capsys):
    results = read_json(workdir / "results.json")
    results["rows"][2]["scores"]["frame mAP"] = [99.0]  # of the fusion
    write_json(workdir / "results.json", results)
    found = problems_of(workdir)
    assert f"{workdir / 'results.md'} is missing, or not the table of results.json; run its experiment again" in found
    assert f"{workdir / 'results.json'} has other scores than the runs; run its experiment again" in found
    assert found.count("\n") == 1

    flow, rgb = workdir / "flow", workdir / "rgb"
    (next(flow.glob("events*"))).unlink()
    teachers = {"flow": ["a teacher that was trained again"]}
    change_json(rgb / "provenance.json", teachers=teachers)
    found = problems_of(workdir)
    assert "events.out.tfevents" in found and "is missing; results and parameters are whole" in found
    assert f"{flow}, a teacher of {rgb}, is not the one that it was trained with; restore it, or delete {rgb}" in found
    shutil.rmtree(flow)
    shutil.copytree(rgb, flow)
    (rgb / "provenance.json").unlink()
    with pytest.raises(SystemExit) as ended:
        verify.main([str(workdir)])
    assert ended.value.code.startswith("kd_jax.verify: ")
    assert f"{flow / 'config.json'} is that of the run rgb with seed 0; move the folder" in ended.value.code
    assert "note: no provenance.json, as in older versions" in capsys.readouterr().out


def test_nothing_is_trained_again_where_something_is_wrong(workdir, capsys, monkeypatch):
    monkeypatch.setattr(experiment, "perform", None)
    shutil.rmtree(workdir / "rgb")
    with pytest.raises(SystemExit) as ended:
        verify.main([str(workdir), "--replay"])
    assert f"{workdir / 'rgb'} is missing; run its experiment again to complete it" in ended.value.code
    assert "note: nothing was trained again, because there are problems" in capsys.readouterr().out


WRONG = {  # {field: value} of an edited file, without a checksum, and the sentence
    "rgb/results.json": [
        ({"best_epoch": "two"}, 'best_epoch is "two", but must be a whole number from 0 to 2147483647'),
        ({"scoring": {"protocols": [[]]}}, "scoring.protocols is [[]], but must be a list of different texts"),
        ({"scoring": {"threshold": 7}}, "scoring.threshold is 7, but must be a number from 0 to 1"),
        ({"test": {"frame_map/all_classes": 1e9, "per_class": {}}}, "test is {"),
        ({"scoring": {"protocols": ["frame_map"], "rule": ""}}, "scoring is {"),
        ({"best_epoch": None}, "the field best_epoch is missing"),
    ],
    "results.json": [
        ({"seeds": []}, "seeds is [], but must be a list of whole numbers"),
        ({"rows": [{"run": 3}]}, "row 0: run is 3, but must be a text that is not empty"),
        ({"time": {"lost": "a"}}, 'time.lost is "a", but must be a number'),
    ],
    "starts.json": [({"starts": [{"before": []}]}, "before is [], but must be a finite number")],
    "flow/provenance.json": [({"files": {"a": 3}}, 'files is {"a": 3}, but must be texts by name')],
    "flow/config.json": [
        ({"dataset": {"validation_groups": [1]}}, "dataset.validation_groups is [1], but must be a text")
    ],
}


READERS = {
    "rgb/results.json": lambda workdir: read_run_results(workdir / "rgb", AGAIN),
    "flow/config.json": lambda workdir: read_run_config(workdir / "flow", AGAIN),
    "flow/provenance.json": lambda workdir: provenance.read(workdir / "flow", AGAIN),
    "results.json": lambda workdir: read_table(workdir, AGAIN),
    "starts.json": lambda workdir: clock.read_starts(workdir, AGAIN),
}


def test_an_absurd_value_is_named_with_its_file(workdir):
    for file, cases in WRONG.items():
        content = read_json(workdir / file)
        for changes, sentence in cases:  # without a checksum, as docs/reliability.md allows
            (workdir / file).write_text(json.dumps({**content, **changes}))
            with pytest.raises(DamagedFileError, match=re.escape(f"{workdir / file}: {sentence}") + f".*; {AGAIN}"):
                READERS[file](workdir)
    found = problems_of(workdir)
    assert all(f"{workdir / file}: " in found for file in WRONG if file != "flow/config.json")
    with pytest.raises(DamagedFileError, match="rgb/results.json: the field best_epoch is missing; copy all of"):
        kd_jax.load(workdir / "rgb")
    with pytest.raises(DamagedFileError, match=r'work/results\.json: time\.lost is "a", but must be a number; run its'):
        open_experiment(workdir)


def test_a_file_without_a_checksum_is_read(workdir):
    for path in (workdir / "rgb" / "results.json", workdir / "results.json", workdir / "rgb" / "config.json"):
        path.write_text(json.dumps(read_json(path)))
    assert problems_of(workdir) == "" and kd_jax.load(workdir / "rgb").title == "rgb"


def test_a_field_that_may_be_missing_may_be_null(workdir):
    path = workdir / "rgb" / "results.json"
    path.write_text(json.dumps(read_json(path) | {"threshold": None, "test": None}))
    found = read_run_results(workdir / "rgb", AGAIN)
    assert "best_epoch" in found and not {"threshold", "test"} & found.keys()


def test_a_folder_without_runs_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        verify.main([str(tmp_path)])
    assert "holds no run of kd_jax; give the workdir of an experiment" in str(ended.value.code)


def test_a_replay_is_equal_bit_for_bit_and_differences_are_reported(workdir, capsys):
    path = workdir / "rgb" / "predictions_test.npz"
    tables = read_arrays(path)
    write_arrays(path, {**tables, "test_000": np.nextafter(tables["test_000"], np.float32(9))})
    written = read_json(path.parent / "provenance.json")
    written["files"][path.name] = sha256(path)  # as if another machine had trained it
    write_json(path.parent / "provenance.json", written)
    found, _ = verify.verify(workdir)
    assert verify.replay(found, None, None) == [
        f"{workdir / 'rgb'} differs from its replay; compare the versions in results.json"
    ]
    lines = capsys.readouterr().out.splitlines()
    assert "flow, seed 0: equal" in lines
    assert any(line.startswith("rgb, seed 0: different; parameters by 0, logits by ") for line in lines)


def test_a_workdir_of_an_older_version_has_no_config_to_replay(workdir, finished):
    results = read_json(workdir / "results.json")
    del results["config"]
    (workdir / "results.json").write_text(json.dumps(results))
    found, problems = verify.verify(workdir)
    assert problems == [] and "is of an older version, so the table is not compared" in found.notes[0]
    del results["rows"][1]["gain_interval"]  # of a version between
    with_config = {**results, "config": read_json(finished / "results.json")["config"]}
    (workdir / "results.json").write_text(json.dumps(with_config))
    (workdir / "results.md").write_text("a gain without an interval")
    between, problems = verify.verify(workdir)
    assert problems == [] and "is of an older version, so the table is not compared" in between.notes[0]
    with pytest.raises(ValueError, match=r"does not hold the config of its experiment; run its experiment again"):
        verify.replay(found, None, None)
