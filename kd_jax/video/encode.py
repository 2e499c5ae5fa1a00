"""Snippets → features, in batches over all devices.

    weights = read_weights(Path('weights/i3d_rgb.npz'))
    for key, features in encode(weights, enumerate(batched(snippets, 8)), batch_size=8): ...
    features, frames = encode_video(weights, probe(Path('kitchen.mp4')), Sampling(), batch_size=8)

A batch holds snippets of one video, so that features do not depend on what else is encoded, or when. An encoder is
compiled once for a shape of snippets and each size of `_rows`.
"""

import functools
import itertools
from collections.abc import Hashable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from kd_jax import runtime, sharding
from kd_jax.video import videos
from kd_jax.video.encoders.weights import Weights


def batched(snippets: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """The snippets of one video, `[N, …]` at a time: N is the batch size, of the last batch what is left."""
    snippets = iter(snippets)
    while batch := list(itertools.islice(snippets, batch_size)):
        yield np.stack(batch)


def encode(
    weights: Weights, batches: Iterable[tuple[Hashable, np.ndarray]], *, batch_size: int
) -> Iterator[tuple[Hashable, np.ndarray]]:
    """Encodes batches of snippets of one shape, those of several videos in any order.

    A batch is computed while the next one is gathered.

    Args:
      weights: from `read_weights`.
      batches: (key, `[N, …]` snippets), as `batched` makes them.
      batch_size: snippets a forward pass, over all devices; the largest N.

    Yields:
      (key, `[N, D]` float32), in the order of the batches.
    """
    mesh = sharding.data_mesh()
    variables = sharding.replicate(weights.variables, mesh)
    run = _compiled()
    ahead = None

    def finish(key, count, features):
        return key, sharding.fetch(features, mesh)[:count]

    for key, batch in batches:
        rows = _rows(len(batch), batch_size, mesh)
        filled = np.pad(batch, [(0, rows - len(batch))] + [(0, 0)] * (batch.ndim - 1))
        features = run(weights.model, variables, sharding.shard(filled, rows, mesh))
        if ahead:
            yield finish(*ahead)
        ahead = key, len(batch), features
    if ahead:
        yield finish(*ahead)


def _rows(count: int, batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """The least of batch_size, batch_size / 2, … that holds so many snippets and spreads evenly over the devices.

    Little is wasted on the end of a video, and few shapes are compiled.
    """
    rows = sharding.device_rows(batch_size, mesh)
    while rows % (2 * mesh.size) == 0 and rows // 2 >= count:
        rows //= 2
    return rows


def encode_video(
    weights: Weights, video: videos.Video, sampling: videos.Sampling, *, batch_size: int, num_frames: int = 0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """All of one video.

    Args:
      weights: from `read_weights`, for RGB or flow.
      video: from `videos.probe`.
      sampling: how it is cut.
      batch_size: snippets a forward pass.
      num_frames: how many frames to keep, at even distances.

    Returns:
      `[T, D]` float32, and the frames, `[size, size, 3]` uint8 each; none of flow.

    Raises:
      VideoError: where the file is damaged, or shorter than a snippet that is not filled up.
    """
    count, frames = sampling.count_of(video.path, video.num_frames), []
    kept = {round(i) for i in np.linspace(0, count - 1, min(num_frames, count))}

    def shown() -> Iterator[np.ndarray]:
        made = videos.snippets(video, weights.modality, sampling)
        for index, snippet in enumerate(tqdm(made, video.path.name, count, leave=False, unit="snippet", disable=None)):
            if index in kept and snippet.dtype == np.uint8:
                frames.append(snippet[len(snippet) // 2].copy())
            yield snippet

    encoded = encode(weights, enumerate(batched(shown(), batch_size)), batch_size=batch_size)
    return np.concatenate([features for _, features in encoded]), frames


@functools.cache
def _compiled():
    return jax.jit(_features, static_argnums=0, compiler_options=runtime.compiler_options())


def _features(model, variables, clips: jax.Array) -> jax.Array:
    """`[B, D]`: of frames as bytes, which are made -1 to 1 here, or of flow or joints as they are."""
    clips = clips.astype(jnp.float32) / 127.5 - 1 if clips.dtype == jnp.uint8 else clips
    return model.apply(variables, clips).features.mean(1)
