"""The protocol of an encoder: a function from snippets to features, and the frames that it reads.

    encoder = Encoder(function, num_features=512, size=112, shorter_side=128)
    encoder = import_encoder("my_encoder:make", Path("r3d_18.pth"))

The encoders of kd_jax (`kd_jax.video.encoders.weights`) and those of users go through the same functions afterwards.
"""

import dataclasses
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data.checks import reason
from kd_jax.files import sha256

Numbers = float | tuple[float, ...]  # one number, or one per channel


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen encoder of snippets.

    `function` maps N snippets to features `[N, D]` of any floating type: a NumPy, JAX or PyTorch array on the CPU. Its
    input is float32: `[N, window, size, size, 3]` for rgb, where a byte b becomes `(b / 255 - mean) / std`;
    `[N, window, size, size, 2]` for flow, where 1 is 20 pixels; `[N, window, persons, 25, 3]` in metres for pose. The
    features of a snippet must not depend on the other snippets.

    A `jax.tree_util.Partial` of a JAX function and its parameters is compiled and runs on all devices, with N split
    over them. Any other function is called as it is, with a NumPy array.
    """

    function: Callable[[Any], Any]
    num_features: int  # D
    modality: str = "rgb"  # or flow or pose
    window: int = 16  # frames per snippet
    size: int = 224  # side of the central square that is kept, in pixels
    shorter_side: int = 256  # shorter side of the frame that the square is cut from, in pixels
    mean: Numbers = 0.5  # of the channels of rgb, from 0 to 1
    std: Numbers = 0.5
    persons: int = 2  # bodies per frame of pose
    name: str = ""  # for messages and manifests; set by kd_jax
    sha256: str = ""  # features with another one are not used together; set by kd_jax

    def __post_init__(self):
        for name in ("num_features", "window", "size", "shorter_side", "persons"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Encoder({name}={value!r}); it must be a whole number of at least 1")
        if not callable(self.function):
            raise ValueError(f"Encoder(function={self.function!r:.60}); it must be a function of snippets")
        if self.modality not in ("rgb", "flow", "pose"):
            raise ValueError(f"Encoder(modality={self.modality!r}); choose one of rgb, flow, pose")
        for name in ("mean", "std"):
            values = np.asarray(getattr(self, name))
            if values.dtype.kind not in "fi" or values.shape not in ((), (3,)) or not np.isfinite(values).all():
                raise ValueError(f"Encoder({name}={getattr(self, name)!r}); it must be one number, or three")
            object.__setattr__(self, name, tuple(values.tolist()) if values.ndim else values.item())
        if not (np.asarray(self.std) > 0).all():
            raise ValueError(f"Encoder(std={self.std}); it must be above 0")

    @property
    def sampling(self) -> dict[str, int]:
        """How the encoder reads a video, by the names of `videos.Sampling`."""
        window = {"length": self.window, "stride": self.window}
        return window | {"size": self.size, "shorter_side": self.shorter_side}


def import_encoder(name: str, weights: Path | None) -> Encoder:
    """Imports `MODULE:FUNCTION` and calls the function with `weights` to make an `Encoder`.

    The module is also searched in the working directory. The sha256 of the encoder is that of the module's file and of
    the weights.

    Raises:
      ValueError: if the name, the module, the function or its result is not as described.
      FileNotFoundError: if there is no file of weights.
    """
    option, (module_name, _, function_name) = f"--encoder={name}", name.partition(":")
    if not function_name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"{option} must be MODULE:FUNCTION, for example my_encoder:make for make in my_encoder.py")
    if weights and not weights.is_file():
        raise FileNotFoundError(f"{weights}: there is no such file of encoder weights")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module raises
        raise ValueError(f"{option}: {module_name} cannot be imported ({reason(error)})") from error
    make, file = getattr(module, function_name, None), getattr(module, "__file__", None)
    if not callable(make) or not file:
        raise ValueError(f"{option}: {file or module_name} has no function {function_name}")
    try:
        inspect.signature(make).bind(weights)
    except TypeError:
        raise ValueError(f"{option}: {function_name} must take one argument, the file of weights or None") from None
    encoder = make(weights)
    if not isinstance(encoder, Encoder):
        found = type(encoder).__name__
        raise ValueError(f"{option}: {function_name} returned a {found}, not a kd_jax.video.encoders.Encoder")
    hashes = [sha256(Path(file)), *([sha256(weights)] if weights else [])]
    return dataclasses.replace(encoder, name=name, sha256=hashlib.sha256(" ".join(hashes).encode()).hexdigest())
