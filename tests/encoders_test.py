"""I3D and AGCN equal the authors' code, and published weights are converted completely or refused."""

import json
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep import encoder_weights, tensorflow_checkpoint
from kd_jax.files import read_arrays, write_arrays
from kd_jax.video.encoders import AGCN, I3D, agcn, i3d
from kd_jax.video.encoders.weights import random_variables, read_encoder, read_weights, shapes_of, write_weights

DATA = Path(__file__).parent / "data"


def recipe(model: str) -> dict[str, np.ndarray]:
    """Make the weights of the golden files, by published key (see the README of the goldens)."""
    entry = json.loads((DATA / "recipe_keys.json").read_text())[model]
    state = {}
    for key, known in entry["keys"].items():
        leaf, shape = key.rsplit(".", 1)[-1], known["shape"]
        if leaf == "num_batches_tracked":
            state[key] = np.array(0)
            continue
        z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
        if leaf == "running_mean" or leaf == "bias":
            z = np.float32(0.1) * z
        elif leaf == "running_var":
            z = np.abs(z) + np.float32(0.5)
        elif leaf == "PA":
            z = np.float32(0.05) * z
        elif z.ndim == 1:
            z = 1 + np.float32(0.1) * z
        else:
            z = z * np.float32(np.sqrt(entry["gain"] / np.prod(shape[1:])))
        np.testing.assert_allclose(z.ravel()[:3], known["first3"][: z.size], rtol=1e-6)
        state[key] = z
    return state


def clip(golden) -> np.ndarray:
    """Make the input of the golden files, `[1, F, height, width, channels]`."""
    rng, (_, c, t, h, w) = np.random.default_rng(int(golden["input_seed"])), golden["input_shape"]
    coarse = rng.uniform(-1, 1, (1, c, -(-t // 4), -(-h // 16), -(-w // 16)))
    coarse = coarse.repeat(4, 2).repeat(16, 3).repeat(16, 4)[:, :, :t, :h, :w]
    x = (0.6 * coarse + 0.4 * rng.uniform(-1, 1, (1, c, t, h, w))).astype(np.float32)
    np.testing.assert_allclose(x.ravel()[:8], golden["input_check/first8"], rtol=1e-6)
    return np.moveaxis(x, 1, -1)


def slice64(x) -> np.ndarray:
    """Return the 64 values that the golden files keep. They have channels second; `x` has channels last."""
    flat = np.moveaxis(np.asarray(x), -1, 1).ravel()
    return flat[np.linspace(0, flat.size - 1, 64).astype(np.int64)]


def encode(model, variables, x, names) -> tuple:
    """Return the output of the encoder and the outputs of the named layers."""

    @jax.jit
    def run(variables, x):
        return model.apply(variables, x, capture_intermediates=True, mutable="intermediates")

    encoded, kept = run(variables, x)
    return encoded, {name: kept["intermediates"][name]["__call__"][0] for name in names}


@pytest.mark.parametrize("name", ["i3d_rgb_16x224", "i3d_flow_16x224", "i3d_rgb_odd_11x90x106"])
def test_i3d_equals_the_public_code(name):
    golden = np.load(DATA / f"{name}.npz", allow_pickle=False)
    state = recipe("i3d_flow_157" if "flow" in name else "i3d_rgb_400")
    model, modality, _, variables = encoder_weights.convert(state)
    assert modality == name.split("_")[1]
    x = clip(golden)
    assert tuple(golden["endpoint_names"]) == i3d.ENDPOINTS

    encoded, endpoints = encode(model, variables, x, i3d.ENDPOINTS)
    for i, (endpoint, value) in enumerate(endpoints.items()):
        assert np.moveaxis(value, -1, 1).shape == tuple(golden["endpoint_shapes"][i])
        np.testing.assert_allclose(slice64(value), golden[f"slice64/{endpoint}"], atol=3e-5, rtol=1e-4)
        np.testing.assert_allclose(
            np.asarray(value).mean((0, 1, 2, 3)), golden[f"chanmean/{endpoint}"], atol=3e-5, rtol=1e-4
        )
    if "features" in golden:
        expected = golden["features"].reshape(1, 1024, -1).transpose(0, 2, 1)
        np.testing.assert_allclose(encoded.features, expected, atol=3e-5, rtol=1e-4)
        np.testing.assert_allclose(encoded.logits, golden["logits"].transpose(0, 2, 1), atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("endpoint, stride", [("Mixed_3c", 2), ("Mixed_4b", 4), ("Mixed_5c", 8)])
def test_i3d_with_an_earlier_endpoint_averages_16_frames_every_8(endpoint, stride, tmp_path):
    model = I3D(7, width=0.125, final_endpoint=endpoint)
    clips = np.random.default_rng(1).uniform(-1, 1, (1, 32, 32, 32, 3)).astype(np.float32)
    variables = random_variables(model, "rgb", 2)
    last = max(variables["params"].keys() - {"logits"}, key=i3d.ENDPOINTS.index)
    assert last == endpoint
    encoded, endpoints = encode(model, variables, clips, [endpoint])
    means = np.asarray(endpoints[endpoint]).mean((2, 3))[0]
    assert len(means) == 32 // stride
    expected = [means[start // stride : (start + 16) // stride].mean(0) for start in (0, 8, 16)]
    np.testing.assert_allclose(encoded.features[0], expected, rtol=1e-5)
    write_weights(tmp_path / "a.npz", model, variables, modality="rgb", source={})
    assert read_weights(tmp_path / "a.npz").model == model


def test_i3d_refuses_an_unknown_endpoint():
    with pytest.raises(ValueError, match="final_endpoint='Mixed_9z'; choose one of Conv3d_1a_7x7"):
        I3D(final_endpoint="Mixed_9z").init(jax.random.key(0), np.zeros((1, 16, 32, 32, 3)))


@pytest.mark.parametrize("name, key", [("agcn_2x64", "agcn_ntu60"), ("agcn_1person_3x50", "agcn_1person_51")])
def test_agcn_equals_the_public_code(name, key):
    golden = np.load(DATA / f"{name}.npz", allow_pickle=False)
    model, modality, persons, variables = encoder_weights.convert(recipe(key))
    x = golden["x"].transpose(0, 2, 4, 3, 1)
    assert (modality, persons) == ("pose", x.shape[2])
    np.testing.assert_array_equal(agcn.adjacency(), golden["adjacency"])
    encoded, endpoints = encode(model, variables, x, agcn.ENDPOINTS)
    np.testing.assert_allclose(encoded.features[:, 0], golden["feat256"], atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(encoded.logits[:, 0], golden["logits"], atol=2e-5, rtol=1e-4)
    for layer, value in endpoints.items():
        np.testing.assert_allclose(slice64(value), golden[f"slice64/{layer}"], atol=2e-5, rtol=1e-4)


def tensorflow_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename the state of pytorch-i3d as in a checkpoint of kinetics-i3d, independently of the converter."""
    units = {"b0": "Branch_0/Conv3d_0a_1x1", "b1a": "Branch_1/Conv3d_0a_1x1", "b1b": "Branch_1/Conv3d_0b_3x3"}
    units |= {"b2a": "Branch_2/Conv3d_0a_1x1", "b2b": "Branch_2/Conv3d_0b_3x3", "b3b": "Branch_3/Conv3d_0b_1x1"}
    found = {}
    for key, value in state.items():
        *module, kind, leaf = key.split(".")
        module = "/".join(units.get(name, name) for name in module)
        if module == "Mixed_5b/Branch_2/Conv3d_0b_3x3":
            module = "Mixed_5b/Branch_2/Conv3d_0a_3x3"
        if module == "logits":
            module = "Logits/Conv3d_0c_1x1"
        name = f"RGB/inception_i3d/{module}"
        if kind == "conv3d":
            found[f"{name}/conv_3d/{leaf[0]}"] = value.transpose(2, 3, 4, 1, 0) if leaf == "weight" else value
        elif leaf in ("bias", "running_mean", "running_var"):
            named = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}[leaf]
            found[f"{name}/batch_norm/{named}"] = value.reshape(1, 1, 1, 1, -1)
    return found


def test_a_tensorflow_checkpoint_gives_the_same_weights():
    state = recipe("i3d_rgb_400")
    for key in state:
        if key.endswith("bn.weight"):
            state[key] = np.ones_like(state[key])  # kinetics-i3d has none
    model, modality, _, variables = encoder_weights.convert(state)
    again = encoder_weights.convert(tensorflow_names(state))
    assert (again[0], again[1]) == (model, modality)
    jax.tree.map(np.testing.assert_array_equal, again[3], variables)


def test_a_tensorflow_checkpoint_is_read_without_tensorflow(tmp_path):
    """The file was written by TensorFlow 2.21, four normal arrays of seed 0, a step and a text."""
    prefix = tensorflow_checkpoint.prefix_of(DATA / "tensorflow_checkpoint.index")
    arrays = tensorflow_checkpoint.read(prefix)
    rng, unit = np.random.default_rng(0), "RGB/inception_i3d/Conv3d_1a_7x7"
    for name, shape in (
        (f"{unit}/conv_3d/w", (1, 2, 2, 3, 4)),
        (f"{unit}/batch_norm/beta", (1, 1, 1, 1, 4)),
        (f"{unit}/batch_norm/moving_mean", (1, 1, 1, 1, 4)),
        ("RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/b", (5,)),
    ):
        np.testing.assert_array_equal(arrays.pop(name), rng.standard_normal(shape).astype(np.float32))
    assert arrays == {"global_step": 7}

    index = (DATA / "tensorflow_checkpoint.index").read_bytes()
    (tmp_path / "a.index").write_bytes(index[:-10])
    with pytest.raises(ValueError, match="a.index is not an index of a TensorFlow checkpoint"):
        tensorflow_checkpoint.read(tmp_path / "a")
    (tmp_path / "a.index").write_bytes(index)
    with pytest.raises(FileNotFoundError, match="a.data-00000-of-00001 is missing"):
        tensorflow_checkpoint.read(tmp_path / "a")
    numbers = (DATA / "tensorflow_checkpoint.data-00000-of-00001").read_bytes()
    (tmp_path / "a.data-00000-of-00001").write_bytes(numbers[:100])
    with pytest.raises(ValueError, match="is cut short or does not fit its index"):
        tensorflow_checkpoint.read(tmp_path / "a")


def test_every_missing_extra_and_misshapen_key_is_listed():
    state = recipe("agcn_ntu60")
    del state["l3.gcn1.conv_a.1.weight"]
    state["l5.residual.conv.weight"] = state["l5.residual.conv.weight"][:, :-1]
    state["fc.bias"] = state["fc.bias"] * np.nan
    state["l11.gcn1.PA"] = np.zeros((3, 25, 25), np.float32)
    with pytest.raises(ValueError) as error:
        encoder_weights.convert(state)
    for part in (
        "l3.gcn1.conv_a.1.weight is missing",
        "l5.residual.conv.weight is [128, 63, 1, 1]",
        "fc.bias is not finite",
        "l11.gcn1.PA is not known",
    ):
        assert part in str(error.value)
    assert encoder_weights.convert({"conv1.weight": np.zeros(3)}) is None


def small(modality):
    """Make a small encoder, weights from a seed, and two clips."""
    rng = np.random.default_rng(0)
    if modality == "pose":
        model, x = AGCN(7, width=0.125), rng.standard_normal((2, 16, 2, 25, 3)).astype(np.float32)
    else:
        channels = {"rgb": 3, "flow": 2}[modality]
        model, x = I3D(7, width=0.125), rng.uniform(-1, 1, (2, 16, 32, 32, channels)).astype(np.float32)
    return model, random_variables(model, modality, 0), x


@pytest.mark.parametrize("modality", ["rgb", "flow", "pose"])
def test_weights_are_read_as_written_and_bfloat16_features_are_close(modality, tmp_path):
    model, variables, x = small(modality)
    write_weights(tmp_path / "a.npz", model, variables, modality=modality, source={"file": "made up"})
    again = read_weights(tmp_path / "a.npz")
    assert (again.model, again.modality, again.manifest["source"]) == (model, modality, {"file": "made up"})
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
    features = jax.jit(again.model.apply)(again.variables, x).features
    assert features.shape == (2, 1, again.encoder().num_features)
    half = read_weights(tmp_path / "a.npz", dtype=jnp.bfloat16)
    rounded = jax.jit(half.model.apply)(half.variables, x).features
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, features, atol=0.05 * float(np.abs(features).max()))


def test_a_file_of_other_weights_is_refused_with_the_list(tmp_path):
    model, variables, _ = small("pose")
    write_weights(tmp_path / "size.npz", model, variables, modality="pose", source={}, persons=2)
    arrays = read_arrays(tmp_path / "size.npz")
    manifest = json.loads(str(arrays["manifest"])) | {"size": "x"}
    write_arrays(tmp_path / "size.npz", arrays | {"manifest": np.array(json.dumps(manifest))})
    with pytest.raises(ValueError, match=r"size.npz: its manifest is not that of an encoder \(Encoder\(size='x'\)"):
        read_encoder(None, tmp_path / "size.npz")
    with pytest.raises(FileNotFoundError, match="nowhere.npz: there is no such file .*convert-weights"):
        read_weights(tmp_path / "nowhere.npz")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="a.npz is not a file of encoder weights"):
        read_weights(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_text("text")
    with pytest.raises(ValueError, match="b.npz is not a file of encoder weights"):
        read_weights(tmp_path / "b.npz")
    del variables["params"]["l2"]["graph"]["links"]
    variables["params"]["fc"]["bias"] = np.zeros(3, np.float32)
    write_weights(tmp_path / "c.npz", model, variables, modality="pose", source={})
    with pytest.raises(
        ValueError, match=r"params/fc/bias is float32 \[3\], not float32 \[7\]; params/l2/graph/links is mis"
    ):
        read_weights(tmp_path / "c.npz")


def test_clips_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"clips must be \[B, F, height, width, 3 or 2\], got \[16, 32, 32, 3\]"):
        I3D().init(jax.random.key(0), np.zeros((16, 32, 32, 3)))
    with pytest.raises(ValueError, match=r"skeletons must be \[B, F, persons, 25, 3\]"):
        AGCN().init(jax.random.key(0), np.zeros((1, 16, 25, 3, 2)))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("modality", ["rgb", "pose"])
def test_encoders_lower_for_accelerators(modality, platform):
    model, variables, x = small(modality)
    exported = jax.export.export(jax.jit(model.apply), platforms=[platform])(variables, x)
    assert exported.platforms == (platform,)
    volumes = exported.mlir_module().count("[b, 0, 1, 2, f]x[0, 1, 2, i, o]->[b, 0, 1, 2, f]")
    assert volumes == (57 if modality == "rgb" else 0)  # not the products that a CPU prefers


def test_encoders_have_the_published_names():
    model, variables, x = small("rgb")
    shapes = shapes_of(model, "rgb")
    assert shapes["params/Mixed_4b/b1a/kernel"].shape == (1, 1, 1, 60, 12) and len(shapes) == 57 * 5 + 2
    _, endpoints = encode(model, variables, x, i3d.ENDPOINTS)
    assert endpoints["Mixed_5c"].shape == (2, 2, 1, 1, 128)


def test_agcn_has_the_keys_of_its_code_or_of_its_released_weights():
    state = recipe("agcn_ntu60")
    released = {re.sub(r"^l1\.", "l1a.", key).replace(".down.", ".conv_res."): value for key, value in state.items()}
    assert released.keys() != state.keys()
    expected, found = (encoder_weights.convert(of) for of in (state, released))
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    del released["l1a.gcn1.bn.weight"]
    with pytest.raises(ValueError, match=r"do not fit their encoder: l1.gcn1.bn.weight is missing"):
        encoder_weights.convert(released)
    state["l1.gcn1.PA"] = np.zeros((3, 18, 18))  # the graph of Kinetics' skeletons
    with pytest.raises(ValueError, match="weights of AGCN are for 18 joints, which look like those of OpenPose; the"):
        encoder_weights.convert(state)


@pytest.mark.parametrize(
    "key, model",
    [
        ("layer1.gcn.PA", "AGCN"),
        ("l1.gcn1.conv_a.0.bias", "AGCN"),
        ("base.Mixed_3b.b0.conv.weight", "I3D"),
        ("l1.gcn1.convs.0.conv1.bias", "CTR-GCN"),
    ],
)
def test_weights_under_other_names_are_described_as_the_model_they_look_like(key, model):
    found = encoder_weights.describe_other_names({key: np.zeros(3)})
    assert found.startswith(f"looks like {model} ({key}), but has none of the keys that are read: ")
    assert encoder_weights.describe_other_names({"stage1.conv_out.weight": np.zeros(3)}) == ""
