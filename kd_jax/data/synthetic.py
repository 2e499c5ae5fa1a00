"""The synthetic data set: videos made from a seed in which flow shows clearly what RGB shows faintly.

    info, splits = make(seed=0)          # {'train': [Video], 'test': [Video]}, three modalities: rgb, flow, pose

Classes form pairs that look alike and move differently, such as "take pills" and "drink". RGB shows the pair clearly
and the motion faintly, with much noise. Flow shows the motion clearly and the pair less clearly. Pose lies in between.
An RGB detector therefore confuses the classes of a pair, although its features contain the difference. Several actions
may happen at once, boundaries are gradual, noise is correlated in time, and the test subjects are not in training.
"""

from dataclasses import dataclass

import numpy as np

from kd_jax.data import base

SECONDS_PER_SNIPPET = 0.64  # 16 frames at 25 frames per second
FPS = 25.0

PAIRS = ("cup", "phone", "door", "chair", "book", "pan")
MOTIONS = ("pick_up", "put_down")
CLASSES = tuple(f"{motion}_{pair}" for pair in PAIRS for motion in MOTIONS)  # class = 2 · pair + motion

# The content of the videos.
CLASSES_PER_VIDEO = (5, 9)  # fewest and most classes in a video
EVENTS_PER_SNIPPET = 0.1  # actions per snippet of video; several may overlap
MEDIAN_SECONDS, SPREAD = 6.0, 0.6  # length of an action: log-normal
GAIN_SPREAD = 0.35  # strength of one action: log-normal around 1
ANNOTATION_JITTER = 0.4  # standard deviation in seconds: annotators disagree on boundaries
SHARED_MOTION = 0.6  # the part of a motion that all objects share, so that flow confuses objects
TRAIN_SUBJECTS, TEST_SUBJECTS = 10, 6  # no subject is in both
SUBJECT_RANK = 4  # dimensions of the space in which the bias of a video lies


@dataclass(frozen=True)
class Modality:
    """The signal of a modality, in standard deviations of its noise (per snippet, along one direction)."""

    size: int  # D
    appearance: float  # strength of the pair, equal for its two classes
    motion: float  # strength of the class within its pair
    bias: float  # strength of an offset that is constant within a video
    style: float  # change of the class directions from subject to subject, relative to their length
    ramp: float  # seconds in which an action appears and vanishes
    correlation: float  # of the noise from snippet to snippet


MODALITIES = {
    "rgb": Modality(size=64, appearance=2.4, motion=0.8, bias=3.0, style=0.5, ramp=2.0, correlation=0.7),
    "flow": Modality(size=48, appearance=0.8, motion=2.2, bias=1.0, style=0.5, ramp=0.7, correlation=0.6),
    "pose": Modality(size=32, appearance=1.0, motion=1.6, bias=1.5, style=0.5, ramp=1.0, correlation=0.6),
}
DESCRIPTION = base.Description(
    title="videos made from a seed: 12 dense actions, three modalities",
    needs="""\
nothing

kd-jax build --dataset=synthetic --output=data/synthetic""",
    head="dense",
    unit="seconds",
    fps=FPS,
    names=CLASSES,
    protocols=("frame_map", "frame_map_upsampled"),
    read=None,
)


def make(
    seed: int = 0, *, num_train: int = 40, num_test: int = 24, length: tuple[int, int] = (100, 400)
) -> tuple[base.Info, dict[str, list[base.Video]]]:
    """Makes the data set.

    Args:
      seed: of all random numbers. A larger data set with the same seed and length starts with the same videos.
      num_train, num_test, length: number of videos of each split; fewest and most snippets of a video.

    Returns Info, and {'train': videos, 'test': videos} with float16 features.
    """
    world = _World(seed)
    info = base.Info(
        name="synthetic",
        classes=CLASSES,
        head="dense",
        modalities={name: modality.size for name, modality in MODALITIES.items()},
        unit="seconds",
        fps=FPS,
        seconds_per_snippet=SECONDS_PER_SNIPPET,
    )
    counts = {"train": num_train, "test": num_test}
    return info, {s: [_make_video(world, s, i, length) for i in range(n)] for s, n in counts.items()}


def tiny(seed: int = 0) -> tuple[base.Info, dict[str, list[base.Video]]]:
    """Makes a tiny data set for tests: 4 training and 2 test videos of 20 to 40 snippets."""
    return make(seed, num_train=4, num_test=2, length=(20, 40))


class _World:
    """What all videos of a seed share: the directions of each class, subject and room in feature space."""

    def __init__(self, seed: int):
        rng = np.random.default_rng([seed, 0])
        self.seed = seed
        self.directions: dict[str, np.ndarray] = {}  # [subjects, C, D]
        self.rooms: dict[str, np.ndarray] = {}  # [SUBJECT_RANK, D]
        subjects = TRAIN_SUBJECTS + TEST_SUBJECTS
        for name, m in MODALITIES.items():
            appearance = np.repeat(_unit_rows(rng, (len(PAIRS), m.size)), len(MOTIONS), axis=0)
            motion = SHARED_MOTION * np.tile(_unit_rows(rng, (len(MOTIONS), m.size)), (len(PAIRS), 1))
            motion = motion + np.sqrt(1 - SHARED_MOTION**2) * _unit_rows(rng, (len(CLASSES), m.size))
            common = m.appearance * appearance + m.motion * motion
            turned = _unit_rows(rng, (subjects, len(CLASSES), m.size)) * np.linalg.norm(common, axis=-1)[:, None]
            self.directions[name] = common + m.style * turned
            self.rooms[name] = _unit_rows(rng, (SUBJECT_RANK, m.size))


def _unit_rows(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    rows = rng.standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _make_video(world: _World, split: str, index: int, length: tuple[int, int]) -> base.Video:
    rng = np.random.default_rng([world.seed, 1 + base.SPLITS.index(split), index])
    is_train = split == "train"
    subject = index % TRAIN_SUBJECTS if is_train else TRAIN_SUBJECTS + index % TEST_SUBJECTS
    num_snippets = int(rng.integers(length[0], length[1] + 1))
    duration = num_snippets * SECONDS_PER_SNIPPET
    events, gains = _draw_events(rng, num_snippets, duration)
    jitter = rng.normal(0, ANNOTATION_JITTER, (len(events), 2))
    annotated = events.copy()
    annotated[:, 1:] = np.clip(events[:, 1:] + jitter, 0, duration)
    annotated = annotated[annotated[:, 2] - annotated[:, 1] > SECONDS_PER_SNIPPET]
    features = {
        name: _observe(rng, m, world.directions[name][subject], world.rooms[name], events, gains, num_snippets)
        for name, m in MODALITIES.items()
    }
    return base.Video(f"{split}_{index:03d}", features, annotated, duration)


def _draw_events(rng: np.random.Generator, num_snippets: int, duration: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws `[N, 3]` segments, sorted by start, without overlap within a class, and the gain of each, `[N]`."""
    shown = rng.permutation(len(CLASSES))[: rng.integers(CLASSES_PER_VIDEO[0], CLASSES_PER_VIDEO[1] + 1)]
    events: list[tuple[int, float, float]] = []
    for _ in range(max(3, rng.poisson(EVENTS_PER_SNIPPET * num_snippets))):
        class_id = int(rng.choice(shown))
        seconds = min(MEDIAN_SECONDS * np.exp(SPREAD * rng.standard_normal()), duration / 2)
        start = rng.uniform(0, duration - seconds)
        gap = 2 * SECONDS_PER_SNIPPET
        if all(c != class_id or start > e + gap or start + seconds < s - gap for c, s, e in events):
            events.append((class_id, start, start + seconds))
    table = np.array(sorted(events, key=lambda event: event[1]), np.float64).reshape(-1, 3)
    return table, np.exp(GAIN_SPREAD * rng.standard_normal(len(table)))


def _observe(
    rng: np.random.Generator,
    modality: Modality,
    directions: np.ndarray,
    rooms: np.ndarray,
    events: np.ndarray,
    gains: np.ndarray,
    num_snippets: int,
) -> np.ndarray:
    """Returns the features of one modality, `[T, D]` float16."""
    instants = np.arange(num_snippets)[:, None] * SECONDS_PER_SNIPPET
    rise = np.clip((instants - events[:, 1]) / modality.ramp + 0.5, 0, 1)
    fall = np.clip((events[:, 2] - instants) / modality.ramp + 0.5, 0, 1)
    intensity = gains * np.minimum(rise, fall)  # [T, N]
    signal = intensity @ directions[events[:, 0].astype(int)]
    bias = modality.bias * rng.standard_normal(len(rooms)) @ rooms
    noise = _correlated_noise(rng, (num_snippets, modality.size), modality.correlation)
    return (signal + bias + noise).astype(np.float16)


def _correlated_noise(rng: np.random.Generator, shape: tuple[int, int], correlation: float) -> np.ndarray:
    """Draws noise of unit variance, an autoregressive process of order 1 along the first axis."""
    noise = rng.standard_normal(shape)
    noise[1:] *= np.sqrt(1 - correlation**2)
    for t in range(1, len(noise)):
        noise[t] += correlation * noise[t - 1]
    return noise
