"""Video files for a trained run: they are opened, and encoded as the features of the run were.

files = open_videos({"kitchen": Path("kitchen.mp4")}, encoder, run.config, sampling)
encoded = encode(files, batch_size=8, dtype="float16")          # features and times, as records store them
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from kd_jax.data import base, timing
from kd_jax.data.checks import join_repeated
from kd_jax.segments import Grid
from kd_jax.video import videos
from kd_jax.video.encode import encode_video
from kd_jax.video.encoders.protocol import Encoder
from kd_jax.video.folders import files_of


@dataclasses.dataclass
class VideoFiles:
    """Video files that were opened, and how an encoder reads them."""

    encoder: Encoder
    sampling: videos.Sampling  # how a video is cut into snippets
    opened: dict[str, videos.Video]  # by name
    broken: list[str]  # one sentence for each of the other files


@dataclasses.dataclass
class Encoded:
    """Encoded videos; every mapping is {video: value}."""

    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [T, D]
    grids: dict[str, Grid] = dataclasses.field(default_factory=dict)  # the times of the snippets, in seconds
    durations: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds
    frames: dict[str, Sequence[np.ndarray]] = dataclasses.field(default_factory=dict)  # to draw
    broken: list[str] = dataclasses.field(default_factory=list)  # one sentence per file that cannot be used


def how_extracted(config: Mapping) -> Mapping:
    """Returns how the features of a run were extracted, as its config.json says, or the defaults."""
    return config.get("extraction") or {"dtype": "float32", "sampling": {}, "sampled_fps": None}


def check_encoder(encoder: Encoder, config: Mapping, named: str, what: str) -> None:
    """Raises ValueError unless an encoder makes features like those that a run was trained on.

    Args:
      config: the content of the run's config.json.
      named: the argument or option that gave the encoder, for messages.
      what: 'encoder' or 'weights', whichever has the checksum of the encoder.
    """
    modality, size, made = config["modality"], config["input_size"], how_extracted(config)
    if (encoder.modality, encoder.num_features) != (modality, size):
        found = f"{encoder.num_features} features of {encoder.modality}"
        raise ValueError(f"{named} give {found}; the run reads {size} of {modality}")
    if modality == "pose":
        remedy = "extract them with data_prep.extract --skeletons and give the features"
        raise ValueError(f"a run of pose reads skeletons and no video; {remedy}")
    if (expected := made.get("weights_sha256", encoder.sha256)) != encoder.sha256:
        found = encoder.sha256[:12]
        wrong = f"{named} (sha256 {found}…) are not the {what} that made the run's features ({expected[:12]}…)"
        raise ValueError(f"{wrong}; give those")


def list_videos(places: Sequence[Path]) -> dict[str, Path]:
    """Returns {name: path} of video files, and of the videos in folders as `data_prep.extract` finds them.

    What is left out of a folder is logged. Raises FileNotFoundError for a folder without videos, and ValueError for two
    videos of one name.
    """
    named: dict[str, Path] = {}
    for place in places:
        files, twice, notes = files_of(place, "rgb") if place.is_dir() else ({videos.name_of(place): place}, {}, [])
        for note in notes:
            logging.warning("--video: %s", note)
        if twice:
            raise ValueError("; ".join(twice.values()))
        for name, file in files.items():
            if (other := named.setdefault(name, file)) != file:
                raise ValueError(f"{other} and {file} have the same name; predict them into two --output folders")
    return named


def open_videos(
    files: Mapping[str, Path], encoder: Encoder, config: Mapping, sampling: videos.Sampling, fps: float | None = None
) -> VideoFiles:
    """Opens video files without decoding them.

    Args:
      files: {name: path}.
      encoder: has passed `check_encoder`.
      config: the content of the config.json of the run that reads the features.
      sampling: how a video is cut into snippets.
      fps: frames per second at which a video is sampled. None: as the run's features were, or else so that a snippet
        lasts as long as in the training videos.

    Raises ValueError if no file can be used.
    """
    made = how_extracted(config)
    fps = made["sampled_fps"] if fps is None else fps
    seconds = made.get("seconds_per_snippet", config["seconds_per_snippet"])
    opened, broken = {}, []
    for name, path in files.items():
        try:
            video = videos.probe_video(path, fps)
            # Without manifests `seconds` is only the median of duration / T, so a small difference is no reason.
            if seconds and fps is None and not 0.9 < sampling.stride / video.fps / seconds < 1.1:
                video = videos.probe_video(path, sampling.stride / seconds)
            opened[name] = video
        except videos.VideoError as error:
            broken.append(str(error))
    if not opened:
        raise ValueError("; ".join(join_repeated(broken)))
    return VideoFiles(encoder, sampling, opened, broken)


def encode(files: VideoFiles, batch_size: int, dtype: str = "float16", num_frames: int = 0) -> Encoded:
    """Encodes the videos into features of `dtype`; ValueError if none of them can be decoded.

    `num_frames` evenly spaced frames of each video are kept.
    """
    found = Encoded(broken=list(files.broken))
    for name, video in files.opened.items():
        cut = timing.Cut(files.sampling.stride / video.fps, files.sampling.length / video.fps)
        options = {"batch_size": batch_size, "num_frames": num_frames}
        try:
            table, found.frames[name] = encode_video(files.encoder, video, files.sampling, **options)
        except videos.VideoError as error:
            found.broken.append(str(error))
            continue
        placed = timing.place(cut, len(table), video.duration)
        found.features[name] = base.to_dtype(table, dtype)[placed.rows(len(table))]  # as records store it
        found.grids[name], found.durations[name] = placed.grid, video.duration
    if not found.features:
        raise ValueError("; ".join(join_repeated(found.broken)))
    return found
