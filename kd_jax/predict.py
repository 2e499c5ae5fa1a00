"""Whole videos → scores and detections.

    python -m kd_jax.predict --run=workdir/demo/augmented_rgb --features=DIR_OR_NPY --output=OUT

reads `<video>.npy` files of the run's own modality and writes OUT/scores.npz, {video: `[T, C]` probabilities}, and
OUT/detections.json, [{video, class, start, end, score}] in seconds. No annotation is needed. --format adds or chooses
the formats of official evaluation scripts, see `kd_jax.submissions`.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from tqdm import tqdm

from kd_jax import input_pipeline, submissions
from kd_jax.checkpoints import load_teacher
from kd_jax.distill import eval_step
from kd_jax.proposals import CONVENTIONS, PROPOSALS, choose
from kd_jax.types import Outputs

# One compilation per model and padded length, shared by every caller of the process.
_forward = functools.partial(jax.jit, static_argnums=0)(eval_step)


def predict(
    model,
    variables: dict,
    examples: Sequence[input_pipeline.Example],
    *,
    batch_size: int,
    num_buckets: int,
    progress: str | None = None,
) -> list[Outputs]:
    """Runs a detector over whole videos.

    Args:
      model, variables: as `load_teacher` returns them.
      examples: the videos; labels are not read.
      batch_size: videos a forward pass.
      num_buckets: padded lengths, each compiled once.
      progress: label of a progress bar; None for none.

    Returns:
      For each video, numpy Outputs of its own length: `[T, H]` features and `[T, C]` logits, float32.
    """
    mesh = input_pipeline.data_mesh()
    variables = input_pipeline.replicate(variables, mesh)
    lengths = [len(example.features) for example in examples]
    outputs: list[Outputs | None] = [None] * len(examples)
    buckets = input_pipeline.bucket_lengths(lengths, num_buckets) if examples else ()
    with tqdm(total=len(examples), desc=progress, unit="video", disable=None if progress else True, leave=False) as bar:
        for indices, batch, _ in input_pipeline.epoch(examples, buckets, batch_size, mesh):
            result = jax.device_get(_forward(model, variables, batch.features, batch.mask))
            for row, index in enumerate(indices):
                length = lengths[index]
                outputs[index] = Outputs(result.features[row, :length].copy(), result.logits[row, :length].copy())
            bar.update(len(indices))
    return outputs


def probabilities(logits: np.ndarray, head: str) -> np.ndarray:
    """Sigmoid (dense) or softmax with the background last (sparse) of `[T, C]` logits."""
    if head == "dense":
        return np.exp(-np.logaddexp(0, -logits))
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def fuse(streams: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Two-stream: the average of the streams' logits, {video: `[T, C]`}."""
    if any(stream.keys() != streams[0].keys() for stream in streams):
        raise ValueError("the streams to fuse hold different videos")
    return {video: np.mean([stream[video] for stream in streams], axis=0) for video in streams[0]}


def read_features(path: Path, input_size: int) -> list[input_pipeline.Example]:
    """Reads `<video>.npy` files, `[T, D]` or `[T, 1, 1, D]`.

    Raises:
      FileNotFoundError, ValueError: listing every file that cannot be used.
    """
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(
            f"--features={path}: no .npy file there; give a folder of <video>.npy files or one file"
        )
    examples, problems = [], []
    for file in files:
        try:
            features = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            problems.append(f"{file}: not a readable .npy file ({error})")
            continue
        shape = features.shape
        if features.ndim > 2 and all(size == 1 for size in shape[1:-1]):
            features = features.reshape(shape[0], shape[-1])
        if features.ndim != 2 or features.shape[-1] != input_size or not len(features):
            problems.append(f"{file}: shape {shape}, but the run reads [T, {input_size}]")
        elif features.dtype.kind not in "fiu" or not np.isfinite(features).all():
            problems.append(f"{file}: dtype {features.dtype} or values that are not finite numbers")
        else:
            features = features if features.dtype in (np.float16, np.float32) else features.astype(np.float32)
            examples.append(input_pipeline.Example(file.stem, features, np.zeros((len(features), 0), np.uint8)))
    if problems:
        raise ValueError(
            "\n  ".join([f"{len(problems)} of {len(files)} feature files cannot be used:", *problems[:20]])
        )
    return examples


def main(argv):
    del argv
    arguments = flags.FLAGS
    try:
        run = load_teacher(arguments.run)
        examples = read_features(Path(arguments.features), run.config["input_size"])
        head, classes = run.config["head"], run.config["classes"]
        rule = choose(arguments.proposals, head, threshold=arguments.threshold, convention=arguments.convention)
        submissions.check_formats(arguments.format, [example.id for example in examples], len(classes))
        output = Path(arguments.output)
        output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.predict: {error}")
    outputs = predict(
        run.model, run.variables, examples, batch_size=arguments.batch_size, num_buckets=4, progress="predicting"
    )
    seconds = arguments.seconds_per_snippet or run.config["seconds_per_snippet"]
    scores = {e.id: probabilities(o.logits, head) for e, o in zip(examples, outputs, strict=True)}
    try:
        found = {video: rule(table, seconds) for video, table in scores.items()}
        paths = submissions.write(output, arguments.format, scores=scores, detections=found, classes=classes)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.predict: {error}")
    count = sum(map(len, found.values()))
    print(f"{len(scores)} videos, {count} detections, {seconds:g} s a snippet: {', '.join(map(str, paths))}")


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Folder of a finished run, e.g. workdir/demo/augmented_rgb.", required=True)
    flags.DEFINE_string("features", None, "A .npy file, or a folder of <video>.npy files.", required=True)
    flags.DEFINE_string("output", None, "Folder for scores.npz and detections.json.", required=True)
    flags.DEFINE_multi_enum("format", ["native"], list(submissions.FORMATS), "What to write; repeat it for several.")
    flags.DEFINE_enum("proposals", None, list(PROPOSALS), "Scores → detections (dense: classes, sparse: background).")
    flags.DEFINE_float("threshold", None, "Probability from which a snippet counts as action (dense 0.5, sparse 0.4).")
    flags.DEFINE_enum("convention", "centre", list(CONVENTIONS), "Where a snippet is, see kd_jax/proposals.py.")
    flags.DEFINE_float("seconds_per_snippet", None, "Overrides the snippet length the run was trained with.")
    flags.DEFINE_integer("batch_size", 8, "Whole videos a forward pass.", lower_bound=1)
    app.run(main)
