"""The distillation terms by name: which fields of student, teacher and batch a loss compares."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping

from flax import linen as nn

from kd_jax import losses


# Each picks the fields of student, teacher and batch that its loss compares.
def _features(loss):
    return lambda student, teacher, batch, key, **options: loss(
        student.features, teacher.features, batch.mask, **options
    )


def _sampled_features(loss):
    return lambda student, teacher, batch, key, **options: loss(
        student.features, teacher.features, batch.mask, key=key, **options
    )


def _logits(loss):
    def read(student, teacher, batch, key, **options):
        activation = "sigmoid" if student.logits.shape[-1] == batch.labels.shape[-1] else "softmax"
        return loss(student.logits, teacher.logits, batch.mask, activation=activation, **options)

    return read


def _atomic(student, teacher, batch, key, **options):
    return losses.atomic(student.features, teacher.features, batch.mask, labels=batch.labels, key=key, **options)


def _graph_distillation(student, teacher, batch, key, **options):
    return losses.graph_distillation(student, teacher, batch.mask, **options)


# Term: (what it reads of student, teacher and batch; the loss whose keyword options a config may set).
TERMS: dict[str, tuple[Callable, Callable]] = {
    "atomic": (_atomic, losses.atomic),
    "global_context": (_features(losses.global_context), losses.global_context),
    "boundary": (_features(losses.boundary), losses.boundary),
    "rkd_distance": (_sampled_features(losses.rkd_distance), losses.rkd_distance),
    "rkd_angle": (_sampled_features(losses.rkd_angle), losses.rkd_angle),
    "similarity_preserving": (_features(losses.similarity_preserving), losses.similarity_preserving),
    "pairwise_similarity": (_features(losses.pairwise_similarity), losses.pairwise_similarity),
    "logit_distillation": (_logits(losses.logit_distillation), losses.logit_distillation),
    "soft_cross_entropy": (_logits(losses.soft_cross_entropy), losses.soft_cross_entropy),
    "hint": (_features(losses.hint), losses.hint),
    "graph_distillation": (_graph_distillation, losses.graph_distillation),
}


# Terms that own parameters or a memory: modules, called with the student's Outputs, all teachers' and the batch. Their
# attributes are the options, but for `num_snippets`, which the training knows.
MODULES: dict[str, type[nn.Module]] = {
    "crd": losses.ContrastiveDistillation,
    "holistic": losses.HolisticDistillation,
    "learned_graph": losses.LearnedGraph,
}


# Terms that take a large part of a step (`python -m benchmarks.losses`; crd has a product with every negative).
COSTLY = ("rkd_distance", "rkd_angle", "similarity_preserving", "crd")


# Terms that compare logits, so that a teacher which has only features cannot serve them.
READS_LOGITS = ("logit_distillation", "soft_cross_entropy", "graph_distillation", "holistic", "learned_graph")


# Head: (task loss, number of logits for C classes).
TASKS: dict[str, tuple[Callable, Callable[[int], int]]] = {
    "dense": (losses.sigmoid_cross_entropy, lambda num_classes: num_classes),
    "sparse": (losses.softmax_cross_entropy_with_background, lambda num_classes: num_classes + 1),
}


def term_options(term: str) -> dict:
    """The options of a term's loss that a config may set, with their defaults."""
    if term in MODULES:
        supplied = {"num_snippets", "parent", "name"}
        return {field.name: field.default for field in dataclasses.fields(MODULES[term]) if field.name not in supplied}
    supplied = {"labels", "key", "negatives", "activation"}
    parameters = inspect.signature(TERMS[term][1]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in supplied}


def make_modules(options: Mapping[str, Mapping], num_snippets: int) -> dict[str, nn.Module]:
    """The modules of those of the terms, {term: options}, that own something."""
    return {t: MODULES[t](num_snippets=num_snippets, **chosen) for t, chosen in options.items() if t in MODULES}
