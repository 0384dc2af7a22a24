"""What solving a problem gives."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex._version import __version__
from tenflex.checks import require_finite, require_floating
from tenflex.coordinates import COORDINATES
from tenflex.factors import Activations, Factors
from tenflex.families import by_name
from tenflex.problem import Problem
from tenflex.reading.errors import Errors, relative_errors
from tenflex.reading.formulas import Formulas, formulas
from tenflex.reading.nodes import Nodes, canonical_layers
from tenflex.reading.plot_nodes import plot_nodes
from tenflex.reading.summary import summary
from tenflex.reduction import Reduction
from tenflex.result import Judged, Record, Result
from tenflex.samples import Samples
from tenflex.shown import Reported
from tenflex.storage.earlier import kinds_of_first_format
from tenflex.storage.files import beside, read_file, require_own, write_tensors
from tenflex.storage.values import pack, unpack

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Solution(Reported):
    """Flexible layers for a problem, in the coordinates of the problem's samples as they were sampled.

    Args:
        factors: The layers.
        problem: What was asked.
        result: Why the solver stopped; `result.value` is advice.
        history: A record for every step.
        test_error: Relative error of the outputs, `||F - F_hat|| / ||F - mean(F)||`, on the samples that chose nothing;
            None where there are none.

    Example:
        >>> solution = decouple(problem)
        >>> solution.to_sympy().expanded()
        (a**2 + 2*a*b + b**2, a**3 - 3*a**2*b + 3*a*b**2 - b**3)
        >>> torch.allclose(solution(torch.tensor([2.0, 1.0])), torch.tensor([9.0, 1.0]))
        True
    """

    factors: Factors
    problem: Problem
    result: Result
    history: tuple[Record, ...]
    test_error: float | None = None

    @property
    def output_error(self) -> float:
        """Relative error of the outputs on samples that chose nothing; without any, on those that come next to that.

        Those are the validation samples, on which steps were chosen, or the fitted ones.
        """
        return self.validation_error if self.test_error is None else self.test_error

    @property
    def judged(self) -> Judged:
        """The samples of `output_error`."""
        if self.test_error is not None:
            return Judged.TEST
        return Judged.FITTED if self.history[-1].held_out_error is None else Judged.VALIDATION

    @property
    def validation_error(self) -> float:
        """Relative error of the outputs on the samples that choose: starts, steps, ranks; or on the fitted ones."""
        last = self.history[-1]
        return (last.output_error if last.held_out_error is None else last.held_out_error) ** 0.5

    @property
    def jacobian_error(self) -> float:
        """Relative error of the Jacobians, `||J - J_hat|| / ||J||`, in reduced coordinates on the fitted samples.

        Where they were estimated both norms count errors by their covariance; `errors` tells them without.
        """
        return self.history[-1].jacobian_error ** 0.5

    @property
    def errors(self) -> Errors:
        """Relative errors of outputs and Jacobians on fitted and on held-out samples, in all and for every output.

        They are measured anew, with one pass over the samples.
        """
        return relative_errors(self.factors, self.problem)

    @property
    def layers(self) -> tuple[Nodes, ...]:
        """The nodes in canonical form, with readable scales and signs and their sizes, layer by layer.

        See `tenflex.reading.nodes.Nodes`.
        """
        return canonical_layers(self.factors, self.problem.samples.original_inputs)

    def to_sympy(self) -> Formulas:
        """The layer as formulas of sympy: every `g_k(t)`, and the outputs as functions of the inputs.

        Of several layers `outputs` are functions of what the layer before gives, h1, h2, ..., whose formulas are in
        `before`; `expanded()` puts polynomials into each other. Inputs have the names of the samples, x1, ..., xm if
        they have none. Numbers that are nothing but rounding noise at the samples are left out, and others are rounded
        where that takes nothing but noise. Inputs far from zero beside their spread, such as years, make coefficients
        that cancel, and formulas lose the digits that do: center such inputs before sampling.

        Raises:
            TypeError: if the activations are neither polynomials nor piecewise polynomials.
        """
        samples = self.problem.samples
        names = None if samples.names is None else samples.names[0]
        return formulas(self.layers, samples.original_inputs.cpu().double(), names)

    def plot(self, path: str | Path | None = None, *, most: int = 20) -> Figure:
        """Draw every activation with the data points; see `tenflex.reading.plot_nodes.plot_nodes`.

        Args:
            path: The file to write; its ending chooses the format (png, pdf, svg). None to write none.
            most: The most nodes that are drawn, the largest ones.

        Returns:
            The figure of matplotlib, which a notebook shows.

        Raises:
            PlotsUnavailableError: if matplotlib is not installed.
        """
        return plot_nodes(self.factors, self.problem, path, most=most)

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file with all there is to know, the samples included; `load_solution` reads it.

        Args:
            path: The file to write, ending in `.safetensors`; an earlier one is replaced as a whole or not at all.

        Raises:
            OSError: if the file cannot be written.
            TypeError: if the basis or the coordinates are of no family that is known (`Families.add_`).
            ValueError: if the path does not end in `.safetensors`, or is a file of another program.
        """
        save_solution(self, path)

    def __call__(self, points: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """The outputs of the layers at points, in the type of the points.

        Raises:
            TypeError: if the points are not a floating-point tensor.
            ValueError: if they have another number of inputs.
        """
        require_floating("points", points)
        m = len(self.factors.maps[0][0])
        if points.shape[-1:] != (m,):
            raise ValueError(f"expected points (..., {m}), got the shape {tuple(points.shape)}")
        outputs = self.factors.outputs(points.reshape(-1, m).to(self.factors.bias))
        return outputs.to(points).view(*points.shape[:-1], len(self.factors.bias))

    def simulate(self, past: Float[Tensor, "lags n"], exogenous: Float[Tensor, "T k"]) -> Float[Tensor, "T n"]:
        """Run the map on its own outputs, as a nonlinear autoregressive model (NARX).

        Its inputs at time t are :math:`(y_{t-1}, ..., y_{t-lags}, u_t)`: the last outputs, the newest first, and then
        what comes from outside.

        Args:
            past: The outputs before the first step, `(lags, n)`, the oldest first.
            exogenous: The other inputs at every step, `(T, k)`; `(T, 0)` if there are none.

        Returns:
            The outputs at every step.

        Raises:
            TypeError: if one of them is not a floating-point tensor.
            ValueError: if they do not make up the inputs of the map, or are not finite.
        """
        for name, tensor in (("past", past), ("exogenous", exogenous)):
            require_floating(name, tensor)
        m, n = len(self.factors.maps[0][0]), len(self.factors.bias)
        sizes = past.ndim == exogenous.ndim == 2 and past.shape[1] == n
        if not sizes or past.numel() + exogenous.shape[1] != m:
            raise ValueError(
                f"expected past (lags, {n}) and exogenous (T, k) with lags * {n} + k = {m}, got the shapes "
                f"{tuple(past.shape)} and {tuple(exogenous.shape)}"
            )
        for name, tensor in (("past", past), ("exogenous", exogenous)):
            require_finite(name, tensor)
        outputs = list(past)
        for given in exogenous:
            outputs.append(self(torch.cat([*outputs[: -len(past) - 1 : -1], given])))
        return torch.stack(outputs[len(past) :]) if len(exogenous) else past[:0]

    def __str__(self) -> str:
        return summary(self.factors, self.problem, self.result)


FORMAT, FIRST_FORMAT = "tenflex-solution/2", "tenflex-solution/1"


KINDS: Mapping[str, type[Any]] = ChainMap(
    by_name(Activations, Factors, Problem, Record, Reduction, Samples, Solution), COORDINATES.members
)
"""What a file may hold besides tensors, numbers, texts and bases."""


def save_solution(solution: Solution, path: str | Path) -> None:
    """Write a solution; see `Solution.save`.

    Raises:
        TypeError: if the basis or the coordinates are of no family that is known (`Families.add_`), so that no file
            could bring them back.
        OSError: if the file cannot be written.
        ValueError: if the path does not end in `.safetensors`, is a folder, or a file of another program.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"expected a file whose name ends in .safetensors, got {str(path)!r}")
    require_own(path)
    tensors: dict[str, Tensor] = {}
    packed = pack(solution, "solution", tensors, KINDS)
    versions = {"tenflex": __version__, "torch": torch.__version__}
    header = {"format": FORMAT, "versions": versions, "solution": packed}
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        write_tensors(temporary, tensors, header)


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
        >>> solution = decouple(problem)
        >>> solution.save("springs.safetensors")
        >>> str(load_solution("springs.safetensors")) == str(solution)
        True
    """
    path = Path(path)
    header, tensors = read_file(path, "a .safetensors file written by Solution.save", "the solution")
    found = str(header.get("format"))
    if found.startswith("tenflex/"):
        raise ValueError(f"{path} holds a compressed network, not a solution: load its folder with tenflex.load")
    if found not in (FORMAT, FIRST_FORMAT):
        raise ValueError(f"{path} has the format {found!r}, expected {FORMAT!r}: update tenflex")
    kinds = KINDS if found == FORMAT else kinds_of_first_format(KINDS)
    try:
        return _checked(unpack(header.get("solution"), tensors, kinds))
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or was changed ({error}): save the solution again") from None


def _checked(solution: Any) -> Solution:
    """The solution, if its parts are what they should be and fit each other."""
    if not isinstance(solution, Solution):
        raise ValueError("it holds no solution")
    parts: dict[str, Any] = {
        "factors": Factors,
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
    factors, ranks = solution.factors, solution.problem.ranks
    sizes = [one.basis.size for one in factors.activations]
    expected = [*pairwise((m, *ranks, n)), *((r,) for r in ranks), *zip(ranks, sizes, strict=False), (n,)]
    for one in (*factors.tensors(), factors.bias):
        require_floating("its factors", one)
    found = [tuple(one.shape) for one in (*factors.full().tensors(), factors.bias)]
    if found != expected:
        raise ValueError(f"its factors must have the shapes {expected}, got {found}")
