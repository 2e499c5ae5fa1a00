"""Weights of an encoder as one file: an .npz of arrays and a manifest with their layout and source.

    weights = read_weights(Path('i3d_rgb.npz'))
    weights.model.apply(weights.variables, clips)

`python -m data_prep.convert_weights` writes such files from published weights.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.files import read_arrays, write_arrays
from kd_jax.video.encoders.agcn import AGCN
from kd_jax.video.encoders.i3d import I3D
from kd_jax.video.skeletons import JOINTS

ENCODERS = {"i3d": I3D, "agcn": AGCN}
_MANIFEST = "manifest"  # name of the array that holds the manifest as JSON


@dataclass(frozen=True)
class Weights:
    """An encoder with its weights.

    The manifest has encoder, modality, num_classes, width, source and shapes; for I3D also final_endpoint, and size and
    shorter_side of frames in pixels; for AGCN also the number of persons.
    """

    model: nn.Module  # an `I3D` or `AGCN`
    variables: dict  # {'params': …, 'batch_stats': …}, float32
    manifest: dict

    @property
    def modality(self) -> str:
        """The input of the encoder: rgb, flow or pose."""
        return self.manifest["modality"]

    @property
    def num_features(self) -> int:
        """The number of features, D."""
        return self.variables["params"]["fc" if self.modality == "pose" else "logits"]["kernel"].shape[0]


def shapes_of(model: nn.Module, modality: str, persons: int = 2) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {'params/Conv3d_1a_7x7/kernel': shape and dtype, …} for all variables of a model."""
    shape = (1, 16, persons, JOINTS, 3) if modality == "pose" else (1, 16, 32, 32, 3 if modality == "rgb" else 2)
    tree = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return flax.traverse_util.flatten_dict(tree, sep="/")


def random_variables(model: nn.Module, modality: str, seed: int, persons: int = 2) -> dict:
    """Returns random variables, without compiling the network as `model.init` does.

    Kernels are normal, scaled as in He et al. for I3D, and smaller for AGCN, where blocks add up. Biases are 0.
    """
    rng, gain = np.random.default_rng(seed), 2.0 if isinstance(model, I3D) else 0.35
    drawn = {}
    for key, x in shapes_of(model, modality, persons).items():
        if key.endswith("/kernel"):
            drawn[key] = rng.normal(0, np.sqrt(gain / np.prod(x.shape[:-1])), x.shape).astype(np.float32)
        else:
            drawn[key] = np.full(x.shape, float(key.endswith(("/scale", "/var"))), np.float32)
    return flax.traverse_util.unflatten_dict(drawn, sep="/")


def write_weights(
    path: Path,
    model: nn.Module,
    variables: Mapping,
    *,
    modality: str,
    source: Mapping,
    persons: int = 2,
    size: int = 224,
    shorter_side: int = 256,
) -> None:
    """Writes a file of weights atomically.

    Args:
      path: the file, with ending .npz.
      modality: input of the encoder: 'rgb', 'flow' or 'pose'.
      source: origin of the weights as plain JSON: file, sha256, ….
      persons: bodies per frame that an AGCN reads.
      size, shorter_side: the central square that an I3D reads, and the frame's shorter side before, in pixels.
    """
    arrays = {key: np.asarray(x) for key, x in flax.traverse_util.flatten_dict(dict(variables), sep="/").items()}
    manifest = {
        "encoder": next(name for name, kind in ENCODERS.items() if isinstance(model, kind)),
        "modality": modality,
        "num_classes": model.num_classes,
        "width": model.width,
        **({"final_endpoint": model.final_endpoint} if isinstance(model, I3D) else {}),
        **({"persons": persons} if modality == "pose" else {"size": size, "shorter_side": shorter_side}),
        "source": dict(source),
        "shapes": {key: list(x.shape) for key, x in arrays.items()},
    }
    write_arrays(path, arrays | {_MANIFEST: np.array(json.dumps(manifest))})


def read_weights(path: Path, *, dtype: jnp.dtype = jnp.float32) -> Weights:
    """Reads a file that `write_weights` wrote, for computation in `dtype`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for a file in another format; for arrays that are missing, unknown, of another shape or not finite,
        with a list of them.
    """
    remedy = "make one with python -m data_prep.convert_weights --state=FILE --output=FILE.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of encoder weights; {remedy}")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz file, or cut short")
        arrays = read_arrays(path)
        manifest = json.loads(str(arrays.pop(_MANIFEST)))
        kind, modality = ENCODERS[manifest["encoder"]], manifest["modality"]
        options = {name: manifest[name] for name in ("width", "final_endpoint") if name in manifest}
        model = kind(manifest["num_classes"], dtype=dtype, **options)
        expected = shapes_of(model, modality, manifest.get("persons", 2))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error) if type(error) is ValueError else repr(error)
        raise ValueError(f"{path} is no file of encoder weights ({reason:.120}); {remedy}") from None
    problems = [f"{key} is missing" for key in expected if key not in arrays]
    problems += [f"{key} is not known" for key in arrays if key not in expected]
    for key in expected.keys() & arrays.keys():
        if arrays[key].shape != expected[key].shape or arrays[key].dtype != np.float32:
            found, wanted = list(arrays[key].shape), list(expected[key].shape)
            problems.append(f"{key} is {arrays[key].dtype} {found}, not float32 {wanted}")
        elif not np.isfinite(arrays[key]).all():
            problems.append(f"{key} is not finite")
    if problems:
        raise ValueError(f"{path} does not fit its encoder: {'; '.join(sorted(problems))}; {remedy}")
    return Weights(model, flax.traverse_util.unflatten_dict(arrays, sep="/"), manifest)
