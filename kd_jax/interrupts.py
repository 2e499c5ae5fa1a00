"""Ctrl-C (SIGINT) in a command: one sentence and exit code 130, from the first import on.

    end_at_once("kd-jax")                 # before the imports of a command, which take seconds
    from kd_jax.predict import main
    run("kd_jax.predict", main)

An exception within an import can be swallowed, or crash a library that is half imported, so the program ends without
one until `run`. Within `run` it is a KeyboardInterrupt, so that temporary folders are deleted.
"""

import os
import signal
from collections.abc import Callable
from typing import NoReturn


def end_at_once(name: str) -> None:
    """Has SIGINT end the program at once, unless the caller ignores it, as a shell does for a background job."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: _end(name))


def run(name: str, main: Callable[..., None], *arguments) -> None:
    """Calls `main(*arguments)`; SIGINT ends the program with a sentence that begins with `name`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(*arguments)
    except KeyboardInterrupt:
        _end(name)


def _end(name: str) -> NoReturn:
    os.write(2, f"\n{name}: interrupted\n".encode())
    os._exit(128 + signal.SIGINT)  # libraries may crash or hang at the normal end
