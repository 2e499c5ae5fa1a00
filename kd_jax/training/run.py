"""Runs: features → trained detectors, their predictions and scores, each in its own folder.

`train_runs` serves teachers, plain students and distilled students. The folder of a run holds config.json (what is
trained), checkpoints/, metrics.jsonl and TensorBoard events (one entry an epoch), predictions_{validation,test}.npz
(logits), provenance.json (see `provenance`) and results.json. The last is written at the end, so its presence means
that the run has finished.
"""

import contextlib
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from clu import parameter_overview
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from kd_jax import runtime, sharding
from kd_jax.data.batches import Example, make_examples
from kd_jax.data.source import Source
from kd_jax.evaluation.scoring import score_split
from kd_jax.files import DamagedFileError, write_arrays, write_json
from kd_jax.inference.predict import SplitPredictor
from kd_jax.training import divergence, provenance
from kd_jax.training.checkpoints import (
    Checkpoints,
    DamagedCheckpointError,
    load_run,
    new_best,
    read_checkpoint,
    saved_epochs,
)
from kd_jax.training.diagnosis import describe_early_end, still_improving
from kd_jax.training.logs import SELECTION, Log, Progress, epoch_record, summary
from kd_jax.training.parts import Part, drop_parts, read_part, save_part, saved_parts
from kd_jax.training.plan import make_program
from kd_jax.training.population import Population, maps_runs
from kd_jax.training.run_config import require_run_results
from kd_jax.training.scores import PREDICTIONS, VALIDATION, read_results, scoring_of, write_results
from kd_jax.training.session import Session, StopRequested
from kd_jax.training.state import TrainState, evaluated_params, model_params
from kd_jax.training.step import Program, Settings, jitted_init
from kd_jax.training.teachers import Teacher, attach_teachers, fingerprint
from kd_jax.training.terms import TERMS

PAUSE = 2.5  # seconds after which the processes agree on whether to stop


@dataclass(frozen=True, eq=False)
class Run:
    """One training: a run of the config with one seed."""

    name: str  # the key of config.runs
    seed: int  # of initialisation, order, dropout and negatives
    directory: epath.Path
    manifest: Mapping  # what is trained, see `plan.make_manifest`; becomes config.json
    teachers: tuple[Teacher, ...] = ()  # in the order of the manifest
    starts_from: epath.Path | None = None  # the folder of the run whose parameters this one begins with

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def weights(self) -> dict[str, float]:
        """{'task' or term: weight} of the parts of the loss with a weight other than 0."""
        task = self.manifest.get("task_weight", 1.0)
        return {**({"task": task} if task else {}), **self.manifest["weights"]}


def train_runs(
    config,
    runs: Sequence[Run],
    source: Source,
    session: Session | None = None,
    *,
    show_parameters: bool = False,
    profile: bool = False,
) -> list[dict]:
    """Trains or continues runs of one program (see `experiment.groups`), and returns the content of each results.json.

    Args:
      config, runs, source: the experiment's config, its runs of this program, and the videos.
      session: of the program; None in a notebook.
      show_parameters: log the table of parameters of the first run, not only their number.
      profile: write a trace of a few steps into the folder of the first run that trains.

    Raises:
      FloatingPointError: if the loss or the parameters of a run stop being finite. The other runs are finished first.
    """
    scoring, waiting = scoring_of(config, source.info.head), []
    for run in runs:
        results = read_results(run.directory)
        if results is None:
            waiting.append(run)
            continue
        if results.get("scoring") != scoring.as_json() and runtime.is_first():
            results = write_results(run.directory, results["best_epoch"], source, scoring)
        logging.info("%s: finished before, %s", run.title, summary(results))
    diverged = {}
    if waiting:
        first = waiting[0].directory
        shown, profiled = first if show_parameters else None, first if profile else None
        diverged = _train_all(_make_job(config, runs, source, session or Session(), shown, profiled), waiting)
    elif profile:
        logging.warning("%s: no trace is written, because nothing is trained; use --noresume", runs[0].title)
    runtime.wait_for_all("results are written")
    if diverged:
        raise FloatingPointError("; ".join(diverged.values()))
    return [require_run_results(run.directory, "the same command continues") for run in runs]


@dataclass(frozen=True)
class _Job:
    """What the runs of one `train_runs` share."""

    config: ConfigDict
    source: Source
    session: Session
    program: Program
    examples: Sequence[Example]  # the training videos, without teachers
    forward: Mapping  # how videos are batched for predictions
    shown: epath.Path | None  # the folder of the run whose table of parameters is logged
    profile: epath.Path | None  # the folder of the run that is traced

    @property
    def steps_per_epoch(self) -> int:
        return self.program.optimization.steps_per_epoch


def _make_job(
    config,
    runs: Sequence[Run],
    source: Source,
    session: Session,
    shown: epath.Path | None,
    profile: epath.Path | None,
) -> _Job:
    """What the runs share. Its program has the terms of finished runs, too, so that a resumed run keeps its program."""
    modality = runs[0].manifest["modality"]
    examples = make_examples(source.videos("train", [modality]), modality, len(source.info.classes))
    num_snippets = sum(len(example.features) for example in examples)
    program = make_program(config.training, [run.manifest for run in runs], len(examples), num_snippets)
    forward = {"batch_size": config.evaluation.batch_size, "num_buckets": config.training.length_buckets}
    return _Job(config, source, session, program, examples, forward, shown, profile)


class _Diverged(Exception):
    """The loss or the parameters of some runs are no longer finite; the argument is {run: message}."""


def _train_all(job: _Job, runs: Sequence[Run], damaged: frozenset[epath.Path] = frozenset()) -> dict[Run, str]:
    """Trains all runs, together where they can be, and returns {run: message} of those that diverged.

    Together they need enough memory, and a checkpoint of the same epoch or none. Otherwise they are split in two. On a
    CPU they are trained one by one. Checkpoints that were found to be `damaged` are passed over.
    """
    if not runs:
        return {}
    saved = [saved_epochs(run.directory, damaged) for run in runs]
    common = set(saved[0]).intersection(*saved[1:])
    done = max(common, default=0)
    parts = [saved_parts(run.directory, job.steps_per_epoch, damaged) for run in runs]
    stopped = max((part for part in parts[0].intersection(*parts[1:]) if part[0] > done), default=None)
    if (common or stopped or not any(saved)) and (len(runs) == 1 or maps_runs()):
        try:
            if _train(job, runs, done, stopped):
                return {}
        except DamagedCheckpointError as error:
            logging.warning("%s; it is passed over", error)
            traceback.clear_frames(error.__traceback__)  # which hold the arrays of the population
            return _train_all(job, runs, damaged | {error.folder})
        except _Diverged as error:
            (reasons,) = error.args
            logging.error("%s", "; ".join(reasons.values()))
            return reasons | _train_all(job, [run for run in runs if run not in reasons], damaged)
    half = len(runs) // 2 if maps_runs() else 1
    return _train_all(job, runs[:half], damaged) | _train_all(job, runs[half:], damaged)


def _train(job: _Job, runs: Sequence[Run], done: int, stopped: tuple[int, int] | None) -> bool:
    """Trains runs together to their results; False if they need too much memory.

    They continue after epoch `done`, or where they were stopped in a later one, (epoch, steps).
    """
    training, model = job.config.training, job.program.model
    population = _make_population(job, runs)
    if len(runs) > 1 and not population.fits():
        return False
    if runs[0].directory == job.profile:
        population.profile(os.fspath(job.profile / "profile"))
    writers = runs if runtime.is_first() else ()
    for run in writers:
        run.directory.mkdir(parents=True, exist_ok=True)
        write_json(run.directory / "config.json", dict(run.manifest))
        provenance.add_session(run.directory, stopped[0] - 1 if stopped else done)
    runtime.wait_for_all("folders are made")

    modality = runs[0].manifest["modality"]
    predictors = {split: SplitPredictor(model, job.source, split, modality, **job.forward) for split in PREDICTIONS}
    best = new_best(model_params(population.states.params), population.states.constants, (len(runs),))
    best = sharding.replicate(best, sharding.data_mesh())
    title = runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
    part = Part(done + 1)
    with contextlib.ExitStack() as stack:
        stack.callback(_clear_deleted, runs)
        if done or stopped:
            part, population.states, best = _restore(job, runs, done, stopped, (population.states, best))
        keepers = [stack.enter_context(Checkpoints(run.directory, after_epoch=done)) for run in runs]
        logs = [stack.enter_context(Log(run.directory, after_epoch=part.epoch - 1)) for run in writers]
        steps = (part.epoch - 1) * job.steps_per_epoch + part.steps
        if steps:
            within = f" and {part.steps} of {job.steps_per_epoch} steps" if part.steps else ""
            logging.info("%s: continues after epoch %d of %d%s", title, part.epoch - 1, training.epochs, within)
        else:
            _announce(runs, model_params(population.states.params), runs[0].directory == job.shown)
        bar = stack.enter_context(Progress(title, training.epochs * job.steps_per_epoch, steps))
        stack.enter_context(job.session.unsaved)
        saved = part.epoch, part.steps
        for epoch in range(part.epoch, training.epochs + 1):
            try:
                _train_steps(job, population, part, bar.step)
                records = _make_records(population, part, runs)
                with job.session.clock.productive():
                    scores = _validate(job.session, population.states, predictors["validation"], runs, records)
            except StopRequested:
                _stop(job, runs, part, (population.states, best), is_new=(epoch, part.steps) != saved)
            best = keep_better(best, population.states, scores, epoch)
            _check_folders(job, runs)
            for log, record in zip(logs, records, strict=False):
                log.write(epoch, epoch * job.steps_per_epoch, record)
            job.session.clock.record()
            bar.finish_epoch(records)
            part = Part(epoch + 1)
            if epoch % training.checkpoint_every == 0 or epoch == training.epochs:
                _save(job, runs, keepers, epoch, (population.states, best))
                saved = epoch + 1, 0
    _finish(job, runs, best, predictors, title)
    return True


def _save(
    job: _Job, runs: Sequence[Run], keepers: Sequence[Checkpoints], epoch: int, trees: tuple[TrainState, dict]
) -> None:
    """Saves all runs after an epoch, and deletes what was saved within an earlier one."""
    for i, keeper in enumerate(keepers):
        keeper.save(epoch, *_nth(trees, i))
    job.session.clock.saved()
    for run in runs if runtime.is_first() else ():
        drop_parts(run.directory)


def _stop(job: _Job, runs: Sequence[Run], part: Part, trees: tuple[TrainState, dict], *, is_new: bool) -> NoReturn:
    """Ends the program; if `is_new`, which the disk does not hold, saves all runs within the epoch first."""
    _check_folders(job, runs)
    for i, run in enumerate(runs if is_new else ()):
        own = replace(part, metrics={key: values[:, i] for key, values in part.metrics.items()})
        save_part(run.directory, own, job.steps_per_epoch, *_nth(trees, i))
    job.session.clock.saved()
    job.session.stop()


def _check_folders(job: _Job, runs: Sequence[Run]) -> None:
    """Raises DamagedFileError if the workdir or the folder of a run was deleted while it is trained."""
    job.session.check_workdir()
    for run in runs if runtime.is_first() else ():
        if not (run.directory / "config.json").exists() and (run.directory / "metrics.jsonl").exists():
            write_json(run.directory / "config.json", dict(run.manifest))  # this file alone was deleted
        check_files(run.directory, ("config.json",))


def _clear_deleted(runs: Sequence[Run]) -> None:
    """Deletes what orbax wrote into the folders of runs after these had been deleted."""
    for run in runs if runtime.is_first() else ():
        if not any((run.directory / name).exists() for name in ("config.json", "metrics.jsonl")):
            epath.Path(run.directory).rmtree(missing_ok=True)


def check_files(directory: epath.Path, names: Sequence[str]) -> None:
    """Raises DamagedFileError if files of a run were deleted while the experiment ran."""
    for name in names:
        if not (any(directory.glob(name)) if "*" in name else (directory / name).exists()):
            raise DamagedFileError(f"{directory / name} was deleted while the experiment ran; start it again")


def _make_population(job: _Job, runs: Sequence[Run]) -> Population:
    teacher_sets = list(dict.fromkeys(run.teachers for run in runs))
    taught = [attach_teachers(job.examples, teachers, job.source, **job.forward) for teachers in teacher_sets]
    keys = jnp.stack([jax.random.key(run.seed) for run in runs])
    names = ["task", *(chosen.name for chosen in job.program.terms)]
    settings = Settings(
        weights={name: np.array([run.weights.get(name, 0.0) for run in runs], np.float32) for name in names},
        learning_rate=np.array([run.manifest["training"]["learning_rate"] for run in runs], np.float32),
        key=keys,
    )
    states = _start_from(runs, _create_states(job, taught[0], keys))
    set_of_run, seeds = [teacher_sets.index(run.teachers) for run in runs], [run.seed for run in runs]
    return Population(job.program, job.config.training, taught, set_of_run, seeds, states, settings)


def _create_states(job: _Job, examples: Sequence[Example], keys: jax.Array) -> TrainState:
    """The initial state of every run, `[P, …]`."""
    video = examples[0]
    taught = tuple((outputs.features.shape[-1], outputs.logits.shape[-1]) for outputs in video.teachers)
    states = jitted_init(job.program, video.features.shape[-1], video.labels.shape[-1], taught)(keys)
    if not job.config.model.standardize:
        return states
    training = job.config.training
    constants = fit_standardization(examples, training.standardize_by, training.standardize_limit)
    return replace(states, constants=jax.tree.map(lambda x: jnp.stack([x] * len(keys)), constants))


def _start_from(runs: Sequence[Run], states: TrainState) -> TrainState:
    """Replaces the initial parameters of runs that start from a finished run."""
    params = dict(states.params)
    for i, run in enumerate(runs):
        if run.starts_from is not None:
            start = load_run(run.starts_from).variables["params"]
            params |= jax.tree.map(lambda own, one, i=i: own.at[i].set(one), model_params(params), start)
    return replace(states, params=params)


def fit_standardization(examples: Sequence[Example], by: str, limit: float) -> dict:
    """The mean of every input channel over all snippets, and the value by which it is divided.

    By 'channel', this is the standard deviation of the channel. By 'modality', it is the root mean square of those of
    all channels, so that channels of little but noise stay small. It is 1 if nothing varies. For D channels above the
    limit, it is multiplied by `D / limit`.
    """
    count = sum(len(example.features) for example in examples)
    mean = _sum_over_videos(lambda x: x.sum(axis=0, dtype=np.float64), examples) / count
    square = _sum_over_videos(lambda x: ((x.astype(np.float64) - mean) ** 2).sum(axis=0), examples) / count
    deviation = np.sqrt(square)
    least = 1e-6 if examples[0].features.dtype == np.float16 else 1e-6 * np.abs(mean)  # of a channel that varies
    deviation[deviation < least] = 0.0
    if by == "modality":
        deviation[:] = np.sqrt(np.mean(deviation**2))
    deviation[deviation == 0] = 1.0
    deviation *= max(1.0, len(deviation) / limit)
    return {"standardization": {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(deviation, jnp.float32)}}


def _sum_over_videos(function: Callable[[np.ndarray], np.ndarray], examples: Sequence[Example]) -> np.ndarray:
    """The sum of `function(features)` over all videos, `[D]` float64; each process reads its share."""
    own = examples[jax.process_index() :: jax.process_count()]
    share = sum((function(np.asarray(example.features)) for example in own), np.zeros(()))
    if jax.process_count() == 1:
        return share
    width = examples[0].features.shape[1:]
    parts = np.broadcast_to(share, width).astype(np.float64).view(np.uint32)  # JAX would round 64 bits: send two halves
    return multihost_utils.process_allgather(parts).view(np.float64).sum(axis=0)


def _restore(
    job: _Job, runs: Sequence[Run], done: int, stopped: tuple[int, int] | None, like: tuple[TrainState, dict]
) -> tuple[Part, TrainState, dict]:
    """The next epoch, the states and the best parameters of all runs, `[P, …]`, after epoch `done` or where stopped."""
    if stopped is None:
        part = Part(done + 1)
        restored = [read_checkpoint(run.directory, done, *_nth(like, i)) for i, run in enumerate(runs)]
    else:
        at = stopped, job.steps_per_epoch
        read = [read_part(run.directory, *at, *_nth(like, i)) for i, run in enumerate(runs)]
        parts, restored = [of_run for of_run, _ in read], [trees for _, trees in read]
        metrics = {key: np.stack([one.metrics[key] for one in parts], axis=1) for key in parts[0].metrics}
        part = replace(parts[0], metrics=metrics)
    states, best = sharding.replicate(jax.tree.map(lambda *leaves: jnp.stack(leaves), *restored), sharding.data_mesh())
    return part, states, best


def _train_steps(job: _Job, population: Population, part: Part, report: Callable) -> None:
    """Trains the rest of an epoch, or until a value is not finite; raises StopRequested if the program must stop.

    The steps are taken in groups of a few seconds, between which the processes agree on whether to stop.
    """
    while part.steps < job.steps_per_epoch:
        job.session.check_signal()
        started, until = time.perf_counter(), min(part.steps + population.pace, job.steps_per_epoch)
        with job.session.clock.productive():
            metrics = population.run_epoch(part.epoch, report, first=part.steps, until=until)
        part.add(metrics, time.perf_counter() - started)
        if part.steps < until:  # it is no longer finite
            return
        slow = runtime.any_process(time.perf_counter() - started > PAUSE)
        population.pace = max(1, population.pace // 2) if slow else 2 * population.pace


def _make_records(population: Population, part: Part, runs: Sequence[Run]) -> list[dict]:
    """The record of each run for a trained epoch; raises _Diverged if one is no longer finite."""
    records, diverged = [], {}
    finite = jax.device_get(_params_are_finite(population.states.params))
    for i, run in enumerate(runs):
        own = _own_metrics(part.metrics, run, i)
        step = divergence.first_bad_step(own)
        if step is not None or not finite[i]:
            diverged[run] = _describe_divergence(population, part.epoch, run, i, own, step)
        else:
            records.append(epoch_record(own, part.seconds))
    if diverged:
        raise _Diverged(diverged)
    return records


def _describe_divergence(
    population: Population, epoch: int, run: Run, i: int, metrics: Mapping[str, np.ndarray], step: int | None
) -> str:
    """One sentence: where run i stopped being finite, why, and the remedy; `step` is None if only parameters did."""
    causes: Sequence[str] = ()
    what, at = "the parameters are not finite", len(metrics["loss"]) - 1 if step is None else step
    if step is not None:
        what, causes = divergence.blame(metrics, step, run.weights)
    batch, num_steps = population.batch(i, epoch, at)
    videos, kept = ", ".join(video.id for video in batch), saved_epochs(run.directory)
    place = f"diverged in epoch {epoch}, step {at + 1} of {num_steps}"
    checkpoint = f"the checkpoint of epoch {kept[-1]} is kept" if kept else "there is no checkpoint yet"
    lower = " or the weight of ".join(["training.learning_rate", *(f"{cause}" for cause in causes)])
    remedy = "repair the data" if (damage := divergence.find_damage(batch)) else f"lower {lower}"
    damage = f"; {damage}" if damage else ""
    return f"{run.title}: training {place} ({what}), with the videos {videos}{damage}; {checkpoint}; {remedy}"


def _validate(
    session: Session, states: TrainState, predictor: SplitPredictor, runs: Sequence[Run], records: list[dict]
) -> np.ndarray:
    """Adds the validation scores to the records, and returns those that select the best epoch, `[P]`.

    NaN where nothing can select: there are no validation videos, or the run does not learn the task. Raises
    StopRequested between two batches.
    """
    if predictor.videos:
        variables = {"params": evaluated_params(states), **states.constants}
        predictions = predictor(variables, before_batch=session.check_signal)
        for record, logits in zip(records, predictions, strict=True):
            scores = score_split(logits, predictor.videos, predictor.info, VALIDATION)
            record |= {f"validation/{key}": value for key, value in scores.items() if key != "per_class"}
    selecting = [
        record.get(f"validation/{SELECTION}", math.nan) if "task" in run.weights else math.nan
        for run, record in zip(runs, records, strict=True)
    ]
    return np.array(selecting, np.float32)


def _own_metrics(metrics: Mapping[str, np.ndarray], run: Run, i: int) -> dict[str, np.ndarray]:
    """The metrics of run i, `[S]` each, without parts of the loss that only other runs of the program weigh."""
    parts = {"task", *TERMS}
    of_part = {key: key.removeprefix("gradient/") for key in metrics}
    return {key: metrics[key][:, i] for key, part in of_part.items() if part in run.weights or part not in parts}


@jax.jit
def _params_are_finite(params: dict) -> jax.Array:
    """Whether the parameters of each run are finite, `[P]`."""
    return jnp.isfinite(jax.vmap(optax.tree.norm)(params))


@jax.jit
def keep_better(best: dict, states: TrainState, scores: jax.Array, epoch: jax.Array) -> dict:
    """`best` with this epoch in place of runs that it improves, `scores` `[P]`; a score of NaN always replaces."""
    better = ~(scores <= best["score"])  # not `>`, which is False for NaN

    def choose(new, old):
        return jnp.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    epochs = jnp.full(better.shape, epoch, jnp.int32)
    new = {"params": evaluated_params(states), "constants": states.constants, "score": scores, "epoch": epochs}
    return jax.tree.map(choose, new, best)


@jax.jit
def _nth(tree, i: jax.Array):
    """Run i of a tree of `[P, …]`."""
    return jax.tree.map(lambda x: x[i], tree)


def _finish(job: _Job, runs: Sequence[Run], best: dict, predictors: Mapping[str, SplitPredictor], title: str) -> None:
    """Predicts and scores all splits with the parameters of the best epoch, and writes the results."""
    variables = {"params": best["params"], **best["constants"]}
    writers = runs if runtime.is_first() else ()
    for split, predictor in predictors.items():
        with job.session.clock.productive():
            predictions = predictor(variables, progress=f"{title}: {split}")
        for run, logits in zip(writers, predictions, strict=False):
            write_arrays(run.directory / PREDICTIONS[split], logits)
    taught = [{teacher.name: list(map(fingerprint, teacher.folders)) for teacher in run.teachers} for run in runs]
    for run, teachers, epoch in zip(writers, taught, jax.device_get(best["epoch"]), strict=False):
        provenance.finish(run.directory, teachers)
        job.session.check_workdir()
        last = f"checkpoints/{job.config.training.epochs}"
        check_files(run.directory, ("config.json", "metrics.jsonl", "events.*", last))
        results = write_results(run.directory, int(epoch), job.source, scoring_of(job.config, job.source.info.head))
        epochs, chosen = job.config.training.epochs, "task" in run.weights and "validation" in results
        early = chosen and still_improving([int(epoch)], epochs)
        warning = f". {describe_early_end('its best epoch', epochs)}" if early else ""
        logging.info("%s: %s%s", run.title, summary(results), warning)
    job.session.clock.saved()
    runtime.wait_for_all("runs have ended")


def _announce(runs: Sequence[Run], params: dict, show_parameters: bool) -> None:
    """Logs model, loss and learning rate of each run."""
    params = jax.tree.map(lambda x: x[0], params)
    size = f"{parameter_overview.count_parameters(params):,}"
    for run in runs:
        parts, manifest = run.weights.items(), run.manifest
        loss = " + ".join(term if weight == 1 else f"{weight:g}·{term}" for term, weight in parts)
        if manifest["balance"] == "gradient":
            shares = ", ".join(f"{term} {weight:g}" for term, weight in parts if term != "task")
            loss = f"task and terms balanced by gradient norm ({shares})" if shares else "task"
        model = f"{manifest['modality']} → {manifest['filter']}, {size} parameters"
        rate = manifest["training"]["learning_rate"]
        logging.info("%s: %s, loss = %s, learning rate %g", run.title, model, loss, rate)
    if show_parameters:
        logging.info("\n%s", parameter_overview.get_parameter_overview(params, include_stats=False))
