"""Atomic writes of files, and what is reported about damaged ones."""

import json
import os

import numpy as np
import pytest
from etils import epath

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


CONTENT = {"run": "rgb", "classes": ["a", "ü"], "rate": 1e-4, "best": None, "nested": {"1": [True, -0.0, 1e300]}}


def test_json_that_is_not_what_was_written_is_refused(tmp_path):
    path, refused = tmp_path / "config.json", 0
    files.write_json(path, CONTENT)
    written = path.read_bytes()
    assert files.read_json(path) == CONTENT and list(json.loads(written)) == [*CONTENT, files.CHECKSUM]
    changes = [written[:i] + bytes([byte ^ 1]) + written[i + 1 :] for i, byte in enumerate(written)]
    changes += [written[:i] for i in range(len(written) - 2)]
    for changed in changes:
        path.write_bytes(changed)
        try:
            assert CONTENT.items() <= files.read_json(path).items()  # a flip may rename the checksum
        except files.DamagedFileError as error:
            refused += 1
            assert str(error).startswith(f"{path} is damaged (") and str(error).endswith("); restore it from a copy")
    assert refused > 0.97 * len(changes)


@pytest.mark.parametrize("content", [b"[1]", b"\xff", b"[" * 100_000, b'{"a": 1, "sha256": null}', b"null", b""])
def test_json_that_is_no_object_is_refused(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(files.DamagedFileError, match=r"x\.json is damaged \(.*\); build it again"):
        files.read_json(tmp_path / "x.json", "build it again")


def test_what_is_no_file_is_named_and_not_read(tmp_path):
    """Reading a named pipe would never end."""
    folder, pipe = tmp_path / "folder", epath.Path(tmp_path / "pipe")
    folder.mkdir()
    os.mkfifo(pipe)
    for path, what in ((folder, "it is a folder"), (pipe, "it is not a regular file")):
        with pytest.raises(files.DamagedFileError, match=rf"{path} is damaged \({what}\); build it again"):
            files.read_json(path, "build it again")
        with pytest.raises(ValueError, match=what):
            files.read_arrays(path)
    with pytest.raises(OSError, match=f"{folder} is a folder where a file must be; move it or name another file"):
        files.write_json(folder, CONTENT)


def test_json_of_older_versions_has_no_checksum(tmp_path):
    assert files.read_json(tmp_path / "x.json") is None
    (tmp_path / "x.json").write_text(json.dumps(CONTENT))
    assert files.read_json(tmp_path / "x.json") == CONTENT
