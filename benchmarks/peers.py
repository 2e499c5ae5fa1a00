"""The same network, losses and epochs in PyTorch, written twice: in the usual way, and as fast as we could.

`Usual`: a DataLoader whose worker processes pad each batch to its longest video, shuffled; the frozen teacher runs on
its modality in every step; eager; `torch.optim.Adam`.

`Strong`: features stay in memory (on the GPU if there is one), a batch holds videos of similar length, drawn as kd_jax
draws them; the teacher's outputs are computed once; fused Adam. On a GPU the model is compiled, batches are padded to
the length buckets so that it compiles few shapes, and float32 products use TF32, as JAX's do. On a CPU it is eager:
torch.compile did not help (a step at B 4, T 1600, H 256 on 2 AVX2 cores: 2.57 s eager, 2.69 s compiled, and a minute
and a half of compilation), nor did channels last with matrix products for convolutions (forward and backward of one
layer: 0.26 s as Conv1d, 0.30 and 0.48 s), and bfloat16, which these cores do not have, cost 7 times a convolution.
"""

import torch
from torch.nn import functional

from benchmarks.workloads import CLASSES, WEIGHTS
from kd_jax.data.batches import bucket_lengths, schedule_epoch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


class SSTCN(torch.nn.Module):
    """SS-TCN as PyTorch code usually writes it: `[B, D, T]` and `[B, 1, T]` → features `[B, H, T]`, logits."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.first = torch.nn.Conv1d(width, hidden, 1)
        self.dilated = torch.nn.ModuleList(self.mix(hidden, 2**i) for i in range(5))
        self.pointwise = torch.nn.ModuleList(torch.nn.Conv1d(hidden, hidden, 1) for _ in range(5))
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Conv1d(hidden, CLASSES, 1)

    def forward(self, x, mask):
        h = self.first(x) * mask
        for dilated, pointwise in zip(self.dilated, self.pointwise, strict=True):
            h = (h + self.dropout(pointwise(functional.relu(dilated(h))))) * mask
        return h, self.head(h)

    def mix(self, hidden: int, dilation: int) -> torch.nn.Module:
        return torch.nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation)


class DilatedAttention(torch.nn.Module):
    """PDAN's attention without `unfold`: the taps are three views of the padded keys and values."""

    def __init__(self, hidden: int, dilation: int):
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Conv1d(hidden, hidden, 1, bias=False) for _ in range(3))
        self.relative = torch.nn.Parameter(torch.randn(hidden, 1, 3))
        self.dilation = dilation

    def forward(self, x):
        def taps(x):
            padded = functional.pad(x, (self.dilation, self.dilation))
            return torch.stack([padded[..., i * self.dilation :][..., : x.shape[-1]] for i in range(3)], dim=-1)

        weights = functional.softmax(self.query(x)[..., None] * taps(self.key(x)), dim=-1)
        return (weights * (taps(self.value(x)) + self.relative)).sum(-1)


class PDAN(SSTCN):
    def mix(self, hidden: int, dilation: int) -> torch.nn.Module:
        return DilatedAttention(hidden, dilation)


FILTERS = {"ss_tcn": SSTCN, "pdan": PDAN}


def task(logits, labels, mask):
    """Computes the sigmoid cross-entropy of `[B, C, T]` logits and `[B, T, C]` labels."""
    each = functional.binary_cross_entropy_with_logits(logits, labels.transpose(1, 2), reduction="none")
    return (each.sum(1, keepdim=True) * mask).sum() / mask.sum()


def atomic(student, teacher, labels, mask):
    valid = mask[:, 0] > 0
    s, t, sets = student.transpose(1, 2)[valid], teacher.transpose(1, 2)[valid], labels[valid]
    negative = torch.randperm(len(t), device=t.device)  # kd_jax draws among other label sets only, which costs more
    differs = (sets != sets[negative]).any(dim=1)
    positives = functional.logsigmoid(functional.cosine_similarity(s, t) / 0.1)
    negatives = functional.logsigmoid(-functional.cosine_similarity(s, t[negative]) / 0.1)
    return -(positives + negatives * differs).mean()


def global_context(student, teacher, labels, mask):
    def correlation(features):
        centred = (features - features.sum(2, keepdim=True) / mask.sum(2, keepdim=True)) * mask
        centred = functional.normalize(centred, dim=2)
        return centred @ centred.transpose(1, 2)

    return (correlation(student) - correlation(teacher)).square().mean()


def boundary(student, teacher, labels, mask):
    def saliency(features):
        return (features[:, :, 1:] - features[:, :, :-1]).abs().sum(1)

    pairs = (mask[:, 0, 1:] * mask[:, 0, :-1]) > 0
    return (saliency(student) - saliency(teacher)).abs()[pairs].mean()


TERMS = {"atomic": atomic, "global_context": global_context, "boundary": boundary}  # features are [B, H, T]


def collate(videos: list[dict], length: int = 0) -> tuple[dict, torch.Tensor]:
    """Pads to the longest, or to `length`: {key: `[B, T, …]` float32}, mask `[B, 1, T]`."""
    lengths = torch.tensor([len(video["labels"]) for video in videos])
    longest = max(length, int(lengths.max()))

    def stack(rows):
        return torch.stack([functional.pad(x.float(), (0, 0, 0, longest - len(x))) for x in rows])

    batch = {key: stack([video[key] for video in videos]) for key in videos[0]}
    mask = (torch.arange(longest)[None, :] < lengths[:, None]).float()
    return batch, mask.to(batch["labels"].device)[:, None]


def data_loader(data, batch_size: int, workers: int) -> torch.utils.data.DataLoader:
    """Makes a shuffled loader of padded batches; workers start now, before JAX has threads that a fork would lose."""
    options = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": DEVICE.type == "cuda"}
    loader = torch.utils.data.DataLoader(data, batch_size, shuffle=True, collate_fn=collate, **options)
    iter(loader)
    return loader


class Peer:
    """Models and optimisers of a teacher (plain training on flow) and a student (distillation on RGB)."""

    def __init__(self, videos: list[dict], hidden: int, batch_size: int, dtype: str, **adam):
        torch.manual_seed(0)
        self.batch_size = batch_size
        self.data = [{key: torch.from_numpy(value) for key, value in video.items()} for video in videos]
        self.autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == "bfloat16")
        width = videos[0]["rgb"].shape[1]
        self.models = {kind: SSTCN(width, hidden).to(DEVICE) for kind in ("teacher", "student")}
        self.optimizers = {kind: torch.optim.Adam(m.parameters(), 2e-4, **adam) for kind, m in self.models.items()}

    def epoch(self, kind: str) -> None:
        """One epoch of the 'teacher' or the 'student', finished when it returns."""
        model, optimizer = self.models[kind].train(), self.optimizers[kind]
        for batch, mask in self.batches(kind):
            with self.autocast:
                features, logits = model(batch["flow" if kind == "teacher" else "rgb"].transpose(1, 2), mask)
                teacher = self.teacher_features(batch, mask) if kind == "student" else None
            loss = task(logits.float(), batch["labels"], mask)
            if kind == "student":
                for term, weight in WEIGHTS.items():
                    loss = loss + weight * TERMS[term](features.float(), teacher.float(), batch["labels"], mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        synchronize()

    @torch.no_grad()
    def teacher_features(self, batch: dict, mask: torch.Tensor) -> torch.Tensor:
        return self.models["teacher"].eval()(batch["flow"].transpose(1, 2), mask)[0]


class Usual(Peer):
    def __init__(self, videos: list[dict], hidden: int, batch_size: int, dtype: str, workers: int = 2):
        super().__init__(videos, hidden, batch_size, dtype)
        self.loader = data_loader(self.data, batch_size, workers)

    def batches(self, kind: str):
        for batch, mask in self.loader:
            yield {key: value.to(DEVICE, non_blocking=True) for key, value in batch.items()}, mask.to(DEVICE)


class Strong(Peer):
    def __init__(self, videos: list[dict], hidden: int, batch_size: int, dtype: str):
        super().__init__(videos, hidden, batch_size, dtype, fused=True)
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX does; nothing on CPU
        self.data = [{key: value.to(DEVICE) for key, value in video.items()} for video in self.data]
        self.lengths = [len(video["labels"]) for video in videos]
        self.buckets = bucket_lengths(self.lengths, 4, batch_size)
        self.count = 0
        if DEVICE.type == "cuda":
            self.models = {kind: torch.compile(model) for kind, model in self.models.items()}
        for first in range(0, len(self.data), batch_size):
            members = self.data[first : first + batch_size]
            with self.autocast:
                outputs = self.teacher_features(*collate(members)).transpose(1, 2)
            for video, output in zip(members, outputs, strict=True):
                video["teacher"] = output[: len(video["labels"])].clone()

    def batches(self, kind: str):
        self.count += 1
        unread = {"teacher": {"rgb", "teacher"}, "student": {"flow"}}[kind]
        plan = schedule_epoch(self.lengths, self.buckets, self.batch_size, seed=0, epoch=self.count)
        for bucket, indices in plan:
            videos = [{key: value for key, value in self.data[i].items() if key not in unread} for i in indices]
            yield collate(videos, bucket if DEVICE.type == "cuda" else 0)

    def teacher_features(self, batch: dict, mask: torch.Tensor) -> torch.Tensor:
        return batch["teacher"].transpose(1, 2) if "teacher" in batch else super().teacher_features(batch, mask)


SIDES = {"usual PyTorch": Usual, "strong PyTorch": Strong}
