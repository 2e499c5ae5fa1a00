"""Masked means: values by hand, any content of the padding, and empty masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import masking


def test_masked_mean_by_hand():
    x = jnp.array([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    assert masking.masked_mean(x, mask) == pytest.approx((1 + 2 + 4) / 3)
    np.testing.assert_allclose(masking.masked_mean(x, mask, axis=1), [1.5, 4.0])
    np.testing.assert_allclose(masking.masked_mean(x, mask, axis=0), [2.5, 2.0, 0.0])


def test_masked_mean_aligns_the_mask_with_the_leading_axes():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_allclose(masking.masked_mean(x, mask, axis=1), [[1.0, 2.0], [0.0, 0.0]])
    assert masking.masked_mean(x, mask) == pytest.approx((0 + 1 + 2 + 3) / 4)


def test_masked_mean_of_an_empty_mask_is_zero_with_zero_gradient():
    x, mask = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)
    value, gradient = jax.value_and_grad(masking.masked_mean)(x, mask)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_masked_mean_ignores_the_content_of_the_padding():
    mask = jnp.array([[True, True, False]])
    for padding in (jnp.nan, jnp.inf, -1e30):
        x = jnp.array([[1.0, 3.0, padding]])
        value, gradient = jax.value_and_grad(masking.masked_mean)(x, mask)
        assert value == 2
        np.testing.assert_array_equal(gradient, [[0.5, 0.5, 0.0]])


def test_masked_mean_refuses_a_mask_that_does_not_fit():
    with pytest.raises(ValueError, match=r"mask \(3, 2\).*x \(2, 3\)"):
        masking.masked_mean(jnp.zeros((2, 3)), jnp.ones((3, 2), bool))


def test_pairs_and_real_videos():
    mask = jnp.array([[True, True, False, True], [False, False, False, False]])
    np.testing.assert_array_equal(masking.pair_mask(mask), [[True, False, False], [False] * 3])
    np.testing.assert_array_equal(masking.real_videos(mask), [True, False])


def test_unit_vectors_and_the_zero_vector():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(masking.unit(x), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(masking.unit(x) * jnp.array([[1.0, 2.0], [3.0, 4.0]])))(x)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0)


def test_masked_pair_names_arguments_and_shapes():
    mask = jnp.ones((2, 3), bool)
    with pytest.raises(
        ValueError, match=r"loss: teacher must be \[B, T.*student \(2, 3, 4\), teacher \(2, 5, 4\), mask"
    ):
        masking.masked_pair("loss", jnp.zeros((2, 3, 4)), jnp.zeros((2, 5, 4)), mask)
    with pytest.raises(ValueError, match=r"the same number of features; got student \(2, 3, 4\), teacher \(2, 3, 6\)"):
        masking.masked_pair("loss", jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 6)), mask)
    with pytest.raises(ValueError, match=r"mask must be a bool \[B, T\].*float32"):
        masking.masked_pair("loss", jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 4)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"loss: student must be an array, not a list; jnp.asarray makes one"):
        masking.masked_pair("loss", [[[1.0]]], jnp.zeros((1, 1, 1)), jnp.ones((1, 1), bool))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_masked_mean_of_16_bit_numbers_neither_overflows_nor_miscounts(dtype):
    x, mask = jnp.full((2, 40_000), 60.0, dtype), jnp.ones((2, 40_000), bool)
    mean = masking.masked_mean(x, mask)
    assert mean.dtype == dtype and float(mean) == 60.0  # the sum, 4.8 million, and the count exceed float16
    np.testing.assert_array_equal(masking.masked_mean(x, mask, axis=1), jnp.full(2, 60.0, dtype))
