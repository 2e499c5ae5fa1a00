"""Runs that train together equal runs that train alone. Runs that do not fit the memory train in smaller groups."""

import json
import shutil

import numpy as np
import pytest

from kd_jax import config as schema
from kd_jax.files import read_arrays
from kd_jax.training import checkpoints, experiment, on_device, population
from kd_jax.training import run as run_module
from kd_jax.training.plan import prepare
from kd_jax.training.table import markdown

pytestmark = pytest.mark.slow  # every test trains experiments


def ablation(**training):
    """Make a teacher and three students that differ in weights or learning rate, two seeds each, on a few videos."""
    config = schema.get_config()
    config.dataset.update({"name": "synthetic", "max_videos": 4, "validation_fraction": 0.3})
    config.model.update({"hidden": 8, "num_layers": 2})
    config.training.update({"epochs": 3, "length_buckets": 1, "checkpoint_every": 3, "learning_rate": 1e-2, **training})
    config.runs = schema.make_runs(
        flow_teacher=schema.make_run("flow"),
        atomic=schema.make_run("rgb", teachers=("flow_teacher",), weights={"atomic": 0.5}),
        both=schema.make_run("rgb", teachers=("flow_teacher",), weights={"atomic": 0.1, "global_context": 5.0}),
        slower=schema.make_run("rgb", ("flow_teacher",), {"boundary": 0.1}, learning_rate=1e-3),
    )
    config.update({"baseline": "", "seeds": 2})
    return config


def perform(config, workdir):
    return experiment.perform(config, workdir, prepare(config, workdir))


def groups_trained(monkeypatch) -> list[list[tuple[str, int]]]:
    """Return a list to which every trained Population adds its runs."""
    groups, real = [], run_module._train

    def note(job, runs, *rest):
        done = real(job, runs, *rest)
        if done:
            groups.append([(run.name, run.seed) for run in runs])
        return done

    monkeypatch.setattr(run_module, "_train", note)
    return groups


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Train all runs of a program together, as on an accelerator: workdir, results, groups, bytes of each program."""
    workdir, needed, real = tmp_path_factory.mktemp("together"), [], population.compile_for

    def note(function, *arguments):
        compiled = real(function, *arguments)
        memory = compiled.memory_analysis()
        needed.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
        return compiled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "maps_runs", lambda: True)
        patch.setattr(population, "compile_for", note)
        groups = groups_trained(patch)
        return workdir, perform(ablation(), workdir), groups, needed


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """Train the same runs one after another, as on a CPU: the workdir, the groups and the number of programs."""
    workdir = tmp_path_factory.mktemp("one_by_one")
    with pytest.MonkeyPatch.context() as patch:
        groups = groups_trained(patch)
        population._compiled.cache_clear()
        perform(ablation(), workdir)
        return workdir, groups, population._compiled.cache_info().misses


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same_runs(ours, theirs, count=8):
    folders = sorted(path.parent.relative_to(theirs) for path in theirs.glob("**/config.json"))
    assert len(folders) == count
    for folder in folders:
        for a, b in zip(records(ours / folder), records(theirs / folder), strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"seconds", "snippets_per_second"}:
                np.testing.assert_allclose(a[key], b[key], rtol=2e-3, atol=1e-4, err_msg=f"{folder} {key}")
        a, b = (read_arrays(workdir / folder / "predictions_test.npz") for workdir in (ours, theirs))
        for video in a:
            np.testing.assert_allclose(a[video], b[video], rtol=2e-3, atol=2e-3)
        configs = [json.loads((workdir / folder / "config.json").read_text()) for workdir in (ours, theirs)]
        assert configs[0] == configs[1]


def test_runs_of_equal_shape_train_together(together):
    _, results, groups, _ = together
    assert groups == [
        [("flow_teacher", 0), ("flow_teacher", 1)],
        [(name, seed) for name in ("atomic", "both", "slower") for seed in (0, 1)],
    ]
    assert "learns from" in markdown(results) and "±" in markdown(results)


def test_each_run_ends_the_same_in_a_group_one_after_another_and_alone(tmp_path, monkeypatch, together, one_by_one):
    workdir, groups, programs = one_by_one
    assert [len(group) for group in groups] == [1] * 8
    assert programs == 2  # one for the teachers, one for all students
    assert_same_runs(together[0], workdir)

    groups = groups_trained(monkeypatch)
    monkeypatch.setattr(run_module, "maps_runs", lambda: True)
    monkeypatch.setattr(population.Population, "fits", lambda self: False)
    config, alone = ablation(), tmp_path / "alone"
    del config.runs.atomic, config.runs.both
    perform(config, alone)
    assert all(len(group) == 1 for group in groups) and len(groups) == 4
    assert_same_runs(together[0], alone, count=4)
    assert len({records(path.parent)[-1]["loss"] for path in alone.glob("**/predictions_test.npz")}) == 4


def test_streamed_runs_train_one_by_one_and_end_the_same(tmp_path, monkeypatch, together):
    groups, config = groups_trained(monkeypatch), ablation(data="streamed")
    del config.runs.both, config.runs.slower
    perform(config, tmp_path)
    assert all(len(group) == 1 for group in groups)
    assert_same_runs(together[0], tmp_path, count=4)


def test_runs_that_need_too_much_memory_train_in_smaller_groups(tmp_path, monkeypatch, together):
    monkeypatch.setattr(run_module, "maps_runs", lambda: True)
    groups = groups_trained(monkeypatch)
    monkeypatch.setattr(on_device, "memory_limit", lambda: max(together[3]) - 1)
    monkeypatch.setattr(on_device, "fits", lambda sets: True)
    perform(ablation(), tmp_path)
    assert [len(group) for group in groups] == [2, 3, 3]
    assert_same_runs(together[0], tmp_path)


class Stop(Exception):
    pass


def stop_after_save(epoch, place, workdir, together):
    """Trains the students together until run number `place` has saved `epoch`."""
    shutil.copytree(together[0] / "flow_teacher", workdir / "flow_teacher")
    saves, real = [], checkpoints.Checkpoints.save

    def save(self, at, *rest):
        real(self, at, *rest)
        saves.append(at)
        if at == epoch and saves.count(epoch) == place + 1:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", save)
        with pytest.raises(Stop):
            perform(ablation(checkpoint_every=1), workdir)


def assert_resumes(workdir, sizes, monkeypatch, together):
    """The same command trains groups of these sizes, and every run ends as if nothing had happened."""
    groups = groups_trained(monkeypatch)
    perform(ablation(checkpoint_every=1), workdir)
    assert [len(group) for group in groups] == sizes
    for path in sorted(workdir.glob("**/predictions_test.npz")):
        ours, theirs = read_arrays(path), read_arrays(together[0] / path.relative_to(workdir))
        for video in ours:
            np.testing.assert_array_equal(ours[video], theirs[video])
    for path in workdir.glob("**/metrics.jsonl"):
        assert [record["epoch"] for record in records(path.parent)] == [1, 2, 3]


@pytest.mark.parametrize("epoch, place", [(2, 0), (2, 1), (3, 5)])
def test_killed_between_two_checkpoints_of_one_epoch(epoch, place, tmp_path, monkeypatch, together):
    """The runs were saved after different epochs. They continue together from the last epoch in common."""
    monkeypatch.setattr(run_module, "maps_runs", lambda: True)
    stop_after_save(epoch, place, tmp_path, together)
    assert_resumes(tmp_path, [6], monkeypatch, together)


@pytest.mark.parametrize(
    "damaged, sizes",
    [
        pytest.param({"atomic": 3, "both/seed_1": 3}, [6], marks=pytest.mark.exhaustive),
        ({"atomic": 2, "both": 3}, [1, 2, 3]),  # these two have no sound epoch in common
    ],
)
def test_runs_with_damaged_checkpoints_continue_from_a_common_epoch(damaged, sizes, tmp_path, monkeypatch, together):
    monkeypatch.setattr(run_module, "maps_runs", lambda: True)
    stop_after_save(3, 5, tmp_path, together)
    for name, epoch in damaged.items():
        shutil.rmtree(tmp_path / name / "checkpoints" / str(epoch) / "state")
    assert_resumes(tmp_path, sizes, monkeypatch, together)


def test_added_seeds_do_not_train_finished_ones_again(tmp_path, monkeypatch, one_by_one):
    shutil.copytree(one_by_one[0], tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("seed_1"))
    config = ablation()
    groups = groups_trained(monkeypatch)
    config.seeds = 3
    perform(config, tmp_path)
    students = [(name, seed) for name in ("atomic", "both", "slower") for seed in (1, 2)]
    assert [run for group in groups for run in group] == [("flow_teacher", 1), ("flow_teacher", 2), *students]


def test_a_run_that_diverges_is_named_and_stops_no_other(tmp_path, one_by_one):
    sound, config = one_by_one[0], ablation(checkpoint_every=1)
    shutil.copytree(sound / "flow_teacher", tmp_path / "flow_teacher")
    config.runs.both.learning_rate = 1e30
    with pytest.raises(
        FloatingPointError, match="both, seed 0: training diverged in epoch 1, step .*; both, seed 1: training"
    ):
        perform(config, tmp_path)
    assert not (tmp_path / "both" / "results.json").exists()
    for name in ("atomic", "slower"):
        for folder in (name, f"{name}/seed_1"):
            ours, theirs = (read_arrays(at / folder / "predictions_test.npz") for at in (tmp_path, sound))
            for video in ours:
                np.testing.assert_array_equal(ours[video], theirs[video])
