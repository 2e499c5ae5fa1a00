"""Draws videos of stick figures with skeletons and annotations, to try every step from pixels to detections.

    python -m data_prep.stickfigures --output=data/stickfigures

The command writes videos, skeletons (NTU RGB+D's format, 25 joints), annotations.json and classes.txt for
`data_prep.build --dataset=custom`, and small random encoders. Some pairs of actions have the same poses in reverse
order, for example sit down and stand up. The command needs `pip install 'kd_jax[video]'`.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep import execution
from kd_jax import interrupts
from kd_jax.command_line import Parser, at_least, between, disk_path
from kd_jax.data.staging import staged
from kd_jax.files import write_atomically
from kd_jax.runtime import num_processors
from kd_jax.video.encoders import AGCN, I3D
from kd_jax.video.encoders.weights import random_variables, write_weights

ANNOTATIONS = "annotations.json"
WIDTH, HEIGHT, FPS = 128, 96, 15
SIZE, SHORTER_SIDE = 80, 96  # square that the small I3D reads, and shorter side of the frame
PERSONS, ROOMS = 5, 4  # numbers of sets of clothes and of backgrounds


@dataclass(frozen=True)
class Pose:
    """The pose of a figure; angles in radians."""

    seat: float = 0.0  # from 0, standing, to 1, seated
    bend: float = 0.0  # forward angle of the trunk
    lift: tuple[float, float] = (0.1, 0.1)  # angles of the left and the right arm from straight down
    front: float = 0.0  # from 0, arms lifted to the side, to 1, forward
    elbow: tuple[float, float] = (0.1, 0.1)  # angles of the left and the right elbow
    swing: float = 0.0  # angle of the legs, one forward and one back
    x: float = 0.0  # position to the side, metres


def joints(pose: Pose, height: float = 1.7) -> np.ndarray:
    """Returns the joints `[25, 3]` in metres: x to the figure's left, y up from the floor, z to its back."""
    found = np.zeros((25, 3))

    def towards(angle: float, side: float = 0.0, front: float = 1.0) -> np.ndarray:
        """Returns a unit vector, `angle` away from straight down, with these shares to the side and forward."""
        return np.array([side * np.sin(angle), -np.cos(angle), -front * np.sin(angle)])

    trunk = -towards(-pose.bend)
    found[0] = [0, 0.9 - 0.42 * pose.seat, 0]
    for joint, length in ((1, 0.22), (20, 0.47), (2, 0.55), (3, 0.7)):
        found[joint] = found[0] + length * trunk
    for i, side in enumerate((1.0, -1.0)):
        shoulder, elbow, wrist, hand, tip, thumb = ((4, 5, 6, 7, 21, 22), (8, 9, 10, 11, 23, 24))[i]
        hip, knee, ankle, foot = ((12, 13, 14, 15), (16, 17, 18, 19))[i]
        direction = (side * np.cos(pose.front * np.pi / 2), np.sin(pose.front * np.pi / 2))
        found[shoulder] = found[20] + [0.18 * side, 0, 0]
        found[elbow] = found[shoulder] + 0.28 * towards(pose.lift[i], *direction)
        forearm = towards(pose.lift[i] + pose.elbow[i], *direction)
        for joint, length in ((wrist, 0.25), (hand, 0.31), (tip, 0.38), (thumb, 0.33)):
            found[joint] = found[elbow] + length * forearm
        swing = side * pose.swing
        found[hip] = found[0] + [0.1 * side, 0, 0]
        found[knee] = found[hip] + 0.45 * towards(1.4 * pose.seat + swing)
        found[ankle] = found[knee] + 0.45 * towards(min(swing, 0.0))
        found[foot] = found[ankle] + [0, -0.03, -0.12]
    found[:, 0] += pose.x
    return found * (height / 1.7)


def _ease(part: float) -> float:
    return float(0.5 - 0.5 * np.cos(np.pi * np.clip(part, 0, 1)))


def _walk(pose: Pose, part: float, seconds: float) -> Pose:
    way = 0.9 if pose.x < 0 else -0.9
    return replace(pose, swing=0.5 * np.sin(2 * np.pi * 1.2 * part * seconds), x=pose.x + way * _ease(part))


def _wave(pose: Pose, part: float, seconds: float) -> Pose:
    return replace(pose, lift=(0.1, 2.0), elbow=(0.1, 0.5 + 0.5 * np.sin(2 * np.pi * 1.8 * part * seconds)))


def _push(pose: Pose, part: float) -> Pose:
    return replace(pose, lift=(0.3 + 1.2 * part,) * 2, elbow=(2.2 - 2.1 * part,) * 2, front=1.0)


# name: (whether the action can start from a pose, the pose after a fraction of its seconds)
ACTIONS: dict[str, tuple[Callable[[Pose], bool], Callable[[Pose, float, float], Pose]]] = {
    "sit down": (lambda p: p.seat == 0, lambda p, t, s: replace(p, seat=_ease(t))),
    "stand up": (lambda p: p.seat == 1, lambda p, t, s: replace(p, seat=1 - _ease(t))),
    "raise arms": (lambda p: p.lift[0] < 1, lambda p, t, s: replace(p, lift=(0.1 + 2.6 * _ease(t),) * 2, front=0.0)),
    "lower arms": (lambda p: p.lift[0] > 1, lambda p, t, s: replace(p, lift=(2.7 - 2.6 * _ease(t),) * 2, front=0.0)),
    "push": (lambda p: p.lift[0] < 1, lambda p, t, s: _push(p, _ease(t))),
    "pull": (lambda p: p.lift[0] < 1, lambda p, t, s: _push(p, 1 - _ease(t))),
    "wave": (lambda p: p.lift[0] < 1, _wave),
    "bow": (lambda p: p.seat == 0, lambda p, t, s: replace(p, bend=1.1 * np.sin(np.pi * _ease(t)))),
    "walk": (lambda p: p.seat == 0, _walk),
}
CLASSES = tuple(ACTIONS)


@dataclass(frozen=True)
class Scene:
    """The content of one video."""

    name: str
    actions: list[tuple[int, float, float]]  # class, start and end in seconds
    poses: list[Pose]  # one per frame
    height: float  # of the figure, metres
    yaw: float  # of the camera, radians
    tilt: float  # of the camera, radians
    distance: float  # from the camera to the figure, metres
    colors: tuple  # RGB of the body, the arms and the head
    room: int  # number of the background
    seed: int  # of the noise

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.poses) / FPS


def make_scene(name: str, seed: int, seconds: float) -> Scene:
    """Draws actions with pauses between them, until the video is at least `seconds` long."""
    rng = np.random.default_rng(seed)
    pose = Pose(x=rng.uniform(-0.5, 0.5))
    poses: list[Pose] = []
    actions = []
    while len(poses) < seconds * FPS:
        rest = _rest(pose)
        poses += [_blend(pose, rest, _ease(part)) for part in _parts(rng.uniform(0.6, 2.0))]
        pose = poses[-1]
        action = str(rng.choice([action for action, (possible, _) in ACTIONS.items() if possible(pose)]))
        length, act = rng.uniform(1.2, 2.8), ACTIONS[action][1]
        begin = act(pose, 0.0, length)
        if begin != pose:  # moves to the pose that the action starts from
            poses += [_blend(pose, begin, _ease(part)) for part in _parts(0.3)]
        first = len(poses)
        poses += [act(pose, part, length) for part in _parts(length)]
        pose = poses[-1]
        actions.append((CLASSES.index(action), first / FPS, len(poses) / FPS))
    clothes = np.random.default_rng(rng.integers(PERSONS))
    view: dict = {"height": rng.uniform(1.5, 1.9), "yaw": rng.choice([-0.6, 0.0, 0.6]) + rng.normal(0, 0.08)}
    view |= {"tilt": rng.uniform(0.0, 0.25), "distance": rng.uniform(2.8, 3.6)}
    colors = tuple(tuple(int(c) for c in clothes.integers(40, 256, 3)) for _ in range(3))
    return Scene(name, actions, poses, **view, colors=colors, room=int(rng.integers(ROOMS)), seed=seed)


def _parts(seconds: float) -> np.ndarray:
    """Fractions from 0 to 1, one per frame of `seconds`, at least two."""
    count = max(2, round(seconds * FPS))
    return np.arange(count) / (count - 1)


def _rest(pose: Pose) -> Pose:
    """Returns the resting pose nearest to a pose: legs together, trunk upright, arms down unless both are raised."""
    arms = pose.lift if pose.lift[0] == pose.lift[1] and pose.lift[0] > 2 else Pose.lift
    return Pose(seat=round(pose.seat), lift=arms, x=pose.x)


def _blend(a: Pose, b: Pose, part: float) -> Pose:
    """Returns the pose that is a fraction `part` of the way from a to b."""

    def mix(x, y):
        return tuple(map(mix, x, y)) if isinstance(x, tuple) else x + (y - x) * part

    return Pose(**{name: mix(x, getattr(b, name)) for name, x in vars(a).items()}) if part < 1 else b


def in_camera(scene: Scene) -> np.ndarray:
    """Returns joints `[F, 25, 3]` in metres, in Kinect's axes: x to the right, y up, z away from the camera."""
    found = np.stack([joints(pose, scene.height) for pose in scene.poses])
    cos, sin = np.cos(scene.yaw), np.sin(scene.yaw)
    found = found @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) - [0, 1.0, 0]
    cos, sin = np.cos(scene.tilt), np.sin(scene.tilt)
    return found @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) + [0, 0, scene.distance]


_LIMBS = [  # joints, index of the colour, thickness in metres
    *(((a, b), 0, 0.12) for a, b in ((0, 1), (1, 20), (20, 2), (0, 12), (0, 16))),
    *(((a, b), 0, 0.09) for a, b in ((12, 13), (13, 14), (14, 15), (16, 17), (17, 18), (18, 19))),
    *(((a, b), 1, 0.07) for a, b in ((20, 4), (4, 5), (5, 6), (6, 21), (20, 8), (8, 9), (9, 10), (10, 23))),
]


def draw(scene: Scene) -> Iterator[np.ndarray]:
    """Yields the frames, `[HEIGHT, WIDTH, 3]` uint8."""
    import cv2  # here because only drawing needs it

    rng, room = np.random.default_rng(scene.seed + 1), np.random.default_rng(scene.room)
    background = np.full((HEIGHT, WIDTH, 3), room.integers(0, 110, 3), np.uint8)
    for _ in range(6):  # furniture
        corner, size = room.integers(0, (WIDTH, HEIGHT)), room.integers(8, 50, 2)
        fill = [int(c) for c in room.integers(0, 140, 3)]
        cv2.rectangle(background, [int(x) for x in corner], [int(x) for x in corner + size], fill, -1)
    focal = 0.9 * HEIGHT
    for body in in_camera(scene):
        frame = background.copy()
        at = np.stack([WIDTH / 2 + focal * body[:, 0] / body[:, 2], HEIGHT / 2 - focal * body[:, 1] / body[:, 2]], -1)
        points = [(int(16 * x), int(16 * y)) for x, y in at]
        for (a, b), color, thickness in sorted(_LIMBS, key=lambda limb: -body[list(limb[0]), 2].mean()):
            width = max(1, round(focal * thickness / body[a, 2]))
            cv2.line(frame, points[a], points[b], scene.colors[color], width, cv2.LINE_AA, shift=4)
        cv2.circle(frame, points[3], int(16 * focal * 0.11 / body[3, 2]), scene.colors[2], -1, cv2.LINE_AA, shift=4)
        noise = rng.normal(0, 4, frame.shape)
        yield np.clip(frame + noise, 0, 255).astype(np.uint8)


def write_video(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Writes an mp4 file with `FPS` frames per second, atomically."""
    import av  # here because only videos need it

    temporary = path.with_name(f".{path.name}")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)


def skeleton_text(scene: Scene) -> str:
    """Returns the text of an NTU RGB+D `.skeleton` file, with noise of 4 mm; fields other than joints are made up."""
    rng = np.random.default_rng(scene.seed + 2)
    bodies = in_camera(scene)
    lines = [str(len(bodies))]
    for body in bodies + rng.normal(0, 0.004, bodies.shape):
        lines += ["1", "1 0 1 1 1 1 0 0 0 2", "25"]
        lines += [f"{x:.6f} {y:.6f} {z:.6f} 0 0 0 0 0 0 0 0 2" for x, y, z in body]
    return "\n".join(lines) + "\n"


def write_one(output: str, name: str, seed: int, seconds: float) -> dict:
    """Writes a video and its skeletons; returns its duration in seconds and its actions, as in annotations."""
    scene, folder = make_scene(name, seed, seconds), Path(output)
    write_video(folder / "videos" / f"{name}.mp4", draw(scene))
    write_atomically(folder / "skeletons" / f"{name}.skeleton", skeleton_text(scene).encode())
    return {"duration": scene.duration, "actions": scene.actions}


def write_encoders(folder: Path, seed: int) -> None:
    """Writes small random encoders for RGB, flow and pose; random features of deeper ones would be less informative."""
    short = I3D(len(CLASSES), width=0.25, final_endpoint="Mixed_3c")
    models = {"rgb": short, "flow": short, "pose": AGCN(len(CLASSES), width=0.5)}
    facts: dict = {"source": {"random": f"data_prep.stickfigures --seed={seed}"}}
    facts |= {"size": SIZE, "shorter_side": SHORTER_SIDE}
    for i, (modality, model) in enumerate(models.items()):
        variables = random_variables(model, modality, 3 * seed + i)
        write_weights(folder / f"{modality}.npz", model, variables, modality=modality, **facts)


def write_all(folder: Path, train: int, test: int, seconds: float, seed: int) -> dict[str, dict]:
    """Writes videos, skeletons, encoders, names of classes and annotations; returns the annotations."""
    for name in ("videos", "skeletons", "weights"):
        (folder / name).mkdir()
    names = [f"figure_{index:03d}" for index in range(train + test)]
    tasks = [(str(folder), name, 1000 * seed + 10 * i, seconds) for i, name in enumerate(names)]
    annotations: dict[str, dict] = {name: {} for name in names}  # in order
    drawn = execution.run(write_one, tasks, workers=num_processors())
    for index, facts in tqdm(drawn, "drawing", len(tasks), unit="video", disable=None, leave=False):
        annotations[names[index]] = {"subset": "training" if index < train else "testing", **facts}
    write_encoders(folder / "weights", seed)
    write_atomically(folder / "classes.txt", ("\n".join(CLASSES) + "\n").encode())
    write_atomically(folder / ANNOTATIONS, (json.dumps(annotations, indent=2) + "\n").encode())
    return annotations


def parser() -> Parser:
    """Returns the parser of the command line."""
    options = Parser("data_prep.stickfigures", "Draw videos of stick figures with skeletons and annotations.")
    options.add_argument("--output", type=disk_path, required=True, help="Folder to make.")
    options.add_argument("--train", type=at_least(1), default=32, help="Number of training videos (32).")
    options.add_argument("--test", type=at_least(1), default=12, help="Number of test videos (12).")
    options.add_argument("--seconds", type=between(1, 3600), default=40.0, help="Length of a video, about (40).")
    options.add_argument("--seed", type=at_least(0), default=0, help="Seed of all random choices (0).")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`, or those of the process."""
    given = parser().parse_args(argv)
    output = Path(given.output)
    if output.exists():
        sys.exit(f"data_prep.stickfigures: {output} exists; choose another --output, or delete it")
    try:
        with staged(output, marker=ANNOTATIONS, overwrite=False) as folder:
            annotations = write_all(folder, given.train, given.test, given.seconds, given.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"data_prep.stickfigures: {error}")
    count = sum(len(entry["actions"]) for entry in annotations.values())
    print(f"{output}: {len(annotations)} videos, {count} actions of {len(CLASSES)} classes")


if __name__ == "__main__":
    interrupts.run("data_prep.stickfigures", main)
