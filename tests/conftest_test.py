"""The flags of XLA that tests use, and the compilation cache that they keep."""

import json
import os

from conftest import FLAGS, known_flags, remembered_flags, remove_least_recently_used


def test_a_flag_that_xla_does_not_know_is_left_out():
    assert known_flags((FLAGS[0], "--xla_no_such_flag=1")) == [FLAGS[0]]


def test_the_known_flags_are_asked_for_once(tmp_path):
    file = tmp_path / "cache" / "flags.json"
    known = remembered_flags(file)
    assert set(known) <= set(FLAGS)
    file.write_text(json.dumps({"asked": FLAGS, "known": ["--remembered"]}))
    assert remembered_flags(file) == ["--remembered"]
    file.write_text(json.dumps({"asked": ["--another"], "known": []}))
    assert remembered_flags(file) == known


def test_the_cache_keeps_what_was_read_last(tmp_path):
    for age, name in enumerate(("newest", "recent", "old", "oldest")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000))
    remove_least_recently_used(tmp_path, max_bytes=25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "recent"]
