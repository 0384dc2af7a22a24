"""Two flexible layers, in place of several layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases import Basis, basis_from_dict, basis_to_dict
from tenflex.checks import require_whole
from tenflex.layered import LayeredFactors
from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.flat import FlatModule
from tenflex.nn.layer import SETTINGS
from tenflex.nn.maps import (
    fill_,
    inner_matrices,
    linear_map,
    linear_maps,
    numbers,
    outer_matrices,
    require_settings,
    width_of,
)


class FlexibleLayers(FlatModule):
    r"""Two flexible layers :math:`f(x) = W g(U h(V^\top x + a) + a') + b`, of five standard parts.

    `inner` is the linear map V with the shifts a, `first` the activations h, `hidden` the linear map U with the shifts
    a', `second` the activations g, `outer` the linear map W with the bias b. V and W may be products of two thin ones.

    Args:
        in_shape: The shape of one input, without the batch; it is flattened to m numbers.
        out_shape: The shape of one output; n numbers.
        rank: The numbers of nodes, `(r1, r2)`.
        bases: The functions that the activations of either layer combine.
        factor: The width q of `V = B A`, or None.
        output_factor: The width p of `W = D E`, or None.

    Raises:
        TypeError: if a basis is not a basis, or a shape is not a tuple.
        ValueError: if there are not two ranks and two bases, or a size is not a whole number of at least 1.

    Example:
        >>> layers = FlexibleLayers((784,), (10,), rank=(40, 20), bases=(BSpline(10), BSpline(10)), factor=10)
        >>> layers(torch.zeros(5, 784)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        rank: tuple[int, int],
        bases: tuple[Basis, Basis],
        factor: int | None = None,
        output_factor: int | None = None,
    ) -> None:
        for name, pair in (("rank", rank), ("bases", bases)):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(f"{name} must be two, one a layer, got {pair!r}: use FlexibleLayer for one layer")
        first, second = rank
        for size in rank:
            require_whole("rank", size, at_least=1)
        super().__init__(in_shape, out_shape, factor=factor, output_factor=output_factor)
        self.inner = linear_map(numbers(in_shape), factor, first)
        self.first = FlexibleActivation(first, bases[0])
        self.hidden = nn.Linear(first, second)
        self.second = FlexibleActivation(second, bases[1])
        self.outer = linear_map(second, output_factor, numbers(out_shape))

    def between(self, t: Float[Tensor, "*batch r1"]) -> Float[Tensor, "*batch r2"]:
        """Both layers of activations, and the linear map between them."""
        activations: Tensor = self.second(self.hidden(self.first(t)))
        return activations

    @classmethod
    def from_factors(
        cls,
        factors: LayeredFactors,
        in_shape: tuple[int, ...] | None = None,
        out_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
    ) -> FlexibleLayers:
        """The layers of a solution; flat inputs and outputs, and the factors' dtype, when left out.

        Raises:
            ValueError: if a shape has another number of entries than the factors.
        """
        layers = cls.sized_as(factors, factors.shifts[0], in_shape, out_shape, dtype, factors.rank, factors.bases)
        fill_(layers.hidden, [factors.hidden], factors.shifts[1])
        with torch.no_grad():
            layers.first.coefficients.copy_(factors.coefficients[0])
            layers.second.coefficients.copy_(factors.coefficients[1])
        return layers

    @torch.no_grad()
    def factors(self) -> LayeredFactors:
        """The layers as matrices, in their own dtype; copies, so that training them further does not change them."""
        shifts = linear_maps(self.inner)[-1].bias.clone(), self.hidden.bias.clone()
        return LayeredFactors(
            inner_matrices(self.inner),
            self.hidden.weight.clone(),
            outer_matrices(self.outer),
            (self.first.coefficients.clone(), self.second.coefficients.clone()),
            shifts,
            linear_maps(self.outer)[-1].bias.clone(),
            (self.first.basis, self.second.basis),
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings that `from_dict` makes empty layers of."""
        return {
            "in_shape": list(self.in_shape),
            "out_shape": list(self.out_shape),
            "rank": [len(self.first.coefficients), len(self.second.coefficients)],
            "basis": [basis_to_dict(self.first.basis), basis_to_dict(self.second.basis)],
            "factor": width_of(inner_matrices(self.inner)),
            "output_factor": width_of(outer_matrices(self.outer)),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FlexibleLayers:
        """Empty layers with saved settings.

        Raises:
            ValueError: if a setting is missing, unknown or out of its range.
        """
        saved = require_settings(saved, SETTINGS, "two flexible layers")
        for name in ("rank", "basis"):
            if not isinstance(saved[name], (list, tuple)) or len(saved[name]) != 2:
                raise ValueError(f"{name} must be a list of two, one a layer, got {saved[name]!r}")
        first, second = map(basis_from_dict, saved["basis"])
        rank = (saved["rank"][0], saved["rank"][1])
        with torch.random.fork_rng(devices=[]):  # what is drawn here will be overwritten
            return cls(
                saved["in_shape"], saved["out_shape"], rank, (first, second), saved["factor"], saved["output_factor"]
            )
