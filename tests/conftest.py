"""The environment of every test: strict rank promotion, CPU only, fast compilation, one compilation cache.

The cache is kept between runs, and all clones share it. Delete the folder `~/.cache/kd_jax_tests` to empty it.
"""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

# Most of a test's time is compilation. These flags skip the last optimizations of machine code, which are most of that
# time, and XLA's newer generator of fused loops. XLA still optimizes the program itself.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kd_jax_tests"
COMPILED, COMPILED_BYTES = CACHE / "compiled", 2 * 2**30
USER_VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS")


def known_flags(flags: tuple[str, ...]) -> list[str]:
    """Return the flags that the installed XLA knows. XLA aborts on others, so a separate process tries them."""

    def all_known(flags):
        environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
        program = [sys.executable, "-c", "import jax; jax.devices()"]
        return subprocess.run(program, env=environment, capture_output=True).returncode == 0

    return list(flags) if all_known(flags) else [flag for flag in flags if all_known([flag])]


def remembered_flags(file: Path) -> list[str]:
    """Return the known ones of `FLAGS`. `file` keeps the answer for the next run."""
    if file.exists() and (answer := json.loads(file.read_text()))["asked"] == list(FLAGS):
        return answer["known"]
    answer = {"asked": FLAGS, "known": known_flags(FLAGS)}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(answer))
    unfinished.replace(file)
    return answer["known"]


def remove_least_recently_used(folder: Path, max_bytes: int) -> None:
    """Remove the files of `folder` that were read longest ago until the others take at most `max_bytes`."""
    files = sorted(((path.stat(), path) for path in folder.glob("*")), key=lambda file: -file[0].st_atime)
    total = 0
    for stat, path in files:
        total += stat.st_size
        if total > max_bytes:
            path.unlink(missing_ok=True)


def pytest_configure():
    """Set the environment before JAX is imported. Workers, and the programs that tests start, inherit it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        for name in USER_VARIABLES:
            os.environ[f"USER_{name}"] = os.environ.get(name, "")
        flags = remembered_flags(CACHE / f"xla_flags_{metadata.version('jaxlib')}.json")
        os.environ["XLA_FLAGS"] = " ".join([os.environ["USER_XLA_FLAGS"], *flags])
        os.environ["JAX_PLATFORMS"] = "cpu"
        # JAX names an entry after its program, the flags, the devices and the version of jaxlib.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    import jax

    from kd_jax import checked_cache

    jax.config.update("jax_numpy_rank_promotion", "raise")
    checked_cache.install()


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        remove_least_recently_used(COMPILED, COMPILED_BYTES)


@pytest.fixture
def as_users_run(monkeypatch):
    """Programs that the test starts use the user's flags and devices, not those of the tests."""
    for name in USER_VARIABLES:
        monkeypatch.setenv(name, os.environ[f"USER_{name}"])


@pytest.fixture
def twelve_videos(tmp_path):
    """Records with twelve training videos and one test video."""
    import numpy as np

    from kd_jax.data import base, records

    info = base.Info("mine", ("a", "b"), "dense", {"rgb": 3, "flow": 2}, "seconds", 25.0, 1.0)
    rng = np.random.default_rng(0)
    videos = [
        base.Video(
            f"v{i}",
            {m: rng.standard_normal((n, d)).astype(np.float16) for m, d in info.modalities.items()},
            np.array([[i % 2, 0.5, n / 2]]),
            float(n),
        )
        for i, n in enumerate(rng.integers(3, 60, 13))
    ]
    records.write(tmp_path / "records", info, {"train": videos[:12], "test": videos[12:]})
    return tmp_path / "records"
