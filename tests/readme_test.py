"""The Python blocks of the README run, and the files, modules and flags that it names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run(number):
    result = subprocess.run([sys.executable, "-c", PYTHON[number]], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_block_uses_a_loss():
    assert any("losses." in block for block in PYTHON)


def test_named_files_and_folders_exist():
    named = set(re.findall(r"`((?:kd_jax|configs|data_prep|tests|benchmarks|docs)/[\w./]*)`", TEXT))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_named_modules_exist():
    for module in set(re.findall(r"python -m ([\w.]+)", TEXT)):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_named_flags_exist():
    for module in ("kd_jax.main", "kd_jax.predict", "data_prep.build", "data_prep.convert_weights"):
        known = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
        ).stdout
        for command in re.findall(rf"python -m {re.escape(module)}((?:.*\\\n)*.*)", TEXT):
            for flag in re.findall(r"--([a-z_]+)(?=[=\s\]])", command):
                assert f"--{flag}" in known or f"--[no]{flag}" in known, f"{module} --{flag}"
