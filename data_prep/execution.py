"""Execution of tasks in this process, in several processes, or as an Apache Beam pipeline.

    for index, result in run(write, [(shard,) for shard in shards], workers=4): ...

A task calls a function that is defined in a module. Its arguments can be pickled, and its result is plain JSON.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from kd_jax import interrupts
from kd_jax.files import write_atomically

UNTRACKED = "ignore::UserWarning:multiprocessing.resource_tracker"


@dataclass(frozen=True)
class Beam:
    """The place where a pipeline runs."""

    runner: str  # DirectRunner, FlinkRunner, SparkRunner, DataflowRunner, …
    options: tuple[str, ...]  # of the runner, for example `--flink_master=…`
    scratch: Path  # folder that all machines of the runner can write to


def run(function: Callable, tasks: Sequence[tuple], *, workers: int = 1, beam: Beam | None = None) -> Iterator[tuple]:
    """Calls `function(*task)` for each task.

    Args:
      function: defined in a module, so that other processes find it.
      tasks: arguments of each call.
      workers: processes on this machine; 1 for this process only.
      beam: run a pipeline instead.

    Yields:
      (index of the task, result), in the order in which tasks finish.

    Raises:
      ValueError: if Apache Beam is missing or lacks an option. An exception of a task ends the others, and is raised.
    """
    if beam:
        yield from _run_beam(function, tasks, beam)
    elif workers == 1 or len(tasks) < 2:
        for index, task in enumerate(tasks):
            yield index, function(*task)
    else:
        sys.warnoptions.append(UNTRACKED)  # of the process that deletes the semaphores of the pool after a signal
        context, workers = get_context("spawn"), min(workers, len(tasks))
        pool = ProcessPoolExecutor(workers, context, end_with_parent, (os.getpid(),))
        try:
            with ignoring_interrupts():  # the first call starts the workers, which inherit this
                index_of = {pool.submit(function, *task): index for index, task in enumerate(tasks)}
            for future in as_completed(index_of):
                yield index_of[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C within the block. It has no effect outside the main thread, which cannot set signal handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_parent(parent: int) -> None:
    """Ends this process when its parent process, given by id, has ended."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_beam(function: Callable, tasks: Sequence[tuple], beam: Beam) -> Iterator[tuple]:
    """Runs a pipeline. Its results are returned through files, since Beam has no other way."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError("--runner needs Apache Beam: pip install 'kd_jax[beam]'") from None
    with interrupts.temporary_folder(dir=beam.scratch) as folder:
        options = PipelineOptions([f"--runner={beam.runner}", *beam.options])
        if unknown := options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys():
            raise ValueError(f"--beam_options: Apache Beam knows no option {', '.join(sorted(unknown))}")
        with apache_beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | apache_beam.Create(list(enumerate(tasks)))
                | apache_beam.Reshuffle()  # spreads the tasks over the workers
                | apache_beam.Map(_to_file, function, folder)
            )
        for index in range(len(tasks)):
            result = json.loads((Path(folder) / f"{index}.json").read_text(encoding="utf-8"))
            if "error" in result:
                raise ValueError(result["error"])
            yield index, result["value"]


def _to_file(indexed_task: tuple, function: Callable, folder: str) -> None:
    index, task = indexed_task
    try:
        result = {"value": function(*task)}
    except ValueError as error:  # invalid input is no reason to run the task again
        result = {"error": str(error)}
    # Atomically, since a runner may run a task twice at the same time.
    write_atomically(Path(folder) / f"{index}.json", json.dumps(result).encode())
