"""Compares I3D and AGCN with the same network and weights in PyTorch, and measures the extraction of long videos.

    python -m benchmarks.encoders [--encoders=i3d,agcn] [--clips=2] [--size=224] [--repeats=5] [--output=FILE.json]

Clips have 16 frames, weights are random, both sides compute in float32 (or `--dtype=bfloat16`), with batch
normalisation folded into the kernels. The floor is the FLOPs of all convolutions at the speed of a large matrix
product. The extraction of a generated video of `--minutes` includes decoding; its memory excludes imports and weights.
"""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import measuring
from kd_jax import runtime
from kd_jax.video import videos
from kd_jax.video.encode import encode_video
from kd_jax.video.encoders import AGCN, I3D
from kd_jax.video.encoders.weights import Weights, random_variables

FRAMES = 16


def make(name: str, clips: int, size: int, dtype: str, width: float):
    """Returns an encoder, its variables and its input."""
    kinds = {"agcn": (AGCN, 60, (2, 25, 3), "pose"), "i3d": (I3D, 400, (size, size, 3), "rgb")}
    network, classes, shape, modality = kinds[name]
    x = np.random.default_rng(0).uniform(-1, 1, (clips, FRAMES, *shape)).astype(np.float32)
    model = network(classes, width, dtype=jnp.dtype(dtype))
    return model, random_variables(model, modality, 0), x


def compare(names: list[str], repeats: int, clips: int, size: int, dtype: str, width: float) -> list[dict]:
    """Returns a row of the table for each encoder."""
    rows, flops = [], measuring.peaks()["flops"]
    for name in names:
        model, variables, x = make(name, clips, size, dtype, width)
        run = jax.jit(model.apply, compiler_options=runtime.compiler_options())
        calls = {"kd_jax": functools.partial(run, *jax.device_put((variables, x)))}
        if measuring.with_peers():
            from benchmarks import encoder_peers  # here, because it needs PyTorch

            calls["torch"] = encoder_peers.PEERS[name](variables, x, dtype)
            ours, tolerance = calls["kd_jax"]().features[:, 0], 1e-3 if dtype == "float32" else 1
            np.testing.assert_allclose(calls["torch"](), ours, atol=tolerance)
        medians, first = measuring.alternate(calls, repeats)
        cost = jax.jit(model.apply).lower(variables, x).compile().cost_analysis()["flops"]
        ours = {"first call s": first["kd_jax"], "kd_jax clips/s": clips / medians["kd_jax"]}
        share = {"floor/time": cost / flops / medians["kd_jax"]}
        rows.append({"encoder": name, "clips": clips, **measuring.against_ours(medians), **ours, **share})
    return rows


def measure_video(minutes: float, clips: int, size: int, width: float) -> dict:
    """Returns peak memory and speed of extracting features of a video, 320 × 240 at 15 frames per second."""
    import av  # here, because only this needs it

    with tempfile.TemporaryDirectory() as folder:
        path, rng = Path(folder) / "long.mp4", np.random.default_rng(0)
        pictures = rng.integers(0, 255, (50, 15, 20, 3), np.uint8).repeat(16, 1).repeat(16, 2)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=15, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for i in range(round(minutes * 60 * 15)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[i // 15 % 50], format="rgb24")))
            container.mux(stream.encode())
        model, variables, _ = make("i3d", clips, size, "float32", width)
        encoder = Weights(model, variables, {"modality": "rgb"}).encoder()
        sampling = videos.Sampling(size=size, shorter_side=max(size, 240))

        def extract():
            video = videos.probe_video(path)
            seconds = measuring.seconds(lambda: encode_video(encoder, video, sampling, batch_size=clips))
            return {"frames": video.num_frames, "frames/s": video.num_frames / seconds}

        speed, memory = measuring.peak_memory(extract)
    return {**speed, **memory}


def main(arguments, shape):
    sizes = {**shape, "width": arguments.model_width}
    if arguments.memory_of:
        return measure_video(arguments.memory_of, **sizes)
    rows = compare(arguments.encoders, arguments.repeats, dtype=arguments.dtype, **sizes)
    for minutes in map(float, arguments.minutes):
        row = measuring.in_own_process("benchmarks.encoders", f"--memory_of={minutes}")
        rows.append({"encoder": f"i3d, a video of {minutes:g} minutes", **row})
    facts = {"dtype": arguments.dtype, "model_width": arguments.model_width, "peers": measuring.with_peers()}
    return "encoders", rows, {**shape, **facts}


if __name__ == "__main__":
    flags.DEFINE_list("encoders", ["i3d", "agcn"], "Encoders to measure.")
    flags.DEFINE_list("minutes", ["0.5", "2"], "Lengths of videos to extract features of; may be empty.")
    flags.DEFINE_float("model_width", 1.0, "Fraction of the published channels.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Precision of the computation, on both sides.")
    flags.DEFINE_float("memory_of", None, "Internal: only measure the extraction of a video of these minutes.")
    measuring.run(main, repeats=5, clips=2, size=224)
