"""The step: what it adds up, what padding and devices may change (nothing), how often it compiles (once a length)."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.data import synthetic
from kd_jax.data.batches import make_examples
from kd_jax.models import FILTERS, Detector
from kd_jax.training.state import OWNED, create_train_state, current_learning_rate, make_optimizer
from kd_jax.training.step import BALANCES, losses_of, make_train_step
from kd_jax.training.terms import MODULES, TASKS, TERMS, make_modules, term_options
from kd_jax.types import Batch, Outputs

B, T, D, H, C = 2, 12, 5, 8, 3
KEY = jax.random.key(5)


def make_batch(rows=B, length=T, valid=(12, 7), seed=0):
    """The same videos whatever the padding around them."""
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


def make_step(
    head="dense",
    filter="ss_tcn",
    dropout=0.0,
    options=None,
    patience=2,
    balance="loss",
    modules=(),
    teacher=None,
    size=D,
    classes=C,
    snippets=19,
):
    model = Detector(filter, num_outputs=TASKS[head][1](classes), hidden=H, num_layers=2, dropout=dropout)
    optimizer = make_optimizer(1e-2, plateau_patience=patience, steps_per_epoch=1)
    modules = make_modules({term: {} for term in modules}, snippets)
    state = create_train_state(model, optimizer, jax.random.key(0), size, None, modules, [teacher], num_classes=classes)
    step = make_train_step(model, optimizer, head=head, options=options, balance=balance, modules=modules)
    return step, state, model


WEIGHTS = {"atomic": 0.7, "global_context": 2.0, "boundary": 0.1}


def test_every_part_is_summed_over_teachers_and_stages():
    batch, teacher = make_batch()
    other = Outputs(teacher.features * 2 + 1, teacher.logits)
    stage = jnp.zeros((B, T, C))
    student = Outputs(jnp.sin(jnp.nan_to_num(teacher.features)) + 0.3, stage, earlier_logits=(stage,))
    compute = jax.jit(functools.partial(losses_of, terms=tuple(WEIGHTS), head="dense"))
    parts, gradients, *_ = compute(student, [teacher, other], batch, KEY)
    boundary = sum(losses.boundary(student.features, t.features, batch.mask) for t in (teacher, other))
    context = sum(losses.global_context(student.features, t.features, batch.mask) for t in (teacher, other))
    np.testing.assert_allclose(parts["task"], 2 * C * np.log(2), rtol=1e-6)  # logits 0: log 2 for each class
    np.testing.assert_allclose(parts["boundary"], boundary, rtol=1e-6)
    np.testing.assert_allclose(parts["global_context"], context, rtol=1e-6)
    assert gradients.keys() == parts.keys() == {"task", *WEIGHTS}
    np.testing.assert_array_equal(gradients["task"].features, 0)
    np.testing.assert_array_equal(gradients["boundary"].logits, 0)
    expected = jax.grad(lambda f: sum(losses.boundary(f, t.features, batch.mask) for t in (teacher, other)))
    np.testing.assert_allclose(gradients["boundary"].features, expected(student.features), rtol=1e-5, atol=1e-7)


def test_options_reach_the_loss():
    batch, teacher = make_batch()
    student = Outputs(jnp.zeros((B, T, H)), jnp.zeros((B, T, C)))
    for form in ("curve", "vector"):
        options = {"boundary": {"form": form}}
        parts, *_ = losses_of(student, [teacher], batch, KEY, ["boundary"], head="dense", options=options)
        expected = losses.boundary(student.features, teacher.features, batch.mask, form=form)
        np.testing.assert_allclose(parts["boundary"], expected)


@pytest.mark.parametrize(
    "terms, teachers, message",
    [
        (["atomik"], 1, "unknown distillation term 'atomik'; known terms: atomic"),
        (["atomic"], 0, "no teacher"),
    ],
)
def test_wrong_terms_are_refused(terms, teachers, message):
    batch, teacher = make_batch()
    with pytest.raises(ValueError, match=message):
        losses_of(teacher, [teacher] * teachers, batch, KEY, terms, head="dense")
    with pytest.raises(ValueError, match="balance must be one of loss, gradient; got 'norm'"):
        make_train_step(None, None, head="dense", balance="norm")


def test_the_norms_at_the_features_by_hand():
    student = Outputs(jnp.array([[[1.0, 0.0], [0.0, 2.0]]]), jnp.zeros((1, 2, 1)))
    teacher = Outputs(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 1)))
    batch = Batch(student.features, jnp.array([[[1.0], [0.0]]]), jnp.ones((1, 2), bool))
    kernel = jnp.array([[2.0], [4.0]])
    terms = ("hint", "logit_distillation")
    *_, norms, _ = losses_of(student, [teacher], batch, KEY, terms, head="dense", kernel=kernel)
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
    terms, head = ("graph_distillation",), {"head": "dense"}
    _, gradients, norms, _ = losses_of(student, [teacher], batch, KEY, terms, kernel=kernel, **head)
    gradient = gradients["graph_distillation"]
    assert float(jnp.abs(gradient.features).max()) > 0 and float(jnp.abs(gradient.logits).max()) > 0
    pull = gradient.features + gradient.logits @ kernel.T
    np.testing.assert_allclose(norms["graph_distillation"], jnp.linalg.norm(pull), rtol=1e-5)


@pytest.mark.parametrize("balance", BALANCES)
def test_the_step_follows_the_gradient_of_the_balanced_sum(balance):
    """With the weights that the balance makes of the given ones, it is plain gradient descent on a weighted sum."""
    step, state, model = make_step(balance=balance, patience=0)
    batch, teacher = make_batch()
    after, metrics = jax.jit(step)(state, (teacher,), batch, WEIGHTS, KEY)
    ratio = {t: float(metrics["gradient/task"] / metrics[f"gradient/{t}"]) for t in WEIGHTS}
    effective = {t: w * (ratio[t] if balance == "gradient" else 1) for t, w in WEIGHTS.items()}
    expected = float(metrics["task"]) + sum(w * float(metrics[t]) for t, w in effective.items())
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)

    def loss(params):
        student = model.apply({"params": params}, batch.features, batch.mask)
        key = jax.random.split(jax.random.fold_in(KEY, 0))[1]
        parts, *_ = losses_of(student, [teacher], batch, key, WEIGHTS, head="dense")
        return parts["task"] + sum(w * parts[t] for t, w in effective.items())

    gradient = jax.jit(jax.grad(loss))(state.params)
    moments = jax.tree.map(lambda g: 0.1 * g, gradient)  # Adam's first
    chex.assert_trees_all_close(after.opt_state[0].inner_state[0].mu, moments, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        metrics["gradient_norm"], jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))), rtol=1e-4
    )


def test_a_balanced_term_without_a_gradient_counts_nothing():
    step, state, model = make_step(balance="gradient")
    batch, _ = make_batch()
    teacher = model.apply({"params": state.params}, batch.features, batch.mask)
    _, metrics = jax.jit(step)(state, (teacher,), batch, {"hint": 1.0}, KEY)
    assert float(metrics["hint"]) < 1e-10 and float(metrics["loss"]) == pytest.approx(float(metrics["task"]), rel=1e-5)


@pytest.mark.parametrize("filter, head", [*((filter, "dense") for filter in FILTERS), ("ss_tcn", "sparse")])
def test_every_filter_takes_two_steps_with_every_term(filter, head):
    """Each term alone and all of them, in one program, on the synthetic set, with NaN in the padding."""
    batch, teacher, sizes = synthetic_batch(head)
    step, fresh, _ = make_step(head, filter, dropout=0.5, modules=MODULES, teacher=teacher, **sizes)
    step, terms = jax.jit(step), (*TERMS, *MODULES)
    for term in [*terms, None]:
        state, weights = fresh, {other: float(term in (None, other)) for other in terms}
        for _ in range(2):
            state, metrics = step(state, (teacher,), batch, weights, KEY)
            assert all(np.isfinite(v) for v in metrics.values())
        parts = {"task", *terms}
        assert set(metrics) == {"loss", "gradient_norm", "snippets", *parts, *(f"gradient/{part}" for part in parts)}
        assert int(state.step) == 2
        changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), fresh.params, state.params)
        owned = changed.pop(OWNED)
        assert all(jax.tree.leaves(changed))
        for module in owned.keys() - {"learned_graph"}:  # the share of a single teacher is 1, whatever is learned
            assert any(jax.tree.leaves(owned[module])) == bool(weights[module])
    assert step._cache_size() == 1


def synthetic_batch(head):
    """Two RGB videos of the synthetic set and a padded one; flow channels stand for what a teacher says of them."""
    info, splits = synthetic.tiny()
    videos, classes = splits["train"][:2], len(info.classes)
    lengths, outputs = [video.num_snippets for video in videos], TASKS[head][1](classes)
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
    sizes = {"size": batch.features.shape[-1], "classes": classes, "snippets": sum(lengths)}
    return batch, teacher, sizes


@pytest.mark.parametrize("rows, length", [(2, 20), (4, 16)])
def test_padding_changes_neither_loss_nor_gradient(rows, length):
    step, state, _ = make_step()
    results = []
    for shape in ({}, {"rows": rows, "length": length}):
        batch, teacher = make_batch(**shape)
        results.append(jax.jit(step)(state, (teacher,), batch, WEIGHTS, KEY))
    chex.assert_trees_all_close(results[0][1], results[1][1], rtol=2e-5)
    # Adam's first step is lr·sign-like: compare the moments, which are the gradients themselves.
    chex.assert_trees_all_close(results[0][0].opt_state, results[1][0].opt_state, rtol=2e-4, atol=2e-6)


def test_jit_equals_eager():
    step, state, _ = make_step(dropout=0.5)
    batch, teacher = make_batch()
    weights = {"boundary": 0.1}  # tests/losses_laws_test.py holds every term to it
    eager, compiled = (f(state, (teacher,), batch, weights, KEY)[1] for f in (step, jax.jit(step)))
    chex.assert_trees_all_close(eager, compiled, rtol=2e-5)


def test_one_trace_per_length_whatever_weights_and_key():
    step, state, _ = make_step(dropout=0.5)
    compiled = jax.jit(chex.assert_max_traces(step, n=2))
    for number, length in enumerate((12, 16, 12, 16, 12)):
        batch, teacher = make_batch(length=length, seed=number)
        weights = {term: jnp.float32(number) for term in WEIGHTS}
        state, _ = compiled(state, (teacher,), batch, weights, jax.random.key(number))


def test_a_weight_of_zero_is_plain_training():
    step, state, _ = make_step(dropout=0.5)
    batch, teacher = make_batch()
    plain, _ = jax.jit(step)(state, (), batch, {}, KEY)
    distilled, _ = jax.jit(step)(state, (teacher,), batch, dict.fromkeys(WEIGHTS, 0.0), KEY)
    chex.assert_trees_all_close(plain.params, distilled.params, rtol=1e-5, atol=1e-6)


def test_training_a_copy_of_the_teacher_moves_the_student_towards_it():
    step, state, model = make_step(patience=0)
    batch, _ = make_batch()
    variables = model.init(jax.random.key(9), jnp.zeros((1, 1, D)), jnp.ones((1, 1), bool))
    teacher = model.apply(variables, batch.features, batch.mask)
    step, first = jax.jit(step), None
    for _ in range(150):
        state, metrics = step(state, (teacher,), batch, {**WEIGHTS, "global_context": 20.0, "boundary": 2.0}, KEY)
        first = first or metrics
    assert metrics["global_context"] < 0.5 * first["global_context"]
    assert metrics["boundary"] < 0.5 * first["boundary"]


def test_the_learning_rate_is_halved_on_a_plateau():
    optimizer = make_optimizer(0.1, plateau_patience=2, steps_per_epoch=2)
    params = {"w": jnp.ones(2)}
    opt_state = optimizer.init(params)
    _, state, _ = make_step()
    rates = []
    for value in [5.0, 5, 4, 4, 4, 4, 4, 4, 4, 4]:  # epoch means 5, 4, 4, 4, 4
        _, opt_state = optimizer.update({"w": jnp.ones(2)}, opt_state, params, value=jnp.float32(value))
        rates.append(float(current_learning_rate(state.replace(opt_state=opt_state))))
    np.testing.assert_allclose(rates, [0.1] * 7 + [0.05] * 3, rtol=1e-6)


def test_the_learning_rate_can_stay():
    optimizer = make_optimizer(0.1, plateau_patience=0, steps_per_epoch=2)
    params = {"w": jnp.ones(2)}
    _, opt_state = optimizer.update(params, optimizer.init(params), params, value=jnp.float32(1))
    _, state, _ = make_step()
    assert current_learning_rate(state.replace(opt_state=opt_state)) == np.float32(0.1)


def test_term_options_lists_what_a_config_may_set():
    assert {"form", "temperature", "num_negatives"} <= set(term_options("atomic"))
    assert "key" not in term_options("atomic")
    assert term_options("boundary") == {"form": "curve"}
