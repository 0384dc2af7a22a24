"""A layer with a function of its own on every edge."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases import BSpline
from tenflex.checks import require_whole
from tenflex.nn.activations.base import REACH


class KANLayer(nn.Module):
    r"""Sums of functions of single inputs, each a smooth gate and a cubic spline.

    .. math:: y_j = \sum_{i=1}^{m} \Big( w_{ji} \, \mathrm{silu}(x_i) + \sum_{k=1}^{d} c_{jik} B_k(x_i / 3) \Big)

    The B-splines have even knots, are lines beyond [-3, 3], and are shared by all edges, so that the layer is one
    product of matrices. It stores n m (1 + d) numbers. At first the splines are small.

    References:
        Liu et al., "KAN: Kolmogorov-Arnold networks", 2024, https://arxiv.org/abs/2404.19756

    Args:
        inputs: m.
        outputs: n.
        count: The number of B-splines on an edge d.

    Raises:
        ValueError: if a size is not a whole number in its range.

    Example:
        >>> KANLayer(4, 3)(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, inputs: int, outputs: int, count: int = 8) -> None:
        super().__init__()
        require_whole("inputs", inputs, at_least=1)
        require_whole("outputs", outputs, at_least=1)
        self.edges = EdgeFunctions(inputs, count)
        self.map = nn.Linear(inputs * (1 + count), outputs, bias=False)
        with torch.no_grad():
            gates = nn.init.xavier_uniform_(torch.empty(outputs, inputs))
            splines = torch.randn(outputs, inputs * count) * 0.1 / (inputs * count) ** 0.5
            self.map.weight.copy_(torch.cat([gates, splines], 1))

    def forward(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        outputs: Tensor = self.map(self.edges(x))
        return outputs


class EdgeFunctions(nn.Module):
    """The functions that the edges of one input share: a gate, then B-splines; all gates come first.

    Args:
        inputs: m.
        count: The number of B-splines d.
    """

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.basis = BSpline(count)

    def forward(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch functions"]:
        return torch.cat([nn.functional.silu(x), self.basis.value(x / REACH).flatten(-2)], -1)

    def operations_per_example(self) -> int:
        """Operations of the gates, and of the B-splines of every input; sums over them are multiply-adds."""
        return self.inputs * (7 + 1 + self.basis.operations)

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"{self.inputs} inputs, {self.basis}"
