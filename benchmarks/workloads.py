"""Inputs and steps of the benchmarks: noise at the lengths of TSU's videos; speed does not depend on the content."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import sharding
from kd_jax.data import base
from kd_jax.data.batches import Example
from kd_jax.models import Detector
from kd_jax.training.population import jitted_step
from kd_jax.training.state import Optimization, create_train_state
from kd_jax.training.step import Program, Settings
from kd_jax.training.terms import choose_term
from kd_jax.types import Batch, Outputs

CLASSES = 51
SECONDS = 0.64  # per snippet of TSU: 16 frames at 25 frames per second
OPTIMIZATION = Optimization(plateau_patience=8, steps_per_epoch=10)
WEIGHTS = {"atomic": 1.0, "global_context": 10.0, "boundary": 0.05}  # terms of a distillation epoch


def lengths_of(videos: int, snippets: int) -> np.ndarray:
    """Draws lengths `[videos]` that vary like TSU's: mean 1550, up to about 3100, for 37,000 snippets of 24 videos."""
    lengths = np.clip(np.random.default_rng(0).gamma(4.0, 1.0, videos), 1, 8)
    return np.maximum((lengths / lengths.sum() * snippets).astype(int), 64)


def make_videos(videos: int, snippets: int, width: int) -> list[dict]:
    """Makes videos of `lengths_of`: {'rgb', 'flow': `[T, width]` float16, 'labels': `[T, CLASSES]` uint8} each."""
    rng = np.random.default_rng(1)

    def make(n: int) -> dict:
        features = {m: rng.standard_normal((n, width), np.float32).astype(np.float16) for m in ("rgb", "flow")}
        labels = np.repeat(rng.random((-(-n // 40), CLASSES)) < 0.04, 40, axis=0)[:n].astype(np.uint8)
        return {**features, "labels": labels}

    return list(map(make, lengths_of(videos, snippets)))


def info(width: int) -> base.Info:
    """Returns the description of records of these videos."""
    classes, sizes = tuple(f"class {i}" for i in range(CLASSES)), {"rgb": width, "flow": width}
    return base.Info("noise", classes, "dense", sizes, "seconds", 25.0, SECONDS)


def examples_of(videos: list[dict], modality: str) -> list[Example]:
    return [Example(str(number), video[modality], video["labels"]) for number, video in enumerate(videos)]


def detector(hidden: int, dtype: str = "float32") -> Detector:
    """Makes the default detector: SS-TCN of five layers."""
    return Detector("ss_tcn", num_outputs=CLASSES, hidden=hidden, dtype=jnp.dtype(dtype))


def make_batch(videos: int, length: int, width: int, hidden: int) -> tuple[Batch, Outputs, Outputs]:
    """Makes a batch without padding, `[videos, length, width]`, and outputs of a student and of a teacher, float32."""
    rng = np.random.default_rng(0)
    noise = [
        rng.standard_normal((videos, length, size), np.float32) for size in (width, hidden, CLASSES, hidden, CLASSES)
    ]
    labels = np.repeat(rng.random((videos, -(-length // 40), CLASSES)) < 0.04, 40, axis=1)[:, :length]
    features, *outputs = map(jnp.asarray, noise)
    first = jnp.arange(videos, dtype=jnp.int32) * length
    batch = Batch(features, jnp.asarray(labels, jnp.uint8), jnp.ones((videos, length), bool), first)
    return batch, Outputs(*outputs[:2]), Outputs(*outputs[2:])


def training_step(
    model: Detector, batch: Batch, teachers: tuple[Outputs, ...] = (), weights: Mapping[str, float] | None = None
) -> tuple[Callable, int]:
    """Returns a call that trains one more step on `batch`, with a dense head, and the number of parameters."""
    weights = {"task": 1.0, **(weights or {})}
    terms = tuple(choose_term(name, num_snippets=batch.mask.size) for name in weights if name != "task")
    program = Program(model, "dense", terms, OPTIMIZATION)
    step = jitted_step(program)
    owned = {"terms": terms, "teachers": teachers, "num_classes": CLASSES}
    fresh = create_train_state(model, OPTIMIZATION.make(), jax.random.key(0), batch.features.shape[-1], **owned)
    state = [sharding.replicate(fresh, sharding.data_mesh())]  # otherwise the second step compiles again
    weights = {name: jnp.float32(weight) for name, weight in weights.items()}
    arguments = teachers, batch, Settings(weights, jnp.float32(2e-4), jax.random.key(1))

    def run():
        state[0], metrics = step(state[0], *arguments)
        return state[0], metrics

    return run, sum(x.size for x in jax.tree.leaves(state[0].params))
