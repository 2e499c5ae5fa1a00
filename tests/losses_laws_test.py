"""Laws for every loss in every form: padding has no effect, the teacher is frozen, an empty mask gives 0."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.masking import masked_mean, pair_mask
from kd_jax.training import terms
from kd_jax.types import Outputs

B, T, H, C = 2, 7, 5, 4
KEY = jax.random.key(7)


def _distil(loss, both=False, **options):
    """Wrap a loss as `f(student, teacher, labels, mask)`; `both` passes Outputs with equal features and logits."""
    sampled = {"key": KEY} if "key" in inspect.signature(loss).parameters else {}

    def term(student, teacher, labels, mask, **reduction):
        use = options | reduction
        if use.pop("use_labels", False):
            use["labels"] = labels
        if both:
            student, teacher = (Outputs(features=x, logits=x) for x in (student, teacher))
        return loss(student, teacher, mask, **sampled, **use)

    term.loss = loss
    return term


def _task(loss, width):
    def task(student, teacher, labels, mask, **reduction):
        return loss(student[..., :width], labels, mask, **reduction)

    task.loss = loss
    return task


def _soft_labels(width):
    """Wrap soft labels of a teacher that has seen the snippets of the first class."""

    def term(student, teacher, labels, mask, **reduction):
        logits = student[..., :width], teacher[..., :width]
        return losses.soft_labels(*logits, mask, labels=labels, seen=labels[..., 0] > 0, **reduction)

    term.loss = losses.soft_labels
    return term


TASKS = {
    "sigmoid": _task(losses.sigmoid_cross_entropy, C),
    "softmax": _task(losses.softmax_cross_entropy_with_background, C + 1),
}
DISTILLATION = {
    "atomic_nce": _distil(losses.atomic_nce, use_labels=True),
    "atomic_nce_any": _distil(losses.atomic_nce, num_negatives=2, noise_ratio=0.5),
    "atomic_infonce": _distil(losses.atomic_infonce, use_labels=True, num_negatives=3),
    "atomic_margin": _distil(losses.atomic_margin, use_labels=True),
    "atomic_margin_normalized": _distil(losses.atomic_margin, normalize=True, use_labels=True),
    "global_context_channel": _distil(losses.global_context),
    "global_context_snippet": _distil(losses.global_context, relation="snippet"),
    "boundary_curve": _distil(losses.boundary),
    "boundary_vector": _distil(losses.boundary, form="vector"),
    "rkd_distance": _distil(losses.rkd_distance),
    "rkd_distance_drawn": _distil(losses.rkd_distance, max_anchors=3),
    "rkd_angle": _distil(losses.rkd_angle),
    "rkd_angle_drawn": _distil(losses.rkd_angle, max_snippets=3),
    "similarity_preserving": _distil(losses.similarity_preserving),
    "pairwise_similarity": _distil(losses.pairwise_similarity),
    "logit_distillation_softmax": _distil(losses.logit_distillation, activation="softmax"),
    "logit_distillation_sigmoid": _distil(losses.logit_distillation, activation="sigmoid"),
    "soft_labels_sigmoid": _soft_labels(C),
    "soft_labels_softmax": _soft_labels(C + 1),
    "soft_cross_entropy_softmax": _distil(losses.soft_cross_entropy, activation="softmax"),
    "soft_cross_entropy_sigmoid": _distil(losses.soft_cross_entropy, activation="sigmoid"),
    "hint": _distil(losses.hint),
    "cosine_imitation": _distil(losses.cosine_imitation),
    "graph_distillation": _distil(losses.graph_distillation, both=True),
}
TERMS = TASKS | DISTILLATION
# Loss, options, and the value for student == teacher without negatives.
MINIMUM = {
    "nce": (losses.atomic, {"num_negatives": 0}, np.log1p(np.exp(-10))),
    "nce_ratio": (losses.atomic, {"num_negatives": 0, "noise_ratio": 0.5}, np.log1p(0.5 * np.exp(-10))),
    "margin": (losses.atomic, {"num_negatives": 0, "form": "margin"}, 0.0),
    "margin_normalized": (losses.atomic, {"num_negatives": 0, "form": "margin", "normalize": True}, 0.0),
    "channel": (losses.global_context, {}, 0.0),
    "snippet": (losses.global_context, {"relation": "snippet"}, 0.0),
    "curve": (losses.boundary, {}, 0.0),
    "vector": (losses.boundary, {"form": "vector"}, 0.0),
    "rkd_distance": (losses.rkd_distance, {}, 0.0),
    "rkd_angle": (losses.rkd_angle, {}, 0.0),
    "similarity_preserving": (losses.similarity_preserving, {}, 0.0),
    "pairwise_similarity": (losses.pairwise_similarity, {}, 0.0),
    "logit_softmax": (losses.logit_distillation, {"activation": "softmax"}, 0.0),
    "logit_sigmoid": (losses.logit_distillation, {"activation": "sigmoid"}, 0.0),
    "hint": (losses.hint, {}, 0.0),
    "cosine": (losses.cosine_imitation, {}, 0.0),
}
WITHOUT_SNIPPETS = {"global_context", "pairwise_similarity", "rkd_angle", "rkd_distance", "similarity_preserving"}
PER_SNIPPET = [name for name, term in TERMS.items() if term.loss.__name__ not in WITHOUT_SNIPPETS]
every_term = pytest.mark.parametrize("name", TERMS)
every_distillation = pytest.mark.parametrize("name", DISTILLATION)


@functools.cache
def compiled(name):
    return jax.jit(jax.value_and_grad(TERMS[name]))


def test_every_term_is_tested():
    tested = {term.loss for term in DISTILLATION.values()}
    functions = {name: term.functions().values() for name, term in terms.TERMS.items() if not term.owns}
    missing = [name for name, forms in functions.items() if not tested.issuperset(forms)]
    assert not missing, "add each of its forms to DISTILLATION"


def example():
    """Student, teacher, labels, mask: two videos of 7 and 4 snippets."""
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, B, T, H)).astype(np.float32)
    labels = (rng.random((B, T, C)) < 0.3).astype(np.float32)
    mask = np.arange(T)[None] < np.array([[7], [4]])
    return student, teacher, labels, mask


def pad(arrays, videos, snippets, value):
    """Append masked videos and snippets, and fill all masked places with `value`."""
    *arrays, mask = arrays
    mask = np.pad(mask, ((0, videos), (0, snippets)))
    arrays = [np.pad(x, ((0, videos), (0, snippets), (0, 0))) for x in arrays]
    return [np.where(mask[..., None], x, np.float32(value)) for x in arrays] + [mask]


@every_term
@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf])
def test_padding_changes_neither_value_nor_gradient(name, value):
    expected, gradient = compiled(name)(*example())
    padded, padded_gradient = compiled(name)(*pad(example(), 2, 4, value))
    assert expected > 0
    np.testing.assert_allclose(padded, expected, rtol=2e-6)
    np.testing.assert_allclose(padded_gradient[:B, :T], gradient, rtol=2e-5, atol=1e-7)
    np.testing.assert_array_equal(padded_gradient[B:], 0)
    np.testing.assert_array_equal(padded_gradient[:, T:], 0)
    np.testing.assert_array_equal(padded_gradient[1, 4:], 0)


@every_term
def test_masking_equals_slicing(name):
    """The second video's four valid snippets, with everything else masked, and sliced out."""
    *arrays, mask = example()
    mask = np.stack([np.zeros(T, bool), mask[1]])
    masked, gradient = compiled(name)(*arrays, mask)
    sliced, sliced_gradient = compiled(name)(*(x[1:, :4] for x in [*arrays, mask]))
    np.testing.assert_allclose(masked, sliced, rtol=2e-6)
    np.testing.assert_allclose(gradient[1:, :4], sliced_gradient, rtol=2e-5, atol=1e-7)


@every_term
def test_empty_mask_is_no_loss_and_no_gradient(name):
    *arrays, mask = pad(example(), 0, 0, np.nan)
    for value in (1.0, np.nan):
        value, gradient = compiled(name)(*(np.full_like(x, value) for x in arrays), np.zeros_like(mask))
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", PER_SNIPPET)
def test_the_mean_of_the_values_per_snippet_is_the_loss(name):
    arrays = pad(example(), 1, 2, np.nan)
    counted = pair_mask(arrays[-1]) if "boundary" in name else arrays[-1]

    def mean(*arrays):
        values = TERMS[name](*arrays, reduction="none")
        return masked_mean(values, counted), values

    expected, gradient = compiled(name)(*arrays)
    (value, values), gradient_of_mean = jax.jit(jax.value_and_grad(mean, has_aux=True))(*arrays)
    assert values.shape == counted.shape and values.dtype == jnp.float32
    np.testing.assert_array_equal(values[~counted], 0)
    assert len(np.unique(values[counted])) == counted.sum()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient_of_mean, gradient, rtol=1e-5, atol=1e-8)


def test_a_reduction_that_a_loss_does_not_have_is_refused():
    for name in PER_SNIPPET:
        with pytest.raises(ValueError, match="^[a-z_]+: reduction must be 'mean' or 'none', got 'sum'"):
            jax.eval_shape(functools.partial(TERMS[name], reduction="sum"), *example())
    for name in TERMS.keys() - PER_SNIPPET:
        assert "reduction" not in inspect.signature(TERMS[name].loss).parameters
    # A step needs a scalar, so the option is not a field of a config.
    assert not any("reduction" in term.options() for term in terms.TERMS.values())


@every_term
def test_jit_equals_eager(name):
    np.testing.assert_allclose(TERMS[name](*map(jnp.asarray, example())), compiled(name)(*example())[0], rtol=1e-6)


@every_term
def test_bfloat16_features_are_compared_in_float32(name):
    student, teacher, labels, mask = example()
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in (student, teacher))
    value, gradient = compiled(name)(student, teacher, labels, mask)
    expected, _ = compiled(name)(student.astype(jnp.float32), teacher.astype(jnp.float32), labels, mask)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@every_distillation
def test_no_gradient_reaches_the_teacher(name):
    gradient = jax.jit(jax.grad(DISTILLATION[name], argnums=1))(*example())
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", MINIMUM)
def test_student_equal_to_teacher_is_the_minimum(name):
    student, teacher, _, mask = example()
    teacher = np.round(64 * teacher) / 64  # exact sums: rounding would move an L1 distance off its kink at 0
    loss, options, minimum = MINIMUM[name]
    term = jax.jit(jax.value_and_grad(lambda student: loss(student, teacher, mask, **options)))
    value, gradient = term(teacher)
    np.testing.assert_allclose(value, minimum, atol=1e-6)
    assert term(student)[0] > value + 1e-3
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_infonce_without_negatives_is_zero():
    student, teacher, _, mask = example()
    assert (
        losses.atomic(jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(mask), form="infonce", num_negatives=0)
        == 0
    )


@every_term
@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_constant_features_have_a_finite_gradient(name, constant):
    student, teacher, labels, mask = example()
    for s, t in ((np.full_like(student, constant), teacher), (student, np.full_like(teacher, constant))):
        value, gradient = compiled(name)(s, t, labels, mask)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@every_term
def test_one_snippet(name):
    value, gradient = compiled(name)(*(x[:1, :1] for x in example()))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    if "boundary" in name:
        assert value == 0


@every_term
def test_the_error_names_the_loss_and_every_shape(name):
    student, teacher, labels, mask = map(jnp.asarray, example())
    with pytest.raises(ValueError, match=r": .* must .*\(2, 7, \d\).*\(2, 6\)"):
        TERMS[name](student, teacher, labels, mask[:, :6])


@pytest.mark.parametrize(
    "call",
    [
        lambda s, m: losses.atomic(s, s, m, form="l2"),
        lambda s, m: losses.boundary(s, s, m, form="l2"),
        lambda s, m: losses.global_context(s, s, m, relation="time"),
        lambda s, m: losses.atomic(s, s, m),
        lambda s, m: losses.rkd_distance(s, s, m, max_anchors=1),
        lambda s, m: losses.rkd_angle(s, s, m, max_snippets=1),
        lambda s, m: losses.rkd_angle(s, s, m, max_snippets=0),
        lambda s, m: losses.logit_distillation(s, s, m, activation="tanh"),
        lambda s, m: losses.logit_distillation(s, s, m, activation="softmax", temperature=0),
        lambda s, m: losses.soft_cross_entropy(s, s, m, activation="tanh"),
        lambda s, m: losses.soft_cross_entropy(s, s, m, activation="softmax", background_weight=-1.0),
    ],
)
def test_unknown_options_raise(call):
    with pytest.raises(ValueError, match=r"l2|time|key=|tanh|at least 1, got 0|above 0, got 0|negative, got -1"):
        call(jnp.ones((1, 2, 3)), jnp.ones((1, 2), bool))


LONG = {
    "channel": losses.global_context,
    "snippet": functools.partial(losses.global_context, relation="snippet"),
    "similarity_preserving": losses.similarity_preserving,
    "pairwise_similarity": losses.pairwise_similarity,
    "rkd_distance": functools.partial(losses.rkd_distance, key=jax.random.key(0)),
    "rkd_angle": functools.partial(losses.rkd_angle, key=jax.random.key(0), max_snippets=50),
}


@pytest.mark.parametrize("name", LONG)
def test_relations_of_20000_snippets_take_less_than_a_gibibyte(name):
    """One 20,000 x 20,000 matrix would take 1.5 GiB."""
    shape, mask = (1, 20_000, 256), jnp.ones((1, 20_000), bool)
    student, teacher = (jax.random.normal(jax.random.key(seed), shape) for seed in range(2))
    step = jax.jit(jax.value_and_grad(LONG[name])).lower(student, teacher, mask).compile()
    memory = step.memory_analysis()
    # The two inputs take 41 MB, and the gradient 20 MB.
    assert 60e6 < memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes < 2**30
    value, gradient = step(student, teacher, mask)
    assert jnp.isfinite(value) and value > 0 and jnp.isfinite(gradient).all()
