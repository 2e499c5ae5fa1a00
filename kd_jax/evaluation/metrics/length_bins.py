"""Bins of action length, in seconds: {name: (longer than, at most)}.

`detection_map_by_length` and `frame_map_by_length` use them. An action belongs to a bin if
`longer than < end - start <= at most`, so an action of length 0 is in no bin that starts at 0.
"""

from collections.abc import Mapping

import numpy as np

# Bins of published error analyses: ActionFormer (Zhang et al., ECCV 2022) on THUMOS14, which has short actions, and
# DETAD (Alwassel et al., ECCV 2018) on ActivityNet, which has long ones.
THUMOS14_LENGTH_BINS = {"XS": (0, 3), "S": (3, 6), "M": (6, 12), "L": (12, 18), "XL": (18, np.inf)}
ACTIVITYNET_LENGTH_BINS = {"XS": (0, 30), "S": (30, 60), "M": (60, 120), "L": (120, 180), "XL": (180, np.inf)}


def in_length_bin(start: np.ndarray, end: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Returns `[N]` bool: whether a segment is longer than the first limit and at most as long as the second."""
    longer_than, at_most = limits
    return (end - start > longer_than) & (end - start <= at_most)


def check_length_bins(function: str, bins: Mapping[str, tuple[float, float]]) -> None:
    """Raises ValueError unless there is a bin and each is (longer than, at most) in ascending order."""
    if not bins:
        raise ValueError(f"{function}: bins must name at least one bin of lengths.")
    for name, limits in bins.items():
        if len(limits) != 2 or not 0 <= limits[0] < limits[1]:
            raise ValueError(f"{function}: bins[{name!r}] must be (longer than, at most) in seconds; got {limits}.")
