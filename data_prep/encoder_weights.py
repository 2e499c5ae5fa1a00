"""Published weights of I3D and AGCN → arrays named and laid out as kd_jax's.

    model, modality, persons, variables = convert(read_state(Path('rgb_imagenet.pt')))

knows the state dicts of pytorch-i3d and 2s-AGCN, and the TensorFlow checkpoints of kinetics-i3d.
"""

import re
from collections.abc import Callable, Mapping

import flax
import numpy as np

from kd_jax.video.encoders import AGCN, I3D
from kd_jax.video.encoders.weights import shapes_of

_BN = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Branches of an Inception block in kinetics-i3d; Mixed_5b's third says 0a where the others say 0b.
_BRANCHES = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


def convert(state: Mapping[str, np.ndarray]) -> tuple[I3D | AGCN, str, int, dict] | None:
    """The encoder that a state belongs to.

    Args:
      state: arrays by published key, in their published layout.

    Returns:
      The model, what it reads ('rgb', 'flow', 'pose'), the persons it is for, and its variables; None where the keys
      are not those of an encoder.

    Raises:
      ValueError: for missing, extra or misshapen keys, all of them listed.
    """
    first = next((key for key in state if key.endswith("Conv3d_1a_7x7/conv_3d/w")), None)
    if "Conv3d_1a_7x7.conv3d.weight" in state:
        first, key_of, laid_out = "Conv3d_1a_7x7.conv3d.weight", _pytorch_i3d, _from_pytorch
    elif first:
        prefix = first.removesuffix("Conv3d_1a_7x7/conv_3d/w")
        key_of, laid_out = (lambda path: prefix + _tensorflow_i3d(path)), _from_tensorflow
    elif "l1.gcn1.PA" in state:
        key_of, laid_out = _pytorch_agcn, _from_pytorch
    else:
        return None
    if first:
        channels, axis = (3, -2) if first.endswith("/w") else (3, 1)
        channels = state[first].shape[axis] if state[first].ndim == 5 else channels
        modality, persons = {3: "rgb", 2: "flow"}.get(channels, "rgb"), 2
        logits = state.get(key_of("params/logits/bias"))
        model = I3D(logits.shape[0] if logits is not None and logits.ndim == 1 else 400)
    else:
        modality, persons = "pose", max(1, state.get("data_bn.bias", np.zeros(150)).size // 75)
        model = AGCN(state["fc.bias"].shape[0] if "fc.bias" in state and state["fc.bias"].ndim == 1 else 60)
    expected = shapes_of(model, modality, persons)
    return model, modality, persons, _take(state, expected, key_of, laid_out)


def _take(state: Mapping, expected: Mapping, key_of: Callable, laid_out: Callable) -> dict:
    taken, problems, seen = {}, [], set()
    for path, ours in expected.items():
        key = key_of(path)
        if laid_out is _from_tensorflow and path.endswith("bn/scale"):
            taken[path] = np.ones(ours.shape, np.float32)  # kinetics-i3d normalises without one
            continue
        seen.add(key)
        if key not in state:
            problems.append(f"{key} is missing")
            continue
        value = laid_out(path, state[key], len(ours.shape))
        if value.shape != ours.shape:
            problems.append(
                f"{key} is {list(state[key].shape)}, which gives {list(value.shape)}, not {list(ours.shape)}"
            )
        elif not np.isfinite(value).all():
            problems.append(f"{key} is not finite")
        else:
            taken[path] = np.asarray(value, np.float32)
    ignored = r".*num_batches_tracked|global_step|.*/(Momentum|Adam(_\d)?|ExponentialMovingAverage)"
    problems += [f"{key} is not known" for key in state if key not in seen and not re.fullmatch(ignored, key)]
    if problems:
        raise ValueError("the weights do not fit their encoder: " + "; ".join(problems))
    return flax.traverse_util.unflatten_dict(taken, sep="/")


def _pytorch_i3d(path: str) -> str:
    *module, leaf = path.split("/")[1:]
    if module[-1] == "bn":
        return ".".join((*module, _BN[leaf]))
    return ".".join((*module, "conv3d", {"kernel": "weight"}.get(leaf, leaf)))


def _tensorflow_i3d(path: str) -> str:
    *module, leaf = path.split("/")[1:]
    if module == ["logits"]:
        return f"Logits/Conv3d_0c_1x1/conv_3d/{leaf[0].replace('k', 'w')}"
    names = [_BRANCHES.get(name, name) for name in module]
    if names[:2] == ["Mixed_5b", _BRANCHES["b2b"]]:
        names[1] = "Branch_2/Conv3d_0a_3x3"
    if names[-1] == "bn":
        names[-1] = "batch_norm"
        return "/".join((*names, {"bias": "beta", "mean": "moving_mean", "var": "moving_variance"}.get(leaf, "gamma")))
    return "/".join((*names, "conv_3d/w"))


def _pytorch_agcn(path: str) -> str:
    *module, leaf = path.split("/")[1:]
    name = ".".join(module)
    for ours, theirs in (
        (r"\bgraph\b", "gcn1"),
        (r"\bframes\.bn", "tcn1.bn"),
        (r"\bframes$", "tcn1.conv"),
        (r"\bresidual$", "residual.conv"),
        (r"\bdown\.bn", "down.1"),
        (r"\bdown$", "down.0"),
        (r"\ba_(\d)$", r"conv_a.\1"),
        (r"\bb_(\d)$", r"conv_b.\1"),
        (r"\bout_(\d)$", r"conv_d.\1"),
    ):
        name = re.sub(ours, theirs, name)
    if leaf == "links":
        return f"{name}.PA"
    return f"{name}.{_BN[leaf] if module[-1] in ('bn', 'data_bn') else {'kernel': 'weight'}.get(leaf, leaf)}"


def _from_pytorch(path: str, value: np.ndarray, ndim: int) -> np.ndarray:
    """[out, in, …] → […, in, out]; a 1×1 convolution that is a linear layer here loses its axes of length 1."""
    if not path.endswith("/kernel") or value.ndim < 2:
        return value
    return _from_tensorflow(path, np.moveaxis(value, (0, 1), (-1, -2)), ndim)


def _from_tensorflow(path: str, value: np.ndarray, ndim: int) -> np.ndarray:
    """Laid out as here, but for statistics with axes of length 1 before their channels."""
    extra = tuple(range(value.ndim - ndim))
    return value.squeeze(extra) if all(value.shape[axis] == 1 for axis in extra) else value
