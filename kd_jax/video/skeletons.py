"""Reading of skeleton files: the snippets of 3D pose that an encoder takes.

    skeletons = read_skeletons(Path('S001C001P001R001A001.skeleton'))    # [F, 2, 25, 3], metres
    for snippet in cut_snippets(normalize(skeletons), Sampling()): ...   # [16, 2, 25, 3] float32

The formats are `.skeleton` of NTU RGB+D, and `.txt` of PKU-MMD with 150 numbers per line: two bodies of 25 joints.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kd_jax.video.videos import Sampling, VideoError

JOINTS = 25  # per body in NTU RGB+D and PKU-MMD, in Kinect's order
PERSONS = 2  # bodies per frame that encoders are trained for
SUFFIXES = (".skeleton", ".txt")
_HIP, _SPINE, _LEFT_SHOULDER, _RIGHT_SHOULDER = 0, 1, 4, 8


def read_skeletons(path: Path) -> np.ndarray:
    """Reads a skeleton file.

    If there are more than two bodies, the two whose joints spread most are kept, the most spread one first. Spread is
    the standard deviation of each coordinate over joints and frames, summed over coordinates, as Shi et al. prepare
    NTU RGB+D. A body keeps its place while it is absent; the code of Shi et al. places bodies by their order in each
    frame.

    Returns:
      `[F, 2, 25, 3]` float32 in metres, 0 where a body is absent.

    Raises:
      VideoError: for another format, a damaged file, a file without frames or bodies, and numbers that are not finite.
    """
    try:
        text = path.read_text()
        bodies = _parse_ntu(text) if path.suffix.lower() == ".skeleton" else _parse_pku_mmd(text)
    except (OSError, UnicodeDecodeError) as error:
        raise VideoError(f"{path} cannot be read ({error})") from None
    except (ValueError, IndexError) as error:
        expected = f"expected NTU's .skeleton, or PKU-MMD's .txt with {PERSONS * JOINTS * 3} numbers per line"
        raise VideoError(f"{path} is no skeleton file, or damaged ({error}); {expected}") from None
    if not bodies.shape[1]:
        raise VideoError(f"{path} has no frame" if not len(bodies) else f"{path} has no body in any of its frames")
    finite = np.isfinite(bodies).all(axis=(1, 2, 3))
    if not finite.all():
        raise VideoError(f"{path} has numbers that are not finite, the first in frame {int(np.argmin(finite))}")
    spread = [_spread(bodies[:, i]) for i in range(bodies.shape[1])]
    kept = bodies[:, np.argsort(-np.array(spread), kind="stable")[:PERSONS]]
    return np.pad(kept, ((0, 0), (0, PERSONS - kept.shape[1]), (0, 0), (0, 0))).astype(np.float32)


def _present(bodies: np.ndarray) -> np.ndarray:
    """Returns `[…]` bool: whether a body `[…, 25, 3]` has a joint that is not 0."""
    return np.asarray(bodies.any(axis=(-2, -1)))


def _spread(body: np.ndarray) -> float:
    """Returns the spread of one body `[F, 25, 3]` over the frames in which it is present; -1 if there are none."""
    seen = body[_present(body)]
    return float(seen.std(axis=(0, 1)).sum()) if len(seen) else -1.0


def _parse_ntu(text: str) -> np.ndarray:
    """Returns `[F, bodies, 25, 3]`, with one place per tracking id, in the order in which they appear."""
    numbers = iter(text.split())
    frames = []
    places: dict[str, int] = {}
    for _ in range(int(next(numbers, "0"))):
        frame = {}
        for _ in range(int(_next(numbers))):
            identity, *_ = [_next(numbers) for _ in range(10)]
            joints = [[float(_next(numbers)) for _ in range(12)][:3] for _ in range(int(_next(numbers)))]
            if len(joints) != JOINTS:
                raise ValueError(f"a body has {len(joints)} joints, not {JOINTS}")
            frame[places.setdefault(identity, len(places))] = joints
        frames.append(frame)
    if next(numbers, None) is not None:
        raise ValueError("there is more in it than its frames")
    absent = [[0.0] * 3] * JOINTS
    bodies = [frame.get(place, absent) for frame in frames for place in range(len(places))]
    return np.array(bodies, float).reshape(len(frames), len(places), JOINTS, 3)


def _next(numbers: Iterator[str]) -> str:
    if (value := next(numbers, None)) is None:
        raise ValueError("it is cut short")
    return value


def _parse_pku_mmd(text: str) -> np.ndarray:
    """Returns `[F, bodies, 25, 3]`, without a body that is absent from every frame."""
    rows = [[float(x) for x in line.split()] for line in text.splitlines() if line.strip()]
    for index, row in enumerate(rows):
        if len(row) != PERSONS * JOINTS * 3:
            raise ValueError(f"line {index + 1} has {len(row)} numbers")
    bodies = np.array(rows).reshape(len(rows), PERSONS, JOINTS, 3)
    return bodies[:, _present(bodies).any(axis=0)]


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
