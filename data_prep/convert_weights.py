"""Converts published weights: those of an encoder into one file, those of a temporal filter into a run.

    kd-jax convert-weights --state=rgb_imagenet.pt --output=weights/i3d_rgb.npz
    kd-jax convert-weights --state=pdan.pth --records=data/tsu --modality=rgb --output=workdir/public_pdan

The formats are state dicts of the public I3D (pytorch-i3d), AGCN (2s-AGCN), PDAN, SS-TCN, MS-TCN and TGM code,
TensorFlow checkpoints of kinetics-i3d (`--state=rgb_imagenet/model.ckpt`) and .npz files of VideoPrism. State dicts
need `pip install 'kd_jax[torch]'`.
"""

import dataclasses
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from data_prep import encoder_weights, tensorflow_checkpoint
from kd_jax import interrupts
from kd_jax.command_line import Parser, disk_path
from kd_jax.data import base, checks, records
from kd_jax.data.staging import staged
from kd_jax.files import read_arrays, sha256, write_json
from kd_jax.models import Detector
from kd_jax.training.checkpoints import Checkpoints, new_best
from kd_jax.training.state import Optimization, create_train_state
from kd_jax.training.terms import TASKS
from kd_jax.video.encoders import VideoPrism
from kd_jax.video.encoders.weights import write_weights

CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net")  # where checkpoints have a state dict
_LAYER_KEYS = {"ss_tcn": "conv_dilated.weight", "pdan": "conv_attention.rel_t"}  # {filter: key in its layers alone}
FILTER_KEYS = ("sub_event1.center", *(f"stage1.layers.0.{key}" for key in _LAYER_KEYS.values()))  # one in each filter


def read_state(path: Path) -> dict[str, np.ndarray]:
    """Reads a PyTorch state dict, or that inside a checkpoint (`CHECKPOINT_KEYS`), as float32 arrays by key.

    Only tensors are unpickled. Keys lose the prefix of DataParallel, and one that all of them share, such as backbone.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for a file that is not a state dict, for example a pickled model, and for values that are not finite.
    """
    import torch  # here because only this conversion needs it

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    remedy = "with the public code: torch.save(model.state_dict(), path)"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a file of plain tensors ({_reason(error)}); save one {remedy}") from None
    while isinstance(state, dict) and (inner := [key for key in CHECKPOINT_KEYS if isinstance(state.get(key), dict)]):
        state = state[inner[0]]
    if not isinstance(state, dict) or not all(
        isinstance(key, str)
        and isinstance(value, torch.Tensor)
        and not (value.is_complex() or value.is_quantized or value.layout != torch.strided)
        for key, value in state.items()
    ):
        keys = f" (its keys: {', '.join(map(str, [*state][:4]))})" if isinstance(state, dict) else ""
        raise ValueError(f"{path} holds no state dict of plain tensors{keys}; save only that, {remedy}")
    arrays = without_prefix({key.removeprefix("module."): value.float().numpy() for key, value in state.items()})
    if broken := [key for key, value in arrays.items() if not np.isfinite(value).all()]:
        raise ValueError(f"{path}: {broken[0]} holds values that are not finite numbers; its training diverged")
    return arrays


def without_prefix(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes the prefix that all keys of a known model share; raises ValueError if only some keys have it."""
    endings = tuple(f".{known}" for known in (*encoder_weights.PYTORCH_KEYS, *FILTER_KEYS))
    found = next((key for key in state if key.endswith(endings)), None)
    if found is None:
        return dict(state)
    ending = next(ending for ending in endings if found.endswith(ending))
    prefix = found.removesuffix(ending) + "."
    if others := [key for key in state if not key.startswith(prefix)]:
        what = f"the keys that start with {prefix} are those of a known model, but {len(others)} others do not"
        raise ValueError(f"{what}, such as {others[0]}; save only the former")
    return {key.removeprefix(prefix): value for key, value in state.items()}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file as float32, by key.

    Raises FileNotFoundError if there is no such file, and ValueError if it holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        return {key: np.asarray(value, np.float32) for key, value in read_arrays(path).items()}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an .npz file ({checks.reason(error)})") from None


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # its own message is a page about torch.load
        return "it is broken, or holds Python objects such as a whole model, which are not read"
    return checks.reason(error)


def convert(state: Mapping[str, np.ndarray]) -> tuple[Detector, dict]:
    """Converts a public state dict of a temporal filter, of arrays in PyTorch's layout, `[out, in, taps]`.

    Returns:
      The detector, and `{'temporal_filter': …, 'head': …}` for `model.apply({'params': …}, x, mask)`.

    Raises:
      ValueError: if the keys are those of no known filter, or keys are missing, unknown or misshapen. All problems are
        listed if the first and last layers are there, since their shapes give the sizes of the others.
    """
    if FILTER_KEYS[0] in state:
        return _convert_tgm(state)
    for name, key in _LAYER_KEYS.items():
        if f"stage1.layers.0.{key}" in state:
            return _convert_stages(state, name)
    shown = ", ".join(["", *sorted(state)[:3], "…"])
    raise ValueError(
        f"this state dict has {len(state)} keys{shown}: it is of none of PDAN, SS-TCN, MS-TCN and TGM "
        "(stage1.layers.0.…, sub_event1.center)"
    )


class _Reader:
    """Takes arrays of known shapes from a state dict and collects its problems."""

    def __init__(self, state: Mapping[str, np.ndarray]):
        self._state, self._seen = state, set[str]()
        self._problems: list[str] = []

    def take(self, key: str, *shape: int) -> np.ndarray:
        """Returns an array; zeros after a problem."""
        self._seen.add(key)
        value = self._state.get(key)
        if value is None:
            self._problems.append(f"{key} is missing")
        elif value.shape != shape:
            self._problems.append(f"{key} is {list(value.shape)}, not {list(shape)}")
        else:
            return np.asarray(value, np.float32)
        return np.zeros(shape, np.float32)

    def pointwise(self, key: str, inputs: int, outputs: int, *, bias: bool = True) -> dict:
        """Returns the parameters of a linear layer, from a convolution with one tap."""
        kernel = {"kernel": self.take(f"{key}.weight", outputs, inputs, 1)[:, :, 0].T}
        return kernel | ({"bias": self.take(f"{key}.bias", outputs)} if bias else {})

    def finish(self, ignored: str = "") -> None:
        """Raises ValueError with all problems; keys that match `ignored` may be left over."""
        extra = [key for key in self._state if key not in self._seen and not (ignored and re.fullmatch(ignored, key))]
        if problems := self._problems + [f"{key} is not known" for key in extra]:
            raise ValueError("the state dict does not fit its model: " + "; ".join(problems))


def _size(state: Mapping[str, np.ndarray], key: str, axis: int) -> int:
    if key not in state or state[key].ndim <= axis:
        raise ValueError(f"the state dict does not fit its model: {key} is missing or has fewer than {axis + 1} axes")
    return state[key].shape[axis]


def _count(state: Mapping[str, np.ndarray], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _convert_stages(state: Mapping[str, np.ndarray], name: str) -> tuple[Detector, dict]:
    """Converts PDAN, SS-TCN and MS-TCN: `stage1`, `stages.0`, …, each with an input, layers and an output."""
    hidden, inputs = (_size(state, "stage1.conv_1x1.weight", axis) for axis in (0, 1))
    classes = _size(state, "stage1.conv_out.weight", 0)
    layers, stages = _count(state, r"stage1\.layers\.(\d+)\."), 1 + _count(state, r"stages\.(\d+)\.")
    reader, params = _Reader(state), {}
    take_layer = _take_ss_tcn_layer if name == "ss_tcn" else _take_pdan_layer
    for stage in range(stages):
        key, suffix = (f"stages.{stage - 1}", f"_{stage + 1}") if stage else ("stage1", "")
        stacked = [take_layer(reader, f"{key}.layers.{i}", hidden) for i in range(layers)]
        params[f"temporal_filter{suffix}"] = {
            "input": reader.pointwise(f"{key}.conv_1x1", classes if stage else inputs, hidden),
            "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *stacked),
        }
        params[f"head{suffix}"] = reader.pointwise(f"{key}.conv_out", hidden, classes)
    reader.finish()
    name = "ms_tcn" if name == "ss_tcn" and stages > 1 else name
    return Detector(name, classes, hidden=hidden, num_layers=layers, num_stages=stages), params


def _take_ss_tcn_layer(reader: _Reader, key: str, hidden: int) -> dict:
    kernel = reader.take(f"{key}.conv_dilated.weight", hidden, hidden, 3).transpose(2, 1, 0)
    dilated = {"kernel": kernel, "bias": reader.take(f"{key}.conv_dilated.bias", hidden)}
    return {"dilated": dilated, "pointwise": reader.pointwise(f"{key}.conv_1x1", hidden, hidden)}


def _take_pdan_layer(reader: _Reader, key: str, hidden: int) -> dict:
    prefix, parts = f"{key}.conv_attention", ("query", "key", "value")
    attention: dict = {part: reader.pointwise(f"{prefix}.{part}_conv", hidden, hidden, bias=False) for part in parts}
    attention["relative"] = reader.take(f"{prefix}.rel_t", hidden, 1, 3)[:, 0].T
    return {"attention": attention, "pointwise": reader.pointwise(f"{key}.conv_1x1", hidden, hidden)}


def _convert_tgm(state: Mapping[str, np.ndarray]) -> tuple[Detector, dict]:
    """Converts TGM's three mixture layers, with the Cauchy curve of the released code. Its `delta` has no effect.

    The released Hierarchy also has super-events. The state dict has their curves twice, as `sup` and `super_event`.
    """
    hidden, width = (_size(state, "h.weight", axis) for axis in (0, 1))
    classes, mixture = _size(state, "classify.weight", 0), _size(state, "sub_event1.center", 0)
    reader, params, channels = _Reader(state), {}, 8
    for i in range(3):
        key, inputs = f"sub_event{i + 1}", channels if i else 1
        part = {
            "center": reader.take(f"{key}.center", mixture),
            "gamma": reader.take(f"{key}.gamma", mixture),
            "attention": reader.take(f"{key}.soft_attn", channels * inputs, mixture).reshape(channels, inputs, mixture),
        }
        if i:
            kernels = [reader.take(f"{key}.convs.{o}.weight", 1, inputs, 1, 1).reshape(inputs) for o in range(channels)]
            part["kernel"] = np.stack(kernels, axis=1)
            part["bias"] = np.concatenate([reader.take(f"{key}.convs.{o}.bias", 1) for o in range(channels)])
        params[f"layer_{i}"] = part
    name = "tgm_super_events" if state.keys() & {"sup_mat", "cls_wts", "sup.center"} else "tgm"
    if name == "tgm_super_events":
        curves = ("center", "gamma")
        part = {curve: np.stack([reader.take(f"{key}.{curve}", 3) for key in ("sup", "sup2")]) for curve in curves}
        part["kernel"] = reader.take("sup_mat", 1, classes, max(width - classes, 0) // 2)[0].T
        part["share"] = reader.take("cls_wts", classes)
        params["super_events"] = part
    params["hidden"] = reader.pointwise("h", width, hidden)
    head = reader.pointwise("classify", hidden, classes)
    reader.finish(ignored=r"(sub_event\d|sup2?)\.delta|super_event2?\.(center|gamma|delta)")
    return Detector(name, classes, hidden=hidden, num_layers=3), {"temporal_filter": params, "head": head}


def input_size(model: Detector, params: Mapping) -> int:
    """Returns D, the number of input features of a converted detector."""
    part = params["temporal_filter"]
    if "input" in part:
        return part["input"]["kernel"].shape[0]
    return part["super_events"]["kernel"].shape[0] if "super_events" in part else part["hidden"]["kernel"].shape[0] // 2


def write_run(output: Path, state: Mapping[str, np.ndarray], info: base.Info, modality: str, source: str) -> None:
    """Converts a public state dict into the new folder of a run, which `predict` and `load_run` read.

    Args:
      info: of records with the classes and features that the weights are for.
      modality: of the records, which the filter reads.
      source: name of the file of weights, for the run's config.

    It raises FileExistsError if the folder exists, and ValueError for weights that fit no known filter, or do not fit
    the classes or features of the records.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists; choose another --output")
    model, params = convert(state)
    if modality not in info.modalities:
        raise ValueError(f"--modality={modality}, but the records have {', '.join(info.modalities)}")
    size, outputs = input_size(model, params), TASKS[info.head].num_outputs(len(info.classes))
    if (size, model.num_outputs) != (features := info.modalities[modality], outputs):
        wanted = f"{features} features of {modality!r} and {len(info.classes)} classes ({outputs} logits)"
        read = f"{size} features and give {model.num_outputs} logits"
        raise ValueError(f"the weights read {read}; the records have {wanted}")
    fresh = create_train_state(model, Optimization().make(), jax.random.key(0), size)
    params = jax.tree.map(lambda new, old: old.astype(new.dtype), fresh.params, params)
    trained = dataclasses.replace(fresh, params=params)
    with staged(output, marker="config.json", overwrite=False) as folder:
        write_json(folder / "config.json", _run_config(output.name, model, size, info, modality, source))
        with Checkpoints(folder, after_epoch=0) as keeper:
            keeper.save(0, trained, new_best(trained.params, trained.constants))
        write_json(folder / "results.json", {"best_epoch": 0})


def _run_config(name: str, model: Detector, size: int, info: base.Info, modality: str, source: str) -> dict:
    attributes = ("num_outputs", "hidden", "num_layers", "num_stages", "dropout", "standardize")
    options = {"dtype": "float32", **{name: getattr(model, name) for name in attributes}}
    config = {"run": name, "seed": 0, "modality": modality, "filter": model.filter, "teachers": {}, "weights": {}}
    config |= {"options": {}, "model": options, "converted_from": source, "input_size": size, "head": info.head}
    config |= {name: getattr(info, name) for name in ("seconds_per_snippet", "first_snippet", "label_at")}
    config |= {"classes": list(info.classes)}
    return config | {"extraction": info.extraction.get(modality), "features_dtype": info.dtype(modality).name}


def write_encoder(output: Path, encoder: encoder_weights.Converted, sources: Sequence[Path]) -> None:
    """Writes converted weights of an encoder, from the files `sources`, as one new file with ending .npz.

    It raises FileExistsError if the file exists, and ValueError for another ending.
    """
    if output.suffix != ".npz":
        raise ValueError(f"--output={output}: the weights of an encoder are one file; its name must end in .npz")
    if output.exists():
        raise FileExistsError(f"{output} exists; choose another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    source = {"files": [{"name": file.name, "sha256": sha256(file)} for file in sources]}
    model, modality, persons, variables = encoder
    frames = {}
    if isinstance(model, VideoPrism):
        frames = {"window": model.frames, "size": model.grid * model.patch, "shorter_side": model.grid * model.patch}
    write_weights(output, model, variables, modality=modality, persons=persons, source=source, **frames)


def parser() -> Parser:
    """Returns the parser of the command line."""
    options = Parser("data_prep.convert_weights", __doc__)
    options.add_argument(
        "--state", type=disk_path, help="State dict, saved by torch.save(model.state_dict(), FILE), or a checkpoint."
    )
    options.add_argument(
        "--records", type=disk_path, help="Records with the classes and features that a temporal filter is for."
    )
    options.add_argument("--modality", help="Modality of the records that a temporal filter reads.")
    options.add_argument(
        "--output", type=disk_path, help="FILE.npz for an encoder, folder of the run for a temporal filter."
    )
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the arguments `argv`, or those of the process."""
    options = parser()
    given = options.parse_args(argv)
    if lacking := [f"--{name}" for name in ("state", "output") if not getattr(given, name)]:
        options.error(f"{', '.join(lacking)} must be given")
    path, output = Path(given.state), Path(given.output)
    try:
        checkpoint = tensorflow_checkpoint.prefix_of(path)
        read = read_npz if path.suffix == ".npz" else read_state
        state = tensorflow_checkpoint.read(checkpoint) if checkpoint else read(path)
        if encoder := encoder_weights.convert(state):
            files = sorted(checkpoint.parent.glob(f"{checkpoint.name}.*")) if checkpoint else [path]
            sources = [file for file in files if not checkpoint or file.suffix == ".index" or ".data-" in file.name]
            write_encoder(output, encoder, sources)
            what = f"{type(encoder.model).__name__} for {encoder.modality}"
            if not isinstance(encoder.model, VideoPrism):
                what += f", {encoder.model.num_classes} classes"
            print(f"{output}: {what}; for data_prep.extract --weights and kd_jax.predict --encoder_weights")
            return
        if looks := encoder_weights.describe_other_names(state):
            raise ValueError(f"{path} {looks}")
        if lacking := [f"--{name}" for name in ("records", "modality") if not getattr(given, name)]:
            raise ValueError(f"{path} holds no encoder; a temporal filter also needs {' and '.join(lacking)}")
        write_run(output, state, records.read_info(given.records), given.modality, path.name)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"data_prep.convert_weights: {error}")
    print(f"{output}: a run for kd_jax.predict --run, and for `teachers` of an experiment")


if __name__ == "__main__":
    interrupts.run("data_prep.convert_weights", main)
