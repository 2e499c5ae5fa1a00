"""Whole videos → scores and detections.

    python -m kd_jax.predict --run=workdir/demo/augmented_rgb --features=DIR_OR_NPY --output=OUT

reads `<video>.npy` files of the run's own modality, or one split of a folder of records, and writes OUT/scores.npz,
{video: `[T, C]` probabilities}, and OUT/detections.json, [{video, class, start, end, score}] in seconds. No annotation
is needed. --format adds or chooses the formats of official evaluation scripts, see `kd_jax.evaluation.formats`.

    python -m kd_jax.predict --run=workdir/tsu/augmented_rgb --video=kitchen.mp4 \
        --encoder_weights=weights/i3d_rgb.npz --output=OUT

reads a video itself, with the encoder that the run's features are from, and adds OUT/<video>.png: frames, and below
them when each class was found. Where `data_prep.extract` made its features, the run knows how a video is to be cut;
options may say it otherwise. Where snippets would last a tenth longer or shorter than those that the run was trained
with, the video is sampled so that they last as long.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath

from kd_jax import runtime
from kd_jax.data import base, feature_files, records
from kd_jax.data.batches import Example
from kd_jax.data.checks import Findings
from kd_jax.evaluation import formats
from kd_jax.evaluation.proposals import CONVENTIONS, PROPOSALS, choose
from kd_jax.evaluation.scoring import probabilities
from kd_jax.files import make_folder, sha256
from kd_jax.inference.predict import predict
from kd_jax.training.checkpoints import TrainedRun, load_teacher
from kd_jax.video import timeline, videos
from kd_jax.video.encode import encode_video
from kd_jax.video.encoders.weights import Weights, read_weights


def read_features(path: Path, modality: str, input_size: int) -> dict[str, np.ndarray]:
    """Reads `<video>.npy` or `.npz` files, `[T, D]` or `[T, 1, 1, D]`, as the builder of records does.

    Raises:
      FileNotFoundError, ValueError: listing every file that cannot be used.
    """
    files = feature_files.FeatureFolder((modality,), path).files() if path.is_dir() else {path.stem: path}
    if not files or not all(file.exists() for file in files.values()):
        raise FileNotFoundError(
            f"--features={path}: no feature file there; give a folder of <video>.npy files, one file, or records"
        )
    findings, features = Findings(), {}
    for video, file in sorted(files.items()):
        shape = feature_files.check_file(modality, file, findings)
        if shape and shape[1] != input_size:
            findings.problem("wrong dimension", f"{modality}: {file}: D = {shape[1]}, the run reads {input_size}")
        elif shape:
            features[video] = feature_files.load_file(file)
    findings.raise_problems()
    return features


def _read_input(path: Path, split: str | None, run: TrainedRun, seconds: float | None) -> tuple[dict, dict, dict]:
    """{video: features}, {video: seconds per snippet} and {video: duration}, the latter only where it is known."""
    modality, size = run.config["modality"], run.config["input_size"]
    if not (path / records.INFO_FILE).is_file():
        if split:
            raise ValueError(f"--split={split} would have no effect on {path}, which holds no records; leave it out")
        features = read_features(path, modality, size)
        return features, dict.fromkeys(features, seconds or run.config["seconds_per_snippet"]), {}
    if seconds:
        raise ValueError(f"{path} holds records, which know their durations; leave out --seconds_per_snippet")
    info, split = records.read_info(path), split or "test"
    if info.modalities.get(modality, size) != size:
        raise ValueError(f"{path}: {modality} has D = {info.modalities[modality]}, the run reads {size}")
    videos = records.read(path, split, [modality], on_disk=True)
    if not videos:
        raise ValueError(f"{path}: {split} has no videos; choose another --split")
    durations = {video.id: info.seconds(video.duration) for video in videos}
    features = {video.id: video.features[modality] for video in videos}
    return features, {video: durations[video] / len(table) for video, table in features.items()}, durations


def _open_videos(paths: list[Path], run: TrainedRun, given) -> tuple[Weights, videos.Sampling, dict, list[str]]:
    """The encoder, how it cuts videos, {name: Video}, and what is wrong with the others."""
    modality, size = run.config["modality"], run.config["input_size"]
    made = run.config.get("extraction") or {"dtype": "float32", "sampling": {}, "sampled_fps": None}
    seconds = made.get("seconds_per_snippet", run.config["seconds_per_snippet"])
    if not given.encoder_weights:
        raise ValueError("--video needs --encoder_weights, of the encoder that the run's features are from")
    path = Path(given.encoder_weights)
    weights = read_weights(path, dtype=jnp.dtype(made["dtype"]))
    if (weights.modality, weights.num_features) != (modality, size):
        raise ValueError(
            f"--encoder_weights={path} give {weights.num_features} features of {weights.modality}; "
            f"the run reads {size} of {modality}"
        )
    if modality == "pose":
        raise ValueError("--video cannot be read by a run of pose; give --features of data_prep.extract --skeletons")
    if (expected := made.get("weights_sha256", found := sha256(path))) != found:
        raise ValueError(
            f"--encoder_weights={path} (sha256 {found[:12]}…) are not the weights that the run's features are from "
            f"({expected[:12]}…); give those"
        )
    if len({videos.name_of(path) for path in paths}) < len(paths):
        raise ValueError("two of --video have the same name; predict them into two --output folders")
    sampling = videos.sampling(given, modality, {**weights.manifest, **made["sampling"]})
    fps = made["sampled_fps"] if given.fps is None else given.fps
    opened, broken = {}, []
    for path in paths:
        try:
            video = videos.probe(path, fps)
            # Not exactly, since without manifests `seconds` is the median of duration / T.
            if seconds and fps is None and not 0.9 < sampling.stride / video.fps / seconds < 1.1:
                video = videos.probe(path, sampling.stride / seconds)
            opened[videos.name_of(path)] = video
        except videos.VideoError as error:
            broken.append(str(error))
    if not opened:
        raise ValueError("; ".join(broken))
    return weights, sampling, opened, broken


def _range(values: Mapping[str, float]) -> str:
    """'0.64', or '0.13 to 0.16'."""
    return " to ".join(dict.fromkeys(f"{value:.4g}" for value in (min(values.values()), max(values.values()))))


def _check_options(given) -> None:
    if lacking := [f"--{name}" for name in ("run", "output") if not given[name].value]:
        raise ValueError(
            f"{', '.join(lacking)} must be given; say for instance --run=workdir/demo/augmented_rgb --features=DIR "
            "--output=DIR (--help has all options)"
        )
    if bool(given.features) == bool(given.video):
        raise ValueError("give either --features or --video")
    if given.video:
        videos.refuse_vain(given, ["seconds_per_snippet", "split"], "--video")
    else:
        names = [field.name for field in dataclasses.fields(videos.Sampling)]
        videos.refuse_vain(given, ["encoder_weights", "fps", *names], "--features")


def main(argv):
    if len(argv) > 1:
        sys.exit(f"kd_jax.predict: unexpected argument {argv[1]!r}; options start with --")
    runtime.start()
    arguments = flags.FLAGS
    try:
        _check_options(arguments)
        run = load_teacher(arguments.run)
        head, classes = run.config["head"], run.config["classes"]
        opened, shown, broken = {}, {}, []
        if arguments.video:
            weights, sampling, opened, broken = _open_videos(list(map(Path, arguments.video)), run, arguments)
        else:
            features, seconds, durations = _read_input(
                Path(arguments.features), arguments.split, run, arguments.seconds_per_snippet
            )
        rule = choose(arguments.proposals, head, threshold=arguments.threshold, convention=arguments.convention)
        formats.check_formats(arguments.format, list(opened or features), len(classes))
        output = epath.Path(arguments.output)
        make_folder(output, "output")
        if arguments.video:
            encoded = {}
            for name, video in opened.items():
                try:
                    encoded[name] = encode_video(
                        weights, video, sampling, batch_size=arguments.batch_size, num_frames=12
                    )
                except videos.VideoError as error:
                    broken.append(str(error))
            if not encoded:
                raise ValueError("; ".join(broken))
            features = {name: base.to_float16(table) for name, (table, _) in encoded.items()}  # as records have them
            shown = {name: frames for name, (_, frames) in encoded.items()}
            durations = {name: video.duration for name, video in opened.items()}
            seconds = {name: durations[name] / len(table) for name, table in features.items()}  # as labels are made
        examples = [Example(video, table, np.zeros((len(table), 0), np.uint8)) for video, table in features.items()]
        outputs = predict(
            run.model,
            run.variables,
            examples,
            batch_size=arguments.batch_size,
            num_buckets=4,
            progress="predicting",
            with_features=False,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.predict: {error}")
    scores = {e.id: probabilities(o.logits, head) for e, o in zip(examples, outputs, strict=True)}
    try:
        found = {v: rule(table, seconds[v], duration=durations.get(v)) for v, table in scores.items()}
        paths = formats.write(output, arguments.format, scores=scores, detections=found, classes=classes)
        for name, frames in shown.items():
            paths.append(output / f"{name}.png")
            timeline.draw(paths[-1], frames, duration=durations[name], detections=found[name], classes=classes)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.predict: {error}")
    counts = [
        f"{n} {what}{'s'[: n != 1]}"
        for n, what in ((len(scores), "video"), (sum(map(len, found.values())), "detection"))
    ]
    print(f"{', '.join(counts)}, {_range(seconds)} s a snippet: {', '.join(map(str, paths))}")
    if broken:
        sys.exit("\n".join([f"kd_jax.predict: {len(broken)} could not be used:", *broken]))


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Folder of a finished run, e.g. workdir/demo/augmented_rgb.")
    flags.DEFINE_string("features", None, "A .npy file, a folder of them, or a folder of records.")
    flags.DEFINE_multi_string("video", [], "A video file instead; repeat it for several.")
    flags.DEFINE_string("encoder_weights", None, "Of a video: the encoder's, from data_prep.convert_weights.")
    flags.DEFINE_float("fps", None, "Of a video: frames per second to sample it at (so that snippets last as trained).")
    videos.define_flags("as the run's features, else ")
    flags.adopt_module_key_flags(videos)  # --help shows them
    flags.DEFINE_enum("split", None, list(base.SPLITS), "Of records: which videos (test).")
    flags.DEFINE_string("output", None, "Folder for scores.npz and detections.json.")
    flags.DEFINE_multi_enum("format", ["native"], list(formats.FORMATS), "What to write; repeat it for several.")
    flags.DEFINE_enum("proposals", None, list(PROPOSALS), "Scores → detections (dense: classes, sparse: background).")
    flags.DEFINE_float(
        "threshold",
        None,
        "Probability from which a snippet counts as action (dense 0.5, sparse 0.4).",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_enum(
        "convention", "centre", list(CONVENTIONS), "Where a snippet is, see kd_jax/evaluation/proposals.py."
    )
    flags.DEFINE_float("seconds_per_snippet", None, "Overrides the snippet length the run was trained with.")
    flags.register_validator(
        "seconds_per_snippet",
        lambda seconds: seconds is None or 0 < seconds < math.inf,
        "it must be a finite number above 0",
    )
    flags.DEFINE_integer("batch_size", 8, "Whole videos, and snippets of a video, a forward pass.", lower_bound=1)
    app.run(main)
