"""Every command of docs/own-videos.md runs, in order, on drawn videos; VIA's files are written as VIA does."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep import stickfigures
from kd_jax import __main__ as kd_jax_command
from kd_jax.data import records
from kd_jax.data.annotations.tools import label_studio
from kd_jax.files import write_arrays
from tests import videoprism_test

PAGE = (Path(__file__).parents[1] / "docs/own-videos.md").read_text()
SMALL = {  # words of a command: what makes it cheap
    "stickfigures": ["--train=3", "--test=1", "--seconds=4"],
    "train": [
        "--noreport",
        "--config.training.epochs=1",
        "--config.model.hidden=8",
        "--config.dataset.validation_fraction=0.0",
    ],
}


def write_via(path, annotations, classes):
    """Write the CSV export of VIA 3, with a numbered option per class."""
    options = {str(i): name for i, name in enumerate(classes)}
    attribute = {"1": {"aname": "TEMPORAL-SEGMENTS", "anchor_id": "FILE1_Z2_XY0", "type": 4, "options": options}}
    lines = ["# Exported using VGG Image Annotator", f"# ATTRIBUTE = {json.dumps(attribute)}"]
    lines += ["# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata"]
    for video, entry in annotations.items():
        for class_id, start, end in entry["actions"]:
            cells = [[f"{video}.mp4"], [start, end], [], {"1": str(class_id)}]
            files, times, shape, metadata = ('"' + json.dumps(cell).replace('"', '""') + '"' for cell in cells)
            lines.append(f'"1_a",{files},0,{times},{shape},{metadata}')
    path.write_text("\n".join(lines))


def submit(predicted, path):
    """Write what Label Studio exports after a person moved the start of each prediction by a frame and submitted."""
    tasks = json.loads(predicted.read_text())
    for task in tasks:
        result = task.pop("predictions")[0]["result"]
        result = result or label_studio.make_regions([("wave", 1.0, 2.0)], task["data"]["fps"])  # none was predicted
        for region in result:
            region["value"]["ranges"][0]["start"] += 1
            region["value"]["ranges"][0]["end"] += 1
        task["data"]["video"] = f"/data/upload/1/3d3ad63e-{task['data']['video']}"
        task["annotations"] = [{"id": 1, "was_cancelled": False, "result": result}]
    path.write_text(json.dumps(tasks))
    return [region["value"]["ranges"][0] for region in result]


@pytest.mark.slow
def test_every_command_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
    write_arrays(Path("flax_base_f16r288_repeated.npz"), videoprism_test.published())
    Path("films.py").write_text(next(block for language, block in blocks if language == "python"))
    commands = [
        line for language, block in blocks if language == "bash" for line in block.replace("\\\n", "").splitlines()
    ]
    commands = [shlex.split(line) for line in commands]
    assert [command for command in commands if command[0] not in ("kd-jax", "python")] == [
        ["pip", "install", "-e", ".[video]"]
    ]
    for command in commands[1:]:
        arguments = command[1:] if command[0] == "kd-jax" else [command[2].removeprefix("data_prep."), *command[3:]]
        if arguments[0] == "predict":
            shutil.copy("films/figure_003.mp4", "films/new.mp4")
        run(*arguments, *SMALL.get(arguments[0], []))
        if arguments[0] == "predict":
            spans = submit(Path("OUT/label_studio.json"), Path("corrected.json"))
        if arguments[0] == "build":
            listed = Path("data/films/test.txt").read_text().split()
        if arguments[0] == "stickfigures":
            shutil.copytree("practice/videos", "films")
            shutil.copytree("practice/weights", "weights")
            annotations = json.loads(Path("practice/annotations.json").read_text())
            classes = Path("practice/classes.txt").read_text().splitlines()
            write_via(Path("annotations.csv"), annotations, classes)
    shown = capsys.readouterr().out
    assert "annotations.csv: VIA 3\n" in shown and "split by --test_fraction=0.3, seed 0\n" in shown
    assert "durations from films: 4 videos" in shown and "durations from films: 5 videos" in shown
    assert "corrected.json: Label Studio\n" in shown
    assert (
        Path("OUT/detections.json").exists()
        and Path("OUT/new.html").exists()
        and Path("workdir/films_2/results.md").exists()
    )
    assert np.load("features/videoprism/figure_000.npy").shape[1] == videoprism_test.CHANNELS
    tasks = json.loads(Path("tasks.json").read_text())
    assert len(tasks) == 4 and {task["data"]["fps"] for task in tasks} == {15.0}
    info, test = records.read_info(tmp_path / "data/films"), records.read(tmp_path / "data/films", "test")
    (video,) = test
    new = next(v for v in records.read(tmp_path / "data/films", "train") if v.id == "new")
    expected = [[(span["start"] - 1) / 15, min(span["end"] / 15, new.duration)] for span in spans]
    np.testing.assert_allclose(new.segments[:, 1:], expected)
    assert [video.id] == listed and video.duration == annotations[video.id]["duration"]
    drawn = [(classes[c], start, end) for c, start, end in annotations[video.id]["actions"]]
    assert [(info.classes[int(c)], start, end) for c, start, end in video.segments] == drawn


def run(command, *arguments):
    """Run a command of kd-jax, or the module that draws videos, in this process."""
    if command == "stickfigures":
        return stickfigures.main(arguments)
    try:
        return kd_jax_command.main([command, *arguments])
    except SystemExit as ended:
        assert not ended.code, (command, ended.code)
