"""Strict numerics for every test: no silent rank promotion, one small CPU; programs compiled once for all of them."""

import os

# Most of a test's time went into the last optimisations of its machine code, then into XLA's newer generator of fused
# loops. XLA's own optimisations, of the program, stay on. JAX reads this when it is imported; the programs that tests
# start read it too, but for those under `as_users_run`. Workers inherit what pytest's first process has set here.
USERS = {
    name: os.environ.setdefault(f"USERS_{name}", os.environ.get(name, "")) for name in ("XLA_FLAGS", "JAX_PLATFORMS")
}
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{USERS['XLA_FLAGS']} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """A cache that the workers, and the programs that tests start, share for this run of the tests alone."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "compiled"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture
def as_users_run(monkeypatch):
    """Programs that the test starts choose their devices and optimise their code as a user's do."""
    for name, value in USERS.items():
        monkeypatch.setenv(name, value)
