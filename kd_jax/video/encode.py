"""Encoding of snippets into features, in batches over all devices.

    encoder = read_encoder(None, Path('weights/i3d_rgb.npz'))
    for key, features in encode_batches(encoder, enumerate(batched(snippets, 8)), batch_size=8): ...
    features, frames = encode_video(encoder, probe_video(Path('kitchen.mp4')), Sampling(), batch_size=8)

A batch holds snippets of one video, so that its features do not depend on other videos. A JAX encoder is compiled once
for each snippet shape and each number of rows that `_num_rows` returns.
"""

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

from kd_jax import runtime, sharding
from kd_jax.video import videos
from kd_jax.video.encoders.protocol import Encoder, Numbers

Key = TypeVar("Key", bound=Hashable)


def batched(snippets: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Stacks the snippets of one video into batches `[N, …]`; N is `batch_size`, or less in the last batch."""
    snippets = iter(snippets)
    while batch := list(itertools.islice(snippets, batch_size)):
        yield np.stack(batch)


def encode_batches(
    encoder: Encoder, batches: Iterable[tuple[Key, np.ndarray]], *, batch_size: int
) -> Iterator[tuple[Key, np.ndarray]]:
    """Encodes batches of snippets. The next batch is read while one is computed.

    Args:
      encoder: from `read_encoder`.
      batches: (key, `[N, …]` snippets) as `batched` makes them, all of one snippet shape.
      batch_size: snippets per forward pass, over all devices; the largest N.

    Yields (key, `[N, D]` float32), in the order of `batches`. Raises ValueError if the encoder returns anything else.
    """
    mesh, pending = sharding.data_mesh(), None
    run = _on_devices(encoder, mesh) if isinstance(encoder.function, Partial) else _on_host(encoder)
    for item in itertools.chain(batches, [None]):  # None comes after the last batch
        if item:
            key, batch = item
            rows = _num_rows(len(batch), batch_size, mesh)
            filled = np.pad(batch, [(0, rows - len(batch))] + [(0, 0)] * (batch.ndim - 1))
            features = run(filled)
        if pending:
            before, count, num_rows, result = pending
            yield before, _as_table(encoder, num_rows, result, mesh)[:count]
        pending = item and (key, len(batch), rows, features)


def _num_rows(count: int, batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """Returns the least of batch_size, batch_size / 2, … that holds `count` snippets and divides over the devices.

    The last batch of a video then wastes little computation, and few shapes are compiled.
    """
    rows = sharding.device_rows(batch_size, mesh)
    while rows % (2 * mesh.size) == 0 and rows // 2 >= count:
        rows //= 2
    return rows


def encode_video(
    encoder: Encoder, video: videos.Video, sampling: videos.Sampling, *, batch_size: int, num_frames: int = 0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Encodes one video with an encoder of RGB or flow, `batch_size` snippets per forward pass.

    Returns:
      Features `[T, D]` float32, and `num_frames` evenly spaced frames `[size, size, 3]` uint8; no frames for flow.

    Raises:
      VideoError: if the file is damaged or, with `last='drop'`, shorter than a snippet; if features are not finite.
      ValueError: if the encoder does not return features.
    """
    count = sampling.count_of(video.path, video.num_frames)
    frames: list[np.ndarray] = []
    kept = {round(i) for i in np.linspace(0, count - 1, min(num_frames, count))}

    def snippets() -> Iterator[np.ndarray]:
        cut = videos.cut_snippets(video, encoder.modality, sampling)
        for index, snippet in enumerate(tqdm(cut, video.path.name, count, leave=False, unit="snippet", disable=None)):
            if index in kept and snippet.dtype == np.uint8:
                frames.append(snippet[len(snippet) // 2].copy())
            yield snippet

    encoded = encode_batches(encoder, enumerate(batched(snippets(), batch_size)), batch_size=batch_size)
    return finite(video.path, np.concatenate([features for _, features in encoded])), frames


def finite(path: Path, features: np.ndarray) -> np.ndarray:
    """Returns the features of a file; raises VideoError if they are not finite."""
    if not np.isfinite(features).all():
        raise videos.VideoError(f"{path}: its features are not finite; check the encoder, its weights and --dtype")
    return features


def _on_devices(encoder: Encoder, mesh: jax.sharding.Mesh) -> Callable[[np.ndarray], jax.Array]:
    """Returns the compiled function of a JAX encoder; it does not wait for the result."""
    function = sharding.replicate(encoder.function, mesh)
    return lambda batch: _compiled()(function, encoder.mean, encoder.std, sharding.shard(batch, len(batch), mesh))


def _on_host(encoder: Encoder) -> Callable[[np.ndarray], Any]:
    """Returns the function of any other encoder, which reads NumPy arrays."""
    return lambda batch: encoder.function(_as_input(batch, encoder.mean, encoder.std))


def _as_table(encoder: Encoder, rows: int, features: Any, mesh: jax.sharding.Mesh) -> np.ndarray:
    """Returns the features of `rows` snippets as `[rows, D]` float32; raises ValueError if they are anything else."""
    try:
        table = sharding.fetch(features, mesh) if isinstance(features, jax.Array) else np.asarray(features)
    except (ValueError, TypeError, RuntimeError) as error:  # of PyTorch, too
        found = f"{type(features).__name__}, which is no NumPy array ({error})"
    else:
        if table.shape == (rows, encoder.num_features) and jnp.issubdtype(table.dtype, jnp.floating):
            return table.astype(np.float32)
        found = f"{table.dtype} {list(table.shape)}"
    wanted = f"floats [{rows}, {encoder.num_features}] for {rows} snippets"
    raise ValueError(f"the encoder {encoder.name} returned {found}; it must return {wanted}")


@functools.cache
def _compiled():
    return jax.jit(_features, static_argnums=(1, 2), compiler_options=runtime.compiler_options())


def _features(function: Partial, mean: Numbers, std: Numbers, snippets: jax.Array) -> jax.Array:
    return function(_as_input(snippets, mean, std))


def _as_input(snippets: Any, mean: Numbers, std: Numbers) -> Any:
    """Returns float32 snippets. Bytes of RGB are normalised, flow and joints are used as they are."""
    frames = snippets.astype(np.float32)
    if snippets.dtype != np.uint8:
        return frames
    shift, scale = (np.reshape(np.float32(x), (1, 1, 1, 1, -1)) for x in (np.divide(mean, std), np.multiply(255, std)))
    return frames / scale - shift
