"""Squared Frobenius distances of `T×T` relation matrices, computed without such a matrix."""

import functools

import jax
import jax.numpy as jnp

# GPU and TPU multiply float32 in TF32 or bfloat16 by default. The error in a correlation, near 1e-3, is as large as the
# differences that the losses compare. On CPU the option changes nothing.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def gram(a: jax.Array) -> jax.Array:
    """`AᵀA` of every video, `[B, T, H] -> [B, H, H]`.

    The hand-written gradient `A (G + Gᵀ)` takes one product; automatic differentiation takes two.
    """
    return einsum("bth,btk->bhk", a, a)


gram.defvjp(
    lambda a: (gram(a), a), lambda a, gradient: (einsum("bth,bhk->btk", a, gradient + jnp.swapaxes(gradient, 1, 2)),)
)


def gram_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """`‖AAᵀ − BBᵀ‖²_F` of every video, `[B, T, H], [B, T, K] -> [B]`, from matrices of size max(H, K).

    The textbook identity `‖AᵀA‖² + ‖BᵀB‖² − 2‖AᵀB‖²` subtracts large, nearly equal numbers when A and B agree. With
    `E = A − B` and `U = A + B`, `AAᵀ − BBᵀ = ½(EUᵀ + UEᵀ)`, so `‖AAᵀ − BBᵀ‖² = ½( ⟨EᵀE, UᵀU⟩ + tr(MM) )` with
    `M = UᵀE`. Every term is already quadratic in the difference. Cancellation remains only for a rotation of the
    channels, `B = AQ` far from A: its distance is 0 up to float32 rounding.
    """
    a, b = _pad_to_same_width(a, b)
    e, u = a - b, a + b
    ee, uu, m = gram(e), gram(u), _product(u, e)
    return 0.5 * jnp.sum(ee * uu + m * jnp.swapaxes(m, 1, 2), axis=(1, 2))


def product_distance(x: jax.Array, a: jax.Array, y: jax.Array, b: jax.Array) -> jax.Array:
    """`‖XAᵀ − YBᵀ‖²_F` of every video, `[B]`; equals `gram_distance(a, b)` for X = A and Y = B.

    It avoids cancellation in the same way: `XAᵀ − YBᵀ = ½( (X − Y)(A + B)ᵀ + (X + Y)(A − B)ᵀ )`. X and A are
    `[B, T, H]`, Y and B `[B, T, K]`.
    """
    (x, y), (a, b) = _pad_to_same_width(x, y), _pad_to_same_width(a, b)
    left, right, sum_left, sum_right = x - y, a - b, x + y, a + b
    total = gram(left) * gram(sum_right) + gram(sum_left) * gram(right)
    total = total + 2 * _product(left, sum_left) * jnp.swapaxes(_product(right, sum_right), 1, 2)
    return 0.25 * jnp.sum(total, axis=(1, 2))


def num_pairs(mask: jax.Array) -> jax.Array:
    """T² of every video, `[B]`, where T counts its valid snippets; 1 if there is none."""
    return jnp.square(jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`AᵀB` of every video, `[B, T, H], [B, T, K] -> [B, H, K]`."""
    return einsum("bth,btk->bhk", a, b)


def _pad_to_same_width(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Append zero channels to the narrower array, which changes no product."""
    width = max(a.shape[-1], b.shape[-1])
    a, b = (jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1]))) for x in (a, b))
    return a, b
