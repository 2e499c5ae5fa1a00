"""Checks that the files in a workdir are whole and belong together; prints a table, and a remedy for each problem.

    kd-jax verify workdir/demo
    kd-jax verify workdir/demo --replay

--replay also trains all runs again, in a temporary folder, and compares parameters and predictions: bit for bit on a
CPU, and up to --tolerance on other devices. The exit code is 0 only if everything is whole and equal.
"""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kd_jax import config as schema
from kd_jax import interrupts, runtime
from kd_jax.analysis.finished import open_videos
from kd_jax.command_line import Parser, any_path, between, disk_path
from kd_jax.data.source import Source
from kd_jax.evaluation.scoring import Scoring
from kd_jax.files import DamagedFileError, checked_path, require_json
from kd_jax.training import clock, experiment, provenance
from kd_jax.training.checkpoints import check_checkpoint, load_run, saved_epochs
from kd_jax.training.logs import SELECTION, read_log
from kd_jax.training.plan import prepare, run_directory, seeds
from kd_jax.training.results_file import read_table
from kd_jax.training.run_config import require_run_results
from kd_jax.training.scores import PREDICTIONS, read_predictions, score_predictions
from kd_jax.training.table import markdown, tabulate
from kd_jax.training.teachers import fingerprint

OK, BAD, UNKNOWN = "ok", "BAD", "–"
AGAIN = "run its experiment again"
TOLERANCE = 0.05  # on other devices than a CPU: largest difference of a parameter or logit that counts as equal


def parser() -> Parser:
    """The options of this command."""
    options = Parser("kd_jax.verify", __doc__)
    options.add_argument("workdir", type=any_path, metavar="WORKDIR", help="Folder of an experiment.")
    options.add_argument("--data_dir", type=disk_path, help="Folder of the records, if they have moved.")
    options.add_argument("--replay", action="store_true", help="Train all runs again and compare.")
    what = f"With --replay: largest difference that counts as equal; default: 0 on a CPU, {TOLERANCE} elsewhere."
    options.add_argument("--tolerance", type=between(0, math.inf), help=what)
    return options


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of one seed of a run."""

    workdir: epath.Path
    directory: epath.Path
    source: Source | None = None  # the videos of the experiment, if they can be read

    @property
    def name(self) -> str:
        return str(self.directory.relative_to(self.workdir))

    @functools.cached_property
    def config(self) -> dict:
        return require_json(
            self.directory / "config.json", f"restore it from a copy, or delete {self.directory} and {AGAIN}"
        )

    @functools.cached_property
    def results(self) -> dict:
        return require_run_results(self.directory, f"{AGAIN} to complete it")

    @functools.cached_property
    def provenance(self) -> dict:
        """What `provenance.finish` wrote; {} for a run of an older version."""
        return provenance.read(self.directory, "delete it; only the history of the run is lost")

    def check_written(self, name: str, remedy: str) -> None:
        """Raises DamagedFileError if a file is missing or not what the run wrote."""
        provenance.check_file(self.directory, name, self.provenance.get("files", {}), remedy)


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_json(run: RunFolder) -> bool:
    name, *of_seed = run.name.split("/")
    is_own = run.config["run"] == name and (not of_seed or of_seed[0] == f"seed_{run.config['seed']}")
    found = f"of the run {run.config['run']} with seed {run.config['seed']}"
    _require(is_own, f"{run.directory / 'config.json'} is that {found}; move the folder to its own place")
    _require(
        {"best_epoch", "scoring"} <= run.results.keys(),
        f"{run.directory / 'results.json'} is not that of a run; {AGAIN}",
    )
    if run.source:
        of_run, remedy = run.config["dataset"]["fingerprint"], "move it to a workdir of its own"
        others = f"{run.directory} was trained on other videos than the rest of the workdir; {remedy}"
        _require(of_run == run.source.fingerprint, others)
    return isinstance(run.provenance, dict)  # reading it finds damage


def _check_checkpoints(run: RunFolder) -> bool:
    saved, epochs = saved_epochs(run.directory), run.config["training"]["epochs"]
    remedy = f"delete {run.directory / 'results.json'}, and {AGAIN}"
    _require(epochs in saved, f"{run.directory} has no checkpoint of its last epoch {epochs}, but of {saved}; {remedy}")
    for epoch in saved:
        try:
            check_checkpoint(run.directory, epoch)
        except DamagedFileError as error:
            what_to_do = f"delete it, {remedy}" if epoch == epochs else "no result needs it, so delete it"
            raise ValueError(f"{error}; {what_to_do}") from None
    load_run(run.directory)
    return True


def _check_predictions(run: RunFolder) -> bool:
    for split, name in PREDICTIONS.items():
        tables = read_predictions(run.directory, split)
        path, remedy = run.directory / name, f"{AGAIN}, which predicts again"
        width = run.config["model"]["num_outputs"]
        for video, table in tables.items():
            whole = table.ndim == 2 and table.shape[1] == width and np.isfinite(table).all()
            _require(whole, f"{path}: {video} is not a table of finite logits [T, {width}]; {remedy}")
        if run.source:
            videos = run.source.videos(split, [run.config["modality"]])
            wanted, found = {v.id: v.num_snippets for v in videos}, {v: len(table) for v, table in tables.items()}
            _require(wanted == found, f"{path} holds other videos or lengths than the data set; {remedy}")
    return run.source is not None


def _check_scores(run: RunFolder) -> bool:
    path, best = run.directory / "results.json", run.results["best_epoch"]
    entries = read_log(run.directory / "metrics.jsonl")
    if len(entries) == run.config["training"]["epochs"] and run.config.get("task_weight", 1.0):
        chosen = _best_epoch([entry.get(f"validation/{SELECTION}", math.nan) for entry in entries])
        _require(best == chosen, f"{path} names the best epoch {best}, metrics.jsonl {chosen}; train the run anew")
    if not run.source:
        return False
    scoring = Scoring.from_json(run.results["scoring"])
    scores = score_predictions([run.directory], run.source, scoring)
    known = {split: run.results[split] for split in ("validation", "test") if split in run.results}
    _require(_same(scores, known), f"{path} has other scores than its predictions; delete it and {AGAIN}")
    return True


def _best_epoch(scores: Sequence[float]) -> int:
    """The epoch that `training.run.keep_better` keeps."""
    best, epoch = np.float32(-np.inf), 0
    for number, score in enumerate(np.array(scores, np.float32), 1):
        if not score <= best:
            best, epoch = score, number
    return epoch


def _check_log(run: RunFolder) -> bool:
    path, epochs = run.directory / "metrics.jsonl", run.config["training"]["epochs"]
    remedy = f"the results do not need it; delete {run.directory} and {AGAIN} to have its curves again"
    run.check_written(path.name, remedy)
    found = [entry["epoch"] for entry in read_log(path)] if len(path.read_bytes().splitlines()) == epochs else []
    _require(found == list(range(1, epochs + 1)), f"{path} does not have the epochs 1 to {epochs} once each; {remedy}")
    return True


def _check_teachers(run: RunFolder) -> bool:
    known, folders = run.provenance.get("teachers", {}), _teacher_folders(run)
    for teacher, of_teacher in folders.items():
        for index, (folder, stated) in enumerate(of_teacher):
            recorded = known[teacher][index] if teacher in known else stated
            changed = f"{folder}, a teacher of {run.directory}, is not the one that it was trained with"
            same = recorded is None or fingerprint(folder) == recorded
            _require(same, f"{changed}; restore it, or delete {run.directory} and {AGAIN}")
    return bool(folders)


def _check_others(run: RunFolder) -> bool:
    remedy = f"results and parameters are whole; restore it from a copy, or delete {run.directory} and {AGAIN}"
    for name in run.provenance.get("files", {}):
        run.check_written(name, remedy)
    return "files" in run.provenance


def _teacher_folders(run: RunFolder) -> dict[str, list[tuple[epath.Path, str | None]]]:
    """{teacher: its folders, with the fingerprints that config.json states of those from outside the experiment}."""
    seed, found = run.name.partition("/")[2], {}
    for teacher, entry in run.config["teachers"].items():
        if given := entry.get("members") or ([entry] if "folder" in entry else []):
            found[teacher] = [(epath.Path(member["folder"]), member["fingerprint"]) for member in given]
        else:
            members = [teacher] if isinstance(entry.get("modality"), str) else list(entry)
            found[teacher] = [(run.workdir / member / seed, None) for member in members]
    return found


CHECKS: dict[str, Callable[[RunFolder], bool]] = {  # each returns False if it could not compare everything
    "json": _check_json,
    "checkpoints": _check_checkpoints,
    "logits": _check_predictions,
    "scores": _check_scores,
    "log": _check_log,
    "teachers": _check_teachers,
    "others": _check_others,  # files that nothing above reads
}


def _same(one: object, other: object, precision: float = 1e-9) -> bool:
    """Whether two JSON values are equal, up to the rounding of another machine."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key], precision) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(*pair, precision) for pair in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=precision, abs_tol=1e-9)
    return one == other


def check_run(run: RunFolder) -> tuple[dict[str, str], list[str]]:
    """Checks the files of a run; returns {check: OK, BAD or UNKNOWN} and the problems, each with a remedy."""
    cells, problems = dict.fromkeys(CHECKS, UNKNOWN), list[str]()
    for name, check in CHECKS.items():
        if name == "others" and problems:
            break
        try:
            cells[name] = OK if check(run) else UNKNOWN
            continue
        except (ValueError, OSError) as error:
            problems.append(str(error))
        except (KeyError, TypeError, AttributeError) as error:
            what = f"{run.directory / 'config.json'} or results.json lacks a field or has another ({error!r})"
            problems.append(f"{what}; restore them from a copy, or delete {run.directory} and {AGAIN}")
        cells[name] = BAD
        if name == "json":
            break
    return cells, problems


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is known about the experiment of a workdir."""

    workdir: epath.Path
    results: dict | None  # the content of results.json; None if it is missing or damaged
    config: ConfigDict | None  # None if it is not known, as in a workdir of an older version
    source: Source | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def open_workdir(workdir: epath.Path, data_dir: str | None) -> Experiment:
    """Reads what is known about the experiment of a workdir; FileNotFoundError if it holds no run."""
    folders = _run_folders(workdir)
    if not folders:
        raise FileNotFoundError(
            f"{workdir} holds no run of kd_jax; give the workdir of an experiment, e.g. workdir/demo"
        )
    results, config, source, problems, notes = None, None, None, [], []
    try:
        clock.read_starts(workdir, "delete it; only the times of earlier starts are lost")
    except DamagedFileError as error:
        problems.append(str(error))
    try:
        results = read_table(workdir, f"{AGAIN}, which writes it")
        if results is None:
            raise DamagedFileError(f"{workdir / 'results.json'} is missing, or none of an experiment; {AGAIN}")
        if "config" in results:
            config = schema.from_json(results["config"])
        if not _has_table(results):
            notes.append(f"{workdir / 'results.json'} is of an older version, so the table is not compared")
    except (ValueError, OSError) as error:
        problems.append(str(error))
    except (KeyError, TypeError, AttributeError) as error:
        notes.append(f"the config in {workdir / 'results.json'} is of another version ({error})")
    missing = {run_directory(config, workdir, *run) for run in _seeded(config)} - {*folders} if config else set()
    problems += [f"{folder} is missing; {AGAIN} to complete it" for folder in sorted(missing)]
    configs = []
    for folder in folders:
        try:
            configs.append(RunFolder(workdir, folder).config)
        except ValueError:
            continue  # `check_run` reports it
    try:
        source = open_videos(workdir, results or {"dataset": ""}, configs, data_dir, streamed=True) if configs else None
    except FileNotFoundError as error:
        notes.append(f"{error}; scores and lengths are not compared")
    except (ValueError, KeyError, TypeError) as error:
        problems.append(str(error))
    return Experiment(workdir, results, config, source, tuple(problems), tuple(notes))


def _seeded(config: ConfigDict) -> list[tuple[str, int]]:
    """Every run with every seed."""
    return [(name, seed) for name in config.runs for seed in seeds(config)]


def _run_folders(workdir: epath.Path) -> list[epath.Path]:
    """The folders of runs in a workdir, with those of further seeds."""
    own = {"config.json", "results.json", "checkpoints", provenance.FILE}
    found = [folder for folder in workdir.iterdir() if folder.is_dir()] if workdir.is_dir() else []
    found += [seed for folder in found for seed in folder.iterdir() if seed.name.startswith("seed_") and seed.is_dir()]
    return sorted(folder for folder in found if any((folder / name).exists() for name in own))


def _has_table(results: dict) -> bool:
    """Whether results.json and results.md are of this version, so that they can be made of the runs and compared."""
    return "config" in results and all({"gain_interval", "filter"} <= row.keys() for row in results["rows"])


def check_table(found: Experiment) -> list[str]:
    """Compares results.json and results.md of a workdir with the results of its runs; returns the problems."""
    problems, path, remedy = [], found.workdir / "results.md", f"{AGAIN}, which writes it"
    if found.results is None:
        return []
    try:
        if not _has_table(found.results):
            return []
        if not path.exists() or path.read_text() != markdown(found.results):
            problems.append(f"{path} is missing, or not the table of results.json; {remedy}")
        if found.config and found.source:
            scores = _scores_of_runs(found, found.config, found.source)
            table = json.loads(json.dumps(tabulate(found.config, found.source, scores)))
            if not _same(table["rows"], found.results["rows"], precision=1.1e-7):  # a unit of the eighth digit
                problems.append(f"{found.workdir / 'results.json'} has other scores than the runs; {remedy}")
    except (ValueError, OSError, KeyError, TypeError, AttributeError, IndexError) as error:
        problems.append(f"the table of {found.workdir} cannot be made of its runs ({error}); {remedy}")
    return problems


def _scores_of_runs(found: Experiment, config: ConfigDict, source: Source) -> dict[str, list[dict]]:
    """{run or fusion: results of each seed}, for `tabulate`."""

    def folders(names: Sequence[str], seed: int) -> list[epath.Path]:
        return [run_directory(config, found.workdir, name, seed) for name in names]

    scores = {
        name: [require_run_results(folders([name], seed)[0], f"{AGAIN} to complete it") for seed in seeds(config)]
        for name in config.runs
    }
    scoring = Scoring.from_json(next(iter(scores.values()))[0]["scoring"])
    for name, streams in config.fusions.items():
        scores[name] = [score_predictions(folders(streams, seed), source, scoring) for seed in seeds(config)]
    return scores


def verify(workdir: epath.Path, data_dir: str | None = None) -> tuple[Experiment, list[str]]:
    """Checks a workdir, prints a table, and returns what is known about its experiment and all problems."""
    found = open_workdir(workdir, data_dir)
    folders = [RunFolder(workdir, folder, found.source) for folder in _run_folders(workdir)]
    checked = {run.name: check_run(run) for run in folders}
    of_runs = [problem for _, of_run in checked.values() for problem in of_run]
    width = min(max(map(len, ["run", *checked])), 22)  # a line has at most 80 characters
    print("  ".join([f"{'run':{width}}", *CHECKS]))
    for name, (cells, _) in checked.items():
        shown = name if len(name) <= width else f"…{name[1 - width :]}"
        print("  ".join([f"{shown:{width}}", *(f"{cell:{len(title)}}" for title, cell in cells.items())]).rstrip())
    older = [run.name for run in folders if not (run.directory / provenance.FILE).exists()]
    missing = f"no {provenance.FILE}, as in older versions, so the files of these runs are not compared: "
    for note in (*found.notes, *([missing + ", ".join(older)] if older else [])):
        print(f"note: {note}")
    return found, list(dict.fromkeys([*found.problems, *of_runs, *([] if of_runs else check_table(found))]))


def replay(found: Experiment, data_dir: str | None, tolerance: float | None) -> list[str]:
    """Trains the runs of an experiment again in a temporary folder; prints and returns what differs.

    Raises ValueError if the workdir does not hold its config.
    """
    if found.results is None or found.config is None:
        raise ValueError(f"{found.workdir} does not hold the config of its experiment; {AGAIN}, which stores it")
    config, environment, now = found.config, found.results.get("environment", {}), runtime.environment()
    if data_dir:
        config.dataset.data_dir = data_dir
    on_cpu = all(devices.get("devices", "").endswith(" cpu") for devices in (environment, now))
    tolerance = tolerance if tolerance is not None else 0.0 if on_cpu else TOLERANCE
    if others := [
        f"{name} {environment.get(name)}, now {now[name]}" for name in now if now[name] != environment.get(name)
    ]:
        print(f"note: trained with {'; '.join(others)}")
    different = []
    with interrupts.temporary_folder(prefix="kd_jax_replay_") as folder:
        again = epath.Path(folder)
        experiment.perform(config, again, prepare(config, again))
        for name, seed in _seeded(config):
            old, new = (run_directory(config, workdir, name, seed) for workdir in (found.workdir, again))
            params, logits = _differences(old, new)
            equal = max(params, logits) <= tolerance
            size = "" if params == logits == 0 else f"; parameters by {params:.3g}, logits by {logits:.3g}"
            print(f"{name}, seed {seed}: {'equal' if equal else 'different'}{size}")
            different += [] if equal else [f"{old} differs from its replay; compare the versions in results.json"]
    return different


def _differences(old: epath.Path, new: epath.Path) -> tuple[float, float]:
    """The largest differences of the parameters of the best epoch and of the logits of two runs."""
    params = [{str(path): x for path, x in jax.tree.leaves_with_path(load_run(run).variables)} for run in (old, new)]
    tables = [{split: read_predictions(run, split) for split in PREDICTIONS} for run in (old, new)]
    logits = [{(split, video): x for split, of in both.items() for video, x in of.items()} for both in tables]
    return _largest(*params), _largest(*logits)


def _largest(old: Mapping, new: Mapping) -> float:
    """The largest difference of arrays of two dicts; infinite if keys or shapes differ."""
    if {key: x.shape for key, x in old.items()} != {key: x.shape for key, x in new.items()}:
        return math.inf
    differences = [np.abs(np.asarray(old[key], np.float64) - np.asarray(new[key])) for key in old]
    return max((float(difference.max(initial=0)) for difference in differences), default=0.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`; None reads those of the program."""
    given = parser().parse_args(argv)
    runtime.start()
    try:
        found, problems = verify(epath.Path(checked_path(given.workdir)), given.data_dir)
        if given.replay and problems:
            print("note: nothing was trained again, because there are problems")
        elif given.replay:
            problems = replay(found, given.data_dir, given.tolerance)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"kd_jax.verify: {error}")
    if problems:
        sys.exit("\n".join([f"kd_jax.verify: {len(problems)} problem{'s'[: len(problems) != 1]}:", *problems]))
    print("All files are intact and consistent.")


if __name__ == "__main__":
    interrupts.run("kd_jax.verify", main)
