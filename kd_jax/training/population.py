"""Runs of equal shape that train side by side: their states, their videos, and an epoch of all of them.

    population = Population(program, training, sets, which, seeds, states, weights, keys)
    metrics = population.run_epoch(3)          # {'loss': [steps, runs], …}; population.states moved on

On an accelerator, which several runs fill better than one, the epoch is one program for all of them. On a CPU every run
has the program that it has alone, and as many run at a time as there are cores. A single run is a population of one.
Where the videos do not fit the device there must be one run, and the host sends its batches.
"""

import contextlib
import ctypes
import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import runtime, sharding
from kd_jax.data.batches import AHEAD, Example, bucket_lengths, plan_epoch
from kd_jax.data.batches import epoch as epoch_batches
from kd_jax.training import on_device
from kd_jax.training.state import TrainState, make_optimizer
from kd_jax.training.step import make_train_step
from kd_jax.training.terms import MODULES, make_modules


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
    """The same for a whole epoch of resident videos, see `on_device.make_train_epoch`."""
    step = _train_step(model, head, options, plateau_patience, steps_per_epoch, balance, num_snippets)
    epoch = on_device.make_train_epoch(step, buckets, sharding.data_mesh())
    return jax.jit(epoch, **_how_to_compile())


def _how_to_compile() -> dict:
    """Options of `jax.jit`: states are replicated and updated in place."""
    everywhere = NamedSharding(sharding.data_mesh(), PartitionSpec())
    return {"donate_argnums": 0, "out_shardings": everywhere, "compiler_options": runtime.compiler_options()}


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


@functools.lru_cache(maxsize=64)  # XLA takes 0.2 s to say
def _num_bytes(program: jax.stages.Compiled) -> int:
    needed = program.memory_analysis()
    return needed.argument_size_in_bytes + needed.temp_size_in_bytes


def one_program_for_all(mesh: jax.sharding.Mesh) -> bool:
    """Whether runs side by side are one program, or each has its own (benchmarks/README.md has the times of both)."""
    return mesh.devices.flat[0].platform != "cpu"


def _beside_each_other(metrics: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`[S, P]` each, of P times `[S, 1]`; NaN where a run has no such metric."""
    absent = np.full_like(metrics[0]["loss"], np.nan)
    keys = dict.fromkeys(key for each in metrics for key in each)
    return {key: np.concatenate([each.get(key, absent) for each in metrics], axis=1) for key in keys}


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
        self._training, self._sets, self._seeds, self._mesh = training, sets, seeds, sharding.data_mesh()
        self._lengths = [len(e.features) for e in sets[0]]
        self._buckets = bucket_lengths(self._lengths, training.length_buckets, training.batch_size)
        self.states = sharding.replicate(states, self._mesh)
        # What each program trains: all runs, or one, with the terms that it weighs and those that own something.
        count, which = len(which), np.array(which, np.int32)
        whole = count == 1 or one_program_for_all(self._mesh)
        self._parts = [slice(None)] if whole else [slice(i, i + 1) for i in range(count)]
        self._given = sharding.replicate(
            [
                (
                    which[part],
                    {t: w[part] for t, w in weights.items() if whole or w[part] or t == "task" or t in MODULES},
                    key,
                )
                for part, key in zip(self._parts, [keys] if whole else jnp.split(keys, count), strict=True)
            ],
            self._mesh,
        )
        if training.data == "resident" or (training.data == "auto" and on_device.fits(sets)):
            self._data = on_device.put(sets, max(self._buckets), self._mesh)
            self._function = compiled_train_epoch(**program, buckets=self._buckets)
        else:
            self._data, self._function = None, compiled_train_step(**program)

    def fits(self) -> bool:
        """Whether the device holds the videos, and what an epoch of all runs needs (which compiles it)."""
        if self._data is None:
            return False
        programs = [_compile(self._function, *arguments) for arguments in self._arguments(1)]
        needed = max(_num_bytes(program) for program in programs)
        if len(programs) > 1:
            needed += sum(x.nbytes for x in jax.tree.leaves(self.states))
        return needed <= on_device.memory_limit()

    def run_epoch(self, epoch: int, report: Callable = lambda metrics, count=1: None) -> dict[str, np.ndarray]:
        """Trains one epoch; returns every metric of each step and run, `[S, P]`, NaN of a term that it does not weigh.

        `report` is told of steps: the metrics of those so far, or none and how many there were, see `Progress.step`.
        """
        return self._run_streamed(epoch, report) if self._data is None else self._run_resident(epoch, report)

    def _run_resident(self, epoch, report):
        arguments = self._arguments(epoch)
        programs = [_compile(self._function, *each) for each in arguments]
        if len(programs) == 1:
            self.states, metrics = programs[0](*arguments[0])
            metrics = jax.device_get(metrics)
        else:
            with ThreadPoolExecutor(self._at_once(programs)) as pool:
                done = pool.map(lambda run, each: jax.block_until_ready(run(*each)), programs, arguments)
                states, metrics = zip(*done, strict=True)
            states, metrics = jax.device_get((states, metrics))
            states = jax.tree.map(lambda *leaves: np.concatenate(leaves), *states)
            self.states, metrics = sharding.replicate(states, self._mesh), _beside_each_other(metrics)
        report([], len(metrics["loss"]))
        return metrics

    def _at_once(self, programs) -> int:
        """How many of them run at a time: one a core, if memory allows, and no two that spread over devices."""
        if self._mesh.size > 1:
            return 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return max(1, min(len(programs), cores, on_device.memory_limit() // max(map(_num_bytes, programs))))

    def _arguments(self, epoch) -> list[tuple]:
        """Of the one program for all runs, or on a CPU of that of each."""
        batch_size = self._training.batch_size
        rows = sharding.device_rows(batch_size, self._mesh)
        plans = []
        for seed in self._seeds:
            batches = plan_epoch(self._lengths, self._buckets, batch_size, seed=seed, epoch=epoch)
            plans.append(on_device.index_plan(batches, self._buckets, len(self._lengths), rows))
        buckets_of, rows = plans[0][0], np.stack([rows for _, rows in plans], axis=1)  # the same buckets for all
        states = [self.states]
        if len(self._parts) > 1:
            host = jax.device_get(self.states)
            states = [jax.tree.map(lambda x, part=part: x[part], host) for part in self._parts]
        rows = [rows[:, part] for part in self._parts]
        buckets_of, states, rows = sharding.replicate((buckets_of, states, rows), self._mesh)
        return [
            (state, self._data, which, buckets_of, of_run, weights, key)
            for state, of_run, (which, weights, key) in zip(states, rows, self._given, strict=True)
        ]

    def _run_streamed(self, epoch, report):
        _, *given = self._given[0]
        state, weights, key = jax.tree.map(lambda x: x[0], (self.states, *given))
        steps = []
        batches = epoch_batches(
            self._sets[0], self._buckets, self._training.batch_size, self._mesh, seed=self._seeds[0], epoch=epoch
        )
        with contextlib.closing(batches):
            for _, batch, teachers in batches:
                arguments = state, teachers, batch, weights, key
                state, metrics = _compile(self._function, *arguments)(*arguments)
                steps.append(metrics)
                report(steps)
                if len(steps) > AHEAD:  # steps wait in line, each with its batch: keep the line short
                    jax.block_until_ready(steps[-1 - AHEAD])
        self.states = jax.tree.map(lambda x: x[None], state)
        return jax.tree.map(lambda *values: np.array(values)[:, None], *jax.device_get(steps))
