"""The one mask and the one division: every mean over snippets or videos of this package is a `masked_mean`.

    loss = masked_mean(jnp.abs(student - teacher), mask)

`jnp.where(mask, x, 0)`, never `x * mask`: whatever stands in the padding, NaN included, stays there. The gradient of
`where` is 0 at masked places, but 0 times the infinite slope of an operation further up is NaN again: clear the padding
with `mask_out` before the first such operation (`masked_pair` does so for the losses).
"""

import jax
import jax.numpy as jnp


def expand(mask: jax.Array, ndim: int) -> jax.Array:
    """The mask `[B, ...]` with axes of size 1 appended on the right until it has `ndim` axes."""
    return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))


def mask_out(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x` with 0 where `mask` is False; `mask` is aligned with the leading axes of `x`."""
    return jnp.where(expand(mask, x.ndim), x, jnp.zeros((), x.dtype))


def masked_mean(x: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Mean of `x` over the places where `mask` is True; an empty mask gives 0 and zero gradients.

    Args:
      x: any array, for instance `[B, T]` or `[B, T, H]`.
      mask: bool, its axes are the leading axes of `x` (`[B, T]` or `[B]`); an axis of size 1 is broadcast.
      axis: axes to reduce, by default all of them.

    Returns:
      The mean, of the dtype of `x` (float32 for integers), summed in float32: a scalar, or an array of the axes that
      remain.

    Raises:
      ValueError: if the mask is not aligned with the leading axes of `x`.
    """
    aligned = all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=False))
    if mask.ndim > x.ndim or not aligned:
        raise ValueError(f"masked_mean: mask {mask.shape} must match the leading axes of x {x.shape}.")
    full = jnp.broadcast_to(expand(mask, x.ndim), x.shape)
    kept = jnp.where(full, x, jnp.zeros((), x.dtype))
    # Sum and count of half-width numbers would overflow or round, so both are at least float32.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    mean = jnp.sum(kept, axis=axis, dtype=wide) / jnp.maximum(jnp.sum(full, axis=axis, dtype=wide), 1)
    return mean.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else mean


def pair_mask(mask: jax.Array) -> jax.Array:
    """`[B, T-1]`, True where a snippet and its successor are both valid, from the mask `[B, T]`."""
    return mask[:, 1:] & mask[:, :-1]


def real_videos(mask: jax.Array) -> jax.Array:
    """`[B]`, True where a video has at least one valid snippet, from the mask `[B, T]`."""
    return jnp.any(mask, axis=1)


def unit(x: jax.Array, axis: int = -1, *, floor: jax.Array | float = 0.0) -> jax.Array:
    """`x` divided by its L2 norm along `axis`; a vector whose squared norm is at most `floor` becomes 0, gradient 0."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    positive = square > jnp.maximum(floor, jnp.finfo(x.dtype).tiny)
    scale = jax.lax.rsqrt(jnp.where(positive, square, jnp.ones((), x.dtype)))
    return jnp.where(positive, x * scale, jnp.zeros((), x.dtype))


def check_mask(name: str, mask: jax.Array, **arrays: jax.Array) -> None:
    """Raise unless `mask` is a bool `[B, T]` and every array is `[B, T, ...]` of rank 3 with the same B and T.

    Args:
      name: the function that checks, for the message.
      mask: `[B, T]` bool.
      **arrays: by argument name; None is skipped.

    Raises:
      ValueError: naming the argument at fault and the shape of every argument, or its type if it is no array.
    """
    arrays = {key: value for key, value in arrays.items() if value is not None}
    for key, value in {**arrays, "mask": mask}.items():
        if not hasattr(value, "ndim"):
            raise ValueError(f"{name}: {key} must be an array, not a {type(value).__name__}; jnp.asarray makes one.")
    shapes = ", ".join(f"{key} {value.shape}" for key, value in arrays.items())
    shapes = f"got {shapes}, mask {mask.shape} {mask.dtype}"
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"{name}: mask must be a bool [B, T]; {shapes}.")
    for key, value in arrays.items():
        if value.ndim != 3 or value.shape[:2] != mask.shape:
            raise ValueError(f"{name}: {key} must be [B, T, ...] with B and T of the mask; {shapes}.")


def masked_pair(
    name: str, student: jax.Array, teacher: jax.Array, mask: jax.Array, *, same_width: bool = True
) -> tuple[jax.Array, jax.Array]:
    """What every distillation loss does first: check shapes, go to float32, clear the padding, freeze the teacher.

    Args:
      name: the loss that asks, for messages.
      student: `[B, T, H]`.
      teacher: `[B, T, H]`; its width may differ unless `same_width`.
      mask: `[B, T]` bool.
      same_width: whether the loss compares channel by channel.

    Returns:
      Student and teacher, float32, 0 in the padding; no gradient reaches the teacher.

    Raises:
      ValueError: if the shapes disagree.
    """
    check_mask(name, mask, student=student, teacher=teacher)
    if same_width and student.shape != teacher.shape:
        raise ValueError(
            f"{name}: student and teacher must have equally many features; got student {student.shape}, "
            f"teacher {teacher.shape}, mask {mask.shape}. Choose equal `hidden`, or project one of them."
        )
    student = mask_out(student.astype(jnp.float32), mask)
    teacher = mask_out(jax.lax.stop_gradient(teacher).astype(jnp.float32), mask)
    return student, teacher
