"""Atomic distillation: snippet by snippet, a contrast between the right teacher snippet and a wrong one.

loss = atomic(student.features, teacher.features, mask, labels=labels, key=key, num_negatives=4)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.masking import check_mask, mask_out, masked_mean, masked_pair, unit

_FORMS = ("nce", "infonce", "margin")


class ProjectionHead(nn.Module):
    """Linear map to `width` dimensions, then L2 normalisation: `[B, T, H] -> [B, T, width]`, float32.

    It owns parameters, hence it stands outside the loss; a caller who wants it applies one head to the student and one
    to the teacher first. Off by default (METHOD §2, Atomic [default]). The teacher's head learns nothing from `atomic`,
    which stops the gradient at its second argument.
    """

    width: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return unit(nn.Dense(self.width, name="linear")(x.astype(jnp.float32)))


def atomic(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    *,
    labels: jax.Array | None = None,
    key: jax.Array | None = None,
    form: str = "nce",
    temperature: float = 0.1,
    num_negatives: int = 1,
    noise_ratio: float = 1.0,
    margin: float | None = None,
    normalize: bool = False,
    negatives: jax.Array | None = None,
) -> jax.Array:
    """Contrast of every student snippet with the teacher's snippet at the same time and with other teacher snippets.

    With `s` the student's snippet, `p` the teacher's at the same time and `q_n` the negatives:

    - `nce` [default]: `h(u, v) = e^{cos(u,v)/τ} / (e^{cos(u,v)/τ} + r)`, r the noise ratio N/M;
      `L = −mean_t[ log h(s, p) + Σ_n log(1 − h(s, q_n)) ]`. With `r = 1`, h is `σ(cos/τ)`.
    - `infonce`: `L = −mean_t log( e^{cos(s,p)/τ} / (e^{cos(s,p)/τ} + Σ_n e^{cos(s,q_n)/τ}) )`.
    - `margin`: `L = mean_t[ d(s, p) + Σ_n max(0, m − d(s, q_n)) ]`, d the mean over channels of the squared difference.

    A negative that does not exist contributes nothing; its snippet's positive still does.

    Args:
      student: `[B, T, H]`.
      teacher: `[B, T, H]`; no gradient reaches it.
      mask: `[B, T]` bool.
      labels: `[B, T, C]`, active where positive: negatives are drawn from snippets with another label set. None: from
        all other snippets.
      key: PRNG key of the draw; needed unless `negatives` are given or `num_negatives` is 0.
      form: 'nce', 'infonce' or 'margin'.
      temperature: τ of 'nce' and 'infonce'.
      num_negatives: N, negatives per snippet.
      noise_ratio: r = N/M of 'nce'.
      margin: m of 'margin'. None: 1 for features as they are; 2/H, the distance of orthogonal features, for normalised
        ones (whose distance never exceeds 4/H).
      normalize: L2-normalise the features before the distance of 'margin'; the other forms use the cosine anyway.
      negatives: `[B, T, N]` int, indices into the teacher's flattened `B*T` snippets, instead of a draw; an index that
        is negative or points at padding stands for none.

    Returns:
      A scalar, float32, the mean over valid snippets of all videos; 0 for an empty mask.

    Raises:
      ValueError: if the shapes disagree, the form is unknown, an option is out of range, or negatives can neither be
        drawn nor are given.

    References:
      METHOD §2, Atomic. N = 1 and the positive are [supp]; the three forms, τ = 0.1, r = 1, the margins, the sum over
      negatives and the choice of negatives are [default].
    """
    if form not in _FORMS:
        raise ValueError(f"atomic: form must be one of {_FORMS}, got {form!r}.")
    for name, value in {"temperature": temperature, "noise_ratio": noise_ratio}.items():
        if isinstance(value, (int, float)) and not 0 < value < np.inf:
            raise ValueError(f"atomic: {name} must be a finite number above 0, got {value}.")
    if isinstance(margin, (int, float)) and not 0 <= margin < np.inf:
        raise ValueError(f"atomic: margin must be a finite number of at least 0, got {margin}.")
    if num_negatives < 0:
        raise ValueError(f"atomic: num_negatives must be at least 0, got {num_negatives}.")
    student, teacher = masked_pair("atomic", student, teacher, mask)
    if negatives is not None:
        if negatives.ndim != 3 or negatives.shape[:2] != mask.shape:
            raise ValueError(
                f"atomic: negatives must be [B, T, N]; got negatives {negatives.shape}, mask {mask.shape}."
            )
        index = jnp.clip(negatives, 0, mask.size - 1)
        exists = mask[:, :, None] & (negatives >= 0) & mask.reshape(-1)[index]
    elif num_negatives and key is None:
        raise ValueError("atomic: negatives are drawn at random, so a key is needed; pass key=, or negatives=.")
    else:
        index, exists = sample_negatives(labels, mask, key, num_negatives)

    if form != "margin" or normalize:
        student, teacher = unit(student), unit(teacher)
    positive = teacher
    negative = teacher.reshape(mask.size, teacher.shape[-1])[index]  # [B, T, N, H]
    if form == "margin":
        if margin is None:
            margin = 2 / student.shape[-1] if normalize else 1.0
        near = jnp.mean(jnp.square(student - positive), axis=-1)
        far = jnp.mean(jnp.square(student[:, :, None] - negative), axis=-1)
        return masked_mean(near + jnp.sum(mask_out(jax.nn.relu(margin - far), exists), axis=-1), mask)

    score_positive = jnp.sum(student * positive, axis=-1) / temperature
    score_negative = jnp.sum(student[:, :, None] * negative, axis=-1) / temperature
    if form == "nce":  # h = σ(score − log r), so log h and log(1 − h) are two stable log-sigmoids
        shift = jnp.log(jnp.asarray(noise_ratio, jnp.float32))
        rejected = mask_out(jax.nn.log_sigmoid(shift - score_negative), exists)
        loss = -jax.nn.log_sigmoid(score_positive - shift) - jnp.sum(rejected, axis=-1)
    else:
        scores = jnp.concatenate([score_positive[:, :, None], jnp.where(exists, score_negative, -jnp.inf)], axis=-1)
        loss = jax.nn.logsumexp(scores, axis=-1) - score_positive
    return masked_mean(loss, mask)


def sample_negatives(
    labels: jax.Array | None, mask: jax.Array, key: jax.Array | None, num_negatives: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Draw negatives uniformly, with replacement, from the valid snippets of the batch with another label set.

    Exact and linear in memory: the snippets are sorted by label set, so those with the snippet's own set are one range
    of the sorted list, and a draw from the rest is a draw of `n_valid − range size` numbers that skips that range.
    Label sets are compared by a 64-bit hash (two words): two different sets collide with a probability near 2⁻⁶².

    Draw n of the k-th valid snippet is number `k·N + n` of one stream. JAX's threefry generator (partitionable, its
    default) yields the same i-th number whatever the length, so masked snippets and videos change no draw.

    Args:
      labels: `[B, T, C]`, a class is active where positive. None: any valid snippet but the same one.
      mask: `[B, T]` bool.
      key: PRNG key; may be None if `num_negatives` is 0.
      num_negatives: N.

    Returns:
      Indices `[B, T, N]` into the `B*T` flattened snippets, and `[B, T, N]` bool: False where the snippet is padding or
      no snippet of the batch has another label set.

    Raises:
      ValueError: if the shapes disagree.
    """
    check_mask("sample_negatives", mask, labels=labels)
    shape, size = (*mask.shape, num_negatives), mask.size
    if num_negatives == 0 or size == 0:
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    valid = mask.reshape(-1)
    rank = jnp.cumsum(valid, dtype=jnp.int32) - 1
    words = (rank.astype(jnp.uint32),) if labels is None else _hash_sets(labels.reshape(size, -1) > 0)

    position = jnp.arange(size, dtype=jnp.int32)
    order = jnp.lexsort((*words, ~valid))  # the last key is the first criterion: padding stands at the end
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
    """Two uint32 per row of `active` `[M, C]`: sums, modulo 2³², of one fixed random odd number per active class."""
    factors = np.random.default_rng(20210806).integers(0, 2**32, (active.shape[-1], 2), dtype=np.uint32) | np.uint32(1)
    return tuple(
        jnp.sum(jnp.where(active, factors[None, :, word], np.uint32(0)), axis=-1, dtype=jnp.uint32) for word in (0, 1)
    )
