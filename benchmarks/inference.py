"""Whole videos → scores against PyTorch, and one long video in windows of constant memory.

    python -m benchmarks.inference [--repeats=5] [--output=FILE.json]

24 videos of TSU-like lengths, 1024-d float16, float32 compute: `kd_jax.predict` against PyTorch one video at a time and
in batches of similar length, with results as numpy arrays of each video's length. Then `windows.detect_in_windows` and
one pass over a video of 20,000 and of 80,000 snippets, each in its own process: seconds of the second call, and peak
memory above imports and input, with the outputs, which grow with the video.
"""

import itertools

import jax
import numpy as np
from absl import flags

from benchmarks import measuring, workloads
from benchmarks.workloads import CLASSES
from kd_jax.data.batches import Example
from kd_jax.inference.predict import run_detector
from kd_jax.inference.windows import detect_in_windows


def variables_of(model, width: int) -> dict:
    return model.init(jax.random.key(0), np.zeros((1, 1, width), np.float32), np.ones((1, 1), bool))


def torch_sides(videos: list[dict], hidden: int, batch_size: int) -> dict:
    """Returns {side: call}; each call returns the logits of every video."""
    import torch  # here, because only the comparison needs it

    from benchmarks import peers

    torch.manual_seed(0)
    model = peers.SSTCN(videos[0]["rgb"].shape[1], hidden).to(peers.DEVICE).eval()
    data = [{"rgb": torch.from_numpy(video["rgb"]), "labels": torch.from_numpy(video["labels"])} for video in videos]
    by_length = sorted(data, key=lambda video: len(video["labels"]))

    def side(order, size):
        @torch.inference_mode()
        def call():
            logits = []
            for first in range(0, len(order), size):
                members = order[first : first + size]
                batch, mask = peers.collate(members)
                scores = model(batch["rgb"].to(peers.DEVICE).transpose(1, 2), mask.to(peers.DEVICE))[1].cpu().numpy()
                logits += [row[:, : len(v["labels"])].T.copy() for row, v in zip(scores, members, strict=True)]
            return logits

        return call

    return {"PyTorch, one by one": side(data, 1), "PyTorch, similar lengths": side(by_length, batch_size)}


def compare(videos: list[dict], hidden: int, batch_size: int, repeats: int) -> list[dict]:
    calls = torch_sides(videos, hidden, batch_size) if measuring.with_peers() else {}
    model, examples = workloads.detector(hidden), workloads.examples_of(videos, "rgb")
    variables = variables_of(model, videos[0]["rgb"].shape[1])
    calls["kd_jax.predict"] = lambda: run_detector(model, variables, examples, batch_size=batch_size, num_buckets=4)
    medians, first = measuring.alternate(calls, repeats)
    snippets = sum(len(video["labels"]) for video in videos)
    ratios = {name: {"times kd_jax": median / medians["kd_jax.predict"]} for name, median in medians.items()}
    return [row_of(name, snippets, medians, first, **ratios[name]) for name in medians]


def row_of(side: str, snippets: int, medians: dict, first: dict, **more: float) -> dict:
    seconds = {"seconds": medians[side], **more, "snippets/s": snippets / medians[side]}
    return {"side": side, "snippets": snippets, **seconds, "first call s": first[side]}


def long_video(side: str, snippets: int, width: int, hidden: int, window: int) -> dict:
    """Returns seconds and peak memory of one video; the process must do nothing else."""
    model = workloads.detector(hidden)
    variables = variables_of(model, width)
    features = np.broadcast_to(np.random.default_rng(0).standard_normal(width).astype(np.float16), (snippets, width))
    labels = np.zeros((snippets, 0), np.uint8)

    def call():
        if side == "detect_in_windows":
            return detect_in_windows(model, variables, features, window=window)
        return run_detector(model, variables, [Example("long", features, labels)], batch_size=1, num_buckets=1)

    (medians, first), memory = measuring.peak_memory(lambda: measuring.alternate({side: call}, 1))
    row = row_of(side, snippets, medians, first)
    return {**row, **memory, "outputs GB": 4 * snippets * (hidden + CLASSES) / 1e9}


def main(arguments, shape):
    size = {name: shape[name] for name in ("width", "hidden")}
    if arguments.long:
        side, snippets = arguments.long
        return long_video(side, int(snippets), **size, window=arguments.window)
    kinds = itertools.product(arguments.long_lengths, ("detect_in_windows", "one pass"))
    rows = [measuring.in_own_process("benchmarks.inference", f"--long={side},{length}") for length, side in kinds]
    videos = workloads.make_videos(arguments.videos, arguments.snippets, arguments.width)
    rows = compare(videos, arguments.hidden, arguments.batch, arguments.repeats) + rows
    facts = {"batch": arguments.batch, "window": arguments.window, "peers": measuring.with_peers()}
    return "inference", rows, {**size, **facts}


if __name__ == "__main__":
    flags.DEFINE_integer("window", 4096, "Outputs of one pass of detect_in_windows.", 1)
    flags.DEFINE_list("long_lengths", ["20000", "80000"], "Snippets of the long videos; empty: none.")
    flags.DEFINE_list("long", None, "Internal: only measure this SIDE,LENGTH.")
    measuring.run(main, repeats=5, videos=24, snippets=37_000, batch=4, width=1024, hidden=256)
