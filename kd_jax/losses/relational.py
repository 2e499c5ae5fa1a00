"""Relations between the snippets of a video: distances, angles, similarities; student's against teacher's.

The widths of student and teacher may differ, and each loss is a mean over real videos.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from kd_jax.losses.grams import einsum, gram_distance, num_pairs, product_distance
from kd_jax.masking import mask_out, masked_mean, masked_pair, real_videos, unit


def rkd_distance(
    student: jax.Array, teacher: jax.Array, mask: jax.Array, *, key: jax.Array | None = None, max_anchors: int = 512
) -> jax.Array:
    """RKD-D: the Euclidean distances between the snippets of a video, each divided by their mean.

    `D_ij = ‖f_i − f_j‖ / mean of the positive distances`, `L = mean_ij smooth-L1(D^S_ij − D^T_ij)` over all pairs,
    i = j included. The mean of the student's distances is differentiated too.

    Of a video with more than `max_anchors` valid snippets, i runs over so many of them, drawn anew with every key, so
    that time and memory are linear in T. The mean over pairs is then an estimate, and so is the mean distance that it
    is divided by, which makes the loss too small: by 5 % with 3 anchors of 7 snippets, 3 % with 10 of 100, several
    times that where the snippets' norms differ much, by 0.4 % with 512 of 2000.

    Args:
      student: `[B, T, H]`.
      teacher: `[B, T, K]`; no gradient reaches it.
      mask: `[B, T]` bool.
      key: PRNG key of the draw; needed if T exceeds `max_anchors`.
      max_anchors: the most snippets that are compared with all others.

    Returns:
      A scalar, float32; videos without valid snippets do not count, and if there is no other the loss is 0.

    Raises:
      ValueError: if the shapes disagree, an option is out of range or the key is missing.

    References:
      Park et al., Relational Knowledge Distillation, CVPR 2019; equal to its public code. Its weight is 25 (METHOD §5).
    """
    student, teacher = masked_pair("rkd_distance", student, teacher, mask, same_width=False)
    place, exists = _draw("rkd_distance", mask, key, max_anchors=max_anchors)
    compare = exists[:, :, None] & mask[:, None]
    compare &= place[:, :, None] != jnp.arange(mask.shape[1])[None, None]

    def relative(features):
        """`[B, anchors, T]`: distances, divided by their mean."""
        # The same distances, from smaller numbers.
        features = mask_out(features - masked_mean(features, mask, axis=1)[:, None], mask)
        anchors = jnp.take_along_axis(features, place[:, :, None], axis=1)
        square = jnp.sum(anchors**2, axis=-1)[:, :, None] + jnp.sum(features**2, axis=-1)[:, None]
        square = square - 2 * einsum("brh,bth->brt", anchors, features)
        # The floor is the public code's: equal snippets stay a pair, without a gradient.
        distance = jnp.where(compare, jnp.sqrt(jnp.where(compare & (square > 1e-12), square, 1e-12)), 0)
        total, count = jnp.sum(distance, axis=(1, 2)), jnp.sum(compare, axis=(1, 2), dtype=jnp.float32)
        return distance / jnp.where(count > 0, total / jnp.maximum(count, 1), 1.0)[:, None, None]

    difference = jnp.sum(mask_out(optax.huber_loss(relative(student), relative(teacher)), compare), axis=(1, 2))
    pairs = jnp.sum(exists, axis=1, dtype=jnp.float32) * jnp.sum(mask, axis=1, dtype=jnp.float32)
    return masked_mean(difference / jnp.maximum(pairs, 1), real_videos(mask))


def rkd_angle(
    student: jax.Array, teacher: jax.Array, mask: jax.Array, *, key: jax.Array | None = None, max_snippets: int = 200
) -> jax.Array:
    """RKD-A: the angles of all triangles of snippets of a video.

    `c_ijk = cos ∠(f_j − f_i, f_k − f_i)`, `L = mean_ijk smooth-L1(c^S_ijk − c^T_ijk)` over all triples, those with two
    equal snippets (which add nothing) included.

    Time grows as N³ + N²·H. Of a video with more than `max_snippets` valid snippets, N = `max_snippets` of them are
    drawn, without replacement; the estimate is unbiased: the mean over its triples of three different snippets, times
    the share of such triples in the whole video.

    Args:
      student: `[B, T, H]`.
      teacher: `[B, T, K]`; no gradient reaches it.
      mask: `[B, T]` bool.
      key: PRNG key of the draw; needed if T exceeds `max_snippets`.
      max_snippets: N.

    Returns:
      A scalar, float32; videos without valid snippets do not count, and if there is no other the loss is 0.

    Raises:
      ValueError: if the shapes disagree, an option is out of range or the key is missing.

    References:
      Park et al., Relational Knowledge Distillation, CVPR 2019; equal to its public code up to `max_snippets`. Its
      weight is 50 (METHOD §5).
    """
    student, teacher = masked_pair("rkd_angle", student, teacher, mask, same_width=False)
    place, exists = _draw("rkd_angle", mask, key, max_snippets=max_snippets)
    student, teacher = (jnp.take_along_axis(x, place[:, :, None], axis=1) for x in (student, teacher))
    total = _compare_angles(*(_squared_distances(x, exists) for x in (student, teacher)))

    def triples(valid):  # of three different snippets
        n = jnp.sum(valid, axis=1, dtype=jnp.float32)
        return n * (n - 1) * (n - 2)

    everything = jnp.sum(mask, axis=1, dtype=jnp.float32) ** 3
    share = triples(mask) / jnp.maximum(everything, 1)
    return masked_mean(total / jnp.maximum(triples(exists), 1) * share, real_videos(mask))


def _squared_distances(x: jax.Array, valid: jax.Array) -> jax.Array:
    """`‖x_i − x_j‖²` of all pairs of a video, `[B, N, H] -> [B, N, N]`; 0 where one is not valid."""
    x = mask_out(x - masked_mean(x, valid, axis=1)[:, None], valid)  # the same distances, from smaller numbers
    return mask_out(jnp.swapaxes(mask_out(_differences(x), valid), 1, 2), valid)


@jax.custom_vjp
def _differences(x: jax.Array) -> jax.Array:
    """`Σ_h (x_ih − x_jh)²`, `[B, N, H] -> [B, N, N]`, without an array of N·N·H or a difference of large squares."""
    rows = jax.lax.map(lambda i: jnp.sum(jnp.square(x - x[:, i][:, None]), axis=-1), jnp.arange(x.shape[1]))
    return jnp.swapaxes(rows, 0, 1)


def _differences_backward(x, gradient):
    both = gradient + jnp.swapaxes(gradient, 1, 2)
    return (2 * (x * jnp.sum(both, axis=-1, keepdims=True) - einsum("bij,bjh->bih", both, x)),)


_differences.defvjp(lambda x: (_differences(x), x), _differences_backward)


@jax.custom_vjp
def _compare_angles(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """`Σ_ijk smooth-L1(c^S_ijk − c^T_ijk)` of every video, `[B]`, from squared distances `[B, N, N]`.

    By the law of cosines `c_ijk = (s_ij + s_ik − s_jk) / (2 √s_ij √s_ik)`, so a triangle costs the same few operations
    however many features there are; it is 0 where a side is. Value and gradient come from one pass, which takes every
    k in turn and keeps nothing larger than N·N.
    """
    return _compare_angles_forward(student, teacher)[0]


def _compare_angles_forward(student, teacher):
    def inverse(square):
        return jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    def cosines(square, scale, k):
        """`[B, i, j]`, at i between j and k."""
        sides = square + square[:, :, k][:, :, None] - square[:, k][:, None]
        return 0.5 * sides * (scale * scale[:, :, k][:, :, None])

    scales = inverse(student), inverse(teacher)

    def third(sums, k):
        total, gradient = sums
        ours, towards_k = cosines(student, scales[0], k), scales[0][:, :, k][:, :, None]
        difference = ours - cosines(teacher, scales[1], k)
        slope = jnp.clip(difference, -1, 1)
        total += slope * (difference - 0.5 * slope)
        scaled = slope * scales[0]
        # Of c_ijk by s_ij, which is twice a side, for c_ikj equals it; and by s_jk, the side across.
        gradient += scaled * (towards_k - ours * scales[0])
        return (total, gradient), -0.5 * jnp.sum(scaled * towards_k, axis=1)

    start = jnp.zeros_like(student), jnp.zeros_like(student)
    (total, gradient), across = jax.lax.scan(third, start, jnp.arange(student.shape[1]))
    return jnp.sum(total, axis=(1, 2)), gradient + jnp.swapaxes(across, 0, 1)


_compare_angles.defvjp(
    _compare_angles_forward, lambda gradient, pull: (gradient * pull[:, None, None], jnp.zeros_like(gradient))
)


def _draw(name, mask, key, **most):
    """Places `[B, N]` of at most N valid snippets of every video, and whether they exist, `[B, N]`.

    The n-th valid snippet of the b-th video takes the same number from the key whatever the padding; the snippets with
    the largest numbers are drawn.
    """
    (option, count), length = *most.items(), mask.shape[1]
    if count < 1:
        raise ValueError(f"{name}: {option} must be at least 1, got {count}.")
    if length <= count:
        return jnp.broadcast_to(jnp.arange(length)[None], mask.shape), jnp.asarray(mask)
    if key is None:
        raise ValueError(
            f"{name}: of {length} snippets {option}={count} are drawn at random, so a key is needed; pass key=, or a "
            f"larger {option}."
        )
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(mask)))
    numbers = jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(keys) >> 1
    rank = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    numbers = jnp.where(mask, jnp.take_along_axis(numbers, rank, axis=1).astype(jnp.int32), -1)
    drawn, place = jax.lax.top_k(numbers, count)
    return place, drawn >= 0


def similarity_preserving(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """SP: which snippets of a video are similar, `G = FFᵀ` with L2-normalised rows, `L = ‖G_S − G_T‖²_F / T²`.

    No `T×T` matrix exists: row i of G is `f_iᵀFᵀ / n_i` with `n_i² = f_iᵀ(FᵀF)f_i`.

    Args:
      student: `[B, T, H]`.
      teacher: `[B, T, K]`; no gradient reaches it.
      mask: `[B, T]` bool.

    Returns:
      A scalar, float32; videos without valid snippets do not count, and if there is no other the loss is 0.

    Raises:
      ValueError: if the shapes disagree.

    References:
      Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019; equal to RepDistiller's code. Its weight
      is 3000 (METHOD §5).
    """
    student, teacher = masked_pair("similarity_preserving", student, teacher, mask, same_width=False)

    def factors(features):
        # The loss does not know the scale of the features, so it is a constant here; without it, student and teacher of
        # different scales would agree only in the difference of large numbers.
        square = jnp.sum(jax.lax.stop_gradient(features) ** 2, axis=(1, 2), keepdims=True)
        features = features * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
        squares = einsum("bth,btk->bhk", features, features)
        norm = jnp.sum(einsum("bth,bhk->btk", features, squares) * features, axis=-1, keepdims=True)
        positive = norm > 1e-20
        return jnp.where(positive, features * jax.lax.rsqrt(jnp.where(positive, norm, 1.0)), 0.0), features

    distance = product_distance(*factors(student), *factors(teacher))
    return masked_mean(distance / num_pairs(mask), real_videos(mask))


def pairwise_similarity(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """SKD, pair-wise: the cosines of all pairs of snippets of a video, `L = ‖C_S − C_T‖²_F / T²`.

    The same as `global_context(relation='snippet')` without centring the channels; no `T×T` matrix exists.

    Args:
      student: `[B, T, H]`.
      teacher: `[B, T, K]`; no gradient reaches it.
      mask: `[B, T]` bool.

    Returns:
      A scalar, float32; videos without valid snippets do not count, and if there is no other the loss is 0.

    Raises:
      ValueError: if the shapes disagree.

    References:
      Liu et al., Structured Knowledge Distillation, CVPR 2019. Its weight is 0.5 (METHOD §5).
    """
    student, teacher = masked_pair("pairwise_similarity", student, teacher, mask, same_width=False)
    return masked_mean(gram_distance(unit(student), unit(teacher)) / num_pairs(mask), real_videos(mask))
