"""Skeleton files → snippets of 3D pose, ready for an encoder.

    skeletons = read(Path('S001C001P001R001A001.skeleton'))   # [F, 2, 25, 3], metres
    for snippet in snippets(normalize(skeletons), Sampling()): ...  # [16, 2, 25, 3] float32

reads NTU RGB+D's `.skeleton` and PKU-MMD's `.txt` (150 numbers a line: two bodies of 25 joints).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kd_jax.video.videos import Sampling, VideoError

JOINTS = 25  # of NTU RGB+D and PKU-MMD, in Kinect's order
PERSONS = 2  # that encoders are trained for
SUFFIXES = (".skeleton", ".txt")
_SPINE, _HIP, _SHOULDERS = 1, 0, (8, 4)


def read(path: Path) -> np.ndarray:
    """The two bodies of each frame, `[F, 2, 25, 3]` float32 in metres, 0 where there is none.

    Of more than two bodies those whose joints spread most are kept, the most spread one first, as Shi et al. prepare
    NTU RGB+D: the standard deviation of each coordinate over joints and frames, summed. A body keeps its place while it
    is away; theirs are placed by their order in each frame.

    Raises:
      VideoError: for another format, a damaged file, one without frames or without a body, and numbers that are not
        finite.
    """
    try:
        text = path.read_text()
        bodies = _ntu(text) if path.suffix.lower() == ".skeleton" else _pku(text)
    except (OSError, UnicodeDecodeError) as error:
        raise VideoError(f"{path} cannot be read ({error})") from None
    except (ValueError, IndexError) as error:
        raise VideoError(
            f"{path} is no skeleton file, or damaged ({error}); expected NTU's .skeleton, or PKU-MMD's .txt with "
            f"{PERSONS * JOINTS * 3} numbers a line"
        ) from None
    if not bodies.shape[1]:
        raise VideoError(f"{path} has no frame" if not len(bodies) else f"{path} has no body in any of its frames")
    if not np.isfinite(bodies).all():
        raise VideoError(f"{path} has numbers that are not finite, the first in frame {_first_bad(bodies)}")
    present = bodies.any(axis=(2, 3))
    spread = [
        bodies[present[:, i], i].std(axis=(0, 1)).sum() if present[:, i].any() else -1 for i in range(len(present.T))
    ]
    kept = bodies[:, np.argsort(-np.array(spread), kind="stable")[:PERSONS]]
    return np.pad(kept, ((0, 0), (0, PERSONS - kept.shape[1]), (0, 0), (0, 0))).astype(np.float32)


def _first_bad(bodies: np.ndarray) -> int:
    return int(np.argmin(np.isfinite(bodies).all(axis=(1, 2, 3))))


def _ntu(text: str) -> np.ndarray:
    """`[F, bodies, 25, 3]`: bodies by their tracking ids, in the order in which they appear."""
    numbers = iter(text.split())
    frames, places = [], {}
    for _ in range(int(next(numbers, "0"))):
        frame = {}
        for _ in range(_next(numbers, int)):
            identity = _next(numbers, str)
            for _ in range(9):
                _next(numbers, str)
            joints = [[_next(numbers, float) for _ in range(12)][:3] for _ in range(_next(numbers, int))]
            if len(joints) != JOINTS:
                raise ValueError(f"a body has {len(joints)} joints, not {JOINTS}")
            frame[places.setdefault(identity, len(places))] = joints
        frames.append(frame)
    if next(numbers, None) is not None:
        raise ValueError("there is more in it than its frames")
    bodies = np.zeros((len(frames), len(places), JOINTS, 3))
    for index, frame in enumerate(frames):
        for place, joints in frame.items():
            bodies[index, place] = joints
    return bodies


def _next(numbers: Iterator[str], kind: type):
    value = next(numbers, None)
    if value is None:
        raise ValueError("it is cut short")
    return kind(value)


def _pku(text: str) -> np.ndarray:
    rows = [[float(x) for x in line.split()] for line in text.splitlines() if line.strip()]
    for index, row in enumerate(rows):
        if len(row) != PERSONS * JOINTS * 3:
            raise ValueError(f"line {index + 1} has {len(row)} numbers")
    bodies = np.array(rows).reshape(len(rows), PERSONS, JOINTS, 3)
    return bodies[:, bodies.any(axis=(0, 2, 3))]


def normalize(skeletons: np.ndarray) -> np.ndarray:
    """Moves and turns all frames alike, as weights of 2s-AGCN expect it.

    The first body's spine is at the origin in each frame; in its first frame the spine points along z and the
    shoulders lie along x.

    Args:
      skeletons: `[F, 2, 25, 3]`, 0 where a body is absent.

    Returns:
      `[F, 2, 25, 3]` float32.
    """
    present = skeletons.any(axis=(2, 3))
    first = np.flatnonzero(present[:, 0])
    if not len(first):
        return skeletons.astype(np.float32)
    centre = skeletons[:, 0, _SPINE]
    held = np.maximum.accumulate(np.where(present[:, 0], np.arange(len(skeletons)), first[0]))  # where it was last seen
    moved = np.where(present[..., None, None], skeletons - centre[held][:, None, None], 0)
    body = moved[first[0], 0]
    moved = moved @ _rotation(body[_SPINE] - body[_HIP], np.array([0.0, 0, 1])).T
    body = moved[first[0], 0]
    moved = moved @ _rotation(body[_SHOULDERS[0]] - body[_SHOULDERS[1]], np.array([1.0, 0, 0])).T
    return moved.astype(np.float32)


def _rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The matrix that turns one direction into another the shortest way (Rodrigues); none for no or opposite ones."""
    length = np.linalg.norm(source)
    if length < 1e-6:
        return np.eye(3)
    source = source / length
    axis, cosine = np.cross(source, target), source @ target
    if np.linalg.norm(axis) < 1e-6:
        return np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def snippets(skeletons: np.ndarray, sampling: Sampling) -> Iterator[np.ndarray]:
    """`[length, 2, 25, 3]` each; what is missing behind the last frame repeats it."""
    for index in range(sampling.count(len(skeletons))):
        at = np.minimum(np.arange(sampling.length) + index * sampling.stride, len(skeletons) - 1)
        yield skeletons[at]
