"""What the benchmarks run on: noise at the lengths of TSU's videos, because speed does not depend on what is shown."""

import jax.numpy as jnp
import numpy as np

from kd_jax.input_pipeline import Example
from kd_jax.models import Detector
from kd_jax.types import Batch, Outputs

CLASSES = 51
WEIGHTS = {"atomic": 1.0, "global_context": 10.0, "boundary": 0.05}  # of the distillation epoch


def lengths_of(videos: int, snippets: int) -> np.ndarray:
    """How many snippets each video has: spread like TSU's, mean 1550, up to about 3100, for 37,000 of 24 videos."""
    lengths = np.clip(np.random.default_rng(0).gamma(4.0, 1.0, videos), 1, 8)
    return np.maximum((lengths / lengths.sum() * snippets).astype(int), 64)


def make_videos(videos: int, snippets: int, width: int) -> list[dict]:
    """Videos of `lengths_of`.

    Returns:
      {'rgb', 'flow': `[T, width]` float16, as records hold them; 'labels': `[T, CLASSES]` uint8} each.
    """
    rng = np.random.default_rng(1)
    return [
        {
            "rgb": rng.standard_normal((n, width), np.float32).astype(np.float16),
            "flow": rng.standard_normal((n, width), np.float32).astype(np.float16),
            "labels": np.repeat(rng.random((-(-n // 40), CLASSES)) < 0.04, 40, axis=0)[:n].astype(np.uint8),
        }
        for n in lengths_of(videos, snippets)
    ]


def examples_of(videos: list[dict], modality: str) -> list[Example]:
    return [Example(str(number), video[modality], video["labels"]) for number, video in enumerate(videos)]


def detector(hidden: int, dtype: str = "float32") -> Detector:
    """The default detector: SS-TCN of five layers."""
    return Detector("ss_tcn", num_outputs=CLASSES, hidden=hidden, dtype=jnp.dtype(dtype))


def make_batch(videos: int, length: int, width: int, hidden: int) -> tuple[Batch, Outputs, Outputs]:
    """A batch without padding, `[videos, length, width]`, and the outputs of a student and of a teacher, float32."""
    rng = np.random.default_rng(0)
    noise = [
        rng.standard_normal((videos, length, size), np.float32) for size in (width, hidden, CLASSES, hidden, CLASSES)
    ]
    labels = np.repeat(rng.random((videos, -(-length // 40), CLASSES)) < 0.04, 40, axis=1)[:, :length]
    features, *outputs = map(jnp.asarray, noise)
    batch = Batch(features, jnp.asarray(labels, jnp.uint8), jnp.ones((videos, length), bool))
    return batch, Outputs(*outputs[:2]), Outputs(*outputs[2:])
