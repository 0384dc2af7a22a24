"""A layer as formulas of sympy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis
from tenflex.bases.piecewise import PiecewiseBasis
from tenflex.bases.wrapped import plain
from tenflex.reading.nodes import Nodes
from tenflex.reading.polynomials import pieces, polynomials
from tenflex.sampling.polynomial import sympy_number

Expression = Any
"""A `sympy.Expr`; sympy has no types."""


@dataclass(frozen=True)
class Formulas:
    """A layer as formulas of sympy, exact to rounding in float64.

    Args:
        inputs: The symbols x1, ..., xm; h1, ..., hr for the second of two layers; with the number of
            their layer, h1_1 and so on, for layers of more.
        argument: The symbol t of the activations.
        arguments: For every node, `t_k = v_k . x` as a function of the inputs.
        activations: For every node, `g_k(t)`: an expanded polynomial for polynomial bases, a `Piecewise` of polynomials
            for splines and hinges.
        outputs: f1, ..., fn as functions of the inputs, not expanded.
        before: The formulas of the layer before, whose outputs are the inputs of this one; None for the first.
    """

    inputs: tuple[Expression, ...]
    argument: Expression
    arguments: tuple[Expression, ...]
    activations: tuple[Expression, ...]
    outputs: tuple[Expression, ...]
    before: Formulas | None = None

    def expanded(self) -> tuple[Expression, ...]:
        """The outputs as sums of products of x1, ..., xm, for polynomials: many terms, where there are many inputs.

        Pieces of pieces, two layers of splines, are too many for sympy.
        """
        import sympy

        inner = {} if self.before is None else dict(zip(self.inputs, self.before.expanded(), strict=True))
        return tuple(sympy.expand(one.xreplace(inner)) for one in self.outputs)


def formulas(layers: Sequence[Nodes]) -> Formulas:
    """The formulas of layers that follow each other.

    Raises:
        TypeError: if the activations are neither polynomials nor piecewise polynomials.
    """
    first, *later = layers
    found = layer_formulas(first, "x")
    for number, nodes in enumerate(later, start=1):
        found = layer_formulas(nodes, "h" if len(later) == 1 else f"h{number}_", found)
    return found


def layer_formulas(nodes: Nodes, letter: str, before: Formulas | None = None) -> Formulas:
    """The formulas of one layer, whose inputs are called by a letter and a number."""
    import sympy

    t, inputs = sympy.Symbol("t"), sympy.symbols(f"{letter}1:{len(nodes.V) + 1}")
    activations = activation_formulas(t, nodes.scales, nodes.shifts, nodes.coefficients, nodes.basis)
    arguments = linear_formulas(nodes.V.mT, inputs)
    outputs = linear_formulas(nodes.W, composed(activations, t, arguments), nodes.bias)
    return Formulas(inputs, t, arguments, activations, outputs, before)


def activation_formulas(
    t: Expression,
    scales: Float[Tensor, " r"],
    shifts: Float[Tensor, " r"],
    coefficients: Float[Tensor, "r d"],
    basis: Basis,
) -> tuple[Expression, ...]:
    """The activations `sum_j c_kj phi_j(scale_k t + shift_k)`, less their values at zero, as functions of `t`.

    Raises:
        TypeError: if the basis is neither polynomial nor piecewise polynomial.
    """
    whole = polynomials(scales, shifts, coefficients, basis)
    if whole is not None:
        whole[:, 0] = 0
        return tuple(polynomial_formula(t, row) for row in whole.tolist())
    constants = basis.combine(shifts[None], coefficients)[0]
    basis = plain(basis)
    if not isinstance(basis, PiecewiseBasis):
        raise TypeError(f"formulas are known for polynomials, splines and hinges, got {basis!r}")
    breaks, table = pieces(basis, coefficients)
    table[:, :, 0] -= constants[:, None]
    breaks = (breaks - shifts[:, None]) / scales[:, None]
    table = table * scales[:, None, None] ** torch.arange(table.shape[2], device=table.device)
    return tuple(piecewise_formula(t, *node) for node in zip(breaks.tolist(), table.tolist(), strict=True))


def polynomial_formula(t: Expression, coefficients: Sequence[float]) -> Expression:
    """A polynomial, its coefficients from the lowest power up."""
    import sympy

    return sympy.Add(*(sympy_number(one) * t**power for power, one in enumerate(coefficients)))


def piecewise_formula(t: Expression, breaks: Sequence[float], polynomials: Sequence[Sequence[float]]) -> Expression:
    """Polynomials between breaks, each in the distance from its start; breaks may ascend or descend."""
    import sympy

    starts = (breaks[0], *breaks)
    parts = [polynomial_formula(t - sympy_number(start), one) for start, one in zip(starts, polynomials, strict=True)]
    if breaks[0] > breaks[-1]:
        breaks, parts = breaks[::-1], parts[::-1]
    ends = [t < sympy_number(end) for end in breaks]
    return sympy.Piecewise(*zip(parts, [*ends, True], strict=True))


def composed(
    activations: Sequence[Expression], t: Expression, arguments: Sequence[Expression]
) -> tuple[Expression, ...]:
    """The activations at their arguments."""
    return tuple(one.xreplace({t: argument}) for one, argument in zip(activations, arguments, strict=True))


def linear_formulas(
    matrix: Float[Tensor, "n r"], terms: Sequence[Expression], bias: Float[Tensor, " n"] | None = None
) -> tuple[Expression, ...]:
    """The rows of `matrix @ terms + bias`."""
    import sympy

    constants = [0.0] * len(matrix) if bias is None else bias.tolist()
    rows = zip(matrix.tolist(), constants, strict=True)
    return tuple(
        sympy.Add(sympy_number(b), *(sympy_number(a) * one for a, one in zip(row, terms, strict=True)))
        for row, b in rows
    )
