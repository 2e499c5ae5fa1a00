"""Detection in videos of any length with constant memory, and in videos that are still being recorded.

    outputs = detect_in_windows(model, variables, features, window=4096)      # equal to one pass over the whole video

    detector = StreamingDetector(model, variables, input_size=1024)
    for snippet in camera:                                                   # [D], or [N, D] at once
        outputs = detector.push(snippet)                                     # outputs that are final: [M, H], [M, C]
    outputs = detector.finish()

An output depends on `receptive_field` snippets around it. A window that is extended by half of them on both sides
therefore gives the outputs of the whole video. In a stream, the outputs of a snippet are final once that half has
followed it. This delay is `StreamingDetector.delay` snippets: 31 for SS-TCN of five layers, 16 to 25 seconds.

Output i of a stream is that of snippet i, counted from 0 at the start of the video. With `start, step, _ = run.grid(1)`
of the run that `kd_jax.load` returns, it covers `start + i · step` to `start + (i + 1) · step` seconds of the video.
"""

import jax
import numpy as np

from kd_jax.data.base import FLOAT16
from kd_jax.inference.checks import check_input_size, check_table, check_values
from kd_jax.inference.predict import forward
from kd_jax.types import Outputs


def halo_of(model) -> int:
    """The number of snippets on each side that an output depends on; ValueError if it depends on the whole video."""
    if model.receptive_field is None:
        reason = f"outputs of the filter {model.filter!r} depend on the whole video, so a window is not enough"
        raise ValueError(f"{reason}; use kd_jax.predict, or another filter")
    return model.receptive_field // 2


def detect_in_windows(model, variables: dict, features: np.ndarray, *, window: int = 4096) -> Outputs:
    """Runs a detector over one video of any length, `window` snippets at a time.

    Args:
      model, variables: those of a member of `kd_jax.load`.
      features: `[T, D]` of any real dtype, possibly memory-mapped: at most one window is read at a time.
      window: number of outputs per pass, which reads `2 · halo_of(model)` more snippets. One compilation.

    Returns numpy Outputs, `[T, H]` features and `[T, C]` logits. Raises ValueError for features that are not `[T, D]`
    with T of at least 1 and the D of the detector, for another dtype, for a window below 1, and for a value that is not
    finite or that float32 cannot hold, with the index of its snippet.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    halo_of(model)
    size = np.shape(features)[-1] if np.ndim(features) else 0
    table = check_table(features, size)
    check_input_size(model, variables, size)
    return _windows(model, variables, table, 0, len(table), window)


def _windows(model, variables: dict, features: np.ndarray, start: int, stop: int, window: int) -> Outputs:
    """Outputs of the snippets start … stop - 1, `window` at a time."""
    spans = [(first, min(first + window, stop)) for first in range(start, stop, window)]
    pieces = [_window(model, variables, features, *span, window) for span in spans]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)


def _window(model, variables: dict, features: np.ndarray, start: int, stop: int, window: int) -> Outputs:
    """Outputs of the snippets start … stop - 1."""
    halo = halo_of(model)
    first, last = max(start - halo, 0), min(stop + halo, len(features))
    dtype = "float16" if features.dtype == FLOAT16 else "float32"
    block = np.zeros((1, window + 2 * halo, features.shape[1]), dtype)
    mask = np.zeros(block.shape[:2], bool)
    place = slice(halo - (start - first), halo - (start - first) + last - first)
    block[0, place], mask[0, place] = check_values(features[first:last], dtype=dtype, first=first), True
    outputs = jax.device_get(forward(model, variables, block, mask))
    return jax.tree.map(lambda array: array[0, halo : halo + stop - start].copy(), outputs)


class StreamingDetector:
    """Takes snippets as they arrive, and returns the outputs of each as soon as no later snippet can change them.

    The outputs of a snippet are returned by the push of the `delay`-th snippet after it.
    """

    def __init__(self, model, variables: dict, input_size: int, *, block: int = 1):
        """Makes a detector for one stream.

        Args:
          model, variables: those of a member of `kd_jax.load`.
          input_size: D.
          block: outputs per pass; a larger block costs less per output, and delays by block - 1.

        Raises ValueError if the filter depends on the whole video, the model reads another D, or block is below 1.
        """
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        self.delay = halo_of(model) + block - 1
        check_input_size(model, variables, input_size)
        self._model, self._variables, self._block = model, variables, block
        self._kept = np.zeros((0, input_size), np.float32)  # snippets that later outputs depend on
        self._next = 0  # the first of them whose outputs have not been returned
        self._forgotten = 0  # snippets of the video before those

    def push(self, snippets: np.ndarray) -> Outputs:
        """Takes `[D]` or `[N, D]` snippets and returns the outputs that are now final, `[M, H]` and `[M, C]`, M ≥ 0.

        Raises ValueError for snippets of another size or dtype, or a value that is not finite, with the index of its
        snippet in the video; the detector then stays unchanged.
        """
        table = check_table(np.atleast_2d(np.asarray(snippets)), self._kept.shape[1], "snippets", fewest=0)
        first = self._forgotten + len(self._kept)
        self._kept = np.concatenate([self._kept, check_values(table, "snippets", dtype="float32", first=first)])
        halo = halo_of(self._model)
        ready = max(len(self._kept) - halo - self._next, 0) // self._block * self._block
        return self._emit(self._next + ready)

    def finish(self) -> Outputs:
        """Returns the outputs of the last snippets, and makes the detector ready for another video."""
        outputs = self._emit(len(self._kept))
        self._kept, self._next, self._forgotten = self._kept[:0], 0, 0
        return outputs

    def _emit(self, stop: int) -> Outputs:
        if stop <= self._next:
            sizes = self._model.hidden, self._model.num_outputs
            features, logits = (np.zeros((0, size), np.float32) for size in sizes)
            return Outputs(features, logits)
        outputs = _windows(self._model, self._variables, self._kept, self._next, stop, self._block)
        forgotten = max(stop - halo_of(self._model), 0)
        self._kept, self._next = self._kept[forgotten:], stop - forgotten
        self._forgotten += forgotten
        return outputs
