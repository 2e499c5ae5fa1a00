"""VideoPrism equals its description, computed layer by layer in NumPy, and its published layout converts completely."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from data_prep import convert_weights, encoder_weights
from kd_jax.files import write_arrays
from kd_jax.video.encode import encode_batches
from kd_jax.video.encoders import VideoPrism
from kd_jax.video.encoders.weights import read_weights

CHANNELS, HEADS, HIDDEN, PATCH, GRID, FRAMES = 12, 3, 20, 6, 2, 4
SIZE = PATCH * GRID


def published(seed: int = 0) -> dict[str, np.ndarray]:
    """Make random weights of a small model with the keys and the layout of the published files."""
    rng, size = np.random.default_rng(seed), CHANNELS // HEADS
    shapes = {
        "patch_projection/linear/kernel": (PATCH * PATCH * 3, CHANNELS),
        "patch_projection/linear/bias": (CHANNELS,),
    }
    shapes |= {"spatial_pos_emb/emb_var": (GRID * GRID, CHANNELS), "temporal_pos_emb/emb_var": (FRAMES, CHANNELS)}
    for name, layers in (("spatial", 3), ("temporal", 2)):
        prefix = f"{name}_encoder/transformers_stack/x_layers"
        for norm in (f"{prefix}/layer_norm", f"{prefix}/ff_layer/layer_norm"):
            shapes |= {f"{norm}/scale": (layers, CHANNELS), f"{norm}/bias": (layers, CHANNELS)}
        for part in ("query", "key", "value", "post"):
            shapes[f"{prefix}/self_attention/{part}/w"] = (layers, CHANNELS, HEADS, size)
            shapes[f"{prefix}/self_attention/{part}/b"] = (layers, *((CHANNELS,) if part == "post" else (HEADS, size)))
        for i, (inputs, outputs) in enumerate(((CHANNELS, HIDDEN), (HIDDEN, CHANNELS)), 1):
            shapes[f"{prefix}/ff_layer/ffn_layer{i}/linear/kernel"] = (layers, inputs, outputs)
            shapes[f"{prefix}/ff_layer/ffn_layer{i}/linear/bias"] = (layers, outputs)
        shapes |= {f"{name}_ln/scale": (CHANNELS,), f"{name}_ln/bias": (CHANNELS,)}
    return {f"params/{key}": rng.normal(0, 0.5, shape).astype(np.float32) for key, shape in shapes.items()}


def layer_norm(x, state, key):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * (1 + state[f"{key}/scale"]) + state[f"{key}/bias"]


def transform(tokens, state):
    """Apply one layer to one sequence, `[tokens, C]`, head by head."""
    y = layer_norm(tokens, state, "layer_norm")
    total = np.zeros_like(tokens) + state["self_attention/post/b"]
    for head in range(HEADS):
        weights = {part: state[f"self_attention/{part}/w"][:, head] for part in ("query", "key", "value", "post")}
        q, k, v = (y @ weights[p] + state[f"self_attention/{p}/b"][head] for p in ("query", "key", "value"))
        logits = 50 * np.tanh(q @ k.T / np.sqrt(CHANNELS // HEADS) / 50)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        total += shares / shares.sum(1, keepdims=True) @ v @ weights["post"].T
    x = tokens + total
    y = layer_norm(x, state, "ff_layer/layer_norm")
    y = y @ state["ff_layer/ffn_layer1/linear/kernel"] + state["ff_layer/ffn_layer1/linear/bias"]
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    return x + y @ state["ff_layer/ffn_layer2/linear/kernel"] + state["ff_layer/ffn_layer2/linear/bias"]


def stack(tokens, state, name):
    prefix = f"{name}_encoder/transformers_stack/x_layers/"
    layers = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    for i in range(len(layers["layer_norm/scale"])):
        tokens = transform(tokens, {key: value[i] for key, value in layers.items()})
    return layer_norm(tokens, state, f"{name}_ln")


def tokens_of(clip, state):
    """Compute the tokens of one clip, `[frames, patches, C]`, in float64 and one sequence at a time."""
    state = {key.removeprefix("params/"): value.astype(np.float64) for key, value in state.items()}
    kernel, bias = state["patch_projection/linear/kernel"], state["patch_projection/linear/bias"]
    frames = []
    for frame in clip:
        corners = [(PATCH * row, PATCH * column) for row in range(GRID) for column in range(GRID)]
        patches = [frame[top : top + PATCH, left : left + PATCH].ravel() @ kernel + bias for top, left in corners]
        frames.append(stack(np.stack(patches) + state["spatial_pos_emb/emb_var"], state, "spatial"))
    places = np.stack(frames, axis=1)  # [patches, frames, C]
    times = state["temporal_pos_emb/emb_var"]
    return np.stack([stack(place + times, state, "temporal") for place in places], axis=1)


def test_tokens_and_features_equal_the_description(tmp_path):
    state = published()
    model, modality, _, variables = encoder_weights.convert(state)
    expected_model = VideoPrism(CHANNELS, HEADS, HIDDEN, 3, 2, PATCH, GRID, FRAMES)
    assert (model, modality) == (expected_model, "rgb")
    clips = np.random.default_rng(1).random((2, FRAMES, SIZE, SIZE, 3)).astype(np.float32)
    expected = np.stack([tokens_of(clip, state) for clip in clips])
    tokens = jax.jit(model.apply)(variables, clips)
    assert tokens.shape == (2, FRAMES * GRID * GRID, CHANNELS) and tokens.dtype == np.float32
    np.testing.assert_allclose(tokens, expected.reshape(tokens.shape), atol=2e-5, rtol=1e-4)
    half = model.clone(dtype=jnp.bfloat16)
    rounded = half.apply(variables, clips, method="embed")
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, expected.mean((1, 2)), atol=0.05 * np.abs(expected).max())


def test_the_published_file_becomes_one_file_whose_encoder_reads_bytes(tmp_path):
    write_arrays(tmp_path / "flax_base.npz", published())
    convert_weights.main([f"--state={tmp_path / 'flax_base.npz'}", f"--output={tmp_path / 'vp.npz'}"])
    weights = read_weights(tmp_path / "vp.npz")
    assert json.loads(json.dumps(weights.manifest))["source"]["files"][0]["name"] == "flax_base.npz"
    encoder = weights.encoder()
    assert (encoder.name, encoder.num_features, encoder.mean, encoder.std) == ("videoprism", CHANNELS, 0, 1)
    assert encoder.sampling == {"length": FRAMES, "stride": FRAMES, "size": SIZE, "shorter_side": SIZE}
    clips = np.random.default_rng(2).integers(0, 256, (3, FRAMES, SIZE, SIZE, 3), np.uint8)
    expected = [tokens_of(clip / 255, published()).mean((0, 1)) for clip in clips]
    ((_, features),) = encode_batches(encoder, [("a", clips)], batch_size=4)
    np.testing.assert_allclose(features, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_other_numbers_of_frames_and_patches_interpolate_the_positions():
    state = published()
    model, *_, variables = encoder_weights.convert(state)
    clips = np.zeros((1, 2 * FRAMES, SIZE, SIZE + PATCH, 3), np.float32)
    assert model.apply(variables, clips).shape == (1, 2 * FRAMES * GRID * (GRID + 1), CHANNELS)
    # With equal positions, interpolation gives the same ones, and a still clip gives the same tokens at any length.
    for key in ("spatial_pos_emb", "temporal_pos_emb"):
        state[f"params/{key}/emb_var"] = np.broadcast_to(
            state[f"params/{key}/emb_var"][:1], state[f"params/{key}/emb_var"].shape
        )
    _, _, _, variables = encoder_weights.convert(state)
    longer = model.apply(variables, clips, method="embed")
    np.testing.assert_allclose(longer, model.apply(variables, clips[:, :1, :, :SIZE], method="embed"), atol=1e-5)
    with pytest.raises(ValueError, match=r"multiples of 6, got \[1, 4, 12, 13, 3\]"):
        model.apply(variables, np.zeros((1, 4, 12, 13, 3), np.float32))


def test_weights_of_another_structure_are_refused_with_key_and_shapes(tmp_path):
    state = published()
    key = "params/temporal_encoder/transformers_stack/x_layers/self_attention/query/w"
    state[key] = state[key][:, :, :2]
    del state["params/spatial_ln/bias"]
    state["params/spatial_pos_emb/emb_var"] = np.zeros((5, CHANNELS), np.float32)
    state["params/text_encoder/cls_emb"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError) as error:
        encoder_weights.convert(state)
    for part in (
        f"{key} is [2, 12, 2, 4], which gives [2, 12, 2, 4], not [2, 12, 3, 4]",
        "params/spatial_ln/bias is missing",
        "params/spatial_pos_emb/emb_var is [5, 12], which gives [5, 12], not [2, 2, 12]",
        "params/text_encoder/cls_emb is not known",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="of VideoPrism's video-text model; give those of the video encoder"):
        encoder_weights.convert({f"params/vision_encoder/{k[7:]}": v for k, v in published().items()})
    (tmp_path / "text.npz").write_text("no archive")
    for file, message in (("text.npz", "text.npz cannot be read as an .npz file"), ("none.npz", "no such file")):
        with pytest.raises(SystemExit, match=message):
            convert_weights.main([f"--state={tmp_path / file}", f"--output={tmp_path / 'out.npz'}"])
