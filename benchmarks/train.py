"""Epochs of training and distillation, against two PyTorch peers that compute the same, alternately in one process.

    python -m benchmarks.train [--epochs=5] [--output=FILE.json]      # seconds, snippets/s, share of the floor, memory
    python -m benchmarks.train --runs=5 [--output=FILE.json]          # five seeds in one program, against one alone
    python -m benchmarks.train --sweep [--output=FILE.json]           # time of a distillation step against T, B and H

24 videos of TSU-like lengths (37 k snippets), 1024-d RGB and flow, batch 4: an epoch of a flow 'teacher' and one of its
RGB 'student' with three terms. Our side does what `kd_jax.training.run` does: resident videos, an epoch as one compiled
scan, the teacher's outputs computed once. The floor is the matrix products of the real snippets (no padding, no frozen
teacher) at the speed of a large float32 product. Peak memory is measured in separate processes, above imports and data,
twice: first our side compiles, then it finds its programs in JAX's cache. DataLoader's workers do not count.
"""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import measuring, workloads
from benchmarks.workloads import CLASSES, WEIGHTS
from kd_jax.data.batches import attach_teacher
from kd_jax.inference.predict import run_detector
from kd_jax.training.population import Population
from kd_jax.training.state import Optimization, create_train_state
from kd_jax.training.step import Program, Settings
from kd_jax.training.terms import choose_term

BUCKETS, LAYERS = 4, 5


class OurSide:
    """What `kd_jax.training.run` does, without validation and checkpoints; one program trains `runs` seeds."""

    def __init__(self, videos: list[dict], hidden: int, batch_size: int, dtype: str, runs: int = 1):
        self.model, self.runs, self.count = workloads.detector(hidden, dtype), runs, 0
        self.training = SimpleNamespace(batch_size=batch_size, length_buckets=BUCKETS, data="resident")
        optimization = Optimization(plateau_patience=8, epochs=140, steps_per_epoch=-(-len(videos) // batch_size))
        terms = {"teacher": (), "student": tuple(map(choose_term, WEIGHTS))}
        self.programs = {kind: Program(self.model, "dense", chosen, optimization) for kind, chosen in terms.items()}
        self.keys = jax.vmap(jax.random.key)(jnp.arange(runs))
        optimizer, width = optimization.make(), videos[0]["rgb"].shape[1]
        create = jax.jit(jax.vmap(lambda key: create_train_state(self.model, optimizer, key, width)))
        self.states = {kind: create(self.keys) for kind in ("teacher", "student")}
        flow, rgb = (workloads.examples_of(videos, modality) for modality in ("flow", "rgb"))
        teacher = jax.tree.map(lambda x: x[0], {"params": self.states["teacher"].params})
        started = time.perf_counter()
        outputs = run_detector(self.model, teacher, flow, batch_size=8, num_buckets=BUCKETS)
        self.teacher_once = time.perf_counter() - started
        students = [attach_teacher(rgb, outputs)] * runs  # one set of examples per run, as if their teachers differed
        self.sets, self.kind, self.population = {"teacher": [flow], "student": students}, None, None

    def epoch(self, kind: str) -> None:
        """One epoch of the 'teacher' or the 'student', finished when it returns; the first of a kind uploads."""
        if self.kind != kind:  # a run holds only its own modality on the device
            self.kind, self.population, sets = kind, None, self.sets[kind]
            weights = {"task": 1.0, **(WEIGHTS if kind == "student" else {})}
            weights = {name: np.full(self.runs, weight, np.float32) for name, weight in weights.items()}
            settings = Settings(weights, np.full(self.runs, 2e-4, np.float32), self.keys)
            seeds, set_of_run = list(range(self.runs)), [seed % len(sets) for seed in range(self.runs)]
            of_kind = sets, set_of_run, seeds, self.states[kind], settings
            self.population = Population(self.programs[kind], self.training, *of_kind)
        self.count += 1
        self.population.run_epoch(self.count)
        jax.block_until_ready(self.population.states)


def sides() -> dict:
    if not measuring.with_peers():
        return {"kd_jax": OurSide}
    from benchmarks import peers  # here, because it needs PyTorch

    return {**peers.SIDES, "kd_jax": OurSide}


def step_flops(kind: str, snippets: int, width: int, hidden: int) -> float:
    """Counts the multiplications and additions of the matrix products of forward and backward pass over `snippets`.

    The input needs no gradient. A dilated convolution needs two products instead of three (Winograd). A correlation
    needs one, and its gradient two.
    """
    inner = LAYERS * (2 + 1) * hidden**2 + hidden * CLASSES
    correlation = (3 + 1) * hidden**2 if kind == "student" else 0  # student with gradient, teacher without
    return 2.0 * snippets * (2 * width * hidden + 3 * inner + correlation)


def measure_memory(side: str, videos: list[dict], **options) -> dict:
    """Returns the peak memory of a distillation epoch and its preparation, above imports and data, in GB."""
    make = sides()[side]
    return measuring.peak_memory(lambda: make(videos, **options).epoch("student"))[1]


def side_by_side(runs: int, epochs: int, videos: list[dict], **options) -> list[dict]:
    """Returns rows for an epoch of one student and of `runs` students in one program (as on a GPU or TPU)."""
    populations = {count: OurSide(videos, **options, runs=count) for count in (1, runs)}
    medians, first = measuring.alternate({n: lambda p=p: p.epoch("student") for n, p in populations.items()}, epochs)
    rows = [{"runs": count, "seconds": median, "seconds per run": median / count} for count, median in medians.items()]
    alone = medians[1]
    return [{**r, "share of one alone": r["seconds per run"] / alone, "first epoch s": first[r["runs"]]} for r in rows]


def compare(epochs: int, measure: bool, videos: list[dict], **options) -> tuple[list[dict], dict]:
    """Returns one row for each kind of epoch and side, and facts of the run; `measure`: peak memory too."""
    width, snippets = videos[0]["rgb"].shape[1], sum(len(video["labels"]) for video in videos)
    memory = {side: measuring.memory_twice("benchmarks.train", side) if measure else {} for side in sides()}
    running = {name: make(videos, **options) for name, make in sides().items()}
    rows, peaks = [], measuring.peaks()
    for kind in ("teacher", "student"):
        calls = {name: lambda side=side, kind=kind: side.epoch(kind) for name, side in running.items()}
        medians, first = measuring.alternate(calls, epochs)
        floor = step_flops(kind, snippets, width, options["hidden"]) / peaks["flops"]
        for name, median in medians.items():
            row = {"epoch": kind, "side": name, "seconds": median, "times kd_jax": median / medians["kd_jax"]}
            row |= {"snippets/s": snippets / median, "floor/time": floor / median, "first epoch s": first[name]}
            rows.append({**row, **(memory[name] if kind == "student" else {})})
    facts = {"snippets": snippets, "teacher outputs s": running["kd_jax"].teacher_once}
    return rows, {**facts, **options, **peaks, "peers": measuring.with_peers()}


def sweep(axis: str, sizes: list[int], repeats: int, *, width: int, dtype: str, terms: tuple, **shape) -> list[dict]:
    """Times a distillation step with these terms, with `axis` of `shape` (videos, length, hidden) at each size."""
    rows, name = [], axis if terms == tuple(WEIGHTS) else f"{axis}, {' and '.join(terms)}"
    for size in sizes:
        videos, length, hidden = ({**shape, axis: size}[name] for name in ("videos", "length", "hidden"))
        batch, _, teacher = workloads.make_batch(videos, length, width, hidden)
        weights = {term: WEIGHTS.get(term, 1.0) for term in terms}
        run, _ = workloads.training_step(workloads.detector(hidden, dtype), batch, (teacher,), weights)
        median, _ = measuring.alternate({"step": run}, repeats)
        flops = step_flops("student", videos * length, width, hidden)
        rows.append({"sweep": name, "size": size, "step s": median["step"], "FLOP/s": flops / median["step"]})
    rows[-1]["exponent"] = measuring.exponent(sizes, [row["step s"] for row in rows])
    return rows


def run_sweeps(arguments) -> tuple[list[dict], dict]:
    rows, fixed = [], {"width": arguments.width, "dtype": arguments.dtype}
    shape = {"videos": 1, "length": 1550, "hidden": arguments.hidden}
    others = {"videos": (1, 2, 4, 8), "hidden": (64, 128, 256, 512)} if not arguments.terms else {}
    for axis, sizes in {"length": list(map(int, arguments.lengths)), **others}.items():
        for terms in [(term,) for term in arguments.terms] or [tuple(WEIGHTS)]:
            rows += sweep(axis, sizes, arguments.epochs, terms=terms, **fixed, **shape)
    return rows, {**fixed, **shape, **measuring.peaks()}


def main(arguments, _):
    options = {"hidden": arguments.hidden, "batch_size": arguments.batch, "dtype": arguments.dtype}
    if arguments.sweep:
        return "train_sweep", *run_sweeps(arguments)
    videos = workloads.make_videos(arguments.videos, arguments.snippets, arguments.width)
    if arguments.memory_of:
        return measure_memory(arguments.memory_of, videos, **options)
    if arguments.runs:
        return "train_side_by_side", side_by_side(arguments.runs, arguments.epochs, videos, **options), options
    return "train", *compare(arguments.epochs, arguments.memory, videos, **options)


if __name__ == "__main__":
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Precision of the filters, on every side.")
    flags.DEFINE_integer("runs", 0, "Compare this number of students in one program with one student.", 0)
    flags.DEFINE_bool("sweep", False, "Time a step for several T, B and H, instead of epochs against the peers.")
    flags.DEFINE_list("lengths", ["500", "1000", "2000", "4000", "8000"], "With --sweep: the values of T.")
    flags.DEFINE_list("terms", [], "With --sweep: T alone, with each of these terms in place of the usual three.")
    flags.DEFINE_bool("memory", True, "Also measure the peak memory of each side.")
    flags.DEFINE_string("memory_of", None, "Internal: only print the peak memory of this side.")
    measuring.run(main, epochs=5, videos=24, snippets=37_000, batch=4, width=1024, hidden=256)
