"""What the fields of a JSON file must be, because it may come from elsewhere or be edited.

rules = (("a text", is_text, "dataset"), ("a finite number", is_number, "first_snippet? model.dropout?"))
check_fields(path, content, rules, "copy it again")    # DamagedFileError: "PATH: dataset is 7, but must be a text; …"
"""

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd_jax.data.checks import short
from kd_jax.files import DamagedFileError

# (description, condition, fields). A field that ends in ? may be missing or null; a dot is between section and field.
Condition = Callable[[Any], bool]
Rule = tuple[str, Condition, str]


def check_fields(path: str | os.PathLike, content: Mapping, rules: Sequence[Rule], remedy: str) -> dict:
    """Returns the fields of a file that are not null.

    Raises DamagedFileError, which ends with the remedy, if a field is missing or breaks its rule.
    """
    for must_be, holds, fields in rules:
        for field in fields.split():
            name = field.removesuffix("?")
            value = functools.reduce(_get, name.split("."), content)
            if value is None and name == field:
                raise DamagedFileError(f"{path}: the field {name} is missing; {remedy}")
            if value is not None and not holds(value):
                raise DamagedFileError(f"{path}: {name} is {short(value)}, but must be {must_be}; {remedy}")
    return {field: value for field, value in content.items() if value is not None}


def _get(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, Mapping) else None


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_name(value: Any) -> bool:
    """Whether a value is a text that is not empty."""
    return is_text(value) and value != ""


def is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # a whole number may be beyond it


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def list_of(holds: Condition) -> Condition:
    """Returns the condition that a value is a list, and each of its values meets the condition `holds`."""
    return lambda value: is_list(value) and all(map(holds, value))


def mapping_to(holds: Condition) -> Condition:
    """Returns the condition that a value is a mapping, and each of its values meets the condition `holds`."""
    return lambda value: is_mapping(value) and all(map(holds, value.values()))


def are_scores(value: Any) -> bool:
    """Whether scores are what `scoring.as_results` returns."""
    if not is_mapping(value) or not is_mapping(value.get("per_class")):
        return False
    tables = [{key: score for key, score in value.items() if key != "per_class"}, *value["per_class"].values()]
    return all(table and mapping_to(is_percentage)(table) for table in tables)


def is_percentage(value: Any) -> bool:
    return value is None or (is_number(value) and 0 <= value <= 100.0001)  # a mean may be rounded up
