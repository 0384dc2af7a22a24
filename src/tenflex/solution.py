"""What solving a problem gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from tenflex._version import __version__
from tenflex.coordinates import PerOutput, Standardize, Whiten
from tenflex.factors import Factors
from tenflex.layered import LayeredFactors
from tenflex.problem import Problem
from tenflex.reduction import Reduction
from tenflex.result import Record, Result
from tenflex.samples import Samples
from tenflex.storage.files import beside, read_file
from tenflex.storage.values import pack, unpack

if TYPE_CHECKING:
    from tenflex.reading.errors import Errors
    from tenflex.reading.formulas import Formulas
    from tenflex.reading.nodes import Nodes


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
        from tenflex.reading.errors import relative_errors

        return relative_errors(self.factors, self.problem)

    @property
    def layers(self) -> tuple[Nodes, ...]:
        """The nodes in canonical form, with readable scales and signs and their sizes: of one layer, or of each of two.

        See `tenflex.reading.nodes.Nodes`.
        """
        from tenflex.reading.nodes import canonical_layers

        return canonical_layers(self.factors, self.problem.samples.original_inputs)

    def to_sympy(self) -> Formulas:
        """The layer as formulas of sympy: every `g_k(t)`, and the outputs as functions of `x1, ..., xm`.

        Raises:
            TypeError: if the activations are neither polynomials nor piecewise polynomials.
        """
        from tenflex.reading.formulas import formulas

        return formulas(self.layers)

    def plot(self, path: str | Path, *, most: int = 20) -> None:
        """Draw every activation with the data points; see `tenflex.reading.plot_nodes.plot_nodes`.

        Args:
            path: The file to write; its ending chooses the format (png, pdf, svg).
            most: The most nodes that are drawn, the largest ones.

        Raises:
            PlotsUnavailableError: if matplotlib is not installed.
        """
        from tenflex.reading.plot_nodes import plot_nodes

        plot_nodes(self, path, most=most)

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file with all there is to know, the samples included; `load_solution` reads it.

        Args:
            path: The file to write, ending in `.safetensors`; an earlier one is replaced as a whole or not at all.

        Raises:
            TypeError: if the basis or the coordinates are not tenflex's own.
            ValueError: if the path does not end in `.safetensors`.
        """
        pass

        save_solution(self, path)

    def __str__(self) -> str:
        from tenflex.reading.summary import summary

        return summary(self)


FORMAT = "tenflex-solution/1"


KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Factors,
        LayeredFactors,
        PerOutput,
        Problem,
        Record,
        Reduction,
        Samples,
        Solution,
        Standardize,
        Whiten,
    )
}
"""What a file may hold besides tensors, numbers, texts and bases."""


def save_solution(solution: Solution, path: str | Path) -> None:
    """Write a solution; see `Solution.save`.

    Raises:
        TypeError: if the basis or the coordinates are not tenflex's own, so that no file could bring them back.
        ValueError: if the path does not end in `.safetensors`, or is a folder.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"expected a file whose name ends in .safetensors, got {str(path)!r}")
    tensors: dict[str, Tensor] = {}
    packed = pack(solution, "solution", tensors, KINDS)
    versions = {"tenflex": __version__, "torch": torch.__version__}
    header = {"format": FORMAT, "versions": versions, "solution": packed}
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        save_file(tensors, temporary, metadata={"tenflex": json.dumps(header)})


def load_solution(path: str | Path) -> Solution:
    """A saved solution, with the same bits, in this or another process; its tensors are on the CPU.

    Args:
        path: The file that `Solution.save` wrote.

    Returns:
        The solution with its problem and samples: it can be plotted, printed, identified and saved again.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, of another program or of another version.

    Example:
        >>> solution.save("solution.safetensors")  # doctest: +SKIP
        >>> load_solution("solution.safetensors").plot("g.png")  # doctest: +SKIP
    """
    path = Path(path)
    header, tensors = read_file(path, "a .safetensors file written by Solution.save", "the solution")
    found = str(header.get("format"))
    if found.startswith("tenflex/"):
        raise ValueError(f"{path} holds a compressed network, not a solution: load its folder with tenflex.load")
    if found != FORMAT:
        raise ValueError(f"{path} has the format {found!r}, expected {FORMAT!r}: update tenflex")
    try:
        return _checked(unpack(header.get("solution"), tensors, KINDS))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or was changed ({error}): save the solution again") from None


def _checked(solution: Any) -> Solution:
    """The solution, if its parts are what they should be and fit each other."""
    if not isinstance(solution, Solution):
        raise ValueError("it holds no solution")
    parts: dict[str, Any] = {
        "factors": (Factors, LayeredFactors),
        "problem": Problem,
        "result": Result,
        "history": tuple,
    }
    for name, kind in parts.items():
        if not isinstance(getattr(solution, name), kind):
            raise ValueError(f"its {name} cannot be {getattr(solution, name)!r}")
    if not solution.history or not all(isinstance(one, Record) for one in solution.history):
        raise ValueError("its history must be records, at least one")
    _check_shapes(solution)
    return solution


def _check_shapes(solution: Solution) -> None:
    samples, reduction = solution.problem.samples, solution.problem.samples.reduction
    m, n = samples.inputs.shape[1] if reduction is None else len(reduction.mean), samples.outputs.shape[1]
    found, expected = _shapes(solution.factors, m, n, solution.problem.rank)
    if found != expected:
        raise ValueError(f"its factors must have the shapes {expected}, got {found}")


def _shapes(factors: Factors | LayeredFactors, m: int, n: int, rank: Any) -> tuple[list[Any], list[Any]]:
    """The shapes of all factors, and what they must be for a map from m to n numbers."""
    if isinstance(factors, Factors):
        parts = [factors.V, factors.W, factors.coefficients, factors.shift, factors.bias]
        expected = [(m, rank), (n, rank), (rank, factors.basis.size), (rank,), (n,)]
    else:
        parts = [factors.V, factors.U, factors.W, *factors.coefficients, *factors.shifts, factors.bias]
        r1, r2 = rank
        sizes = [(one, basis.size) for one, basis in zip(rank, factors.bases, strict=True)]
        expected = [(m, r1), (r2, r1), (n, r2), *sizes, (r1,), (r2,), (n,)]
    return [tuple(one.shape) for one in parts], expected
