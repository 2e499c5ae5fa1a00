"""Exports a trained run as a folder that does not need kd_jax, and verifies it on the test videos.

    kd-jax export --run=workdir/demo/augmented_rgb --output=EXPORTED

EXPORTED/detector.stablehlo is a program of jax.export for any number of videos and snippets, on CPU, CUDA and TPU, with
the parameters inside. EXPORTED/detector.py calls it and needs only jax. EXPORTED/model.safetensors, config.json and
README.md, a model card, are the layout of a Hugging Face repository; nothing is uploaded. `kd_jax.load` reads the
folder. --onnx also writes EXPORTED/detector.onnx and needs `pip install 'kd_jax[onnx]'`, in a separate environment.

If the records of the experiment exist, all test videos are predicted with the exported files. The scores and the
largest difference of a probability are printed.
"""

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from kd_jax import interrupts, runtime
from kd_jax.analysis.finished import open_videos
from kd_jax.analysis.model_card import Facts, make_card
from kd_jax.analysis.per_class import resample
from kd_jax.command_line import Parser, add_run, any_path, disk_path
from kd_jax.data.batches import bucket_lengths
from kd_jax.data.source import Source
from kd_jax.data.staging import replaced
from kd_jax.evaluation.intervals import Bootstrap
from kd_jax.evaluation.protocols import score
from kd_jax.evaluation.scoring import Scoring, make_predictions, make_truth
from kd_jax.files import make_folder, read_json, sha256
from kd_jax.inference import exports, onnx_program
from kd_jax.inference.loading import load, split_path
from kd_jax.inference.trained_detector import TrainedDetector
from kd_jax.lock import held
from kd_jax.training.checkpoints import TrainedRun
from kd_jax.training.results_file import read_table
from kd_jax.training.run_config import COPY_AGAIN, read_run_results
from kd_jax.training.table import columns

TOLERANCE, LOOSE = 1e-4, 0.05  # largest difference of a probability in float32 on a CPU, and elsewhere
DRAWS, BUDGET = 200, 2e8  # of the bootstrap; the budget counts scores


def parser() -> Parser:
    """The options of this command."""
    options = Parser("kd_jax.export", __doc__)
    add = options.add_argument
    add_run(options)
    add("--output", type=any_path, help="Folder for the exported files.")
    add("--onnx", action="store_true", help="Also write detector.onnx, and verify it.")
    add("--data_dir", type=disk_path, help="Folder of the records, if they have moved.")
    add("--license", default="", help="Licence of the weights for the model card, e.g. cc-by-4.0.")
    return options


@dataclass(frozen=True)
class Origin:
    """The experiment that trained a detector."""

    workdir: epath.Path
    results: Mapping  # results.json of the experiment
    row: Mapping | None  # the row of the detector in its table, if it has one
    scoring: Scoring
    recorded: Mapping  # {protocol/measure: score on the test videos, as the experiment wrote it}; {} if unknown
    threshold: Mapping | None  # of a single run: the one with the best F1 in validation, as in its results.json


def find_origin(path: epath.Path, detector: TrainedDetector) -> Origin | None:
    """Finds the experiment of a detector that was loaded from `path`; None if it is not there."""
    workdir, name, _ = split_path(path)
    results = None if exports.find(path) else read_table(workdir, COPY_AGAIN)
    of_first = read_run_results(workdir / detector.members[0].config["run"], COPY_AGAIN)
    if results is None or of_first is None or "scoring" not in of_first:
        return None
    row = next((row for row in results["rows"] if name in (row["run"], row.get("chosen"))), None)
    seeds = {run.config["seed"] for run in detector.members}
    recorded = row["test"][results["seeds"].index(*seeds)] if row and row["test"] and len(seeds) == 1 else {}
    threshold = of_first.get("threshold") if len(detector.members) == 1 else None
    return Origin(workdir, results, row, Scoring.from_json(of_first["scoring"]), recorded, threshold)


class Verified(NamedTuple):
    """What a verification on the test videos found."""

    sentences: list[str]
    reason: str = ""  # why the videos cannot be read, with folders of this machine
    scores: Mapping[str, str] = MappingProxyType({})  # {title: score of the export, with half of its 95 % interval}
    num_videos: int = 0


def verify(
    detector: TrainedDetector, calls: Mapping[str, exports.Call], origin: Origin | None, data_dir: str | None
) -> Verified:
    """Predicts the test videos with a detector and with its exported files, {file: function}, and compares.

    Raises ValueError for a difference above TOLERANCE, or LOOSE.
    """
    if origin is None:
        return Verified(["Not verified: the experiment that trained it was not found, so its test videos are unknown."])
    try:
        configs = [run.config for run in detector.members]
        source = open_videos(origin.workdir, origin.results, configs, data_dir)
    except (OSError, ValueError) as error:
        return Verified(["Not verified: the test videos were not available."], f"They cannot be read: {error}.")
    videos = source.videos("test", sorted(detector.inputs))
    if not videos:
        return Verified(["Not verified: the data set has no test videos."])
    tables = {video.id: {name: np.asarray(video.features[name]) for name in detector.inputs} for video in videos}
    expected = detector.predict(tables, progress="kd_jax")
    found = {name: _predict(call, tables) for name, call in calls.items()}
    sentences = [_compare(name, of_file, expected, detector) for name, of_file in found.items()]
    scores = _score(found[exports.PROGRAM], expected, source, origin)
    before = "in results.md" if origin.recorded else "with kd_jax"
    shown = ", ".join(f"{title} {ours:.2f} ({before} {theirs:.2f})" for title, (ours, _, theirs) in scores.items())
    sentences.insert(0, f"Verified on the {len(videos)} test videos: {shown or 'they have no actions to score'}.")
    with_interval = {t: f"{v:.2f}" if np.isnan(half) else f"{v:.2f} ± {half:.2f}" for t, (v, half, _) in scores.items()}
    return Verified(sentences, scores=with_interval, num_videos=len(videos))


def _predict(call: exports.Call, tables: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Predicts one video after another, padded to a few lengths, with NaN in the padding."""
    lengths = {video: len(next(iter(of.values()))) for video, of in tables.items()}
    buckets, found = bucket_lengths([*lengths.values()], 4, 1), {}
    for video, of_video in tables.items():
        length = lengths[video]
        more = next(bucket for bucket in buckets if bucket >= length) - length
        rows = functools.partial(np.pad, pad_width=((0, more), (0, 0)), constant_values=np.nan)
        given: Any = {name: rows(table.astype(np.float32))[None] for name, table in of_video.items()}
        mask = (np.arange(length + more) < length)[None]
        found[video] = np.asarray(call(given if len(given) > 1 else given.popitem()[1], mask))[0, :length]
    return found


def _compare(name: str, found: Mapping, expected: Mapping, detector: TrainedDetector) -> str:
    """Describes the largest difference of probabilities, {video: `[T, C]`}; ValueError if it is too large."""
    is_exact = jax.default_backend() == "cpu" and all(run.model.dtype == np.float32 for run in detector.members)
    allowed = TOLERANCE if is_exact else LOOSE
    difference = max(float(np.abs(table - expected[video]).max()) for video, table in found.items())
    differ = f"probabilities of {name} differ from those of kd_jax by"
    if not difference <= allowed:
        raise ValueError(f"the {differ} {difference:.2g}, more than {allowed:g}, so nothing was exported")
    return f"The {differ} at most {difference:.2g}."


def _score(found: Mapping, expected: Mapping, source: Source, origin: Origin) -> dict[str, tuple[float, float, float]]:
    """Scores probabilities, {video: `[T, C]`}: {title of a column: (percent, half of its 95 % interval, expected)}."""
    if not (videos := source.scored_videos("test")):
        return {}
    keys = {title: key for title, (split, key) in columns(origin.scoring.protocols).items() if split == "test"}
    truth = make_truth(videos, source.info)
    ours, theirs = (
        make_predictions(tables, truth, source.info.head, origin.scoring, logits=False) for tables in (found, expected)
    )

    def measure(predictions, truth) -> np.ndarray:
        values, _ = score(predictions, truth, origin.scoring.protocols)
        return np.array([values[key] for key in keys.values()])

    bootstrap = Bootstrap.within(BUDGET, sum(table.size for table in found.values()), len(videos), at_most=DRAWS)
    halves = bootstrap.half_width(lambda draw: measure(*resample(ours, truth, draw)))
    recorded = np.array([origin.recorded.get(key) for key in keys.values()], float)  # None becomes NaN
    rows = zip(measure(ours, truth), halves, recorded if origin.recorded else measure(theirs, truth), strict=True)
    return {title: (float(a), float(half), float(b)) for title, (a, half, b) in zip(keys, rows, strict=True)}


def check_output(folder: epath.Path) -> None:
    """Raises ValueError if an export would replace a file that no export wrote, or that was changed since then."""
    present = [name for name in exports.NAMES if (folder / name).exists()]
    config = read_json(folder / exports.CONFIG, "choose another folder") or {}
    written = config.get("files", {}) if config.get("library_name") == "kd_jax" else {}
    for name in present:
        if not written or name not in (*written, exports.CONFIG):
            raise ValueError(f"--output={folder} holds a {name} of something else; choose another folder")
        if name in written and sha256(folder / name) != written[name]:
            raise ValueError(
                f"{folder / name} was changed after its export; choose another folder, or delete this file"
            )


def export(given: argparse.Namespace) -> list[str]:
    """Exports what the options name; returns sentences for the user.

    Raises ValueError or OSError, one sentence with the remedy; the folder is then as it was.
    """
    if lacking := [f"--{name}" for name in ("run", "output") if not getattr(given, name)]:
        example = "--run=workdir/demo/augmented_rgb --output=DIR (--help lists all options)"
        raise ValueError(f"{', '.join(lacking)} must be given; for instance {example}")
    path, output = epath.Path(given.run), epath.Path(given.output)
    detector = load(path, seeds=given.seeds)
    check_output(output)
    programs = {exports.PROGRAM: exports.make_program(detector)}
    calls = {exports.PROGRAM: exports.read_program(programs[exports.PROGRAM])}
    if given.onnx:
        programs[exports.ONNX] = onnx_program.make(detector)
        calls[exports.ONNX] = onnx_program.read(programs[exports.ONNX])
    origin = find_origin(path, detector)
    verified = verify(detector, calls, origin, given.data_dir)
    interval = f"half of the 95 % interval by bootstrap over the {verified.num_videos} test videos"
    known = {"results": origin.results, "row": origin.row, "threshold": origin.threshold} if origin else {}
    facts = Facts(**known, scores=verified.scores, interval=interval, checks=verified.sentences, license=given.license)
    make_folder(output, "output")
    with held(output), replaced(output) as folder:
        files = exports.write(folder, detector, programs, make_card(detector, facts))
        check_same(detector, exports.read(folder, folder))
    lines = [f"Exported {detector.title} to {output}: {', '.join(files)}.", *verified.sentences, verified.reason]
    return list(filter(None, lines))


def check_same(detector: TrainedDetector, members: Sequence[TrainedRun]) -> None:
    """Raises ValueError unless the runs have the parameters of those of a detector, bit for bit."""
    trees = [[run.variables for run in runs] for runs in (detector.members, members)]
    if not jax.tree.all(jax.tree.map(np.array_equal, *trees)):
        raise ValueError(f"{exports.WEIGHTS} does not hold the parameters of {detector.name}; export it again")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`; None reads those of the program."""
    given = parser().parse_args(argv)
    runtime.start()
    try:
        print("\n".join(export(given)))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"kd_jax.export: {error}")


if __name__ == "__main__":
    interrupts.run("kd_jax.export", main)
