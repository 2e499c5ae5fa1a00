"""Reading of skeleton files: two bodies per frame, translated and rotated."""

import numpy as np
import pytest

from data_prep.extract import Settings, read_batches
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


def test_a_body_that_moves_comes_before_one_that_does_not(tmp_path):
    joints = np.zeros((25, 3))
    joints[:, 1] = np.linspace(-1, 1, 25)
    frames = [{1: joints, 2: 0.1 * joints + [0.03 * i, 0, 0]} for i in range(3)]  # the small one walks
    (tmp_path / "a.skeleton").write_text(ntu(frames))
    np.testing.assert_allclose(skeletons.read_skeletons(tmp_path / "a.skeleton")[0], [0.1 * joints, joints], rtol=1e-6)


def person(frame):
    """Returns a person who walks and swings their arms, 2.5 m from the sensor."""
    joints = np.linspace(-0.8, 0.8, 75).reshape(25, 3) + np.array([0, 0, 2.5])
    return joints + [0.01 * frame, 0, 0] + 0.05 * np.sin(frame / 5 + np.arange(25))[:, None]


def pose_of(tmp_path, frames, sampling=None):
    path = tmp_path / "a.skeleton"
    path.write_text(ntu(frames))
    return np.stack(
        [*skeletons.cut_snippets(skeletons.normalize(skeletons.read_skeletons(path)), sampling or Sampling())]
    )


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
@pytest.mark.parametrize("size, jump", [(3.0, 0.0), (0.1, 0.0), (1.0, 2.0)], ids=["wide", "small", "jumps"])
@pytest.mark.parametrize("at", [0, 40, 93])
def test_law_a_ghost_changes_nothing_outside_its_snippets(tmp_path, at, size, jump, first):
    """A ghost is a body of three frames, whatever its size; also if it jumps from frame to frame."""
    ghost = np.random.default_rng(0).normal(0, size, (25, 3)) + np.array([0, 0, 3])
    clean = [{7: person(i)} for i in range(96)]
    haunted = [dict(bodies) for bodies in clean]
    for i in range(at, at + 3):
        bodies = [(3, ghost + jump * (i % 2)), (7, person(i))]
        haunted[i] = dict(bodies if first else bodies[::-1])
    expected, found = pose_of(tmp_path, clean), pose_of(tmp_path, haunted)
    touched = [i for i in range(6) if 16 * i < at + 3 and at < 16 * (i + 1)]
    for snippet in range(6):
        equal = np.array_equal(expected[snippet], found[snippet])
        assert equal if snippet not in touched else np.array_equal(expected[snippet][:, 0], found[snippet][:, 0])


@pytest.mark.parametrize("num_frames", [20, 45])
def test_law_a_ghost_that_trembles_for_a_while_is_not_the_first_body(tmp_path, num_frames):
    """A tracker takes an object for a body in a fifth, or nearly half, of the frames; noise moves it every frame."""
    rng = np.random.default_rng(0)
    chair = np.linspace(-1.6, 1.6, 75).reshape(25, 3) + np.array([2, 0, 3])
    clean = [{7: person(i)} for i in range(96)]
    haunted = [dict(bodies) for bodies in clean]
    for i in range(30, 30 + num_frames):
        haunted[i] = {3: chair + rng.normal(0, 0.03, 3)} | clean[i]
    expected, found = (skeletons.normalize(read_frames(tmp_path / "a.skeleton", x)) for x in (clean, haunted))
    np.testing.assert_array_equal(found[:, 0], expected[:, 0])
    np.testing.assert_array_equal(np.flatnonzero(found[:, 1].any((1, 2))), np.arange(30, 30 + num_frames))


def test_a_person_who_gets_other_ids_is_one_body(tmp_path):
    clean = [{7: person(i)} for i in range(60)]
    renamed = [{7 if i < 20 else 8 if i < 40 else 9: person(i)} for i in range(60)]
    every = [{100 + i: person(i)} for i in range(60)]
    expected = pose_of(tmp_path, clean)
    np.testing.assert_array_equal(pose_of(tmp_path, renamed), expected)
    np.testing.assert_array_equal(pose_of(tmp_path, every), expected)
    apart = [{7: person(i)} if i < 30 else {8: person(i) + np.array([3, 0, 0])} for i in range(60)]  # 3 m away
    (tmp_path / "b.skeleton").write_text(ntu(apart))
    found = skeletons.read_skeletons(tmp_path / "b.skeleton")
    assert found[:30, 0].any() != found[:30, 1].any() and found[30:, 0].any() != found[30:, 1].any()


def test_coordinates_that_are_no_numbers_cost_their_frames(tmp_path, caplog):
    frames = [{7: person(i)} for i in range(48)]
    broken = [{7: joints.copy()} for bodies in frames for joints in bodies.values()]
    broken[5][7][3, 1] = np.nan
    broken[6][7][8, 0] = 1e30
    (tmp_path / "a.skeleton").write_text(ntu(frames))
    (tmp_path / "b.skeleton").write_text(ntu(broken))
    with caplog.at_level("WARNING"):
        whole, found = (skeletons.read_skeletons(tmp_path / f"{name}.skeleton") for name in "ab")
    assert not found[[5, 6]].any() and "b.skeleton: a body is left out of 2 frames" in caplog.text
    settings = Settings("pose", None, Sampling(), None, "float32")
    facts = [next(read_batches(tmp_path / f"{name}.skeleton", settings, 8)) for name in "ab"]  # of the manifests
    assert [of_file["damaged_frames"] for of_file in facts] == [0, 2]
    whole[[5, 6]] = 0
    np.testing.assert_array_equal(found, whole)


def test_a_new_body_in_every_frame_takes_no_memory(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "a.skeleton").write_text(ntu([{i: body(rng) + np.array([5.0 * (i % 7), 0, 0])} for i in range(3000)]))
    assert skeletons.read_skeletons(tmp_path / "a.skeleton").shape == (3000, 2, 25, 3)  # dense: 3000 · 3000 · 75


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
        (
            "a.skeleton",
            "1\n1\n1 0 1 1 1 1 0 0 0 2\n20\n" + "0 " * 240,
            "20 joints, which look like those of the first Kinect; the encoder reads 25",
        ),
        ("a.skeleton", "one\n", "invalid literal"),
        ("a.skeleton", ntu([{1: np.full((25, 3), np.nan)}]), "not finite or beyond 1 km in every frame"),
        (
            "a.txt",
            " ".join(["0.5"] * 51),
            "line 1 has 51 numbers: 17 joints, which look like those of COCO",
        ),
        ("a.txt", "1 2 3\n", "line 1 has 3 numbers"),
        ("a.txt", "\n", "has no frame"),
        ("a.txt", " ".join(["0"] * 150), "has no body"),
    ],
)
def test_each_bad_file_is_named_with_its_reason(name, text, reason, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(VideoError, match=f"{tmp_path / name}.*{reason}"):
        skeletons.read_skeletons(tmp_path / name)


@pytest.mark.parametrize("shape, layout", [((9, 17, 3), "COCO"), ((9, 2, 33, 3), "MediaPipe"), ((9, 22, 3), "SMPL")])
def test_other_layouts_are_refused_with_their_name(tmp_path, shape, layout):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    with pytest.raises(VideoError, match=f"a.npy: {shape[-2]} joints, which look like those of {layout}; the encoder"):
        skeletons.read_skeletons(tmp_path / "a.npy")


def walker(rng, frames=48):
    """A body `[F, 25, 3]` that walks and waves."""
    time = np.arange(frames)[:, None]
    waves = 0.05 * np.sin(time / 5 + np.arange(25))[..., None]
    return rng.uniform([-0.3, -0.9, 2.4], [0.3, 0.8, 2.6], (25, 3)) + waves + time[..., None] * [0.01, 0, 0]


def read_frames(path, frames):
    path.write_text(ntu(frames))
    return skeletons.read_skeletons(path)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("start", [0, 20, 45])
@pytest.mark.parametrize("offset", [(0, 0, 0), (0.5, 0, 0), (-4, 1, 9)])
@pytest.mark.parametrize("jitter", [0, 0.3])
def test_law_a_ghost_changes_nothing_next_to_one_or_two_persons(first, start, offset, jitter, tmp_path):
    rng = np.random.default_rng(0)
    people = [walker(rng), walker(rng) + np.array([2, 0, 0])]
    chair = rng.uniform([-1.5, -1.5, 2.5], [1.5, 1.5, 5.5], (25, 3)) + offset
    for count in (1, 2):
        clean = [{i: people[i][t] for i in range(count)} for t in range(48)]
        ghost = [dict(frame) for frame in clean]
        for t in range(start, start + 3):
            found = {70: chair + jitter * rng.normal(size=(25, 3))}
            ghost[t] = {**found, **clean[t]} if first else {**clean[t], **found}
        expected, given = (skeletons.normalize(read_frames(tmp_path / "a.skeleton", x)) for x in (clean, ghost))
        outside = np.r_[0:start, start + 3 : 48]
        np.testing.assert_array_equal(given[outside], expected[outside])
        np.testing.assert_array_equal(given[:, 0], expected[:, 0])


def test_a_ghost_that_appears_while_the_person_is_away_is_another_body(tmp_path):
    rng = np.random.default_rng(0)
    joints, chair = walker(rng), rng.uniform([-1.5, -1.5, 2.5], [1.5, 1.5, 5.5], (25, 3))
    clean = [{1: joints[t]} if 6 <= t < 30 or t >= 40 else {} for t in range(48)]
    ghost = [{**frame, **({2: chair} if t in (1, 2, 33, 34) else {})} for t, frame in enumerate(clean)]
    expected, given = (skeletons.normalize(read_frames(tmp_path / "a.skeleton", x)) for x in (clean, ghost))
    np.testing.assert_array_equal(given[:, 0], expected[:, 0])


@pytest.mark.parametrize("size", [2, 3, 10])
@pytest.mark.parametrize("offset", [(0, 0, 0), (-0.4, 0, 0), (0.2, 0.1, 0)])
@pytest.mark.parametrize("end", [20, 46], ids=["before", "away"])
def test_law_a_still_ghost_near_a_person_who_comes_or_returns_is_another_body(size, offset, end, tmp_path):
    joints = walker(np.random.default_rng(0), 96)
    clean = [{1 if t < 60 else 2: joints[t]} if 20 <= t < 34 or t >= 46 else {} for t in range(96)]
    ghost = [{**frame, **({3: joints[end] + offset} if end - size <= t < end else {})} for t, frame in enumerate(clean)]
    expected, given = (skeletons.normalize(read_frames(tmp_path / "a.skeleton", x)) for x in (clean, ghost))
    outside = np.r_[0 : end - size, end:96]
    np.testing.assert_array_equal(given[outside], expected[outside])


@pytest.mark.parametrize(
    "ids", ["1" * 20 + "2" * 28, "1" * 10 + "2" * 10 + "1" * 28, "12" * 24, "1" * 20 + "-" * 8 + "2" * 20]
)
def test_one_person_under_several_tracking_ids_is_one_body(ids, tmp_path):
    joints = walker(np.random.default_rng(0))
    other = walker(np.random.default_rng(1)) + np.array([1.5, 0, 0])  # under one id
    one, several = (
        [
            {9: other[t]} if i == "-" else {name: joints[t], 9: other[t]}
            for t, (i, name) in enumerate(zip(ids, names, strict=True))
        ]
        for names in ("1" * 48, ids)
    )
    expected, found = (read_frames(tmp_path / "a.skeleton", frames) for frames in (one, several))
    np.testing.assert_array_equal(found, expected)
