"""Finished experiments → the content of report.html, as plain JSON that `pages/report.js` draws.

html = make_report([open_experiment("workdir/demo")])

Several experiments have one table of results. Those with the same test videos also share a timeline browser and a table
of classes, in which a run is called EXPERIMENT / RUN.
"""

import base64
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from kd_jax.analysis import timelines
from kd_jax.analysis.figures import FIGURES, Made
from kd_jax.analysis.finished import FinishedExperiment
from kd_jax.analysis.page import make_page
from kd_jax.analysis.study import find_roles
from kd_jax.analysis.timelines import Lane, Recording, Timeline
from kd_jax.evaluation.intervals import over_seeds
from kd_jax.evaluation.proposals import DEFAULT_THRESHOLDS
from kd_jax.evaluation.scoring import make_truth, probabilities
from kd_jax.training.diagnosis import diagnose

MAX_LANES = 8  # runs of an experiment in its timeline browser


def make_report(experiments: Sequence[FinishedExperiment], figures: Sequence[Mapping[str, Made]] = ()) -> str:
    """Returns the HTML page on one or several experiments.

    Args:
      figures: what `make_figures` returned for each experiment, in the same order; () for a page without figures.
    """
    names = _unique_names(experiments)
    named = dict(zip(names, experiments, strict=True))
    content = {
        "experiments": [_describe(name, experiment) for name, experiment in named.items()],
        "results": results_table(named),
        "data": [_compare_on_data(group) for group in _groups_by_data(named)],
        "figures": [
            {"experiment": name, "title": FIGURES[key].title, "image": _embed_image(figure.path)}
            | {"sentences": list(figure.sentences)}
            for name, made in zip(names, figures, strict=False)
            for key, figure in made.items()
            if figure.path
        ],
    }
    title = " and ".join(names) if len(names) < 4 else f"{len(names)} experiments"
    return make_page("report.html", title=title, data=content, scripts=["timeline.js", "report.js"])


def interval(values: Sequence[float]) -> dict:
    """Returns {'mean', 'half', 'values'}: `half` is the half-width of the 95 % interval of Student's t.

    It is None for a single value.
    """
    mean, half = map(float, over_seeds(np.array(values)))
    return {"mean": mean, "half": None if math.isnan(half) else half, "values": [float(value) for value in values]}


def results_table(experiments: Mapping[str, FinishedExperiment]) -> dict:
    """Returns the columns and rows of the table of results: each score is an `interval`."""
    columns, rows = dict[str, None](), []
    for name, experiment in experiments.items():
        roles = find_roles(experiment.results)
        for row in experiment.results["rows"]:
            scores = {title: interval(v) for title, v in row["scores"].items() if v and None not in v}
            columns |= dict.fromkeys(scores)
            found = {
                "experiment": name,
                "data": experiment.source.fingerprint,
                "run": row["run"],
                "role": roles.of(row["run"]),
                "reads": row["modality"],
            }
            found |= {"teachers": row["teachers"], "scores": scores, "baseline": row["baseline"]}
            rows.append(found | {"gain": interval(row["gain"]) if row["gain"] else None})
    gain_of = next(iter(experiments.values())).results["gain_of"]
    return {"columns": list(columns), "rows": rows, "gain_of": gain_of}


def _unique_names(experiments: Sequence[FinishedExperiment]) -> list[str]:
    """The names of the workdirs, or their whole paths if two have the same name."""
    names = [experiment.workdir.name for experiment in experiments]
    return names if len(set(names)) == len(names) else [str(experiment.workdir) for experiment in experiments]


def _describe(name: str, experiment: FinishedExperiment) -> dict:
    results = experiment.results
    timings = []
    for run, seeds in experiment.runs.items():
        seconds = [entry["seconds"] for finished in seeds for entry in finished.epochs if "seconds" in entry]
        if seconds:
            timings.append({"run": run, "epochs": len(seconds), "median": np.median(seconds), "total": sum(seconds)})
    return {
        "name": name,
        "workdir": str(experiment.workdir),
        "dataset": results["dataset"],
        "test_videos": results["test_videos"],
        "scored": bool(experiment.source.scored_videos("test")),
        "validation": results.get("validation", {}),  # older results do not have it
        "seeds": results["seeds"],
        "diagnosis": " ".join(diagnose(results)),
        "environment": results.get("environment", {}),
        "timings": timings,
        "configs": {run: dict(seeds[0].config) for run, seeds in experiment.runs.items()},
    }


def _groups_by_data(named: Mapping[str, FinishedExperiment]) -> list[dict[str, FinishedExperiment]]:
    """The experiments with test videos, in groups with the same test videos and classes."""
    groups: dict[tuple, dict[str, FinishedExperiment]] = {}
    for name, experiment in named.items():
        videos = tuple(video.id for video in experiment.source.videos("test", []))
        key = experiment.source.fingerprint, experiment.source.info.classes, videos
        if videos:
            groups.setdefault(key, {})[name] = experiment
    return list(groups.values())


def _compare_on_data(group: Mapping[str, FinishedExperiment]) -> dict:
    """The timeline browser and the table of classes of experiments with the same test videos."""
    first = next(iter(group.values()))
    info, videos = first.source.info, first.source.videos("test", [])
    lanes, compared = _choose_lanes(group)
    tables = {
        lane.name: {
            video: probabilities(table, info.head)[:, : len(info.classes)]
            for video, table in group[name].logits(run, 0).items()
        }
        for (name, run), lane in lanes.items()
    }
    truth = make_truth(videos, info)
    recordings = [
        Recording(
            video,
            duration := truth.durations[video],
            rows,
            {run: truth.grid(video).resample(of[video], duration, len(of[video])) for run, of in tables.items()},
        )
        for video, rows in truth.segments.items()
    ]
    shown, threshold = timelines.select_recordings(recordings, compared), DEFAULT_THRESHOLDS[info.head]
    timeline = Timeline(info.classes, list(lanes.values()), shown, threshold, compared, available=len(recordings))
    class_ids = np.concatenate([rows[:, 0] for rows in truth.segments.values()]).astype(int)
    counts = np.bincount(class_ids, minlength=len(info.classes)).tolist()
    classes = _per_class(group, info.classes, counts)
    return {"name": " and ".join(group), "timeline": timelines.as_json(timeline), "classes": classes}


def _lane_name(group: Mapping, experiment: str, run: str) -> str:
    return run if len(group) == 1 else f"{experiment} / {run}"


def _choose_lanes(
    group: Mapping[str, FinishedExperiment],
) -> tuple[dict[tuple[str, str], Lane], tuple[str, str] | None]:
    """The lanes {(experiment, run): Lane}, and the names of the two to compare: the plain and the augmented student."""
    lanes: dict[tuple[str, str], Lane] = {}
    names: list[list[str]] = []
    for name, experiment in group.items():
        roles, known = find_roles(experiment.results), [row["run"] for row in experiment.results["rows"]]
        first = [roles.vanilla, roles.augmented, *roles.teachers] if roles.augmented else known[:3]
        own = {
            (name, run): Lane(_lane_name(group, name, run), roles.of(run), run in first)
            for run in list(dict.fromkeys([*first, *known]))[:MAX_LANES]
        }
        lanes |= own
        names.append([lane.name for lane in own.values()])
    compared = next((own[:2] for own in names if len(own) > 1), [own[0] for own in names[:2]])
    return lanes, (compared[0], compared[1]) if len(compared) == 2 else None


def _per_class(group: Mapping[str, FinishedExperiment], classes: Sequence[str], counts: Sequence[int]) -> dict:
    """The AP of each class by the first protocol that has one: a column per run, and the gain of the augmented one.

    {} without a score per class.
    """
    scored = next(iter(group.values())).results["rows"][0]["test"]
    first = scored[0].get("per_class", {}) if scored else {}
    if not first:
        return {}
    protocol, columns = next(iter(first)), []
    for name, experiment in group.items():
        roles = find_roles(experiment.results)
        found = {
            row["run"]: [scores["per_class"].get(protocol, {}) for scores in row["test"]]
            for row in experiment.results["rows"]
        }
        for run, seeds in found.items():
            title = _lane_name(group, name, run)
            columns.append({"title": title, "role": roles.of(run), "values": _seed_values(seeds, classes)})
        if roles.augmented:
            gains = [
                {c: ours[c] - theirs[c] for c in classes if ours.get(c) is not None and theirs.get(c) is not None}
                for ours, theirs in zip(found[roles.augmented], found[roles.vanilla], strict=True)
            ]
            title = "gain" if len(group) == 1 else f"gain in {name}"
            columns.append({"title": title, "role": "gain", "values": _seed_values(gains, classes)})
    return {"protocol": protocol, "classes": list(classes), "actions": list(counts), "columns": columns}


def _seed_values(seeds: Sequence[Mapping], classes: Sequence[str]) -> list[dict | None]:
    """For each class the `interval` of its values; None where a seed has none."""
    known = [[seed[name] for seed in seeds if seed.get(name) is not None] for name in classes]
    return [interval(values) if values and len(values) == len(seeds) else None for values in known]


def _embed_image(path: epath.Path) -> str:
    """Returns the figure as a data URL, the smaller one of the .svg and the .png."""
    vector = path.with_name(f"{path.stem}.svg")
    images = {kind: file.read_bytes() for kind, file in {"png": path, "svg+xml": vector}.items() if file.exists()}
    kind, content = min(images.items(), key=lambda image: len(image[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
