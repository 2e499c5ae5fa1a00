"""CRD equals the public code and a step by hand, ignores padding, and changes only the batch's rows of the memory."""

import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import config as schema
from kd_jax.losses import Memory, ProjectionHead, crd, new_memory
from kd_jax.models import Detector
from kd_jax.training import experiment
from kd_jax.training import run as run_module
from kd_jax.training.checkpoints import load_run
from kd_jax.training.plan import check_config, prepare, training_order
from kd_jax.training.state import create_train_state, model_params
from kd_jax.training.step import Program, Settings, make_train_step
from kd_jax.training.terms import choose_term
from kd_jax.types import Batch, Outputs

GOLDEN = np.load(Path(__file__).parent / "data" / "kd_crd.npz", allow_pickle=False)


def test_three_steps_are_those_of_the_public_code():
    """Losses, gradients of features and embeddings, and the memory after each step are equal."""
    memory = Memory(GOLDEN["memory_v1_init"], GOLDEN["memory_v2_init"], jnp.zeros(2))
    linear = {s: {"kernel": GOLDEN[f"embed_{s}/weight"].T, "bias": GOLDEN[f"embed_{s}/bias"]} for s in "st"}
    embed, mask = ProjectionHead(16), jnp.ones((1, 8), bool)
    options = {"temperature": float(GOLDEN["nce_t"]), "momentum": float(GOLDEN["nce_m"])}

    def loss(linear, student, teacher, memory, index, negatives):
        own, theirs = (
            embed.apply({"params": {"linear": linear[s]}}, x[None]) for s, x in (("s", student), ("t", teacher))
        )
        return crd(own, theirs, mask, memory, index[None], negatives[None], **options)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    for number in range(int(GOLDEN["steps"])):
        golden = {key.split("/", 1)[1]: GOLDEN[key] for key in GOLDEN.files if key.startswith(f"step{number}/")}
        contrast = golden["contrast_idx"]
        (value, memory), (of_embed, of_student) = step(
            linear, golden["f_s"], golden["f_t"], memory, contrast[:, 0], contrast[:, 1:]
        )
        np.testing.assert_allclose(value, golden["loss"], rtol=1e-4)
        np.testing.assert_allclose(memory.normalizers, [golden["Z_v1"], golden["Z_v2"]], rtol=1e-5)
        gradients = {"f_s": of_student}
        for s in "st":
            gradients |= {f"embed_{s}_weight": of_embed[s]["kernel"].T, f"embed_{s}_bias": of_embed[s]["bias"]}
        for name, gradient in gradients.items():
            expected = golden[f"grad_{name}"]
            np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose(memory.student[golden["idx"]], golden["memory_v1_after_rows"], atol=1e-5)
        np.testing.assert_allclose(memory.teacher[golden["idx"]], golden["memory_v2_after_rows"], atol=1e-5)
    np.testing.assert_allclose(memory.student, GOLDEN["memory_v1_final"], atol=1e-5)
    np.testing.assert_allclose(memory.teacher, GOLDEN["memory_v2_final"], atol=1e-5)


def test_by_hand():
    """Two snippets, embeddings on the axes, one negative, τ = 1: exponentials e, 1 and 1/e."""
    one, other = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    memory = Memory(jnp.stack([one, other]), jnp.stack([one, -one]), jnp.array([2.0, 4.0]))
    value, after = crd(
        one[None, None],
        other[None, None],
        jnp.ones((1, 1), bool),
        memory,
        jnp.array([[0]]),
        jnp.array([1]),
        temperature=1.0,
    )
    e, chance = math.e, 1 / 2

    def expected(own, negative, z):
        return -math.log(own / z / (own / z + chance)) - math.log(chance / (negative / z + chance))

    # The student (1, 0) is compared with the teacher's (1, 0) and (−1, 0); the teacher (0, 1) with (1, 0) and (0, 1).
    assert float(value) == pytest.approx(expected(e, 1 / e, 2) + expected(1, e, 4), rel=1e-5)
    r = math.sqrt(0.5)
    np.testing.assert_allclose(after.student, [[1, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(after.teacher, [[r, r], [-1, 0]], atol=1e-6)


def example(videos=2, length=6):
    """Make embeddings, mask, memory, rows and negatives for two videos of 6 and 4 snippets."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2, 2, 6, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    student, teacher = np.zeros((2, videos, length, 4), np.float32)
    index, mask = np.full((videos, length), 10**6, np.int32), np.zeros((videos, length), bool)
    for row, count in enumerate((6, 4)):
        student[row, :count], teacher[row, :count] = vectors[:, row, :count]
        index[row, :count], mask[row, :count] = 10 * row + np.arange(count), True
    student[~mask] = teacher[~mask] = np.nan
    return student, teacher, jnp.asarray(mask), new_memory(jax.random.key(0), 20, 4), index, np.array([1, 7, 12, 19])


def test_padding_has_no_effect_and_only_the_rows_of_the_batch_change():
    def run(*arguments):
        return jax.value_and_grad(crd, argnums=(0, 1), has_aux=True)(*arguments)

    (value, memory), gradients = jax.jit(run)(*example())
    (padded, other), padded_gradients = jax.jit(run)(*example(videos=3, length=9))
    np.testing.assert_allclose(padded, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), memory, other)
    for gradient, more in zip(gradients, padded_gradients, strict=True):
        np.testing.assert_allclose(more[:2, :6], gradient, rtol=1e-4, atol=1e-6)
        assert not more[2:].any() and not more[:, 6:].any() and not gradient[1, 4:].any()
        assert gradient[0].any()
    before = example()[3]
    rows = [*range(6), *range(10, 14)]
    changed = np.flatnonzero((memory.student != before.student).any(axis=1))
    np.testing.assert_array_equal(changed, rows)
    np.testing.assert_allclose(np.linalg.norm(memory.teacher[jnp.array(rows)], axis=1), 1, rtol=1e-5)


def test_an_empty_mask_gives_0_and_changes_nothing():
    student, teacher, mask, memory, index, negatives = example()
    (value, after), gradient = jax.jit(jax.value_and_grad(crd, has_aux=True))(
        student, teacher, jnp.zeros_like(mask), memory, index, negatives
    )
    assert value == 0 and not gradient.any()
    jax.tree.map(np.testing.assert_array_equal, after, memory)


def test_shared_negatives_are_the_same_for_every_snippet():
    student, teacher, mask, memory, index, negatives = example()
    each = jnp.broadcast_to(negatives[None, None], (*mask.shape, len(negatives)))
    one, other = (crd(student, teacher, mask, memory, index, rows)[0] for rows in (negatives, each))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_wrong_shapes_and_options_are_refused():
    student, teacher, mask, memory, index, negatives = example()
    with pytest.raises(ValueError, match=r"embeddings of the same width; .*memory \(20, 3\)"):
        crd(student, teacher, mask, new_memory(jax.random.key(0), 20, 3), index, negatives)
    with pytest.raises(ValueError, match=r"index must be \[B, T\] .* index \(2, 5\)"):
        crd(student, teacher, mask, memory, index[:, :5], negatives)
    with pytest.raises(ValueError, match="momentum in"):
        crd(student, teacher, mask, memory, index, negatives, momentum=1.0)


def test_the_term_owns_embeddings_and_a_memory_that_steps_change():
    """A training step changes all parameters, and in the memory only the rows of the batch's videos."""
    terms = (choose_term("crd", {"width": 4, "num_negatives": 8}, num_snippets=30),)
    program = Program(Detector("ss_tcn", 3, hidden=8, num_layers=2, dropout=0.0), "dense", terms, gradient_norms=True)
    rng, mask = np.random.default_rng(0), np.arange(12)[None] < np.array([[12], [7], [0]])
    teacher = Outputs(np.full((3, 12, 6), np.nan, np.float32), np.zeros((3, 12, 3), np.float32))
    teacher.features[mask] = rng.standard_normal((19, 6))
    features = np.where(mask[..., None], rng.standard_normal((3, 12, 5)), np.nan).astype(np.float32)
    labels = (rng.random((3, 12, 3)) < 0.4).astype(np.uint8)
    batch = Batch(features, labels, jnp.asarray(mask), np.array([10, 0, 30], np.int32))
    owned = {"terms": terms, "teachers": [teacher], "num_classes": 3}
    optimizer = program.optimization.make()
    state = jax.jit(lambda key: create_train_state(program.model, optimizer, key, 5, **owned))(jax.random.key(0))
    assert set(state.params["terms"]["crd"]) == {"student", "teacher_0"}
    assert set(model_params(state.params)) == {"temporal_filter", "head"}
    step = jax.jit(make_train_step(program))
    settings = Settings({"task": 1.0, "crd": 0.8}, 1e-2, jax.random.key(1))
    after, metrics = step(state, (teacher,), batch, settings)
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["crd"] > 0 and metrics["gradient/crd"] > 0
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, after.params)
    assert all(jax.tree.leaves(changed))
    old, new = (s.memory["crd"]["memory"]["memory_0"] for s in (state, after))
    rows = np.flatnonzero((old.teacher != new.teacher).any(axis=1))
    np.testing.assert_array_equal(rows, [*range(7), *range(10, 22)])
    assert (new.normalizers > 0).all()
    again, _ = step(after, (teacher,), batch, settings)
    np.testing.assert_array_equal(again.memory["crd"]["memory"]["memory_0"].normalizers, new.normalizers)


@pytest.mark.slow
def test_a_run_with_crd_trains_stops_and_resumes(tmp_path):
    """Two epochs equal two epochs with a stop between them. The checkpoint of the best epoch has only the model."""
    config = schema.get_config()
    config.dataset.name, config.dataset.max_videos = "synthetic", 4
    config.model.hidden, config.model.num_layers = 8, 2
    config.training.update({"epochs": 2, "length_buckets": 1, "checkpoint_every": 1, "learning_rate": 1e-2})
    student = schema.make_run(
        "rgb", teachers=("flow",), weights={"crd": 0.8, "hint": 1.0}, options={"crd": {"num_negatives": 16}}
    )
    config.runs = schema.make_runs(flow=schema.make_run("flow"), student=student)
    config.baseline = ""
    config.training.gradient_norms = True
    ends = []
    for workdir in (tmp_path / "whole", tmp_path / "stopped"):
        source = prepare(config, workdir)
        if workdir.name == "stopped":
            shutil.copytree(tmp_path / "whole" / "flow", workdir / "flow")
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(run_module, "keep_better", stop_in_epoch(2, run_module.keep_better))
                experiment.perform(config, workdir, source)
        ends.append(experiment.perform(config, workdir, source))
        assert set(load_run(workdir / "student").variables["params"]) == {"temporal_filter", "head"}
    assert ends[0]["rows"] == ends[1]["rows"]
    record = [
        json.loads(line) for line in (tmp_path / "stopped" / "student" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [entry["epoch"] for entry in record] == [1, 2] and "gradient/crd" in record[0]


def stop_in_epoch(number, function):
    """Wrap `function` to raise KeyboardInterrupt in an epoch of the run that has a memory."""

    def stop(best, states, scores, epoch):
        if epoch == number and states.memory:
            raise KeyboardInterrupt
        return function(best, states, scores, epoch)

    return stop


@pytest.mark.slow
def test_two_steps_distil_then_classify(tmp_path):
    """The second run starts from the parameters of the first, and only the second learns from the labels."""
    config = schema.get_config()
    config.dataset.name, config.dataset.max_videos = "synthetic", 4
    config.model.hidden, config.model.num_layers = 8, 2
    config.training.update({"epochs": 2, "length_buckets": 1, "learning_rate": 1e-2})
    config.runs = schema.make_runs(
        classify=schema.make_run("rgb", starts_from="distil", learning_rate=1e-9),
        distil=schema.make_run("rgb", teachers=("flow",), weights={"hint": 1.0}, task_weight=0.0),
        flow=schema.make_run("flow"),
    )
    config.baseline = ""
    config.seeds = 2
    assert training_order(config) == ["flow", "distil", "classify"]
    experiment.perform(config, tmp_path, prepare(config, tmp_path))
    for seed in ("", "seed_1"):
        distil, classify = (load_run(tmp_path / name / seed) for name in ("distil", "classify"))
        ends = [run.variables["params"] for run in (distil, classify)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *ends)  # the learning rate is nearly 0
        results = json.loads((tmp_path / "distil" / seed / "results.json").read_text())
        assert results["best_epoch"] == 2  # the last epoch: without a task loss, no score chooses one
        assert distil.config["task_weight"] == 0 and classify.config["starts_from"]["weights"] == {"hint": 1.0}
    first, second = (
        jax.tree.leaves(load_run(tmp_path / "distil" / seed).variables["params"]["head"]) for seed in ("", "seed_1")
    )
    assert any((a != b).any() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"starts_from": "nobody"}, "starts_from='nobody'; it must be a run that reads the same modality"),
        ({"starts_from": "flow"}, "same modality"),
        ({"task_weight": 0.0, "balance": "gradient"}, "balance='gradient' has no task to compare with; use 'loss'"),
        ({"task_weight": 0.0, "balance": "competence"}, "balance='competence' has no task to compare with; use 'loss'"),
        ({"task_weight": -1.0}, "task_weight=-1.0"),
    ],
)
def test_invalid_starts_from_and_task_weight_are_refused(changes, message):
    config = schema.get_config()
    config.runs = schema.make_runs(
        flow=schema.make_run("flow"),
        rgb=schema.make_run("rgb", teachers=("flow",), weights={"crd": 1.0}, **changes),
    )
    config.baseline = ""
    with pytest.raises(ValueError, match=message):
        check_config(config)
