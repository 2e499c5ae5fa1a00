"""Conversion of public weights into runs and encoders; a state dict that does not fit is refused with a list."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from data_prep.convert_weights import convert, input_size, main, write_run
from kd_jax.data.base import Info
from kd_jax.inference.predict import forward
from kd_jax.training.checkpoints import load_run
from kd_jax.video.encoders.weights import read_weights

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"


def state_of(name):
    golden = np.load(DATA / f"{name}.npz", allow_pickle=False)
    return golden, {key[2:]: golden[key] for key in golden.files if key.startswith("w/")}


def info(classes=7, size=48, head="dense"):
    return Info(
        name="custom",
        classes=tuple(f"class {i}" for i in range(classes)),
        head=head,
        modalities={"rgb": size},
        unit="seconds",
        fps=25.0,
        seconds_per_snippet=0.64,
    )


@pytest.mark.parametrize(
    "name",
    ["pdan_small", "pdan_small_3stages", "tgm_stack_small", "tgm_hier_small", "mstcn4_small", "sstcn_small"],
)
def test_a_converted_run_predicts_what_the_public_code_does(tmp_path, name):
    golden, state = state_of(name)
    model, params = convert(state)
    size = input_size(model, params)
    write_run(tmp_path / "public", state, info(model.num_outputs, size), "rgb", "state.pth")
    run = load_run(tmp_path / "public")
    length = int(golden["lengths"][0])
    x = golden["x"].reshape(*golden["x"].shape[:3])[:1, :, :length].transpose(0, 2, 1)
    logits = forward(run.model, run.variables, x, np.ones((1, length), bool)).logits
    expected = golden["logits_single_0"]
    expected = (expected[-1] if expected.ndim == 4 else expected).transpose(0, 2, 1)
    np.testing.assert_allclose(logits, expected, atol=2e-5, rtol=1e-4)
    assert run.config["modality"] == "rgb" and run.config["converted_from"] == "state.pth"


def test_every_missing_extra_and_misshapen_key_is_listed():
    _, state = state_of("pdan_small")
    del state["stage1.layers.1.conv_1x1.bias"]
    state["stage1.layers.2.conv_attention.rel_t"] = np.zeros((32, 3, 1), np.float32)
    state["stage1.extra"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError) as error:
        convert(state)
    for part in (
        "stage1.layers.1.conv_1x1.bias is missing",
        "stage1.layers.2.conv_attention.rel_t is [32, 3, 1], not [32, 1, 3]",
        "stage1.extra is not known",
    ):
        assert part in str(error.value)
    _, state = state_of("tgm_hier_small")
    del state["sup_mat"]
    state["h.weight"] = state["h.weight"][:, :5]
    with pytest.raises(ValueError, match=r"^the state dict does not fit its model: sup_mat is missing"):
        convert(state)
    with pytest.raises(ValueError, match=r"of none of PDAN, SS-TCN, MS-TCN and TGM"):
        convert({"conv.weight": np.zeros(3, np.float32)})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": 6}, r"give 7 logits; the records have 48 features of 'rgb' and 6 classes \(6 logits\)"),
        ({"head": "sparse"}, r"7 classes \(8 logits\)"),
        ({"size": 40}, r"read 48 features .* the records have 40 features"),
    ],
)
def test_weights_for_other_records_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "public", state_of("pdan_small")[1], info(**changes), "rgb", "state.pth")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_and_an_unknown_modality_are_refused(tmp_path):
    state = state_of("pdan_small")[1]
    with pytest.raises(FileExistsError, match="choose another --output"):
        write_run(tmp_path, state, info(), "rgb", "state.pth")
    with pytest.raises(ValueError, match="--modality=flow, but the records have rgb"):
        write_run(tmp_path / "public", state, info(), "flow", "state.pth")


def test_the_command_names_missing_options_and_reads_a_tensorflow_checkpoint(tmp_path):
    def refused(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        message = str(ended.value)
        assert message.startswith("data_prep.convert_weights: ") and len(message.splitlines()) == 1
        return message

    assert "--output must be given" in refused("--state=x.pth")
    output = tmp_path / "i3d.npz"
    message = refused(f"--state={DATA / 'tensorflow_checkpoint'}", f"--output={output}")
    for part in (
        "do not fit their encoder",
        "Conv3d_1a_7x7/conv_3d/w is [1, 2, 2, 3, 4]",
        "Mixed_5b/Branch_2/Conv3d_0a_3x3",
    ):
        assert part in message
    assert not output.exists()


@pytest.mark.slow
def test_an_encoder_becomes_one_file_with_its_source(tmp_path):
    torch = pytest.importorskip("torch")
    shapes = json.loads((DATA / "recipe_keys.json").read_text())["agcn_ntu60"]["keys"]
    rng = np.random.default_rng(0)
    state = {key: torch.tensor(rng.random(entry["shape"], np.float32)) for key, entry in shapes.items()}
    torch.save(state, tmp_path / "ntu.pt")
    options = [f"--state={tmp_path / 'ntu.pt'}", f"--output={tmp_path / 'made' / 'agcn.npz'}"]
    command = [sys.executable, "-m", "data_prep.convert_weights", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "AGCN for pose, 60 classes" in result.stdout, result.stderr
    weights = read_weights(tmp_path / "made" / "agcn.npz")
    (source,) = weights.manifest["source"]["files"]
    assert source == {"name": "ntu.pt", "sha256": hashlib.sha256((tmp_path / "ntu.pt").read_bytes()).hexdigest()}
    assert weights.manifest["persons"] == 2 and weights.manifest["shapes"]["params/fc/kernel"] == [256, 60]
    np.testing.assert_array_equal(weights.variables["params"]["fc"]["kernel"], state["fc.weight"].numpy().T)
    with pytest.raises(SystemExit, match="agcn.npz exists; choose another --output"):
        main(options)


def test_a_state_dict_comes_from_a_file_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    from data_prep.convert_weights import read_state

    _, state = state_of("pdan_small")
    tensors = {f"module.{key}": torch.from_numpy(value) for key, value in state.items()}
    wrapped = {f"backbone.filter.{key}": torch.from_numpy(value) for key, value in state.items()}
    nested = {"epoch": 9, "model_state_dict": tensors, "optimizer_state_dict": {"state": {}}}
    for content in (tensors, {"state_dict": tensors}, nested, {"net": {"model": tensors}}, wrapped):
        torch.save(content, tmp_path / "state.pth")
        read = read_state(tmp_path / "state.pth")
        jax.tree.map(np.testing.assert_array_equal, read, state)
    torch.save(wrapped | {"fc.weight": torch.ones(2)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"start with backbone.filter. are .*, but 1 others do not, such as fc.weight"):
        read_state(tmp_path / "more.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(
        ValueError, match="is not a file of plain tensors .it is broken, or holds Python objects such as a whole model"
    ):
        read_state(tmp_path / "model.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty.pth is not a file of plain tensors \(EOFError"):
        read_state(tmp_path / "empty.pth")
    odd = (
        torch.zeros(1, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(1), 1, 0, torch.qint8),
    )
    for content in ([1, 2], {0: torch.zeros(1)}, *({"fc.bias": tensor} for tensor in odd)):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="holds no state dict"):
            read_state(tmp_path / "other.pth")
    torch.save({"fc.weight": torch.ones(2), "fc.bias": torch.tensor([0.0, float("nan")])}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: fc\.bias holds values that are not finite"):
        read_state(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="none.pth: there is no such file"):
        read_state(tmp_path / "none.pth")
