"""Reading of skeleton files: two bodies per frame, translated and rotated."""

import numpy as np
import pytest

from kd_jax.video import skeletons
from kd_jax.video.videos import Sampling, VideoError


def ntu(frames) -> str:
    """`.skeleton` text of frames, each {tracking id: `[25, 3]`}."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for identity, joints in bodies.items():
            lines += [f"{identity} 0 1 1 1 1 0 0.1 0.2 2", "25"]
            lines += [" ".join(map(str, [*joint, *[0.5] * 8, 2])) for joint in joints]
    return "\n".join(lines) + "\n"


def body(rng, spread=1.0):
    return rng.normal(0, spread, (25, 3)).round(4)


def test_of_three_bodies_the_two_that_spread_most_are_kept_in_their_places(tmp_path):
    rng = np.random.default_rng(0)
    small = body(rng, 0.1)
    frames = [{7: small, 9: body(rng, 2.0), 8: body(rng, 0.5)} for _ in range(5)]
    del frames[2][9]  # absent in one frame
    frames[3] = {}  # no body
    path = tmp_path / "a.skeleton"
    path.write_text(ntu(frames))
    found = skeletons.read_skeletons(path)
    assert found.shape == (5, 2, 25, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], [frames[0][9], frames[0][8]], rtol=1e-6)
    assert not found[2, 0].any() and found[2, 1].any() and not found[3].any()


def test_the_body_whose_joints_spread_most_is_the_first(tmp_path):
    joints = np.zeros((25, 3))
    joints[:, 1] = np.linspace(-1, 1, 25)  # stands still, deviation 0.6 of one coordinate
    frames = [{1: 0.1 * joints + [0.3 * i, 0, 0], 2: joints} for i in range(3)]  # small, walks: 0.24 + 0.06
    (tmp_path / "a.skeleton").write_text(ntu(frames))
    np.testing.assert_allclose(skeletons.read_skeletons(tmp_path / "a.skeleton")[0], [joints, 0.1 * joints], rtol=1e-6)


def test_one_body_leaves_the_second_empty_and_pku_mmd_is_read_alike(tmp_path):
    rng = np.random.default_rng(1)
    frames = [body(rng) for _ in range(4)]
    (tmp_path / "a.skeleton").write_text(ntu([{1: joints} for joints in frames]))
    rows = [" ".join(map(str, [*joints.ravel(), *[0.0] * 75])) for joints in frames]
    (tmp_path / "b.txt").write_text("\n".join(rows) + "\n")
    ours, theirs = (skeletons.read_skeletons(tmp_path / name) for name in ("a.skeleton", "b.txt"))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(ours[:, 0], frames, rtol=1e-6)
    assert not ours[:, 1].any()


def test_normalised_by_hand():
    """Two figures side by side; the first one is at (1, 2, 3) and leans to its left."""
    first = np.zeros((25, 3))
    first[0] = [1, 2, 3]
    first[1] = [2, 2, 3]  # the spine points along x
    first[8], first[4] = [2, 4, 3], [2, 0, 3]  # shoulders along y
    first[2] = [4, 2, 3]
    second = first + np.array([0, 10, 0])
    bodies = np.stack([[first, second], [first + 1, np.zeros((25, 3))]])
    found = skeletons.normalize(bodies)
    np.testing.assert_allclose(found[0, 0, 1], 0, atol=1e-6)
    np.testing.assert_allclose(found[0, 0, 0], [0, 0, -1], atol=1e-6)  # the hip under the spine
    np.testing.assert_allclose(found[0, 0, 2], [0, 0, 2], atol=1e-6)
    shoulders = found[0, 0, 8] - found[0, 0, 4]
    np.testing.assert_allclose(shoulders, [4, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[0, 1] - found[0, 0], axis=-1), 10, rtol=1e-6)
    np.testing.assert_allclose(found[1, 0], found[0, 0], atol=1e-6)  # each frame around the spine
    assert not found[1, 1].any()


def test_snippets_repeat_the_last_frame():
    frames = np.arange(20.0)[:, None, None, None] * np.ones((1, 2, 25, 3))
    first, second = skeletons.cut_snippets(frames, Sampling())
    np.testing.assert_array_equal(first[:, 0, 0, 0], np.arange(16))
    np.testing.assert_array_equal(second[:, 0, 0, 0], [16, 17, 18, 19] + 12 * [19])


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("a.skeleton", "", "has no frame"),
        ("a.skeleton", "0\n", "has no frame"),
        ("a.skeleton", "2\n0\n0\n", "has no body in any of its frames"),
        ("a.skeleton", ntu([{1: np.ones((25, 3))}])[:200], "it is cut short"),
        ("a.skeleton", ntu([{1: np.ones((25, 3))}]) + "3\n", "there is more in it than its frames"),
        ("a.skeleton", "1\n1\n1 0 1 1 1 1 0 0 0 2\n20\n" + "0 " * 240, "a body has 20 joints, not 25"),
        ("a.skeleton", "one\n", "invalid literal"),
        ("a.skeleton", ntu([{1: np.full((25, 3), np.nan)}]), "not finite, the first in frame 0"),
        ("a.txt", "1 2 3\n", "line 1 has 3 numbers"),
        ("a.txt", "\n", "has no frame"),
        ("a.txt", " ".join(["0"] * 150), "has no body"),
    ],
)
def test_each_bad_file_is_named_with_its_reason(name, text, reason, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(VideoError, match=f"{tmp_path / name}.*{reason}"):
        skeletons.read_skeletons(tmp_path / name)
