"""Videos or skeletons → features, one row a snippet, ready for `data_prep.build` and `kd_jax.predict`.

    python -m data_prep.extract --videos=DIR --modality=rgb --weights=weights/i3d_rgb.npz --output=features/rgb
    python -m data_prep.extract --videos=DIR --modality=flow --weights=weights/i3d_flow.npz --output=features/flow
    python -m data_prep.extract --skeletons=DIR --modality=pose --weights=weights/agcn.npz --output=features/pose

writes `<video>.npy`, `[T, D]` float32, and `<video>.json`: what it was made of, with the file's frames and frames per
second, how it was cut, the weights' sha256 and the versions of all that had a part. Run again, it leaves out what is
finished. A file that is broken stops no other; the last lines name it. It needs `pip install -e .[video]`.
"""

import collections
import dataclasses
import functools
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

from data_prep import ahead, execution
from kd_jax import session, skeletons, videos
from kd_jax.encode import encode
from kd_jax.encoders.weights import Weights, read_weights
from kd_jax.files import read_json, sha256, write_atomically, write_json
from kd_jax.videos import Sampling

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
    """

    modality: str
    weights: Path
    sampling: Sampling
    fps: float | None
    dtype: str

    def described(self) -> dict:
        """As JSON: what must be the same for features to be the same."""
        sampling = dataclasses.asdict(self.sampling)
        if self.modality == "pose":
            sampling = {name: sampling[name] for name in ("length", "stride", "last")}
        elif self.modality == "rgb":
            del sampling["flow"]
        return {
            "modality": self.modality,
            "weights_sha256": _hash(self.weights),
            "sampling": sampling,
            "sampled_fps": self.fps,
            "dtype": self.dtype,
        }


@functools.cache  # a function of its own: Beam finds it by its name
def _hash(path: Path) -> str:
    return sha256(path)


@functools.cache
def _weights(path: Path, dtype: str) -> Weights:
    return read_weights(path, dtype=jnp.dtype(dtype))


def files_of(folder: Path, modality: str) -> dict[str, Path]:
    """The files of a folder by the name that their features get: their own, with its ending where two would share it.

    Raises:
      FileNotFoundError: if it has none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if modality == "pose":
        found = [path for path in found if path.suffix in skeletons.SUFFIXES]
    if not found:
        raise FileNotFoundError(f"{folder} has no file{' of skeletons' if modality == 'pose' else ''}")
    count = collections.Counter(path.stem for path in found)
    return {path.stem if count[path.stem] == 1 else path.name: path for path in found}


def read(path: Path, settings: Settings) -> Iterator:
    """First what the file is, as JSON, then its snippets.

    Raises:
      VideoError: for a file that cannot be used.
    """
    sampling = settings.sampling
    if settings.modality == "pose":
        bodies = skeletons.read(path)
        about = {"frames": len(bodies), "fps": settings.fps or SKELETON_FPS}
        made = skeletons.snippets(skeletons.normalize(bodies), sampling)
    else:
        video = videos.probe(path, settings.fps)
        about = {"frames": video.num_frames, "fps": video.fps, "width": video.width, "height": video.height}
        about |= {"rotation": video.rotation, "resampled": video.resampled, "stored_frames": video.stored_frames}
        made = videos.snippets(video, settings.modality, sampling)
    count = sampling.count_of(path, about["frames"])
    yield about | {"snippets": count, "seconds_per_snippet": sampling.stride / about["fps"]}
    yield from made


class Writer:
    """Gathers the features of each video and writes them when it has all."""

    def __init__(self, output: Path, settings: Settings, files: Sequence[tuple[str, Path]]):
        self._output, self._settings, self._files = output, settings, files
        self._about: dict[int, dict] = {}
        self._rows: dict[int, list[np.ndarray]] = collections.defaultdict(list)
        self.failed: dict[str, str] = {}

    def begin(self, index: int, about: dict) -> None:
        """What the video is, before its rows."""
        self._about[index] = about

    def add(self, index: int, feature: np.ndarray) -> bool:
        """The next row of a video; whether it was the last, and the video's files are written."""
        if index not in self._about:  # failed while this row was computed
            return False
        self._rows[index].append(feature)
        if len(self._rows[index]) < self._about[index]["snippets"]:
            return False
        video, path = self._files[index]
        rows = np.stack(self._rows.pop(index))
        if not np.isfinite(rows).all():
            self.fail(index, f"{path}: its features are not finite; are the weights of this encoder, and the dtype?")
            return False
        write_table(self._output / f"{video}.npy", rows)
        manifest = {"file": path.name, "bytes": path.stat().st_size, **self._about.pop(index)}
        write_json(self._output / f"{video}.json", manifest | self._settings.described() | {"versions": _versions()})
        return True

    def fail(self, index: int, reason: str) -> None:
        """The video has no more rows, and gets no file."""
        self._about.pop(index, None)
        self._rows.pop(index, None)
        video, path = self._files[index]
        self.failed[video] = reason if str(path) in reason else f"{path}: {reason}"


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
      progress: whether to show frames per second.

    Returns:
      {name: what is wrong with its file}, empty if all went well.
    """
    weights, writer = _weights(settings.weights, settings.dtype), Writer(output, settings, files)
    per_snippet = min(settings.sampling.stride, settings.sampling.length)
    with tqdm(unit="frame", desc=settings.modality, disable=None if progress else True, leave=False) as bar:

        def flowing() -> Iterator[tuple[int, np.ndarray]]:
            for index, message in ahead.run(read, [(path, settings) for _, path in files], workers=workers):
                if isinstance(message, dict):
                    writer.begin(index, message)
                    bar.set_postfix_str(files[index][0])
                elif isinstance(message, ahead.Failed):
                    writer.fail(index, message)
                elif not isinstance(message, ahead.Finished):
                    bar.update(per_snippet)
                    yield index, message

        for index, feature in encode(weights, flowing(), batch_size=batch_size):
            writer.add(index, feature)
    return writer.failed


def extract_one(output: str, settings: Settings, video: str, path: str, batch_size: int) -> str | None:
    """One file, as a task of a pipeline: what is wrong with it, or None."""
    files = [(video, Path(path))]
    return extract(Path(output), settings, files, batch_size=batch_size, workers=0, progress=False).get(video)


def unfinished(output: Path, settings: Settings, files: dict[str, Path]) -> list[tuple[str, Path]]:
    """The files without features.

    Raises:
      ValueError: if features there were made otherwise, or of another file.
    """
    wanted, left = settings.described(), []
    for video, path in files.items():
        manifest = read_json(output / f"{video}.json")
        if manifest is None or not (output / f"{video}.npy").is_file():
            left.append((video, path))
            continue
        now = {**wanted, "file": path.name, "bytes": path.stat().st_size}
        if changed := [name for name, value in now.items() if manifest.get(name) != value]:
            told = "; ".join(f"{name}: {manifest.get(name)!r} there, {now[name]!r} now" for name in changed)
            raise ValueError(f"{output / video}.npy was made otherwise ({told}); choose another --output, or delete it")
    return left


def _settings(given) -> tuple[Settings, Path]:
    folder = given.skeletons if given.modality == "pose" else given.videos
    other = given.videos if given.modality == "pose" else given.skeletons
    name = "skeletons" if given.modality == "pose" else "videos"
    if not folder or other:
        raise ValueError(f"--modality={given.modality} is made of --{name}=DIR, and of nothing else")
    if lacking := [f"--{name}" for name in ("weights", "output") if not given[name].value]:
        raise ValueError(f"{', '.join(lacking)} must be given")
    if given.fps is not None and not 0 < given.fps <= 1000:
        raise ValueError(f"--fps={given.fps}; it must be above 0 and at most 1000")
    manifest = _weights(Path(given.weights), given.dtype).manifest
    if manifest["modality"] != given.modality:
        raise ValueError(f"--weights={given.weights} are for {manifest['modality']}, not --modality={given.modality}")
    sampling = videos.sampling(given, manifest)
    return Settings(given.modality, Path(given.weights), sampling, given.fps, given.dtype), Path(folder)


def main(argv):
    if len(argv) > 1:
        sys.exit(f"data_prep.extract: unexpected argument {argv[1]!r}; write --flag=value")
    given = flags.FLAGS
    session.start()
    try:
        settings, folder = _settings(given)
        files = files_of(folder, given.modality)
        output = Path(given.output)
        output.mkdir(parents=True, exist_ok=True)
        left = unfinished(output, settings, files)
        if given.runner:
            failed = _pipeline(given, output, settings, left)
        else:
            workers = min(given.workers if given.workers is not None else os.cpu_count() or 1, len(left))
            failed = extract(output, settings, left, batch_size=given.batch_size, workers=workers, progress=True)
    except (ValueError, OSError) as error:
        sys.exit(f"data_prep.extract: {error}")
    done = len(left) - len(failed)
    before = f", {len(files) - len(left)} were finished before" if len(left) < len(files) else ""
    print(f"{output}: features of {done} file{'s'[: done != 1]}{before}")
    if failed:
        sys.exit("\n".join([f"data_prep.extract: {len(failed)} could not be used:", *failed.values()]))


def _pipeline(given, output: Path, settings: Settings, left: Sequence[tuple[str, Path]]) -> dict[str, str]:
    where = (str(output.absolute()), dataclasses.replace(settings, weights=settings.weights.absolute()))
    tasks = [(*where, video, str(path.absolute()), given.batch_size) for video, path in left]
    with tempfile.TemporaryDirectory(dir=output, prefix=".beam_") as scratch:
        beam = execution.Beam(given.runner, tuple(given.beam_options), Path(scratch))
        told = dict(execution.run(extract_one, tasks, beam=beam)) if tasks else {}
    return {left[index][0]: reason for index, reason in told.items() if reason}


if __name__ == "__main__":
    flags.DEFINE_string("videos", None, "Folder of video files, for rgb and flow.")
    flags.DEFINE_string("skeletons", None, "Folder of NTU's .skeleton or PKU-MMD's .txt files, for pose.")
    flags.DEFINE_enum("modality", None, ["rgb", "flow", "pose"], "What to make features of.", required=True)
    flags.DEFINE_string("weights", None, "Of the encoder, from data_prep.convert_weights.")
    flags.DEFINE_string("output", None, "Folder for <video>.npy and <video>.json.")
    flags.DEFINE_alias("out", "output")
    flags.DEFINE_float("fps", None, "Frames per second to sample videos at (their own); of skeletons, recorded (30).")
    videos.define_flags()
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the encoder's computation.")
    flags.DEFINE_integer("batch_size", 8, "Snippets a forward pass, over all devices.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Processes that read files (all processors).", lower_bound=0)
    flags.DEFINE_string("runner", None, "An Apache Beam pipeline instead: DirectRunner, DataflowRunner, ….")
    flags.DEFINE_multi_string("beam_options", [], "Of the runner, one each.")
    app.run(main)
