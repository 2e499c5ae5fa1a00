"""The checkpoints of a run, and trained runs loaded from them.

    checkpoints = Checkpoints(directory, after_epoch=0)    # while training: the latest epochs, written atomically
    state, best = read_checkpoint(directory, 5, state, best)                     # after an interruption
    run = load_run('workdir/demo/flow_teacher')      # afterwards: the model with the parameters of its best epoch

A run's folder is enough to rebuild its model: `config.json` describes it, and the checkpoint holds the parameters and
the input standardisation. orbax reads the arrays; nothing is unpickled. A checkpoint also holds the checksums of its
arrays, which are compared whenever it is read. Checkpoints of older versions have none.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from kd_jax.files import DamagedFileError, checked_path, read_json
from kd_jax.models import FILTERS, Detector
from kd_jax.segments import Grid
from kd_jax.training.state import TrainState

TREES = ("state", "best")  # what a checkpoint holds: the training state, and `new_best`
CHECKSUMS = "checksums"  # next to them: {'epoch': the epoch, tree: checksum of its arrays}


def folder_of(directory: epath.PathLike, name: str = "checkpoints") -> epath.Path:
    """The folder of a run's checkpoints, absolute, as orbax requires."""
    directory = epath.Path(directory)
    return (directory if "://" in str(directory) else directory.resolve()) / name


class DamagedCheckpointError(DamagedFileError):
    """The saved epoch in `folder` cannot be read or is not what was saved; the message names it and the reason."""

    def __init__(self, folder: epath.Path, reason: str):
        super().__init__(f"the checkpoint {folder} is damaged ({reason})")
        self.folder = folder


class Checkpoints(contextlib.AbstractContextManager):
    """Keeps the last two saved epochs of a run: the training state, and the parameters of the best epoch so far.

    Runs that train together are saved one after another. With two epochs each, they have one in common after a kill
    between two saves. Epochs later than `after_epoch`, after which the run continues, are deleted.
    `folder` is the name of their folder.
    """

    def __init__(self, directory: epath.PathLike, after_epoch: int, folder: str = "checkpoints"):
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item in TREES:
            registry.add(item, ocp.args.StandardSave, ocp.handlers.StandardCheckpointHandler)
        registry.add(CHECKSUMS, ocp.args.JsonSave, ocp.handlers.JsonCheckpointHandler)
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,  # the step donates the state: nothing may read it when training continues
            preservation_policy=ocp.checkpoint_managers.LatestN(2),
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # do not read the metadata of other epochs, which may be damaged
        )
        self._manager = ocp.CheckpointManager(folder_of(directory, folder), options=options, handler_registry=registry)
        for later in [saved for saved in self._manager.all_steps() if saved > after_epoch]:
            self._manager.delete(later)

    def __exit__(self, *_):
        self._manager.close()

    def save(self, epoch: int, state: TrainState, best: dict) -> None:
        """Writes both trees and their checksums; an interrupted save leaves the previous one."""
        trees = dict(zip(TREES, (state, best), strict=True))
        args: dict[str, Any] = {item: ocp.args.StandardSave(tree) for item, tree in trees.items()}
        sums = {item: checksum(tree) for item, tree in trees.items()}
        args[CHECKSUMS] = ocp.args.JsonSave({"epoch": epoch, **sums})
        with _quiet():
            self._manager.save(epoch, args=ocp.args.Composite(**args))


def checksum(tree) -> str:
    """The SHA-256 of the paths, dtypes, shapes and values of all arrays in a tree, in the order of the paths.

    Nested dicts of the same arrays, which orbax reads without the structure of a state, have the same checksum.
    """
    digest, leaves = hashlib.sha256(), jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): array for path, array in leaves}
    for name, array in sorted(named.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def saved_epochs(directory: epath.PathLike, damaged: Collection[epath.Path] = ()) -> list[int]:
    """The epochs from which a run can continue: those saved whose folders are not in `damaged`; none for a new run.

    Raises DamagedFileError, with the remedy, if all of them are damaged or their folder is a file.
    """
    folder = folder_of(directory)
    if folder.exists() and not folder.is_dir():
        raise DamagedFileError(f"{folder} is a file, where the folder of checkpoints must be; delete it")
    saved = saved_in(folder)
    sound = [epoch for epoch in saved if folder / str(epoch) not in damaged]
    if saved and not sound:
        remedy = f"delete {folder}, and the same command trains the run from its start"
        raise DamagedFileError(f"all checkpoints of the run {directory} are damaged; {remedy}")
    return sound


def saved_in(folder: epath.Path) -> list[int]:
    """The numbers of the checkpoints in a folder."""
    found = ocp.path.step.standard_name_format().find_all(folder) if folder.is_dir() else ()
    return sorted(step.step for step in found)


def read_checkpoint(
    directory: epath.PathLike, epoch: int, state: TrainState, best: dict, folder: str = "checkpoints"
) -> tuple[TrainState, dict]:
    """Reads a saved epoch into the structures, dtypes and shardings of the given trees.

    Raises DamagedCheckpointError if it cannot be read or is not what was saved.
    """
    state, best = _read(folder_of(directory, folder) / str(epoch), dict(zip(TREES, (state, best), strict=True)))
    return state, best


def check_checkpoint(directory: epath.PathLike, epoch: int) -> None:
    """Reads all arrays of a saved epoch; raises DamagedCheckpointError if they are not those that were saved."""
    folder, handler = folder_of(directory) / str(epoch), ocp.PyTreeCheckpointHandler()
    try:
        with _quiet():
            described = {item: dict(handler.metadata(folder / item)) for item in TREES}
    except Exception as error:  # as in `_read`
        raise DamagedCheckpointError(folder, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from error
    _read(folder, jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), described))


def _read(folder: epath.Path, like: Mapping[str, Any]) -> list:
    """The trees of a saved epoch. `like` is {item: a tree of the same structure, dtypes and shardings}."""
    checksums = folder / CHECKSUMS
    try:
        with _quiet(), ocp.StandardCheckpointer() as reader:
            trees = [reader.restore(folder / item, tree) for item, tree in like.items()]
        saved = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(checksums) if checksums.exists() else None
        if saved is not None and saved["epoch"] != int(folder.name):
            raise ValueError(f"it is that of epoch {saved['epoch']}")
        for item, tree in zip(like, trees, strict=True):
            if saved is not None and saved[item] != checksum(tree):
                raise ValueError(f"the arrays of {item!r} are not those that were saved")
    except Exception as error:  # the libraries below raise many kinds, with messages of a page
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise DamagedCheckpointError(folder, reason) from error
    return trees


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the tracebacks that Python prints about reads and writes which orbax abandons after its first error."""
    show = sys.unraisablehook

    def show_others(event):
        if not (inspect.iscoroutine(event.object) or str(event.exc_value) == "Event loop is closed"):
            show(event)

    sys.unraisablehook = show_others
    yield
    sys.unraisablehook = show  # not after an error, because these end later, in threads


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
    if (results := read_json(directory / "results.json")) is None:
        raise FileNotFoundError(f"the run {directory} has not finished; run its experiment again to complete it")
    if config["filter"] not in FILTERS:
        unknown = f"{directory / 'config.json'}: the filter {config['filter']!r} is unknown ({', '.join(FILTERS)})"
        remedy = "add its class to FILTERS in kd_jax/models/detector.py (docs/extending.md)"
        raise ValueError(f"{unknown}; {remedy}")
    model, x = build_model(config), jax.ShapeDtypeStruct((1, 1, config["input_size"]), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, jnp.ones((1, 1), bool)), x)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    template = jax.tree.map(np.asarray, new_best(params.pop("params"), params))
    best = _read_best(directory, template, results.get("best_epoch"))
    variables = {"params": best["params"], **best["constants"]}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not np.isfinite(leaf).all():
            name, remedy = jax.tree_util.keystr(path), "copy all of the run again, or train it anew"
            raise ValueError(
                f"the checkpoint of the run {directory} has values that are not finite in {name}; {remedy}"
            )
    return TrainedRun(model, variables, config)


def _read_best(directory: epath.Path, like: dict, best_epoch: int | None) -> dict:
    """The `best` of the latest saved epoch that is not damaged. It must be of the epoch that results.json names."""
    reasons = []
    for epoch in reversed(saved_epochs(directory)):
        try:
            (best,) = _read(folder_of(directory) / str(epoch), {"best": like})
        except DamagedCheckpointError as error:
            reasons.append(str(error))
            continue
        if best["epoch"] == best_epoch:
            if reasons:
                logging.warning("%s; that of epoch %d has the same best epoch and is read", reasons[0], epoch)
            return best
        reasons.append(f"the best epoch of checkpoint {epoch} is {best['epoch']}, in results.json it is {best_epoch}")
    reason, remedy = (reasons or ["there is none"])[0], "copy all of the run again, or train it anew"
    raise DamagedFileError(f"the checkpoint of the run {directory} cannot be read ({reason}); {remedy}")


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
