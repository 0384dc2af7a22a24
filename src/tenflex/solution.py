"""What solving a problem gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.layered import LayeredFactors
from tenflex.problem import Problem
from tenflex.result import Result

if TYPE_CHECKING:
    from tenflex.evaluate.errors import Errors
    from tenflex.formulas import Formulas
    from tenflex.nodes import Nodes


@dataclass(frozen=True)
class Record:
    """One line of a solution's history.

    Args:
        stage: The algorithm at work.
        jacobian_error: Relative squared error of the Jacobians of the fitted samples.
        output_error: The same of the outputs.
        held_out_error: The relative squared error of the outputs of held-out samples; None when all are fitted.
        seconds: Time since the start.
    """

    stage: str
    jacobian_error: float
    output_error: float
    held_out_error: float | None
    seconds: float


@dataclass(frozen=True)
class Solution:
    """A flexible layer for a problem, in the coordinates of the problem's samples as they were sampled.

    Args:
        factors: The layer, or the two (`LayeredFactors`) that a problem with two ranks asks for.
        problem: What was asked.
        result: Why the solver stopped; `result.value` is advice.
        history: A record for every step.
    """

    factors: Factors | LayeredFactors
    problem: Problem
    result: Result
    history: tuple[Record, ...]

    @property
    def coefficients(self) -> Float[Tensor, "r d"] | tuple[Tensor, Tensor]:
        """C: the coefficients of every activation; of two layers, those of the first and of the second."""
        return self.factors.coefficients

    @property
    def output_error(self) -> float:
        """Relative error of the outputs, `||F - F_hat|| / ||F - mean(F)||`, on held-out samples where there are any."""
        last = self.history[-1]
        return (last.output_error if last.held_out_error is None else last.held_out_error) ** 0.5

    @property
    def jacobian_error(self) -> float:
        """Relative error of the Jacobians, `||J - J_hat|| / ||J||`, in reduced coordinates on the fitted samples."""
        return self.history[-1].jacobian_error ** 0.5

    @property
    def errors(self) -> Errors:
        """Relative errors of outputs and Jacobians on fitted and on held-out samples, in all and for every output.

        They are measured anew, with one pass over the samples.
        """
        from tenflex.evaluate.errors import relative_errors

        return relative_errors(self.factors, self.problem)

    @property
    def layers(self) -> tuple[Nodes, ...]:
        """The nodes in canonical form, with readable scales and signs and their sizes: of one layer, or of each of two.

        See `tenflex.nodes.Nodes`.
        """
        from tenflex.identify.verdict import original_inputs
        from tenflex.nodes import canonical_layers

        return canonical_layers(self.factors, original_inputs(self.problem.samples))

    def to_sympy(self) -> Formulas:
        """The layer as formulas of sympy: every `g_k(t)`, and the outputs as functions of `x1, ..., xm`.

        Raises:
            TypeError: if the activations are neither polynomials nor piecewise polynomials.
        """
        from tenflex.formulas import formulas

        return formulas(self.layers)

    def plot(self, path: str | Path, *, most: int = 20) -> None:
        """Draw every activation with the data points; see `tenflex.evaluate.plot_nodes.plot_nodes`.

        Args:
            path: The file to write; its ending chooses the format (png, pdf, svg).
            most: The most nodes that are drawn, the largest ones.

        Raises:
            PlotsUnavailableError: if matplotlib is not installed.
        """
        from tenflex.evaluate.plot_nodes import plot_nodes

        plot_nodes(self, path, most=most)

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file with all there is to know, the samples included; `load_solution` reads it.

        Args:
            path: The file to write, ending in `.safetensors`; an earlier one is replaced as a whole or not at all.

        Raises:
            TypeError: if the basis or the coordinates are not tenflex's own.
            ValueError: if the path does not end in `.safetensors`.
        """
        from tenflex.solution_file import save_solution

        save_solution(self, path)

    def __str__(self) -> str:
        from tenflex.summary import summary

        return summary(self)
