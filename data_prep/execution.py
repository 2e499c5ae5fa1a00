"""The same task for many items: in this process, in several, or as an Apache Beam pipeline.

    for index, result in run(write, [(shard,) for shard in shards], workers=4): ...

A task is a function of a module, its arguments can be pickled, its result is plain JSON.
"""

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from kd_jax.files import write_atomically


@dataclass(frozen=True)
class Beam:
    """Where a pipeline runs.

    Attributes:
      runner: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner, …
      options: of the runner, `--flink_master=…` each.
      scratch: a folder that all its machines can write to.
    """

    runner: str
    options: tuple[str, ...]
    scratch: Path


def run(function: Callable, tasks: Sequence[tuple], *, workers: int = 1, beam: Beam | None = None) -> Iterator[tuple]:
    """Calls `function(*task)` for each task.

    Args:
      function: of a module, so that other processes find it.
      tasks: its arguments.
      workers: processes on this machine; 1 = this one.
      beam: a pipeline instead.

    Yields:
      (index of the task, result), as they finish; an exception of a task is raised here and ends the others.
    """
    if beam:
        yield from _run_beam(function, tasks, beam)
    elif workers == 1 or len(tasks) < 2:
        for index, task in enumerate(tasks):
            yield index, function(*task)
    else:
        pool = ProcessPoolExecutor(
            min(workers, len(tasks)), mp_context=get_context("spawn"), initializer=start, initargs=(os.getpid(),)
        )
        try:
            with without_interrupts():  # the first call starts the workers, which inherit it
                index_of = {pool.submit(function, *task): index for index, task in enumerate(tasks)}
            for future in as_completed(index_of):
                yield index_of[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C is ignored; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def start(parent: int) -> None:
    """A worker does not outlive its parent."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_beam(function: Callable, tasks: Sequence[tuple], beam: Beam) -> Iterator[tuple]:
    """Results come back through files, since a pipeline returns nothing to who started it."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError("--runner needs Apache Beam: pip install 'kd_jax[beam]'") from None
    with tempfile.TemporaryDirectory(dir=beam.scratch) as folder:
        options = PipelineOptions([f"--runner={beam.runner}", *beam.options])
        unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
        if unknown:
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
    except ValueError as error:  # what is wrong with the input is no reason to try again
        result = {"error": str(error)}
    # Whole or not at all: a runner may run a task twice at once.
    write_atomically(Path(folder) / f"{index}.json", json.dumps(result).encode())
