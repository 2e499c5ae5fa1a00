"""A finished run as a function from features to probabilities.

detect = load("workdir/demo/augmented_rgb")
probabilities = detect(features)                                              # [T, D] -> [T, C]
rows = choose(None, detect.head)(probabilities, detect.grid(len(probabilities)))   # kd_jax.evaluation.proposals
"""

from dataclasses import dataclass

import numpy as np
from etils import epath

from kd_jax.data.batches import Example
from kd_jax.evaluation.scoring import probabilities
from kd_jax.inference.predict import run_detector
from kd_jax.segments import Grid
from kd_jax.training.checkpoints import TrainedRun, load_run


@dataclass(frozen=True)
class TrainedDetector:
    """A trained detector with the parameters of its best epoch."""

    run: TrainedRun  # the model, its variables and the content of the run's config.json

    @property
    def modality(self) -> str:
        """The modality of the features, e.g. 'rgb'."""
        return self.run.config["modality"]

    @property
    def input_size(self) -> int:
        """D, the width of the features."""
        return self.run.config["input_size"]

    @property
    def classes(self) -> list[str]:
        """The names of the C classes."""
        return self.run.config["classes"]

    @property
    def head(self) -> str:
        """'dense' (a sigmoid per class) or 'sparse' (a softmax over the classes and a background)."""
        return self.run.config["head"]

    @property
    def seconds_per_snippet(self) -> float:
        """The time from one snippet of the training videos to the next, in seconds."""
        return self.run.config["seconds_per_snippet"]

    def grid(self, num_snippets: int) -> Grid:
        """Returns the times of T snippets that were made like those of the training videos, in seconds."""
        return self.run.grid(num_snippets)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Predicts one whole video: `[T, D]` features of any real dtype → `[T, C]` float32 probabilities.

        The sparse head adds a last column, the background. Programs are compiled once for each T, rounded up to a
        multiple of 16. Raises ValueError for another shape, another dtype, or a value that is not finite.
        """
        table = self._check(np.asarray(features))
        example = Example("features", table, np.zeros((len(table), 0), np.uint8))
        run = self.run
        (output,) = run_detector(run.model, run.variables, [example], batch_size=1, num_buckets=1, with_features=False)
        return probabilities(np.asarray(output.logits), self.head)

    def _check(self, features: np.ndarray) -> np.ndarray:
        if features.ndim != 2 or features.shape[1] != self.input_size or not len(features):
            expected = f"[T, {self.input_size}], one row of {self.modality} features per snippet"
            raise ValueError(f"features have shape {list(features.shape)}; expected {expected}")
        if features.dtype.kind not in "fiu":
            raise ValueError(f"features have dtype {features.dtype}; expected a real number type such as float32")
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            snippet = int(np.argmin(finite))
            raise ValueError(f"features of snippet {snippet} are not finite; repair or remove the snippet")
        return features if features.dtype == np.float16 else features.astype(np.float32)


def load(directory: epath.PathLike) -> TrainedDetector:
    """Loads a finished run, e.g. `load('workdir/demo/augmented_rgb')`, from a folder or gs://….

    Raises FileNotFoundError if the folder holds no run or one that has not finished, and ValueError if its filter is
    unknown or its checkpoint cannot be read.
    """
    return TrainedDetector(load_run(directory))
