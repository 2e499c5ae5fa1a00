"""What the numbers of an experiment say, in a few sentences.

    print(" ".join(diagnose(results)))  # the content of an experiment's results.json

Every sentence is left out if its numbers do not exist: without a teacher, a fusion, test scores or validation videos.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kd_jax.evaluation.intervals import describe_gain, differences, excludes_zero, paired_interval
from kd_jax.training.logs import SELECTION
from kd_jax.training.terms import TERMS

_NAMED = 3  # runs, classes or pairs that are named; more are counted
_FAR = 5.0, 1.25  # validation is far above the test: points, and ratio
_INCOMPETENT = 0.55  # competence below which terms of features, times max(0, 2 · competence - 1), hardly count
_VALIDATION = "validation"  # a column of the table
_BETTER, _WORSE = "is better than", "is worse than"


def diagnose(results: Mapping, *, is_trial: bool = False) -> list[str]:
    """Returns sentences on teachers, streams, gains, the number of epochs, validation, and what to try next.

    Backticks enclose options and commands. `results` may come from an older version. With `is_trial`, what to try next
    and the number of epochs are left out, because `kd-jax advise` says that itself.
    """
    rows = {row["run"]: row for row in results["rows"]}
    students = [row for row in rows.values() if row["teachers"] and row["baseline"] in rows.keys() - {row["run"]}]
    column = results.get("gain_of", "")
    if not any(row["scores"].get(column) for row in rows.values()):
        column = _VALIDATION
    return [
        *_on_teachers(rows, students, column),
        *_on_fusions(rows, column),
        *_on_gains(students),
        *([] if is_trial else _on_epochs(results)),
        *_on_competence(students),
        *_on_validation(results, column),
        *([] if is_trial else _on_next_steps(results, rows, students, column)),
    ]


def best_student(results: Mapping) -> str:
    """Returns the distilled run with the best mean validation score.

    Without scores it is the first distilled run; without distilled runs, the last run.
    """
    runs = [row for row in results["rows"] if not row["members"]]
    students = [row for row in runs if row["teachers"]] or runs[-1:]
    best = max(students, key=lambda row: _mean(row, _VALIDATION) or 0.0)
    return best.get("chosen", best["run"])


def still_improving(best_epochs: Sequence[int], num_epochs: int) -> bool:
    """Returns whether the best epoch is among the last tenth, at least the last, for at least half of the seeds."""
    first = num_epochs - max(1, num_epochs // 10)
    return num_epochs > 1 and 2 * sum(epoch > first for epoch in best_epochs) >= len(best_epochs) > 0


def describe_early_end(whose: str, num_epochs: int) -> str:
    """Says that the best epoch is among the last tenth; `whose` is 'its best epoch' or 'the best epoch of a and b'."""
    count = max(1, num_epochs // 10)
    last = f"the last {count} of {num_epochs} epochs" if count > 1 else f"the last of {num_epochs} epochs"
    among = "is among" if count > 1 else "is"
    remedy = f"try `--config.training.epochs={2 * num_epochs}`"
    return f"Training may have ended too early: {whose} {among} {last}; {remedy}."


def disagreements(validation: Mapping[str, float], test: Mapping[str, float]) -> tuple[int, int]:
    """Counts the pairs of runs that validation and test score order differently, and all pairs; ties agree."""
    names = list(validation)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    differing = [(validation[a] - validation[b]) * (test[a] - test[b]) < 0 for a, b in pairs]
    return sum(differing), len(pairs)


def _on_teachers(rows: Mapping, students: Sequence[Mapping], column: str) -> list[str]:
    """How each teacher compares with the plain student, and on which classes."""
    sentences, counted = [], 0
    for teacher, baseline in _teaching_pairs(rows, students):
        gains = {name: _difference(rows[teacher], rows[baseline], name) for name in (column, _VALIDATION)}
        known = {name: gain for name, gain in gains.items() if gain}
        if not known:
            continue
        counted += 1
        if counted > _NAMED:
            continue
        (first, gain), *others = known.items()
        word = _compare(gain)
        text = f"The teacher {teacher} {word} {baseline} {_where(first)} ({describe_gain(gain)})"
        for name, other in others:
            again = "" if _compare(other) == word else f"{_compare(other)} it "
            text += f" and {again}{_where(name)} ({describe_gain(other)})"
        sentences += [f"{text}.", *_on_classes(rows[teacher], rows[baseline])]
    if counted > _NAMED:
        sentences.append(f"The table has {counted - _NAMED} more pairs of a teacher and a plain student.")
    return sentences


def _teaching_pairs(rows: Mapping, students: Sequence[Mapping]) -> list[tuple[str, str]]:
    """(teacher, plain student) of every student, where the teacher has a row."""
    pairs = [(teacher, row["baseline"]) for row in students for teacher in row["teachers"]]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] in rows and pair[0] != pair[1]]


def _on_classes(teacher: Mapping, baseline: Mapping) -> list[str]:
    """On how many classes of the test a teacher is better, and where most; one sentence or none."""
    ours, theirs = _class_scores(teacher), _class_scores(baseline)
    gains = {name: ours[name] - theirs[name] for name in ours if name in theirs}
    if not gains:
        return []
    better = sorted((name for name in gains if gains[name] > 0), key=lambda name: -gains[name])
    shown = _listed([f"{name} ({gains[name]:+.1f})" for name in better[:_NAMED]])
    most = f", {'most in ' * (len(better) > 1)}{shown}" if better else ""
    return [f"It is better in {len(better) or 'none'} of {len(gains)} classes{most}."]


def _class_scores(row: Mapping) -> dict[str, float]:
    """{class: mean test score over seeds} in the first protocol that has them, without those that do not exist."""
    per_seed: list[Mapping] = [next(iter(scores.get("per_class", {}).values()), {}) for scores in row.get("test", [])]
    first = per_seed[0] if per_seed else {}
    known = [name for name in first if all(seed.get(name) is not None for seed in per_seed)]
    return {name: float(np.mean([seed[name] for seed in per_seed])) for name in known}


def _on_fusions(rows: Mapping, column: str) -> list[str]:
    """Whether the streams of each fusion complement each other."""
    sentences = []
    for name, row in rows.items():
        members = [rows[member] for member in row.get("members") or [] if member in rows]
        if len(members) < 2 or not all(_mean(member, column) is not None for member in members):
            continue
        best = max(members, key=lambda member: _mean(member, column) or 0.0)
        if not (gain := _difference(row, best, column)):
            continue
        word = _compare(gain)
        verb = {_BETTER: "complement", _WORSE: "do not complement"}.get(word)
        lead = f"The streams of {name} {verb}" if verb else f"It is open whether the streams of {name} complement"
        text = f"{lead} each other: their fusion {word} {best['run']}, the best stream"
        sentences.append(f"{text}, {_where(column)} ({describe_gain(gain)}).")
    return sentences[:_NAMED]


def _on_gains(students: Sequence[Mapping]) -> list[str]:
    """Whether the gain of each student on the test videos excludes 0."""
    known = [row for row in students if row["gain"]]
    if not known:
        return []
    if len(known[0]["gain"]) == 1:
        return ["One seed cannot show whether a difference is real; add `--config.seeds=5`."]
    if len(known) > _NAMED:
        return [_count_gains(known)]
    sentences = []
    for row in known:
        says = "the interval excludes 0" if excludes_zero(paired_interval(row["gain"])) else "the interval contains 0"
        word = _compare(row["gain"])
        sentences.append(f"{row['run']} {word} {row['baseline']} ({describe_gain(row['gain'])}): {says}.")
    return sentences


def _count_gains(students: Sequence[Mapping]) -> str:
    """How many of many students are better and worse than their baseline."""
    found: dict[str, list[Mapping]] = {}
    for row in students:
        found.setdefault(_compare(row["gain"]), []).append(row)
    better = sorted(found.get(_BETTER, []), key=lambda row: -np.mean(row["gain"]))
    shown = _listed([f"{row['run']} {describe_gain(row['gain'])}" for row in better[:_NAMED]])
    most = f" (best: {shown})" if better else ""
    worse = len(found.get(_WORSE, []))
    rest = len(students) - len(better) - worse
    counts = f"{_are(len(better))} better than the plain student{most} and {_are(worse)} worse"
    unsure = f"; {rest} show{'s'[: rest == 1]} no measurable difference" if rest else ""
    return f"Of {len(students)} distilled runs, {counts}{unsure}. By chance, one interval in 20 excludes 0."


def _are(count: int) -> str:
    return f"{count or 'none'} {'are' if count > 1 else 'is'}"


def early_end(results: Mapping) -> str:
    """Says which runs may have ended too early; '' if none, or without validation videos, which would show it."""
    num_epochs, chosen = results.get("epochs", 0), [row for row in results["rows"] if row.get("best_epoch")]
    late = [row["run"] for row in chosen if still_improving(row["best_epoch"], num_epochs)]
    if not late or not _has_validation(results):
        return ""
    names = _listed(late) if len(late) <= _NAMED else f"{len(late)} of {len(chosen)} runs"
    return describe_early_end(f"the best epoch of {names}", num_epochs)


def _on_epochs(results: Mapping) -> list[str]:
    """Whether training ended too early."""
    if results.get("epochs") and not _has_validation(results):
        return ["Without validation videos, nothing shows whether training was long enough."]
    return [sentence] if (sentence := early_end(results)) else []


def _has_validation(results: Mapping) -> bool:
    return results.get("validation", {}).get("videos") != 0


def _on_competence(students: Sequence[Mapping]) -> list[str]:
    """Whether teachers explain too little of the training labels, so that terms that compare features hardly count."""
    weak = [row for row in students if _hardly_counts(row)]
    if not weak:
        return []
    names = _listed([row["run"] for row in weak]) if len(weak) <= _NAMED else f"{len(weak)} distilled runs"
    teachers = {name for row in weak for name in row["teachers"]}
    explain = "the teachers explain" if len(teachers) > 1 else "the teacher explains"
    most = max(np.mean(row["competence"]) for row in weak)
    why = f"{explain} too little of the training labels (competence {most:.2f})"
    return [f"The terms of {names} that compare features hardly count, because {why}."]


def _hardly_counts(row: Mapping) -> bool:
    """Whether a run compares features, and its mean competence is so low that these terms have almost no weight."""
    of_features = any(term in TERMS and not TERMS[term].needs_logits for term in row.get("weights", {}))
    return of_features and bool(row.get("competence")) and np.mean(row["competence"]) < _INCOMPETENT


def _on_validation(results: Mapping, column: str) -> list[str]:
    """Whether validation orders the runs as the test does, and whether it is far above the test."""
    rows = [row for row in results["rows"] if not row.get("members")]
    means = {row["run"]: (_mean(row, _VALIDATION), _mean(row, column)) for row in rows}
    known = {run: (ours, test) for run, (ours, test) in means.items() if ours is not None and test is not None}
    if column == _VALIDATION or len(known) < 2:
        return []
    validation, test = ({run: pair[i] for run, pair in known.items()} for i in (0, 1))
    sentences = []
    if len(known) > 2:
        differing, pairs = disagreements(validation, test)
        same = f"{pairs - differing} of {pairs} pairs of runs as the test does"
        same += "" if column == "frame mAP" else f" in {column}"
        sentences.append(f"Validation orders {same} (rank correlation {1 - 2 * differing / pairs:.2f}).")
    return sentences + _on_distance(results, rows)


def _on_distance(results: Mapping, rows: Sequence[Mapping]) -> list[str]:
    """Whether validation scores are far above test scores of the same measure."""
    ours, theirs = list[float](), list[float]()
    for row in rows:
        scores = [seed.get(SELECTION) for seed in row.get("test", [])]
        if scores and None not in scores and (score := _mean(row, _VALIDATION)) is not None:
            ours.append(score)
            theirs.append(float(np.mean(scores)))
    points, ratio = _FAR
    if not ours or np.mean(ours) - np.mean(theirs) < points or np.mean(ours) < ratio * np.mean(theirs):
        return []
    held_out = results.get("validation", {})
    text = f"Validation scores are {np.mean(ours) - np.mean(theirs):.1f} points above test scores on average"
    if held_out.get("groups") or not str(held_out.get("rule", "")).startswith("dataset."):
        return [f"{text}."]
    remedy = "hold out whole groups with `--config.dataset.validation_groups=REGEX`"
    return [f"{text}; if several training videos show one person or place, {remedy}."]


def _on_next_steps(results: Mapping, rows: Mapping, students: Sequence[Mapping], column: str) -> list[str]:
    """One sentence on what to try next; none for one seed, which needs more seeds first."""
    known = [row for row in students if row["gain"] and len(row["gain"]) > 1]
    if not known:
        return []
    if real := [row for row in known if _compare(row["gain"]) == _BETTER]:
        best = max(real, key=lambda row: np.mean(row["gain"]))["run"]
        return [f"Next, run `kd-jax analyse` to see in which classes and actions {best} gains."]
    if early_end(results):
        return ["Next, train longer."]
    pairs = [_difference(rows[teacher], rows[plain], column) for teacher, plain in _teaching_pairs(rows, students)]
    if pairs and all(gain and _compare(gain) == _WORSE for gain in pairs):
        return ["Next, train a better teacher or choose another one."]
    if any(map(_hardly_counts, known)):
        return ["Next, train longer, or choose a teacher that explains more of the training labels."]
    if all(_compare(row["gain"]) == _WORSE for row in known):
        return ["Next, try smaller weights: `kd-jax advise` compares several."]
    return ["Next, add seeds, or try other weights: `kd-jax advise` compares several."]


def _difference(one: Mapping, other: Mapping, column: str) -> list[float] | None:
    """The paired differences of two rows in a column, one per seed; None if there are none."""
    return differences(one["scores"].get(column), other["scores"].get(column))


def _compare(gain: Sequence[float]) -> str:
    """A verb for a difference, e.g. _BETTER; with one seed its sign decides."""
    mean = np.mean(gain)
    if len(gain) == 1 and mean == 0:
        return "is as good as"
    if len(gain) > 1 and not excludes_zero(paired_interval(gain)):
        return "does not differ measurably from"
    return _BETTER if mean >= 0 else _WORSE


def _where(column: str) -> str:
    if column == _VALIDATION:
        return "in validation"
    return "on the test videos" if column == "frame mAP" else f"in {column} on the test videos"


def _mean(row: Mapping, column: str) -> float | None:
    """The mean score of a row; None if it does not exist."""
    values = row["scores"].get(column)
    return None if not values or None in values else float(np.mean(values))


def _listed(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
