"""Contrastive representation distillation: student against a memory of teacher snippets, and the other way round.

    embed = ProjectionHead()                                            # one for the student, one for the teacher
    memory = new_memory(jax.random.key(0), num_snippets)             # of all training snippets, on the device
    loss, memory = crd(embedded_student, embedded_teacher, mask, memory, index, negatives)

What it owns, two embeddings and the memory, belongs to the caller's training state; the loss changes nothing in place.
"""

from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.grams import einsum
from kd_jax.losses.owned.projection import ProjectionHead
from kd_jax.masking import check_mask, mask_out, masked_mean
from kd_jax.types import Batch, Outputs

_GUARD = 1e-7  # of the public code


@flax.struct.dataclass
class Memory:
    """Embeddings of all N training snippets, as they were when last seen.

    Attributes:
      student, teacher: `[N, E]` float32.
      normalizers: `[2]`, of the scores of student and teacher, fixed by the first batch; 0 before it.
    """

    student: jax.Array
    teacher: jax.Array
    normalizers: jax.Array


def new_memory(key: jax.Array, num_snippets: int, width: int = 128) -> Memory:
    """Random embeddings, uniform within ±√(3/E), as the public code has them."""
    bound = (width / 3) ** -0.5
    student, teacher = jax.random.uniform(key, (2, num_snippets, width), jnp.float32, -bound, bound)
    return Memory(student, teacher, jnp.zeros(2))


def crd(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    memory: Memory,
    index: jax.Array,
    negatives: jax.Array,
    *,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> tuple[jax.Array, Memory]:
    """Tells each snippet's own place in the memory of the other side from K others.

    With `v` the student's embedding, `m_k` the teacher's memory of snippet k, N snippets and `P = K/N`:
    `x_k = exp(v·m_k / τ) / Z`, `L_student = −mean_t[ log x_own/(x_own + P) + Σ_k log P/(x_k + P) ]`, Z being N times
    the mean of the exponentials of the first batch; `L_teacher` the same with the roles changed; `L` is their sum. The
    memory is read before it is changed; then the rows of the batch become `m·old + (1 − m)·new`, of length 1.

    Args:
      student, teacher: `[B, T, E]` embeddings of length 1; both get a gradient, so freeze the teacher's features before
        its embedding.
      mask: `[B, T]` bool.
      memory: of all training snippets.
      index: `[B, T]` int, the snippets' own rows of the memory, from 0 to N - 1, which a compiled program cannot check;
        in the padding they do not matter.
      negatives: `[K]` int, rows for all snippets, or `[B, T, K]`, rows of each.
      temperature: τ.
      momentum: m.

    Returns:
      A scalar, float32, the mean over valid snippets of all videos, 0 for an empty mask; and the memory afterwards.

    Raises:
      ValueError: if the shapes disagree or an option is out of range.

    References:
      Tian et al., Contrastive Representation Distillation, ICLR 2020; equal to its public code (RepDistiller), whose K
      is 16384 and whose weight is 0.8 (METHOD §5).
    """
    check_mask("crd", mask, student=student, teacher=teacher)
    if not 0 < temperature < np.inf or not 0 <= momentum < 1:
        raise ValueError(f"crd: temperature must be above 0 and momentum in [0, 1); got {temperature}, {momentum}.")
    if student.shape != teacher.shape or memory.student.shape[1:] != student.shape[2:]:
        raise ValueError(
            f"crd: student, teacher and memory must have equally wide embeddings; got student {student.shape}, teacher "
            f"{teacher.shape}, memory {memory.student.shape}."
        )
    if index.shape != mask.shape or negatives.shape[:-1] not in ((), mask.shape):
        raise ValueError(
            f"crd: index must be [B, T] and negatives [K] or [B, T, K]; got index {index.shape}, negatives "
            f"{negatives.shape}, mask {mask.shape}."
        )
    count, place = len(memory.student), jnp.where(mask, index, 0)
    student, teacher = (mask_out(x.astype(jnp.float32), mask) for x in (student, teacher))
    chance = negatives.shape[-1] / count

    def side(v, bank, normalizer):
        bank = jax.lax.stop_gradient(bank)
        own = jnp.sum(v * bank[place], axis=-1, keepdims=True)
        spelling = "bte,ke->btk" if negatives.ndim == 1 else "bte,btke->btk"
        others = einsum(spelling, v, bank[negatives])
        scores = jnp.exp(jnp.concatenate([own, others], axis=-1) / temperature)
        fresh = jax.lax.stop_gradient(masked_mean(scores, mask)) * count
        normalizer = jnp.where(normalizer > 0, normalizer, fresh)
        x = scores / jnp.where(normalizer > 0, normalizer, 1.0)
        loss = -jnp.log(x[..., 0] / (x[..., 0] + chance + _GUARD))
        loss -= jnp.sum(jnp.log(chance / (x[..., 1:] + chance + _GUARD)), axis=-1)
        return masked_mean(loss, mask), normalizer

    loss_student, z_student = side(student, memory.teacher, memory.normalizers[0])
    loss_teacher, z_teacher = side(teacher, memory.student, memory.normalizers[1])

    def remember(bank, new):
        rows = momentum * bank[place] + (1 - momentum) * jax.lax.stop_gradient(new)
        rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
        outside = jnp.where(mask, index, count)  # the padding writes nowhere
        return bank.at[outside].set(rows, mode="drop")

    after = Memory(
        remember(memory.student, student), remember(memory.teacher, teacher), jnp.stack([z_student, z_teacher])
    )
    return loss_student + loss_teacher, after


class ContrastiveDistillation(nn.Module):
    """`crd` as a term of a training: it owns the embeddings, and the memory in its collection 'memory'.

    `module.apply(variables, student, teachers, batch, rngs={'sample': key}, mutable=['memory'])` gives the loss, summed
    over teachers, and the new memory. The negatives are the same K rows for all snippets of a batch, drawn anew in
    every step: one product instead of K gathered rows for every snippet [default].

    Attributes:
      num_snippets: N, of all training videos; `batch.first` says where in the memory a video begins.
      width: E.
      num_negatives: K.
      temperature, momentum: as in `crd`.
    """

    num_snippets: int
    width: int = 128
    num_negatives: int = 16384
    temperature: float = 0.07
    momentum: float = 0.5

    @nn.compact
    def __call__(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> jax.Array:
        for name in ("width", "num_negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"crd: {name} must be at least 1, got {getattr(self, name)}.")
        negatives = jax.random.randint(self.make_rng("sample"), (self.num_negatives,), 0, self.num_snippets)
        index = batch.first[:, None] + jnp.arange(batch.mask.shape[1])[None]
        own, total = ProjectionHead(self.width, name="student")(mask_out(student.features, batch.mask)), 0.0
        for i, teacher in enumerate(teachers):
            features = mask_out(jax.lax.stop_gradient(teacher.features), batch.mask)
            theirs = ProjectionHead(self.width, name=f"teacher_{i}")(features)
            memory = self.variable(
                "memory", f"memory_{i}", lambda: new_memory(self.make_rng("params"), self.num_snippets, self.width)
            )
            options = {"temperature": self.temperature, "momentum": self.momentum}
            loss, after = crd(own, theirs, batch.mask, memory.value, index, negatives, **options)
            if not self.is_initializing():
                memory.value = after
            total += loss
        return total
