"""The log of a training: metrics.jsonl and TensorBoard events on disk, a progress bar on the terminal."""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from kd_jax import runtime
from kd_jax.evaluation.protocols import PROTOCOLS
from kd_jax.files import DamagedFileError, check_regular, write_atomically

SELECTION = "frame_map/present_classes"  # the validation score that chooses the best epoch


def summary(results: Mapping) -> str:
    """One line: best epoch, and the first score of each split."""
    parts = [f"best epoch {results['best_epoch']}"]
    for split in ("validation", "test"):
        if split in results:
            key, value = next((key, score) for key, score in results[split].items() if key != "per_class")
            protocol, _, measure = key.partition("/")
            title = PROTOCOLS[protocol].columns.get(measure, key) if protocol in PROTOCOLS else key
            parts.append(f"{split} {title} {'–' if value is None else f'{value:.2f}'}")
    return ", ".join(parts)


def epoch_record(metrics: Mapping[str, np.ndarray], seconds: float) -> dict:
    """The record of an epoch: means of the steps' metrics `[S]`, the last learning rate, and the throughput."""
    record = {key: float(np.mean(values)) for key, values in metrics.items() if key != "snippets"}
    record["learning_rate"] = float(metrics["learning_rate"][-1])
    record["snippets_per_second"] = float(np.sum(metrics["snippets"]) / seconds)
    record["seconds"] = seconds
    return record


def read_log(path: epath.Path) -> list[dict]:
    """Reads the entries of a metrics.jsonl, one an epoch, without lines that are damaged; [] without the file."""
    try:
        check_regular(path)
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged ({error}); delete it, and run its experiment again") from None
    lines = path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []
    entries = {entry["epoch"]: entry for entry in map(_read_entry, lines) if entry}
    if len(entries) < len(lines):
        logging.warning("%s: %d of %d lines are damaged and left out", path, len(lines) - len(entries), len(lines))
    return [entries[epoch] for epoch in sorted(entries)]


def _read_entry(line: str) -> dict | None:
    """The entry of a line; None if it is damaged or holds a number that is not finite."""
    try:
        entry = json.loads(line)
        whole = all(type(entry[key]) is int for key in ("epoch", "step"))
        finite = all(value is None or math.isfinite(value) for value in entry.values())
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return entry if whole and finite else None


class Log(contextlib.AbstractContextManager):
    """metrics.jsonl and TensorBoard events, one entry an epoch. A resumed run drops the epochs that it repeats.

    Entries of earlier epochs that are gone or unreadable are reported; training does not need them.
    """

    def __init__(self, directory: epath.Path, after_epoch: int):
        self._path = directory / "metrics.jsonl"
        self._entries = [entry for entry in read_log(self._path) if entry["epoch"] <= after_epoch]
        if lost := after_epoch - len(self._entries):
            message = "%s: the entries of %d of %d epochs are lost; training continues without them"
            logging.warning(message, self._path, lost, after_epoch)
        step = self._entries[-1]["step"] if self._entries else 0
        self._events = Events(directory, step + 1)

    def __exit__(self, *_):
        self._events.close()

    def write(self, epoch: int, step: int, record: Mapping[str, float]) -> None:
        self._entries.append({"epoch": epoch, "step": step, **record})
        # Rewrite the whole file: objects in a bucket cannot be appended to.
        write_atomically(
            self._path, "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in self._entries).encode()
        )
        self._events.write(step, record)


class Events:
    """TensorBoard events, written by the caller's thread; tensorboardX's own writer hangs when the disk is full."""

    def __init__(self, directory: epath.Path, first_step: int):
        from tensorboardX import event_file_writer, summary  # imported late: they import torch where it is installed
        from tensorboardX.proto import event_pb2

        self._event, self._scalar = event_pb2.Event, summary.scalar
        self._writer = event_file_writer.EventsWriter(str(directory / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(self._event(step=first_step, session_log=start))  # TensorBoard drops later entries

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars and waits until they are on the disk."""
        for key, value in values.items():
            self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=self._scalar(key, value)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Progress(contextlib.AbstractContextManager):
    """A progress bar over the steps of runs that train together. It never waits for the device."""

    _interval = 0.5  # seconds between updates of the shown loss
    _layout = "{desc}{postfix} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    _reserved = 30  # columns for the percentage, at least 10 of the bar, and the times

    def __init__(self, name: str, steps: int, done: int):
        self._last = 0.0
        self._validation: tuple[str, ...] = ()
        name = name if len(name) <= 24 else f"{name[:23]}…"
        show = {"disable": None if runtime.is_first() else True, "dynamic_ncols": True, "bar_format": self._layout}
        self._bar = tqdm(desc=name, total=steps, initial=done, **show)

    def __exit__(self, *_):
        self._bar.close()

    def step(self, metrics: Sequence[Mapping[str, jax.Array]], count: int = 1) -> None:
        """Advances by `count` steps; `metrics` are those of the steps so far in this epoch."""
        self._bar.update(count)
        if self._bar.disable or time.perf_counter() - self._last < self._interval:
            return
        ready = next((m for m in reversed(metrics) if m["loss"].is_ready()), None)  # type: ignore[attr-defined]
        if ready is not None:
            self._last = time.perf_counter()
            self._show({key: float(value) for key, value in ready.items()})

    def finish_epoch(self, records: Sequence[Mapping[str, float]]) -> None:
        """Shows the mean of the records of all runs."""
        means = {key: float(np.mean([r[key] for r in records if key in r])) for r in records for key in r}
        score = means.get(f"validation/{SELECTION}")
        self._validation = () if score is None else (f"val mAP={score:.1f}",)
        self._show(means)

    def _show(self, values: Mapping[str, float]) -> None:
        """Shows the loss, the last validation score, and the parts of the loss for which the terminal has room."""
        if self._bar.disable:
            return
        hidden = ("loss", "snippets", "seconds", "snippets_per_second", "learning_rate", "gradient_norm")
        parts = [f"{key}={value:.3g}" for key, value in values.items() if key not in hidden and "/" not in key]
        text = ", ".join([f"loss={values['loss']:.3g}", *self._validation])
        room = (self._bar.format_dict["ncols"] or 80) - self._reserved - len(self._bar.desc)
        while parts and len(text) + len(parts[0]) + 4 < room:
            text += f", {parts.pop(0)}"
        self._bar.set_postfix_str(text)
