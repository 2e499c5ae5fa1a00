"""The layers of temporal filters: what has a gradient of its own against plain expressions, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models.dilated_convolution import DilatedConv, merge, shift, split
from kd_jax.models.layers import Dropout, product
from kd_jax.models.residual import ResidualLayer


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


def test_gradients_of_product_and_shift_are_those_of_plain_expressions():
    rng = np.random.default_rng(0)
    x, kernel, weights = (rng.standard_normal(shape, np.float32) for shape in ((2, 7, 3), (3, 4), (2, 7, 4)))

    def plain(x, kernel):
        y = jnp.einsum("btd,dh->bth", x, kernel)
        return (weights * jnp.stack([y[:, max(t - 2, 0)] * (t >= 2) for t in range(7)], axis=1)).sum()

    def ours(x, kernel):
        return (weights * shift(product(x, kernel), jnp.int32(2), 4)).sum()

    np.testing.assert_array_equal(shift(jnp.arange(1.0, 4.0).reshape(1, 3, 1), -1, 2)[0, :, 0], [2, 3, 0])
    for found, expected in zip(*(jax.grad(f, argnums=(0, 1))(x, kernel) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_split_pairs_snippets_a_dilation_apart_and_merge_puts_them_back(dilation):
    x = jnp.arange(16.0).reshape(1, 16, 1) + 100 * jnp.arange(2.0)[:, None, None]
    first, second = split(x, dilation)
    np.testing.assert_array_equal(second - first, dilation)
    np.testing.assert_array_equal(merge(first, second, dilation), x)
    weights = jax.random.normal(jax.random.key(0), (2, 8, 1))
    of_split = jax.grad(lambda x: (weights * split(x, dilation)[0] ** 2).sum())(x)
    np.testing.assert_allclose(of_split, merge(2 * weights * first, 0 * second, dilation), rtol=1e-6)
    of_merge = jax.grad(lambda f, s: (merge(f, s, dilation) ** 2).sum(), (0, 1))(first, second)
    np.testing.assert_allclose(of_merge, (2 * first, 2 * second), rtol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_a_residual_layer_and_its_gradients_are_those_of_plain_expressions(train):
    rng = np.random.default_rng(0)
    h, mixed, weights = (jnp.asarray(rng.standard_normal((2, 5, 4), np.float32)) for _ in range(3))
    mask = jnp.arange(5)[None] < jnp.array([[5], [3]])
    layer = ResidualLayer(lambda: lambda h, dilation: mixed, 4, 0.5, jnp.float32, train)
    rngs = {"dropout": jax.random.key(1)}
    params = layer.init({"params": jax.random.key(0), **rngs}, h, 1, mask)["params"]

    def ours(params, h, mixed):
        layer = ResidualLayer(lambda: lambda h, dilation: mixed, 4, 0.5, jnp.float32, train)
        return layer.apply({"params": params}, h, 1, mask, rngs=rngs)[0]

    zero = jax.tree.map(jnp.zeros_like, params)
    ones = {"pointwise": {**zero["pointwise"], "bias": jnp.ones(4)}}  # what is left of a branch of ones
    kept = ours(ones, jnp.zeros_like(h), mixed)
    assert set(np.unique(kept)) == ({0, 2} if train else {0, 1})

    def plain(params, h, mixed):
        branch = jax.nn.relu(mixed) @ params["pointwise"]["kernel"] + params["pointwise"]["bias"][None, None]
        return (h + branch * kept) * mask[:, :, None]

    np.testing.assert_allclose(ours(params, h, mixed), plain(params, h, mixed), rtol=1e-5, atol=1e-6)
    gradients = (jax.grad(lambda *x, f=f: (weights * f(*x)).sum(), (0, 1, 2))(params, h, mixed) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *gradients)


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


def test_dropout_needs_a_sensible_rate():
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        Dropout(1.0).apply({}, jnp.ones(3), deterministic=True)
