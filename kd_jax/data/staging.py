"""Folders that get their final name only when they are complete.

with staged(Path('data/mine'), marker='kd_jax.json', overwrite=False) as folder:
    ...                             # write into `folder`; after an exception it is deleted
"""

import contextlib
import functools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from kd_jax.files import REMEDY
from kd_jax.interrupts import cleaned
from kd_jax.lock import held


@contextlib.contextmanager
def staged(directory: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """Yields a new sibling folder that becomes `directory` when the block ends without an exception.

    Args:
      directory: the final name; see `check_free`.
      marker: a file that only folders of this kind hold; other folders are never deleted.

    Raises FileExistsError if `directory` is not free, and BlockingIOError if another program is writing it.
    """
    directory = Path(os.path.abspath(directory))
    check_free(directory, marker=marker, overwrite=overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with held(directory, directory.parent / f".{directory.name}.lock"), scratch(directory, "unfinished") as unfinished:
        yield unfinished
        check_free(directory, marker=marker, overwrite=overwrite)  # the block may have taken hours
        if directory.exists():
            replaced = _sibling(directory, "replaced")
            directory.rename(replaced)
            unfinished.rename(directory)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(directory)


@contextlib.contextmanager
def scratch(directory: Path, state: str = "scratch") -> Iterator[Path]:
    """Yields a hidden sibling folder for intermediate results, named after `state` and deleted when the block ends."""
    directory = Path(os.path.abspath(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory)
    folder = _sibling(directory, state)
    shutil.rmtree(folder, ignore_errors=True)  # left by an older process with the same id
    folder.mkdir()
    with cleaned(functools.partial(shutil.rmtree, folder, ignore_errors=True)):
        yield folder


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder whose entries replace those of the same names in `folder` when the block ends.

    After an exception nothing is replaced. A kill meanwhile never leaves entries of two calls: the old ones are deleted
    before the new ones get their names. In a bucket each file is replaced when it is written.

    Raises OSError, one sentence, if `folder` cannot be written, or an old folder has files that would not be replaced.
    """
    if "://" in os.fspath(folder):
        yield folder
        return
    try:
        with scratch(folder / "predictions") as new:
            yield type(folder)(new)
            names = sorted(path.name for path in new.iterdir())
            for name in names:
                _check_replaceable(folder / name, new / name)
            for old in (folder / name for name in names):
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            for name in names:
                (new / name).rename(folder / name)
    except OSError as error:
        message = f"{folder} cannot be written ({error.strerror}); {REMEDY}" if error.strerror else str(error)
        raise OSError(message.replace(os.fspath(_sibling(folder / "predictions", "scratch")), str(folder))) from None


def _check_replaceable(old: Path, new: Path) -> None:
    if new.is_dir() and old.is_file():
        raise FileExistsError(f"{old} is a file where a folder is written; choose another folder, or remove it")
    kinds = {path.suffix for path in new.iterdir()} if new.is_dir() else set[str]()
    if others := [path.name for path in sorted(old.iterdir()) if path.suffix not in kinds] if old.is_dir() else []:
        raise FileExistsError(f"{old} also holds {others[0]}, so it is left alone; choose another folder")


def check_free(directory: Path, *, marker: str, overwrite: bool) -> None:
    """Raises FileExistsError unless `directory` is missing, empty, or holds `marker` and `overwrite` is True."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not (directory / marker).is_file():
        what = "is not empty and holds no records of kd_jax, so it is left alone"
        raise FileExistsError(f"{directory} {what}; choose another folder")
    if not overwrite:
        remedy = "choose another folder, or replace them with --overwrite"
        raise FileExistsError(f"{directory} already holds records; {remedy}")


def _sibling(directory: Path, state: str) -> Path:
    return directory.with_name(f".{directory.name}.{state}-{socket.gethostname()}-{os.getpid()}")


def _remove_abandoned(directory: Path) -> None:
    """Removes the folders of killed processes of this machine, but no replaced folder that is the only copy."""
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
    except (ProcessLookupError, PermissionError) as error:
        return isinstance(error, PermissionError)  # another user's process
    return True
