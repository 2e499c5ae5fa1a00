"""Scoring of saved predictions of any tool: values, notes, mistakes, and that JAX is not loaded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kd_jax import evaluate
from kd_jax.data.annotations import thumos14
from kd_jax.evaluation import formats
from kd_jax.evaluation.metrics.event_map import event_map
from kd_jax.evaluation.metrics.frame_map import frame_map
from kd_jax.evaluation.protocols import PROTOCOLS
from kd_jax.segments import labels_from_segments, runs

ROOT = Path(__file__).parents[1]
CLASSES = ("run", "sit")
ACTIONS = {"v": [[0, 1.0, 3.0], [1, 4.0, 8.0], [0, 6.0, 9.0]], "w": [[1, 0.5, 5.0], [1, 0.5, 5.0]], "t": [[0, 0, 1]]}
FOUND = {
    "v": np.array([[0, 1.0, 3.0, 0.5], [1, 4.0, 7.0, 0.75], [0, 0.0, 9.0, 0.625]]),
    "w": np.array([[1, 0.0, 5.0, 0.25]]),
}


@pytest.fixture
def files(tmp_path):
    content = {
        video: {"subset": "training" if video == "t" else "testing", "duration": 10.0, "actions": actions}
        for video, actions in ACTIONS.items()
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path


def run(*arguments, code=0):
    command = [sys.executable, "-m", "kd_jax.evaluate", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == code and "Traceback" not in result.stderr, result.stderr
    return result.stdout if code == 0 else result.stderr


def custom(files, predictions, *more, **options):
    paths = [f"--annotations={files / 'annotations.json'}", f"--classes={files / 'classes.txt'}"]
    return run("--dataset=custom", *paths, f"--predictions={predictions}", *more, **options)


def value(text, key):
    return float(next(line.split()[-1] for line in text.splitlines() if line.split()[:1] == [key]))


def test_scores(files):
    rng = np.random.default_rng(0)
    scores = {video: rng.random((20, 2)).astype(np.float32) for video in FOUND}
    formats.write_scores(files / "scores.npz", scores)
    text = custom(files, files / "scores.npz", "--protocols=frame_map", f"--output={files / 'out.json'}")
    labels = [labels_from_segments(np.array(ACTIONS[v], float), 10.0, 20, 2) for v in scores]
    expected = frame_map(list(scores.values()), labels)["mean_over_present_classes"]
    assert value(text, "frame_map/present_classes") == pytest.approx(expected, abs=0.005)
    assert json.loads((files / "out.json").read_text())["frame_map/present_classes"] == pytest.approx(expected)
    assert "custom, test: 2 videos, 5 actions, 2 classes" in text


def test_scores_become_detections_from_a_low_threshold(files):
    labels = {video: labels_from_segments(np.array(ACTIONS[video], float), 10.0, 20, 2) for video in FOUND}
    unsure = {video: np.where(marked > 0, 0.3, 0.05).astype(np.float32) for video, marked in labels.items()}
    formats.write_scores(files / "scores.npz", unsure)
    given, measure = (files, files / "scores.npz", "--protocols=event_map_strict"), "event_map_strict/mAP_action@0.1"
    assert value(custom(*given), measure) > 50
    assert value(custom(*given, "--threshold=0.5"), measure) == 0


def test_every_format_of_detections_gives_the_same(files):
    formats.write_native(files / "native.json", FOUND, CLASSES)
    formats.write_activitynet(files / "activitynet.json", FOUND, CLASSES)
    formats.write_csv(files / "table.csv", FOUND, CLASSES)
    formats.write_pku_mmd(files / "pku", FOUND, 2, frames_per_second=25.0)
    truth = {video: np.array(ACTIONS[video], float) for video in FOUND}
    expected = event_map(FOUND, truth, num_classes=2)["mAP_action"]
    for name in ("native.json", "activitynet.json", "table.csv", "pku"):
        text = custom(files, files / name, "--protocols=event_map")
        for threshold, number in zip((0.1, 0.3, 0.5), expected, strict=True):
            assert value(text, f"event_map/mAP_action@{threshold}") == pytest.approx(number, abs=0.005), name


def test_the_number_of_the_first_class_may_be_zero(files):
    formats.write_pku_mmd(files / "pku", FOUND, 2, first_label=0, frames_per_second=25.0)
    formats.write_native(files / "native.json", FOUND, CLASSES)
    ours = custom(files, files / "pku", "--protocols=event_map", "--first_label=0")
    theirs = custom(files, files / "native.json", "--protocols=event_map")
    for threshold in (0.1, 0.3, 0.5):
        key = f"event_map/mAP_action@{threshold}"
        assert value(ours, key) == value(theirs, key) > 0


def test_duplicates_in_the_file_count(files):
    """The official script reads both equal ground truths of w, but only one of them can be matched."""
    perfect = {v: np.array([[*row, 0.5] for row in ACTIONS[v]], float) for v in FOUND}
    formats.write_native(files / "native.json", perfect, CLASSES)
    text = custom(files, files / "native.json", "--protocols=event_map")
    assert value(text, "event_map/mAP_action@0.5") < 100


def test_charades(files):
    head = "id,subject,scene,length,actions\n"
    (files / "Charades_v1_train.csv").write_text(head + "T,S,Kitchen,20.0,c001 0.0 3.0\n")
    (files / "Charades_v1_test.csv").write_text(head + "A,S,Kitchen,25.0,c000 2.0 9.0;c156 8.0 30.0\nB,S,Hall,10.0,\n")
    instants = {video: np.zeros((25, 157)) for video in "AB"}
    instants["A"][2:10, 0] = instants["A"][8:, 156] = 1.0  # the instants are whole seconds, ends included
    formats.write_charades(files / "localize.txt", instants)
    annotations = [f"--annotations={files / f'Charades_v1_{split}.csv'}" for split in ("train", "test")]
    text = run("--dataset=charades", *annotations, f"--predictions={files / 'localize.txt'}")
    assert value(text, "charades_localize/mean_over_present_classes") == 100
    assert "charades_localize/official_mean" in text and "frame_map" not in text


def test_pku_mmd_without_durations(files):
    (files / "labels").mkdir()
    for video, lines in {"0001-L": "1,30,90,1\n51,120,300,2\n", "0002-L": "2,10,50,2\n"}.items():
        (files / "labels" / f"{video}.txt").write_text(lines)
    (files / "cross-subject.txt").write_text("Training videos:\n0002-L, \nValidataion videos:\n0001-L, \n")
    found = {"0001-L": np.array([[0, 1.0, 3.0, 0.9], [50, 4.0, 10.0, 0.8]])}
    formats.write_pku_mmd(files / "pku", found, 51)
    annotations = [f"--annotations={files / name}" for name in ("labels", "cross-subject.txt")]
    text = run("--dataset=pku_mmd", *annotations, f"--predictions={files / 'pku'}")
    assert value(text, "event_map/mAP_action@0.5") == pytest.approx(200 / 51, abs=0.005)
    assert value(text, "event_map/mAP_video@0.5") == 100
    tables = {"0001-L": np.zeros((20, 52), np.float32)}  # 20 snippets of 16 frames
    tables["0001-L"][:, 51] = 1
    tables["0001-L"][2:6, [0, 51]] = [1, 0]
    formats.write_scores(files / "scores.npz", tables)
    text = run("--dataset=pku_mmd", *annotations, f"--predictions={files / 'scores.npz'}")
    assert value(text, "event_map/mAP_action@0.5") == pytest.approx(100 / 51, abs=0.005)  # 32 to 96 against 30 to 90
    assert value(text, "frame_map/all_classes") > 0


def test_what_is_missing_or_foreign_is_noted(files):
    formats.write_native(files / "some.json", {"v": FOUND["v"], "x": FOUND["w"]}, CLASSES)
    text = custom(files, files / "some.json", "--protocols=event_map")
    assert (
        "1 videos without predictions, e.g. w; event_map, like the official script, leaves their actions out" in text
        and "1 videos predicted that are not of this split, ignored, e.g. x" in text
    )


@pytest.mark.parametrize("protocol", ["event_map", "event_map_strict", "detection_map_thumos14"])
def test_videos_of_another_split_change_nothing(files, protocol):
    formats.write_native(files / "test.json", FOUND, CLASSES)
    formats.write_native(files / "all.json", {**FOUND, "t": FOUND["v"], "x": FOUND["w"]}, CLASSES)
    outputs = [custom(files, files / name, f"--protocols={protocol}") for name in ("test.json", "all.json")]
    values = [[line for line in text.splitlines() if line.strip().startswith(protocol)] for text in outputs]
    assert values[0] == values[1] and len(values[0]) > 3


def test_an_absent_value_is_explained(files):
    formats.write_scores(files / "scores.npz", {v: np.ones((4, 2), np.float32) for v in FOUND})
    annotations = json.loads((files / "annotations.json").read_text())
    for entry in annotations.values():
        entry["actions"] = [action for action in entry["actions"] if action[0] == 0]
    (files / "annotations.json").write_text(json.dumps(annotations))
    text = custom(files, files / "scores.npz", "--protocols=charades_localize")
    assert (
        "charades_localize/official_mean" in text and "–: does not exist, because a class has no ground truth" in text
    )


@pytest.mark.parametrize(
    "predictions, more, message",
    [
        ("nothing.npz", [], "nothing.npz"),
        ("notes.md", [], "is no .npz of scores"),
        ("native.json", ["--protocols=frame_map"], "frame_map needs scores, and these predictions hold none"),
        ("native.json", [], "holds detections, but frame_map, frame_map_upsampled cannot be computed from them"),
        ("one.npz", [], "no prediction for 1 of 2 videos, first 'w'"),
        ("logits.npz", [], "so they are not probabilities; if they are logits, give --logits"),
        ("logits.npz", ["stray"], "unexpected argument 'stray'"),
        (
            "native.json",
            ["--threshold=0.3", "--logits"],
            "--threshold, --logits would be ignored for these predictions",
        ),
        ("logits.npz", ["--convention=start"], "--convention would be ignored for these predictions and protocols"),
        ("native.json", ["--first_label=0"], "--first_label would be ignored"),
        ("logits.npz", ["--fps=nan"], "--fps: nan must be a finite number above 0"),
        ("logits.npz", ["--tiou=0.5"], "--tiou has no effect on frame_map, frame_map_upsampled; leave it out"),
        ("logits.npz", ["--window=16"], "--window would be ignored"),
        ("native.json", ["--stride=16"], "--stride would be ignored"),
        ("logits.npz", ["--output=no/such/folder/x.json"], "there is no folder"),
        ("logits.npz", ["--dataset=tsu", "--unit=seconds"], "tsu is in frames: --unit would be ignored"),
    ],
)
def test_wrong_turns_end_in_one_sentence(files, predictions, more, message):
    formats.write_native(files / "native.json", FOUND, CLASSES)
    formats.write_scores(files / "one.npz", {"v": np.zeros((4, 2), np.float32)})
    formats.write_scores(files / "logits.npz", {v: np.full((4, 2), -3, np.float32) for v in FOUND})
    assert message in custom(files, files / predictions, *more, code=1)


def test_broken_annotations_are_reported_with_video_and_field(files):
    formats.write_native(files / "native.json", FOUND, CLASSES)
    (files / "annotations.json").write_text('{"v": {"subset": "testing", "duration": -1, "actions": []}}')
    assert "v: -1, expected" in custom(files, files / "native.json", code=1)


def test_no_jax():
    heavy = "{'jax', 'flax', 'orbax', 'tensorflow', 'torch'}"
    code = f"import sys, kd_jax.evaluate; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def evaluate_here(capsys, *arguments):
    """Runs the command in this process; returns its output, or the sentence with which it ends."""
    try:
        evaluate.main([str(argument) for argument in arguments])
    except SystemExit as error:
        return str(error.code)
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["native.json", "activitynet.json", "table.csv", "pku", "scores.npz"])
def test_predictions_of_other_names_are_refused(files, kind, capsys):
    found = {f"v_{video}": table for video, table in FOUND.items()}
    formats.write_native(files / "native.json", found, CLASSES)
    formats.write_activitynet(files / "activitynet.json", found, CLASSES)
    formats.write_csv(files / "table.csv", found, CLASSES)
    formats.write_pku_mmd(files / "pku", found, 2, frames_per_second=25.0)
    formats.write_scores(files / "scores.npz", {video: np.ones((4, 2), np.float32) / 2 for video in found})
    paths = [f"--annotations={files / 'annotations.json'}", f"--classes={files / 'classes.txt'}"]
    text = evaluate_here(capsys, "--dataset=custom", *paths, f"--predictions={files / kind}")
    assert "none of the 2 names in" in text and "'v_v'" in text and "which has 'v'" in text


def test_the_names_that_are_shown_belong_together(files, capsys):
    content = {f"x{i}": {"subset": "testing" if i else "training", "duration": 9, "actions": []} for i in range(4)}
    (files / "annotations.json").write_text(json.dumps(content))
    formats.write_native(files / "native.json", {f"v_{video}": FOUND["v"] for video in content}, CLASSES)
    paths = [f"--annotations={files / 'annotations.json'}", f"--classes={files / 'classes.txt'}"]
    text = evaluate_here(capsys, "--dataset=custom", *paths, f"--predictions={files / 'native.json'}")
    assert "such as 'v_x1', is in" in text and "which has 'x1'; rename" in text


def test_chosen_thresholds(files, capsys):
    formats.write_native(files / "native.json", FOUND, CLASSES)
    paths = [f"--annotations={files / 'annotations.json'}", f"--classes={files / 'classes.txt'}"]
    chosen = ["--protocols=event_map", "--protocols=detection_map_thumos14", "--tiou=0.65", "--tiou=0.25"]
    text = evaluate_here(capsys, "--dataset=custom", *paths, f"--predictions={files / 'native.json'}", *chosen)
    truth = {video: np.array(ACTIONS[video], float) for video in FOUND}
    expected = event_map(FOUND, truth, num_classes=2, thresholds=(0.25, 0.65))["mAP_action"]
    for threshold, number in zip((0.25, 0.65), expected, strict=True):
        assert value(text, f"event_map/mAP_action@{threshold}") == pytest.approx(number, abs=0.005)
        assert value(text, f"detection_map_thumos14/mAP@{threshold}") >= 0
    assert "@0.3 " not in text and "@0.5 " not in text


def test_the_folder_of_the_kit_is_the_ground_truth_of_thumos14(files, capsys):
    (files / "kit").mkdir()
    (files / "kit" / "Billiards_test.txt").write_text("video_test_1  1.0 3.0\nvideo_test_2 5.5 9.5\n")
    (files / "kit" / "Diving_test.txt").write_text("video_test_1  4.0 8.0\n")
    (files / "kit" / "Diving_val.txt").write_text("video_validation_1  4.0 8.0\n")
    (files / "kit" / "Ambiguous_test.txt").write_text("video_test_1  20.0 30.0\n")
    billiards, diving = thumos14.NAMES.index("Billiards"), thumos14.NAMES.index("Diving")
    found = {
        "video_test_1": np.array([[billiards, 1, 3, 0.9], [diving, 4, 8, 0.8], [billiards, 21, 29, 0.95]]),
        "video_test_2": np.array([[billiards, 5.5, 9.5, 0.7]]),
    }
    formats.write_activitynet(files / "found.json", found, thumos14.NAMES)
    command = ["--dataset=thumos14", f"--annotations={files / 'kit'}", f"--predictions={files / 'found.json'}"]
    text = evaluate_here(capsys, *command)
    assert "thumos14, test: 2 videos, 3 actions" in text and "set aside: ambiguous segment" in text
    assert value(text, "detection_map_thumos14_kit/mAP@0.5") == 100 and "note" not in text
    assert value(text, "detection_map_thumos14/mAP@0.5") < 100  # there, ambiguous segments are background
    (files / "kit" / "Diving_test.txt").write_text("video_test_1  4.0\n")
    assert "Diving_test.txt line 1" in evaluate_here(capsys, *command)


def test_a_folder_of_text_files_is_ground_truth(files, capsys):
    (files / "truth").mkdir()
    for video in FOUND:
        lines = [f"{label + 1},{start * 25},{end * 25},1" for label, start, end in ACTIONS[video]]
        (files / "truth" / f"{video}.txt").write_text("\n".join(lines))
    formats.write_native(files / "native.json", FOUND, CLASSES)
    paths = [f"--annotations={files / 'truth'}", f"--classes={files / 'classes.txt'}", "--unit=frames", "--fps=25"]
    command = ["--dataset=custom", f"--predictions={files / 'native.json'}", "--protocols=event_map"]
    text = evaluate_here(capsys, *command, *paths, "--first_label=1")
    assert value(text, "event_map/mAP_action@0.5") == value(
        custom(files, files / "native.json", "--protocols=event_map"), "event_map/mAP_action@0.5"
    )
    refused = evaluate_here(capsys, *command, *paths)
    assert "the class is not one of 0 … 1" in refused and "counts from 1; give --first_label=1" in refused


def test_protocols_that_detections_allow_are_named(files, capsys):
    formats.write_native(files / "native.json", FOUND, CLASSES)
    paths = [f"--annotations={files / 'annotations.json'}", f"--classes={files / 'classes.txt'}"]
    text = evaluate_here(capsys, "--dataset=custom", *paths, f"--predictions={files / 'native.json'}")
    names = [name for name in PROTOCOLS if PROTOCOLS[name].needs == "detections"]
    assert text.endswith(f"choose --protocols that can: {', '.join(names)}") and "event_map" in names


@pytest.mark.parametrize(
    "ending, listed", [("", ".mp4"), ("", ".npy"), (".mp4", ""), (".mp4", ".mp4"), (".mp4", ".npy")]
)
def test_lists_with_or_without_the_endings_of_files(files, ending, listed, capsys):
    content = {f"{v}{ending}": {"duration": 10, "actions": ACTIONS[v]} for v in FOUND}
    (files / "annotations.json").write_text(json.dumps(content))
    formats.write_native(files / "native.json", {f"{v}{ending}": table for v, table in FOUND.items()}, CLASSES)
    (files / "list.txt").write_text(f"v{listed}\n")
    paths = [f"--annotations={files / 'annotations.json'}", f"--classes={files / 'classes.txt'}"]
    command = ["--dataset=custom", *paths, "--protocols=event_map", f"--predictions={files / 'native.json'}"]
    assert "custom, test: 1 videos" in evaluate_here(capsys, *command, f"--test={files / 'list.txt'}")


@pytest.mark.parametrize("kind", ["names", "table"])
def test_labels_of_frames_are_ground_truth(files, kind, capsys):
    rng = np.random.default_rng(0)
    labels = {video: rng.integers(0, 3, 40).repeat(5) for video in FOUND}  # 2 is the background
    (files / "frames").mkdir()
    for video, of_video in labels.items():
        of_video[0] = 1  # the rule of public loaders never labels a segment that starts at 0 there
        if kind == "names":
            names = [(*CLASSES, "background")[label] for label in of_video]
            (files / "frames" / f"{video}.txt").write_text("\n".join(names) + "\n")
        else:
            np.save(files / "frames" / f"{video}.npy", np.eye(3, dtype=np.uint8)[of_video][:, :2])
    scores = {video: rng.random((20, 2)).astype(np.float32) for video in labels}
    formats.write_scores(files / "scores.npz", scores)
    paths = [f"--annotations={files / 'frames'}", f"--classes={files / 'classes.txt'}", "--fps=25"]
    command = ["--dataset=custom", f"--predictions={files / 'scores.npz'}", "--protocols=frame_map_upsampled"]
    text = evaluate_here(capsys, *command, *paths)
    upsampled = [scores[video].repeat(10, axis=0) for video in labels]
    expected = frame_map(upsampled, [np.eye(3)[of_video][:, :2] for of_video in labels.values()])
    assert value(text, "frame_map_upsampled/present_classes") == pytest.approx(
        expected["mean_over_present_classes"], abs=0.005
    )
    refused = evaluate_here(capsys, *command, *paths[:2])
    assert "its times are frames; give --fps, the frames per second of the labels" in refused
    assert "Label Studio" not in refused and "--videos" not in refused


@pytest.mark.parametrize("kind", ["txt", "npy", "npz"])
@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if PROTOCOLS[name].needs != "instants"])
def test_the_labels_of_frames_score_100_as_predictions(files, kind, protocol, capsys):
    """A run of one frame, frame 0 and the last frame, also at 16 frames per label as snippets have."""
    labels = {"v": np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 0], [1, 0]]), "w": np.array([[0, 1], [0, 0]])}
    truth = files / f"truth{'.npz' if kind == 'npz' else ''}"
    if kind == "npz":
        np.savez(truth, **labels)
    else:
        truth.mkdir()
        for video, table in labels.items():
            if kind == "npy":
                np.save(truth / f"{video}.npy", table)
            else:  # one class at a time
                table[:, 1] *= 1 - table[:, 0]
                names = [CLASSES[row.argmax()] if row.any() else "SIL" for row in table]
                (truth / f"{video}.txt").write_text("\n".join(names) + "\n")
    found = {
        video: np.array([[c, a / 1.5625, b / 1.5625, 0.5] for c, a, b in zip(*runs(table), strict=True)])
        for video, table in labels.items()
    }
    formats.write_native(files / "native.json", found, CLASSES)
    formats.write_scores(files / "scores.npz", {video: table.astype(np.float32) for video, table in labels.items()})
    predictions = "scores.npz" if PROTOCOLS[protocol].needs == "scores" else "native.json"
    command = ["--dataset=custom", f"--annotations={truth}", f"--classes={files / 'classes.txt'}", "--fps=1.5625"]
    text = evaluate_here(capsys, *command, f"--predictions={files / predictions}", f"--protocols={protocol}")
    values = [line.split()[-1] for line in text.splitlines() if line.startswith(f"  {protocol}/")]
    assert values and set(values) <= {"100.00", "–"} and "100.00" in values, text


def test_folders_of_labels_that_are_wrong_or_unusual(files, capsys):
    formats.write_native(files / "native.json", {"v": FOUND["v"][:2]}, CLASSES)
    (files / "truth" / "P1").mkdir(parents=True)
    table = files / "truth" / "P1" / "v.csv"
    command = ["--dataset=custom", f"--annotations={files / 'truth'}", f"--classes={files / 'classes.txt'}"]
    command += [f"--predictions={files / 'native.json'}", "--protocols=event_map", "--fps=25"]
    table.write_text("event,start_frame,end_frame\nrun,25,75\nsit,100,175\n")
    (files / "truth" / "w.csv").write_text("event,start_frame,end_frame\n")
    text = evaluate_here(capsys, *command)
    assert "2 videos, 2 actions" in text and value(text, "event_map/mAP_action@0.5") == 100
    (files / "test.bundle").write_text("v.txt\n")
    assert "1 videos, 2 actions" in evaluate_here(capsys, *command, f"--test={files / 'test.bundle'}")
    table.write_text("event,start_frame,end_frame\nrun,25\nsit,100,175\n")
    assert 'line 2: "run,25", expected label,start,end' in evaluate_here(capsys, *command)
    (files / "truth" / "v.txt").write_text("run\n")
    assert "it has .csv and .txt files; expected one" in evaluate_here(capsys, *command)
    np.savez(files / "labels.npz", v=np.ones((2, 5), np.uint8))
    command[1] = f"--annotations={files / 'labels.npz'}"
    assert "v: 5 columns, but 2 classes; expected [F, C]" in evaluate_here(capsys, *command)


def test_detections_whose_unit_is_wrong(files, capsys):
    paths = [f"--annotations={files / 'annotations.json'}", f"--classes={files / 'classes.txt'}"]
    command = ["--dataset=custom", *paths, "--protocols=event_map", f"--predictions={files / 'native.json'}"]
    perfect = {v: np.array([[*row, 0.5] for row in ACTIONS[v]], float) for v in FOUND}
    for factor, said in ((1 / 25, "divided by 0.04"), (1 / 1000, "divided by 0.001"), (0.2, "")):
        formats.write_native(
            files / "native.json", {v: t * [1, factor, factor, 1] for v, t in perfect.items()}, CLASSES
        )
        text = evaluate_here(capsys, *command)
        assert said in text and ("as between seconds and" in text) == bool(said)
    formats.write_native(files / "native.json", {v: t * [1, 1000, 1000, 1] for v, t in perfect.items()}, CLASSES)
    text = evaluate_here(capsys, *command)
    assert "native.json: all 5 detections start after the end of their video: v lasts 10 s" in text
    assert "divided by 1000" in text and "mAP" not in text
    assert "best detection is 1.00 instead of 0.00, as between seconds and milliseconds" in text
    formats.write_native(files / "native.json", perfect | {"v": np.array([[0, 1.0, 1.0, 0.5]])}, CLASSES)
    assert "1 of 3 detections end where they start, such as one of v at 1 s" in evaluate_here(capsys, *command)
    (files / "native.json").write_text("[]")
    assert "no prediction for any of 2 videos; it is empty" in evaluate_here(capsys, *command)


def test_detections_after_the_end_are_noted(files, capsys):
    paths = [f"--annotations={files / 'annotations.json'}", f"--classes={files / 'classes.txt'}"]
    command = ["--dataset=custom", *paths, "--protocols=event_map", f"--predictions={files / 'native.json'}"]
    late = {"v": np.array([[0, 1.0, 3.0, 0.5], [0, 12.0, 13.0, 0.5], [1, 2, 3, 0.4]]), "w": FOUND["w"]}
    formats.write_native(files / "native.json", late, CLASSES)
    text = evaluate_here(capsys, *command)
    assert "note: 1 of 4 detections start after the end of their video: v lasts 10 s and has one at 12 s\n" in text
    frames = {video: table * [1, 25, 25, 1] for video, table in FOUND.items()}
    frames["w"][:, 1] = 100
    formats.write_native(files / "native.json", frames, CLASSES)
    text = evaluate_here(capsys, *command)
    assert "3 of 4 detections start after the end" in text and "seconds and frames at 25 per second" in text


def test_the_stride_of_scores(files, capsys):
    """Snippets of 16 frames every 16 at 25 per second: 15 of them end at 9.6 of 10 s."""
    rng = np.random.default_rng(0)
    scores = {video: rng.random((15, 2)).astype(np.float32) for video in FOUND}
    formats.write_scores(files / "scores.npz", scores)
    paths = [f"--annotations={files / 'annotations.json'}", f"--classes={files / 'classes.txt'}", "--fps=25"]
    command = ["--dataset=custom", *paths, f"--predictions={files / 'scores.npz'}", "--protocols=frame_map"]
    text = evaluate_here(capsys, *command, "--stride=16")
    labels = [labels_from_segments(np.array(ACTIONS[v], float), 9.6, 15, 2) for v in scores]
    expected = frame_map(list(scores.values()), labels)["mean_over_present_classes"]
    assert value(text, "frame_map/present_classes") == pytest.approx(expected, abs=0.005)
    assert "differ" not in text and text != evaluate_here(capsys, *command)
    text = evaluate_here(capsys, *command, "--stride=32")
    assert "video differ by more than a snippet: 2, e.g. v: 15 snippets every 1.28 s end at 19.2 s, but" in text
    refused = evaluate_here(capsys, *[part for part in command if part != "--fps=25"], "--stride=16")
    assert "--stride counts frames, but the rate of v is unknown; give --fps" in refused
