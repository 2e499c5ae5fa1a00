"""Manifests: `<video>.json`, which `data_prep.extract` writes next to a feature file and which says how it was made.

manifest = read_manifest(Path("features/rgb/kitchen_1.npy"), findings)   # None without one
"""

import math
from collections.abc import Iterator
from pathlib import Path

from kd_jax.data.checks import Findings, number, short
from kd_jax.files import read_json

FIELDS = ("modality", "weights_sha256", "sampling", "sampled_fps", "dtype")  # equal for all features of a modality
MODALITIES = ("rgb", "flow", "pose")  # that encoders of kd_jax read
STEP = "seconds_per_snippet"  # from one snippet to the next


def is_manifest(content: object) -> bool:
    """Whether JSON content is a manifest that `data_prep.extract` writes, with values that can be used."""
    return isinstance(content, dict) and "weights_sha256" in content and not any(_faults(content))


def read_manifest(path: Path, findings: Findings) -> dict | None:
    """Reads the manifest of a feature file.

    A manifest that is damaged, or has a value that cannot be, is a problem. Other JSON is none.
    """
    source, remedy = path.with_suffix(".json"), "extract the features again, or delete it if it is not a manifest"
    try:
        content = read_json(source, remedy)
    except (ValueError, OSError) as error:
        findings.problem("unreadable manifest", str(error))
        return None
    if content is None or "weights_sha256" not in content:
        return None
    if fault := next(_faults(content), ""):
        findings.problem("unreadable manifest", f"{source}: {fault}; {remedy}")
        return None
    return content


def _faults(manifest: dict) -> Iterator[str]:
    """Yields what is wrong with the fields of a manifest."""
    if missing := [name for name in (*FIELDS, STEP) if name not in manifest]:
        yield f"the field {missing[0]} is missing"
        return
    sampling = manifest["sampling"]
    if not isinstance(sampling, dict):
        yield f"sampling is {short(sampling)}, expected an object"
        return
    numbers = {name: manifest[name] for name in (STEP, "fps", "frames", "snippets") if name in manifest}
    numbers |= {f"sampling.{name}": sampling[name] for name in ("length", "stride") if name in sampling}
    for name, value in numbers.items():
        if not 0 < number(value) < math.inf:
            yield f"{name} is {short(value)}, expected a number above 0"
            return
    if "fps" in numbers and "sampling.stride" in numbers:
        step = numbers["sampling.stride"] / numbers["fps"]
        if abs(step / numbers[STEP] - 1) > 0.01:
            yield f"its stride and fps make {step:.4g} s per snippet, but {STEP} is {numbers[STEP]:.4g}"
