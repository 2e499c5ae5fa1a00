"""UTD-MHAD: small archives of .mat files become sequences whose snippets and labels are those of the clips."""

import shutil

import numpy as np
import pytest
import scipy.io

from data_prep.build import Options, build_records, main
from data_prep.utd_mhad import Clip, read_clip
from kd_jax.data import records
from kd_jax.data.annotations.utd_mhad import CLASSES
from kd_jax.data.checks import CLIPS_CROPPED, NO_CLIP, NO_CLIP_NAME, DataError, Findings

KINDS = {"depth": "d_depth", "skeleton": "d_skel", "inertial": "d_iner"}
CLIPS = [(a, s, 1) for s in (1, 2, 3) for a in (2, 8)]


def content(kind, num_frames, number=0):
    """Return the array of a file; all pixels of depth frame f are `1000 + 10 * number + f` millimetres away."""
    if kind == "depth":
        return np.broadcast_to(np.arange(num_frames, dtype=np.uint16) + 1000 + 10 * number, (240, 320, num_frames))
    shape = (20, 3, num_frames) if kind == "skeleton" else (2 * num_frames - 1, 6)
    return np.random.default_rng(number).standard_normal(shape)


class Archive:
    """The folders of an archive with a few clips; action a of subject s has 20 + a + s frames."""

    def __init__(self, root):
        self.root = root / "UTD-MHAD"

    def write(self):
        for kind in KINDS:
            (self.root / kind.capitalize()).mkdir(parents=True)
            for action, subject, trial in CLIPS:
                self.save(kind, content(kind, 20 + action + subject, action), f"a{action}_s{subject}_t{trial}")

    def path(self, kind, clip="a2_s1_t1"):
        return self.root / kind.capitalize() / f"{clip}_{kind}.mat"

    def save(self, kind, array, clip="a2_s1_t1", name=None):
        scipy.io.savemat(self.path(kind, clip), {name or KINDS[kind]: array}, do_compression=True)

    def build(self, **options):
        options = {"output": str(self.root.parent / "out"), "archive": str(self.root), "skip_missing": True} | options
        return build_records(Options("utd_mhad", **options))

    def problem(self, **options):
        with pytest.raises(DataError) as caught:
            self.build(check=True, **options)
        return str(caught.value).partition("\n")[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    Archive(folder := tmp_path_factory.mktemp("whole")).write()
    return folder


@pytest.fixture
def archive(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return Archive(tmp_path)


def test_records_of_an_incomplete_archive(archive, capsys):
    (archive.root / "Depth" / "notes.mat").write_bytes(b"")
    archive.save("skeleton", content("skeleton", 25, 2), "a2_s2_t1")  # one frame longer than its depth video
    info, report = archive.build()
    assert info.classes == CLASSES and len(CLASSES) == 27 and info.head == "dense"
    assert info.modalities == {"depth": 1536, "pose": 120, "inertial": 24}
    assert info.seconds_per_snippet == 8 / 30
    assert report["source"] == {"archive": str(archive.root), "seed": 0}
    missing = report["handled"][NO_CLIP]
    assert len(missing) == 864 - len(CLIPS) and missing[0] == "a1_s1_t1: no depth, skeleton, inertial file"
    assert report["handled"][NO_CLIP_NAME] == [str(archive.root / "Depth" / "notes.mat")]
    assert report["handled"][CLIPS_CROPPED] == ["a2_s2_t1: depth has 24 frames, skeleton 25"]
    videos = {
        video.id: video for split in ("train", "test") for video in records.read(archive.root.parent / "out", split)
    }
    assert list(videos) == ["s1_t1", "s3_t1", "s2_t1"]  # training subjects are odd
    for name, video in videos.items():
        subject = int(name[1])
        assert sorted(video.segments[:, 0]) == [1, 7]
        np.testing.assert_allclose(np.diff(video.segments[:, 1:] * 30)[:, 0], 21 + video.segments[:, 0] + subject)
        assert video.duration == video.num_snippets * 8 / 30
        pauses = 30 * (np.append(video.segments[1:, 1], video.duration) - video.segments[:, 2])
        assert 30 <= pauses[0] < 90 and 30 - 8 < pauses[1] < 90
        for class_id, start, end in video.segments * [1, 30, 30]:
            inside = np.arange(np.ceil(start / 8), end // 8).astype(int)
            depth = video.features["depth"][inside].astype(float)
            first = 1000 + 10 * (class_id + 1) + 8 * inside - start
            np.testing.assert_allclose(depth[:, :768], ((first + 3.5) / 1000)[:, None] + np.zeros(768), atol=1e-3)
            np.testing.assert_allclose(depth[:, 768:], 0.007, rtol=2e-3)
            stop = min(int(end + 30) // 8, video.num_snippets)
            held = video.features["depth"][int(np.ceil(end / 8)) : stop].astype(float)
            last = 1000 + 10 * (class_id + 1) + end - start - 1  # a pause consists of the last five frames
            assert (held[:, :768] <= last / 1000 + 1e-3).all() and (held[:, :768] >= (last - 4) / 1000 - 1e-3).all()
            assert (np.abs(held[:, 768:]) <= 0.0041).all()
    with pytest.raises(SystemExit):
        main(["--dataset=utd_mhad", f"--archive={archive.root}", f"--output={archive.root.parent / 'out'}"])


def test_a_sequence_depends_on_the_seed_and_its_own_clips(archive):
    def videos(name, **options):
        archive.build(output=str(archive.root.parent / name), **options)
        return {v.id: v for v in records.read(archive.root.parent / name, "train")}

    first, other = videos("first"), videos("other", seed=1)
    for kind in KINDS:
        archive.path(kind, "a8_s3_t1").unlink()
    less = videos("less")
    np.testing.assert_array_equal(first["s1_t1"].features["depth"], less["s1_t1"].features["depth"])
    assert len(less["s3_t1"].segments) == 1
    assert not np.array_equal(first["s1_t1"].segments, other["s1_t1"].segments)


def test_frames_of_a_clip(archive):
    depth, iner = np.zeros((240, 320, 9), np.uint16), np.zeros((17, 6))
    depth[10:20, 20:30, 3], iner[:, 4], iner[:, 0] = 100, np.arange(17), 0.5 * np.arange(17)
    depth[10, 20, 3] += 1000
    skeleton = content("skeleton", 9)
    for kind, array in (("depth", depth), ("skeleton", skeleton), ("inertial", iner)):
        archive.save(kind, array)
    frames = read_clip(Clip(2, 1, 1), {kind: archive.path(kind) for kind in KINDS}, Findings())
    expected = np.zeros((9, 24, 32))
    expected[3, 1, 2] = 0.11  # metres, mean of 10 x 10 pixels
    np.testing.assert_allclose(frames["depth"], expected.reshape(9, -1))
    np.testing.assert_array_equal(frames["pose"].reshape(9, 20, 3), skeleton.transpose(2, 0, 1))
    np.testing.assert_allclose(frames["inertial"][:, 4], 0.02 * np.arange(9))  # every second sample, 100 degrees / s
    np.testing.assert_allclose(frames["inertial"][:, 0], np.arange(9.0))


NOT_FINITE = "holds values that are not finite numbers: snippet 0 has nan; repair or remove the snippet"


@pytest.mark.parametrize(
    "kind, array, name, expected",
    [
        ("depth", np.ones((240, 300, 9)), None, "d_depth is float64 [240, 300, 9], expected numbers [240, 320, T]"),
        ("skeleton", np.ones((25, 3, 9)), None, "d_skel is float64 [25, 3, 9], expected numbers [20, 3, T]"),
        ("skeleton", np.ones((20, 3)), None, "d_skel is float64 [20, 3], expected numbers [20, 3, T]"),
        ("inertial", np.ones((6, 9)), None, "d_iner is float64 [6, 9], expected numbers [T, 6]"),
        ("inertial", np.ones((0, 6)), None, "d_iner is float64 [0, 6], expected numbers [T, 6]"),
        ("inertial", np.full((9, 6), "x", object), None, "d_iner is object [9, 6], expected numbers [T, 6]"),
        ("inertial", np.full((9, 6), np.nan), None, NOT_FINITE),
        ("inertial", np.ones((9, 6)), "d_skel", "it has no array d_iner"),
    ],
)
def test_a_clip_of_another_shape_is_named(archive, kind, array, name, expected):
    archive.save(kind, array, name=name)
    assert archive.problem() == f"unreadable clip (1):\n  {archive.path(kind)}: {expected}"


def test_damaged_files_are_named(archive):
    whole = archive.path("inertial").read_bytes()
    v73 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)
    for damaged in (b"", b"x", b"not a .mat file" * 40, whole[:200], whole[:-40], whole[:150] + whole[:150], v73):
        archive.path("inertial").write_bytes(damaged)
        assert archive.problem().startswith(
            f"unreadable clip (1):\n  {archive.path('inertial')}: not readable as a .mat"
        )
    archive.path("inertial").unlink()
    archive.path("inertial").symlink_to(archive.root / "elsewhere")
    assert archive.problem() == f"unreadable clip (1):\n  {archive.path('inertial')}: No such file or directory"


def test_features_that_float16_cannot_hold_are_named(archive):
    archive.save("skeleton", np.full((20, 3, 23), 1e6))
    end = "pose holds values up to 1e+06, in snippet 13, but float16 ends at 65504; rescale them"
    assert archive.problem() == f"features (1):\n  s1_t1: {end}"


def test_lengths_that_differ_by_more_than_a_snippet_are_named(archive):
    archive.save("skeleton", content("skeleton", 40))
    found = archive.problem()
    assert found.startswith("length (1):\n  a2_s1_t1: depth has 23 frames and skeleton 40, more than a snippet apart; ")


def test_missing_folders_and_files_are_named(archive):
    root = archive.root
    found = archive.problem(skip_missing=False)
    start = "missing clip (1):\n  " + f"{root}: 855 of 864 clips are missing (a1_s1_t1, a3_s1_t1, a4_s1_t1, "
    assert found.startswith(start) and "a8_s1_t4" not in found
    archive.path("depth").unlink()
    what = f"{root}: the numbers of files differ (5 of depth, 6 of skeleton, 6 of inertial), because of a2_s1_t1"
    found = archive.problem(skip_missing=False)
    assert found.splitlines()[1] == f"  {what}; add them, or leave these clips out with --skip_missing"
    assert "a2_s1_t1: no depth file" in archive.build(check=True)[1]["handled"][NO_CLIP]
    (root / "more").mkdir()
    archive.path("skeleton", "a8_s1_t1").rename(root / "more" / "a8_s1_t1_skeleton.mat")  # any subfolder will do
    archive.build(check=True)
    (root / "Depth" / "a8_s1_t1_skeleton.mat").symlink_to(root / "more" / "a8_s1_t1_skeleton.mat")
    assert archive.problem().startswith(f"repeated file (1):\n  {root / 'Depth' / 'a8_s1_t1_skeleton.mat'} and {root}")
    (root / "Depth").rename(root.parent / "elsewhere")
    what = f"{root / 'Depth'}: no file such as a1_s1_t1_depth.mat in {root} or its subfolders"
    assert archive.problem() == f"missing folder (1):\n  {what}; unpack Depth.zip of the archive there"
    what = f"--archive={root / 'none'} is not a folder; give the one with Depth, Skeleton, Inertial"
    assert archive.problem(archive=str(root / "none")) == f"archive (1):\n  {what}"


def test_an_archive_without_training_subjects_is_refused(archive):
    for kind in KINDS:
        for action, subject, trial in CLIPS:
            if subject != 2:
                archive.path(kind, f"a{action}_s{subject}_t{trial}").unlink()
    assert (
        archive.problem()
        == f"empty split (1):\n  {archive.root}: none of its 1 videos is for train, so it would be empty"
    )
    archive.path("depth", "a2_s2_t1").unlink()
    archive.path("inertial", "a8_s2_t1").unlink()
    assert archive.problem().endswith("no clip has all of its files (depth, skeleton, inertial); add them")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"archive": None}, "--dataset=utd_mhad also needs --archive; `--list` shows a whole command"),
        ({"annotations": ["x"], "features": ["rgb=x"]}, "--annotations, --features would be ignored; leave it out"),
        ({"workers": 2}, "--workers would be ignored; leave it out"),
    ],
)
def test_options_without_effect_are_refused(archive, options, message):
    with pytest.raises(ValueError, match=message):
        archive.build(**options)


def test_other_data_sets_have_no_archive():
    with pytest.raises(ValueError, match="--archive would be ignored; leave it out"):
        build_records(Options("custom", "out", archive="UTD-MHAD"))
    with pytest.raises(ValueError, match="--archive would be ignored; leave it out"):
        build_records(Options("synthetic", "out", archive="UTD-MHAD"))
