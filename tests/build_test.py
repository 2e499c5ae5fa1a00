"""The builder: clean input becomes records, cleaning is counted, and one error lists all problems."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.build import Options, build_records, main, parse_features
from data_prep.report import describe_report
from kd_jax.data import base, records, synthetic
from kd_jax.data.annotations import DATASETS, describe
from kd_jax.data.checks import (
    CLIPPED,
    CONVERTED,
    CROPPED,
    DUPLICATE,
    EMPTY,
    LATE,
    NO_ACTIONS,
    PADDED,
    SKIPPED,
    TOO_SHORT,
    UNANNOTATED,
    DataError,
    Findings,
)
from kd_jax.files import read_json, write_json
from kd_jax.segments import labels_from_segments

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


class Tree:
    """A data set of three classes and two modalities in a folder; tests damage parts of it."""

    def __init__(self, root):
        self.root = root
        self.annotations = {
            "a": {"subset": "training", "duration": 10.0, "actions": [[0, 1.0, 4.0], [1, 2.0, 9.0]]},
            "b": {"subset": "training", "duration": 6.0, "actions": [[2, 0.0, 5.5]]},
            "c": {"subset": "testing", "duration": 4.0, "actions": [[0, 1.0, 3.0]]},
        }
        self.text = None
        self.sizes = {"rgb": 4, "flow": 3}
        (root / "classes.txt").write_text("walk\nsit\nlie down\n")
        for modality in self.sizes:
            (root / modality).mkdir()
            for video, entry in self.annotations.items():
                self.features(modality, video, int(entry["duration"] * 2))

    def features(self, modality, video, num_snippets):
        rng = np.random.default_rng(num_snippets)
        self.save(modality, video, rng.standard_normal((num_snippets, self.sizes[modality])).astype(np.float32))

    def save(self, modality, video, array):
        np.save(self.root / modality / f"{video}.npy", array)

    def action(self, *actions, video="a"):
        self.annotations[video]["actions"] += list(actions)

    def files(self):
        path = self.root / "annotations.json"
        path.write_text(json.dumps(self.annotations) if self.text is None else self.text)
        features = [f"{m}={self.root / m}" for m in self.sizes]
        return {"annotations": [str(path)], "classes": str(self.root / "classes.txt"), "features": features}

    def build(self, **options):
        options = {"output": str(self.root / "out"), **self.files(), **options}
        return build_records(Options("custom", **options))

    def problems(self, **options):
        with pytest.raises(DataError) as caught:
            self.build(**options)
        assert not (self.root / "out").exists() and not list(self.root.glob(".out*")), "nothing is left behind"
        return str(caught.value)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_clean_input(tree):
    info, report = tree.build()
    assert info == base.Info("out", ("walk", "sit", "lie down"), "dense", tree.sizes, "seconds", 25.0, 0.5)
    assert records.read_info(tree.root / "out") == info
    assert report["handled"] == {}
    assert report["videos"] == {"train": 2, "test": 1} and report["actions"] == {"train": 3, "test": 1}
    assert json.loads((tree.root / "out/report.json").read_text()) == report
    video = records.read(tree.root / "out", "train")[0]
    assert (video.id, video.duration) == ("a", 10.0)
    np.testing.assert_array_equal(video.segments, [[0, 1, 4], [1, 2, 9]])
    np.testing.assert_array_equal(video.features["flow"], np.load(tree.root / "flow/a.npy").astype(np.float16))


def test_records_hold_how_features_were_made_and_nothing_else_changes(tree):
    tree.build()
    before = records.read_fingerprint(tree.root / "out")
    made = {"modality": "rgb", "weights_sha256": "12ab", "sampling": {"stride": 8}, "sampled_fps": None}
    made |= {"dtype": "float32", "seconds_per_snippet": 0.5}
    for video in tree.annotations:
        (tree.root / "rgb" / f"{video}.json").write_text(json.dumps({**made, "frames": 100}))
    info, report = tree.build(overwrite=True)
    assert info.extraction == {"rgb": made} and records.read_info(tree.root / "out") == info
    assert records.read_fingerprint(tree.root / "out") == before and report["handled"] == {}

    path = tree.root / "out" / records.INFO_FILE
    content = read_json(path)
    del content["info"]["extraction"]  # as in records from before this field existed
    write_json(path, content)
    assert records.read_info(tree.root / "out").extraction == {}
    assert records.read_fingerprint(tree.root / "out") == before

    (tree.root / "rgb" / "c.json").write_text(json.dumps({**made, "dtype": "bfloat16"}))
    with pytest.raises(DataError) as caught:
        tree.build(overwrite=True)
    text = str(caught.value)
    assert "features made in different ways (1):" in text
    assert f'rgb: {tree.root / "rgb" / "c.npy"}: dtype "bfloat16", others "float32"' in text


def test_dirty_annotations_are_cleaned_and_counted(tree):
    tree.action([0, 1, 4], [0, 1.0, 4.0])  # two duplicates of the first
    tree.action([2, 9.2, 12.0])  # clipped to 10
    tree.action([2, 5.0, 5.0], [2, 5.0, 4.0])  # empty
    tree.action([1, 10.0, 12.0])  # late
    tree.action([1, 0.6, 0.9])  # between the instants 0.5 and 1.0
    tree.annotations["d"] = {"subset": "testing", "duration": 3.0, "actions": []}
    tree.features("rgb", "d", 7)
    tree.save("flow", "d", np.arange(18).reshape(6, 1, 1, 3))
    tree.features("rgb", "extra", 3)
    _, report = tree.build()
    assert {kind: len(cases) for kind, cases in report["handled"].items()} == {
        DUPLICATE: 2,
        CLIPPED: 1,
        EMPTY: 2,
        LATE: 1,
        TOO_SHORT: 1,
        NO_ACTIONS: 1,
        CROPPED: 1,
        CONVERTED: 1,
        UNANNOTATED: 1,
    }
    assert report["handled"][CLIPPED] == ["a: [2, 9.2, 12], duration 10"]
    assert report["handled"][CROPPED] == ["d: rgb 7, flow 6"]
    first = records.read(tree.root / "out", "train")[0]
    np.testing.assert_array_equal(first.segments, [[0, 1, 4], [1, 2, 9], [2, 9.2, 10], [1, 0.6, 0.9]])
    last = records.read(tree.root / "out", "test")[1]
    assert {m: f.shape for m, f in last.features.items()} == {"rgb": (6, 4), "flow": (6, 3)}
    np.testing.assert_array_equal(last.features["flow"], np.arange(18).reshape(6, 3))
    shown = describe_report(report)
    assert all(f"{kind}: {len(cases)}" in shown for kind, cases in report["handled"].items())


def entry(**changes):
    return {"subset": "training", "duration": 5.0, "actions": [], **changes}


def test_one_error_lists_all_problems(tree):
    tree.annotations |= {
        "../x": entry(),
        "/etc/x": entry(),
        "a/b": entry(),
        "nul\0": entry(),
        "": entry(),
        "no_object": 3,
        "no_fields": {},
        "subset": entry(subset="dev"),
        "zero": entry(duration=0),
        "words": entry(duration="61.5"),
        "nan": entry(duration=float("nan")),
        "no_list": entry(actions={}),
    }
    tree.action([0, 1], "walk", [3, 1, 2], [-1, 1, 2], [1.5, 1, 2], ["1", 1, 2], [True, 1, 2])
    tree.action([0, "1", 2], [0, None, 2], [0, 1, float("nan")], [0, 1, 10**400], [0, -0.5, 2])
    for video in ("no_object", "no_fields", "subset", "zero", "words", "nan", "no_list"):
        tree.features("rgb", video, 10)
        tree.features("flow", video, 10)
    # Thirteen annotated videos, each with a different error in its features.
    good = np.ones((10, 4), np.float32)
    files = {
        "missing": None,
        "text": b"not an array",
        "empty": b"",
        "cut": b"\x93NUMPY\x01\x00v\x00",
        "complex": good.astype(complex),
        "objects": np.array([["x"], [None]], object),
        "flat": np.ones(10, np.float32),
        "square": np.ones((10, 2, 4), np.float32),
        "no_snippets": np.ones((0, 4), np.float32),
        "narrow": np.ones((10, 3), np.float32),
        "holes": np.where(np.arange(40).reshape(10, 4) == 7, np.nan, good),
        "huge": np.full((10, 4), 1e39),
        "longer": np.ones((12, 4), np.float32),
    }
    for video, content in files.items():
        tree.annotations[video] = entry()
        tree.features("flow", video, 10)
        path = tree.root / f"rgb/{video}.npy"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.save(path, content, allow_pickle=True)
    text = tree.problems()
    for kind, count in {
        "video id": 5,
        "annotation layout": 3,
        "subset": 1,
        "duration": 3,
        "action": 2,
        "class": 5,
        "time": 5,
        "missing feature file, see --skip_missing": 1,
        "unreadable feature file": 3,
        "feature type": 2,
        "feature shape": 1,
        "feature shape, see --pool=mean for grids of tokens": 1,
        "no snippets": 1,
        "wrong dimension": 1,
        "feature values": 2,
        "modalities disagree in T": 1,
    }.items():
        assert f"\n{kind} ({count}):\n" in text, (kind, text)
    assert text.startswith("37 problems in the input; nothing was written")
    assert "no_fields: the field subset, duration, actions is missing" in text
    assert "narrow.npy: D = 3, most files have 4" in text
    assert "longer: rgb 12, flow 10" in text


def test_long_lists_of_problems_are_cut():
    findings = Findings()
    for i in range(47):
        findings.problem("time", f"video {i} ends at {i} s")
    with pytest.raises(DataError) as error:
        findings.raise_problems()
    text = str(error.value)
    assert "time (47):" in text and "… and 27 more" in text
    assert len(text.splitlines()) == 23


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": {}', "unreadable file (1):"),
        ("[]", "expected an object"),
        ("{}", "expected an object"),
        ('{"a": {}, "a": {}}', "the key 'a' occurs 2 times in one object"),
    ],
)
def test_bad_annotation_files(tree, text, message):
    tree.text = text
    assert message in tree.problems()


def test_missing_files_and_folders(tree):
    text = tree.problems(annotations=["none.json"], classes="none.txt", features=["rgb=none"])
    assert (
        "none.json: not readable as text (No such file" in text
        and "none.txt: not readable as text (No such file" in text
        and "rgb: none is not a folder" in text
    )


def test_a_folder_of_other_videos_is_one_problem(tree):
    for path in (tree.root / "flow").iterdir():
        path.rename(path.with_name(f"flow_{path.name}"))
    folder = tree.root / "flow"
    why = f"none of the 3 names in the annotations, such as 'a', is in {folder}, which has 'flow_a'"
    assert f"flow: {folder} has no file <video>.npy: {why}" in tree.problems(skip_missing=True)


def test_class_lists(tree):
    (tree.root / "classes.txt").write_text("walk\n\nsit\nwalk\n")
    text = tree.problems()
    assert "an empty line" in text and "'walk' occurs 2 times" in text


def test_classes_counted_from_one_are_recognised(tree):
    for video in tree.annotations.values():
        video["actions"] = [[c + 1, s, e] for c, s, e in video["actions"]]
    assert "the file counts from 1; subtract 1 from each" in tree.problems()


@pytest.mark.parametrize("subset", ["validation", "testing"])
def test_annotations_without_training_videos_are_refused(tree, subset):
    for video in ("a", "b"):
        tree.annotations[video]["subset"] = subset
    message = {"validation": "all training videos are for validation", "testing": "would be empty"}
    assert message[subset] in tree.problems()


def test_a_list_chooses_the_validation_videos(tree):
    path = tree.root / "validation.txt"
    for names, message in {
        "a b": "all training videos are for validation; leave some to train on",
        "c": f"validation list (1):\n  {path}: c is a test video; list training videos",
        "d": f"validation list (1):\n  {path}: d is not an annotated video; one of the 3 is a",
        "": f"validation list (1):\n  {path}: it lists no video",
    }.items():
        path.write_text("\n".join(names.split()))
        assert message in tree.problems(validation=str(path))
    path.write_text("b.mp4\n", encoding="utf-16")
    _, report = tree.build(validation=str(path))
    assert [(v.id, v.validation) for v in records.read(tree.root / "out", "train")] == [("a", False), ("b", True)]
    assert f"validation: 1 of the training videos, named by --validation={path}" in report["facts"]
    assert (tree.root / "out/validation.txt").read_text() == "b\n"


def test_a_third_subset_chooses_the_validation_videos(tree):
    tree.annotations["a"]["subset"] = "validation"
    (tree.root / "list.txt").write_text("b\n")
    text = tree.problems(validation=str(tree.root / "list.txt"))
    assert "the annotations state the validation videos too, such as a; leave out one of the two" in text
    _, report = tree.build()
    assert [(v.id, v.validation) for v in records.read(tree.root / "out", "train")] == [("a", True), ("b", False)]
    assert "validation: 1 of the training videos, named by the annotations (subset validation)" in report["facts"]


def test_times_and_durations_in_different_units_are_refused(tree):
    for video in tree.annotations.values():
        video["actions"] = [[c, 25 * start + 25, 25 * end] for c, start, end in video["actions"]]
    text = tree.problems()
    late = "3 of 3 actions of train start at or after the end of their video"
    assert f"units (2):\n  {late}; the ratio is 22.9 or more" in text
    assert "as between seconds and frames at 24 to 30 per second" in text


def test_without_test_videos_the_report_announces_no_test_scores(tree):
    for video in tree.annotations.values():
        video["subset"] = "training"
    _, report = tree.build()
    assert report["videos"] == {"train": 3, "test": 0} and records.read(tree.root / "out", "test") == []
    assert "there are no test videos: runs will have predictions and no test scores" in report["facts"]


def test_skipping_videos_needs_the_option_and_is_listed(tree):
    (tree.root / "flow/b.npy").unlink()
    text = tree.problems()
    assert "missing feature file, see --skip_missing (1):\n  flow: " in text and "flow/b.npy" in text
    _, report = tree.build(skip_missing=True)
    assert report["videos"] == {"train": 1, "test": 1}
    assert len(report["handled"][SKIPPED]) == 1
    assert [v.id for v in records.read(tree.root / "out", "train")] == ["a"]


def test_skipping_a_whole_split_is_refused(tree):
    (tree.root / "flow/c.npy").unlink()
    assert "test: none of its 1 videos has all feature files" in tree.problems(skip_missing=True)


def test_frames_taken_for_seconds_are_noted(tree):
    for video in tree.annotations.values():
        video["duration"] *= 1000
    _, report = tree.build()
    assert "really seconds? (--unit, --fps)" in report["notes"][0]


def test_concurrent_actions_under_a_sparse_head_are_noted(tree):
    _, report = tree.build(head="sparse")
    assert any("3 snippets carry several classes" in note for note in report["notes"]), report["notes"]


def test_tsu(tree):
    files = tree.files() | {"classes": None}
    for entry in tree.annotations.values():
        entry["duration"] *= 32
        entry["actions"] = [[50, 32 * s, 32 * e] for _, s, e in entry["actions"]]
    files |= {"annotations": tree.files()["annotations"]}
    info, _ = build_records(Options("tsu", str(tree.root / "out"), **files))
    assert (len(info.classes), info.classes[50], info.unit, info.fps) == (51, "class_50", "frames", 20.0)
    assert info.seconds_per_snippet == 16 / 20
    assert records.read(tree.root / "out", "train")[0].duration == 320
    with pytest.raises(DataError, match="3 names; tsu has 51"):
        build_records(Options("tsu", str(tree.root / "out2"), **tree.files()))


@pytest.mark.parametrize(
    "dataset, options, message",
    [
        ("custom", {}, "also needs --annotations, --features; "),
        ("custom", {"seed": 1}, "--seed would be ignored"),
        ("custom", {"test": "x", "test_fraction": 0.3}, "--test lists the test videos and --test_fraction draws"),
        ("tsu", {"test": "x", "label_from": "tier"}, "--test, --label_from would be ignored"),
        ("tsu", {"unit": "seconds"}, "--unit would be ignored"),
        ("custom", {"annotations": ["x"], "features": ["rgb=x"], "window": 8.0}, "--window needs --stride"),
        ("tsu", {"seed": 0}, "--seed would be ignored"),
        ("synthetic", {"features": ["rgb=x"], "fps": 25.0}, "--features, --fps would be ignored"),
        ("tvseries", {}, "'tvseries' is unknown"),
        (
            "tsu",
            {"annotations": ["x"], "features": ["rgb=x"], "workers": 2, "runner": "DirectRunner"},
            "--workers is for",
        ),
        (
            "tsu",
            {"annotations": ["x"], "features": ["rgb=x"], "beam_options": ["--a=b"]},
            "--beam_options are those of",
        ),
        ("tsu", {"annotations": ["x"], "features": ["rgb=x"], "fps": 0.0}, "--fps=0.0"),
    ],
)
def test_options_that_contradict(tmp_path, dataset, options, message):
    with pytest.raises(ValueError, match=message):
        build_records(Options(dataset, str(tmp_path / "out"), **options))


@pytest.mark.parametrize("features", [["rgb"], ["=x"], ["rgb="], ["r/b=x"], ["rgb=x", "rgb=y"]])
def test_bad_features_options(features):
    with pytest.raises(ValueError, match="--features"):
        parse_features(features)


def test_command_line(tree, capsys):
    files = tree.files()
    arguments = ["--dataset=custom", f"--annotations={files['annotations'][0]}", f"--classes={files['classes']}"]
    arguments += [f"--features={text}" for text in files["features"]] + [f"--output={tree.root / 'out'}"]
    command = [sys.executable, "-m", "data_prep.build", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "2 videos        3 actions        32 snippets" in result.stdout and "0.5 s per snippet" in result.stdout
    with pytest.raises(SystemExit, match="^data_prep.build: .*replace them with --overwrite"):
        main(arguments)
    main([*arguments, "--check", "--overwrite"])
    assert "Nothing was written (--check)." in capsys.readouterr().out


def test_command_line_reports_problems_without_a_traceback(tree):
    tree.action([9, 1, 2])
    files = tree.files()
    arguments = [f"--annotations={files['annotations'][0]}", f"--classes={files['classes']}"]
    arguments += [f"--features={text}" for text in files["features"]]
    message = r"^data_prep.build: 1 problem in the input; nothing was written\nclass \(1\):\n  a: \[9"
    with pytest.raises(SystemExit, match=message):
        main(["--dataset=custom", *arguments, f"--output={tree.root / 'out'}"])


def test_synthetic_records_are_the_set_in_memory(tmp_path):
    info, report = build_records(Options("synthetic", str(tmp_path / "out"), seed=2))
    expected, splits = synthetic.make(2)
    assert info == expected == records.read_info(tmp_path / "out")
    assert report["videos"] == {split: len(videos) for split, videos in splits.items()}
    np.testing.assert_array_equal(
        records.read(tmp_path / "out", "test")[3].features["pose"], splits["test"][3].features["pose"]
    )


MULTITHUMOS = {CLIPPED: 5, LATE: 60, EMPTY: 7}


@pytest.mark.parametrize(
    "name, dataset, videos, actions, handled",
    [
        ("tsu_cs", "tsu", (351, 185), 41288 - 194 - 7, {DUPLICATE: 194, EMPTY: 7}),
        ("tsu_cv", "tsu", (369, 167), 41288 - 194 - 7, {DUPLICATE: 194, EMPTY: 7}),
        ("multithumos", "multithumos", (200, 213), 38690 - 60 - 7, MULTITHUMOS),
    ],
)
def test_counts_of_the_real_annotations(name, dataset, videos, actions, handled):
    path = SHARED / f"annotations/{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is missing; real annotations may not be committed")
    findings, description = Findings(), describe(dataset)
    annotated = description.read([path], description.names, findings)
    findings.raise_problems()
    assert tuple(sum(v.split == s for v in annotated) for s in base.SPLITS) == videos
    assert sum(len(v.segments) for v in annotated) == actions
    assert {kind: len(cases) for kind, cases in findings.handled.items()} == handled
    counts = {row for v in annotated for row in v.written[:, 0]}
    assert counts == set(range(len(description.names)))


def test_checking_writes_nothing(tree):
    info, report = tree.build(check=True)
    assert not (tree.root / "out").exists() and not list(tree.root.glob(".*"))
    assert (info, report) == tree.build()
    tree.action([7, 1, 2])
    with pytest.raises(DataError):
        build_records(Options("custom", None, **tree.files(), check=True))


def test_an_output_is_needed(tree):
    with pytest.raises(ValueError, match="--output is missing"):
        build_records(Options("custom", None, **tree.files()))


@pytest.mark.parametrize("how", [{"workers": 2}, {"runner": "DirectRunner"}], ids=["processes", "Apache Beam"])
def test_processes_and_beam_build_the_same_records(tree, monkeypatch, how):
    if "runner" in how:
        pytest.importorskip("apache_beam", reason="pip install 'kd_jax[beam]'")
    for i in range(20):
        tree.annotations[f"v{i}"] = entry(subset=["training", "testing"][i % 2], duration=float(i + 2))
        tree.action([i % 3, 0.3, 3.0], [i % 3, 0.3, 3.0], video=f"v{i}")
        for modality in tree.sizes:
            tree.features(modality, f"v{i}", 2 * i + 4)
    monkeypatch.setattr(records, "SHARD_BYTES", 700)
    _, report = tree.build()
    (tree.root / "out").rename(tree.root / "first")
    _, again = tree.build(**how)
    assert report == again and len(report["handled"][DUPLICATE]) == 20
    names = [sorted(path.name for path in (tree.root / folder).iterdir()) for folder in ("first", "out")]
    assert names[0] == names[1] and len(names[0]) > 10
    assert records.read_fingerprint(tree.root / "first") == records.read_fingerprint(tree.root / "out")
    assert len(records.read(tree.root / "out", "train")) == 12
    (tree.root / "out").rename(tree.root / "second")
    tree.action([9, 1, 2])
    assert "class (1)" in tree.problems(**how)


def test_a_killed_build_leaves_no_records_and_the_next_one_removes_its_folder(tree):
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}]
from data_prep.build import Options, build_records
from kd_jax.data import records
records.finish = lambda *_: os._exit(9)
build_records(Options("custom", {str(tree.root / "out")!r}, **{tree.files()!r}))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert not (tree.root / "out").exists()
    (lock, left) = sorted(tree.root.glob(".out*"))  # the lock of a process that has ended keeps no one out
    assert lock.name == ".out.lock" and ".unfinished-" in left.name
    (tree.root / ".out.unfinished-elsewhere-1").mkdir()  # from another machine, where it may be in use
    (tree.root / left.name.replace("unfinished", "scratch")).mkdir()  # from a Beam pipeline
    tree.build()
    assert [path.name for path in tree.root.glob(".out*")] == [".out.unfinished-elsewhere-1"]


def test_two_modalities_in_one_file(tree):
    for video in tree.annotations:
        both = [np.load(tree.root / m / f"{video}.npy") for m in ("rgb", "rgb")]
        np.savez(tree.root / f"rgb/{video}.npz", np.concatenate(both, axis=1).T)
        (tree.root / f"rgb/{video}.npy").unlink()
    features = [f"rgb+copy={tree.root / 'rgb'}", f"flow={tree.root / 'flow'}"]
    info, _ = tree.build(features=features, channels_first=["rgb+copy"])
    assert info.modalities == {"rgb": 4, "copy": 4, "flow": 3}
    for video in records.read(tree.root / "out", "train"):
        np.testing.assert_array_equal(video.features["rgb"], video.features["copy"])
    with pytest.raises(ValueError, match="--channels_first=rgb is none of --features"):
        tree.build(features=features, channels_first=["rgb"], overwrite=True)


def test_thumos14_to_records(tmp_path):
    """JSON annotations and [T, 2048] features of 16 frames every 4 become records, with ambiguous segments."""
    database = {
        "video_validation_0000051": {"subset": "validation", "label": "Diving", "seconds": 20.0},
        "video_test_0000004": {"subset": "test", "label": "Shotput", "seconds": 12.0},
    }
    content = {}
    (tmp_path / "i3d").mkdir()
    for video, what in database.items():
        annotations = [{"label": what["label"], "segment": [4.0, 8.0]}, {"label": "Ambiguous", "segment": [9.0, 10.0]}]
        content[video] = {
            "subset": what["subset"],
            "duration": what["seconds"],
            "fps": 30.0,
            "annotations": annotations,
        }
        frames = 30 * what["seconds"]
        windows = np.arange(0, frames - 15, 4) + 8
        inside = (windows > 4 * 30) & (windows < 8 * 30)
        np.save(tmp_path / f"i3d/{video}.npy", np.repeat(inside[:, None], 2048, axis=1).astype(np.float32))
    (tmp_path / "thumos14.json").write_text(json.dumps({"database": content}))
    files = {"annotations": [str(tmp_path / "thumos14.json")], "features": [f"rgb+flow={tmp_path / 'i3d'}"]}
    info, report = build_records(Options("thumos14", str(tmp_path / "out"), **files))
    assert info.modalities == {"rgb": 1024, "flow": 1024} and info.head == "sparse"
    assert info.seconds_per_snippet == pytest.approx(4 / 30) and len(report["handled"][PADDED]) == 2
    for split in base.SPLITS:
        (video,) = records.read(tmp_path / "out", split)
        labels = labels_from_segments(video.segments, video.duration, video.num_snippets, 20)
        np.testing.assert_array_equal(labels.any(axis=1), video.features["flow"][:, 0] > 0)  # at the same snippets
        np.testing.assert_array_equal(video.ambiguous, [[9, 10]])


def test_every_data_set_is_listed(capsys):
    main(["--list"])
    listed = capsys.readouterr().out
    for name, description in DATASETS.items():
        assert f"{name} — {description.title}" in listed and f"--dataset={name} " in listed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output=x"], "--dataset is missing: one of custom, tsu, charades"),
        (["--dataset=tvseries"], "--dataset: invalid choice: 'tvseries'"),
        (["--dataset=custom", "--workers=0"], "--workers: 0 must be an integer of at least 1"),
        (["--dataset=custom", "--fps=fast"], "--fps: invalid float value: 'fast'"),
        (["--dataset=custom", "mine"], "unexpected argument 'mine'"),
        (["--dataset=custom", "--feature=rgb=x"], "unexpected argument '--feature=rgb=x'; did you mean --features"),
    ],
)
def test_mistakes_on_the_command_line_end_in_one_sentence(arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert str(ended.value).startswith(f"data_prep.build: {message}") and "\n" not in str(ended.value)
