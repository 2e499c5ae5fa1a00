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
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from kd_jax.files import LARGE, DamagedFileError, check_size, checked_path
from kd_jax.models import FILTERS, Detector
from kd_jax.segments import Grid
from kd_jax.training.run_config import (
    COPY_AGAIN,
    build_fitting_model,
    build_model,
    describe_variables,
    one_line,
    read_run_config,
    read_run_results,
)
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
    """The SHA-256 of the paths, dtypes, shapes and values of all arrays in a tree, whatever its containers."""
    digest = hashlib.sha256()
    paths = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): array for path, array in paths}
    for name, array in sorted(arrays.items()):
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
    folder = folder_of(directory) / str(epoch)
    _read(folder, {item: _stored_arrays(folder, item) for item in TREES})


def _read(folder: epath.Path, like: Mapping[str, Any]) -> list:
    """The trees of a saved epoch. `like` is {item: a tree of the same structure, dtypes and shardings}."""
    checksums = folder / CHECKSUMS
    with _naming(folder):
        with _quiet(), ocp.StandardCheckpointer() as reader:
            trees = [reader.restore(folder / item, tree) for item, tree in like.items()]
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as json_reader:
            saved = json_reader.restore(checksums) if checksums.exists() else None
        if saved is not None and saved["epoch"] != int(folder.name):
            raise ValueError(f"it is that of epoch {saved['epoch']}")
        for item, tree in zip(like, trees, strict=True):
            if saved is not None and saved[item] != checksum(tree):
                raise ValueError(f"the arrays of {item!r} are not those that were saved")
    return trees


@contextlib.contextmanager
def _naming(folder: epath.Path) -> Iterator[None]:
    """Turns every error into a DamagedCheckpointError: orbax raises many kinds, with messages of a page."""
    try:
        yield
    except Exception as error:
        raise DamagedCheckpointError(folder, one_line(error)) from error


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


def load_run(directory: epath.PathLike) -> TrainedRun:
    """Loads a finished run: its model, with the parameters of its best epoch.

    Raises FileNotFoundError if the folder holds no run or an unfinished one, and ValueError, with the name of the file,
    if a file cannot be read, the filter is not in FILTERS, the checkpoint holds other arrays than the model has, or a
    value is not finite.
    """
    directory = epath.Path(checked_path(directory))
    if (config := read_run_config(directory, COPY_AGAIN)) is None:
        remedy = "give a run of a workdir, e.g. workdir/demo/augmented_rgb"
        raise FileNotFoundError(f"{directory} is not a run (no config.json there); {remedy}")
    if (results := read_run_results(directory, COPY_AGAIN)) is None:
        raise FileNotFoundError(f"the run {directory} has not finished; run its experiment again to complete it")
    check_filter(directory, config)
    model, best = _read_best(directory, config, results["best_epoch"])
    variables = {"params": best["params"], **best["constants"]}
    check_finite(f"the checkpoint of the run {directory}", variables, COPY_AGAIN)
    return TrainedRun(model, variables, config)


def check_filter(directory: epath.Path, config: Mapping) -> None:
    """Raises ValueError if the filter of a run's config.json is not in FILTERS."""
    if config["filter"] not in FILTERS:
        unknown = f"{directory / 'config.json'}: the filter {config['filter']!r} is unknown ({', '.join(FILTERS)})"
        remedy = "add its class to FILTERS in kd_jax/models/detector.py (docs/extending.md)"
        raise ValueError(f"{unknown}; {remedy}")


def check_finite(what: str, variables: Mapping, remedy: str) -> None:
    """Raises ValueError, which begins with `what`, for variables that are not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not np.isfinite(leaf).all():
            raise ValueError(f"{what} has values that are not finite in {jax.tree_util.keystr(path)}; {remedy}")


def _read_best(directory: epath.Path, config: Mapping, best_epoch: int) -> tuple[Detector, dict]:
    """The model of a finished run, and the `best` of its latest checkpoint that is not damaged.

    It must be of the epoch that results.json names. All checkpoints have arrays of the same shapes.
    """
    folders = [folder_of(directory) / str(epoch) for epoch in reversed(saved_epochs(directory))]
    like, model = _fitting_model(directory, config, folders)
    reasons = []
    for folder in folders:
        try:
            (best,) = _read(folder, {"best": like})
        except DamagedCheckpointError as error:
            reasons.append(str(error))
            continue
        if int(best["epoch"]) == best_epoch:
            if reasons:
                logging.warning("%s; that of epoch %s has the same best epoch and is read", reasons[0], folder.name)
            return model, best
        reasons.append(f"the best epoch of checkpoint {folder.name} is {best['epoch']}, in results.json {best_epoch}")
    raise _unreadable(directory, reasons[0])


def _fitting_model(directory: epath.Path, config: Mapping, folders: Sequence[epath.Path]) -> tuple[dict, Detector]:
    """The `best` of a run, with arrays that take no memory, and the model of its config.json, which has the same."""
    reasons = []
    for folder in folders:
        try:
            like = _stored_arrays(folder, "best")
        except DamagedCheckpointError as error:
            reasons.append(str(error))
            continue
        if all(isinstance(like.get(part), dict) for part in ("params", "constants")):
            return like, build_fitting_model(directory, config, like["params"], like["constants"])
        reasons.append(f"the checkpoint {folder} is damaged (its best has {', '.join(like)})")
    if not folders:
        raise _unreadable(directory, "there is none")
    try:  # the metadata of all of them are lost: read the arrays that config.json describes
        return _described_arrays(config, folders[-1])
    except Exception as error:  # a filter may raise anything for sizes that it cannot have
        raise _unreadable(directory, reasons[0]) from error


def _described_arrays(config: Mapping, folder: epath.Path) -> tuple[dict, Detector]:
    """The `best` of a run and its model, both from config.json; checksums are compared when the arrays are read."""
    model = build_model(config)
    constants = describe_variables(model, config["input_size"])
    arrays = _without_memory(jax.eval_shape(new_best, constants.pop("params"), constants))
    _check_stored(arrays, folder / "best")
    return arrays, model


def _unreadable(directory: epath.Path, reason: str) -> DamagedFileError:
    return DamagedFileError(f"the checkpoint of the run {directory} cannot be read ({reason}); {COPY_AGAIN}")


def _stored_arrays(folder: epath.Path, item: str) -> dict:
    """A tree of a checkpoint as its metadata describe it: the arrays have its shapes and dtypes, but take no memory.

    Raises DamagedCheckpointError if they cannot be read, or state far larger arrays than the files can hold.
    """
    with _naming(folder):
        with _quiet(), contextlib.closing(ocp.handlers.StandardCheckpointHandler()) as handler:
            found = handler.metadata(folder / item).tree
        arrays = _without_memory(dict(found))
        _check_stored(arrays, folder / item)
    return arrays


def _without_memory(tree: dict) -> dict:
    """Arrays of the shapes and dtypes of a tree that take no memory."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), tree)


def _check_stored(arrays: dict, folder: epath.Path) -> None:
    """Raises ValueError for far larger arrays than the files in a folder can hold."""
    if (size := sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))) > LARGE:
        check_size(size, sum(file.stat().length for file in folder.rglob("*") if file.is_file()))


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
