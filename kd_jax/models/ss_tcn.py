"""SS-TCN, the default temporal filter, and MS-TCN, stages of it: residual layers of dilated convolution."""

import functools
from collections.abc import Callable

import jax

from kd_jax.models.dilated_convolution import DilatedConv
from kd_jax.models.residual import ResidualStack


class SSTCN(ResidualStack):
    """Single-stage temporal convolutional network, no normalisation; attributes as in `ResidualStack`.

    `h = conv1×1(x)`, then for i = 0 … num_layers − 1: `u = relu(conv3(h, dilation 2^i))`,
    `h = h + dropout(conv1×1(u))`, masked after every step, so that padding says nothing.

    References:
      Stage 1 of MS-TCN (Farha and Gall, CVPR 2019), METHOD §3 [code]. The public code leaves the first 1×1 unmasked, so
      its bias leaks from the padding into the last valid snippets of a short video; here it is masked too.
    """

    @property
    def mix(self) -> Callable[[], DilatedConv]:
        return functools.partial(DilatedConv, self.hidden, 2 ** (self.num_layers - 1), self.dtype, name="dilated")


class MSTCN(SSTCN):
    """One stage of MS-TCN; the detector stacks four, each of which reads the class probabilities of the one before.

    References:
      Farha and Gall, MS-TCN, CVPR 2019, whose stages have 10 layers of 64 channels; METHOD §3 [code]. The task loss is
      summed over the stages, as there; its smoothing term is left out.
    """

    num_layers: int = 10
    stages = 4
    between = staticmethod(jax.nn.softmax)
