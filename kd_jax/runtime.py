"""What every program does first: joins the other processes of its job, shows its own messages, finds what it compiled.

In a job of several processes all of them compute, and the first alone writes files and speaks.
"""

import functools
import logging as std_logging
import os
import re
import sys
from pathlib import Path

import fsspec
import jax
from absl import logging
from jax.experimental import multihost_utils


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Progress on the terminal, compiled programs from the cache on disk.

    Args:
      coordinator: HOST:PORT of the first process of a job; 'auto' where SLURM, Open MPI, Kubernetes or a TPU pod knows
        it; None for a program on its own.
      processes, process: how many there are, and which one this is; only where the job does not say.

    Raises:
      ValueError: if some of them are missing.
      OSError: if the job cannot be joined.
    """
    if (processes, process) != (None, None) and coordinator in (None, "auto"):
        raise ValueError("--processes and --process need --coordinator=HOST:PORT, the address of the first process")
    if coordinator and coordinator != "auto":
        if None in (processes, process):
            raise ValueError(f"--coordinator={coordinator} needs --processes=N and --process=I, from 0 on")
        address = re.fullmatch(r".+:(\d+)", coordinator)
        if not address or not 0 < int(address[1]) < 2**16:
            host = coordinator.rpartition(":")[0] if address else coordinator
            raise ValueError(f"--coordinator={coordinator} needs a port, e.g. --coordinator={host}:9876")
        if not 0 <= process < processes:
            raise ValueError(f"--process={process} of --processes={processes}; they are counted from 0")
    if coordinator:
        jax.config.update("jax_enable_preemption_service", False)  # it would keep SIGTERM from ending the program
        print(f"kd_jax: waits up to 5 minutes for the other processes (--coordinator={coordinator})", file=sys.stderr)
        try:
            jax.distributed.initialize(None if coordinator == "auto" else coordinator, processes, process)
        except (ValueError, RuntimeError) as error:
            remedy = "no SLURM, Open MPI or TPU job was found; say --coordinator=HOST:PORT --processes=N --process=I"
            reason = remedy if coordinator == "auto" else str(error)
            raise OSError(f"--coordinator={coordinator}: the job cannot be joined ({reason})") from None
    _show_own_messages()
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)  # another process may add files
    if not jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR names another folder
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "kd_jax"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # many small ones are a quarter of a start
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@functools.cache
def compiler_options() -> dict | None:
    """Of `jax.jit`: on a CPU, the matrix products are Eigen's.

    Those of YNNPACK, which XLA would take, are 10 to 15 % slower there (benchmarks/README.md).
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""} if jax.default_backend() == "cpu" else None
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:  # a version that does not know it
        return None
    return options


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Every process goes on once all have come here: what the first wrote before can be read after."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def _show_own_messages() -> None:
    """Without the prefix of absl, the bookkeeping of orbax and the traceback of each try to reach a bucket."""
    handler = logging.get_absl_handler()
    package = str(Path(__file__).parent)  # not just the name: .venv may lie in a clone that is called kd_jax
    handler.addFilter(lambda record: record.levelno > std_logging.INFO or record.pathname.startswith(package))
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    std_logging.getLogger("gcsfs").setLevel(std_logging.CRITICAL)  # it raises the same, which is told in a sentence
    # Last, as `is_first` starts the devices, which JAX would tell of.
    logging.set_verbosity(logging.INFO if is_first() else logging.WARNING)


def host_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that the machine has, or what a container or a batch job may take of them where that is less.

    On Linux such limits are those of the control groups (version 2 or 1) that a process is in, and of their parents.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            folder, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = folder / path.lstrip("/")
        for file in (parent / name for parent in (group, *group.parents) if parent.is_relative_to(folder)):
            limit = file.read_text().strip() if file.exists() else "max"
            total = total if limit == "max" else min(total, int(limit))
    return total
