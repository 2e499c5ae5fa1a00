"""Folders that appear under their name when they are complete, and not before.

with staged(Path('data/mine'), marker='kd_jax.json', overwrite=False) as folder:
    ...                                 # write into `folder`; an exception leaves nothing behind
"""

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staged(directory: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """Gives a new folder beside `directory` that takes its place when the block ends without an exception.

    Args:
      directory: the final name; it must be free, or hold `marker` and `overwrite` be true.
      marker: the file by which a folder is known as one of ours; nothing else is ever deleted.
      overwrite: replace an older folder.

    Raises:
      FileExistsError: if `directory` is not free.
    """
    directory = Path(os.path.abspath(directory))
    check_free(directory, marker=marker, overwrite=overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory)
    unfinished = _make_beside(directory, "unfinished")
    try:
        yield unfinished
        check_free(directory, marker=marker, overwrite=overwrite)  # hours may have passed
        if directory.exists():
            replaced = _beside(directory, "replaced")
            directory.rename(replaced)
            unfinished.rename(directory)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """A hidden folder beside `directory` for results on their way; gone when the block ends."""
    directory = Path(os.path.abspath(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory)
    folder = _make_beside(directory, "scratch")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_free(directory: Path, *, marker: str, overwrite: bool) -> None:
    """Raises FileExistsError unless `directory` is free, or holds `marker` and may be overwritten."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not (directory / marker).is_file():
        raise FileExistsError(
            f"{directory} is not empty and holds no records of kd_jax, so it is left alone; choose another folder"
        )
    if not overwrite:
        raise FileExistsError(
            f"{directory} already holds records; choose another folder, or replace them with --overwrite"
        )


def _beside(directory: Path, state: str) -> Path:
    return directory.with_name(f".{directory.name}.{state}-{socket.gethostname()}-{os.getpid()}")


def _make_beside(directory: Path, state: str) -> Path:
    folder = _beside(directory, state)
    shutil.rmtree(folder, ignore_errors=True)  # of an older process that had our number
    folder.mkdir()
    return folder


def _remove_abandoned(directory: Path) -> None:
    """Removes what processes of this machine left when they were killed."""
    pattern = re.compile(
        rf"\.{re.escape(directory.name)}\.(unfinished|scratch|replaced)-{re.escape(socket.gethostname())}-(\d+)"
    )
    for path in directory.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _is_alive(int(match[2])) and (match[1] != "replaced" or directory.exists()):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True
