"""SS-TCN, the default temporal filter, and MS-TCN, its stages: residual layers of dilated convolution."""

from typing import Any

import flax.linen as nn
import jax

from kd_jax.models import cpu_kernels
from kd_jax.models.layers import bias_init, kernel_init
from kd_jax.models.residual import ResidualLayer, ResidualStack


class DilatedLayer(ResidualLayer):
    """Residual layer that mixes the snippets by a convolution with three taps."""

    def mix(self, h: jax.Array) -> jax.Array:
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init(3 * self.hidden)}
        return nn.Conv(self.hidden, (3,), kernel_dilation=self.dilation, dtype=self.dtype, name="dilated", **init)(h)


class SSTCN(ResidualStack):
    """Single-stage temporal convolutional network without normalisation; attributes as in `ResidualStack`.

    `h = conv1×1(x)`, then for i = 0 … num_layers − 1: `u = relu(conv3(h, dilation 2^i))`,
    `h = h + dropout(conv1×1(u))`. The padding is cleared after every layer.

    References: Stage 1 of MS-TCN (Farha and Gall, CVPR 2019) [code]. The public code does not mask the first
      1×1 convolution, so its bias leaks from the padding into the last valid snippets of a short video; here it is
      masked.
    """

    layer = DilatedLayer
    mix_on_cpu = staticmethod(cpu_kernels.mix_by_convolution)


class MSTCN(SSTCN):
    """One stage of MS-TCN: SS-TCN with ten layers. The detector stacks four stages, see `FILTERS`.

    References: Farha and Gall, MS-TCN, CVPR 2019, where a stage has 10 layers of 64 channels [code]. As
      there, the task loss is summed over the stages; its smoothing term is left out.
    """

    num_layers: int = 10
