"""A damaged checkpoint is never used: a run continues from the one before it, and ends as it would have."""

import itertools
import logging
import random
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from kd_jax import config as schema
from kd_jax.files import DamagedFileError, read_arrays, read_json, write_json
from kd_jax.training import run as run_module
from kd_jax.training.checkpoints import (
    Checkpoints,
    DamagedCheckpointError,
    check_checkpoint,
    load_run,
    read_checkpoint,
    saved_epochs,
)
from kd_jax.training.experiment import seeded_run
from kd_jax.training.plan import prepare
from kd_jax.training.run import train_runs

TREES = {"w": jnp.arange(300.0), "step": jnp.int32(7)}, {"epoch": jnp.int32(2), "h": jnp.ones((2, 3), jnp.bfloat16)}


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def flip(file):
    content, rng = bytearray(file.read_bytes()), random.Random(str(file.name))
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


DAMAGES = {"cut": cut, "emptied": empty, "flipped": flip, "deleted": Path.unlink}


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, after_epoch=0) as keeper:
        for epoch in (1, 2):
            keeper.save(epoch, *TREES)
    return folder


def assert_whole_or_refused(folder, file, damage):
    """Damages a file of the checkpoint of epoch 2 and repairs it; returns whether the checkpoint was refused."""
    content = file.read_bytes()
    DAMAGES[damage](file)
    try:
        chex.assert_trees_all_equal(read_checkpoint(folder, 2, *TREES), TREES)
        return False
    except DamagedCheckpointError as error:
        assert str(error).startswith(f"the checkpoint {folder}/checkpoints/2 is damaged (")
        return True
    finally:
        file.write_bytes(content)


def test_a_checkpoint_with_a_damaged_file_is_read_whole_or_refused(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "run"))
    cases = zip(files_in(folder / "checkpoints" / "2"), itertools.cycle(DAMAGES), strict=False)
    assert sum(assert_whole_or_refused(folder, file, damage) for file, damage in cases) >= 5


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_of_a_checkpoint(saved, damage, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "run"))
    refused = [assert_whole_or_refused(folder, file, damage) for file in files_in(folder / "checkpoints" / "2")]
    assert sum(refused) >= 5


def test_other_arrays_than_those_that_were_saved_are_refused(saved, tmp_path):
    """orbax reads all of these without complaint: the checksum covers paths, dtypes, shapes, values and the epoch."""
    folder = Path(shutil.copytree(saved, tmp_path / "run"))
    state, best = TREES
    with Checkpoints(folder, after_epoch=2) as keeper:
        keeper.save(3, {**state, "w": state["w"].at[299].add(1)}, best)
    for item in ("state", "best"):
        shutil.rmtree(folder / "checkpoints" / "2" / item)
        shutil.copytree(folder / "checkpoints" / "3" / item, folder / "checkpoints" / "2" / item)
    with pytest.raises(DamagedCheckpointError, match=r"2 is damaged \(.*the arrays of 'state' are not those"):
        read_checkpoint(folder, 2, *TREES)
    with pytest.raises(DamagedCheckpointError, match=r"2 is damaged \(.*the arrays of 'state' are not those"):
        check_checkpoint(folder, 2)
    shutil.copytree(folder / "checkpoints" / "3", folder / "checkpoints" / "4")
    with pytest.raises(DamagedCheckpointError, match=r"4 is damaged \(.*it is that of epoch 3"):
        read_checkpoint(folder, 4, *TREES)
    shutil.rmtree(folder / "checkpoints" / "4" / "checksums")  # a checkpoint of an older version
    chex.assert_trees_all_equal(read_checkpoint(folder, 4, *TREES)[1], best)


class Stop(Exception):
    pass


def small_config(**runs):
    config = schema.get_config()
    config.dataset.update({"name": "synthetic", "max_videos": 4, "validation_fraction": 0.3})
    config.model.update({"hidden": 8, "num_layers": 2})
    config.training.update({"epochs": 4, "length_buckets": 1, "checkpoint_every": 1, "learning_rate": 1e-2})
    config.runs = schema.make_runs(vanilla_rgb=schema.make_run("rgb"), **runs)
    return config


def train(workdir):
    config = small_config()
    source = prepare(config, workdir)
    run = seeded_run(config, epath.Path(workdir), "vanilla_rgb", 0, source)
    train_runs(config, [run], source)
    return run.directory


@pytest.fixture(scope="module")
def stopped_and_finished(tmp_path_factory):
    """A workdir whose run was stopped in its fourth epoch, with checkpoints of the second and third, and its end."""
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        real = run_module.Log.write

        def write(self, epoch, *rest):
            real(self, epoch, *rest)
            if epoch == 4:
                raise Stop

        patch.setattr(run_module.Log, "write", write)
        with pytest.raises(Stop):
            train(workdir)
    finished = shutil.copytree(workdir, tmp_path_factory.mktemp("finished") / "work")
    train(finished)
    return workdir, finished


def no_state(newest):
    shutil.rmtree(newest / "state")


def cut_all(newest):
    for file in files_in(newest):
        cut(file)


def no_state_and_others(newest):
    """Folders of another program, an older checkpoint with other metadata, and a leftover of a kill."""
    no_state(newest)
    for name in ("99", "100", "4.orbax-checkpoint-tmp"):
        (newest.parent / name).mkdir()
    (newest.parent / "2" / "_CHECKPOINT_METADATA").write_text("[1]")


@pytest.mark.parametrize("spoil, passed_over", [(cut_all, ["3"]), (no_state_and_others, ["100", "99", "3"])])
def test_a_run_continues_from_the_last_sound_checkpoint(stopped_and_finished, tmp_path, caplog, spoil, passed_over):
    workdir = Path(shutil.copytree(stopped_and_finished[0], tmp_path / "work"))
    spoil(workdir / "vanilla_rgb" / "checkpoints" / "3")
    with caplog.at_level(logging.WARNING):
        directory = train(workdir)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == len(passed_over)
    for warning, epoch in zip(warnings, passed_over, strict=True):
        assert warning.startswith(f"the checkpoint {directory}/checkpoints/{epoch} is damaged (")
        assert warning.endswith("); it is passed over")
    assert_same_end(directory, stopped_and_finished[1] / "vanilla_rgb")


def assert_same_end(directory, expected):
    assert saved_epochs(directory) == [3, 4]
    check_checkpoint(directory, 4)
    ours, theirs = (read_arrays(folder / "predictions_test.npz") for folder in (directory, expected))
    for video in theirs:
        np.testing.assert_array_equal(ours[video], theirs[video])
    chex.assert_trees_all_equal(load_run(directory).variables, load_run(expected).variables)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_continues_after_damage_of_any_file(stopped_and_finished, tmp_path, damage):
    stopped, finished = stopped_and_finished
    newest = stopped / "vanilla_rgb" / "checkpoints" / "3"
    for file in files_in(newest):
        workdir = Path(shutil.copytree(stopped, tmp_path / "work"))
        DAMAGES[damage](workdir / file.relative_to(stopped))
        assert_same_end(train(workdir), finished / "vanilla_rgb")
        shutil.rmtree(workdir)


def test_a_run_without_a_sound_checkpoint_says_what_to_do(stopped_and_finished, tmp_path):
    workdir = Path(shutil.copytree(stopped_and_finished[0], tmp_path / "work"))
    checkpoints = workdir / "vanilla_rgb" / "checkpoints"
    for epoch in (2, 3):
        no_state(checkpoints / str(epoch))
    with pytest.raises(DamagedFileError, match=f"all checkpoints of .*vanilla_rgb are damaged; delete {checkpoints}"):
        train(workdir)
    assert saved_epochs(workdir / "vanilla_rgb") == [2, 3]
    shutil.rmtree(checkpoints)
    checkpoints.write_text("")
    with pytest.raises(DamagedFileError, match=f"{checkpoints} is a file, .*; delete it"):
        train(workdir)
    checkpoints.unlink()
    assert_same_end(train(workdir), stopped_and_finished[1] / "vanilla_rgb")


def test_a_finished_run_is_read_from_the_other_checkpoint_only_if_it_has_the_same_best_epoch(
    stopped_and_finished, tmp_path, caplog
):
    folder = Path(shutil.copytree(stopped_and_finished[1] / "vanilla_rgb", tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints" / "4" / "best")
    best = read_json(folder / "results.json")["best_epoch"]
    assert best == 4
    with pytest.raises(
        DamagedFileError, match=r"the checkpoint of the run .* cannot be read .*4 is damaged .*copy all"
    ):
        load_run(folder)
    write_json(folder / "results.json", {**read_json(folder / "results.json"), "best_epoch": 3})
    with caplog.at_level(logging.WARNING):
        load_run(folder)
    assert "checkpoints/4 is damaged (" in caplog.text and "that of epoch 3 has the same best epoch" in caplog.text
    assert train(stopped_and_finished[1]).exists()  # a finished run needs no checkpoint


def test_a_finished_run_is_read_without_the_metadata_of_its_checkpoints(stopped_and_finished, tmp_path, caplog):
    folder = Path(shutil.copytree(stopped_and_finished[1] / "vanilla_rgb", tmp_path / "run"))
    whole = load_run(folder)
    for metadata in folder.glob("checkpoints/*/best/_METADATA"):
        metadata.unlink()
    jax.tree.map(np.testing.assert_array_equal, load_run(folder).variables, whole.variables)
    shutil.rmtree(folder / "checkpoints" / "4" / "best" / "d")
    with pytest.raises(DamagedFileError, match=r"cannot be read .*4 is damaged .*copy all"):
        load_run(folder)
