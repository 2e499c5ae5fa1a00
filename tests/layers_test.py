"""Layers of temporal filters, and the hand-written CPU kernels against plain expressions, in value and gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import Detector, cpu_kernels
from kd_jax.models.layers import Dropout
from kd_jax.models.ss_tcn import DilatedLayer


@pytest.mark.parametrize(("length", "dilation", "most"), [(9, 2, 2), (3, 4, 4), (32, 4, 16), (48, 8, 8), (1, 1, 4)])
def test_dilated_convolution_and_its_gradients_are_those_of_the_library(length, dilation, most):
    x, weights = (jax.random.normal(jax.random.key(seed), (2, length, width)) for seed, width in ((0, 4), (1, 5)))
    library = nn.Conv(5, (3,), kernel_dilation=dilation, bias_init=nn.initializers.normal())
    params = jax.jit(library.init)(jax.random.key(2), x)["params"]

    def ours(params, x):
        return cpu_kernels.mix_by_convolution({"dilated": params}, x, jnp.int32(dilation), most)

    def theirs(params, x):
        return library.apply({"params": params}, x)

    np.testing.assert_allclose(jax.jit(ours)(params, x), theirs(params, x), rtol=1e-5, atol=1e-6)
    gradients = (
        jax.jit(jax.grad(lambda p, x, f=f: (weights * f(p, x)).sum(), (0, 1)))(params, x) for f in (ours, theirs)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *gradients)


def test_shift_moves_snippets_over_time_and_its_gradient_moves_them_back():
    x, weights = (jax.random.normal(jax.random.key(seed), (2, 7, 4)) for seed in range(2))
    moved = cpu_kernels.shift(jnp.arange(1.0, 4.0).reshape(1, 3, 1), -1, 2)
    np.testing.assert_array_equal(moved[0, :, 0], [2, 3, 0])
    found = jax.grad(lambda x: (weights * cpu_kernels.shift(x, jnp.int32(2), 4)).sum())(x)
    expected = jnp.stack([weights[:, min(t + 2, 6)] * (t + 2 <= 6) for t in range(7)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_split_pairs_snippets_a_dilation_apart_and_merge_puts_them_back(dilation):
    split, merge = cpu_kernels.split, cpu_kernels.merge
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
    params = {"kernel": rng.standard_normal((4, 4), np.float32), "bias": rng.standard_normal(4, np.float32)}
    key = jax.random.key(1) if train else None

    def ours(params, h, mixed):
        stacked = {"pointwise": jax.tree.map(lambda p: p[None], params)}
        return cpu_kernels.residual_layers(stacked, h, mask, key, mix=lambda *_: mixed, rate=0.5)

    ones = {"kernel": jnp.zeros((4, 4)), "bias": jnp.ones(4)}  # dropout of a branch of ones
    kept = ours(ones, jnp.zeros_like(h), mixed)
    assert set(np.unique(kept)) == ({0, 2} if train else {0, 1})

    def plain(params, h, mixed):
        branch = jax.nn.relu(mixed) @ params["kernel"] + params["bias"][None, None]
        return (h + branch * kept) * mask[:, :, None]

    np.testing.assert_allclose(ours(params, h, mixed), plain(params, h, mixed), rtol=1e-5, atol=1e-6)
    gradients = (jax.grad(lambda *x, f=f: (weights * f(*x)).sum(), (0, 1, 2))(params, h, mixed) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *gradients)


def test_initialisation_is_uniform_within_one_over_root_fan_in():
    layer = DilatedLayer(64, dilation=1, dropout=0.0, dtype=jnp.float32)
    variables = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 3, 64)), jnp.ones((1, 3), bool))
    for name, fan_in in {"dilated": 3 * 64, "pointwise": 64}.items():
        bound = fan_in**-0.5
        for leaf in jax.tree.leaves(variables["params"][name]):
            assert 0.9 * bound < np.abs(leaf).max() <= bound
        assert np.std(variables["params"][name]["kernel"]) == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("rate", "dropped"), [(0.5, 0.5), (0.1, 26 / 256), (0.999, 255 / 256)])
def test_dropout_on_a_cpu_drops_its_rounded_rate_and_keeps_the_mean(rate, dropped):
    x = jnp.ones((20, 50, 101))  # a width that is not divisible by four
    y = np.asarray(Dropout(rate).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)}))
    assert np.mean(y == 0) == pytest.approx(dropped, abs=0.006)
    np.testing.assert_allclose(y[y > 0], 1 / (1 - dropped), rtol=1e-6)
    kept = (y > 0).reshape(-1)  # the bytes of one word are independent
    assert np.mean(kept[1:] & kept[:-1]) == pytest.approx((1 - dropped) ** 2, abs=0.006)


def test_plain_dropout_is_that_of_flax(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "by_platform", lambda plain, on_cpu: plain)
    x, rngs = jax.random.normal(jax.random.key(0), (2, 9, 5)), {"dropout": jax.random.key(1)}
    for deterministic in (True, False):
        ours, theirs = (
            module(0.3).apply({}, x, deterministic=deterministic, rngs=rngs) for module in (Dropout, nn.Dropout)
        )
        np.testing.assert_array_equal(ours, theirs)


def test_dropout_needs_a_sensible_rate():
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        Detector("ss_tcn", 3, dropout=1.0)
