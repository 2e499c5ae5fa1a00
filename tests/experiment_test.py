"""An experiment refuses mistakes before training, orders its runs, makes a table and resumes after a kill."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from kd_jax import config as schema
from kd_jax.analysis.finished import open_experiment
from kd_jax.data import base, records, synthetic
from kd_jax.data.batches import make_examples
from kd_jax.data.source import choose_validation, open_source
from kd_jax.files import read_arrays, read_json, write_arrays, write_json
from kd_jax.report import write_report
from kd_jax.training import experiment, on_device, population
from kd_jax.training import run as run_module
from kd_jax.training.checkpoints import load_run
from kd_jax.training.experiment import seeded_run
from kd_jax.training.logs import Log, read_log
from kd_jax.training.plan import check_config, make_manifest, prepare, training_order
from kd_jax.training.run import train_runs
from kd_jax.training.scores import scoring_of, write_results
from kd_jax.training.table import for_terminal, markdown, tabulate
from kd_jax.training.teachers import Teacher, attach_teachers
from kd_jax.training.terms import TERMS

ROOT = Path(__file__).parents[1]


def tiny_config(**training):
    """Make a teacher, a vanilla and an augmented student on a few synthetic videos."""
    config = schema.get_config()
    config.dataset.name = "synthetic"
    config.dataset.max_videos = 4
    config.dataset.validation_fraction = 0.3
    config.model.hidden = 8
    config.model.num_layers = 2
    config.model.standardize = True
    config.training.standardize_limit = 32.0  # half of the channels of RGB
    config.training.update({"epochs": 3, "length_buckets": 1, "checkpoint_every": 3, "learning_rate": 1e-2, **training})
    weights = {"atomic": 0.1, "global_context": 1.0, "boundary": 0.01}
    config.runs = schema.make_runs(  # students first: `training_order` decides
        augmented_rgb=schema.make_run("rgb", teachers=("flow_teacher",), weights=weights),
        vanilla_rgb=schema.make_run("rgb"),
        flow_teacher=schema.make_run("flow"),
    )
    config.fusions.two_stream = ("flow_teacher", "vanilla_rgb")
    return config


def perform(config, workdir):
    return experiment.perform(config, workdir, prepare(config, workdir))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    config = tiny_config()
    return config, workdir, perform(config, workdir)


def test_teachers_train_first():
    assert training_order(tiny_config()) == ["vanilla_rgb", "flow_teacher", "augmented_rgb"]


WRONG_TURNS = {
    "teacher that no run has": (
        lambda c: c.runs.augmented_rgb.update(teachers=("flou",)),
        "names 'flou', but no run, fusion or entry of config.teachers has that name; there are",
    ),
    "circle of one": (lambda c: c.runs.flow_teacher.update(starts_from="flow_teacher"), "wait .* for themselves"),
    "circle": (lambda c: c.runs.flow_teacher.update(teachers=("augmented_rgb",)), "wait for each other"),
    "modality": (lambda c: c.runs.vanilla_rgb.update(modality="depth"), "no modality 'depth'; it has rgb, flow, pose"),
    "filter": (
        lambda c: c.runs.vanilla_rgb.update(filter="lstmm"),
        "runs.vanilla_rgb.filter='lstmm'; it must be one of ss_tcn, ",
    ),
    "negative weight": (lambda c: c.runs.augmented_rgb.update(weights={"atomic": -1.0}), "weights.atomic=-1.0"),
    "form": (
        lambda c: c.runs.augmented_rgb.options.boundary.update(form="nope"),
        r"runs.augmented_rgb: boundary: form must be 'curve' or 'vector', got 'nope'",
    ),
    "temperature": (
        lambda c: c.runs.augmented_rgb.options.atomic.update(temperature=0),
        "temperature must be .* got 0",
    ),
    "margin": (
        lambda c: c.runs.augmented_rgb.options.atomic.update(margin=math.nan),
        r"runs.augmented_rgb.options.atomic.margin=nan; it must be finite",
    ),
    "negative margin": (
        lambda c: c.runs.augmented_rgb.options.atomic.update(form="margin", margin=-1.0),
        "runs.augmented_rgb: atomic_margin: margin must be a finite number of at least 0, got -1.0",
    ),
    "width of a term": (
        lambda c: (
            c.runs.augmented_rgb.weights.update(holistic=1.0),
            c.runs.augmented_rgb.options.holistic.update(width=0),
        ),
        "runs.augmented_rgb: holistic: width must be at least 1, got 0",
    ),
    "option of a term without weight": (
        lambda c: c.runs.vanilla_rgb.options.holistic.update(width=3),
        "runs.vanilla_rgb.options.holistic has no effect, because the weight of holistic is 0",
    ),
    "option of another form": (
        lambda c: c.runs.augmented_rgb.options.atomic.update(form="margin", temperature=7.0),
        "runs.augmented_rgb.options.atomic: atomic of form 'margin' has no option 'temperature'",
    ),
    "optimizer": (lambda c: c.training.update(optimizer="adm"), "training.optimizer='adm'; it must be one of adam, "),
    "weight decay": (
        lambda c: c.training.update(weight_decay=0.1),
        "training: weight_decay=0.1 needs an optimizer that has it",
    ),
    "clip norm": (
        lambda c: c.training.update(clip_norm=-1.0),
        "training.clip_norm=-1.0; it must be finite and at least 0",
    ),
    "warm-up": (lambda c: c.training.update(warmup_epochs=3), "training: warmup_epochs=3 must be below epochs=3"),
    "task weight": (lambda c: c.runs.augmented_rgb.update(task_weight=math.inf), "task_weight=inf; it must be finite"),
    "width of a filter": (
        lambda c: c.runs.vanilla_rgb.update(filter="bilstm", hidden=7),
        "runs.vanilla_rgb: BiLSTM: hidden must be even",
    ),
    "width of a teacher": (
        lambda c: (
            c.runs.flow_teacher.update(hidden=6),
            c.runs.augmented_rgb.update(
                weights={**dict.fromkeys(c.runs.augmented_rgb.weights, 0.0), "learned_graph": 1.0}
            ),
        ),
        "runs.augmented_rgb: learned_graph: student and teacher must have the same number of features",
    ),
    "one run as text": (lambda c: c.fusions.update(another="flow_teacher"), "'flow_teacher' is a text; write"),
    "folder": (lambda c: c.teachers.update(given=5), "teachers.given=5: it must be a folder"),
    "seed": (lambda c: c.update(seed=-1), "seed=-1; it must be at least 0"),
    "validation seed": (lambda c: c.dataset.update(validation_seed=-1), "validation_seed=-1; it must be at least 0"),
    "validation groups without validation videos": (
        lambda c: c.dataset.update(validation_fraction=0.0, validation_groups="S"),
        "dataset.validation_groups has no effect, because dataset.validation_fraction is 0; leave it out",
    ),
    "validation seed without validation videos": (
        lambda c: c.dataset.update(validation_fraction=0.0, validation_seed=1),
        "dataset.validation_seed has no effect, because dataset.validation_fraction is 0; leave it out",
    ),
    "weights without teacher": (lambda c: c.runs.vanilla_rgb.update(weights={"atomic": 1.0}), "has no teachers"),
    "teacher without weights": (
        lambda c: c.runs.augmented_rgb.weights.update(dict.fromkeys(TERMS, 0.0)),
        "no term with a weight",
    ),
    "fusion": (
        lambda c: c.fusions.update(two_stream=("flow", "vanilla_rgb")),
        "fusions.two_stream names flow, but no run has that name",
    ),
    "baseline": (lambda c: c.update(baseline="vanilla"), "baseline='vanilla', but no run has that name"),
    "data set": (lambda c: c.dataset.update(name="tus"), "data set 'tus' is unknown; known data sets"),
    "no data_dir": (lambda c: c.dataset.update(name="tsu"), "dataset.data_dir is empty: build records with"),
    "unread data_dir": (
        lambda c: c.dataset.update(name="synthetic", data_dir="/x"),
        "dataset.data_dir=/x, but dataset.name='synthetic' reads no records; set the name",
    ),
    "missing data_dir": (
        lambda c: c.dataset.update(name="tsu", data_dir="/nowhere/tsu"),
        "/nowhere/tsu.*kd-jax build",
    ),
    "epochs": (lambda c: c.training.update(epochs=0), "training.epochs=0; it must be at least 1"),
    "dropout": (lambda c: c.model.update(dropout=1.0), "model.dropout=1.0"),
    "threshold": (lambda c: c.evaluation.update(threshold=2.0), "evaluation.threshold=2.0; it must be from 0 to 1"),
    "data": (
        lambda c: c.training.update(data="disk"),
        "training.data='disk'; it must be one of auto, resident, streamed",
    ),
    "dtype": (lambda c: c.model.update(dtype="float16"), "model.dtype='float16'; it must be one of float32, bfloat16"),
    "learning rate": (lambda c: c.training.update(learning_rate=0.0), "training.learning_rate=0.0"),
    "validation": (lambda c: c.dataset.update(validation_fraction=1.0), "validation_fraction=1.0"),
    "beyond float32": (lambda c: c.training.update(learning_rate=1e300), "it must be 0, or from 1e-37 to 1e.37"),
    "weight beyond float32": (
        lambda c: c.runs.augmented_rgb.weights.update(atomic=1e39),
        r"augmented_rgb.weights.atomic=1e\+39; it must be 0, or from",
    ),
    "option beyond float32": (
        lambda c: c.runs.augmented_rgb.options.atomic.update(temperature=1e300),
        "options.atomic.temperature=1e.300; it must be 0, or from",
    ),
    "option beyond int32": (
        lambda c: c.runs.augmented_rgb.options.atomic.update(num_negatives=10**10),
        "options.atomic.num_negatives=10000000000; it must be below 2147483648",
    ),
    "channels": (lambda c: c.model.update(hidden=10**9), "model.hidden=1000000000; it must be at most 1048576"),
    "layers": (lambda c: c.model.update(num_layers=70), "augmented_rgb: SSTCN: num_layers must be at most 24, got 70"),
    "seeds": (lambda c: c.update(seeds=10**9), "seeds=1000000000; it must be at most 10000"),
    "a seed beyond 32 bits": (lambda c: c.update(seed=2**32), "seed=4294967296; it must be below"),
    "endless epochs": (lambda c: c.training.update(epochs=10**12), "epochs=1000000000000; it must be below 2147483648"),
    "endless steps": (
        lambda c: c.training.update(epochs=2 * 10**9),
        "training: epochs=2000000000 are 4000000000 steps",
    ),
    "too many parameters": (
        lambda c: c.model.update(hidden=2**20),
        "runs.augmented_rgb: one run takes at least .* GiB of .* GiB of memory; lower its hidden or num_layers$",
    ),
    "batch beyond the memory": (
        lambda c: c.training.update(batch_size=10**9),
        r"a batch of 1000000000 videos of \d+ snippets takes at least .* GiB of .* GiB of memory; lower "
        r"training.batch_size \(there are 3 training videos\)",
    ),
    "run name": (lambda c: c.runs.update({"a/b": schema.make_run("rgb")}), "run name 'a/b' cannot be a folder name"),
}


@pytest.mark.parametrize("turn", WRONG_TURNS)
def test_wrong_turns_end_before_training(turn, tmp_path):
    change, message = WRONG_TURNS[turn]
    config = tiny_config()
    change(config)
    with pytest.raises((ValueError, OSError), match=message):
        prepare(config, tmp_path / "work")


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written .*choose another with --workdir"):
        prepare(tiny_config(), tmp_path / "file" / "work")


def test_a_run_killed_before_its_config_was_written_can_start_again(tmp_path):
    (tmp_path / "vanilla_rgb" / "seed_0").mkdir(parents=True)
    (tmp_path / "vanilla_rgb" / "seed_0" / ".config.json.123").touch()
    prepare(tiny_config(), tmp_path)


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_is_not_a_run_is_left_alone(resume, tmp_path):
    (tmp_path / "vanilla_rgb").mkdir()
    (tmp_path / "vanilla_rgb" / "mine.npy").write_text("features")
    with pytest.raises(ValueError, match="vanilla_rgb does not hold the run vanilla_rgb, so it is left alone"):
        prepare(tiny_config(), tmp_path, resume)
    assert (tmp_path / "vanilla_rgb" / "mine.npy").read_text() == "features"


def test_folders_contain_what_the_readme_lists(finished):
    _, workdir, results = finished
    for name in ("augmented_rgb", "vanilla_rgb", "flow_teacher"):
        files = {p.name for p in (workdir / name).iterdir()}
        assert {"config.json", "metrics.jsonl", "checkpoints", "results.json", "predictions_test.npz"} <= files
        assert any(f.startswith("events.out.tfevents") for f in files)
    assert read_json(workdir / "results.json") == results
    assert (workdir / "results.md").read_text() == markdown(results)
    lines = [json.loads(line) for line in (workdir / "augmented_rgb" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    wanted = {"loss", "task", "atomic", "global_context", "boundary", "learning_rate", "gradient_norm"}
    assert wanted | {"snippets_per_second", "validation/frame_map/present_classes"} <= lines[0].keys()


def test_table_rows_gains_and_fusion(finished):
    config, workdir, results = finished
    rows = {row["run"]: row for row in results["rows"]}
    assert list(rows) == ["augmented_rgb", "vanilla_rgb", "flow_teacher", "two_stream"]
    assert rows["vanilla_rgb"]["gain"] is None
    source = prepare(config, workdir)
    streams = [read_arrays(workdir / n / "predictions_test.npz") for n in ("flow_teacher", "vanilla_rgb")]
    fused = {video: (streams[0][video] + streams[1][video]) / 2 for video in streams[0]}
    from kd_jax.evaluation.scoring import Scoring, score_split

    again = score_split(fused, source.videos("test", []), source.info, Scoring(("frame_map",)))
    fused_score = again["frame_map/present_classes"]
    plain_score = read_json(workdir / "vanilla_rgb" / "results.json")["test"]["frame_map/present_classes"]
    assert rows["two_stream"]["scores"]["frame mAP"] == [float(f"{fused_score:.8g}")]  # results.json has 8 digits
    assert rows["two_stream"]["gain"] == [float(f"{fused_score - plain_score:.8g}")]


def test_finished_runs_are_skipped_and_other_settings_refused(finished):
    config, workdir, results = finished
    stamp = (workdir / "vanilla_rgb" / "results.json").stat().st_mtime_ns
    assert perform(config, workdir) == results
    assert (workdir / "vanilla_rgb" / "results.json").stat().st_mtime_ns == stamp
    changed = tiny_config(epochs=4)
    with pytest.raises(
        ValueError, match=r"other settings \(training.epochs: 3 there, 4 now\): choose another --workdir"
    ):
        prepare(changed, workdir)


def test_a_student_of_a_teacher_with_other_settings_is_refused(finished, tmp_path):
    _, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "flow_teacher")
    changed = tiny_config()
    changed.runs.flow_teacher.modality = "pose"
    with pytest.raises(ValueError, match=r'augmented_rgb .*teachers.flow_teacher.modality: "flow" there, "pose" now'):
        prepare(changed, tmp_path / "work")


def test_rebuilt_records_are_refused_but_moved_records_and_another_checkpoint_interval_are_not(tmp_path):
    info, splits = synthetic.tiny()
    records.write(tmp_path / "records", info, splits)

    def config(directory="records", **training):
        config = tiny_config(epochs=1, **training)
        config.dataset.update({"name": "custom", "data_dir": str(tmp_path / directory)})
        return config

    source = prepare(config(), tmp_path / "work")
    train_runs(config(), [seeded_run(config(), tmp_path / "work", "vanilla_rgb", 0, source)], source)
    shutil.move(tmp_path / "records", tmp_path / "moved")
    prepare(config("moved", checkpoint_every=7), tmp_path / "work")
    made = {"rgb": {"sampling": {"stride": 8}}}
    records.write(tmp_path / "moved", dataclasses.replace(info, extraction=made), splits, overwrite=True)
    source = prepare(config("moved"), tmp_path / "work")  # how features were made is not a setting
    assert make_manifest(config("moved"), "vanilla_rgb", 0, source)["extraction"] == made["rgb"]
    assert make_manifest(config("moved"), "flow_teacher", 0, source)["extraction"] is None
    written = tmp_path / "work" / "vanilla_rgb" / "config.json"
    later = ("extraction", "features_dtype", "first_snippet", "label_at")  # fields that older runs do not have
    old = {name: value for name, value in read_json(written).items() if name not in later}
    write_json(written, old)  # as in a run from before this field existed
    prepare(config("moved"), tmp_path / "work")
    without = {name: value for name, value in old["training"].items() if name != "standardize_limit"}
    write_json(written, old | {"training": without})  # it had another effect
    with pytest.raises(ValueError, match=r"training.standardize_limit: 1000000000.0 there, 32.0 now"):
        prepare(config("moved"), tmp_path / "work")
    prepare(config("moved", standardize_limit=1e9), tmp_path / "work")
    write_json(written, old)
    records.write(tmp_path / "moved", info, {**splits, "test": splits["test"][:1]}, overwrite=True)
    with pytest.raises(ValueError, match=r"was trained with other settings \(dataset.fingerprint: "):
        prepare(config("moved"), tmp_path / "work")


@pytest.mark.slow
def test_streamed_and_in_memory_experiments_are_equal_bit_for_bit(tmp_path, monkeypatch):
    info, splits = synthetic.tiny()
    records.write(tmp_path / "records", info, splits)
    monkeypatch.setattr(on_device, "SHARE", 0)  # 'auto' sends batches from the host's memory
    for data in ("auto", "streamed"):
        config = tiny_config(data=data, length_buckets=2, epochs=2)
        del config.runs.vanilla_rgb, config.fusions.two_stream  # compiled for two lengths, like a teacher
        config.baseline = ""
        population._compiled.cache_clear()
        config.dataset.update({"name": "custom", "data_dir": str(tmp_path / "records")})
        source = prepare(config, tmp_path / data)
        assert isinstance(source.videos("train", ["rgb"])[0].features["rgb"], base.OnDisk) == (data == "streamed")
        experiment.perform(config, tmp_path / data, source)
        assert population._compiled.cache_info().misses == 2 * 2  # once for each length and run
    for path in (tmp_path / "auto").rglob("*.npz"):
        streamed = read_arrays(tmp_path / "streamed" / path.relative_to(tmp_path / "auto"))
        for video, logits in read_arrays(path).items():
            np.testing.assert_array_equal(streamed[video], logits)
    results = [read_json(tmp_path / data / "results.json") for data in ("auto", "streamed")]
    for data, found in zip(("auto", "streamed"), results, strict=True):
        assert found.pop("time") and found["config"]["training"].pop("data") == data  # not results
    assert results[0] == results[1]


def without_actions(videos):
    return [dataclasses.replace(video, segments=np.zeros((0, 3))) for video in videos]


@pytest.mark.parametrize(
    ("fraction", "kept", "message"),
    [
        (0.3, 1, "none of the . validation videos has an action, .*dataset.validation_seed"),
        (0.3, 0, "none of the . training videos has an action, so nothing can be learned; build the records from "),
        (0.0, 0, "none of the . training videos has an action, so nothing can be learned; build the records from "),
    ],
)
def test_videos_without_any_action_are_refused(fraction, kept, message, tmp_path):
    info, splits = synthetic.tiny()
    config = tiny_config()
    held_out = choose_validation(splits["train"], fraction, config.dataset.validation_seed, "").ids
    videos = [v if kept and v.id not in held_out else without_actions([v])[0] for v in splits["train"]]
    records.write(tmp_path / "records", info, splits | {"train": videos})
    config.dataset.update({"name": "custom", "data_dir": str(tmp_path / "records"), "validation_fraction": fraction})
    with pytest.raises(ValueError, match=message):
        prepare(config, tmp_path / "work")


@pytest.mark.parametrize("annotated", [True, False], ids=["no test video", "no test action"])
def test_without_test_actions_runs_have_predictions_and_no_scores(annotated, tmp_path):
    info, splits = synthetic.tiny()
    test = [] if annotated else without_actions(splits["test"])
    records.write(tmp_path / "records", info, splits | {"test": test})
    config = tiny_config(epochs=1, checkpoint_every=1)
    del config.runs.augmented_rgb
    config.dataset.update({"name": "custom", "data_dir": str(tmp_path / "records")})
    results = perform(config, tmp_path / "work")
    assert {tuple(row["scores"]) for row in results["rows"]} == {("validation",)}
    assert [(row["gain"], row["test"]) for row in results["rows"]] == [(None, [])] * 3
    saved = read_arrays(tmp_path / "work" / "vanilla_rgb" / "predictions_test.npz")
    assert list(saved) == [video.id for video in test]
    why = "there are no test videos" if annotated else "none of the 2 test videos has an action"
    assert f"no test scores, because {why}; validation: frame mAP on 1 training video, dataset." in markdown(results)
    page = write_report([tmp_path / "work"]).read_text()
    (content,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert [found["scored"] for found in json.loads(content)["experiments"]] == [False]
    assert [len(group["timeline"]["videos"]) for group in json.loads(content)["data"]] == ([] if annotated else [2])


def test_records_and_groups_choose_the_validation_videos(tmp_path):
    info, splits = synthetic.tiny()
    names = ["S1_a", "S1_b", "S2_a", "S2_b"]
    train = [dataclasses.replace(v, id=name) for v, name in zip(splits["train"], names, strict=True)]
    records.write(tmp_path / "drawn", info, splits | {"train": train})
    chosen = [dataclasses.replace(v, validation=v.id == "S2_a") for v in train]
    records.write(tmp_path / "named", info, splits | {"train": chosen})
    config = tiny_config(epochs=1)
    del config.fusions.two_stream, config.runs.augmented_rgb, config.runs.flow_teacher
    config.dataset.update({"name": "custom", "data_dir": str(tmp_path / "named")})
    results = perform(config, tmp_path / "work")
    assert list(read_arrays(tmp_path / "work" / "vanilla_rgb" / "predictions_validation.npz")) == ["S2_a"]
    assert results["validation"] == {"videos": 1, "rule": "named by the records", "groups": []}
    assert "validation: frame mAP on 1 training video, named by the records." in markdown(results)
    config.dataset.data_dir = str(tmp_path / "drawn")
    with pytest.raises(ValueError, match="was trained with other settings .dataset.fingerprint"):
        prepare(config, tmp_path / "work")

    config.dataset.validation_groups = r"^(S\d+)"
    source = prepare(config, tmp_path / "groups")
    (group,) = source.validation.groups
    assert source.validation.ids == {f"{group}_a", f"{group}_b"}
    line = f"validation_groups={config.dataset.validation_groups!r}: 1 of 2 groups ({group})."
    assert line in markdown(tabulate(config, source, {"vanilla_rgb": scores_of([1], [2])}))
    assert make_manifest(config, "vanilla_rgb", 0, source)["dataset"]["validation_groups"] == r"^(S\d+)"


def test_validation_videos_without_a_positive_snippet_are_refused(tmp_path):
    info, splits = synthetic.tiny()
    between = [[0, 0.25, 0.75]]  # of a snippet
    splits["train"] = [
        dataclasses.replace(v, segments=np.array(between) * [1, *2 * [v.duration / v.num_snippets]])
        for v in splits["train"]
    ]
    records.write(tmp_path / "records", info, splits)
    config = tiny_config()
    config.dataset.update({"name": "custom", "data_dir": str(tmp_path / "records")})
    with pytest.raises(ValueError, match="validation videos has a snippet inside, .*dataset.validation_seed"):
        prepare(config, tmp_path / "work")


def test_cached_teacher_outputs_equal_recomputing_in_the_batch(finished):
    config, workdir, _ = finished
    source = prepare(config, workdir)
    teacher = load_run(workdir / "flow_teacher")
    examples = make_examples(source.videos("train", ["rgb"]), "rgb", len(source.info.classes))
    taught = attach_teachers(
        examples, [Teacher("flow_teacher", (workdir / "flow_teacher",))], source, batch_size=3, num_buckets=2
    )
    for video, example in zip(source.videos("train", ["flow"]), taught, strict=True):
        (outputs,), x = example.teachers, video.features["flow"][None]
        alone = teacher.model.apply(teacher.variables, x, np.ones(x.shape[:2], bool))
        np.testing.assert_allclose(outputs.features, alone.features[0], atol=2e-5, rtol=1e-4)
        np.testing.assert_allclose(outputs.logits, alone.logits[0], atol=2e-5, rtol=1e-4)


def test_load_run_says_what_is_missing(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run .*give a run of a workdir"):
        load_run(tmp_path)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text((finished[1] / "vanilla_rgb" / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="has not finished"):
        load_run(unfinished)


def scores_of(validation, test):
    """Make the results of two seeds of a run."""
    return [
        {"validation": {"frame_map/present_classes": v}, "test": {"frame_map/present_classes": t}}
        for v, t in zip(validation, test, strict=True)
    ]


def test_the_table_shows_the_chosen_run_its_weights_and_reported_scores():
    config = tiny_config()
    config.fusions = {}
    config.runs.small = schema.make_run("rgb", teachers=("flow_teacher",), weights={"hint": 0.1})
    config.runs.large = schema.make_run("rgb", teachers=("flow_teacher",), weights={"hint": 3000.0})
    config.runs.large.balance, config.runs.vanilla_rgb.starts_from = "gradient", "small"
    config.runs.augmented_rgb.update(baseline="flow_teacher", task_weight=0.5)
    config.choices.mars = ("small", "large")
    config.reported.mars, config.reported_for = "82.5", "PKU-MMD"
    config.evaluation.protocols = ("frame_map",)
    config.seeds = 2
    check_config(config)
    source = open_source(modalities=["rgb"], **config.dataset.to_dict())
    scores = {
        "augmented_rgb": scores_of([40, 42], [30, 32]),
        "vanilla_rgb": scores_of([40, 40], [20, 22]),
        "flow_teacher": scores_of([50, 50], [40, 40]),
        "small": scores_of([41, 41], [50, 50]),
        "large": scores_of([43, 41], [25, 26]),  # better in validation, though worse in the test
    }
    table = tabulate(config, source, scores)
    rows = {row["run"]: row for row in table["rows"]}
    assert list(rows) == ["augmented_rgb", "vanilla_rgb", "flow_teacher", "mars"]
    assert rows["mars"]["chosen"] == "large" and rows["mars"]["tried"] == {"small": 41, "large": 42}
    assert rows["mars"]["gain"] == [5, 4] and rows["mars"]["weights"] == {"hint": 3000.0}
    assert rows["augmented_rgb"]["gain"] == [-10, -8]
    assert rows["vanilla_rgb"]["gain"] is None and rows["flow_teacher"]["gain"] == [20, 18]
    assert rows["vanilla_rgb"]["gain_interval"] is None
    half = 12.706205 / 2  # t of one degree of freedom; the deviation is √2 / 2, of a mean of two 1 / 2
    np.testing.assert_allclose(rows["mars"]["gain_interval"], [4.5 - half, 4.5 + half], rtol=1e-6)
    text = markdown(table)
    line = next(line for line in text.splitlines() if line.startswith("| mars"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *(
            "mars",
            "rgb",
            "flow_teacher",
            "shares: hint 3000",
            "25.50 ± 0.71",
            "42.00 ± 1.41",
            "+4.50 [-1.85, +10.85]",
            "82.5",
        )
    ]
    assert "| task 0.5, atomic 0.1, boundary 0.01, global_context 1 |" in text
    assert "| starts from small " in text and "gain over its baseline" in text and "reported (PKU-MMD)" in text
    assert "Gains in frame mAP are means of differences seed by seed, with 95 % intervals (Student's t); `*`: " in text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.choices.update(best=("vanilla",)), "choices.best names vanilla, but no run has that name"),
        (
            lambda c: c.choices.update(vanilla_rgb=("flow_teacher",)),
            "choices.vanilla_rgb needs a name that no run and no fusion has",
        ),
        (lambda c: c.choices.update(best=()), "choices.best .*and at least one run"),
        (lambda c: c.runs.augmented_rgb.update(baseline="vanilla"), "runs.augmented_rgb.baseline='vanilla'"),
        (
            lambda c: c.runs.augmented_rgb.update(balance="norm"),
            "balance='norm'; it must be one of loss, gradient, c",
        ),
        (lambda c: c.runs.augmented_rgb.update(hidden=0), "runs.augmented_rgb.hidden=0; it must be at least 1"),
        (lambda c: c.teachers.update(flow_teacher="x"), "teachers.flow_teacher needs a name that no run"),
        (lambda c: c.runs.augmented_rgb.update(teachers=("flow_teacher",) * 2), "teachers names flow_teacher twice"),
        (lambda c: c.reported.update(augmented="1"), "reported.augmented is not a row"),
    ],
)
def test_mistakes_in_choices_balances_and_widths_are_refused(change, message):
    config = tiny_config()
    change(config)
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_a_choice_needs_validation_videos():
    config = tiny_config()
    config.dataset.validation_fraction = 0.0
    config.choices.best = ("vanilla_rgb",)
    with pytest.raises(ValueError, match="chooses by the validation videos; dataset.validation_fraction"):
        check_config(config)


class Stop(Exception):
    pass


def test_interrupted_between_checkpoints_resumes_bit_for_bit(finished, tmp_path, monkeypatch):
    config, workdir, _ = finished
    config = tiny_config(checkpoint_every=2)

    real_write = run_module.Log.write

    def write(self, epoch, *rest):
        real_write(self, epoch, *rest)
        if epoch == 3:
            raise Stop

    source = prepare(config, tmp_path)
    run = seeded_run(config, tmp_path, "vanilla_rgb", 0, source)
    monkeypatch.setattr(run_module.Log, "write", write)
    with pytest.raises(Stop):
        train_runs(config, [run], source)
    monkeypatch.undo()
    train_runs(config, [run], source)
    ours, theirs = (read_arrays(d / "vanilla_rgb" / "predictions_test.npz") for d in (tmp_path, workdir))
    assert ours.keys() == theirs.keys()
    for video in ours:
        np.testing.assert_array_equal(ours[video], theirs[video])
    records = [json.loads(line) for line in (tmp_path / "vanilla_rgb" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.exhaustive  # 30 s; CI kills an experiment in faults_test
def test_kill_and_restart_ends_with_the_same_scores(tmp_path):
    def command(workdir):
        overrides = ["--config.training.epochs=4", "--config.dataset.max_videos=4"]
        program = [sys.executable, "-m", "kd_jax.main", "--config=tests/teacher_and_student.py", "--noreport"]
        return [*program, f"--workdir={workdir}", *overrides]

    def finish(workdir):
        subprocess.run(command(workdir), cwd=ROOT, check=True, capture_output=True, text=True)
        return json.loads((workdir / "results.json").read_text())["rows"]

    killed = tmp_path / "killed"  # while the student trains; tests/buckets_test.py kills the teacher
    process = subprocess.Popen(command(killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, deadline = killed / "augmented_rgb" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.005)
    assert process.poll() is None, "the experiment ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert finish(killed) == finish(tmp_path / "whole")


@pytest.mark.slow
def test_several_seeds_give_mean_and_deviation(tmp_path):
    config = tiny_config()
    config.seeds, config.seed = 2, 5
    results = perform(config, tmp_path)
    scores = results["rows"][0]["scores"]["frame mAP"]
    assert results["seeds"] == [5, 6] and len(set(scores)) == 2
    assert (tmp_path / "vanilla_rgb" / "seed_6" / "results.json").exists()
    stamp = (tmp_path / "vanilla_rgb" / "results.json").stat().st_mtime_ns
    config.seeds = 1  # the first seed alone
    assert perform(config, tmp_path)["rows"][0]["scores"]["frame mAP"] == scores[:1]
    assert (tmp_path / "vanilla_rgb" / "results.json").stat().st_mtime_ns == stamp
    expected = f"{np.mean(scores):.2f} ± {abs(scores[0] - scores[1]) / 2**0.5:.2f}"
    assert expected in markdown(results)


def test_the_results_have_the_last_competence_and_the_row_that_of_each_seed(tmp_path):
    config = tiny_config()
    source = prepare(config, tmp_path)
    entries = [{"epoch": epoch, "step": epoch, "competence": epoch / 10} for epoch in (1, 2, 3)]
    for split in ("validation", "test"):
        videos = source.videos(split, ["rgb"])
        logits = {video.id: np.zeros((video.num_snippets, len(source.info.classes))) for video in videos}
        write_arrays(epath.Path(tmp_path) / f"predictions_{split}.npz", logits)
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    results = write_results(epath.Path(tmp_path), 1, source, scoring_of(config, "dense"))
    assert results["competence"] == 0.3
    plain = {name: value for name, value in results.items() if name != "competence"}
    scores = {"augmented_rgb": [results, results | {"competence": 0.5}], "vanilla_rgb": [plain, plain]}
    assert [row.get("competence") for row in tabulate(config, source, scores)["rows"]] == [[0.3, 0.5], None]


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    config = tiny_config()
    config.dataset.validation_fraction = 0.0
    source = prepare(config, tmp_path)
    (results,) = train_runs(config, [seeded_run(config, tmp_path, "vanilla_rgb", 0, source)], source)
    assert results["best_epoch"] == 3 and "validation" not in results


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = tiny_config(learning_rate=1e30)
    source = prepare(config, tmp_path)
    where = "vanilla_rgb, seed 0: training diverged in epoch 1, step [12] of 2 .*with the videos train_"
    with pytest.raises(
        FloatingPointError, match=f"{where}.*; there is no checkpoint yet; lower training.learning_rate"
    ):
        train_runs(config, [seeded_run(config, tmp_path, "vanilla_rgb", 0, source)], source)


def test_markdown_by_hand(monkeypatch):
    def row(run, modality, teachers, score, gain):
        scores = {"frame mAP": [score], "all": [score - 1]}
        start = {"starts_from": None, "baseline": "a", "weights": {}, "balance": "loss", "filter": "pdan"}
        return {"run": run, "modality": modality, "teachers": teachers, "scores": scores, "gain": gain, **start}

    results = {
        "dataset": "demo",
        "test_videos": 7,
        "test_actions": 9,
        "validation": {"videos": 0, "rule": "", "groups": []},
        "seeds": [0],
        "baseline": "a",
        "rows": [row("a", "rgb", [], 10.0, None), row("bb", "rgb", ["t"], 12.5, [2.5])],
    }
    table = markdown(results)
    assert table.splitlines()[0] == "demo: percent on the 7 test videos; no validation videos."
    assert table.splitlines()[2:] == [
        "| run | reads | learns from | frame mAP |   all | gain over a |",
        "| --- | ----- | ----------- | --------: | ----: | ----------: |",
        "| a   | rgb   | –           |     10.00 |  9.00 |           – |",
        "| bb  | rgb   | t           |     12.50 | 11.50 |       +2.50 |",
        "",
        "One seed cannot show whether a difference is real; add `--config.seeds=5`.",
    ]
    assert markdown(results, width=200) == table
    with_detections = markdown({**results, "detections": "classes from 0.1"})
    assert with_detections.startswith("demo: percent on the 7 test videos (detections: classes from 0.1); no ")
    assert "| run | frame mAP | gain over a |" in markdown(results, width=9).splitlines()  # these always remain
    monkeypatch.setenv("COLUMNS", "48")
    assert for_terminal(results) == table  # in a file
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert for_terminal(results).splitlines() == [
        "demo: percent on the 7 test videos; no",
        "validation videos.",
        "",
        "| run | learns from | frame mAP | gain over a |",
        "| --- | ----------- | --------: | ----------: |",
        "| a   | –           |     10.00 |           – |",
        "| bb  | t           |     12.50 |       +2.50 |",
        "",
        "Columns that did not fit are in results.md:",
        "reads, all.",
        "",
        "One seed cannot show whether a difference is",
        "real; add `--config.seeds=5`.",
    ]


def test_standardisation_is_fitted_on_training_videos(finished):
    config, workdir, _ = finished
    source = prepare(config, workdir)
    stacked = np.concatenate([e.features for e in make_examples(source.videos("train", ["rgb"]), "rgb", 12)]).astype(
        float
    )
    statistics = load_run(workdir / "vanilla_rgb").variables["standardization"]
    np.testing.assert_allclose(statistics["mean"], stacked.mean(axis=0), rtol=1e-4, atol=1e-5)
    scale = 2 * np.sqrt(np.mean(stacked.std(axis=0) ** 2))  # one for all channels, twice as many as the limit
    np.testing.assert_allclose(statistics["std"], np.full_like(statistics["std"], scale), rtol=1e-4)


def test_validation_videos_are_not_training_videos():
    source = open_source("synthetic", "", ["rgb"], validation_fraction=0.25, validation_seed=1)
    ids = {split: {v.id for v in source.videos(split, ["rgb"])} for split in ("train", "validation", "test")}
    assert ids["train"] and ids["validation"] and ids["test"]
    assert not ids["train"] & ids["validation"] and not ids["train"] & ids["test"]


@pytest.mark.slow
def test_runs_share_a_program_only_if_their_teachers_have_equal_widths(tmp_path):
    """A program computes every term of its runs for the teachers of each."""
    config = tiny_config(epochs=1)
    config.dataset.max_videos = 4
    config.runs.update(
        wide_teacher=schema.make_run("flow", hidden=12),
        wide=schema.make_run("rgb", teachers=("wide_teacher",), weights={"pairwise_similarity": 1.0}),
    )
    del config.runs.vanilla_rgb
    del config.fusions.two_stream
    config.baseline = ""
    config.runs.augmented_rgb.weights.hint = 1.0  # needs a teacher as wide as the student
    groups = experiment.groups(config, training_order(config))
    assert ["augmented_rgb"] in groups and ["wide"] in groups
    rows = perform(config, tmp_path)["rows"]
    assert {row["run"] for row in rows} == {"augmented_rgb", "flow_teacher", "wide_teacher", "wide"}


def test_a_field_that_is_newer_than_a_run_has_its_default(finished, tmp_path):
    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "work")
    path = tmp_path / "work" / "vanilla_rgb" / "config.json"
    manifest = read_json(path)
    del manifest["training"]["clip_norm"], manifest["model"]["dropout"]
    write_json(path, manifest)
    prepare(config, tmp_path / "work")
    config = config.copy_and_resolve_references()
    config.training.clip_norm = 1.0
    with pytest.raises(ValueError, match=r"other settings \(training.clip_norm: 0.0 there, 1.0 now"):
        prepare(config, tmp_path / "work")


@pytest.fixture
def copied(finished, tmp_path):
    config, workdir, results = finished
    return config, shutil.copytree(workdir, tmp_path / "work"), results


LOST = {"cut": lambda content: content[: len(content) // 2], "emptied": lambda content: b"", "deleted": lambda _: None}
LOST["flipped"] = lambda content: content[:200] + bytes([content[200] ^ 4]) + content[201:]


@pytest.mark.parametrize("lost", LOST)
def test_lost_predictions_and_results_are_written_again(lost, copied, caplog):
    config, workdir, results = copied
    files = [workdir / "augmented_rgb" / "predictions_test.npz", workdir / "vanilla_rgb" / "results.json"]
    whole, logs = [path.read_bytes() for path in files], [path.parent / "metrics.jsonl" for path in files]
    entries = [log.read_bytes() for log in logs]
    for path, content in zip(files, whole, strict=True):
        changed = LOST[lost](content)
        path.unlink() if changed is None else path.write_bytes(changed)
        if path == files[0]:
            with pytest.raises(ValueError, match=r"test\.npz is (damaged|missing).*; run its experiment again"):
                open_experiment(workdir).logits("augmented_rgb", 0)
    assert perform(config, workdir)["rows"] == results["rows"]
    assert [path.read_bytes() for path in files] == whole and [log.read_bytes() for log in logs] == entries
    how = "is missing" if lost == "deleted" else "is (damaged|not what the run wrote)"
    assert re.search(f"{files[0]} {how}.*; it is written again", caplog.text)
    assert (f"{files[1]} is damaged" in caplog.text) == (lost != "deleted")


@pytest.mark.parametrize("lost", LOST)
def test_a_lost_config_is_named_before_training(lost, copied):
    config, workdir, _ = copied
    path = workdir / "augmented_rgb" / "config.json"
    changed = LOST[lost](path.read_bytes())
    path.unlink() if changed is None else path.write_bytes(changed)
    message = r"config\.json is damaged \(.*restore it from a copy, or delete .*augmented_rgb to train this run anew"
    message = "augmented_rgb does not hold the run augmented_rgb" if changed is None else message
    with pytest.raises(ValueError, match=message):
        prepare(config, workdir)
    with pytest.raises((ValueError, FileNotFoundError), match=r"augmented_rgb.*run its experiment again"):
        open_experiment(workdir)


def test_a_lost_config_of_another_seed_is_named(copied):
    config, workdir, _ = copied
    config.seeds = 2
    shutil.copytree(workdir / "vanilla_rgb", workdir / "vanilla_rgb" / "seed_1")
    (workdir / "vanilla_rgb" / "seed_1" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"seed_1/config\.json is missing, which says how its results\.json and check"):
        prepare(config, workdir)


@pytest.mark.parametrize(
    "damage, lost",
    [
        (lambda lines: [*lines[:1], lines[1][:30]], 1),
        (lambda lines: lines[1:], 1),
        (lambda lines: None, 2),
        (lambda lines: [lines[0].replace('"loss": ', '"loss": Infinity, "x": '), "[1]", "\0\0", '{"epoch": "1"}'], 2),
    ],
    ids=["cut", "shortened", "deleted", "no numbers"],
)
def test_a_damaged_log_is_reported_and_training_continues(damage, lost, copied, caplog):
    _, workdir, _ = copied
    path = workdir / "augmented_rgb" / "metrics.jsonl"
    lines = damage(path.read_text().splitlines()[:2])
    path.write_text("\n".join(lines)) if lines else path.unlink()
    kept = [entry["epoch"] for entry in read_log(path)]
    assert len(kept) == 2 - lost == len(open_experiment(workdir).runs["augmented_rgb"][0].epochs)
    with Log(path.parent, after_epoch=2) as log:
        log.write(3, 6, {"loss": 1.0})
    assert f"metrics.jsonl: the entries of {lost} of 2 epochs are lost; training continues" in caplog.text
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [*kept, 3]
