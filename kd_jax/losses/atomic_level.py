"""Atomic distillation: each student snippet is compared with the teacher's snippet at the same time and with others.

loss = atomic_nce(student.features, teacher.features, mask, labels=labels, key=key, num_negatives=4)
loss = atomic(student.features, teacher.features, mask, form="margin", labels=labels, key=key, margin=0.5)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.masking import check_mask, mask_out, masked_pair, reduce_snippets, unit


def atomic(student: jax.Array, teacher: jax.Array, mask: jax.Array, *, form: str = "nce", **options: Any) -> jax.Array:
    """Compute atomic distillation in one of its forms.

    Args:
      student, teacher: `[B, T, H]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      form: a key of `ATOMIC_FORMS`: 'nce' (`atomic_nce`), 'infonce' (`atomic_infonce`) or 'margin' (`atomic_margin`).
      **options: the keyword arguments of that function.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    Raises: ValueError if the form is unknown or an option is out of range; TypeError for an option of another form.
    """
    if form not in ATOMIC_FORMS:
        raise ValueError(f"atomic: form must be one of {', '.join(ATOMIC_FORMS)}; got {form!r}.")
    return ATOMIC_FORMS[form](student, teacher, mask, **options)


def atomic_nce(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    *,
    labels: jax.Array | None = None,
    key: jax.Array | None = None,
    negatives: jax.Array | None = None,
    num_negatives: int = 1,
    temperature: float = 0.1,
    noise_ratio: float = 1.0,
    reduction: str = "mean",
) -> jax.Array:
    """Noise-contrastive estimation: accepts the matching pair and rejects each negative independently.

    With student snippet `s`, teacher snippet `p` at the same time, negatives `q_n`, temperature τ and noise ratio r:
    `h(u, v) = e^{cos(u,v)/τ} / (e^{cos(u,v)/τ} + r)`, `L = −mean_t[ log h(s, p) + Σ_n log(1 − h(s, q_n)) ]`. With
    `r = 1`, h is `σ(cos/τ)`. A missing negative contributes 0; the positive of its snippet still counts.

    Args:
      student, teacher: `[B, T, H]`; no gradient reaches the teacher.
      mask: `[B, T]` bool.
      labels: `[B, T, C]`; a class is active where positive. Negatives are drawn from snippets with another label set.
        None: from all other snippets.
      key: PRNG key of the draw. Required unless `negatives` are given or `num_negatives` is 0.
      negatives: `[B, T, N]` int, indices into the teacher's flattened `B*T` snippets, instead of a draw. A negative
        index, or one that points at padding, means no negative.
      num_negatives: N, negatives per snippet.
      temperature: τ.
      noise_ratio: r; N/M in Contrastive Representation Distillation, where M counts the training snippets.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    Raises: ValueError if an option is out of range, or neither a key nor negatives are given.
    References: The atomic level of Augmented-RGB. N = 1 and the positive are [supp]; this form,
      τ = 0.1, r = 1, the sum over negatives and their choice are [default].
    """
    _check_positive("atomic_nce", temperature=temperature, noise_ratio=noise_ratio)
    student, teacher = masked_pair("atomic_nce", student, teacher, mask)
    index, exists = _negatives("atomic_nce", labels, mask, key, negatives, num_negatives)
    positive, negative = _cosines(student, teacher, index)
    # h = σ(cos/τ − log r), so log h and log(1 − h) are two stable log-sigmoids.
    shift = jnp.log(jnp.asarray(noise_ratio, jnp.float32))
    rejected = mask_out(jax.nn.log_sigmoid(shift - negative / temperature), exists)
    accepted = jax.nn.log_sigmoid(positive / temperature - shift)
    return reduce_snippets("atomic_nce", -accepted - jnp.sum(rejected, axis=-1), mask, reduction)


def atomic_infonce(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    *,
    labels: jax.Array | None = None,
    key: jax.Array | None = None,
    negatives: jax.Array | None = None,
    num_negatives: int = 1,
    temperature: float = 0.1,
    reduction: str = "mean",
) -> jax.Array:
    """InfoNCE: classifies the matching pair among the negatives.

    `L = −mean_t log( e^{cos(s,p)/τ} / (e^{cos(s,p)/τ} + Σ_n e^{cos(s,q_n)/τ}) )`.

    Args, returns and errors are those of `atomic_nce`, without `noise_ratio`.

    References: The atomic level of Augmented-RGB [default].
    """
    _check_positive("atomic_infonce", temperature=temperature)
    student, teacher = masked_pair("atomic_infonce", student, teacher, mask)
    index, exists = _negatives("atomic_infonce", labels, mask, key, negatives, num_negatives)
    positive, negative = _cosines(student, teacher, index)
    positive, negative = positive / temperature, jnp.where(exists, negative / temperature, -jnp.inf)
    scores = jnp.concatenate([positive[:, :, None], negative], axis=-1)
    return reduce_snippets("atomic_infonce", jax.nn.logsumexp(scores, axis=-1) - positive, mask, reduction)


def atomic_margin(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    *,
    labels: jax.Array | None = None,
    key: jax.Array | None = None,
    negatives: jax.Array | None = None,
    num_negatives: int = 1,
    margin: float | None = None,
    normalize: bool = False,
    reduction: str = "mean",
) -> jax.Array:
    """Margin loss: pulls the matching pair together and pushes each negative a margin away.

    `L = mean_t[ d(s, p) + Σ_n max(0, m − d(s, q_n)) ]`, where d is the mean over channels of the squared difference.

    Args:
      student, teacher, mask, labels, key, negatives, num_negatives: as in `atomic_nce`.
      margin: m. None: 1 without `normalize`; with it 2/H, the distance of orthogonal features (the largest is 4/H).
      normalize: whether to L2-normalise the features first.
      reduction: 'mean', or 'none' for the value of each snippet.

    Returns: a float32 scalar, the mean over valid snippets, 0 for an empty mask; with reduction 'none' `[B, T]`, 0 in
      the padding.
    Raises: ValueError as in `atomic_nce`, and if the margin is negative or not finite.
    References: The atomic level of Augmented-RGB; this form and its margins are [default].
    """
    if isinstance(margin, (int, float)) and not 0 <= margin < np.inf:
        raise ValueError(f"atomic_margin: margin must be a finite number of at least 0, got {margin}.")
    student, teacher = masked_pair("atomic_margin", student, teacher, mask)
    index, exists = _negatives("atomic_margin", labels, mask, key, negatives, num_negatives)
    if normalize:
        student, teacher = unit(student), unit(teacher)
    if margin is None:
        margin = 2 / student.shape[-1] if normalize else 1.0
    near = jnp.mean(jnp.square(student - teacher), axis=-1)
    far = jnp.mean(jnp.square(student[:, :, None] - _snippets(teacher, index)), axis=-1)
    pushed = jnp.sum(mask_out(jax.nn.relu(margin - far), exists), axis=-1)
    return reduce_snippets("atomic_margin", near + pushed, mask, reduction)


ATOMIC_FORMS: dict[str, Callable[..., jax.Array]]
ATOMIC_FORMS = {"nce": atomic_nce, "infonce": atomic_infonce, "margin": atomic_margin}


def _check_positive(name: str, **options: float) -> None:
    """Raise unless every option is a finite number above 0; traced values pass."""
    for option, value in options.items():
        if isinstance(value, (int, float)) and not 0 < value < np.inf:
            raise ValueError(f"{name}: {option} must be a finite number above 0, got {value}.")


def _negatives(name, labels, mask, key, negatives, num_negatives) -> tuple[jax.Array, jax.Array]:
    """Return indices `[B, T, N]` into the flattened snippets, given or drawn, and whether each exists, `[B, T, N]`."""
    if num_negatives < 0:
        raise ValueError(f"{name}: num_negatives must be at least 0, got {num_negatives}.")
    if negatives is None:
        if num_negatives and key is None:
            raise ValueError(f"{name}: negatives are drawn at random, so a key is needed; pass key=, or negatives=.")
        return sample_negatives(labels, mask, key, num_negatives)
    if negatives.ndim != 3 or negatives.shape[:2] != mask.shape:
        raise ValueError(f"{name}: negatives must be [B, T, N]; got negatives {negatives.shape}, mask {mask.shape}.")
    index = jnp.clip(negatives, 0, mask.size - 1)
    return index, mask[:, :, None] & (negatives >= 0) & mask.reshape(-1)[index]


def _snippets(features: jax.Array, index: jax.Array) -> jax.Array:
    """The snippets at `index` `[B, T, N]` of the flattened snippets, `[B, T, N, H]`."""
    return features.reshape(-1, features.shape[-1])[index]


def _cosines(student: jax.Array, teacher: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines of student snippets with the teacher's at the same time, `[B, T]`, and with negatives, `[B, T, N]`."""
    student, teacher = unit(student), unit(teacher)
    positive = jnp.sum(student * teacher, axis=-1)
    return positive, jnp.sum(student[:, :, None] * _snippets(teacher, index), axis=-1)


def sample_negatives(
    labels: jax.Array | None, mask: jax.Array, key: jax.Array | None, num_negatives: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Draw negatives uniformly, with replacement, from the valid snippets of the batch with another label set.

    The draw is exact and linear in memory. The snippets are sorted by label set, so those with the snippet's own set
    are one range of the sorted list. A draw from the rest is one of `n_valid − range size` numbers, and skips that
    range. Label sets are compared by a 64-bit hash (two words). Two sets collide with a probability near 2⁻⁶².

    Draw n of the k-th valid snippet is number `k·N + n` of one stream. In JAX's threefry generator (partitionable, the
    default) the i-th number does not depend on the length, so masked snippets and videos change no draw.

    Args:
      labels: `[B, T, C]`; a class is active where positive. None: draw from all other valid snippets.
      mask: `[B, T]` bool.
      key: PRNG key; may be None if `num_negatives` is 0.
      num_negatives: N.

    Returns: indices `[B, T, N]` into the `B*T` flattened snippets, and `[B, T, N]` bool: False where the snippet is
      padding or no snippet of the batch has another label set.
    """
    check_mask("sample_negatives", mask, labels=labels)
    shape, size = (*mask.shape, num_negatives), mask.size
    if num_negatives == 0 or size == 0:
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    assert key is not None, "sample_negatives: a key is needed; pass key=."
    valid = mask.reshape(-1)
    rank = jnp.cumsum(valid, dtype=jnp.int32) - 1
    words = (rank.astype(jnp.uint32),) if labels is None else _hash_sets(labels.reshape(size, -1) > 0)

    position = jnp.arange(size, dtype=jnp.int32)
    order = jnp.lexsort((*words, ~valid))  # the last key is the first criterion: padding comes last
    place = jnp.zeros(size, jnp.int32).at[order].set(position, unique_indices=True)  # the inverse of order
    differs = jnp.zeros(size - 1, bool)
    for word in (*words, valid):
        differs |= word[order][1:] != word[order][:-1]
    true = jnp.ones(1, bool)
    start = jax.lax.cummax(jnp.where(jnp.concatenate([true, differs]), position, 0))[place]
    stop = jax.lax.cummin(jnp.where(jnp.concatenate([differs, true]), position + 1, size), reverse=True)[place]
    others = jnp.sum(valid, dtype=jnp.int32) - (stop - start)
    exists = valid & (others > 0)

    bits = jax.random.bits(key, (size, num_negatives), jnp.uint32)[rank]  # the bias of the modulus is below size / 2³²
    drawn = (bits % jnp.maximum(others, 1).astype(jnp.uint32)[:, None]).astype(jnp.int32)
    drawn = drawn + jnp.where(drawn >= start[:, None], (stop - start)[:, None], 0)
    index = order[jnp.clip(drawn, 0, size - 1)].astype(jnp.int32)
    return index.reshape(shape), jnp.broadcast_to(exists.reshape(*mask.shape, 1), shape)


def _hash_sets(active: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hash each row of `active` `[M, C]` to two uint32: sums modulo 2³² of a fixed random odd number per class."""
    factors = np.random.default_rng(20210806).integers(0, 2**32, (active.shape[-1], 2), dtype=np.uint32) | np.uint32(1)
    first, second = (jnp.where(active, factors[None, :, word], np.uint32(0)) for word in (0, 1))
    return jnp.sum(first, axis=-1, dtype=jnp.uint32), jnp.sum(second, axis=-1, dtype=jnp.uint32)
