"""Conversion of published weights of I3D, AGCN and VideoPrism into variables of kd_jax.

    model, modality, persons, variables = convert(read_state(Path('rgb_imagenet.pt')))

The formats are state dicts of pytorch-i3d and 2s-AGCN, TensorFlow checkpoints of kinetics-i3d, and the flat .npz files
of VideoPrism's video encoders.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax
import numpy as np

from kd_jax.video.encoders import AGCN, I3D, VideoPrism
from kd_jax.video.encoders.weights import shapes_of
from kd_jax.video.skeletons import JOINTS, LAYOUTS, describe_joints

_BN = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Branches of an Inception block in kinetics-i3d. In Mixed_5b, the name of b2b has 0a instead of 0b.
_UNITS = {"b0": "0a_1x1", "b1a": "0a_1x1", "b1b": "0b_3x3", "b2a": "0a_1x1", "b2b": "0b_3x3", "b3b": "0b_1x1"}
_BRANCHES = {name: f"Branch_{name[1]}/Conv3d_{unit}" for name, unit in _UNITS.items()}
PYTORCH_KEYS = ("Conv3d_1a_7x7.conv3d.weight", "l1.gcn1.PA", "l1a.gcn1.PA")  # one in each encoder
_AGCN_RELEASED = {r"^l1a\.": "l1.", r"\.conv_res\.": ".down."}  # released weights have other keys than the code
_AGCN_NAMES = {r"\bgraph\b": "gcn1", r"\bframes\.bn": "tcn1.bn", r"\bframes$": "tcn1.conv"}  # ours: published
_AGCN_NAMES |= {r"\bresidual$": "residual.conv", r"\bdown\.bn": "down.1", r"\bdown$": "down.0"}
_AGCN_NAMES |= {r"\ba_(\d)$": r"conv_a.\1", r"\bb_(\d)$": r"conv_b.\1", r"\bout_(\d)$": r"conv_d.\1"}
_VIDEOPRISM_NAMES = {"patches": "patch_projection/linear", "spatial_norm": "spatial_ln", "temporal_norm": "temporal_ln"}
_VIDEOPRISM_NAMES |= {"attention_norm": "layer_norm", "dense_norm": "ff_layer/layer_norm", "out": "self_attention/post"}
_VIDEOPRISM_NAMES |= {f"dense_{i}": f"ff_layer/ffn_layer{i}/linear" for i in (1, 2)}
_VIDEOPRISM_NAMES |= {name: f"self_attention/{name}" for name in ("query", "key", "value")}
# Models by patterns of their keys, for weights under other names.
_LOOKS = {"AGCN": r"\.PA$|gcn1\.conv_[abd]\.", "I3D": r"Conv3d_1a_7x7|Mixed_\d[a-f]\.", "CTR-GCN": r"gcn1\.convs\."}
_LOOKS |= {"ST-GCN": r"st_gcn_networks\."}


class Converted(NamedTuple):
    """An encoder with converted weights."""

    model: I3D | AGCN | VideoPrism
    modality: str  # input of the model: 'rgb', 'flow' or 'pose'
    persons: int  # bodies per frame that an AGCN reads
    variables: dict  # of the model


def convert(state: Mapping[str, np.ndarray]) -> Converted | None:
    """Converts published weights of an encoder: arrays by published key, in their published layout.

    It returns None if the keys are not those of an encoder, and raises ValueError with a list of all missing, unknown
    and misshapen keys.
    """
    pytorch_key, tensorflow_key = PYTORCH_KEYS[0], "Conv3d_1a_7x7/conv_3d/w"
    if pytorch_key in state:
        return _convert_i3d(state, _first_channels(state[pytorch_key], 1), _pytorch_i3d, _from_pytorch)
    if first := next((key for key in state if key.endswith(tensorflow_key)), None):
        prefix = first.removesuffix(tensorflow_key)
        channels = _first_channels(state[first], -2)
        return _convert_i3d(state, channels, lambda path: prefix + _tensorflow_i3d(path), _from_tensorflow)
    if state.keys() & set(PYTORCH_KEYS[1:]):
        for released, published in _AGCN_RELEASED.items():
            renamed = {re.sub(released, published, key): value for key, value in state.items()}
            if len(renamed) < len(state):
                raise ValueError(
                    f"the weights of AGCN have keys under two names ({released} and {published}); keep one"
                )
            state = renamed
        links = state.get("l1.gcn1.PA", np.zeros(JOINTS))
        if links.ndim and links.shape[-1] in LAYOUTS:
            raise ValueError(f"these weights of AGCN are for {describe_joints(links.shape[-1])}")
        persons = max(1, state.get("data_bn.bias", np.zeros(150)).size // 75)
        agcn = AGCN(_num_classes(state.get("fc.bias"), 60))
        variables = _take(state, shapes_of(agcn, "pose", persons), _pytorch_agcn, _from_pytorch)
        return Converted(agcn, "pose", persons, variables)
    if "params/vision_encoder/patch_projection/linear/kernel" in state:
        raise ValueError("these weights are of VideoPrism's video-text model; give those of the video encoder")
    if "params/patch_projection/linear/kernel" in state:
        return _convert_videoprism(state)
    return None


def _convert_videoprism(state: Mapping[str, np.ndarray]) -> Converted:
    """Converts a video encoder of any size; the shapes of some arrays give the sizes of all others."""

    def size(key: str, axis: int) -> int:
        """Returns the length of an axis; 1 if the array is missing or misshapen, which is reported later."""
        array = state.get(f"params/{key}", np.zeros(()))
        return max(1, array.shape[axis]) if array.ndim > axis else 1

    layers = "{}_encoder/transformers_stack/x_layers/layer_norm/scale"
    model = VideoPrism(
        channels=size("patch_projection/linear/kernel", 1),
        num_heads=size("spatial_encoder/transformers_stack/x_layers/self_attention/query/w", 2),
        hidden=size("spatial_encoder/transformers_stack/x_layers/ff_layer/ffn_layer1/linear/kernel", 2),
        spatial_layers=size(layers.format("spatial"), 0),
        temporal_layers=size(layers.format("temporal"), 0),
        patch=max(1, math.isqrt(size("patch_projection/linear/kernel", 0) // 3)),
        grid=math.isqrt(size("spatial_pos_emb/emb_var", 0)),
        frames=size("temporal_pos_emb/emb_var", 0),
    )
    return Converted(model, "rgb", 2, _take(state, shapes_of(model, "rgb"), _videoprism, _from_videoprism))


def describe_other_names(state: Mapping[str, np.ndarray]) -> str:
    """Returns which model the keys of a state dict look like that `convert` does not know; '' if none."""
    found = {name: key for name, pattern in _LOOKS.items() for key in state if re.search(pattern, key)}
    if not found:
        return ""
    name, key = next(iter(found.items()))
    return f"looks like {name} ({key}), but has none of the keys that are read: {', '.join(PYTORCH_KEYS)}"


def _convert_i3d(state: Mapping, channels: int, key_of: Callable, layout: Callable) -> Converted:
    modality = "flow" if channels == 2 else "rgb"
    model = I3D(_num_classes(state.get(key_of("params/logits/bias")), 400))
    return Converted(model, modality, 2, _take(state, shapes_of(model, modality), key_of, layout))


def _first_channels(kernel: np.ndarray, axis: int) -> int:
    """Returns the input channels of the first layer; 3 if its kernel is misshapen, which is reported later."""
    return kernel.shape[axis] if kernel.ndim == 5 else 3


def _num_classes(bias: np.ndarray | None, otherwise: int) -> int:
    """Returns the number of classes by the last layer's bias; `otherwise` if it is missing or misshapen."""
    return bias.shape[0] if bias is not None and bias.ndim == 1 else otherwise


def _take(state: Mapping, expected: Mapping, key_of: Callable, layout: Callable) -> dict:
    """Returns the variables by their paths in `expected`; ValueError with all problems."""
    taken: dict[str, np.ndarray] = {}
    problems, seen = [], set()
    for path, ours in expected.items():
        key = key_of(path)
        if layout is _from_tensorflow and path.endswith("bn/scale"):
            taken[path] = np.ones(ours.shape, np.float32)  # kinetics-i3d has no scale
            continue
        seen.add(key)
        if key not in state:
            problems.append(f"{key} is missing")
            continue
        value = layout(path, state[key], len(ours.shape))
        if value.shape != ours.shape:
            given, found, wanted = (list(array.shape) for array in (state[key], value, ours))
            problems.append(f"{key} is {given}, which gives {found}, not {wanted}")
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
    names = [_BN[leaf]] if module[-1] == "bn" else ["conv3d", {"kernel": "weight"}.get(leaf, leaf)]
    return ".".join(module + names)


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
    for ours, theirs in _AGCN_NAMES.items():
        name = re.sub(ours, theirs, name)
    names = _BN if module[-1] in ("bn", "data_bn") else {"kernel": "weight", "bias": "bias", "links": "PA"}
    return f"{name}.{names[leaf]}"


def _videoprism(path: str) -> str:
    if path.endswith("_positions"):
        return path.replace("_positions", "_pos_emb/emb_var")
    *module, leaf = path.split("/")[1:]
    if len(module) == 1:
        return "/".join(("params", _VIDEOPRISM_NAMES[module[0]], leaf))
    stack, name = f"{module[0]}_encoder/transformers_stack/x_layers", _VIDEOPRISM_NAMES[module[1]]
    return "/".join(("params", stack, name, leaf[0].replace("k", "w") if "self_attention" in name else leaf))


def _from_videoprism(path: str, value: np.ndarray, ndim: int) -> np.ndarray:
    """Adds the 1 that published scales lack, moves outputs of an attention last, and separates rows of positions."""
    if path.endswith("/scale"):
        return value + np.float32(1)
    if path.endswith("/out/kernel") and value.ndim == 4:
        return np.moveaxis(value, 1, -1)
    side = math.isqrt(len(value)) if value.ndim else 0
    return value.reshape(side, side, -1) if ndim == 3 and value.ndim == 2 and side**2 == len(value) else value


def _from_pytorch(path: str, value: np.ndarray, ndim: int) -> np.ndarray:
    """Moves `[out, in, …]` to `[…, in, out]`; drops axes of length 1 if a 1×1 convolution is a linear layer here."""
    if not path.endswith("/kernel") or value.ndim < 2:
        return value
    return _from_tensorflow(path, np.moveaxis(value, (0, 1), (-1, -2)), ndim)


def _from_tensorflow(path: str, value: np.ndarray, ndim: int) -> np.ndarray:
    """Drops the axes of length 1 that statistics have before their channels."""
    extra = tuple(range(value.ndim - ndim))
    return value.squeeze(extra) if all(value.shape[axis] == 1 for axis in extra) else value
