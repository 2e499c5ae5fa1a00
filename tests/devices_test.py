"""Eight devices compute the same as one. The commands differ only in XLA_FLAGS."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kd_jax.files import read_arrays
from kd_jax.models import FILTERS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_eight_devices_equal_one(tmp_path):
    for devices in (1, 8):
        command = [
            *(sys.executable, "-m", "kd_jax.main", "--config=tests/teacher_and_student.py"),
            f"--workdir={tmp_path / str(devices)}",
            *("--config.model.dropout=0.25", "--config.training.batch_size=3", "--noreport"),
        ]
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
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


def test_every_filter_stays_on_the_device_of_its_video():
    """Devices exchange only the loss and the gradients of the parameters, which they sum."""
    program = """
import json, re, sys
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from kd_jax.sharding import data_mesh
from kd_jax.models import FILTERS

sharding = NamedSharding(data_mesh(), PartitionSpec("data"))
x, mask = (jax.device_put(jnp.ones(shape, kind), sharding) for shape, kind in (((8, 32, 4), float), ((8, 32), bool)))
collectives = {}
for name in sys.argv[1:]:
    model = FILTERS[name].make(hidden=4, num_layers=2, dropout=0.0)
    variables = jax.jit(model.init)(jax.random.key(0), x, mask)
    gradient = jax.jit(jax.grad(lambda variables, x: (model.apply(variables, x, mask) ** 2).sum(), (0, 1)))
    compiled = gradient.lower(variables, x).compile().as_text()
    found = re.findall(r"(all-gather|all-to-all|collective-permute|all-reduce)\\(", compiled)
    collectives[name] = sorted(set(found))
print(json.dumps(collectives))
"""
    filters = [name for name in FILTERS if name not in ("ms_tcn", "tgm_gaussian")]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-c", program, *filters],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {name: ["all-reduce"] for name in filters}  # the gradient of the kernels
