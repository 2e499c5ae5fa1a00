"""The command that converts annotations, and the builder with annotations of tools."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep import build, convert_annotations
from kd_jax.data import records
from kd_jax.files import write_json

SAMPLES = Path(__file__).parent / "data/annotations"
SECONDS = {"kitchen": 20.0, "garden": 12.0, "hall": 8.0}


def convert(*arguments):
    convert_annotations.main([str(argument) for argument in arguments])


def refused(command, *arguments):
    """Run a command that ends in a mistake and return what it says."""
    with pytest.raises(SystemExit) as ended:
        command.main([str(argument) for argument in arguments])
    return str(ended.value)


@pytest.fixture
def features(tmp_path):
    """Write features with manifests of the videos of the samples; return the folder."""
    for video, seconds in SECONDS.items():
        (tmp_path / "rgb").mkdir(exist_ok=True)
        np.save(tmp_path / "rgb" / f"{video}.npy", np.ones((int(2 * seconds), 3), np.float32))
        made = {"modality": "rgb", "weights_sha256": "a", "sampling": {}, "sampled_fps": None, "dtype": "float32"}
        made |= {"frames": int(25 * seconds), "fps": 25.0, "seconds_per_snippet": 0.5}
        write_json(tmp_path / "rgb" / f"{video}.json", made)
    return tmp_path / "rgb"


def test_tables_become_tasks_with_a_config_and_come_back(tmp_path, capsys):
    convert(SAMPLES / "table.csv", "--to=label_studio", "--fps=25", f"--output={tmp_path / 'tasks.json'}")
    assert "tasks.json: 3 videos, 3 actions, 2 classes\n" in capsys.readouterr().out
    assert '<Label value="wash"/>' in (tmp_path / "tasks.xml").read_text()
    convert(tmp_path / "tasks.json", "--to=json", f"--output={tmp_path / 'back.json'}")
    back, expected = json.loads((tmp_path / "back.json").read_text()), json.loads((SAMPLES / "common.json").read_text())
    assert {video: entry["actions"] for video, entry in back.items()} == {v: e["actions"] for v, e in expected.items()}


def test_numbers_and_frames_become_names_and_seconds(tmp_path):
    numbered = {"a": {"subset": "training", "duration": 300, "actions": [[1, 25, 250]]}}
    (tmp_path / "a.json").write_text(json.dumps(numbered))
    (tmp_path / "classes.txt").write_text("cut\nwash\n")
    options = [f"--classes={tmp_path / 'classes.txt'}", "--unit=frames", "--fps=50", f"--output={tmp_path / 'b.csv'}"]
    convert(tmp_path / "a.json", "--to=csv", *options)
    assert (tmp_path / "b.csv").read_text() == ("video,label,start,end,duration,subset\na,wash,0.5,5.0,6.0,training\n")


def test_the_output_is_cleaned_as_the_message_says(tmp_path, capsys):
    actions = [["cut", 1, 2], ["cut", 1, 2], ["cut", 3, 90], ["cut", 4, 4], ["cut", 70, 80]]
    (tmp_path / "a.json").write_text(json.dumps({"a": {"subset": "training", "duration": 6.0, "actions": actions}}))
    convert(tmp_path / "a.json", "--to=json", f"--output={tmp_path / 'b.json'}")
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["a"]["actions"] == [["cut", 1.0, 2.0], ["cut", 3.0, 6.0]]
    assert "1 videos, 2 actions" in capsys.readouterr().out


def test_a_format_without_durations_and_subsets_asks_for_neither(tmp_path, capsys):
    convert(SAMPLES / "via.csv", "--to=csv", f"--output={tmp_path / 'b.csv'}")
    assert (tmp_path / "b.csv").read_text().splitlines()[:2] == ["video,label,start,end", "kitchen,cut,1.2,4.8"]
    convert(SAMPLES / "via.csv", "--to=label_studio", "--fps=25", f"--output={tmp_path / 'tasks.json'}")
    assert "duration" not in json.loads((tmp_path / "tasks.json").read_text())[0]["data"]
    text = refused(convert_annotations, SAMPLES / "via.csv", "--to=activitynet", f"--output={tmp_path / 'c.json'}")
    assert "kitchen: the annotation does not state it; add a column or field `duration`, or give --videos=DIR" in text
    capsys.readouterr()


def test_the_subset_validation_is_kept(tmp_path):
    content = {
        name: {"subset": subset, "duration": 6.0, "actions": [["cut", 1, 2]]}
        for name, subset in (("a", "train"), ("b", "val"), ("c", "test"))
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    convert(tmp_path / "a.json", "--to=json", f"--output={tmp_path / 'b.json'}")
    written = json.loads((tmp_path / "b.json").read_text())
    assert [entry["subset"] for entry in written.values()] == ["training", "validation", "testing"]


def test_mistakes_end_in_one_sentence(tmp_path):
    output = f"--output={tmp_path / 'out'}"
    text = refused(convert_annotations, SAMPLES / "table.csv", "--to=label_studio", output)
    assert text == "data_prep.convert_annotations: kitchen: Label Studio counts frames; give --fps or --videos=DIR"
    text = refused(convert_annotations, SAMPLES / "table.csv", "--to=csv", "--test=a", "--test_fraction=0.3", output)
    assert "--test lists the test videos and --test_fraction draws them; leave one out" in text
    text = refused(convert_annotations, SAMPLES / "table.csv", "--to=xml", output)
    assert "--to: invalid choice: 'xml'" in text
    text = refused(convert_annotations, SAMPLES / "via.csv", "--to=csv", f"--videos={tmp_path / 'none'}", output)
    assert "none is not a folder" in text
    text = refused(convert_annotations, SAMPLES / "via.csv", "--to=csv", f"--videos={tmp_path}", output)
    assert "has no video of the annotations, such as garden.mp4" in text
    assert not (tmp_path / "out").exists()


def test_durations_come_from_folders_of_frames(tmp_path):
    actions = [{"video": name, "label": "cut", "start": 0.1, "end": 0.3} for name in ("a", "b")]
    rows = [",".join(map(str, row)) for row in [actions[0], *(action.values() for action in actions)]]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    for name, count in (("a", 10), ("b", 20)):
        (tmp_path / "frames" / name).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(str(tmp_path / "frames" / name / f"{number}.png"), np.zeros((16, 16, 3), np.uint8))
    (tmp_path / "test.txt").write_text("b")
    output = tmp_path / "out.json"
    arguments = [
        "--to=json",
        f"--videos={tmp_path / 'frames'}",
        f"--test={tmp_path / 'test.txt'}",
        f"--output={output}",
    ]
    text = refused(convert_annotations, tmp_path / "a.csv", *arguments)
    assert f"{tmp_path / 'frames' / 'a'}: it is a folder of frames, whose rate is not stated; give --fps" in text
    convert(tmp_path / "a.csv", *arguments, "--fps=20")
    assert {name: entry["duration"] for name, entry in json.loads(output.read_text()).items()} == {"a": 0.5, "b": 1.0}


def test_records_from_a_tool(features, tmp_path, capsys):
    paths = [f"--annotations={SAMPLES / f'elan_{video}.eaf'}" for video in SECONDS]
    (tmp_path / "test.txt").write_text("hall\n")
    arguments = ["--dataset=custom", *paths, f"--features=rgb={features}", f"--test={tmp_path / 'test.txt'}"]
    build.main([*arguments, f"--output={tmp_path / 'out'}"])
    shown = capsys.readouterr().out
    for line in ("elan_hall.eaf: ELAN", "classes: the 2 names in the annotations, sorted", "durations from"):
        assert line in shown
    assert f"durations from {features}: 3 videos" in shown and f"split by --test={tmp_path / 'test.txt'}" in shown
    info, train = records.read_info(tmp_path / "out"), records.read(tmp_path / "out", "train")
    assert info.classes == ("cut", "wash") and [video.id for video in train] == ["kitchen", "garden"]
    np.testing.assert_array_equal(train[0].segments, [[0, 1.2, 4.8], [1, 4.0, 9.6]])
    assert [video.duration for video in train] == [20.0, 12.0]


def test_records_do_not_depend_on_the_format(features, tmp_path):
    made = []
    for name, more in (("common.json", []), ("table.csv", []), ("activitynet.json", []), ("label_studio.json", ["t"])):
        (tmp_path / "t").write_text("hall.mp4")
        split = [f"--test={tmp_path / 't'}"] if more else []
        output = tmp_path / name.partition(".")[0]
        arguments = [f"--annotations={SAMPLES / name}", f"--features=rgb={features}", f"--output={output}", *split]
        build.main(["--dataset=custom", *arguments])
        made.append([(v.id, v.duration, v.segments.tolist()) for v in records.read(output, "train")])
    assert all(videos == made[0] for videos in made)


def test_a_video_without_features_is_named(features):
    (features / "hall.npy").unlink()
    text = refused(
        build, "--dataset=custom", f"--annotations={SAMPLES / 'table.csv'}", f"--features=rgb={features}", "--check"
    )
    assert "missing feature file, see --skip_missing (1):" in text and "hall.npy" in text
