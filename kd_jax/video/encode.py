"""Encoding of snippets into features, in batches over all devices.

    weights = read_weights(Path('weights/i3d_rgb.npz'))
    for key, features in encode_batches(weights, enumerate(batched(snippets, 8)), batch_size=8): ...
    features, frames = encode_video(weights, probe_video(Path('kitchen.mp4')), Sampling(), batch_size=8)

A batch holds snippets of one video, so that its features do not depend on other videos. An encoder is compiled once
for each snippet shape and each number of rows that `_num_rows` returns.
"""

import functools
import itertools
from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from kd_jax import runtime, sharding
from kd_jax.video import videos
from kd_jax.video.encoders.weights import Weights

Key = TypeVar("Key", bound=Hashable)


def batched(snippets: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Stacks the snippets of one video into batches `[N, …]`; N is `batch_size`, or less in the last batch."""
    snippets = iter(snippets)
    while batch := list(itertools.islice(snippets, batch_size)):
        yield np.stack(batch)


def encode_batches(
    weights: Weights, batches: Iterable[tuple[Key, np.ndarray]], *, batch_size: int
) -> Iterator[tuple[Key, np.ndarray]]:
    """Encodes batches of snippets. The next batch is read while one is computed.

    Args:
      weights: from `read_weights`.
      batches: (key, `[N, …]` snippets) as `batched` makes them, all of one snippet shape.
      batch_size: snippets per forward pass, over all devices; the largest N.

    Yields (key, `[N, D]` float32), in the order of `batches`.
    """
    mesh, pending = sharding.data_mesh(), None
    variables = sharding.replicate(weights.variables, mesh)
    for item in itertools.chain(batches, [None]):  # None comes after the last batch
        if item:
            key, batch = item
            rows = _num_rows(len(batch), batch_size, mesh)
            filled = np.pad(batch, [(0, rows - len(batch))] + [(0, 0)] * (batch.ndim - 1))
            features = _compiled()(weights.model, variables, sharding.shard(filled, rows, mesh))
        if pending:
            yield pending[0], sharding.fetch(pending[2], mesh)[: pending[1]]
        pending = item and (key, len(batch), features)


def _num_rows(count: int, batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """Returns the least of batch_size, batch_size / 2, … that holds `count` snippets and divides over the devices.

    The last batch of a video then wastes little computation, and few shapes are compiled.
    """
    rows = sharding.device_rows(batch_size, mesh)
    while rows % (2 * mesh.size) == 0 and rows // 2 >= count:
        rows //= 2
    return rows


def encode_video(
    weights: Weights, video: videos.Video, sampling: videos.Sampling, *, batch_size: int, num_frames: int = 0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Encodes one video with the weights of an encoder of RGB or flow, `batch_size` snippets per forward pass.

    Returns:
      Features `[T, D]` float32, and `num_frames` evenly spaced frames `[size, size, 3]` uint8; no frames for flow.

    Raises:
      VideoError: if the file is damaged or, with `last='drop'`, shorter than a snippet.
    """
    count = sampling.count_of(video.path, video.num_frames)
    frames: list[np.ndarray] = []
    kept = {round(i) for i in np.linspace(0, count - 1, min(num_frames, count))}

    def snippets() -> Iterator[np.ndarray]:
        cut = videos.cut_snippets(video, weights.modality, sampling)
        for index, snippet in enumerate(tqdm(cut, video.path.name, count, leave=False, unit="snippet", disable=None)):
            if index in kept and snippet.dtype == np.uint8:
                frames.append(snippet[len(snippet) // 2].copy())
            yield snippet

    encoded = encode_batches(weights, enumerate(batched(snippets(), batch_size)), batch_size=batch_size)
    return np.concatenate([features for _, features in encoded]), frames


@functools.cache
def _compiled():
    return jax.jit(_features, static_argnums=0, compiler_options=runtime.compiler_options())


def _features(model, variables, clips: jax.Array) -> jax.Array:
    """Computes `[B, D]` features. RGB frames, which are bytes, are scaled to -1 … 1; flow and joints are used as is."""
    clips = clips.astype(jnp.float32) / 127.5 - 1 if clips.dtype == jnp.uint8 else clips
    return model.apply(variables, clips).features.mean(1)
