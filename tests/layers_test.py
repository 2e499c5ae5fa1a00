"""The layers of temporal filters: the dilated convolution, products and shifts with gradients of their own, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models.dilated_convolution import DilatedConv, reorder, shift
from kd_jax.models.layers import Dropout, product


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


def test_dropout_needs_a_sensible_rate():
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        Dropout(1.0).apply({}, jnp.ones(3), deterministic=True)
