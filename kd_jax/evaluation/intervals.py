"""95 % intervals: over seeds, or over the test videos where there is one seed.

gain = differences(student, baseline)      # one score per seed each
describe_gain(gain)                        # '+6.20 [+2.10, +10.30]'
excludes_zero(paired_interval(gain))
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

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
    from scipy import special  # here because it takes half a second to import

    quantile = special.stdtrit(count - 1, 0.5 + _LEVEL / 2)
    return values.mean(axis=0), quantile * values.std(axis=0, ddof=1) / np.sqrt(count)


def differences(ours: Sequence[float | None] | None, theirs: Sequence[float | None] | None) -> list[float] | None:
    """Returns the difference of two scores for each seed; None without one of them, or where a score does not exist."""
    if not ours or not theirs or None in (*ours, *theirs):
        return None
    return [mine - other for mine, other in zip(ours, theirs, strict=True)]  # type: ignore[operator]


def paired_interval(gain: Sequence[float] | None) -> tuple[float, float] | None:
    """Returns the ends of the 95 % interval of Student's t of a mean difference, one difference per seed.

    None without a difference, or with one seed. Identical differences have an interval of width 0.
    """
    if gain is None or len(gain) < 2:
        return None
    mean, half = map(float, over_seeds(np.array(gain)))
    return mean - half, mean + half


def excludes_zero(interval: tuple[float, float] | None) -> bool:
    """Returns whether there is an interval and 0 is outside it."""
    return interval is not None and not interval[0] <= 0 <= interval[1]


def describe_gain(gain: Sequence[float]) -> str:
    """Writes a mean difference with its interval: '+6.20 [+2.10, +10.30]', or '+6.20' with one seed."""
    mean, interval = f"{np.mean(gain):+z.2f}", paired_interval(gain)
    return mean if interval is None else f"{mean} [{interval[0]:+z.2f}, {interval[1]:+z.2f}]"


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
        from scipy import special

        rng = np.random.default_rng(0)
        values = np.stack([statistic(rng.integers(self.num_videos, size=self.size)) for _ in range(self.draws)])
        enough = (np.isfinite(values).mean(axis=0) >= 0.5) & (self.num_videos > 1)
        deviation = np.nanstd(np.where(enough, values, 0.0), axis=0, ddof=1) * np.sqrt(self.size / self.num_videos)
        return np.where(enough, special.ndtri(0.5 + _LEVEL / 2) * deviation, np.nan)

    def __str__(self) -> str:
        of = f" of {self.size} videos" if self.size < self.num_videos else ""
        return f"95 % interval by bootstrap over the {self.num_videos} test videos, one seed, {self.draws} draws{of}"


def describe_seeds(count: int) -> str:
    """Describes an interval of `over_seeds` in words, for a caption."""
    return f"95 % interval over {count} seeds"


def signed(mean: float, half_width: float) -> str:
    """Writes a gain with its interval: '+1.7 ± 0.4', or '+1.7' without an interval."""
    return f"{mean:+.1f}" if np.isnan(half_width) else f"{mean:+.1f} ± {half_width:.1f}"
