"""Reads single fields of the records in a shard, without the library that wrote it.

    places = find_records(path, 24)                                       # the shard holds 24 records
    fields = read_fields(path, places[3], {"id", "features/rgb"})         # {name: `[bytes]` uint8} of the fourth one

array_record copies and hashes whole records, including modalities that nobody needs. This module reads shards as
`records.write_shard` writes them: Riegeli files without compression and with one record per chunk
(https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md). A record is a `tf.train.Example`
with one string of bytes per field. The checksums in the file are ignored, so the caller must have those of the fields.
"""

import io
import itertools
import os
import struct
from collections.abc import Container
from typing import BinaryIO

import numpy as np

BLOCK, BLOCK_HEADER = 2**16, 24  # bytes of a block, and of the header at its start
CHUNK_HEADER = struct.Struct("<8x Q 8x Q 8x")  # the size of the chunk's data; its type and its number of records
ONE_RECORD = 1 << 8 | ord("r")
EXAMPLE, ENTRY, KEY, VALUE = 0x0A, 0x0A, 0x0A, (0x12, 0x0A, 0x0A)  # tags of protobuf: Example, Features, bytes_list


class _Content(io.RawIOBase):
    """The content of a Riegeli file without the headers of its blocks. A place is a number of bytes of this content."""

    def __init__(self, path: str | os.PathLike):
        self._file, self._place = io.FileIO(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        self._place = place
        return place

    def readinto(self, buffer) -> int:
        """Reads the content of up to 500 blocks with one system call, which puts their headers elsewhere."""
        capacity = BLOCK - BLOCK_HEADER
        block, offset = divmod(self._place, capacity)
        view = memoryview(buffer).cast("B")[: 500 * capacity]  # the system allows 1024 pieces
        header = bytearray(BLOCK_HEADER)
        cuts = [0, *range(capacity - offset, len(view), capacity), len(view)]
        pieces = [piece for first, last in itertools.pairwise(cuts) for piece in (view[first:last], header)][:-1]
        start = block * BLOCK + BLOCK_HEADER + offset
        block, offset = divmod(start + os.preadv(self._file.fileno(), pieces, start), BLOCK)
        before, self._place = self._place, block * capacity + max(offset - BLOCK_HEADER, 0)
        return self._place - before

    def close(self) -> None:
        self._file.close()
        super().close()


def find_records(path: str | os.PathLike, count: int) -> list[int]:
    """Returns the place of each record of a shard with `count` records.

    Raises ValueError, or struct.error at the end of the file, if there are fewer.
    """
    places = []
    with io.BufferedReader(_Content(path), CHUNK_HEADER.size) as file:
        chunk = CHUNK_HEADER.size  # after the signature, which is a chunk without data
        for _ in range(count):
            file.seek(chunk)
            size, kind = CHUNK_HEADER.unpack(file.read(CHUNK_HEADER.size))
            if kind != ONE_RECORD:
                raise ValueError(f"no record at {chunk}")
            places.append(chunk + CHUNK_HEADER.size)
            chunk = places[-1] + size
    return places


def read_fields(path: str | os.PathLike, place: int, names: Container[str]) -> dict[str, np.ndarray]:
    """Returns {name: its `[bytes]` uint8} of those fields of a record that are in `names`, read-only.

    Raises ValueError if no such record is there.
    """
    fields = {}
    with io.BufferedReader(_Content(path)) as file:
        file.seek(place + 1)  # after the byte that says that nothing is compressed
        _read_number(file), _read_number(file)  # the size of the next number, and the size of the record
        end = _read_end(file, EXAMPLE, os.stat(path).st_size)
        while file.tell() < end:
            end_of_field = _read_end(file, ENTRY, end)
            end_of_name = _read_end(file, KEY, end_of_field)
            name = file.read(end_of_name - file.tell()).decode()
            for tag in VALUE:
                if _read_end(file, tag, end_of_field) != end_of_field:
                    raise ValueError(f"{name!r} is not one string of bytes")
            if name in names:
                content = np.empty(end_of_field - file.tell(), np.uint8)
                file.readinto(content.data)
                content.flags.writeable = False
                fields[name] = content
            file.seek(end_of_field)
    return fields


def _read_end(file: BinaryIO, tag: int, limit: int) -> int:
    """Reads tag and size of a protobuf field, and returns the place where it ends, `limit` at most."""
    if _read_number(file) != tag or (end := _read_number(file) + file.tell()) > limit:
        raise ValueError(f"no field {tag} at {file.tell()}")
    return end


def _read_number(file: BinaryIO) -> int:
    """Reads a protobuf varint."""
    number = 0
    for shift in range(0, 64, 7):
        (byte,) = file.read(1)
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
    raise ValueError(f"no number at {file.tell()}")
