"""Any number of flexible layers, in place of several layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases import BASES, Basis, basis_from_dict
from tenflex.checks import require_rank
from tenflex.factors import Activations, Factors
from tenflex.modes import MODES, Modes, Multilinear
from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.maps import fill_, linear_map, linear_maps, matrices, numbers, require_settings, require_width, shape_of
from tenflex.nn.multilinear import ModeProduct

SETTINGS = {"in_shape", "out_shape", "rank", "basis", "factor", "output_factor"}
"""What is saved of a layer besides its numbers, and `modes` where it has some."""


class FlexibleLayer(nn.Module):
    r"""Flexible layers :math:`f(x) = W g_L(\cdots g_1(V^\top x + a_1) \cdots) + b`, of standard parts.

    `maps` are the L + 1 linear maps, each with the shifts of the activations that follow as its bias, and the last with
    b; `activations` are the L layers of flexible activations between them. The first and the last map may be products
    of two thin ones. One layer, `rank=40`, is the usual case; `rank=(40, 20)` makes two.

    With modes the first map is :math:`V = (P_1 \otimes P_2 \otimes \cdots) V'`, and `maps` begin with V'. In eval mode
    V is multiplied out where that takes fewer multiply-adds for one input than going axis by axis, and kept for passes
    without gradients for as long as the weights stay what they are.

    With modes of the outputs the last map is :math:`f(x) = (P_1 \otimes P_2 \otimes \cdots) (W' g(\cdot) + b')`.

    Args:
        in_shape: The shape of one input, without the batch; it is flattened to m numbers.
        out_shape: The shape of one output; n numbers.
        rank: The number of nodes, r; or those of each layer, `(r1, ..., rL)`.
        basis: The functions that every activation combines; or those of each layer.
        factor: The width q of `V = B A`, or None.
        output_factor: The width p of `W = D E`, or None.
        modes: The directions along each axis of an input that V sees; None for all.
        output_modes: The directions along each axis of an output that W and b give; None for all.

    Raises:
        TypeError: if a basis is not a basis, or a shape is not a tuple.
        ValueError: if a size is not a whole number of at least 1, or there are not as many bases as layers.

    Example:
        >>> layer = FlexibleLayer((784,), (10,), rank=(40, 20), basis=BSpline(10), factor=10)
        >>> layer(torch.zeros(5, 784)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        rank: int | tuple[int, ...],
        basis: Basis | tuple[Basis, ...],
        factor: int | None = None,
        output_factor: int | None = None,
        modes: Modes | None = None,
        output_modes: Modes | None = None,
    ) -> None:
        super().__init__()
        require_rank(rank)
        require_width("factor", factor)
        require_width("output_factor", output_factor)
        self.in_shape, self.out_shape = shape_of("in_shape", in_shape), shape_of("out_shape", out_shape)
        ranks = rank if isinstance(rank, tuple) else (rank,)
        bases = basis if isinstance(basis, tuple) else (basis,) * len(ranks)
        if len(bases) != len(ranks):
            raise ValueError(f"expected one basis or {len(ranks)}, one for each layer, got {len(bases)}")
        self.modes = None if modes is None else ModeProduct(modes.of(self.in_shape))
        self.output_modes = None if output_modes is None else ModeProduct(output_modes.of(self.out_shape))
        last = numbers(self.out_shape) if output_modes is None else output_modes.core_size(self.out_shape)
        first = numbers(self.in_shape) if modes is None else modes.core_size(self.in_shape)
        sizes = pairwise((first, *ranks, last))
        widths = (factor, *[None] * (len(ranks) - 1), output_factor)
        self.maps = nn.ModuleList(linear_map(m, width, n) for (m, n), width in zip(sizes, widths, strict=True))
        self.activations = nn.ModuleList(FlexibleActivation(r, one) for r, one in zip(ranks, bases, strict=True))
        if modes is not None or output_modes is not None:
            self.register_load_state_dict_post_hook(generate_)

    @property
    def flexible(self) -> list[FlexibleActivation]:
        """The layers of activations, as what they are."""
        return [one for one in self.activations if isinstance(one, FlexibleActivation)]

    def forward(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """The outputs; all dimensions before `in_shape` are batch dimensions."""
        if len(self.in_shape) > 1:
            x = x.flatten(-len(self.in_shape))
        _, *others = self.maps
        x = self._first(x)
        for activation, linear in zip(self.activations, others, strict=True):
            x = linear(activation(x))
        if self.output_modes is not None:
            x = self.output_modes.multilinear.widen(x)
        return x.unflatten(-1, self.out_shape) if len(self.out_shape) > 1 else x

    def _first(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch r1"]:
        """The first linear map, through the modes or multiplied out."""
        first = self.maps[0]
        if self.modes is None:
            return first(x)
        start, *rest = linear_maps(first)
        V = self.modes.expanded(start.weight)
        x = start(self.modes(x)) if V is None else nn.functional.linear(x, V, start.bias)
        return rest[0](x) if rest else x

    @property
    def input_macs(self) -> tuple[int, int] | None:
        """Multiply-adds of what comes first, axis by axis with the matrix behind the modes, and multiplied out."""
        if self.modes is None:
            return None
        width = linear_maps(self.maps[0])[0].weight.shape
        return self.modes.macs() + width.numel(), numbers(self.in_shape) * width[0]

    def _around(self) -> tuple[tuple[str, ModeProduct | None], ...]:
        """What stands before the first map and behind the last, by the names of settings."""
        return ("modes", self.modes), ("output_modes", self.output_modes)

    def expand_(self) -> None:
        """Multiply the first map out if that is cheaper for one input than going axis by axis."""
        if self.modes is not None and self.input_macs is not None:
            by_axis, at_once = self.input_macs
            if at_once < by_axis:
                self.modes.expand_(linear_maps(self.maps[0])[0].weight)

    def train(self, mode: bool = True) -> FlexibleLayer:
        """As any module; for use the first map is multiplied out where that is cheaper."""
        super().train(mode)
        if not mode:
            self.expand_()
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FlexibleLayer:
        super()._apply(fn, recurse)
        if not self.training:
            self.expand_()  # in another dtype or on another device
        return self

    @classmethod
    def from_factors(
        cls,
        factors: Factors,
        in_shape: tuple[int, ...] | None = None,
        out_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        modes: tuple[Modes, Multilinear] | None = None,
        output_modes: tuple[Modes, Multilinear] | None = None,
    ) -> FlexibleLayer:
        """The layers of a solution; flat inputs and outputs, and the factors' dtype, when left out.

        With modes, and the directions that they chose, the factors are those of what these tell of an input, or make
        an output of.

        Raises:
            ValueError: if a shape has another number of entries than the factors.
        """
        m, n = len(factors.maps[0][0]), len(factors.bias)
        in_shape = in_shape or ((m,) if modes is None else modes[1].shape)
        out_shape = out_shape or ((n,) if output_modes is None else output_modes[1].shape)
        seen = numbers(in_shape) if modes is None else modes[0].core_size(in_shape)
        given = numbers(out_shape) if output_modes is None else output_modes[0].core_size(out_shape)
        if (seen, given) != (m, n):
            raise ValueError(
                f"the factors map {m} numbers to {n}: expected shapes of as many, got {in_shape} and {out_shape}"
            )
        bases = tuple(one.basis for one in factors.activations)
        factor, *_, output_factor = (one[0].shape[1] if len(one) == 2 else None for one in factors.maps)
        with torch.device("meta"):  # all is overwritten: draw no random numbers for it
            around = modes and modes[0], output_modes and output_modes[0]
            layer = cls(in_shape, out_shape, factors.ranks, bases, factor, output_factor, *around)
        layer.to(dtype or factors.bias.dtype).to_empty(device=factors.bias.device)
        for here, known in ((layer.modes, modes), (layer.output_modes, output_modes)):
            if here is not None and known is not None:
                here.fill_(known[1])
        biases = [*(one.shift for one in factors.activations), factors.bias]
        for linear, maps, bias in zip(layer.maps, factors.maps, biases, strict=True):
            fill_(linear, maps, bias)
        with torch.no_grad():
            for module, one in zip(layer.flexible, factors.activations, strict=True):
                module.coefficients.copy_(one.coefficients)
        return layer

    def factors(self) -> Factors:
        """The layers as matrices, in their own dtype; copies, so that training them further does not change them.

        Modes are multiplied out: V is that of the inputs as they are, W and b are those of the outputs.
        """
        return self.multiplied(inputs=True, outputs=True)

    @torch.no_grad()
    def multiplied(self, *, inputs: bool, outputs: bool) -> Factors:
        """The same with modes multiplied out or not: then they are the layers behind or before these."""
        biases = [linear_maps(one)[-1].bias.clone() for one in self.maps]
        parts = zip(self.flexible, biases[:-1], strict=True)
        activations = tuple(Activations(one.coefficients.clone(), shift, one.basis) for one, shift in parts)
        found = Factors(tuple(map(matrices, self.maps)), activations, biases[-1])
        if inputs and self.modes is not None:
            core, *rest = found.maps[0]
            found = found.with_map(0, self.modes.multilinear.widen(core.mT).mT, *rest)
        if outputs and self.output_modes is not None:
            widen = self.output_modes.multilinear.widen
            *rest, core = found.maps[-1]
            found = replace(found.with_map(-1, *rest, widen(core)), bias=widen(found.bias))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The settings that `from_dict` makes empty layers of."""
        first, *_, last = (matrices(one) for one in self.maps)
        return {
            "in_shape": list(self.in_shape),
            "out_shape": list(self.out_shape),
            "rank": [len(one.coefficients) for one in self.flexible],
            "basis": [BASES.described(one.basis) for one in self.flexible],
            "factor": first[0].shape[1] if len(first) == 2 else None,
            "output_factor": last[0].shape[1] if len(last) == 2 else None,
            **{name: MODES.described(one.modes) for name, one in self._around() if one is not None},
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FlexibleLayer:
        """Empty layers with saved settings; rank and basis may be those of one layer, and modes be left out.

        Raises:
            ValueError: if a setting is missing, unknown or out of its range.
        """
        saved = dict(saved) if isinstance(saved, Mapping) else saved
        around = [saved.pop(one, None) if isinstance(saved, dict) else None for one in ("modes", "output_modes")]
        saved = require_settings(saved, SETTINGS, "a flexible layer")
        ranks, bases = (one if isinstance(one, (list, tuple)) else [one] for one in (saved["rank"], saved["basis"]))
        if not ranks or len(ranks) != len(bases):
            raise ValueError(
                f"rank and basis must be lists of one a layer, got {saved['rank']!r} and {saved['basis']!r}"
            )
        with torch.random.fork_rng(devices=[]):  # what is drawn here will be overwritten
            return cls(
                saved["in_shape"],
                saved["out_shape"],
                tuple(ranks),
                tuple(map(basis_from_dict, bases)),
                saved["factor"],
                saved["output_factor"],
                *(None if one is None else MODES.from_dict(one) for one in around),
            )


def generate_(layer: nn.Module, _: Any) -> None:
    """Bring the directions that are in no file to the dtype and the device of the weights that were loaded."""
    if isinstance(layer, FlexibleLayer):
        for _, one in layer._around():
            if one is not None:
                one.generate_(linear_maps(layer.maps[0])[0].weight)
