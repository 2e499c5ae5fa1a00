"""Files that are whole or not there, on a disk or, as an `epath.Path`, in a bucket.

    write_arrays(Path('scores.npz'), {'video7': probabilities})
    scores = read_arrays(Path('scores.npz'))

What is interrupted leaves the file that was there before, or none.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def write_atomically(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing: to a temporary file beside it, which then takes its name."""
    if "://" in os.fspath(path):  # an object of a bucket appears when it is complete
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz of {video: array}, whole or not at all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # np.savez cannot hold a video that is called 'file'
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def sha256(path: Path) -> str:
    """Of the file's content, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folder(path: Path, option: str) -> None:
    """Makes a folder where there is none; an OSError that names the option that asked for it where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--{option}={path} cannot be made ({error.strerror}); choose another folder") from None


def read_json(path: Path) -> dict | None:
    """The file's content, or None where there is no file."""
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, content: dict) -> None:
    """Writes the whole file or nothing."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
