"""Two convolutions with the activation function of the original network between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_whole
from tenflex.nn.convolution import CONVOLUTIONS
from tenflex.nn.elementwise import Elementwise
from tenflex.nn.feed_forward import Nodes
from tenflex.nn.window import PerAxis

SETTINGS = {"in_channels", "out_channels", "nodes", "function", "first", "second"}
"""What is saved of a layer besides its numbers."""


@dataclass(frozen=True)
class Sliding(PerAxis):
    """How a kernel slides over an image or signal, along each axis.

    Args:
        kernel_size: Its size.
        stride: How far apart two of its places are.
        padding: The zeros on both sides.
        dilation: How far apart the numbers are that it sees.

    Raises:
        ValueError: if a size is not a whole number in its range, or they are not all of one or two axes.
    """

    what: ClassVar[str] = "sliding kernel"

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __post_init__(self) -> None:
        for one in fields(self):
            sizes = getattr(self, one.name)
            if not isinstance(sizes, tuple) or len(sizes) != len(self.kernel_size) or len(sizes) not in (1, 2):
                raise ValueError(f"expected one number of {one.name} for each of one or two axes, got {sizes!r}")
            for size in sizes:
                require_whole(f"each number of {one.name}", size, at_least=0 if one.name == "padding" else 1)

    @staticmethod
    def of(module: nn.Module) -> Sliding | None:
        """That of a plain convolution; None if it is grouped, or its borders are other than as many zeros."""
        if not isinstance(module, (nn.Conv1d, nn.Conv2d)) or type(module) not in (nn.Conv1d, nn.Conv2d):
            return None
        padding = zeros_beside(module)
        if module.groups != 1 or module.padding_mode != "zeros" or padding is None:
            return None
        return Sliding(module.kernel_size, module.stride, padding, module.dilation)

    def convolution(self, inputs: int, outputs: int) -> nn.Conv1d | nn.Conv2d:
        """A convolution that slides so."""
        found: nn.Conv1d | nn.Conv2d = CONVOLUTIONS[len(self.kernel_size)](inputs, outputs, **vars(self))
        return found


def zeros_beside(module: nn.Conv1d | nn.Conv2d) -> tuple[int, ...] | None:
    """The zeros on both sides along each axis; None if there are more on one of them."""
    if not isinstance(module.padding, str):
        return module.padding
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    wide = [by * (size - 1) for by, size in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(one % 2 for one in wide) else tuple(one // 2 for one in wide)


class FeedForwardConv(nn.Module):
    r"""The body of a residual block with fewer channels, :math:`\phi(V * x + a)` and behind it :math:`W * h + b`.

    Both V and W are convolutions, and of the activation function between them nothing is stored.

    Args:
        in_channels: The channels of the input.
        out_channels: The channels of the output.
        nodes: The channels between.
        function: phi.
        first: How V slides.
        second: How W slides.

    Raises:
        ValueError: if a size is not a whole number of at least 1, or the kernels are of other axes.

    Example:
        >>> sliding = Sliding((3, 3), (1, 1), (1, 1), (1, 1))
        >>> layer = FeedForwardConv(16, 16, 6, Elementwise("relu"), sliding, sliding)
        >>> layer(torch.zeros(5, 16, 14, 14)).shape
        torch.Size([5, 16, 14, 14])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        nodes: int,
        function: Elementwise,
        first: Sliding,
        second: Sliding,
    ) -> None:
        super().__init__()
        for name, size in (("in_channels", in_channels), ("out_channels", out_channels), ("nodes", nodes)):
            require_whole(name, size, at_least=1)
        if len(first.kernel_size) != len(second.kernel_size):
            raise ValueError(
                f"both kernels must slide along the same axes, got {first.kernel_size} and {second.kernel_size}"
            )
        self.function, self.first, self.second = function, first, second
        self.maps = nn.ModuleList([first.convolution(in_channels, nodes), second.convolution(nodes, out_channels)])

    @property
    def convolutions(self) -> list[nn.Conv1d | nn.Conv2d]:
        """V and W, as what they are."""
        return [one for one in self.maps if isinstance(one, (nn.Conv1d, nn.Conv2d))]

    def forward(self, x: Float[Tensor, "S channels *size"]) -> Float[Tensor, "S n *places"]:
        """The outputs at every place."""
        first, second = self.maps
        y: Tensor = second(self.function(first(x)))
        return y

    @classmethod
    def from_nodes(
        cls, nodes: Nodes, sliding: tuple[Sliding, Sliding], dtype: torch.dtype | None = None
    ) -> FeedForwardConv:
        """The layer of nodes that stand at places of images.

        Raises:
            ValueError: if they are something else, such as several layers.
        """
        if nodes.spread is None or len(nodes.stages) != 1 or len(nodes.stages[0].V) != 1:
            raise ValueError("expected one layer of nodes at places of images, not gated")
        (stage,), (first, second) = nodes.stages, sliding
        channels = len(stage.V[0]) // torch.Size(first.kernel_size).numel()
        with torch.device("meta"):  # all is overwritten: draw no random numbers for it
            layer = cls(channels, len(nodes.bias), stage.width, stage.function, first, second)
        layer.to(dtype or nodes.bias.dtype).to_empty(device=nodes.bias.device)
        pairs = (stage.V[0], stage.shift[0]), (nodes.W, nodes.bias)
        with torch.no_grad():
            for convolution, (matrix, bias) in zip(layer.convolutions, pairs, strict=True):
                convolution.weight.copy_(matrix.mT.reshape(convolution.weight.shape))
                if convolution.bias is not None:
                    convolution.bias.copy_(bias)
        return layer

    def to_dict(self) -> dict[str, Any]:
        """The settings that `from_dict` makes an empty layer of."""
        first, second = self.convolutions
        return {
            "in_channels": first.in_channels,
            "out_channels": second.out_channels,
            "nodes": first.out_channels,
            "function": self.function.to_dict(),
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FeedForwardConv:
        """An empty layer with saved settings.

        Raises:
            ValueError: if a setting is missing, unknown or out of its range.
        """
        if not isinstance(saved, Mapping) or set(saved) != SETTINGS:
            raise ValueError(f"a layer of two convolutions has the settings {sorted(SETTINGS)}, got {saved!r}")
        function = saved["function"]
        if not isinstance(function, Mapping) or set(function) != {"name", "setting"}:
            raise ValueError(f"an activation function has a name and a setting, got {function!r}")
        slidings = Sliding.from_dict(saved["first"]), Sliding.from_dict(saved["second"])
        sizes = saved["in_channels"], saved["out_channels"], saved["nodes"]
        with torch.random.fork_rng(devices=[]):  # what is drawn here will be overwritten
            return cls(*sizes, Elementwise(**function), *slidings)
