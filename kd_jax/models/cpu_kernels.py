"""Formulations and gradients for XLA's CPU backend, which is slow with the plain ones.

    recur = cpu_kernels.by_platform(plain_lstm, cpu_kernels.run_lstm)   # the plain one is compiled for GPU and TPU

`by_platform` is the only switch; `plain_only` and `one_platform` fix its choice while a program is traced. Every
function here computes what a plain formulation in this package computes, up to rounding and the random bits of
dropout, and the tests compare the two. Each saves at least 10 % of the time, or a quarter of the memory, of a
training step on a CPU of a filter that uses it (benchmarks/README.md).

References:
  Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, §4.1 (`convolve`).
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp

from kd_jax.masking import expand, mask_out

_traced = contextvars.ContextVar("traced", default="both")


@contextlib.contextmanager
def plain_only() -> Iterator[None]:
    """Programs that are traced within the block have the plain formulations for all platforms.

    These allow lengths that are not known when a program is made.
    """
    token = _traced.set("plain")
    try:
        yield
    finally:
        _traced.reset(token)


@contextlib.contextmanager
def one_platform() -> Iterator[None]:
    """Programs that are traced within the block, or in a function that it decorates, are for the default backend.

    Tracing takes less time, because only the formulation for this backend is traced and differentiated.
    """
    token = _traced.set("on_cpu" if jax.default_backend() == "cpu" else "plain")
    try:
        yield
    finally:
        _traced.reset(token)


def by_platform(plain: Callable, on_cpu: Callable) -> Callable:
    """A function that computes `on_cpu` in a program compiled for a CPU, and `plain` in any other program.

    JAX traces both and lowers only the one that the platform needs, also when a CPU host exports for a GPU or TPU.
    Within `plain_only` and `one_platform` it traces one.
    """
    on_cpu = jax.named_scope("on_cpu")(on_cpu)
    match _traced.get():
        case "plain":
            return plain
        case "on_cpu":
            return on_cpu
    return functools.partial(jax.lax.platform_dependent, cpu=on_cpu, default=plain)


# Dropout.


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Apply dropout with 8 random bits for an element instead of 32."""
    kept, scale = _kept(key, x.shape, rate)
    return jnp.where(kept, x * scale, jnp.zeros((), x.dtype))


def _kept(key: jax.Array, shape: tuple[int, ...], rate: float) -> tuple[jax.Array, float]:
    """Draw which elements are kept, bool, and return the factor for them.

    Four elements share a 32-bit word, because the generator took a large part of a CPU step. The rate is rounded to a
    multiple of 1/256, at most 255/256; the factor is the inverse of the rounded probability of keeping.
    """
    threshold = min(round(rate * 256), 255)
    words = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // 4)), jnp.uint32)
    random_bytes = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*shape[:-1], -1)[..., : shape[-1]]
    return random_bytes >= threshold, 256 / (256 - threshold)


# The residual layers of SS-TCN, MS-TCN and PDAN.


def residual_layers(
    params: Mapping, h: jax.Array, mask: jax.Array, key: jax.Array | None, *, mix: Callable, rate: float
) -> jax.Array:
    """Apply all layers of a `ResidualStack` in one loop.

    The layers compile once, and each passes a finished array to the next. In an unrolled program XLA fuses the
    backward chain of residual additions into every kernel's gradient and computes it again for each of them.

    Args:
      params: of all layers, `[num_layers, …]`.
      h, mask: `[B, T, H]` and `[B, T]` bool.
      key, rate: of dropout; key None without dropout.
      mix: `mix_by_convolution` or `mix_by_attention`.
    """
    num_layers = len(params["pointwise"]["bias"])
    most = 2 ** (num_layers - 1)

    def layer(h, inputs):
        params, dilation, key = inputs
        kernel, bias = (params["pointwise"][name].astype(h.dtype) for name in ("kernel", "bias"))
        kept, scale = (None, 1.0) if key is None else _kept(key, h.shape, rate)
        # The mask depends on the layer, so that XLA does not move its broadcast to [B, T, H] out of the loop.
        valid = mask & (dilation > 0)
        return _add_branch(h, mix(params, h, dilation, most), kernel, bias, kept, valid, scale), None

    keys = None if key is None else jax.random.split(key, num_layers)
    return jax.lax.scan(layer, h, (params, 2 ** jnp.arange(num_layers), keys))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _add_branch(h, mixed, kernel, bias, kept, mask, scale):
    """`h + dropout(relu(mixed) @ kernel + bias)`, masked. The backward pass reads relu(mixed) and `kept` alone."""
    return _add_branch_forward(h, mixed, kernel, bias, kept, mask, scale)[0]


def _add_branch_forward(h, mixed, kernel, bias, kept, mask, scale):
    zero = jnp.zeros((), h.dtype)
    rows = jnp.maximum(mixed, zero).reshape(-1, mixed.shape[-1])
    branch = (rows @ kernel + bias[None]).reshape(h.shape)
    branch = branch if kept is None else jnp.where(kept, branch * scale, zero)
    return jnp.where(expand(mask, 3), h + branch, zero), (rows, kernel, kept, mask)


def _add_branch_backward(scale, saved, gradient):
    rows, kernel, kept, mask = saved
    gradient = mask_out(gradient, mask)
    columns = gradient if kept is None else mask_out(gradient * scale, kept)
    columns = columns.reshape(-1, columns.shape[-1])
    of_mixed = mask_out(columns @ kernel.T, rows > 0).reshape(gradient.shape[:-1] + rows.shape[-1:])
    return gradient, of_mixed, _contract_rows(rows, columns), jnp.sum(columns, axis=0), None, None


_add_branch.defvjp(_add_branch_forward, _add_branch_backward)


def mix_by_convolution(params: Mapping, h: jax.Array, dilation: jax.Array, most: int) -> jax.Array:
    """The dilated convolution of SS-TCN; `dilation` and its largest value `most` are powers of two."""
    kernel, bias = params["dilated"]["kernel"], params["dilated"]["bias"].astype(h.dtype)
    return convolve(h, kernel, dilation, most) + bias[None, None]


def mix_by_attention(params: Mapping, h: jax.Array, dilation: jax.Array, most: int) -> jax.Array:
    """The dilated attention of PDAN; `dilation` is at most `most`."""
    params = params["attention"]
    kernels = (params[name]["kernel"].astype(h.dtype) for name in ("query", "key", "value"))
    return attend(*(_multiply_rows(h, k) for k in kernels), params["relative"].astype(h.dtype), dilation, most)


def convolve(x: jax.Array, kernel: jax.Array, dilation: jax.Array | int, most: int) -> jax.Array:
    """Convolution with the taps t − d, t, t + d and zero padding, `[B, T, D] -> [B, T, H]`.

    The outputs at t and t + d are computed together, from four matrix products of half the length instead of six:
    Winograd's minimal filtering F(2, 3). It is exact up to rounding. XLA's own convolution runs on one thread inside a
    loop on a CPU. The kernel is `[3, D, H]`; d (`dilation`, may be traced) and the largest d (`most`) are powers of 2.
    """
    length = x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, -(-length // (2 * most)) * 2 * most - length), (0, 0)))
    # Only x is kept for the backward pass, which computes the pairs and their sums again.
    return jax.checkpoint(functools.partial(_convolve, most=most), prevent_cse=False)(x, kernel, dilation)[:, :length]


def _convolve(x, kernel, dilation, most):
    first, second = split(x, dilation)
    before, after = shift(second, dilation, most), shift(first, -dilation, most)  # t − d and t + 2d
    sums = before - second, first + second, second - first, after - first
    outer, middle = (kernel[0] + kernel[2]) / 2, kernel[1] / 2
    kernels = kernel[0], outer + middle, outer - middle, kernel[2]
    zero, one, two, three = (_multiply_rows(s, k.astype(x.dtype)) for s, k in zip(sums, kernels, strict=True))
    return merge(zero + one + two, one - two + three, dilation)


def split(x: jax.Array, dilation: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The first and the second snippet of every pair t, t + `dilation`, `[B, T, H]` → twice `[B, T/2, H]`."""
    pair = jnp.arange(x.shape[1] // 2)
    first = _divide(pair, dilation) * (2 * dilation) + _remainder(pair, dilation)
    return _gather(x, first), _gather(x, first + dilation)


def merge(first: jax.Array, second: jax.Array, dilation: jax.Array | int) -> jax.Array:
    """The inverse of `split`."""
    pairs = first.shape[1]
    snippet = jnp.arange(2 * pairs)
    pair = _divide(snippet, 2 * dilation) * dilation + _remainder(snippet, dilation)
    return _gather(jnp.concatenate([first, second], axis=1), pair + _divide(snippet, dilation) % 2 * pairs)


def _divide(n, divisor):
    """`n // divisor` of numbers that are not negative, without the operations that negative ones need."""
    return jax.lax.div(n, jnp.full_like(n, divisor))


def _remainder(n, divisor):
    """`n % divisor` of numbers that are not negative."""
    return jax.lax.rem(n, jnp.full_like(n, divisor))


def _gather(x, order):
    # Every video has its own indices, because XLA transposes the result when all videos share them.
    indices = jnp.broadcast_to(order[None, :, None], (x.shape[0], order.shape[0], 1))
    return jnp.take_along_axis(x, indices, axis=1, mode="clip")


def shift(x: jax.Array, steps: jax.Array | int, most: int) -> jax.Array:
    """Move `x` `[B, T, H]` by `steps` snippets, later if positive, with zeros moving in; |steps| ≤ `most`."""
    padded = jnp.pad(x, ((0, 0), (most, most), (0, 0)))
    return jax.lax.dynamic_slice_in_dim(padded, most - steps, x.shape[1], axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(query, key, value, relative, dilation, most):
    """The attention of `DilatedAttention` of query, key and value `[B, T, H]`, r = `relative` `[3, H]`; d ≤ `most`.

    Only the arguments are kept for the backward pass. It shifts finished arrays over time; JAX's own gradient
    shifts that of each tap, which XLA computes again for every shift.
    """
    weights = _weights(query, _taps(key, dilation, most))
    return _mix(weights, _taps(value, dilation, most), relative)


def _taps(x, dilation, most):
    return shift(x, dilation, most), x, shift(x, -dilation, most)


def _weights(query, keys):
    scores = [query * key for key in keys]
    largest_score = functools.reduce(jnp.maximum, scores)
    weights = [jnp.exp(score - largest_score) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


def _mix(weights, values, relative):
    return sum(w * (v + r[None, None]) for w, v, r in zip(weights, values, relative, strict=True))


def _attend_forward(*arguments):
    return attend(*arguments), arguments[:-1]


def _attend_backward(most, saved, gradient):
    query, key, value, relative, dilation = saved
    keys, values = _taps(key, dilation, most), _taps(value, dilation, most)
    weights = _weights(query, keys)
    mixed = _mix(weights, values, relative)
    pulls = [weight * gradient for weight in weights]  # at the taps' values; times (value − mixed), at their scores
    taps = zip(pulls, values, relative, keys, strict=True)
    of_query = sum(p * (v + r[None, None] - mixed) * k for p, v, r, k in taps)
    # The sums for key and value are taken at the snippet of the tap. There v + r needs no shift; query and mixed do.
    *back, queries, products = [_taps(x, -dilation, most) for x in (*pulls, query, query * mixed)]
    arrived = [moved[tap] for tap, moved in enumerate(back)]
    taps = zip(arrived, relative, queries, products, strict=True)
    of_key = sum(p * ((value + r[None, None]) * q - qm) for p, r, q, qm in taps)
    return of_query, of_key, sum(arrived), jnp.stack([jnp.sum(pull, axis=(0, 1)) for pull in pulls]), None


attend.defvjp(_attend_forward, _attend_backward)


def _multiply_rows(x, kernel):
    """`[B, T, D] × [D, H] -> [B, T, H]`; XLA transposes less for the kernel's gradient than without the reshape."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(x.shape[:-1] + kernel.shape[-1:])


def _contract_rows(rows, columns):
    """`[N, D] × [N, H] -> [D, H]`, without a transposed copy in the program."""
    return jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))


# LSTM.


@jax.custom_vjp
def run_lstm(gates: jax.Array, kernel: jax.Array, mask: jax.Array) -> jax.Array:
    """`kd_jax.models.lstm.run_lstm` with a hand-written gradient.

    The backward pass keeps the gradients of the gates and computes that of the kernel from them in one product at the
    end; JAX's own gradient adds to an array of the kernel's size in every step.
    """
    return _lstm_forward(gates, kernel, mask)[0]


def _multiply(x, kernel):
    """`[2, B, n] × [2, n, m] -> [2, B, m]`, float32."""
    return jnp.einsum("dbn,dnm->dbm", x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def _lstm_forward(gates, kernel, mask):
    def step(carry, inputs):
        hidden, cell = carry
        gates, valid = inputs
        i, f, g, o = jnp.split(gates.astype(jnp.float32) + _multiply(hidden, kernel), 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        cell = mask_out(f * cell + i * g, valid)
        hidden = mask_out(o * jnp.tanh(cell), valid)
        return (hidden, cell), (hidden, cell, jnp.concatenate([i, f, g, o], axis=-1))

    start = jnp.zeros((*gates.shape[1:3], kernel.shape[1]), jnp.float32)
    _, (hidden, cells, opened) = jax.lax.scan(step, (start, start), (gates, mask))
    return hidden, (hidden, cells, opened, kernel, mask)


def _lstm_backward(saved, gradient):
    hidden, cells, opened, kernel, mask = saved
    transposed = jnp.swapaxes(kernel, 1, 2)

    def before(x):
        return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    def step(carry, inputs):
        of_hidden, of_cell = carry
        given, cell, earlier, gates, valid = inputs
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        squashed = jnp.tanh(cell)
        of_hidden = mask_out(given + of_hidden, valid)
        of_cell = mask_out(of_cell, valid) + of_hidden * o * (1 - squashed**2)
        of_i, of_f = of_cell * g * i * (1 - i), of_cell * earlier * f * (1 - f)
        of_g, of_o = of_cell * i * (1 - g**2), of_hidden * squashed * o * (1 - o)
        of_gates = jnp.concatenate([of_i, of_f, of_g, of_o], axis=-1)
        return (_multiply(of_gates, transposed), of_cell * f), of_gates

    start = jnp.zeros_like(hidden[0])
    along = (gradient, cells, before(cells), opened, mask)
    of_gates = jax.lax.scan(step, (start, start), along, reverse=True)[1]
    # Videos before snippets, so that the rows of a device's videos stay on it.
    rows, columns = (jnp.moveaxis(x, 0, 2).astype(kernel.dtype) for x in (before(hidden), of_gates))
    of_kernel = [_contract_rows(*(x[way].reshape(-1, x.shape[-1]) for x in (rows, columns))) for way in range(2)]
    return of_gates.astype(kernel.dtype), jnp.stack(of_kernel), None


run_lstm.defvjp(_lstm_forward, _lstm_backward)


# TGM.


@jax.custom_vjp
def convolve_images(images: jax.Array, kernels: jax.Array) -> jax.Array:
    """`kd_jax.models.tgm.convolve_images` as sums of shifted images, one output image after the other.

    With kernels this few and small the sums are faster than matrix products. The sums are float32.
    """
    padded, length = _pad(images, len(kernels)), images.shape[2]

    def one(weights):
        total = jnp.zeros((), jnp.float32)
        for tap, of_tap in enumerate(weights):
            for image, weight in zip(padded, of_tap, strict=True):
                total = total + weight * image[:, tap : tap + length].astype(jnp.float32)
        return total.astype(images.dtype)

    return jax.lax.map(one, jnp.moveaxis(kernels, 2, 0))


def _convolve_images_backward(saved, gradient):
    images, kernels = saved
    back = convolve_images(gradient, jnp.swapaxes(kernels[::-1], 1, 2))
    return back, correlate(images, gradient, len(kernels))


convolve_images.defvjp(lambda x, kernels: (convolve_images(x, kernels), (x, kernels)), _convolve_images_backward)


def _pad(images, taps, more=0):
    reach = taps // 2
    return jnp.pad(images, ((0, 0), (0, 0), (reach, reach + more), (0, 0)))


def correlate(images: jax.Array, gradient: jax.Array, taps: int, piece: int = 16) -> jax.Array:
    """The gradient of the kernels, `[taps, C_in, C_out]`: `piece` snippets at a time, which stay in a core's cache."""
    length = images.shape[2]
    count = -(-length // piece)
    more = count * piece - length
    images, gradient = _pad(images, taps, more), jnp.pad(gradient, ((0, 0), (0, 0), (0, more), (0, 0)))

    def rows(x):
        return x.reshape(len(x), -1)

    def add(total, start):
        window = jax.lax.dynamic_slice_in_dim(images, start, piece + taps - 1, axis=2)
        part = rows(jax.lax.dynamic_slice_in_dim(gradient, start, piece, axis=2))
        moved = [rows(window[:, :, tap : tap + piece]) for tap in range(taps)]
        products = [jnp.einsum("in,on->io", x, part, preferred_element_type=jnp.float32) for x in moved]
        return total + jnp.stack(products), None

    start = jnp.zeros((taps, len(images), len(gradient)), jnp.float32)
    return jax.lax.scan(add, start, piece * jnp.arange(count))[0]
