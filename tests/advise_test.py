"""`kd-jax advise`: the experiment it makes, its budget, its recommendation, and a whole run."""

import shlex
import signal

import pytest

from kd_jax import advise, main
from kd_jax import config as schema
from kd_jax.training.experiment import groups
from kd_jax.training.plan import training_order


@pytest.fixture(autouse=True)
def restored_interrupt():
    """`main` may set what Ctrl-C does."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


OWN = {"atomic": 1.0, "global_context": 1 / 3, "boundary": 5 / 300}


def made(**fields):
    """Make a teacher, a plain and a distilled student, and the trial of them."""
    config = schema.set_runs(schema.get_config(), "flow", "rgb")
    config.dataset.name = "synthetic"
    config.runs.augmented_rgb.update(fields)
    return config, advise.make_trial(config, "mine")


def test_the_trial_has_teachers_the_plain_student_and_four_weightings():
    config, trial = made()
    assert list(trial.config.runs) == [
        *("flow_teacher", "vanilla_rgb", "augmented_rgb", "augmented_rgb_x0p1", "augmented_rgb_x3"),
        "augmented_rgb_soft_labels",
    ]
    assert trial.config.fusions.two_stream == ("flow_teacher", "vanilla_rgb")
    runs, terms = trial.config.runs, schema.PUBLISHED_WEIGHTS
    assert {term: runs.augmented_rgb.weights[term] for term in terms} == pytest.approx(OWN)
    assert {term: runs.augmented_rgb_x3.weights[term] for term in terms} == {
        "atomic": 3.0,
        "global_context": 1.0,
        "boundary": 0.05,
    }
    soft = runs.augmented_rgb_soft_labels
    assert (soft.task_weight, soft.weights.soft_labels, soft.weights.atomic) == (0.3, 0.7, 0.0)
    assert groups(trial.config, training_order(trial.config)) == [
        *(["flow_teacher"], ["vanilla_rgb"]),
        [name for name in runs if name.startswith("augmented_rgb")],  # one population on a GPU
    ]
    assert config.training.epochs == 140 and list(config.runs)[2] == "augmented_rgb"  # the user's is not changed


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {
            "balance": "gradient",
            "options": {"atomic": {"form": "margin", "margin": 0.5}},
            "filter": "pdan",
            "hidden": 8,
        },
        {"baseline": "vanilla_rgb", "task_weight": 0.5, "starts_from": "vanilla_rgb", "learning_rate": 1e-3},
    ],
)
def test_the_options_to_paste_give_the_user_the_run_that_was_tried(fields):
    config, trial = made(**fields)
    for name, options in trial.options.items():
        theirs = schema.from_json(schema.as_json(config))
        for option in shlex.split(shlex.join(options)):
            field, _, value = option.removeprefix("--config.").partition("=")
            schema.override(theirs, field, value)
        tried = {**trial.config.runs[name].to_dict(), "baseline": fields.get("baseline")}
        assert theirs.runs.augmented_rgb.to_dict() == tried, name
    assert trial.options["augmented_rgb"] == []


@pytest.mark.parametrize(
    ("seconds", "per_epoch", "epochs", "seeds", "expected"),
    [
        (1090, 10.0, 140, 1, (54, 2)),  # 109 epochs
        (1099, 1.0, 140, 1, (140, 5)),
        (900, 3.0, 140, 1, (140, 2)),
        (900, 2.0, 140, 1, (140, 3)),
        (1100, 1.0, 140, 8, (137, 8)),
        (30, 100.0, 140, 1, (1, 2)),
        (-30, 100.0, 140, 1, (1, 2)),
        (900, 0.0, 24, 1, (24, 5)),
    ],
)
def test_epochs_come_first_then_seeds(seconds, per_epoch, epochs, seeds, expected):
    assert advise.plan_budget(seconds, per_epoch, epochs, seeds) == expected


def test_shorter_training_shortens_the_warmup():
    config, _ = made()
    config.training.warmup_epochs = 20
    short = advise.shorten(config, 70, 3)
    assert (short.training.epochs, short.training.warmup_epochs, short.seeds) == (70, 10, 3)
    assert advise.shorten(config, 1, 1).training.warmup_epochs == 0


def results(plain, *students, epochs=24):
    """Results of the plain student and others: (name, validation scores, gain)."""
    rows = [{"run": "plain", "scores": {"validation": plain}, "gain": None}]
    rows += [{"run": name, "scores": {"validation": scores}, "gain": gain} for name, scores, gain in students]
    return {"baseline": "plain", "epochs": epochs, "seeds": list(range(len(plain))), "rows": rows}


COMMANDS = {"own": "kd-jax train --config=mine", "x3": "kd-jax train --config=mine --config.runs.own.weights.hint=3.0"}
OTHER = ("own", [29.0] * 3, [9.0, 9.0, 9.5])  # better on the test videos, which choose nothing


BEST = "x3 has the best validation score (+2.00 [+2.00, +2.00] over own); its gain over plain is"


@pytest.mark.parametrize(
    ("found", "paragraphs"),
    [
        (
            results([30.0] * 3, ("x3", [31.0] * 3, [6.0, 7.0, 6.5]), OTHER),
            [
                f"Distillation is worth it: {BEST} +6.50 [+5.26, +7.74] points on the test videos. "
                "The interval excludes 0.",
                f"Train it with:\n\n    {COMMANDS['x3']}",
            ],
        ),
        (
            results([30.0] * 3, ("x3", [31.0] * 3, [1.0, -1.0, 0.5]), OTHER, epochs=12),
            [
                f"Inconclusive: {BEST} +0.17 [-2.42, +2.75] points on the test videos. The interval contains 0.",
                "The runs have 12 of 24 epochs and 3 seeds; more epochs may change this: --minutes=40.",
                f"If you try it, these are the best weights so far:\n\n    {COMMANDS['x3']}",
            ],
        ),
        (
            results([30.0] * 3, ("x3", [31.0] * 3, [-6.0, -7.0, -6.5]), OTHER),
            [
                f"Distillation is not worth it: {BEST} -6.50 [-7.74, -5.26] points on the test videos. "
                "The interval excludes 0.",
            ],
        ),
        (
            results([31.0] * 5, ("x3", [30.0] * 5, [6.0] * 5), ("own", [31.0] * 5, [6.0] * 5)),
            [
                "Distillation is not worth it with these weights: none of the 2 distilled students is better than "
                "plain in validation.",
                "The runs have 24 of 24 epochs and 5 seeds; more seeds narrow the interval: --config.seeds=10.",
            ],
        ),
        (
            results([30.0, 30.0], ("x3", [31.0, 31.1], None), ("own", [29.0, 29.0], None)),
            [
                "Distillation is worth it: x3 has the best validation score (+2.05 [+1.41, +2.69] over own); its gain "
                "over plain is +1.05 [+0.41, +1.69] points in validation, which also chose it, so this is optimistic. "
                "The interval excludes 0.",
                f"Train it with:\n\n    {COMMANDS['x3']}",
            ],
        ),
    ],
    ids=["worth it", "inconclusive", "not worth it", "worse in validation", "no test scores"],
)
def test_the_recommendation(found, paragraphs):
    assert advise.recommend(found, COMMANDS, 24, 20.0) == paragraphs


def test_few_epochs_are_too_short_to_advise_against_distillation():
    found = results([31.0] * 2, ("x3", [30.0] * 2, [6.0] * 2), ("own", [31.0] * 2, [6.0] * 2)) | {"epochs": 5}
    assert advise.recommend(found, COMMANDS, 24, 20.0) == [
        "Too short to say: none of the 2 distilled students is better than plain in validation.",
        "The runs have 5 of 24 epochs and 2 seeds; more epochs may change this: --minutes=40.",
    ]


def test_a_trial_that_still_improves_is_too_short_to_advise_against_distillation():
    found = results([31.0] * 2, ("x3", [30.0] * 2, [6.0] * 2), ("own", [31.0] * 2, [6.0] * 2))
    for improving in found["rows"]:
        improving["best_epoch"] = [24, 23]
    assert advise.recommend(found, COMMANDS, 24, 20.0) == [
        "Too short to say: none of the 2 distilled students is better than plain in validation.",
        "The runs have 24 of 24 epochs and 2 seeds. Training may have ended too early: the best epoch of plain, x3 and "
        "own is among the last 2 of 24 epochs; try `--config.training.epochs=48`.",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.dataset.validation_fraction=0"], "demo has no validation videos, which choose weights; set "),
        (["--config.baseline="], "demo has no baseline; name its plain student in config.baseline"),
        (["--config.baseline=two"], "baseline='two', but no run has that name"),
        (["--config.baseline=flow_teacher"], "demo has no run that reads flow and has teachers; add a distilled"),
        (["--minutes=0"], "--minutes: 0 must be a finite number above 0"),
        (["--config.training.epoch=3"], "there is no field 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_mistakes_end_in_one_sentence(options, message, tmp_path):
    with pytest.raises(SystemExit) as ended:
        advise.main(["--config=demo", f"--workdir={tmp_path}", *options])
    assert str(ended.value.code).startswith("kd_jax.advise: ") and message in ended.value.code
    assert len(ended.value.code.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.exhaustive  # 35 s
@pytest.mark.usefixtures("as_users_run")
def test_advice_on_the_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(advise, "SEEDS", (2, 2))
    command = ["--config=demo:smoke", f"--workdir={tmp_path}", "--minutes=60"]
    advise.main(command)
    text = (tmp_path / "advice.md").read_text()
    shown = capsys.readouterr().out
    assert text in shown and shown.endswith(f"Saved in {tmp_path}/advice.md.\n")
    assert "| augmented_rgb_soft_labels |" in text and "mean ± standard deviation over 2 seeds" in text
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("predictions_*")}
    assert len(stamps) == 2 * 6 * (1 + 1 + 2)
    advise.main(command)  # continues
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("predictions_*")} == stamps
    if "kd-jax train" in text:
        pasted = shlex.split(text[text.index("    kd-jax train") :])
        given, overrides = main.read_options(main.parser(), pasted[2:])
        assert main.read_config(given.config, overrides).runs.augmented_rgb.teachers == ("flow_teacher",)
