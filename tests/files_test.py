"""Atomic writes of files."""

import numpy as np
import pytest

from kd_jax import files


def test_arrays_are_read_back_under_any_name(tmp_path):
    arrays = {"file": np.arange(3), "a b": np.ones((2, 2), np.float32)}
    files.write_arrays(tmp_path / "x.npz", arrays)
    back = files.read_arrays(tmp_path / "x.npz")
    assert back.keys() == arrays.keys()
    for name in arrays:
        np.testing.assert_array_equal(back[name], arrays[name])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    files.write_atomically(tmp_path / "x", b"old")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(tmp_path / "x", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"old"}


def test_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for text, path in {"~": "/home/me", "~/x": "/home/me/x", "x/~": "x/~", "gs://b/~": "gs://b/~", "": ""}.items():
        assert files.checked_path(text) == path
    with pytest.raises(ValueError, match=r"~nobody-here/x: the home folder ~nobody-here is not known"):
        files.checked_path("~nobody-here/x")


def test_an_archive_that_inflates_to_much_more_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(2**24))
    with pytest.raises(ValueError, match=r"it states an array of 134217856 bytes, but stores \d+ bytes"):
        files.read_arrays(tmp_path / "bomb.npz")


def test_addresses_and_paths_with_a_colon():
    for path in ("gs://b/x", "gs:/b/x", "file:///x", "s3:/b"):
        assert files.is_address(path)
    for path in ("ablation:/x/mine.py", "C:/x", "./gs:/x", "a/b://c", "gs", ""):
        assert not files.is_address(path)
