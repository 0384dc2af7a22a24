"""Polyadic decomposition of convolutions: single positions, one axis after the other, single positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tenflex.baselines.kim2016 import decomposed
from tenflex.baselines.linear import Dense, make_convolution, make_pointwise, stored
from tenflex.baselines.polyadic import Fit, decompose
from tenflex.baselines.ranks import Ladder
from tenflex.checks import require_eval
from tenflex.nn.chained import Chained

GROWTH = 1.35
"""The ratio between ranks that are tried, one after the other."""

STARTS, STEPS = 3, 40
"""Random starts and Gauss-Newton steps at the rank that is chosen; one start and no step while choosing."""


def polyadic(model: nn.Module, inputs: Tensor, parameters: int, *, layers: Sequence[str] | None = None) -> nn.Module:
    r"""Replace convolutions by four (of two-dimensional kernels): single positions, columns, rows, single positions.

    .. math:: K_{n c i j} \approx \sum_{z=1}^R a_{n z} \, b_{c z} \, p_{i z} \, q_{j z}

    The two in the middle have a channel each to themselves. The decomposition is by damped Gauss-Newton steps from
    several starts. Linear layers, and convolutions of single positions, are those of `data_aware_svd`. The ranks of all
    layers are chosen together by the error of the outputs on the inputs, and the last map of every convolution is
    refitted to them.

    References:
        Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky, "Speeding-up convolutional neural networks using fine-tuned
        CP-decomposition", 2015, https://arxiv.org/abs/1412.6553

    Args:
        model: Any module of one tensor, in eval mode; it is left as it is.
        inputs: Calibration inputs, `(S, ...)`, unlabelled.
        parameters: The most numbers that the named layers may store together, biases included.
        layers: Names of linear layers and convolutions; None for all of them.

    Returns:
        A new model in eval mode.

    Raises:
        TypeError: as `data_aware_svd`.
        ValueError: as `data_aware_svd`.

    Example:
        >>> from tenflex.baselines import polyadic
        >>> from tenflex.evaluate.cost import stored_numbers
        >>> convolutions = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        >>> images = torch.randn(20, 4, 8, 8)
        >>> stored_numbers(polyadic(convolutions, images, 400)) <= 400
        True
    """
    require_eval("model", model)
    return decomposed(model, inputs, parameters, layers, PolyadicConvolution)


@dataclass(frozen=True, eq=False)
class PolyadicConvolution:
    """A convolution, and its decompositions at some ranks.

    Args:
        dense: The convolution as it is.
        known: What was computed before, by rank.
    """

    dense: Dense
    known: dict[int, Fit] = field(default_factory=dict)

    def fit(self, rank: int) -> Fit:
        """A quick decomposition."""
        if rank not in self.known:
            self.known[rank] = decompose(self.dense.weight.detach().double(), rank, starts=1, steps=0)
        return self.known[rank]

    def size(self, rank: int) -> int:
        """The numbers stored: `R (n + c + k_1 + ...) + n`."""
        return rank * sum(self.dense.weight.shape) + len(self.dense.weight)

    def ladder(self) -> Ladder:
        """Some ranks at which the layer is smaller than it is."""
        most, ranks = stored(self.dense, None), [1]
        while self.size(following := max(ranks[-1] + 1, int(GROWTH * ranks[-1]))) < most:
            ranks.append(following)
        ranks = [rank for rank in ranks if self.size(rank) < most]
        losses: list[float] = []
        for rank in ranks:
            losses.append(min([self.fit(rank).error, *(0.999 * one for one in losses[-1:])]))
        return Ladder((*ranks, None), (*map(self.size, ranks), most), (*losses, 0.0))

    def layer(self, rank: int | None) -> nn.Module:
        """The convolutions at a rank, from a quick decomposition."""
        return self.dense if rank is None else chain_of(self.dense, self.fit(rank))

    def polished(self, rank: int | None) -> nn.Module:
        """The same from a decomposition with several starts and Gauss-Newton steps."""
        if rank is None:
            return self.dense
        return polyadic_layer(self.dense, rank)


def polyadic_layer(layer: Dense, rank: int) -> Chained:
    """Convolutions of R channels, one for each axis between two of single positions, in the place of one."""
    return chain_of(layer, decompose(layer.weight.detach().double(), rank, starts=STARTS, steps=STEPS))


def chain_of(layer: Dense, fit: Fit) -> Chained:
    """The convolutions of a decomposition."""
    outer, inner, *axes = fit.factors
    dimensions = len(axes)
    steps: list[nn.Module] = [make_pointwise(inner.mT, None, layer.weight, dimensions)]
    for axis, columns in enumerate(axes):
        shape = [1] * dimensions
        shape[axis] = len(columns)
        steps.append(
            make_convolution(columns.mT.reshape(-1, 1, *shape), None, layer, **along(layer, axis, len(outer.mT)))
        )
    bias = outer.new_zeros(len(outer)) if layer.bias is None else layer.bias
    return Chained(steps, make_pointwise(outer, bias, layer.weight, dimensions))


def along(layer: Dense, axis: int, channels: int) -> dict[str, Any]:
    """The settings of a convolution along one axis: its stride, padding and dilation, and none along the others."""
    settings: dict[str, Any] = {"groups": channels}
    for name, neutral in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(layer, name)
        if not isinstance(value, str):
            value = tuple(one if place == axis else neutral for place, one in enumerate(value))
        settings[name] = value
    return settings
