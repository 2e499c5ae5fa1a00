"""Arrays in feature files: opens one array of a file and arranges it as a table `[T, D]`.

    array = open_array(Path("v1.npz"), "rgb")  # the array "rgb" of the file; without a name, its only array
    table = as_table(array, channels_first=True)  # None if the shape does not allow it

The sizes that a file states are compared with the size of the file before memory is used. Pickles are never read. Any
exception that a library raises for a damaged file becomes a ValueError.
"""

import contextlib
import importlib.util
import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kd_jax.data.checks import parse, reason, short
from kd_jax.files import check_size, read_header, read_member

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NEEDS = {  # {suffix: (library, extra of kd_jax that installs it)}
    ".pt": ("torch", "torch"),
    ".pth": ("torch", "torch"),
    ".h5": ("h5py", "features"),
    ".hdf5": ("h5py", "features"),
}


def open_array(path: Path, name: str = "") -> np.ndarray:
    """Opens an array of a feature file; a `.npy` file is mapped into memory, not read.

    Args:
      path: of the file; its suffix is one of SUFFIXES.
      name: of the array, for a file of several arrays.

    Returns the array in its own shape and type. An array of Python objects is returned empty. Raises OSError or
    ValueError if the file cannot be read, or has no such array.
    """
    suffix = path.suffix.lower()
    check_suffix(suffix)
    with _library_errors():
        array = READERS[suffix](path, name)
    is_bfloat16 = array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None
    return array.view(BFLOAT16) if is_bfloat16 else array  # np.save has no name for bfloat16 and writes |V2


def check_suffix(suffix: str) -> None:
    """Raises ValueError unless feature files may have this suffix and the library that reads them is installed."""
    if suffix not in READERS:
        raise ValueError(f"feature files end in {', '.join(SUFFIXES)}, not in {suffix or 'nothing'}; convert them")
    library, extra = NEEDS.get(suffix, ("numpy", ""))
    if importlib.util.find_spec(library) is None:
        raise ValueError(f"{suffix} files need {library}, which is not installed: pip install 'kd_jax[{extra}]'")


def array_names(path: Path) -> list[str]:
    """Returns the names of the arrays in a file of several; raises OSError or ValueError if it cannot be read."""
    check_suffix(path.suffix.lower())
    with _library_errors():
        return sorted(LISTS[path.suffix.lower()](path))


@contextlib.contextmanager
def _library_errors() -> Iterator[None]:
    """Turns every exception other than OSError into ValueError."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # numpy, zipfile, h5py and torch raise many other types for damaged files
        raise ValueError(reason(error)) from error


def is_real(dtype: np.dtype) -> bool:
    """Whether features may have this type."""
    return dtype.kind in "fiub" or dtype == BFLOAT16


def as_table(array: np.ndarray, *, channels_first: bool = False, pool: bool = False) -> np.ndarray | None:
    """Arranges an array as `[T, D]`.

    Args:
      array: `[T, D]`, with axes of size 1 anywhere before D, or several after it; or `[D, T]`, with axes of size 1
        around both.
      channels_first: the array is `[D, T]`.
      pool: the array may also be a grid of tokens, `[T, …, D]` or `[D, T, …]`, which is averaged over "…".

    Returns None if the shape does not allow it, and for `[T, D, n, n]`, which no option describes.
    """
    shape = list(array.shape)
    if channels_first:
        while len(shape) > 2 and shape[0] == 1:
            shape.pop(0)
        while len(shape) > 2 and shape[-1] == 1:
            shape.pop()
        array = array.reshape(shape)
        if pool and len(shape) > 2:
            array = _pool(array, range(2, len(shape)))
        return array.T if array.ndim == 2 and len(array) else None
    if len(shape) > 3 and shape[-2:] == [1, 1]:  # [T, D, 1, 1], of a pooling layer that keeps its axes
        while len(shape) > 2 and shape[-1] == 1:
            shape.pop()
    array = array.reshape(shape)
    if len(shape) < 2 or not shape[-1]:
        return None
    if pool and any(n != 1 for n in shape[1:-1]):
        is_channels_second = len(shape) > 3 and shape[-1] == shape[-2] != shape[1]  # [T, D, 7, 7]
        return None if is_channels_second else _pool(array, range(1, len(shape) - 1))
    if sum(n != 1 for n in shape[:-1]) > 1:
        return None
    return array.reshape(math.prod(shape[:-1]), shape[-1])


def _pool(array: np.ndarray, axes: Iterable[int]) -> np.ndarray:
    return array.mean(tuple(axes), np.result_type(array.dtype, np.float32))


def shown_names(names: Sequence[str]) -> str:
    """Returns the number and the first names of the arrays in a file."""
    return f"{len(names)} arrays ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"


def _choose(names: Iterable[str], name: str, path: Path) -> str:
    """Returns `name`, or the only one of the names."""
    names = list(names)
    shown = shown_names(names)
    if name and name not in names:
        raise ValueError(f"it has no array {name!r}; it holds {shown}")
    if not name and len(names) != 1:
        remedy = f"; name one, as in {{video}}{path.suffix}:{names[0]}" if names else ""
        raise ValueError(f"it holds {shown if names else 'no array'}, expected one{remedy}")
    return name or names[0]


def _open_npy(path: Path, name: str) -> np.ndarray:
    if name:
        raise ValueError(f"it holds one array without a name, not {name!r}")
    with path.open("rb") as file:
        shape, is_fortran, dtype = read_header(file, path.stat().st_size)
        offset = file.tell()
    if dtype.hasobject or 0 in shape:  # neither can be mapped
        return np.empty((0,) * len(shape) if dtype.hasobject else shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C")


def _npz_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}


def _open_npz(path: Path, name: str) -> np.ndarray:
    if not zipfile.is_zipfile(path):
        path.stat()  # OSError if it does not exist
        raise ValueError("it is not a .npz file, or its end is missing")
    with zipfile.ZipFile(path) as archive:
        members = _npz_members(archive)
        info = members[_choose(members, name, path)]
        return read_member(archive, info)


def _list_npz(path: Path) -> Iterable[str]:
    with zipfile.ZipFile(path) as archive:
        return list(_npz_members(archive))


def _read_csv(path: Path, name: str) -> np.ndarray:
    """Reads rows of numbers; a first line that names or numbers the columns is left out.

    Numbers between semicolons may have decimal commas.
    """
    if name:
        raise ValueError(f"it holds one table without a name, not {name!r}")
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline()
    delimiter = next((sign for sign in ";," if sign in first), None)
    words = _words(first, delimiter)
    if not words or not first.strip():
        raise ValueError("its first line is empty, expected a row of numbers")
    is_number = [isinstance(parse(word), float) for word in words]
    is_heading = not any(is_number) or (len(words) > 2 and _counts([word for word in words if word]))
    options: dict = {"comments": None, "quotechar": '"', "skiprows": int(is_heading), "delimiter": delimiter}
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines: Any = (line.replace(",", ".") for line in file) if delimiter == ";" else file
            table = np.loadtxt(lines, np.float64, ndmin=2, **options)
    except ValueError:
        expected = "expected rows of numbers with decimal points, separated by commas, semicolons or blanks"
        raise ValueError(f"{_wrong_line(path, delimiter, int(is_heading))}, {expected}") from None
    if table.shape[1] > 1 and len(table) > 2 and _counts(table[:, 0]):
        raise ValueError("its first column counts the rows; save the table without it (in pandas: index=False)")
    return table


def _words(line: str, delimiter: str | None) -> list[str]:
    words = [word.strip().strip('"') for word in line.split(delimiter)]
    return [word.replace(",", ".") for word in words] if delimiter == ";" else words


def _wrong_line(path: Path, delimiter: str | None, skipped: int) -> str:
    """Says which line of a table is not a row of numbers, or has another number of columns than the first."""
    width = 0
    with path.open(encoding="utf-8-sig") as file:
        for i, line in enumerate(file, 1):
            if i <= skipped or not line.strip():
                continue
            words = _words(line, delimiter)
            width = width or len(words)
            if wrong := [word for word in words if not isinstance(parse(word), float)]:
                return f"line {i}: {short(wrong[0])} is not a number"
            if len(words) != width:
                return f"line {i}: columns: {len(words)}, in the first row {width}"
    return "it is not a table of numbers"


def _counts(values: Iterable) -> bool:
    """Whether texts or numbers are 0, 1, 2, …"""
    return all(parse(str(value)) == i for i, value in enumerate(values))


def _load_torch(path: Path):
    import torch

    path.stat()  # OSError if it does not exist
    return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _tensors(content: object) -> dict:
    import torch

    entries = content.items() if isinstance(content, dict) else ()
    return {name: tensor for name, tensor in entries if isinstance(name, str) and isinstance(tensor, torch.Tensor)}


def _read_torch(path: Path, name: str) -> np.ndarray:
    """Reads a tensor, or one of a dict of tensors."""
    import torch

    content = _load_torch(path)
    if isinstance(content, dict):
        tensors = _tensors(content)
        content = tensors[_choose(tensors, name, path)]
    elif name:
        raise ValueError(f"it holds no dict, so there is no {name!r} in it")
    if not isinstance(content, torch.Tensor):
        raise ValueError(f"it holds a {type(content).__name__}, expected a tensor or a dict of tensors")
    tensor = content.detach()
    check_size(tensor.numel() * tensor.element_size(), path.stat().st_size)
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def _read_hdf5(path: Path, name: str) -> np.ndarray:
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        name = name if name and isinstance(file.get(name), h5py.Dataset) else _choose(_data_sets(file), name, path)
        data = file[name]
        if data.file.filename != file.filename or data.external or data.is_virtual:
            raise ValueError(f"{name!r} is stored in another file; copy it into this one")
        if data.dtype.hasobject:
            return np.empty((0,) * data.ndim, data.dtype)
        check_size(data.nbytes, min(data.id.get_storage_size(), path.stat().st_size))
        return np.asarray(data[()])


def _data_sets(file) -> list[str]:
    """Returns the paths of all data sets of an HDF5 file; links are not followed."""
    import h5py

    names: list[str] = []

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(name)

    file.visititems(collect)
    return names


def _list_hdf5(path: Path) -> Iterable[str]:
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        return _data_sets(file)


READERS = {  # {suffix: function of a path and the name of an array}
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".csv": _read_csv,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
LISTS = {  # {suffix: function of a path that returns the names of its arrays}
    ".npz": _list_npz,
    ".pt": lambda path: _tensors(_load_torch(path)),
    ".pth": lambda path: _tensors(_load_torch(path)),
    ".h5": _list_hdf5,
    ".hdf5": _list_hdf5,
}
SUFFIXES = tuple(READERS)
