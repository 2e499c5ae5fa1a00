"""Reading of skeleton files: the snippets of 3D pose that an encoder takes.

    skeletons = read_skeletons(Path('S001C001P001R001A001.skeleton'))    # [F, 2, 25, 3], metres
    for snippet in cut_snippets(normalize(skeletons), Sampling()): ...   # [16, 2, 25, 3] float32

The formats are `.skeleton` of NTU RGB+D, and `.txt` of PKU-MMD with 150 numbers per line: two bodies of 25 joints.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from kd_jax.data.feature_tables import open_array
from kd_jax.video.videos import Sampling, VideoError

JOINTS = 25  # per body in NTU RGB+D and PKU-MMD, in Kinect's order
PERSONS = 2  # bodies per frame that encoders are trained for
SUFFIXES = (".skeleton", ".txt", ".npy")  # .npy files are refused with the layout that they seem to have
LAYOUTS = {17: "COCO", 18: "OpenPose", 20: "the first Kinect", 22: "SMPL", 24: "SMPL", 33: "MediaPipe"}  # by joints
FARTHEST = 1e3  # metres from the sensor, beyond which a coordinate is an error
FEW = 12  # frames; a shorter track that is still is not part of a person who moves
LITTLE = 0.1  # the share of the motion of another body below which a body is not the first
MAX_GAP, MAX_STEP = 30, 0.7  # frames and metres between two tracks of one person, at most
MAX_SPEED = 0.1  # metres per frame of a joint, at most, so that jumps of a tracker are not motion
_HIP, _SPINE, _LEFT_SHOULDER, _RIGHT_SHOULDER = 0, 1, 4, 8


class Track(NamedTuple):
    """A body in some frames."""

    frames: np.ndarray  # `[N]`, ascending
    joints: np.ndarray  # `[N, 25, 3]`, metres


def read_skeletons(path: Path) -> np.ndarray:
    """Reads a skeleton file, see `read_bodies`."""
    return read_bodies(path)[0]


def read_bodies(path: Path) -> tuple[np.ndarray, int]:
    """Reads a skeleton file.

    The two bodies with the largest spread are kept, the largest first. Spread is the standard deviation of each
    coordinate over joints and frames, summed over coordinates, as Shi et al. prepare NTU RGB+D. A body keeps its place
    while it is absent; the code of Shi et al. places bodies by their order in each frame.

    A person whom the tracker loses and finds again under another id is one body. A tracker also takes objects for
    bodies. A body of a few frames, or one that hardly moves, therefore comes after all others, and a still one of a few
    frames is not joined to a person who moves. A body with a coordinate that is not finite or beyond 1 km is absent
    from that frame; a warning counts these frames.

    Returns:
      `[F, 2, 25, 3]` float32 in metres, 0 where a body is absent; and in how many frames a body is left out.

    Raises:
      VideoError: for another format or layout of joints, a damaged file, and a file without frames or bodies.
    """
    if path.suffix.lower() == ".npy":
        raise VideoError(f"{path}: {_describe_array(path)}")
    try:
        text = path.read_text()
        num_frames, tracks = _parse_ntu(text) if path.suffix.lower() == ".skeleton" else _parse_pku_mmd(text)
    except (OSError, UnicodeDecodeError) as error:
        raise VideoError(f"{path} cannot be read ({error})") from None
    except (ValueError, IndexError) as error:
        expected = f"expected NTU's .skeleton, or PKU-MMD's .txt with {PERSONS * JOINTS * 3} numbers per line"
        raise VideoError(f"{path} is not a skeleton file, or damaged ({error}); {expected}") from None
    if not num_frames or not tracks:
        raise VideoError(f"{path} has no body in any of its frames" if num_frames else f"{path} has no frame")
    usable = [_without_errors(track) for track in tracks]
    lost = sum(len(track.frames) for track in tracks) - sum(len(track.frames) for track in usable)
    usable = [track for track in usable if len(track.frames)]
    what = "coordinates that are not finite or beyond 1 km"
    if not usable:
        raise VideoError(f"{path} has {what} in every frame")
    if lost:
        logging.warning("%s: a body is left out of %d frames, which have %s", path, lost, what)
    bodies = np.zeros((num_frames, PERSONS, JOINTS, 3), np.float32)
    for place, track in enumerate(_rank(_join(usable))[:PERSONS]):
        bodies[track.frames, place] = track.joints
    return bodies, lost


def _without_errors(track: Track) -> Track:
    """Returns the track without frames that have a coordinate which is not finite or too far away."""
    good = (np.abs(track.joints) <= FARTHEST).all(axis=(1, 2))  # False for NaN
    return Track(track.frames[good], track.joints[good])


def _join(tracks: list[Track]) -> list[Track]:
    """Joins tracks without a common frame that follow each other within `MAX_GAP` frames and `MAX_STEP` metres."""
    bodies: list[list[Track]] = []  # each as its parts
    recent: list[list[Track]] = []  # the bodies that may continue; all parts of one but the last end before that starts
    for track in sorted(tracks, key=lambda track: track.frames[0]):
        start = track.frames[0]
        bodies += [parts for parts in recent if parts[-1].frames[-1] < start - MAX_GAP]
        recent = [parts for parts in recent if parts[-1].frames[-1] >= start - MAX_GAP]
        steps = [_step(parts[-1], track) for parts in recent]
        if not steps or min(steps) > MAX_STEP:
            recent.append([track])
            continue
        parts = recent[int(np.argmin(steps))]
        if parts[-1].frames[-1] < start:
            parts.append(track)
        else:
            parts[-1] = _in_order(_concatenate([parts[-1], track]))
    return list(map(_concatenate, bodies + recent))


def _concatenate(parts: list[Track]) -> Track:
    return Track(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _in_order(track: Track) -> Track:
    order = np.argsort(track.frames)
    return Track(track.frames[order], track.joints[order])


def _step(body: Track, track: Track) -> float:
    """Returns the metres from a body to where a track starts, averaged over joints; infinity if they are two bodies."""
    before = int(np.searchsorted(body.frames, track.frames[0])) - 1
    gone = before < 0 or body.frames[before] < track.frames[0] - MAX_GAP
    if gone or np.intersect1d(body.frames, track.frames).size or _is_object(body, track) or _is_object(track, body):
        return np.inf
    return float(np.linalg.norm(body.joints[before] - track.joints[0], axis=-1).mean())


def _is_object(track: Track, person: Track) -> bool:
    """Returns whether a track is short and still next to a person's, so that it is an object or a ghost.

    A single frame has no motion, so it may belong to the person.
    """
    if not 1 < len(track.frames) < min(FEW, len(person.frames) / 2):
        return False
    still, moving = (_motion(body) / (len(body.frames) - 1) for body in (track, person))
    return still < LITTLE * moving


def _rank(tracks: list[Track]) -> list[Track]:
    """Sorts bodies by spread, the most spread one first; those of few frames or with hardly any motion are last.

    Few and hardly any are relative to the body with the most motion in the most frames.
    """
    frames, motions = [len(track.frames) for track in tracks], [_motion(track) for track in tracks]
    main = max(range(len(tracks)), key=lambda i: (frames[i] * motions[i], frames[i]))
    is_person = [n >= frames[main] / 2 and m >= LITTLE * motions[main] for n, m in zip(frames, motions, strict=True)]
    spreads = [float(track.joints.std(axis=(0, 1)).sum()) for track in tracks]
    order = sorted(range(len(tracks)), key=lambda i: (is_person[i], spreads[i]), reverse=True)
    return [tracks[i] for i in order]


def _motion(track: Track) -> float:
    """Returns the metres that a joint travels over all frames, on average; `MAX_SPEED` limits a jump of the tracker."""
    speeds = np.linalg.norm(np.diff(track.joints, axis=0), axis=-1).mean(axis=1)
    return float(np.minimum(speeds, MAX_SPEED)[np.diff(track.frames) == 1].sum())


def _present(bodies: np.ndarray) -> np.ndarray:
    """Returns `[…]` bool: whether a body `[…, 25, 3]` has a joint that is not 0."""
    return np.asarray(bodies.any(axis=(-2, -1)))


def _parse_ntu(text: str) -> tuple[int, list[Track]]:
    """Returns the number of frames and a track per tracking id, in the order in which they appear."""
    numbers = iter(text.split())
    found: dict[str, list[tuple[int, list]]] = defaultdict(list)
    num_frames = int(next(numbers, "0"))
    for frame in range(num_frames):
        for _ in range(int(_next(numbers))):
            identity, *_ = [_next(numbers) for _ in range(10)]
            joints = [[float(_next(numbers)) for _ in range(12)][:3] for _ in range(int(_next(numbers)))]
            if len(joints) != JOINTS:
                raise ValueError(f"a body has {describe_joints(len(joints))}")
            if not found[identity] or found[identity][-1][0] < frame:  # the first body of an id in a frame
                found[identity].append((frame, joints))
    if next(numbers, None) is not None:
        raise ValueError("there is more in it than its frames")
    tracks = [Track(*(np.array(values) for values in zip(*track, strict=True))) for track in found.values()]
    return num_frames, tracks


def _next(numbers: Iterator[str]) -> str:
    if (value := next(numbers, None)) is None:
        raise ValueError("it is cut short")
    return value


def _parse_pku_mmd(text: str) -> tuple[int, list[Track]]:
    """Returns the number of frames and the tracks of the two bodies."""
    rows = [[float(x) for x in line.split()] for line in text.splitlines() if line.strip()]
    for index, row in enumerate(rows):
        if len(row) != PERSONS * JOINTS * 3:
            joints = {len(row) / 3 / persons for persons in (1, PERSONS)} & LAYOUTS.keys()
            layout = f": {describe_joints(int(min(joints)))}" if joints else ""
            raise ValueError(f"line {index + 1} has {len(row)} numbers{layout}")
    bodies = np.array(rows).reshape(len(rows), PERSONS, JOINTS, 3)
    present = [np.flatnonzero(_present(bodies[:, i])) for i in range(PERSONS)]
    return len(rows), [Track(frames, bodies[frames, i]) for i, frames in enumerate(present) if len(frames)]


def describe_joints(count: int) -> str:
    """Returns which layout a number of joints suggests, and which one is read."""
    layout = f", which look like those of {LAYOUTS[count]}" if count in LAYOUTS else ""
    return f"{count} joints{layout}; the encoder reads {JOINTS} of the second Kinect"


def _describe_array(path: Path) -> str:
    """Says which layout of joints an .npy file seems to have."""
    try:
        shape = open_array(path).shape
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    joints = describe_joints(shape[-2]) if len(shape) in (3, 4) and shape[-1] in (2, 3) else f"shape {list(shape)}"
    return f"{joints}; skeletons are read from NTU's .skeleton and PKU-MMD's .txt"


def normalize(skeletons: np.ndarray) -> np.ndarray:
    """Translates and rotates skeletons as the weights of 2s-AGCN expect.

    Every frame is translated so that the first body's spine is at the origin. One rotation is applied to all frames: it
    turns the first body, in the first frame that shows it, so that its spine points along z and its shoulders along x.
    Input and output are `[F, 2, 25, 3]`, 0 where a body is absent; the output is float32.
    """
    present = _present(skeletons)
    seen = np.flatnonzero(present[:, 0])
    if not len(seen):
        return skeletons.astype(np.float32)
    first = seen[0]
    last_seen = np.maximum.accumulate(np.where(present[:, 0], np.arange(len(skeletons)), first))
    origin = skeletons[last_seen, 0, _SPINE][:, None, None]
    moved = np.where(present[..., None, None], skeletons - origin, 0)
    for start, end, axis in ((_HIP, _SPINE, [0.0, 0, 1]), (_LEFT_SHOULDER, _RIGHT_SHOULDER, [1.0, 0, 0])):
        body = moved[first, 0]
        moved = moved @ _rotation(body[end] - body[start], np.array(axis)).T
    return moved.astype(np.float32)


def _rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the matrix of the shortest rotation from one direction to another (Rodrigues' formula).

    It is the identity if `source` is 0 or opposite to `target`.
    """
    length = np.linalg.norm(source)
    if length < 1e-6:
        return np.eye(3)
    source = source / length
    axis, cosine = np.cross(source, target), source @ target
    if np.linalg.norm(axis) < 1e-6:
        return np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def cut_snippets(skeletons: np.ndarray, sampling: Sampling) -> Iterator[np.ndarray]:
    """Yields `[length, 2, 25, 3]` snippets; an incomplete last snippet is filled with the last frame."""
    for index in range(sampling.count(len(skeletons))):
        at = np.minimum(np.arange(sampling.length) + index * sampling.stride, len(skeletons) - 1)
        yield skeletons[at]
