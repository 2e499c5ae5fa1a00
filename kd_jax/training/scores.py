"""Saved logits of finished runs → scores."""

from collections.abc import Sequence

import numpy as np
from absl import logging
from etils import epath

from kd_jax.data.annotations import describe
from kd_jax.data.source import Source
from kd_jax.evaluation.scoring import Scoring, probabilities, score_split
from kd_jax.evaluation.thresholds import Suggestion, best_threshold
from kd_jax.files import DamagedFileError, read_arrays, write_json
from kd_jax.inference.predict import fuse
from kd_jax.training import provenance
from kd_jax.training.logs import read_log
from kd_jax.training.run_config import read_run_results

# {split: file with its logits in the folder of a run}
PREDICTIONS = {"validation": "predictions_validation.npz", "test": "predictions_test.npz"}
VALIDATION = Scoring(("frame_map",))  # how validation videos are scored to choose the best epoch


def protocols_of(config) -> tuple[str, ...]:
    """The protocols that the config names, or those of the data set's benchmark."""
    return tuple(config.evaluation.protocols) or describe(config.dataset.name).protocols


def scoring_of(config, head: str) -> Scoring:
    """How the test videos are scored: as the config says, and otherwise with the defaults of the benchmark and head."""
    options = config.evaluation
    chosen = Scoring(protocols_of(config), options.proposals, options.threshold, options.convention)
    return chosen.with_defaults(head)


def score_predictions(directories: Sequence[epath.Path], source: Source, scoring: Scoring) -> dict:
    """Scores the saved logits of a finished run, or the mean logits of several: {'validation': …, 'test': scores}.

    The validation videos are scored with VALIDATION. A split without actions has no scores.
    """
    scores = {}
    for split, how in {"validation": VALIDATION, "test": scoring}.items():
        if videos := source.scored_videos(split):
            logits = fuse([read_predictions(directory, split) for directory in directories])
            scores[split] = score_split(logits, videos, source.info, how)
    return scores


def read_predictions(
    directory: epath.Path, split: str, remedy: str = "run its experiment again, which predicts again"
) -> dict[str, np.ndarray]:
    """Reads {video: logits `[T, C]`} of a finished run.

    Raises DamagedFileError, which ends with the remedy, if they cannot be read, or are not what the run wrote.
    """
    path = directory / PREDICTIONS[split]
    try:
        tables = read_arrays(path)
    except FileNotFoundError:
        raise DamagedFileError(f"{path} is missing; {remedy}") from None
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged ({error}); {remedy}") from None
    provenance.check_file(directory, path.name, provenance.written_files(directory), remedy)
    return tables


def read_results(directory: epath.Path) -> dict | None:
    """Reads the results.json of a run; None, with a warning, if it has not finished or lost its results."""
    remedy = "it is written again"
    try:
        results = read_run_results(directory, remedy)
        for split in PREDICTIONS if results else ():
            read_predictions(directory, split, remedy)
    except DamagedFileError as error:
        logging.warning("%s", error)
        return None
    return results


def write_results(directory: epath.Path, best_epoch: int, source: Source, scoring: Scoring) -> dict:
    """Scores a run and writes its results.json, the last file of a run; returns the content."""
    scores = score_predictions([directory], source, scoring)
    results = {"best_epoch": best_epoch, "scoring": scoring.as_json(), **scores}
    if suggested := _suggest_threshold(directory, source):
        results["threshold"] = {name: round(value, 2) for name, value in suggested._asdict().items()}
    entries = read_log(directory / "metrics.jsonl")
    if entries and "competence" in entries[-1]:
        results["competence"] = entries[-1]["competence"]  # of its teachers, in the last epoch
    write_json(directory / "results.json", results)
    return results


def _suggest_threshold(directory: epath.Path, source: Source) -> Suggestion | None:
    """The threshold that is best for the validation videos, for `kd_jax.predict`; None without labels there."""
    videos, info = source.scored_videos("validation"), source.info
    logits = read_predictions(directory, "validation") if videos else {}
    tables = [probabilities(logits[video.id], info.head) for video in videos]
    labels = [v.grid.labels(v.segments, len(logits[v.id]), len(info.classes)) for v in videos]
    return best_threshold(zip(tables, labels, strict=True), info.head)
