"""Degenerate data: losses and filters give finite values and gradients, metrics a value from 0 to 100 or NaN."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from kd_jax.evaluation.protocols import PROTOCOLS, Predictions, Truth, score
from kd_jax.models import FILTERS, Detector
from kd_jax.training.state import create_train_state
from kd_jax.training.step import Program, Settings, make_train_step
from kd_jax.training.terms import TASKS, TERMS, choose_term
from kd_jax.types import Batch, Outputs

pytestmark = pytest.mark.slow

B, T, H, C = 2, 6, 4, 3
KEY = jax.random.key(5)
CHOSEN = [
    pytest.param(
        choose_term(name, {"form": form} if form else {}, num_snippets=B * T), head, id=f"{name} {form} {head}"
    )
    for name, term in TERMS.items()
    for form in (("",) if term.owns else term.functions())
    for head in (TASKS if term.needs_logits else ("dense",))
]
CASES = (
    "zero", "constant", "one snippet", "one video", "one class", "no positive", "all positive", "all masked",
    "huge", "tiny", "float16", "bfloat16", "equal to the teacher",
)  # fmt: skip


def example(case, head):
    """Student, teachers and batch of a case; features are the outputs' own."""
    rng = np.random.default_rng(0)
    videos, length = (1 if case == "one video" else B), (1 if case == "one snippet" else T)
    classes = 1 if case == "one class" else C
    outputs = TASKS[head].num_outputs(classes)
    scale = {"zero": 0.0, "huge": 1e4, "tiny": 1e-30}.get(case, 1.0)

    def draw(width):
        values = (
            np.ones((videos, length, width)) if case == "constant" else rng.standard_normal((videos, length, width))
        )
        return jnp.asarray(scale * values, {"float16": jnp.float16, "bfloat16": jnp.bfloat16}.get(case, jnp.float32))

    student, teacher = (Outputs(features=draw(H), logits=draw(outputs)) for _ in range(2))
    teacher = student if case == "equal to the teacher" else teacher
    labels = (rng.random((videos, length, classes)) < 0.4).astype(np.uint8)
    labels = {"no positive": np.zeros_like(labels), "all positive": np.ones_like(labels)}.get(case, labels)
    mask = np.zeros((videos, length), bool) if case == "all masked" else np.ones((videos, length), bool)
    batch = Batch(draw(H), jnp.asarray(labels), jnp.asarray(mask), jnp.arange(videos, dtype=jnp.int32) * length)
    return student, teacher, batch


def assert_finite(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert jnp.isfinite(leaf).all(), jax.tree_util.keystr(path)


@functools.cache
def gradient_of(chosen):
    def loss(params, student, teacher, batch, memory):
        value, _ = chosen.value(student, [teacher], batch, KEY, {"params": params, **memory})
        return value

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.exhaustive  # it compiles some hundred small programs
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chosen, head", CHOSEN)
def test_terms(chosen, head, case):
    student, teacher, batch = example(case, head)
    variables = {"params": {}}
    if chosen.term.owns:
        variables = dict(chosen.module().init({"params": KEY, "sample": KEY}, student, [teacher], batch))
    value, gradients = gradient_of(chosen)(variables.pop("params", {}), student, teacher, batch, variables)
    assert_finite({"loss": value, "gradients": gradients})
    assert case != "all masked" or value == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("head", TASKS)
def test_tasks(head, case):
    student, _, batch = example(case, head)
    loss = functools.partial(TASKS[head].loss, labels=batch.labels, mask=batch.mask)
    value, gradient = jax.value_and_grad(lambda logits: loss(logits))(student.logits)
    assert_finite({"loss": value, "gradient": gradient})


@functools.cache
def step_of(program):
    return jax.jit(make_train_step(program))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES[:-1])
@pytest.mark.parametrize("name", FILTERS)
def test_a_step_of_every_filter(name, case):
    """One training step: loss, gradient, and the parameters after it."""
    student, _, batch = example(case, "dense")
    dtype = {"bfloat16": jnp.bfloat16}.get(case, jnp.float32)
    model = Detector(name, student.logits.shape[-1], hidden=4, dtype=dtype, standardize=case == "constant")
    program = Program(model, "dense")
    state = create_train_state(model, program.optimization.make(), KEY, H)
    settings = Settings({"task": jnp.ones(())}, jnp.asarray(1e-3), KEY)
    state, metrics = step_of(program)(state, (), batch, settings)
    assert_finite({"metrics": metrics, "params": state.params})


SCORES = ("zero", "constant", "one snippet", "one video", "one class", "no positive", "all positive", "huge", "tiny",
          "float16", "bfloat16", "no detection", "no action")  # fmt: skip


@pytest.mark.parametrize("case", SCORES)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_metrics(name, case):
    rng = np.random.default_rng(0)
    ids, length = ["a"] if case == "one video" else ["a", "b"], 1 if case == "one snippet" else 8
    classes = 1 if case == "one class" else C
    scale = {"zero": 0.0, "huge": 1e4, "tiny": 1e-30}.get(case, 1.0)
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}.get(case, np.float32)

    def table(rows):
        values = np.ones((rows, classes)) if case == "constant" else rng.random((rows, classes))
        return (scale * values).astype(dtype)

    whole = np.array([[c, -1.0, 9.0] for c in range(classes)])
    actions = {"no positive": whole[:0], "no action": whole[:0], "all positive": whole}.get(case, whole[:1] / [1, 2, 2])
    segments = dict.fromkeys(ids, actions.clip(0 if case != "all positive" else -1))
    durations = dict.fromkeys(ids, 8.0)
    truth = Truth(segments, segments, durations, dict.fromkeys(ids, 16), classes)
    found = np.array([[c, 0.0, 4.0, scale] for c in range(classes)][: 0 if case == "no detection" else None])
    detections = dict.fromkeys(ids, found.reshape(-1, 4))
    predictions = Predictions({v: table(length) for v in ids}, detections, {v: table(25) for v in ids})
    values, per_class = score(predictions, truth, [name])
    assert values
    for value in (*values.values(), *(x for row in per_class.values() for x in row)):
        assert np.isnan(value) or 0 <= value <= 100 + 1e-9
