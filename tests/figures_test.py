"""All figures of experiments in memory: files, sentences, what cannot be made, and mistakes."""

import csv
import dataclasses
import io
import os

import numpy as np
import pytest
from etils import epath

from kd_jax.analysis import style
from kd_jax.analysis.figures import FIGURES, make_figures
from kd_jax.analysis.finished import FinishedExperiment, FinishedRun
from kd_jax.analysis.study import Roles, Study, Unavailable, find_roles
from kd_jax.data import synthetic
from kd_jax.data.source import Source, Validation
from kd_jax.inference.predict import fuse
from kd_jax.lock import held
from kd_jax.segments import labels_from_segments
from kd_jax.types import Outputs

WIDTH = 6
LEVELS = {"atomic": 1.0, "global_context": 0.3, "boundary": 0.02}


def row(name, modality="rgb", gain=None, validation=30.0, **fields):
    defaults = {"members": [], "teachers": [], "weights": {}, "balance": "loss", "baseline": "plain", "gain": gain}
    scores = {"frame mAP": [40.0], "validation": [validation]}
    return {"run": name, "modality": modality, "scores": scores, **defaults, **fields}


def distilled(name, weights, **fields):
    return row(name, teachers=["flow"], weights=weights, gain=[1.0], **fields)


ROWS = [
    row("flow", "flow", gain=[20.0]),
    row("plain"),
    distilled("atomic", {"atomic": 1.0}),
    distilled("light", LEVELS, validation=31.0),
    distilled("heavy", {"atomic": 300.0, "global_context": 100.0, "boundary": 5.0}, validation=12.0),
    row("both", "flow + rgb", members=["flow", "plain"], gain=[25.0]),
]


@dataclasses.dataclass(frozen=True)
class InMemory(FinishedExperiment):
    """An experiment whose outputs are made from the labels and noise."""

    made: dict

    def outputs(self, run, split="test"):
        return self.made[run.name, run.seed]

    def logits(self, name, index, split="test"):
        members = self.row(name)["members"] or [name]
        seed = self.seeds[index]
        return fuse([{v: out.logits for v, out in self.made[member, seed].items()} for member in members])


def experiment(rows=ROWS, head="dense", seeds=(0, 1), protocols=("frame_map", "event_map_strict"), widths=None):
    info, splits = synthetic.make(num_train=1, num_test=3, length=(60, 90))
    info = dataclasses.replace(info, head=head, classes=(*info.classes, "never"))
    videos, num_classes = splits["test"], len(info.classes)
    rng = np.random.default_rng(0)
    scoring = {"protocols": list(protocols), "proposals": "", "threshold": None, "convention": "centre"}
    made, runs = {}, {}
    rows = [{**entry, "gain": entry["gain"] and entry["gain"] * len(seeds)} for entry in rows]
    for entry in rows:
        if entry["members"]:
            continue
        name, width = entry["run"], (widths or {}).get(entry["run"], WIDTH)
        directions, noise = rng.normal(size=(num_classes, width)), 1.0 if entry["modality"] == "flow" else 3.0
        for seed in seeds:
            outputs = {}
            for video in videos:
                labels = labels_from_segments(video.segments, video.duration, video.num_snippets, num_classes)
                features = labels @ directions + noise * rng.normal(size=(len(labels), width))
                logits = 4.0 * labels - 2 + noise * rng.normal(size=labels.shape)
                background = 2 - 4 * labels.any(axis=1, keepdims=True) + noise * rng.normal(size=(len(labels), 1))
                logits = np.concatenate([logits, background], axis=1) if head == "sparse" else logits
                outputs[video.id] = Outputs(features.astype(np.float32), logits.astype(np.float32))
            made[name, seed] = outputs
        config = {"options": entry.pop("options", {}), "filter": "ss_tcn", "model": {}}
        epochs = [
            {"epoch": e, "loss": 3.0 / e, "task": 2.0 / e, "atomic": 1.0 / e, "gradient/task": 0.1}
            | {"gradient/atomic": 0.2, "validation/frame_map/present_classes": 10.0 * e}
            for e in (1, 2, 3)
        ]
        results = {"best_epoch": 3, "scoring": scoring}
        runs[name] = [FinishedRun(name, seed, epath.Path(name), config, results, epochs) for seed in seeds]
    results = {"seeds": list(seeds), "baseline": "plain", "gain_of": "frame mAP", "rows": rows, "test_videos": 3}
    source = Source(info, "", lambda split, modalities: splits[split], Validation(frozenset(), ""), {})
    return InMemory(epath.Path("memory"), results, runs, source, made)


def test_roles_by_hand():
    roles = find_roles({"baseline": "plain", "rows": ROWS})
    assert roles == Roles("plain", "light", ("flow",), "both", ("light", "atomic", "heavy"))
    assert [roles.of(name) for name in ("flow", "plain", "light", "both", "heavy")] == [
        *("teacher", "vanilla", "augmented", "two_stream", "other")
    ]
    assert roles.compared() == ["flow", "plain", "light"]
    assert roles.compared(all_distilled=True) == ["flow", "plain", "light", "atomic", "heavy"]


def test_roles_where_some_are_not_taken():
    assert find_roles({"baseline": "", "rows": ROWS[:2]}).vanilla == "plain"  # that of the first gain
    assert find_roles({"baseline": "", "rows": [row("a")]}) == Roles()
    assert find_roles({"baseline": "plain", "rows": ROWS[1:2]}) == Roles("plain")
    outside = find_roles({"baseline": "plain", "rows": [ROWS[1], ROWS[2]]})  # the teacher is not a row
    assert outside == Roles("plain", "atomic", (), "", ("atomic",))
    other_baseline, other_modality = ({**ROWS[2], key: "other"} for key in ("baseline", "modality"))
    for entry in (other_baseline, other_modality):
        assert find_roles({"baseline": "plain", "rows": [ROWS[1], entry]}).distilled == ()


def test_the_augmented_run_is_not_chosen_by_test_scores():
    rows = [dict(entry, scores={**entry["scores"], "frame mAP": [99.0]}) for entry in ROWS if entry["run"] == "heavy"]
    assert find_roles({"baseline": "plain", "rows": [*ROWS[:4], *rows]}).augmented == "light"
    without = [dict(entry, scores={"frame mAP": [1.0]}) for entry in ROWS]  # no validation videos: the first
    assert find_roles({"baseline": "plain", "rows": without}).augmented == "light"


def test_outputs_are_computed_once_and_those_of_a_fusion_are_means():
    study, calls = Study(experiment()), []
    original = InMemory.outputs
    counted = dataclasses.replace(study.experiment)
    object.__setattr__(counted, "outputs", lambda run: calls.append(run.name) or original(counted, run))
    study = Study(counted)
    fused = study.outputs("both", 1)
    assert study.outputs("both", 1) is fused
    flow, plain = study.outputs("flow", 1), study.outputs("plain", 1)
    for video, output in fused.items():
        np.testing.assert_allclose(output.features, (flow[video].features + plain[video].features) / 2)
        np.testing.assert_allclose(output.logits, study.logits("both", 1)[video])
        assert len(study.labels[video]) == len(output.features)
    assert calls == ["flow", "plain"]
    with pytest.raises(Unavailable, match=r"members of both have features of different widths \(flow 4, plain 6\)"):
        Study(experiment(widths={"flow": 4})).outputs("both", 0)


def table(path):
    return list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))


GRID = [distilled(f"atomic_{w}", {**LEVELS, "atomic": w}) for w in (0.1, 10.0)]
GRID += [distilled(f"n{n}", LEVELS, options={"atomic": {"num_negatives": n}}) for n in (2, 4)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """All figures of a dense experiment with two seeds, and their folder."""
    folder = tmp_path_factory.mktemp("dense")
    return make_figures(experiment([*ROWS, *GRID]), folder / "figures", perplexity=7), folder / "figures"


@pytest.mark.slow
def test_every_figure_is_made_with_its_numbers(dense):
    made, folder = dense
    assert list(made) == list(FIGURES)
    assert {path.name for path in folder.iterdir()} == {f"{n}.{s}" for n in FIGURES for s in ("png", "svg", "csv")}
    for name, figure in made.items():
        assert figure.path == folder / f"{name}.png" and figure.path.read_bytes()[:4] == b"\x89PNG", name
        assert all(sentence.endswith(".") for sentence in figure.sentences) and figure.sentences, name
        assert len(table(figure.path)) > 1, name


def test_a_folder_of_figures_has_one_writer(tmp_path):
    with held(tmp_path), pytest.raises(BlockingIOError, match=f"{tmp_path} is in use by process {os.getpid()} on "):
        make_figures(experiment(), tmp_path, ["learning_curves"])


@pytest.mark.slow
def test_figures_say_what_their_numbers_are(dense):
    made, _ = dense
    curves = made["learning_curves"].sentences
    assert curves[0].startswith("Best epoch: flow 3 of 3, plain 3 of 3")
    assert curves[1].startswith("Still improving in the last tenth of the epochs, train longer: flow, plain, atomic")
    sensitivity = table(made["sensitivity"].path)
    shown = [(r["parameter"], r["value"], r["run"], r["gain over plain"], r["±"], r["published"]) for r in sensitivity]
    assert shown[:3] == [
        (*("atomic", w, run, "1", "0"), "300")
        for w, run in (("0.1", "atomic_0.1"), ("1", "light"), ("10", "atomic_10.0"))
    ]
    assert [cells[1:3] for cells in shown[3:]] == [("1", "light"), ("2", "n2"), ("4", "n4")]
    confused = table(made["confusion"].path)
    own = [row for row in confused if row["class"] == "pick_up_cup"]
    assert sum(float(row["light"]) for row in own) == pytest.approx(1, abs=1e-4)
    kinds = table(made["errors"].path)
    assert {row["run"] for row in kinds} == {"flow", "plain", "light", "both"}
    assert all(float(row["true positive"]) <= float(row["actions"]) for row in kinds)
    flow, plain = (next(r for r in table(made["tsne"].path) if r["run"] == run) for run in ("flow", "plain"))
    assert float(flow["neighbour accuracy"]) > float(plain["neighbour accuracy"]) and flow["silhouette ±"]


@pytest.mark.slow
def test_figures_of_a_sparse_experiment_with_one_seed_and_without_fusion(tmp_path):
    teachers = [row("flow", "flow", gain=[1.0]), row("pose", "pose", gain=[1.0])]
    student = {**distilled("light", LEVELS), "teachers": ["flow", "pose"]}
    found = experiment([*teachers, row("plain"), student], "sparse", (5,), ("event_map", "frame_map"))
    made = make_figures(found, tmp_path)
    reasons = {name: figure.sentences for name, figure in made.items() if figure.path is None}
    assert reasons.keys() == {"covariance", "sensitivity"}
    assert reasons["covariance"] == ["Not made: the experiment has no fusion with the plain student."]
    assert "kd-jax train --config=sensitivity:NAME" in reasons["sensitivity"][0]
    assert not (tmp_path / "covariance.png").exists()
    assert "background" in {row["taken for"] for row in table(made["confusion"].path)}
    gains = table(made["per_class"].path)
    assert list(gains[0]) == ["class", "flow", "pose", "plain", "light", "gain", "±"]
    assert gains[-1] == {"class": "never", **dict.fromkeys(list(gains[0])[1:], "")}
    assert "bootstrap over the 3 test videos, one seed" in made["per_class"].sentences[0]


@pytest.mark.parametrize(
    "rows, missing",
    [
        (ROWS[:2], "distilled student of the plain one"),
        ([row("flow", "flow")], "plain student (config.baseline)"),
    ],
)
def test_what_an_experiment_lacks_is_said(rows, missing, tmp_path):
    made = make_figures(experiment(rows, seeds=(0,)), tmp_path, ["learning_curves", "per_class"])
    assert made["learning_curves"].path and made["per_class"].path is None
    assert made["per_class"].sentences == [f"Not made: the experiment has no {missing}."]


def test_chosen_classes_are_shown(tmp_path):
    classes = ["pick_up_door", "put_down_cup"]
    made = make_figures(experiment(seeds=(0,)), tmp_path, ["confusion"], classes=classes)
    rows = table(made["confusion"].path)
    assert list(dict.fromkeys(row["class"] for row in rows)) == classes
    assert [row["taken for"] for row in rows[:13]] == [*synthetic.CLASSES, "never"]  # the rest fits as well
    assert len(rows) == 2 * 13


def test_mistakes_are_one_sentence(tmp_path):
    found = experiment(seeds=(0,))
    with pytest.raises(ValueError, match="there is no figure 'tnse'; known figures: learning_curves, tsne, "):
        make_figures(found, tmp_path, ["tnse"])
    with pytest.raises(ValueError, match="there is no class 'cup'; known classes: pick_up_cup, "):
        make_figures(found, tmp_path, classes=["cup"])
    with pytest.raises(ValueError, match="'never' does not occur in the test videos; these do: pick_up_cup, "):
        make_figures(found, tmp_path, classes=["never"])


def test_drawing_leaves_the_settings_of_the_caller(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    make_figures(experiment(seeds=(0,)), tmp_path, ["learning_curves"])
    style.new_figure(1, 1)
    assert dict(matplotlib.rcParams) == before
