"""Windows and streams give the outputs of one pass over the whole video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.inference.checks import check_input_size
from kd_jax.inference.predict import _compiled_forward
from kd_jax.inference.windows import StreamingDetector, detect_in_windows, halo_of
from kd_jax.models import FILTERS, Detector

D, C = 4, 3


HALO = {"ss_tcn": 7, "pdan": 7, "tgm": 6, "ms_tcn": 28, "bottleneck": 0}  # snippets on each side, three layers
SEES_ALL = {"bilstm", "tgm_super_events"}


@pytest.fixture(scope="module", params=["ss_tcn", "bottleneck"])
def detector(request):
    return make_detector(request.param)


def make_detector(name):
    model = Detector(name, num_outputs=C, hidden=8, num_layers=3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1, D)), jnp.ones((1, 1), bool))
    return model, variables, jax.jit(model.apply)


def video(length, seed=0):
    return np.random.default_rng(seed).standard_normal((length, D), np.float32)


def whole(detector, features):
    _, variables, apply = detector
    outputs = apply(variables, features[None], np.ones((1, len(features)), bool))
    return jax.tree.map(lambda array: np.asarray(array[0]), outputs)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours.features, theirs.features, atol=1e-5)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-5)


@pytest.mark.parametrize("name", HALO)
def test_halo_by_hand(name):
    """A change of one snippet is seen by `halo` outputs on each side, and by none beyond."""
    detector, features = make_detector(name), video(60)
    changed = features.copy()
    changed[30] += 10
    differs = np.abs(whole(detector, changed).features - whole(detector, features).features).max(axis=1) > 0
    halo, seen = HALO[detector[0].filter], set(np.flatnonzero(differs))
    assert halo_of(detector[0]) == halo and seen <= set(range(30 - halo, 31 + halo))
    reach = 8 if detector[0].filter == "ms_tcn" else halo  # its influence fades from stage to stage
    assert {30 - reach, 30 + reach} <= seen


def test_a_filter_that_sees_all_of_a_video_takes_no_windows():
    assert set(FILTERS) == HALO.keys() | SEES_ALL | {"tgm_gaussian"}
    for name in SEES_ALL:
        with pytest.raises(ValueError, match=rf"'{name}' depend on the whole video"):
            StreamingDetector(Detector(name, num_outputs=C, hidden=8), {}, D)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 50])
@pytest.mark.parametrize("window", [1, 16, 64])
def test_windows_are_one_pass(detector, length, window):
    features = video(length)
    ours = detect_in_windows(*detector[:2], features, window=window)
    assert ours.logits.shape == (length, C)
    assert_close(ours, whole(detector, features))


def test_one_compilation_for_all_lengths(detector):
    detect_in_windows(*detector[:2], video(40), window=24)
    before = _compiled_forward()._cache_size()
    for length in (1, 24, 25, 100):
        detect_in_windows(*detector[:2], video(length), window=24)
    assert _compiled_forward()._cache_size() == before


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_a_stream_is_one_pass(detector, pushes, block):
    features = video(sum(pushes))
    stream, given_out, taken = StreamingDetector(*detector[:2], D, block=block), [], 0
    for _ in range(2):  # the second video does not see the first
        given_out, taken = [], 0
        for count in pushes:
            given_out.append(stream.push(features[taken : taken + count]))
            taken += count
            done = sum(len(o.logits) for o in given_out)
            assert done == max(taken - halo_of(detector[0]), 0) // block * block and taken - done <= stream.delay
        given_out.append(stream.finish())
    outputs = jax.tree.map(lambda *parts: np.concatenate(parts), *given_out)
    assert len(outputs.logits) == len(features)
    if len(features):
        assert_close(outputs, whole(detector, features))


def test_memory_of_a_stream_is_constant(detector):
    stream = StreamingDetector(*detector[:2], D)
    for snippet in video(100):
        stream.push(snippet)
        assert len(stream._kept) <= 2 * halo_of(detector[0]) + 1


def test_what_is_refused(detector):
    with pytest.raises(ValueError, match=r"the array snippets has shape \[2, 3\]; expected \[T, 4\]"):
        StreamingDetector(*detector[:2], D).push(np.zeros((2, 3)))
    stream, spoilt = StreamingDetector(*detector[:2], D), video(60)
    spoilt[10, 2] = np.nan
    message = "holds values that are not finite numbers: snippet {} has nan; repair or remove the snippet"
    with pytest.raises(ValueError, match=f"the array snippets {message.format(10)}"):
        stream.push(spoilt)
    assert len(stream.push(video(30)).logits) + len(stream.push(video(3)).logits) == max(33 - halo_of(detector[0]), 0)
    with pytest.raises(ValueError, match=f"the array snippets {message.format(43)}"):  # counted in the video
        stream.push(spoilt)
    with pytest.raises(ValueError, match="the array snippets has dtype complex128; expected a real number type"):
        stream.push(np.zeros((2, 4), complex))
    assert len(stream.finish().logits) == min(halo_of(detector[0]), 33)
    with pytest.raises(ValueError, match="block must be at least 1"):
        StreamingDetector(*detector[:2], D, block=0)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        detect_in_windows(*detector[:2], video(3), window=0)
    with pytest.raises(ValueError, match=r"the array features has shape \[0, 4\]; expected \[T, 4\]"):
        detect_in_windows(*detector[:2], video(0))
    with pytest.raises(ValueError, match=f"the array features {message.format(10)}"):
        detect_in_windows(*detector[:2], spoilt, window=16)
    large = video(60).astype(np.float64)
    large[10, 2] = 1e39
    with pytest.raises(ValueError, match="values up to 1e.39, in snippet 10, but float32 ends at 3.40282e.38"):
        detect_in_windows(*detector[:2], large, window=16)


@pytest.mark.parametrize(("name", "standardize"), [*((name, False) for name in sorted(FILTERS)), ("ss_tcn", True)])
def test_a_detector_states_the_size_that_it_reads(name, standardize):
    model = Detector(name, num_outputs=C, hidden=8, num_layers=2, standardize=standardize)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, D)), jnp.ones((1, 1), bool))
    check_input_size(model, shapes, D)
    for size in (1, 100):
        with pytest.raises(ValueError, match=f"the detector reads features of width 4, not {size}"):
            check_input_size(model, shapes, size)
    with pytest.raises(ValueError, match=f"the variables are not those of this '{name}' detector"):
        check_input_size(model, {}, D)
    if name == "ss_tcn":
        with pytest.raises(ValueError, match="reads features of width 4, not 100"):
            StreamingDetector(model, shapes, 100)
        with pytest.raises(ValueError, match="reads features of width 4, not 100"):
            detect_in_windows(model, shapes, np.zeros((5, 100), np.float32))
