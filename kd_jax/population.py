"""Runs of equal shape that train side by side: their states, their videos, and an epoch of all of them as one program.

    population = Population(program, training, sets, which, seeds, states, weights, keys)
    metrics = population.run_epoch(3)          # {'loss': [steps, runs], …}; population.states moved on

A single run is a population of one. Where the videos do not fit the device there must be one run, and the host sends
its batches.
"""

import contextlib
import ctypes
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import input_pipeline, resident
from kd_jax.distill import make_modules, make_train_step
from kd_jax.input_pipeline import Example
from kd_jax.train_state import TrainState, make_optimizer


@functools.lru_cache(maxsize=64)
def compiled_train_step(
    model,
    head: str,
    options: str,
    plateau_patience: int,
    steps_per_epoch: int,
    balance: str = "loss",
    num_snippets: int = 0,
):
    """The jitted step; runs that differ only in weights, learning rate or seed share it and its compilations."""
    step = _train_step(model, head, options, plateau_patience, steps_per_epoch, balance, num_snippets)
    return jax.jit(step, **_how_to_compile())


@functools.lru_cache(maxsize=64)
def compiled_train_epoch(
    model,
    head: str,
    options: str,
    plateau_patience: int,
    steps_per_epoch: int,
    buckets: tuple[int, ...],
    balance: str = "loss",
    num_snippets: int = 0,
):
    """The same for a whole epoch of resident videos, see `resident.make_train_epoch`."""
    step = _train_step(model, head, options, plateau_patience, steps_per_epoch, balance, num_snippets)
    epoch = resident.make_train_epoch(step, buckets, input_pipeline.data_mesh())
    return jax.jit(epoch, **_how_to_compile())


@functools.cache
def _how_to_compile() -> dict:
    """Options of `jax.jit`: states are replicated and updated in place; on a CPU, the matrix products are Eigen's.

    Those of YNNPACK, which XLA would take, are 10 to 15 % slower there (benchmarks/README.md).
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""} if jax.default_backend() == "cpu" else None
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:  # a version that does not know it
        options = None
    everywhere = NamedSharding(input_pipeline.data_mesh(), PartitionSpec())
    return {"donate_argnums": 0, "out_shardings": everywhere, "compiler_options": options}


def _train_step(
    model, head: str, options: str, plateau_patience: int, steps_per_epoch: int, balance: str, num_snippets: int
):
    optimizer = make_optimizer(0.0, plateau_patience=plateau_patience, steps_per_epoch=steps_per_epoch)
    options = json.loads(options)
    modules = make_modules(options, num_snippets)
    return make_train_step(model, optimizer, head=head, options=options, balance=balance, modules=modules)


def _compile(function, *arguments) -> jax.stages.Compiled:
    """The jitted function compiled for arguments like these, once for equal shapes and shardings."""
    leaves, tree = jax.tree.flatten(arguments)
    return _compiled(function, tree, *(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves))


@functools.lru_cache(maxsize=64)
def _compiled(function, tree, *leaves) -> jax.stages.Compiled:
    started = time.perf_counter()
    done = function.lower(*jax.tree.unflatten(tree, leaves)).compile()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what the compiler frees: 0.6 GB
        trim(0)
    logging.info("compiled in %.1f s", time.perf_counter() - started)
    return done


class Population:
    """P runs, each with its own seed, weights, learning rate and teachers.

    Attributes:
      states: of all runs, `[P, …]` each leaf.
    """

    def __init__(
        self,
        program: Mapping,
        training,
        sets: Sequence[Sequence[Example]],
        which: Sequence[int],
        seeds: Sequence[int],
        states: TrainState,
        weights: Mapping[str, np.ndarray],
        keys: jax.Array,
    ):
        """Puts everything on the devices.

        Args:
          program: the arguments of `compiled_train_step`.
          training: the config's section: batch_size, length_buckets, data.
          sets: the training videos, once with each set of teachers that a run has.
          which: `[P]`, the set of each run.
          seeds: of the order of the videos, one a run.
          states: `[P, …]`.
          weights: {term: `[P]`}.
          keys: `[P]`.
        """
        self._training, self._sets, self._seeds, self._mesh = training, sets, seeds, input_pipeline.data_mesh()
        self._lengths = [len(e.features) for e in sets[0]]
        self._buckets = input_pipeline.bucket_lengths(self._lengths, training.length_buckets, training.batch_size)
        self.states, self._which, self._weights, self._keys = input_pipeline.replicate(
            (states, np.array(which, np.int32), dict(weights), keys), self._mesh
        )
        if training.data == "resident" or (training.data == "auto" and resident.fits(sets)):
            self._data = resident.put(sets, max(self._buckets), self._mesh)
            self._function = compiled_train_epoch(**program, buckets=self._buckets)
        else:
            self._data, self._function = None, compiled_train_step(**program)

    def fits(self) -> bool:
        """Whether the device holds the videos, and what an epoch of all runs needs (which compiles it)."""
        if self._data is None:
            return False
        needed = _compile(self._function, *self._arguments(1)).memory_analysis()
        return needed.argument_size_in_bytes + needed.temp_size_in_bytes <= resident.memory_limit()

    def run_epoch(self, epoch: int, report: Callable = lambda metrics, count=1: None) -> dict[str, np.ndarray]:
        """Trains one epoch; returns every metric of each step and run, `[S, P]`.

        `report` is told of steps: the metrics of those so far, or none and how many there were, see `Progress.step`.
        """
        return self._run_streamed(epoch, report) if self._data is None else self._run_resident(epoch, report)

    def _run_resident(self, epoch, report):
        arguments = self._arguments(epoch)
        self.states, metrics = _compile(self._function, *arguments)(*arguments)
        metrics = jax.device_get(metrics)
        report([], len(metrics["loss"]))
        return metrics

    def _arguments(self, epoch):
        batch_size = self._training.batch_size
        rows = input_pipeline.device_rows(batch_size, self._mesh)
        plans = []
        for seed in self._seeds:
            batches = input_pipeline.plan_epoch(self._lengths, self._buckets, batch_size, seed=seed, epoch=epoch)
            plans.append(resident.index_plan(batches, self._buckets, len(self._lengths), rows))
        plan = plans[0][0], np.stack([rows for _, rows in plans], axis=1)  # all go through the same buckets
        plan = input_pipeline.replicate(plan, self._mesh)
        return self.states, self._data, self._which, *plan, self._weights, self._keys

    def _run_streamed(self, epoch, report):
        state, weights, key = jax.tree.map(lambda x: x[0], (self.states, self._weights, self._keys))
        steps = []
        batches = input_pipeline.epoch(
            self._sets[0], self._buckets, self._training.batch_size, self._mesh, seed=self._seeds[0], epoch=epoch
        )
        with contextlib.closing(batches):
            for _, batch, teachers in batches:
                state, metrics = self._function(state, teachers, batch, weights, key)
                steps.append(metrics)
                report(steps)
                if len(steps) > input_pipeline.AHEAD:  # steps wait in line, each with its batch: keep the line short
                    jax.block_until_ready(steps[-1 - input_pipeline.AHEAD])
        self.states = jax.tree.map(lambda x: x[None], state)
        return jax.tree.map(lambda *values: np.array(values)[:, None], *jax.device_get(steps))
