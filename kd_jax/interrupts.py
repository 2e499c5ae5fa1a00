"""Ctrl-C (SIGINT) and SIGTERM in a command: one sentence and exit code 130 or 143, from the first import on.

    end_at_once("kd-jax")                 # before the imports of a command, which take seconds
    from kd_jax.predict import main
    run("kd_jax.predict", main)

An exception within an import can be swallowed, or crash a library that is half imported, so the program ends without
one until `run`. Within `run` it is a KeyboardInterrupt, so that temporary folders are deleted. A note on this exception
becomes the rest of the sentence.
"""

import os
import signal
from collections.abc import Callable
from typing import NoReturn

_HOW = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


def end_at_once(name: str, remedy: str = "") -> None:
    """Has SIGINT and SIGTERM end the program at once, with a sentence that begins with `name`."""
    _handle(lambda number, _: _end(name, number, remedy))


def run(name: str, main: Callable[..., None], *arguments) -> None:
    """Calls `main(*arguments)`; SIGINT and SIGTERM end the program with a sentence that begins with `name`."""

    def stop(number: int, _) -> NoReturn:
        end_at_once(name)  # a second signal does not wait for temporary folders
        raise KeyboardInterrupt(number)

    _handle(stop)
    try:
        main(*arguments)
    except KeyboardInterrupt as stopped:
        (number,) = stopped.args or (signal.SIGINT,)
        _end(name, number, *getattr(stopped, "__notes__", ()))


def _handle(handler: Callable) -> None:
    """Sets the handler of both signals, unless the caller ignores them, as a shell does for a background job."""
    for number in _HOW:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(name: str, number: int, remedy: str = "") -> NoReturn:
    os.write(2, f"\n{name}: {_HOW[signal.Signals(number)]}{remedy and f'; {remedy}'}\n".encode())
    os._exit(128 + number)  # libraries may crash or hang at the normal end
