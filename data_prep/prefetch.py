"""Generators that run in other processes, one message ahead of the consumer.

    for index, message in run(read_frames, [(path,) for path in paths], workers=4): ...

If a process dies, for example because a file breaks a decoder, only its own item fails.
"""

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import connection, get_context
from typing import Any

from data_prep import execution


class Failed(str):
    """The last message of an item that failed: the reason."""


class Finished:
    """The last message of an item that did not fail."""


def run(function: Callable, items: Sequence[tuple], *, workers: int) -> Generator[tuple[int, Any], None, None]:
    """Calls the generator function `function(*item)` for each item.

    Args:
      function: defined in a module; yields values that can be pickled. A `ValueError` or `OSError` fails its item.
      items: arguments of each call.
      workers: processes, each at most one message ahead; 0 for this process only.

    Yields:
      (index of the item, message). Messages of an item are in order; the last one is `Finished()` or `Failed(reason)`.
    """
    if workers == 0:
        for index, item in enumerate(items):
            for message in _guarded(function, item):
                yield index, message
        return
    waiting, context = list(range(len(items)))[::-1], get_context("spawn")
    busy: dict[connection.Connection, tuple[int, Any]] = {}
    idle: list[tuple[connection.Connection, Any]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                ours, process = idle.pop() if idle else _begin(context, function)
                index = waiting.pop()
                ours.send(items[index])
                busy[ours] = index, process
            for ours in connection.wait(list(busy)):
                assert isinstance(ours, connection.Connection)
                index, process = busy[ours]
                message, alive = _receive(ours, process)
                if isinstance(message, Finished | Failed):
                    del busy[ours]
                    idle += [(ours, process)] if alive else []
                yield index, message
    finally:
        for ours, process in [*idle, *((ours, process) for ours, (_, process) in busy.items())]:
            process.terminate()
            ours.close()
            process.join()


def _begin(context, function: Callable):
    """Starts a process; returns our end of its pipe, and the process."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs, os.getpid()), daemon=True)
    with execution.ignoring_interrupts():  # the process inherits this; it ends when this one does
        process.start()
    theirs.close()
    return ours, process


def _receive(ours: connection.Connection, process) -> tuple[Any, bool]:
    """Returns the next message, and whether the process is still alive."""
    try:
        return ours.recv(), True
    except (EOFError, ConnectionResetError):
        process.join()
        return Failed(f"the process that read it ended ({process.exitcode})"), False


def _serve(function: Callable, theirs: connection.Connection, parent: int) -> None:
    execution.end_with_parent(parent)
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended
        while True:
            for message in _guarded(function, theirs.recv()):
                theirs.send(message)


def _guarded(function: Callable, item: tuple) -> Iterator[Any]:
    try:
        yield from function(*item)
        yield Finished()
    except (ValueError, OSError) as error:
        yield Failed(str(error))
