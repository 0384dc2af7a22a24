"""A layer as formulas of sympy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.piecewise import PiecewiseBasis
from tenflex.bases.wrapped import plain
from tenflex.reading.nodes import Nodes
from tenflex.reading.polynomials import pieces, polynomials
from tenflex.sampling.polynomial import sympy_number

Expression = Any
"""A `sympy.Expr`; sympy has no types."""


NOISE = 1e-13
"""What is smaller than this, of the largest term of a sum, is rounding noise."""

DIGITS = 8
"""A number that differs from one of so many digits by rounding noise is that one."""


@dataclass(frozen=True)
class Formulas:
    """A layer as formulas of sympy, exact to rounding in float64.

    Args:
        inputs: The symbols of the inputs, x1, ..., xm if they have no names; h1, ..., hr for the second of two layers;
            with the number of their layer, h1_1 and so on, for layers of more.
        argument: The symbol t of the activations.
        arguments: For every node, `t_k = v_k . x` as a function of the inputs.
        activations: For every node, `g_k(t)`: an expanded polynomial for polynomial bases, a `Piecewise` of polynomials
            for splines and hinges.
        outputs: f1, ..., fn as functions of the inputs, not expanded.
        before: The formulas of the layer before, whose outputs are the inputs of this one; None for the first.
        reach: How large each input gets at the samples.
    """

    inputs: tuple[Expression, ...]
    argument: Expression
    arguments: tuple[Expression, ...]
    activations: tuple[Expression, ...]
    outputs: tuple[Expression, ...]
    before: Formulas | None = None
    reach: tuple[float, ...] = ()

    def expanded(self) -> tuple[Expression, ...]:
        """The outputs as sums of products of the inputs, for polynomials: many terms, where there are many inputs.

        Pieces of pieces, two layers of splines, are too many for sympy.
        """
        import sympy

        first = self if self.before is None else self.before
        while first.before is not None:
            first = first.before
        inner = {} if self.before is None else dict(zip(self.inputs, self.before.expanded(), strict=True))
        sums = (sympy.expand(one.xreplace(inner)) for one in self.outputs)
        return tuple(without_noise(one, first.inputs, first.reach) for one in sums)


def without_noise(expression: Expression, symbols: Sequence[Expression], reach: Sequence[float]) -> Expression:
    """A polynomial without terms that are rounding noise where the symbols are at most so large."""
    import sympy

    try:
        terms = sympy.Poly(expression, *symbols).terms()
    except sympy.PolynomialError:
        return expression
    products = [[abs(one) ** power for one, power in zip(reach, powers, strict=True)] for powers, _ in terms]
    numbers = torch.tensor([float(number) for _, number in terms], dtype=torch.float64, device="cpu")
    sizes = torch.tensor([math.prod(one) for one in products], dtype=torch.float64, device="cpu")
    rounded = plain_numbers(numbers, sizes).tolist()
    return sympy.Add(
        *(
            sympy_number(number) * sympy.Mul(*(one**power for one, power in zip(symbols, powers, strict=True)))
            for number, (powers, _) in zip(rounded, terms, strict=True)
        )
    )


def plain_numbers(numbers: Float[Tensor, "*sums k"], reach: Float[Tensor, "*sums k"]) -> Float[Tensor, "*sums k"]:
    """The coefficients of sums without rounding noise: 0 in its place, and few digits where others are noise.

    Args:
        numbers: The coefficients.
        reach: How large what they multiply gets.
    """
    sizes = numbers.abs() * reach
    noise = NOISE * sizes.amax(-1, keepdim=True)
    digits = [float(f"{one:.{DIGITS}g}") for one in numbers.flatten().tolist()]
    short = torch.tensor(digits, dtype=numbers.dtype, device=numbers.device).view_as(numbers)
    rounded = torch.where((numbers - short).abs() * reach <= noise, short, numbers)
    return torch.where(sizes <= noise, torch.zeros_like(numbers), rounded)


def formulas(layers: Sequence[Nodes], x: Float[Tensor, "S m"], names: Sequence[str] | None = None) -> Formulas:
    """The formulas of layers that follow each other.

    Args:
        layers: Their nodes.
        x: Inputs, at which it is seen what is rounding noise.
        names: What the inputs are called; x1, ..., xm if None.

    Raises:
        TypeError: if the activations are neither polynomials nor piecewise polynomials.
    """
    found: Formulas | None = None
    for number, nodes in enumerate(layers):
        letter = "x" if number == 0 else "h" if len(layers) == 2 else f"h{number}_"
        called = names if names and number == 0 else [f"{letter}{k + 1}" for k in range(len(nodes.V))]
        found = layer_formulas(nodes, called, x, found)
        x = nodes.outputs(x)
    if found is None:
        raise ValueError("expected at least one layer")
    return found


def layer_formulas(
    nodes: Nodes, names: Sequence[str], x: Float[Tensor, "S m"], before: Formulas | None = None
) -> Formulas:
    """The formulas of one layer, of whose inputs the names and values at samples are given."""
    import sympy

    t, inputs = sympy.Symbol("t"), tuple(map(sympy.Symbol, names))
    arriving = nodes.arguments(x)
    reach, farthest, highest = (one.abs().amax(0) for one in (x, arriving, nodes.activations(arriving)))
    activations = activation_formulas(t, nodes, farthest)
    arguments = linear_formulas(plain_numbers(nodes.V.mT, reach.expand(len(nodes.sizes), -1)), inputs)
    sums, ends = torch.cat([nodes.W, nodes.bias[:, None]], 1), torch.cat([highest, highest.new_ones(1)])
    sums = plain_numbers(sums, ends.expand(len(sums), -1))
    outputs = linear_formulas(sums[:, :-1], composed(activations, t, arguments), sums[:, -1])
    far = dict(zip((*inputs, *arguments), (*reach.tolist(), *farthest.tolist()), strict=True))
    known = {**far, **{-one: size for one, size in far.items()}}  # sympy takes (b - a)**2 for (a - b)**2
    outputs = tuple(merged_without_noise(one, known) for one in outputs)
    return Formulas(inputs, t, arguments, activations, outputs, before, tuple(reach.tolist()))


def merged_without_noise(expression: Expression, far: Mapping[Expression, float]) -> Expression:
    """A sum whose terms sympy has merged, such as the straight parts of several nodes, without rounding noise.

    Args:
        expression: The sum.
        far: How large inputs and arguments of nodes get. Terms that are no powers of these stay as they are.
    """
    import sympy

    terms = [one.as_coeff_Mul() for one in sympy.Add.make_args(expression)]
    bases = [rest.as_base_exp() for _, rest in terms]
    told = [base == 1 or (base in far and power.is_number) for base, power in bases]
    if not any(told):
        return expression
    sizes = [far.get(base, 1.0) ** float(power) for (base, power), one in zip(bases, told, strict=True) if one]
    numbers = [float(number) for (number, _), one in zip(terms, told, strict=True) if one]
    rounded = plain_numbers(
        *(torch.tensor(one, dtype=torch.float64, device="cpu") for one in (numbers, sizes))
    ).tolist()
    new = iter(map(sympy_number, rounded))
    parts = zip(terms, told, strict=True)
    return sympy.Add(*((next(new) if one else number) * rest for (number, rest), one in parts))


def activation_formulas(t: Expression, nodes: Nodes, farthest: Float[Tensor, " r"]) -> tuple[Expression, ...]:
    """The activations `sum_j c_kj phi_j(scale_k t + shift_k)`, less their values at zero, as functions of `t`.

    Args:
        t: The symbol.
        nodes: The layer.
        farthest: How large t gets, for each node.

    Raises:
        TypeError: if the basis is neither polynomial nor piecewise polynomial.
    """
    scales, shifts, coefficients, basis = nodes.scales, nodes.shifts, nodes.coefficients, nodes.basis
    whole = polynomials(scales, shifts, coefficients, basis)
    if whole is not None:
        whole[:, 0] = 0
        whole = plain_numbers(whole, farthest[:, None] ** torch.arange(whole.shape[1], device=whole.device))
        return tuple(polynomial_formula(t, row) for row in whole.tolist())
    constants = basis.combine(shifts[None], coefficients)[0]
    basis = plain(basis)
    if not isinstance(basis, PiecewiseBasis):
        raise TypeError(f"formulas are known for polynomials, splines and hinges, got {basis!r}")
    breaks, table = pieces(basis, coefficients)
    table[:, :, 0] -= constants[:, None]
    breaks = (breaks - shifts[:, None]) / scales[:, None]
    powers = torch.arange(table.shape[2], device=table.device)
    table = table * scales[:, None, None] ** powers
    wide = (breaks.amax(1) - breaks.amin(1))[:, None, None] ** powers  # from a break on
    table = plain_numbers(table, wide.expand_as(table))
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
