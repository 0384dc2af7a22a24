"""A solution in tables, in words and as JSON, with the user's own names for inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from tenflex.bases.wrapped import plain
from tenflex.factors import Factors
from tenflex.identify import Identification, identify
from tenflex.reading.nodes import Nodes
from tenflex.reading.polynomials import polynomials
from tenflex.reading.summary import error_table, polynomial_text, sum_text
from tenflex.solution import Solution

MOST_NODES = 20
"""More nodes than this are counted, and given in full in the files."""

TWO_LAYERS_UNTESTED = "Whether the nodes of two layers are unique is not tested."


@dataclass(frozen=True)
class Described:
    """A solution with names, and what is known about its uniqueness.

    Args:
        solution: The solution.
        inputs: The names of the inputs.
        outputs: The names of the outputs.
        verdict: Whether to trust the nodes; None for two layers, for which there is no test.
    """

    solution: Solution
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    verdict: Identification | None

    @classmethod
    def of(cls, solution: Solution, inputs: Sequence[str], outputs: Sequence[str]) -> Described:
        """The solution, judged."""
        verdict = identify(solution) if isinstance(solution.factors, Factors) else None
        return cls(solution, tuple(inputs), tuple(outputs), verdict)

    def layers(self) -> list[Layer]:
        """The layers, from the inputs to the outputs."""
        several, x = self.solution.layers, self.solution.problem.samples.original_inputs.cpu()
        letters = ("g",) if len(several) == 1 else ("h", "g")
        found, names = [], self.inputs
        for letter, nodes in zip(letters, several, strict=True):
            last = nodes is several[-1]
            outputs = self.outputs if last else tuple(f"h{k + 1}" for k in range(len(nodes.W)))
            t = nodes.arguments(x)
            ends = list(zip(t.amin(0).tolist(), t.amax(0).tolist(), strict=True))
            found.append(Layer(letter, nodes, names, outputs, ends))
            x, names = nodes.outputs(x), outputs
        return found

    def tables(self) -> Iterator[Table]:
        """A table of the nodes of every layer, the last one first."""
        trusted = None if self.verdict is None else self.verdict.trusted_nodes
        for layer in reversed(self.layers()):
            yield layer.table(trusted)

    def remarks(self) -> Iterator[str]:
        """What follows the tables: the outputs, the errors, and whether to trust the nodes."""
        last = self.layers()[-1]
        if len(last.nodes.sizes) <= MOST_NODES and len(self.outputs) <= MOST_NODES:
            yield from (last.sum(i) for i in range(len(self.outputs)))
            yield ""
        yield from map(self._with_name, error_table(self.solution.errors))
        yield ""
        yield from ([TWO_LAYERS_UNTESTED] if self.verdict is None else str(self.verdict).splitlines())

    def _with_name(self, row: str) -> str:
        """A row of the table of errors, with the output's own name at its begin."""

        def name(found: re.Match[str]) -> str:
            return self.outputs[int(found[1]) - 1].ljust(len(found[0]) - 2) + "  "

        return re.sub(r"^f(\d+) +", name, row)

    def text(self) -> str:
        """All of it for a file, with formulas in full precision."""
        named = [
            f"{one} = {name}"
            for letter, names in (("x", self.inputs), ("f", self.outputs))
            for one, name in ((f"{letter}{k + 1}", name) for k, name in enumerate(names))
        ]
        lines = [str(self.solution), "", "In this table " + ", ".join(named) + ".", "", "In full precision:"]
        lines += [line for layer in reversed(self.layers()) for line in layer.formulas()]
        lines += ["", TWO_LAYERS_UNTESTED if self.verdict is None else str(self.verdict)]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: everything about the layer that `text` says, and its verdict."""
        solution, verdict = self.solution, self.verdict
        return {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "rank": solution.problem.rank,
            "basis": repr(solution.problem.basis),
            "result": solution.result.name,
            "errors": asdict(solution.errors),
            "layers": [layer.to_dict() for layer in self.layers()],
            "verdict": None
            if verdict is None
            else {
                "trusted": verdict.trusted,
                "trusted_nodes": list(verdict.trusted_nodes),
                "uniqueness": verdict.uniqueness.name,
                "node_errors": None if verdict.node_errors is None else list(verdict.node_errors),
                "text": str(verdict),
            },
        }


@dataclass(frozen=True)
class Layer:
    """The nodes of one layer, with names.

    Args:
        letter: What the activations are called.
        nodes: The nodes in canonical form.
        inputs: The names of what the layer is given.
        outputs: The names of what it gives.
        ends: The smallest and the largest argument of every node at the samples.
    """

    letter: str
    nodes: Nodes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ends: Sequence[tuple[float, float]]

    def table(self, trusted: Sequence[int] | None) -> Table:
        """The largest nodes; `trusted` are those that are known to one digit at least."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("node", no_wrap=True)
        table.add_column("size", justify="right", no_wrap=True)
        for name in ("argument t", "activation", "acts on"):
            table.add_column(name, overflow="fold")
        if trusted is not None:
            table.add_column("trusted", no_wrap=True)
        for k in self.nodes.order[:MOST_NODES]:
            cells = [f"{self.letter}{k + 1}", f"{self.nodes.sizes[k]:.3g}", self.argument(k), self.activation(k)]
            table.add_row(*cells, self.effect(k), *(() if trusted is None else ("yes" if k in trusted else "no",)))
        if len(self.nodes.order) > MOST_NODES:
            table.add_row(f"and {len(self.nodes.order) - MOST_NODES} smaller ones", "", "", "", "")
        return table

    def argument(self, k: int) -> str:
        """`a - 0.5 b`."""
        column = self.nodes.V[:, k]
        return sum_text(column.tolist(), self.inputs, (column.abs() * self.nodes.deviations).tolist())

    def activation(self, k: int) -> str:
        """A polynomial in t, or the functions that it combines and where."""
        low, high = self.ends[k]
        polynomial = self.polynomial(k)
        if polynomial is None:
            basis = plain(self.nodes.basis)
            return f"{basis.size} {type(basis).__name__}, t from {low:.3g} to {high:.3g}"
        return polynomial_text(polynomial, max(-low, high))

    def effect(self, k: int) -> str:
        """`f1 - 0.3 f2`: the outputs that the node moves, by how much."""
        return sum_text(self.nodes.W[:, k].tolist(), self.outputs)

    def sum(self, i: int) -> str:
        """`f1 = g1 - 0.3 g2 + 1`: an output."""
        terms = [*(f"{self.letter}{k + 1}" for k in range(len(self.nodes.sizes))), ""]
        weights = [*self.nodes.W[i].tolist(), self.nodes.bias[i].item()]
        return f"{self.outputs[i]} = {sum_text(weights, terms, most=len(terms))}"

    def polynomial(self, k: int) -> list[float] | None:
        """The coefficients of 1, t, t^2, ...; None if the activations are no polynomials."""
        nodes = self.nodes
        table = polynomials(nodes.scales, nodes.shifts, nodes.coefficients, nodes.basis)
        return None if table is None else [0.0, *table[k, 1:].tolist()]  # the constants are in the bias

    def formulas(self) -> Iterator[str]:
        """Outputs, arguments and polynomials with all their digits."""
        names = [f"{self.letter}{k + 1}" for k in range(len(self.nodes.sizes))]
        if len(self.nodes.W) != len(names) or self.outputs != tuple(names):
            for name, row, bias in zip(self.outputs, self.nodes.W.tolist(), self.nodes.bias.tolist(), strict=True):
                yield f"{name} = {_exact([bias, *row], ['', *names])}"
        for k, name in enumerate(names):
            polynomial = self.polynomial(k)
            if polynomial is None:
                yield f"{name}(t): {self.activation(k)}; its coefficients are in the other files"
            else:
                yield f"{name}(t) = {_exact(polynomial, ['', 't', *(f't^{j}' for j in range(2, len(polynomial)))])}"
            yield f"    t = {_exact(self.nodes.V[:, k].tolist(), self.inputs)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an activation is `sum_j coefficients_j phi_j(scale t + shift)`, less its value at t = 0."""
        nodes = self.nodes
        return {
            "bias": dict(zip(self.outputs, nodes.bias.tolist(), strict=True)),
            "basis": repr(nodes.basis),
            "nodes": [
                {
                    "name": f"{self.letter}{k + 1}",
                    "size": nodes.sizes[k].item(),
                    "argument": dict(zip(self.inputs, nodes.V[:, k].tolist(), strict=True)),
                    "acts_on": dict(zip(self.outputs, nodes.W[:, k].tolist(), strict=True)),
                    "from": self.ends[k][0],
                    "to": self.ends[k][1],
                    "polynomial": self.polynomial(k),
                    "scale": nodes.scales[k].item(),
                    "shift": nodes.shifts[k].item(),
                    "coefficients": nodes.coefficients[k].tolist(),
                }
                for k in range(len(nodes.sizes))
            ],
        }


def _exact(coefficients: Sequence[float], terms: Sequence[str]) -> str:
    """A sum with all the digits of its coefficients; zeros are left out."""
    parts = [
        f"{'-' if c < 0 else '+'} {abs(c)!r} {term}".rstrip() for c, term in zip(coefficients, terms, strict=True) if c
    ]
    text = " ".join(parts) or "0"
    return text.removeprefix("+ ") if text.startswith("+") else text.replace("- ", "-", 1)
