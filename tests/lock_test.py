"""A folder has one program at a time, and no crash leaves it locked."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from data_prep import build
from kd_jax import lock
from kd_jax.lock import held


@pytest.fixture(params=["lock", "lease"])
def kind(request, monkeypatch):
    """An operating system's lock, and the lease of a bucket or of a file system without locks."""
    if request.param == "lease":
        monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "RENEWED", 0.02)
    monkeypatch.setattr(lock, "EXPIRED", 0.3)
    return request.param


def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def pretend_another_host(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "another")


def test_a_second_program_is_refused_and_nothing_is_left(tmp_path, kind, monkeypatch):
    with held(tmp_path) as first:
        first.check()
        if kind == "lease":
            pretend_another_host(monkeypatch)  # otherwise the lease is one of this very process
        owner = rf"{tmp_path} is in use by process {os.getpid()} on .* since 20.*; wait for its end, or choose another"
        with pytest.raises(BlockingIOError, match=owner), held(tmp_path):
            pass
        first.check()
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path), pytest.raises(RuntimeError), held(tmp_path, tmp_path / "other"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


HOLD = """
import fcntl, sys, time
from pathlib import Path
from kd_jax import lock
lock.RENEWED = 0.02
if sys.argv[2] == "lease":
    lock._SystemLock = lock._Lease
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_program_leaves_no_lock(tmp_path, kind):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, kind], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on"), held(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / ".lock").exists()
    with held(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", json.dumps({"host": "x", "process": 3, "since": "-"}).encode()])
def test_a_lease_that_is_not_renewed_is_taken_over(tmp_path, kind, content, caplog):
    (tmp_path / ".lock").write_bytes(content)
    with held(tmp_path) as own:
        own.check()
    assert ("waits 0.3 s" in caplog.text) == (kind == "lease" and bool(content))


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_was_deleted_is_noticed(tmp_path, kind, again):
    folder = tmp_path / "work"
    folder.mkdir()
    with held(folder) as own:
        shutil.rmtree(folder)
        if again:  # a second program starts there
            folder.mkdir()
            (folder / ".lock").write_text(json.dumps({"host": "x", "process": 3, "since": "-", "id": "other"}))
        message = "taken over by process 3 on x since -" if again and kind == "lease" else "was deleted or replaced"
        with pytest.raises(OSError, match=message):
            own.check()
    assert (folder / ".lock").exists() == again


def test_of_many_at_once_one_is_let_in(tmp_path):
    inside, refused = [], []

    def enter():
        try:
            with held(tmp_path) as own:
                inside.append(own)
                time.sleep(0.2)
        except BlockingIOError:
            refused.append(1)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 7)


def test_two_builders_of_one_folder(tmp_path):
    with held(tmp_path / "mine", tmp_path / ".mine.lock"), pytest.raises(SystemExit) as ended:
        build.main(["--dataset=synthetic", f"--output={tmp_path / 'mine'}"])
    assert f"data_prep.build: {tmp_path / 'mine'} is in use by process {os.getpid()}" in str(ended.value)
    build.main(["--dataset=synthetic", f"--output={tmp_path / 'mine'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match=r"/\.lock cannot be written \(No space left on device\); run the same command"):
        held(tmp_path).__enter__()
