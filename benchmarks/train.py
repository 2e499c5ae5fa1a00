"""Epoch time of training against a plain PyTorch loop with the same maths, both in one run, alternating.

    python -m benchmarks.train [--epochs=5] [--output=FILE.json]

24 videos of TSU-like lengths (37 k snippets), 1024-d RGB and flow, float32, batch 4: a flow teacher's epoch and a
distillation epoch (three terms). The PyTorch side is the usual one: a DataLoader that pads each batch to its longest
video, the frozen teacher run on its modality in every step, eager mode. Needs `pip install -e .[torch]`.
"""

import json
import os
import platform
import time
from pathlib import Path

import jax
import numpy as np
import torch
from absl import app, flags
from torch.nn import functional

from kd_jax import input_pipeline
from kd_jax.input_pipeline import Example
from kd_jax.models import Detector
from kd_jax.predict import predict
from kd_jax.train import compiled_train_step
from kd_jax.train_state import create_train_state, make_optimizer

_EPOCHS = flags.DEFINE_integer("epochs", 5, "Timed epochs of each side, after one to warm up.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Also write the figures to this JSON file.")
_HIDDEN = flags.DEFINE_integer("hidden", 256, "Channels of the temporal filter.")

VIDEOS, SNIPPETS, WIDTH, CLASSES, BATCH = 24, 37_000, 1024, 51, 4
WEIGHTS = {"atomic": 1.0, "global_context": 10.0, "boundary": 0.05}


def make_videos(seed: int = 0) -> list[dict]:
    """Noise features at lengths like TSU's: mean 1550, up to about 3100 snippets."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.gamma(4.0, 1.0, VIDEOS), 1, 8)
    lengths = np.maximum((lengths / lengths.sum() * SNIPPETS).astype(int), 64)
    return [
        {
            "rgb": rng.standard_normal((n, WIDTH), np.float32),
            "flow": rng.standard_normal((n, WIDTH), np.float32),
            "labels": np.repeat(rng.random((-(-n // 40), CLASSES)) < 0.04, 40, axis=0)[:n].astype(np.uint8),
        }
        for n in lengths
    ]


class OurSide:
    """The library's own step and pipeline; the teacher's outputs are computed once, before the first epoch."""

    def __init__(self, videos: list[dict], hidden: int):
        self.model = Detector("ss_tcn", num_outputs=CLASSES, hidden=hidden)
        self.mesh = input_pipeline.data_mesh()
        self.examples = {m: [Example(str(i), v[m], v["labels"]) for i, v in enumerate(videos)] for m in ("rgb", "flow")}
        self.buckets = input_pipeline.bucket_lengths([len(v["labels"]) for v in videos], 4)
        optimizer = make_optimizer(2e-4, plateau_patience=8, steps_per_epoch=VIDEOS // BATCH)
        self.step = compiled_train_step(self.model, "dense", "{}", 8, VIDEOS // BATCH)
        self.states = {
            kind: create_train_state(self.model, optimizer, jax.random.key(i), WIDTH)
            for i, kind in enumerate(("teacher", "student"))
        }
        started = time.perf_counter()
        teacher = predict(
            self.model, {"params": self.states["teacher"].params}, self.examples["flow"], batch_size=8, num_buckets=4
        )
        self.teacher_once = time.perf_counter() - started
        self.student_examples = input_pipeline.attach_teacher(self.examples["rgb"], teacher)
        self.count = 0

    def epoch(self, kind: str) -> float:
        """Seconds of one epoch, 'teacher' (plain training on flow) or 'student' (distillation)."""
        examples = self.examples["flow"] if kind == "teacher" else self.student_examples
        weights = {} if kind == "teacher" else WEIGHTS
        started, self.count = time.perf_counter(), self.count + 1
        metrics = []
        for _, batch, outputs in input_pipeline.epoch(
            examples, self.buckets, BATCH, self.mesh, seed=0, epoch=self.count
        ):
            self.states[kind], measured = self.step(self.states[kind], outputs, batch, weights, jax.random.key(7))
            metrics.append(measured)
        jax.block_until_ready((self.states[kind], metrics))
        return time.perf_counter() - started


class TorchTCN(torch.nn.Module):
    """SS-TCN as PyTorch code usually writes it, `[B, D, T]`."""

    def __init__(self, hidden: int):
        super().__init__()
        self.first = torch.nn.Conv1d(WIDTH, hidden, 1)
        self.dilated = torch.nn.ModuleList(
            torch.nn.Conv1d(hidden, hidden, 3, padding=2**i, dilation=2**i) for i in range(5)
        )
        self.pointwise = torch.nn.ModuleList(torch.nn.Conv1d(hidden, hidden, 1) for _ in range(5))
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Conv1d(hidden, CLASSES, 1)

    def forward(self, x, mask):
        h = self.first(x) * mask
        for dilated, pointwise in zip(self.dilated, self.pointwise, strict=True):
            h = (h + self.dropout(pointwise(functional.relu(dilated(h))))) * mask
        return h, self.head(h)


def torch_losses(student, teacher, labels, mask):
    """The three terms on `[B, H, T]` features, as METHOD.md writes them."""
    valid = mask[:, 0] > 0
    s, t = student.transpose(1, 2)[valid], teacher.transpose(1, 2)[valid]
    negative = torch.randperm(len(t))
    sets = labels[valid]
    differs = (sets != sets[negative]).any(dim=1)
    h_positive = functional.cosine_similarity(s, t) / 0.1
    h_negative = functional.cosine_similarity(s, t[negative]) / 0.1
    atomic = -(functional.logsigmoid(h_positive) + functional.logsigmoid(-h_negative) * differs).mean()

    def correlation(features):
        centred = (features - features.sum(2, keepdim=True) / mask.sum(2, keepdim=True)) * mask
        centred = functional.normalize(centred, dim=2)
        return centred @ centred.transpose(1, 2)

    global_context = (correlation(student) - correlation(teacher)).square().mean(dim=(1, 2)).mean()

    def saliency(features):
        return (features[:, :, 1:] - features[:, :, :-1]).abs().sum(1)

    pairs = valid[:, 1:] & valid[:, :-1]
    boundary = (saliency(student) - saliency(teacher)).abs()[pairs].mean()
    return {"atomic": atomic, "global_context": global_context, "boundary": boundary}


class TorchSide:
    """The straightforward loop."""

    def __init__(self, videos: list[dict], hidden: int):
        torch.manual_seed(0)
        data = [{key: torch.from_numpy(value) for key, value in video.items()} for video in videos]
        self.loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, collate_fn=self.collate)
        self.models = {kind: TorchTCN(hidden) for kind in ("teacher", "student")}
        self.optimizers = {kind: torch.optim.Adam(model.parameters(), 2e-4) for kind, model in self.models.items()}

    @staticmethod
    def collate(videos):
        longest = max(len(video["labels"]) for video in videos)
        batch = {
            key: torch.stack([functional.pad(v[key].float(), (0, 0, 0, longest - len(v[key]))) for v in videos])
            for key in videos[0]
        }
        mask = torch.zeros(len(videos), 1, longest)
        for row, video in zip(mask, videos, strict=True):
            row[:, : len(video["labels"])] = 1
        return batch, mask

    def epoch(self, kind: str) -> float:
        started = time.perf_counter()
        model, optimizer = self.models[kind].train(), self.optimizers[kind]
        for batch, mask in self.loader:
            x = batch["flow" if kind == "teacher" else "rgb"].transpose(1, 2)
            features, logits = model(x, mask)
            labels = batch["labels"]
            cross_entropy = functional.binary_cross_entropy_with_logits(
                logits, labels.transpose(1, 2), reduction="none"
            )
            loss = (cross_entropy.sum(1, keepdim=True) * mask).sum() / mask.sum()
            if kind == "student":
                with torch.no_grad():
                    teacher, _ = self.models["teacher"].eval()(batch["flow"].transpose(1, 2), mask)
                terms = torch_losses(features, teacher, labels, mask)
                loss = loss + sum(WEIGHTS[term] * value for term, value in terms.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.perf_counter() - started


def main(argv):
    del argv
    videos = make_videos()
    snippets = sum(len(v["labels"]) for v in videos)
    sides = {"PyTorch": TorchSide(videos, _HIDDEN.value), "kd_jax": OurSide(videos, _HIDDEN.value)}
    seconds = {kind: {name: [] for name in sides} for kind in ("teacher", "student")}
    for kind, times in seconds.items():
        for number in range(_EPOCHS.value + 1):
            for name, side in sides.items():
                elapsed = side.epoch(kind)
                if name == "kd_jax" and not number:  # another order of videos never compiles again: buckets are fixed
                    print(f"{kind}: first kd_jax epoch, with compilation: {elapsed:.1f} s")
                if number:
                    times[name].append(elapsed)
    device = jax.devices()[0]
    print(f"\n{snippets} snippets, {os.cpu_count()} cores, {platform.machine()}, jax on {device.device_kind}")
    print(f"buckets {sides['kd_jax'].buckets}; teacher outputs, once a run: {sides['kd_jax'].teacher_once:.1f} s")
    print(f"{'epoch':<10}{'PyTorch s':>12}{'kd_jax s':>12}{'ratio':>8}{'kd_jax snippets/s':>20}")
    report = {"snippets": snippets, "cores": os.cpu_count(), "device": device.device_kind, "seconds": seconds}
    for kind, times in seconds.items():
        theirs, ours = np.median(times["PyTorch"]), np.median(times["kd_jax"])
        print(f"{kind:<10}{theirs:>12.2f}{ours:>12.2f}{theirs / ours:>8.2f}{snippets / ours:>20.0f}")
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
