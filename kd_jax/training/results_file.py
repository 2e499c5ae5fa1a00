"""Reads the results.json of an experiment, the table of results, and checks its fields.

results = read_table(epath.Path("workdir/demo"), "run its experiment again")     # None if there is no table
"""

from typing import Any

from etils import epath

from kd_jax.files import DamagedFileError, read_json
from kd_jax.training.fields import (
    Condition,
    Rule,
    are_scores,
    check_fields,
    is_mapping,
    is_name,
    is_number,
    is_percentage,
    is_text,
    list_of,
    mapping_to,
)

_RULES: tuple[Rule, ...] = (
    ("a list of whole numbers", lambda value: bool(value) and list_of(_is_whole)(value), "seeds"),
    ("a list of rows", lambda value: bool(value) and list_of(is_mapping)(value), "rows"),
    ("a text", is_text, "dataset gain_of baseline data_dir? reported_for? validation.rule?"),
    ("a number", is_number, "test_videos test_actions? epochs? validation.videos?"),
    ("a number", is_number, "time.productive? time.compiling? time.restarts? time.lost?"),
    ("a list of texts", list_of(is_text), "validation.groups?"),
    ("texts by name", mapping_to(is_text), "environment?"),
    ("fields and their values", is_mapping, "validation? time? config?"),
)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _rules_of_rows(seeds: int) -> tuple[Rule, ...]:
    """What the fields of a row must be, which has a value for each seed."""

    def per_seed(holds: Condition) -> Condition:
        return lambda value: list_of(holds)(value) and len(value) in (0, seeds)

    def is_column(value: Any) -> bool:
        return value is None or per_seed(is_percentage)(value)

    return (
        ("a text that is not empty", is_name, "run modality"),
        ("a text", is_text, "baseline balance? starts_from? chosen? reported?"),
        ("a list of texts", list_of(is_name), "teachers members?"),
        ("numbers by name", mapping_to(is_number), "weights tried?"),
        ("percentages of each seed, by column", mapping_to(is_column), "scores"),
        ("the scores of each seed", per_seed(are_scores), "test"),
        ("a number for each seed", per_seed(is_number), "gain? competence?"),
        ("a number", is_number, "task_weight?"),
        ("two numbers", lambda value: list_of(is_number)(value) and len(value) == 2, "gain_interval?"),
        ("an epoch for each seed", per_seed(is_number), "best_epoch?"),
    )


def read_table(workdir: epath.Path, remedy: str) -> dict | None:
    """Reads the results.json of an experiment, without fields that are null; None if there is none, or that of a run.

    Raises DamagedFileError, which ends with the remedy, if it cannot be read or a field is missing or out of range.
    """
    path = workdir / "results.json"
    results = read_json(path, remedy)
    if results is None or "rows" not in results:
        return None
    found = check_fields(path, results, _RULES, remedy)
    for i, row in enumerate(found["rows"]):
        check_fields(f"{path}: row {i}", row, _rules_of_rows(len(found["seeds"])), remedy)
    if len({len(row["test"]) for row in found["rows"]}) > 1:
        raise DamagedFileError(f"{path}: some rows have scores of the test videos, and others have none; {remedy}")
    return found
