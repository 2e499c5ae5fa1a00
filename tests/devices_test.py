"""Eight devices give what one gives: the same command, only XLA_FLAGS differ."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from kd_jax.files import read_arrays

ROOT = Path(__file__).parents[1]


def test_eight_devices_equal_one(tmp_path, fast_compilation):
    for devices in (1, 8):
        command = [
            *(sys.executable, "-m", "kd_jax.main", "--config=tests/teacher_and_student.py"),
            f"--workdir={tmp_path / str(devices)}",
            *("--config.model.dropout=0.25", "--config.training.batch_size=3"),
        ]
        flags = f"{fast_compilation} --xla_force_host_platform_device_count={devices}"
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
    one, eight = (tmp_path / d / "augmented_rgb" for d in ("1", "8"))
    logs = [[json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()] for d in (one, eight)]
    for a, b in zip(*logs, strict=True):
        for key in ("loss", "task", "atomic", "global_context", "boundary", "gradient_norm"):
            np.testing.assert_allclose(a[key], b[key], rtol=1e-3, err_msg=key)
    ours, theirs = (read_arrays(d / "predictions_test.npz") for d in (one, eight))
    for video in ours:
        np.testing.assert_allclose(ours[video], theirs[video], atol=2e-3)
