"""Every step lowers for TPU and GPU on any machine, and detectors export for inputs of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from kd_jax import sharding
from kd_jax.data.batches import Example
from kd_jax.inference import predict
from kd_jax.models import FILTERS, Detector
from kd_jax.training import on_device
from kd_jax.training.population import jitted_step
from kd_jax.training.state import Optimization, create_train_state
from kd_jax.training.step import Program, Settings, make_train_step
from kd_jax.training.terms import TASKS, TERMS, choose_term
from kd_jax.types import Batch, Outputs

D, H, CLASSES, T = 6, 8, 3, 16
PLATFORMS = ("tpu", "cuda")
TWO_TERMS = ("boundary", "logit_distillation")  # one reads features, the other logits


def lowered(function, *arguments) -> str:
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert set(exported.platforms) == set(PLATFORMS)
    return exported.mlir_module()


def parts(filter_name, head, dtype, terms):
    num_outputs = TASKS[head].num_outputs(CLASSES)
    model = Detector(filter_name, num_outputs=num_outputs, hidden=H, num_layers=2, dtype=dtype, standardize=True)
    program = Program(
        model,
        head,
        tuple(choose_term(term, num_snippets=2 * T) for term in terms),
        Optimization(plateau_patience=2, clip_norm=1.0, schedule="cosine", warmup_epochs=1, epochs=3),
        gradient_norms=True,
    )
    taught = [Outputs(np.zeros((T, H)), np.zeros((T, num_outputs)))]
    state = create_train_state(
        model,
        program.optimization.make(),
        jax.random.key(0),
        D,
        terms=program.terms,
        teachers=taught,
        num_classes=CLASSES,
    )
    weights = {term: jnp.float32(1) for term in ("task", *terms)}
    settings = Settings(weights, jnp.float32(1e-3), jax.random.key(1))
    return program, state, settings, num_outputs


@pytest.mark.parametrize(
    "filter_name, head, dtype",
    [*((name, "dense", jnp.bfloat16) for name in FILTERS), ("ss_tcn", "sparse", jnp.float32)],
)
@pytest.mark.slow
def test_steps(filter_name, head, dtype):
    """Lower SS-TCN with every term and other filters with two."""
    terms = tuple(TERMS) if filter_name == "ss_tcn" else TWO_TERMS
    program, state, settings, num_outputs = parts(filter_name, head, dtype, terms)
    mask = jnp.ones((2, T), bool)
    features, labels = jnp.zeros((2, T, D), jnp.float16), jnp.zeros((2, T, CLASSES), jnp.uint8)
    batch = Batch(features, labels, mask, jnp.array([0, T]))
    teachers = (Outputs(jnp.zeros((2, T, H)), jnp.zeros((2, T, num_outputs))),)
    text = lowered(make_train_step(program), state, teachers, batch, settings)
    assert ("bf16" in text) == (dtype == jnp.bfloat16)
    variables = {"params": state.params, **state.constants}
    lowered(program.model.apply, variables, batch.features, mask)


@pytest.mark.parametrize("filter_name", FILTERS)
def test_cpu_kernels_are_lowered_for_a_cpu_alone(filter_name):
    program, state, settings, _ = parts(filter_name, "dense", jnp.float32, terms=())
    mask, labels = jnp.ones((2, T), bool), jnp.zeros((2, T, CLASSES), jnp.uint8)
    batch = Batch(jnp.zeros((2, T, D)), labels, mask, jnp.array([0, T]))
    traced = jax.jit(make_train_step(program)).trace(state, (), batch, settings)
    for platform in ("cpu", *PLATFORMS):
        text = traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)
        assert ("/on_cpu/" in text) == (platform == "cpu")
        assert "/filter/" in text and "/head/" in text  # scopes, which a profile shows


def test_own_programs_are_traced_for_one_platform():
    program, state, settings, _ = parts("ss_tcn", "dense", jnp.float32, terms=())
    batch = Batch(
        jnp.zeros((2, T, D)), jnp.zeros((2, T, CLASSES), jnp.uint8), jnp.ones((2, T), bool), jnp.array([0, T])
    )
    inputs = {"params": state.params, **state.constants}, batch.features, batch.mask
    step, run = jitted_step(program), predict._compiled_forward()
    own = step.trace(state, (), batch, settings), run.trace(program.model, False, *inputs)
    assert "platform_index" in str(jax.make_jaxpr(program.model.apply)(*inputs))
    assert not any("platform_index" in str(traced.jaxpr) for traced in own)


@pytest.mark.parametrize("filter_name", FILTERS)
def test_a_detector_exports_with_symbolic_batch_and_length(filter_name):
    model = Detector(filter_name, num_outputs=CLASSES, hidden=H, num_layers=3, standardize=True)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1, D)), jnp.ones((1, 1), bool))
    batch, length = export.symbolic_shape("batch, length")
    shapes = jax.ShapeDtypeStruct((batch, length, D), jnp.float32), jax.ShapeDtypeStruct((batch, length), bool)
    exported = export.export(jax.jit(model.apply), platforms=("cpu", *PLATFORMS))(variables, *shapes)
    for batch, length in ((2, 13), (1, 40)):
        x = jax.random.normal(jax.random.key(1), (batch, length, D))
        mask = jnp.arange(length)[None] < jnp.array([length, length - 4])[:batch, None]
        found, expected = (jax.jit(f)(variables, x, mask) for f in (exported.call, model.apply))
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("runs", [1, 3])
def test_an_epoch_of_resident_videos(runs):
    program, state, settings, num_outputs = parts("ss_tcn", "dense", jnp.float32, terms=TWO_TERMS)
    teacher = Outputs(np.zeros((T, H), np.float32), np.zeros((T, num_outputs), np.float32))
    example = Example("v", np.zeros((T, D), np.float16), np.zeros((T, CLASSES), np.uint8), (teacher,))
    mesh, buckets = sharding.data_mesh(), (T, 2 * T)
    data = on_device.put([[example, example]], max(buckets), mesh)
    rows = np.zeros((3, runs, sharding.device_rows(1, mesh)), np.int32)
    states, settings = jax.tree.map(lambda x: jnp.stack([x] * runs), (state, settings))
    text = lowered(
        on_device.make_train_epoch(program, buckets, mesh),
        states,
        data,
        np.zeros(runs, np.int32),
        np.zeros(3, np.int32),
        rows,
        settings,
        np.zeros(2, np.int32),
    )
    assert "stablehlo.while" in text and "stablehlo.case" in text
