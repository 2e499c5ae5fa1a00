"""Outputs of a trained detector for whole videos."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from kd_jax import runtime, sharding
from kd_jax.data.batches import Example, bucket_lengths, iterate_epoch, make_examples
from kd_jax.data.source import Source
from kd_jax.models.cpu_kernels import one_platform
from kd_jax.types import Array, Outputs


def forward(model, variables: dict, features: Array, mask: Array, *, side_by_side: bool = False) -> Outputs:
    """The detector without dropout, compiled once per model and padded length; options as in `run_detector`."""
    return _compiled_forward()(model, side_by_side, variables, features, mask)


@functools.cache
def _compiled_forward():
    @one_platform()
    def run(model, side_by_side, variables, features, mask):
        def one(variables):
            return model.apply(variables, features, mask)

        return jax.vmap(one)(variables) if side_by_side else one(variables)

    return jax.jit(run, static_argnums=(0, 1), compiler_options=runtime.compiler_options())


def run_detector(
    model,
    variables: dict,
    examples: Sequence[Example],
    *,
    batch_size: int,
    num_buckets: int,
    progress: str | None = None,
    before_batch: Callable[[], None] = lambda: None,
    side_by_side: bool = False,
    with_features: bool = True,
) -> list[Outputs]:
    """Runs a detector over whole videos.

    Args:
      model, variables: as `load_run` returns them.
      examples: the videos; labels are not read.
      batch_size: videos per forward pass.
      num_buckets: number of padded lengths, each compiled once.
      progress: label of a progress bar.
      before_batch: is called before each forward pass, in all processes of a job, and may raise an exception.
      side_by_side: the variables are P sets, `[P, …]`; the outputs then have a first axis P as well.
      with_features: False leaves out the features.

    Returns:
      numpy Outputs for each video, without padding: `[T, C]` logits, and `[T, H]` features with `[T, 1]` `teaches`.
    """
    mesh = sharding.data_mesh()
    variables = sharding.replicate(variables, mesh)
    lengths, batch_size = [len(example.features) for example in examples], min(batch_size, max(len(examples), 1))
    outputs: dict[int, Outputs] = {}
    buckets = bucket_lengths(lengths, num_buckets, batch_size) if examples else ()
    quiet = None if progress and runtime.is_first() else True
    with (
        tqdm(total=len(examples), desc=progress, unit="video", disable=quiet, leave=False) as bar,
        contextlib.closing(iterate_epoch(examples, buckets, batch_size, mesh)) as batches,
    ):
        for indices, batch, _ in batches:
            before_batch()
            result = forward(model, variables, batch.features, batch.mask, side_by_side=side_by_side)
            if with_features:
                result = replace(result, teaches=jnp.any(batch.features != 0, axis=-1, keepdims=True))
            else:
                result = replace(result, features=None)
            result = sharding.fetch(result, mesh)
            for row, index in enumerate(indices):
                own = (..., row, slice(lengths[index]), slice(None))
                outputs[index] = jax.tree.map(lambda x, own=own: x[own].copy(), result)
            bar.update(len(indices))
    return [outputs[index] for index in range(len(examples))]


def fuse(streams: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Two-stream: the average of the streams' logits, {video: `[T, C]`}."""
    if any(stream.keys() != streams[0].keys() for stream in streams):
        raise ValueError("the streams to fuse hold different videos")
    return {video: np.mean([stream[video] for stream in streams], axis=0) for video in streams[0]}


def check_outputs(what: str, outputs: Mapping[str, Any]) -> None:
    """Raises FloatingPointError, which begins with `what` and names the first video whose arrays are not finite.

    `outputs` is {video: an array, or Outputs}.
    """
    for video, arrays in outputs.items():
        if not all(np.isfinite(array).all() for array in jax.tree.leaves(arrays)):
            remedy = "look for values in its features that are not finite, or too large"
            raise FloatingPointError(f"{what} {video!r} are not finite; {remedy}")


class SplitPredictor:
    """Predicts `videos`, those of one split, with each of P parameter sets; `info` describes the data set.

    `forward` holds the options `batch_size` and `num_buckets` of `run_detector`.
    """

    def __init__(self, model, source: Source, split: str, modality: str, **forward):
        self.videos, self.info = source.videos(split, [modality]), source.info
        self._examples = make_examples(self.videos, modality, len(source.info.classes))
        self._model, self._forward = model, forward

    def __call__(self, variables: dict, **options) -> list[dict[str, np.ndarray]]:
        """`variables` `[P, …]` → P times {video: logits `[T, C]`}; FloatingPointError if one is not finite.

        `options` are `progress` and `before_batch` of `run_detector`.
        """
        count = len(jax.tree.leaves(variables)[0])
        if count == 1:
            variables = jax.tree.map(lambda x: x[0], variables)
        options |= {"side_by_side": count > 1, "with_features": False}
        outputs = run_detector(self._model, variables, self._examples, **self._forward, **options)
        pairs = zip(self._examples, outputs, strict=True)
        tables = {example.id: out.logits.reshape(count, *out.logits.shape[-2:]) for example, out in pairs}
        check_outputs("the logits of video", tables)
        return [{video: table[i] for video, table in tables.items()} for i in range(count)]
