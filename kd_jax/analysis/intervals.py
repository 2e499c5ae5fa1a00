"""95 % intervals: over seeds, or over the test videos where there is one seed."""

from collections.abc import Callable

import numpy as np
from scipy import stats

_LEVEL = 0.95


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and half-width of the 95 % interval of Student's t over the first axis.

    Args:
      values: `[S, …]`, one entry per seed; NaN is a value that does not exist, and then neither do its mean and width.

    Returns two arrays `[…]`. With one seed the half-width is NaN.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if count < 2:
        return values.mean(axis=0), np.full(values.shape[1:], np.nan)
    quantile = stats.t.ppf(0.5 + _LEVEL / 2, count - 1)
    return values.mean(axis=0), quantile * values.std(axis=0, ddof=1) / np.sqrt(count)


def over_videos(statistic: Callable[[np.ndarray], np.ndarray], num_videos: int, *, draws: int) -> np.ndarray:
    """Computes the half-width of the 95 % interval of a statistic of the test videos, by the bootstrap.

    Args:
      statistic: a function of the indices `[V]` of the videos, in which some repeat, that returns an array `[…]`.
      num_videos: V.
      draws: number of bootstrap samples.

    Returns 1.96 standard deviations over the samples, `[…]`. It is NaN with one video, or where more than half of the
    samples have no value.
    """
    rng = np.random.default_rng(0)
    values = np.stack([statistic(rng.integers(num_videos, size=num_videos)) for _ in range(draws)])
    enough = (np.isfinite(values).mean(axis=0) >= 0.5) & (num_videos > 1)
    width = stats.norm.ppf(0.5 + _LEVEL / 2) * np.nanstd(np.where(enough, values, 0.0), axis=0, ddof=1)
    return np.where(enough, width, np.nan)


def signed(mean: float, half_width: float) -> str:
    """Writes a gain with its interval: '+1.7 ± 0.4', or '+1.7' without an interval."""
    return f"{mean:+.1f}" if np.isnan(half_width) else f"{mean:+.1f} ± {half_width:.1f}"


def how(num_seeds: int, num_videos: int) -> str:
    """Describes an interval in words, for a caption."""
    if num_seeds > 1:
        return f"95 % interval over {num_seeds} seeds"
    return f"95 % interval by bootstrap over the {num_videos} test videos, one seed"
