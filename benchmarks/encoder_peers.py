"""I3D and AGCN in PyTorch with weights of kd_jax, for `benchmarks.encoders`."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peers import DEVICE
from kd_jax.video.encoders import agcn, i3d


def _tensor(x) -> torch.Tensor:
    return torch.tensor(np.array(x), dtype=torch.float32, device=DEVICE)


def _normalization(params: Mapping, stats: Mapping, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    scale = _tensor(params["scale"]) * torch.rsqrt(_tensor(stats["var"]) + epsilon)
    return scale, _tensor(params["bias"]) - _tensor(stats["mean"]) * scale


def _same(x: torch.Tensor, kernel, strides) -> torch.Tensor:
    """Pads as TensorFlow's 'SAME' does."""
    pads = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, strides, strict=True))):
        total = max(k - (size % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def make_i3d(variables: Mapping, x: np.ndarray, dtype: str) -> Callable[[], np.ndarray]:
    """Returns a call that encodes the clips `x`."""
    dtype, layers = getattr(torch, dtype), {}

    def prepare(params, stats):
        scale, shift = _normalization(params["bn"], stats["bn"], 1e-3)
        kernel = (_tensor(params["kernel"]) * scale).permute(4, 3, 0, 1, 2)
        return kernel.to(dtype, memory_format=torch.channels_last_3d), shift.to(dtype)

    for name in i3d.ENDPOINTS:
        params, stats = variables["params"].get(name, {}), variables["batch_stats"].get(name, {})
        if name.startswith("Mixed"):
            layers[name] = {unit: prepare(params[unit], stats[unit]) for unit in params}
        elif params:
            layers[name] = prepare(params, stats)

    def unit(x, weights, strides=(1, 1, 1)):
        kernel, shift = weights
        size = kernel.shape[2:]
        if strides == (1, 1, 1):  # PyTorch's own padding is equal here, and faster
            return F.relu_(F.conv3d(x, kernel, shift, padding=[k // 2 for k in size]))
        return F.relu_(F.conv3d(_same(x, size, strides), kernel, shift, strides))

    def pool(x, kernel, strides):
        return F.max_pool3d(_same(x, kernel, strides), kernel, strides)

    def mixed(x, units):
        pairs = [unit(unit(x, units[f"b{i}a"]), units[f"b{i}b"]) for i in (1, 2)]
        return torch.cat([unit(x, units["b0"]), *pairs, unit(pool(x, (3, 3, 3), (1, 1, 1)), units["b3b"])], dim=1)

    clips = _tensor(x).permute(0, 4, 1, 2, 3).to(dtype, memory_format=torch.channels_last_3d)

    @torch.inference_mode()
    def run():
        y = clips
        for name, (kernel, strides, *_) in i3d.LAYERS.items():
            if name.startswith("Mixed"):
                y = mixed(y, layers[name])
            elif name in layers:
                y = unit(y, layers[name], strides)
            else:
                y = pool(y, kernel, strides)
        y = y.float().mean((3, 4))
        return ((y[:, :, :-1] + y[:, :, 1:]) / 2)[:, :, 0].cpu().numpy()

    return run


def make_agcn(variables: Mapping, x: np.ndarray, dtype: str) -> Callable[[], np.ndarray]:
    """Returns a call that encodes the skeletons `x`."""
    dtype, params, stats = getattr(torch, dtype), variables["params"], variables["batch_stats"]
    fixed = _tensor(agcn.adjacency())

    def convolution(of, stat):
        scale, shift = _normalization(of["bn"], stat["bn"], 1e-5)
        kernel = (_tensor(of["kernel"]) * scale).permute(3, 2, 0, 1)
        return kernel.to(dtype), (_tensor(of["bias"]) * scale + shift).to(dtype)

    def dense(of):
        return _tensor(of["kernel"]).T[:, :, None, None].to(dtype), _tensor(of["bias"]).to(dtype)

    blocks = []
    for name in agcn.ENDPOINTS:
        block, stat, graph = params[name], stats[name], params[name]["graph"]
        made = {"down": convolution(graph["down"], stat["graph"]["down"]) if "down" in graph else None}
        made |= {key: convolution(block[key], stat[key]) if key in block else None for key in ("frames", "residual")}
        made["parts"] = [[dense(graph[f"{part}_{i}"]) for part in ("a", "b", "out")] for i in range(3)]
        made["links"] = fixed + _tensor(graph["links"])
        blocks.append({**made, "bn": _normalization(graph["bn"], stat["graph"]["bn"], 1e-5)})
    scale, shift = _normalization(params["data_bn"], stats["data_bn"], 1e-5)
    skeletons = _tensor(x)

    @torch.inference_mode()
    def run():
        batch, frames, persons = skeletons.shape[:3]
        y = skeletons.reshape(batch, frames, -1) * scale + shift
        y = y.reshape(batch, frames, persons, 25, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, frames, 25).to(dtype)
        for i, block in enumerate(blocks):
            total = 0
            for (a, b, out), links in zip(block["parts"], block["links"], strict=True):
                one, other = F.conv2d(y, *a), F.conv2d(y, *b)
                similar = torch.einsum("nctv,nctw->nvw", one, other).float() / (one.shape[1] * one.shape[2])
                mixed = torch.einsum("nctv,nvw->nctw", y, (similar.softmax(1) + links).to(dtype))
                total = total + F.conv2d(mixed, *out)
            bn_scale, bn_shift = (value[:, None, None].to(dtype) for value in block["bn"])
            total = F.relu(total * bn_scale + bn_shift + (F.conv2d(y, *block["down"]) if block["down"] else y))
            stride = (agcn.BLOCKS[i][1], 1)
            z = F.conv2d(total, *block["frames"], stride, (4, 0))
            if block["residual"]:
                z = z + F.conv2d(y, *block["residual"], stride)
            elif i:
                z = z + y
            y = F.relu(z)
        return y.float().mean((2, 3)).reshape(batch, persons, -1).mean(1).cpu().numpy()

    return run


PEERS = {"i3d": make_i3d, "agcn": make_agcn}
