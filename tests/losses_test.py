"""Losses in every form by hand at T = 3, D = 2; sampled negatives; accuracy of the snippet relation."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses

STUDENT = jnp.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
TEACHER = jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
MASK = jnp.ones((1, 3), bool)
NEGATIVES = jnp.array([[[2], [2], [0]]])  # teacher snippets (0, 1), (0, 1), (1, 0)
R = math.sqrt(0.5)


def softplus(x):
    return math.log1p(math.exp(x))


# cos(s, p) = 1, 0, √½ and cos(s, q) = 0, 1, √½; −log σ(x) = softplus(−x), −log(1 − σ(x)) = softplus(x).
BY_HAND = {
    "nce": (
        {"form": "nce", "temperature": 1.0},
        (softplus(-1) + softplus(0) + softplus(0) + softplus(1) + softplus(-R) + softplus(R)) / 3,
    ),
    "nce_numbers": (  # the same six terms as decimals
        {"form": "nce", "temperature": 1.0},
        (0.3132617 + 0.6931472 + 0.6931472 + 1.3132617 + 0.4008337 + 1.1079405) / 3,
    ),
    "nce_temperature": (  # τ = ½ doubles every cosine
        {"form": "nce", "temperature": 0.5},
        (softplus(-2) + softplus(0) + softplus(0) + softplus(2) + softplus(-2 * R) + softplus(2 * R)) / 3,
    ),
    "nce_ratio": (  # h = e^c / (e^c + 3)
        {"form": "nce", "temperature": 1.0, "noise_ratio": 3.0},
        -(
            math.log(math.e / (math.e + 3))
            + math.log(3 / (1 + 3))
            + math.log(1 / (1 + 3))
            + math.log(3 / (math.e + 3))
            + math.log(math.exp(R) / (math.exp(R) + 3))
            + math.log(3 / (math.exp(R) + 3))
        )
        / 3,
    ),
    "infonce": (  # −log(e^c⁺ / (e^c⁺ + e^c⁻)) = softplus(c⁻ − c⁺)
        {"form": "infonce", "temperature": 1.0},
        (softplus(0 - 1) + softplus(1 - 0) + softplus(R - R)) / 3,  # (0.3132617 + 1.3132617 + 0.6931472) / 3
    ),
    "margin": (  # d(s, p) = 0, 1, ½ and d(s, q) = 1, 0, ½; m = 1
        {"form": "margin"},
        ((0 + 0) + (1 + 1) + (0.5 + 0.5)) / 3,
    ),
    "margin_normalized": (  # ŝ₂ = (√½, √½): d = (½ + (1 − √½)²) / 2 = 1 − √½ to both; m = ½
        {"form": "margin", "normalize": True, "margin": 0.5},
        ((0 + 0) + (1 + 0.5) + ((1 - R) + (0.5 - (1 - R)))) / 3,
    ),
    "margin_normalized_default": (  # m = 2 / H = 1
        {"form": "margin", "normalize": True},
        ((0 + 0) + (1 + 1) + ((1 - R) + (1 - (1 - R)))) / 3,
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_atomic_by_hand(case):
    options, expected = BY_HAND[case]
    value = losses.atomic(STUDENT, TEACHER, MASK, negatives=NEGATIVES, **options)
    assert float(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["nce", "infonce", "margin"])
def test_atomic_sums_over_negatives_and_skips_those_that_do_not_exist(form):
    options = {} if form == "margin" else {"temperature": 1.0}

    def loss(negatives, mask=MASK):
        return float(losses.atomic(STUDENT, TEACHER, mask, negatives=jnp.array([negatives]), form=form, **options))

    none, one = loss([[-1], [-1], [-1]]), loss([[2], [2], [0]])
    assert loss([[2, -1], [2, -1], [0, -1]]) == pytest.approx(one)
    twice = loss([[2, 2], [2, 2], [0, 0]])
    if form == "infonce":  # log(e^c⁺ + 2 e^c⁻) − c⁺
        e = math.exp
        assert twice == pytest.approx((math.log(e(1) + 2) - 1 + math.log(1 + 2 * e(1)) + math.log(3)) / 3)
    else:
        assert twice - none == pytest.approx(2 * (one - none))
    masked = jnp.array([[True, True, False]])  # snippet 2 is padding: no anchor and no negative
    assert loss([[2], [2], [0]], masked) == pytest.approx(loss([[-1], [-1], [-1]], masked))


def test_atomic_draws_the_negatives_of_sample_negatives():
    labels = jnp.array([[[1, 0], [1, 0], [0, 1]]])  # snippets 0 and 1 can only draw snippet 2
    index, exists = losses.sample_negatives(labels, MASK, jax.random.key(0), 1)
    np.testing.assert_array_equal(index[0, :2, 0], [2, 2])
    assert exists.all()
    drawn = losses.atomic(STUDENT, TEACHER, MASK, labels=labels, key=jax.random.key(0))
    assert float(drawn) == pytest.approx(float(losses.atomic(STUDENT, TEACHER, MASK, negatives=index)))


def test_projection_head_yields_unit_vectors_of_its_width():
    head = losses.ProjectionHead()
    x = jax.random.normal(jax.random.key(0), (2, 3, 5))
    y, variables = head.init_with_output(jax.random.key(1), x)
    assert y.shape == (2, 3, 128)
    assert variables["params"]["linear"]["kernel"].shape == (5, 128)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), 1, rtol=1e-5)


def test_global_channel_by_hand():
    # Student channels (1, 0, 1) and (0, 1, 1): centred (1, −2, 1)/3 and (−2, 1, 1)/3, correlation (−3/9)/(6/9) = −½.
    # Teacher channels (1, 1, 0) and (0, 0, 1): correlation −1. Two entries differ by ½: 2·¼ / 2² = ⅛.
    assert float(losses.global_context(STUDENT, TEACHER, MASK)) == pytest.approx(0.125, rel=1e-6)


def test_global_snippet_by_hand():
    # Centred over two channels a snippet is ±(1, −1)/√2 or 0. Student +, −, 0: R = [1 −1 0; −1 1 0; 0 0 0].
    # Teacher +, +, −: R = [1 1 −1; 1 1 −1; −1 −1 1]. The difference [0 −2 1; −2 0 1; 1 1 −1] has squares
    # 4 + 1 + 4 + 1 + 1 + 1 + 1 = 13; 13 / 3².
    assert float(losses.global_context(STUDENT, TEACHER, MASK, relation="snippet")) == pytest.approx(13 / 9, rel=1e-6)


def test_boundary_by_hand():
    # Student steps (−1, 1), (1, 0): 2, 1. Teacher steps (0, 0), (−1, 1): 0, 2.
    np.testing.assert_allclose(losses.saliency(STUDENT, MASK), [[2, 1]])
    np.testing.assert_allclose(losses.saliency(TEACHER, MASK), [[0, 2]])
    assert float(losses.boundary(STUDENT, TEACHER, MASK)) == pytest.approx((2 + 1) / 2)
    # Differences of the steps (−1, 1), (2, −1): 2, 3.
    assert float(losses.boundary(STUDENT, TEACHER, MASK, form="vector")) == pytest.approx((2 + 3) / 2)


@pytest.mark.parametrize("form", ["curve", "vector"])
def test_boundary_does_not_pull_at_channels_that_already_agree(form):
    # Channel 0 never changes in either stream; channel 1 changes in the teacher alone.
    student, teacher = jnp.array([[[3.0, 1], [3, 2], [3, 2]]]), jnp.array([[[5.0, 1], [5, 4], [5, 5]]])
    gradient = jax.grad(lambda student: losses.boundary(student, teacher, MASK, form=form))(student)
    # The steps of channel 1 are (1, 0) and (3, 1). `curve` compares their sizes, and the size of a step of 0 has
    # gradient 0. `vector` has a gradient at both steps.
    np.testing.assert_allclose(gradient[..., 0], 0)
    np.testing.assert_allclose(gradient[0, :, 1], {"curve": [0.5, -0.5, 0], "vector": [0.5, 0, -0.5]}[form])


def test_boundary_counts_only_pairs_of_valid_snippets():
    mask = jnp.array([[True, True, False]])
    np.testing.assert_allclose(losses.saliency(STUDENT, mask), [[2, 0]])
    assert float(losses.boundary(STUDENT, TEACHER, mask)) == pytest.approx(2)
    assert float(losses.boundary(STUDENT, TEACHER, jnp.array([[True, False, True]]))) == 0


def test_sigmoid_cross_entropy_by_hand():
    # Per snippet: the sum of softplus(−z) for active classes and softplus(z) for the others.
    labels = jnp.array([[[1, 0], [0, 0], [1, 1]]])
    expected = ((softplus(-1) + softplus(0)) + (softplus(0) + softplus(1)) + (softplus(-1) + softplus(-1))) / 3
    assert expected == pytest.approx((0.3132617 + 0.6931472 + 0.6931472 + 1.3132617 + 2 * 0.3132617) / 3, rel=1e-6)
    assert float(losses.sigmoid_cross_entropy(STUDENT, labels, MASK)) == pytest.approx(expected, rel=1e-6)


def test_softmax_cross_entropy_by_hand():
    # One class and the background: the softmax of two logits is the sigmoid of their difference. Snippets 0 and 2, with
    # logits (1, 0) and (1, 1), have the class; snippet 1, with logits (0, 1), is background.
    labels = jnp.array([[[1], [0], [1]]])
    expected = (softplus(-1) + softplus(-1) + math.log(2)) / 3
    value = losses.softmax_cross_entropy_with_background(STUDENT, labels, MASK)
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_softmax_shares_a_snippet_between_its_classes():
    logits, labels = jnp.array([[[1.0, 0.0, 0.0]]]), jnp.array([[[1, 1]]])
    # −½ log p₀ − ½ log p₁ with log p = (1, 0, 0) − log(e + 2)
    value = losses.softmax_cross_entropy_with_background(logits, labels, jnp.ones((1, 1), bool))
    assert float(value) == pytest.approx(math.log(math.e + 2) - 0.5)


def test_softmax_refuses_logits_without_a_background():
    with pytest.raises(ValueError, match=r"one more class.*logits \(1, 3, 2\), labels \(1, 3, 2\)"):
        losses.softmax_cross_entropy_with_background(STUDENT, TEACHER, MASK)


def test_task_losses_are_stable_for_huge_logits():
    labels = jnp.array([[[1, 0], [0, 0], [1, 1]]])
    for value in (
        losses.sigmoid_cross_entropy(1e4 * (2 * labels - 1.0), labels, MASK),
        losses.softmax_cross_entropy_with_background(
            jnp.array([[[1e4, 0.0], [0.0, 1e4], [1e4, 0.0]]]), labels[..., :1], MASK
        ),
    ):
        assert float(value) == 0


jitted_sample = jax.jit(losses.sample_negatives, static_argnums=3)


class TestSampleNegatives:
    """The draw is exactly uniform over valid snippets with another label set, and padding does not change it."""

    labels = (np.random.default_rng(3).random((3, 8, 3)) < 0.4).astype(np.float32)
    mask = np.arange(8)[None] < np.array([[8], [5], [7]])

    def draw(self, labels, mask, number, seed=0):
        return jitted_sample(labels, mask, jax.random.key(seed), number)

    @pytest.mark.parametrize("use_labels", [True, False])
    def test_uniform_over_the_allowed_snippets(self, use_labels):
        number = 3000
        index, exists = self.draw(self.labels if use_labels else None, self.mask, number)
        sets, valid = self.labels.reshape(24, 3), self.mask.reshape(24)
        for anchor in range(24):
            if not valid[anchor]:
                assert not np.asarray(exists).reshape(24, -1)[anchor].any()
                continue
            other = (sets != sets[anchor]).any(axis=1) if use_labels else np.arange(24) != anchor
            allowed = other & valid
            assert np.asarray(exists).reshape(24, -1)[anchor].all()
            counts = np.bincount(np.asarray(index).reshape(24, -1)[anchor], minlength=24)
            assert counts[~allowed].sum() == 0
            mean = number / allowed.sum()
            assert np.abs(counts[allowed] - mean).max() < 5 * math.sqrt(mean)

    @pytest.mark.parametrize("use_labels", [True, False])
    def test_padding_changes_no_draw(self, use_labels):
        """The drawn snippets are identical, although their flattened indices and the array length differ."""
        index, exists = self.draw(self.labels if use_labels else None, self.mask, 3)
        padded_labels = np.pad(self.labels, ((2, 1), (0, 5), (0, 0)), constant_values=np.nan)
        padded_mask = np.pad(self.mask, ((2, 1), (0, 5)))
        padded_index, padded_exists = self.draw(padded_labels if use_labels else None, padded_mask, 3)
        np.testing.assert_array_equal(padded_exists[2:5, :8], exists)
        assert padded_exists.sum() == exists.sum()
        video, snippet = np.divmod(np.asarray(index), 8)
        padded_video, padded_snippet = np.divmod(np.asarray(padded_index)[2:5, :8], 13)
        chosen = np.asarray(exists)
        np.testing.assert_array_equal((padded_video - 2)[chosen], video[chosen])
        np.testing.assert_array_equal(padded_snippet[chosen], snippet[chosen])

    def test_none_where_all_snippets_have_one_label_set(self):
        _, exists = self.draw(np.ones_like(self.labels), self.mask, 2)
        assert not exists.any()
        _, exists = self.draw(None, np.array([[True, False]]), 1)
        assert not exists.any()

    def test_sets_of_many_classes_are_distinguished(self):
        labels = np.random.default_rng(0).random((2, 2000, 157)) < 0.02
        index, exists = self.draw(labels, np.ones((2, 2000), bool), 1, seed=5)
        flat = labels.reshape(4000, 157)
        assert exists.all()
        assert (flat[np.asarray(index).reshape(-1)] != flat).any(axis=1).all()

    def test_jit_and_keys(self):
        arguments = jnp.asarray(self.labels), jnp.asarray(self.mask), jax.random.key(0), 3
        jitted = jitted_sample(*arguments)
        for got, expected in zip(jitted, losses.sample_negatives(*arguments), strict=True):
            np.testing.assert_array_equal(got, expected)
        assert (self.draw(self.labels, self.mask, 3, seed=1)[0] != jitted[0]).any()


def direct_snippet_relation(student, teacher):
    """‖R_S − R_T‖² / T² with the T×T matrices written out."""

    def correlation(x):
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x @ x.T

    return jnp.mean(jnp.square(correlation(student) - correlation(teacher)))


@pytest.mark.parametrize("teacher_width", [16, 24])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-4])
def test_snippet_relation_matches_float64_far_and_near(distance, teacher_width):
    rng = np.random.default_rng(0)
    student = rng.standard_normal((200, 16)).astype(np.float32)
    teacher = student + np.float32(distance) * rng.standard_normal((200, 16)).astype(np.float32)
    if teacher_width > 16:  # zero channels, appended after centring, keep the correlations
        student = student - student.mean(axis=1, keepdims=True)
        teacher = teacher - teacher.mean(axis=1, keepdims=True)
        teacher = np.concatenate([teacher, np.zeros((200, teacher_width - 16), np.float32)], axis=1)
    with jax.enable_x64(True):
        expected, gradient = map(
            np.asarray,
            jax.value_and_grad(direct_snippet_relation)(
                jnp.asarray(student, jnp.float64), jnp.asarray(teacher, jnp.float64)
            ),
        )
    term = jax.jit(
        jax.value_and_grad(lambda s: losses.global_context(s[None], teacher[None], mask, relation="snippet"))
    )
    mask = jnp.ones((1, 200), bool)
    value, got = term(jnp.asarray(student))
    tolerance = 1e-6 + 1e-8 / distance  # the second part allows for rounding of the normalised rows to float32
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    np.testing.assert_allclose(got, gradient, atol=10 * tolerance * np.abs(gradient).max())


def test_a_padded_video_does_not_dilute_the_global_term():
    one = losses.global_context(STUDENT, TEACHER, MASK)
    three = [jnp.concatenate([x, jnp.ones((2, 3, 2))]) for x in (STUDENT, TEACHER)]
    mask = jnp.concatenate([MASK, jnp.zeros((2, 3), bool)])
    assert float(losses.global_context(*three, mask)) == pytest.approx(float(one))


def test_import_is_light():
    others = {"tensorflow", "torch", "clu", "orbax", "flax", "optax"}
    code = f"import sys, kd_jax.losses; print(*(set(sys.modules) & {others}))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == ""


def test_an_option_of_another_form_is_refused():
    with pytest.raises(TypeError, match="atomic_margin.* unexpected keyword argument 'temperature'"):
        losses.atomic(STUDENT, TEACHER, MASK, form="margin", temperature=7.0, negatives=NEGATIVES)
    with pytest.raises(TypeError, match="atomic_infonce.* unexpected keyword argument 'noise_ratio'"):
        losses.atomic(STUDENT, TEACHER, MASK, form="infonce", noise_ratio=7.0, negatives=NEGATIVES)


def test_competence_by_hand():
    mask = jnp.array([[True, True, True, True, False]])
    labels = jnp.array([[[1, 0], [1, 0], [0, 0], [0, 1], [1, 1]]])
    certain = 40.0 * (labels - 0.5)
    assert losses.competence(certain, labels, mask) == pytest.approx(1)
    rates = jnp.broadcast_to(jnp.log(jnp.array([[[1.0, 1 / 3]]])), certain.shape)  # 1/2 and 1/4 as logits
    assert losses.competence(rates, labels, mask) == pytest.approx(0, abs=1e-6)
    assert losses.competence(-certain, labels, mask) == 0
    # Base rates 1/2 and 1/4: E = log 2 + 1/4 log 4 + 3/4 log 4/3. The teacher knows the second class alone.
    constant = np.log(2) + np.log(4) / 4 + np.log(4 / 3) * 3 / 4
    half = jnp.concatenate([0 * certain[..., :1], certain[..., 1:]], axis=-1)
    assert losses.competence(half, labels, mask) == pytest.approx(1 - np.log(2) / constant, abs=1e-5)
    quarter = jnp.concatenate([jnp.log(4.0) * jnp.sign(certain[..., :1]), certain[..., 1:]], axis=-1)  # 4/5 each time
    assert losses.competence(quarter, labels, mask) == pytest.approx(1 - np.log(5 / 4) / constant, abs=1e-5)
    # With a background, the distribution of the four snippets is 1/2, 1/4, 1/4.
    background = jnp.log(jnp.array([[[8, 1, 1], [8, 1, 1], [1, 1, 8], [1, 8, 1], [1, 1, 1]]]) / 10)
    expected = 1 - np.log(10 / 8) / (1.5 * np.log(2))
    assert losses.competence(background, labels, mask) == pytest.approx(expected, abs=1e-5)
    for nothing in (jnp.zeros_like(mask), mask & (labels[..., 0] == 1) & (labels[..., 1] == 0)):
        assert losses.competence(certain, labels, nothing) == 0  # no snippet, or no label that changes


@pytest.mark.parametrize("width", [3, 4])
def test_competence_ignores_the_padding_and_gives_the_teacher_no_gradient(width):
    rng = np.random.default_rng(0)
    labels = (rng.random((2, 9, 3)) < 0.4).astype(np.float32)
    logits = rng.normal(size=(2, 9, width)).astype(np.float32)
    logits[..., :3] += 6 * labels - 3
    mask = np.arange(9)[None] < np.array([[9], [5]])
    found = losses.competence(jnp.array(logits), jnp.array(labels), jnp.array(mask))
    assert 0 < found < 1 and found.dtype == jnp.float32
    logits[~mask], labels[~mask] = np.nan, np.nan
    assert jax.jit(losses.competence)(logits, labels, mask) == pytest.approx(float(found), rel=1e-6)
    gradient = jax.grad(losses.competence)(jnp.array(logits), jnp.array(labels), jnp.array(mask))
    np.testing.assert_array_equal(gradient, 0)
