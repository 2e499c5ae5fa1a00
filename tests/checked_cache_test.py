"""Damaged compiled programs on disk: they are found, deleted, reported once and compiled again."""

import errno
import logging
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache

from kd_jax import checked_cache


@pytest.fixture
def cache(tmp_path, monkeypatch, caplog):
    """An empty folder in which JAX keeps checked programs; `caplog` has warnings only."""
    caplog.set_level(logging.WARNING)
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(compilation_cache, "LRUCache", checked_cache.CheckedCache)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    checked_cache.install()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def restart():
    """Reads the folder as the next process does."""
    compilation_cache.reset_cache()


def compute() -> float:
    """Runs a program that JAX has not yet in memory."""
    return float(jax.jit(lambda x: jnp.sin(x) * 3)(np.float32(0.5)))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-cache"))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"x")


def put_another_program_there(path: Path) -> None:
    float(jax.jit(lambda x: jnp.cos(x) * 5)(np.float32(0.5)))
    shutil.copy(next(other for other in entries(path.parent) if other != path), path)


DAMAGES = {
    "flipped": lambda path: flip(path, 8 * (path.stat().st_size // 2)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "emptied": lambda path: path.write_bytes(b""),
    "shorter than a checksum": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "without checksum": lambda path: path.write_bytes(path.read_bytes()[checked_cache.CHECKSUM_BYTES :]),
    "another program": put_another_program_there,
    "folder": replace_by_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_program_is_replaced_and_reported_once(cache, caplog, damage):
    expected = compute()
    (path,) = entries(cache)
    whole = path.stat().st_size
    DAMAGES[damage](path)
    restart()
    assert compute() == expected
    (record,) = caplog.records
    assert f"the compiled program {path} " in record.message and "deleted and compiled again" in record.message
    assert path.is_file() and abs(path.stat().st_size - whole) < 100, "the replacement is whole"
    restart()
    written = path.stat().st_mtime_ns
    assert compute() == expected and len(caplog.records) == 1 and path.stat().st_mtime_ns == written


def test_a_flipped_bit_is_found_wherever_it_is(cache):
    compute()
    (path,) = entries(cache)
    key, whole = path.name.removesuffix("-sha256-cache"), path.read_bytes()
    reader = checked_cache.CheckedCache(str(cache), max_size=-1)
    program = reader.get(key)
    assert program is not None and whole.endswith(program)
    draw = random.Random(0)
    for _ in range(200):
        path.write_bytes(whole)
        flip(path, draw.randrange(8 * len(whole)))
        assert reader.get(key) is None and not path.exists()


def test_many_damaged_programs_make_one_line(cache, caplog):
    def many():
        return [float(jax.jit(lambda x, n=n: x**n)(np.float32(1.5))) for n in range(2, 7)]

    expected = many()
    assert len(entries(cache)) == 5
    for path in entries(cache):
        path.write_bytes(b"")
    restart()
    assert many() == expected and len(caplog.records) == 1
    assert len(entries(cache)) == 5 and all(path.stat().st_size for path in entries(cache))


def test_an_unreadable_program_is_replaced(cache, caplog, monkeypatch):
    """The tests may run as root, who can read every file."""
    expected = compute()

    def refuse(self, key):
        raise PermissionError(errno.EACCES, "Permission denied")

    restart()
    with monkeypatch.context() as patched:
        patched.setattr(checked_cache.LRUCache, "get", refuse)
        assert compute() == expected
    assert "cannot be read (Permission denied)" in caplog.text and len(caplog.records) == 1
    restart()
    assert compute() == expected and len(caplog.records) == 1


@pytest.mark.parametrize("fault", [FileNotFoundError(errno.ENOENT, "No such file"), TimeoutError("the lock")])
def test_a_program_that_another_process_deletes_or_locks_is_compiled(cache, caplog, monkeypatch, fault):
    monkeypatch.setattr(checked_cache.LRUCache, "get", lambda self, key: (_ for _ in ()).throw(fault))
    assert compute() == pytest.approx(3 * np.sin(0.5)) and not caplog.records


@pytest.fixture
def limit():
    """Sets the bytes that the folder may hold."""
    yield lambda size: jax.config.update("jax_compilation_cache_max_size", size)
    jax.config.update("jax_compilation_cache_max_size", -1)


@pytest.mark.parametrize("max_size", [-1, 2**20], ids=["unlimited", "limited"])
def test_a_full_disk_leaves_no_part_of_a_program(cache, caplog, monkeypatch, limit, max_size):
    def fill(self, content):
        with open(self, "wb") as stream:
            stream.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    limit(max_size)
    with monkeypatch.context() as patched:
        patched.setattr(type(checked_cache.CheckedCache(str(cache), max_size=-1).path), "write_bytes", fill)
        expected = compute()
        float(jax.jit(lambda x: x * 7)(np.float32(0.5)))
    (record,) = caplog.records
    assert record.message.startswith(f"compiled programs cannot be kept in {cache} (No space left on device)")
    assert [path.name for path in cache.iterdir() if path.name != ".lockfile"] == []
    restart()
    assert compute() == expected and len(entries(cache)) == 1


def test_the_size_that_the_user_sets_is_kept(cache, caplog, limit):
    limit(2**14)
    for n in range(2, 8):
        float(jax.jit(lambda x, n=n: x * n)(np.float32(1.5)))
    expected = compute()
    assert 0 < sum(path.stat().st_size for path in entries(cache)) <= 2**14
    for path in entries(cache):
        path.write_bytes(b"damaged")
    restart()
    assert compute() == expected and len(caplog.records) == 1
    restart()
    assert compute() == expected and len(caplog.records) == 1


def test_programs_of_other_code_are_neither_read_nor_changed(cache, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(compilation_cache, "LRUCache", checked_cache.LRUCache)
        restart()
        expected = compute()
    (theirs,) = entries(cache)
    theirs.write_bytes(b"damaged")
    restart()
    assert compute() == expected and len(entries(cache)) == 2 and theirs.read_bytes() == b"damaged"


def test_a_process_never_sees_half_of_what_another_writes(cache):
    """One process writes a program again and again; this one reads it. A partial read would delete it."""
    program = f"""
from kd_jax import checked_cache
cache = checked_cache.CheckedCache({str(cache)!r}, max_size=-1)
print("ready", flush=True)
for _ in range(60):
    cache.put("program", bytes(2**21))
"""
    reader = checked_cache.CheckedCache(str(cache), max_size=-1)
    reader.put("program", bytes(2**21))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "ready\n"
        while writer.poll() is None:
            assert reader.get("program") == bytes(2**21)
    assert writer.returncode == 0
