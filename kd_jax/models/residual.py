"""The stack of residual layers that SS-TCN, MS-TCN and PDAN share; they differ in how a layer mixes the snippets."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.masking import mask_out
from kd_jax.models import cpu_kernels
from kd_jax.models.layers import pointwise


class ResidualLayer(nn.Module):
    """`h + dropout(conv1×1(relu(mix(h))))`, 0 in the padding.

    Attributes are those of `TemporalFilter`, and `dilation`: d of `mix`.
    """

    hidden: int
    dilation: int
    dropout: float
    dtype: jnp.dtype

    def mix(self, h: jax.Array) -> jax.Array:
        """Mix the snippets t − d, t and t + d, `[B, T, H] -> [B, T, H]`."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        branch = pointwise(nn.relu(self.mix(h)), self.hidden, dtype=self.dtype, name="pointwise")
        branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
        return mask_out(h + branch, mask)


class ResidualStack(nn.Module):
    """A 1×1 convolution, then the residual layers i = 0, 1, … with dilation 2^i.

    Attributes, next to those of `TemporalFilter`:
      layer: the class of a layer.
      mix_on_cpu: what `layer.mix` does, as a function of `cpu_kernels`.
    """

    hidden: int = 256
    num_layers: int = 5
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    layer: ClassVar[type[ResidualLayer]] = ResidualLayer
    mix_on_cpu: ClassVar[Callable]

    @property
    def receptive_field(self) -> int:
        """Number of snippets that one output sees: 63 for 5 layers."""
        return 2 ** (self.num_layers + 1) - 1

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Filter `x` `[B, T, D]` under `mask` `[B, T]` to features `[B, T, H]`, 0 in the padding.

        Raises ValueError for more than 24 layers, which see more snippets than any video has.
        """
        if self.num_layers > 24:
            raise ValueError(f"{type(self).__name__}: num_layers must be at most 24, got {self.num_layers}.")
        x = mask_out(x.astype(self.dtype), mask)
        h = mask_out(pointwise(x, self.hidden, dtype=self.dtype, name="input"), mask)
        key = self.make_rng("dropout") if train and self.dropout else None

        def plain(params, h, mask, key):
            for i in range(self.num_layers):
                layer = self._layer(i, parent=None)
                rngs = None if key is None else {"dropout": jax.random.fold_in(key, i)}
                params_i = jax.tree.map(lambda p, i=i: p[i], params)
                h = layer.apply({"params": params_i}, h, mask, train=key is not None, rngs=rngs)
            return h

        def on_cpu(params, h, mask, key):
            return cpu_kernels.residual_layers(params, h, mask, key, mix=self.mix_on_cpu, rate=self.dropout)

        return cpu_kernels.by_platform(plain, on_cpu)(self._stacked_params(h, mask), h, mask, key)

    def _layer(self, i, **options):
        return self.layer(self.hidden, 2**i, self.dropout, self.dtype, **options)

    def _stacked_params(self, h, mask):
        """The parameters of all layers, each with a leading axis of num_layers, under the name 'layers'."""
        if self.is_initializing():
            axes: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            stack = nn.scan(lambda layer, h, _: (layer(h, mask), None), length=self.num_layers, **axes)
            stack(self._layer(0, name="layers"), h, None)
        return self.variables["params"]["layers"]
