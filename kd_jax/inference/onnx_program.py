"""A trained detector as an ONNX program, by jax2onnx, for any number of videos and snippets.

    program = make(kd_jax.load("workdir/demo/augmented_rgb"))
    call = read(program)                                            # features, mask -> probabilities, by onnxruntime

This needs `pip install 'kd_jax[onnx]'` in a separate environment, because jax2onnx limits other libraries. The
inputs are named after the modalities, and "mask"; the output is "probabilities".
"""

from collections.abc import Sequence

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from kd_jax.inference.exports import Call, as_function, symbolic_inputs
from kd_jax.inference.trained_detector import TrainedDetector
from kd_jax.models import cpu_kernels
from kd_jax.training.run_config import one_line

INLINED = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}  # {primitive: parameter}


def make(detector: TrainedDetector) -> bytes:
    """Returns a detector as an ONNX program with its parameters.

    Raises ValueError without jax2onnx, or if it cannot convert an operation of the filter.
    """
    try:
        import jax2onnx
    except ImportError as error:
        remedy = "pip install 'kd_jax[onnx]' in a separate environment"
        raise ValueError(f"--onnx needs jax2onnx ({error}); {remedy}") from None
    features, mask = symbolic_inputs(detector)
    names = [*sorted(detector.inputs), "mask"]
    with cpu_kernels.plain_only():
        closed = jax.make_jaxpr(as_function(detector))(features, mask)
    try:
        model = jax2onnx.to_onnx(
            lambda *arrays: _evaluate(closed, arrays)[0],
            jax.tree.leaves((features, mask)),
            input_names=names,
            output_names=["probabilities"],
        )
    except Exception as error:  # jax2onnx documents no exception types
        filters = " or ".join(sorted({repr(run.model.filter) for run in detector.members}))
        raise ValueError(
            f"jax2onnx cannot convert the filter {filters} ({one_line(error)}); leave out --onnx"
        ) from error
    return model.SerializeToString()


def read(program: bytes) -> Call:
    """Returns the function that `make` wrote, computed by onnxruntime on a CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def call(features, mask):
        arrays = jax.tree.leaves(features)
        return session.run(None, dict(zip(names, [*arrays, mask], strict=True)))[0]

    return call


def _evaluate(closed: "jax.extend.core.ClosedJaxpr", arrays: Sequence) -> list:
    """Evaluates a program with operations in place of those that jax2onnx converts wrongly or not at all.

    It calls the operations of JAX itself, because jax2onnx replaces those of flax by its own, with another padding.
    """
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arrays], strict=True))
    for equation in jaxpr.eqns:
        given = [x.val if isinstance(x, jax.extend.core.Literal) else values[x] for x in equation.invars]
        name, params = equation.primitive.name, equation.params
        if name in INLINED:
            found = _evaluate(params[INLINED[name]], given)
        elif name == "pad":
            found = [_pad(*given, **params)]
        elif name == "conv_general_dilated":
            found = [_convolve(*given, **params)]
        else:
            found = equation.primitive.bind(*given, **params)
            found = found if equation.primitive.multiple_results else [found]
        values.update(zip(equation.outvars, found, strict=True))
    return [x.val if isinstance(x, jax.extend.core.Literal) else values[x] for x in jaxpr.outvars]


def _pad(x, value, *, padding_config):
    """`lax.pad` without padding between elements; jax2onnx cannot convert it for a length that is not known."""
    for axis, (before, after, _) in enumerate(padding_config):
        sides = [jnp.full((*x.shape[:axis], n, *x.shape[axis + 1 :]), value, x.dtype) for n in (before, after)]
        x = jax.lax.concatenate([part for part in (sides[0], x, sides[1]) if part.shape[axis] != 0], axis)
    return x


def _convolve(x, kernel, *, dimension_numbers, **options):
    """A convolution in the layout that jax2onnx knows."""
    lhs, rhs, out = dimension_numbers
    x, kernel = jnp.transpose(x, lhs), jnp.transpose(kernel, rhs)
    layouts = ("NCHW"[: x.ndim], "OIHW"[: x.ndim], "NCHW"[: x.ndim])
    numbers = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, layouts)
    found = jax.lax.conv_general_dilated_p.bind(x, kernel, dimension_numbers=numbers, **options)
    return jnp.transpose(found, np.argsort(out).tolist())
