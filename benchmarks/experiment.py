"""A whole experiment at the size of TSU: wall time with start-up and evaluation, peak memory, epochs of each run.

    python -m benchmarks.experiment [--epochs=140] [--config=configs/tsu.py] [--folder=DIR] [--output=FILE.json]

351 training and 185 test videos of TSU-like lengths, 838 k snippets of 1024-d RGB and flow as float16 noise, written as
records (3.4 GB, kept in --folder), then `python -m kd_jax.main` on them as a user starts it. The scores mean nothing.
The first epoch of a run compiles.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks import measuring, workloads
from benchmarks.workloads import CLASSES, SECONDS
from kd_jax.data import base, records
from kd_jax.training.logs import read_log


def make_records(folder: Path, videos: int, snippets: int, width: int) -> None:
    """Writes records of `videos` noise videos, two thirds of them for training, unless the folder has records."""
    if (folder / records.INFO_FILE).exists():
        return
    rng, lengths = np.random.default_rng(0), workloads.lengths_of(videos, snippets)
    train = max(1, round(videos * 351 / 536))

    def make(numbers: range) -> Iterator[base.Video]:
        for number in numbers:
            length = lengths[number]
            noise = {m: rng.standard_normal((length, width), np.float32).astype(np.float16) for m in ("rgb", "flow")}
            duration, count = length * SECONDS, max(1, length // 20)  # TSU has 77 actions per video of 1560 snippets
            starts = rng.uniform(0, 0.9, count) * duration
            ends = np.minimum(starts + 2 * SECONDS + rng.exponential(10.0, count), duration)
            segments = np.stack([rng.integers(0, CLASSES, count), starts, ends], 1)
            yield base.Video(f"v{number}", noise, segments, duration)

    records.write(folder, workloads.info(width), {"train": make(range(train)), "test": make(range(train, videos))})


def measure(arguments, folder: Path) -> tuple[list[dict], dict]:
    """Returns one row for each run, and the facts of the whole experiment."""
    make_records(folder / "records", arguments.videos, arguments.snippets, arguments.width)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [
            sys.executable,
            "-m",
            "kd_jax.main",
            f"--config={arguments.config}",
            f"--workdir={work}",
            "--noreport",
        ]
        command += ["--config.dataset.name=custom", f"--config.dataset.data_dir={folder / 'records'}"]
        command += [f"--config.training.epochs={arguments.epochs}", *arguments.override]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, rows = time.perf_counter() - started, []
        for logs in sorted(Path(work).glob("**/metrics.jsonl"), key=lambda path: path.stat().st_mtime):
            epochs = read_log(logs)
            times = [entry["seconds"] for entry in epochs]
            row = {"run": str(logs.parent.relative_to(work)), "first epoch s": times[0]}
            row |= {"epoch s": float(np.median(times[1:] or times)), "all epochs s": sum(times)}
            rows.append(row | {"snippets/s": float(np.median([entry["snippets_per_second"] for entry in epochs]))})
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return rows, {"whole experiment s": seconds, "peak GB": peak / 1e9, "epochs": arguments.epochs}


def main(arguments, shape):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows, facts = measure(arguments, folder)
    return "experiment", rows, {**facts, **shape}


if __name__ == "__main__":
    flags.DEFINE_string("config", "configs/tsu.py", "The experiment; its runs read rgb and flow.")
    flags.DEFINE_multi_string("override", [], "A config option, e.g. --override=--config.model.dtype=bfloat16.")
    flags.DEFINE_string("folder", None, "Where the records are, or are written to; a temporary folder by default.")
    measuring.run(main, epochs=140, videos=536, snippets=838_000, width=1024)
