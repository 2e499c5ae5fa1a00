"""VideoPrism: a vision transformer over the patches of each frame, then one over time, an encoder of RGB.

    encoder = VideoPrism()
    tokens = encoder.apply(variables, clips)  # clips [B, 16, 288, 288, 3], from 0 to 1 -> [B, 16 · 256, 768]
    encoder.apply(variables, clips, method="embed")  # [B, 768], the mean over the tokens

The network is that of Zhao et al., "VideoPrism: A Foundational Visual Encoder for Video Understanding", ICML 2024: the
factorised encoder of Arnab et al., "ViViT", ICCV 2021, in which every patch keeps its own sequence over time. The
details are those of the public code: normalisation before each part, exact GELU, attention logits capped at ±50.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

LOGIT_CAP = 50.0  # attention logits x become 50 tanh(x / 50)


class _Norm(nn.LayerNorm):
    """Layer normalisation over channels, with the variance computed from differences to the mean."""

    epsilon: float = 1e-6
    use_fast_variance: bool = False


class _Layer(nn.Module):
    """Self-attention, then two dense layers, each after a normalisation and added to its input, `[N, tokens, C]`."""

    num_heads: int
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, _):
        channels = x.shape[-1]
        size = channels // self.num_heads
        y = _Norm(dtype=self.dtype, name="attention_norm")(x)
        heads = (self.num_heads, size)
        query, key, value = (nn.DenseGeneral(heads, dtype=self.dtype, name=n)(y) for n in ("query", "key", "value"))
        logits = jnp.einsum("nqhc,nkhc->nhqk", query * size**-0.5, key, preferred_element_type=jnp.float32)
        shares = nn.softmax(LOGIT_CAP * jnp.tanh(logits / LOGIT_CAP)).astype(self.dtype)
        mixed = jnp.einsum("nhqk,nkhc->nqhc", shares, value)
        x = x + nn.DenseGeneral(channels, axis=(-2, -1), dtype=self.dtype, name="out")(mixed)
        y = _Norm(dtype=self.dtype, name="dense_norm")(x)
        y = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="dense_1")(y), approximate=False)
        return x + nn.Dense(channels, dtype=self.dtype, name="dense_2")(y), None


class VideoPrism(nn.Module):
    """Computes a token for each patch of each frame. The defaults are those of the base model."""

    channels: int = 768  # C, and the number of features
    num_heads: int = 12
    hidden: int = 3072  # channels between the two dense layers
    spatial_layers: int = 12
    temporal_layers: int = 4
    patch: int = 18  # side of a patch, in pixels
    grid: int = 16  # patches per side of the frames that it was trained on
    frames: int = 16  # per clip that it was trained on
    dtype: jnp.dtype = jnp.float32  # precision of the computation; parameters and tokens are float32

    @nn.compact
    def __call__(self, clips: jax.Array) -> jax.Array:
        """Encodes clips; raises ValueError for other shapes.

        Args:
          clips: `[B, F, height, width, 3]` from 0 to 1. If the number of frames or patches is another than in training,
            the positions are interpolated.

        Returns:
          Tokens `[B, F · patches, C]` float32, frame by frame, each from top left to bottom right.
        """
        if clips.ndim != 5 or clips.shape[-1] != 3 or clips.shape[2] % self.patch or clips.shape[3] % self.patch:
            wanted = f"[B, F, height, width, 3] with sides that are multiples of {self.patch}"
            raise ValueError(f"clips must be {wanted}, got {list(clips.shape)}")
        batch, frames, rows, columns = *clips.shape[:2], clips.shape[2] // self.patch, clips.shape[3] // self.patch
        count, dtype = rows * columns, self.dtype

        x = clips.astype(dtype).reshape(batch * frames, rows, self.patch, columns, self.patch, 3)
        x = x.swapaxes(2, 3).reshape(batch * frames, count, -1)
        x = nn.Dense(self.channels, dtype=dtype, name="patches")(x)
        x = x + self._positions("spatial_positions", (self.grid, self.grid), (rows, columns))
        x = _Norm(dtype=dtype, name="spatial_norm")(self._stack("spatial", self.spatial_layers, x))

        x = x.reshape(batch, frames, count, -1).swapaxes(1, 2).reshape(batch * count, frames, -1)
        x = x + self._positions("temporal_positions", (self.frames,), (frames,))
        x = _Norm(dtype=dtype, name="temporal_norm")(self._stack("temporal", self.temporal_layers, x))
        x = x.reshape(batch, count, frames, -1).swapaxes(1, 2)
        return x.reshape(batch, frames * count, -1).astype(jnp.float32)

    def embed(self, clips: jax.Array) -> jax.Array:
        """Returns one row of features per clip, `[B, C]`: the mean over its tokens."""
        return self(clips).mean(1)

    def _stack(self, name: str, length: int, x: jax.Array) -> jax.Array:
        """Applies layers in sequence; their parameters are stacked along a first axis."""
        stack = nn.scan(_Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=length)
        return stack(self.num_heads, self.hidden, self.dtype, name=name)(x, None)[0]

    def _positions(self, name: str, trained: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
        """Returns the embedding of each position, `[1, positions, C]`, interpolated from the `trained` shape."""
        positions = self.param(name, nn.initializers.normal(0.02), (*trained, self.channels))
        if shape != trained:
            positions = jax.image.resize(positions, (*shape, self.channels), "bilinear")
        return positions.reshape(1, -1, self.channels).astype(self.dtype)
