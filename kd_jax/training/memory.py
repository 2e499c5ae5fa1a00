"""The memory that a training needs is compared with that of the device before any is allocated.

check_run(program, shapes)          # before training: a lower bound, from shapes alone
check_compiled(compiled)            # before a compiled program runs: what the compiler reports
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax

from kd_jax import sharding
from kd_jax.runtime import device_memory
from kd_jax.training.step import Program, jitted_init


class Shapes(NamedTuple):
    """The sizes of the data of a run."""

    input_size: int  # D
    num_classes: int  # C, of the labels
    taught: tuple[tuple[int, int], ...]  # the widths of the features and of the logits of each teacher
    lengths: Sequence[int]  # T of each training video
    batch_size: int


def check_run(program: Program, shapes: Shapes) -> None:
    """Raises ValueError if one run does not fit a device.

    The estimate is a lower bound: first the state, the gradient and the best parameters; then features, labels,
    teachers' outputs and one layer of the longest batch.
    """
    of_state = _state_size(program, shapes.input_size, shapes.num_classes, shapes.taught)
    owning = [chosen.name for chosen in program.terms if chosen.term.owns]
    terms = f", or the options of {', '.join(owning)}" if owning else ""
    _require(of_state, "one run", f"lower its hidden or num_layers{terms}")
    mesh, longest = sharding.data_mesh(), max(shapes.lengths)
    parts = jax.process_count() if jax.default_backend() == "cpu" else mesh.size
    rows = sharding.device_rows(shapes.batch_size, mesh) // parts
    floats = shapes.input_size + program.model.hidden + sum(map(sum, shapes.taught))
    what = f"a batch of {shapes.batch_size} videos of {longest} snippets"
    remedy = f"lower training.batch_size (there are {len(shapes.lengths)} training videos)"
    _require(rows * longest * (2 * floats + shapes.num_classes), what, remedy)


@functools.lru_cache(maxsize=256)  # many runs have the same shapes
def _state_size(program: Program, input_size: int, num_classes: int, taught: tuple[tuple[int, int], ...]) -> int:
    """Bytes of the state of a run, its gradient and its best parameters."""
    one_run = jax.random.key(0)[None]  # as for one run, whose training uses this trace again
    state = jax.eval_shape(jitted_init(program, input_size, num_classes, taught), one_run)
    return _num_bytes(state) + 2 * _num_bytes(state.params)


def check_videos(size: int) -> None:
    """Raises MemoryError if the training videos, of `size` bytes, do not fit a device."""
    if size > device_memory():
        found = f"the training videos take {_shown(size)} of {_shown(device_memory())} of memory"
        raise MemoryError(f"training.data='resident': {found}; set it to 'auto'")


def check_compiled(compiled: jax.stages.Compiled) -> None:
    """Raises MemoryError if a compiled program needs more than there is."""
    if (size := program_size(compiled)) > device_memory():
        remedy = "lower training.batch_size, hidden, num_layers or the options of the terms"
        raise MemoryError(f"training takes {_shown(size)} of {_shown(device_memory())} of memory; {remedy}")


def program_size(compiled: jax.stages.Compiled) -> int:
    """Bytes of the arguments and intermediate values of a compiled program; 0 if its backend does not report them."""
    needed = compiled.memory_analysis()
    return needed.argument_size_in_bytes + needed.temp_size_in_bytes if needed else 0


def _require(size: int, what: str, remedy: str) -> None:
    if size > device_memory():
        raise ValueError(f"{what} takes at least {_shown(size)} of {_shown(device_memory())} of memory; {remedy}")


def _num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _shown(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
