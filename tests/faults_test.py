"""Experiments survive a fault of each kind; docs/reliability.md lists the kinds."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import faults
from kd_jax.files import read_arrays, write_arrays

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [("sigterm", "interrupted"), pytest.param(tuple(faults.FAULTS), marks=pytest.mark.exhaustive)],
    ids=["some", "all"],
)
def test_a_fault_of_each_kind_loses_nothing(kinds, tmp_path):
    output, folder = tmp_path / "faults.json", tmp_path / "all"
    command = [sys.executable, "-m", "benchmarks.faults", f"--folder={folder}", f"--output={output}", "--tries=1"]
    command += [f"--only={kind}" for kind in kinds]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    *rows, total = json.loads(output.read_text())["rows"]
    assert sorted(row["kind"] for row in rows) == sorted(kinds)
    assert [row["kind"] for row in rows if not row["tried"] and row["kind"] != "disk_full"] == []
    assert total["survived"] == total["tried"] == sum(row["survived"] for row in rows)

    finished, changed = tmp_path / "all" / "finished", tmp_path / "changed"
    shutil.copytree(finished, changed)
    faults.compare(changed, finished)
    predictions = read_arrays(path := changed / faults.STUDENT / "predictions_test.npz")
    write_arrays(path, {video: np.nextafter(logits, np.inf) for video, logits in predictions.items()})
    with pytest.raises(faults.Lost, match="exit 0 with others: augmented_rgb/predictions_test.npz"):
        faults.compare(changed, finished)


def test_every_kind_of_fault_is_in_the_documentation():
    text = (ROOT / "docs/reliability.md").read_text()
    assert [kind for kind in faults.FAULTS if f"`{kind}`" not in text] == []


@pytest.mark.parametrize(
    ("code", "output", "whole"),
    [
        (0, "done\n", True),
        (1, "kd_jax.main: WORKDIR cannot be written\n", False),
        (1, "data_prep.build: 2\na\nb\n", False),
    ],
)
def test_a_command_succeeds_or_ends_in_a_sentence(code, output, whole):
    assert faults.succeeded(faults.Ended(code, output, None)) is whole


@pytest.mark.parametrize(
    ("code", "output", "reason"),
    [
        (0, 'Traceback (most recent call last):\n  File "a"\nOSError: b\n', "exit 0 with a traceback, OSError: b"),
        (-11, "", "crash by SIGSEGV, no output"),
        (1, "something\n", "exit 1 without a sentence, something"),
    ],
)
def test_a_traceback_a_crash_and_silence_are_losses(code, output, reason):
    with pytest.raises(faults.Lost, match=reason):
        faults.succeeded(faults.Ended(code, output, None))


@pytest.mark.parametrize(("count", "code", "made"), [(1, -signal.SIGKILL, False), (2, 0, True)])
def test_a_command_is_killed_before_an_operation(count, code, made, tmp_path):
    plan = {"action": "KILL", "folder": str(tmp_path), "part": "zip", "count": count, "log": f"{tmp_path}.log"}
    archive = tmp_path / "new.zip"
    command = [sys.executable, "-m", "benchmarks.disturbed", json.dumps(plan), "zipfile", "-c", archive, __file__]
    assert subprocess.run(command, cwd=ROOT).returncode == code and archive.exists() is made
    assert Path(plan["log"]).read_text().startswith("new.zip\n")


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "deleted"])
def test_a_file_is_damaged(how, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content := b"ten bytes.")
    faults.damage(path, how, random.Random(0))
    found = path.read_bytes() if path.exists() else None
    assert found in {"cut": [content[:5]], "emptied": [b""], "deleted": [None]}.get(how, [found])
    if how == "flipped":
        assert sum((a ^ b).bit_count() for a, b in zip(found, content, strict=True)) == 1
