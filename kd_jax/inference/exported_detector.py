"""A detector that `kd-jax export` wrote: from features of a video to probabilities. It needs only jax, 0.9 or newer.

    import detector                                     # this file, from the exported folder
    probabilities = detector.predict(features)          # [T, D] -> [T, C]
    probabilities = detector.predict(features, mask)    # [B, T, D], [B, T] bool -> [B, T, C], 0 in the padding

Features have any real dtype. A fusion of several modalities reads {modality: features}. The columns of the result are
the "classes" of config.json; a last one is the background. A program is compiled for each length, a multiple of 64.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np

FOLDER = Path(__file__).resolve().parent


@functools.cache
def read_config():
    """Returns config.json: "inputs", {modality: D}; "classes", the names of the columns; and more."""
    return json.loads((FOLDER / "config.json").read_text())


@functools.cache
def load():
    """Returns the exported function of features `[B, T, D]` float32 and a mask `[B, T]` bool."""
    if jax.__version_info__ < (0, 9):
        raise ImportError(f"detector.stablehlo needs jax 0.9 or newer, this is {jax.__version__}")
    program = (FOLDER / "detector.stablehlo").read_bytes()
    if hashlib.sha256(program).hexdigest() != read_config()["files"]["detector.stablehlo"]:
        raise ValueError(f"{FOLDER / 'detector.stablehlo'} is damaged; copy the folder again")
    sys.path.append(str(FOLDER / "flatbuffers.zip"))  # jax.export reads files with flatbuffers; jax does not install it
    return jax.jit(jax.export.deserialize(bytearray(program)).call)


def predict(features, mask=None):
    """Returns the probabilities of one video, or of a batch; ValueError for another shape, and for NaN or infinity."""
    inputs = read_config()["inputs"]
    features = features if isinstance(features, dict) else {next(iter(inputs)): features}
    features = {name: np.asarray(table, np.float32) for name, table in features.items()}
    shape = next(iter(features.values())).shape[:-1]
    fits = {name: table.shape for name, table in features.items()} == {name: (*shape, inputs[name]) for name in inputs}
    if not fits or len(shape) not in (1, 2) or not all(shape):
        shapes = ", ".join(f"{name} {list(table.shape)}" for name, table in features.items())
        wanted = ", ".join(f"{name} [T, {size}] or [B, T, {size}]" for name, size in inputs.items())
        raise ValueError(f"features are {shapes}; expected {wanted}")
    mask = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
    if len(shape) == 1:
        return predict({name: table[None] for name, table in features.items()}, mask[None])[0]
    if mask.shape != shape:
        raise ValueError(f"mask is {list(mask.shape)}; expected {list(shape)}")
    padding = (0, 0), (0, -shape[1] % 64)
    features = {name: np.pad(table, (*padding, (0, 0))) for name, table in features.items()}
    given = features if len(features) > 1 else next(iter(features.values()))
    found = np.asarray(load()(given, np.pad(mask, padding)))[:, : shape[1]]
    if not np.isfinite(found).all():
        raise ValueError("the features hold values that are not finite, or too large")
    return found
