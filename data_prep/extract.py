"""Videos or skeletons → features, one row a snippet, ready for `data_prep.build` and `kd_jax.predict`.

    python -m data_prep.extract --videos=DIR --modality=rgb --weights=weights/i3d_rgb.npz --output=features/rgb
    python -m data_prep.extract --videos=DIR --modality=flow --weights=weights/i3d_flow.npz --output=features/flow
    python -m data_prep.extract --skeletons=DIR --modality=pose --weights=weights/agcn.npz --output=features/pose

writes `<video>.npy`, `[T, D]` float32, and `<video>.json`: what it was made of, with the file's frames and frames per
second, how it was cut, the weights' sha256 and the versions of all that had a part. Run again, it leaves out what is
finished. A file that is broken stops no other; the last lines name it. It needs `pip install -e .[video]`.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

from data_prep import ahead, execution
from kd_jax import runtime
from kd_jax.data import feature_files
from kd_jax.files import make_folder, read_json, sha256, write_atomically, write_json
from kd_jax.video import skeletons, videos
from kd_jax.video.encode import batched, encode
from kd_jax.video.encoders.weights import Weights, read_weights
from kd_jax.video.videos import Sampling

SKELETON_FPS = 30.0  # of Kinect, and so of NTU RGB+D and PKU-MMD


@dataclasses.dataclass(frozen=True)
class Settings:
    """What features depend on beside the file itself.

    Attributes:
      modality: rgb, flow or pose.
      weights: file of the encoder's weights.
      sampling: how a video is cut.
      fps: frames per second to sample videos at, None for their own; of skeletons, that they were recorded at.
      dtype: of the encoder's computation.
      persons: of skeletons, how many bodies the encoder reads.
    """

    modality: str
    weights: Path
    sampling: Sampling
    fps: float | None
    dtype: str
    persons: int = skeletons.PERSONS

    def described(self) -> dict:
        """As JSON: what must be the same for features to be the same."""
        return {
            "modality": self.modality,
            "weights_sha256": _hash(self.weights),
            "sampling": {name: getattr(self.sampling, name) for name in videos.used(self.modality)},
            "sampled_fps": self.fps,
            "dtype": self.dtype,
        }


@functools.cache  # a function of its own: Beam finds it by its name
def _hash(path: Path) -> str:
    return sha256(path)


@functools.cache
def _weights(path: Path, dtype: str) -> Weights:
    return read_weights(path, dtype=jnp.dtype(dtype))


def files_of(source: Path, modality: str) -> tuple[dict[str, Path], dict[str, str], list[str]]:
    """The files to make features of: one file, or those of a folder whose ending is that of a video, or of skeletons.

    Returns:
      {name that its features get: file}; {name: why it gets none}, where two files would have it; a line each about
      what is left out.

    Raises:
      FileNotFoundError: if there is none.
    """
    if source.is_file():
        return {videos.name_of(source): source}, {}, []
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such folder or file")
    kind, suffixes = ("skeleton", skeletons.SUFFIXES) if modality == "pose" else ("video", videos.SUFFIXES)
    folders, others, by_name = [], [], collections.defaultdict(list)
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            folders.append(path)
        elif path.suffix.lower() not in suffixes:
            others.append(path)
        else:
            by_name[videos.name_of(path)].append(path)
    notes = [f"{source}: left out, as the ending is not that of a {kind}: {_first(others)}"] if others else []
    notes += [f"{source}: its subfolders are not searched: {_first(folders)}"] if folders else []
    if not by_name:
        raise FileNotFoundError("; ".join([f"{source} has no {kind} file ({', '.join(suffixes)})", *notes]))
    files = {name: paths[0] for name, paths in by_name.items() if len(paths) == 1}
    failed = {
        name: f"{source}: {' and '.join(path.name for path in paths)} would both become {name}.npy; rename one"
        for name, paths in by_name.items()
        if len(paths) > 1
    }
    return files, failed, notes


def _first(paths: Sequence[Path]) -> str:
    """Names of the first few, and how many there are."""
    more = f", … ({len(paths)} in all)" if len(paths) > 3 else ""
    return ", ".join(path.name for path in paths[:3]) + more


def read(path: Path, settings: Settings, batch_size: int) -> Iterator:
    """First what the file is, as JSON, then its snippets, `[N, …]` at a time as `kd_jax.video.encode.batched` does.

    Raises:
      VideoError: for a file that cannot be used.
    """
    sampling = settings.sampling
    if settings.modality == "pose":
        bodies = skeletons.read(path)
        about = {"frames": len(bodies), "fps": settings.fps or SKELETON_FPS}
        made = skeletons.snippets(skeletons.normalize(bodies)[:, : settings.persons], sampling)
    else:
        video = videos.probe(path, settings.fps)
        about = {"frames": video.num_frames, "fps": video.fps, "width": video.width, "height": video.height}
        about |= {"rotation": video.rotation, "resampled": video.resampled, "stored_frames": video.stored_frames}
        made = videos.snippets(video, settings.modality, sampling)
    count = sampling.count_of(path, about["frames"])
    yield about | {"snippets": count, "seconds_per_snippet": sampling.stride / about["fps"]}
    yield from batched(made, batch_size)


class Progress:
    """How far it is: on a terminal a bar with frames per second, elsewhere a line for each file, unless it is quiet.

    The bar ends at the frames of the files begun so far.
    """

    def __init__(self, title: str, num_files: int, *, quiet: bool):
        self._title, self._num_files, self._done = title, num_files, 0
        self._bar = tqdm(total=0, unit="frame", disable=quiet or not sys.stderr.isatty(), leave=False)
        self._lines = not quiet and not sys.stderr.isatty()
        self._show()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def _show(self, name: str = "") -> None:
        self._bar.set_description_str(f"{self._title} {self._done}/{self._num_files} files {name}".rstrip())

    def begin(self, name: str, frames: int) -> None:
        """A file of so many frames."""
        self._bar.total += frames
        self._show(name)

    def advance(self, frames: int) -> None:
        """So many frames are encoded."""
        self._bar.update(frames)

    def end(self, name: str, told: str) -> None:
        """A file is done with."""
        self._done += 1
        self._show(name)
        if self._lines:
            print(f"{self._done}/{self._num_files} {name}: {told}", file=sys.stderr, flush=True)


class Writer:
    """Gathers the features of each video and writes them when it has all, and the video was whole."""

    def __init__(self, output: Path, settings: Settings, files: Sequence[tuple[str, Path]], progress: Progress):
        self._output, self._settings, self._files, self._progress = output, settings, files, progress
        self._frames = min(settings.sampling.stride, settings.sampling.length)  # new ones in a snippet
        self._about: dict[int, dict] = {}
        self._rows: dict[int, list[np.ndarray]] = collections.defaultdict(list)
        self._read: set[int] = set()
        self.failed: dict[str, str] = {}

    def begin(self, index: int, about: dict) -> None:
        """What the video is, before its rows."""
        self._about[index] = about
        self._progress.begin(self._files[index][0], about["snippets"] * self._frames)

    def add(self, index: int, features: np.ndarray) -> None:
        """The next rows of a video, `[N, D]`."""
        if index in self._about:  # else it failed while they were computed
            self._rows[index].append(features)
            self._progress.advance(len(features) * self._frames)
            self._write_if_whole(index)

    def finish(self, index: int) -> None:
        """The video was read to its end."""
        self._read.add(index)
        self._write_if_whole(index)

    def _write_if_whole(self, index: int) -> None:
        about = self._about[index]
        if index not in self._read or sum(map(len, self._rows[index])) < about["snippets"]:
            return
        video, path = self._files[index]
        rows = np.concatenate(self._rows.pop(index))
        if not np.isfinite(rows).all():
            self.fail(index, f"{path}: its features are not finite; are the weights of this encoder, and the dtype?")
            return
        manifest = {"file": path.name, "bytes": path.stat().st_size, **self._about.pop(index)}
        # Before the table, for a table without one is somebody else's.
        write_json(self._output / f"{video}.json", manifest | self._settings.described() | {"versions": _versions()})
        write_table(self._output / f"{video}.npy", rows)
        self._progress.end(video, f"{len(rows)} snippet{'s'[: len(rows) != 1]}")

    def fail(self, index: int, reason: str) -> None:
        """The video has no more rows, and gets no file."""
        self._about.pop(index, None)
        self._rows.pop(index, None)
        video, path = self._files[index]
        self.failed[video] = reason if str(path) in reason else f"{path}: {reason}"
        self._progress.end(video, "could not be used")


def write_table(path: Path, rows: np.ndarray) -> None:
    """An .npy file, whole or not at all."""
    with tempfile.SpooledTemporaryFile() as stream:
        np.save(stream, rows, allow_pickle=False)
        stream.seek(0)
        write_atomically(path, stream.read())


def _versions() -> dict[str, str]:
    found = {}
    for name in ("kd_jax", "jax", "flax", "numpy", "av", "opencv-contrib-python-headless"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def extract(
    output: Path,
    settings: Settings,
    files: Sequence[tuple[str, Path]],
    *,
    batch_size: int,
    workers: int,
    progress: bool,
) -> dict[str, str]:
    """Writes the features of files.

    Args:
      output: folder, which exists.
      settings: how.
      files: (name of the features, file) each.
      batch_size: snippets a forward pass.
      workers: processes that read files while this one encodes; 0 = none.
      progress: whether to show it.

    Returns:
      {name: what is wrong with its file}, empty if all went well.
    """
    weights = _weights(settings.weights, settings.dtype)
    items = [(path, settings, batch_size) for _, path in files]
    with (
        Progress(settings.modality, len(files), quiet=not progress) as shown,
        contextlib.closing(ahead.run(read, items, workers=workers)) as messages,
    ):
        writer = Writer(output, settings, files, shown)

        def batches() -> Iterator[tuple[int, np.ndarray]]:
            for index, message in messages:
                if isinstance(message, dict):
                    writer.begin(index, message)
                elif isinstance(message, ahead.Failed):
                    writer.fail(index, message)
                elif isinstance(message, ahead.Finished):
                    writer.finish(index)
                else:
                    yield index, message

        for index, features in encode(weights, batches(), batch_size=batch_size):
            writer.add(index, features)
    return writer.failed


def extract_one(output: str, settings: Settings, video: str, path: str, batch_size: int) -> str | None:
    """One file, as a task of a pipeline: what is wrong with it, or None."""
    files = [(video, Path(path))]
    return extract(Path(output), settings, files, batch_size=batch_size, workers=0, progress=False).get(video)


def unfinished(
    output: Path, settings: Settings, files: dict[str, Path]
) -> tuple[list[tuple[str, Path]], dict[str, str]]:
    """The files without features, and {name: why not} of those that are others than their features are of.

    Raises:
      ValueError: if features there were made otherwise.
    """
    wanted, left, failed = settings.described(), [], {}
    for video, path in files.items():
        table, manifest = output / f"{video}.npy", output / f"{video}.json"
        try:
            found = read_json(manifest)
        except ValueError:
            found = {}
        if found is not None and not feature_files.is_manifest(found):
            failed[video] = f"{manifest} is no manifest of features, so it is left alone; choose another --output"
        elif found is None and table.exists():
            failed[video] = f"{table} has no {manifest.name} beside it, so it is left alone; choose another --output"
        elif found is None or not _is_whole(table, found.get("snippets")):
            left.append((video, path))
        elif changed := _changed(found, wanted):
            raise ValueError(f"{table} was made otherwise ({changed}); choose another --output, or delete it")
        elif changed := _changed(found, {"file": path.name, "bytes": path.stat().st_size if path.exists() else None}):
            failed[video] = f"{path} is not what {table} was made of ({changed}); delete that to make it anew"
    return left, failed


def _is_whole(table: Path, snippets: int | None) -> bool:
    """Whether an .npy file has so many rows; no more than its header is read."""
    try:
        return len(np.load(table, mmap_mode="r", allow_pickle=False)) == snippets
    except (OSError, ValueError, EOFError):
        return False


def _changed(manifest: dict, now: dict) -> str:
    """What a manifest has otherwise, '' if nothing."""
    changed = [name for name, value in now.items() if manifest.get(name) != value]
    return "; ".join(f"{name}: {manifest.get(name)!r} there, {now[name]!r} now" for name in changed)


def _settings(given) -> tuple[Settings, Path]:
    if not given.modality:
        raise ValueError(
            "nothing is asked for; say for instance --videos=DIR --modality=rgb --weights=i3d_rgb.npz --output=DIR "
            "(--help has all options)"
        )
    folder = given.skeletons if given.modality == "pose" else given.videos
    other = given.videos if given.modality == "pose" else given.skeletons
    name = "skeletons" if given.modality == "pose" else "videos"
    if not folder or other:
        raise ValueError(f"--modality={given.modality} is made of --{name}=DIR, and of nothing else")
    if lacking := [f"--{name}" for name in ("weights", "output") if not given[name].value]:
        raise ValueError(f"{', '.join(lacking)} must be given")
    if given.fps is not None and not 0 < given.fps <= 1000:
        raise ValueError(f"--fps={given.fps}; it must be above 0 and at most 1000")
    if given.runner:
        videos.refuse_vain(given, ["workers"], "a --runner, which has --beam_options for it")
    else:
        videos.refuse_vain(given, ["beam_options"], "this machine; they are those of a --runner")
    manifest = _weights(Path(given.weights), given.dtype).manifest
    if manifest["modality"] != given.modality:
        raise ValueError(f"--weights={given.weights} are for {manifest['modality']}, not --modality={given.modality}")
    if (persons := manifest.get("persons", skeletons.PERSONS)) > skeletons.PERSONS:
        raise ValueError(
            f"--weights={given.weights} are for {persons} bodies; of skeletons {skeletons.PERSONS} are kept"
        )
    sampling = videos.sampling(given, given.modality, manifest)
    return Settings(given.modality, Path(given.weights), sampling, given.fps, given.dtype, persons), Path(folder)


def main(argv):
    if len(argv) > 1:
        sys.exit(f"data_prep.extract: unexpected argument {argv[1]!r}; write --flag=value")
    given = flags.FLAGS
    runtime.start()
    try:
        settings, source = _settings(given)
        files, failed, notes = files_of(source, given.modality)
        print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
        output = Path(given.output)
        make_folder(output, "output")
        left, others = unfinished(output, settings, files)
        failed |= others
        if given.runner:
            broken = _pipeline(given, output, settings, left)
        else:
            workers = min(given.workers if given.workers is not None else os.cpu_count() or 1, len(left))
            broken = extract(output, settings, left, batch_size=given.batch_size, workers=workers, progress=True)
    except (ValueError, OSError) as error:
        sys.exit(f"data_prep.extract: {error}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        print("\ndata_prep.extract: interrupted; the same command goes on with what is left", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    done, before = len(left) - len(broken), len(files) - len(left) - len(others)
    told = f", {before} {'was' if before == 1 else 'were'} finished before" if before else ""
    print(f"{output}: features of {done} file{'s'[: done != 1]}{told}")
    failed |= broken
    if failed:
        sys.exit("\n".join([f"data_prep.extract: {len(failed)} could not be used:", *failed.values()]))


def _pipeline(given, output: Path, settings: Settings, left: Sequence[tuple[str, Path]]) -> dict[str, str]:
    where = (str(output.absolute()), dataclasses.replace(settings, weights=settings.weights.absolute()))
    tasks = [(*where, video, str(path.absolute()), given.batch_size) for video, path in left]
    with tempfile.TemporaryDirectory(dir=output, prefix=".beam_") as scratch:
        beam = execution.Beam(given.runner, tuple(given.beam_options), Path(scratch))
        told = dict(execution.run(extract_one, tasks, beam=beam)) if tasks else {}
    return {left[index][0]: reason for index, reason in told.items() if reason}


def define_flags() -> None:
    """The command line's options."""
    flags.DEFINE_string("videos", None, "Folder of video files, or one file, for rgb and flow.")
    flags.DEFINE_string("skeletons", None, "Folder of NTU's .skeleton or PKU-MMD's .txt files, or one file, for pose.")
    flags.DEFINE_enum("modality", None, ["rgb", "flow", "pose"], "What to make features of.")
    flags.DEFINE_string("weights", None, "Of the encoder, from data_prep.convert_weights.")
    flags.DEFINE_string("output", None, "Folder for <video>.npy and <video>.json.")
    flags.DEFINE_alias("out", "output")
    flags.DEFINE_float("fps", None, "Frames per second to sample videos at (their own); of skeletons, recorded (30).")
    videos.define_flags()
    flags.adopt_module_key_flags(videos)  # --help shows them
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the encoder's computation.")
    flags.DEFINE_integer("batch_size", 8, "Snippets a forward pass, over all devices.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Processes that read files (all processors).", lower_bound=0)
    flags.DEFINE_string("runner", None, "An Apache Beam pipeline instead: DirectRunner, DataflowRunner, ….")
    flags.DEFINE_multi_string("beam_options", [], "Of the runner, one each.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
