"""The checks of features before a detector reads them, in `kd_jax.load`, windows and streams.

    table = check_features(features, 1024, dtype="float16")     # ValueError that names the array and the snippet
    check_input_size(model, variables, 1024)

`kd_jax.predict` reads files, whose values go through the same check, `kd_jax.data.base.to_dtype`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kd_jax.data import base
from kd_jax.data.feature_tables import is_real
from kd_jax.training.run_config import describe_variables


def check_table(features: Any, size: int, name: str = "features", *, fewest: int = 1) -> np.ndarray:
    """Returns features as an array `[T, D]`, without a copy of a NumPy array; values are not read.

    Args:
      features: anything that NumPy reads as an array.
      size: D.
      name: of the array, for messages.
      fewest: the least T.

    Raises ValueError for another shape, or a dtype that is not a real number type.
    """
    table = np.asarray(features)
    if table.ndim != 2 or table.shape[1] != size or len(table) < fewest:
        expected = f"[T, {size}], one row of {size} features for each snippet"
        found = f"shape {list(table.shape)}" if table.ndim else f"the type {type(features).__name__}"
        raise ValueError(f"the array {name} has {found}; expected {expected}")
    if not is_real(table.dtype):
        raise ValueError(f"the array {name} has dtype {table.dtype}; expected a real number type such as float32")
    return table


def check_values(table: np.ndarray, name: str = "features", *, dtype: str, first: int = 0) -> np.ndarray:
    """Returns `[T, D]` features in `dtype`, 'float16' or 'float32'; row 0 is snippet `first`.

    Raises ValueError that names the snippet for a value that is not finite or that `dtype` cannot hold.
    """
    try:
        return base.to_dtype(table, dtype, first)
    except ValueError as error:
        raise ValueError(f"the array {name} {error}") from None


def check_features(features: Any, size: int, name: str = "features", *, dtype: str) -> np.ndarray:
    """Returns the features of one video as `[T, D]` in `dtype`; raises ValueError as the two functions above do."""
    return check_values(check_table(features, size, name), name, dtype=dtype)


def check_input_size(model, variables: dict, size: int) -> None:
    """Raises ValueError unless a detector with these variables reads features of width D = `size`."""
    asked_for = max(size, 1)  # no detector reads features of width 0
    found, wanted = _shapes(variables), _wanted(model, asked_for)
    if found == wanted and size:
        return
    pairs = [pair for name in wanted.keys() & found.keys() for pair in zip(wanted[name], found[name], strict=False)]
    widths = {asked_for * own // asked for asked, own in pairs}  # an array has a multiple of D
    if (known := next((width for width in widths if found == _wanted(model, width)), None)) is None:
        raise ValueError(f"the variables are not those of this {model.filter!r} detector; load both from one run")
    raise ValueError(f"the detector reads features of width {known}, not {size}; give those of its modality")


@functools.lru_cache(maxsize=256)
def _wanted(model, size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the variables of a detector that reads features of width `size`; {} if it cannot read them."""
    try:
        return _shapes(describe_variables(model, size))
    except Exception:  # a filter may raise anything for a size that it cannot have
        return {}


def _shapes(variables: Mapping) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): np.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(variables)}
