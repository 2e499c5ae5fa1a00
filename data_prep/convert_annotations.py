"""Converts annotations of your own data from the format of one tool to that of another.

    kd-jax convert-annotations via.csv --videos=DIR --test_fraction=0.3 --to=activitynet --output=a.json

All formats that `kd-jax build --dataset=custom` reads are recognised. `--to=json` is the common layout. For
`--to=label_studio`, the labelling config of the project is written too, as an .xml file next to the output.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.annotations import add_options, collect_entries, hold_out, read_options
from kd_jax import interrupts
from kd_jax.command_line import Parser, disk_path, positive
from kd_jax.data.annotations import common_layout, tools
from kd_jax.data.annotations.cleaning import check_units
from kd_jax.data.annotations.custom import DESCRIPTION
from kd_jax.data.annotations.tools import label_studio
from kd_jax.data.checks import Findings
from kd_jax.files import write_atomically

SUBSETS = {"train": "training", "test": "testing"}
NEEDS = {"csv": (), "label_studio": ()}  # {format: what it must state of a video}; others need all of the common layout


def parser() -> Parser:
    """Returns the parser of the command line."""
    options = Parser("data_prep.convert_annotations", __doc__)
    add = options.add_argument
    add("input", type=disk_path, nargs="+", help="Annotation files.")
    add("--to", required=True, choices=tools.WRITTEN, help="Format to write.")
    add("--output", type=disk_path, required=True, help="File to write.")
    add(
        "--classes",
        type=disk_path,
        help="File of class names, one per line; needed if the annotations number their classes.",
    )
    add("--unit", choices=["seconds", "frames"], default="seconds", help="Unit of times in CSV and JSON (seconds).")
    add("--fps", type=positive, help="Frames per second of times that are frames (those of the videos).")
    add_options(options)
    return options


def convert(given) -> str:
    """Reads the input, writes the output and returns a line about it; raises DataError that lists all problems."""
    findings = Findings(", ".join(given.input))
    names = common_layout.read_classes(Path(given.classes), findings) if given.classes else ()
    needs = NEEDS.get(given.to, common_layout.NEEDS)
    options = read_options(given, unit=given.unit, needs=needs)
    entries, names, facts = collect_entries(given.input, names, options, (), findings)
    videos = common_layout.read_entries(entries, names, findings, where=str(findings.subject), needs=needs)
    videos = hold_out(videos, given.validation, findings)
    check_units(videos, findings)
    findings.raise_problems()
    scale = (given.fps or DESCRIPTION.fps) if given.unit == "frames" else 1.0
    written: dict[str, dict] = {}
    for video in videos:
        actions = [[names[int(c)], start / scale, end / scale] for c, start, end in video.segments.tolist()]
        fps = given.fps or entries[video.id].get("fps")
        subset = "validation" if video.validation else SUBSETS.get(video.split)
        duration = video.duration / scale if video.duration < math.inf else None
        known = {"subset": subset, "duration": duration, "fps": fps}
        written[video.id] = {**{name: value for name, value in known.items() if value}, "actions": actions}
    if given.to == "label_studio":
        if lacking := [video for video, entry in written.items() if "fps" not in entry]:
            raise ValueError(f"{lacking[0]}: Label Studio counts frames; give --fps or --videos=DIR")
        write_atomically(Path(given.output).with_suffix(".xml"), label_studio.labelling_config(names).encode())
    tools.write_file(Path(given.output), given.to, written)
    count = sum(len(entry["actions"]) for entry in written.values())
    cleaned = [f"{kind}: {len(cases)}, e.g. {cases[0]}" for kind, cases in sorted(findings.handled.items())]
    return "\n  ".join(
        [f"{given.output}: {len(written)} videos, {count} actions, {len(names)} classes", *facts, *cleaned]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`, or those of the process."""
    given = parser().parse_args(argv)
    if given.test and given.test_fraction is not None:
        sys.exit(
            "data_prep.convert_annotations: --test lists the test videos and --test_fraction draws them; leave one out"
        )
    try:
        print(convert(given))
    except (ValueError, OSError) as error:
        sys.exit(f"data_prep.convert_annotations: {error}")


if __name__ == "__main__":
    interrupts.run("data_prep.convert_annotations", main)
