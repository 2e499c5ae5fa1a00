"""95 % intervals: over seeds, or over the test videos where there is one seed."""

from collections.abc import Callable
from typing import NamedTuple

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


class Bootstrap(NamedTuple):
    """How the test videos are drawn, with replacement: `draws` times `size` of `num_videos` videos."""

    draws: int
    size: int
    num_videos: int

    @classmethod
    def within(cls, budget: float, cost: float, num_videos: int, *, at_most: int) -> "Bootstrap":
        """Returns up to `at_most` draws that together cost about `budget`, where one of all videos costs `cost`.

        There are at least 10. If 10 of all videos cost too much, they have fewer videos.
        """
        draws = int(np.clip(budget / cost, 10, at_most))
        size = int(np.clip(num_videos * budget / (cost * draws), 1, num_videos))
        return cls(draws, size, num_videos)

    def half_width(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Computes the half-width of the 95 % interval of a statistic of the test videos.

        A sample of fewer videos varies more, by the root of the ratio; the result is that for all videos.

        Args:
          statistic: a function of the indices `[size]` of videos, in which some repeat, that returns an array `[…]`.

        Returns 1.96 standard deviations over the draws, `[…]`. It is NaN with one video, or where more than half of the
        draws have no value.

        References: Bickel, Götze and van Zwet, Resampling fewer than n observations, 1997.
        """
        rng = np.random.default_rng(0)
        values = np.stack([statistic(rng.integers(self.num_videos, size=self.size)) for _ in range(self.draws)])
        enough = (np.isfinite(values).mean(axis=0) >= 0.5) & (self.num_videos > 1)
        deviation = np.nanstd(np.where(enough, values, 0.0), axis=0, ddof=1) * np.sqrt(self.size / self.num_videos)
        return np.where(enough, stats.norm.ppf(0.5 + _LEVEL / 2) * deviation, np.nan)

    def __str__(self) -> str:
        of = f" of {self.size} videos" if self.size < self.num_videos else ""
        return f"95 % interval by bootstrap over the {self.num_videos} test videos, one seed, {self.draws} draws{of}"


def describe_seeds(count: int) -> str:
    """Describes an interval of `over_seeds` in words, for a caption."""
    return f"95 % interval over {count} seeds"


def signed(mean: float, half_width: float) -> str:
    """Writes a gain with its interval: '+1.7 ± 0.4', or '+1.7' without an interval."""
    return f"{mean:+.1f}" if np.isnan(half_width) else f"{mean:+.1f} ± {half_width:.1f}"
