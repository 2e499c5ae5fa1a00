"""Terms with parameters or a memory: padding has no effect, teachers are frozen, each part has its own gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.training.terms import TERMS, choose_term
from kd_jax.types import Batch, Outputs

B, T, H, C = 2, 7, 5, 4
OPTIONS = {"crd": {"width": 4, "num_negatives": 6}, "holistic": {"width": 6}, "learned_graph": {"width": 6}}
KEY = jax.random.key(3)


def example(videos=B, length=T, value=0.0, teachers=2):
    """Make student, teachers and batch: two videos of 7 and 4 snippets, padded with `value`."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((1 + teachers, 2, 7, H + C)).astype(np.float32)
    mask = np.zeros((videos, length), bool)
    mask[0, :7] = mask[1, :4] = True
    wide = np.full((1 + teachers, videos, length, H + C), value, np.float32)
    wide[:, :2, :7] = arrays
    wide = np.where(mask[..., None], wide, np.float32(value))
    outputs = [Outputs(features=jnp.asarray(x[..., :H]), logits=jnp.asarray(x[..., H:])) for x in wide]
    labels = jnp.zeros((videos, length, C))
    first = np.full(videos, 11, np.int32)
    first[:2] = 0, 7
    return outputs[0], outputs[1:], Batch(labels, labels, jnp.asarray(mask), jnp.asarray(first))


def module_of(term):
    module = choose_term(term, OPTIONS[term], num_snippets=11).module()
    variables = module.init({"params": KEY, "sample": KEY}, *example())
    return module, dict(variables)


def value_and_gradients(term, arguments):
    module, variables = module_of(term)
    params = variables.pop("params")

    def loss(params, student, teachers, batch):
        rngs = {"sample": KEY}
        return module.apply({"params": params, **variables}, student, teachers, batch, rngs=rngs, mutable=["memory"])

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True))(params, *arguments)


def test_every_module_is_tested():
    assert OPTIONS.keys() == {name for name, term in TERMS.items() if term.owns}


@pytest.mark.parametrize("term", OPTIONS)
def test_padding_has_no_effect_and_teachers_are_frozen(term):
    (value, _), (params, student, teachers) = value_and_gradients(term, example())
    (padded, _), (padded_params, padded_student, _) = value_and_gradients(term, example(B, T + 3, np.nan))
    np.testing.assert_allclose(padded, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), padded_params, params)
    for got, expected in zip(jax.tree.leaves(padded_student), jax.tree.leaves(student), strict=True):
        np.testing.assert_allclose(got[:, :T], expected, rtol=1e-4, atol=1e-6)
        assert not got[:, T:].any() and not expected[1, 4:].any()
    assert any(leaf.any() for leaf in jax.tree.leaves(student)) and any(leaf.any() for leaf in jax.tree.leaves(params))
    assert not any(leaf.any() for leaf in jax.tree.leaves(teachers))


@pytest.mark.parametrize("term", OPTIONS)
def test_padded_videos_have_no_effect(term):
    """Random draws for a video must not depend on the number of videos, except the critic's random points."""
    (value, _), _ = value_and_gradients(term, example(teachers=2))
    (padded, _), (_, student, _) = value_and_gradients(term, example(B + 2, T, np.nan))
    np.testing.assert_allclose(padded, value, rtol=1e-5)
    assert all(np.isfinite(leaf).all() and not leaf[B:].any() for leaf in jax.tree.leaves(student))


@pytest.mark.parametrize("term", OPTIONS)
def test_an_empty_mask_gives_0(term):
    student, teachers, batch = example()
    empty = batch.__class__(batch.features, batch.labels, jnp.zeros_like(batch.mask), batch.first)
    (value, _), gradients = value_and_gradients(term, (student, teachers, empty))
    assert value == 0 and all(np.isfinite(g).all() and not g.any() for g in jax.tree.leaves(gradients[:2]))


def test_critic_and_student_pull_in_opposite_directions():
    """The critic's gradient equals that of its WGAN-GP loss, and the student's that of −mean D, both by hand."""
    student, (teacher,), batch = example(teachers=1)
    module = losses.HolisticDistillation(num_snippets=0, width=6)
    params = module.init({"params": KEY, "sample": KEY}, student, [teacher], batch)["params"]
    critic = losses.Critic(6)

    def score(params, logits):
        return critic.apply({"params": params["critic_0"]}, logits, batch.mask)

    def own_loss(params):
        goal, fixed = teacher.logits, student.logits
        total = jnp.mean(score(params, fixed) - score(params, goal))
        between = share * fixed + (1 - share) * goal
        slope = jax.grad(lambda z: jnp.sum(score(params, z)))(between)
        return total + 10 * jnp.mean((jnp.sqrt(jnp.sum(slope**2, axis=(1, 2))) - 1) ** 2)

    def loss(params, student):
        return module.apply({"params": params}, student, [teacher], batch, rngs={"sample": KEY})

    seen = []  # the random points that the module draws
    uniform = jax.random.uniform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", lambda *a, **k: seen.append(uniform(*a, **k)) or seen[-1])
        loss(params, student)
    (share,) = seen
    value, (of_critic, of_student) = jax.value_and_grad(loss, argnums=(0, 1))(params, student)
    expected, gradient = jax.value_and_grad(own_loss)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), of_critic, gradient)
    wanted = jax.grad(lambda z: -jnp.mean(score(params, z)))(student.logits)
    np.testing.assert_allclose(of_student.logits, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(of_student.features, 0)


def test_a_graph_with_one_teacher_or_equal_weights_is_the_mean_of_graph_distillation():
    student, teachers, batch = example()
    alone = [float(losses.graph_distillation(student, teacher, batch.mask)) for teacher in teachers]
    module = losses.LearnedGraph(num_snippets=0, width=6)

    def value(teachers):
        return float(module.init_with_output({"params": KEY}, student, teachers, batch)[0])

    assert value(teachers[:1]) == pytest.approx(alone[0], rel=1e-5)
    assert value([teachers[0]] * 2) == pytest.approx(alone[0], rel=1e-5)
    variables = jax.tree.map(jnp.zeros_like, module.init({"params": KEY}, student, teachers, batch))
    equal = float(module.apply(variables, student, teachers, batch))
    assert equal == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert value(teachers) != pytest.approx(equal, rel=1e-4)
