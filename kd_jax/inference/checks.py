"""The checks of features before a detector reads them, in `kd_jax.load`, windows and streams.

    table = check_features(features, 1024, dtype="float16")     # ValueError that names the array and the snippet
    check_input_size(model, variables, 1024)

`kd_jax.predict` reads files, whose values go through the same check, `kd_jax.data.base.to_dtype`.
"""

import functools
from typing import Any

import jax
import numpy as np

from kd_jax.data import base
from kd_jax.data.feature_tables import is_real


def check_table(features: Any, size: int, name: str = "features", *, fewest: int = 1) -> np.ndarray:
    """Returns features as an array `[T, D]`, without a copy of a NumPy array; values are not read.

    Args:
      features: anything that NumPy reads as an array.
      size: D.
      name: of the array, for messages.
      fewest: the least T.

    Raises ValueError for another shape, or a dtype that is no real number type.
    """
    table = np.asarray(features)
    if table.ndim != 2 or table.shape[1] != size or len(table) < fewest:
        expected = f"[T, {size}], one row of {size} features for each snippet"
        raise ValueError(f"the array {name} has shape {list(table.shape)}; expected {expected}")
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
    if _reads(model, variables, size):
        return
    sizes = {length for leaf in jax.tree.leaves(variables) for length in np.shape(leaf)}
    parts = {size // n for size in sizes for n in range(2, 9) if size % n == 0}  # TGM reads several channels as one
    known = next((width for width in (*sorted(sizes), *sorted(parts - sizes)) if _reads(model, variables, width)), None)
    if known is None:
        raise ValueError(f"the variables are not those of this {model.filter!r} detector; load both from one run")
    raise ValueError(f"the detector reads features of width {known}, not {size}; give those of its modality")


def _reads(model, variables: dict, size: int) -> bool:
    """Whether a detector can be traced with features of width `size`; nothing is computed."""
    mean = variables.get("standardization", {}).get("mean")
    if mean is not None and mean.shape != (size,):  # it could be broadcast
        return False
    leaves, tree = jax.tree.flatten(variables)
    return _traces(model, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves), size)


@functools.lru_cache(maxsize=256)
def _traces(model, tree, arrays: tuple, size: int) -> bool:
    variables = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*array) for array in arrays])
    x, mask = jax.ShapeDtypeStruct((1, 1, size), np.float32), jax.ShapeDtypeStruct((1, 1), bool)
    try:
        jax.eval_shape(model.apply, variables, x, mask)
    except Exception:  # a filter may raise anything for a size that it cannot have
        return False
    return True
