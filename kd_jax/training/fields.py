"""What the fields of a JSON file must be, because it may come from elsewhere or be edited.

rules = (("a text", is_text, "run modality"), ("a finite number", is_number, "first_snippet? model.dropout?"))
problem = find_wrong_field(content, rules)          # "run is 7, but must be a text"; None if nothing is wrong
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd_jax.data.checks import short

# (description, condition, fields). A field that ends in ? may be missing or null; a dot is between section and field.
Condition = Callable[[Any], bool]
Rule = tuple[str, Condition, str]


def find_wrong_field(content: Mapping, rules: Sequence[Rule]) -> str | None:
    """What is wrong with a field of a file; None if nothing is."""
    for must_be, holds, fields in rules:
        for field in fields.split():
            name = field.removesuffix("?")
            value = functools.reduce(_get, name.split("."), content)
            if value is None and name == field:
                return f"the field {name} is missing"
            if value is not None and not holds(value):
                return f"{name} is {short(value)}, but must be {must_be}"
    return None


def _get(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, Mapping) else None


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # a whole number may be beyond it


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def is_list_of(holds: Condition) -> Condition:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def are_named(holds: Condition) -> Condition:
    return lambda value: isinstance(value, Mapping) and all(map(holds, value.values()))


def are_scores(value: Any) -> bool:
    """Whether scores are what `scoring.as_results` returns."""
    if not isinstance(value, Mapping) or not isinstance(value.get("per_class"), Mapping):
        return False
    tables = [{key: score for key, score in value.items() if key != "per_class"}, *value["per_class"].values()]
    return all(isinstance(table, Mapping) and table and all(map(is_percentage, table.values())) for table in tables)


def is_percentage(value: Any) -> bool:
    return value is None or (is_number(value) and 0 <= value <= 100.0001)  # a mean may be rounded up
