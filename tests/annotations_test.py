"""Annotation files of every public format: what is read, cleaned and refused.

The real files of Charades, THUMOS14 and PKU-MMD may not be redistributed. The tests write files in the same layout.
"""

import csv
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kd_jax.data import base, checks, synthetic
from kd_jax.data.annotations import DATASETS, custom, describe
from kd_jax.data.annotations.cleaning import annotate, check_units
from kd_jax.data.annotations.common_layout import read_classes, read_entries
from kd_jax.data.annotations.tools.media import video_name
from kd_jax.data.annotations.units import OR_LESS, OR_MORE, as_between
from kd_jax.data.checks import (
    AMBIGUOUS,
    CLIPPED,
    DUPLICATE,
    EMPTY,
    ENCODED,
    GUESSED,
    LATE,
    NO_ACTIONS,
    TRIMMED,
    UNITS_DIFFER,
    UNLISTED,
    DataError,
    Findings,
    join_repeated,
    parse_json,
)
from kd_jax.data.feature_folders import FeatureFolder
from kd_jax.video.videos import name_of as name_of_video

CHARADES_COLUMNS = [
    "id",
    "subject",
    "scene",
    "quality",
    "relevance",
    "verified",
    "script",
    "objects",
    "descriptions",
    "actions",
    "length",
]


def read(dataset, *paths):
    """Returns the videos by id and {kind: number of handled cases}; raises all problems."""
    findings, description = Findings(), describe(dataset)
    videos = description.read(list(paths), description.names, findings)
    findings.raise_problems()
    return {video.id: video for video in videos}, {kind: len(cases) for kind, cases in findings.handled.items()}


def problems(dataset, *paths) -> str:
    with pytest.raises(DataError) as caught:
        read(dataset, *paths)
    return str(caught.value)


def write_charades(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CHARADES_COLUMNS, restval='a person, a room; "quoted"\nand a line')
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


class PkuMmd:
    """Writes the folder of label files and the split file of PKU-MMD."""

    def __init__(self, root, labels, train, test):
        self.labels, self.split = root / "Train_Label_PKU_final", root / "cross-subject.txt"
        self.labels.mkdir(exist_ok=True)
        for video, lines in labels.items():
            (self.labels / f"{video}.txt").write_text(lines)
        lines = ["Training videos:", ", ".join(train) + ", ", "Validataion videos:", ", ".join(test) + ", "]
        self.split.write_text("\n".join(lines))

    def paths(self):
        return self.labels, self.split


# Valid and invalid files of each format.


def test_charades_csv(tmp_path):
    train = write_charades(
        tmp_path / "Charades_v1_train.csv",
        [
            {"id": "46GP8", "length": "24.83", "actions": "c092 11.90 21.20;c147 0.00 12.60"},
            {"id": "N11GT", "length": "18.17", "actions": ""},
        ],
    )
    test = write_charades(
        tmp_path / "Charades_v1_test.csv",
        [{"id": "YSKX3", "length": "10.0", "actions": "c156 2.0 12.5;c000 3.0 3.0;c000 1.0 2.0;c000 1.0 2.0"}],
    )
    videos, handled = read("charades", train, test)
    assert {v: (video.split, video.duration) for v, video in videos.items()} == {
        "46GP8": ("train", 24.83),
        "N11GT": ("train", 18.17),
        "YSKX3": ("test", 10.0),
    }
    np.testing.assert_array_equal(videos["46GP8"].segments, [[92, 11.9, 21.2], [147, 0, 12.6]])
    np.testing.assert_array_equal(videos["YSKX3"].segments, [[156, 2, 10], [0, 1, 2]])
    np.testing.assert_array_equal(videos["YSKX3"].written, [[156, 2, 12.5], [0, 3, 3], [0, 1, 2], [0, 1, 2]])
    assert handled == {NO_ACTIONS: 1, CLIPPED: 1, EMPTY: 1, DUPLICATE: 1}


def test_charades_json_has_the_common_layout(tmp_path):
    content = {"46GP8": {"subset": "training", "duration": 24.83, "actions": [[92, 11.9, 21.2], [147, 0.0, 30.0]]}}
    videos, handled = read("charades", write_json(tmp_path / "charades.json", content))
    np.testing.assert_array_equal(videos["46GP8"].segments, [[92, 11.9, 21.2], [147, 0, 24.83]])
    assert handled == {CLIPPED: 1}


@pytest.mark.parametrize(
    "name, row, message",
    [
        (
            "train.csv",
            {"id": "A", "length": "1", "actions": "c157 0 1"},
            'A: "c157 0 1": the class is not one of 0 … 156',
        ),
        ("train.csv", {"id": "A", "length": "1", "actions": "92 0 1"}, 'A: "92 0 1", expected cNNN START END'),
        ("train.csv", {"id": "A", "length": "1", "actions": "c001 0 x"}, 'A: "c001 0 x": start and end must be finite'),
        ("train.csv", {"id": "A", "length": "1", "actions": "c001 0 1;"}, 'A: "", expected cNNN START END'),
        ("train.csv", {"id": "A", "length": "", "actions": ""}, 'length (1):\n  A: "", expected a number above 0'),
        ("train.csv", {"id": "A", "length": "-3", "actions": ""}, "A: -3.0, expected a number above 0"),
        (
            "train.csv",
            {"id": "../A", "length": "1", "actions": ""},
            'train.csv line 10: video "../A", expected the name of a file',
        ),
        ("all.csv", {"id": "A", "length": "1", "actions": ""}, "all.csv: the name does not contain the split"),
    ],
)
def test_bad_charades_rows(tmp_path, name, row, message):
    assert message in problems("charades", write_charades(tmp_path / name, [row]))


def test_bad_charades_tables(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("id,length\nA,3\n")
    assert "no column actions" in problems("charades", path)
    path.write_text("id,length,actions\nA,3\n")
    assert 'train.csv line 2: "A": not as many fields as columns' in problems("charades", path)
    path.write_text("id,length,actions\nA,3,,\n")
    assert "not as many fields" in problems("charades", path)
    path.write_text('id,length,actions\nA,3,"c001\n')
    assert "train.csv: " in problems("charades", path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "unreadable file (1):" in problems("charades", path)
    row = {"id": "A", "length": "1", "actions": ""}
    paths = [write_charades(tmp_path / name, [row]) for name in ("train.csv", "test.csv")]
    assert "test.csv: A occurs twice" in problems("charades", *paths)


def test_multithumos_counts_from_one(tmp_path):
    content = {"v": {"subset": "testing", "duration": 9.0, "actions": [[1, 0.5, 2.0], [65, 3, 4], [2, 9.5, 9.9]]}}
    videos, handled = read("multithumos", write_json(tmp_path / "multithumos.json", content))
    np.testing.assert_array_equal(videos["v"].segments, [[0, 0.5, 2], [64, 3, 4]])
    assert handled == {LATE: 1}
    content["v"]["actions"] = [[0, 0.5, 2.0]]
    assert "v: [0, 0.5, 2.0]: the class is not one of 1 … 65" in problems(
        "multithumos", write_json(tmp_path / "multithumos.json", content)
    )


def thumos(subset, *annotations, **others):
    return {"subset": subset, "duration": 60.0, "fps": 30.0, "annotations": list(annotations), **others}


def instance(label, start, end):
    return {"label": label, "segment": [start, end], "segment(frames)": [30, 60], "label_id": 3}


DIVE = instance("CliffDiving", 1.0, 4.5)


@pytest.mark.parametrize("train, test", [("Validation", "Test"), ("training", "validation"), ("training", "testing")])
def test_thumos14_of_either_project(tmp_path, train, test):
    content = {
        "video_validation_0000051": thumos(train, DIVE, DIVE, instance("Diving", 50.0, 61.0)),
        "video_test_0000004": thumos(test, instance("Ambiguous", 3.0, 5.0), instance("Shotput", 2, 2), fps=25),
    }
    videos, handled = read("thumos14", write_json(tmp_path / "thumos14.json", {"version": "x", "database": content}))
    first, last = videos.values()
    assert (first.split, last.split, first.fps, last.fps) == ("train", "test", 30.0, 25.0)
    np.testing.assert_array_equal(first.segments, [[4, 1, 4.5], [7, 50, 60]])
    np.testing.assert_array_equal(first.written, [[4, 1, 4.5], [4, 1, 4.5], [7, 50, 61]])
    np.testing.assert_array_equal(last.ambiguous, [[3, 5]])
    assert last.segments.shape == (0, 3)
    assert handled == {DUPLICATE: 1, CLIPPED: 1, AMBIGUOUS: 1, EMPTY: 1, NO_ACTIONS: 1}


def test_opentad_has_the_number_of_frames_instead_of_fps(tmp_path):
    content = {name: thumos(subset, DIVE, frame=1500) for name, subset in (("a", "training"), ("b", "validation"))}
    for entry in content.values():
        del entry["fps"]
    videos, _ = read("thumos14", write_json(tmp_path / "thumos14.json", {"database": content}))
    assert videos["a"].fps == 25.0


def test_thumos14_trimmed_training_clips_are_ignored(tmp_path):
    content = {"a": thumos("training", DIVE), "b": thumos("validation", DIVE), "c": thumos("test", DIVE)}
    videos, handled = read("thumos14", write_json(tmp_path / "thumos14.json", {"database": content}))
    assert {name: video.split for name, video in videos.items()} == {"b": "train", "c": "test"}
    assert handled == {TRIMMED: 1}


def test_thumos14_of_one_split_is_known_by_its_names(tmp_path):
    content = {"video_test_0000004": thumos("validation", DIVE)}
    videos, _ = read("thumos14", write_json(tmp_path / "thumos14.json", {"database": content}))
    assert videos["video_test_0000004"].split == "test"


@pytest.mark.parametrize(
    "content, message",
    [
        ({"v": []}, 'expected {"database": {video: …}}'),
        ({"database": {"v": 3}}, "v: 3 is not an object"),
        ({"database": {"v": {"subset": "test"}}}, "v: the field duration, annotations is missing"),
        ({"database": {"v": thumos("nowhere", DIVE)}}, '"nowhere" (v); expected validation and test'),
        (
            {"database": {"v": thumos("test", instance("Dive", 1, 2)), "w": thumos("validation")}},
            'BasketballDunk", "Billiards", "CleanAn…; did you mean \'Diving\'?',
        ),
        (
            {"database": {"v": thumos("test", ["Diving", 1, 2]), "w": thumos("validation")}},
            'v: ["Diving", 1, 2], expected',
        ),
        ({"database": {"v": thumos("test", instance("Diving", 1, None)), "w": thumos("validation")}}, "must be finite"),
        ({"database": {"v": thumos("test", instance("Ambiguous", -1, 2)), "w": thumos("validation")}}, "starts before"),
        ({"database": {"v": thumos("test", duration=0), "w": thumos("validation")}}, "duration (1):\n  v: 0"),
        ({"database": {"v": thumos("test", fps="x"), "w": thumos("validation")}}, 'fps (1):\n  v: "x"'),
        ({"database": {"v": {**thumos("test"), "annotations": {}}, "w": thumos("validation")}}, "expected a list"),
        (
            {"database": {"../v": thumos("test"), "w": thumos("validation")}},
            'thumos14.json: video "../v", expected the name of a file',
        ),
    ],
)
def test_bad_thumos14(tmp_path, content, message):
    path = tmp_path / "thumos14.json"
    path.write_text(json.dumps(content, default=lambda number: None))
    assert message in problems("thumos14", path)


def test_pku_mmd(tmp_path):
    labels = {"0002-L": "1,30,90,2\n51,120,300,1\n\n1,30,90,2\n", "0003-M": "7,5,5,2\r\n", "0009-R": "8,1,2,1\n"}
    tree = PkuMmd(tmp_path, labels, ["0002-L"], ["0003-M"])
    for paths in (tree.paths(), tree.paths()[::-1]):
        videos, handled = read("pku_mmd", *paths)
        assert {name: video.split for name, video in videos.items()} == {"0002-L": "train", "0003-M": "test"}
        np.testing.assert_array_equal(videos["0002-L"].segments, [[0, 30, 90], [50, 120, 300]])
        assert np.isinf(videos["0002-L"].duration)
        assert handled == {DUPLICATE: 1, EMPTY: 1, NO_ACTIONS: 1, UNLISTED: 1}


@pytest.mark.parametrize(
    "lines, message",
    [
        ("0,1,2,1", 'a: line 1 of a.txt, "0,1,2,1": the class is not one of 1 … 51'),
        ("1,2,3,2\n52,1,2,1", "a: line 2 of a.txt"),
        ("1,2", 'a: line 1 of a.txt, "1,2", expected label,start,end,confidence'),
        ("walk,1,2,1", 'a: line 1 of a.txt, "walk,1,2,1": the class is not one of ["action_01", '),
        ("1.5,1,2,1", "the class is neither an integer nor a name"),
        ("1,1_0,20,1", "start and end must be finite numbers"),
        ("1,nan,20,1", "start and end must be finite numbers"),
        ("1,-4,20,1", "it starts before the video"),
    ],
)
def test_bad_pku_mmd_labels(tmp_path, lines, message):
    assert message in problems("pku_mmd", *PkuMmd(tmp_path, {"a": lines, "b": ""}, ["a"], ["b"]).paths())


def test_bad_pku_mmd_splits(tmp_path):
    tree = PkuMmd(tmp_path, {"a": "", "b": ""}, ["a", "b"], ["b", "../c", "d"])
    text = problems("pku_mmd", *tree.paths())
    assert (
        "b is listed for training and for test" in text and 'cross-subject.txt: video "../c", expected the name' in text
    )
    assert "missing label file (1):" in text and "d.txt" in text
    tree.split.write_text("Training videos:\na\n")
    assert "2 lines, expected 4: a heading, the training videos" in problems("pku_mmd", *tree.paths())
    assert "expected --annotations=FOLDER_OF_LABEL_FILES and" in problems("pku_mmd", tree.split)
    assert "expected one --annotations, got 2" in problems("tsu", tree.split, tree.split)


@pytest.mark.parametrize(
    "lines, names",
    [
        ("walk\nsit down", ("walk", "sit down")),
        ("c000 Holding some clothes\nc001 Putting clothes", ("Holding some clothes", "Putting clothes")),
        ("1 BaseballPitch\n2 BasketballBlock", ("BaseballPitch", "BasketballBlock")),
        ("3 steps\n1 jump", ("3 steps", "1 jump")),  # not in order, so the numbers are part of the names
    ],
)
def test_class_lists_with_numbers(tmp_path, lines, names):
    (tmp_path / "classes.txt").write_text(lines)
    assert read_classes(tmp_path / "classes.txt", Findings()) == names


CHINESE = ("切菜", "洗碗", "拿起手机")


@pytest.mark.parametrize(
    "codec, encoding",
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("gbk", "GB18030"),
        ("gb18030", "GB18030"),
    ],
)
def test_class_lists_in_other_encodings_are_read_and_said(tmp_path, codec, encoding):
    path, findings = tmp_path / "classes.txt", Findings()
    path.write_bytes("\r\n".join(CHINESE).encode(codec))
    assert read_classes(path, findings) == CHINESE
    kind = GUESSED if encoding == "GB18030" else ENCODED
    expected = {kind: [f'{path}: {encoding}, e.g. "切菜"']} if encoding else {}
    assert findings.handled == expected and not findings.problems


@pytest.mark.parametrize(
    "text, codec",
    [
        ("Größe\nöffnen", "latin-1"),
        ("naïve\nrôle", "latin-1"),
        ("“cut”", "cp1252"),
        ("идти\nесть", "cp1251"),
        ("手を洗う", "shift-jis"),
        ("手を洗う", "euc-jp"),
        ("開門", "big5"),
        ("切菜", "utf-32"),
        ("切菜", "utf-16-le"),  # nothing shows the order of its bytes
    ],
)
def test_class_lists_in_unknown_encodings_are_refused(tmp_path, text, codec):
    path, findings = tmp_path / "classes.txt", Findings()
    path.write_bytes(text.encode(codec))
    assert read_classes(path, findings) == ()
    (problem,) = findings.problems["unreadable file"]
    assert problem.startswith(f"{path}: not readable as text (it ") and problem.endswith("save it as UTF-8)")


@pytest.mark.parametrize("text, codec", [("걷기\n", "euc-kr"), ("окно\nмама\n", "koi8-r")])
def test_a_guessed_encoding_is_said_with_the_remedy(tmp_path, text, codec):
    """Short lists in other encodings pass for GB18030."""
    findings = Findings()
    (tmp_path / "classes.txt").write_bytes(text.encode(codec))
    assert read_classes(tmp_path / "classes.txt", findings) != tuple(text.split())
    assert GUESSED.endswith("a guess; if the example is wrong, convert the file to UTF-8")
    (case,) = findings.handled[GUESSED]
    assert case.startswith(f"{tmp_path / 'classes.txt'}: GB18030, e.g. ")


def test_reading_stops_when_nearly_everything_is_wrong(monkeypatch):
    monkeypatch.setattr(checks, "MOST_PROBLEMS", 30)
    findings = Findings("mine.json")
    with pytest.raises(DataError, match="(?s)30 problems in mine.json; reading stopped there.*… and 10 more"):
        for i in range(31):
            findings.problem("number", f"entry {i}: {i * i!r}")


def test_every_text_file_is_read_in_its_encoding(tmp_path):
    row = {"id": "家", "length": "9", "actions": "c001 1 2"}
    path = write_charades(tmp_path / "train.csv", [row])
    path.write_bytes(path.read_text(encoding="utf-8").encode("gbk"))
    assert list(read("charades", path)[0]) == ["家"]
    tree = PkuMmd(tmp_path, {"a": "1,1,2,1\n", "b": ""}, ["a"], ["b"])
    for text_file in (tree.split, tree.labels / "a.txt"):
        text_file.write_bytes(text_file.read_text().encode("utf-16"))
    videos, handled = read("pku_mmd", *tree.paths())
    assert len(videos["a"].segments) == 1 and handled[ENCODED] == 2


@pytest.mark.parametrize("ascii_only", [True, False])
def test_names_are_compared_in_one_unicode_form(tmp_path, ascii_only):
    names = {form: unicodedata.normalize(form, "Zoë schält Äpfel") for form in ("NFC", "NFD")}
    content = {names["NFD"]: {"subset": "training", "duration": 9.0, "actions": [[names["NFD"], 1, 2]]}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, ensure_ascii=ascii_only))
    findings = Findings()
    (video,) = describe("tsu").read([path], [names["NFC"]], findings)
    assert video.id == names["NFC"] and video.segments.tolist() == [[0, 1, 2]] and not findings.problems
    file = tmp_path / f"{names['NFD']}.npy"
    file.write_bytes(b"")
    folder = FeatureFolder(("rgb",), tmp_path)
    assert folder.files() == {names["NFC"]: file} and folder.find(names["NFC"]) == [file]
    assert video_name(f"/films/{names['NFD']}.mp4") == name_of_video(Path(f"{names['NFD']}.mp4")) == names["NFC"]


def test_escapes_of_json_keep_their_meaning(tmp_path):
    text = r'{"v\\u00e9": ["\"\u0065\u0301\\\u00e9\ud83d\ude00\u0022\u005c\u000a", 1]}'
    assert parse_json(text, tmp_path, dict, "", Findings()) == json.loads(text.replace(r"\u0065\u0301", "é"))


def test_an_unknown_class_is_named_once(tmp_path):
    actions = [["cut", 1, 2], ["cutt", 1, 2], ["wash", 3, 4], ["cutt", 3, 4], [7, 1, 2], [7, 2, 3]]
    path = write_json(tmp_path / "a.json", {"v": {"subset": "training", "duration": 9, "actions": actions}})
    findings = Findings()
    describe("tsu").read([path], ("cut", "stir"), findings)
    assert findings.problems == {
        "class": [
            'v: ["cutt", 1, 2]: the class is not one of ["cut", "stir"]; did you mean \'cut\'? '
            "(2 actions have this class)",
            'v: ["wash", 3, 4]: the class is not one of ["cut", "stir"]',
            "v: [7, 1, 2]: the class is not one of 0 … 1 (2 actions have this class)",
        ]
    }


def test_class_names_instead_of_numbers(tmp_path):
    names, findings = [f"class {i}" for i in range(51)], Findings()
    tree = PkuMmd(tmp_path, {"a": "class 7,1,2,1\n8,3,4,1\n", "b": ""}, ["a"], ["b"])
    videos = describe("pku_mmd").read(tree.paths(), names, findings)
    assert videos[0].segments.tolist() == [[7, 1, 2], [7, 3, 4]]
    path = write_charades(tmp_path / "train.csv", [{"id": "A", "length": "9", "actions": "class 2 1 2;c002 3 4"}])
    assert describe("charades").read([path], names, findings)[0].segments[:, 0].tolist() == [2, 2]
    assert not findings.problems


def test_label_files_of_other_videos_are_one_problem(tmp_path):
    tree = PkuMmd(tmp_path, {"0002-L": ""}, ["2-L", "3-L"], ["4-L"])
    problem = f"none of the 3 names in {tree.split}, such as '2-L', is in {tree.labels}, which has '0002-L'"
    assert f"missing label file (1):\n  {problem}" in problems("pku_mmd", *tree.paths())


def timed(factor=1.0, duration=1.0, count=6, **others):
    """Annotate videos with an action every five seconds, in a unit of `factor` times a second."""
    videos = []
    for i in range(count):
        seconds = 60.0 + 13 * i
        scale = others.get(f"v{i}", factor)
        rows = [(0.0, 5.0 * k * scale, (5.0 * k + 4) * scale) for k in range(int(seconds // 5))]
        videos.append(annotate(f"v{i}", "train", seconds * duration, rows, Findings()))
    return videos


def unit_findings(videos):
    findings = Findings()
    check_units(videos, findings)
    return findings.problems.get("units", []), findings.handled.get(UNITS_DIFFER, [])


def test_a_sentence_of_many_cases_is_said_once():
    cases = [f"rgb: /x/{i}.npy: [5], expected [T, D]" for i in range(30)]
    cases.insert(2, "v1: 3, expected [T, D]")
    others = [f"v{i}: {i}, expected a number above 0" for i in range(30)]
    assert join_repeated(cases) == {
        "rgb: /x/0.npy, rgb: /x/1.npy, rgb: /x/2.npy, … (30 in all): [5], expected [T, D]": 30,
        "v1: 3, expected [T, D]": 1,
    }
    assert join_repeated(others) == dict.fromkeys(others, 1)
    few = ["a: it is empty", "b: it is empty", "c: it is empty"]
    assert join_repeated(few) == dict.fromkeys(few, 1)
    twice = [f"v{i // 2}: the rate is unknown" for i in range(8)]  # once for each modality
    assert join_repeated(twice) == {"v0, v1, v2, … (4 in all): the rate is unknown": 8}
    assert join_repeated(twice[:6]) == {"v0, v1, v2: the rate is unknown": 6}
    assert join_repeated(twice[:2]) == {"v0: the rate is unknown": 2}
    quoted = [f'v: {{"x{i}": 1}}, expected a list' for i in range(9)]
    assert join_repeated(quoted) == dict.fromkeys(quoted, 1)
    findings = Findings("x")
    findings.problems = {"shape": cases, "value": others}
    with pytest.raises(ValueError) as error:
        findings.raise_problems()
    lines = str(error.value).splitlines()
    assert lines[0] == "61 problems in x; nothing was written" and lines[1] == "shape (31):"
    assert lines[4] == "value (30):" and lines[-1] == "  … and 10 more" and len(lines) == 26


def test_times_and_durations_in_one_unit_are_no_finding():
    for factor in (1.0, 25.0, 1000.0):
        assert unit_findings(timed(factor, factor)) == ([], [])
    assert unit_findings(timed(0.3)) == ([], [])  # nothing happens in most of each video


@pytest.mark.parametrize(
    "factor, duration, pair",
    [
        (24, 1, "seconds and frames at {24} per second"),
        (25, 1, "seconds and frames at {25} per second"),
        (30, 1, "seconds and frames at {30} per second"),
        (60, 1, "minutes and seconds"),
        (1000, 1, "seconds and milliseconds"),
        (1000, 25, "frames at {25} per second and milliseconds"),
        (1e7, 1, "seconds and ticks of 100 nanoseconds"),
    ],
)
def test_times_in_another_unit_than_durations(factor, duration, pair):
    (problem,), _ = unit_findings(timed(factor, duration))
    assert re.match(r"10\d of 109 actions of train start at or after the end of their video; the ratio is", problem)
    assert names_units(problem, pair) and problem.endswith("give times and durations in one unit")
    problems, (note,) = unit_findings(timed(duration, factor))
    assert not problems and note.startswith("in 6 videos, the last action ends within the first ")
    assert names_units(note, pair)


def names_units(text, units):
    """Whether a text names units, with the frame rate in braces or a range that holds it."""
    before, rate, after = re.fullmatch(r"([^{]*)\{?(\d*)\}?(.*)", units).groups()
    found = re.search(rf"{before}(\d+)(?: to (\d+))?{after}" if rate else before, text)
    return found and (not rate or int(found[1]) <= int(rate) <= int(found[2] or found[1]))


@pytest.mark.parametrize("fps", [12, 15, 24, 25, 30, 50, 60])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.99])
def test_actions_that_end_early_do_not_suggest_another_frame_rate(fps, share):
    """A ratio of 15 may be that of 15 frames per second, or of 30 if all actions end in the first half."""
    for ratio, bounds in ((share * fps, OR_MORE), (fps / share, OR_LESS)):
        assert names_units(as_between(ratio, *bounds), f"seconds and frames at {{{fps}}} per second")


def test_an_exact_ratio_names_all_units_that_it_fits():
    assert as_between(25.0) == as_between(1 / 25) == ", as between seconds and frames at 25 per second"
    assert as_between(60.0) == ", as between seconds and frames at 60 per second or minutes and seconds"
    assert as_between(1.25) == ", as between 30 and 24 frames per second"
    assert as_between(0.5) == ", as between every second frame and every frame"
    assert as_between(1.37) == as_between(1.0) == ""


def test_one_video_in_another_unit():
    (problem,), _ = unit_findings(timed(v3=25.0))
    assert problem.startswith("v3: 18 of 19 actions start at or after its end; the ratio is 23.7 or more, as between")
    assert names_units(problem, "seconds and frames at {25} per second")
    (problem,), _ = unit_findings(timed(v3=8.0))
    assert problem.startswith("v3: 16 of 19 actions start at or after its end; the ratio is 7.6 or more")
    _, (note,) = unit_findings([*timed(), annotate("late", "train", 9.0, [(0, 10, 11), (0, 12, 13)], Findings())])
    assert note == "late: 2 of 2 actions start at or after its end, 9"


@pytest.mark.parametrize("backward, refused", [(3, False), (4, True), (6, True)])
def test_ends_before_starts_in_most_actions_are_a_problem(backward, refused):
    """As in a file of (class, end, start) or (class, start, length)."""
    actions = [[0, 9.0, 3.0 + i] if i < backward else [0, 3.0 + i, 9.0] for i in range(6)]
    findings = Findings()
    read_entries({"v": {"subset": "training", "duration": 10, "actions": actions}}, ["run"], findings, where="a.json")
    case = f"a.json: {backward} of 6 actions end before they start; give the start and the end of each, not its length"
    assert findings.problems["action"] == [case] * refused
    assert len(findings.handled[EMPTY]) == backward


@pytest.mark.parametrize("fps, given, refused", [(30, None, 25), (30, 30.0, 0), (29.97, 30.0, 0), (30, 24.0, 24)])
def test_frames_are_converted_with_the_rate_of_the_annotation(fps, given, refused, tmp_path):
    """All times in frames have one rate, that of --fps; the frame rate of a video is compared with it."""
    entry = {"subset": "training", "duration": 300, "fps": fps, "actions": [["run", 30, 60]]}
    options, findings = custom.ReadOptions("frames", given), Findings()
    custom.fill_in({"v": entry}, {}, options, findings)
    case = f"v: its times are frames, converted with {refused} per second, but it has 30; give --fps=30, or times in"
    assert [line[: len(case)] for line in findings.problems["fps"]] == [case] * bool(refused)


# Properties: valid values are read back; broken values are named.

times = st.floats(0, 90).map(lambda t: round(t, 3))
ids = st.text("abcXYZ019-_ é.", min_size=1, max_size=8).filter(lambda name: name.strip(". ") == name)
subsets = st.sampled_from(["training", "testing"])


@st.composite
def valid_videos(draw, num_classes=5):
    names = draw(st.lists(ids, min_size=1, max_size=5, unique=True))
    videos = {}
    for name in names:
        spans = draw(st.lists(st.tuples(times, times), max_size=6))
        rows = [[draw(st.integers(0, num_classes - 1)), *sorted(span)] for span in spans]
        videos[name] = {"subset": draw(subsets), "duration": draw(st.floats(0.5, 80)), "actions": rows}
    return videos


def check_cleaned(video, rows, duration):
    """Asserts the rules of cleaning, independently of its code."""
    np.testing.assert_array_equal(video.written, np.array(rows, float).reshape(-1, 3))
    expected = dict.fromkeys((c, s, min(e, duration)) for c, s, e in rows if s < min(e, duration))
    assert set(map(tuple, video.segments)) == set(expected)
    assert len(video.segments) <= len(rows)
    exact = {(c, s, e) for c, s, e in rows}
    assert len(video.segments) == sum(s < min(e, duration) for _, s, e in exact)


@given(valid_videos())
@settings(max_examples=40, deadline=None)
def test_valid_files_of_every_format_round_trip(tmp_path_factory, videos):
    root = tmp_path_factory.mktemp("valid")
    tsu, _ = read("tsu", write_json(root / "tsu.json", videos))
    for name, entry in videos.items():
        check_cleaned(tsu[name], entry["actions"], entry["duration"])
        assert tsu[name].split == {"training": "train", "testing": "test"}[entry["subset"]]

    paths = []
    for subset, split in (("training", "train"), ("testing", "test")):
        rows = [
            {
                "id": n,
                "length": repr(v["duration"]),
                "actions": ";".join(f"c{c:03d} {s!r} {e!r}" for c, s, e in v["actions"]),
            }
            for n, v in videos.items()
            if v["subset"] == subset
        ]
        paths.append(write_charades(root / f"Charades_v1_{split}.csv", rows))
    charades, _ = read("charades", *paths)
    assert charades.keys() == videos.keys()
    for name, entry in videos.items():
        check_cleaned(charades[name], entry["actions"], entry["duration"])

    labels = describe("thumos14").names
    database = {
        n: {**v, "annotations": [{"label": labels[c], "segment": [s, e]} for c, s, e in v["actions"]]}
        for n, v in videos.items()
    }
    if len({v["subset"] for v in videos.values()}) == 2:
        found, _ = read("thumos14", write_json(root / "thumos14.json", {"database": database}))
        for name, entry in videos.items():
            check_cleaned(found[name], entry["actions"], entry["duration"])


WRONG_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.just({}),
    st.just(float("nan")),
)


def break_common(entry, field, wrong):
    if field in ("class", "start", "end"):
        row = [1, 0.25, 0.5]
        row[("class", "start", "end").index(field)] = wrong
        entry["actions"].append(row)
    else:
        entry[field] = 7 if field == "actions" and isinstance(wrong, list) else wrong  # [] would be valid


def break_thumos14(entry, field, wrong):
    action = {"label": "Diving", "segment": [0.25, 0.5]}
    if field in ("start", "end"):
        action["segment"][("start", "end").index(field)] = wrong
    elif field in action:
        action[field] = 7 if isinstance(wrong, list) else wrong  # [0, 1] would be valid
    else:
        entry[field] = 7 if field == "annotations" and isinstance(wrong, list) else wrong
    if isinstance(entry["annotations"], list):
        entry["annotations"].append(action)


FIELDS = {  # field to break → a word of the message
    "tsu": {
        "subset": "subset",
        "duration": "duration",
        "actions": "actions",
        "class": "class",
        "start": "start",
        "end": "end",
    },
    "thumos14": {
        "duration": "duration",
        "fps": "fps",
        "annotations": "annotations",
        "label": "label",
        "segment": "segment",
        "start": "start",
        "end": "end",
    },
}


@given(valid_videos(), st.sampled_from([(d, f) for d in FIELDS for f in FIELDS[d]]), WRONG_VALUES, st.data())
@settings(max_examples=150, deadline=None)
def test_one_broken_value_is_an_error_that_names_the_video_and_the_field(tmp_path_factory, videos, where, wrong, data):
    """The broken value replaces a subset, a duration, a list of actions, a class, a label or a time."""
    dataset, field = where
    name = data.draw(st.sampled_from(sorted(videos)))
    path = tmp_path_factory.mktemp("broken") / "annotations.json"
    content = videos
    if dataset == "tsu":
        break_common(videos[name], field, wrong)
    else:
        for entry in videos.values():
            entry |= {"subset": "test", "annotations": [], "fps": 30}
        videos["other"] = {"subset": "validation", "duration": 1.0, "annotations": []}
        break_thumos14(videos[name], field, wrong)
        content = {"database": videos}
    text = problems(dataset, write_json(path, content))
    lines = text.splitlines()
    (line,) = [i for i, line in enumerate(lines) if line.startswith(f"  {name}: ")]
    kind = next(line for line in reversed(lines[:line]) if not line.startswith("  "))
    assert FIELDS[dataset][field] in kind + lines[line]


@given(valid_videos(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_missing_field_or_entry_is_an_error_that_names_it(tmp_path_factory, videos, data):
    name = data.draw(st.sampled_from(sorted(videos)))
    field = data.draw(st.sampled_from([*sorted(videos[name]), "entry"]))
    if field == "entry":
        videos[name] = data.draw(WRONG_VALUES.filter(lambda value: not isinstance(value, dict)))
    else:
        del videos[name][field]
    text = problems("tsu", write_json(tmp_path_factory.mktemp("missing") / "annotations.json", videos))
    reason = "is not an object" if field == "entry" else f"the field {field} is missing"
    assert any(line.startswith(f"  {name}: ") and line.endswith(reason) for line in text.splitlines())


@given(st.sampled_from(["length", "code", "start", "end"]), st.text("c0129 .;x-", max_size=8), st.floats(1, 9))
@settings(max_examples=150, deadline=None)
def test_charades_cells_are_read_or_named(tmp_path_factory, field, text, length):
    cells = {"length": repr(length), "code": "c003", "start": "0.5", "end": "0.75", field: text}
    row = {"id": "AB12C", "length": cells["length"], "actions": f"{cells['code']} {cells['start']} {cells['end']}"}
    path = write_charades(tmp_path_factory.mktemp("cells") / "train.csv", [row])
    try:
        videos, handled = read("charades", path)
    except DataError as error:
        assert "\n  AB12C: " in str(error)
    else:
        rows = len(row["actions"].split(";"))
        assert len(videos["AB12C"].segments) + sum(handled.get(k, 0) for k in (DUPLICATE, EMPTY, LATE)) == rows


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    st.sampled_from(["tsu", "charades", "thumos14", "pku_mmd"]),
)
@example(b"\x00\n\x00\n\x00\n\x01", "pku_mmd")  # four lines, like a split file
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_an_error_that_names_the_file(tmp_path_factory, content, dataset):
    root = tmp_path_factory.mktemp("bytes")
    path = root / {"charades": "train.csv", "pku_mmd": "cross-subject.txt"}.get(dataset, "annotations.json")
    path.write_bytes(content)
    assert path.name in problems(dataset, *([root] if dataset == "pku_mmd" else []), path)


@given(st.lists(st.text("0123456789,.- nax", max_size=12), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_label_lines_of_pku_mmd_are_read_or_named(tmp_path_factory, lines):
    root = tmp_path_factory.mktemp("pku")
    tree = PkuMmd(root, {"a": "\n".join(lines), "b": ""}, ["a"], ["b"])
    written = [line for line in lines if line.strip()]
    try:
        videos, handled = read("pku_mmd", *tree.paths())
    except DataError as error:
        assert "a: line " in str(error)
    else:
        kept = len(videos["a"].segments)
        assert kept + handled.get(DUPLICATE, 0) + handled.get(EMPTY, 0) == len(written)
        assert all(0 <= row[0] <= 50 and 0 <= row[1] < row[2] for row in videos["a"].segments)


def test_every_data_set_with_files_has_a_reader():
    for name in ("custom", "tsu", "charades", "multithumos", "thumos14", "pku_mmd"):
        description = describe(name)
        assert description.read and description.head in ("dense", "sparse") and "kd-jax build" in description.needs
        assert len(set(description.names)) == len(description.names)
    assert [len(describe(n).names) for n in ("tsu", "charades", "multithumos", "thumos14", "pku_mmd")] == [
        51,
        157,
        65,
        20,
        51,
    ]
    assert base.SPLITS == ("train", "test")


def test_data_sets_by_name():
    assert len(describe("tsu").names) == 51 and describe("tsu").unit == "frames"
    assert describe("synthetic").names == synthetic.CLASSES
    with pytest.raises(ValueError, match="'tvseries' is unknown; known data sets: custom, tsu, charades, "):
        describe("tvseries")
    assert set(DATASETS) == {"custom", "tsu", "charades", "multithumos", "thumos14", "pku_mmd", "utd_mhad", "synthetic"}
