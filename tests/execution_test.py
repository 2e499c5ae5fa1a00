"""Tasks have equal results in one process, in several and in a Beam pipeline; a failure ends all tasks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.execution import Beam, run

ROOT = Path(__file__).parents[1]


def square(number, offset):
    if number == 13:
        raise ValueError("13 is refused")
    return {"value": number * number + offset, "process": os.getpid()}


def test_one_process():
    results = dict(run(square, [(i, 1) for i in range(4)]))
    assert results == {i: {"value": i * i + 1, "process": os.getpid()} for i in range(4)}
    assert dict(run(square, [])) == {}


def test_several_processes():
    results = dict(run(square, [(i, 1) for i in range(20, 60)], workers=2))
    assert {i: result["value"] for i, result in results.items()} == {i: (20 + i) ** 2 + 1 for i in range(40)}
    assert os.getpid() not in {result["process"] for result in results.values()}


def test_an_apache_beam_pipeline(tmp_path):
    pytest.importorskip("apache_beam", reason="pip install 'kd_jax[beam]'")
    results = dict(run(square, [(i, 1) for i in range(9)], beam=Beam("DirectRunner", (), tmp_path)))
    assert {i: result["value"] for i, result in results.items()} == {i: i * i + 1 for i in range(9)}
    with pytest.raises(ValueError, match="13 is refused"):
        dict(run(square, [(i, 0) for i in range(12, 15)], beam=Beam("DirectRunner", (), tmp_path)))
    with pytest.raises(ValueError, match="Apache Beam knows no option bogus"):
        dict(run(square, [(1, 0)], beam=Beam("DirectRunner", ("--bogus=1",), tmp_path)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_what_fails_is_raised(workers):
    with pytest.raises(ValueError, match="13 is refused"):
        dict(run(square, [(i, 0) for i in range(10, 16)], workers=workers))


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import execution_test
from data_prep.execution import run
if __name__ == "__main__":
    list(run(execution_test.wait, [({str(tmp_path)!r}, i) for i in range(2)], workers=2))
"""
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"])
    deadline = time.monotonic() + 60
    while len(pids := [int(p.suffix[1:]) for p in tmp_path.glob("started.*")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, pids))


def wait(folder, number):
    Path(folder, f"started.{os.getpid()}").touch()
    time.sleep(120)


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
