"""Extracts features of videos or skeletons, one row per snippet, for `kd-jax build` and `kd-jax predict`.

    kd-jax extract --videos=DIR --modality=rgb --weights=weights/i3d_rgb.npz --output=features/rgb
    kd-jax extract --videos=DIR --modality=flow --weights=weights/i3d_flow.npz --output=features/flow
    kd-jax extract --skeletons=DIR --modality=pose --weights=weights/agcn.npz --output=features/pose

`--encoder=MODULE:FUNCTION` names a function of your own that replaces the encoders of kd_jax, see docs/extending.md.

The command writes `<video>.npy`, `[T, D]` float32, and a manifest `<video>.json`. When run again, it skips finished
files. A broken file does not stop the others. The command needs `pip install 'kd_jax[video]'`.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep import execution, prefetch
from kd_jax import interrupts, runtime
from kd_jax.command_line import Parser, at_least, disk_path
from kd_jax.data import manifests
from kd_jax.data.checks import join_repeated
from kd_jax.data.feature_tables import open_array
from kd_jax.files import make_folder, read_json, write_atomically, write_json
from kd_jax.lock import held
from kd_jax.video import skeletons, videos
from kd_jax.video.encode import batched, encode_batches, finite
from kd_jax.video.encoders.protocol import Encoder
from kd_jax.video.encoders.weights import read_encoder
from kd_jax.video.folders import files_of
from kd_jax.video.videos import Sampling

SKELETON_FPS = 30.0  # frames per second of Kinect, which recorded NTU RGB+D and PKU-MMD


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that features depend on."""

    modality: str  # rgb, flow or pose
    weights: Path | None  # file of the encoder's weights; None for one of the user without such a file
    sampling: Sampling
    fps: float | None  # frames per second to sample videos at, or of skeletons; None: the video's own, or SKELETON_FPS
    dtype: str  # of the encoder's computation
    persons: int = skeletons.PERSONS  # bodies per frame of skeletons that the encoder reads
    encoder: str | None = None  # MODULE:FUNCTION of the user's encoder; None for those of kd_jax

    def described(self) -> dict:
        """Returns the settings as JSON. Features with equal settings can be used together."""
        return {
            "modality": self.modality,
            "weights_sha256": encoder_of(self.encoder, self.weights, self.dtype).sha256,
            "sampling": {name: getattr(self.sampling, name) for name in videos.sampling_fields(self.modality)},
            "sampled_fps": self.fps,
            "dtype": self.dtype,
        }


@functools.cache
def encoder_of(encoder: str | None, weights: Path | None, dtype: str) -> Encoder:
    """Returns the encoder of settings, which is read once in a process."""
    return read_encoder(encoder, weights, dtype=dtype)


def read_batches(path: Path, settings: Settings, batch_size: int) -> Iterator:
    """Yields facts about a file as JSON, then its snippets in batches; raises VideoError if it cannot be used."""
    sampling = settings.sampling
    facts: dict
    if settings.modality == "pose":
        bodies, lost = skeletons.read_bodies(path)
        facts = {"frames": len(bodies), "fps": settings.fps or SKELETON_FPS, "damaged_frames": lost}
        snippets = skeletons.cut_snippets(skeletons.normalize(bodies)[:, : settings.persons], sampling)
    else:
        video = videos.probe_video(path, settings.fps)
        facts = {"frames": video.num_frames, "fps": video.fps, "width": video.width, "height": video.height}
        facts |= {"rotation": video.rotation, "resampled": video.resampled, "stored_frames": video.stored_frames}
        facts |= {"mirrored": video.mirrored, "pixel_aspect": video.pixel_aspect}
        snippets = videos.cut_snippets(video, settings.modality, sampling)
    count = sampling.count_of(path, facts["frames"])
    yield facts | {"snippets": count, "seconds_per_snippet": sampling.stride / facts["fps"]}
    yield from batched(snippets, batch_size)


class Progress:
    """Progress of an extraction: on a terminal a bar with frames per second, otherwise a line per file.

    The total of the bar is the number of frames in all files begun so far.
    """

    def __init__(self, title: str, num_files: int, *, quiet: bool):
        self._title, self._num_files, self._done = title, num_files, 0
        self._bar = tqdm(total=0, unit="frame", disable=quiet or not sys.stderr.isatty(), leave=False)
        self._lines = not quiet and not sys.stderr.isatty()
        self.close, self.advance = self._bar.close, self._bar.update  # advance(n): n more frames are encoded
        self._show()

    def _show(self, name: str = "") -> None:
        self._bar.set_description_str(f"{self._title} {self._done}/{self._num_files} files {name}".rstrip())

    def begin(self, name: str, frames: int) -> None:
        """Counts a file that is begun, with its number of frames."""
        self._bar.total += frames
        self._show(name)

    def end(self, name: str, result: str) -> None:
        """Counts a file that is done or has failed."""
        self._done += 1
        self._show(name)
        if self._lines:
            print(f"{self._done}/{self._num_files} {name}: {result}", file=sys.stderr, flush=True)


class Writer:
    """Collects the features of each video, and writes them once they are complete and the video was read to its end."""

    def __init__(self, output: Path, settings: Settings, files: Sequence[tuple[str, Path]], progress: Progress):
        self._output, self._settings, self._files, self._progress = output, settings, files, progress
        self._frames = min(settings.sampling.stride, settings.sampling.length)  # new frames per snippet
        self._facts: dict[int, dict] = {}
        self._rows: dict[int, list[np.ndarray]] = collections.defaultdict(list)
        self._read: set[int] = set()
        self.failed: dict[str, str] = {}  # reasons by the name of the features

    def begin(self, index: int, facts: dict) -> None:
        """Begins a video with its facts, before its rows."""
        self._facts[index] = facts
        self._progress.begin(self._files[index][0], facts["snippets"] * self._frames)

    def add(self, index: int, features: np.ndarray) -> None:
        """Adds the next rows of a video, `[N, D]`."""
        if index in self._facts:  # otherwise it failed while they were computed
            self._rows[index].append(features)
            self._progress.advance(len(features) * self._frames)
            self._write_if_whole(index)

    def finish(self, index: int) -> None:
        """Notes that a video was read to its end."""
        self._read.add(index)
        self._write_if_whole(index)

    def _write_if_whole(self, index: int) -> None:
        facts = self._facts[index]
        if index not in self._read or sum(map(len, self._rows[index])) < facts["snippets"]:
            return
        video, path = self._files[index]
        try:
            rows = finite(path, np.concatenate(self._rows.pop(index)))
        except videos.VideoError as error:
            self.fail(index, str(error))
            return
        manifest = {"file": path.name, "bytes": videos.num_bytes(path), **self._facts.pop(index)}
        made = self._settings
        name = encoder_of(made.encoder, made.weights, made.dtype).name
        manifest |= made.described() | {"encoder": name, "versions": _versions()}
        # The manifest is written first: a table without one counts as a file of somebody else.
        write_json(self._output / f"{video}.json", manifest)
        write_table(self._output / f"{video}.npy", rows)
        self._progress.end(video, f"{len(rows)} snippet{'s'[: len(rows) != 1]}")

    def fail(self, index: int, reason: str) -> None:
        """Notes that a video failed. It gets no file."""
        self._facts.pop(index, None)
        self._rows.pop(index, None)
        video, path = self._files[index]
        self.failed[video] = reason if str(path) in reason else f"{path}: {reason}"
        self._progress.end(video, "could not be used")


def write_table(path: Path, rows: np.ndarray) -> None:
    """Writes an .npy file atomically."""
    stream = io.BytesIO()
    np.save(stream, rows, allow_pickle=False)
    write_atomically(path, stream.getvalue())


def _versions() -> dict[str, str]:
    found = {}
    for name in ("kd_jax", "jax", "flax", "numpy", "av", "opencv-contrib-python-headless"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def extract_features(
    output: Path,
    settings: Settings,
    files: Sequence[tuple[str, Path]],
    *,
    batch_size: int,
    workers: int,
    progress: bool,
) -> dict[str, str]:
    """Extracts features of files and writes them.

    Args:
      output: an existing folder.
      files: (name of the features, file) pairs.
      batch_size: snippets per forward pass.
      workers: processes that read files while this one encodes; 0 for none.
      progress: whether to show progress.

    It returns {name: reason} of the files that failed.
    """
    encoder = encoder_of(settings.encoder, settings.weights, settings.dtype)
    items = [(path, settings, batch_size) for _, path in files]
    with (
        contextlib.closing(Progress(settings.modality, len(files), quiet=not progress)) as shown,
        contextlib.closing(prefetch.run(read_batches, items, workers=workers)) as messages,
    ):
        writer = Writer(output, settings, files, shown)
        for index, features in encode_batches(encoder, _batches(messages, writer), batch_size=batch_size):
            writer.add(index, features)
    return writer.failed


def _batches(messages: Iterable[tuple], writer: Writer) -> Iterator[tuple[int, np.ndarray]]:
    """Passes batches of snippets on, and all other messages to the writer."""
    for index, message in messages:
        if isinstance(message, dict):
            writer.begin(index, message)
        elif isinstance(message, prefetch.Failed):
            writer.fail(index, message)
        elif isinstance(message, prefetch.Finished):
            writer.finish(index)
        else:
            yield index, message


def extract_one(output: str, settings: Settings, video: str, path: str, batch_size: int) -> str | None:
    """Extracts features of one file, as a task of a pipeline; returns the reason if it failed."""
    files = [(video, Path(path))]
    return extract_features(Path(output), settings, files, batch_size=batch_size, workers=0, progress=False).get(video)


def unfinished(output: Path, settings: Settings, files: Mapping[str, Path]) -> tuple[list[tuple], dict[str, str]]:
    """Compares files with the features in a folder; raises ValueError if those were made with other settings.

    Returns:
      (name, file) of the files without features; {name: reason} of those with features that are left alone because
      they were not written by this command or are those of another file.
    """
    wanted, left, failed = settings.described(), [], {}
    for video, path in files.items():
        table, manifest = output / f"{video}.npy", output / f"{video}.json"
        try:
            found = read_json(manifest, f"delete it and {table.name} to extract them again, or choose another --output")
        except ValueError as error:
            failed[video] = f"{error}"
            continue
        if found is not None and not manifests.is_manifest(found):
            failed[video] = f"{manifest} is not a manifest of features and is left alone; choose another --output"
        elif found is None and table.exists():
            failed[video] = f"{table} has no manifest {manifest.name} and is left alone; choose another --output"
        elif found is None or not _is_whole(table, found.get("snippets")):
            left.append((video, path))
        elif changed := _changed(found, wanted):
            raise ValueError(f"{table} has other settings ({changed}); choose another --output, or delete it")
        elif changed := _changed(
            found, {"file": path.name, "bytes": videos.num_bytes(path) if path.exists() else None}
        ):
            failed[video] = f"{table} was made of another file than {path} ({changed}); delete it to make it again"
    return left, failed


def _is_whole(table: Path, snippets: int | None) -> bool:
    """Whether an .npy file has `snippets` rows, by its header."""
    try:
        return open_array(table).shape[:1] == (snippets,)
    except (OSError, ValueError):
        return False


def _changed(manifest: Mapping, now: Mapping) -> str:
    """Returns the differences between a manifest and the values `now`; '' if there are none."""
    there = ((name, manifest.get(name), value) for name, value in now.items())
    return "; ".join(f"{name}: {old!r} there, {new!r} now" for name, old, new in there if old != new)


def _read_options(given: argparse.Namespace) -> tuple[Settings, Path]:
    """Returns the settings, and the file or folder to read; ValueError for an option that is missing or wrong."""
    if not given.modality:
        example = "--videos=DIR --modality=rgb --weights=i3d_rgb.npz --output=DIR"
        raise ValueError(f"--modality is missing; for example {example} (--help lists all options)")
    name, other = ("skeletons", "videos") if given.modality == "pose" else ("videos", "skeletons")
    source = getattr(given, name)
    if not source or getattr(given, other):
        raise ValueError(f"--modality={given.modality} needs --{name}=DIR and no --{other}")
    needed = ("output",) if given.encoder else ("weights", "output")
    if lacking := [f"--{name}" for name in needed if not getattr(given, name)]:
        raise ValueError(f"{', '.join(lacking)} must be given")
    if given.fps is not None and not 0 < given.fps <= 1000:
        raise ValueError(f"--fps={given.fps}; it must be above 0 and at most 1000")
    if given.runner:
        videos.refuse_vain(given, ["workers"], "a --runner, which has --beam_options for it")
    else:
        videos.refuse_vain(given, ["beam_options"], "this machine; they are those of a --runner")
    if given.encoder:
        videos.refuse_vain(given, ["dtype"], "an --encoder, which computes as it likes")
    weights, dtype = Path(given.weights) if given.weights else None, given.dtype or "float32"
    encoder = encoder_of(given.encoder, weights, dtype)
    option = f"--encoder={given.encoder} is" if given.encoder else f"--weights={given.weights} are"
    if encoder.modality != given.modality:
        raise ValueError(f"{option} for {encoder.modality}, not --modality={given.modality}")
    if encoder.persons > skeletons.PERSONS:
        raise ValueError(f"{option} for {encoder.persons} bodies; skeletons have {skeletons.PERSONS}")
    sampling = videos.sampling(given, given.modality, encoder.sampling)
    made = Settings(given.modality, weights, sampling, given.fps, dtype, encoder.persons, given.encoder)
    return made, Path(source)


def parser() -> Parser:
    """Returns the parser of the command line."""
    options = Parser("data_prep.extract", __doc__)
    add = options.add_argument
    add(
        "--videos",
        type=disk_path,
        help="Folder of videos, or one: a file, or a folder of numbered frames (with --fps).",
    )
    add("--skeletons", type=disk_path, help="Folder of NTU's .skeleton or PKU-MMD's .txt files, or one file, for pose.")
    add("--modality", choices=manifests.MODALITIES, help="Kind of features.")
    add("--weights", type=disk_path, help="The encoder's weights, from data_prep.convert_weights.")
    add("--encoder", help="MODULE:FUNCTION that makes another encoder, of --weights if they are given.")
    add("--output", "--out", type=disk_path, help="Folder for <video>.npy and <video>.json.")
    add("--fps", type=float, help="Frames per second to sample videos at (their own); rate of skeletons (30).")
    videos.add_options(options, otherwise="")
    add("--dtype", choices=["float32", "bfloat16"], help="Precision of the encoder (float32).")
    add("--batch_size", type=at_least(1), default=8, help="Snippets per forward pass, over all devices (8).")
    add("--workers", type=at_least(0), help="Processes that read files (one per processor).")
    add("--runner", help="Run as an Apache Beam pipeline: DirectRunner, DataflowRunner and others.")
    add("--beam_options", action="append", help="Option of the runner; repeat it for several.")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`, or those of the process."""
    given = parser().parse_args(argv)
    runtime.start()
    try:
        settings, source = _read_options(given)
        files, failed, notes = files_of(source, given.modality)
        print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
        output = Path(given.output)
        make_folder(output, "output")
        with held(output):
            left, others = unfinished(output, settings, files)
            if given.runner:
                broken = _run_pipeline(given, output, settings, left)
            else:
                workers = min(given.workers if given.workers is not None else runtime.num_processors(), len(left))
                options: dict = {"batch_size": given.batch_size, "workers": workers, "progress": True}
                broken = extract_features(output, settings, left, **options)
    except (ValueError, OSError) as error:
        sys.exit(f"data_prep.extract: {error}")
    done, before = len(left) - len(broken), len(files) - len(left) - len(others)
    finished = f", {before} {'was' if before == 1 else 'were'} finished before" if before else ""
    print(f"{output}: features of {done} file{'s'[: done != 1]}{finished}")
    if failed := failed | others | broken:
        reasons = join_repeated(list(failed.values()))
        sys.exit("\n".join([f"data_prep.extract: {len(failed)} could not be used:", *reasons]))


def _run_pipeline(
    given: argparse.Namespace, output: Path, settings: Settings, left: Sequence[tuple[str, Path]]
) -> dict[str, str]:
    weights = settings.weights and settings.weights.absolute()
    where = (str(output.absolute()), dataclasses.replace(settings, weights=weights))
    tasks = [(*where, video, str(path.absolute()), given.batch_size) for video, path in left]
    with interrupts.temporary_folder(dir=output, prefix=".beam_") as scratch:
        beam = execution.Beam(given.runner, tuple(given.beam_options or ()), Path(scratch))
        reasons = dict(execution.run(extract_one, tasks, beam=beam)) if tasks else {}
    return {left[index][0]: reason for index, reason in reasons.items() if reason}


if __name__ == "__main__":
    interrupts.run("data_prep.extract", main)
