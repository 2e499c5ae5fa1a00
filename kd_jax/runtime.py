"""The start of every command: it joins the other processes of its job, shows messages and finds compiled programs.

In a job of several processes all of them compute. Only the first one writes files and logs.
"""

import contextlib
import functools
import logging as std_logging
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import fsspec
import jax
import numpy as np
from absl import flags, logging
from jax.experimental import multihost_utils
from tqdm import tqdm

from kd_jax import __version__
from kd_jax.files import is_address


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    precision: str | None = None,
) -> None:
    """Joins the job, logs versions and devices, and opens the cache of compiled programs on disk.

    Args:
      coordinator: HOST:PORT of the first process of a job; 'auto' where SLURM, Open MPI, Kubernetes or a TPU pod knows
        it; None for a single process.
      processes, process: their number and the index of this one, with HOST:PORT only.
      precision: dtype of the computation, for the log.

    Raises:
      ValueError: if one of these is missing or does not fit the others. OSError: if the job cannot be joined.
    """
    _check_job(coordinator, processes, process)
    if coordinator:
        _set_option("jax_enable_preemption_service", False)  # it would keep SIGTERM from ending the program
        print(f"kd_jax: waits up to 5 minutes for the other processes (--coordinator={coordinator})", file=sys.stderr)
        try:
            jax.distributed.initialize(None if coordinator == "auto" else coordinator, processes, process)
        except (ValueError, RuntimeError) as error:
            remedy = "no SLURM, Open MPI or TPU job was found; give --coordinator=HOST:PORT --processes=N --process=I"
            reason = remedy if coordinator == "auto" else str(error)
            raise OSError(f"--coordinator={coordinator}: the job cannot be joined ({reason})") from None
    _show_own_messages()
    own = f"kd_jax {__version__}, jax {jax.__version__}, {describe_devices(jax.devices())}"
    logging.info("%s", f"{own}, {precision}" if precision else own)
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)  # another process may add files
    named = jax.config.values.get("jax_compilation_cache_dir")  # by JAX_COMPILATION_CACHE_DIR
    folder = _named_folder(os.path.expanduser(named)) if named else _cache_folder()
    _set_option("jax_compilation_cache_dir", folder and str(folder))
    if folder:
        _open_cache()


def _open_cache() -> None:
    """Has JAX check what it reads from the cache, and sets the options that the user has not set."""
    try:
        from kd_jax import checked_cache
    except ImportError:  # it replaces private names of JAX
        remedy = "every start compiles anew; pip install -U kd_jax"
        reason = f"JAX {jax.__version__} is too new to check them"
        logging.warning("compiled programs are not kept, because %s; %s", reason, remedy)
        _set_option("jax_enable_compilation_cache", False)
        return
    checked_cache.install()
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # small programs are a quarter of a start
        _set_option("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES" not in os.environ:  # XLA's own files of autotuning have no checksum
        _set_option("jax_persistent_cache_enable_xla_caches", "none")


def _named_folder(folder: str) -> str | None:
    """Makes a folder that the user named, private if it is new; returns None, with a message, if that fails."""
    if is_address(folder):
        return folder
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = f"JAX_COMPILATION_CACHE_DIR={folder} cannot be made ({error.strerror})"
        logging.warning("compiled programs are not kept, because %s; every start compiles anew", reason)
        return None
    if Path(folder).stat().st_mode & 0o002:
        reason = f"every user can write JAX_COMPILATION_CACHE_DIR={folder} and so run code in this program"
        logging.warning("%s; chmod o-w %s", reason, folder)
    return folder


def _cache_folder() -> Path | None:
    """Returns a private folder that can be written: in XDG_CACHE_HOME, the home folder or the one for temporary files.

    Returns None without such a folder. Logs a warning unless it is the first one.
    """
    wanted = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # stays ~ if there is no home folder
    if _is_private(folder := Path(wanted) / "kd_jax"):
        return folder
    with contextlib.suppress(FileNotFoundError):  # there may be no folder for temporary files
        if _is_private(folder := Path(tempfile.gettempdir()) / f"kd_jax_{os.getuid()}"):
            logging.warning("compiled programs are kept in %s, because %s cannot be written", folder, wanted)
            return folder
    logging.warning("compiled programs are not kept, because %s cannot be written; every start compiles anew", wanted)
    return None


def _is_private(folder: Path) -> bool:
    """Makes a folder that only this user can enter; returns False if it is another user's or cannot be written.

    Who can write the folder can run code as its user, so an open one is closed, with a message.
    """
    if not folder.is_absolute():  # ~ of an unknown home folder
        return False
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
        if not os.access(folder, os.W_OK) or {folder.stat().st_uid, folder.lstat().st_uid} != {os.getuid()}:
            return False
        if mode & 0o077:
            folder.chmod(0o700)
    except OSError:
        return False
    if mode & 0o022:
        logging.warning(
            "other users could write %s (mode %o), now closed; delete it if you do not trust them", folder, mode
        )
    return True


def num_processors(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the number of processors that this process may use.

    These are the ones that its affinity allows, as batch jobs set it, or fewer if a control group (version 1 or 2) of
    the process has a quota, as containers have. `groups` lists the groups, mounted in `root`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [float(allowed)]
    for quota in _limits("cpu", "cpu.max", "cpu.cfs_quota_us", groups, root):
        number, *period = quota.read_text().split()
        if number not in ("max", "-1"):
            whole = period[0] if period else (quota.parent / "cpu.cfs_period_us").read_text()
            shares.append(int(number) / int(whole))
    return max(1, math.floor(min(shares)))


def _check_job(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator in (None, "auto"):
        if (processes, process) != (None, None):
            raise ValueError("--processes and --process need --coordinator=HOST:PORT, the address of the first process")
        return
    if processes is None or process is None:
        raise ValueError(f"--coordinator={coordinator} needs --processes=N and --process=I, from 0 on")
    address = re.fullmatch(r".+:(\d+)", coordinator)
    if not address or not 0 < int(address[1]) < 2**16:
        host = coordinator.rpartition(":")[0] if address else coordinator
        raise ValueError(f"--coordinator={coordinator} needs a port, e.g. --coordinator={host}:9876")
    if not 0 <= process < processes:
        raise ValueError(f"--process={process} of --processes={processes}; they are counted from 0")


def _set_option(name: str, value) -> None:
    """Sets an option of JAX; a version of JAX without this option keeps its behaviour."""
    if name in jax.config.values:
        jax.config.update(name, value)


@functools.cache
def compiler_options(*, quick: bool = False) -> dict:
    """Returns the compiler options for `jax.jit`, without those that this version of XLA does not know.

    On a CPU, matrix products use Eigen, because XLA's default there, YNNPACK, is 10 to 15 % slower, and `quick` leaves
    out optimisations that take more than half of the compile time and make a training step 4 % faster
    (benchmarks/README.md has both figures).
    """
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, str | int | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if quick:
        options |= {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache  # it compiles a program
def _is_known(option: str, value: str | int | bool) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def is_first() -> bool:
    """Returns whether this process is the one that writes files and logs."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Waits until every process of the job has reached this call, so that all see the files of the first one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def any_process(flag: bool) -> bool:
    """Returns whether `flag` is True in any process of the job; all of them must call this."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def environment() -> dict[str, str]:
    """Returns the versions of kd_jax and of what it runs on, its git commit, the system, and the kinds of devices."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "kd_jax": __version__,
        **_commit(Path(__file__).parents[1]),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": ", ".join(f"{count} × {kind}" for kind, count in kinds.items()),
    }


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """Returns the devices of a job in words, e.g. '2 CPU cores', '8 × NVIDIA H100 80GB HBM3 in 2 processes'."""
    kinds, processes = Counter(device.device_kind for device in devices), len({d.process_index for d in devices})
    found = ", ".join(f"{count} × {kind}" if count > 1 else kind for kind, count in kinds.items())
    if all(device.platform == "cpu" for device in devices):
        cores = num_processors()
        found = f"{cores} CPU core{'s'[: cores != 1]}"
        found += f" as {len(devices)} devices" if len(devices) > processes else ""
    return f"{found} in {processes} processes" if processes > 1 else found


@functools.cache
def _commit(checkout: Path) -> dict[str, str]:
    """{'commit': the git commit of a checkout, and whether files have changed since}; {} for an installed package."""
    if not (checkout / ".git").exists():
        return {}
    try:
        commit, changed = (
            subprocess.run(["git", "-C", checkout, *command.split()], capture_output=True, text=True, check=True).stdout
            for command in ("rev-parse HEAD", "--no-optional-locks status --porcelain")
        )
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or does not trust the owner of the folder
        return {}
    return {"commit": commit.strip() + (" with changes" if changed else "")}


@functools.cache  # the handler gets its filter once
def _show_own_messages() -> None:
    """Logs this package's messages with the time; hides the bookkeeping of orbax and the retries of gcsfs."""
    if not flags.FLAGS.is_parsed():  # absl.logging reads absl's flags, which no command here parses
        flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    package = str(Path(__file__).parent)  # the folder, because .venv may be in a clone that is called kd_jax

    def is_shown(record: std_logging.LogRecord) -> bool:
        if record.pathname.startswith(package):
            return True
        # orbax also logs, with tracebacks, the errors that it raises
        return record.levelno > std_logging.INFO and not (record.exc_info and "/orbax/" in record.pathname)

    emit = handler.python_handler.emit

    def emit_above_bars(record: std_logging.LogRecord) -> None:
        with tqdm.external_write_mode(sys.stderr):
            emit(record)

    handler.python_handler.emit = emit_above_bars  # type: ignore[method-assign]
    handler.addFilter(is_shown)
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for library in ("gcsfs", "asyncio", "onnx_ir"):  # what ends a command is reported in one sentence
        std_logging.getLogger(library).setLevel(std_logging.CRITICAL)
    # Last, because `is_first` starts the devices, and JAX would log that.
    logging.set_verbosity(logging.INFO if is_first() else logging.WARNING)


def host_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the bytes of memory that this process may use.

    This is the memory of the machine or, on Linux, the lowest limit of the control groups (version 1 or 2) of the
    process and their parents, which containers and batch jobs set. `groups` lists the groups, mounted in `root`.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        file.read_text().strip() for file in _limits("memory", "memory.max", "memory.limit_in_bytes", groups, root)
    ]
    return min([memory, *(int(limit) for limit in limits if limit != "max")])


def device_memory(host_share: int = 1) -> int:
    """Returns the bytes of memory of one device; on a CPU those that this process may use, divided by `host_share`."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", host_memory() // host_share)


def _limits(controller: str, name_2: str, name_1: str, groups: Path, root: Path) -> Iterator[Path]:
    """Yields the files with a limit of the control groups of this process and their parents, version 2 or 1."""
    for line in groups.read_text().splitlines() if groups.exists() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            folder, name = root, name_2
        elif controller in controllers.split(","):
            mounts = root.iterdir() if root.is_dir() else ()  # cpu,cpuacct may have no link named cpu
            folder = next((mount for mount in mounts if controller in mount.name.split(",")), root / controller)
            name = name_1
        else:
            continue
        group = folder / path.lstrip("/")
        for parent in (group, *group.parents):
            if parent.is_relative_to(folder) and (parent / name).exists():
                yield parent / name
