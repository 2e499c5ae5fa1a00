"""A finished experiment: its results, runs and videos, read from the workdir and the records.

experiment = open_experiment("workdir/demo")
experiment.logits("two_stream", 0)["test_003"]                 # [T, C], of a run or fusion, the first seed
run = experiment.runs["augmented_rgb"][0]                      # the first seed
experiment.outputs(run)["test_003"].features                   # [T, H]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from absl import logging
from etils import epath

from kd_jax.data.batches import make_examples
from kd_jax.data.source import Source, open_source
from kd_jax.files import DamagedFileError
from kd_jax.inference.predict import fuse, run_detector
from kd_jax.training import provenance
from kd_jax.training.checkpoints import load_run
from kd_jax.training.logs import read_log
from kd_jax.training.results_file import read_table
from kd_jax.training.run_config import read_run_config, read_run_results
from kd_jax.training.scores import read_predictions
from kd_jax.types import Outputs

_REMEDY = "run its experiment again, which repairs it or reports what it needs"


@dataclass(frozen=True)
class FinishedRun:
    """One seed of a row of the table."""

    name: str  # of the row
    seed: int
    directory: epath.Path
    config: Mapping  # config.json: what was trained
    results: Mapping  # results.json: the best epoch and the scores
    epochs: list[dict]  # metrics.jsonl: a record per epoch; [] if the file is gone


@dataclass(frozen=True)
class FinishedExperiment:
    """The files that an experiment wrote, and the videos that it was scored on."""

    workdir: epath.Path
    results: Mapping  # results.json
    runs: Mapping[str, list[FinishedRun]]  # {row of the table: a run per seed}, without fusions
    source: Source

    @property
    def seeds(self) -> list[int]:
        return self.results["seeds"]

    def row(self, name: str) -> Mapping:
        """Returns the row of the table of a run or a fusion; ValueError lists the known ones."""
        rows = {row["run"]: row for row in self.results["rows"]}
        if name not in rows:
            raise ValueError(f"{self.workdir}: there is no run or fusion {name!r}; it has {', '.join(rows)}")
        return rows[name]

    def logits(self, name: str, index: int, split: str = "test") -> dict[str, np.ndarray]:
        """Returns {video: `[T, C]`} of a run or a fusion, for the seed `seeds[index]`."""
        members = self.row(name).get("members") or [name]
        return fuse([read_predictions(self.runs[member][index].directory, split) for member in members])

    def outputs(self, run: FinishedRun, split: str = "test") -> dict[str, Outputs]:
        """Computes {video: Outputs}, `[T, H]` features and `[T, C]` logits, with the parameters of the best epoch."""
        trained, modality = load_run(run.directory), run.config["modality"]
        videos = self.source.videos(split, [modality])
        examples = make_examples(videos, modality, len(self.source.info.classes))
        outputs = run_detector(trained.model, trained.variables, examples, batch_size=8, num_buckets=2)
        return {example.id: output for example, output in zip(examples, outputs, strict=True)}


def open_experiment(workdir: epath.PathLike, data_dir: str | None = None) -> FinishedExperiment:
    """Opens a workdir; `data_dir` names the records if they have moved.

    Raises FileNotFoundError without a finished experiment or without its records, and ValueError if the records are
    not those that the experiment was trained on.
    """
    workdir = epath.Path(workdir)
    results = read_table(workdir, _REMEDY)
    if results is None:
        remedy = "run its experiment to the end, or give another workdir, e.g. workdir/demo"
        raise FileNotFoundError(f"{workdir} holds no finished experiment (without its results.json); {remedy}")
    runs = {
        row["run"]: [_open_run(workdir, row, seed, results["seeds"][0]) for seed in results["seeds"]]
        for row in results["rows"]
        if not row.get("members")
    }
    source = open_videos(workdir, results, [run.config for seeds in runs.values() for run in seeds], data_dir)
    return FinishedExperiment(workdir, results, runs, source)


def _open_run(workdir: epath.Path, row: Mapping, seed: int, first_seed: int) -> FinishedRun:
    folder = workdir / row.get("chosen", row["run"])
    folder = folder if seed == first_seed else folder / f"seed_{seed}"
    config, results = read_run_config(folder, _REMEDY), read_run_results(folder, _REMEDY)
    if config is None or results is None:
        raise FileNotFoundError(
            f"the run {folder} is gone or has not finished; run its experiment again to complete it"
        )
    if config["run"] != row.get("chosen", row["run"]):
        found = f"{folder / 'config.json'} is that of the run {config['run']}"
        raise ValueError(f"{found}; restore the folder from a copy, or delete it and run its experiment again")
    epochs = read_log(log := folder / "metrics.jsonl")
    if log.exists():
        try:
            provenance.check_file(folder, log.name, provenance.written_files(folder), "its curves may be wrong")
        except DamagedFileError as error:
            logging.warning("%s", error)
    return FinishedRun(row["run"], seed, folder, config, results, epochs)


def open_videos(
    workdir: epath.Path, results: Mapping, configs: Sequence[Mapping], data_dir: str | None, *, streamed: bool = False
) -> Source:
    """Opens the videos of an experiment.

    Args:
      workdir, results, configs: its folder, its results.json and the config.json of each run.
      data_dir: the folder of the records, if they have moved.
      streamed: leave the features on the disk.

    Raises FileNotFoundError if the records cannot be read, and ValueError if they are others.
    """
    dataset = dict(configs[0].get("dataset", {}))
    fingerprint, data_dir = dataset.pop("fingerprint", ""), data_dir or results.get("data_dir", "")
    modalities = sorted({config["modality"] for config in configs})
    try:
        fallback = results["dataset"] == "synthetic"  # a smoke variant that ran without records
        options = {"modalities": modalities, "synthetic_fallback": fallback, "streamed": streamed}
        source = open_source(data_dir=data_dir, **options, **dataset)
    except (FileNotFoundError, ValueError, TypeError) as error:  # a field of the config is missing or unknown
        remedy = "name the folder of the records with --data_dir=DIR"
        raise FileNotFoundError(f"the videos of {workdir} cannot be read ({error}); {remedy}") from None
    if source.fingerprint != fingerprint:
        remedy = "name the folder of the records that it was trained on with --data_dir=DIR"
        raise ValueError(f"{data_dir or source.info.name}: these are not the videos of {workdir}; {remedy}")
    return source
