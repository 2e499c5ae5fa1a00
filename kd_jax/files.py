"""Atomic reads and writes of files, on a disk or, with an `epath.Path`, in a bucket.

    write_arrays(Path('scores.npz'), {'video7': probabilities})
    scores = read_arrays(Path('scores.npz'))

An interrupted write leaves the previous file, or none.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LARGE = 2**26  # bytes of an array from which it must not be far larger than what the file stores
MOST_COMPRESSION = 100  # features compress to more than a hundredth of their size
LONGEST_HEADER = 10_000  # bytes of the header of a .npy file; NumPy refuses longer ones after it has read them
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors that only writing has
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EIO, errno.ESTALE)
REMEDY = "run the same command again when it can"
CHECKSUM = "sha256"  # field of a JSON file: checksum of its other fields


class DamagedFileError(ValueError):
    """A file of kd_jax is missing or not what was written; the message is one sentence that ends with a remedy."""


def is_address(path: str | os.PathLike) -> bool:
    """Returns whether a path is an address such as gs://bucket/x, or gs:/bucket/x, which pathlib makes of it."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|(gs|s3|az|hf):/", os.fspath(path)) is not None


def checked_path(path: str | os.PathLike) -> str:
    """Returns a path on a disk, with `~` and `~user` expanded, or an address gs://BUCKET/PATH.

    A shell leaves `~` alone after `=`. Raises ValueError for another address, without the package that reads buckets,
    and if the home folder is not known.
    """
    text = os.fspath(path)
    if is_address(text):
        if not re.match("gs://[^/]", text):
            raise ValueError(f"{text} must be a path on a disk or gs://BUCKET/PATH")
        if importlib.util.find_spec("gcsfs") is None:
            raise ValueError(f"{text} is in a bucket, which needs `pip install 'kd_jax[gcs]'`")
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        home = text.partition("/")[0]
        raise ValueError(
            f"{text}: the home folder {home} is not known; write the whole path (./{home} is a folder here)"
        )
    return expanded


def write_atomically(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing: a temporary sibling file is written first and then renamed.

    Raises OSError, one sentence, if the file cannot be written.
    """
    if "://" in os.fspath(path):  # an object in a bucket appears only when it is complete
        path.write_bytes(content)
        return
    if path.is_dir():
        raise OSError(f"{path} is a folder where a file must be; move it or name another file, and try again")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error}); {REMEDY}") from None
    finally:
        with contextlib.suppress(OSError):  # the folder may have become read-only, or a file
            temporary.unlink(missing_ok=True)


def why_not_written(error: BaseException, folder: str | os.PathLike) -> str | None:
    """Returns why a folder could not be written, e.g. 'No space left on device'; None for an error of another kind.

    Libraries that write checkpoints have their own errors, which contain the message of the system.
    """
    text = str(error)
    kinds = _FULL + _UNWRITABLE if os.fspath(folder) in text else _FULL
    if reason := next((os.strerror(kind) for kind in kinds if os.strerror(kind) in text), None):
        return reason
    cause = error.__cause__ or error.__context__
    return why_not_written(cause, folder) if cause else None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes {video: array} as an .npz file, the whole file or nothing."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # np.savez refuses an array named 'file'
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def check_size(size: int, stored: int) -> None:
    """Raises ValueError for an array that would take far more memory than the file can hold."""
    if size > LARGE and size > MOST_COMPRESSION * stored:
        raise ValueError(f"it states an array of {size} bytes, but stores {stored} bytes")


def read_header(file: Any, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of a .npy file of `size` bytes, a stream with `peek`.

    Returns shape, whether it is in Fortran order, and dtype. Raises ValueError unless the rest has the size it states.
    """
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:
        raise ValueError("it is not a .npy file") from None
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
        if (length := int.from_bytes(file.peek(4)[:4], "little")) > LONGEST_HEADER:
            raise ValueError(f"its header states {length} bytes for itself, expected at most {LONGEST_HEADER}")
    shape, is_fortran, dtype = read(file)
    expected, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or (expected != left and not dtype.hasobject):
        raise ValueError(f"its header states {list(shape)} {dtype}, {expected} bytes, but {left} bytes follow")
    return shape, is_fortran, dtype


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Reads an array of an .npz file; an array of Python objects is returned empty.

    The sizes that the archive and the header of the array state are compared before the array is read. Raises
    ValueError if they differ, or are far larger than what is stored; other errors of zipfile for a damaged archive.
    """
    assert archive.fp
    check_size(info.file_size, min(info.compress_size, archive.fp.seek(0, io.SEEK_END)))
    with archive.open(info) as member:
        shape, is_fortran, dtype = read_header(member, info.file_size)
        if dtype.hasobject:
            return np.empty((0,) * len(shape), dtype)
        content = bytearray(member.read())  # to the end, where the checksum is compared
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"its array is cut short, {len(content)} bytes are left")
    return np.ndarray(shape, dtype, content, order="F" if is_fortran else "C")


def check_regular(path: Path) -> None:
    """Raises ValueError for a folder or a device in the place of a file; reading a named pipe would never end."""
    name = os.fspath(path)  # epath takes a named pipe for a file
    if not is_address(name) and os.path.exists(name) and not os.path.isfile(name):
        raise ValueError("it is a folder" if os.path.isdir(name) else "it is not a regular file")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file by name; raises OSError or ValueError if it cannot be read."""
    arrays = {}
    try:
        check_regular(path)
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    raise ValueError(f"its member {info.filename!r} is not an array")
                arrays[name := info.filename.removesuffix(".npy")] = read_member(archive, info)
                if arrays[name].dtype.hasobject:
                    raise ValueError(f"its member {name!r} holds Python objects, which are not read")
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile raises many other types for damaged files
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return arrays


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folder(path: Path, option: str = "") -> None:
    """Makes a folder unless it exists; raises OSError that names the command-line option, if any, if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what, remedy = (f"--{option}={path}", "choose another folder") if option else (path, REMEDY)
        raise OSError(f"{what} cannot be made ({error.strerror or error}); {remedy}") from None


def read_json(path: Path, remedy: str = "restore it from a copy") -> dict | None:
    """Reads a JSON file that `write_json` wrote; returns None if it does not exist.

    Files of older versions have no checksum and are read without it. Raises DamagedFileError if the file is no JSON
    object or not what was written; OSError if it cannot be opened.
    """
    if not path.exists():
        return None
    try:
        check_regular(path)
        content = json.loads(path.read_bytes().decode())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        checksum = _checksum(content)
        if content.pop(CHECKSUM, checksum) != checksum:
            raise ValueError(f"its content does not fit its field {CHECKSUM}")
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); {remedy}") from None
    return content


def require_json(path: Path, remedy: str) -> dict:
    """Reads a JSON file as `read_json` does; raises DamagedFileError if it does not exist, too."""
    if (content := read_json(path, remedy)) is None:
        raise DamagedFileError(f"{path} is missing; {remedy}")
    return content


def write_json(path: Path, content: Mapping) -> None:
    """Writes JSON with a checksum, the whole file or nothing."""
    content = {**content, CHECKSUM: _checksum(content)}
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _checksum(content: Mapping) -> str:
    """The SHA-256 of JSON content without its checksum; the order of fields counts, white space does not."""
    text = json.dumps({name: value for name, value in content.items() if name != CHECKSUM})
    return hashlib.sha256(text.encode()).hexdigest()
