"""A trained detector as a folder that other programs read; `kd_jax.load` reads it back.

    detector = kd_jax.load("workdir/demo/augmented_rgb")
    program = make_program(detector)                                  # StableHLO, for jax.export
    write(folder, detector, {PROGRAM: program}, card="# A detector")

The folder has the layout of a Hugging Face repository: `model.safetensors`, `config.json`, `README.md`. Next to them
are `detector.stablehlo`, a program with the parameters, and `detector.py`, which calls it and needs only jax.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import unflatten_dict

from kd_jax.files import DamagedFileError, check_regular, require_json, sha256, write_atomically, write_json
from kd_jax.inference import exported_detector
from kd_jax.inference.trained_detector import TrainedDetector, stored_dtype
from kd_jax.masking import mask_out
from kd_jax.models import cpu_kernels
from kd_jax.training.checkpoints import TrainedRun, check_filter, check_finite
from kd_jax.training.run_config import build_fitting_model, check_run_config, one_line

PROGRAM, ONNX, WEIGHTS = "detector.stablehlo", "detector.onnx", "model.safetensors"
CONFIG, CARD, LOADER, READER = "config.json", "README.md", "detector.py", "flatbuffers.zip"
NAMES = (PROGRAM, ONNX, WEIGHTS, CONFIG, CARD, LOADER, READER)
PLATFORMS = ("cpu", "cuda", "tpu")
AGAIN = "copy the folder again, or export it anew"
# Fields of a run's config.json that an export keeps. The others may name folders of the machine that trained it.
_KEPT = (
    *("run", "seed", "modality", "filter", "model", "input_size", "head", "classes", "features_dtype"),
    *("seconds_per_snippet", "first_snippet", "label_at", "extraction", "weights", "training"),
)

Call = Callable[[Any, np.ndarray], Any]  # features [B, T, D], or {modality: these}, and mask [B, T] -> [B, T, C]


def as_function(detector: TrainedDetector) -> Call:
    """Returns a detector as a function that JAX can trace with any number of videos and snippets.

    It reads features `[B, T, D]` float32, or {modality: these} if there are several modalities, and a mask `[B, T]`
    bool. Features are rounded to the type of the training features. It returns probabilities `[B, T, C]`, 0 in the
    padding.
    """

    def compute(features, mask):
        (only, *more) = detector.inputs
        given = features if more else {only: features}
        logits = []
        for run in detector.members:
            x = given[run.config["modality"]]
            x = _round_to_float16(x) if stored_dtype(run.config) == "float16" else x
            outputs: Any = run.model.apply(run.variables, x, mask)
            logits.append(outputs.logits)
        activation = jax.nn.sigmoid if detector.head == "dense" else jax.nn.softmax
        return mask_out(activation(sum(logits) / len(logits)), mask)

    return compute


def _round_to_float16(x: jax.Array) -> jax.Array:
    """Rounds float32 to the values of float16. XLA may remove a conversion to float16 and back."""
    fine = jnp.round(x * 2.0**24) * 2.0**-24  # below 2^-14 the values of float16 are 2^-24 apart
    return jnp.where(jnp.abs(x) < 2.0**-14, fine, jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10))


def symbolic_inputs(detector: TrainedDetector) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Returns features and mask of `as_function` without values, for any number of videos and snippets."""
    batch, time = jax.export.symbolic_shape("batch, time")
    arrays = {m: jax.ShapeDtypeStruct((batch, time, size), np.float32) for m, size in detector.inputs.items()}
    features = arrays if len(arrays) > 1 else next(iter(arrays.values()))
    return features, jax.ShapeDtypeStruct((batch, time), bool)


def make_program(detector: TrainedDetector) -> bytes:
    """Returns the function of `as_function` as StableHLO with its parameters, for any number of videos and snippets.

    `jax.export.deserialize` reads it. Raises ValueError if the filter cannot be traced with an unknown length.
    """
    try:
        with cpu_kernels.plain_only():
            export = jax.export.export(jax.jit(as_function(detector)), platforms=PLATFORMS)
            return bytes(export(*symbolic_inputs(detector)).serialize())
    except Exception as error:  # a filter may raise anything for a length that is not a number
        filters = " or ".join(sorted({repr(run.model.filter) for run in detector.members}))
        remedy = "its operations must allow shapes of jax.export.symbolic_shape"
        raise ValueError(
            f"the filter {filters} cannot be exported for any length ({one_line(error)}); {remedy}"
        ) from error


def read_program(program: bytes) -> Call:
    """Returns the function that `make_program` wrote."""
    return jax.jit(jax.export.deserialize(bytearray(program)).call)


def pack_weights(detector: TrainedDetector) -> bytes:
    """Returns the parameters and constants of a detector as safetensors: 'MEMBER/params/temporal_filter/…'."""
    arrays = {}
    for index, run in enumerate(detector.members):
        for path, leaf in jax.tree_util.tree_leaves_with_path(run.variables):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            arrays[f"{index}/{name}"] = np.ascontiguousarray(leaf)
    return safetensors.numpy.save(arrays, metadata={"format": "flax"})


def pack_flatbuffers() -> bytes:
    """Returns the package flatbuffers as a zip file that Python can import; jax.export reads programs with it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(Path(flatbuffers.__file__).parent.glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"flatbuffers/{path.name}"), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def write(folder: epath.Path, detector: TrainedDetector, programs: Mapping[str, bytes], card: str) -> list[str]:
    """Writes an export and returns the names of its files; `programs` holds PROGRAM, and ONNX if it was made."""
    files = {
        **programs,
        WEIGHTS: pack_weights(detector),
        READER: pack_flatbuffers(),
        LOADER: Path(exported_detector.__file__).read_bytes(),
        CARD: card.encode(),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    members = []
    for run in detector.members:
        kept = {name: run.config[name] for name in _KEPT if name in run.config}
        members.append({**kept, "teachers": {name: {} for name in run.config.get("teachers") or ()}})
    config = {
        "library_name": "kd_jax",
        "name": detector.title,
        "inputs": detector.inputs,
        "classes": detector.classes,
        "head": detector.head,
        "members": members,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    write_json(folder / CONFIG, config)
    return [*files, CONFIG]


def find(path: epath.Path) -> epath.Path | None:
    """Returns the exported folder that `path` is or lies in; None if there is no such folder.

    Raises ValueError for a file outside an exported folder.
    """
    folder = path.parent if path.is_file() else path
    if (folder / WEIGHTS).exists() or (folder / PROGRAM).exists():
        return folder
    if path.is_file():
        raise ValueError(f"{path} is not a file of an exported folder; name a folder of kd-jax export, or a run")
    return None


def read(folder: epath.Path, chosen: epath.Path) -> tuple[TrainedRun, ...]:
    """Reads the trained detectors of an exported folder from its parameters; `chosen` is the folder or a file in it.

    Raises DamagedFileError if one of the files that are read, or `chosen`, is not what the export wrote.
    """
    config = require_json(folder / CONFIG, AGAIN)
    members, files = config.get("members"), config.get("files")
    if config.get("library_name") != "kd_jax" or not isinstance(members, list) or not isinstance(files, dict):
        raise DamagedFileError(f"{folder / CONFIG} is not what kd-jax export writes; give a folder that it wrote")
    for name in {WEIGHTS, chosen.name} & files.keys():
        if not (path := folder / name).exists():
            raise DamagedFileError(f"{path} is missing; {AGAIN}")
        check_regular(path)
        if sha256(path) != files[name]:
            raise DamagedFileError(f"{path} is not what kd-jax export wrote; {AGAIN}")
    try:
        trees = unflatten_dict(safetensors.numpy.load((folder / WEIGHTS).read_bytes()), sep="/")
        return tuple(_assemble(folder, member, trees[str(index)]) for index, member in enumerate(members))
    except (DamagedFileError, OSError):
        raise
    except Exception as error:  # SafetensorError is no ValueError
        raise DamagedFileError(f"{folder / WEIGHTS} cannot be read ({one_line(error)}); {AGAIN}") from error


def _assemble(folder: epath.Path, config: dict, variables: dict) -> TrainedRun:
    check_run_config(folder / CONFIG, config, AGAIN)
    check_filter(folder, config)
    params, constants = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
    model = build_fitting_model(folder, config, params, constants, AGAIN)
    check_finite(str(folder / WEIGHTS), variables, AGAIN)
    return TrainedRun(model, variables, config)
