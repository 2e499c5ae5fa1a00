"""One program at a time in a folder.

    with held(Path('workdir/demo')) as lock:
        lock.check()    # raises OSError if the folder was deleted, or another program has taken it over

On a disk this is a lock of the operating system on the file `.lock`. It ends with the process, whatever ends it. In a
bucket, and on a file system without locks, `.lock` is a lease instead: its owner renews it, and a program that finds
one waits to see whether it is still renewed. No clocks are compared.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from absl import logging

from kd_jax.files import REMEDY, write_atomically
from kd_jax.interrupts import cleaned

RENEWED, EXPIRED = 20.0, 70.0  # seconds between renewals of a lease, and without one until it is taken over
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of a file system that has none


class Lock(Protocol):
    """What `held` yields."""

    def check(self) -> None:
        """Raises OSError if the folder is no longer this program's."""

    def release(self) -> None:
        """Lets other programs in; a second call has no effect."""


@contextlib.contextmanager
def held(folder: Path, path: Path | None = None) -> Iterator[Lock]:
    """Holds the lock of a folder within the block; raises BlockingIOError, one sentence, if another program holds it.

    Args:
      folder: an existing folder on a disk or, as an `epath.Path`, in a bucket.
      path: the file of the lock, `folder/.lock` by default.
    """
    lock = _lock(folder, path or folder / ".lock")
    with cleaned(lock.release):
        yield lock


def _lock(folder: Path, path: Path) -> Lock:
    if "://" in os.fspath(folder):
        return _Lease(folder, path)
    try:
        return _SystemLock(folder, path)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OSError(f"{path} cannot be written ({error.strerror}); {REMEDY}") from None
    logging.warning("%s is on a file system without locks; a lease that is renewed replaces the lock", folder)
    return _Lease(folder, path)


class _SystemLock:
    """A lock of the operating system (flock). Its file names the owner, and is removed at the end."""

    def __init__(self, folder: Path, path: Path):
        self._folder, self._path, self._file = folder, path, -1
        while not self._is_ours():  # its last owner has removed the file that was locked
            self.release()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(self._file, 1000)
                os.close(self._file)
                raise _in_use(folder, owner) from None
            except OSError:
                os.close(self._file)
                raise
        with contextlib.suppress(OSError):  # a full disk: the owner is only shown
            os.ftruncate(self._file, 0)
            os.write(self._file, json.dumps(_owner()).encode())

    def _is_ours(self) -> bool:
        try:
            return self._file >= 0 and os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def check(self) -> None:
        if not self._is_ours():
            raise _lost(self._folder)

    def release(self) -> None:
        if self._is_ours():
            os.unlink(self._path)
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


class _Lease:
    """A file that its owner renews. A program that died leaves it, and it is taken over when it is not renewed."""

    def __init__(self, folder: Path, path: Path):
        self._folder, self._path, self._ended = folder, path, threading.Event()
        self._owner = _owner() | {"id": uuid.uuid4().hex}
        found = self._read()
        if found and not _has_ended(found):
            owner = _described(found)
            logging.warning("%s has a lease of %s; waits %g s to see whether it is renewed", folder, owner, EXPIRED)
            deadline = time.monotonic() + EXPIRED
            while (now := self._read()) == found and time.monotonic() < deadline:
                time.sleep(min(1.0, RENEWED))
            if now not in (None, found):
                raise _in_use(folder, now)
        self._write()
        time.sleep(min(1.0, RENEWED))  # of two that take over at once, the later one has overwritten the other
        self.check()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        write_atomically(self._path, json.dumps(self._owner | {"renewed": time.time()}).encode())

    def _is_ours(self) -> bool:
        return self._owner["id"].encode() in (self._read() or b"")

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            with contextlib.suppress(Exception):  # a bucket that cannot be reached, a full disk: the next time
                if self._is_ours():
                    self._write()

    def check(self) -> None:
        if not self._is_ours():
            raise _lost(self._folder, self._read())

    def release(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            if self._is_ours():
                self._path.unlink()


def _owner() -> dict:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _described(owner: bytes | None) -> str:
    try:
        found = json.loads(owner or b"")
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (ValueError, KeyError, TypeError):  # it is being written
        return "another process"


def _has_ended(owner: bytes) -> bool:
    """Whether the owner was a process of this host that has ended, or had the number that this process has now."""
    try:
        found = json.loads(owner)
        if found["host"] != socket.gethostname():
            return False
        if found["process"] != os.getpid():
            os.kill(found["process"], 0)
        return found["process"] == os.getpid()
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _in_use(folder: Path, owner: bytes | None) -> OSError:
    return BlockingIOError(f"{folder} is in use by {_described(owner)}; wait for its end, or choose another folder")


def _lost(folder: Path, owner: bytes | None = None) -> OSError:
    taken = f"was taken over by {_described(owner)}" if owner else "was deleted or replaced"
    return OSError(f"{folder} {taken} while this program used it; nothing more is written there")
