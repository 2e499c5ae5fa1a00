"""Relational distillation: compares distances, angles and similarities between the snippets of a video.

The widths of student and teacher may differ. Each loss is a mean over real videos.
"""

import functools

import jax
import jax.numpy as jnp

from kd_jax.losses.grams import einsum, gram_distance, num_pairs, product_distance
from kd_jax.masking import mask_out, masked_mean, masked_pair, real_videos, unit


def rkd_distance(
    student: jax.Array, teacher: jax.Array, mask: jax.Array, *, key: jax.Array | None = None, max_anchors: int = 512
) -> jax.Array:
    """RKD-D: compares the Euclidean distances between the snippets of a video, each divided by their mean.

    `D_ij = ‖f_i − f_j‖ / mean of the positive distances`, `L = mean_ij smooth-L1(D^S_ij − D^T_ij)` over all pairs,
    including i = j. The gradient includes that of the student's mean distance.

    In a video with more than `max_anchors` valid snippets, i runs over `max_anchors` snippets drawn with the key, which
    makes time and memory linear in T. The mean over pairs and the mean distance are then estimates. The estimated mean
    distance makes the loss too small: by 5 % with 3 anchors of 7 snippets, 3 % with 10 of 100, and 0.4 % with 512 of
    2000; several times more where the norms of the snippets differ much.

    Args:
      student, teacher: `[B, T, H]` and `[B, T, K]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      key: PRNG key of the draw; required if T exceeds `max_anchors`.
      max_anchors: maximum number of snippets that are compared with all others.

    Returns: a float32 scalar, the mean over videos with valid snippets; 0 for an empty mask.
    Raises: ValueError if an option is out of range or the key is missing.
    References: Park et al., Relational Knowledge Distillation, CVPR 2019. Equal to the public code. Weight 25.
    """
    student, teacher = masked_pair("rkd_distance", student, teacher, mask, same_width=False)
    index, exists = _sample_snippets("rkd_distance", mask, key, "max_anchors", max_anchors)
    compare = exists[:, :, None] & mask[:, None]
    compare &= index[:, :, None] != jnp.arange(mask.shape[1])[None, None]

    def relative_distances(features: jax.Array) -> jax.Array:
        """`[B, anchors, T]`: distances divided by their mean."""
        # Centring keeps the distances and reduces rounding.
        features = mask_out(features - masked_mean(features, mask, axis=1)[:, None], mask)
        anchors = jnp.take_along_axis(features, index[:, :, None], axis=1)
        square = jnp.sum(anchors**2, axis=-1)[:, :, None] + jnp.sum(features**2, axis=-1)[:, None]
        square = square - 2 * einsum("brh,bth->brt", anchors, features)
        # The floor is that of the public code: equal snippets count as a pair and have no gradient.
        distance = jnp.where(compare, jnp.sqrt(jnp.where(compare & (square > 1e-12), square, 1e-12)), 0)
        total, count = jnp.sum(distance, axis=(1, 2)), jnp.sum(compare, axis=(1, 2), dtype=jnp.float32)
        return distance / jnp.where(count > 0, total / jnp.maximum(count, 1), 1.0)[:, None, None]

    student, teacher = relative_distances(student), relative_distances(teacher)
    difference = jnp.abs(student - teacher)
    small = jnp.minimum(difference, 1.0)
    huber = 0.5 * small**2 + (difference - small)
    difference = jnp.sum(mask_out(huber, compare), axis=(1, 2))
    pairs = jnp.sum(exists, axis=1, dtype=jnp.float32) * jnp.sum(mask, axis=1, dtype=jnp.float32)
    return masked_mean(difference / jnp.maximum(pairs, 1), real_videos(mask))


def rkd_angle(
    student: jax.Array, teacher: jax.Array, mask: jax.Array, *, key: jax.Array | None = None, max_snippets: int = 200
) -> jax.Array:
    """RKD-A: compares the angles of all triangles of snippets of a video.

    `c_ijk = cos ∠(f_j − f_i, f_k − f_i)`, `L = mean_ijk smooth-L1(c^S_ijk − c^T_ijk)` over all triples. Triples with
    two equal snippets count and contribute 0.

    Time grows as N³ + N²·H. In a video with more than `max_snippets` valid snippets, N = `max_snippets` are drawn
    without replacement. The estimate is unbiased: it is the mean over the drawn triples of three different snippets,
    times the share of such triples in the whole video.

    Args:
      student, teacher: `[B, T, H]` and `[B, T, K]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      key: PRNG key of the draw; required if T exceeds `max_snippets`.
      max_snippets: N, maximum number of snippets whose triangles are compared.

    Returns: a float32 scalar, the mean over videos with valid snippets; 0 for an empty mask.
    Raises: ValueError if an option is out of range or the key is missing.
    References: Park et al., Relational Knowledge Distillation, CVPR 2019. Equal to the public code up to
      `max_snippets`. Weight 50.
    """
    student, teacher = masked_pair("rkd_angle", student, teacher, mask, same_width=False)
    index, exists = _sample_snippets("rkd_angle", mask, key, "max_snippets", max_snippets)
    student, teacher = (jnp.take_along_axis(x, index[:, :, None], axis=1) for x in (student, teacher))
    total = _sum_angle_losses(*(_squared_distances(x, exists) for x in (student, teacher)))

    def num_triples(valid: jax.Array) -> jax.Array:
        """The number of ordered triples of three different snippets of every video, `[B]`."""
        n = jnp.sum(valid, axis=1, dtype=jnp.float32)
        return n * (n - 1) * (n - 2)

    num_all = jnp.sum(mask, axis=1, dtype=jnp.float32) ** 3
    share = num_triples(mask) / jnp.maximum(num_all, 1)
    return masked_mean(total / jnp.maximum(num_triples(exists), 1) * share, real_videos(mask))


def _squared_distances(x: jax.Array, valid: jax.Array) -> jax.Array:
    """`‖x_i − x_j‖²` of all pairs of a video, `[B, N, H] -> [B, N, N]`; 0 where one of the pair is not valid."""
    # Centring keeps the distances and reduces rounding.
    x = mask_out(x - masked_mean(x, valid, axis=1)[:, None], valid)
    return mask_out(jnp.swapaxes(mask_out(_all_squared_distances(x), valid), 1, 2), valid)


@jax.custom_vjp
def _all_squared_distances(x: jax.Array) -> jax.Array:
    """`Σ_h (x_ih − x_jh)²`, `[B, N, H] -> [B, N, N]`, without subtracting large squares.

    The hand-written gradient avoids the `[B, N, N, H]` array that automatic differentiation would store.
    """
    rows = jax.lax.map(lambda i: jnp.sum(jnp.square(x - x[:, i][:, None]), axis=-1), jnp.arange(x.shape[1]))
    return jnp.swapaxes(rows, 0, 1)


def _all_squared_distances_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    both = gradient + jnp.swapaxes(gradient, 1, 2)
    return (2 * (x * jnp.sum(both, axis=-1, keepdims=True) - einsum("bij,bjh->bih", both, x)),)


_all_squared_distances.defvjp(lambda x: (_all_squared_distances(x), x), _all_squared_distances_backward)


@jax.custom_vjp
def _sum_angle_losses(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """`Σ_ijk smooth-L1(c^S_ijk − c^T_ijk)` of every video, `[B]`, from squared distances `[B, N, N]`.

    By the law of cosines `c_ijk = (s_ij + s_ik − s_jk) / (2 √s_ij √s_ik)`, so the cost of a triangle does not depend on
    H. The cosine is 0 if one of these two sides is 0. The hand-written gradient keeps memory at N² instead of N³: one
    scan over k computes the value and the gradient.
    """
    return _sum_angle_losses_forward(student, teacher)[0]


def _sum_angle_losses_forward(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum, and its gradient with respect to the student's squared distances."""

    def inverse_sides(square: jax.Array) -> jax.Array:
        return jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    def cosines(square: jax.Array, inverse: jax.Array, k: jax.Array) -> jax.Array:
        """`c_ijk`, `[B, i, j]`: the cosine at i between j and k."""
        sides = square + square[:, :, k][:, :, None] - square[:, k][:, None]
        return 0.5 * sides * (inverse * inverse[:, :, k][:, :, None])

    inverse_student, inverse_teacher = inverse_sides(student), inverse_sides(teacher)

    def add_triangles_with(sums: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[tuple, jax.Array]:
        total, gradient = sums
        cosine, inverse_to_k = cosines(student, inverse_student, k), inverse_student[:, :, k][:, :, None]
        difference = cosine - cosines(teacher, inverse_teacher, k)
        slope = jnp.clip(difference, -1, 1)
        total += slope * (difference - 0.5 * slope)
        scaled = slope * inverse_student
        # The derivative by s_ij, twice that of one cosine because c_ikj = c_ijk; then by s_jk, the opposite side.
        gradient += scaled * (inverse_to_k - cosine * inverse_student)
        return (total, gradient), -0.5 * jnp.sum(scaled * inverse_to_k, axis=1)

    start = jnp.zeros_like(student), jnp.zeros_like(student)
    (total, gradient), opposite = jax.lax.scan(add_triangles_with, start, jnp.arange(student.shape[1]))
    return jnp.sum(total, axis=(1, 2)), gradient + jnp.swapaxes(opposite, 0, 1)


_sum_angle_losses.defvjp(
    _sum_angle_losses_forward, lambda gradient, upstream: (gradient * upstream[:, None, None], jnp.zeros_like(gradient))
)


def _sample_snippets(
    name: str, mask: jax.Array, key: jax.Array | None, option: str, limit: int
) -> tuple[jax.Array, jax.Array]:
    """Choose at most `limit` valid snippets of every video: indices `[B, N]`, and whether each exists, `[B, N]`.

    The n-th valid snippet of the b-th video gets the same random number whatever the padding. The snippets with the
    largest numbers are chosen.
    """
    length = mask.shape[1]
    if limit < 1:
        raise ValueError(f"{name}: {option} must be at least 1, got {limit}.")
    if length <= limit:
        return jnp.broadcast_to(jnp.arange(length)[None], mask.shape), jnp.asarray(mask)
    if key is None:
        raise ValueError(
            f"{name}: {option}={limit} of {length} snippets are drawn at random, so a key is needed; pass key=, or a "
            f"larger {option}."
        )
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(mask)))
    numbers = jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(keys) >> 1
    rank = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    numbers = jnp.where(mask, jnp.take_along_axis(numbers, rank, axis=1).astype(jnp.int32), -1)
    chosen, index = jax.lax.top_k(numbers, limit)
    return index, chosen >= 0


def similarity_preserving(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """SP: compares the similarities of snippets, `G = FFᵀ` with L2-normalised rows, `L = ‖G_S − G_T‖²_F / T²`.

    No `T×T` matrix is computed: row i of G is `f_iᵀFᵀ / n_i` with `n_i² = f_iᵀ(FᵀF)f_i`.

    Args:
      student, teacher: `[B, T, H]` and `[B, T, K]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.

    Returns: a float32 scalar, the mean over videos with valid snippets; 0 for an empty mask.
    References: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019. Equal to RepDistiller's code.
      Weight 3000.
    """
    student, teacher = masked_pair("similarity_preserving", student, teacher, mask, same_width=False)

    def factors(features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The factors X and A of `G = XAᵀ`."""
        # The loss does not depend on the scale of the features, so the scale needs no gradient. Dividing by it avoids
        # subtracting large numbers when the scales of student and teacher differ.
        square = jnp.sum(jax.lax.stop_gradient(features) ** 2, axis=(1, 2), keepdims=True)
        features = features * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
        squares = einsum("bth,btk->bhk", features, features)
        norm = jnp.sum(einsum("bth,bhk->btk", features, squares) * features, axis=-1, keepdims=True)
        positive = norm > 1e-20
        return jnp.where(positive, features * jax.lax.rsqrt(jnp.where(positive, norm, 1.0)), 0.0), features

    distance = product_distance(*factors(student), *factors(teacher))
    return masked_mean(distance / num_pairs(mask), real_videos(mask))


def pairwise_similarity(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """SKD, pair-wise: compares the cosines of all pairs of snippets of a video, `L = ‖C_S − C_T‖²_F / T²`.

    Equals `global_context(relation='snippet')` without centring over channels. No `T×T` matrix is computed.

    Args:
      student, teacher: `[B, T, H]` and `[B, T, K]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.

    Returns: a float32 scalar, the mean over videos with valid snippets; 0 for an empty mask.
    References: Liu et al., Structured Knowledge Distillation, CVPR 2019. Weight 0.5.
    """
    student, teacher = masked_pair("pairwise_similarity", student, teacher, mask, same_width=False)
    return masked_mean(gram_distance(unit(student), unit(teacher)) / num_pairs(mask), real_videos(mask))
