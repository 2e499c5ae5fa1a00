"""SS-TCN and the detector: equal to the public code, blind to padding, as large and as far-sighted as published."""

import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models.detector import FILTERS, Detector
from kd_jax.models.dilated_convolution import DilatedConv, reorder, shift
from kd_jax.models.layers import Dropout, product
from kd_jax.models.ss_tcn import SSTCN

HERE = pathlib.Path(__file__).parent
SMALL = HERE / "data" / "sstcn_small.npz"  # random weights and inputs, outputs of the public MS-TCN code
FULL = HERE.parents[1] / "shared" / "golden" / "sstcn_full_t200.npz"


def from_torch(weight, layers):
    """Detector parameters from `weight(key) -> array` in PyTorch layout: [out, in, taps] becomes [taps, in, out]."""

    def pointwise(key):
        return {"kernel": weight(f"{key}.weight")[:, :, 0].T, "bias": weight(f"{key}.bias")}

    def dilated(key):
        return {"kernel": weight(f"{key}.weight").transpose(2, 1, 0), "bias": weight(f"{key}.bias")}

    each = [
        {"dilated": dilated(f"{key}.conv_dilated"), "pointwise": pointwise(f"{key}.conv_1x1")}
        for key in (f"stage1.layers.{i}" for i in range(layers))
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    parameters = {"input": pointwise("stage1.conv_1x1"), "layers": stacked}
    return {"params": {"temporal_filter": parameters, "head": pointwise("stage1.conv_out")}}


def recipe(key, shape, seed, gain):
    """The weight recipe of the golden files (golden/README.md)."""
    rng = np.random.default_rng((zlib.crc32(key.encode()) + 1000003 * seed) % 2**32)
    z = rng.standard_normal(shape).astype(np.float32)
    return np.float32(0.1) * z if len(shape) == 1 else z * np.float32(np.sqrt(gain / np.prod(shape[1:])))


def check_against(golden, variables, hidden):
    """Each video alone, cut to its length: logits equal to the public code's."""
    model = Detector("ss_tcn", golden["logits"].shape[2], hidden=hidden)
    for video, length in enumerate(golden["lengths"]):
        x = golden["x"][video : video + 1, :, :length].transpose(0, 2, 1)
        outputs = jax.jit(model.apply)(variables, x, np.ones((1, length), bool))
        expected = golden[f"logits_single_{video}"][0].transpose(0, 2, 1)
        np.testing.assert_allclose(outputs.logits, expected, atol=2e-5, rtol=1e-4)


def test_equals_the_public_code():
    golden = np.load(SMALL)
    check_against(golden, from_torch(lambda key: golden[f"w/{key}"], 5), hidden=32)


@pytest.mark.skipif(not FULL.exists(), reason=f"{FULL} stands beside the checkout only where goldens are shared")
def test_equals_the_public_code_at_full_size():
    golden = np.load(FULL)
    hidden, classes, width = 512, 51, 1024

    def weight(key):
        if key.endswith("bias"):
            shape = (classes if "conv_out" in key else hidden,)
        elif "conv_dilated" in key:
            shape = (hidden, hidden, 3)
        else:
            shape = (classes if "conv_out" in key else hidden, hidden if "layers" in key or "out" in key else width, 1)
        return recipe(key, shape, int(golden["recipe_seed"]), float(golden["recipe_gain"]))

    for key in golden.files:
        if key.startswith("recipe_check/"):
            np.testing.assert_array_equal(weight(key.removeprefix("recipe_check/")).reshape(-1)[:4], golden[key])
    check_against(golden, from_torch(weight, 5), hidden=hidden)


@pytest.fixture(scope="module")
def small():
    """A detector with standardisation, its variables, an input [2, 20, 6] and the mask of videos of 20 and 13."""
    model = Detector("ss_tcn", 3, hidden=8, num_layers=3, standardize=True)
    x = jax.random.normal(jax.random.key(0), (2, 20, 6))
    mask = np.arange(20)[None] < np.array([[20], [13]])
    return model, jax.jit(model.init)(jax.random.key(1), x, mask), np.asarray(x), mask


def value_and_gradient(model, variables, x, mask):
    def loss(params):
        outputs = model.apply(variables | {"params": params}, x, mask)
        return jnp.sum(outputs.logits**2) + jnp.sum(outputs.features), outputs

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


@pytest.mark.parametrize("value", [5.0, np.nan])
def test_padding_changes_neither_outputs_nor_gradient(small, value):
    model, variables, x, mask = small
    (_, expected), gradient = value_and_gradient(model, variables, x, mask)
    padded_mask = np.pad(mask, ((0, 1), (0, 9)))
    padded_x = np.where(padded_mask[..., None], np.pad(x, ((0, 1), (0, 9), (0, 0))), np.float32(value))
    (_, outputs), padded_gradient = value_and_gradient(model, variables, padded_x, padded_mask)
    for name in ("features", "logits"):
        got = np.asarray(getattr(outputs, name))
        np.testing.assert_allclose(got[:2, :20], getattr(expected, name), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got[~padded_mask], 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), padded_gradient, gradient)


def test_masking_equals_slicing(small):
    model, variables, x, mask = small
    masked = jax.jit(model.apply)(variables, x[1:], mask[1:])
    sliced = jax.jit(model.apply)(variables, x[1:, :13], mask[1:, :13])
    np.testing.assert_allclose(masked.logits[:, :13], sliced.logits, rtol=1e-5, atol=1e-6)


def test_jit_equals_eager_and_float16_is_read(small):
    model, variables, x, mask = small
    x = jnp.asarray(x, jnp.float16)
    expected = model.apply(variables, x, jnp.asarray(mask))
    jitted = jax.jit(model.apply)(variables, x.astype(jnp.float32), mask)
    np.testing.assert_allclose(jitted.logits, expected.logits, rtol=1e-5, atol=1e-6)


def test_bfloat16_computes_with_float32_parameters_and_returns_float32(small):
    model, variables, x, mask = small
    half = model.clone(dtype=jnp.bfloat16)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), x, mask)))
    outputs, expected = jax.jit(half.apply)(variables, x, mask), jax.jit(model.apply)(variables, x, mask)
    assert outputs.features.dtype == outputs.logits.dtype == jnp.float32
    np.testing.assert_allclose(outputs.logits, expected.logits, atol=0.03)
    assert (outputs.features != expected.features).any()


def test_standardization_travels_in_its_own_collection(small):
    model, variables, x, mask = small
    statistics = variables["standardization"]
    np.testing.assert_array_equal(statistics["mean"], np.zeros(6))
    np.testing.assert_array_equal(statistics["std"], np.ones(6))
    mean, std = np.arange(6, dtype=np.float32), np.arange(1, 7, dtype=np.float32)
    set_by_caller = variables | {"standardization": {"mean": mean, "std": std}}
    expected = jax.jit(model.apply)(variables, x, mask)
    outputs = jax.jit(model.apply)(set_by_caller, x * std + mean, mask)
    np.testing.assert_allclose(outputs.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_published_size():
    model = Detector("ss_tcn", 157)
    x, mask = jax.ShapeDtypeStruct((1, 4, 1024), jnp.float32), jax.ShapeDtypeStruct((1, 4), bool)
    variables = jax.eval_shape(model.init, jax.random.key(0), x, mask)
    assert sum(p.size for p in jax.tree.leaves(variables)) == 1_616_029


def test_receptive_field_of_63_snippets():
    model = SSTCN(hidden=4)
    assert model.receptive_field == 63
    x, mask = jax.random.normal(jax.random.key(0), (1, 101, 4)), jnp.ones((1, 101), bool)
    variables = jax.jit(model.init)(jax.random.key(1), x, mask)
    # Positive parameters and inputs leave no tap silent behind a relu.
    variables = jax.tree.map(jnp.abs, variables)
    gradient = jax.jit(jax.grad(lambda x: model.apply(variables, x, mask)[0, 50].sum()))(jnp.abs(x))
    seen = np.flatnonzero(np.abs(gradient[0]).sum(axis=-1))
    assert (seen.min(), seen.max(), len(seen)) == (50 - 31, 50 + 31, 63)


@pytest.mark.parametrize(("length", "dilation", "most"), [(9, 2, 2), (3, 4, 4), (32, 4, 16), (48, 8, 8), (1, 1, 4)])
def test_dilated_convolution_and_its_gradients_are_those_of_the_library(length, dilation, most):
    layer = DilatedConv(5, most)
    x, weights = (jax.random.normal(jax.random.key(seed), (2, length, width)) for seed, width in ((0, 4), (1, 5)))
    variables = jax.jit(layer.init)(jax.random.key(2), x, dilation)

    def ours(variables, x):
        return layer.apply(variables, x, jnp.int32(dilation))

    def library(variables, x):
        kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
        return bias[None, None] + jax.lax.conv_general_dilated(
            x, kernel, (1,), [(dilation, dilation)], rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
        )

    np.testing.assert_allclose(jax.jit(ours)(variables, x), library(variables, x), rtol=1e-5, atol=1e-6)
    gradients = (
        jax.jit(jax.grad(lambda v, x, f=f: (weights * f(v, x)).sum(), (0, 1)))(variables, x) for f in (ours, library)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *gradients)


def test_gradients_of_product_and_reorder_and_shift_are_those_of_plain_expressions():
    rng = np.random.default_rng(0)
    x, kernel, weights = (rng.standard_normal(shape, np.float32) for shape in ((2, 7, 3), (3, 4), (2, 7, 4)))
    order = rng.permutation(7)

    def plain(x, kernel):
        y = jnp.einsum("btd,dh->bth", x[:, order], kernel)
        return (weights * jnp.stack([y[:, max(t - 2, 0)] * (t >= 2) for t in range(7)], axis=1)).sum()

    def ours(x, kernel):
        y = product(reorder(x, jnp.array(order), jnp.array(np.argsort(order))), kernel)
        return (weights * shift(y, jnp.int32(2), 4)).sum()

    np.testing.assert_array_equal(shift(jnp.arange(1.0, 4.0).reshape(1, 3, 1), -1, 2)[0, :, 0], [2, 3, 0])
    for found, expected in zip(*(jax.grad(f, argnums=(0, 1))(x, kernel) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_initialisation_is_uniform_within_one_over_root_fan_in():
    variables = jax.jit(DilatedConv(64, 1).init)(jax.random.key(0), jnp.zeros((1, 3, 32)), 1)
    bound = (3 * 32) ** -0.5
    for leaf in jax.tree.leaves(variables):
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    assert np.std(variables["params"]["kernel"]) == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("rate", "dropped"), [(0.5, 0.5), (0.1, 26 / 256), (0.999, 255 / 256)])
def test_dropout_drops_its_rounded_rate_and_keeps_the_mean(rate, dropped):
    x = jnp.ones((20, 50, 101))  # a width that four does not divide
    y = np.asarray(Dropout(rate).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)}))
    assert np.mean(y == 0) == pytest.approx(dropped, abs=0.006)
    np.testing.assert_allclose(y[y > 0], 1 / (1 - dropped), rtol=1e-6)
    kept = (y > 0).reshape(-1)  # bytes of one word are independent
    assert np.mean(kept[1:] & kept[:-1]) == pytest.approx((1 - dropped) ** 2, abs=0.006)


def test_dropout_is_off_in_evaluation_and_needs_a_sensible_rate(small):
    model, variables, x, mask = small
    off = jax.jit(model.apply)(variables, x, mask)
    apply = jax.jit(lambda key: model.apply(variables, x, mask, train=True, rngs={"dropout": key}))
    on = [apply(jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(on[0].logits, on[1].logits)
    assert (on[0].logits != on[2].logits).any()
    assert (on[0].logits != off.logits).any()
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        Dropout(1.0).apply({}, jnp.ones(3), deterministic=True)


def test_unknown_filters_and_wrong_shapes_raise():
    x, mask = jnp.zeros((1, 4, 3)), jnp.ones((1, 4), bool)
    with pytest.raises(ValueError, match=rf"unknown filter 'tcn'.*{min(FILTERS)}"):
        Detector("tcn", 2).init(jax.random.key(0), x, mask)
    with pytest.raises(ValueError, match=r"x must be \[B, T, ...\].*x \(1, 4, 3\), mask \(1, 5\)"):
        Detector("ss_tcn", 2).init(jax.random.key(0), x, jnp.ones((1, 5), bool))
