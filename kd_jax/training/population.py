"""Runs of one program that train at the same time, and the compiled programs that all runs share.

    population = Population(program, training, teacher_sets, set_of_run, seeds, states, settings)
    metrics = population.run_epoch(3)          # {'loss': [S, P], …}; updates population.states

Several runs fill an accelerator better than one, so there they are mapped with `vmap` in one program. A CPU gains
little from that: its runs train one after another, each as a population of one, with the same compiled program.
"""

import contextlib
import ctypes
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import runtime, sharding
from kd_jax.data.batches import AHEAD, Example, bucket_lengths, iterate_epoch, schedule_epoch
from kd_jax.models.cpu_kernels import one_platform
from kd_jax.training import memory, on_device
from kd_jax.training.state import TrainState
from kd_jax.training.step import Program, Settings, make_train_step

# FLOPs. A shorter training ends earlier on a CPU if it is compiled quickly, although its steps are then slower.
SHORT = 5e12


@functools.lru_cache(maxsize=64)
def jitted_step(program: Program, quick: bool = False):
    """The jitted step of a program, for batches that the host sends; `quick` as in `runtime.compiler_options`."""
    return jax.jit(one_platform()(make_train_step(program)), **_jit_options(quick))


@functools.lru_cache(maxsize=64)
def jitted_epoch(program: Program, buckets: tuple[int, ...], quick: bool = False):
    """The jitted epoch of a program, for videos on the device; see `on_device.make_train_epoch`."""
    train_epoch = one_platform()(on_device.make_train_epoch(program, buckets, sharding.data_mesh()))
    return jax.jit(train_epoch, **_jit_options(quick))


def _jit_options(quick: bool) -> dict:
    """Options of `jax.jit`: states are replicated and updated in place."""
    everywhere = NamedSharding(sharding.data_mesh(), PartitionSpec())
    options = runtime.compiler_options(quick=quick)
    return {"donate_argnums": 0, "out_shardings": everywhere, "compiler_options": options}


def compile_for(function, *arguments) -> jax.stages.Compiled:
    """The jitted function compiled for these arguments; compiled once for equal shapes and shardings.

    Raises MemoryError if it needs more memory than there is.
    """
    leaves, tree = jax.tree.flatten(arguments)
    return _compiled(function, tree, *(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves))


@functools.lru_cache(maxsize=64)
def _compiled(function, tree, *leaves) -> jax.stages.Compiled:
    started = time.perf_counter()
    compiled = function.lower(*jax.tree.unflatten(tree, leaves)).compile()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps 0.6 GB that the compiler has freed
        trim(0)
    logging.info("compiled in %.1f s", time.perf_counter() - started)
    memory.check_compiled(compiled)
    return compiled


def maps_runs() -> bool:
    """Whether one program trains several runs: as many as fit the memory of an accelerator, but one on a CPU."""
    return jax.default_backend() != "cpu"


class Population:
    """P runs of one program; each has its own seed, weights, learning rate and teachers.

    Attributes:
      states: the TrainState of all runs, `[P, …]` each leaf.
      pace: the number of steps to take at once.
    """

    def __init__(
        self,
        program: Program,
        training,
        teacher_sets: Sequence[Sequence[Example]],
        set_of_run: Sequence[int],
        seeds: Sequence[int],
        states: TrainState,
        settings: Settings,
    ):
        """Puts everything on the devices.

        Args:
          program, training: the step, and the config's section with batch_size, length_buckets and data.
          teacher_sets: the training videos, once with each set of teachers that a run has.
          set_of_run, seeds: `[P]`, the index of the set of each run, and the seed of its order of videos.
          states, settings: `[P, …]`.
        """
        self.pace = 1
        self._training, self._sets, self._seeds, self._mesh = training, teacher_sets, seeds, sharding.data_mesh()
        self._lengths = [len(example.features) for example in teacher_sets[0]]
        self._buckets = bucket_lengths(self._lengths, training.length_buckets, training.batch_size)
        given = states, np.array(set_of_run, np.int32), settings
        self.states, self._set_of_run, self._settings = sharding.replicate(given, self._mesh)
        num_params = sum(x.size for x in jax.tree.leaves(states.params)) / len(seeds)
        flops = 6 * num_params * sum(self._lengths) * program.optimization.epochs
        if training.data == "resident" or (training.data == "auto" and on_device.fits(teacher_sets)):
            memory.check_videos(on_device.num_bytes(teacher_sets))
            self._data: on_device.Resident | None = on_device.put(teacher_sets, max(self._buckets), self._mesh)
            self._function = jitted_epoch(program, self._buckets, flops < SHORT)
        else:
            self._data, self._function = None, jitted_step(program, flops < SHORT)

    def fits(self) -> bool:
        """Whether the device holds the videos and what an epoch of all runs needs; compiles the epoch."""
        if self._data is None:
            return False
        try:
            needed = memory.program_size(compile_for(self._function, *self._arguments(1)))
        except MemoryError:
            return False
        assert needed  # every backend that maps runs reports it
        return needed <= on_device.memory_limit()

    def run_epoch(
        self,
        number: int,
        report: Callable = lambda metrics, count=1: None,
        *,
        first: int = 0,
        until: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Trains one epoch, or its steps from `first` to before `until`, and returns every metric, `[S, P]`.

        An epoch in parts has the same bits as a whole one.

        Args:
          number: of the epoch, from 1; it draws the order of the videos.
          report: progress. Streamed videos: called after each step with the metrics of the steps so far. Videos on the
            device: called once, with no metrics and the number of steps.
        """
        train = self._run_streamed if self._data is None else self._run_resident
        return train(number, report, slice(first, until))

    def batch(self, run: int, epoch: int, step: int) -> tuple[list[Example], int]:
        """The videos of one step of a run in an epoch, and the number of steps of the epoch."""
        seed, videos = self._seeds[run], self._sets[int(self._set_of_run[run])]
        batches = schedule_epoch(self._lengths, self._buckets, self._training.batch_size, seed=seed, epoch=epoch)
        return [videos[i] for i in batches[step][1]], len(batches)

    def profile(self, directory: str, max_steps: int = 8) -> None:
        """Writes a trace of a few steps for TensorBoard or Perfetto; the states stay as they are."""
        kept = jax.tree.map(jnp.copy, self.states)
        self.run_epoch(1, until=max_steps)  # compiles
        with jax.profiler.trace(directory):
            self.run_epoch(2, until=max_steps)
        self.states = kept

    def _run_resident(self, number, report, steps):
        arguments = self._arguments(number, steps)
        with jax.profiler.StepTraceAnnotation("epoch", step_num=number):
            self.states, metrics = compile_for(self._function, *arguments)(*arguments)
            metrics = {key: values[steps] for key, values in jax.device_get(metrics).items()}
        report([], len(metrics["loss"]))
        return metrics

    def _arguments(self, number, steps=slice(None)) -> tuple:
        batch_size = self._training.batch_size
        num_rows = sharding.device_rows(batch_size, self._mesh)
        plans = []
        for seed in self._seeds:
            batches = schedule_epoch(self._lengths, self._buckets, batch_size, seed=seed, epoch=number)
            plans.append(on_device.index_plan(batches, self._buckets, len(self._lengths), num_rows))
        buckets_of, rows = plans[0][0], np.stack([rows for _, rows in plans], axis=1)  # the same buckets for all runs
        bounds = np.array(steps.indices(len(buckets_of))[:2], np.int32)
        buckets_of, rows, bounds = sharding.replicate((buckets_of, rows, bounds), self._mesh)
        return self.states, self._data, self._set_of_run, buckets_of, rows, self._settings, bounds

    def _run_streamed(self, number, report, steps):
        state, settings = jax.tree.map(lambda x: x[0], (self.states, self._settings))
        done: list[Mapping[str, jax.Array]] = []
        options = {"seed": self._seeds[0], "epoch": number, "steps": steps}
        batches = iterate_epoch(self._sets[0], self._buckets, self._training.batch_size, self._mesh, **options)
        with contextlib.closing(batches):
            for _, batch, teachers in batches:
                arguments = state, teachers, batch, settings
                with jax.profiler.StepTraceAnnotation("step", step_num=len(done)):
                    state, metrics = compile_for(self._function, *arguments)(*arguments)
                done.append(metrics)
                report(done)
                # Every queued step holds its batch, so the queue stays short: this waits for an earlier step.
                if len(done) > AHEAD and not math.isfinite(done[-1 - AHEAD]["gradient_norm"]):
                    break
        self.states = jax.tree.map(lambda x: x[None], state)
        return jax.tree.map(lambda *values: np.array(values)[:, None], *jax.device_get(done))
