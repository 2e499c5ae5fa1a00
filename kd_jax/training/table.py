"""Scores of runs and fusions → the table of results, as JSON and as Markdown."""

from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from kd_jax.data.source import Source
from kd_jax.evaluation.protocols import PROTOCOLS
from kd_jax.training.logs import SELECTION
from kd_jax.training.plan import seeds
from kd_jax.training.scores import scoring_of


def columns(protocols: Sequence[str]) -> dict[str, tuple[str, str]]:
    """{title of a column: (split, key of score_split's result)}; the gain is that of the first column."""
    titles: dict[str, tuple[str, str]] = {}
    for protocol in protocols:
        for measure, title in PROTOCOLS[protocol].columns.items():
            titles[title if title not in titles else f"{protocol} {title}"] = ("test", f"{protocol}/{measure}")
    return {**titles, "validation": ("validation", SELECTION)}


def tabulate(config: ConfigDict, source: Source, scores: Mapping[str, Sequence[Mapping]]) -> dict:
    """Collects every run's and fusion's scores, seed by seed, and the gain over the baseline.

    Of the runs of a choice only the one with the best validation score, mean over seeds, has a row, by the choice's
    name; what the others had in validation stands beside it.
    """
    titles = columns(scoring_of(config).protocols)
    first, rows = next(iter(titles)), []

    def values(results, title):
        split, key = titles[title]
        return [r[split][key] for r in results] if all(key in r.get(split, {}) for r in results) else None

    choice_of = {run: choice for choice, runs in config.choices.items() for run in runs}
    for title in dict.fromkeys(choice_of.get(name, name) for name in scores):
        tried = {run: np.mean(values(scores[run], "validation")) for run in config.choices.get(title, ())}
        name = max(tried, key=tried.get) if tried else title
        results, run = scores[name], config.runs.get(name)
        streams = [config.runs[stream].modality for stream in config.fusions.get(name, ())]
        row = {
            "run": title,
            "modality": run.modality if run else " + ".join(streams),
            "teachers": list(run.teachers) if run else [],
            "weights": {t: w for t, w in run.weights.items() if w} if run else {},
            "balance": run.balance if run else None,
            "starts_from": run.starts_from if run else None,
            "scores": {t: found for t in titles if (found := values(results, t))},
            "test": [r["test"] for r in results],
            "baseline": (run and run.baseline) or config.baseline,
        }
        if tried:
            row |= {"chosen": name, "tried": tried}
        if config.published:
            row["published"] = config.published.get(title, "")
        rows.append(row)
    for row in rows:
        own = scores[row.get("chosen", row["run"])]
        baseline = values(scores[row["baseline"]], first) if row["baseline"] else None
        known = baseline and None not in (*baseline, *row["scores"][first]) and scores[row["baseline"]] is not own
        row["gain"] = [a - b for a, b in zip(row["scores"][first], baseline, strict=True)] if known else None
    return {
        "dataset": source.info.name,
        "test_videos": len(source.videos("test", [])),
        "seeds": list(seeds(config)),
        "baseline": config.baseline,
        "gain_of": first,
        "published_for": config.published_for,
        "rows": rows,
    }


def markdown(results: Mapping) -> str:
    """The table a user sees: run × metric, mean ± standard deviation over seeds, gain over the baseline.

    Weights have a column where they were chosen among several ('shares': of the task's gradient, see `balance`),
    published figures where the config has some.
    """
    rows = results["rows"]
    cells = {
        "run": [row["run"] for row in rows],
        "reads": [row["modality"] for row in rows],
        "learns from": [", ".join([*row["teachers"], *_start(row)]) or "–" for row in rows],
    }
    if any("chosen" in row for row in rows):
        cells["weights"] = [_weights(row) for row in rows]
    left = len(cells)
    for title in rows[0]["scores"]:
        cells[title] = [_mean(row["scores"][title]) for row in rows]
    if any(row["gain"] is not None for row in rows):
        baselines = {row["baseline"] for row in rows if row["gain"] is not None}
        title = f"gain over {baselines.pop()}" if len(baselines) == 1 else "gain over its baseline"
        cells[title] = ["–" if row["gain"] is None else _mean(row["gain"], sign="+") for row in rows]
    if any(row.get("published") for row in rows):
        title = f"published ({results['published_for']})" if results["published_for"] else "published"
        cells[title] = [row.get("published") or "–" for row in rows]
    lines = [list(cells), *zip(*cells.values(), strict=True)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(cells))]
    text = [
        " | ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = " | ".join("-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths))
    seeds_note = f", mean ± standard deviation over {len(results['seeds'])} seeds" if len(results["seeds"]) > 1 else ""
    caption = (
        f"{results['dataset']}: percent on the {results['test_videos']} test videos; validation: frame mAP{seeds_note}."
    )
    return "\n".join([caption, "", *(f"| {line} |" for line in (text[0], rule, *text[1:]))]) + "\n"


def _start(row: Mapping) -> list[str]:
    return [f"starts from {row['starts_from']}"] if row["starts_from"] else []


def _weights(row: Mapping) -> str:
    """Factors of the terms, or what they are kept at where they are balanced."""
    text = ", ".join(f"{term} {float(f'{weight:.3g}'):g}" for term, weight in row["weights"].items())
    return f"shares: {text}" if text and row["balance"] == "gradient" else text or "–"


def _mean(values: Sequence[float | None], sign: str = "") -> str:
    if None in values:
        return "–"
    mean = f"{np.mean(values):{sign}.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"
