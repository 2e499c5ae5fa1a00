"""The part of an epoch that was trained before SIGTERM: it is saved, and read when the command continues.

    save_part(directory, Part(7, 3, 2.5, metrics), steps_per_epoch, state, best)     # three steps of epoch 7
    part, (state, best) = read_part(directory, (7, 3), steps_per_epoch, state, best)

The folder `stopped` of a run holds a checkpoint and the metrics of the epoch so far.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
from etils import epath

from kd_jax import runtime
from kd_jax.files import read_arrays, write_arrays
from kd_jax.training.checkpoints import Checkpoints, DamagedCheckpointError, folder_of, read_checkpoint, saved_in
from kd_jax.training.state import TrainState

STOPPED = "stopped"


@dataclasses.dataclass
class Part:
    """What was trained so far of an epoch of P runs that train together: `steps` steps in `seconds`."""

    epoch: int
    steps: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # `[steps, P]` each

    def add(self, metrics: Mapping[str, np.ndarray], seconds: float) -> None:
        """Adds the metrics of the next steps, `[S, P]`."""
        before = self.metrics or {key: values[:0] for key, values in metrics.items()}
        self.metrics = {key: np.concatenate([before[key], values]) for key, values in metrics.items()}
        self.steps, self.seconds = self.steps + len(metrics["loss"]), self.seconds + seconds


def save_part(directory: epath.Path, part: Part, steps_per_epoch: int, state: TrainState, best: dict) -> None:
    """Saves a run within an epoch; `part` and the trees are those of this run alone, so P is 1."""
    number = part.epoch * (steps_per_epoch + 1) + part.steps  # the end of an epoch differs from the start of the next
    if runtime.is_first():
        (directory / STOPPED).mkdir(parents=True, exist_ok=True)
        seconds = {"seconds": np.array(part.seconds)}
        write_arrays(directory / STOPPED / f"metrics_{number}.npz", {**part.metrics, **seconds})
    with Checkpoints(directory, after_epoch=number - 1, folder=STOPPED) as keeper:
        keeper.save(number, state, best)


def saved_parts(directory: epath.Path, steps_per_epoch: int, damaged: Collection[epath.Path]) -> set[tuple[int, int]]:
    """The places, (epoch, steps), at which a run was stopped; not those whose folders are in `damaged`."""
    folder = folder_of(directory, STOPPED)
    saved = [number for number in saved_in(folder) if folder / str(number) not in damaged]
    return {divmod(number, steps_per_epoch + 1) for number in saved}


def read_part(
    directory: epath.Path, place: tuple[int, int], steps_per_epoch: int, state: TrainState, best: dict
) -> tuple[Part, tuple[TrainState, dict]]:
    """Reads what `save_part` has saved. Raises DamagedCheckpointError if it cannot be read or is damaged."""
    epoch, steps = place
    number = epoch * (steps_per_epoch + 1) + steps
    trees = read_checkpoint(directory, number, state, best, STOPPED)
    try:
        metrics = read_arrays(directory / STOPPED / f"metrics_{number}.npz")
        return Part(epoch, steps, float(metrics.pop("seconds")), metrics), trees
    except (OSError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(folder_of(directory, STOPPED) / str(number), str(error)) from None


def drop_parts(directory: epath.Path) -> None:
    """Deletes what `save_part` has saved, after a later epoch was saved."""
    epath.Path(directory / STOPPED).rmtree(missing_ok=True)
