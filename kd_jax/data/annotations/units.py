"""Units of time that may have been mixed up, by the ratio of two lengths.

describe_ratio(24.9)                        # 'the ratio is about 24.9, as between seconds and frames at 25 …'
suggest(common_factor(np.array([1.2] * 9))[0])  # '; were 30 and 25 frames per second mixed up?'
"""

import math

import numpy as np

FRAME_RATES = (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 100, 120)
PAIRS = {  # factor between two units of time: their names
    **{float(fps): f"seconds and frames at {fps} per second" for fps in FRAME_RATES},
    **{1000 / fps: f"frames at {fps} per second and milliseconds" for fps in (24, 25, 30)},
    1e3: "seconds and milliseconds",
    1e6: "seconds and microseconds",
    1e7: "seconds and ticks of 100 nanoseconds",
    1e9: "seconds and nanoseconds",
}
SLACK, LOOSE = 1.02, 1.3  # a last action that reaches the end of its video, and one that ends well before it
MOST = 0.75  # the share of the videos that must agree before the others are named
RATES = (24.0, 25.0, 30.0)  # usual frames per second
MEANINGS = {  # ratio of two lengths of a video → what may have been mixed up
    **{one / other: f"{one:g} and {other:g} frames per second" for one in RATES for other in RATES if one != other},
    **PAIRS,
    **{1 / factor: units for factor, units in PAIRS.items()},
    2.0: "every frame and every second frame",
    0.5: "every second frame and every frame",
}


def describe_ratio(ratio: float, below: float = SLACK, above: float = LOOSE) -> str:
    """Names the pairs of units whose factor is between `ratio / below` and `ratio * above`."""
    fitting = [names for factor, names in sorted(PAIRS.items()) if ratio / below <= factor <= ratio * above]
    return f"the ratio is about {ratio:.3g}" + (f", as between {' or '.join(fitting)}" if fitting else "")


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


def suggest(factor: float) -> str:
    """Returns '; were … mixed up?' for a ratio that has a usual cause, or ''."""
    near = min(MEANINGS, key=lambda known: abs(math.log(factor / known)))
    return f"; were {MEANINGS[near]} mixed up?" if abs(factor / near - 1) < 0.025 else ""
