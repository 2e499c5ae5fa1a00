"""Reading of TensorFlow checkpoints without TensorFlow.

    arrays = read(Path('rgb_imagenet/model.ckpt'))  # {'RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w': …}

The file `model.ckpt.index` is a table in LevelDB's format that maps names to positions (BundleEntryProto). The numbers
are in `model.ckpt.data-00000-of-00001`.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = 0xDB4775248B80FB57  # of LevelDB's tables
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # by TensorFlow's codes
# Field numbers of BundleHeaderProto, BundleEntryProto and TensorShapeProto.
_NUM_SHARDS = 1
_DTYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _SLICES = 1, 2, 3, 4, 5, 7
_DIM, _DIM_SIZE = 2, 1


def prefix_of(path: Path) -> Path | None:
    """Returns the prefix of a checkpoint from its prefix or one of its files; None if there is no checkpoint."""
    for suffix in (".index", ".meta", ".data-00000-of-00001"):
        path = path.with_name(path.name.removesuffix(suffix))
    return path if path.with_name(f"{path.name}.index").is_file() else None


def read(prefix: Path) -> dict[str, np.ndarray]:
    """Reads all numeric arrays by name.

    It raises FileNotFoundError if a data file is missing, and ValueError for an index that is damaged or compressed
    and for partitioned variables.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    try:
        entries = dict(_table(index.read_bytes()))
        shards = _fields(entries.pop(b"")).get(_NUM_SHARDS, 1)
        found = {key.decode(): _fields(value) for key, value in entries.items()}
        if sliced := [name for name, entry in found.items() if _SLICES in entry]:
            raise ValueError(f"{sliced[0]} is partitioned; save the checkpoint without partitions")
        arrays = {}
        for name, entry in found.items():
            if entry.get(_DTYPE) in _DTYPES:  # numeric
                file = prefix.with_name(f"{prefix.name}.data-{entry.get(_SHARD, 0):05d}-of-{shards:05d}")
                arrays[name] = _numbers(file, name, entry)
    except OSError:
        raise
    except Exception as error:  # a damaged index gives fields of any type and size
        if type(error) is ValueError:
            raise ValueError(f"{index}: {error}") from None
        raise ValueError(f"{index} is not an index of a TensorFlow checkpoint, or damaged ({error!r})") from None
    return arrays


def _numbers(file: Path, name: str, entry: dict) -> np.ndarray:
    dtype, offset, size = np.dtype(_DTYPES[entry[_DTYPE]]), entry.get(_OFFSET, 0), entry.get(_SIZE, 0)
    dims = (value for number, value in _messages(entry.get(_SHAPE, b"")) if number == _DIM)
    shape = [_fields(dim).get(_DIM_SIZE, 0) for dim in dims]
    count = math.prod(shape)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; it belongs next to the index, which has {name}")
    if size != count * dtype.itemsize or file.stat().st_size < offset + size:
        raise ValueError(f"{file} is cut short or does not fit its index, at {name} {shape}")
    return np.fromfile(file, dtype, count, offset=offset).reshape(shape)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _messages(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the (number, value) fields of a protocol buffer message, in order."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        size, at = _varint(data, at) if kind in (0, 2) else ({1: 8, 5: 4}[kind], at)  # of kind 0, this is the value
        if kind == 0:
            yield tag >> 3, size
        else:
            yield tag >> 3, data[at : at + size]
            at += size


def _fields(data: bytes) -> dict[int, Any]:
    return dict(_messages(data))


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields keys and values of an uncompressed LevelDB table, the kind that TensorFlow writes."""
    footer = data[-48:]
    if len(footer) < 48 or struct.unpack("<Q", footer[40:])[0] != _MAGIC:
        raise KeyError("no LevelDB table")
    at = 0
    for _ in range(2):  # the handle of the metadata index, then that of the data index
        offset, at = _varint(footer, at)
        size, at = _varint(footer, at)
    for _, handle in _block(data, offset, size):
        offset, at = _varint(handle, 0)
        size, _ = _varint(handle, at)
        yield from _block(data, offset, size)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if data[offset + size] != 0:
        raise KeyError("compressed")
    block = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end, at, key = size - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + length]
        at += rest + length
