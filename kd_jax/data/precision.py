"""Precision of features: finds channels that float16 rounds away, so that their modality is stored as float32.

    statistics = Statistics()
    statistics.add(rows)  # for parts of files, in any process; `merge` joins the parts
    statistics.rounded_away()  # `[D]`: the channels whose rounding errors reach ROUNDED of their spread

float16 has 11 bits of precision and ends at 65504; below 6e-8 it is 0. A channel of 1013.25 ± 0.05 becomes 1013 or
1013.5, and one of about 1e-10 becomes 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from kd_jax.data.base import check_finite

ROUNDED = 0.05  # of the standard deviation of a channel: a larger rounding error is a loss
SAMPLED_ROWS = 8  # of each part; all rows would take a quarter of the time of a build
NOISE = 8.0  # roundings of the file's own type: a spread below them is not signal
END = {"float16": float(np.finfo(np.float16).max), "float32": float(np.finfo(np.float32).max)}


def _empty() -> np.ndarray:
    return np.zeros(0)


@dataclass
class Statistics:
    """Statistics of the channels of one folder of features; arrays are `[D]` float64."""

    count: int = 0  # sampled rows
    mean: np.ndarray = field(default_factory=_empty)
    squares: np.ndarray = field(default_factory=_empty)  # sum of squared distances to the mean
    errors: np.ndarray = field(default_factory=_empty)  # sum of squared errors of float16
    epsilon: float = 0.0  # relative precision of the files, the worst
    largest: float = 0.0  # magnitude above the end of float16, 0 if there is none

    def add(self, rows: np.ndarray, first: int = 0) -> None:
        """Adds `[N, D]` rows, snippets from `first` on.

        Raises ValueError if a value is not finite or float32 cannot hold it.
        """
        with np.errstate(over="ignore"):
            rounded = np.asarray(rows, np.float16)
        if not np.isfinite(rounded).all():
            check_finite(rows, first)
            self.largest = max(self.largest, float(np.abs(np.asarray(rows, np.float64)).max()))
            if self.largest > END["float32"]:
                raise ValueError(f"holds values up to {self.largest:g}, but float32 ends at 3.40282e+38; rescale them")
        if rows.dtype == np.float16:
            return
        step = max(1, len(rows) // SAMPLED_ROWS)
        exact = np.asarray(rows[::step], np.float64)
        mean = exact.mean(axis=0)
        with np.errstate(over="ignore"):  # an error may be infinite
            errors = np.square(exact - rounded[::step]).sum(axis=0)
            squares = np.square(exact - mean).sum(axis=0)
        epsilon = 2.0**-8 if rows.dtype.kind == "V" else np.finfo(rows.dtype).eps if rows.dtype.kind == "f" else 0.0
        self.merge(Statistics(len(exact), mean, squares, errors, float(epsilon)))

    def merge(self, other: "Statistics") -> None:
        """Adds what another object has seen; it has no effect if its number of channels differs."""
        self.largest = max(self.largest, other.largest)
        if not self.count:
            self.mean, self.squares, self.errors = (np.zeros_like(other.mean) for _ in range(3))
        if not other.count or self.mean.shape != other.mean.shape:
            return
        count, difference = self.count + other.count, other.mean - self.mean
        with np.errstate(over="ignore"):
            self.squares += other.squares + np.square(difference) * (self.count * other.count / count)
        self.errors += other.errors
        self.mean += difference * (other.count / count)
        self.count, self.epsilon = count, max(self.epsilon, other.epsilon)

    def as_json(self) -> dict:
        """Returns the statistics as plain JSON, for another process."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "squares", "errors")}
        return {"count": self.count, "epsilon": self.epsilon, "largest": self.largest, **arrays}

    @classmethod
    def from_json(cls, content: Mapping) -> "Statistics":
        """Returns the statistics that `as_json` returned as JSON."""
        arrays = {name: np.array(content[name], np.float64) for name in ("mean", "squares", "errors")}
        return cls(content["count"], **arrays, epsilon=content["epsilon"], largest=content["largest"])

    def rounded_away(self) -> np.ndarray:
        """Returns `[D]` bool: whether float16 rounds a channel away; not those with values beyond its end."""
        spreads = self.squares > self.count * np.square(NOISE * self.epsilon * self.mean)
        return spreads & (self.errors > ROUNDED**2 * self.squares) & np.isfinite(self.errors)

    def describe(self, channel: int) -> str:
        """Describes a channel that is rounded away."""
        mean, deviation = self.mean[channel], np.sqrt(self.squares[channel] / self.count)
        steps = {name: float(np.spacing(np.abs(mean).astype(name))) for name in END}
        text = f"{mean:.6g} ± {deviation:.2g}, where float16 has steps of {steps['float16']:.2g}"
        return f"{text} and float32 of {steps['float32']:.2g}" if steps["float32"] > deviation / 10 else text
