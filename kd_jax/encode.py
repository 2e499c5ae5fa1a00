"""Snippets → features, in batches over all devices.

    weights = read_weights(Path('weights/i3d_rgb.npz'))
    for key, feature in encode(weights, enumerate(clips), batch_size=8): ...
    features, frames = encode_video(weights, probe(Path('kitchen.mp4')), Sampling(), batch_size=8)

An encoder is compiled once for a shape of snippets and a batch size.
"""

import functools
from collections.abc import Hashable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from kd_jax import input_pipeline, session, videos
from kd_jax.encoders.weights import Weights


def encode(
    weights: Weights, snippets: Iterable[tuple[Hashable, np.ndarray]], *, batch_size: int
) -> Iterator[tuple[Hashable, np.ndarray]]:
    """Encodes snippets of one shape, wherever they are from.

    A batch is computed while the next one is gathered. The last one is filled up, so that there is one compilation.

    Args:
      weights: from `read_weights`.
      snippets: (key, snippet), as `kd_jax.videos.snippets` or `kd_jax.skeletons.snippets` gives them.
      batch_size: snippets a forward pass, over all devices.

    Yields:
      (key, `[D]` float32), in the order of the snippets.
    """
    mesh = input_pipeline.data_mesh()
    rows = input_pipeline.device_rows(batch_size, mesh)
    variables = input_pipeline.replicate(weights.variables, mesh)
    run = _compiled()
    keys: list[Hashable] = []
    batch: np.ndarray | None = None
    ahead = None

    def finish(keys, features):
        yield from zip(keys, input_pipeline.fetch(features, mesh), strict=False)

    for key, snippet in snippets:
        if batch is None:
            batch = np.zeros((rows, *snippet.shape), snippet.dtype)
        batch[len(keys)] = snippet
        keys.append(key)
        if len(keys) == batch_size:
            features = run(weights.model, variables, input_pipeline.shard(batch, rows, mesh))
            if ahead:
                yield from finish(*ahead)
            ahead, keys, batch = (keys, features), [], None
    if ahead:
        yield from finish(*ahead)
    if keys:
        yield from finish(keys, run(weights.model, variables, input_pipeline.shard(batch, rows, mesh)))


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

    def numbered() -> Iterator[tuple[int, np.ndarray]]:
        made = videos.snippets(video, weights.modality, sampling)
        for index, snippet in enumerate(tqdm(made, video.path.name, count, leave=False, unit="snippet", disable=None)):
            if index in kept and snippet.dtype == np.uint8:
                frames.append(snippet[len(snippet) // 2].copy())
            yield index, snippet

    return np.stack([feature for _, feature in encode(weights, numbered(), batch_size=batch_size)]), frames


@functools.cache
def _compiled():
    return jax.jit(_features, static_argnums=0, compiler_options=session.compiler_options())


def _features(model, variables, clips: jax.Array) -> jax.Array:
    """`[B, D]`: of frames as bytes, which are made -1 to 1 here, or of flow or joints as they are."""
    clips = clips.astype(jnp.float32) / 127.5 - 1 if clips.dtype == jnp.uint8 else clips
    return model.apply(variables, clips).features.mean(1)
