"""Contrastive representation distillation (CRD): compares each side with a memory of the other side's snippets.

    embed = ProjectionHead()                                # one for the student, one for the teacher
    memory = new_memory(jax.random.key(0), num_snippets)    # of all training snippets, on the device
    loss, memory = crd(embedded_student, embedded_teacher, mask, memory, index, negatives)

The two embeddings and the memory belong to the caller's training state. The loss returns a new memory.
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

_EPSILON = 1e-7  # from the public code


@flax.struct.dataclass
class Memory:
    """Embeddings of all N training snippets, each from the last step that read the snippet.

    Attributes:
      student, teacher: `[N, E]` float32.
      normalizers: `[2]`, the normalizers Z of the student's and the teacher's scores. The first batch sets them; 0
        before it.
    """

    student: jax.Array
    teacher: jax.Array
    normalizers: jax.Array


def new_memory(key: jax.Array, num_snippets: int, width: int = 128) -> Memory:
    """Make a memory of random embeddings `[num_snippets, width]`, uniform within ±√(3/width) as in the public code."""
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
    """Distinguish each snippet's own row in the other side's memory from K other rows.

    With the student's embedding `v`, the teacher's memory `m_k` of snippet k, N snippets and `P = K/N`:
    `x_k = exp(v·m_k / τ) / Z`, `L_student = −mean_t[ log x_own/(x_own + P) + Σ_k log P/(x_k + P) ]`. Z is N times the
    mean of the exponentials of the first batch. `L_teacher` swaps the two sides, and `L` is their sum. The memory is
    read before it changes; then the rows of the batch become `m·old + (1 − m)·new`, scaled to length 1.

    Args:
      student, teacher: `[B, T, E]` embeddings of length 1. Both get a gradient, so freeze the teacher's features before
        its embedding.
      mask: `[B, T]` bool.
      memory: the memory of all training snippets.
      index: `[B, T]` int, the snippets' own rows of the memory, 0 to N − 1. A compiled program cannot check the range.
        Values in the padding have no effect.
      negatives: `[K]` int, rows for all snippets, or `[B, T, K]`, rows for each snippet.
      temperature, momentum: τ and m.

    Returns: a float32 scalar, the mean over valid snippets of all videos, 0 for an empty mask; and the new memory.
    Raises: ValueError if an option is out of range.
    References: Tian et al., Contrastive Representation Distillation, ICLR 2020. Equal to its public code
      (RepDistiller), which uses K = 16384. Weight 0.8.
    """
    if not 0 < temperature < np.inf or not 0 <= momentum < 1:
        raise ValueError(f"crd: temperature must be above 0 and momentum in [0, 1); got {temperature}, {momentum}.")
    _check_shapes(student, teacher, mask, memory, index, negatives)
    student, teacher = (mask_out(x.astype(jnp.float32), mask) for x in (student, teacher))

    def contrast(embedded: jax.Array, bank: jax.Array, normalizer: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = _scores(embedded, bank, jnp.where(mask, index, 0), negatives, temperature)
        first = jax.lax.stop_gradient(masked_mean(scores, mask)) * len(bank)
        normalizer = jnp.where(normalizer > 0, normalizer, first)
        x, chance = scores / jnp.where(normalizer > 0, normalizer, 1.0), negatives.shape[-1] / len(bank)
        loss = -jnp.log(x[..., 0] / (x[..., 0] + chance + _EPSILON))
        loss -= jnp.sum(jnp.log(chance / (x[..., 1:] + chance + _EPSILON)), axis=-1)
        return masked_mean(loss, mask), normalizer

    loss_student, z_student = contrast(student, memory.teacher, memory.normalizers[0])
    loss_teacher, z_teacher = contrast(teacher, memory.student, memory.normalizers[1])
    pairs = (memory.student, student), (memory.teacher, teacher)
    first, second = (_update(bank, embedded, mask, index, momentum) for bank, embedded in pairs)
    return loss_student + loss_teacher, Memory(first, second, jnp.stack([z_student, z_teacher]))


def _check_shapes(student, teacher, mask, memory: Memory, index, negatives) -> None:
    check_mask("crd", mask, student=student, teacher=teacher)
    if student.shape != teacher.shape or memory.student.shape[1:] != student.shape[2:]:
        raise ValueError(
            f"crd: student, teacher and memory must have embeddings of the same width; got student {student.shape}, "
            f"teacher {teacher.shape}, memory {memory.student.shape}."
        )
    if index.shape != mask.shape or negatives.shape[:-1] not in ((), mask.shape):
        raise ValueError(
            f"crd: index must be [B, T] and negatives [K] or [B, T, K]; got index {index.shape}, negatives "
            f"{negatives.shape}, mask {mask.shape}."
        )


def _scores(embedded: jax.Array, bank: jax.Array, rows, negatives, temperature: float) -> jax.Array:
    """`exp(v·m / τ)`, `[B, T, 1 + K]`: the snippet's own row first, then the negatives."""
    bank = jax.lax.stop_gradient(bank)
    own = jnp.sum(embedded * bank[rows], axis=-1, keepdims=True)
    others = einsum("bte,ke->btk" if negatives.ndim == 1 else "bte,btke->btk", embedded, bank[negatives])
    return jnp.exp(jnp.concatenate([own, others], axis=-1) / temperature)


def _update(bank: jax.Array, embedded: jax.Array, mask: jax.Array, index: jax.Array, momentum: float) -> jax.Array:
    """Move the rows of the valid snippets towards their new embeddings."""
    rows = momentum * bank[jnp.where(mask, index, 0)] + (1 - momentum) * jax.lax.stop_gradient(embedded)
    rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    outside = len(bank)  # padded snippets write to this row, which mode="drop" ignores
    return bank.at[jnp.where(mask, index, outside)].set(rows, mode="drop")


class ContrastiveDistillation(nn.Module):
    """`crd` as a distillation term: owns the embeddings, and the memory in the collection 'memory'.

    `module.apply(variables, student, teachers, batch, rngs={'sample': key}, mutable=['memory'])` returns the loss,
    summed over teachers, and the new memory. Every step draws K negative rows for all snippets of the batch. This takes
    one product instead of gathering K rows per snippet [default].

    Attributes:
      num_snippets: N, over all training videos. `batch.first` gives each video's first row in the memory.
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
        if batch.first is None:
            raise ValueError("crd: batch.first must give each video's first row in the memory, got None.")
        negatives = jax.random.randint(self.make_rng("sample"), (self.num_negatives,), 0, self.num_snippets)
        index = batch.first[:, None] + jnp.arange(batch.mask.shape[1])[None]
        own = ProjectionHead(self.width, name="student")(mask_out(student.features, batch.mask))
        total = jnp.zeros(())
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
