"""Losses of the KD comparison: equal to the public code, by hand, accurate without large matrices, unbiased draws."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.types import Outputs

GOLDEN = np.load(Path(__file__).parent / "data" / "kd_losses.npz", allow_pickle=False)
MASK = jnp.ones((1, 3), bool)


_RKD, _LOGITS = ("rkd/f_s", "rkd/f_t"), ("kd/y_s", "kd/y_t")
REFERENCE = {  # name in the golden file: (loss, names of its arguments in that file, options)
    "rkd/dist_only": (losses.rkd_distance, _RKD, {}),
    "rkd/angle_only": (losses.rkd_angle, _RKD, {}),
    "rkd/total_25_50": (lambda *x: 25 * losses.rkd_distance(*x) + 50 * losses.rkd_angle(*x), _RKD, {}),
    "sp/vec": (losses.similarity_preserving, ("sp/f_s", "sp/f_t"), {}),
    "sp/map": (losses.similarity_preserving, ("sp/f_s3", "sp/f_t3"), {}),
    "kd/T1": (losses.logit_distillation, _LOGITS, {"activation": "softmax", "temperature": 1.0}),
    "kd/T2": (losses.logit_distillation, _LOGITS, {"activation": "softmax", "temperature": 2.0}),
    "kd/T4": (losses.logit_distillation, _LOGITS, {"activation": "softmax"}),
    "hint": (losses.hint, ("hint/f_s", "hint/f_t"), {}),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_value_and_gradient_are_those_of_the_public_code(name):
    loss, (student, teacher), options = REFERENCE[name]
    student, teacher = (GOLDEN[key].reshape(1, len(GOLDEN[key]), -1) for key in (student, teacher))
    mask = jnp.ones(student.shape[:2], bool)
    value, gradient = jax.jit(jax.value_and_grad(lambda s: loss(s, teacher, mask, **options)))(student)
    np.testing.assert_allclose(value, GOLDEN[f"{name}/loss64"], rtol=1e-5)
    expected = GOLDEN[f"{name}/grad_s"].reshape(student.shape)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


# Three snippets on a line: distances 3, 4, 1 (mean 8/3) and 1, 1, 2 (mean 4/3).
STUDENT, TEACHER = jnp.array([[[0.0, 0.0], [3.0, 0.0], [4.0, 0.0]]]), jnp.array([[[1.0], [0.0], [2.0]]])


def smooth_l1(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def test_rkd_distance_by_hand():
    pairs = [(3, 1), (4, 1), (1, 2)]
    # 9 pairs: each of these twice, and three with i = j.
    expected = 2 * sum(smooth_l1(3 * s / 8 - 3 * t / 4) for s, t in pairs) / 9
    assert float(losses.rkd_distance(STUDENT, TEACHER, MASK)) == pytest.approx(expected, rel=1e-6)


def test_rkd_angle_by_hand():
    # The cosines at the corners 0, 1, 2 are 1, −1, 1 and −1, 1, 1; each triangle counts twice, and 27 triples are 3³.
    expected = 2 * (smooth_l1(2) + smooth_l1(2) + 0) / 27
    assert float(losses.rkd_angle(STUDENT, TEACHER, MASK)) == pytest.approx(expected, rel=1e-6)


def test_similarity_preserving_by_hand():
    student = jnp.array([[[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]])
    teacher = jnp.array([[[1.0], [2.0], [0.0]]])
    # G of the student: rows (1, 0, 1), (0, 4, 0), (1, 0, 1); of the teacher (1, 2, 0), (2, 4, 0), (0, 0, 0).
    r, f = math.sqrt(0.5), math.sqrt(0.2)
    rows = [
        ((r, 0, r), (f, 2 * f, 0)),
        ((0, 1, 0), (f, 2 * f, 0)),
        ((r, 0, r), (0, 0, 0)),
    ]
    expected = sum((a - b) ** 2 for s, t in rows for a, b in zip(s, t, strict=True)) / 9
    assert float(losses.similarity_preserving(student, teacher, MASK)) == pytest.approx(expected, rel=1e-6)


def test_pairwise_similarity_by_hand():
    student = jnp.array([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]])
    # Cosines of the student: 0, √½, √½. Cosines of the teacher, whose last snippet alone is negative: 1, −1, −1.
    teacher, r = jnp.array([[[1.0], [2.0], [-1.0]]]), math.sqrt(0.5)
    expected = 2 * (1 + 2 * (r + 1) ** 2) / 9
    assert float(losses.pairwise_similarity(student, teacher, MASK)) == pytest.approx(expected, rel=1e-6)


LOGITS, GOAL = jnp.array([[[1.0, 0.0]]]), jnp.array([[[0.0, 2.0]]])
ONE = jnp.ones((1, 1), bool)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def divergence(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_logit_distillation_by_hand(temperature):
    """The softmax of two logits is the sigmoid of their difference."""
    t = temperature
    options = {"temperature": temperature}
    expected = t**2 * divergence(sigmoid(-2 / t), sigmoid(1 / t))
    value = losses.logit_distillation(LOGITS, GOAL, ONE, activation="softmax", **options)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    expected = t**2 * (divergence(sigmoid(0), sigmoid(1 / t)) + divergence(sigmoid(2 / t), sigmoid(0)))
    value = losses.logit_distillation(LOGITS, GOAL, ONE, activation="sigmoid", **options)
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_soft_cross_entropy_by_hand():
    p, q = sigmoid(-2), sigmoid(1)  # probabilities of the class; the rest is background
    expected = -p * math.log(q) - 1.5 * (1 - p) * math.log(1 - q)
    value = losses.soft_cross_entropy(LOGITS, GOAL, ONE, activation="softmax")
    assert float(value) == pytest.approx(expected, rel=1e-6)
    expected = -math.log(q) * 0.5 - math.log(1 - q) * 0.5 + math.log(2)
    value = losses.soft_cross_entropy(LOGITS, GOAL, ONE, activation="sigmoid")
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_soft_labels_by_hand():
    """The teacher has seen the first of two snippets; the label of the second is the class."""
    student, teacher = jnp.array([[[1.0], [2.0]]]), jnp.array([[[-1.0], [3.0]]])
    labels, mask, seen = jnp.ones((1, 2, 1)), jnp.ones((1, 2), bool), jnp.array([[True, False]])
    p, q = sigmoid(-1), sigmoid(1)
    first, second = -p * math.log(q) - (1 - p) * math.log(1 - q), -math.log(sigmoid(2))
    value = losses.soft_labels(student, teacher, mask, labels=labels, seen=seen)
    assert float(value) == pytest.approx((first + second) / 2, rel=1e-6)
    # with the background as a second logit of 0, the softmax is the same sigmoid
    student, teacher = (jnp.concatenate([x, jnp.zeros((1, 2, 1))], -1) for x in (student, teacher))
    value = losses.soft_labels(student, teacher, mask, labels=labels, seen=seen)
    assert float(value) == pytest.approx((first + second) / 2, rel=1e-6)


def test_soft_labels_of_other_shapes_are_refused():
    logits, labels, mask = jnp.zeros((1, 2, 5)), jnp.zeros((1, 2, 3)), jnp.ones((1, 2), bool)
    with pytest.raises(ValueError, match=r"soft_labels: student must have as many classes as labels, or one more; got"):
        losses.soft_labels(logits, logits, mask, labels=labels)
    with pytest.raises(ValueError, match=r"soft_labels: seen must be \[B, T, ...\] with B and T of the mask"):
        losses.soft_labels(labels, labels, mask, labels=labels, seen=jnp.ones((1, 3), bool))


def test_imitation_by_hand():
    student, teacher = jnp.array([[[3.0, 4.0], [1.0, 0.0]]]), jnp.array([[[4.0, 3.0], [0.0, 0.0]]])
    mask = jnp.ones((1, 2), bool)
    assert float(losses.hint(student, teacher, mask)) == pytest.approx((1 + 1 + 1 + 0) / 4)
    assert float(losses.cosine_imitation(student, teacher, mask)) == pytest.approx((1 - 24 / 25 + 1) / 2, rel=1e-6)
    both = [Outputs(features=x, logits=x[..., :1]) for x in (student, teacher)]  # logits 3, 1 and 4, 0: cosines 1, 0
    value = losses.graph_distillation(*both, mask)
    assert float(value) == pytest.approx(20 * (0 + 1) / 2 + 2 * (1 / 25 + 1) / 2, rel=1e-6)
    value = losses.graph_distillation(*both, mask, logits_weight=1.0, features_weight=0.0)
    assert float(value) == pytest.approx(0.5, rel=1e-6)
    with pytest.raises(ValueError, match="graph_distillation: teacher must be kd_jax.types.Outputs"):
        losses.graph_distillation(both[0], teacher, mask)


def direct_similarity_preserving(student, teacher):
    def similarity(x):
        gram = x @ x.T
        return gram / jnp.linalg.norm(gram, axis=-1, keepdims=True)

    return jnp.mean(jnp.square(similarity(student) - similarity(teacher)))


def direct_pairwise(student, teacher):
    def cosines(x):
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x @ x.T

    return jnp.mean(jnp.square(cosines(student) - cosines(teacher)))


def direct_distance(student, teacher):
    def distances(x):
        square = jnp.sum(jnp.square(x[:, None] - x[None]), axis=-1)
        off = ~np.eye(len(x), dtype=bool)
        d = jnp.where(off, jnp.sqrt(jnp.where(off, square, 1)), 0)
        return d / (jnp.sum(d) / np.sum(off))

    difference = jnp.abs(distances(student) - distances(teacher))
    return jnp.mean(jnp.where(difference < 1, difference**2 / 2, difference - 0.5))


DIRECT = {
    "similarity_preserving": (losses.similarity_preserving, direct_similarity_preserving),
    "pairwise_similarity": (losses.pairwise_similarity, direct_pairwise),
    "rkd_distance": (losses.rkd_distance, direct_distance),
}


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("distance", [1.0, 1e-2])
@pytest.mark.parametrize("name", DIRECT)
def test_relations_match_matrices_in_float64(name, distance, offset, scale):
    """The teacher is the student plus noise, times a scale; 300 snippets."""
    loss, direct = DIRECT[name]
    rng = np.random.default_rng(0)
    student = (offset + rng.standard_normal((300, 16))).astype(np.float32)
    teacher = (np.float32(scale) * (student + distance * rng.standard_normal((300, 16)))).astype(np.float32)
    with jax.enable_x64(True):
        arguments = jnp.asarray(student, jnp.float64), jnp.asarray(teacher, jnp.float64)
        expected, gradient = map(np.asarray, jax.value_and_grad(direct)(*arguments))
    mask = jnp.ones((1, 300), bool)
    value, got = jax.jit(jax.value_and_grad(lambda s: loss(s[None], teacher[None], mask)))(jnp.asarray(student))
    tolerance = 5e-6 + 1e-7 * (1 + offset) / distance  # rows are rounded before they are compared
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    np.testing.assert_allclose(got, gradient, atol=20 * tolerance * np.abs(gradient).max())


@pytest.mark.parametrize("loss, option", [(losses.rkd_angle, "max_snippets"), (losses.rkd_distance, "max_anchors")])
def test_a_draw_estimates_the_exact_loss(loss, option):
    """The mean of the estimates over many keys is within four standard errors of the exact value."""
    rng = np.random.default_rng(0)
    mask = np.arange(24)[None] < np.array([[24], [15]])
    student, teacher = (jnp.asarray(rng.standard_normal((2, 24, 4)), jnp.float32) for _ in range(2))
    exact = float(loss(student, teacher, mask))
    estimate = jax.jit(jax.vmap(lambda key: loss(student, teacher, mask, key=key, **{option: 12})))
    values = np.asarray(estimate(jax.random.split(jax.random.key(0), 2000)))
    error = values.std() / math.sqrt(len(values))
    assert values.std() > 0.01 * exact
    bias = 0.01 * exact if loss is losses.rkd_distance else 0  # its mean distance is also an estimate
    assert abs(values.mean() - exact) < 4 * error + bias


def test_a_short_video_among_long_ones_is_exact():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.standard_normal((1, 24, 4)), jnp.float32) for _ in range(2))
    mask = jnp.arange(24)[None] < 10
    for loss, option in ((losses.rkd_angle, "max_snippets"), (losses.rkd_distance, "max_anchors")):
        exact = float(loss(student, teacher, mask))
        drawn = float(loss(student, teacher, mask, key=jax.random.key(1), **{option: 12}))
        assert drawn == pytest.approx(exact, rel=1e-5)
