"""A detector that `kd-jax export` wrote: from features of a video to probabilities. It needs only jax.

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
def load():
    """Returns the exported function of features `[B, T, D]` float32 and a mask `[B, T]` bool."""
    program, config = (FOLDER / "detector.stablehlo").read_bytes(), json.loads((FOLDER / "config.json").read_text())
    if hashlib.sha256(program).hexdigest() != config["files"]["detector.stablehlo"]:
        raise ValueError(f"{FOLDER / 'detector.stablehlo'} is damaged; copy the folder again")
    sys.path.append(str(FOLDER / "flatbuffers.zip"))  # jax.export reads files with flatbuffers; jax does not install it
    return jax.jit(jax.export.deserialize(bytearray(program)).call)


def predict(features, mask=None):
    """Returns the probabilities of one video, or of a batch; ValueError for features that are not finite."""
    features = jax.tree.map(lambda x: np.asarray(x, np.float32), features)
    if jax.tree.leaves(features)[0].ndim == 2:
        return predict(jax.tree.map(lambda x: x[None], features), mask)[0]
    shape = jax.tree.leaves(features)[0].shape[:2]
    mask, more = np.ones(shape, bool) if mask is None else np.asarray(mask), -shape[1] % 64
    padded = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, more), (0, 0))), features)
    found = np.asarray(load()(padded, np.pad(mask, ((0, 0), (0, more)))))[:, : shape[1]]
    if not np.isfinite(found).all():
        raise ValueError("the features hold values that are not finite, or too large")
    return found
