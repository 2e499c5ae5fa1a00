"""Squared distances of matrices over pairs of snippets, without such a matrix."""

import functools

import jax
import jax.numpy as jnp

# GPU and TPU multiply float32 in TF32 or bfloat16 unless told otherwise: an error near 1e-3 in a correlation, as large
# as the differences that losses compare. On CPU nothing changes.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def gram(a: jax.Array) -> jax.Array:
    """`AᵀA` of every video, `[B, T, H] -> [B, H, H]`; its gradient is one product, `A (G + Gᵀ)`, not two."""
    return einsum("bth,btk->bhk", a, a)


gram.defvjp(
    lambda a: (gram(a), a),
    lambda a, gradient: (einsum("bth,bhk->btk", a, gradient + jnp.swapaxes(gradient, 1, 2)),),
)


def gram_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """`‖AAᵀ − BBᵀ‖²_F` of every video, `[B]`, of `a` `[B, T, H]` and `b` `[B, T, K]`, from products of H×H.

    The textbook identity `‖AᵀA‖² + ‖BᵀB‖² − 2‖AᵀB‖²` subtracts large, nearly equal numbers when A and B agree. With
    `E = A − B` and `U = A + B`, `AAᵀ − BBᵀ = ½(EUᵀ + UEᵀ)`, hence `‖AAᵀ − BBᵀ‖² = ½( ⟨EᵀE, UᵀU⟩ + tr(MM) )`,
    `M = UᵀE`: every term is already quadratic in the difference. (What can still cancel is a pure rotation of the
    channels, `B = AQ` far from A: its distance is 0 up to float32 rounding.)
    """
    a, b = _same_width(a, b)
    e, u = a - b, a + b
    ee, uu, m = gram(e), gram(u), _products(u, e)
    return 0.5 * jnp.sum(ee * uu + m * jnp.swapaxes(m, 1, 2), axis=(1, 2))


def product_distance(x: jax.Array, a: jax.Array, y: jax.Array, b: jax.Array) -> jax.Array:
    """`‖XAᵀ − YBᵀ‖²_F` of every video, `[B]`, in the manner of `gram_distance`, which it is for X = A and Y = B.

    `XAᵀ − YBᵀ = ½( (X − Y)(A + B)ᵀ + (X + Y)(A − B)ᵀ )`.
    """
    (x, y), (a, b) = _same_width(x, y), _same_width(a, b)
    left, right, sum_left, sum_right = x - y, a - b, x + y, a + b
    total = gram(left) * gram(sum_right) + gram(sum_left) * gram(right)
    total = total + 2 * _products(left, sum_left) * jnp.swapaxes(_products(right, sum_right), 1, 2)
    return 0.25 * jnp.sum(total, axis=(1, 2))


def num_pairs(mask: jax.Array) -> jax.Array:
    """T² of every video, `[B]`, T its valid snippets; 1 where there is none."""
    return jnp.square(jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1))


def _products(a, b):
    return einsum("bth,btk->bhk", a, b)


def _same_width(a, b):
    """Zero columns, which leave every product as it is, make the widths agree."""
    width = max(a.shape[-1], b.shape[-1])
    return tuple(jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1]))) for x in (a, b))
