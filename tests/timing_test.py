"""Times of snippets: where rows of features are in a video, by hand and as laws, and what is compared."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.build import Options, build_records, main
from kd_jax.data import records
from kd_jax.data.annotations.units import common_factor
from kd_jax.data.checks import CROPPED, FACTOR, LENGTH_DIFFERS, LENGTHS_VARY, PADDED, RESAMPLED, UNANNOTATED, Findings
from kd_jax.data.timing import Cut, Length, compare_lengths, nearest_rows, place, read_timestamps
from kd_jax.evaluation.proposals import choose
from kd_jax.evaluation.scoring import make_truth
from kd_jax.segments import Grid, labels_from_segments, resample_scores

FPS = 25.0


def test_overlapping_windows_are_at_their_centres():
    """32 frames every 4 of a 100-frame video: 18 windows with centres 16, 20, …, 84."""
    cut = Cut(step=4 / FPS, window=32 / FPS)
    front, num_snippets, grid = place(cut, 18, duration=100 / FPS)
    assert (front, num_snippets) == (4, 25)
    step = grid.length / num_snippets
    centres = (grid.start + (np.arange(num_snippets) + 0.5) * step) * FPS
    np.testing.assert_allclose(centres[front : front + 18], 16 + 4 * np.arange(18))
    row = np.array([[0, 15.5 / FPS, 17.5 / FPS]])  # around the centre of the first window
    assert np.flatnonzero(grid.labels(row, num_snippets, 1)).tolist() == [4]


def test_windows_that_touch_and_drop_the_tail():
    """64 frames every 64 of a 1000-frame video: 15 windows end at 960. Row i is at 64i, not at 1000i/15."""
    front, num_snippets, grid = place(Cut(64 / FPS, 64 / FPS), 15, duration=1000 / FPS)
    assert (front, num_snippets) == (0, 16) and grid == Grid(0.0, pytest.approx(16 * 64 / FPS), 0.0)
    late = np.array([[0, 890 / FPS, 910 / FPS]])  # holds the start of row 14 at 896, but not 1000 * 14 / 15 = 933
    assert np.flatnonzero(grid.labels(late, num_snippets, 1)).tolist() == [14]


grids = st.builds(Grid, st.floats(-2, 2), st.floats(5, 80), st.sampled_from([0.0, 0.5]))


@settings(deadline=None)
@given(grids, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_law_labels_are_of_the_instants_inside(grid, num_snippets, seed):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(-5, 90, (6, 2)), axis=1)
    rows = np.column_stack([rng.integers(0, 3, 6), times])
    labels = grid.labels(rows, num_snippets, 3)
    instants = grid.start + (np.arange(num_snippets) + grid.label_at) * grid.length / num_snippets
    expected = np.zeros((num_snippets, 3), np.uint8)
    for class_id, start, end in rows:
        expected[(start < instants) & (instants < end), int(class_id)] = 1
    np.testing.assert_array_equal(labels, expected)


@settings(deadline=None)
@given(st.floats(0.1, 500), st.integers(1, 60), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_law_a_grid_of_the_whole_video_is_the_rule_of_public_loaders(duration, num_snippets, num_frames, seed):
    rng = np.random.default_rng(seed)
    rows = np.column_stack([rng.integers(0, 2, 5), np.sort(rng.uniform(0, duration, (5, 2)), axis=1)])
    whole, scores = Grid(0.0, duration), rng.random((num_snippets, 2))
    expected = labels_from_segments(rows, duration, num_snippets, 2)
    np.testing.assert_array_equal(whole.labels(rows, num_snippets, 2), expected)
    np.testing.assert_array_equal(whole.resample(scores, duration, num_frames), resample_scores(scores, num_frames))
    for convention in ("start", "centre"):
        rule = choose("classes", "dense", convention=convention)
        found = rule(scores, duration / num_snippets, duration=duration)
        np.testing.assert_array_equal(rule(scores, whole, duration=duration), found)


@settings(deadline=None)
@given(grids, st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_law_detections_at_starts_have_the_labels_they_were_made_of(grid, num_snippets, seed):
    labels = (np.random.default_rng(seed).random((num_snippets, 2)) > 0.5).astype(np.uint8)
    found = choose("classes", "dense", convention="start")(labels.astype(float), grid)
    again = grid.labels(found[:, :3], num_snippets, 2)
    instants = grid.start + (np.arange(num_snippets) + grid.label_at) * grid.length / num_snippets
    visible = instants > 1e-9  # detections are clipped at 0
    np.testing.assert_array_equal(again[visible], labels[visible])


def test_resampling_reads_the_snippet_of_each_frame():
    """Three snippets cover 2 … 8 of 10 s; frames are 1 s apart."""
    scores = np.array([[0.0], [1.0], [2.0]])
    frames = Grid(2.0, 6.0).resample(scores, duration=10.0, num_frames=10)
    assert frames[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_nearest_rows():
    """Rows of 1 s and of 0.4 s: the centre 0.5 is in row 1 (0.4 … 0.8), 1.5 in row 3, 2.5 in row 6, beyond the end."""
    assert nearest_rows(Cut(1.0, 1.0), 3, Cut(0.4, 0.4), 6).tolist() == [1, 3, 5]


def test_time_stamps(tmp_path):
    path = tmp_path / "v_timestamps_ms.npy"
    np.save(path, 2560.0 * np.arange(1, 6))  # stacks of 64 frames at 25 frames per second
    assert read_timestamps(path) == Cut(2.56, 2.56)
    np.save(path, 40.0 * np.arange(5))  # single frames
    cut = read_timestamps(path)
    assert cut == Cut(0.04, 0.0) and cut.label_at == 0.5 and cut.start == pytest.approx(-0.02)
    for wrong in (np.array([0.0, 100, 5000, 5100]), np.array([1.0]), np.array([0.0, np.nan])):
        np.save(path, wrong)
        with pytest.raises(ValueError, match="v_timestamps_ms.npy"):
            read_timestamps(path)


def compared(ratios):
    cut, rows = Cut(0.5, 0.5), 200
    findings = Findings()
    known = [Length(f"v{i}", rows + i, cut.covered(rows + i) / ratio, cut) for i, ratio in enumerate(ratios)]
    compare_lengths(known, findings)
    return dict(findings.handled), findings.problems


def test_a_common_factor_is_reported_once_and_other_videos_by_name():
    handled, problems = compared([1.0] * 8)
    assert not handled and not problems
    handled, _ = compared([1.0] * 7 + [0.6])
    assert list(handled) == [LENGTH_DIFFERS]
    assert handled[LENGTH_DIFFERS] == ["v7: 207 snippets every 0.5 s end at 103.5 s, but the video at 172.5 s"]
    handled, _ = compared([1.2] * 7 + [1.0])
    assert handled == {
        FACTOR: ["the snippets last 1.2 times the duration in 7 of 8 videos, as between 30 and 25 frames per second"]
    }
    for ratio, meaning in (
        (25.0, "seconds and frames at 25 per second"),
        (0.001, "seconds and milliseconds"),
        (25 / 30, "25 and"),
    ):
        (case,) = compared([ratio] * 5)[0][FACTOR]
        assert meaning in case
    assert compared([1.37] * 5)[0][FACTOR] == ["the snippets last 1.37 times the duration in 5 of 5 videos"]
    assert common_factor(np.array([1.2, 1.2]))[0] is None


def test_videos_are_compared_with_each_other_if_no_rule_is_known():
    findings = Findings()
    rows = [(120, 60.0), (146, 73.0), (103, 86.0), (198, 99.0)]
    compare_lengths([Length(f"v{i}", n, seconds, None) for i, (n, seconds) in enumerate(rows)], findings)
    (case,) = findings.handled[LENGTH_DIFFERS]
    assert case.startswith("v2: a snippet lasts 0.835 s, 0.5 s in most videos")
    findings = Findings()
    compare_lengths([Length(f"v{i}", 100, 60.0 + 13 * i, None) for i in range(8)], findings)
    assert list(findings.handled) == [LENGTHS_VARY] and len(findings.handled[LENGTHS_VARY]) == 1


@pytest.mark.parametrize("duration", [1e9, 1e-300])
def test_absurd_lengths_are_problems(duration):
    findings = Findings()
    compare_lengths([Length("v", 100, duration, None)], findings)
    (case,) = findings.problems["snippet length"]
    assert case.startswith("v: ") and "--unit" in case


VIDEOS = {"a": 1000, "b": 1500, "c": 1230, "d": 990}  # frames


def write_set(folder: Path, steps: dict[str, tuple[int, int]], duration=lambda frames: frames / FPS) -> list[str]:
    """Writes features whose value is the first frame of their window, and one action at frames 600 … 700 of each."""
    entries = {
        name: {
            "subset": "testing" if name == "d" else "training",
            "duration": duration(frames),
            "actions": [[0, 600 / FPS, 700 / FPS]],
        }
        for name, frames in VIDEOS.items()
    }
    (folder / "annotations.json").write_text(json.dumps(entries))
    (folder / "classes.txt").write_text("run\n")
    for modality, (stride, window) in steps.items():
        (folder / modality).mkdir()
        for name, frames in VIDEOS.items():
            starts = np.arange(0, frames - window + 1, stride)
            np.save(folder / modality / f"{name}.npy", np.repeat(starts[:, None], 3, axis=1).astype(np.float32))
    return [f"{modality}={folder / modality}" for modality in steps]


def build(folder: Path, features: list[str], **options) -> tuple[list, dict]:
    info, report = build_records(
        Options(
            "custom",
            str(folder / "records"),
            annotations=[str(folder / "annotations.json")],
            classes=str(folder / "classes.txt"),
            features=features,
            **options,
        )
    )
    videos = [v for split in ("train", "test") for v in records.read(folder / "records", split)]
    return videos, report | {"info": info}


@pytest.mark.parametrize("stride, window", [(64, 64), (4, 16), (4, 32), (8, 16), (20, 10)])
def test_labels_and_detections_are_at_the_frames_that_the_features_show(tmp_path, stride, window):
    features = write_set(tmp_path, {"rgb": (stride, window)})
    videos, report = build(tmp_path, features, stride=stride, window=window, fps=FPS)
    assert LENGTH_DIFFERS not in report["handled"] and len(report["handled"].get(PADDED, [])) <= len(VIDEOS)
    info = report["info"]
    truth = make_truth(videos, info)
    for video, labels in zip(videos, truth.labels({v.id: v.num_snippets for v in videos}), strict=True):
        starts = np.asarray(video.features["rgb"], np.float64)[:, 0]
        places = starts if stride == window else starts + window / 2  # in frames
        first = np.flatnonzero(np.append(True, np.diff(starts) > 0))  # a row that is not a copy
        own = np.zeros(len(starts), bool)
        own[first[1:]] = True  # the first may be the last of its copies
        expected = (places > 600) & (places < 700)
        np.testing.assert_array_equal(labels[own, 0] == 1, expected[own])
        table = np.where(expected & own, 0.9, 0.1)[:, None]
        (found,) = choose("classes", "dense")(table, truth.grid(video.id))
        inside = starts[expected & own] + window / 2
        np.testing.assert_allclose(found[1:3] * FPS, [inside[0] - stride / 2, inside[-1] + stride / 2], atol=1e-6)
    assert info.seconds_per_snippet == pytest.approx(stride / FPS)
    assert info.first_snippet == pytest.approx((window - stride) / 2 / FPS)


def test_records_keep_grids_and_their_checksums(tmp_path):
    features = write_set(tmp_path, {"rgb": (16, 16)})
    videos, _ = build(tmp_path, features, stride=16, fps=FPS)
    again = records.read(tmp_path / "records", "train", on_disk=True)
    assert [v.known_grid for v in again] == [v.known_grid for v in videos[:3]] and all(v.known_grid for v in again)
    lines = (tmp_path / "records" / records.VIDEOS_FILE).read_text()
    stored = json.loads(lines.splitlines()[0])["grid"]
    changed = lines.replace(json.dumps(stored), json.dumps([stored[0], stored[1] * 2, stored[2]]), 1)
    (tmp_path / "records" / records.VIDEOS_FILE).write_text(changed)
    with pytest.raises(ValueError, match="is damaged"):
        records.read(tmp_path / "records", "train")


def test_without_a_rule_snippets_divide_the_duration_and_the_report_says_so(tmp_path):
    videos, report = build(tmp_path, write_set(tmp_path, {"rgb": (16, 16)}))
    assert all(video.grid == Grid(0.0, video.duration) for video in videos)
    assert any("divide its duration evenly" in fact for fact in report["facts"])


def test_time_stamps_next_to_features_are_read(tmp_path):
    features = write_set(tmp_path, {"rgb": (64, 64)})
    for name, frames in VIDEOS.items():
        stamps = np.arange(64, frames + 1, 64) / FPS * 1000
        np.save(tmp_path / "rgb" / f"{name}_timestamps_ms.npy", stamps)
    videos, report = build(tmp_path, features)
    assert videos[0].grid.length / videos[0].num_snippets == pytest.approx(64 / FPS)
    assert any("2.56" in fact for fact in report["facts"]) and UNANNOTATED not in report["handled"]
    for path in (tmp_path / "rgb").glob("?.npy"):
        path.rename(path.with_name(f"{path.stem}_rgb.npy"))
    with pytest.raises(ValueError, match=r"write --features='rgb=.*/rgb/\{video\}_rgb\.npy', which fits 4 of 4"):
        build(tmp_path, features, overwrite=True)


def test_modalities_of_other_times_are_resampled_onto_the_first(tmp_path):
    features = write_set(tmp_path, {"rgb": (16, 16), "pose": (10, 10)})
    for modality, stride in (("rgb", 16), ("pose", 10)):
        for name in VIDEOS:
            manifest = {"modality": modality, "weights_sha256": "1", "sampling": {"length": stride, "stride": stride}}
            manifest |= {"sampled_fps": None, "dtype": "float32", "seconds_per_snippet": stride / FPS, "fps": FPS}
            (tmp_path / modality / f"{name}.json").write_text(json.dumps(manifest))
    videos, report = build(tmp_path, features)
    assert len(report["handled"][RESAMPLED]) == len(VIDEOS)
    for video in videos:
        rgb, pose = (np.asarray(video.features[m], np.float64)[:, 0] for m in ("rgb", "pose"))
        np.testing.assert_array_less(np.abs((rgb + 8) - (pose + 5))[:-1], 5.001)  # centres, at most half a row apart


def test_a_file_with_the_times_of_the_first_may_lack_one_row_next_to_a_resampled_file(tmp_path):
    windows = {"rgb": (8, 16), "pose": (8, 16), "flow": (64, 64)}
    features = write_set(tmp_path, windows)
    for modality in ("rgb", "flow"):
        stride, window = windows[modality]
        for name, frames in VIDEOS.items():
            stamps = np.arange(window, frames + 1, stride) / FPS * 1000
            np.save(tmp_path / modality / f"{name}_timestamps_ms.npy", stamps)
    rows = np.load(tmp_path / "pose/a.npy")
    np.save(tmp_path / "pose/a.npy", rows[:-1])
    videos, report = build(tmp_path, features)
    assert report["handled"][CROPPED] == [f"a: rgb {len(rows)}, pose {len(rows) - 1}"]
    assert len(report["handled"][RESAMPLED]) == len(VIDEOS)
    (video,) = (video for video in videos if video.id == "a")
    np.testing.assert_array_equal(video.features["rgb"], video.features["pose"])
    np.save(tmp_path / "pose/a.npy", rows[:-2])
    with pytest.raises(ValueError, match=r"modalities disagree in T.*\n  a: rgb 124, pose 122"):
        build(tmp_path, features, overwrite=True)


def test_modalities_have_strides_of_their_own(tmp_path):
    """Rows every 16 and every 10 frames, without manifests: the centre of each row is at the same time in both."""
    features = write_set(tmp_path, {"rgb": (16, 16), "pose": (10, 10), "flow": (8, 16)})
    with pytest.raises(ValueError, match="two rows of each, --stride=rgb=FRAMES --stride=pose=FRAMES"):
        build(tmp_path, features, stride=16, fps=FPS)
    strides = {"": 16, "pose": 10, "flow": 8}
    videos, report = build(tmp_path, features, stride=strides, window={"flow": 16}, fps=FPS)
    assert report["info"].seconds_per_snippet == 16 / FPS and len(report["handled"][RESAMPLED]) == len(VIDEOS)
    for video in videos:
        rgb, pose, flow = (np.asarray(video.features[m], np.float64)[:-1, 0] for m in ("rgb", "pose", "flow"))
        np.testing.assert_array_less(np.abs((rgb + 8) - (pose + 5)), 5.001)
        np.testing.assert_array_less(np.abs((rgb + 8) - (flow + 8)), 4.001)
    with pytest.raises(ValueError, match=r"--stride=depth=…: depth is none of --features \(rgb, pose, flow\)"):
        build(tmp_path, features, stride={"depth": 4}, overwrite=True)
    with pytest.raises(ValueError, match="--window needs --stride"):
        build(tmp_path, features, stride={"pose": 4}, window={"rgb": 4}, overwrite=True)


def test_strides_on_the_command_line(tmp_path):
    features = write_set(tmp_path, {"rgb": (16, 16), "pose": (10, 10)})
    command = ["--dataset=custom", f"--annotations={tmp_path / 'annotations.json'}", "--check"]
    command += [f"--classes={tmp_path / 'classes.txt'}", "--fps=25", *(f"--features={text}" for text in features)]
    main([*command, "--stride=16", "--stride=pose=10"])
    for wrong, message in (
        (["--stride=16", "--stride=10"], "--stride is given twice for one modality"),
        (["--stride=rgb=fast"], "--stride: fast must be a finite number above 0"),
        (["--features_fps=15"], "--features_fps without --stride"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*command, *wrong])


def test_features_of_another_frame_rate_than_the_ground_truth(tmp_path):
    """Annotations in frames at 25 per second; features of 8 frames every 8 at 12.5 per second."""
    features = write_set(tmp_path, {"rgb": (16, 16)}, duration=lambda frames: frames)
    entries = json.loads((tmp_path / "annotations.json").read_text())
    for entry in entries.values():
        entry["actions"] = [[0, 600, 700]]
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    videos, report = build(tmp_path, features, unit="frames", stride=8, fps=FPS, features_fps=12.5)
    assert not report["handled"].keys() & {FACTOR, LENGTH_DIFFERS}
    info = report["info"]
    assert (info.fps, info.seconds_per_snippet) == (25.0, 0.64) and info.num_frames(videos[0]) == VIDEOS["a"]
    assert videos[0].grid.length / videos[0].num_snippets == pytest.approx(16)  # frames of the ground truth


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_time_stamps_in_seconds_among_others_in_milliseconds(tmp_path, modality):
    features = write_set(tmp_path, {"rgb": (64, 64), "flow": (64, 64)})
    for name, frames in VIDEOS.items():
        for of in ("rgb", "flow"):
            stamps = np.arange(64, frames + 1, 64) / FPS * (1 if (of, name) == (modality, "b") else 1000)
            np.save(tmp_path / of / f"{name}_timestamps_ms.npy", stamps)
    with pytest.raises(ValueError) as error:
        build(tmp_path, features)
    text = str(error.value)
    assert f"{modality}/b_timestamps_ms.npy" in text and "--unit" not in text
    assert "as between seconds and milliseconds; correct" in text


def test_a_stride_that_contradicts_manifests_is_a_problem(tmp_path):
    features = write_set(tmp_path, {"rgb": (16, 16)})
    manifest = {"modality": "rgb", "weights_sha256": "1", "sampling": {"length": 16, "stride": 16}, "fps": FPS}
    manifest |= {"sampled_fps": None, "dtype": "float32", "seconds_per_snippet": 16 / FPS}
    for name in VIDEOS:
        (tmp_path / "rgb" / f"{name}.json").write_text(json.dumps(manifest))
    made = r"a snippet every 0.64 s, 0.64 s long, but --stride, --window and --fps make it every 0.32 s, 0.32 s long"
    with pytest.raises(ValueError, match=made):
        build(tmp_path, features, stride=8, fps=FPS)
    with pytest.raises(ValueError, match="make it every 0.64 s, 1.28 s long; leave --stride and --window out"):
        build(tmp_path, features, stride=16, window=32, fps=FPS)
    with pytest.raises(ValueError, match="their rate is unknown; give --fps"):
        (tmp_path / "plain").mkdir()
        build(tmp_path / "plain", write_set(tmp_path / "plain", {"rgb": (16, 16)}), stride=16)


@pytest.mark.parametrize(
    "factor, meaning", [(1000.0, "seconds and milliseconds"), (30 / 25, "25 and 30 frames"), (24 / 30, "30 and 24")]
)
def test_durations_in_another_unit_are_said_once(tmp_path, factor, meaning):
    features = write_set(tmp_path, {"rgb": (16, 16)}, duration=lambda frames: frames / FPS * factor)
    _, report = build(tmp_path, features, stride=16, fps=FPS)
    (case,) = report["handled"][FACTOR]
    assert meaning in case and LENGTH_DIFFERS not in report["handled"]


def test_a_dropped_tail_is_no_factor(tmp_path):
    """Stacks of 64 frames end up to 63 frames before the end: about 2 % of every video, but less than a window."""
    features = write_set(tmp_path, {"rgb": (64, 64)})
    _, report = build(tmp_path, features, stride=64, fps=FPS)
    assert not report["handled"].keys() & {FACTOR, LENGTH_DIFFERS}


@pytest.mark.parametrize("window", [1e300, float("inf")])
def test_an_absurd_window_is_a_problem(window):
    """A manifest with the frame rate 5e-324 gives such a window."""
    cut, findings = Cut(0.32, window), Findings()
    compare_lengths([Length("kitchen", 8, 3.2, cut)], findings)
    assert not cut.is_plausible
    assert f"kitchen: 3.2 s and 8 snippets, so a snippet lasts 0.32 s and its window {window:.4g} s" in str(
        findings.problems["snippet length"]
    )


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_absurd_time_stamps_of_any_modality_are_a_problem(tmp_path, modality):
    features = write_set(tmp_path, {"rgb": (16, 16), "flow": (16, 16)})
    for name in ("rgb", "flow"):
        rows = len(np.load(tmp_path / name / "a.npy"))
        every = 1e12 if name == modality else 16 / FPS * 1000  # milliseconds
        np.save(tmp_path / name / "a_timestamps_ms.npy", (np.arange(rows) + 1) * every)
    with pytest.raises(ValueError, match=rf"{modality}/a_timestamps_ms.npy: a snippet every 1e\+09 s"):
        build(tmp_path, features)


def test_actions_that_label_no_snippet_are_a_problem(tmp_path):
    """Times in milliseconds that are read as seconds, with features whose times are known."""
    features = write_set(tmp_path, {"rgb": (16, 16)}, duration=lambda frames: 1000 * frames / FPS)
    entries = json.loads((tmp_path / "annotations.json").read_text())
    for entry in entries.values():
        entry["actions"] = [[0, 1000 * start, 1000 * start + 900] for start in range(100, 104)]
        entry["duration"] = 200_000.0
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"16 of 16 actions label no snippet; check the unit of the times"):
        build(tmp_path, features, stride=16, fps=FPS)
