"""What a terminal shows: devices, a progress bar of 80 columns, and mistakes of the user's own terms and filters."""

import configparser
import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import config as schema
from kd_jax import runtime
from kd_jax.evaluation.protocols import PROTOCOLS, Protocol
from kd_jax.models import FILTERS, Filter
from kd_jax.training.logs import Progress
from kd_jax.training.plan import prepare
from kd_jax.training.terms import TERMS, Term, features

ROOT = Path(__file__).parents[1]
SCORE = "validation/frame_map/present_classes"


def test_devices_in_words(monkeypatch):
    def devices(count, kind, platform, processes=1):
        indices = [index % processes for index in range(count)]
        return [SimpleNamespace(device_kind=kind, platform=platform, process_index=index) for index in indices]

    monkeypatch.setattr(runtime, "num_processors", lambda: 2)
    said = {
        "2 CPU cores": devices(1, "cpu", "cpu"),
        "2 CPU cores as 8 devices": devices(8, "cpu", "cpu"),
        "2 CPU cores in 2 processes": devices(2, "cpu", "cpu", processes=2),
        "NVIDIA H200": devices(1, "NVIDIA H200", "gpu"),
        "16 × TPU v4 in 4 processes": devices(16, "TPU v4", "tpu", processes=4),
    }
    assert {text: runtime.describe_devices(found) for text, found in said.items()} == {text: text for text in said}


def open_terminal(columns):
    """Opens a pseudo-terminal of this width; returns the file descriptors to read from and to write to."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return master, slave


def read_terminal(master):
    """Reads until the other end is closed, because one read may return only a part; returns the lines."""
    received = b""
    with contextlib.suppress(OSError):  # Linux ends a closed terminal with an error
        while part := os.read(master, 10000):
            received += part
    os.close(master)
    return re.split(r"[\r\n]+", received.decode())


@pytest.mark.parametrize(("columns", "terms"), [(80, ""), (160, ", task=0.457, atomic=1.23e+04")])
def test_the_bar_shows_loss_and_validation_first_and_fits(columns, terms, monkeypatch):
    master, slave = open_terminal(columns)
    record = {"loss": 0.000012345, "task": 0.4567, "gradient/task": 1.0, "atomic": 12345.6, "seconds": 1.0}
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with Progress("augmented_rgb and 51 more", 40000, 0) as bar:
            bar.step([{"loss": jnp.float32(1.5), "task": jnp.float32(1.5)}], 20000)
            bar.finish_epoch([record | {SCORE: 41.26}])
    lines = read_terminal(master)
    assert any(line.startswith("augmented_rgb and 51 mo…, loss=1.5") for line in lines)
    assert any(
        line.startswith(f"augmented_rgb and 51 mo…, loss=1.23e-05, val mAP=41.3{terms}  50%|█") for line in lines
    )
    assert max(map(len, lines)) == columns - 1  # tqdm leaves a column to the cursor
    assert "gradient" not in "".join(lines)


def test_a_message_does_not_run_into_a_progress_bar():
    program = """
from absl import logging
from kd_jax import runtime
from kd_jax.training.logs import Progress
runtime._show_own_messages()
with Progress("run", 10, 0):
    logging.warning("compiled")
"""
    master, slave = open_terminal(80)
    with os.fdopen(slave, "w") as terminal:
        subprocess.run([sys.executable, "-c", program], stderr=terminal, cwd=ROOT, check=True, timeout=120)
    shown = read_terminal(master)
    assert any(re.fullmatch(r"\d\d:\d\d:\d\d compiled", line) for line in shown), shown
    assert sum(line.startswith("run   0%|") for line in shown) >= 2  # it is drawn again below the message


def own(term=lambda s, t, m: jnp.square(s - t).mean(), reads=features, change=lambda x: x, score=None):
    """A config whose student has a term and a filter of its own, and that adds a protocol."""

    class Own(nn.Module):
        hidden: int = 8
        num_layers: int = 1
        dropout: float = 0.0
        dtype: jnp.dtype = jnp.float32
        receptive_field = 1

        @nn.compact
        def __call__(self, x, mask, *, train=False):
            return change(nn.Dense(self.hidden)(x))

    FILTERS["own"], TERMS["mine"] = Filter(Own), Term(term, reads=reads)
    config = schema.get_config()
    config.dataset.update({"name": "synthetic", "max_videos": 4})
    config.model.hidden, config.baseline = 8, ""
    if score:
        PROTOCOLS["added"] = Protocol("scores", score, {"a": "A"})
        config.evaluation.protocols = ("added",)
    student = schema.make_run("rgb", teachers=("t",), filter="own", weights={"mine": 1.0})
    config.runs = schema.make_runs(t=schema.make_run("flow"), s=student)
    return config


MISTAKES = {
    "a vector": ({"term": lambda s, t, m: (s - t).mean(-1)}, "s: the term mine returned float32 [1, 4]; a loss is one"),
    "nothing": ({"term": lambda s, t, m: None}, "s: the term mine returned a NoneType; a loss is one float"),
    "a whole number": ({"term": lambda s, t, m: m.sum()}, "s: the term mine returned int32 []; a loss is one float"),
    "other shapes": (
        {"term": lambda s, t, m: s[:, :3] + t},
        "in <lambda> (`",
        "TypeError: add got incompatible shapes",
    ),
    "reads no pair": ({"reads": lambda s, t, b, k: s.features}, "`reads` of the term mine returned float32 [1, 4, 8]"),
    "another T": ({"change": lambda x: x[:, ::2]}, "the filter own returned float32 [1, 2, 8]; it must", "[1, 4, 8]"),
    "channels": (
        {"change": lambda x: x[..., :3]},
        "the filter own returned float32 [1, 1, 3]; it must return features",
    ),
    "two values": ({"change": lambda x: (x, x)}, "the filter own returned a tuple; it must return features [B, T, hid"),
    "no dict": ({"score": lambda s, t: 3.0}, "the protocol added returned a float; it must return two dicts"),
    "a NaN": ({"score": lambda s, t: ({"a": np.nan}, {})}, "the protocol added returned a NaN for scores equal to the"),
    "no column": ({"score": lambda s, t: ({"b": 3.0}, {})}, "added returned b 3.0", "a number for its column 'a'"),
    "a text": ({"score": lambda s, t: ({"a": "3"}, {})}, "the protocol added returned '3' as a; it must be a number"),
    "too few classes": ({"score": lambda s, t: ({"a": 3}, {"": np.zeros(3)})}, "[3] values per class", "[12] percent"),
    "an error": ({"score": lambda s, t: s["x"]}, f"{Path(__file__).name}, line", "in <lambda> (`", "KeyError: 'x'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_own_terms_filters_and_protocols_are_named_before_training(name, tmp_path):
    options, *said = MISTAKES[name]
    try:
        with pytest.raises(ValueError, match="^(runs.s|evaluation): ") as error:
            prepare(own(**options), tmp_path)
    finally:
        del FILTERS["own"], TERMS["mine"]
        PROTOCOLS.pop("added", None)
    assert all(part in str(error.value) for part in said), error.value
    assert "\n" not in str(error.value)


def test_devices_of_the_script_are_extras():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    assert [extras[name].split()[0] for name in ("cuda", "cuda12", "cuda13", "tpu")] == [
        *("jax[cuda13]>=0.10", "jax[cuda12]>=0.10", "jax[cuda13]>=0.10", "jax[tpu]>=0.10")
    ]
    environment = os.environ | {"EXTRA": "cuda11"}
    result = subprocess.run([ROOT / "run.sh"], env=environment, capture_output=True, text=True)
    assert (
        result.returncode == 2 and "EXTRA=cuda11 is unknown; use cuda (CUDA 13), cuda12, cuda13 or tpu" in result.stderr
    )
