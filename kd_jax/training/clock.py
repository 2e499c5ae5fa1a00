"""Where the time of an experiment went, over all starts of its command.

clock.open(workdir)              # starts.json in the workdir has an entry for each start that trained something
with clock.productive(): ...     # steps, a validation, predictions
    clock.record()
clock.saved()                    # what was productive so far survives a kill
spent = read_time(workdir)       # {'productive': s, 'compiling': s, 'restarts': n, 'lost': s}
"""

import contextlib
import time
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath

from kd_jax import runtime
from kd_jax.files import DamagedFileError, read_json, write_json
from kd_jax.training.fields import check_fields, is_mapping, is_number, list_of

FILE = "starts.json"
_RULES = (("a list of entries", list_of(is_mapping), "starts"),)
_RULES_OF_STARTS = (("a finite number", is_number, "before productive compiling unsaved"),)
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
    """The seconds of one start: until it trains, productive, compiling, and productive since the last save."""

    def __init__(self, launch: float = 0.0):
        """`launch` is the seconds that the program has run already."""
        self._began, self._workdir, self._earlier = time.perf_counter() - launch, None, list[dict]()
        self._seconds: dict[str, float] = {}
        self._compiling = 0.0

    def open(self, workdir: epath.Path) -> None:
        """Continues the record in a workdir, or begins one."""
        self._workdir, self._earlier = workdir, _read(workdir)
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_) -> None:
        self._compiling += duration_secs if event == _COMPILED else 0.0

    @contextlib.contextmanager
    def productive(self) -> Iterator[None]:
        """Counts the time of the block, without that of compiling."""
        started, compiling = time.perf_counter(), self._compiling
        if not self._seconds:
            self._seconds = {"before": started - self._began - compiling, "productive": 0.0, "unsaved": 0.0}
        yield
        seconds = time.perf_counter() - started - (self._compiling - compiling)
        self._seconds["productive"] += seconds
        self._seconds["unsaved"] += seconds

    def saved(self) -> None:
        """Notes that everything so far is on the disk; there is no entry before the first step."""
        if self._seconds:
            self._seconds["unsaved"] = 0.0
            self.record()

    def record(self) -> None:
        """Writes the seconds so far."""
        if self._workdir is not None and runtime.is_first():
            entry = {**self._seconds, "compiling": self._compiling}
            write_json(self._workdir / FILE, {"starts": [*self._earlier, entry]})


def read_starts(workdir: epath.Path, remedy: str) -> list[dict]:
    """Reads the entry of each start; [] without a file.

    Raises DamagedFileError, which ends with the remedy, if an entry is damaged.
    """
    content = read_json(workdir / FILE, remedy)
    if content is None:
        return []
    check_fields(workdir / FILE, content, _RULES, remedy)
    for start in content["starts"]:
        check_fields(workdir / FILE, start, _RULES_OF_STARTS, remedy)
    return content["starts"]


def _read(workdir: epath.Path) -> list[dict]:
    try:
        return read_starts(workdir, "it is begun again")
    except DamagedFileError as error:
        logging.warning("%s", error)
        return []


def read_time(workdir: epath.Path) -> dict[str, float]:
    """Returns the seconds that all starts trained or evaluated, compiled, and lost to restarts, and the restarts.

    Lost time is that of repeated work, and that before a restarted program trains again. Work between the last
    validation or save and a kill is not recorded.
    """
    starts = _read(workdir)
    repeated = sum(start["unsaved"] for start in starts[:-1])
    return {
        "productive": sum(start["productive"] for start in starts) - repeated,
        "compiling": sum(start["compiling"] for start in starts),
        "restarts": max(len(starts) - 1, 0),
        "lost": repeated + sum(start["before"] for start in starts[1:]),
    }


def describe_time(spent: dict) -> str:
    """One line on the result of `read_time`."""
    count = spent["restarts"]
    lost = f"{count} restart{'s'[: count != 1]} cost {_shown(spent['lost'])}" if count else "no restart"
    productive, compiling = _shown(spent["productive"]), _shown(spent["compiling"])
    return f"Time: {productive} training and evaluation, {compiling} compiling; {lost}"


def _shown(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"
