"""A checksum for every compiled program that JAX keeps on disk.

JAX loads a damaged program without a check, and the process then crashes. `install()` puts this cache in the place of
JAX's own. It replaces private names of JAX, so importing this module raises ImportError if they are gone.
"""

import contextlib
import hashlib
import shutil

from absl import logging
from jax._src import compilation_cache
from jax._src.compilation_cache import LRUCache

from kd_jax.files import why_not_written, write_atomically

CHECKSUM_BYTES = 32


class CheckedCache(LRUCache):
    """JAX's folder of compiled programs, where every file starts with a checksum of its name and its program.

    The names differ from JAX's own. Programs without a checksum, from other code that uses the same folder, are neither
    read nor deleted.
    """

    _warned = False

    def get(self, key: str) -> bytes | None:
        """Returns a program, or None if it is not there. Deletes it if it is damaged."""
        key, reason = _checked(key), "is damaged"
        try:
            entry = super().get(key)
        except (FileNotFoundError, TimeoutError):  # another process deleted it just now, or keeps the lock
            return None
        except OSError as error:
            entry, reason = b"", f"cannot be read ({error.strerror})"
        if entry is None:
            return None
        if entry[:CHECKSUM_BYTES] == _checksum(key, entry[CHECKSUM_BYTES:]):
            return entry[CHECKSUM_BYTES:]
        remedy = "it and others like it are deleted and compiled again"
        self._warn(f"the compiled program {self.path / key}-cache {reason}; {remedy}")
        self._delete(key)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Writes the whole program or nothing; replaces one that JAX could not load."""
        key = _checked(key)
        entry = _checksum(key, value) + value
        try:
            if self.eviction_enabled:  # readers and writers then wait for each other
                self._delete(key)
                super().put(key, entry)
            else:
                write_atomically(self.path / f"{key}-cache", entry)
        except OSError as error:
            reason = why_not_written(error, self.path) or error
            self._warn(f"compiled programs cannot be kept in {self.path} ({reason}); later starts compile anew")
            self._delete(key)

    def _delete(self, key: str) -> None:
        for path in (self.path / f"{key}-cache", self.path / f"{key}-atime"):
            with contextlib.suppress(OSError):  # another process was faster, or the folder is read-only
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _warn(self, message: str) -> None:
        """Logs one message for each process, because a full or damaged disk has the same fault in every file."""
        if not self._warned:
            logging.warning(message)
        self._warned = True


def install() -> None:
    """Makes JAX use this cache for all programs that it reads or writes from now on."""
    compilation_cache.LRUCache = CheckedCache  # type: ignore[misc]
    compilation_cache.reset_cache()


def _checked(key: str) -> str:
    return f"{key}-sha256"


def _checksum(key: str, program: bytes) -> bytes:
    return hashlib.sha256(key.encode() + program).digest()
