"""Masks and masked means: every mean over snippets or videos in this package is a `masked_mean`.

    loss = masked_mean(jnp.abs(student - teacher), mask)

Masking uses `jnp.where(mask, x, 0)`, never `x * mask`, so NaN and infinity in the padding have no effect on values. The
gradient of `where` is 0 at masked places. An earlier operation with an infinite slope there turns that 0 into NaN, so
clear the padding with `mask_out` before the first such operation. `masked_pair` does this for the losses.
"""

import jax
import jax.numpy as jnp


def expand(mask: jax.Array, ndim: int) -> jax.Array:
    """Append axes of size 1 on the right of the mask `[B, ...]` until it has `ndim` axes."""
    return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))


def mask_out(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Replace `x` by 0 where `mask` is False; the axes of `mask` are the leading axes of `x`."""
    return jnp.where(expand(mask, x.ndim), x, jnp.zeros((), x.dtype))


def masked_mean(x: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Average `x` over the places where `mask` is True; an empty mask gives 0 and zero gradients.

    Args:
      x: any array, for instance `[B, T]` or `[B, T, H]`.
      mask: bool; its axes are the leading axes of `x` (`[B, T]` or `[B]`). An axis of size 1 is broadcast.
      axis: axes to reduce. None: all of them.

    Returns: the remaining axes, in the dtype of `x` (float32 for integers), summed in float32.
    Raises: ValueError if the mask does not match the leading axes of `x`.
    """
    aligned = all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=False))
    if mask.ndim > x.ndim or not aligned:
        raise ValueError(f"masked_mean: mask {mask.shape} must match the leading axes of x {x.shape}.")
    full = jnp.broadcast_to(expand(mask, x.ndim), x.shape)
    kept = jnp.where(full, x, jnp.zeros((), x.dtype))
    # In 16 bits the sum can overflow and the count can round, so both use at least float32.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    mean = jnp.sum(kept, axis=axis, dtype=wide) / jnp.maximum(jnp.sum(full, axis=axis, dtype=wide), 1)
    return mean.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else mean


def reduce_snippets(name: str, x: jax.Array, mask: jax.Array, reduction: str) -> jax.Array:
    """Apply the option `reduction` of a loss to its values.

    Args:
      name: the calling loss, for messages.
      x: `[B, T]`, or `[B, T, H]` for a loss that is a mean over channels.
      mask: `[B, T]` bool.
      reduction: 'mean': their `masked_mean`, a scalar. 'none': the value of each snippet, `[B, T]`, 0 in the padding.
        The `masked_mean` of these values is that scalar.

    Raises: ValueError for another reduction.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"{name}: reduction must be 'mean' or 'none', got {reduction!r}.")
    if reduction == "mean":
        return masked_mean(x, mask)
    return mask_out(jnp.mean(x, axis=tuple(range(mask.ndim, x.ndim))), mask)


def pair_mask(mask: jax.Array) -> jax.Array:
    """Mark the snippets that are valid and have a valid successor, `[B, T] -> [B, T-1]`."""
    return mask[:, 1:] & mask[:, :-1]


def real_videos(mask: jax.Array) -> jax.Array:
    """Mark the videos with at least one valid snippet, `[B, T] -> [B]`."""
    return jnp.any(mask, axis=1)


def unit(x: jax.Array, axis: int = -1, *, floor: jax.Array | float = 0.0) -> jax.Array:
    """Divide `x` by its L2 norm along `axis`; a squared norm of at most `floor` gives 0 with gradient 0."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    positive = square > jnp.maximum(floor, jnp.finfo(x.dtype).tiny)
    scale = jax.lax.rsqrt(jnp.where(positive, square, jnp.ones((), x.dtype)))
    return jnp.where(positive, x * scale, jnp.zeros((), x.dtype))


def check_mask(name: str, mask: jax.Array, **arrays: jax.Array | None) -> None:
    """Raise unless `mask` is a bool `[B, T]` and every array is `[B, T, ...]` of rank 3 with the same B and T.

    The arrays are given by argument name; None is skipped. The ValueError names the calling function `name`, the wrong
    argument, and either the shape of every argument or the type that is not an array.
    """
    given = {key: value for key, value in arrays.items() if value is not None}
    for key, value in {**given, "mask": mask}.items():
        if not hasattr(value, "ndim"):
            raise ValueError(f"{name}: {key} must be an array, not a {type(value).__name__}; jnp.asarray makes one.")
    shapes = ", ".join(f"{key} {value.shape}" for key, value in given.items())
    shapes = f"got {shapes}, mask {mask.shape} {mask.dtype}"
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"{name}: mask must be a bool [B, T]; {shapes}.")
    for key, value in given.items():
        if value.ndim != 3 or value.shape[:2] != mask.shape:
            raise ValueError(f"{name}: {key} must be [B, T, ...] with B and T of the mask; {shapes}.")


def masked_pair(
    name: str, student: jax.Array, teacher: jax.Array, mask: jax.Array, *, same_width: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Prepare the inputs of a distillation loss: check shapes, cast to float32, clear padding, freeze the teacher.

    Args:
      name: the calling loss, for messages.
      student, teacher: `[B, T, H]`; their widths may differ unless `same_width`.
      mask: `[B, T]` bool.
      same_width: whether the loss compares channel by channel.

    Returns: student and teacher in float32, 0 in the padding. No gradient reaches the teacher.
    Raises: ValueError if the shapes disagree.
    """
    check_mask(name, mask, student=student, teacher=teacher)
    if same_width and student.shape != teacher.shape:
        raise ValueError(
            f"{name}: student and teacher must have the same number of features; got student {student.shape}, "
            f"teacher {teacher.shape}, mask {mask.shape}. Choose equal `hidden`, or project one of them."
        )
    student = mask_out(student.astype(jnp.float32), mask)
    teacher = mask_out(jax.lax.stop_gradient(teacher).astype(jnp.float32), mask)
    return student, teacher
