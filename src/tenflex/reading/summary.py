"""A solution in a few lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.problem import Problem
from tenflex.reading.errors import Errors, relative_errors
from tenflex.reading.nodes import Nodes, canonical_layers
from tenflex.reading.polynomials import polynomials
from tenflex.result import Result

WIDTH = 120
"""Columns of a terminal that lines never exceed."""


NOISE = 1e-9
"""Terms that are smaller than this, relative to the largest, are rounding noise and are not shown."""


MOST_LINES = 8
"""The most nodes, and the most outputs, that are written out."""


MOST_TERMS = 8
"""The most terms of a sum that are written out, the largest ones."""


@dataclass(frozen=True)
class Names:
    """What the parts of a layer are called; `{}` stands for a number, counted from one.

    Args:
        node: An activation.
        argument: Its argument.
        input: What the layer is given; or a name for each.
    """

    node: str
    argument: str
    input: str | tuple[str, ...]


def names_of(depth: int, inputs: tuple[str, ...] | None = None) -> tuple[Names, ...]:
    """What the parts of so many layers are called: g(t) of x for one, g(u) of h(t) for two, with numbers for more.

    Args:
        depth: How many layers.
        inputs: The names of the inputs; None for x1, x2, ...
    """
    before: str | tuple[str, ...] = inputs or "x{}"
    if depth == 1:
        return (Names("g{}", "t{}", before),)
    numbered = [str(k + 1) + "_" if depth > 2 else "" for k in range(depth - 1)]
    found = []
    for number in numbered:
        found.append(Names(f"h{number}{{}}", f"t{number}{{}}", before))
        before = f"h{number}{{0}}(t{number}{{0}})"
    return (*found, Names("g{}", "u{}", before))


def summary(factors: Factors, problem: Problem, result: Result) -> str:
    """Sizes, result, errors and nodes of a solution; no line is wider than 120 columns.

    The nodes come in the order of their sizes and in their canonical form: see `Nodes`. Numbers have four digits, and
    terms of rounding noise are left out.
    """
    inputs, outputs = problem.samples.names or (None, None)
    lines = [*_head(factors, problem), result.value, "", *error_table(relative_errors(factors, problem), outputs)]
    x = problem.samples.original_inputs.cpu()
    named = list(zip(canonical_layers(factors, x), names_of(len(factors.activations), inputs), strict=True))
    shown = []
    for nodes, names in named:
        t = nodes.arguments(x)
        shown.append(_layer(nodes, names, t))
        x = nodes.activations(t)
    lines += _output_lines(*named[-1], x, outputs)
    for one in reversed(shown):
        lines += one
    return "\n".join(part for line in lines for part in _folded(line))


def sum_text(
    coefficients: Sequence[float],
    terms: Sequence[str],
    sizes: Sequence[float] | None = None,
    most: int = MOST_TERMS,
) -> str:
    """`2 x1 - 0.5 x3 + ...`: the largest terms of a sum in their order, without rounding noise.

    Args:
        coefficients: The factors of the terms.
        terms: What they multiply; an empty text for a constant.
        sizes: How large each product gets, to tell large terms from small ones; None for the sizes of the factors.
        most: The most terms that are written.
    """
    sizes = list(map(abs, coefficients)) if sizes is None else sizes
    shown = [k for k, size in enumerate(sizes) if size > NOISE * max(sizes)]
    kept = set(sorted(shown, key=lambda k: -sizes[k])[:most])
    parts = [_signed(coefficients[k], terms[k]) for k in shown if k in kept]
    text = " ".join(parts + ["+ ..."] * (len(shown) > most)) or "0"
    return text.removeprefix("+ ") if text.startswith("+") else text.replace("- ", "-", 1)


def polynomial_text(coefficients: Sequence[float], reach: float, t: str = "t") -> str:
    """A polynomial in `t` from the highest power down; `reach` is the largest `t` that is met, in size.

    Example:
        >>> polynomial_text([1.0, -3.0, 2.0], reach=1.0)
        '2 t^2 - 3 t + 1'
    """
    degrees = range(len(coefficients) - 1, -1, -1)
    terms = ["" if degree == 0 else t if degree == 1 else f"{t}^{degree}" for degree in degrees]
    sizes = [abs(coefficients[degree]) * reach**degree for degree in degrees]
    return sum_text(coefficients[::-1], terms, sizes, most=len(terms))


def argument_text(nodes: Nodes, node: int, name: str | Sequence[str] = "x{}", most: int = MOST_TERMS) -> str:
    """`x1 - 0.5 x2`: the argument of a node; `name` is that of an input, with a place for its number, or of each."""
    column = nodes.V[:, node]
    names = [name.format(i + 1) for i in range(len(column))] if isinstance(name, str) else name
    return sum_text(column.tolist(), names, (column.abs() * nodes.deviations).tolist(), most)


def _signed(coefficient: float, term: str) -> str:
    size = f"{abs(coefficient):.4g}"
    written = term if size == "1" and term else f"{size} {term}".rstrip()
    return f"{'-' if coefficient < 0 else '+'} {written}"


def error_table(errors: Errors, outputs: Sequence[str] | None = None, most: int = MOST_LINES) -> list[str]:
    """The relative errors of outputs and Jacobians, in all and for the outputs that are fitted worst.

    Args:
        errors: What to show.
        outputs: What the outputs are called; None for f1, f2, ...
        most: The most outputs that are shown.
    """
    columns = [errors.fitted] if errors.held_out is None else [errors.fitted, errors.held_out]
    judged = columns[-1].each_output
    called = [f"f{i + 1}" for i in range(len(judged))] if outputs is None else outputs
    worst = sorted(sorted(range(len(judged)), key=lambda i: -judged[i])[:most]) if len(judged) > 1 else []
    rows = [["relative errors of", *["outputs"] * len(columns), *["Jacobians"] * len(columns)]]
    names = ["fitted", "held out"][: len(columns)]
    rows.append(["", *names, *names])
    rows.append(["samples", *[str(one.count) for one in columns] * 2])
    for i in worst:
        each = [one.each_output[i] for one in columns] + [x for one in columns for x in one.each_jacobian[i : i + 1]]
        rows.append([called[i], *map("{:.2e}".format, each), *[""] * (2 * len(columns) - len(each))])
    if len(worst) < len(judged) and worst:
        rows[3:3] = [[f"(the worst {most} of {len(judged)})", *[""] * (2 * len(columns))]]
    every = [one.outputs for one in columns] + [one.jacobians for one in columns]
    rows.append(["all outputs" if worst else called[0], *map("{:.2e}".format, every)])
    return _aligned(rows)


def _head(factors: Factors, problem: Problem) -> Iterator[str]:
    ranks = factors.ranks
    layers = "two" if len(ranks) == 2 else str(len(ranks))
    nodes = _count(ranks[0], "node") if len(ranks) == 1 else f"{'-'.join(map(str, ranks))} nodes in {layers} layers"
    yield f"Solution: {_count(len(factors.V), 'input')}, {_count(len(factors.W), 'output')}, {nodes}, {problem.basis}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"


def _output_lines(nodes: Nodes, names: Names, G: Float[Tensor, "S r"], outputs: tuple[str, ...] | None) -> list[str]:
    """The outputs as sums of activations; nothing if they are many."""
    if max(nodes.W.shape) > MOST_LINES:
        return []
    order = list(nodes.order)
    terms = [*(f"{names.node.format(k + 1)}({names.argument.format(k + 1)})" for k in order), ""]
    weights = torch.cat([nodes.W[:, order], nodes.bias[:, None]], 1)
    reach = torch.cat([G.abs().amax(0)[order], G.new_ones(1)])
    rows = zip(weights.tolist(), (weights.abs() * reach).tolist(), strict=True)
    called = outputs or [f"f{i + 1}" for i in range(len(nodes.W))]
    sums = (sum_text(row, terms, sizes, len(terms)) for row, sizes in rows)
    return ["", *(f"{name} = {one}" for name, one in zip(called, sums, strict=True))]


def _layer(nodes: Nodes, names: Names, t: Float[Tensor, "S r"]) -> list[str]:
    """A few polynomials written out, other nodes as a table."""
    table = polynomials(nodes.scales, nodes.shifts, nodes.coefficients, nodes.basis)
    few = max(nodes.W.shape) <= MOST_LINES
    return _node_table(nodes, names, t) if table is None or not few else _node_lines(nodes, names, t, table)


def _node_lines(nodes: Nodes, names: Names, t: Float[Tensor, "S r"], table: Float[Tensor, "r p"]) -> list[str]:
    table[:, 0] = 0
    symbol, lines = names.argument.format("").rstrip("_"), []
    for k in nodes.order:
        low, high = t[:, k].min().item(), t[:, k].max().item()
        polynomial = polynomial_text(table[k].tolist(), max(-low, high), symbol)
        argument = argument_text(nodes, k, names.input)
        lines += ["", f"{names.node.format(k + 1)}({symbol}) = {polynomial}"]
        size = f"{nodes.sizes[k]:.3g}"
        lines.append(f"    {names.argument.format(k + 1)} = {argument}, from {low:.4g} to {high:.4g}; size {size}")
    return lines


def _node_table(nodes: Nodes, names: Names, t: Float[Tensor, "S r"]) -> list[str]:
    rows = [["node", "size", "from", "to", f"argument {names.argument.format('').rstrip('_')}"]]
    for k in nodes.order[:MOST_LINES]:
        numbers = (nodes.sizes[k].item(), t[:, k].min().item(), t[:, k].max().item())
        cells = [names.node.format(k + 1), *map("{:.3g}".format, numbers)]
        rows.append([*cells, argument_text(nodes, k, names.input, most=4)])
    left = len(nodes.order) - MOST_LINES
    return ["", *_aligned(rows), *([f"and {_count(left, 'smaller node')}"] if left > 0 else [])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _folded(line: str) -> list[str]:
    """A line in parts that are narrow enough; those that go on are indented."""
    indent = " " * (len(line) - len(line.lstrip()))
    return wrap(line, WIDTH, subsequent_indent=f"{indent}    ", drop_whitespace=True) if len(line) > WIDTH else [line]
