"""A student learns from runs, ensembles, runs of another workdir and folders of features."""

import dataclasses
import shutil
import types
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from kd_jax import config as schema
from kd_jax.data import records, synthetic
from kd_jax.data.batches import make_examples
from kd_jax.data.source import open_source
from kd_jax.files import read_json, write_json
from kd_jax.training import checkpoints, experiment
from kd_jax.training import teachers as teachers_module
from kd_jax.training.checkpoints import load_run
from kd_jax.training.plan import prepare
from kd_jax.training.teachers import Teacher, attach_teachers, fingerprint

WEIGHTS = {"similarity_preserving": 1.0, "hint": 0.1}


def make_config(**runs):
    """Make an experiment of a flow run, an rgb run and `runs` on a few synthetic videos."""
    config = schema.get_config()
    config.dataset.name = "synthetic"
    config.dataset.max_videos = 4
    config.model.hidden, config.model.num_layers = 8, 2
    config.training.update({"epochs": 1, "length_buckets": 1, "learning_rate": 1e-2})
    config.runs = schema.make_runs(flow=schema.make_run("flow"), vanilla_rgb=schema.make_run("rgb"), **runs)
    return config


def student(*teachers, weights=WEIGHTS, **changes):
    return schema.make_run("rgb", teachers=teachers, weights=weights, **changes)


def perform(config, workdir):
    return experiment.perform(config, workdir, prepare(config, workdir))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teachers")
    perform(make_config(), workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """Copy the workdir of the two finished runs, so that only students train."""
    return Path(shutil.copytree(finished, tmp_path / "work"))


def source_of(workdir):
    return prepare(make_config(), workdir)


def write_features(folder, source, width=8):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for video in source.videos("train", []):
        np.save(folder / f"{video.id}.npy", rng.standard_normal((video.num_snippets, width), np.float32))
    return folder


def test_an_ensemble_is_the_mean_of_its_members(finished):
    source = source_of(finished)
    examples = make_examples(source.videos("train", ["rgb"]), "rgb", len(source.info.classes))
    folders = finished / "flow", finished / "vanilla_rgb"
    forward = {"batch_size": 2, "num_buckets": 1}
    teachers = [*(Teacher(folder.name, (folder,)) for folder in folders), Teacher("both", folders)]
    for example in attach_teachers(examples, teachers, source, **forward):
        one, other, both = example.teachers
        assert (one.logits != other.logits).any()
        np.testing.assert_allclose(both.features, (one.features + other.features) / 2, rtol=1e-6)
        np.testing.assert_allclose(both.logits, (one.logits + other.logits) / 2, rtol=1e-6)
        assert both.teaches.shape == (len(example.features), 1) and both.teaches.all()


def test_features_of_another_model_are_read_unchanged(finished, tmp_path):
    source = source_of(finished)
    folder = write_features(tmp_path / "features", source, width=5)
    examples = make_examples(source.videos("train", ["rgb"]), "rgb", len(source.info.classes))
    for example in attach_teachers(examples, [Teacher("given", (folder,))], source):
        (outputs,) = example.teachers
        np.testing.assert_array_equal(outputs.features, np.load(folder / f"{example.id}.npy"))
        assert outputs.logits.shape == (len(example.features), 0)


def test_a_teacher_is_ignored_in_snippets_in_which_its_input_is_0(finished, tmp_path, caplog):
    """A run, a folder of features, and an ensemble of two folders, which teaches where one of them does."""
    source = source_of(finished)
    videos = []
    for i, video in enumerate(source.videos("train", ["rgb", "flow"])):
        flow = np.array(video.features["flow"])
        flow[i : i + 2] = 0
        videos.append(dataclasses.replace(video, features={**video.features, "flow": flow}))
    source = types.SimpleNamespace(videos=lambda split, modalities: videos, info=source.info)
    first, second = (write_features(tmp_path / name, source) for name in ("first", "second"))
    for folder, blank in ((first, slice(0, 3)), (second, slice(2, 5))):
        for path in folder.iterdir():
            features = np.load(path)
            features[blank] = 0
            np.save(path, features)
    given = {"flow": (finished / "flow",), "first": (first,), "both": (first, second)}
    teachers = [Teacher(name, folders) for name, folders in given.items()]
    examples = make_examples(videos, "rgb", len(source.info.classes))
    with caplog.at_level("INFO"):
        attached = attach_teachers(examples, teachers, source, batch_size=2, num_buckets=1)
    for i, (bare, example) in enumerate(zip(examples, attached, strict=True)):
        found = [np.flatnonzero(~outputs.teaches[:, 0]).tolist() for outputs in example.teachers]
        assert found == [[i, i + 1], [0, 1, 2], [2]]
        (alone,), (other,) = (attach_teachers([bare], [Teacher("", (f,))], source)[0].teachers for f in (first, second))
        mean = [*(other.features[:2]), (alone.features[2] + other.features[2]) / 2, *(alone.features[3:5])]
        np.testing.assert_allclose(example.teachers[2].features[:5], mean, rtol=1e-6)
    share = 100 * 2 * len(videos) / sum(len(example.features) for example in examples)
    assert f"teacher flow: its input is 0 in {share:.3g} % of the snippets, where it is ignored" in caplog.text


@pytest.mark.slow
def test_students_of_every_kind_of_teacher_train(workdir, tmp_path):
    """Teachers are two runs, an ensemble, a run of another workdir and features of another width."""
    config = make_config(
        of_both=student("flow", "vanilla_rgb"),
        of_ensemble=student("ensemble"),
        of_folder=student("features", weights={"similarity_preserving": 1.0}, filter="tgm", hidden=6, num_layers=1),
        of_elsewhere=student("elsewhere", filter="pdan"),
        of_several=student("several"),
    )
    config.fusions.ensemble = ("flow", "vanilla_rgb")
    config.teachers.features = str(write_features(tmp_path / "features", source_of(workdir), width=5))
    config.teachers.elsewhere = str(shutil.copytree(workdir / "flow", tmp_path / "elsewhere"))
    config.teachers.several = (workdir / "flow", str(shutil.copytree(workdir / "vanilla_rgb", tmp_path / "other")))
    results = perform(config, workdir)
    own = [load_run(workdir / name).variables["params"] for name in ("of_several", "of_ensemble")]
    chex.assert_trees_all_equal(*own)  # both learn from the same two runs
    kept = load_run(workdir / "of_several").config["teachers"]["several"]["members"]
    assert [member["folder"] for member in kept] == [str(workdir / "flow"), str(tmp_path / "other")]
    assert [row["run"] for row in results["rows"]] == [*config.runs, "ensemble"]
    run = load_run(workdir / "of_folder")
    assert (run.model.filter, run.model.hidden, run.model.num_layers) == ("tgm", 6, 1)
    folder = config.teachers.features
    assert run.config["teachers"] == {"features": {"folder": folder, "fingerprint": fingerprint(epath.Path(folder))}}
    assert jax.tree.leaves(run.variables["params"]["head"])[1].shape[0] == 6
    assert set(load_run(workdir / "of_ensemble").config["teachers"]["ensemble"]) == {"flow", "vanilla_rgb"}


@pytest.mark.slow
def test_features_that_change_after_training_on_records_are_refused(tmp_path):
    info, splits = synthetic.tiny()
    records.write(tmp_path / "records", info, splits)
    config = make_config(new=student("features", weights={"similarity_preserving": 1.0}))
    config.dataset.update({"name": "custom", "data_dir": str(tmp_path / "records"), "validation_fraction": 0.3})
    config.teachers.features = str(tmp_path / "features")
    source = open_source(modalities=["rgb"], **config.dataset.to_dict())
    (tmp_path / "features").mkdir()
    for video in source.videos("train", ["rgb"]):
        np.save(tmp_path / "features" / f"{video.id}.npy", np.full((video.num_snippets, 5), 1e5, np.float32))
    perform(config, tmp_path / "work")
    config.training.data = "streamed"
    prepare(config, tmp_path / "work")
    np.save(tmp_path / "features" / f"{video.id}.npy", np.ones((video.num_snippets, 5), np.float32))
    with pytest.raises(ValueError, match=r"new was trained with other settings \(teachers\.features\.fingerprint"):
        prepare(config, tmp_path / "work")


@pytest.mark.slow
def test_a_run_of_another_workdir_that_was_trained_again_is_refused(workdir, tmp_path):
    """A run that was only scored again, or trained to the same parameters, is not refused."""
    config, elsewhere = make_config(new=student("given")), tmp_path / "elsewhere"
    config.teachers.given = str(shutil.copytree(workdir / "flow", elsewhere / "flow"))
    perform(config, workdir)
    given = make_config()
    del given.runs.vanilla_rgb
    given.baseline = ""
    given.evaluation.protocols = ("frame_map", "event_map")
    perform(given, elsewhere)
    prepare(config, workdir)
    experiment.perform(given, elsewhere, prepare(given, elsewhere, False), resume=False)
    prepare(config, workdir)
    given.training.learning_rate = 2e-2
    experiment.perform(given, elsewhere, prepare(given, elsewhere, False), resume=False)
    with pytest.raises(ValueError, match=r"new was trained with other settings \(teachers\.given\.fingerprint"):
        prepare(config, workdir)


def test_a_folder_of_features_with_the_config_of_another_model_is_not_a_run(workdir, tmp_path):
    config = make_config(new=student("features"))
    folder = write_features(tmp_path / "features", source_of(workdir))
    config.teachers.features = str(folder)
    write_json(folder / "config.json", {"model_type": "another"})
    prepare(config, workdir)
    (folder / "config.json").write_text('{"model_type":')
    with pytest.raises(ValueError, match=r"teachers\.features: .*config\.json is damaged .*copy all"):
        prepare(config, workdir)


def no_video(folder, source):
    next(folder.iterdir()).unlink()


def too_short(folder, source):
    path = next(folder.iterdir())
    np.save(path, np.load(path)[1:])


def another_width(folder, source):
    path = next(folder.iterdir())
    np.save(path, np.load(path)[:, 1:])


def two_of_one(folder, source):
    path = next(folder.iterdir())
    np.savez(path.with_suffix(".npz"), np.load(path))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (two_of_one, "two feature files .*npy and .*npz"),
        (no_video, "missing feature file"),
        (too_short, "the records have"),
        (another_width, "feature dimension .* all files must have one"),
        (lambda folder, source: shutil.rmtree(folder), "neither a run .* nor a folder"),
    ],
)
def test_a_folder_of_features_is_checked_before_training(workdir, tmp_path, spoil, message):
    config = make_config(new=student("features"))
    source = source_of(workdir)
    folder = write_features(tmp_path / "features", source)
    config.teachers.features = str(folder)
    spoil(folder, source)
    with pytest.raises(ValueError, match=rf"(?s)teachers\.features: .*{message}"):
        prepare(config, workdir)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"filter": "mine"}, r".*elsewhere.config\.json: the filter 'mine' is unknown .*; add its class to FILTERS"),
        (
            {"classes": [f"class_{i}" for i in range(12)]},
            r"the run .*knows 12 classes \(dense\), which are not the 12 of these records \(dense\); name a run",
        ),
        ({"input_size": 7}, "the run .*reads 'flow' of 7 features; the records have"),
    ],
)
def test_a_run_of_other_records_is_refused(workdir, tmp_path, changes, message):
    folder = shutil.copytree(workdir / "flow", tmp_path / "elsewhere")
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **changes})
    config = make_config(new=student("elsewhere"))
    config.teachers.elsewhere = str(folder)
    with pytest.raises(ValueError, match=rf"teachers\.elsewhere: {message}"):
        prepare(config, workdir)
    write_json(folder / "config.json", read_json(workdir / "flow" / "config.json"))
    for file in (path for path in (folder / "checkpoints").rglob("*") if path.is_file()):
        file.write_bytes(file.read_bytes()[:50])  # an incomplete copy
    with pytest.raises(
        ValueError, match=r"teachers\.elsewhere: the checkpoint of the run .* cannot be read .*copy all"
    ):
        prepare(config, workdir)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match=r"teachers\.elsewhere: .* cannot be read \(there is none\); copy all"):
        prepare(config, workdir)
    (folder / "results.json").write_text('{"best_epoch": 1, "te')
    with pytest.raises(ValueError, match=r"teachers\.elsewhere: .*results\.json is damaged .*copy all"):
        prepare(config, workdir)
    (folder / "results.json").unlink()
    with pytest.raises(ValueError, match="has not finished"):
        prepare(config, workdir)


def test_terms_that_do_not_fit_the_teacher_are_refused_before_training(workdir, tmp_path):
    config = make_config(new=student("features", weights={"logit_distillation": 1.0}))
    config.teachers.features = str(write_features(tmp_path / "features", source_of(workdir), width=5))
    with pytest.raises(
        ValueError, match="runs.new: logit_distillation compares logits, but the teacher 'features' is a folder"
    ):
        prepare(config, workdir)
    config.runs.new = student("features")
    with pytest.raises(
        ValueError, match=r"runs\.new: hint: .* the same number of features; got student \(1, 4, 8\), teacher"
    ):
        prepare(config, workdir)
    config.runs.new = student("nobody")
    with pytest.raises(
        ValueError, match="names 'nobody', but no run, fusion or entry of config.teachers has that name"
    ):
        prepare(config, workdir)
    config.runs.new = student("both")
    config.teachers.both = (workdir / "flow", config.teachers.features)
    with pytest.raises(
        ValueError, match=r"teachers\.both: features and logits of several folders must have equal widths"
    ):
        prepare(config, workdir)
    config.teachers.both = (workdir / "flow", 1)
    with pytest.raises(ValueError, match=r"teachers\.both=.*it must be a folder, or several in a tuple"):
        prepare(config, workdir)
    del config.teachers.both
    config.runs.new = student("ensemble")
    config.runs.wide = schema.make_run("rgb", hidden=16)
    config.fusions.ensemble = ("flow", "wide")
    with pytest.raises(ValueError, match="differ in `hidden`"):
        prepare(config, workdir)


def test_a_given_run_with_parameters_that_are_not_finite_is_refused_before_training(workdir, tmp_path):
    folder = workdir / "flow"
    variables = load_run(folder).variables
    variables["params"]["head"]["bias"][0] = np.nan
    best = {**checkpoints.new_best(variables.pop("params"), variables), "epoch": jnp.int32(1)}
    with checkpoints.Checkpoints(folder, after_epoch=8) as keeper:
        keeper.save(9, {"step": jnp.zeros(())}, best)
    config = make_config(student=student("given"))
    config.teachers.given = str(folder)
    with pytest.raises(ValueError, match=r"teachers.given: .*flow has values that are not finite in .*head.*bias"):
        prepare(config, tmp_path / "new")


@pytest.mark.parametrize("value, limit", [(1e300, "but float32 ends at"), (3e38, "whose squares float32 cannot hold")])
def test_teacher_features_beyond_float32_are_refused(value, limit, finished, tmp_path):
    source = source_of(finished)
    folder = write_features(tmp_path / "features", source)
    (video, *_) = source.videos("train", [])
    np.save(folder / f"{video.id}.npy", np.full((video.num_snippets, 8), value))
    config = make_config(student=student("given"))
    config.teachers.given = str(folder)
    with pytest.raises(ValueError, match=f"{video.id}.npy holds values up to .e.3.*, in snippet 0, {limit}"):
        prepare(config, tmp_path / "new")


def test_outputs_of_a_teacher_that_are_not_finite_name_the_video(finished, monkeypatch):
    source = source_of(finished)
    examples = make_examples(source.videos("train", ["rgb"]), "rgb", len(source.info.classes))
    damaged = np.array(examples[1].features)  # a copy, because synthetic videos are kept for other tests
    damaged[2] = np.inf
    examples[1] = dataclasses.replace(examples[1], features=damaged)
    monkeypatch.setattr(teachers_module, "make_examples", lambda *_: examples)
    teacher = Teacher("flow", (finished / "vanilla_rgb",))
    with pytest.raises(FloatingPointError, match=f"teacher .*vanilla_rgb for video '{examples[1].id}' are not finite"):
        attach_teachers(examples, [teacher], source, batch_size=2, num_buckets=1)
