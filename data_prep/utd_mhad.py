"""Untrimmed sequences of UTD-MHAD, made of the clips in the public archive (Chen, Jafari, Kehtarnavaz, ICIP 2015).

    sequences = make_sequences(Path("UTD-MHAD"), seed=0, findings=findings)
    annotated, features = sequences[0]  # {'depth': [T, 1536], 'pose': [T, 120], 'inertial': [T, 24]}

The archive has a clip of each action, subject and trial, such as `a3_s1_t2_depth.mat`, `…_skeleton.mat` and
`…_inertial.mat`; three clips are missing. A sequence has the clips of a subject and trial in random order, with a pause
after each. In a pause, the person holds the last pose: each frame repeats one of the last frames of the clip, drawn
for each modality, so that the noise of the sensors remains.

A snippet is 8 frames at 30 frames per second. Its features are
    depth     depth video in metres, averaged to 24 × 32: mean of the frames, and last frame minus first
    pose      x, y, z of 20 joints in metres: mean of the frames, and last frame minus first
    inertial  acceleration (g) and rotation (100 degrees per second) of wrist or thigh, interpolated to the frames of
              the clip: mean, standard deviation, least and largest value
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from tqdm import tqdm

from kd_jax.data import base
from kd_jax.data.annotations.cleaning import Annotated
from kd_jax.data.annotations.utd_mhad import CLASSES, DESCRIPTION
from kd_jax.data.checks import CLIPS_CROPPED, NO_CLIP, NO_CLIP_NAME, Findings, reason

SUBJECTS, TRIALS = range(1, 9), range(1, 5)  # odd subjects are for training, even ones for testing
PUBLIC_GAPS = {(8, 1, 4), (23, 6, 4), (27, 8, 4)}  # clips (action, subject, trial) that the public archive lacks
FRAMES_PER_SNIPPET, FPS = 8, DESCRIPTION.fps
PAUSE = 30, 90  # fewest frames, and one more than the most
HELD = 5  # last frames of a clip, of which a pause consists
HEIGHT, WIDTH, SHRUNK = 240, 320, 10  # of the depth video, and pixels that are averaged in both directions
UNITS = np.array([1, 1, 1, 100, 100, 100], np.float64)  # of the inertial channels
LISTED = 5  # clips that a message names
NAME = re.compile(r"a(\d{1,2})_s(\d)_t(\d)_(depth|skeleton|inertial)\.mat", re.ASCII)


class Kind(NamedTuple):
    """One of the archive's three files of a clip."""

    folder: str  # in the archive
    array: str
    shape: tuple[int | None, ...]  # None for the length


KINDS = {
    "depth": Kind("Depth", "d_depth", (HEIGHT, WIDTH, None)),
    "skeleton": Kind("Skeleton", "d_skel", (20, 3, None)),
    "inertial": Kind("Inertial", "d_iner", (None, 6)),
}


class Clip(NamedTuple):
    """A clip; all numbers are those of the archive."""

    action: int
    subject: int
    trial: int

    def __str__(self):
        return f"a{self.action}_s{self.subject}_t{self.trial}"


ALL = [Clip(a, s, t) for s in SUBJECTS for t in TRIALS for a in range(1, len(CLASSES) + 1)]
Files = dict[Clip, dict[str, Path]]  # {clip: {kind: file}}


def make_sequences(
    archive: Path, seed: int, findings: Findings, *, skip_missing: bool = False
) -> list[tuple[Annotated, dict[str, np.ndarray]]]:
    """Reads the clips of an archive and makes a sequence of those of each subject and trial.

    Args:
      archive: folder with the files of the clips, in any subfolders.
      seed: of the order of the clips and of the pauses; a sequence depends on its own clips only.
      findings: receives everything that is wrong; then some or all sequences are missing in the result.
      skip_missing: leave out, and list, clips that lack a file.

    Returns (annotation, {modality: `[T, D]` float16}) of each sequence.
    """
    files = _complete(_find_files(archive, findings), archive, findings, skip_missing)
    groups: dict[tuple[int, int], list[Clip]] = {}
    for clip in files if not findings.problems else ():
        groups.setdefault((clip.subject, clip.trial), []).append(clip)
    sequences = []
    with tqdm(total=len(files), desc="reading", unit="clip", disable=None, leave=False) as bar:
        for (subject, trial), clips in groups.items():
            frames = {}
            for clip in clips:
                if read := read_clip(clip, files[clip], findings):
                    frames[clip.action] = read
                bar.update()
            if len(frames) == len(clips):
                rng = np.random.default_rng([seed, subject, trial])
                sequences.append(_make_sequence(f"s{subject}_t{trial}", subject, frames, rng, findings))
    return sequences


def _find_files(archive: Path, findings: Findings) -> Files:
    """Returns the files of the clips in a folder and its subfolders; reports a missing folder and repeated files."""
    if not archive.is_dir():
        folders = ", ".join(kind.folder for kind in KINDS.values())
        findings.problem("archive", f"--archive={archive} is not a folder; give the one with {folders}")
        return {}
    found: Files = {}
    for path in sorted(archive.rglob("*.mat")):
        match = NAME.fullmatch(path.name)
        clip = Clip(*map(int, match.groups()[:3])) if match else None
        if not match or clip not in ALL:
            findings.note(NO_CLIP_NAME, str(path))
        elif (first := found.setdefault(clip, {}).setdefault(match[4], path)) != path:
            findings.problem("repeated file", f"{first} and {path} are the same clip; remove one")
    for kind, (folder, _, _) in KINDS.items():
        if not any(kind in of_clip for of_clip in found.values()):
            what = f"no file such as a1_s1_t1_{kind}.mat in {archive} or its subfolders"
            findings.problem("missing folder", f"{archive / folder}: {what}; unpack {folder}.zip of the archive there")
    return found


def _complete(found: Files, archive: Path, findings: Findings, skip_missing: bool) -> Files:
    """Returns the clips that have all files; the others are listed, and are problems without `skip_missing`."""
    partial = [clip for clip, of_clip in found.items() if len(of_clip) < len(KINDS)]
    absent = [clip for clip in ALL if clip not in found]
    for clip in (*partial, *absent):
        lacking = ", ".join(kind for kind in KINDS if kind not in found.get(clip, {}))
        findings.note(NO_CLIP, f"{clip}: no {lacking} file")
    if not skip_missing and not findings.problems:
        if partial:
            counts = ", ".join(f"{sum(kind in of_clip for of_clip in found.values())} of {kind}" for kind in KINDS)
            what = f"{archive}: the numbers of files differ ({counts}), because of {_shown(partial)}"
            findings.problem("missing file", f"{what}; add them, or leave these clips out with --skip_missing")
        if missing := [clip for clip in absent if clip not in PUBLIC_GAPS]:
            what = f"{archive}: {len(missing)} of {len(ALL)} clips are missing ({_shown(missing)})"
            findings.problem("missing clip", f"{what}; add them, or build without them with --skip_missing")
    complete = {clip: found[clip] for clip in ALL if len(found.get(clip, {})) == len(KINDS)}
    if not complete and not findings.problems:
        findings.problem("missing file", f"{archive}: no clip has all of its files ({', '.join(KINDS)}); add them")
    return complete


def _shown(clips: Sequence[Clip]) -> str:
    return ", ".join(map(str, clips[:LISTED])) + (", …" if len(clips) > LISTED else "")


def read_array(path: Path, kind: Kind) -> np.ndarray:
    """Reads the array of a clip's file; raises OSError or ValueError if it is damaged or has another shape."""
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # of scipy, on odd content
            content = scipy.io.loadmat(file, variable_names=[kind.array])
    except Exception as error:  # scipy raises many types for damaged files
        if isinstance(error, OSError) and error.errno:  # of the disk
            raise
        raise ValueError(f"not readable as a .mat file of MATLAB 5 to 7 ({reason(error)})") from error
    if kind.array not in content:
        raise ValueError(f"it has no array {kind.array}")
    array = np.asarray(content[kind.array])
    fits = array.ndim == len(kind.shape) and all(n in (m, None) for m, n in zip(array.shape, kind.shape, strict=True))
    if not fits or not array.size or array.dtype.kind not in "fiu":
        expected = f"numbers [{', '.join(str(n or 'T') for n in kind.shape)}]"
        raise ValueError(f"{kind.array} is {array.dtype} {list(array.shape)}, expected {expected}")
    base.check_finite(array.reshape(len(array), -1))
    return array


def read_clip(clip: Clip, files: Mapping[str, Path], findings: Findings) -> dict[str, np.ndarray] | None:
    """Reads a clip.

    Returns {modality: `[F, D]`}, a row per frame: depth `[F, 768]` and pose `[F, 60]` in metres, inertial `[F, 6]` in g
    and 100 degrees per second. Returns None after a problem.
    """
    arrays = {}
    for name, kind in KINDS.items():
        try:
            arrays[name] = read_array(files[name], kind)
        except (OSError, ValueError) as error:
            findings.problem("unreadable clip", f"{files[name]}: {reason(error)}")
    if len(arrays) < len(KINDS):
        return None
    depth, skeleton, inertial = (arrays[name] for name in ("depth", "skeleton", "inertial"))
    lengths = depth.shape[2], skeleton.shape[2]
    if abs(lengths[0] - lengths[1]) > FRAMES_PER_SNIPPET:
        what = f"{clip}: depth has {lengths[0]} frames and skeleton {lengths[1]}, more than a snippet apart"
        findings.problem("length", f"{what}; replace {files['depth']} or {files['skeleton']}")
        return None
    if lengths[0] != lengths[1]:
        findings.note(CLIPS_CROPPED, f"{clip}: depth has {lengths[0]} frames, skeleton {lengths[1]}")
    num_frames = min(lengths)
    blocks = depth[..., :num_frames].reshape(HEIGHT // SHRUNK, SHRUNK, WIDTH // SHRUNK, SHRUNK, num_frames)
    at = np.linspace(0, len(inertial) - 1, num_frames)
    channels = [np.interp(at, np.arange(len(inertial)), channel) for channel in (inertial / UNITS).T]
    return {
        "depth": blocks.mean((1, 3)).reshape(-1, num_frames).T / 1000,
        "pose": skeleton[..., :num_frames].reshape(-1, num_frames).T.astype(np.float64),
        "inertial": np.stack(channels, axis=1),
    }


def _make_sequence(
    name: str, subject: int, clips: Mapping[int, dict[str, np.ndarray]], rng: np.random.Generator, findings: Findings
) -> tuple[Annotated, dict[str, np.ndarray]]:
    """Joins the clips {action: frames} in random order, with a pause after each."""
    rows, parts, end = [], [], 0
    for action in rng.permutation(list(clips)):
        frames = clips[action]
        length = len(frames["pose"])
        rows.append((action - 1, end / FPS, (end + length) / FPS))
        pause = int(rng.integers(*PAUSE))
        held = {m: x[rng.integers(max(length - HELD, 0), length, pause)] for m, x in frames.items()}
        parts += [frames, held]
        end += length + pause
    features = {}
    for modality in parts[0]:
        try:
            joined = np.concatenate([part[modality] for part in parts])
            features[modality] = base.to_dtype(_describe(joined, modality), base.FLOAT16)
        except ValueError as error:
            findings.problem("features", f"{name}: {modality} {error}")
    segments = np.array(rows, np.float64)
    duration = end // FRAMES_PER_SNIPPET * FRAMES_PER_SNIPPET / FPS
    return Annotated(name, "train" if subject % 2 else "test", duration, segments, segments), features


def _describe(frames: np.ndarray, modality: str) -> np.ndarray:
    """Returns the features `[T, D]` of frames; an incomplete last snippet is dropped."""
    whole = len(frames) // FRAMES_PER_SNIPPET * FRAMES_PER_SNIPPET
    snippets = frames[:whole].reshape(-1, FRAMES_PER_SNIPPET, frames.shape[1])
    if modality == "inertial":
        numbers = [snippets.mean(1), snippets.std(1), snippets.min(1), snippets.max(1)]
    else:
        numbers = [snippets.mean(1), snippets[:, -1] - snippets[:, 0]]
    return np.concatenate(numbers, axis=1)
