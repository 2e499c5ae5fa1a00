"""Where a training stopped being finite: the step, the part of the loss and the videos of the batch.

step = first_bad_step(metrics)                 # index of the step, or None
print(blame(metrics, step, weights), find_damage(videos))
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kd_jax.data.batches import Example
from kd_jax.training.terms import TERMS


def first_bad_step(metrics: Mapping[str, np.ndarray]) -> int | None:
    """The first step with a metric `[S]` that is not finite, or whose sum over all steps may not be; None without."""
    limit = np.finfo(np.float32).max / len(metrics["loss"])
    bad = np.any([~(np.abs(values) < limit) for values in metrics.values()], axis=0)
    return int(bad.argmax()) if bad.any() else None


def blame(metrics: Mapping[str, np.ndarray], step: int, weights: Mapping[str, float]) -> tuple[str, list[str]]:
    """What is not finite in a step, as text, and the parts of the loss that cause it.

    These are the parts with such a loss. If all losses are finite, they are the parts with such a gradient at the
    features, where that is measured, and otherwise the part with the largest share of the loss.

    Args:
      metrics, step: `[S]` each, and the index of the step.
      weights: {'task' or term: weight} of the parts of the loss.
    """
    values = {name: float(series[step]) for name, series in metrics.items()}
    parts = [name for name in ("task", *TERMS) if name in values]
    if found := [name for name in parts if not np.isfinite(values[name])]:
        return "the loss of " + ", ".join(f"{name} is {values[name]:g}" for name in found), found
    if found := [name for name in parts if not np.isfinite(values.get(f"gradient/{name}", 0.0))]:
        return f"the gradient of {', '.join(found)} is not finite", found
    shares = ", ".join(f"{weights[name]:g} · {name} {values[name]:.3g}" for name in parts)
    largest = max(parts, key=lambda name: weights[name] * values[name])
    total = f"the gradient norm is {values['gradient_norm']:g} and the loss {values['loss']:g}"
    return f"{total}, mostly from {largest} (weight · loss: {shares})", [largest]


def find_damage(videos: Sequence[Example]) -> str | None:
    """One sentence on the first video of a batch with features or teachers' outputs that are not finite."""
    for video in videos:
        outputs = [array for teacher in video.teachers for array in (teacher.features, teacher.logits)]
        for what, array in [("its features", video.features), *(("the output of its teacher", a) for a in outputs)]:
            bad = ~np.isfinite(np.asarray(array)).all(axis=1)
            if bad.any():
                return f"video {video.id!r}: {what} are not finite in snippet {int(bad.argmax())}"
    return None
