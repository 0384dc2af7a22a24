"""A convolution whose kernels are stored as what modes tell of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.modes import Modes
from tenflex.nn.multilinear import ModeProduct
from tenflex.nn.window import Window

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ModeConv(nn.Module):
    r"""A convolution with the kernels :math:`(P_1 \otimes P_2 \otimes \cdots) V'`, of which `weight` holds :math:`V'`.

    The modes are those of a patch, `(channels, *kernel)`. The kernels are always multiplied out: what runs is a usual
    convolution. In eval mode they are kept for passes without gradients, for as long as the weights stay what they are.

    Args:
        in_channels: The channels of the input.
        out_channels: The number of kernels.
        window: Where the patches lie; both sides are padded with `before` if that is all, and not at all otherwise.
        modes: The directions along each axis of a patch.
        bias: Whether there is one.

    Raises:
        ValueError: if the modes are not for such patches.
    """

    def __init__(self, in_channels: int, out_channels: int, window: Window, modes: Modes, bias: bool) -> None:
        super().__init__()
        patch = (in_channels, *window.kernel)
        self.in_channels, self.out_channels, self.window = in_channels, out_channels, window
        self.modes = ModeProduct(modes.of(patch))
        self.weight = nn.Parameter(torch.empty(out_channels, modes.core_size(patch)))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as PyTorch does for convolutions
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight.shape[1])
            nn.init.uniform_(self.bias, -bound, bound)
        self.register_load_state_dict_post_hook(generate_)

    def kernels(self) -> Float[Tensor, "q channels *kernel"]:
        """Those of an ordinary convolution."""
        product = self.modes.expanded(self.weight)
        product = self.modes.multilinear.widen(self.weight) if product is None else product
        return product.view(self.out_channels, self.in_channels, *self.window.kernel)

    def forward(self, x: Float[Tensor, "*batch channels *size"]) -> Float[Tensor, "*batch q *places"]:
        """The outputs at every patch."""
        window = self.window
        padding = window.before if window.symmetric else 0
        return CONVOLVE[window.dims](x, self.kernels(), self.bias, window.stride, padding, window.dilation)

    def train(self, mode: bool = True) -> ModeConv:
        """As any module; for use the kernels are multiplied out."""
        super().train(mode)
        if not mode:
            self.modes.expand_(self.weight)
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ModeConv:
        super()._apply(fn, recurse)
        if not self.training:
            self.modes.expand_(self.weight)  # in another dtype or on another device
        return self

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        window = self.window
        return f"{self.in_channels}, {self.out_channels}, kernel_size={window.kernel}, stride={window.stride}"


def generate_(layer: nn.Module, _: Any) -> None:
    """Bring the directions that are in no file to the dtype and the device of the weights that were loaded."""
    if isinstance(layer, ModeConv):
        layer.modes.generate_(layer.weight)
