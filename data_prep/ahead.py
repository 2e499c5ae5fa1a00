"""Generators that run ahead in other processes, one item of work each at a time.

    for index, message in run(frames_of, [(path,) for path in paths], workers=4): ...

A process that dies, killed by a file that breaks a decoder, costs its own item and no other.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, get_context
from typing import Any

from data_prep import execution


class Failed(str):
    """The last message of an item that could not be finished: why."""


class Finished:
    """The last message of an item that was."""


def run(function: Callable, items: Sequence[tuple], *, workers: int) -> Iterator[tuple[int, Any]]:
    """Calls the generator `function(*item)` for each item.

    Args:
      function: of a module; what it yields can be pickled. A `ValueError` or `OSError` of it fails its item.
      items: its arguments.
      workers: processes, each of which stays one message ahead of what is taken; 0 = this one.

    Yields:
      (index of the item, message), those of an item in order and then `Finished()` or `Failed(reason)`.
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
                index, process = busy[ours]
                try:
                    message = ours.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    message = Failed(f"the process that read it ended ({process.exitcode})")
                    del busy[ours]
                else:
                    if isinstance(message, Finished | Failed):
                        idle.append((ours, busy.pop(ours)[1]))
                yield index, message
    finally:
        for ours, process in [*idle, *((ours, process) for ours, (_, process) in busy.items())]:
            process.terminate()
            ours.close()
            process.join()


def _begin(context, function: Callable):
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs, os.getpid()), daemon=True)
    with execution.without_interrupts():  # the process inherits it; it ends when this one does
        process.start()
    theirs.close()
    return ours, process


def _serve(function: Callable, theirs: connection.Connection, parent: int) -> None:
    execution.start(parent)
    while True:
        try:
            item = theirs.recv()
        except EOFError:
            return
        for message in _guarded(function, item):
            theirs.send(message)


def _guarded(function: Callable, item: tuple) -> Iterator[Any]:
    try:
        yield from function(*item)
    except (ValueError, OSError) as error:
        yield Failed(str(error))
    else:
        yield Finished()
