"""Tucker-2 decomposition of convolutions: fewer channels before and after a small kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.allocation import Shrinkable, allocated_
from tenflex.baselines.chained import refit_
from tenflex.baselines.chen2021 import analyse
from tenflex.baselines.linear import (
    CONVOLUTIONS,
    Dense,
    linear_layers,
    make_convolution,
    make_pointwise,
    put_,
    require_budget,
    require_unshared,
    stored,
)
from tenflex.baselines.ranks import Ladder
from tenflex.checks import require_eval
from tenflex.nn.chained import Chained
from tenflex.surgery.twin import duplicate

SWEEPS = 10
"""Sweeps of orthogonal iteration after the truncated singular vectors."""


def tucker2(model: nn.Module, inputs: Tensor, parameters: int, *, layers: Sequence[str] | None = None) -> nn.Module:
    r"""Replace convolutions by three: to fewer channels, a small kernel between them, and back.

    .. math:: K_{n c k} \approx \sum_{a, b} U_{n a} \, G_{a b k} \, V_{c b}

    with orthonormal columns in U and V, by higher-order orthogonal iteration. Linear layers, and convolutions of single
    positions, have one way of being thin: they are those of `data_aware_svd`. The ranks of all layers are chosen
    together by the error of the outputs on the inputs, and the last map of every convolution is refitted to them.

    References:
        Kim, Park, Yoo, Choi, Yang, Shin, "Compression of deep convolutional neural networks for fast and low power
        mobile applications", 2016, https://arxiv.org/abs/1511.06530

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
        >>> from tenflex.baselines import tucker2
        >>> from tenflex.evaluate.cost import stored_numbers
        >>> convolutions = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        >>> images = torch.randn(20, 4, 8, 8)
        >>> stored_numbers(tucker2(convolutions, images, 400)) <= 400
        True
    """
    require_eval("model", model)
    return decomposed(model, inputs, parameters, layers, TuckerConvolution)


def decomposed(
    model: nn.Module, inputs: Tensor, parameters: int, layers: Sequence[str] | None, kind: Callable[[Dense], Shrinkable]
) -> nn.Module:
    """A model whose convolutions of more than single positions are decomposed in one way, and all else by SVD."""
    chosen = linear_layers(model, layers)
    require_unshared(model, chosen)
    require_budget(parameters, chosen)
    scratch, original = duplicate(model), duplicate(model)
    inside = linear_layers(scratch, tuple(chosen))
    spectra, outputs = analyse(scratch, inside, inputs)
    found = {name: kind(layer) if has_kernel(layer) else spectra[name] for name, layer in inside.items()}
    smaller, ranks = allocated_(scratch, found, parameters, inputs, outputs)
    polished = {name: one.polished(ranks[name]) for name, one in found.items() if isinstance(one, Polished)}
    smaller = put_(smaller, polished)
    refit_(smaller, original, linear_layers(original, tuple(chosen)), inputs)
    return smaller


@runtime_checkable
class Polished(Protocol):
    """A layer whose decomposition at the rank that was chosen can be computed with more care."""

    def polished(self, rank: int | None) -> nn.Module:
        """What takes its place in the end."""


def has_kernel(layer: nn.Module) -> bool:
    """Whether it is a convolution of more than single positions."""
    return isinstance(layer, CONVOLUTIONS) and layer.get_parameter("weight")[0, 0].numel() > 1


@dataclass(frozen=True, eq=False)
class TuckerConvolution:
    """A convolution, and its Tucker-2 decompositions along a path of ranks.

    Args:
        dense: The convolution as it is.
    """

    dense: Dense

    @cached_property
    def kernel(self) -> Float[Tensor, "n c *sizes"]:
        """The weight in float64."""
        return self.dense.weight.detach().double()

    @cached_property
    def tails(self) -> tuple[list[float], list[float]]:
        """What share of the energy is lost at every number of outer and of inner channels, by singular values."""
        energies = [torch.linalg.svdvals(unfolded(self.kernel, mode)).square() for mode in (0, 1)]
        whole = energies[0].sum().item() or 1.0
        first, second = ([*(one.flip(0).cumsum(0).flip(0) / whole).tolist(), 0.0] for one in energies)
        return first, second

    @cached_property
    def path(self) -> list[tuple[int, int]]:
        """Pairs of ranks from (1, 1) on; each raises the one that gains the most energy for each number stored."""
        outer, inner = self.tails
        a, b = 1, 1
        found = [(a, b)]
        while (a, b) != (len(outer) - 1, len(inner) - 1):
            grown = [
                (tail[rank] - tail[rank + 1]) / (self.size(*pair) - self.size(a, b)) if rank + 1 < len(tail) else -1.0
                for tail, rank, pair in ((outer, a, (a + 1, b)), (inner, b, (a, b + 1)))
            ]
            a, b = (a + 1, b) if grown[0] >= grown[1] else (a, b + 1)
            found.append((a, b))
        return found

    def size(self, a: int, b: int) -> int:
        """The numbers stored: `b c + a b k + n a + n`."""
        n, c, *sizes = self.kernel.shape
        return b * c + a * b * math.prod(sizes) + n * a + n

    def ladder(self) -> Ladder:
        """A place on the path is a rank."""
        outer, inner = self.tails
        most = stored(self.dense, None)
        pairs = {place: pair for place, pair in enumerate(self.path) if self.size(*pair) < most}
        losses = [outer[a] + inner[b] for a, b in pairs.values()]
        return Ladder((*pairs, None), (*(self.size(*pair) for pair in pairs.values()), most), (*losses, 0.0))

    def layer(self, rank: int | None) -> nn.Module:
        """The three convolutions at a place on the path."""
        return self.dense if rank is None else tucker2_layer(self.dense, *self.path[rank])


def unfolded(kernel: Float[Tensor, "n c *sizes"], mode: int) -> Float[Tensor, "rows columns"]:
    """A mode against all others."""
    return kernel.movedim(mode, 0).flatten(1)


def tucker2_layer(layer: Dense, a: int, b: int) -> Chained:
    """Three convolutions with a outer and b inner channels between them, in the place of one."""
    kernel = layer.weight.detach().double()
    U, V = orthogonal_factors(kernel, a, b)
    core = torch.einsum("nc...,na,cb->ab...", kernel, U, V)
    dimensions = kernel.ndim - 2
    first = make_pointwise(V.mT, None, layer.weight, dimensions)
    bias = U.new_zeros(len(U)) if layer.bias is None else layer.bias
    return Chained([first, make_convolution(core, None, layer)], make_pointwise(U, bias, layer.weight, dimensions))


def orthogonal_factors(kernel: Float[Tensor, "n c *sizes"], a: int, b: int) -> tuple[Tensor, Tensor]:
    """Orthonormal columns for outputs and inputs, by higher-order orthogonal iteration."""
    V = leading(unfolded(kernel, 1), b)
    U = leading(unfolded(kernel, 0), a)
    for _ in range(SWEEPS):
        U = leading(unfolded(torch.einsum("nc...,cb->nb...", kernel, V), 0), a)
        V = leading(unfolded(torch.einsum("nc...,na->ac...", kernel, U), 1), b)
    return U, V


def leading(matrix: Float[Tensor, "rows columns"], rank: int) -> Float[Tensor, "rows rank"]:
    """The leading left singular vectors."""
    return torch.linalg.eigh(matrix @ matrix.mT).eigenvectors.flip(1)[:, :rank]
