"""One run: features → a trained detector, its scores and predictions, in a folder of its own.

`train_run` serves teachers, plain students and distilled students alike. A folder holds config.json (what was trained),
checkpoints/, metrics.jsonl and TensorBoard events (one entry an epoch), predictions_{validation,test}.npz (logits) and,
written last, results.json: its presence means that the run has finished.
"""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from clu import parameter_overview
from tqdm import tqdm

from kd_jax import checkpoints, input_pipeline, resident
from kd_jax.checkpoints import TrainedRun, new_best
from kd_jax.datasets import describe
from kd_jax.distill import TASKS, make_train_step
from kd_jax.files import read_arrays, write_arrays, write_atomically
from kd_jax.input_pipeline import Example, Source
from kd_jax.predict import fuse, predict
from kd_jax.protocols import PROTOCOLS
from kd_jax.scoring import Scoring, evaluate
from kd_jax.train_state import TrainState, create_train_state, current_learning_rate, make_optimizer

SELECTION = "frame_map/present_classes"  # the validation score that chooses the best epoch
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
            "teachers": {teacher: choices(teacher) for teacher in run.teachers},
            "weights": weights,
            "options": {term: run.options[term].to_dict() for term in weights if term in run.options},
        }

    run = choices(name)
    return json.loads(
        json.dumps(
            {
                "run": name,
                "seed": seed,
                **run,
                "model": {"num_outputs": TASKS[info.head][1](len(info.classes)), **config.model.to_dict()},
                "training": training,
                "dataset": {**dataset, "fingerprint": source.fingerprint},
                "input_size": info.modalities[run["modality"]],
                "head": info.head,
                "classes": info.classes,
                "seconds_per_snippet": info.seconds_per_snippet,
            }
        )
    )


def standardization(examples: Sequence[Example]) -> dict:
    """Mean and standard deviation of every input channel over all snippets; a constant channel keeps deviation 1."""
    count = sum(len(e.features) for e in examples)
    mean = sum(np.asarray(e.features).sum(axis=0, dtype=np.float64) for e in examples) / count
    square = sum(((np.asarray(e.features, np.float64) - mean) ** 2).sum(axis=0) for e in examples) / count
    deviation = np.sqrt(square)
    deviation[deviation < 1e-6] = 1.0
    return {"standardization": {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(deviation, jnp.float32)}}


@functools.lru_cache(maxsize=64)
def compiled_train_step(model, head: str, options: str, plateau_patience: int, steps_per_epoch: int):
    """The jitted step; runs that differ only in weights, learning rate or seed share it and its compilations."""
    return jax.jit(_train_step(model, head, options, plateau_patience, steps_per_epoch), donate_argnums=0)


@functools.lru_cache(maxsize=64)
def compiled_train_epoch(
    model, head: str, options: str, plateau_patience: int, steps_per_epoch: int, buckets: tuple[int, ...]
):
    """The same for a whole epoch of resident videos."""
    step = _train_step(model, head, options, plateau_patience, steps_per_epoch)
    return jax.jit(resident.make_train_epoch(step, buckets, input_pipeline.data_mesh()), donate_argnums=0)


def _train_step(model, head: str, options: str, plateau_patience: int, steps_per_epoch: int):
    optimizer = make_optimizer(0.0, plateau_patience=plateau_patience, steps_per_epoch=steps_per_epoch)
    return make_train_step(model, optimizer, head=head, options=json.loads(options))


def teacher_outputs(teacher: TrainedRun, source: Source, split: str, *, batch_size: int, num_buckets: int):
    """A frozen teacher's outputs on the whole videos of a split, in the order of the split.

    It sees whole videos without dropout, so what it says never changes: once a run is enough.
    """
    modality = teacher.config["modality"]
    examples = input_pipeline.make_examples(source.videos(split, [modality]), modality, len(source.info.classes))
    return predict(
        teacher.model, teacher.variables, examples, batch_size=batch_size, num_buckets=num_buckets, progress="teacher"
    )


def train_run(
    config,
    name: str,
    seed: int,
    source: Source,
    directory: Path,
    teacher_directories: Sequence[Path],
    *,
    show_parameters: bool = False,
) -> dict:
    """Trains one run, or continues it, or returns the results it already has.

    Args:
      config: the experiment's config.
      name: a key of config.runs.
      seed: of initialisation, shuffling, dropout and negatives.
      source: where videos come from.
      directory: the run's folder.
      teacher_directories: folders of the finished teachers.
      show_parameters: log the table of parameters, not only their number.

    Returns:
      The content of the run's results.json.

    Raises:
      FloatingPointError: if loss or parameters stop being finite.
    """
    scoring = scoring_of(config)
    results = checkpoints.read_json(directory / "results.json")
    if results is not None:
        if results["scoring"] != scoring.as_json():
            results = _write_results(directory, results["best_epoch"], source, scoring)
        logging.info("%s: finished before, %s", name, summary(results))
        return results
    manifest = run_config(config, name, seed, source)
    training, modality = config.training, manifest["modality"]
    model = checkpoints.build_model(manifest)
    forward = {"batch_size": config.evaluation.batch_size, "num_buckets": training.length_buckets}
    examples = _training_examples(source, manifest, teacher_directories, forward)
    validation = Predictor(model, source, "validation", modality, forward)

    steps_per_epoch = -(-len(examples) // training.batch_size)
    plateau = {"plateau_patience": training.plateau_patience, "steps_per_epoch": steps_per_epoch}
    run_key = jax.random.key(seed)
    state = create_train_state(
        model,
        make_optimizer(training.learning_rate, **plateau),
        jax.random.fold_in(run_key, 2**31 - 1),  # no step has this number
        manifest["input_size"],
        standardization(examples) if config.model.standardize else None,
    )
    best = new_best(state.params, state.constants)
    state, best = input_pipeline.replicate((state, best), input_pipeline.data_mesh())

    directory.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(directory / "config.json", manifest)
    keeper = checkpoints.Checkpoints(directory)
    done = keeper.latest_epoch() or 0
    if done:
        state, best = keeper.restore(state, best)
        logging.info("%s: continues after epoch %d of %d", name, done, training.epochs)
    else:
        _announce(manifest, state.params, show_parameters)
    weights = {term: jnp.float32(weight) for term, weight in manifest["weights"].items()}
    with Journal(directory, after_epoch=done) as journal, Progress(name, training.epochs, steps_per_epoch, done) as bar:
        epochs = _Epochs(training, examples, seed, (model, source.info.head, json.dumps(manifest["options"])), plateau)
        run_epoch = functools.partial(epochs, weights=weights, key=run_key, bar=bar)
        best = _train_epochs(training, run_epoch, state, best, validation, keeper, journal, bar, done)
    keeper.close()

    variables = {"params": best["params"], **best["constants"]}
    for predictor in (validation, Predictor(model, source, "test", modality, forward)):
        logits = predictor(variables, progress=f"{name}: {predictor.split}")
        write_arrays(directory / f"predictions_{predictor.split}.npz", logits)
    results = _write_results(directory, int(best["epoch"]), source, scoring)
    logging.info("%s: %s", name, summary(results))
    return results


def score_predictions(directories: Sequence[Path], source: Source, scoring: Scoring) -> dict:
    """Scores the saved logits of a finished run, or the fused ones of several: {'validation' and 'test': scores}.

    The validation videos, if there are any, are scored with the protocol that chose the best epoch alone.
    """
    scores = {}
    for split, how in {"validation": VALIDATION, "test": scoring}.items():
        if videos := source.videos(split, []):
            logits = fuse([read_arrays(directory / f"predictions_{split}.npz") for directory in directories])
            scores[split] = evaluate(logits, videos, source.info, how)
    return scores


def _write_results(directory: Path, best_epoch: int, source: Source, scoring: Scoring) -> dict:
    scores = score_predictions([directory], source, scoring)
    results = {"best_epoch": best_epoch, "scoring": scoring.as_json(), **scores}
    checkpoints.write_json(directory / "results.json", results)
    return results


def _training_examples(
    source: Source, manifest: dict, teacher_directories: Sequence[Path], forward: Mapping
) -> list[Example]:
    """The training videos of the run's modality, with what each teacher says of them."""
    examples = input_pipeline.make_examples(
        source.videos("train", [manifest["modality"]]), manifest["modality"], len(source.info.classes)
    )
    for directory in teacher_directories:
        teacher = checkpoints.load_teacher(directory)
        scores = summary(checkpoints.read_json(directory / "results.json"))
        logging.info("%s: learns from %s, %s", manifest["run"], teacher.config["run"], scores)
        examples = input_pipeline.attach_teacher(examples, teacher_outputs(teacher, source, "train", **forward))
    return examples


class Predictor:
    """Predicts one split with whatever parameters it is given: {video: logits}."""

    def __init__(self, model, source: Source, split: str, modality: str, forward: Mapping):
        self.split, self.videos, self.info = split, source.videos(split, [modality]), source.info
        self._examples = input_pipeline.make_examples(self.videos, modality, len(source.info.classes))
        self._model, self._forward = model, forward

    def __call__(self, variables: dict, *, progress: str | None = None) -> dict:
        outputs = predict(self._model, variables, self._examples, progress=progress, **self._forward)
        return {e.id: o.logits for e, o in zip(self._examples, outputs, strict=True)}


class _Epochs:
    """Runs one epoch, `(state, epoch, weights, key) -> (state, metrics of each step)`: resident or streamed."""

    def __init__(self, training, examples: Sequence[Example], seed: int, program: tuple, plateau: Mapping):
        self._examples, self._batch_size, self._seed = examples, training.batch_size, seed
        self._lengths = [len(e.features) for e in examples]
        self._buckets = input_pipeline.bucket_lengths(self._lengths, training.length_buckets)
        self._mesh = input_pipeline.data_mesh()
        if training.data == "resident" or (training.data == "auto" and resident.fits(examples)):
            self._data = resident.put(examples, max(self._buckets), self._mesh)
            self._train_epoch = compiled_train_epoch(*program, **plateau, buckets=self._buckets)
        else:
            self._data, self._step = None, compiled_train_step(*program, **plateau)

    def __call__(self, state: TrainState, epoch: int, *, weights: dict, key: jax.Array, bar: "Progress"):
        order = {"seed": self._seed, "epoch": epoch}
        if self._data is not None:
            batches = input_pipeline.plan_epoch(self._lengths, self._buckets, self._batch_size, **order)
            rows = input_pipeline.device_rows(self._batch_size, self._mesh)
            plan = resident.index_plan(batches, self._buckets, len(self._examples), rows)
            state, stacked = self._train_epoch(state, self._data, *plan, weights, key)
            stacked = jax.device_get(stacked)
            metrics = [jax.tree.map(lambda values, i=i: values[i], stacked) for i in range(len(batches))]
            bar.step([], len(metrics))  # `finish_epoch` shows their means
            return state, metrics
        metrics = []
        batches = input_pipeline.epoch(self._examples, self._buckets, self._batch_size, self._mesh, **order)
        with contextlib.closing(batches):
            for _, batch, teachers in batches:
                state, measured = self._step(state, teachers, batch, weights, key)
                metrics.append(measured)
                bar.step(metrics)
                if len(metrics) > input_pipeline.AHEAD:  # steps wait in line, each with its batch: keep the line short
                    jax.block_until_ready(metrics[-1 - input_pipeline.AHEAD])
        return state, jax.device_get(metrics)


def _train_epochs(
    training,
    run_epoch: Callable,
    state: TrainState,
    best: dict,
    validation: Predictor,
    keeper: checkpoints.Checkpoints,
    journal: "Journal",
    bar: "Progress",
    done: int,
) -> dict:
    """Trains from epoch `done` + 1 on; returns the best epoch's parameters."""
    for epoch in range(done + 1, training.epochs + 1):
        started = time.perf_counter()
        state, metrics = run_epoch(state, epoch)
        record = epoch_record(metrics, time.perf_counter() - started)
        if not (math.isfinite(record["loss"]) and jnp.isfinite(optax.tree.norm(state.params))):
            values = ", ".join(f"{key} {value:.4g}" for key, value in record.items())
            raise FloatingPointError(
                f"{bar.name}: training diverged in epoch {epoch} ({values}); "
                "lower training.learning_rate or the weight of the term that grew"
            )
        record["learning_rate"] = float(current_learning_rate(state))
        score = math.nan  # without validation videos every epoch replaces the one before
        if validation.videos:
            logits = validation({"params": state.params, **state.constants})
            scores = evaluate(logits, validation.videos, validation.info, VALIDATION)
            record |= {f"validation/{key}": value for key, value in scores.items() if key != "per_class"}
            score = scores[SELECTION]
        if not score <= float(best["score"]):
            best = new_best(state.params, state.constants, score, epoch)
        journal.write(epoch, int(state.step), record)
        bar.finish_epoch(record)
        if epoch % training.checkpoint_every == 0 or epoch == training.epochs:
            keeper.save(epoch, state, best)
    return best


def _announce(manifest: dict, params: dict, show_parameters: bool) -> None:
    """Says what is trained, and how large it is."""
    terms = "".join(f" + {weight:g}·{term}" for term, weight in manifest["weights"].items())
    size = f"{parameter_overview.count_parameters(params):,}"
    model = f"{manifest['modality']} → {manifest['filter']}"
    logging.info("%s: %s, %s parameters, loss = task%s", manifest["run"], model, size, terms)
    if show_parameters:
        logging.info("\n%s", parameter_overview.get_parameter_overview(params, include_stats=False))


def summary(results: Mapping) -> str:
    """One line: best epoch, and the first score of each split."""
    parts = [f"best epoch {results['best_epoch']}"]
    for split in ("validation", "test"):
        if split in results:
            key, value = next(iter(results[split].items()))
            protocol, measure = key.split("/")
            title = PROTOCOLS[protocol].columns.get(measure, key)
            parts.append(f"{split} {title} {'–' if value is None else f'{value:.2f}'}")
    return ", ".join(parts)


def epoch_record(metrics: Sequence[Mapping], seconds: float) -> dict:
    """Means of the steps' metrics, and the throughput."""
    record = {key: float(np.mean([m[key] for m in metrics])) for key in metrics[0] if key != "snippets"}
    record["snippets_per_second"] = float(sum(m["snippets"] for m in metrics) / seconds)
    record["seconds"] = seconds
    return record


class Journal:
    """metrics.jsonl and TensorBoard events, one entry an epoch; a resumed run drops what it will write again."""

    def __init__(self, directory: Path, after_epoch: int):
        from tensorboardX import SummaryWriter  # here, because it imports torch where torch is installed

        path = directory / "metrics.jsonl"
        kept, step = [], 0
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that a kill cut short
                break
            if entry["epoch"] > after_epoch:
                break
            kept.append(line)
            step = entry["step"]
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a")
        self._events = SummaryWriter(str(directory), purge_step=step + 1)  # TensorBoard forgets what was after it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._events.close()

    def write(self, epoch: int, step: int, record: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"epoch": epoch, "step": step, **record}) + "\n")
        self._file.flush()
        for key, value in record.items():
            self._events.add_scalar(key, value, step)
        self._events.flush()


class Progress:
    """A bar over the steps of a run: loss terms, validation score, time left. Never waits for the device."""

    _interval = 0.5  # seconds between two looks at the loss

    def __init__(self, name: str, epochs: int, steps_per_epoch: int, done: int):
        self.name, self._validation, self._last = name, {}, 0.0
        self._bar = tqdm(
            total=epochs * steps_per_epoch,
            initial=done * steps_per_epoch,
            desc=name,
            unit="step",
            disable=None,
            dynamic_ncols=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def step(self, metrics: Sequence[Mapping[str, jax.Array]], count: int = 1) -> None:
        self._bar.update(count)
        if self._bar.disable or time.perf_counter() - self._last < self._interval:
            return
        ready = next((m for m in reversed(metrics) if m["loss"].is_ready()), None)
        if ready is not None:
            self._last = time.perf_counter()
            self._show({key: float(value) for key, value in ready.items()})

    def finish_epoch(self, record: Mapping[str, float]) -> None:
        score = record.get(f"validation/{SELECTION}")
        self._validation = {} if score is None else {"val mAP": f"{score:.1f}"}
        self._show(record)

    def _show(self, values: Mapping[str, float]) -> None:
        hidden = ("snippets", "seconds", "snippets_per_second", "learning_rate", "gradient_norm")
        shown = {k: f"{v:.3g}" for k, v in values.items() if k not in hidden and not k.startswith("validation/")}
        self._bar.set_postfix({**shown, **self._validation}, refresh=True)
