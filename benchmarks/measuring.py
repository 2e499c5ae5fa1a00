"""What all benchmarks share: flags, alternating timers, the machine's peaks, memory, one table, one JSON file.

A floor is the time that a large matrix product, or a large copy, takes for the same work on this machine in this run.
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from kd_jax.runtime import num_processors

TORCH_INSTALLED = importlib.util.find_spec("torch") is not None
SIZES = {
    "repeats": "Timed calls of each side, after one that compiles.",
    "epochs": "Timed epochs of each side (steps, with --sweep), after one that compiles.",
    "videos": "Number of videos.",
    "snippets": "Snippets of all videos together.",
    "batch": "B, videos per step.",
    "length": "T, snippets per video.",
    "width": "D, channels of the features of each modality.",
    "hidden": "H, channels of the temporal filter.",
    "clips": "Clips of 16 frames per forward pass.",
    "size": "Side of a frame in pixels.",
}


def run(main: Callable, **sizes: int) -> None:
    """Reports what `main(flags, shape)` returns: the benchmark's name, the rows and the facts of its table.

    Every benchmark has the flags `output` and `peers`, and those of SIZES that have a default in `sizes`. `shape` holds
    the values of the latter except repeats and epochs. A `main` run by `in_own_process` returns a row, printed as JSON.
    """
    for name, default in sizes.items():
        flags.DEFINE_integer(name, default, SIZES[name], 1)
    flags.DEFINE_string("output", None, "Also write the table, the machine and the versions to this JSON file.")
    flags.DEFINE_bool("peers", True, "Compare with PyTorch, if it is installed.")
    logging.set_verbosity(logging.WARNING)

    def checked(_):
        output = flags.FLAGS.output
        if output and not Path(output).absolute().parent.is_dir():  # before the work, not after it
            sys.exit(f"--output={output}: there is no such folder; make it first")
        shape = {name: getattr(flags.FLAGS, name) for name in sizes if name not in ("repeats", "epochs")}
        result = main(flags.FLAGS, shape)
        if isinstance(result, dict):
            print(json.dumps(result))
        else:
            report(*result, output)

    app.run(checked)


def with_peers() -> bool:
    """Returns whether PyTorch is measured too."""
    return TORCH_INSTALLED and flags.FLAGS.peers


def seconds(call: Callable[[], object]) -> float:
    """Returns the wall time of one call, until its JAX arrays are computed."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def alternate(calls: Mapping[str, Callable[[], object]], repeats: int) -> tuple[dict, dict]:
    """Times the calls alternately, `repeats` times each; returns their median seconds and those of the first call."""
    first = {name: seconds(call) for name, call in calls.items()}
    rounds = [[seconds(call) for call in calls.values()] for _ in range(repeats)]
    return {name: float(np.median(times)) for name, times in zip(calls, zip(*rounds, strict=True), strict=True)}, first


def against_ours(medians: Mapping[str, float]) -> dict[str, float]:
    """Returns the columns of a row: the seconds of every side, and their ratios to kd_jax."""
    ratios = {f"{side} / kd_jax": time / medians["kd_jax"] for side, time in medians.items() if side != "kd_jax"}
    return {**{f"{side} s": time for side, time in medians.items()}, **ratios}


def peaks(repeats: int = 5) -> dict[str, float]:
    """Measures the float32 FLOP/s of a large product ('flops') and the bytes/s of a large copy ('bandwidth')."""
    on_cpu = jax.default_backend() == "cpu"
    size, elements = (1536, 2**25) if on_cpu else (8192, 2**28)
    matrix, vector = jnp.ones((size, size)), jnp.ones(elements)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: -x)
    jax.block_until_ready((product(matrix, matrix), copy(vector)))
    return {
        "flops": 2 * size**3 / min(seconds(lambda: product(matrix, matrix)) for _ in range(repeats)),
        "bandwidth": 2 * vector.nbytes / min(seconds(lambda: copy(vector)) for _ in range(repeats)),
    }


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Fits `time ∝ size^p` by least squares of logarithms and returns p; 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0]) if len(sizes) > 1 else math.nan


def memory(field: str) -> int:
    """Returns the bytes of this process: 'VmRSS' now, 'VmHWM' at most. (ru_maxrss would include the parent's.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def device_peak_bytes() -> int | None:
    """Returns the peak bytes that JAX or PyTorch has used of the accelerator; None without one."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return max(statistics.get("peak_bytes_in_use", 0), sys.modules["torch"].cuda.max_memory_allocated())
    return statistics.get("peak_bytes_in_use")


def peak_memory(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Returns the result of `call`, and the peak memory in GB: above what this process has now, and of the device."""
    before, result, device = memory("VmRSS"), call(), device_peak_bytes()
    more = {} if device is None else {"device peak GB": device / 1e9}
    return result, {"peak GB": (memory("VmHWM") - before) / 1e9, **more}


def in_own_process(module: str, *arguments: str) -> dict:
    """Runs `python -m module` with this process's flags and `arguments`; returns the JSON of its last line."""
    command = [sys.executable, "-m", module, *sys.argv[1:], *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def memory_twice(module: str, of: str) -> dict:
    """Runs `python -m module --memory_of=of` twice: 'first peak GB' with an empty cache, all else with a filled one."""
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, JAX_COMPILATION_CACHE_DIR=cache):
        first, again = (in_own_process(module, f"--memory_of={of}") for _ in range(2))
    return {"first peak GB": first["peak GB"], **again}


def machine() -> dict:
    """Returns the machine and the versions of the libraries."""
    names = ("jax", "flax", "numpy", *(("torch",) if TORCH_INSTALLED else ()))
    versions = {name: importlib.metadata.version(name) for name in names}
    where = {"cores": num_processors(), "architecture": platform.machine(), "device": jax.devices()[0].device_kind}
    return {**where, "python": platform.python_version(), "versions": versions}


def report(name: str, rows: Sequence[Mapping], facts: Mapping, output: str | None) -> None:
    """Prints the rows, {column: text or number}, as a Markdown table with `facts` under it; writes all to `output`."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]

    def line(values):
        return "| " + " | ".join(f"{value:<{width}}" for value, width in zip(values, widths, strict=True)) + " |"

    where = machine()
    print(line(columns), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, cells), sep="\n")
    for key, value in {**facts, "machine": where}.items():
        print(f"{key}: {_cell(value)}")
    if output:
        content = {"benchmark": name, "machine": where, **facts, "rows": list(rows)}
        Path(output).write_text(json.dumps(content, indent=2) + "\n")


def _cell(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(entry)}" for key, entry in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
