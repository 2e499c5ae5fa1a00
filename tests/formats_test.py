"""Prediction files: files in the layout of the official tools, round trips, and errors for broken files."""

import json
import re
import string
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_jax.data.annotations.tools import label_studio
from kd_jax.data.base import is_file_name
from kd_jax.data.checks import Findings
from kd_jax.data.text_files import normalize
from kd_jax.evaluation import formats
from kd_jax.segments import Grid

CLASSES = ("run", "sit down", "Diving, 10 m")
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
VIDEOS = TEXTS.map(normalize).filter(is_file_name)  # names are in this form in memory
WORDS = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=8).filter(is_file_name)
NUMBERS = st.floats(-1e6, 1e6)
ROWS = st.lists(
    st.tuples(st.integers(0, 2), NUMBERS, NUMBERS, st.floats(0, 1)).map(
        lambda row: (row[0], min(row[1:3]), max(row[1:3]), row[3])
    ),
    max_size=4,
)
DETECTIONS = st.dictionaries(VIDEOS, ROWS.map(lambda rows: np.array(rows, np.float64).reshape(-1, 4)), max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def assert_equal(found, expected, **tolerance):
    assert list(found) == list(expected)
    for video, table in expected.items():
        assert found[video].shape == table.shape
        np.testing.assert_allclose(found[video], table, **{"rtol": 0, "atol": 0, **tolerance})


# Files in the exact layout that other tools write.


def test_activitynet_by_hand(tmp_path):
    # An example in the style of the ActivityNet challenge, with a field that some tools add.
    text = """{
      "version": "VERSION 1.3",
      "results": {
        "5n7NCViB5TU": [
          {"label": "sit down", "score": 1, "segment": [24.25, 38.08], "label_id": 7},
          {"label": "run", "score": 0.3, "segment": [-0.5, 2]}
        ],
        "uNoA": []
      },
      "external_data": {"used": true, "details": "First fully-connected layer from VGG-16"}
    }"""
    (tmp_path / "x.json").write_text(text)
    expected = {"5n7NCViB5TU": np.array([[1, 24.25, 38.08, 1], [0, -0.5, 2, 0.3]]), "uNoA": np.zeros((0, 4))}
    assert_equal(formats.read_activitynet(tmp_path / "x.json", CLASSES), expected)
    formats.write_activitynet(tmp_path / "y.json", expected, CLASSES)
    content = json.loads((tmp_path / "y.json").read_text())
    assert content == {
        "version": "VERSION 1.3",
        "results": {
            "5n7NCViB5TU": [
                {"label": "sit down", "score": 1.0, "segment": [24.25, 38.08]},
                {"label": "run", "score": 0.3, "segment": [-0.5, 2.0]},
            ],
            "uNoA": [],
        },
        "external_data": {},
    }


def test_activitynet_with_only_results_and_class_ids_as_labels(tmp_path):
    results = '{"v": [{"label": 2, "score": 0.5, "segment": [1, 2]}, {"label": "run", "score": 1, "segment": [0, 1]}]}'
    (tmp_path / "x.json").write_text(f'{{"results": {results}}}')
    found = formats.read_activitynet(str(tmp_path / "x.json"), CLASSES)
    assert_equal(found, {"v": np.array([[2, 1, 2, 0.5], [0, 0, 1, 1]])})


def test_pku_mmd_by_hand(tmp_path):
    # Labels from 1, frames at 30 per second; the second file separates with blanks and ends without a newline.
    folder = tmp_path / "pred"
    folder.mkdir()
    (folder / "0002-L.txt").write_bytes(b"13,177,243,0.66\r\n1,300,330,1\r\n")
    (folder / "0007-M.txt").write_text("51.0 60 90.5 2e-1\n\n")
    (folder / "0004-R.txt").write_text("")
    (folder / ".DS_Store").write_bytes(b"\0\1")
    expected = {
        "0002-L": np.array([[12, 5.9, 8.1, 0.66], [0, 10, 11, 1]]),
        "0004-R": np.zeros((0, 4)),
        "0007-M": np.array([[50, 2, 90.5 / 30, 0.2]]),
    }
    assert_equal(formats.read_pku_mmd(folder, 51), expected, rtol=1e-15)
    formats.write_pku_mmd(tmp_path / "mine", {"a": np.array([[12, 5.9, 8.1, 0.66]]), "b": []}, 51)
    assert {p.name: p.read_text() for p in (tmp_path / "mine").iterdir()} == {"a.txt": "13,177,243,0.66\n", "b.txt": ""}


def test_pku_mmd_with_the_labels_of_tsu(tmp_path):
    # TSU_evaluation counts labels from 0; times have the unit of the ground truth.
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "P02T02C03.txt").write_text("0,7,12,0.6621531\n1,11,15,0.86118686\n")
    found = formats.read_pku_mmd(folder, 51, first_label=0, frames_per_second=1)
    assert_equal(found, {"P02T02C03": np.array([[0, 7, 12, 0.6621531], [1, 11, 15, 0.86118686]])})
    with pytest.raises(ValueError, match="P02T02C03.txt line 1 label: 0.*1 … 51.*count from 0"):
        formats.read_pku_mmd(folder, 51)


def test_charades_by_hand(tmp_path):
    # The README of Charades: id, frame number from 1, 157 scores, separated by whitespace.
    first, last = [f"{i / 100:.2f}" for i in range(157)], ["-1e-3"] * 157
    (tmp_path / "x.txt").write_text(f"YSKX3 1 {' '.join(first)}\nYSKX3\t25  {' '.join(last)} \n\n")
    found = formats.read_charades(tmp_path / "x.txt")
    expected = np.full((25, 157), -np.inf)
    expected[0], expected[24] = np.arange(157) / 100, -1e-3
    assert_equal(found, {"YSKX3": expected})
    formats.write_charades(tmp_path / "y.txt", found)
    lines = (tmp_path / "y.txt").read_text().splitlines()
    assert [line.split()[:3] for line in lines] == [["YSKX3", "1", "0"], ["YSKX3", "25", "-0.001"]]


def test_charades_frames_from_0_are_shifted_as_in_the_official_script(tmp_path):
    (tmp_path / "x.txt").write_text("a 0 0.5\na 24 0.25\nb 3 1\n")
    found = formats.read_charades(tmp_path / "x.txt", num_classes=1)
    assert found["a"][0, 0] == 0.5 and found["a"][24, 0] == 0.25 and found["b"][3, 0] == 1
    assert np.isneginf(found["a"]).sum() == 23


def test_charades_frames_by_hand():
    # Ten snippets: time j/25 of the length lies in snippet floor(j · 10/25).
    frames = formats.charades_frames(np.arange(10.0)[:, None])
    np.testing.assert_array_equal(frames[:6, 0], [0, 0, 0, 1, 1, 2])
    assert frames.shape == (25, 1) and frames[24, 0] == 9
    np.testing.assert_array_equal(formats.charades_frames(np.eye(25)), np.eye(25))


def test_charades_frames_of_snippets_that_do_not_divide_the_video():
    """Windows of 4 s every 2 s in 12.5 s: snippets start at 1, 3, …, 9 s, and time j is j / 2 s."""
    scores = np.arange(5.0)[:, None]
    frames = formats.charades_frames(scores, Grid(1.0, 10.0, 0.5), 12.5)
    expected = [*[0] * 6, *[1] * 4, *[2] * 4, *[3] * 4, *[4] * 7]
    np.testing.assert_array_equal(frames[:, 0], expected)
    assert not np.array_equal(formats.charades_frames(scores), frames)


def test_charades_files_use_the_times_of_the_snippets(tmp_path):
    table = np.repeat(np.arange(5.0)[:, None], 157, axis=1)
    tables = {"scores": {"v": table, "w": table}, "detections": {}, "classes": [f"c{i}" for i in range(157)]}
    (path,) = formats.write(tmp_path, ["charades"], **tables, times={"v": (Grid(1.0, 10.0, 0.5), 12.5)})
    found = formats.read_charades(path)
    np.testing.assert_array_equal(found["v"], formats.charades_frames(table, Grid(1.0, 10.0, 0.5), 12.5))
    np.testing.assert_array_equal(found["w"], formats.charades_frames(table))


def test_native_by_hand(tmp_path):
    detections = {"v": np.array([[1, 0, 1.5, 0.75], [0, 0, 0.1, 1]]), "w": np.zeros((0, 4))}
    formats.write_native(tmp_path / "x.json", detections, CLASSES)
    assert json.loads((tmp_path / "x.json").read_text()) == [
        {"video": "v", "class": "sit down", "start": 0.0, "end": 1.5, "score": 0.75},
        {"video": "v", "class": "run", "start": 0.0, "end": 0.1, "score": 1.0},
    ]
    assert_equal(formats.read_native(tmp_path / "x.json", CLASSES), {"v": detections["v"]})


def test_csv_by_hand(tmp_path):
    # As a spreadsheet in Germany saves it: a byte order mark, semicolons, another order, one more column.
    text = 'Label;video;Score;start;end;note\r\n"Diving, 10 m";v;0.5;1;2.25;x\r\nrun;w 1;1;0;1e1;\r\n'
    (tmp_path / "x.csv").write_bytes(text.encode("utf-8-sig"))
    expected = {"v": np.array([[2, 1, 2.25, 0.5]]), "w 1": np.array([[0, 0, 10, 1]])}
    assert_equal(formats.read_csv(tmp_path / "x.csv", CLASSES), expected)
    formats.write_csv(tmp_path / "y.csv", {**expected, "z": []}, CLASSES)
    lines = ["video,label,start,end,score", 'v,"Diving, 10 m",1.0,2.25,0.5', "w 1,run,0.0,10.0,1.0"]
    assert (tmp_path / "y.csv").read_text().splitlines() == lines


def test_webvtt_by_hand(tmp_path):
    detections = {"v": np.array([[1, 3725.5, 3725.5001, 0.954], [0, -1, 1.2345, 1]]), "w": []}
    formats.write_webvtt(tmp_path / "vtt", detections, ("run & <jump>", "sit\ndown"))
    assert (tmp_path / "vtt" / "v.vtt").read_text() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.234\nrun &amp; &lt;jump&gt; (1.00)\n\n"
        "01:02:05.500 --> 01:02:05.501\nsit down (0.95)\n"
    )
    assert (tmp_path / "vtt" / "w.vtt").read_text() == "WEBVTT\n"


def test_fiftyone_by_hand(tmp_path):
    # The layout of FiftyOneTemporalDetectionDataset, in which labels are indices into the classes.
    formats.write_fiftyone(tmp_path / "x.json", {"v": np.array([[1, 0.5, 2, 0.75]]), "w": []}, CLASSES)
    labels = {"v": [{"label": 1, "timestamps": [0.5, 2.0], "confidence": 0.75}], "w": []}
    assert json.loads((tmp_path / "x.json").read_text()) == {"classes": list(CLASSES), "labels": labels}


def test_label_studio_by_hand(tmp_path):
    detections = {"v": np.array([[1, 0.2, 0.4, 0.75], [0, 1, 1.001, 0.25]]), "w": []}
    files = {video: formats.VideoFile(Path(f"films/{video}.mp4"), 25.0) for video in detections}
    formats.write_label_studio(tmp_path / "x.json", detections, CLASSES, files)
    # Frame 1 is that at 0 s. Frames 6 to 10 last from 0.2 s to 0.4 s.
    regions = [
        {
            "id": f"region_{i}",
            "type": "timelinelabels",
            "from_name": "actions",
            "to_name": "video",
            "value": {"ranges": [{"start": first, "end": last}], "timelinelabels": [label]},
            "score": score,
        }
        for i, (first, last, label, score) in enumerate([(6, 10, "sit down", 0.75), (26, 26, "run", 0.25)])
    ]
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == [
        {
            "data": {"video": "v.mp4", "fps": 25.0},
            "predictions": [{"model_version": "kd_jax", "result": regions, "score": 0.5}],
        },
        {"data": {"video": "w.mp4", "fps": 25.0}, "predictions": [{"model_version": "kd_jax", "result": []}]},
    ]
    submitted = [{"data": task["data"], "annotations": task["predictions"]} for task in json.loads(text)]
    actions = label_studio.read(submitted, "x.json", Findings())["v"]["actions"]
    assert actions == [["sit down", 5, 10], ["run", 25, 26]]  # what a person who changes nothing gets back, in frames
    config = ElementTree.fromstring((tmp_path / "x.xml").read_text())
    assert [label.get("value") for label in config.iter("Label")] == list(CLASSES)
    timeline, video = config.find("TimelineLabels"), config.find("Video")
    assert (timeline.get("name"), timeline.get("toName"), video.get("name")) == ("actions", "video", "video")
    assert video.get("frameRate") == "$fps" and video.get("value") == "$video"
    with pytest.raises(ValueError, match="v: its file and frames per second are unknown"):
        formats.write_label_studio(tmp_path / "y.json", detections, CLASSES, {"w": files["w"]})


def test_scores_of_numpy(tmp_path):
    scores = {"b": np.ones((2, 3), np.float16), "a": np.zeros((1, 3))}
    np.savez_compressed(tmp_path / "x.npz", **scores)
    found = formats.read_scores(tmp_path / "x.npz")
    assert_equal(found, scores)
    assert found["b"].dtype == np.float16


# Round trips.


@QUICK
@given(DETECTIONS)
def test_round_trip_of_detections(tmp_path, detections):
    path = tmp_path / "x.json"
    formats.write_activitynet(path, detections, CLASSES)
    assert_equal(formats.read_activitynet(path, CLASSES), detections)
    formats.write_native(path, detections, CLASSES)
    seen = {video: table for video, table in detections.items() if len(table)}
    assert_equal(formats.read_native(path, CLASSES), seen)
    formats.write_csv(path, detections, CLASSES)
    assert_equal(formats.read_csv(path, CLASSES), seen)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@QUICK
@given(DETECTIONS.filter(len), st.sampled_from([0, 1, 5]), st.sampled_from([1.0, 25.0, 30.0, 29.97]))
def test_round_trip_of_pku_mmd(tmp_path, detections, first_label, rate):
    detections = dict(sorted(detections.items()))
    options = {"first_label": first_label, "frames_per_second": rate}
    formats.write_pku_mmd(tmp_path / "pred", detections, 3, overwrite=True, **options)
    found = formats.read_pku_mmd(tmp_path / "pred", 3, **options)
    assert found.keys() == detections.keys()
    for video, table in detections.items():
        np.testing.assert_allclose(found[video], table, rtol=0 if rate == 1 else 1e-15, atol=0)
        np.testing.assert_array_equal(found[video][:, [0, 3]], table[:, [0, 3]])
    assert [p.name for p in tmp_path.iterdir()] == ["pred"]


@QUICK
@given(
    st.dictionaries(WORDS, st.integers(0, 2**32 - 1), max_size=3),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_round_trip_of_scores_and_frames(tmp_path, seeds, dtype):
    rngs = {video: np.random.default_rng(seed) for video, seed in seeds.items()}
    scores = {video: rng.standard_normal((30, 4)).astype(dtype) for video, rng in rngs.items()}
    formats.write_scores(tmp_path / "x.npz", scores)
    assert_equal(formats.read_scores(tmp_path / "x.npz"), scores)
    frames = {video: formats.charades_frames(table) for video, table in scores.items()}
    for table in frames.values():
        table[[3, 24]] = -np.inf  # missing
        table[5, 1] = -np.inf
    formats.write_charades(tmp_path / "x.txt", frames, num_classes=4)
    found = formats.read_charades(tmp_path / "x.txt", num_classes=4)
    assert_equal({video: table.astype(dtype) for video, table in found.items()}, frames)


def test_round_trip_of_charades_with_all_classes(tmp_path):
    rng = np.random.default_rng(0)
    frames = {f"V{i:04d}": rng.random((25, 157), np.float32) for i in range(300)}  # the test split has 1,863
    formats.write_charades(tmp_path / "x.txt", frames)
    found = formats.read_charades(tmp_path / "x.txt")
    assert_equal({video: table.astype(np.float32) for video, table in found.items()}, frames)


# Broken files: one DataError that names file, place and value.


def refuses(read, path, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def entry(**changes):
    return {"label": "run", "score": 0.5, "segment": [1, 2]} | changes


@pytest.mark.parametrize(
    "content, message",
    [
        ([], r"\[\], expected an object with results"),
        ({"result": {}}, r'results: missing, there are \["result"\]; expected'),
        ({"results": []}, r"results: \[\]; expected"),
        ({"results": {"../v": []}}, r'video "../v", expected the name of a file'),
        ({"results": {"v": {}}}, r"results\['v'\]: \{\}, expected a list"),
        ({"results": {"v": [[0, 1]]}}, r"results\['v'\] entry 0: \[0, 1\], expected an object with label"),
        ({"results": {"v": [{"label": "run"}]}}, "entry 0: the field score, segment is missing"),
        ({"results": {"v": [entry(), entry(label="Run")]}}, 'entry 1 label: "Run", expected one of the 3 classes'),
        ({"results": {"v": [entry(label=None)]}}, "entry 0 label: null, expected one of the 3 classes"),
        ({"results": {"v": [entry(label=3)]}}, "entry 0 label: 3, expected an integer of 0 … 2; .*count from 1?"),
        ({"results": {"v": [entry(label=True)]}}, "entry 0 label: true, expected an integer of 0 … 2"),
        ({"results": {"v": [entry(label=0.5)]}}, "entry 0 label: 0.5, expected an integer of 0 … 2"),
        ({"results": {"v": [entry(score=None)]}}, "entry 0 score: null, expected a finite number"),
        ({"results": {"v": [entry(score=float("nan"))]}}, "entry 0 score: NaN, expected a finite number"),
        ({"results": {"v": [entry(score=10**400)]}}, "entry 0 score: 1000.*…, expected a finite number"),
        ({"results": {"v": [entry(segment=3)]}}, r"entry 0 segment: 3, expected \[start, end\] in seconds"),
        ({"results": {"v": [entry(segment=["1", 2])]}}, 'entry 0 start: "1", expected a finite number'),
        ({"results": {"v": [entry(segment=[2, 1])]}}, "entry 0 end: 1, before the start 2"),
    ],
)
def test_activitynet_refuses(tmp_path, content, message):
    (tmp_path / "x.json").write_text(json.dumps(content))
    refuses(lambda path: formats.read_activitynet(path, CLASSES), tmp_path / "x.json", message)


def test_json_refuses_text_and_repeated_keys(tmp_path):
    def read(path):
        return formats.read_activitynet(path, CLASSES)

    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000):
        (tmp_path / "x.json").write_bytes(content)
        refuses(read, tmp_path / "x.json", "not readable as JSON")
    (tmp_path / "x.json").write_text('{"results": {"v": [], "v": []}}')
    refuses(read, tmp_path / "x.json", "the key 'v' occurs 2 times in one object")


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, r"\{\}, expected a list of detections"),
        ([[]], r"entry 0: \[\], expected an object with video"),
        ([{"video": "v", "label": 1}], "entry 0: the field class, start, end, score is missing"),
        ([{"video": "a/b", "class": "run", "start": 0, "end": 1, "score": 1}], 'entry 0: video "a/b"'),
        ([{"video": "v", "class": 0, "start": 0, "end": 1, "score": 1}], "entry 0 class: 0, expected one of the 3"),
        ([{"video": "v", "class": "run", "start": 0, "end": "x", "score": 1}], 'entry 0 end: "x", expected a finite'),
    ],
)
def test_native_refuses(tmp_path, content, message):
    (tmp_path / "x.json").write_text(json.dumps(content))
    refuses(lambda path: formats.read_native(path, CLASSES), tmp_path / "x.json", message)


@pytest.mark.parametrize(
    "line, message",
    [
        (b"1,2,3", 'a.txt line 2: 3 fields in "1,2,3", expected label,start,end,confidence'),
        (b"x,2,3,1", 'a.txt line 2 label: "x", expected an integer of 1 … 3'),
        (b"1.5,2,3,1", "a.txt line 2 label: 1.5"),
        (b"0,2,3,1", "a.txt line 2 label: 0.*does the file count from 0"),
        (b"1,nan,3,1", "a.txt line 2 start: NaN, expected a finite number"),
        (b"1,2,1_0,1", 'a.txt line 2 end: "1_0", expected a finite number'),
        (b"1,4,3,1", "a.txt line 2 end: 3, before the start 4"),
        (b"1,2,3,inf", "a.txt line 2 confidence: Infinity"),
        (b"\xff", "a.txt: not readable as text"),
    ],
)
def test_pku_mmd_refuses(tmp_path, line, message):
    (tmp_path / "a.txt").write_bytes(b"1,2,3,0.5\n" + line + b"\n")
    refuses(lambda path: formats.read_pku_mmd(path, 3), tmp_path, message)


def test_pku_mmd_refuses_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        formats.read_pku_mmd(tmp_path / "nowhere", 3)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="no <video>.txt file; did you mean .*test?"):
        formats.read_pku_mmd(tmp_path, 3)
    (tmp_path / "test" / "notes.md").write_text("")
    refuses(lambda path: formats.read_pku_mmd(path, 3), tmp_path / "test", "notes.md: not a .txt file")
    with pytest.raises(ValueError, match="frames_per_second=0 must be"):
        formats.read_pku_mmd(tmp_path, 3, frames_per_second=0)


@pytest.mark.parametrize(
    "lines, message",
    [
        (["a"], "line 1: frame missing of 'a', expected `video frame score × 2`"),
        (["a 1 0.5"], "line 1: 1 scores of 'a', frame 1; expected 2"),
        (["a 1 0.5 0.5 0.5"], "line 1: 3 scores"),
        (["a one 0.5 0.5"], """line 1: frame "one" of 'a'"""),
        (["a 1_0 0.5 0.5"], """line 1: frame "1_0" of 'a'"""),
        (["a 1 0.5 x"], """line 1: score "x" of 'a', frame 1; expected a finite number or -inf"""),
        (["a_b 1 0.5 1_0"], """line 1: score "1_0" of 'a_b'"""),
        (["a 1 nan 0.5"], 'score "nan"'),
        (["a 1 0.5 inf"], 'score "inf"'),
        (["a 1 0 0", "a 26 0 0"], "line 2: frame 26 of 'a', expected 1 … 25"),
        (["a 0 0 0", "a 25 0 0"], "line 2: frame 25 of 'a', expected 0 … 24 in a file that has a frame 0"),
        (["a -1 0 0"], "line 1: frame -1"),
        (["a 1 0 0", "b 1 0 0", "a 1 1 1"], "line 3: frame 1 of 'a' is already in line 1"),
        (["../a 1 0 0"], 'line 1: video "../a"'),
        (["a 1 0 0", "\udcff"], "after line"),
    ],
)
def test_charades_refuses(tmp_path, lines, message):
    (tmp_path / "x.txt").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    refuses(lambda path: formats.read_charades(path, num_classes=2), tmp_path / "x.txt", re.escape(message))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", 'the first line is ""; it lacks the column video, label, start, end, score'),
        ("video,label,start,end\n", "it lacks the column score"),
        ("video,label,start,end,score\nv,walk,0,1,1\n", 'line 2 label: "walk", expected one of the 3 classes'),
        ("video,label,start,end,score\nv,run,0,x,1\n", 'line 2 end: "x", expected a finite number'),
        ("video,label,start,end,score\nv,run,2,1,1\n", "line 2 end: 1, before the start 2"),
        ("video,label,start,end,score\n\nv,run,0,1\n", 'line 3 score: "", expected a finite number'),
        ("video,label,start,end,score\n../v,run,0,1,1\n", 'line 2: video "../v"'),
        (f"video,label,start,end,score\nv,{'x' * 200_000},0,1,1\n", "field larger than field limit"),
    ],
)
def test_csv_refuses(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    refuses(lambda path: formats.read_csv(path, CLASSES), tmp_path / "x.csv", re.escape(message))


def test_scores_refuse(tmp_path):
    path = tmp_path / "x.npz"
    for content in (b"", b"PK", b"text", b"\x93NUMPY"):
        path.write_bytes(content)
        refuses(formats.read_scores, path, "not a readable .npz file")
    np.save(tmp_path / "x.npy", np.ones(3))
    refuses(formats.read_scores, tmp_path / "x.npy", "it holds one array")
    arrays = {
        "flat": np.ones(3),
        "empty": np.ones((0, 2)),
        "text": np.array([["x"]]),
        "object": np.array([[None]]),
        "nan": np.array([[0, np.nan]]),
        "wide": np.ones((2, 3)),
        "good": np.ones((2, 2)),
        "fine": np.ones((2, 2)),
    }
    np.savez(path, **arrays)
    text = refuses(formats.read_scores, path, "6 problems")
    assert "'flat': shape [3], expected [T, C]" in text and "'empty': shape [0, 2]" in text
    assert "'text': <U1, expected real numbers" in text and "'object': object, expected real numbers" in text
    assert "'nan': nan at snippet 0, class 1" in text and "'wide': 3 classes, most videos have 2" in text
    with pytest.raises(
        ValueError, match=r"1 problem in the scores to write; nothing was written\nscores \(1\):\n  'nan'"
    ):
        formats.write_scores(path, {"nan": arrays["nan"]})


def test_missing_files(tmp_path):
    for read in (formats.read_scores, formats.read_charades):
        with pytest.raises(FileNotFoundError, match="x does not exist; name the file"):
            read(tmp_path / "x")
    for read in (formats.read_native, formats.read_activitynet):
        with pytest.raises(FileNotFoundError, match="is a folder"):
            read(tmp_path, CLASSES)


def test_one_error_lists_all_problems_up_to_a_limit(tmp_path):
    (tmp_path / "x.txt").write_text("".join(f"a {i} x\n" for i in range(1, 26)))
    text = refuses(lambda path: formats.read_charades(path, num_classes=1), tmp_path / "x.txt", "25 problems")
    assert text.count("\n") == 22 and text.endswith("… and 5 more")


@QUICK
@given(JSON, JSON)
def test_any_json_is_read_or_refused(tmp_path, inner, outer):
    path = tmp_path / "x.json"
    for content in (outer, {"results": outer}, {"results": {"v": inner}}, {"results": {"v": [entry(segment=inner)]}}):
        path.write_text(json.dumps(content))
        for read in (formats.read_activitynet, formats.read_native):
            try:
                read(path, CLASSES)
            except ValueError as error:
                assert str(path) in str(error)


@QUICK
@given(st.text(max_size=40), st.integers(0, 60), st.sampled_from(["insert", "replace", "cut"]))
def test_any_text_is_read_or_refused(tmp_path, noise, position, how):
    good = "a 1 0.5 0.25\na 2 0.5 1e-3\nb 25 1 0\n"
    end = position + (len(noise) if how == "replace" else 0)
    broken = good[:position] if how == "cut" else good[:position] + noise + good[end:]
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_bytes(broken.encode(errors="replace"))
    (tmp_path / "x.npz").write_bytes(broken.encode(errors="replace"))
    for read, path in (
        (lambda path: formats.read_charades(path, num_classes=2), folder / "a.txt"),
        (lambda path: formats.read_pku_mmd(path, 3), folder),
        (formats.read_scores, tmp_path / "x.npz"),
    ):
        try:
            read(path)
        except ValueError as error:
            assert str(path) in str(error)


@QUICK
@given(st.data())
def test_any_damaged_archive_is_read_or_refused(tmp_path, data):
    path = tmp_path / "x.npz"
    formats.write_scores(path, {"a": np.ones((2, 2)), "b": np.zeros((3, 2))})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        formats.read_scores(path)
    except ValueError as error:
        assert str(path) in str(error)


# Writers.


@pytest.mark.parametrize(
    "detections, message",
    [
        ({"../v": np.zeros((0, 4))}, 'video "../v"'),
        ({3: np.zeros((0, 4))}, "video 3"),
        ({"v": np.zeros((2, 3))}, r"'v': shape \[2, 3\], expected finite rows"),
        ({"v": np.full((1, 4), np.nan)}, "'v': shape .*finite rows"),
        ({"v": [[3, 0, 1, 1]]}, r"'v': \(3, 0, 1, 1\): expected a class of 0 … 2 and start <= end"),
        ({"v": [[0.5, 0, 1, 1]]}, r"'v': \(0.5, 0, 1, 1\)"),
        ({"v": [[0, 2, 1, 1]]}, r"'v': \(0, 2, 1, 1\)"),
    ],
)
def test_writers_refuse_what_readers_refuse(tmp_path, detections, message):
    for write in (formats.write_native, formats.write_activitynet):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "x", detections, CLASSES)
    with pytest.raises(ValueError, match=message):
        formats.write_pku_mmd(tmp_path / "x", detections, 3)
    assert not list(tmp_path.iterdir())


def test_each_class_needs_a_name(tmp_path):
    for classes in ((), ("a", "a")):
        with pytest.raises(ValueError, match="no name twice"):
            formats.write_native(tmp_path / "x", {}, classes)


@pytest.mark.parametrize(
    "frames, message",
    [
        ({"a b": np.zeros((25, 2))}, "video 'a b' has blanks"),
        ({"v": np.zeros((24, 2))}, r"'v': float64 \[24, 2\], expected numbers \[25, 2\]; charades_frames"),
        ({"v": np.full((25, 2), np.nan)}, "'v': holds NaN or inf"),
        ({"v": np.full((25, 2), np.inf)}, "'v': holds NaN or inf"),
    ],
)
def test_charades_writer_refuses(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        formats.write_charades(tmp_path / "x", frames, num_classes=2)


def test_pku_mmd_replaces_only_folders_of_text_files(tmp_path):
    folder = tmp_path / "pred"
    formats.write_pku_mmd(folder, {"a": [], "b": []}, 3)
    with pytest.raises(FileExistsError, match="not empty"):
        formats.write_pku_mmd(folder, {"c": []}, 3)
    formats.write_pku_mmd(folder, {"c": []}, 3, overwrite=True)
    assert [p.name for p in folder.iterdir()] == ["c.txt"]
    (folder / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="more than .txt files"):
        formats.write_pku_mmd(folder, {"d": []}, 3, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        formats.write_pku_mmd(folder / "c.txt", {"d": []}, 3, overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c.txt", "pred", "thesis.tex"]


def test_a_failed_write_of_a_folder_leaves_the_old_one(tmp_path, monkeypatch):
    formats.write_pku_mmd(tmp_path / "pred", {"a": []}, 3)
    write_bytes = Path.write_bytes

    def fail(self, content):
        if "b.txt" in self.name:
            raise OSError("disk full")
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"b\.txt cannot be written \(disk full\)"):
        formats.write_pku_mmd(tmp_path / "pred", {"a": [], "b": []}, 3, overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "pred"]


def test_every_format_of_a_folder(tmp_path):
    classes = [f"class {i}" for i in range(157)]
    scores = {"v": np.random.default_rng(0).random((30, 157), np.float32), "w": np.zeros((3, 157), np.float32)}
    detections = {"v": np.array([[156, 0, 2.5, 0.5]]), "w": np.zeros((0, 4))}
    files = {video: formats.VideoFile(Path(f"{video}.mp4"), 25.0) for video in scores}
    tables = {"scores": scores, "detections": detections}
    for _ in range(2):  # the second time replaces the first
        paths = formats.write(tmp_path, formats.FORMATS, **tables, classes=classes, files=files)
    assert sorted(paths) == sorted(tmp_path.iterdir()) and len(paths) == 10
    assert_equal(formats.read_scores(tmp_path / "scores.npz"), scores)
    assert_equal(formats.read_native(tmp_path / "detections.json", classes), {"v": detections["v"]})
    assert_equal(formats.read_csv(tmp_path / "detections.csv", classes), {"v": detections["v"]})
    assert_equal(formats.read_activitynet(tmp_path / "activitynet.json", classes), detections)
    assert_equal(formats.read_pku_mmd(tmp_path / "pku_mmd", 157), detections)
    frames = formats.read_charades(tmp_path / "charades_localize.txt")
    np.testing.assert_array_equal(frames["v"].astype(np.float32), scores["v"][np.arange(25) * 30 // 25])


def test_formats_can_be_checked_before_predicting():
    formats.check_formats(["native", "pku_mmd"], ["a b"], 3)
    with pytest.raises(ValueError, match="'json' is unknown; known formats: native, activitynet, pku_mmd, charades"):
        formats.check_formats(["json"], [], 3)
    with pytest.raises(ValueError, match="3 classes, the format charades has 157"):
        formats.check_formats(["charades"], [], 3)
    formats.check_formats(["label_studio"], ["a"], 3, {"a"})
    with pytest.raises(ValueError, match="'b': label_studio needs its frames per second; predict from --video"):
        formats.check_formats(["label_studio"], ["a", "b"], 3, {"a"})
    with pytest.raises(ValueError, match="'a b' has blanks"):
        formats.check_formats(["charades"], ["a b"], 157)


def test_names_of_predictions_are_in_one_unicode_form(tmp_path):
    for name in (composed := "K\u00fcche", "Ku\u0308che"):
        np.savez(tmp_path / "scores.npz", **{name: np.ones((2, 3))})
        assert list(formats.read_scores(tmp_path / "scores.npz")) == [composed]
        found = {name: np.array([[0, 1.0, 2.0, 0.5]])}
        for write, read in (
            (formats.write_native, formats.read_native),
            (formats.write_activitynet, formats.read_activitynet),
            (formats.write_csv, formats.read_csv),
        ):
            write(tmp_path / "found", found, CLASSES)
            assert list(read(tmp_path / "found", CLASSES)) == [composed]
        formats.write_pku_mmd(tmp_path / "pku", found, 3, overwrite=True)
        assert list(formats.read_pku_mmd(tmp_path / "pku", 3)) == [composed]
