"""The stack of residual layers that SS-TCN, MS-TCN and PDAN share; only what mixes the snippets differs."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import expand, mask_out
from kd_jax.models.layers import Affine, Dropout, contract_rows, pointwise, sum_rows


class ResidualLayer(nn.Module):
    """`h + dropout(conv1×1(relu(mix(h, dilation))))`, masked; the attributes are those of ResidualStack."""

    mix: Callable[[], nn.Module]
    hidden: int
    dropout: float
    dtype: jnp.dtype
    train: bool

    @nn.compact
    def __call__(self, h: jax.Array, dilation: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        mixed = self.mix()(h, dilation)
        kernel, bias = Affine(self.hidden, name="pointwise")(mixed.shape[-1])
        dropout = Dropout(self.dropout)
        kept = dropout.kept(h.shape, deterministic=not self.train)
        # What does not depend on the layer JAX lifts out of the loop, as arrays of [B, T, H] that every layer reads.
        mask = mask & (dilation > 0)
        return _add(h, mixed, kernel.astype(self.dtype), bias.astype(self.dtype), kept, mask, dropout.scale), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _add(h, mixed, kernel, bias, kept, mask, scale):
    """`h + dropout(relu(mixed) @ kernel + bias)`, masked. The backward pass reads relu(mixed) and `kept`, no more."""
    return _add_forward(h, mixed, kernel, bias, kept, mask, scale)[0]


def _add_forward(h, mixed, kernel, bias, kept, mask, scale):
    zero = jnp.zeros((), h.dtype)
    rows = jnp.maximum(mixed, zero).reshape(-1, mixed.shape[-1])
    branch = (rows @ kernel + bias[None]).reshape(h.shape)
    branch = branch if kept is None else jnp.where(kept, branch * scale, zero)
    return jnp.where(expand(mask, 3), h + branch, zero), (rows, kernel, kept, mask)


def _add_backward(scale, saved, gradient):
    rows, kernel, kept, mask = saved
    gradient = mask_out(gradient, mask)
    columns = gradient if kept is None else mask_out(gradient * scale, kept)
    columns = columns.reshape(-1, columns.shape[-1])
    of_mixed = mask_out(columns @ kernel.T, rows > 0).reshape(*gradient.shape[:-1], -1)
    return gradient, of_mixed, contract_rows(rows, columns), sum_rows(columns), None, None


_add.defvjp(_add_forward, _add_backward)


class ResidualStack(nn.Module):
    """A 1×1 convolution, then residual layers i = 0, 1, … that mix the snippets t − 2^i, t, t + 2^i.

    The layers are one `scan` over stacked parameters, `layers/…` with a leading axis of num_layers: they compile once,
    and each hands a finished array to the next. Unrolled, XLA's CPU backend fuses the whole backward chain of additions
    into every weight gradient and computes it again for each of them, half of a distillation step.

    Attributes:
      hidden: H, channels of every layer.
      num_layers: residual layers; the receptive field is `receptive_field` snippets.
      dropout: rate inside the residual branch.
      dtype: of the computation; parameters stay float32.
    """

    hidden: int = 256
    num_layers: int = 5
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @property
    def receptive_field(self) -> int:
        """Snippets that one output sees: 63 for 5 layers."""
        return 2 ** (self.num_layers + 1) - 1

    @property
    def mix(self) -> Callable[[], nn.Module]:
        """Makes what a layer does over time: a module `[B, T, H], dilation -> [B, T, H]`."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to features `[B, T, H]`, 0 in the padding."""
        x = mask_out(x.astype(self.dtype), mask)
        h = mask_out(pointwise(x, self.hidden, dtype=self.dtype, name="input"), mask)
        layers = nn.scan(
            ResidualLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.num_layers,
        )(self.mix, self.hidden, self.dropout, self.dtype, train, name="layers")
        return layers(h, 2 ** jnp.arange(self.num_layers), mask)[0]
