"""A training step of each temporal filter, against its plain formulation and against eager PyTorch.

    python -m benchmarks.filters [--filters=pdan,ss_tcn] [--repeats=5] [--output=FILE.json]

A step of 2 videos of 2000 snippets, 1024-d, 512 channels, float32, with task loss and Adam. The plain formulation, on a
CPU only, does not use `kd_jax.models.cpu_kernels`. PyTorch has PDAN and SS-TCN. Each side has a process for its peak
memory, above imports and batch, measured twice: first our side compiles, then it finds its program in JAX's cache.
"""

import dataclasses
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn

from benchmarks import measuring, workloads
from benchmarks.workloads import CLASSES
from kd_jax.models import FILTERS, Detector, cpu_kernels


class Plain(nn.Module):
    """A filter that is compiled without the CPU kernels."""

    filter: nn.Module

    def __call__(self, x, mask, *, train=False):
        with mock.patch.object(cpu_kernels, "by_platform", lambda plain, on_cpu: plain):
            return self.filter(x, mask, train=train)


def our_step(name: str, videos: int, length: int, width: int, hidden: int, **options) -> Callable:
    batch, _, _ = workloads.make_batch(videos, length, width, 1)
    model = Detector(name, num_outputs=CLASSES, hidden=hidden, **options)
    run, run.parameters = workloads.training_step(model, batch)
    return run


def plain_step(name: str, **shape: int) -> Callable:
    entry = FILTERS[name]

    def make(name, **options):
        return Plain(entry.make(**options), name=name)

    return our_step(name, **shape, entry=dataclasses.replace(entry, make=make))


def peer_step(name: str, videos: int, length: int, width: int, hidden: int) -> Callable:
    import torch  # here, because only the comparison needs it

    from benchmarks import peers

    batch, _, _ = workloads.make_batch(videos, length, width, 1)
    features, labels, mask = (
        torch.tensor(jax.device_get(x.astype(jnp.float32)), device=peers.DEVICE)
        for x in (batch.features, batch.labels, batch.mask)
    )
    model = peers.FILTERS[name](width, hidden).to(peers.DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-4, fused=True)

    def run():
        optimizer.zero_grad()
        _, logits = model(features.transpose(1, 2), mask[:, None])
        peers.task(logits, labels, mask[:, None]).backward()
        optimizer.step()
        peers.synchronize()

    return run


SIDES = {"kd_jax": our_step, "plain": plain_step, "torch": peer_step}


def measure_memory(side: str, name: str, **shape) -> dict:
    """Returns the peak memory of two steps above imports and the batch, in GB."""
    workloads.make_batch(shape["videos"], shape["length"], shape["width"], 1)

    def two_steps():
        step = SIDES[side](name, **shape)
        for _ in range(2):
            jax.block_until_ready(step())

    return measuring.peak_memory(two_steps)[1]


def compare(filters: list[str], repeats: int, measure: bool, **shape) -> list[dict]:
    """Returns one row for each filter."""
    rows, peers = [], {}
    if measuring.with_peers():
        from benchmarks.peers import FILTERS as peers  # here, because it needs PyTorch
    for name in filters:
        runs = {"kd_jax": True, "plain": jax.default_backend() == "cpu", "torch": name in peers}
        sides, memory = [side for side in SIDES if runs[side]], {}
        for side in [side for side in sides if measure and side != "plain"]:
            found = measuring.memory_twice("benchmarks.filters", f"{side}:{name}")
            memory |= {f"{side} {key}": gb for key, gb in found.items() if side == "kd_jax" or key != "first peak GB"}
        calls = {side: SIDES[side](name, **shape) for side in sides}
        medians, first = measuring.alternate(calls, repeats)
        facts = {"filter": name, "parameters": calls["kd_jax"].parameters, "first step s": first["kd_jax"]}
        rows.append({**facts, **measuring.against_ours(medians), **memory})
    return rows


def main(arguments, shape):
    if arguments.memory_of:
        return measure_memory(*arguments.memory_of.split(":"), **shape)
    rows = compare(arguments.filters, arguments.repeats, arguments.memory, **shape)
    return "filters", rows, {**shape, "peers": measuring.with_peers()}


if __name__ == "__main__":
    flags.DEFINE_list("filters", list(FILTERS), "Filters to measure.")
    flags.DEFINE_bool("memory", True, "Also measure the peak memory of each side.")
    flags.DEFINE_string("memory_of", None, "Internal: only print the peak memory of this SIDE:FILTER.")
    measuring.run(main, repeats=5, videos=2, length=2000, width=1024, hidden=512)
