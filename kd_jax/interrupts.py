"""Ctrl-C (SIGINT) and SIGTERM in a command: one sentence and exit code 130 or 143, from the first import on.

    end_at_once("kd-jax predict")         # before the imports of a command, which take seconds
    run("kd_jax.predict", main)           # after them
    with temporary_folder() as folder:    # deleted at the end of the block, also by a signal

No exception is raised: code may swallow it, and it can crash a library that is half imported or waits for threads.
"""

import contextlib
import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import NoReturn

AGAIN = "run the same command again"
_HOW = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}
_cleanups: list[Callable[[], object]] = []  # what `atexit` is for a normal end


def end_at_once(name: str, remedy: str = AGAIN) -> None:
    """Makes both signals end the program at once, with a sentence that begins with `name`.

    A signal that the caller ignores, as a shell does for a background job, stays ignored.
    """
    for number in _HOW:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: end(name, number, remedy))


def run(name: str, main: Callable[[], object]) -> None:
    """Calls `main()`; both signals end it with a sentence that begins with `name`."""
    end_at_once(name)
    main()


@contextlib.contextmanager
def cleaned(function: Callable[[], object]) -> Iterator[None]:
    """Calls a function at the end of the block, or when a signal ends the program within it."""
    _cleanups.append(function)
    try:
        yield
    finally:
        function()
        _cleanups.remove(function)


@contextlib.contextmanager
def temporary_folder(**options) -> Iterator[str]:
    """Yields a new folder that is deleted at the end of the block, or when a signal ends the program within it.

    `options` are those of `tempfile.mkdtemp`.
    """
    folder = tempfile.mkdtemp(**options)
    with cleaned(functools.partial(shutil.rmtree, folder, ignore_errors=True)):
        yield folder


def end(name: str, number: int, remedy: str) -> NoReturn:
    """Calls the functions of `cleaned` and ends the program with the exit code of this signal."""
    for function in reversed(_cleanups):
        with contextlib.suppress(Exception):
            function()
    os.write(2, f"\n{name}: {_HOW[signal.Signals(number)]}; {remedy}\n".encode())
    os._exit(128 + number)  # libraries may crash or hang at the normal end
