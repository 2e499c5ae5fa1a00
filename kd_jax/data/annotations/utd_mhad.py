"""UTD-MHAD: 27 actions in untrimmed sequences, which the builder makes of the clips in the public archive.

The archive has no annotation files: the name of a clip states its action. `data_prep.utd_mhad` reads the clips.
"""

from kd_jax.data import base

CLASSES = (  # in the published order, a1 … a27
    "swipe left",
    "swipe right",
    "wave",
    "clap",
    "throw",
    "cross arms",
    "basketball shot",
    "draw x",
    "draw circle clockwise",
    "draw circle counter-clockwise",
    "draw triangle",
    "bowling",
    "boxing",
    "baseball swing",
    "tennis forehand",
    "arm curl",
    "tennis serve",
    "push",
    "knock on door",
    "catch",
    "pick up and throw",
    "jog in place",
    "walk in place",
    "sit to stand",
    "stand to sit",
    "lunge",
    "squat",
)

DESCRIPTION = base.Description(
    title="UTD-MHAD: 27 actions in sequences made of the clips of 8 subjects",
    needs="""\
Depth, Inertial and Skeleton of the public archive, unpacked into one folder: a1_s1_t1_depth.mat, …
--seed=N           of the order of the clips and of the pauses between them (0)

kd-jax build --dataset=utd_mhad --archive=UTD-MHAD --output=data/utd_mhad""",
    head="dense",
    unit="seconds",
    fps=30.0,
    names=CLASSES,
    protocols=("frame_map", "event_map"),
    read=None,
    stride=8,
)
