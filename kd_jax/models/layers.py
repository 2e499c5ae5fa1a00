"""Layers that temporal filters share: 1×1 convolution, dropout with cheap random bits."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# PyTorch's default, U(±1/√fan_in) for kernels and biases, because the published filters were trained with it; flax's
# lecun_normal has √3 times its standard deviation and a zero bias.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in: int) -> nn.initializers.Initializer:
    """U(±1/√fan_in), PyTorch's default for the bias of a layer with `fan_in` inputs."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1, 1) * fan_in**-0.5

    return init


def pointwise(x: jax.Array, features: int, *, name: str, dtype: jnp.dtype = jnp.float32, **options) -> jax.Array:
    """1×1 convolution over time, `[B, T, D] -> [B, T, features]`, a submodule `name` of the calling module.

    `options` are those of `Affine`.
    """
    kernel, bias = Affine(features, name=name, **options)(x.shape[-1])
    y = product(x.astype(dtype), kernel.astype(dtype))
    return y if bias is None else add_bias(y, bias.astype(dtype))


class Affine(nn.Module):
    """Parameters of a linear map, float32: `kernel` `[D, features]` and, unless it has none, `bias` `[features]`."""

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array | None]:
        kernel = self.param("kernel", self.kernel_init, (width, self.features), jnp.float32)
        bias = self.param("bias", bias_init(width), (self.features,), jnp.float32) if self.use_bias else None
        return kernel, bias


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, `[B, T, D] × [D, H] -> [B, T, H]`.

    The gradient of the kernel is a product of the two arrays as they lie in memory; JAX's own order of the operands
    makes XLA on CPU transpose one of them first.
    """
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(saved, gradient):
    x, kernel = saved
    rows, columns = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return (columns @ kernel.T).reshape(x.shape), contract_rows(rows, columns)


product.defvjp(_product_forward, _product_backward)


def contract_rows(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`[N, D] × [N, H] -> [D, H]`, of the two arrays as they lie in memory."""
    return jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x` `[B, T, H]` + `bias` `[H]`."""
    return x + bias[None, None]


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), None), lambda _, gradient: (gradient, sum_rows(gradient)))


def sum_rows(x: jax.Array) -> jax.Array:
    """The sum over all axes but the last, as a product with ones: XLA on CPU sums two axes 7 times slower."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.matmul(jnp.ones(len(rows), x.dtype), rows, precision=jax.lax.Precision.HIGHEST)


class Dropout(nn.Module):
    """Dropout that spends 8 random bits on an element instead of 32; rng stream 'dropout'.

    Four elements share one 32-bit word: the generator was a large part of a CPU step. The rate is therefore rounded to
    a multiple of 1/256, and what is kept is scaled by the exact inverse of the rounded keep probability.

    Attributes:
      rate: probability of dropping, in [0, 1).
    """

    rate: float

    @property
    def threshold(self) -> int:
        """Of 256; 0 where nothing is ever dropped."""
        if not 0 <= self.rate < 1:
            raise ValueError(f"Dropout: rate must be in [0, 1), got {self.rate}.")
        return min(round(self.rate * 256), 255)

    @property
    def scale(self) -> float:
        """What is kept is multiplied by it; 1 where nothing is ever dropped."""
        return 256 / (256 - self.threshold)

    def kept(self, shape: tuple[int, ...], *, deterministic: bool) -> jax.Array | None:
        """Draws which elements of `shape` are kept, bool; None where all are."""
        if self.threshold == 0 or deterministic:
            return None
        words = jax.random.bits(self.make_rng("dropout"), (*shape[:-1], -(-shape[-1] // 4)), jnp.uint32)
        eighths = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*shape[:-1], -1)[..., : shape[-1]]
        return eighths >= self.threshold

    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        kept = self.kept(x.shape, deterministic=deterministic)
        return x if kept is None else jnp.where(kept, x * self.scale, jnp.zeros((), x.dtype))
