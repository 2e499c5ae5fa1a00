"""One start of the program that trains: its lock on the workdir, and the signal that ends it.

Batch systems send SIGTERM before they take a machine away, and kill what has not ended after about 30 seconds. If steps
were trained that no file holds, `Session.check_signal` lets the training save them; otherwise the program ends at once.
A thread receives the signal, because Python would run a handler only after the compiled program, or the compilation,
that is running now.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

import jax

from kd_jax import interrupts, runtime
from kd_jax.files import DamagedFileError
from kd_jax.lock import Lock
from kd_jax.training.clock import Clock

GRACE = 20.0  # seconds from SIGTERM until the program ends, saved or not


class StopRequested(Exception):
    """A process of the job received SIGTERM, and what it trained must be saved."""


class Session:
    """A start of the program. SIGTERM has an effect only within `listening`, which a notebook does not use.

    Attributes:
      lock: of the workdir; None in all processes of a job but the first, and in a notebook.
      clock: where its time goes.
      unsaved: held while this process has trained something that no file holds.
    """

    def __init__(self, program: str = "kd_jax.main", launch: float = 0.0):
        """`launch` is the seconds that the program has run already."""
        self._program = program
        self.lock: Lock | None = None
        self.clock = Clock(launch)
        self.unsaved = threading.Lock()
        self._requested = threading.Event()

    def check_workdir(self) -> None:
        """Raises DamagedFileError if the workdir was deleted, or taken over by another program."""
        try:
            if self.lock:
                self.lock.check()
        except OSError as error:
            raise DamagedFileError(f"{error}; the same command starts again") from None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Ends the program on SIGTERM within the block, as soon as `unsaved` is not held, or after GRACE seconds."""
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
            yield
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        thread = threading.Thread(target=self._watch, args=(reading,), daemon=True)
        thread.start()
        handler = signal.signal(signal.SIGTERM, lambda *_: None)  # signals without a handler do not reach the pipe
        before = signal.set_wakeup_fd(writing)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGTERM, handler)
            os.close(writing)
            thread.join()
            os.close(reading)

    def _watch(self, pipe: int) -> None:
        while received := os.read(pipe, 1):  # nothing at the end of the block
            if received[0] == signal.SIGTERM:
                self._requested.set()
                saved = self.unsaved.acquire(timeout=GRACE)
                how = "" if saved else f" from the last checkpoint, because saving did not end in {GRACE:g} s"
                interrupts.end(self._program, signal.SIGTERM, f"the same command continues{how}")

    def check_signal(self) -> None:
        """Raises StopRequested if any process of the job received SIGTERM; all of them must call this."""
        if runtime.any_process(self._requested.is_set()):
            raise StopRequested

    def stop(self) -> NoReturn:
        """Ends all processes of the job, which must have saved what they trained and hold `unsaved`."""
        if jax.process_count() > 1:
            runtime.wait_for_all("everything is saved")
            jax.distributed.shutdown()
        os.kill(os.getpid(), signal.SIGTERM)  # only one process of the job may have received it
        self.unsaved.release()
        while True:
            signal.pause()
