"""Each loss term and each kernel alone, forward and backward, against its floors and against eager PyTorch.

    python -m benchmarks.losses [--repeats=5] [--output=FILE.json]

4 videos of 1600 snippets, H = 256, float32. The floor is the larger of two: the FLOPs of the matrix products at the
speed of a large product, and the bytes of arguments, results and gradients at the speed of a large copy. `exponent`: p
of time ∝ T^p for one video of 500 to 8000 snippets. `share of step`: of a distillation step on the same batch (D =
1024); the random bits are those of all layers.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn

from benchmarks import measuring, workloads
from kd_jax.models import cpu_kernels
from kd_jax.models.layers import Dropout
from kd_jax.training.terms import TASKS, TERMS, choose_term

LAYERS, DILATION = 5, 4
ROWS = {name: (name, {}) for name, term in TERMS.items() if not term.owns} | {
    "global_context, snippet": ("global_context", {"relation": "snippet"})
}
# Products of two [T, H] or [H, H] matrices of 2·T·H² FLOPs each, of student with gradient and teacher without.
# The convolution needs four of half the length, forward and for each of its gradients.
PRODUCTS = {
    "global_context": 3 + 1,
    "global_context, snippet": 3 * 3,
    "pairwise_similarity": 3 * 3,
    "similarity_preserving": 3 * (6 + 2) + 2,
    "dilated convolution": 3 * 2,
}


class Kernel(NamedTuple):
    """A call that computes values and gradients, the least bytes and FLOPs that it needs, and the same in PyTorch."""

    call: Callable[[], object]
    num_bytes: float
    flops: float = 0.0
    torch: Callable[[], object] | None = None


def with_pullback(function: Callable) -> Callable:
    """Returns a jitted `(cotangent, *arguments) -> (value, gradients)` of the function."""

    def call(cotangent, *arguments):
        value, pullback = jax.vjp(function, *arguments)
        return value, pullback(cotangent)

    return jax.jit(call)


def kernels(videos: int, length: int, hidden: int) -> dict[str, Kernel]:
    """Returns the loss terms, the dilated convolution and dropout on `[videos, length, hidden]`."""
    batch, student, teacher = workloads.make_batch(videos, length, 1, hidden)
    torch_calls = torch_kernels(batch, student, teacher) if measuring.with_peers() else {}
    key, x, tensor = jax.random.key(0), student.features, student.features.nbytes

    task = jax.jit(jax.value_and_grad(TASKS["dense"].loss))
    calls = {"task": lambda: task(student.logits, batch.labels, batch.mask)}
    num_bytes = {"task": 2 * student.logits.nbytes + batch.labels.nbytes}
    for name, (term, options) in ROWS.items():

        def loss(features, student, teacher, batch, key, term=term, options=options):
            return choose_term(term, options).value(replace(student, features=features), (teacher,), batch, key, {})[0]

        gradient = jax.jit(jax.value_and_grad(loss))
        calls[name] = lambda gradient=gradient: gradient(x, student, teacher, batch, key)
        num_bytes[name] = 3 * tensor  # student, teacher, gradient

    layer = nn.Conv(hidden, kernel_size=(3,), kernel_dilation=DILATION)
    params = layer.init(key, x)["params"]

    def on_cpu(params, x):
        return cpu_kernels.mix_by_convolution({"dilated": params}, x, jnp.int32(DILATION), 2 ** (LAYERS - 1))

    convolve = with_pullback(cpu_kernels.by_platform(lambda params, x: layer.apply({"params": params}, x), on_cpu))
    calls["dilated convolution"] = lambda: convolve(x, params, x)
    num_bytes["dilated convolution"] = 4 * tensor  # input, output and their gradients
    for name, module in {"Dropout": Dropout(0.5), "flax Dropout": nn.Dropout(0.5)}.items():
        apply = functools.partial(module.apply, {}, deterministic=False, rngs={"dropout": key})
        drop = with_pullback(apply)
        calls[name] = lambda drop=drop: drop(x, x)
        num_bytes[name] = 4 * tensor
    flops = {name: 2.0 * count * videos * length * hidden**2 for name, count in PRODUCTS.items()}
    return {n: Kernel(calls[n], num_bytes[n], flops.get(n, 0.0), torch_calls.get(n)) for n in calls}


def torch_kernels(batch, student, teacher) -> dict[str, Callable]:
    """Returns {name: forward and backward} in PyTorch's layout `[B, H, T]`, eager."""
    import torch  # here, because only the comparison needs it

    from benchmarks import peers

    def tensor(array):
        return torch.tensor(jax.device_get(array), device=peers.DEVICE, dtype=torch.float32)

    def timed(forward, *leaves):
        def call():
            value = forward()
            torch.autograd.grad(value, leaves, torch.ones_like(value))
            peers.synchronize()

        return call

    labels, mask = tensor(batch.labels), tensor(batch.mask)[:, None]
    arrays = student.features, teacher.features, student.logits
    s, t, logits = (tensor(x).transpose(1, 2).contiguous() for x in arrays)
    s.requires_grad_(), logits.requires_grad_()
    hidden = s.shape[1]
    layer = torch.nn.Conv1d(hidden, hidden, 3, padding=DILATION, dilation=DILATION).to(peers.DEVICE)
    return {
        "task": timed(lambda: peers.task(logits, labels, mask), logits),
        **{name: timed(lambda term=term: term(s, t, labels, mask), s) for name, term in peers.TERMS.items()},
        "dilated convolution": timed(lambda: layer(s), s, *layer.parameters()),
        "Dropout": timed(lambda: torch.nn.functional.dropout(s, 0.5), s),
    }


def step_and_bits(videos: int, length: int, width: int, hidden: int) -> dict[str, Callable]:
    """Returns a distillation step, and the random bits of its layers, 8 and 32 per element."""
    batch, _, teacher = workloads.make_batch(videos, length, width, hidden)
    run, _ = workloads.training_step(workloads.detector(hidden), batch, (teacher,), workloads.WEIGHTS)

    def bits(words):
        draw = jax.jit(lambda key: jax.random.bits(key, (LAYERS, videos, length, words), jnp.uint32))
        return lambda: draw(jax.random.key(0))

    words = {"random bits, 8 each": -(-hidden // 4), "random bits, 32 each": hidden}
    return {"distillation step": run, **{name: bits(count) for name, count in words.items()}}


def measure(videos: int, length: int, width: int, hidden: int, lengths: list[int], repeats: int) -> tuple[list, dict]:
    """Returns one row for each kernel, and the peaks."""
    peaks, rows = measuring.peaks(), []
    exponents = exponents_of(lengths, hidden, repeats)
    step, _ = measuring.alternate(step_and_bits(videos, length, width, hidden), repeats)
    for name, kernel in kernels(videos, length, hidden).items():
        calls = {"kd_jax": kernel.call, **({"torch": kernel.torch} if kernel.torch else {})}
        medians, _ = measuring.alternate(calls, repeats)
        floors = {"FLOP": kernel.flops / peaks["flops"], "byte": kernel.num_bytes / peaks["bandwidth"]}
        bound = max(floors, key=floors.get)
        row = {"kernel": name, "ms": 1e3 * medians["kd_jax"]}
        row |= {"PyTorch ms": 1e3 * medians["torch"]} if "torch" in medians else {}
        row |= {"floor ms": 1e3 * floors[bound], "bound": bound, "floor/time": floors[bound] / medians["kd_jax"]}
        share = medians["kd_jax"] / step["distillation step"]
        rows.append({**row, "share of step": share, "exponent": exponents.get(name)})
    shares = {name: time / step["distillation step"] for name, time in step.items()}
    return rows + [{"kernel": n, "ms": 1e3 * time, "share of step": shares[n]} for n, time in step.items()], peaks


def exponents_of(lengths: list[int], hidden: int, repeats: int) -> dict[str, float]:
    """Returns {kernel: p} of time ∝ T^p, fitted to one video of each length."""
    times = [measuring.alternate({n: k.call for n, k in kernels(1, t, hidden).items()}, repeats)[0] for t in lengths]
    return {name: measuring.exponent(lengths, [each[name] for each in times]) for name in times[0]} if times else {}


def main(arguments, shape):
    rows, peaks = measure(**shape, lengths=list(map(int, arguments.lengths)), repeats=arguments.repeats)
    return "losses", rows, {**shape, **peaks, "lengths": arguments.lengths, "peers": measuring.with_peers()}


if __name__ == "__main__":
    flags.DEFINE_list("lengths", ["500", "1000", "2000", "4000", "8000"], "T of the exponent; empty: no exponents.")
    measuring.run(main, repeats=5, videos=4, length=1600, width=1024, hidden=256)
