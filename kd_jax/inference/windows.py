"""Videos of any length in constant memory, and detection while a video is still being filmed.

    outputs = detect_in_windows(model, variables, features, window=4096)      # equal to one pass over the whole video

    detector = StreamingDetector(model, variables, input_size=1024)
    for snippet in camera:                                                   # [D], or [N, D] at once
        outputs = detector.push(snippet)                                     # what has become certain: [M, H], [M, C]
    outputs = detector.finish()

An output sees `receptive_field` snippets, itself in the middle, so a window that reaches half of it further on both
sides gives what the whole video gives. Online, the outputs of a snippet are certain once that many snippets have come
after it: that is the delay, `StreamingDetector.delay` snippets (31 for SS-TCN of five layers: 16 to 25 seconds).
"""

import jax
import numpy as np

from kd_jax.inference.predict import forward
from kd_jax.types import Outputs


def halo_of(model) -> int:
    """Snippets that an output sees on each side of its own.

    Raises:
      ValueError: for a filter whose outputs see the whole video.
    """
    if model.receptive_field is None:
        raise ValueError(
            f"an output of the filter {model.filter!r} sees the whole video, so that a window of it is not enough; "
            "use kd_jax.predict, or another filter"
        )
    return model.receptive_field // 2


def detect_in_windows(model, variables: dict, features: np.ndarray, *, window: int = 4096) -> Outputs:
    """Runs a detector over one video of any length, `window` snippets at a time.

    Args:
      model, variables: as `load_teacher` returns them.
      features: `[T, D]`, may be memory-mapped: no more than a window of it is read at a time.
      window: outputs of one pass; it reads `2 · halo_of(model)` snippets more. One compilation.

    Returns:
      numpy Outputs, `[T, H]` features and `[T, C]` logits.

    Raises:
      ValueError: for features that are not `[T, D]` with T of at least 1, or a window below 1.
    """
    if features.ndim != 2 or not len(features) or window < 1:
        raise ValueError(f"features must be [T, D] and window at least 1; got shape {features.shape}, window {window}")
    pieces = [
        _window(model, variables, features, start, min(start + window, len(features)), window)
        for start in range(0, len(features), window)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)


def _window(model, variables: dict, features: np.ndarray, start: int, stop: int, window: int) -> Outputs:
    """Outputs of the snippets start … stop - 1."""
    halo = halo_of(model)
    first, last = max(start - halo, 0), min(stop + halo, len(features))
    block = np.zeros((1, window + 2 * halo, features.shape[1]), features.dtype)
    mask = np.zeros(block.shape[:2], bool)
    place = slice(halo - (start - first), halo - (start - first) + last - first)
    block[0, place], mask[0, place] = features[first:last], True
    outputs = jax.device_get(forward(model, variables, block, mask))
    return jax.tree.map(lambda array: array[0, halo : halo + stop - start].copy(), outputs)


class StreamingDetector:
    """Takes snippets as they come, and gives each one's outputs as soon as nothing later can change them.

    Attributes:
      delay: a snippet's outputs come with the push that brings the `delay`-th snippet after it.
    """

    def __init__(self, model, variables: dict, input_size: int, *, block: int = 1):
        """`input_size`: D. `block`: outputs of one pass; more of them cost less each, and come later by block - 1."""
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        self.delay = halo_of(model) + block - 1
        self._model, self._variables, self._block = model, variables, block
        self._kept = np.zeros((0, input_size), np.float32)  # snippets that outputs to come will see
        self._next = 0  # the first of them whose outputs are still to come

    def push(self, snippets: np.ndarray) -> Outputs:
        """Takes `[D]` or `[N, D]` snippets; returns the outputs that are now certain, `[M, H]` and `[M, C]`, M from 0.

        Raises:
          ValueError: for snippets of another size, or that are not finite; the detector is then as it was.
        """
        snippets = np.atleast_2d(np.asarray(snippets, np.float32))
        if snippets.ndim != 2 or snippets.shape[1] != self._kept.shape[1]:
            raise ValueError(f"snippets must be [N, {self._kept.shape[1]}], got shape {snippets.shape}")
        if not np.isfinite(snippets).all():
            raise ValueError("snippets must be finite: a NaN would spoil all outputs that see it")
        self._kept = np.concatenate([self._kept, snippets])
        halo = halo_of(self._model)
        ready = max(len(self._kept) - halo - self._next, 0) // self._block * self._block
        return self._emit(self._next + ready)

    def finish(self) -> Outputs:
        """The outputs of the last snippets; the detector is then ready for another video."""
        outputs = self._emit(len(self._kept))
        self._kept, self._next = self._kept[:0], 0
        return outputs

    def _emit(self, stop: int) -> Outputs:
        arguments = (self._model, self._variables, self._kept)
        pieces = [
            _window(*arguments, start, min(start + self._block, stop), self._block)
            for start in range(self._next, stop, self._block)
        ]
        if not pieces:
            hidden, num_outputs = self._model.hidden, self._model.num_outputs
            return Outputs(np.zeros((0, hidden), np.float32), np.zeros((0, num_outputs), np.float32))
        forgotten = max(stop - halo_of(self._model), 0)
        self._kept, self._next = self._kept[forgotten:], stop - forgotten
        return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
