"""The command line: a first-time user's wrong turns end in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

WRONG_TURNS = {
    "no config": ([], "name an experiment"),
    "missing config file": (["--config=configs/nope.py"], "configs/nope.py"),
    "unknown variant": (["--config=configs/demo.py:smoky"], "unknown config variant 'smoky'"),
    "typo in a field": (["--config=configs/demo.py", "--config.training.epoch=3"], "training.epoch"),
    "wrong type": (["--config=configs/demo.py", "--config.training.epochs=many"], "epochs"),
    "missing data": (["--config=configs/tsu.py"], "data/tsu"),
    "modality": (["--config=configs/demo.py", "--config.runs.flow_teacher.modality=depth"], "no modality 'depth'"),
    "teacher": (["--config=configs/demo.py", "--config.runs.augmented_rgb.teachers=('flou',)"], "no run has that name"),
    "workdir": (["--config=configs/demo.py", "--workdir=setup.cfg/work"], "cannot be written"),
    "stray argument": (["--config=configs/demo.py", "training.epochs=3"], "unexpected argument"),
}


@pytest.mark.parametrize("turn", WRONG_TURNS)
def test_one_sentence_that_says_what_to_do(turn):
    arguments, message = WRONG_TURNS[turn]
    result = subprocess.run(
        [sys.executable, "-m", "kd_jax.main", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
