"""Every temporal filter equals the public code, ignores padding, and has the published size and receptive field.

The tests run on a CPU, so they check the CPU kernels where a filter has some. `plain` switches them off: the plain
formulation, which GPU and TPU compile, must equal the public code and the CPU kernels.
"""

import functools
import pathlib
import zlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_prep.convert_weights import convert
from kd_jax.inference.predict import forward
from kd_jax.models import FILTERS, Detector, Filter, cpu_kernels, tgm
from kd_jax.models.lstm import BiLSTM
from kd_jax.models.tgm import TGM

DATA = pathlib.Path(__file__).parent / "data"
SHARED = pathlib.Path(__file__).parents[2] / "shared" / "golden"


def recipe(key, shape, seed, gain):
    """Make an array of weights by the recipe of the golden files (golden/README.md)."""
    rng = np.random.default_rng((zlib.crc32(key.encode()) + 1000003 * seed) % 2**32)
    z, leaf = rng.standard_normal(shape).astype(np.float32), key.rsplit(".", 1)[-1]
    if leaf in ("rel_t", "soft_attn", "cls_wts"):
        return z
    if leaf == "sup_mat":
        return z * np.float32(1 / np.sqrt(shape[-1]))
    if leaf in ("center", "delta", "gamma"):
        return np.float32(0.5) * z
    return np.float32(0.1) * z if len(shape) == 1 else z * np.float32(np.sqrt(gain / np.prod(shape[1:])))


def shapes_of(filter, width, hidden, classes, layers=5, stages=1):
    """Return the keys and shapes of the public code's state dict."""
    shapes = {}
    if filter.startswith("tgm"):
        for i in range(3):
            key, inputs = f"sub_event{i + 1}", 8 if i else 1
            shapes |= {f"{key}.{name}": (16,) for name in ("center", "gamma", "delta")}
            shapes[f"{key}.soft_attn"] = (8 * inputs, 16)
            for o in range(8 if i else 0):
                shapes |= {f"{key}.convs.{o}.weight": (1, 8, 1, 1), f"{key}.convs.{o}.bias": (1,)}
        more = classes if filter == "tgm_super_events" else 0
        if more:
            both = [f"{key}.{name}" for key in ("sup", "sup2") for name in ("center", "gamma", "delta")]
            shapes |= {"sup_mat": (1, classes, width), "cls_wts": (classes,), **dict.fromkeys(both, (3,))}
        shapes |= {"h.weight": (hidden, 2 * width + more, 1), "h.bias": (hidden,)}
        return shapes | {"classify.weight": (classes, hidden, 1), "classify.bias": (classes,)}
    for stage in range(stages):
        key = f"stages.{stage - 1}" if stage else "stage1"
        shapes |= {
            f"{key}.conv_1x1.weight": (hidden, classes if stage else width, 1),
            f"{key}.conv_1x1.bias": (hidden,),
        }
        shapes |= {f"{key}.conv_out.weight": (classes, hidden, 1), f"{key}.conv_out.bias": (classes,)}
        for i in range(layers):
            part = f"{key}.layers.{i}"
            shapes |= {f"{part}.conv_1x1.weight": (hidden, hidden, 1), f"{part}.conv_1x1.bias": (hidden,)}
            if filter == "pdan":
                attention = f"{part}.conv_attention"
                shapes |= {f"{attention}.{name}_conv.weight": (hidden, hidden, 1) for name in ("query", "key", "value")}
                shapes[f"{attention}.rel_t"] = (hidden, 1, 3)
            else:
                shapes |= {f"{part}.conv_dilated.weight": (hidden, hidden, 3), f"{part}.conv_dilated.bias": (hidden,)}
    return shapes


SMALL = ["sstcn_small", "mstcn4_small", "pdan_small", "pdan_small_3stages", "tgm_stack_small", "tgm_hier_small"]
FULL = {
    "sstcn_full_t200": ("ss_tcn", 1024, 512, 51),
    "mstcn4_full_t200": ("ms_tcn", 2048, 64, 48, 10, 4),
    "pdan_full_t40": ("pdan", 1024, 512, 157),
    "tgm_stack_full_t40": ("tgm", 1024, 512, 65),
    "tgm_hier_full_t40": ("tgm_super_events", 1024, 512, 157),
}


def state_of(name):
    """Return the golden file and the state dict of its weights."""
    if name in SMALL:
        golden = np.load(DATA / f"{name}.npz", allow_pickle=False)
        return golden, {key[2:]: golden[key] for key in golden.files if key.startswith("w/")}
    if not (SHARED / f"{name}.npz").exists():
        pytest.skip(f"{SHARED} is next to the checkout only where goldens are shared")
    golden = np.load(SHARED / f"{name}.npz", allow_pickle=False)
    seed, gain = int(golden["recipe_seed"]), float(golden["recipe_gain"])
    state = {key: recipe(key, shape, seed, gain) for key, shape in shapes_of(*FULL[name]).items()}
    for key in golden.files:
        if key.startswith("recipe_check/"):
            own = key.removeprefix("recipe_check/").replace("super_event", "sup")  # one array of two names there
            np.testing.assert_array_equal(state[own].reshape(-1)[:4], golden[key])
    return golden, state


@pytest.fixture
def plain(monkeypatch):
    """Compile the plain formulations on a CPU too."""
    monkeypatch.setattr(cpu_kernels, "by_platform", lambda plain, on_cpu: plain)


@pytest.mark.parametrize("name", [*SMALL, *FULL])
def test_equals_the_public_code(name):
    equals_the_public_code(name)


@pytest.mark.parametrize("name", [*SMALL, *FULL])
def test_plain_formulation_equals_the_public_code(name, plain):
    equals_the_public_code(name)


def equals_the_public_code(name):
    """Compare each video alone, cut to its length, so that the padding does not leak in the public code either."""
    golden, state = state_of(name)
    model, params = convert(state)
    x = golden["x"].reshape(*golden["x"].shape[:3]).transpose(0, 2, 1)
    model = model.clone(dropout=0.0)  # training, which returns the earlier stages, then equals evaluation
    for video, length in enumerate(golden["lengths"].astype(int)):
        mask = np.ones((1, length), bool)
        outputs = jax.jit(functools.partial(model.apply, train=True))(
            {"params": params}, x[video : video + 1, :length], mask
        )
        expected = golden[f"logits_single_{video}"]
        expected = expected if expected.ndim == 4 else expected[None]
        ours = [*outputs.earlier_logits, outputs.logits]
        assert len(ours) == len(expected)
        for stage, logits in zip(expected, ours, strict=True):
            np.testing.assert_allclose(logits, stage.transpose(0, 2, 1), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("part", ["a_cin1", "b_cin"])
def test_a_mixture_layer_equals_that_of_the_public_code(part):
    golden = np.load(DATA / "tgm_layer.npz", allow_pickle=False)
    x, combine = golden[f"{part}/x"], part == "b_cin"
    x = x if combine else x[:, None]  # [B, C_in, D, T]
    w = {key.split("/w/")[1]: golden[key] for key in golden.files if key.startswith(f"{part}/w/")}
    params = {"center": w["center"], "gamma": w["gamma"], "attention": w["soft_attn"].reshape(8, -1, 16)}
    if combine:
        params["kernel"] = np.stack([w[f"convs.{o}.weight"].reshape(8) for o in range(8)], axis=1)
        params["bias"] = np.concatenate([w[f"convs.{o}.bias"] for o in range(8)])
    layer = tgm.MixtureLayer(channels=8, taps=5, mixture=16, curve="cauchy", combine=combine)
    found = layer.apply({"params": params}, x.transpose(1, 0, 3, 2))
    np.testing.assert_allclose(found.transpose(1, 0, 3, 2), golden[f"{part}/y"], atol=1e-5, rtol=1e-4)


def test_super_events_are_pooled_as_in_the_public_code():
    """Compare one video alone, where the curves end with it in the public code too, before the learned weights."""
    golden, state = state_of("tgm_hier_small")
    params = convert(state)[1]["temporal_filter"]["super_events"]
    video, length = int(golden["lengths"].argmax()), int(golden["lengths"].max())
    x = golden["x"][video : video + 1, :, :length].transpose(0, 2, 1)
    for both, key in ((0, "mid/super_event"), (1, "mid/super_event2")):
        for channel in (0, 23):  # one super-event that is this channel of one of the two
            only = {"kernel": np.eye(24, dtype=np.float32)[:, [channel]], "share": np.float32([-100 if both else 100])}
            found = tgm.SuperEvents(1).apply({"params": params | only}, x, np.ones((1, length), bool))
            np.testing.assert_allclose(found[0, 0], golden[key][video, channel, 0], atol=1e-5, rtol=1e-4)


def test_features_are_those_before_the_classifier():
    """The features are the last layer of MS-TCN and PDAN, and the hidden layer of TGM after its ReLU."""
    for name, key in {"pdan_small": "mid/stage1.layers.4", "tgm_stack_small": "mid/h"}.items():
        golden, state = state_of(name)
        model, params = convert(state)
        length = int(golden["lengths"].max())
        video = int(golden["lengths"].argmax())
        x = golden["x"][video : video + 1, :, :length].transpose(0, 2, 1)
        features = jax.jit(model.apply)({"params": params}, x, np.ones((1, length), bool)).features
        expected = golden[key][video : video + 1, :, :length].transpose(0, 2, 1)
        np.testing.assert_allclose(features, np.maximum(expected, 0) if key == "mid/h" else expected, atol=2e-5)


@pytest.fixture(scope="module", params=[name for name in FILTERS if name != "tgm_gaussian"])
def small(request):
    """Make a detector with standardisation, its variables, an input [2, 20, 6] and the mask of lengths 20 and 13."""
    model = Detector(request.param, 3, hidden=8, num_layers=3, standardize=True)
    x = jax.random.normal(jax.random.key(0), (2, 20, 6))
    mask = np.arange(20)[None] < np.array([[20], [13]])
    return model, jax.jit(model.init)(jax.random.key(1), x, mask), np.asarray(x), mask


def value_and_gradient(model, variables, x, mask):
    """Return the value and the outputs of a loss, and its gradient."""

    def loss(params):
        outputs = model.apply(variables | {"params": params}, x, mask)
        return jnp.sum(outputs.logits**2) + jnp.sum(outputs.features), outputs

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


compiled_value_and_gradient = jax.jit(value_and_gradient, static_argnums=0)  # once for all tests of a filter


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, x, mask):
    return model.apply(variables, x, mask)


def test_padding_changes_neither_outputs_nor_gradient(small):
    model, variables, x, mask = small
    (_, expected), gradient = compiled_value_and_gradient(model, variables, x, mask)
    padded_mask = np.pad(mask, ((0, 1), (0, 9)))
    padded_x = np.where(padded_mask[..., None], np.pad(x, ((0, 1), (0, 9), (0, 0))), np.float32(np.nan))
    (_, outputs), padded_gradient = compiled_value_and_gradient(model, variables, padded_x, padded_mask)
    for name in ("features", "logits"):
        got = np.asarray(getattr(outputs, name))
        np.testing.assert_allclose(got[:2, :20], getattr(expected, name), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got[~padded_mask], 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), padded_gradient, gradient)


def test_plain_formulation_equals_the_cpu_kernels(small, monkeypatch):
    """Values and gradients are equal with NaN in the padding."""
    model, variables, x, mask = small
    x = np.where(mask[..., None], x, np.float32(np.nan))
    (_, expected), gradient = compiled_value_and_gradient(model, variables, x, mask)
    monkeypatch.setattr(cpu_kernels, "by_platform", lambda plain, on_cpu: plain)
    # A new function is traced again.
    (_, outputs), plain_gradient = jax.jit(functools.partial(value_and_gradient, model))(variables, x, mask)
    chex.assert_trees_all_close(outputs, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(plain_gradient, gradient, rtol=1e-4, atol=1e-4)
    on = model.apply(variables, x, mask, train=True, rngs={"dropout": jax.random.key(0)})  # plain dropout
    assert (on.logits != outputs.logits).any() and np.isfinite(on.logits).all()


def test_masking_equals_slicing(small):
    model, variables, x, mask = small
    masked = apply(model, variables, x[1:], mask[1:])
    sliced = apply(model, variables, x[1:, :13], mask[1:, :13])
    np.testing.assert_allclose(masked.logits[:, :13], sliced.logits, rtol=1e-5, atol=1e-6)


def test_jit_equals_eager_and_float16_is_read(small):
    model, variables, x, mask = small
    x = jnp.asarray(x, jnp.float16)
    expected = model.apply(variables, x, jnp.asarray(mask))
    jitted = apply(model, variables, x.astype(jnp.float32), mask)
    np.testing.assert_allclose(jitted.logits, expected.logits, rtol=1e-5, atol=1e-6)


def test_bfloat16_computes_with_float32_parameters_and_returns_float32(small):
    model, variables, x, mask = small
    half = model.clone(dtype=jnp.bfloat16)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), x, mask)))
    ((_, outputs), gradient), ((_, expected), full) = (
        compiled_value_and_gradient(detector, variables, x, mask) for detector in (half, model)
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, full))
    assert 0 < difference < 0.03 * optax.tree.norm(full)
    assert outputs.features.dtype == outputs.logits.dtype == jnp.float32
    np.testing.assert_allclose(outputs.logits, expected.logits, atol=0.03)
    assert (outputs.features != expected.features).any()


def test_runs_in_one_program_have_the_gradients_of_each_alone(small):
    """On a GPU or TPU the runs of a population are one `vmap`."""
    model, variables, x, mask = small
    runs = [jax.tree.map(lambda p, i=i: p * (1 + i / 4), variables["params"]) for i in range(2)]

    def gradient(params):
        return jax.grad(lambda params: jnp.sum(model.apply(variables | {"params": params}, x, mask).logits ** 2))(
            params
        )

    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    alone, together = stack(*map(jax.jit(gradient), runs)), jax.jit(jax.vmap(gradient))(stack(*runs))
    chex.assert_trees_all_close(together, alone, rtol=1e-3, atol=1e-4)


def test_standardization_has_its_own_collection(small):
    model, variables, x, mask = small
    statistics = variables["standardization"]
    np.testing.assert_array_equal(statistics["mean"], np.zeros(6))
    np.testing.assert_array_equal(statistics["std"], np.ones(6))
    mean, std = np.arange(6, dtype=np.float32), np.arange(1, 7, dtype=np.float32)
    set_by_caller = variables | {"standardization": {"mean": mean, "std": std}}
    expected = apply(model, variables, x, mask)
    outputs = apply(model, set_by_caller, x * std + mean, mask)
    np.testing.assert_allclose(outputs.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_dropout_is_off_in_evaluation_and_random_in_training(small):
    model, variables, x, mask = small
    off = apply(model, variables, x, mask)
    train = jax.jit(lambda key: model.apply(variables, x, mask, train=True, rngs={"dropout": key}))
    on = [train(jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(on[0].logits, on[1].logits)
    assert (on[0].logits != on[2].logits).any()
    assert (on[0].logits != off.logits).any()


@pytest.mark.parametrize("filter, hidden, parameters", [("ss_tcn", 256, 1_616_029), ("pdan", 512, 5_858_461)])
def test_published_size(filter, hidden, parameters):
    model = Detector(filter, 157, hidden=hidden)
    x, mask = jax.ShapeDtypeStruct((1, 4, 1024), jnp.float32), jax.ShapeDtypeStruct((1, 4), bool)
    variables = jax.eval_shape(model.init, jax.random.key(0), x, mask)
    assert sum(p.size for p in jax.tree.leaves(variables)) == parameters


@pytest.mark.parametrize(
    "filter, layers, field",
    [
        ("ss_tcn", None, 63),
        ("pdan", None, 63),
        ("tgm", None, 13),
        ("ms_tcn", 3, 57),
        ("bottleneck", None, 1),
        ("bilstm", None, None),
    ],
)
def test_an_output_sees_its_receptive_field(filter, layers, field):
    model, length = Detector(filter, 3, hidden=4, num_layers=layers), 101
    assert model.receptive_field == field
    x, mask = jax.random.normal(jax.random.key(0), (1, length, 4)), jnp.ones((1, length), bool)
    variables = jax.jit(model.init)(jax.random.key(1), x, mask)
    features = jax.jit(lambda x: model.apply(variables, x, mask).features[0, 50])

    def changed(t):
        other = np.array(x)
        other[0, t] += 10
        return (features(other) != features(x)).any()

    seen = [t for t in range(length) if changed(t)]
    reach = 50 if field is None else field // 2
    assert set(seen) <= set(range(50 - reach, 51 + reach))
    if filter in ("ms_tcn", "bilstm"):  # the influence of distant snippets is below rounding
        reach = 7 + 1  # more than one stage
    assert {50 - reach, 50, 50 + reach} <= set(seen)


@pytest.mark.parametrize("formulation", ["plain", "cpu"])
def test_bilstm_equals_flax_in_value_and_gradient(formulation, request):
    if formulation == "plain":
        request.getfixturevalue("plain")
    size, lengths = 3, jnp.array([17, 9, 1])
    x, goal = jax.random.normal(jax.random.key(0), (3, 17, 5)), jax.random.normal(jax.random.key(1), (3, 17, 2 * size))
    mask = jnp.arange(17)[None] < lengths[:, None]
    model, theirs = (
        BiLSTM(2 * size, dropout=0.0),
        nn.Bidirectional(*[nn.RNN(nn.OptimizedLSTMCell(size)) for _ in range(2)]),
    )
    params = model.init(jax.random.key(2), x, mask)["params"]["layer_0"]

    def cell(way, params):
        """Return the parameters of a direction's cell under flax's names, gate by gate."""
        gates = {}
        for gate, name in enumerate("ifgo"):
            own = slice(gate * size, (gate + 1) * size)
            said = slice((4 * way + gate) * size, (4 * way + gate + 1) * size)
            gates[f"i{name}"] = {"kernel": params["input"]["kernel"][:, said]}
            gates[f"h{name}"] = {"kernel": params["recurrent"][way][:, own], "bias": params["input"]["bias"][said]}
        return {"cell": gates}

    def ours(params, x):
        return jnp.sum(goal * model.apply({"params": {"layer_0": params}}, x, mask))

    def reference(params, x):
        cells = {name: cell(way, params) for way, name in enumerate(("forward_rnn", "backward_rnn"))}
        out = theirs.apply({"params": cells}, x, seq_lengths=lengths)
        return jnp.sum(jnp.where(mask[..., None], goal * out, 0))

    found, expected = (jax.value_and_grad(f, (0, 1))(params, x) for f in (ours, reference))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    gates = params["recurrent"].reshape(2, size, 4, size)  # each starts as an orthogonal matrix
    gram = jnp.einsum("wngk,wngl->wgkl", gates, gates)
    np.testing.assert_allclose(gram, jnp.broadcast_to(jnp.eye(size), gram.shape), atol=1e-5)


def test_tgm_has_the_curve_of_its_code_and_that_of_its_paper():
    """One curve in the middle of five taps with γ = 0 has the width e^1.5."""
    center, width, g = np.zeros(1, np.float32), np.zeros(1, np.float32), np.exp(1.5)
    distance = np.arange(-2, 3) / g
    for curve, values in {"cauchy": 1 / (1 + distance**2), "gaussian": np.exp(-(distance**2) / 2)}.items():
        found = tgm._curves(jnp.asarray(center), jnp.asarray(width), 5, curve)[0]
        np.testing.assert_allclose(found, values / values.sum(), rtol=1e-4)
    x, mask = jax.random.normal(jax.random.key(0), (1, 9, 4)), jnp.ones((1, 9), bool)
    variables = TGM(hidden=4).init(jax.random.key(1), x, mask)
    one, other = (TGM(hidden=4, curve=curve).apply(variables, x, mask) for curve in ("cauchy", "gaussian"))
    assert (one != other).any()
    with pytest.raises(ValueError, match="curve must be one of"):
        TGM(hidden=4, curve="laplace").init(jax.random.key(1), x, mask)


@pytest.mark.parametrize("convolve", [tgm.convolve_images, cpu_kernels.convolve_images], ids=["plain", "cpu"])
@pytest.mark.parametrize("length", [1, 4, 16, 37])
def test_convolve_is_a_convolution_in_value_and_gradient(length, convolve):
    images, kernels = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(3, 2, length, 4), (5, 3, 2)])
    )
    goal = jax.random.normal(jax.random.key(2), (2, 2, length, 4))

    def reference(images, kernels):
        rows = jnp.moveaxis(images, 0, 1).swapaxes(2, 3)  # [B, C, D, T]
        taps = jnp.moveaxis(kernels, 0, 2).swapaxes(0, 1)[:, :, None]  # [C_out, C_in, 1, L]
        out = jax.lax.conv_general_dilated(rows, taps, (1, 1), ((0, 0), (2, 2)))
        return jnp.moveaxis(out, 1, 0).swapaxes(2, 3)

    found, expected = (
        jax.value_and_grad(lambda images, kernels, f=f: jnp.sum(goal * f(images, kernels)), (0, 1))(images, kernels)
        for f in (convolve, reference)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    half = jax.grad(lambda *both: jnp.sum(goal * convolve(*both)), (0, 1))(images.astype(jnp.bfloat16), kernels)
    for a, b in zip(half, expected[1], strict=True):
        assert jnp.linalg.norm(a - b) < 0.01 * jnp.linalg.norm(b)


def test_the_gradient_of_the_kernels_is_the_same_in_pieces_and_at_once():
    images, gradient = (jax.random.normal(jax.random.key(i), (2 + i, 2, 37, 4)) for i in range(2))
    pieces, whole = (cpu_kernels.correlate(images, gradient, 5, piece) for piece in (16, 37))
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-5)


def test_unknown_filters_and_wrong_shapes_raise():
    x, mask = jnp.zeros((1, 4, 3)), jnp.ones((1, 4), bool)
    with pytest.raises(ValueError, match=rf"unknown filter 'tcn'.*{min(FILTERS)}"):
        Detector("tcn", 2)
    with pytest.raises(ValueError, match=r"x must be \[B, T, ...\].*x \(1, 4, 3\), mask \(1, 5\)"):
        Detector("ss_tcn", 2).init(jax.random.key(0), x, jnp.ones((1, 5), bool))
    with pytest.raises(ValueError, match="hidden must be even"):
        Detector("bilstm", 2, hidden=5).init(jax.random.key(0), x, mask)


def test_a_filter_that_is_registered_again_runs_its_new_code(monkeypatch):
    """Compiled programs are cached by the detector, which must therefore depend on the code and not on its name."""

    class Scale(nn.Module):
        factor: float
        hidden: int = 3
        num_layers: int = 1
        dropout: float = 0.5
        dtype: jnp.dtype = jnp.float32
        receptive_field = 1

        def __call__(self, x, mask, *, train=False):
            return self.factor * x

    x, mask = jnp.ones((1, 4, 3)), jnp.ones((1, 4), bool)
    models, variables = [], None
    for factor in (2.0, 3.0):
        monkeypatch.setitem(FILTERS, "mine", Filter(functools.partial(Scale, factor)))
        models.append(Detector("mine", 2, hidden=3))
        variables = variables or models[0].init(jax.random.key(0), x, mask)
        np.testing.assert_array_equal(forward(models[-1], variables, x, mask).features, factor * x)
    old, new = models
    assert old != new and new == Detector("mine", 2, hidden=3) and hash(new) == hash(Detector("mine", 2, hidden=3))
    np.testing.assert_array_equal(old.apply(variables, x, mask).features, 2 * x)
