"""Every benchmark runs on small inputs and writes finite positive figures. The tests do not judge the figures.

The benchmarks run without their PyTorch peers, because CI has no PyTorch.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VIDEOS = ["--videos=1", "--snippets=64", "--width=16"]
COMMANDS = {  # name: (flags, least number of rows)
    "train": (["--epochs=1", "--hidden=8", "--batch=1", "--nomemory", *VIDEOS], 2),
    "train --runs": (["--runs=2", "--epochs=1", "--hidden=8", "--batch=1", *VIDEOS], 2),
    "inference": (["--repeats=1", "--hidden=8", "--window=64", "--long_lengths=100", *VIDEOS], 3),
    "losses": (["--repeats=1", "--videos=1", "--length=32", "--width=16", "--hidden=8", "--lengths="], 11),
    "filters": (["--filters=ss_tcn,pdan", "--repeats=1", "--nomemory", "--length=32", "--width=16", "--hidden=8"], 2),
    "encoders": (["--repeats=1", "--clips=1", "--size=32", "--model_width=0.1", "--minutes=0.1"], 3),
    "data": (["--repeats=1", *VIDEOS], 6),
    "experiment": (
        ["--epochs=2", "--override=--config.model.hidden=8", "--videos=6", "--snippets=400", "--width=16"],
        3,
    ),
    "smaller": (["--config=smaller:smoke", "--override=--config.model.hidden=8", "--repeats=1", "--length=32"], 3),
    "metrics": (["--snippets=3000", "--detections=3000"], 5),
}

LONG = ("train --runs", "inference", "experiment", "smaller")  # each takes more than 10 s


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.exhaustive if name in LONG else ()) for name in COMMANDS],
)
def test_a_benchmark_writes_finite_figures(name, tmp_path):
    arguments, rows = COMMANDS[name]
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{name.split()[0]}", *arguments, "--nopeers", f"--output={output}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    assert (
        report["benchmark"] == name.replace(" --runs", "_side_by_side") and report["machine"]["device"] in result.stdout
    )
    assert len(report["rows"]) >= rows
    for row in report["rows"]:
        figures = {key: value for key, value in row.items() if isinstance(value, (int, float))}
        assert figures and all(math.isfinite(value) and value > 0 for value in figures.values()), row
        assert str(next(iter(row.values()))) in result.stdout


def test_an_output_in_a_missing_folder_is_refused_at_the_start():
    command = [sys.executable, "-m", "benchmarks.metrics", "--output=no_such_folder/figures.json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "there is no such folder" in result.stderr and not result.stdout


def test_every_benchmark_is_tested_and_in_the_readme():
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "measuring.run(" in path.read_text()}
    assert names - {"measuring"} == {name.split()[0] for name in COMMANDS}
    text = (ROOT / "benchmarks/README.md").read_text()
    assert [name for name in COMMANDS if f"python -m benchmarks.{name}" not in text] == []
