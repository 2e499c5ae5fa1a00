"""Annotation files of tools: samples written after each tool's documentation, round trips, and what is refused."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.data.annotations import common_layout, custom, tools
from kd_jax.data.annotations.custom import Media, ReadOptions
from kd_jax.data.annotations.tools import label_studio, via
from kd_jax.data.annotations.tools.media import video_name
from kd_jax.data.checks import (
    DURATION_DIFFERS,
    NO_SPAN,
    NOT_SUBMITTED,
    TIERS,
    TIMES_DIFFER,
    TRIMMED,
    DataError,
    Findings,
)

SAMPLES = Path(__file__).parent / "data/annotations"
ACTIONS = {"kitchen": [["cut", 1.2, 4.8], ["wash", 4.0, 9.6]], "garden": [], "hall": [["cut", 0.0, 2.4]]}
SECONDS = {"kitchen": 20.0, "garden": 12.0, "hall": 8.0}
SUBSETS = {"kitchen": "training", "garden": "training", "hall": "testing"}
MEDIA = {video: Media(seconds, 25.0, Path("films") / f"{video}.mp4") for video, seconds in SECONDS.items()}
FILES = {  # format: the files of a sample; each annotates the same three videos
    "the common layout": ["common.json"],
    "CSV": ["table.csv"],
    "ActivityNet": ["activitynet.json"],
    "VIA 3": ["via.csv"],
    "VIA 3, segments": ["via_segments.csv"],
    "ELAN": [f"elan_{video}.eaf" for video in ACTIONS],
    "Label Studio": ["label_studio.json"],
    "Label Studio, seconds": ["label_studio_seconds.json"],
    "X-AnyLabeling": [f"x_anylabeling_{video}.json" for video in ACTIONS],
}


def read(paths, *, names=(), media=MEDIA, **options):
    """Read annotation files; return the entries in the common layout, the lines for the report and the findings."""
    findings, options = Findings(), ReadOptions(**options)
    entries, formats = custom.read_files(list(paths), names, options, findings)
    entries, facts = custom.fill_in(entries, media, options, findings)
    names = names or custom.class_names(entries, findings)
    common_layout.read_entries(entries, names, findings, where="the sample")
    findings.raise_problems()
    return entries, [*formats.values(), *facts], findings.handled


def problems(path, text=None, **options):
    """Return the problems of a file, one a line, and check that none but these are reported."""
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        read([path], **options)
    return str(caught.value)


def plain(entries):
    """Return the entries with the fields that every format states or gets."""
    return {video: {name: e[name] for name in ("subset", "duration", "actions")} for video, e in entries.items()}


@pytest.fixture
def test_list(tmp_path):
    path = tmp_path / "test.txt"
    path.write_text("hall.mp4\n\n")
    return str(path)


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_recognised_and_states_the_same_actions(name, test_list):
    own = name in ("the common layout", "CSV", "ActivityNet")
    entries, facts, handled = read([SAMPLES / file for file in FILES[name]], test=None if own else test_list)
    expected = {v: {"subset": SUBSETS[v], "duration": SECONDS[v], "actions": ACTIONS[v]} for v in ACTIONS}
    assert plain(entries) == expected
    assert facts[: len(FILES[name])] == [name.partition(",")[0]] * len(FILES[name])
    assert [kind for kind in handled if not kind.startswith("kept")] == {
        "ActivityNet": [TRIMMED],
        "VIA 3": [NO_SPAN],
        "VIA 3, segments": [NO_SPAN],
        "Label Studio": [NO_SPAN, NOT_SUBMITTED],
    }.get(name, [])


@pytest.mark.parametrize("to", tools.WRITTEN)
@pytest.mark.parametrize("name", FILES)
def test_what_is_written_reads_as_what_was_read(name, to, test_list, tmp_path):
    entries, _, _ = read([SAMPLES / file for file in FILES[name]], test=test_list)
    entries = {video: entry | {"fps": 25.0} for video, entry in entries.items() if video in ACTIONS}
    tools.write_file(tmp_path / "first", to, entries)
    again, _, _ = read([tmp_path / "first"], media={})
    assert plain(again) == plain(entries)
    tools.write_file(tmp_path / "second", to, {v: e | {"fps": 25.0} for v, e in again.items()})
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


words = st.text("abc019 _-,;\"'<>&é#=", min_size=1, max_size=6).filter(lambda word: word.strip() == word)
file_names = st.text("abc019 _-é", min_size=1, max_size=6).filter(lambda word: word.strip() == word)
frames = st.integers(0, 10**5)


@st.composite
def whole_frames(draw):
    """Draw the entries of some videos with one frame rate each and actions of whole frames."""
    entries = {}
    for video in draw(st.lists(file_names, min_size=2, max_size=4, unique=True)):
        fps = draw(st.sampled_from([10, 23.976, 25, 29.97, 30, 59.94]))
        spans = [draw(st.tuples(frames, frames.map(lambda n: n + 10**5 + 1))) for _ in range(draw(st.integers(0, 3)))]
        actions = [[draw(words), first / fps, end / fps] for first, end in spans]
        subset = draw(st.sampled_from(["training", "testing"]))
        entries[video] = {"subset": subset, "duration": draw(st.floats(0.5, 1e4)), "fps": fps, "actions": actions}
    entries[video]["actions"] += [["cut", 0.0, 1.0]]
    return entries


@given(whole_frames(), st.sampled_from(tools.WRITTEN))
@settings(max_examples=60, deadline=None)
def test_round_trip_of_any_names_and_whole_frames(tmp_path_factory, entries, to):
    path = tmp_path_factory.mktemp("trip") / "file"
    tools.write_file(path, to, entries)
    again, _, _ = read([path], media={})
    assert again.keys() == entries.keys()
    for video, entry in entries.items():
        assert (again[video]["subset"], again[video]["duration"]) == (entry["subset"], entry["duration"])
        assert len(again[video]["actions"]) == len(entry["actions"])
        for found, action in zip(again[video]["actions"], entry["actions"], strict=True):
            assert found == pytest.approx(action, abs=0.5 / entry["fps"] if action[0] == "cut" else 1e-9)


def test_label_studio_rounds_to_frames_and_keeps_one_at_least():
    regions = label_studio.make_regions([("cut", 0.013, 1.019), ("wave", 2.0, 2.001)], 10.0)
    assert [region["value"]["ranges"] for region in regions] == [[{"start": 1, "end": 10}], [{"start": 21, "end": 21}]]


def test_the_labelling_config_names_every_class():
    config = ElementTree.fromstring(label_studio.labelling_config(["cut", 'a "b" <c> & d']))
    assert [label.get("value") for label in config.iter("Label")] == ["cut", 'a "b" <c> & d']
    assert config.find("Video").get("frameRate") == "$fps" and config.find("Video").get("value") == "$video"


@pytest.mark.parametrize(
    "text, name",
    [
        ("kitchen.mp4", "kitchen"),
        ("kitchen.1", "kitchen.1"),
        (r"C:\films\my kitchen.MOV", "my kitchen"),
        ("file:///C:/films/my%20kitchen.mp4", "my kitchen"),
        ("/data/upload/3/3d3ad63e-kitchen.mp4", "kitchen"),
        ("3d3ad63e-kitchen.mp4", "3d3ad63e-kitchen"),
        ("/data/local-files/?d=films/kitchen.mp4", "kitchen"),
        ("s3://bucket/films/kitchen.mp4", "kitchen"),
        ("https://example.org/kitchen.mp4?a=b/c.mp4#t=1", "kitchen"),
        ("http://[example.org/kitchen.mp4", "kitchen"),
    ],
)
def test_names_of_videos(text, name):
    assert video_name(text) == name


# Options


def test_elan_tiers(test_list):
    paths = [SAMPLES / file for file in FILES["ELAN"]]
    entries, _, _ = read(paths, test=test_list, label_from="tier")
    assert entries["kitchen"]["actions"] == [["left hand", 1.2, 4.8], ["right hand", 4.0, 9.6]]
    entries, _ = custom.read_files(paths[:1], (), ReadOptions(label_from="right hand"), Findings())
    assert entries["kitchen"]["actions"] == [["wash", 4.0, 9.6]]
    text = problems(paths[0], label_from="feet")
    assert "there is no tier 'feet' (--label_from); its tiers are left hand, right hand" in text


def test_elan_annotations_that_refer_to_others(tmp_path):
    text = (SAMPLES / "elan_kitchen.eaf").read_text()
    tier = """<TIER TIER_ID="object" PARENT_REF="left hand"><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a3"
        ANNOTATION_REF="a1"><ANNOTATION_VALUE>bread</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION></TIER>"""
    path = tmp_path / "a.eaf"
    path.write_text(text.replace("<LINGUISTIC_TYPE", tier + "<LINGUISTIC_TYPE", 1))
    findings = Findings()
    assert tools.read_file(path, findings, "object")[1]["kitchen"]["actions"] == [["bread", 1.2, 4.8]]
    path.write_text(path.read_text().replace('ANNOTATION_REF="a1"', 'ANNOTATION_REF="a3"'))  # a circle
    assert "annotation a3 of tier object is not aligned" in problems(path, label_from="object")
    assert not findings.problems


def test_elan_tiers_that_depend_on_others_are_left_out_and_named(tmp_path, test_list):
    text = (SAMPLES / "elan_kitchen.eaf").read_text()
    tier = """<TIER TIER_ID="note" PARENT_REF="left hand"><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a3"
        ANNOTATION_REF="a1"><ANNOTATION_VALUE>blurred</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION></TIER>"""
    path = tmp_path / "a.eaf"
    path.write_text(text.replace("<LINGUISTIC_TYPE", tier + "<LINGUISTIC_TYPE", 1), encoding="utf-16")
    for label_from, labels in (("", ["cut", "wash"]), ("tier", ["left hand", "right hand"])):
        findings = Findings()
        _, entries = tools.read_file(path, findings, label_from)
        assert [action[0] for action in entries["kitchen"]["actions"]] == labels
        used = "actions are those of left hand, right hand; left out: note (--label_from chooses another tier)"
        assert findings.handled[TIERS] == [f"{path}: {used}"]
    findings = Findings()
    _, entries = tools.read_file(path, findings, "value")
    assert [action[0] for action in entries["kitchen"]["actions"]] == ["cut", "wash", "blurred"]
    assert TIERS not in findings.handled


def test_via_segments_with_two_attributes(tmp_path, test_list):
    text = (SAMPLES / "via.csv").read_text().replace('{""1"":""cut""}', '{""1"":""cut"",""2"":""slowly""}')
    path = tmp_path / "via.csv"
    assert "the segment has the attributes TEMPORAL-SEGMENTS, note; name the one with the class" in problems(path, text)
    entries, _, _ = read([path], test=test_list, label_from="TEMPORAL-SEGMENTS")
    assert entries["kitchen"]["actions"] == ACTIONS["kitchen"]


def test_via_nested_too_deeply_is_a_problem():
    text = (SAMPLES / "via.csv").read_text()
    for old in ('{""1"":""cut""}', '{"1":'):
        findings = Findings()
        via.read(text.replace(old, "[" * 100_000, 1), "via.csv", findings)
        assert "RecursionError" in str(findings.problems["annotation layout"])


def test_via_checkboxes_give_several_actions(tmp_path, test_list):
    text = (SAMPLES / "via.csv").read_text().replace('"type":4', '"type":2').replace('"":""2""}', '"":""cut,2""}')
    (tmp_path / "via.csv").write_text(text)
    entries, _, _ = read([tmp_path / "via.csv"], test=test_list)
    assert entries["kitchen"]["actions"] == [["cut", 1.2, 4.8], ["cut", 4.0, 9.6], ["wash", 4.0, 9.6]]


def test_frames_of_label_studio(tmp_path, test_list):
    tasks = json.loads((SAMPLES / "label_studio.json").read_text())
    for task in tasks:
        del task["data"]["fps"]
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(tasks))
    fast = {video: Media(m.seconds, 50.0, m.source) for video, m in MEDIA.items()}
    for options, fps, source in (
        ({"media": fast}, 50, "frames converted with 50 per second, from the videos: 2 videos"),
        ({"media": fast, "fps": 25.0}, 25, "frames converted with 25 per second, from --fps: 2 videos"),
    ):
        entries, facts, _ = read([path], test=test_list, **options)
        assert entries["kitchen"]["actions"][0] == ["cut", 30 / fps, 120 / fps] and source in facts
    text = problems(path, media={})
    assert "give --fps, the frameRate of Label Studio's Video tag (24 unless it is set), or --videos=DIR" in text
    text = problems(SAMPLES / "label_studio.json", fps=30.0)
    assert "kitchen: --fps=30, but its annotation has 25; leave --fps out" in text


def test_split_by_list_and_by_fraction(tmp_path, test_list):
    path = SAMPLES / "via.csv"
    (tmp_path / "list.txt").write_text("x1\nx2\n")
    text = problems(path, test=str(tmp_path / "list.txt"))
    assert "none of the 2 names in" in text and "such as 'x1', is in the annotations, which has" in text
    (tmp_path / "list.txt").write_text("halls\n")
    assert "halls is not an annotated video; did you mean hall?" in problems(path, test=str(tmp_path / "list.txt"))
    assert "which of the 3 videos are for testing; give --test=LIST" in problems(path)
    for fraction, count in ((0.0, 0), (0.3, 1), (0.7, 2), (1.0, 2)):
        drawn = [read([path], test_fraction=fraction, seed=seed)[0] for seed in (0, 0, 1, 2, 3)]
        tested = [{video for video, entry in entries.items() if entry["subset"] == "testing"} for entries in drawn]
        assert {len(videos) for videos in tested} == {count} and tested[0] == tested[1]
    assert len({frozenset(videos) for videos in tested}) > 1


def test_durations_are_compared(tmp_path, test_list):
    longer = MEDIA | {"kitchen": Media(22.0, 25.0, Path("films/kitchen.mp4"))}
    _, facts, handled = read([SAMPLES / "common.json"], media=longer)
    assert handled[DURATION_DIFFERS] == ["kitchen: 20 seconds, but 22 seconds in films/kitchen.mp4"]
    assert not any("durations" in fact for fact in facts)
    assert "durations from films: 3 videos" in read([SAMPLES / "via.csv"], test=test_list)[1]
    text = problems(SAMPLES / "via.csv", media={}, test=test_list)
    assert "kitchen: the annotation does not state it; add a column or field `duration`, or give --videos=DIR" in text


def test_actions_of_known_videos_need_no_subset():
    findings, media = Findings(), {"kitchen": MEDIA["kitchen"], "cellar": MEDIA["hall"]}
    for name in FILES:
        paths = [SAMPLES / file for file in FILES[name]]
        found = custom.read_actions(paths, ("wash", "cut"), media, findings)
        assert {video: rows.tolist() for video, rows in found.items()} == {"kitchen": [[1, 1.2, 4.8], [0, 4.0, 9.6]]}
    assert not findings.problems


def test_class_numbers_of_a_table_need_the_list(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("video,label,start,end,duration,subset\na,1,1,2,9,train\nb,0,1,2,9,test\n")
    entries, _, _ = read([path], names=("walk", "sit"))
    assert entries["a"]["actions"] == [[1, 1.0, 2.0]] and entries["b"]["actions"] == [[0, 1.0, 2.0]]
    assert "the class is not one of 0 … 0" in problems(path, names=("walk",))


def test_x_anylabeling_compares_milliseconds_with_frames(tmp_path, test_list):
    text = (SAMPLES / "x_anylabeling_kitchen.json").read_text().replace('"fps": 25.0', '"fps": 30.0')
    (tmp_path / "kitchen.json").write_text(text)
    findings = Findings()
    tools.read_file(tmp_path / "kitchen.json", findings)
    assert len(findings.handled[TIMES_DIFFER]) == 2


# Wrong turns

LAUGHS = '<!DOCTYPE a [<!ENTITY b "haha"><!ENTITY c "&b;&b;">]><ANNOTATION_DOCUMENT>&c;</ANNOTATION_DOCUMENT>'
TABLE = "video,label,start,end,duration,subset\n"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("[]", "[], expected an object with at least one video, or tasks"),
        ("kitchen cut 1 2\n", "no column video, label, start, end; its first line is"),
        ("video,label,start\na,b,1\n", "no column end; its first line is"),
        ("video,label,start,end,Event\n", "the columns 'label' and 'Event' are both for the label; rename one"),
        (TABLE + "a,cut,1:75,2:00,9,train\n", 'line 2: start "1:75", expected seconds, mm:ss.fff or hh:mm:ss.fff'),
        (TABLE + "a,cut,soon,2:00,9,train\n", 'line 2: start "soon", expected seconds'),
        (TABLE + "a,cut,1,,9,train\n", 'line 2: end "", expected seconds'),
        (TABLE + "a,,1,2,9,train\n", "line 2: the label is empty"),
        (TABLE + ",cut,1,2,9,train\n", "line 2: "),
        (TABLE + "a,cut,1,2,9,train\na,cut,1,2,8,train\n", 'line 3: duration "8", but 9.0 in an earlier row'),
        (TABLE + "a,cut,1,2,9,train\na,cut,1,2,9,test\n", 'line 3: subset "test", but "train" in an earlier row'),
        (TABLE + "a,cut,1,2,9,dev\nb,cut,1,2,9,test\n", 'a: "dev", expected training, validation or testing'),
        (TABLE + 'a,"cut,1,2\n', "line 2"),
        ("<html></html>", "its first element is html, expected ANNOTATION_DOCUMENT"),
        ("<ANNOTATION_DOCUMENT>", "not readable as ELAN XML (ParseError: no element found"),
        (LAUGHS, "it declares a document type, which .eaf files do not have"),
        ('{"results": {"a": []}}', "it holds predictions; the annotations of ActivityNet have a database"),
        ('{"version": "5.0", "shapes": [], "imagePath": "a.jpg"}', "it annotates one image and has no times"),
        ('{"project": {"vid_list": []}}', "it is a project of VIA 3; export it as CSV"),
        ('{"a": 1}', "are the keys of no format that is read"),
        ('{"database": {}}', "database {}, expected {video: …}"),
        ('{"database": {"a": {"annotations": [{"label": "b"}]}}}', 'a: {"label": "b"}, expected {"label": NAME'),
        ('[{"id": 1, "video": "a.mp4", "actions": []}]', "has no data; export as JSON, not JSON-MIN"),
        ('[{"data": {"video": "a.mp4"}, "predictions": []}]', "file: no annotated video"),
        ('{"a": {"unit": "frames", "actions": [1], "duration": 1, "subset": "test"}}', "a: 1, expected [class, start,"),
        ('[{"data": {"text": "a"}}]', 'data {"text": "a"} does not name one video'),
        ('[{"data": {"video": "a.mp4"}, "annotations": [{"result": []}, {"result": []}]}]', "a: 2 annotations; delete"),
        ('[{"data": {"video": "a.mp4"}, "annotations": [{}]}]', "a: result null, expected a list"),
        ('{"type": "video_classification"}', "video null, expected a file name"),
        ('# CSV_HEADER = file_list,metadata\n"[]","{}"\n', "KeyError: 'temporal_segment_start'"),
        (b"\xff\xfev", "not readable as text"),
    ],
)
def test_what_is_no_annotation_is_said_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "file"
    found = problems(path, text, media={})
    assert message in found, found


def test_one_video_in_two_files_and_an_unknown_class(tmp_path):
    with pytest.raises(DataError, match=r"table.csv: (kitchen|garden|hall) is in another file too; remove it from one"):
        read([SAMPLES / "common.json", SAMPLES / "table.csv"])
    text = problems(SAMPLES / "common.json", names=("cut", "stir"))
    assert 'kitchen: ["wash", 4.0, 9.6]: the class is not one of ["cut", "stir"]' in text


def test_options_without_effect(tmp_path):
    assert "--label_from=tier has no effect on CSV" in problems(SAMPLES / "table.csv", label_from="tier")
    assert "via.csv: the unit of its times is known; leave --unit out" in problems(SAMPLES / "via.csv", unit="frames")
    numbered = '{"a": {"subset": "training", "duration": 9, "actions": [[0, 1, 2]]}}'
    text = problems(SAMPLES / "label_studio.json", label_from="mood")
    assert "there is no control 'mood' (--label_from), but actions, quality" in text
    assert "number their classes; give the list of names by --classes" in problems(tmp_path / "a.json", numbered)


@given(st.sampled_from([file for files in FILES.values() for file in files]), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_read_or_ends_in_one_error(tmp_path_factory, file, data):
    content = bytearray((SAMPLES / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        cut = data.draw(st.integers(0, 20))
        content[place : place + cut] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"{}", b"[]", b"null", b'"', b"1e999"])
        )
    path = tmp_path_factory.mktemp("damaged") / file
    path.write_bytes(content)
    try:
        read([path], test_fraction=0.5)
    except DataError as error:
        assert str(error)


@pytest.mark.parametrize("factor, meaning", [(1000.0, "seconds and milliseconds"), (30 / 25, "30 and 25 frames")])
def test_durations_that_differ_by_one_factor_are_noted_once(factor, meaning):
    media = {f"v{i}": Media(60.0 + 7 * i, 25.0, Path(f"films/v{i}.mp4")) for i in range(5)}
    entries = {v: {"subset": "training", "duration": factor * of.seconds, "actions": []} for v, of in media.items()}
    entries["v4"]["duration"] = 80.0
    findings = Findings()
    custom.fill_in(entries, media, ReadOptions(), findings)
    common, other = findings.handled[DURATION_DIFFERS]
    assert common.startswith(f"stated durations are {factor:.4g} times") and "videos, as between " in common
    assert meaning in common
    assert other == "v4: 80 seconds, but 88 seconds in films/v4.mp4"
