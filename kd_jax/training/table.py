"""Scores of runs and fusions → the table of results, as JSON and as Markdown."""

import functools
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kd_jax.data.source import Source
from kd_jax.evaluation.intervals import describe_gain, differences, excludes_zero, paired_interval
from kd_jax.evaluation.protocols import PROTOCOLS
from kd_jax.evaluation.scoring import Scoring
from kd_jax.training.clock import describe_time
from kd_jax.training.diagnosis import diagnose
from kd_jax.training.logs import SELECTION
from kd_jax.training.plan import seeds
from kd_jax.training.scores import protocols_of, scoring_of

_GAINS = "Gains in {} are means of differences seed by seed, with 95 % intervals (Student's t)"
_GAINS += "; `*`: the interval excludes 0."


def columns(protocols: Sequence[str]) -> dict[str, tuple[str, str]]:
    """{title of a column: (split, key of the scores)}; the gain is that of the first column, a score of the test."""
    titles: dict[str, tuple[str, str]] = {}
    for protocol in protocols:
        for measure, title in PROTOCOLS[protocol].columns.items():
            titles[title if title not in titles else f"{protocol} {title}"] = ("test", f"{protocol}/{measure}")
    return {**titles, "validation": ("validation", SELECTION)}


def tabulate(config: ConfigDict, source: Source, scores: Mapping[str, Sequence[Mapping]]) -> dict:
    """Collects the scores of runs and fusions, one per seed, and their gain over the baseline.

    A choice has one row: that of its run with the best mean validation score. The row also lists the validation score
    of each run that was tried. `scores` is {run or fusion: [results of each seed]}. Returns the content of the
    experiment's results.json. Its scores and gains have 8 digits; the results.json of a run has all digits.
    """
    titles = columns(protocols_of(config))
    gain_of = next(iter(titles))
    choice_of = {run: choice for choice, runs in config.choices.items() for run in runs}
    rows = []
    for title in dict.fromkeys(choice_of.get(name, name) for name in scores):
        among, validation = config.choices.get(title, ()), titles["validation"]
        tried = {run: float(np.mean(_values(scores[run], validation) or [])) for run in among}
        name = max(tried, key=lambda run: tried[run]) if tried else title
        row = _row(config, title, name, scores[name], titles)
        if tried:
            row |= {"chosen": name, "tried": tried}
        baseline = scores.get(row["baseline"])
        gain = differences(row["scores"].get(gain_of), _values(baseline or [], titles[gain_of]))
        row["gain"] = None if baseline is scores[name] else gain
        row["gain_interval"] = (interval := paired_interval(row["gain"])) and list(interval)
        scored = ("scores", "test", "gain", "gain_interval", "tried")
        rows.append({field: _rounded(value) if field in scored else value for field, value in row.items()})
    data_dir = os.path.abspath(config.dataset.data_dir) if config.dataset.data_dir else ""
    test, held_out = source.videos("test", []), source.validation
    data = {"dataset": source.info.name, "data_dir": data_dir, "test_videos": len(test)}
    data["test_actions"] = sum(len(video.segments) for video in test)
    data["validation"] = {"videos": len(held_out.ids), "rule": held_out.rule, "groups": list(held_out.groups)}
    data["detections"] = _rule(scoring_of(config, source.info.head))
    gains = {"baseline": config.baseline, "gain_of": gain_of, "reported_for": config.reported_for}
    return {**data, "seeds": list(seeds(config)), "epochs": config.training.epochs, **gains, "rows": rows}


def _rule(scoring: Scoring) -> str:
    """How scores become detections; '' if no protocol needs any."""
    if all(PROTOCOLS[name].needs != "detections" for name in scoring.protocols):
        return ""
    return scoring.proposals if scoring.threshold is None else f"{scoring.proposals} from {scoring.threshold:g}"


def _row(config: ConfigDict, title: str, name: str, results: Sequence[Mapping], titles: Mapping) -> dict:
    """The row `title` with the results of the run or fusion `name`."""
    run = config.runs.get(name)
    streams = [config.runs[stream].modality for stream in config.fusions.get(name, ())]
    row = {
        "run": title,
        "modality": run.modality if run else " + ".join(streams),
        "members": list(config.fusions.get(name, ())),
        "teachers": list(run.teachers) if run else [],
        "filter": run.filter if run else None,
        "weights": {term: weight for term, weight in run.weights.items() if weight} if run else {},
        "task_weight": run.task_weight if run else None,
        "balance": run.balance if run else None,
        "starts_from": run.starts_from if run else None,
        "scores": {column: found for column, place in titles.items() if (found := _values(results, place))},
        "test": [result["test"] for result in results if "test" in result],  # [] if no test video has an action
        "best_epoch": _chosen_epochs(results) if run and run.task_weight else [],
        "baseline": (run and run.baseline) or config.baseline,
    }
    if all("competence" in result for result in results):
        row["competence"] = [result["competence"] for result in results]
    if config.reported:
        row["reported"] = config.reported.get(title, "")
    return row


def _rounded(value: Any) -> Any:
    """Plain JSON with numbers of 8 digits."""
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _values(results: Sequence[Mapping], place: tuple[str, str]) -> list | None:
    """The value at (split, key) for each seed; None if a seed lacks it."""
    split, key = place
    return [result[split][key] for result in results] if all(key in r.get(split, {}) for r in results) else None


def _chosen_epochs(results: Sequence[Mapping]) -> list[int]:
    """The best epoch of each seed; [] if validation chose none."""
    return [result["best_epoch"] for result in results if "best_epoch" in result and "validation" in result]


def markdown(results: Mapping, width: int = sys.maxsize, *, is_trial: bool = False) -> str:
    """The table that the user sees: a row per run, a column per metric, mean ± standard deviation over seeds.

    The gain over the baseline follows, with its 95 % interval, and scores that a paper reports if the config has some.
    Filters and weights have a column if they differ between runs, or between distilled runs. Below the table are the
    sentences of `diagnose`, which has `is_trial`. Sentences are wrapped at `width`. A wider table loses columns,
    which are named below, but never those of the run, the first score, the gain and reported scores.
    """
    rows = results["rows"]
    starts = [[f"starts from {row['starts_from']}"] if row["starts_from"] else [] for row in rows]
    cells = {
        "run": [row["run"] for row in rows],
        "reads": [row["modality"] for row in rows],
        "learns from": [", ".join([*row["teachers"], *start]) or "–" for row, start in zip(rows, starts, strict=True)],
    }
    filters = [row.get("filter") or "–" for row in rows]  # not in results of older versions
    if len({*filters} - {"–"}) > 1:
        cells["filter"] = filters
    weights = [_weights(row) for row in rows]
    if any("chosen" in row for row in rows) or len({*weights} - {"–"}) > 1:
        cells["weights"] = weights
    texts = list(cells)
    for title in rows[0]["scores"]:
        cells[title] = [_mean(row["scores"][title]) for row in rows]
    if any(row["gain"] is not None for row in rows):
        baselines = {row["baseline"] for row in rows if row["gain"] is not None}
        title = f"gain over {baselines.pop()}" if len(baselines) == 1 else "gain over its baseline"
        cells[title] = [_gain(row["gain"]) for row in rows]
    if any(row.get("reported") for row in rows):
        title = f"reported ({results['reported_for']})" if results["reported_for"] else "reported"
        cells[title] = [row.get("reported") or "–" for row in rows]
    left_out: list[str] = []
    for title in reversed(["learns from", "reads", *texts[3:], *list(rows[0]["scores"])[1:]]):
        if len(_lines(cells, 0)[0]) > width:
            del cells[title]
            left_out.insert(0, title)
    left = len(cells.keys() & texts)
    several = f", mean ± standard deviation over {len(results['seeds'])} seeds" if len(results["seeds"]) > 1 else ""
    time = ["", describe_time(results["time"])] if "time" in results else []  # not in results of older versions
    gains = any(len(row["gain"] or []) > 1 for row in rows)
    elsewhere = [f"Columns that did not fit are in results.md: {', '.join(left_out)}.", ""] if left_out else []
    below = [
        "",
        *elsewhere,
        *([_GAINS.format(results["gain_of"]), ""] if gains else []),
        " ".join(diagnose(results, is_trial=is_trial)),
        *time,
    ]
    fill = functools.partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
    lines = [fill(f"{_caption(results)}{several}."), "", *_lines(cells, left), *map(fill, below)]
    return "\n".join(lines).rstrip() + "\n"


def for_terminal(results: Mapping, *, is_trial: bool = False) -> str:
    """`markdown` in the width of the terminal; whole if the output goes to a file or a program."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return markdown(results, width, is_trial=is_trial)


def _caption(results: Mapping) -> str:
    """What the columns are: scores of the test videos, if they have any, and of the validation videos."""
    test, held_out = results["test_videos"], results["validation"]
    rule = results.get("detections")  # not in results of older versions
    scored = f"percent on the {test} test videos" + (f" (detections: {rule})" if rule else "")
    if not results["test_actions"]:
        why = f"none of the {test} test videos has an action" if test else "there are no test videos"
        scored = f"no test scores, because {why}"
    if not (count := held_out["videos"]):
        return f"{results['dataset']}: {scored}; no validation videos"
    groups = f" ({', '.join(held_out['groups'])})" if held_out["groups"] else ""
    chosen = f"{count} training video{'s'[: count != 1]}, {held_out['rule']}{groups}"
    return f"{results['dataset']}: {scored}; validation: frame mAP on {chosen}"


def _lines(cells: Mapping[str, Sequence[str]], left: int) -> list[str]:
    """The lines of a Markdown table of columns; the first `left` ones are aligned to the left."""
    lines = [list(cells), *zip(*cells.values(), strict=True)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(cells))]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines.insert(1, rule)
    formats = [f"{{:{'<' if i < left else '>'}{width}}}" for i, width in enumerate(widths)]
    return [f"| {' | '.join(formats)} |".format(*line) for line in lines]


def _weights(row: Mapping) -> str:
    """The weight of each term, and of the task unless it is 1; 'shares' if they are balanced."""
    task = row.get("task_weight")  # not in results of older versions
    weights = row["weights"] if task in (None, 1) else {"task": task, **row["weights"]}
    text = ", ".join(f"{term} {float(f'{weight:.3g}'):g}" for term, weight in weights.items())
    return f"shares: {text}" if text and row["balance"] == "gradient" else text or "–"


def _gain(gain: Sequence[float] | None) -> str:
    """The mean difference and its interval, with a mark if that excludes 0."""
    return "–" if gain is None else describe_gain(gain) + " *" * excludes_zero(paired_interval(gain))


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    mean = f"{np.mean(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ± {np.std(known, ddof=1):.2f}"
