"""Units of time that may have been mixed up, by the ratio of two lengths.

as_between(1.2)                     # ', as between 30 and 25 frames per second'
as_between(15.0, *OR_MORE)          # ', as between seconds and frames at 15 to 30 per second'
common_factor(np.array([1.2] * 9))  # 1.2, and True for each
"""

import math

import numpy as np

FRAME_RATES = (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 100, 120)
RATES = (24, 25, 30)  # usual frames per second
GROUPS = {  # two units of time: {frame rate: their factor}
    "seconds and frames at {} per second": {fps: float(fps) for fps in FRAME_RATES},
    "minutes and frames at {} per second": {fps: 60.0 * fps for fps in RATES},
    "frames at {} per second and milliseconds": {fps: 1000 / fps for fps in RATES},
}
PAIRS = {  # two units of time: their factor
    "minutes and seconds": 60.0,
    "seconds and milliseconds": 1e3,
    "hours and seconds": 3600.0,
    "minutes and milliseconds": 6e4,
    "seconds and microseconds": 1e6,
    "seconds and ticks of 100 nanoseconds": 1e7,
    "seconds and nanoseconds": 1e9,
}
ONE_WAY = {  # two units of frames, in the order of the lengths: their factor
    **{f"{one} and {other} frames per second": one / other for one in RATES for other in RATES if one != other},
    "every frame and every second frame": 2.0,
    "every second frame and every frame": 0.5,
}
_BOTH_WAYS = {*PAIRS.values(), *(factor for group in GROUPS.values() for factor in group.values())}
FACTORS = (*ONE_WAY.values(), *_BOTH_WAYS, *(1 / factor for factor in _BOTH_WAYS))  # between any two units

OTHER_UNIT = 5.0  # a ratio of two lengths of one video, from which one has another unit
MOST = 0.75  # the share of the videos that must agree before the others are named
SHARED = 0.975, 1.025  # lowest and highest factor, as parts of a ratio that many videos share
# The same for the time at which a last action ends, as a part of its video: it may be half of it, hardly more than it.
OR_MORE, OR_LESS = (1 / 1.02, 2.0), (0.5, 1.02)


def as_between(ratio: float, lowest: float = SHARED[0], highest: float = SHARED[1]) -> str:
    """Names all units whose factor is from `lowest · ratio` to `highest · ratio`: ', as between … or …', or ''."""

    def fits(factor: float) -> bool:
        return lowest * ratio <= factor <= highest * ratio

    names = []
    for name, factors in GROUPS.items():
        if rates := [fps for fps, factor in factors.items() if fits(factor) or fits(1 / factor)]:
            names.append(name.format(" to ".join(dict.fromkeys([str(rates[0]), str(rates[-1])]))))
    names += [name for name, factor in PAIRS.items() if fits(factor) or fits(1 / factor)]
    names += [name for name, factor in ONE_WAY.items() if fits(factor)]
    return f", as between {' or '.join(names)}" if names else ""


def common_factor(ratios: np.ndarray) -> tuple[float | None, np.ndarray]:
    """Finds the factor above 0 that most of at least three ratios share, unless it is 1 within 2 %.

    Returns the factor, or None, and for each ratio whether it is the factor within 2 %.
    """
    factor = float(np.median(ratios)) if len(ratios) > 2 else 0.0
    if 0 < factor < math.inf and abs(factor - 1) > 0.02:
        shared = np.abs(ratios / factor - 1) < 0.02
        if shared.mean() >= MOST:
            return factor, shared
    return None, np.zeros(len(ratios), bool)
