"""Faults of disks, machines and users: how many of them an experiment survives.

    python -m benchmarks.faults [--tries=1] [--size=large] [--only=KIND] [--seed=0] [--folder=DIR] [--jobs=2]
    python -m benchmarks.faults --only=KIND --case=N --seed=S         repeats one attempt

A tiny experiment, a teacher and a student, is trained without faults. Each attempt does the same with one fault. It
survives if its command ends in one sentence, or with whole results, and if the same command, run again without the
fault, ends with the same bits: parameters, optimiser state, predictions and scores. Everything else is lost: a
traceback, a crash, other results, or no end. docs/reliability.md explains the kinds.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

from benchmarks import measuring
from kd_jax.data import base, records, synthetic
from kd_jax.files import read_arrays
from kd_jax.runtime import num_processors
from kd_jax.training.checkpoints import checksum, load_run

ROOT = Path(__file__).parents[1]
TEACHER, STUDENT = "flow_teacher", "augmented_rgb"
CONFIG = ("--config=tests/teacher_and_student.py", "--config.dataset.name=custom", "--config.training.epochs=5")
CONFIG += ("--config.training.checkpoint_every=2", "--config.dataset.synthetic_fallback=False")
END, STOP = 400, 25  # seconds: for a whole command, and after SIGTERM or SIGINT
EARLIEST = 0.2  # seconds after which Python has started and runs code of kd_jax
STOPPED = {"KILL": -9, "TERM": 143, "INT": 130}  # exit codes
PARTS = ("config.json", "checkpoints", "metrics.jsonl", "predictions", "results", "figures", "report.html")
LOG = "metrics.jsonl"
UNREAD = ("figures", "report.html")  # files of a workdir that no command reads


class Lost(Exception):
    """An attempt has not survived; the message says why."""


class Ended(NamedTuple):
    """A command that has ended."""

    code: int  # negative: the number of a signal
    output: str
    stopping: float | None  # seconds from the disturbance to the end; None if there was none


@dataclass(frozen=True)
class World:
    """What all attempts share: inputs, records and workdirs without faults."""

    inputs: Path  # features and annotations, from which the records are built
    records: Path
    finished: Path  # a workdir
    interrupted: Path  # a workdir whose student was killed after its last epoch, before the results
    preempted: Path  # a workdir whose student was stopped by SIGTERM between two checkpoints
    predicted: Path  # the output of `kd_jax.predict`
    cache: Path  # XDG_CACHE_HOME, with all compiled programs
    operations: Sequence[str]  # the files that `finished` wrote, in this order
    building: Sequence[str]  # those of `records`
    seconds: float  # of an undisturbed experiment


@dataclass(frozen=True)
class Attempt:
    """One attempt: its place, and the random numbers of its moments and bytes."""

    world: World
    folder: Path
    random: random.Random

    def train(self, workdir: Path, *options: str, data: Path | None = None, **run) -> Ended:
        """Runs the experiment in a workdir, without its report unless `options` has --report."""
        report = () if "--report" in options else ("--noreport",)
        data_dir = f"--config.dataset.data_dir={data or self.world.records}"
        return self.run("train", *CONFIG, data_dir, f"--workdir={workdir}", *report, **run)

    def build(self, output: Path, inputs: Path, **run) -> Ended:
        """Builds records."""
        features = [f"--features={modality}={inputs / modality}" for modality in ("rgb", "flow")]
        annotations = [f"--annotations={inputs / 'annotations.csv'}", "--seed=0", "--test_fraction=0.3"]
        return self.run(
            "build", "--dataset=custom", *annotations, *features, f"--output={output}", "--workers=1", **run
        )

    def run(
        self,
        name: str,
        *arguments: str,
        plan: dict | None = None,
        prefix: Sequence[str] = (),
        cache: Path | None = None,
    ) -> Ended:
        """Runs a command to its end.

        Args:
          name, arguments: of the command `kd-jax`.
          plan: how it is disturbed, see `benchmarks.disturbed`.
          prefix: words before the command.
          cache: XDG_CACHE_HOME.
        """
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        hook = ["benchmarks.disturbed", json.dumps(plan | {"log": str(log)})] if plan else []
        command = [*prefix, sys.executable, "-m", *hook, "kd_jax", name, *arguments]
        environment = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "PYTHONPATH")}
        environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache or self.world.cache)}
        options: dict[str, Any] = {"cwd": ROOT, "env": environment, "text": True, "start_new_session": True}
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
        with subprocess.Popen(command, **options) as process:
            try:
                output = process.communicate(timeout=END)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise Lost(f"{name} did not end in {END} s") from None
        with (self.folder / "output.txt").open("a") as file:
            file.write(f"{' '.join(command)}\n{output}\nexit {process.returncode}\n\n")
        acted = re.search(r"^acted (.*)$", log.read_text(), re.MULTILINE) if plan and log.exists() else None
        return Ended(process.returncode, output, time.time() - float(acted[1]) if acted else None)

    def recover(self, workdir: Path, *options: str) -> None:
        """Runs the experiment without a fault, which must end with the bits of the undisturbed one."""
        if not succeeded(ended := self.train(workdir, *options)):
            raise Lost(f"without the fault: {last_line(ended)}")
        compare(workdir, self.world.finished)
        if "--report" in options and not (workdir / "report.html").exists():
            raise Lost(f"without the fault: no report, {last_line(ended)}")

    def settle(self, ended: Ended, workdir: Path) -> None:
        """Compares the results of a command that was disturbed; if it has refused, runs it without the fault."""
        if succeeded(ended):
            compare(workdir, self.world.finished)
        else:
            self.recover(workdir)

    def operation(self, part: str, done: Sequence[str]) -> dict:
        """Plans a moment: a random one of the operations on files whose path contains `part`."""
        count = sum(part in operation for operation in done)
        return {"part": part, "count": self.random.randint(1, count)}


def last_line(ended: Ended) -> str:
    return next((line.strip() for line in reversed(ended.output.splitlines()) if line.strip()), "no output")


def succeeded(ended: Ended) -> bool:
    """Returns whether a command succeeded; raises Lost unless it did or ended in one sentence."""
    check_output(ended)
    if ended.code < 0:
        raise Lost(f"crash by {signal.Signals(-ended.code).name}, {last_line(ended)}")
    if ended.code and not re.search(r"^(kd_jax\.\w+|data_prep\.\w+|kd-jax \w+): ", ended.output, re.MULTILINE):
        raise Lost(f"exit {ended.code} without a sentence, {last_line(ended)}")
    return ended.code == 0


def check_output(ended: Ended) -> None:
    """Raises Lost for a traceback, with the first error."""
    if found := re.search(r"^Traceback \(most recent call last\):\n(?:[ |].*\n|\n)*(.*)", ended.output, re.MULTILINE):
        raise Lost(f"exit {ended.code} with a traceback, {found[1][:300]}")


_reading = threading.Lock()  # orbax in several threads is not ours to test


def compare(workdir: Path, reference: Path, unread: str = "") -> None:
    """Raises Lost with the first differences of two workdirs; `unread` as in `differences`."""
    if different := differences(workdir, reference, unread):
        raise Lost(f"exit 0 with others: {different}")


def differences(workdir: Path, reference: Path, unread: str = "") -> str:
    """Compares two workdirs bit for bit; returns the first differences, '' if there are none.

    `unread` is a finished run with a damaged checkpoint: `load_run` may refuse it, and its optimiser state is not read.
    """
    with _reading:
        ours, theirs = bits_of(workdir, unread), dict(_bits_of_reference(reference))
    if ours.get(f"{unread}/best", "").startswith("refused"):
        theirs[f"{unread}/best"] = ours[f"{unread}/best"]
    different = [name for name in ours if ours[name] != theirs[name]]
    return ", ".join(f"{name} {ours[name]}" if " " in ours[name] else name for name in different[:4])


def bits_of(workdir: Path, unread: str = "") -> dict[str, str]:
    """Returns {part of a workdir: hash of its values, or why it cannot be read}."""
    found = {"results.json": values_of(workdir / "results.json", "rows", "test_videos")}
    for run in (TEACHER, STUDENT):
        folder = workdir / run
        found[f"{run}/results.json"] = values_of(folder / "results.json", "best_epoch", "validation", "test")
        for split in ("validation", "test"):
            name = f"predictions_{split}.npz"
            found[f"{run}/{name}"] = _hash_or_reason(lambda path=folder / name: read_arrays(path))
        found[f"{run}/best"] = _hash_or_reason(lambda folder=folder: load_run(folder).variables)
        if run != unread:
            found[f"{run}/state"] = _hash_or_reason(lambda folder=folder: _latest_state(folder))
    return found


_bits_of_reference = functools.cache(bits_of)


def values_of(path: Path, *fields: str) -> str:
    """The hash of fields of a JSON file."""
    return _hash_or_reason(lambda: [json.dumps(json.loads(path.read_text())[field]) for field in fields])


def _latest_state(run: Path):
    latest = max((path for path in (run / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    return {"epoch": np.array(int(latest.name)), "state": ocp.StandardCheckpointer().restore(latest / "state")}


def _hash_or_reason(read: Callable) -> str:
    """The hash of the texts and arrays of a tree; 'refused: REASON' if it cannot be read."""
    try:
        tree = read()
    except Exception as error:  # the point is to name whatever is raised
        return f"refused: {type(error).__name__} {' '.join(str(error).split())[:80]}"
    return checksum(jax.tree.map(np.asarray, tree))


def bits_of_records(folder: Path) -> str:
    """The hash of the content of records."""

    def content():
        videos = [video for split in base.SPLITS for video in records.read(folder, split)]
        return [(video.id, dict(video.features), video.segments, video.duration) for video in videos]

    return _hash_or_reason(content)


# One function for each kind of fault. It takes an attempt and a case, and raises Lost.


def stopped(attempt: Attempt, case: tuple[str, str, int]) -> None:
    """A signal at a random time, or while a part of the workdir is written."""
    name, part, _ = case
    workdir, options = attempt.folder / "work", ["--report"] if part in UNREAD else []
    if part == "any time":
        plan = {"seconds": attempt.random.uniform(EARLIEST, attempt.world.seconds)}
    else:
        plan = attempt.operation(part, attempt.world.operations)
    ended = attempt.train(workdir, *options, plan={"action": name, "folder": str(workdir), **plan})
    check_stop(ended, name)
    attempt.recover(workdir, *options)


def check_stop(ended: Ended, name: str) -> None:
    """Raises Lost unless a command was stopped by a signal as promised, or had finished before."""
    check_output(ended)
    last = last_line(ended)
    if ended.code not in (0, STOPPED[name]):
        raise Lost(f"SIG{name}: exit {ended.code}, {last}")
    if name != "KILL" and (ended.stopping or 0) > STOP:
        raise Lost(f"SIG{name}: ended after {ended.stopping:.0f} s, {last}")


def build_stopped(attempt: Attempt, case: tuple[str, str, int]) -> None:
    """A signal while records are built."""
    name, moment, _ = case
    output = attempt.folder / "work" / "records"
    plan = {"seconds": attempt.random.uniform(EARLIEST, 4)}
    if moment == "operation":
        plan = attempt.operation("", attempt.world.building)
    plan = {"action": name, "folder": str(output.parent), **plan}
    check_stop(attempt.build(output, attempt.world.inputs, plan=plan), name)
    _check_build(attempt, output)


def build_input(attempt: Attempt, case: tuple[Path, str]) -> None:
    """A damaged input of records; damage of a value that stays a number cannot be seen."""
    inputs, output = attempt.folder / "inputs", attempt.folder / "work" / "records"
    shutil.copytree(attempt.world.inputs, inputs)
    damaged = damage(inputs / case[0], case[1], attempt.random)
    whole = succeeded(attempt.build(output, inputs))
    if whole and case[0].suffix == ".npy" and case[1] in ("cut", "emptied"):
        raise Lost("exit 0 with a damaged input")
    shutil.rmtree(output, ignore_errors=True)
    shutil.copy2(attempt.world.inputs / case[0], damaged)
    _check_build(attempt, output)


def _check_build(attempt: Attempt, output: Path) -> None:
    whole = succeeded(ended := attempt.build(output, attempt.world.inputs))
    if not whole and "already holds records" not in ended.output:
        raise Lost(f"without the fault: {last_line(ended)}")
    if bits_of_records(output) != bits_of_records(attempt.world.records):
        raise Lost(f"other records: {bits_of_records(output)}")
    if others := [path.name for path in output.parent.iterdir() if path != output]:
        raise Lost(f"folders are left: {', '.join(others)}")


def finished_file(attempt: Attempt, case: tuple[Path, str]) -> None:
    """A damaged file of a finished workdir: `predict`, `verify` and `report` read it, then the same command."""
    path, how = case
    workdir, world = attempt.folder / "work", attempt.world
    shutil.copytree(world.finished, workdir, ignore=shutil.ignore_patterns(*UNREAD))
    damage(workdir / path, how, attempt.random)
    if path.parts[0] == STUDENT:
        output = attempt.folder / "predicted"
        arguments = [f"--run={workdir / STUDENT}", f"--features={world.records}", f"--output={output}"]
        if succeeded(attempt.run("predict", *arguments)):
            ours, theirs = (
                _hash_or_reason(lambda f=f: read_arrays(f / "scores.npz")) for f in (output, world.predicted)
            )
            if ours != theirs:
                raise Lost("predict: exit 0 with other scores")
    whole = succeeded(attempt.run("verify", str(workdir)))
    if whole and (different := differences(workdir, world.finished, unread=path.parts[0])):
        raise Lost(f"verify: exit 0 although others are {different}")
    if "checkpoints" not in path.parts:
        whole = succeeded(attempt.run("report", str(workdir)))
        if whole and not (workdir / "report.html").exists():
            raise Lost("report: exit 0 without a page")
    _continue_damaged(attempt, workdir, path, world.finished)


def interrupted_file(attempt: Attempt, case: tuple[Path, str], source: Path | None = None) -> None:
    """A damaged file of a workdir whose experiment was killed, or of the workdir `source`."""
    workdir, source = attempt.folder / "work", source or attempt.world.interrupted
    shutil.copytree(source, workdir)
    damage(workdir / case[0], case[1], attempt.random)
    _continue_damaged(attempt, workdir, case[0], source)


def _continue_damaged(attempt: Attempt, workdir: Path, path: Path, source: Path) -> None:
    """Runs the same command on a damaged workdir, and again after the file is restored if it was refused."""
    in_checkpoint = path.parts[1:2] == ("checkpoints",) and (source / path.parts[0] / "results.json").exists()
    if succeeded(attempt.train(workdir)):
        compare(workdir, attempt.world.finished, unread=path.parts[0] if in_checkpoint else "")
        return
    (workdir / path).parent.mkdir(parents=True, exist_ok=True)
    if (source / path).is_dir():
        shutil.copytree(source / path, workdir / path, dirs_exist_ok=True)
    else:
        shutil.copy2(source / path, workdir / path)
    attempt.recover(workdir)


def preempted_file(attempt: Attempt, case: tuple[Path, str]) -> None:
    """A damaged file of a run that was stopped by SIGTERM."""
    interrupted_file(attempt, case, attempt.world.preempted)


def records_file(attempt: Attempt, case: tuple[Path, str]) -> None:
    """A damaged file of the records, when an interrupted experiment continues."""
    data, workdir = attempt.folder / "records", attempt.folder / "work"
    shutil.copytree(attempt.world.records, data)
    shutil.copytree(attempt.world.interrupted, workdir)
    damage(data / case[0], case[1], attempt.random)
    attempt.settle(attempt.train(workdir, data=data), workdir)


def disk_full(attempt: Attempt, case: tuple[str, int]) -> None:
    """A disk of its own for the workdir, with too little space or too few files."""
    workdir, saved = attempt.folder / "work", attempt.folder / "saved"
    workdir.mkdir()
    files = [path for path in attempt.world.finished.rglob("*") if not set(UNREAD) & set(path.parts)]
    pages = sum(-(-path.stat().st_size // 4096) for path in files if path.is_file())
    size, inodes = f"{4 * attempt.random.randint(1, pages)}k", attempt.random.randint(2, len(files))
    option = f"size={size}" if case[0] == "size" else f"nr_inodes={inodes}"
    script = 'mount -t tmpfs -o "$1" faults "$2" || exit 99; "${@:4}"; code=$?; cp -a "$2" "$3"; exit $code'
    prefix = [*NAMESPACE, "bash", "-c", script, "bash", option, str(workdir), str(saved)]
    ended = attempt.train(workdir, prefix=prefix)
    workdir.rmdir()
    saved.rename(workdir)
    attempt.settle(ended, workdir)


def file_limit(attempt: Attempt, case: int) -> None:
    """A limit of the size of a file, as `ulimit -f` and quotas set."""
    workdir = attempt.folder / "work"
    largest = max(path.stat().st_size for path in attempt.world.finished.rglob("*") if path.is_file())
    limit = int(np.exp(attempt.random.uniform(np.log(16), np.log(largest))))
    attempt.settle(attempt.train(workdir, prefix=["prlimit", f"--fsize={limit}"]), workdir)


def workdir_deleted(attempt: Attempt, case: int) -> None:
    """The workdir is deleted while the experiment trains."""
    workdir = attempt.folder / "work"
    plan = {"action": "delete", "folder": str(workdir), **attempt.operation("", attempt.world.operations)}
    attempt.settle(attempt.train(workdir, plan=plan), workdir)


def two_at_once(attempt: Attempt, case: int) -> None:
    """A second experiment starts in the workdir of the first."""
    workdir, delay = attempt.folder / "work", attempt.random.uniform(0, attempt.world.seconds)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(attempt.train, workdir)
        time.sleep(delay)
        both = [first, pool.submit(attempt.train, workdir)]
    wholes = [succeeded(each.result()) for each in both]
    if not any(wholes):
        raise Lost(f"both were refused, {last_line(both[1].result())}")
    compare(workdir, attempt.world.finished)
    attempt.recover(workdir)


def cache_entry(attempt: Attempt, case: tuple[Path, str]) -> None:
    """A damaged entry of the cache of compiled programs."""
    workdir, cache = attempt.folder / "work", attempt.folder / "cache"
    shutil.copytree(attempt.world.cache, cache)
    damage(cache / case[0], case[1], attempt.random)
    attempt.settle(attempt.train(workdir, cache=cache), workdir)


def damage(path: Path, how: str, random: random.Random) -> Path:
    """Damages a file, or deletes a folder; returns its path."""
    if path.is_dir():
        shutil.rmtree(path)
        return path
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if how == "cut" else b"")
    return path


# The cases of each kind.


def files_of(folder: Path) -> list[tuple[Path, str]]:
    """Every file × {cut in half, emptied, one bit flipped, deleted}, and every deleted folder of checkpoints."""
    paths = [path for path in folder.rglob("*") if not set(UNREAD) & set(path.relative_to(folder).parts)]
    paths.sort(key=lambda path: (path.parent, path.is_file() and path.stat().st_size, path))
    found = []
    for path in paths:
        if path.is_dir() and "checkpoints" not in path.parts:
            continue
        damages = ("cut", "emptied", "flipped", "deleted") if path.is_file() and path.stat().st_size else ("deleted",)
        found += [(path.relative_to(folder), how) for how in damages]
    return found


def student_files(world: World) -> list[tuple[Path, str]]:
    """`files_of` a run that was stopped by SIGTERM; other files are like those of a killed experiment."""
    return [(path, how) for path, how in files_of(world.preempted) if path.parts[0] == STUDENT]


def stops(name: str) -> Callable[[World], list]:
    return lambda world: [
        *((name, "any time", i) for i in range(40)),
        *((name, part, i) for part in PARTS if any(part in each for each in world.operations) for i in range(5)),
    ]


def build_stops(world: World) -> list:
    return list(itertools.product(STOPPED, ("any time", "operation"), range(5)))


NAMESPACE = ("unshare", "--map-root-user", "--mount")


def small_disks(world: World) -> list:
    """None on a system where a user cannot mount a disk."""
    try:
        allowed = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return list(itertools.product(("size", "nr_inodes"), range(20))) if allowed else []


# {kind: (what an attempt does, all cases)}
FAULTS: dict[str, tuple[Callable[[Attempt, Any], None], Callable[[World], Sequence]]] = {
    "sigkill": (stopped, stops("KILL")),
    "sigterm": (stopped, stops("TERM")),
    "sigint": (stopped, stops("INT")),
    "finished": (finished_file, lambda world: files_of(world.finished)),
    "interrupted": (interrupted_file, lambda world: files_of(world.interrupted)),
    "preempted": (preempted_file, student_files),
    "records": (records_file, lambda world: files_of(world.records)),
    "build_stopped": (build_stopped, build_stops),
    "build_input": (build_input, lambda world: files_of(world.inputs)),
    "disk_full": (disk_full, small_disks),
    "file_limit": (file_limit, lambda world: range(20)),
    "deleted": (workdir_deleted, lambda world: range(20)),
    "two_at_once": (two_at_once, lambda world: range(10)),
    "cache": (cache_entry, lambda world: files_of(world.cache)),
}


def make_world(folder: Path) -> World:
    """Makes the inputs, the records and the workdirs, with a new cache of compiled programs."""
    names = [field.name for field in dataclasses.fields(World) if field.type is Path]
    world = World(*(folder / name for name in names), operations=(), building=(), seconds=0.0)
    attempt, building, finished = Attempt(world, folder, random.Random(0)), folder / "building", world.finished
    building.mkdir(parents=True)
    make_inputs(world.inputs)
    never = {"action": "KILL", "count": 0}
    _require(attempt.build(building / "records", world.inputs, plan={**never, "folder": str(building)}))
    built = (folder / "log").read_text().splitlines()
    (building / "records").rename(world.records)
    _require(attempt.train(finished, "--report", plan={**never, "folder": str(finished)}))
    operations = (folder / "log").read_text().splitlines()
    count = sum(LOG in path for path in operations)  # on the logs of ten epochs
    started = time.perf_counter()
    _stop(attempt, world.interrupted, "KILL", count)
    seconds = time.perf_counter() - started
    _stop(attempt, world.preempted, "TERM", count - 2 * count // 10)  # in the third epoch of the student
    _require(
        attempt.run(
            "predict",
            f"--run={finished / STUDENT}",
            f"--features={world.records}",
            f"--output={world.predicted}",
        )
    )
    return dataclasses.replace(world, operations=operations, building=built, seconds=seconds)


def _stop(attempt: Attempt, workdir: Path, name: str, count: int) -> None:
    """Makes a workdir whose experiment is stopped by a signal at an operation on the logs."""
    ended = attempt.train(workdir, plan={"action": name, "folder": str(workdir), "part": LOG, "count": count})
    check_stop(ended, name)
    if ended.code == 0 or not (workdir / STUDENT / "checkpoints" / "2").exists():
        sys.exit(f"benchmarks.faults: SIG{name} has not stopped the student:\n{ended.output[-3000:]}")


def make_inputs(folder: Path) -> None:
    """Writes the features of six synthetic videos as .npy files, and their annotations as CSV."""
    _, splits = synthetic.make(num_train=6, num_test=0, length=(20, 40))
    lines = ["video,label,start,end,duration"]
    for video in splits["train"]:
        for modality in ("rgb", "flow"):
            (folder / modality).mkdir(parents=True, exist_ok=True)
            np.save(folder / modality / f"{video.id}.npy", video.features[modality])
        for number, start, end in video.segments:
            lines.append(f"{video.id},{synthetic.CLASSES[int(number)]},{start},{end},{video.duration}")
    (folder / "annotations.csv").write_text("\n".join(lines) + "\n")


def _require(ended: Ended) -> None:
    if ended.code:
        sys.exit(f"benchmarks.faults: the experiment fails without a fault:\n{ended.output[-3000:]}")


def try_case(world: World, folder: Path, kind: str, number: int, seed: int) -> str | None:
    """Makes one attempt; returns None if it survived, else a line with what was lost and how to repeat it."""
    attempt, cases = FAULTS[kind]
    case = cases(world)[number]
    own = folder / f"{kind}_{number}"
    own.mkdir()
    try:
        attempt(Attempt(world, own, random.Random(f"{kind} {number} {seed}")), case)
    except Lost as error:
        what = " ".join([kind, *map(str, case)]) if isinstance(case, tuple) else kind
        return f"{what}: {error}; repeat: --only={kind} --case={number} --seed={seed}"
    shutil.rmtree(own)
    return None


def main(arguments) -> tuple[list[dict], dict]:
    """Tries the chosen cases; returns a row for each kind, and the facts."""
    kinds, seed = arguments.only or list(FAULTS), arguments.seed
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary).absolute()
        world, rows, lost = make_world(folder), [], []
        chosen = [(kind, number) for kind in kinds for number in choose(kind, world, arguments)]
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            tried = [pool.submit(try_case, world, folder, kind, number, seed) for kind, number in chosen]
            try:
                for done in concurrent.futures.as_completed(tried):
                    if line := done.result():
                        print(f"lost: {line}", file=sys.stderr, flush=True)
            finally:
                pool.shutdown(cancel_futures=True)
        for kind in kinds:
            results = [done.result() for (of, _), done in zip(chosen, tried, strict=True) if of == kind]
            lost += [line for line in results if line]
            count = sum(map(bool, results))
            rows.append({"kind": kind, "tried": len(results), "survived": len(results) - count, "lost": count})
    total = {column: sum(row[column] for row in rows) for column in ("tried", "survived", "lost")}
    facts = {"seed": seed, "undisturbed s": world.seconds}
    return [*rows, {"kind": "all", **total}], facts | {f"lost {i}": line for i, line in enumerate(lost, 1)}


def choose(kind: str, world: World, arguments) -> Sequence[int]:
    """The numbers of the cases to try: one, a random few, or all."""
    if arguments.case is not None:
        return [arguments.case]
    count = len(FAULTS[kind][1](world))
    if arguments.size == "large":
        return range(count)
    return random.Random(f"{kind} {arguments.seed}").sample(range(count), min(count, arguments.tries))


def run(_) -> None:
    rows, facts = main(flags.FLAGS)
    measuring.report("faults", rows, facts, flags.FLAGS.output)
    sys.exit(1 if rows[-1]["lost"] else 0)


if __name__ == "__main__":
    flags.DEFINE_enum("size", "small", ["small", "large"], "Random cases of each kind, or all cases.")
    flags.DEFINE_integer("tries", 1, "With --size=small: number of random cases of each kind.", 1)
    flags.DEFINE_multi_enum("only", None, list(FAULTS), "Kinds to try; may be repeated.")
    flags.DEFINE_integer("case", None, "With --only: the number of the one case to try.", 0)
    flags.DEFINE_integer("seed", 0, "Of the random moments, bytes and choices.")
    flags.DEFINE_string("folder", None, "A new folder for all files; those of lost attempts are kept there.")
    flags.DEFINE_integer("jobs", num_processors(), "Attempts at once.", 1)
    flags.DEFINE_string("output", None, "Also write the table, the machine and the versions to this JSON file.")
    logging.set_verbosity(logging.ERROR)
    app.run(run)
