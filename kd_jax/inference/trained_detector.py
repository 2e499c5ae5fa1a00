"""A finished run, all its seeds or a fusion, as a function from features to probabilities.

    run = kd_jax.load("workdir/demo/augmented_rgb")
    probabilities = run(features)                           # [T, D] -> [T, C]
    for found in run.detect(features):                      # Detection(class_, start, end, score), times in seconds
        print(found.class_, found.start, found.end)

`kd_jax.predict` is the same for files: it reads features or videos, calls the same functions and writes the results.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from kd_jax.data import base, timing
from kd_jax.data.batches import Example
from kd_jax.evaluation.proposals import Rule, choose
from kd_jax.evaluation.scoring import probabilities
from kd_jax.files import checked_path
from kd_jax.inference import video_files
from kd_jax.inference.checks import check_features
from kd_jax.inference.predict import check_outputs, fuse, run_detector
from kd_jax.segments import Grid
from kd_jax.training.checkpoints import TrainedRun
from kd_jax.video import videos
from kd_jax.video.encoders.protocol import Encoder
from kd_jax.video.encoders.weights import read_encoder


class Detection(NamedTuple):
    """An action that was found in a video."""

    class_: str  #: the name of its class
    start: float  #: seconds
    end: float  #: seconds
    score: float  #: from 0 to 1


@dataclass(frozen=True, eq=False, repr=False)
class TrainedDetector:
    """One or several trained detectors, with the parameters of their best epochs; several average their logits."""

    name: str  # the folder that was loaded
    members: tuple[TrainedRun, ...]  # each has a model, its variables and the content of the run's config.json

    def __repr__(self) -> str:
        reads = ", ".join(f"{modality} [T, {size}]" for modality, size in self.inputs.items())
        several = f", mean of {len(self.members)} runs" if len(self.members) > 1 else ""
        return f"TrainedDetector({self.name!r}: {reads} -> {len(self.classes)} classes, {self.head}{several})"

    @property
    def title(self) -> str:
        """The name of the run or of the fusion."""
        path = epath.Path(self.name)
        of_fusion = f"{path.parent.name}/{path.name}" if path.name.startswith("seed_") else path.name
        return self._config["run"] if len(self.members) == 1 else of_fusion

    @property
    def inputs(self) -> dict[str, int]:
        """D, the width of the features, by modality such as 'rgb'; only a fusion reads several."""
        return {run.config["modality"]: run.config["input_size"] for run in self.members}

    @property
    def classes(self) -> list[str]:
        """The names of the C classes."""
        return self._config["classes"]

    @property
    def head(self) -> str:
        """'dense' (a sigmoid per class) or 'sparse' (a softmax over the classes and a background)."""
        return self._config["head"]

    @property
    def seconds_per_snippet(self) -> float:
        """The time from one snippet of the training videos to the next, in seconds."""
        return self._config["seconds_per_snippet"]

    @property
    def _config(self) -> dict:
        return self.members[0].config

    def reader(self, modality: str) -> TrainedRun:
        """Returns the first member that reads this modality."""
        return next(run for run in self.members if run.config["modality"] == modality)

    def grid(self, num_snippets: int, seconds: float | None = None) -> Grid:
        """Returns the times of T snippets that were made like those of the training videos, in seconds.

        `seconds` from one snippet to the next replace those of the training videos.
        """
        if seconds is not None and not timing.SHORTEST <= seconds <= timing.LONGEST:
            bounds = f"from {timing.SHORTEST:g} to {timing.LONGEST:g}"
            raise ValueError(f"seconds={seconds} must be {bounds}, the time from one snippet to the next")
        return self.members[0].grid(num_snippets, seconds)

    def __call__(self, features: Any, mask: np.ndarray | None = None, *, batch_size: int = 8) -> Any:
        """Returns the probabilities of whole videos.

        Args:
          features: one video `[T, D]`; a list of videos, whose T may differ; or a batch `[B, T, D]` with a mask. A
            fusion of several modalities reads {modality: one of these}. Any real dtype; values are rounded to the type
            of the training features, as `kd_jax.predict` does.
          mask: `[B, T]` bool, only with a batch: True at the snippets of each video, which come first, and False at its
            padding.
          batch_size: videos per forward pass.

        Returns `[T, C]` float32; a list of these for a list; `[B, T, C]` for a batch, 0 in the padding. The sparse head
        adds a last column, the background. Programs are compiled once for each padded length, a multiple of 16.

        Raises ValueError for another shape, D, dtype or mask, and for a value that is not finite, with the snippet;
        FloatingPointError if the outputs are not finite.
        """
        is_mapping, reads = isinstance(features, Mapping), self.inputs
        given = features if is_mapping else {modality: features for modality in reads if len(reads) == 1}
        if given.keys() != reads.keys():
            found = (
                f"a mapping of {', '.join(map(repr, given)) or 'nothing'}" if is_mapping else "those of one modality"
            )
            wanted = ", ".join(f"{modality!r}: {modality}_features" for modality in reads)
            raise ValueError(f"features are {found}, but {self.name} reads {{{wanted}}}")
        tables: list[dict[str, np.ndarray]] = []
        for modality, value in given.items():
            config = self.reader(modality).config
            name, dtype = f"features[{modality!r}]" if is_mapping else "features", stored_dtype(config)
            parts = _as_videos(name, value, mask)
            tables = tables or [{} for _ in parts]
            if len(parts) != len(tables):
                raise ValueError(
                    f"{name} has {len(parts)} videos, and another modality {len(tables)}; give the same ones"
                )
            for of_video, (part, table) in zip(tables, parts, strict=True):
                of_video[modality] = check_features(table, config["input_size"], part, dtype=dtype)
        outputs = self.predict({f"features[{i}]": video for i, video in enumerate(tables)}, batch_size=batch_size)
        if mask is not None:
            return _pad(list(outputs.values()), np.asarray(mask), self._config["model"]["num_outputs"])
        is_list = all(isinstance(value, (list, tuple)) for value in given.values())
        return list(outputs.values()) if is_list else outputs["features[0]"]

    def predict(
        self,
        tables: Mapping[str, Mapping[str, base.Features]],
        *,
        batch_size: int = 8,
        num_buckets: int = 4,
        progress: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns {video: `[T, C]` probabilities} of features that have been checked, {video: {modality: `[T, D]`}}.

        `batch_size`, `num_buckets` and `progress` are those of `run_detector`. Raises ValueError if the modalities of a
        video differ in T or `batch_size` is below 1, and FloatingPointError if outputs are not finite.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        for video, of_video in tables.items():
            if len({len(table) for table in of_video.values()}) > 1:
                counts = ", ".join(f"{modality} {len(table)}" for modality, table in of_video.items())
                raise ValueError(f"{video}: the modalities differ in T, {counts}; give features of the same snippets")
        streams = []
        for run in self.members:
            modality = run.config["modality"]
            labels = {video: np.zeros((len(of[modality]), 0), np.uint8) for video, of in tables.items()}
            examples = [Example(video, of[modality], labels[video]) for video, of in tables.items()]
            options: dict[str, Any] = {"batch_size": batch_size, "num_buckets": num_buckets, "progress": progress}
            outputs = run_detector(run.model, run.variables, examples, with_features=False, **options)
            streams.append({e.id: np.asarray(o.logits) for e, o in zip(examples, outputs, strict=True)})
        logits = fuse(streams)
        check_outputs("the outputs for", logits)
        return {video: probabilities(table, self.head) for video, table in logits.items()}

    def detect(
        self,
        features: Any,
        *,
        seconds: float | None = None,
        duration: float | None = None,
        proposals: str | None = None,
        threshold: float | None = None,
        convention: str = "centre",
    ) -> list[Detection]:
        """Returns the actions in one video, sorted by class, start and end; the rules are those of `kd_jax.predict`.

        Args:
          features: `[T, D]`, or {modality: `[T, D]`} for a fusion of several modalities.
          seconds: from one snippet to the next; None for those of the training videos.
          duration: of the video in seconds, where the last detection ends at the latest; None if unknown.
          proposals: the rule, a key of `kd_jax.evaluation.proposals.PROPOSALS`; None for that of the head.
          threshold: probability from which a snippet counts as action; None for that of the rule.
          convention: where a snippet is in time, 'centre' or 'start', see `kd_jax.evaluation.proposals`.

        Raises ValueError as `__call__`, and for an option that is out of range.
        """
        rule = self.rule(proposals, threshold, convention)
        arrays = features.values() if isinstance(features, Mapping) else [features]
        if any(isinstance(array, (list, tuple)) or np.ndim(array) == 3 for array in arrays):
            raise ValueError("detect reads one video, [T, D]; call it for each video of the list or batch")
        table = self(features)
        return self._named(rule(table, self.grid(len(table), seconds), duration=duration))

    def rule(self, proposals: str | None, threshold: float | None, convention: str) -> Rule:
        """Returns the rule that makes detections of probabilities, with the options of `detect`."""
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} must be a probability, from 0 to 1")
        return choose(proposals, self.head, threshold=threshold, convention=convention)

    def _named(self, table: np.ndarray) -> list[Detection]:
        return [Detection(self.classes[int(class_id)], *row) for class_id, *row in table.tolist()]

    def detect_video(
        self,
        path: str | os.PathLike,
        encoder: str | os.PathLike | Encoder,
        *,
        fps: float | None = None,
        batch_size: int = 8,
        proposals: str | None = None,
        threshold: float | None = None,
        convention: str = "centre",
    ) -> list[Detection]:
        """Returns the actions in a video file; it is cut into snippets as the training videos were.

        Args:
          path: a video file, or a folder of numbered pictures.
          encoder: the encoder that made the features of the run: its file of weights, or an `Encoder` of your own.
          fps: frames per second at which the video is sampled; None as for the training videos. Needed for pictures.
          batch_size: snippets per forward pass of the encoder.
          proposals, threshold, convention: as in `detect`.

        Raises ValueError if the video cannot be read, the encoder does not fit, or the run reads several modalities;
        FileNotFoundError without the file of weights.
        """
        rule = self.rule(proposals, threshold, convention)
        if len(self.inputs) > 1:
            remedy = "extract the features of each (kd-jax extract) and call detect"
            raise ValueError(
                f"{self.name} reads {' and '.join(self.inputs)}, and an encoder makes one of them; {remedy}"
            )
        config, named = self._config, f"encoder={encoder if isinstance(encoder, (str, os.PathLike)) else '…'}"
        made, what = video_files.how_extracted(config), "encoder"
        if isinstance(encoder, (str, os.PathLike)):
            encoder, what = read_encoder(None, Path(checked_path(encoder)), dtype=made["dtype"]), "weights"
        video_files.check_encoder(encoder, config, named, what)
        sampling = videos.make_sampling(encoder.modality, encoder.sampling | made["sampling"])
        file = {"video": Path(checked_path(path))}
        opened = video_files.open_videos(file, encoder, config, sampling, fps)
        encoded = video_files.encode(opened, batch_size, stored_dtype(config))
        table = self.predict({"video": {encoder.modality: encoded.features["video"]}})["video"]
        return self._named(rule(table, encoded.grids["video"], duration=encoded.durations["video"]))


def stored_dtype(config: Mapping) -> str:
    """Returns the type in which the records of a run hold its features."""
    return config.get("features_dtype") or "float16"


def _as_videos(name: str, value: Any, mask: np.ndarray | None) -> list[tuple[str, Any]]:
    """Returns (name for messages, `[T, D]`) of each video in an array, a list or a batch with a mask."""
    is_list = isinstance(value, (list, tuple))
    if not is_list and np.ndim(value) == 3:
        if mask is None:
            remedy = "give mask=, [B, T] bool, or a list of videos"
            raise ValueError(f"the array {name} has shape {list(np.shape(value))}, a batch; {remedy}")
        lengths = _lengths(mask, np.shape(value))
        return [(f"{name}[{i}]", np.asarray(value)[i, :length]) for i, length in enumerate(lengths) if length]
    if mask is not None:
        raise ValueError(f"mask belongs to a batch [B, T, D], and {name} is not a batch; leave it out")
    return [(f"{name}[{i}]", table) for i, table in enumerate(value)] if is_list else [(name, value)]


def _lengths(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the number of snippets of each video of a batch; ValueError unless they come before the padding."""
    mask = np.asarray(mask)
    if mask.shape != shape[:2] or mask.dtype != bool:
        found = f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"mask is {found}; it must be bool {list(shape[:2])} for features {list(shape)}")
    lengths = mask.sum(axis=1)
    if (wrong := mask != (np.arange(shape[1]) < lengths[:, None])).any():
        video = int(wrong.any(axis=1).argmax())
        raise ValueError(f"mask of video {video} is False before a True; put its snippets first, and its padding last")
    return lengths


def _pad(tables: Sequence[np.ndarray], mask: np.ndarray, num_outputs: int) -> np.ndarray:
    """Returns the tables of the videos that have snippets as `[B, T, C]`, 0 in the padding."""
    batch = np.zeros((*mask.shape, num_outputs), np.float32)
    for row, table in zip(np.flatnonzero(mask.any(axis=1)), tables, strict=True):
        batch[row, : len(table)] = table
    return batch
