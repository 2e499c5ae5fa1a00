"""One step for teachers, plain students and distilled students.

    loss = task + Σ over teachers, over terms of weight · term(student, teacher)

Without teachers it is plain training: that is how the teacher itself was trained. TERMS is the one place where a term
picks its fields; a new one is a function in kd_jax/losses and a line here. One that owns parameters or a memory is a
module, and a line of MODULES.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from kd_jax.training.state import OWNED, TrainState, model_params
from kd_jax.training.terms import TASKS, TERMS
from kd_jax.types import Batch, Outputs


def losses_of(
    student: Outputs,
    teachers: Sequence[Outputs],
    batch: Batch,
    key: jax.Array,
    terms: Iterable[str],
    *,
    head: str,
    kernel: jax.Array | None = None,
    options: Mapping[str, Mapping] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    owned: Mapping[str, Mapping] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, Outputs], dict[str, jax.Array], dict[str, tuple]]:
    """The task loss, summed over the student's stages, and each term, summed over teachers, with their gradients.

    Args:
      student, teachers: Outputs of `[B, T, H]` features and `[B, T, C]` logits; teachers get no gradient.
      batch: the labels and the mask.
      key: draws the negatives.
      terms: keys of TERMS and of `modules`.
      head: 'dense' or 'sparse'.
      kernel: `[H, C]`, of the student's classifier; without it no norms are computed.
      options: {term: keyword options of its loss}.
      modules: {term: module} of those that own something.
      owned: {term: variables of its module}.

    Returns:
      {'task': …, term: …}, scalars before weighting; by the same names their gradients at the student's Outputs, and
      how strongly each pulls at the student's features: the norm over the batch of its gradient there, to which what it
      says of the logits comes through the classifier; and of each module the gradient of its parameters and its other
      collections afterwards.

    Raises:
      ValueError: for an unknown term, or terms without a teacher.
    """
    terms = tuple(terms)
    modules = modules or {}
    unknown = [term for term in terms if term not in TERMS and term not in modules]
    if unknown:
        raise ValueError(f"unknown distillation term {unknown[0]!r}; known terms: {', '.join([*TERMS, *modules])}")
    if terms and not teachers:
        raise ValueError(f"the terms {', '.join(terms)} compare with a teacher, but no teacher was given")

    def task(student):
        loss = TASKS[head][0]
        return sum(loss(x, batch.labels, batch.mask) for x in (*student.earlier_logits, student.logits))

    def term(name, student):
        read, chosen = TERMS[name][0], (options or {}).get(name, {})
        keys = (jax.random.fold_in(key, index) for index in range(len(teachers)))
        return sum(read(student, t, batch, k, **chosen) for t, k in zip(teachers, keys, strict=True))

    def module(name, student, params):
        variables, rngs = {**owned[name], "params": params}, {"sample": key}
        return modules[name].apply(variables, student, teachers, batch, rngs=rngs, mutable=["memory"])

    def loss(name, student, params, through):
        if kernel is not None:
            student = student.replace(logits=_classified(through, kernel, student.logits))
        if name in modules:
            return module(name, student, params)
        return (task(student) if name == "task" else term(name, student)), None

    values, gradients, norms, own = {}, {}, {}, {}
    for name in ("task", *terms):
        params = owned[name]["params"] if name in modules else {}
        of_loss = jax.value_and_grad(functools.partial(loss, name), argnums=(0, 1, 2), has_aux=True)
        (values[name], after), (gradients[name], of_params, pull) = of_loss(student, params, student.features)
        if kernel is not None:
            pull = gradients[name].features + pull
            norms[name] = jnp.sqrt(jnp.vdot(pull, pull, precision=jax.lax.Precision.HIGHEST))
        if name in modules:
            own[name] = of_params, after
    return values, gradients, norms, own


@jax.custom_vjp
def _classified(features: jax.Array, kernel: jax.Array, logits: jax.Array) -> jax.Array:
    """`logits`, whose gradient also reaches the `features` that the classifier made them of.

    A loss that reads no logits has no such gradient, and the product with the kernel is not computed at all.
    """
    return logits


_classified.defvjp(
    lambda features, kernel, logits: (logits, kernel),
    lambda kernel, gradient: (gradient @ kernel.T, None, gradient),
)


BALANCES = ("loss", "gradient")


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    head: str,
    options: Mapping | None = None,
    balance: str = "loss",
    modules: Mapping[str, nn.Module] | None = None,
) -> Callable:
    """Returns `step(state, teachers, batch, weights, key) -> (state, metrics)`, a pure function for `jax.jit`.

    `weights`, which may hold one of the 'task', and the run's `key` are traced, so runs that differ in them share one
    compiled program. What a weight of a term counts is the `balance`: 'loss', it multiplies the term; 'gradient', the
    term is scaled so that its gradient at the student's features has so many times the norm of the task's, in every
    step; the plateau rule then watches the task loss, because the scaled sum is not one function of the parameters.
    `modules` are those of `make_modules`; a state made with the same ones has what they own.

    Raises:
      ValueError: for an unknown balance.
    """
    if balance not in BALANCES:
        raise ValueError(f"balance must be one of {', '.join(BALANCES)}; got {balance!r}")

    def train_step(state: TrainState, teachers: tuple[Outputs, ...], batch: Batch, weights: dict, key: jax.Array):
        dropout_key, term_key = jax.random.split(jax.random.fold_in(key, state.step))

        def forward(params):
            variables, rngs = {"params": params, **state.constants}, {"dropout": dropout_key}
            return model.apply(variables, batch.features, batch.mask, train=True, rngs=rngs)

        owned = {term: {"params": params, **state.memory[term]} for term, params in state.params.get(OWNED, {}).items()}
        task, terms = weights.get("task", 1.0), {term: w for term, w in weights.items() if term != "task"}
        student, pullback = jax.vjp(forward, model_params(state.params))
        given = {"head": head, "options": options, "modules": modules, "owned": owned}
        kernel = state.params[model.last_head]["kernel"]
        parts, gradients, norms, own = losses_of(student, teachers, batch, term_key, terms, kernel=kernel, **given)
        if balance == "gradient":
            terms = {
                term: jnp.where(norms[term] > 0, weight * norms["task"] / jnp.maximum(norms[term], 1e-30), 0.0)
                for term, weight in terms.items()
            }
        factors = {"task": task, **terms}
        loss = sum(factor * parts[name] for name, factor in factors.items())
        scaled = [jax.tree.map(lambda g, f=f: f * g, gradients[name]) for name, f in factors.items()]
        (gradient,) = pullback(jax.tree.map(lambda *g: sum(g), *scaled))
        if own:
            gradient[OWNED] = {
                term: jax.tree.map(lambda g, f=factors[term]: f * g, of_params) for term, (of_params, _) in own.items()
            }

        watched = loss if balance == "loss" else parts["task"]
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, value=watched)
        metrics = {
            "loss": loss,
            **parts,
            **{f"gradient/{name}": norm for name, norm in norms.items()},
            "gradient_norm": optax.tree.norm(gradient),
            "snippets": jnp.sum(batch.mask),
        }
        params = optax.apply_updates(state.params, updates)
        memory = {**state.memory, **{term: after for term, (_, after) in own.items()}}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, memory=memory), metrics

    return train_step
