"""The examples of docs/extending.md run unchanged, and keep the laws that the page states."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models
from kd_jax.files import read_json
from kd_jax.training.terms import TERMS
from kd_jax.video.encode import encode_batches
from kd_jax.video.encoders.protocol import import_encoder

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
EXAMPLE, ENCODER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(TORCHVISION,) = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def mine(tmp_path):
    """Import the example as a module; afterwards its names are removed from the tables."""
    path = tmp_path / "mine.py"
    path.write_text(EXAMPLE)
    spec = importlib.util.spec_from_file_location("mine", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del TERMS["change_points"], models.FILTERS["neighbours"]


@pytest.mark.slow
def test_the_example_trains(tmp_path):
    (tmp_path / "mine.py").write_text(EXAMPLE)
    command = [sys.executable, "-m", "kd_jax.main", f"--config={tmp_path}/mine.py:smoke", f"--workdir={tmp_path}/work"]
    result = subprocess.run([*command, "--noreport"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    run = read_json(tmp_path / "work" / "augmented_rgb" / "config.json")
    assert run["filter"] == "neighbours" and run["weights"] == {"change_points": 0.1}
    assert run["options"] == {"change_points": {"sharpness": 0.5}} and run["balance"] == "gradient"


def test_the_example_keeps_padding_silent_and_the_teacher_frozen(mine):
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.standard_normal((1, 6, 4)), jnp.float32) for _ in range(2))
    mask = jnp.arange(6)[None] < 4
    gradient = jax.grad(mine.change_points, argnums=(0, 1))
    spoilt = [jnp.where(mask[..., None], x, jnp.nan) for x in (student, teacher)]
    cut = [x[:, :4] for x in (student, teacher)]
    np.testing.assert_allclose(
        mine.change_points(*spoilt, mask), mine.change_points(*cut, jnp.ones((1, 4), bool)), rtol=1e-6
    )
    assert mine.change_points(*cut, jnp.ones((1, 4), bool)) > 0
    own, theirs = gradient(*spoilt, mask)
    assert np.isfinite(own).all() and (own != 0).any() and not theirs.any()
    model = models.Detector("neighbours", 3, hidden=4, num_layers=2)
    variables = model.init(jax.random.key(0), student, mask)
    outputs = model.apply(variables, spoilt[0], mask)
    expected = model.apply(variables, cut[0], jnp.ones((1, 4), bool))
    np.testing.assert_allclose(outputs.features[:, :4], expected.features, rtol=1e-5, atol=1e-6)
    assert model.receptive_field == 5


def test_the_encoder_of_the_example_encodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("my_encoder.py").write_text(ENCODER)
    encoder = import_encoder("my_encoder:make", None)
    clips = np.zeros((3, 16, 64, 64, 3), np.uint8)
    clips[1, 8:] = 51
    ((_, features),) = encode_batches(encoder, [("a", clips)], batch_size=4)
    expected = [[0] * 195, [0.1] * 192 + [0.2] * 3, [0] * 195]
    np.testing.assert_allclose(features, expected, atol=1e-4)  # NumPy adds 4096 float32 one by one


def test_the_network_of_torchvision_encodes(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("r3d.py").write_text(TORCHVISION)
    torch.save(torchvision.models.video.r3d_18().state_dict(), "r3d_18.pth")
    encoder = import_encoder("r3d:make", Path("r3d_18.pth"))
    clips = np.random.default_rng(0).integers(0, 256, (2, 16, 112, 112, 3), np.uint8)
    ((_, features),) = encode_batches(encoder, [("a", clips)], batch_size=2)
    mean, std = np.array([0.43216, 0.394666, 0.37645]), np.array([0.22803, 0.22145, 0.216989])
    expected = encoder.function(((clips / 255 - mean) / std).astype(np.float32))
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    assert features.shape == (2, 512) and np.abs(features[0] - features[1]).max() > 1e-3
