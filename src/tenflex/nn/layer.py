"""One flexible layer, in place of several layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis, basis_from_dict, basis_to_dict
from tenflex.checks import require_whole
from tenflex.factors import Factors
from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.flat import FlatModule
from tenflex.nn.maps import inner_matrices, linear_map, linear_maps, numbers, outer_matrices, require_settings, width_of

SETTINGS = {"in_shape", "out_shape", "rank", "basis", "factor", "output_factor"}
"""What is saved of a layer besides its numbers."""


class FlexibleLayer(FlatModule):
    r"""A flexible layer :math:`f(x) = W g(V^\top x + a) + b`, of three standard parts.

    `inner` is the linear map V with the shifts a as its bias, `activation` the flexible activation, `outer` the linear
    map W with the bias b. Either linear map may be a product of two thin ones.

    Args:
        in_shape: The shape of one input, without the batch; it is flattened to m numbers.
        out_shape: The shape of one output; n numbers.
        rank: The number of nodes, r.
        basis: The functions that every activation combines.
        factor: The width q of `V = B A`, or None.
        output_factor: The width p of `W = D E`, or None.

    Raises:
        TypeError: if `basis` is not a basis, or a shape is not a tuple.
        ValueError: if a size is not a whole number of at least 1.

    Example:
        >>> layer = FlexibleLayer((784,), (10,), rank=40, basis=BSpline(10), factor=10)
        >>> layer(torch.zeros(5, 784)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        rank: int,
        basis: Basis,
        factor: int | None = None,
        output_factor: int | None = None,
    ) -> None:
        require_whole("rank", rank, at_least=1)
        super().__init__(in_shape, out_shape, factor=factor, output_factor=output_factor)
        self.inner = linear_map(numbers(in_shape), factor, rank)
        self.activation = FlexibleActivation(rank, basis)
        self.outer = linear_map(rank, output_factor, numbers(out_shape))

    def between(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """The activations."""
        activations: Tensor = self.activation(t)
        return activations

    @classmethod
    def from_factors(
        cls,
        factors: Factors,
        in_shape: tuple[int, ...] | None = None,
        out_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
    ) -> FlexibleLayer:
        """The layer of a solution; flat inputs and outputs, and the factors' dtype, when left out.

        Raises:
            ValueError: if a shape has another number of entries than the factors.
        """
        layer = cls.sized_as(factors, factors.shift, in_shape, out_shape, dtype, factors.rank, factors.basis)
        with torch.no_grad():
            layer.activation.coefficients.copy_(factors.coefficients)
        return layer

    @torch.no_grad()
    def factors(self) -> Factors:
        """The layer as matrices, in its own dtype; copies, so that training it further does not change them."""
        shift, bias = (linear_maps(one)[-1].bias.clone() for one in (self.inner, self.outer))
        coefficients, basis = self.activation.coefficients.clone(), self.activation.basis
        return Factors(inner_matrices(self.inner), outer_matrices(self.outer), coefficients, shift, bias, basis)

    def to_dict(self) -> dict[str, Any]:
        """The settings that `from_dict` makes an empty layer of."""
        return {
            "in_shape": list(self.in_shape),
            "out_shape": list(self.out_shape),
            "rank": len(self.activation.coefficients),
            "basis": basis_to_dict(self.activation.basis),
            "factor": width_of(inner_matrices(self.inner)),
            "output_factor": width_of(outer_matrices(self.outer)),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FlexibleLayer:
        """An empty layer with saved settings.

        Raises:
            ValueError: if a setting is missing, unknown or out of its range.
        """
        saved = require_settings(saved, SETTINGS, "a flexible layer")
        basis = basis_from_dict(saved["basis"])
        with torch.random.fork_rng(devices=[]):  # what is drawn here will be overwritten
            return cls(
                saved["in_shape"], saved["out_shape"], saved["rank"], basis, saved["factor"], saved["output_factor"]
            )
