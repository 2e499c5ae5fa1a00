"""Finished experiments → the content of report.html, as plain JSON that `pages/report.js` draws.

html = make_report([open_experiment("workdir/demo")])

Several experiments have one table of results. Those with the same test videos also share a timeline browser and a table
of classes, in which a run is called EXPERIMENT / RUN.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special

from kd_jax.analysis import timelines
from kd_jax.analysis.finished import FinishedExperiment, FinishedRun
from kd_jax.analysis.page import make_page
from kd_jax.analysis.timelines import Lane, Recording, Timeline
from kd_jax.evaluation.scoring import make_truth, probabilities

MAX_LANES = 8  # runs of an experiment in its timeline browser
VALIDATION = "validation/frame_map/present_classes"  # a field of metrics.jsonl


class Figure(NamedTuple):
    """A figure for the report."""

    path: Path  # of the .png; an .svg next to it is embedded if it is smaller
    sentences: Sequence[str]  # what its numbers say


def make_report(experiments: Sequence[FinishedExperiment], figures: Sequence[Mapping[str, Figure]] = ()) -> str:
    """Returns the HTML page on one or several experiments.

    Args:
      figures: {name: Figure} of each experiment, in the same order; () for a page without figures.
    """
    names = _unique_names(experiments)
    named = dict(zip(names, experiments, strict=True))
    content = {
        "experiments": [_describe(name, experiment) for name, experiment in named.items()],
        "results": results_table(named),
        "data": [_compare_on_data(group) for group in _groups_by_data(named)],
        "figures": [
            {"experiment": name, "title": title.replace("_", " "), "image": _embed_image(figure.path)}
            | {"sentences": list(figure.sentences)}
            for name, made in zip(names, figures, strict=False)
            for title, figure in made.items()
        ],
    }
    title = " and ".join(names) if len(names) < 4 else f"{len(names)} experiments"
    return make_page("report.html", title=title, data=content, scripts=["timeline.js", "report.js"])


def interval(values: Sequence[float]) -> dict:
    """Returns {'mean', 'half', 'values'}: `half` is the half-width of the 95 % interval of Student's t.

    It is None for a single value.
    """
    count, mean = len(values), float(np.mean(values))
    half = special.stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(count) if count > 1 else None
    return {"mean": mean, "half": None if half is None else float(half), "values": [float(value) for value in values]}


def roles(results: Mapping) -> dict[str, str]:
    """Returns {row of the table: 'baseline', 'student', 'teacher', 'fusion' or 'other'}."""
    teachers = {teacher for row in results["rows"] for teacher in row["teachers"]}

    def role(row: Mapping) -> str:
        if row["run"] == results["baseline"]:
            return "baseline"
        if row["members"]:
            return "fusion"
        if row["teachers"]:
            return "student"
        return "teacher" if row["run"] in teachers else "other"

    return {row["run"]: role(row) for row in results["rows"]}


def best_student(results: Mapping) -> Mapping | None:
    """Returns the row with the largest mean gain among those that learn from teachers; None without any."""
    gained = [row for row in results["rows"] if row["teachers"] and row["gain"]]
    return max(gained, key=lambda row: np.mean(row["gain"]), default=None)


def finding(results: Mapping) -> str:
    """Says what distillation gained, with its interval, and whether the seeds show it."""
    row = best_student(results)
    if row is None:
        return ""
    scores, gain = row["scores"].get(results["gain_of"]), interval(row["gain"])
    direction = "above" if gain["mean"] >= 0 else "below"
    score = f"{row['run']} reaches {np.mean(scores):.2f} {results['gain_of']}, "
    if gain["half"] is None:
        how = "One seed does not show how certain this is; --config.seeds=5 trains five."
        return f"{score}{abs(gain['mean']):.2f} points {direction} {row['baseline']}. {how}"
    size = f"{score}{abs(gain['mean']):.2f} ± {gain['half']:.2f} points {direction} {row['baseline']}"
    seeds = f"95 % interval over {len(row['gain'])} seeds"
    if abs(gain["mean"]) < gain["half"]:
        return f"{size} ({seeds}). The interval contains 0, so no difference is shown."
    return f"{size} ({seeds})."


def results_table(experiments: Mapping[str, FinishedExperiment]) -> dict:
    """Returns the columns and rows of the table of results: each score is an `interval`."""
    columns, rows = dict[str, None](), []
    for name, experiment in experiments.items():
        role = roles(experiment.results)
        for row in experiment.results["rows"]:
            scores = {title: interval(v) for title, v in row["scores"].items() if v and None not in v}
            columns |= dict.fromkeys(scores)
            found = {"experiment": name, "run": row["run"], "role": role[row["run"]], "reads": row["modality"]}
            found |= {"teachers": row["teachers"], "scores": scores, "baseline": row["baseline"]}
            rows.append(found | {"gain": interval(row["gain"]) if row["gain"] else None})
    gain_of = next(iter(experiments.values())).results["gain_of"]
    return {"columns": list(columns), "rows": rows, "gain_of": gain_of}


def learning_curves(runs: Mapping[str, Sequence[FinishedRun]], field: str) -> list[dict]:
    """Returns the means over seeds of a field of metrics.jsonl, for the runs that have it.

    Each is {'name', 'x': epochs, 'y': values, 'best': the mean best epoch}. Epochs that a seed lacks are left out.
    """
    curves = []
    for name, seeds in runs.items():
        series = [{entry["epoch"]: entry[field] for entry in run.epochs if field in entry} for run in seeds]
        epochs = sorted(set.intersection(*(set(values) for values in series)))
        if epochs:
            means = [float(np.mean([values[epoch] for values in series])) for epoch in epochs]
            best = float(np.mean([run.results["best_epoch"] for run in seeds]))
            curves.append({"name": name, "x": epochs, "y": means, "best": best})
    return curves


def _unique_names(experiments: Sequence[FinishedExperiment]) -> list[str]:
    """The names of the workdirs, or their whole paths if two have the same name."""
    names = [experiment.workdir.name for experiment in experiments]
    return names if len(set(names)) == len(names) else [str(experiment.workdir) for experiment in experiments]


def _describe(name: str, experiment: FinishedExperiment) -> dict:
    results, role = experiment.results, roles(experiment.results)
    timings = []
    for run, seeds in experiment.runs.items():
        seconds = [entry["seconds"] for finished in seeds for entry in finished.epochs if "seconds" in entry]
        if seconds:
            timings.append({"run": run, "epochs": len(seconds), "median": np.median(seconds), "total": sum(seconds)})
    curves = {
        "Validation frame mAP, percent": learning_curves(experiment.runs, VALIDATION),
        "Task loss in training": learning_curves(experiment.runs, "task"),
    }
    return {
        "name": name,
        "workdir": str(experiment.workdir),
        "dataset": results["dataset"],
        "test_videos": results["test_videos"],
        "seeds": results["seeds"],
        "finding": finding(results),
        "environment": results.get("environment", {}),
        "timings": timings,
        "roles": role,
        "curves": [{"title": title, "series": series} for title, series in curves.items() if series],
        "configs": {run: dict(seeds[0].config) for run, seeds in experiment.runs.items()},
    }


def _groups_by_data(named: Mapping[str, FinishedExperiment]) -> list[dict[str, FinishedExperiment]]:
    """The experiments in groups with the same test videos and classes."""
    groups: dict[tuple, dict[str, FinishedExperiment]] = {}
    for name, experiment in named.items():
        key = experiment.source.fingerprint, experiment.source.info.classes
        groups.setdefault(key, {})[name] = experiment
    return list(groups.values())


def _compare_on_data(group: Mapping[str, FinishedExperiment]) -> dict:
    """The timeline browser and the table of classes of experiments with the same test videos."""
    first = next(iter(group.values()))
    info, videos = first.source.info, first.source.videos("test", [])
    lanes, compared = _choose_lanes(group)
    logits = {
        _lane_name(group, name, lane): group[name].logits(lane, 0) for name, chosen in lanes.items() for lane in chosen
    }
    truth = make_truth(videos, info)
    tables = {
        run: {video: probabilities(table, info.head)[:, : len(info.classes)] for video, table in found.items()}
        for run, found in logits.items()
    }
    recordings = [
        Recording(
            v.id, truth.durations[v.id], truth.segments[v.id], {run: found[v.id] for run, found in tables.items()}
        )
        for v in videos
    ]
    shown = timelines.select_recordings(recordings, compared)
    timeline = Timeline(
        info.classes, _lanes(group, lanes), shown, timelines.THRESHOLDS[info.head], compared, available=len(recordings)
    )
    counts = np.bincount(
        np.concatenate([rows[:, 0] for rows in truth.segments.values()]).astype(int), minlength=len(info.classes)
    )
    return {
        "name": " and ".join(group),
        "timeline": timelines.as_json(timeline),
        "classes": _per_class(group, info.classes, counts.tolist()),
    }


def _lane_name(group: Mapping, experiment: str, run: str) -> str:
    return run if len(group) == 1 else f"{experiment} / {run}"


def _choose_lanes(group: Mapping[str, FinishedExperiment]) -> tuple[dict[str, list[str]], tuple[str, str] | None]:
    """The runs of each experiment to draw, and the two to compare: the plain and the best distilled student."""
    chosen, compared = {}, None
    for name, experiment in group.items():
        rows, student = experiment.results["rows"], best_student(experiment.results)
        wanted = [student["baseline"], student["run"], *student["teachers"]] if student else []
        known = [row["run"] for row in rows]
        order = [run for run in dict.fromkeys([*wanted, *known]) if run in known]
        chosen[name] = order[:MAX_LANES]
        pair = wanted[:2] if student else order[:2]
        if compared is None and len(pair) == 2:
            compared = _lane_name(group, name, pair[0]), _lane_name(group, name, pair[1])
    if compared is None and len(chosen) > 1:
        (one, first), (other, second) = list(chosen.items())[:2]
        compared = _lane_name(group, one, first[0]), _lane_name(group, other, second[0])
    return chosen, compared


def _lanes(group: Mapping[str, FinishedExperiment], chosen: Mapping[str, Sequence[str]]) -> list[Lane]:
    lanes = []
    for name, runs in chosen.items():
        role, student = roles(group[name].results), best_student(group[name].results)
        first = {student["baseline"], student["run"], *student["teachers"]} if student else set(runs[:3])
        lanes += [Lane(_lane_name(group, name, run), role[run], run in first) for run in runs]
    return lanes


def _per_class(group: Mapping[str, FinishedExperiment], classes: Sequence[str], counts: Sequence[int]) -> dict:
    """The AP of each class by the first protocol that has one: a column per run, and the gain of the best student."""
    first = next(iter(group.values())).results["rows"][0]["test"][0].get("per_class", {})
    if not first:
        return {}
    protocol, columns = next(iter(first)), []
    for name, experiment in group.items():
        role, student = roles(experiment.results), best_student(experiment.results)
        found = {
            row["run"]: [scores["per_class"].get(protocol, {}) for scores in row["test"]]
            for row in experiment.results["rows"]
        }
        for run, seeds in found.items():
            title = _lane_name(group, name, run)
            columns.append({"title": title, "role": role[run], "values": _seed_values(seeds, classes)})
        if student:
            pairs = zip(found[student["run"]], found.get(student["baseline"], []), strict=False)
            gains = [
                {c: ours[c] - theirs[c] for c in classes if ours.get(c) is not None and theirs.get(c) is not None}
                for ours, theirs in pairs
            ]
            title = "gain" if len(group) == 1 else f"gain in {name}"
            columns.append({"title": title, "role": "gain", "values": _seed_values(gains, classes)})
    return {"protocol": protocol, "classes": list(classes), "actions": list(counts), "columns": columns}


def _seed_values(seeds: Sequence[Mapping], classes: Sequence[str]) -> list[dict | None]:
    """For each class the `interval` of its values; None where a seed has none."""
    values = [[seed.get(name) for seed in seeds] for name in classes]
    return [interval(row) if row and None not in row else None for row in values]


def _embed_image(path: Path) -> str:
    """Returns the figure as a data URL, the smaller one of the .svg and the .png."""
    vector = path.with_name(f"{path.stem}.svg")
    smaller = vector if vector.exists() and vector.stat().st_size < path.stat().st_size else path
    kind = "svg+xml" if smaller == vector else "png"
    return f"data:image/{kind};base64,{base64.b64encode(smaller.read_bytes()).decode()}"
