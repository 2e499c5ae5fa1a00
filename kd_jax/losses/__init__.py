"""Losses: pure functions of arrays, `loss(student, teacher, mask, *, options) -> scalar`.

    total = losses.sigmoid_cross_entropy(logits, labels, mask) + losses.boundary(student, teacher, mask) / 60

All losses compute in float32, ignore the content of the padding, stop the gradient at the teacher, return 0 with finite
gradients for an empty mask, and raise ValueError for shapes that disagree.

Losses that are means over snippets have the option `reduction='none'`. It returns the value of each snippet, `[B, T]`,
or of each pair of snippets, `[B, T-1]`, for `boundary`. `global_context`, `rkd_distance`, `rkd_angle`,
`similarity_preserving` and `pairwise_similarity` compare relations of a whole video and do not have it.

References mark where a formula is from: [supp] the supplementary material of Augmented-RGB (Dai, Das, Bremond, ICCV
2021), [code] public training code, [default] a choice of this library. docs/method.md explains each.
"""

import importlib
from typing import TYPE_CHECKING

from kd_jax.losses.atomic_level import ATOMIC_FORMS, atomic, atomic_infonce, atomic_margin, atomic_nce, sample_negatives
from kd_jax.losses.boundary_level import boundary, saliency
from kd_jax.losses.cross_modal import cosine_imitation, graph_distillation, hint
from kd_jax.losses.detection import competence, sigmoid_cross_entropy, softmax_cross_entropy_with_background
from kd_jax.losses.global_level import global_context
from kd_jax.losses.relational import pairwise_similarity, rkd_angle, rkd_distance, similarity_preserving
from kd_jax.losses.soft_targets import logit_distillation, soft_cross_entropy, soft_labels

if TYPE_CHECKING:
    from kd_jax.losses.owned.contrastive import ContrastiveDistillation, Memory, crd, new_memory
    from kd_jax.losses.owned.holistic import Critic, HolisticDistillation
    from kd_jax.losses.owned.learned_graph import LearnedGraph
    from kd_jax.losses.owned.projection import ProjectionHead

__all__ = ["ATOMIC_FORMS", "ContrastiveDistillation", "Critic", "HolisticDistillation", "LearnedGraph", "Memory"]
__all__ += ["ProjectionHead", "atomic", "atomic_infonce", "atomic_margin", "atomic_nce", "boundary", "cosine_imitation"]
__all__ += ["competence", "crd", "global_context", "graph_distillation", "hint", "logit_distillation", "new_memory"]
__all__ += ["pairwise_similarity", "rkd_angle", "rkd_distance", "saliency", "sample_negatives", "sigmoid_cross_entropy"]
__all__ += ["similarity_preserving", "soft_cross_entropy", "soft_labels", "softmax_cross_entropy_with_background"]

_OWNED = {  # {name: its module}; imported when the name is first used, because they need flax, which loads slowly
    **dict.fromkeys(("ContrastiveDistillation", "Memory", "crd", "new_memory"), "contrastive"),
    **dict.fromkeys(("Critic", "HolisticDistillation"), "holistic"),
    "LearnedGraph": "learned_graph",
    "ProjectionHead": "projection",
}


def __getattr__(name: str):
    if name not in _OWNED:
        raise AttributeError(f"module 'kd_jax.losses' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kd_jax.losses.owned.{_OWNED[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
