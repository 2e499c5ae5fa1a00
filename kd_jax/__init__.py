"""Cross-modal knowledge distillation for temporal action detection, in JAX and Flax.

    import kd_jax

    loss = kd_jax.losses.boundary(student, teacher, mask)     # losses: pure functions of arrays
    model = kd_jax.Detector("ss_tcn", num_outputs=51)         # a temporal filter with a classifier
    run = kd_jax.load("workdir/demo/augmented_rgb")           # a trained run, all its seeds or a fusion
    probabilities = run(features)                             # [T, D] -> [T, C]
    detections = run.detect(features, seconds=0.64)           # [Detection(class_, start, end, score), …]

A name is imported when it is first read, so that modules without JAX, such as kd_jax.segments, do not load JAX.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from kd_jax import interrupts

if TYPE_CHECKING:
    from kd_jax import losses
    from kd_jax.inference.loading import load
    from kd_jax.inference.trained_detector import Detection, TrainedDetector
    from kd_jax.models import Detector

__version__ = "0.1.0"
__all__ = ["Detection", "Detector", "TrainedDetector", "__version__", "load", "losses"]

_MODULES = {
    "Detector": "kd_jax.models",
    "losses": "kd_jax.losses",
    "load": "kd_jax.inference.loading",
    "Detection": "kd_jax.inference.trained_detector",
    "TrainedDetector": "kd_jax.inference.trained_detector",
}

# Python is about to import the command of `python -m kd_jax.COMMAND`.
if sys.argv[:1] == ["-m"] and sys.orig_argv[sys.orig_argv.index("-m") + 1].startswith(("kd_jax", "data_prep")):
    interrupts.end_at_once("kd_jax")


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'kd_jax' has no attribute {name!r}")
    module = importlib.import_module(_MODULES[name])
    return module if name == "losses" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
