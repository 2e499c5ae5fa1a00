"""Reading records, building batches and putting videos on the device, against a DataLoader on .npy files.

    python -m benchmarks.data [--repeats=5] [--folder=DIR] [--output=FILE.json]

24 videos of TSU-like lengths, 1024-d RGB and flow in float16, in records and in one .npy file for each video and
modality. The disk's cache is warm, as in every epoch but the first. Each side reads RGB or makes one epoch of batches
of it; MB/s counts real float16 features. An epoch of `resident` batches sends nothing but indices.
"""

import itertools
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks import measuring, workloads
from benchmarks.workloads import CLASSES
from kd_jax import sharding
from kd_jax.data import base, records
from kd_jax.data.batches import bucket_lengths, iterate_epoch, make_examples, schedule_epoch
from kd_jax.training import on_device


def write(folder: Path, videos: list[dict]) -> list[Path]:
    """Writes records to `folder`/records, and each video's RGB and flow as .npy; returns the RGB files."""
    (folder / "npy").mkdir(parents=True)
    made = []
    for number, video in enumerate(videos):
        duration = workloads.SECONDS * len(video["rgb"])
        features = {modality: video[modality] for modality in ("rgb", "flow")}
        made.append(base.Video(f"v{number}", features, np.array([[0, 0.0, duration / 2]]), duration))
        for modality, table in features.items():
            np.save(folder / "npy" / f"{modality}_v{number}.npy", table)
    records.write(folder / "records", workloads.info(videos[0]["rgb"].shape[1]), {"train": made, "test": []})
    return [folder / "npy" / f"rgb_v{number}.npy" for number in range(len(videos))]


def torch_loaders(files: list[Path], labels: list[np.ndarray], batch_size: int) -> dict:
    """Returns {side: call}; each call goes once through a DataLoader of padded batches."""
    import torch  # here, because only the comparison needs it

    from benchmarks import peers

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, i):
            return {"rgb": torch.from_numpy(np.load(files[i])), "labels": torch.from_numpy(labels[i])}

    loaders = {workers: peers.data_loader(Files(), batch_size, workers) for workers in (0, 2)}
    return {f"batches: DataLoader on .npy, {n} workers": lambda x=x: [None for _ in x] for n, x in loaders.items()}


def measure(folder: Path, videos: list[dict], batch_size: int, repeats: int) -> list[dict]:
    files = write(folder, videos)
    loaders = torch_loaders(files, [video["labels"] for video in videos], batch_size) if measuring.with_peers() else {}
    mesh, lengths = sharding.data_mesh(), [len(video["labels"]) for video in videos]
    buckets = bucket_lengths(lengths, 4, batch_size)
    stored = records.read(folder / "records", "train", ["rgb"])
    examples = make_examples(stored, "rgb", CLASSES)
    data = on_device.put([examples], max(buckets), mesh)
    epochs = itertools.count()

    def streamed():
        for _, batch, _ in iterate_epoch(examples, buckets, batch_size, mesh, seed=0, epoch=next(epochs)):
            batch.features.block_until_ready()

    def cut():
        batches = schedule_epoch(lengths, buckets, batch_size, seed=0, epoch=next(epochs))
        plan = on_device.index_plan(batches, buckets, len(lengths), batch_size)
        for bucket, rows in zip(*plan, strict=True):
            take(data, rows, buckets[bucket]).features.block_until_ready()

    take = jax.jit(lambda data, rows, length: on_device.take(data, 0, rows, length)[0], static_argnums=2)
    calls = {
        "read: records": lambda: records.read(folder / "records", "train", ["rgb"]),
        "read: np.load": lambda: [np.load(file) for file in files],
        "labels from segments": lambda: make_examples(stored, "rgb", CLASSES),
        "put: resident, once a run": lambda: on_device.put([examples], max(buckets), mesh),
        "batches: streamed to the device": streamed,
        "batches: cut from resident videos": cut,
        **loaders,
    }
    size = sum(video["rgb"].nbytes for video in videos)
    medians, _ = measuring.alternate(calls, repeats)
    return [{"what": name, "seconds": time, "MB/s": size / time / 1e6} for name, time in medians.items()]


def main(arguments, shape):
    videos = workloads.make_videos(arguments.videos, arguments.snippets, arguments.width)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(Path(folder), videos, arguments.batch, arguments.repeats)
    return "data", rows, {**shape, "peers": measuring.with_peers()}


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "Where to write the files, 1 GB at most; a temporary folder by default.")
    measuring.run(main, repeats=5, videos=24, snippets=37_000, batch=4, width=1024)
