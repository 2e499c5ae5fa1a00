"""Runs: features → trained detectors, their scores and predictions, each in a folder of its own.

`train_runs` serves teachers, plain students and distilled students alike. Runs of equal shape (other seeds, weights,
learning rates, teachers) train side by side in one program where memory allows. A folder holds config.json (what was
trained), checkpoints/, metrics.jsonl and TensorBoard events (one entry an epoch), predictions_{validation,test}.npz
(logits) and, written last, results.json: its presence means that the run has finished.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from clu import parameter_overview
from etils import epath
from jax.experimental import multihost_utils

from kd_jax import runtime, sharding
from kd_jax.data.annotations import describe
from kd_jax.data.batches import Example, make_examples
from kd_jax.data.source import Source
from kd_jax.evaluation.scoring import Scoring, evaluate
from kd_jax.files import read_arrays, read_json, write_arrays, write_json
from kd_jax.inference.predict import fuse, predict
from kd_jax.training import checkpoints
from kd_jax.training.checkpoints import new_best
from kd_jax.training.logs import SELECTION, Journal, Progress, epoch_record, summary
from kd_jax.training.population import Population
from kd_jax.training.state import (
    TrainState,
    create_train_state,
    current_learning_rate,
    make_optimizer,
    model_params,
)
from kd_jax.training.teachers import Teacher, attach_teachers, fingerprint, given_folders
from kd_jax.training.terms import COSTLY, MODULES, TASKS, TERMS, make_modules

VALIDATION = Scoring(("frame_map",))


def scoring_of(config) -> Scoring:
    """How the test videos are scored: as the config says, or with the protocols that the data set is published with."""
    options = config.evaluation.to_dict()
    protocols = tuple(options["protocols"]) or describe(config.dataset.name).protocols
    return Scoring(protocols, options["proposals"], options["threshold"], options["convention"])


def run_config(config, name: str, seed: int, source: Source) -> dict:
    """What a run is, as plain JSON: everything that decides its result, and all that rebuilds its model.

    What changes no result is left out: where the records and batches lie, how often a checkpoint is written.
    """
    info, training, dataset = source.info, config.training.to_dict(), config.dataset.to_dict()
    del training["checkpoint_every"], training["data"], dataset["data_dir"], dataset["synthetic_fallback"]

    def choices(name: str) -> dict:
        run = config.runs[name]
        weights = {term: weight for term, weight in run.weights.items() if weight}
        return {
            "modality": run.modality,
            "filter": run.filter,
            **{field: run[field] for field in ("hidden", "num_layers") if run[field] is not None},
            "teachers": {teacher: taught_by(teacher) for teacher in run.teachers},
            "weights": weights,
            "balance": run.balance,
            **({"task_weight": run.task_weight} if run.task_weight != 1 else {}),
            **({"starts_from": choices(run.starts_from)} if run.starts_from else {}),
            "options": {term: run.options[term].to_dict() for term in weights if term in run.options},
        }

    def taught_by(teacher: str) -> dict:
        if teacher in config.runs:
            return choices(teacher)
        if teacher in config.fusions:
            return {member: choices(member) for member in config.fusions[teacher]}
        members = [
            {"folder": os.fspath(folder), "fingerprint": fingerprint(folder)}
            for folder in given_folders(config.teachers[teacher])
        ]
        return members[0] if len(members) == 1 else {"members": members}

    run = choices(name)
    model = {"num_outputs": TASKS[info.head][1](len(info.classes)), **config.model.to_dict()}
    model |= {field: run.pop(field) for field in ("hidden", "num_layers") if field in run}
    if config.runs[name].learning_rate is not None:
        training["learning_rate"] = config.runs[name].learning_rate
    return json.loads(
        json.dumps(
            {
                "run": name,
                "seed": seed,
                **run,
                "model": model,
                "training": training,
                "dataset": {**dataset, "fingerprint": source.fingerprint},
                "input_size": info.modalities[run["modality"]],
                "head": info.head,
                "classes": info.classes,
                "seconds_per_snippet": info.seconds_per_snippet,
                "extraction": info.extraction.get(run["modality"]),
            }
        )
    )


def standardization(examples: Sequence[Example]) -> dict:
    """Mean and standard deviation of every input channel over all snippets; a constant channel keeps deviation 1."""
    count = sum(len(e.features) for e in examples)
    mean = _sum(lambda x: x.sum(axis=0, dtype=np.float64), examples) / count
    square = _sum(lambda x: ((x.astype(np.float64) - mean) ** 2).sum(axis=0), examples) / count
    deviation = np.sqrt(square)
    deviation[deviation < 1e-6] = 1.0
    return {"standardization": {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(deviation, jnp.float32)}}


def _sum(of: Callable[[np.ndarray], np.ndarray], examples: Sequence[Example]) -> np.ndarray:
    """The sum of `of(features)` over all videos, `[D]` float64; each process reads its share."""
    share = sum(of(np.asarray(e.features)) for e in examples[jax.process_index() :: jax.process_count()])
    if jax.process_count() == 1:
        return share
    parts = np.broadcast_to(share, examples[0].features.shape[1:]).astype(np.float64).view(np.uint32)  # 64 bits as two
    return multihost_utils.process_allgather(parts).view(np.float64).sum(axis=0)


@dataclass(frozen=True)
class Run:
    """One training: a key of config.runs with a seed, its folder, its teachers, and the run it begins with."""

    name: str
    seed: int
    directory: epath.Path
    teachers: tuple[Teacher, ...] = ()
    starts_from: epath.Path | None = None

    @property
    def title(self) -> str:
        """As messages call it."""
        return f"{self.name}, seed {self.seed}"


def shape_of(config, name: str) -> tuple:
    """Runs for which this is equal can train side by side; they differ in seed, weights, learning rate and teachers.

    All of them compute the terms of each, which is why those that weigh a costly one are apart.
    """
    run = config.runs[name]
    costly = tuple(term for term in COSTLY if run.weights[term])
    options = json.dumps(run.options.to_dict(), sort_keys=True)
    return run.modality, run.filter, run.hidden, run.num_layers, len(run.teachers), run.balance, costly, options


def train_runs(config, runs: Sequence[Run], source: Source, *, show_parameters: bool = False) -> list[dict]:
    """Trains runs of equal shape, or continues them, or returns the results they already have.

    Args:
      config: the experiment's config.
      runs: of one `shape_of`.
      source: where videos come from.
      show_parameters: log the table of parameters, not only their number.

    Returns:
      The content of each run's results.json.

    Raises:
      FloatingPointError: if loss or parameters of a run stop being finite, after the others were trained to their end.
    """
    scoring, waiting, diverged = scoring_of(config), [], {}
    for run in runs:
        results = read_json(run.directory / "results.json")
        if results is None:
            waiting.append(run)
            continue
        if results["scoring"] != scoring.as_json() and runtime.is_first():
            results = _write_results(run.directory, results["best_epoch"], source, scoring)
        logging.info("%s: finished before, %s", run.title, summary(results))
    while waiting:
        try:
            _train_side_by_side(config, waiting, source, show_parameters)
        except _Diverged as error:
            diverged |= error.reasons
        runtime.wait_for_all("runs have ended")
        finished = [run for run in waiting if (run.directory / "results.json").exists()]
        waiting = [run for run in waiting if run not in (*diverged, *finished)]
        if waiting:
            logging.error("%s. The others go on.", "; ".join(diverged.values()))
    runtime.wait_for_all("results are written")
    if diverged:
        raise FloatingPointError("; ".join(diverged.values()))
    return [read_json(run.directory / "results.json") for run in runs]


class _Diverged(Exception):
    """Loss or parameters of some runs are no longer finite: {run: what to tell of it}."""

    def __init__(self, reasons: Mapping[Run, str]):
        super().__init__(*reasons.values())
        self.reasons = reasons


def _train_side_by_side(config, runs: Sequence[Run], source: Source, show_parameters: bool) -> None:
    """Trains all of them in one program, or each half by itself where they do not fit or have no epoch in common."""
    saved = [checkpoints.saved_epochs(run.directory) for run in runs]
    common = set(saved[0]).intersection(*saved[1:])
    if (common or not any(saved)) and _train(config, runs, source, max(common, default=0), show_parameters):
        return
    for half in (runs[: len(runs) // 2], runs[len(runs) // 2 :]):
        _train_side_by_side(config, half, source, show_parameters)


def _train(config, runs: Sequence[Run], source: Source, done: int, show_parameters: bool) -> bool:
    """Trains the runs from epoch `done` + 1 to their results; False, and nothing done, if they need too much memory."""
    training, manifests = config.training, [run_config(config, run.name, run.seed, source) for run in runs]
    model, modality = checkpoints.build_model(manifests[0]), manifests[0]["modality"]
    forward = {"batch_size": config.evaluation.batch_size, "num_buckets": training.length_buckets}
    examples = make_examples(source.videos("train", [modality]), modality, len(source.info.classes))
    sets = list(dict.fromkeys(run.teachers for run in runs))
    steps_per_epoch = -(-len(examples) // training.batch_size)
    plateau = {"plateau_patience": training.plateau_patience, "steps_per_epoch": steps_per_epoch}
    options = {term: value for manifest in manifests for term, value in manifest["options"].items()}
    terms = dict.fromkeys(term for manifest in manifests for term in manifest["weights"])
    keys = jnp.stack([jax.random.key(run.seed) for run in runs])
    num_snippets = sum(len(example.features) for example in examples)
    taught = [attach_teachers(examples, each, source, **forward) for each in sets]
    population = Population(
        {
            "model": model,
            "head": source.info.head,
            "options": json.dumps(options),
            **plateau,
            "balance": manifests[0]["balance"],
            "num_snippets": num_snippets,
        },
        training,
        sets=taught,
        which=[sets.index(run.teachers) for run in runs],
        seeds=[run.seed for run in runs],
        states=_start_from(
            runs,
            _create_states(config, model, manifests, taught[0], keys, plateau, make_modules(options, num_snippets)),
        ),
        weights={
            "task": np.array([m.get("task_weight", 1.0) for m in manifests], np.float32),
            **{t: np.array([m["weights"].get(t, 0.0) for m in manifests], np.float32) for t in terms},
        },
        keys=keys,
    )
    if len(runs) > 1 and not population.fits():
        return False

    validation = Predictor(model, source, "validation", modality, forward)
    states = population.states
    best = sharding.replicate(
        new_best(model_params(states.params), states.constants, (len(runs),)), sharding.data_mesh()
    )
    for run, manifest in zip(runs, manifests, strict=True):
        if runtime.is_first():
            run.directory.mkdir(parents=True, exist_ok=True)
            write_json(run.directory / "config.json", manifest)
    runtime.wait_for_all("folders are made")
    name = runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
    with contextlib.ExitStack() as stack:
        keepers = [stack.enter_context(checkpoints.Checkpoints(run.directory)) for run in runs]
        writers = runs if runtime.is_first() else ()
        journals = [stack.enter_context(Journal(run.directory, after_epoch=done)) for run in writers]
        bar = stack.enter_context(Progress(name, training.epochs, steps_per_epoch, done))
        if done:
            likes = [_nth((population.states, best), i) for i in range(len(runs))]
            restored = [keeper.restore(done, *like) for keeper, like in zip(keepers, likes, strict=True)]
            restored = jax.tree.map(lambda *leaves: jnp.stack(leaves), *restored)
            population.states, best = sharding.replicate(restored, sharding.data_mesh())
            logging.info("%s: continues after epoch %d of %d", name, done, training.epochs)
        else:
            _announce(manifests, model_params(population.states.params), show_parameters)
        for epoch in range(done + 1, training.epochs + 1):
            records = _epoch(population, epoch, runs, manifests, validation, bar)
            scores = [
                record.get(f"validation/{SELECTION}", math.nan) if manifest.get("task_weight", 1.0) else math.nan
                for record, manifest in zip(records, manifests, strict=True)
            ]
            best = _keep_better(best, population.states, np.array(scores, np.float32), epoch)
            for log, record in zip(journals, records, strict=False):
                log.write(epoch, epoch * steps_per_epoch, record)
            bar.finish_epoch(records)
            if epoch % training.checkpoint_every == 0 or epoch == training.epochs:
                for i, keeper in enumerate(keepers):
                    keeper.save(epoch, *_nth((population.states, best), i))

    variables = {"params": best["params"], **best["constants"]}
    for predictor in (validation, Predictor(model, source, "test", modality, forward)):
        predictions = predictor(variables, progress=f"{name}: {predictor.split}")
        for run, logits in zip(writers, predictions, strict=False):
            write_arrays(run.directory / f"predictions_{predictor.split}.npz", logits)
    for run, epoch in zip(writers, jax.device_get(best["epoch"]), strict=False):
        results = _write_results(run.directory, int(epoch), source, scoring_of(config))
        logging.info("%s: %s", run.title, summary(results))
    return True


def _create_states(config, model, manifests: Sequence[Mapping], examples, keys: jax.Array, plateau: Mapping, modules):
    """The initial TrainState of every run, `[P, …]`."""
    constants = standardization(examples) if config.model.standardize else None

    def create(key, learning_rate):
        key = jax.random.fold_in(key, 2**31 - 1)  # no step has this number
        optimizer = make_optimizer(learning_rate, **plateau)
        width, classes = manifests[0]["input_size"], examples[0].labels.shape[-1]
        return create_train_state(
            model, optimizer, key, width, constants, modules, examples[0].teachers, num_classes=classes
        )

    rates = [manifest["training"]["learning_rate"] for manifest in manifests]
    return jax.jit(jax.vmap(create))(keys, np.array(rates, np.float32))


def _start_from(runs: Sequence[Run], states: TrainState) -> TrainState:
    """`states` with the best parameters of the runs that some of `runs` begin with."""
    params = dict(states.params)
    for i, run in enumerate(runs):
        if run.starts_from is not None:
            own = model_params(params)
            begun = checkpoints.load_teacher(run.starts_from).variables["params"]
            params |= jax.tree.map(lambda all_runs, one, i=i: all_runs.at[i].set(one), own, begun)
    return states.replace(params=params)


def _epoch(
    population: Population,
    epoch: int,
    runs: Sequence[Run],
    manifests: Sequence[Mapping],
    validation: "Predictor",
    bar: Progress,
) -> list[dict]:
    """Trains and validates one epoch; returns what the journal of each run is told."""
    started = time.perf_counter()
    metrics = population.run_epoch(epoch, bar.step)
    seconds, records, diverged = time.perf_counter() - started, [], {}
    states = population.states
    sound, rates = jax.device_get(_health(states))
    for i, (run, manifest) in enumerate(zip(runs, manifests, strict=True)):
        absent = {term for term in (*TERMS, *MODULES) if term not in manifest["weights"]}  # weighed by other runs only
        absent |= {f"gradient/{term}" for term in absent}
        record = epoch_record({k: v[:, i] for k, v in metrics.items() if k not in absent}, seconds)
        if not (math.isfinite(record["loss"]) and sound[i]):
            values = ", ".join(f"{key} {value:.4g}" for key, value in record.items())
            diverged[run] = (
                f"{run.title}: training diverged in epoch {epoch} ({values}); lower training.learning_rate or the "
                "weight of the term that grew"
            )
        records.append({**record, "learning_rate": float(rates[i])})
    if diverged:
        raise _Diverged(diverged)
    if validation.videos:
        predictions = validation({"params": model_params(states.params), **states.constants})
        for record, logits in zip(records, predictions, strict=True):
            scores = evaluate(logits, validation.videos, validation.info, VALIDATION)
            record |= {f"validation/{key}": value for key, value in scores.items() if key != "per_class"}
    return records


@jax.jit
def _health(states: TrainState) -> tuple[jax.Array, jax.Array]:
    """Of each run: whether its parameters are finite, and its learning rate, `[P]` both."""
    return jnp.isfinite(jax.vmap(optax.tree.norm)(states.params)), current_learning_rate(states)


@jax.jit
def _keep_better(best: dict, states: TrainState, scores: jax.Array, epoch: jax.Array) -> dict:
    """`best` with this epoch in place of those whose `scores` `[P]` it beats; a score of NaN beats all."""
    better = ~(scores <= best["score"])

    def choose(new, old):
        return jnp.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    epochs = jnp.full(better.shape, epoch, jnp.int32)
    new = {"params": model_params(states.params), "constants": states.constants, "score": scores, "epoch": epochs}
    return jax.tree.map(choose, new, best)


@jax.jit
def _nth(tree, i: jax.Array):
    """Of a tree of `[P, …]`, what belongs to run i."""
    return jax.tree.map(lambda x: x[i], tree)


def score_predictions(directories: Sequence[epath.Path], source: Source, scoring: Scoring) -> dict:
    """Scores the saved logits of a finished run, or the fused ones of several: {'validation' and 'test': scores}.

    The validation videos, if there are any, are scored with the protocol that chose the best epoch alone.
    """
    scores = {}
    for split, how in {"validation": VALIDATION, "test": scoring}.items():
        if videos := source.videos(split, []):
            logits = fuse([read_arrays(directory / f"predictions_{split}.npz") for directory in directories])
            scores[split] = evaluate(logits, videos, source.info, how)
    return scores


def _write_results(directory: epath.Path, best_epoch: int, source: Source, scoring: Scoring) -> dict:
    scores = score_predictions([directory], source, scoring)
    results = {"best_epoch": best_epoch, "scoring": scoring.as_json(), **scores}
    write_json(directory / "results.json", results)
    return results


class Predictor:
    """Predicts one split with each of P sets of parameters, `[P, …]`: P times {video: logits}."""

    def __init__(self, model, source: Source, split: str, modality: str, forward: Mapping):
        self.split, self.videos, self.info = split, source.videos(split, [modality]), source.info
        self._examples = make_examples(self.videos, modality, len(source.info.classes))
        self._model, self._forward = model, forward

    def __call__(self, variables: dict, *, progress: str | None = None) -> list[dict]:
        count = len(jax.tree.leaves(variables)[0])
        if count == 1:
            variables = jax.tree.map(lambda x: x[0], variables)
        outputs = predict(
            self._model,
            variables,
            self._examples,
            progress=progress,
            side_by_side=count > 1,
            with_features=False,
            **self._forward,
        )
        tables = {
            e.id: o.logits.reshape(count, *o.logits.shape[-2:]) for e, o in zip(self._examples, outputs, strict=True)
        }
        return [{video: table[i] for video, table in tables.items()} for i in range(count)]


def _announce(manifests: Sequence[Mapping], params: dict, show_parameters: bool) -> None:
    """Says what is trained, and how large it is."""
    params = jax.tree.map(lambda x: x[0], params)
    size = f"{parameter_overview.count_parameters(params):,}"
    for manifest in manifests:
        task, weights = manifest.get("task_weight", 1.0), manifest["weights"]
        if manifest["balance"] == "gradient":
            pulls = ", ".join(f"{term} {weight:g}" for term, weight in weights.items())
            loss = f"task, terms pull as shares of it: {pulls}" if pulls else "task"
        else:
            parts = {"task": task, **weights}.items()
            loss = " + ".join(term if weight == 1 else f"{weight:g}·{term}" for term, weight in parts if weight)
        model = f"{manifest['modality']} → {manifest['filter']}, {size} parameters"
        rate = manifest["training"]["learning_rate"]
        logging.info("%s, seed %d: %s, loss = %s, rate %g", manifest["run"], manifest["seed"], model, loss, rate)
    if show_parameters:
        logging.info("\n%s", parameter_overview.get_parameter_overview(params, include_stats=False))
