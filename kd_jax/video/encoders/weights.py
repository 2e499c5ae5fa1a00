"""Weights of an encoder as one file: an .npz of arrays and a manifest with their layout and source.

    weights = read_weights(Path('i3d_rgb.npz'))
    weights.model.apply(weights.variables, clips)

`kd-jax convert-weights` writes such files from published weights.
"""

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.data.checks import reason
from kd_jax.files import read_arrays, sha256, write_arrays
from kd_jax.video.encoders.agcn import AGCN
from kd_jax.video.encoders.i3d import I3D
from kd_jax.video.encoders.protocol import Encoder, import_encoder
from kd_jax.video.encoders.videoprism import VideoPrism
from kd_jax.video.skeletons import JOINTS


class Kind(NamedTuple):
    """What is known about a network: its frames and where its weights show the number of features."""

    network: type[nn.Module]
    mean: float  # of bytes divided by 255; the network reads (b / 255 - mean) / std
    std: float
    features: str  # the array whose first axis has the features


ENCODERS = {
    "i3d": Kind(I3D, mean=0.5, std=0.5, features="logits/kernel"),
    "agcn": Kind(AGCN, mean=0.5, std=0.5, features="fc/kernel"),
    "videoprism": Kind(VideoPrism, mean=0.0, std=1.0, features="temporal_norm/scale"),
}
_MANIFEST = "manifest"  # name of the array that holds the manifest as JSON


@dataclass(frozen=True)
class Weights:
    """An encoder with its weights.

    The manifest has encoder, modality, source, shapes and the fields of the network other than its dtype. For networks
    of frames it also has window, and size and shorter_side in pixels; for AGCN also the number of persons.
    """

    model: nn.Module  # an `I3D`, `AGCN` or `VideoPrism`
    variables: dict  # {'params': …, 'batch_stats': …}, float32
    manifest: dict

    @property
    def modality(self) -> str:
        """The input of the encoder: rgb, flow or pose."""
        return self.manifest["modality"]

    def encoder(self, digest: str = "") -> Encoder:
        """Returns the encoder that computes `model.embed`; `digest` is the sha256 of the file of weights."""
        name, kind = _kind_of(self.model)
        facts = {
            key: self.manifest[key] for key in ("window", "size", "shorter_side", "persons") if key in self.manifest
        }
        features = flax.traverse_util.flatten_dict(self.variables["params"], sep="/")[kind.features]
        function = jax.tree_util.Partial(_Embed(self.model), self.variables)
        facts |= {"modality": self.modality, "mean": kind.mean, "std": kind.std}
        return Encoder(function, len(features), name=name, sha256=digest, **facts)


@dataclass(frozen=True)
class _Embed:
    """The features of a network as a function; functions of equal networks are equal, so that JAX compiles one."""

    model: nn.Module

    def __call__(self, variables: Mapping, snippets: jax.Array):
        return self.model.apply(variables, snippets, method="embed")


def _kind_of(model: nn.Module) -> tuple[str, Kind]:
    return next((name, kind) for name, kind in ENCODERS.items() if isinstance(model, kind.network))


def _options(network: type[nn.Module]) -> list[str]:
    """Returns the fields of a network that its manifest has."""
    return [field.name for field in dataclasses.fields(network) if field.name not in ("dtype", "parent", "name")]


def shapes_of(model: nn.Module, modality: str, persons: int = 2) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {'params/Conv3d_1a_7x7/kernel': shape and dtype, …} for all variables of a model."""
    shape: tuple[int, ...] = (1, 16, 32, 32, 3 if modality == "rgb" else 2)
    if modality == "pose":
        shape = (1, 16, persons, JOINTS, 3)
    elif isinstance(model, VideoPrism):
        shape = (1, 1, model.patch, model.patch, 3)
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
    window: int = 16,
    size: int = 224,
    shorter_side: int = 256,
) -> None:
    """Writes a file of weights atomically.

    Args:
      path: the file, with ending .npz.
      modality: input of the encoder: 'rgb', 'flow' or 'pose'.
      source: origin of the weights as plain JSON: file, sha256, ….
      persons: bodies per frame that an AGCN reads.
      window: frames per snippet.
      size, shorter_side: the central square that is read, and the frame's shorter side before, in pixels.
    """
    arrays = {key: np.asarray(x) for key, x in flax.traverse_util.flatten_dict(dict(variables), sep="/").items()}
    name, kind = _kind_of(model)
    frames = {"window": window, "size": size, "shorter_side": shorter_side}
    manifest = {
        "encoder": name,
        "modality": modality,
        **{option: getattr(model, option) for option in _options(kind.network)},
        **({"persons": persons} if modality == "pose" else frames),
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
    remedy = "make one with kd-jax convert-weights --state=FILE --output=FILE.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of encoder weights; {remedy}")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz file, or cut short")
        arrays = read_arrays(path)
        manifest = json.loads(str(arrays.pop(_MANIFEST)))
        network, modality = ENCODERS[manifest["encoder"]].network, manifest["modality"]
        model = network(dtype=dtype, **{name: manifest[name] for name in _options(network) if name in manifest})
        expected = shapes_of(model, modality, manifest.get("persons", 2))
    except Exception as error:  # a damaged manifest gives fields of any type, which any part of Flax may refuse
        raise ValueError(f"{path} is not a file of encoder weights ({reason(error):.120}); {remedy}") from None
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


def read_encoder(encoder: str | None, weights: Path | None, *, dtype: str = "float32") -> Encoder:
    """Returns the encoder of the user's `MODULE:FUNCTION` (`import_encoder`), or that of a file of weights.

    `dtype` is the precision of the computation with a file of weights. Raises what `import_encoder` or `read_weights`
    raises, and ValueError without both.
    """
    if encoder:
        return import_encoder(encoder, weights)
    if not weights:
        raise ValueError("an encoder needs a file of weights, or --encoder=MODULE:FUNCTION")
    read = read_weights(weights, dtype=jnp.dtype(dtype))
    try:
        return read.encoder(sha256(weights))
    except ValueError as error:
        raise ValueError(f"{weights}: its manifest is not that of an encoder ({error})") from None
