"""A solution in words and as JSON, with the user's own names for inputs and outputs, and whether to trust it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tenflex.bases.wrapped import plain
from tenflex.identify import Identification, identify
from tenflex.reading.nodes import Nodes
from tenflex.reading.polynomials import polynomials
from tenflex.reading.summary import error_table, names_of, polynomial_text, sum_text
from tenflex.solution import Solution

MOST_NODES = 20
"""More nodes than this are counted, and given in full in the files."""

UNTESTED = "Whether the nodes of several layers are unique is not tested."


@dataclass(frozen=True)
class Described:
    """A solution with names, and what is known about its uniqueness.

    Args:
        solution: The solution.
        inputs: The names of the inputs.
        outputs: The names of the outputs.
        verdict: Whether to trust the nodes; None for several layers, for which there is no test.
    """

    solution: Solution
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    verdict: Identification | None

    @classmethod
    def of(cls, solution: Solution, inputs: Sequence[str], outputs: Sequence[str]) -> Described:
        """The solution, judged."""
        verdict = identify(solution) if len(solution.factors.ranks) == 1 else None
        return cls(solution, tuple(inputs), tuple(outputs), verdict)

    def layers(self) -> list[Layer]:
        """The layers, from the inputs to the outputs."""
        several, x = self.solution.layers, self.solution.problem.samples.original_inputs.cpu()
        letters = [one.node.format("") for one in names_of(len(several))]
        found, names = [], self.inputs
        for letter, nodes in zip(letters, several, strict=True):
            last = nodes is several[-1]
            outputs = self.outputs if last else tuple(f"{letter}{k + 1}" for k in range(len(nodes.W)))
            t = nodes.arguments(x)
            ends = list(zip(t.amin(0).tolist(), t.amax(0).tolist(), strict=True))
            found.append(Layer(letter, nodes, names, outputs, ends))
            x, names = nodes.outputs(x), outputs
        return found

    def remarks(self) -> list[str]:
        """The outputs as sums of nodes, unless there are many, and the errors."""
        last = self.layers()[-1]
        few = max(len(last.names), len(self.outputs)) <= MOST_NODES
        sums = [*(last.sum(i) for i in range(len(self.outputs))), ""] if few else []
        return [*sums, *error_table(self.solution.errors, self.outputs)]

    def judgement(self) -> tuple[str, list[str]]:
        """Whether to trust the nodes, and the reasons."""
        first, *others = str(self.verdict or UNTESTED).splitlines()
        return first, [one.strip() for one in others]

    def text(self) -> str:
        """All of it for a file, with formulas in full precision."""
        lines = [str(self.solution), "", "In full precision:"]
        lines += [line for layer in reversed(self.layers()) for line in layer.formulas()]
        return "\n".join([*lines, "", str(self.verdict or UNTESTED), ""])

    def to_dict(self) -> dict[str, Any]:
        """Plain values: everything about the layer that `text` says, and its verdict."""
        solution = self.solution
        return {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "rank": solution.problem.rank,
            "basis": repr(solution.problem.basis),
            "result": solution.result.name,
            "errors": asdict(solution.errors),
            "layers": [layer.to_dict() for layer in self.layers()],
            "verdict": None if self.verdict is None else _verdict_to_dict(self.verdict),
        }


def _verdict_to_dict(verdict: Identification) -> dict[str, Any]:
    return {
        "trusted": verdict.trusted,
        "trusted_nodes": list(verdict.trusted_nodes),
        "uniqueness": verdict.uniqueness.name,
        "node_errors": None if verdict.node_errors is None else list(verdict.node_errors),
        "text": str(verdict),
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

    @property
    def names(self) -> tuple[str, ...]:
        """What its activations are called, from g1 on."""
        return tuple(f"{self.letter}{k + 1}" for k in range(len(self.nodes.sizes)))

    def row(self, k: int) -> tuple[str, str, str, str, str]:
        """A node in a table: its name, its size, its argument `a - 0.5 b`, its activation, and what it acts on."""
        column = self.nodes.V[:, k]
        argument = sum_text(column.tolist(), self.inputs, (column.abs() * self.nodes.deviations).tolist())
        effect = sum_text(self.nodes.W[:, k].tolist(), self.outputs)
        return self.names[k], f"{self.nodes.sizes[k]:.3g}", argument, self.activation(k), effect

    def activation(self, k: int) -> str:
        """A polynomial in t, or the functions that it combines and where."""
        low, high = self.ends[k]
        polynomial = self.polynomial(k)
        if polynomial is None:
            basis = plain(self.nodes.basis)
            return f"{basis.size} {type(basis).__name__}, t from {low:.3g} to {high:.3g}"
        return polynomial_text(polynomial, max(-low, high))

    def sum(self, i: int) -> str:
        """`f1 = g1 - 0.3 g2 + 1`: an output."""
        weights = [*self.nodes.W[i].tolist(), self.nodes.bias[i].item()]
        return f"{self.outputs[i]} = {sum_text(weights, [*self.names, ''], most=len(weights))}"

    def polynomial(self, k: int) -> list[float] | None:
        """The coefficients of 1, t, t^2, ...; None if the activations are no polynomials."""
        nodes = self.nodes
        table = polynomials(nodes.scales, nodes.shifts, nodes.coefficients, nodes.basis)
        return None if table is None else [0.0, *table[k, 1:].tolist()]  # the constants are in the bias

    def formulas(self) -> Iterator[str]:
        """Outputs, arguments and polynomials with all their digits."""
        if self.outputs != self.names:
            for name, row, bias in zip(self.outputs, self.nodes.W.tolist(), self.nodes.bias.tolist(), strict=True):
                yield f"{name} = {_exact([bias, *row], ['', *self.names])}"
        for k, name in enumerate(self.names):
            polynomial = self.polynomial(k)
            if polynomial is None:
                yield f"{name}(t): {self.activation(k)}; its coefficients are in the other files"
            else:
                yield f"{name}(t) = {_exact(polynomial, ['', 't', *(f't^{j}' for j in range(2, len(polynomial)))])}"
            yield f"    t = {_exact(self.nodes.V[:, k].tolist(), self.inputs)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "bias": dict(zip(self.outputs, self.nodes.bias.tolist(), strict=True)),
            "basis": repr(self.nodes.basis),
            "nodes": [self._node_to_dict(k) for k in range(len(self.names))],
        }

    def _node_to_dict(self, k: int) -> dict[str, Any]:
        """A node; its activation is `sum_j coefficients_j phi_j(scale t + shift)`, less its value at t = 0."""
        nodes = self.nodes
        return {
            "name": self.names[k],
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


def _exact(coefficients: Sequence[float], terms: Sequence[str]) -> str:
    """A sum with all the digits of its coefficients; zeros are left out."""
    parts = [
        f"{'-' if c < 0 else '+'} {abs(c)!r} {term}".rstrip() for c, term in zip(coefficients, terms, strict=True) if c
    ]
    text = " ".join(parts) or "0"
    return text.removeprefix("+ ") if text.startswith("+") else text.replace("- ", "-", 1)
