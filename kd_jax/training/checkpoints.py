"""The checkpoints of a run, and trained runs loaded from them.

    checkpoints = Checkpoints(directory)             # while training: the latest epochs, written atomically
    run = load_run('workdir/demo/flow_teacher')      # afterwards: the model with the parameters of its best epoch

A run's folder is enough to rebuild its model: `config.json` describes it, and the checkpoint holds the parameters and
the input standardisation. orbax reads the arrays; nothing is unpickled.
"""

import contextlib
import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from kd_jax.files import checked_path, read_json
from kd_jax.models import FILTERS, Detector
from kd_jax.segments import Grid
from kd_jax.training.state import TrainState


def _folder(directory: epath.PathLike) -> epath.Path:
    """The folder of a run's checkpoints, absolute, as orbax requires."""
    directory = epath.Path(directory)
    return (directory if "://" in str(directory) else directory.resolve()) / "checkpoints"


def _manager(directory: epath.PathLike, **options) -> ocp.CheckpointManager:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ("state", "best"):
        for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add(item, args, ocp.handlers.StandardCheckpointHandler)
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options)
    return ocp.CheckpointManager(_folder(directory), options=options, handler_registry=registry)


class Checkpoints(contextlib.AbstractContextManager):
    """Keeps the last two saved epochs of a run: the training state, and the parameters of the best epoch so far.

    Runs that train together are saved one after another. With two epochs each, they have one in common after a kill
    between two saves.
    """

    def __init__(self, directory: epath.PathLike):
        # Synchronous, because the step donates the state: nothing may read it when training continues.
        latest = ocp.checkpoint_managers.LatestN(2)
        self._manager = _manager(directory, preservation_policy=latest, cleanup_tmp_directories=True)

    def __exit__(self, *_):
        self._manager.close()

    def save(self, epoch: int, state: TrainState, best: dict) -> None:
        """Writes both trees; an interrupted save leaves the previous one."""
        args = {"state": ocp.args.StandardSave(state), "best": ocp.args.StandardSave(best)}
        self._manager.save(epoch, args=ocp.args.Composite(**args))

    def restore(self, epoch: int, state: TrainState, best: dict) -> tuple[TrainState, dict]:
        """Reads a saved epoch into the structure, dtypes and shardings of the given trees, and deletes later epochs."""
        for later in [saved for saved in self._manager.all_steps() if saved > epoch]:
            self._manager.delete(later)
        args = {"state": ocp.args.StandardRestore(state), "best": ocp.args.StandardRestore(best)}
        restored = self._manager.restore(epoch, args=ocp.args.Composite(**args))
        return restored.state, restored.best


def saved_epochs(directory: epath.PathLike) -> list[int]:
    """The epochs from which a run can continue; none for a new one."""
    folder = _folder(directory)
    found = ocp.path.step.standard_name_format().find_all(folder) if folder.exists() else ()
    return sorted(step.step for step in found)


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished training: `model.apply(variables, x, mask)` gives its Outputs."""

    model: Detector
    variables: dict
    config: dict  # the content of config.json: run, modality, classes, head, seconds_per_snippet, …

    def grid(self, num_snippets: int, seconds_per_snippet: float | None = None) -> Grid:
        """Returns the times, in seconds, of the rows of a feature file that was made like those of the training set."""
        step = seconds_per_snippet or self.config["seconds_per_snippet"]
        return Grid(self.config.get("first_snippet", 0.0), num_snippets * step, self.config.get("label_at", 0.0))


def build_model(config: Mapping) -> Detector:
    """The detector that a run's config.json describes."""
    return Detector(config["filter"], **{**config["model"], "dtype": jnp.dtype(config["model"]["dtype"]).type})


def load_run(directory: epath.PathLike) -> TrainedRun:
    """Loads a finished run: its model, with the parameters of its best epoch.

    Raises FileNotFoundError if the folder holds no run or an unfinished one, and ValueError if its filter is not in
    FILTERS, its checkpoint cannot be read or holds a value that is not finite.
    """
    directory = epath.Path(checked_path(directory))
    config = read_json(directory / "config.json")
    if config is None:
        remedy = "give a run of a workdir, e.g. workdir/demo/augmented_rgb"
        raise FileNotFoundError(f"{directory} is no run (no config.json there); {remedy}")
    if not (directory / "results.json").exists():
        raise FileNotFoundError(f"the run {directory} has not finished; run its experiment again to complete it")
    if config["filter"] not in FILTERS:
        unknown = f"{directory / 'config.json'}: the filter {config['filter']!r} is unknown ({', '.join(FILTERS)})"
        remedy = "add its class to FILTERS in kd_jax/models/detector.py (docs/extending.md)"
        raise ValueError(f"{unknown}; {remedy}")
    model, x = build_model(config), jax.ShapeDtypeStruct((1, 1, config["input_size"]), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, jnp.ones((1, 1), bool)), x)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    template = jax.tree.map(np.asarray, new_best(params.pop("params"), params))
    manager = _manager(directory)
    try:
        args = ocp.args.Composite(best=ocp.args.StandardRestore(template))
        best = manager.restore(manager.latest_step(), args=args).best
    except Exception as error:  # the libraries below raise many kinds, with messages of a page
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        remedy = "copy all of the run again, or train it anew"
        raise ValueError(f"the checkpoint of the run {directory} cannot be read ({reason}); {remedy}") from error
    finally:
        manager.close()
    variables = {"params": best["params"], **best["constants"]}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not np.isfinite(leaf).all():
            name, remedy = jax.tree_util.keystr(path), "copy all of the run again, or train it anew"
            raise ValueError(
                f"the checkpoint of the run {directory} has values that are not finite in {name}; {remedy}"
            )
    return TrainedRun(model, variables, config)


def new_best(params: dict, constants: dict, runs: tuple[int, ...] = ()) -> dict:
    """The best epoch so far, as it is checkpointed, before the first one is trained.

    The parameters are copied, because a step donates its own. `runs` is `(P,)` if the leaves are `[P, …]`.
    """
    return {
        "params": jax.tree.map(jnp.copy, params),
        "constants": jax.tree.map(jnp.copy, constants),
        "score": jnp.full(runs, -jnp.inf, jnp.float32),
        "epoch": jnp.zeros(runs, jnp.int32),
    }
