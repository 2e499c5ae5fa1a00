"""The step adds up weighted losses, ignores padding and the number of devices, and compiles once per length."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import config as schema
from kd_jax import losses
from kd_jax.data import synthetic
from kd_jax.data.batches import make_examples
from kd_jax.losses import competence
from kd_jax.masking import mask_out, masked_mean
from kd_jax.models import FILTERS, Detector
from kd_jax.training import terms
from kd_jax.training.checkpoints import Checkpoints, new_best, read_checkpoint
from kd_jax.training.state import (
    OPTIMIZERS,
    OWNED,
    SCHEDULES,
    Optimization,
    create_train_state,
    evaluated_params,
    model_params,
    plateau_scale,
)
from kd_jax.training.step import (
    BALANCES,
    LARGEST_PULL,
    Program,
    Settings,
    balanced_weights,
    competent_weights,
    gradient_norms,
    loss_parts,
    make_train_step,
    where_better,
)
from kd_jax.training.terms import TASKS, TERMS, Term, choose_term
from kd_jax.types import Batch, Outputs

B, T, D, H, C = 2, 12, 5, 8, 3
KEY = jax.random.key(5)
RATE = 1e-2


def make_batch(rows=B, length=T, valid=(12, 7), seed=0):
    """Make a batch and outputs of a teacher; `rows` and `length` change only the padding."""
    rng = np.random.default_rng(seed)
    out = {"features": np.full((rows, length, D), np.nan, np.float32), "labels": np.zeros((rows, length, C), np.uint8)}
    teacher = Outputs(np.full((rows, length, H), np.nan, np.float32), np.full((rows, length, C), np.nan, np.float32))
    mask = np.zeros((rows, length), bool)
    for row, n in enumerate(valid):
        out["features"][row, :n] = rng.standard_normal((n, D))
        out["labels"][row, :n] = rng.random((n, C)) < 0.4
        teacher.features[row, :n] = rng.standard_normal((n, H))
        teacher.logits[row, :n] = rng.standard_normal((n, C))
        mask[row, :n] = True
    return jax.tree.map(jnp.asarray, (Batch(mask=mask, **out), teacher))


def make_program(chosen=(), head="dense", filter="ss_tcn", dropout=0.0, patience=2, classes=C, snippets=19, **options):
    """Make the program of a small detector with these terms."""
    model = Detector(filter, num_outputs=TASKS[head].num_outputs(classes), hidden=H, num_layers=2, dropout=dropout)
    optimization = Optimization(plateau_patience=patience)
    return Program(model, head, tuple(choose_term(t, None, snippets) for t in chosen), optimization, **options)


def make_state(program, size=D, teacher=None, classes=C):
    teachers = () if teacher is None else (teacher,)
    owned = {"terms": program.terms, "teachers": teachers, "num_classes": classes}
    return create_train_state(program.model, program.optimization.make(), jax.random.key(0), size, **owned)


def settings(weights=None, rate=RATE, key=KEY):
    return Settings({"task": 1.0, **(weights or {})}, rate, key)


WEIGHTS = {"atomic": 0.7, "global_context": 2.0, "boundary": 0.1}


def values_of(program, student, teachers, batch, weights=None):
    weights = {"task": 1.0, **{chosen.name: 1.0 for chosen in program.terms}, **(weights or {})}
    parts = loss_parts(program, tuple(teachers), batch, KEY, weights)
    return {name: loss(student)[0] for name, loss in parts.items()}


def test_every_part_is_summed_over_teachers_and_stages():
    batch, teacher = make_batch()
    other = Outputs(teacher.features * 2 + 1, teacher.logits)
    stage = jnp.zeros((B, T, C))
    student = Outputs(jnp.sin(jnp.nan_to_num(teacher.features)) + 0.3, stage, earlier_logits=(stage,))
    program = make_program(WEIGHTS)
    compute = jax.jit(lambda student: values_of(program, student, (teacher, other), batch))
    parts = compute(student)
    boundary = sum(losses.boundary(student.features, t.features, batch.mask) for t in (teacher, other))
    context = sum(losses.global_context(student.features, t.features, batch.mask) for t in (teacher, other))
    assert parts.keys() == {"task", *WEIGHTS}
    np.testing.assert_allclose(parts["task"], 2 * C * np.log(2), rtol=1e-6)  # logits 0: log 2 for each class
    np.testing.assert_allclose(parts["boundary"], boundary, rtol=1e-6)
    np.testing.assert_allclose(parts["global_context"], context, rtol=1e-6)
    of_task, of_boundary = (jax.grad(lambda s, name=name: compute(s)[name])(student) for name in ("task", "boundary"))
    np.testing.assert_array_equal(of_task.features, 0)
    np.testing.assert_array_equal(of_boundary.logits, 0)
    expected = jax.grad(lambda f: sum(losses.boundary(f, t.features, batch.mask) for t in (teacher, other)))
    np.testing.assert_allclose(of_boundary.features, expected(student.features), rtol=1e-5, atol=1e-7)


def test_a_teacher_is_ignored_where_it_does_not_teach():
    """Law: its outputs have no effect there, whatever they are, on any term."""
    batch, teacher = make_batch()
    batch = dataclasses.replace(batch, first=jnp.array([0, T]))
    seen = batch.mask[..., None] & (jnp.arange(T)[None, :, None] % 3 > 0)
    blind = jax.tree.map(lambda x: jnp.where(seen, x, jnp.nan), teacher)
    program = make_program(TERMS, balance="competence")
    state, step = make_state(program, teacher=teacher), jax.jit(make_train_step(program))
    after = [
        step(state, (dataclasses.replace(each, teaches=seen),), batch, settings(dict.fromkeys(TERMS, 0.5)))
        for each in (teacher, blind)
    ]
    chex.assert_trees_all_equal(*after)
    chex.assert_tree_all_finite(after[0][0].params)


def test_the_weight_of_a_snippet_does_not_depend_on_how_many_are_taught():
    batch, teacher = make_batch()
    student = Outputs(jnp.zeros((B, T, H)), jnp.zeros((B, T, C)))
    seen = batch.mask[..., None] & (jnp.arange(T)[None, :, None] < 2)
    program, limited = make_program(["hint"]), dataclasses.replace(teacher, teaches=seen)
    each = losses.hint(student.features, teacher.features, batch.mask, reduction="none")
    expected = jnp.sum(each[:, :2]) / jnp.sum(batch.mask)
    np.testing.assert_allclose(values_of(program, student, [limited], batch)["hint"], expected, rtol=1e-6)


def test_where_the_teacher_is_better_by_hand():
    labels, mask = jnp.array([[[1.0], [1.0], [0.0], [0.0]]]), jnp.array([[True, True, True, False]])
    batch, features = Batch(jnp.zeros((1, 4, 1)), labels, mask), jnp.zeros((1, 4, H))
    student = Outputs(features, jnp.array([[[1.0], [1.0], [1.0], [1.0]]]))
    teacher = Outputs(features, jnp.array([[[2.0], [0.5], [-1.0], [-1.0]]]))
    for seen, expected in ((None, [1, 0, 1, 0]), (jnp.array([[[False], [True], [True], [True]]]), [0, 0, 1, 0])):
        found = where_better("dense", dataclasses.replace(teacher, teaches=seen), student, batch).teaches
        np.testing.assert_array_equal(found[0, :, 0], expected)
    of_features = Outputs(features, jnp.zeros((1, 4, 0)))
    assert where_better("dense", of_features, student, batch) is of_features


def test_options_reach_the_loss():
    batch, teacher = make_batch()
    student = Outputs(jnp.zeros((B, T, H)), jnp.zeros((B, T, C)))
    for form in ("curve", "vector"):
        program = Program(make_program().model, "dense", (choose_term("boundary", {"form": form}),))
        expected = losses.boundary(student.features, teacher.features, batch.mask, form=form)
        np.testing.assert_allclose(values_of(program, student, [teacher], batch)["boundary"], expected)


def test_options_of_a_form_reach_it():
    batch, teacher = make_batch()
    student = Outputs(jnp.ones((B, T, H)), jnp.zeros((B, T, C)))
    found = {}
    for options in ({}, {"form": "nce", "temperature": 1.0}, {"form": "infonce"}, {"form": "margin", "margin": 3.0}):
        program = Program(make_program().model, "dense", (choose_term("atomic", options),))
        found[str(options)] = value = values_of(program, student, [teacher], batch)["atomic"]
        given = {"labels": batch.labels, "key": jax.random.fold_in(KEY, 0)}
        expected = losses.atomic(student.features, teacher.features, batch.mask, **given, **options)
        np.testing.assert_allclose(value, expected)
    assert len(set(map(float, found.values()))) == len(found)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("atomik", {}, "unknown distillation term 'atomik'; known terms: atomic"),
        ("atomic", {"form": "nope"}, "form must be one of nce, infonce, margin; got 'nope'"),
        (
            "atomic",
            {"form": "margin", "temperature": 7.0},
            "atomic of form 'margin' has no option 'temperature'; it has ",
        ),
        ("atomic", {"form": "infonce", "noise_ratio": 7.0}, "form 'infonce' has no option 'noise_ratio'"),
        ("atomic", {"margin": 7.0}, "atomic has no option 'margin'; it has num_negatives, temperature, noise_ratio"),
        ("hint", {"form": "x"}, "hint has no option 'form'; it has none"),
        ("crd", {"margin": 1.0}, "crd has no option 'margin'; it has width"),
    ],
)
def test_wrong_terms_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        choose_term(name, options)


def test_terms_need_a_teacher_and_balances_are_known():
    batch, teacher = make_batch()
    with pytest.raises(ValueError, match="the terms atomic compare with a teacher, but no teacher was given"):
        values_of(make_program(["atomic"]), teacher, [], batch)
    with pytest.raises(ValueError, match="balance must be one of loss, gradient, competence; got 'norm'"):
        make_program(balance="norm")


def test_the_norms_at_the_features_by_hand():
    student = Outputs(jnp.array([[[1.0, 0.0], [0.0, 2.0]]]), jnp.zeros((1, 2, 1)))
    teacher = Outputs(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 1)))
    batch = Batch(student.features, jnp.array([[[1.0], [0.0]]]), jnp.ones((1, 2), bool))
    kernel = jnp.array([[2.0], [4.0]])
    program = make_program(["hint", "logit_distillation"])
    weights = {"task": 1.0, "hint": 1.0, "logit_distillation": 1.0}
    parts = loss_parts(program, (teacher,), batch, KEY, weights)
    norms = gradient_norms({name: jax.grad(lambda s, f=f: f(s)[0])(student) for name, f in parts.items()}, kernel)
    # (σ(0) − label) / 2 snippets is −1/4 and 1/4 at the logits, times (2, 4) at the features
    assert float(norms["task"]) == pytest.approx(np.sqrt(2 * (2**2 + 4**2)) / 4)
    gradient = jax.grad(lambda f: losses.hint(f, teacher.features, batch.mask))(student.features)
    assert float(norms["hint"]) == pytest.approx(float(jnp.linalg.norm(gradient)))
    assert float(norms["logit_distillation"]) == 0


def test_the_norm_of_a_term_that_reads_features_and_logits_is_that_of_their_sum():
    batch, teacher = make_batch()
    teacher = jax.tree.map(jnp.nan_to_num, teacher)
    student = Outputs(teacher.features[::-1], teacher.logits[::-1])
    kernel = jax.random.normal(KEY, (H, C))
    weights = {"task": 1.0, "graph_distillation": 1.0}
    parts = loss_parts(make_program(["graph_distillation"]), (teacher,), batch, KEY, weights)
    gradient = jax.grad(lambda s: parts["graph_distillation"](s)[0])(student)
    norms = gradient_norms({"graph_distillation": gradient}, kernel)
    assert float(jnp.abs(gradient.features).max()) > 0 and float(jnp.abs(gradient.logits).max()) > 0
    pull = gradient.features + gradient.logits @ kernel.T
    np.testing.assert_allclose(norms["graph_distillation"], jnp.linalg.norm(pull), rtol=1e-5)


STEPS = [(balance, "ss_tcn", WEIGHTS) for balance in BALANCES]
STEPS += [("competence", "ms_tcn", {**WEIGHTS, "boundary": 1e-3, "crd": 0.3, "soft_labels": 0.5})]


@pytest.mark.parametrize("balance, filter, given", STEPS)
def test_the_step_follows_the_gradient_of_the_balanced_sum(balance, filter, given):
    """With the weights that the balance makes of the given ones, it is plain gradient descent on a weighted sum."""
    program = make_program(given, balance=balance, filter=filter, patience=0, gradient_norms=True)
    program = dataclasses.replace(program, optimization=Optimization(optimizer="sgd"))
    batch, teacher = make_batch()
    batch = dataclasses.replace(batch, first=jnp.array([0, T]))
    teacher = dataclasses.replace(teacher, logits=teacher.logits + 8 * (batch.labels - 0.5))  # it knows most labels
    state = make_state(program, teacher=teacher)
    after, metrics = jax.jit(make_train_step(program))(state, (teacher,), batch, settings(given))
    ratio = {t: float(metrics["gradient/task"] / metrics[f"gradient/{t}"]) for t in given}
    of_teacher = float(competence(teacher.logits, batch.labels, batch.mask))
    assert 0.5 < of_teacher < 1
    of_features = {t: w for t, w in given.items() if not TERMS[t].needs_logits}
    effective = {
        "loss": given,
        "gradient": {t: w * ratio[t] for t, w in given.items()},
        "competence": {t: w * of_teacher for t, w in given.items()}
        | {t: min(w * (2 * of_teacher - 1), LARGEST_PULL * ratio[t]) for t, w in of_features.items()},
    }[balance]
    expected = float(metrics["task"]) + sum(w * float(metrics[t]) for t, w in effective.items())
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    assert metrics.get("competence") == (pytest.approx(of_teacher, rel=1e-6) if balance == "competence" else None)
    if filter == "ms_tcn":
        assert effective["atomic"] < given["atomic"] * (2 * of_teacher - 1)  # limited
        assert effective["boundary"] == given["boundary"] * (2 * of_teacher - 1)

    def loss(params):
        rngs = {"dropout": KEY}  # the dropout is 0
        student = program.model.apply(
            {"params": model_params(params)}, batch.features, batch.mask, train=True, rngs=rngs
        )
        key = jax.random.split(jax.random.fold_in(KEY, 0))[1]
        owned = {t: {"params": own, **state.memory[t]} for t, own in params.get("terms", {}).items()}
        parts = loss_parts(program, (teacher,), batch, key, {"task": 1.0, **given}, owned)
        return parts["task"](student)[0] + sum(w * parts[t](student)[0] for t, w in effective.items())

    gradient = jax.jit(jax.grad(loss))(state.params)
    moved = jax.tree.map(lambda a, b: (a - b) / RATE, state.params, after.params)
    chex.assert_trees_all_close(moved, gradient, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        metrics["gradient_norm"], jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))), rtol=1e-4
    )


def test_norms_are_reported_only_where_somebody_asks():
    batch, teacher = make_batch()
    reports: list[dict] = [{"gradient_norms": True}, {"balance": "gradient"}]
    for options in ({}, {"balance": "competence"}, *reports):
        program = make_program(["boundary"], **options)
        arguments = make_state(program), (teacher,), batch, settings({"boundary": 0.1})
        metrics = jax.eval_shape(make_train_step(program), *arguments)[1]
        found = {name for name in metrics if name.startswith("gradient/")}
        assert found == ({"gradient/task", "gradient/boundary"} if options in reports else set())


def test_weights_are_balanced_by_hand():
    found = balanced_weights({"task": 1.0, "hint": 0.5, "atomic": 2.0}, {"task": 6.0, "hint": 4.0, "atomic": 0.0})
    assert {name: float(weight) for name, weight in found.items()} == {"task": 1.0, "hint": 0.75, "atomic": 0.0}


def test_weights_by_competence_by_hand():
    weights = {"task": 0.5, "hint": 2.0, "atomic": 2.0, "boundary": 2.0, "soft_labels": 0.5}
    norms = {"task": 6.0, "hint": 1.5, "atomic": 4.0, "boundary": 0.0, "soft_labels": 100.0}
    of_features = {"hint", "atomic", "boundary"}
    found = competent_weights(weights, jnp.float32(0.75), norms, of_features)
    expected = {"task": 0.5, "hint": 1.0, "atomic": 0.75, "boundary": 1.0, "soft_labels": 0.375}
    assert {name: float(weight) for name, weight in found.items()} == expected
    found = competent_weights(weights, jnp.float32(0.25), norms, of_features)
    expected = {"task": 0.5, "hint": 0.0, "atomic": 0.0, "boundary": 0.0, "soft_labels": 0.125}
    assert {name: float(weight) for name, weight in found.items()} == expected


def test_a_balanced_term_without_a_gradient_counts_nothing():
    program = make_program(["hint"], balance="gradient")
    state, (batch, _) = make_state(program), make_batch()
    teacher = program.model.apply({"params": state.params}, batch.features, batch.mask)
    _, metrics = jax.jit(make_train_step(program))(state, (teacher,), batch, settings({"hint": 1.0}))
    assert float(metrics["hint"]) < 1e-10 and float(metrics["loss"]) == pytest.approx(float(metrics["task"]), rel=1e-5)


ALL, TWO = tuple(TERMS), ("boundary", "logit_distillation")  # TWO: one term reads features, one logits
TWO_STEPS = [
    ("ss_tcn", "dense", ALL),
    ("ss_tcn", "sparse", ALL),
    *((f, "dense", TWO) for f in FILTERS if f != "ss_tcn"),
]


@pytest.mark.parametrize("filter, head, chosen", TWO_STEPS)
def test_every_filter_and_every_term_takes_two_steps(filter, head, chosen):
    """Each term alone and all of them, in one program, on the synthetic set, with NaN in the padding."""
    batch, teacher, sizes, snippets = synthetic_batch(head)
    program = make_program(chosen, head, filter, dropout=0.5, classes=sizes["classes"], snippets=snippets)
    fresh, step = make_state(program, teacher=teacher, **sizes), jax.jit(make_train_step(program))
    for term in [*chosen, None]:
        state, weights = fresh, {other: float(term in (None, other)) for other in chosen}
        for _ in range(2):
            state, metrics = step(state, (teacher,), batch, settings(weights))
            assert all(np.isfinite(v) for v in metrics.values())
        assert set(metrics) == {"loss", "gradient_norm", "learning_rate", "snippets", "task", *chosen}
        assert all((metrics[name] != 0) == bool(weights[name]) for name in chosen if name != "learned_graph")
        assert int(state.step) == 2
        changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), fresh.params, state.params)
        owned = changed.pop(OWNED, {})
        assert all(jax.tree.leaves(changed))
        for module in owned.keys() - {"learned_graph"}:  # the share of a single teacher is 1, whatever is learned
            assert any(jax.tree.leaves(owned[module])) == bool(weights[module])
    assert step._cache_size() == 1


def synthetic_batch(head):
    """Two RGB videos of the synthetic set and a padded one; flow channels stand in for a teacher's outputs."""
    info, splits = synthetic.tiny()
    videos, classes = splits["train"][:2], len(info.classes)
    lengths, outputs = [video.num_snippets for video in videos], TASKS[head].num_outputs(classes)
    examples = make_examples(videos, "rgb", classes)

    def pad(tables, fill):
        shape = (3, max(lengths) + 3, tables[0].shape[1])
        padded = np.full(shape, fill, tables[0].dtype)
        for row, table in enumerate(tables):
            padded[row, : len(table)] = table
        return jnp.asarray(padded)

    flow = [video.features["flow"] for video in videos]
    teacher = Outputs(*(pad([table[:, :width] for table in flow], np.nan) for width in (H, outputs)))
    batch = Batch(
        features=pad([example.features for example in examples], np.nan),
        labels=pad([example.labels for example in examples], 0),
        mask=pad([np.ones((n, 1), bool) for n in lengths], False)[:, :, 0],
        first=jnp.array([0, lengths[0], 0]),
    )
    return batch, teacher, {"size": batch.features.shape[-1], "classes": classes}, sum(lengths)


@pytest.mark.parametrize("rows, length", [(2, 20), (4, 16)])
def test_padding_changes_neither_loss_nor_gradient(rows, length):
    program = make_program(WEIGHTS)
    state, step, results = make_state(program), jax.jit(make_train_step(program)), []
    for shape in ({}, {"rows": rows, "length": length}):
        batch, teacher = make_batch(**shape)
        results.append(step(state, (teacher,), batch, settings(WEIGHTS)))
    chex.assert_trees_all_close(results[0][1], results[1][1], rtol=2e-5)
    # Adam's first step is lr·sign-like: compare the moments, which are the gradients themselves.
    chex.assert_trees_all_close(results[0][0].opt_state, results[1][0].opt_state, rtol=2e-4, atol=2e-6)


def test_jit_equals_eager():
    program = make_program(["boundary"], dropout=0.5)  # tests/losses_laws_test.py holds every term to it
    state, step, (batch, teacher) = make_state(program), make_train_step(program), make_batch()
    eager, compiled = (f(state, (teacher,), batch, settings({"boundary": 0.1}))[1] for f in (step, jax.jit(step)))
    chex.assert_trees_all_close(eager, compiled, rtol=2e-5)


def test_one_trace_per_length_whatever_weights_rate_and_key():
    program = make_program(WEIGHTS, dropout=0.5)
    state, compiled = make_state(program), jax.jit(chex.assert_max_traces(make_train_step(program), n=2))
    for number, length in enumerate((12, 16, 12, 16, 12)):
        batch, teacher = make_batch(length=length, seed=number)
        weights = {term: jnp.float32(number) for term in ("task", *WEIGHTS)}
        given = Settings(weights, jnp.float32(number), jax.random.key(number))
        state, _ = compiled(state, (teacher,), batch, given)


def test_a_weight_of_zero_is_plain_training():
    plain, distilling = make_program(dropout=0.5), make_program(WEIGHTS, dropout=0.5)
    state, (batch, teacher) = make_state(plain), make_batch()
    without, _ = jax.jit(make_train_step(plain))(state, (), batch, settings())
    with_zero, _ = jax.jit(make_train_step(distilling))(state, (teacher,), batch, settings(dict.fromkeys(WEIGHTS, 0.0)))
    chex.assert_trees_all_close(without.params, with_zero.params, rtol=1e-5, atol=1e-6)


def test_a_term_of_weight_zero_that_overflows_changes_nothing(monkeypatch):
    """In a joint program 0 times an infinite loss would make the sum NaN."""

    def overflows(student, teacher, mask):
        return masked_mean(jnp.exp(1e4 * jnp.abs(mask_out(student, mask))), mask)

    monkeypatch.setitem(TERMS, "overflows", Term(overflows, terms.features))
    program, (batch, teacher) = make_program(["overflows"]), make_batch()
    step, state = jax.jit(make_train_step(program)), make_state(program)
    assert not np.isfinite(step(state, (teacher,), batch, settings({"overflows": 1.0}))[1]["loss"])
    after, metrics = step(state, (teacher,), batch, settings({"overflows": 0.0}))
    plain, _ = jax.jit(make_train_step(make_program()))(state, (), batch, settings())
    assert all(np.isfinite(v) for v in metrics.values())
    chex.assert_trees_all_close(after.params, plain.params, rtol=1e-5, atol=1e-6)


def test_a_term_registered_anew_under_its_name_is_another_program(monkeypatch):
    monkeypatch.setitem(TERMS, "mine", Term(lambda s, t, m: jnp.sum(0 * s) + 1.0, terms.features))
    first = make_program(["mine"])
    assert first == make_program(["mine"]) and hash(first) == hash(make_program(["mine"]))
    monkeypatch.setitem(TERMS, "mine", Term(lambda s, t, m: jnp.sum(0 * s) + 2.0, terms.features))
    second = make_program(["mine"])
    assert first != second
    batch, teacher = make_batch()
    student = jax.tree.map(jnp.nan_to_num, teacher)
    assert [float(values_of(p, student, [teacher], batch)["mine"]) for p in (first, second)] == [1.0, 2.0]


def test_training_a_copy_of_the_teacher_moves_the_student_towards_it():
    program = make_program(WEIGHTS, patience=0)
    state, (batch, _) = make_state(program), make_batch()
    variables = program.model.init(jax.random.key(9), jnp.zeros((1, 1, D)), jnp.ones((1, 1), bool))
    teacher = program.model.apply(variables, batch.features, batch.mask)
    step, first = jax.jit(make_train_step(program)), None
    given = settings({**WEIGHTS, "global_context": 20.0, "boundary": 2.0})
    for _ in range(150):
        state, metrics = step(state, (teacher,), batch, given)
        first = first or metrics
    assert metrics["global_context"] < 0.5 * first["global_context"]
    assert metrics["boundary"] < 0.5 * first["boundary"]


def rates_of(optimization, values):
    """Return the learning rate of each step; `values` are the losses that the plateau rule watches."""
    optimizer, params, rates = optimization.make(), {"w": jnp.ones(2)}, []
    opt_state = optimizer.init(params)
    for step, value in enumerate(values):
        _, opt_state = optimizer.update({"w": jnp.ones(2)}, opt_state, params, value=jnp.float32(value))
        rates.append(0.1 * float(optimization.factor(jnp.int32(step)) * plateau_scale(opt_state)))
    return rates


def test_the_learning_rate_is_halved_on_a_plateau():
    optimization = Optimization(plateau_patience=2, steps_per_epoch=2, epochs=5)
    rates = rates_of(optimization, [5.0, 5, 4, 4, 4, 4, 4, 4, 4, 4])  # epoch means 5, 4, 4, 4, 4
    np.testing.assert_allclose(rates, [0.1] * 7 + [0.05] * 3, rtol=1e-6)


def test_the_learning_rate_can_stay():
    np.testing.assert_allclose(rates_of(Optimization(), [1.0] * 4), [0.1] * 4, rtol=1e-6)


def test_schedules_warm_up_and_decay_by_hand():
    def rates(**options):
        return rates_of(Optimization(epochs=5, steps_per_epoch=2, **options), [1.0] * 10)

    linear = [0.1 * (1 - step / 10) for step in range(10)]
    np.testing.assert_allclose(rates(schedule="linear"), linear, rtol=1e-5)
    cosine = [0.05 * (1 + np.cos(np.pi * step / 10)) for step in range(10)]
    np.testing.assert_allclose(rates(schedule="cosine"), cosine, rtol=1e-5)
    warm = [0.1 * (1 + step * (3 - 1) / 2) / 3 for step in range(2)] + [0.1 * (1 - step / 8) for step in range(8)]
    np.testing.assert_allclose(rates(schedule="linear", warmup_epochs=1), warm, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"optimizer": "adamw", "weight_decay": 0.1}])
def test_the_step_is_what_optax_does_with_the_same_options(options):
    program = make_program(patience=0)
    program = dataclasses.replace(program, optimization=Optimization(**options))
    state, (batch, _) = make_state(program), make_batch()
    after, _ = jax.jit(make_train_step(program))(state, (), batch, settings())

    def loss(params):
        student = program.model.apply({"params": params}, batch.features, batch.mask)
        return losses.sigmoid_cross_entropy(student.logits, batch.labels, batch.mask)

    optimizer = optax.adamw(RATE, weight_decay=0.1) if options.get("optimizer") else optax.adam(RATE)
    clip = optax.clip_by_global_norm(0.5) if "clip_norm" in options else optax.identity()
    optimizer = optax.chain(clip, optimizer)
    updates, _ = optimizer.update(jax.jit(jax.grad(loss))(state.params), optimizer.init(state.params), state.params)
    chex.assert_trees_all_close(after.params, optax.apply_updates(state.params, updates), rtol=1e-5, atol=2e-6)


def test_the_average_of_parameters_by_hand():
    program = dataclasses.replace(make_program(patience=0), optimization=Optimization(ema_decay=0.15))
    step, state, (batch, _) = jax.jit(make_train_step(program)), make_state(program), make_batch()
    given = []
    for _ in range(3):
        given.append(state.params)
        state, _ = step(state, (), batch, settings())
    # the decays are 0, 1/10 and min(0.15, 2/11)
    expected = jax.tree.map(lambda a, b, c: 0.15 * (0.1 * a + 0.9 * b) + 0.85 * c, *given)
    chex.assert_trees_all_close(evaluated_params(state), model_params(expected), rtol=1e-5, atol=1e-7)
    plain = make_state(make_program(patience=0))
    chex.assert_trees_all_equal(evaluated_params(plain), plain.params)


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_soft_labels_are_the_task_with_mixed_targets(head):
    """Law: `config.soft_labels` makes the cross-entropy to `0.3 labels + 0.7 probabilities`, or to labels."""
    keys, (mask, shape) = jax.random.split(jax.random.key(0), 3), (jnp.ones((2, 6), bool), (2, 6, 3))
    student, teacher = (2 * jax.random.normal(key, (*shape[:2], 3 + (head == "sparse"))) for key in keys[:2])
    labels = (jax.random.uniform(keys[2], shape) < 0.3).astype(jnp.float32)
    run = schema.make_run("rgb", teachers=("teacher",), **schema.soft_labels(0.7))
    weights = {"task": run.task_weight, "soft_labels": run.weights.soft_labels}
    program = dataclasses.replace(make_program(["soft_labels"]), head=head, balance=run.balance)
    seen = jnp.broadcast_to(jnp.arange(6)[None, :, None] % 3 > 0, (2, 6, 1))
    share = jnp.where(seen, 0.7, 0.0)
    batch = Batch(jnp.zeros((2, 6, 1)), labels, mask, jnp.zeros(2, jnp.int32))
    features = jnp.zeros((2, 6, 4))
    taught = Outputs(features, teacher, teaches=seen)
    parts = loss_parts(program, (taught,), batch, jax.random.key(1), weights)
    found = sum(weights[name] * part(Outputs(features, student))[0] for name, part in parts.items())
    if head == "dense":
        target = (1 - share) * labels + share * jax.nn.sigmoid(teacher)
        expected = losses.sigmoid_cross_entropy(student, target, mask)
    else:
        total = labels.sum(-1, keepdims=True)
        shares = jnp.concatenate([labels / jnp.maximum(total, 1), (total == 0).astype(jnp.float32)], -1)
        target = (1 - share) * shares + share * jax.nn.softmax(teacher)
        expected = optax.softmax_cross_entropy(student, target).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("field, name", [("optimizer", o) for o in OPTIMIZERS] + [("schedule", s) for s in SCHEDULES])
def test_every_optimizer_and_schedule_takes_steps_and_survives_a_checkpoint(field, name, tmp_path):
    optimization = Optimization(
        **{field: name}, clip_norm=0.5, warmup_epochs=1, epochs=3, plateau_patience=1, ema_decay=0.9
    )
    program = dataclasses.replace(make_program(), optimization=optimization)
    step, fresh, (batch, _) = jax.jit(make_train_step(program)), make_state(program), make_batch()
    state = fresh
    for _ in range(2):  # one of the warm-up and one of the schedule
        state, metrics = step(state, (), batch, settings())
        assert all(np.isfinite(value) for value in metrics.values()) and metrics["learning_rate"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), fresh.params, state.params)))
    with Checkpoints(tmp_path, after_epoch=0) as keeper:
        keeper.save(1, state, best := new_best(state.params, state.constants))
    restored, _ = read_checkpoint(tmp_path, 1, fresh, best)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal(step(restored, (), batch, settings()), step(state, (), batch, settings()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight_decay": 0.1}, r"weight_decay=0.1 needs an optimizer that has it \(adamw, .*\), not 'adam'"),
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs=3 must be below epochs=3"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Optimization(**options)


def test_a_term_lists_the_options_that_a_config_may_set():
    assert set(TERMS["atomic"].options()) == {
        "form", "num_negatives", "temperature", "noise_ratio", "margin", "normalize",
    }  # fmt: skip
    assert TERMS["boundary"].options() == {"form": "curve"}
    assert set(TERMS["crd"].options()) == {"width", "num_negatives", "temperature", "momentum"}
