"""The files of configs/: every smoke variant is prepared and makes a table; a dense and a sparse one are trained."""

import json
import os
import signal
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from kd_jax import config as schema
from kd_jax import files, main
from kd_jax.config import teaching_runs
from kd_jax.models import FILTERS
from kd_jax.training import checkpoints, experiment
from kd_jax.training.plan import check_config, make_manifest, make_program, prepare, training_order
from kd_jax.training.population import jitted_step
from kd_jax.training.scores import protocols_of, scoring_of
from kd_jax.training.state import create_train_state
from kd_jax.training.step import Settings
from kd_jax.training.table import columns, markdown, tabulate
from kd_jax.types import Batch, Outputs

FILES = sorted(path.stem for path in schema.FOLDER.glob("*.py"))
TRAINED = ("tsu", "pku_mmd")  # a dense head and a sparse one


def rows_of(config):
    """Return the names of the table's rows: a choice replaces its runs, and fusions follow the runs."""
    chosen_for = {run: name for name, runs in config.choices.items() for run in runs}
    return list(dict.fromkeys(chosen_for.get(name, name) for name in (*config.runs, *config.fusions)))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_smoke_variant_runs_from_start_to_table(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without a folder `data`, the synthetic set replaces the records
    config = schema.load(name, "smoke")
    results = experiment.perform(config, tmp_path / "work", prepare(config, tmp_path / "work"))
    assert [row["run"] for row in results["rows"]] == rows_of(config)
    assert all(0 <= score <= 100 for row in results["rows"] for score in row["scores"]["frame mAP"])


@pytest.mark.parametrize("name", FILES)
def test_smoke_variant_can_be_trained_and_tabulated(name, tmp_path, monkeypatch):
    """`prepare` traces every run, the runs form programs, and any scores of them make the table."""
    monkeypatch.chdir(tmp_path)
    config = schema.load(name, "smoke")
    source = prepare(config, tmp_path / "work")
    order = training_order(config)
    programs = experiment.groups(config, order)
    assert sorted(run for names in programs for run in names) == sorted(config.runs)
    for names in programs:
        assert all(order.index(teacher) < order.index(run) for run in names for teacher in teaching_runs(config, run))
        manifests = [make_manifest(config, run, config.seed, source) for run in names]
        program = make_program(config.training, manifests, num_videos=4, num_snippets=100)
        assert {chosen.name for chosen in program.terms} == {term for each in manifests for term in each["weights"]}
    places = columns(protocols_of(config))
    result = {
        split: {key: 50.0 for place, key in places.values() if place == split} for split in ("validation", "test")
    }
    table = tabulate(config, source, dict.fromkeys((*config.runs, *config.fusions), [result] * config.seeds))
    assert [row["run"] for row in table["rows"]] == rows_of(config)
    assert all(row["scores"]["frame mAP"] == [50.0] for row in table["rows"])
    _, lines, *_ = markdown(table).split("\n\n")
    assert [line.split("|")[1].strip() for line in lines.splitlines()[2:]] == rows_of(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_restored_checkpoint_continues_bit_for_bit(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = schema.load(name, "smoke")
    source = prepare(config, tmp_path / "work")
    distilled = next(run for run in config.runs if config.runs[run].teachers)
    manifest, rng = make_manifest(config, distilled, 0, source), np.random.default_rng(0)
    program = make_program(config.training, [manifest], num_videos=2, num_snippets=32)
    shape, size = (2, 16), manifest["input_size"]
    labels = (rng.random((*shape, len(source.info.classes))) < 0.3).astype(np.uint8)
    batch = Batch(rng.standard_normal((*shape, size), np.float32), labels, np.ones(shape, bool))
    hidden = rng.standard_normal((*shape, config.model.hidden), np.float32)
    teachers = (Outputs(hidden, np.zeros(labels.shape, np.float32)),)
    weights = {term: np.float32(weight) for term, weight in {"task": 1.0, **manifest["weights"]}.items()}
    settings = Settings(weights, np.float32(config.training.learning_rate), jax.random.key(1))
    step, optimizer = jitted_step(program), program.optimization.make()

    create = jax.jit(lambda key: create_train_state(program.model, optimizer, key, size))

    def fresh():
        return create(jax.random.key(0))

    def advance(state, steps):
        for _ in range(steps):
            state, _ = step(state, teachers, batch, settings)
        return state

    saved = advance(fresh(), 2)
    with checkpoints.Checkpoints(tmp_path / "run", after_epoch=0) as keeper:
        keeper.save(1, saved, checkpoints.new_best(saved.params, saved.constants))
    other = create(jax.random.key(9))
    best = checkpoints.new_best(other.params, other.constants)
    restored, _ = checkpoints.read_checkpoint(tmp_path / "run", 1, other, best)
    chex.assert_trees_all_equal(advance(restored, 1), advance(fresh(), 3))


@pytest.mark.parametrize("name", FILES)
def test_configs_hold_together_and_are_locked(name):
    config = schema.load(name)
    check_config(config)
    with pytest.raises(AttributeError, match="epoch"):
        config.training.epoch = 3


@pytest.mark.parametrize("name", FILES)
def test_header_says_how_to_run(name):
    assert f"configs/{name}.py" in schema.find_file(name).read_text()


@pytest.mark.parametrize("name", FILES)
def test_unknown_variant_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown config variant 'smoky': this file knows .*smoke"):
        schema.load(name, "smoky")


MINE = """
from kd_jax import config as schema

def get_config(variant=""):
    config = schema.get_config()
    config.dataset.name = "synthetic"
    config.training.epochs = 7
    learn = dict(weights=schema.WEIGHTS)
    config.runs = schema.make_runs(
        first=schema.make_run("flow"),
        second=schema.make_run("flow", teachers=("first",), **learn),
        plain=schema.make_run("rgb", filter="pdan", hidden=32, num_layers=4, learning_rate=1e-3),
        early_rgb=schema.make_run("rgb"),
        student=schema.make_run("rgb", teachers=("ensemble", "second", "elsewhere"), **learn),
        other=schema.make_run("rgb", teachers=("first",), **learn),
    )
    config.fusions.ensemble = ("first", "early_rgb")
    config.fusions.two_stream = ("first", "plain")
    config.teachers.elsewhere = "workdir/elsewhere"
    config.choices.best = ("student", "other")
    config.reported.best = "32.8"
    config.baseline = "plain"
    return schema.with_variant(config, variant)
"""
COMPARED = ("ablation", "compare_kd", "evidence", "filters", "sensitivity", "weights")


@pytest.mark.parametrize("name", COMPARED)
def test_an_experiment_takes_data_teachers_and_budget_of_any_file(name, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    config = schema.load(name, str(tmp_path / "mine.py"))
    check_config(config)
    assert config.training.epochs == 7 and config.teachers.to_dict() == {"elsewhere": "workdir/elsewhere"}
    prefixes = [f"{filter}_" for filter in FILTERS] if name == "filters" else [""]  # each filter has its own runs
    own = (prefixes[0] + "{}").format
    assert config.fusions.to_dict() == {f"{p}ensemble": (f"{p}first", f"{p}early_rgb") for p in prefixes}
    students = [run for run in config.runs.values() if run.teachers and run.modality == "rgb"]
    for run in students:
        assert (run.hidden, run.learning_rate) == (32, 1e-3)
        assert name == "filters" or (run.filter, run.num_layers) == ("pdan", 4)
    assert students[0].teachers == (own("ensemble"), own("second"), "elsewhere")
    for p in prefixes:
        assert {f"{p}first", f"{p}early_rgb"} < set(config.runs)
        assert not {"student", "other", f"{p}student", f"{p}other"} & set(config.runs)
        second = config.runs[f"{p}second"]
        assert second.teachers == (f"{p}first",) and second.weights.atomic == schema.WEIGHTS["atomic"]
        assert second.filter == (p.removesuffix("_") or "ss_tcn")
    assert "best" not in config.choices and "best" not in config.reported
    assert ("plain" in config.reported) == (name in ("ablation", "compare_kd"))  # names the vanilla run
    assert schema.load(name, f"{tmp_path / 'mine.py'},smoke").training.epochs == 2


@pytest.mark.parametrize("name", COMPARED)
def test_another_file_may_have_a_variant_of_its_own(name):
    config = schema.load(name, "utd_mhad:inertial,smoke")
    assert {run.modality for run in config.runs.values()} == {"pose", "inertial"} and config.training.epochs == 2
    assert schema.load(name, "utd_mhad:inertial:smoke") == config
    with pytest.raises(ValueError, match="unknown config variant 'upright': this file knows inertial, smoke, or none"):
        schema.load(name, "utd_mhad:upright")


@pytest.mark.parametrize(
    "name, taken",
    [
        ("ablation", "all"),
        ("compare_kd", "crd"),
        ("filters", "vanilla"),
        ("filters", "augmented"),
        ("sensitivity", "all"),
        ("weights", "all_pulls_1"),
    ],
)
def test_a_run_of_another_file_is_not_overwritten(name, taken, tmp_path):
    (tmp_path / "mine.py").write_text(MINE.replace("second=", f"{taken}=").replace('"second"', f'"{taken}"'))
    with pytest.raises(ValueError, match=f"would be named '.*{taken}'; rename that of the other file"):
        schema.load(name, str(tmp_path / "mine.py"))


def test_methods_that_compare_logits_are_left_out_where_a_teacher_has_none(tmp_path):
    (tmp_path / "features").mkdir()
    teachers = 'teachers=("ensemble", "second", "elsewhere")'
    given = MINE.replace(teachers, 'teachers=("elsewhere",)').replace("workdir/elsewhere", str(tmp_path / "features"))
    (tmp_path / "given.py").write_text(given)
    chosen = schema.load("compare_kd", str(tmp_path / "given.py")).choices
    assert set(chosen) == {"rkd", "similarity_preserving", "mars", "ours"}
    assert chosen.mars == ("mars_0p03", "mars_0p1", "mars_0p3", "mars_1", "mars_3", "mars_published")
    (tmp_path / "taught.py").write_text(MINE.replace(teachers, 'teachers=("first",)'))
    chosen = schema.load("compare_kd", str(tmp_path / "taught.py")).choices
    assert {"skd", "chen", "logit_distillation", "graph_distillation"} < set(chosen)


@pytest.mark.parametrize("name", COMPARED)
def test_an_experiment_on_the_data_of_another_file_says_what_it_cannot_use(name, tmp_path):
    with pytest.raises(
        ValueError, match="unknown config variant 'spere': .* smoke, and the data of .*PATH.py, .* sphere"
    ):
        schema.load(name, "spere")
    (tmp_path / "plain.py").write_text(MINE.replace('config.baseline = "plain"', 'config.baseline = ""'))
    with pytest.raises(ValueError, match="plain.py has no baseline"):
        schema.load(name, str(tmp_path / "plain.py"))
    (tmp_path / "taught.py").write_text(MINE.replace('"rgb", teachers', '"flow", teachers'))
    with pytest.raises(ValueError, match="taught.py has no run that reads rgb and has teachers"):
        schema.load(name, str(tmp_path / "taught.py"))


def test_every_field_of_the_defaults_is_commented():
    lines = Path(schema.__file__).read_text().splitlines()
    fields = [
        line
        for line in lines
        if line.strip().startswith(('"', "'")) and '": ' in line and not line.rstrip().endswith("{")
    ]
    assert len(fields) > 25
    names_explain_themselves = ('"dropout"', '"epochs"')
    assert [f for f in fields if "#" not in f and not f.strip().startswith(names_explain_themselves)] == []


@pytest.mark.slow
def test_overrides_on_the_command_line_reach_every_term_and_option(tmp_path):
    file = tmp_path / "mine.py"  # in any folder
    file.write_text("""
from kd_jax import config as schema

def get_config(variant=""):
    config = schema.get_config()
    config.dataset.name = "synthetic"
    run = schema.make_run("rgb", teachers=("teacher",), weights={"atomic": 1})
    config.runs = schema.make_runs(teacher=schema.make_run("flow"), student=run)
    config.baseline = ""
    return schema.with_variant(config, variant)
""")
    run = "--config.runs.student"
    overrides = [f"{run}.weights.atomic=0.5", f"{run}.weights.boundary=2", f"{run}.options.atomic.temperature=0.25"]
    overrides += [f"{run}.options.boundary.form=vector", "--config.training.epochs=1", "--config.dataset.max_videos=3"]
    overrides += ["--config.model.hidden=8", "--config.evaluation.protocols=('frame_map',)"]
    before = signal.getsignal(signal.SIGINT)
    try:
        main.main([f"--config={file}", f"--workdir={tmp_path / 'work'}", "--noreport", *overrides])
    finally:
        signal.signal(signal.SIGINT, before)  # which `main` may set
    trained = files.read_json(tmp_path / "work" / "student" / "config.json")
    assert trained["weights"] == {"atomic": 0.5, "boundary": 2.0}
    assert trained["options"] == {"boundary": {"form": "vector"}, "atomic": {"temperature": 0.25}}


@pytest.mark.parametrize(
    "changes, known",
    [
        ({"filtr": "ss_tcn"}, 'Did you mean "filter"'),
        ({"weights": {"atom": 1.0}}, 'Did you mean "atomic"'),
        ({"options": {"boundary": {"from": 1}}}, "form"),
    ],
)
def test_a_misspelt_choice_of_a_run_is_refused(changes, known):
    with pytest.raises(KeyError) as error:
        schema.make_run("rgb", **changes)
    assert known in error.value.args[0]


@pytest.mark.parametrize("name", sorted(path.stem for path in schema.FOLDER.glob("*.py")))
def test_a_config_is_the_same_after_json(name, tmp_path):
    config = schema.load(name)
    config.dataset.data_dir, config.teachers = (
        str(tmp_path),
        {"one": "given", "two": (str(tmp_path), "gs://bucket/run")},
    )
    content = schema.as_json(config)
    again = schema.from_json(json.loads(json.dumps(content)))
    assert content["teachers"] == {"one": os.path.abspath("given"), "two": [str(tmp_path), "gs://bucket/run"]}
    config.teachers = {name: tuple(of) if isinstance(of, list) else of for name, of in content["teachers"].items()}
    assert again.to_dict() == config.to_dict() and list(again.runs) == list(config.runs)


def test_detections_are_ranked_from_a_low_threshold_unless_the_config_chooses_one():
    config = schema.get_config()
    config.dataset.name = "synthetic"
    assert (scoring_of(config, "dense").proposals, scoring_of(config, "dense").threshold) == ("classes", 0.1)
    config.evaluation.threshold = 0.5
    assert scoring_of(config, "dense").threshold == 0.5
