"""The canonical polyadic decomposition of a tensor of derivatives by alternating least squares, as a solver."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.checks import require_number, require_whole
from tenflex.factors import Factors
from tenflex.result import Result
from tenflex.solvers.base import Prepared, Solver, State
from tenflex.solvers.constrained_als import fitted_layer, normalized
from tenflex.solvers.line_search import longest_step
from tenflex.solvers.linear import solve_positive
from tenflex.solvers.objective import CANCELLATION, Misfit
from tenflex.solvers.refine import EXACT, penalized
from tenflex.solvers.tensor import JacobianTensor

ROUNDING = 1e-24
"""Below this relative squared error a decomposition that no longer falls goes up and down by rounding only."""

SEARCH = 3
"""A line search follows every so many sweeps: it costs about as much as one of them."""


@dataclass(frozen=True)
class Decomposition:
    """Three factors of a tensor; the columns of V and W have unit norm.

    Args:
        V: `(m, r)`.
        W: `(n, r)`.
        H: `(S, r)`.
    """

    V: Float[Tensor, "m r"]
    W: Float[Tensor, "n r"]
    H: Float[Tensor, "S r"]

    def error(self, tensor: JacobianTensor) -> float:
        """The relative squared error, by residuals where the Gram identities would cancel."""
        energy = torch.linalg.vector_norm(tensor.entries).square()
        gram = (self.V.mT @ self.V) * (self.W.mT @ self.W)
        overlap = (tensor.onto(self.V, self.W) * self.H).sum()
        error = ((energy - 2 * overlap + ((self.H @ gram) * self.H).sum()) / positive(energy)).item()
        if error < CANCELLATION:
            error = (Misfit.apply(tensor, self.V, self.W, self.H) / positive(energy)).item()
        return error


def random_directions(
    tensor: JacobianTensor, rank: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
    """Unit columns for V and W, uniform in direction.

    Drawn gradients, the start of the coupled solvers, are often alike: from these more runs of a CPD succeed.
    """
    like = tensor.entries
    V, W = (torch.randn(size, rank, generator=generator, dtype=like.dtype) for size in like.shape[:0:-1])
    return normalized(V.to(like)), normalized(W.to(like))


def free_slopes(tensor: JacobianTensor, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> Float[Tensor, "S r"]:
    """The best third factor, by least squares."""
    return solve_positive((V.mT @ V) * (W.mT @ W), tensor.onto(V, W).mT).mT


def improved_directions(
    tensor: JacobianTensor, parts: Decomposition
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
    """V and then W by least squares, with columns of unit norm."""
    W, slopes, sums = parts.W, parts.H.mT @ parts.H, tensor.contracted(parts.H)
    V = normalized(solve_positive(slopes * (W.mT @ W), sums.along_outputs(W).mT).mT)
    W = normalized(solve_positive(slopes * (V.mT @ V), sums.along_inputs(V).mT).mT)
    return V, W


@dataclass(frozen=True)
class AlternatingCPD(Solver):
    """Alternating least squares over V, W and the third factor; after each step a layer with these directions.

    Args:
        sweeps: The most sweeps over the three factors.
        stride: The sweeps that make one step of the loop, after which the coefficients are fitted.
        tolerance: It has converged when a step changes the decomposition's own error by less than this share.

    Raises:
        ValueError: if a number is out of its range.
    """

    keeps_constraints: ClassVar[bool] = True  # of the layers; the decomposition itself knows nothing of them
    sweeps: int = 200
    stride: int = 10
    tolerance: float = 1e-5
    stage: ClassVar[str] = "CPD"

    def __post_init__(self) -> None:
        require_whole("sweeps", self.sweeps, at_least=1)
        require_whole("stride", self.stride, at_least=1)
        require_number("tolerance", self.tolerance, at_least=0)

    @abstractmethod
    def tensor(self, problem: Prepared) -> JacobianTensor:
        """The tensor to decompose; ValueError if the problem has none that can be."""

    @abstractmethod
    def slopes(self, problem: Prepared, V: Tensor, W: Tensor) -> Tensor:
        """The third factor for given directions."""

    def directions(self, problem: Prepared, factors: Factors) -> tuple[Tensor, Tensor]:
        """V and W of a layer, as they enter the decomposition."""
        return normalized(factors.V), normalized(factors.W)

    def layer(self, problem: Prepared, parts: Decomposition) -> State:
        """The layer of a decomposition: coefficients, and the output map once more, by least squares on F and J."""
        return replace(fitted_layer(problem, parts.V, parts.W, None, repeats=1), stage=self.stage)

    def total(self, problem: Prepared) -> int:
        return -(-self.sweeps // self.stride)

    def init(self, problem: Prepared, generator: torch.Generator) -> State:
        return self._begin(problem, *random_directions(self.tensor(problem), problem.rank, generator))

    def resume(self, problem: Prepared, state: State) -> State:
        return self._begin(problem, *self.directions(problem, state.factors))

    def _begin(self, problem: Prepared, V: Tensor, W: Tensor) -> State:
        return self.begun(problem, Decomposition(V, W, self.slopes(problem, V, W)))

    def begun(self, problem: Prepared, parts: Decomposition) -> State:
        """The first state, from a decomposition."""
        return replace(self.layer(problem, parts), memory=(parts, parts.error(self.tensor(problem))))

    def step(self, problem: Prepared, state: State) -> State:
        (parts, before), tensor = state.memory, self.tensor(problem)
        for sweep in range(min(self.stride, self.sweeps - self.stride * state.taken)):
            parts = self.sweep(problem, tensor, parts, sweep)
        error = parts.error(tensor)
        if not math.isfinite(error):
            return replace(state, taken=state.taken + 1, stopped=Result.DIVERGED)
        after = replace(self.layer(problem, parts), taken=state.taken + 1, memory=(parts, error))
        return replace(after, stopped=self._judged(problem, after, before, error))

    def sweep(self, problem: Prepared, tensor: JacobianTensor, parts: Decomposition, number: int) -> Decomposition:
        """One sweep, the `number`-th of its step."""
        V, W = improved_directions(tensor, parts)
        return Decomposition(V, W, self.slopes(problem, V, W))

    def _judged(self, problem: Prepared, after: State, before: float, error: float) -> Result | None:
        if penalized(problem, after) < EXACT:
            return Result.EXACT
        rounding = error < ROUNDING and error > before / 2
        return Result.CONVERGED if rounding or abs(before - error) < self.tolerance * before else None


@dataclass(frozen=True)
class FreeCPD(AlternatingCPD):
    """The same with a free third factor: a line search lengthens the sweeps, and the error never rises."""

    def slopes(self, problem: Prepared, V: Tensor, W: Tensor) -> Tensor:
        return free_slopes(self.tensor(problem), V, W)

    def sweep(self, problem: Prepared, tensor: JacobianTensor, parts: Decomposition, number: int) -> Decomposition:
        after = super().sweep(problem, tensor, parts, number)
        if number % SEARCH:
            return after
        step = longest_step(tensor, (parts.V, parts.W, parts.H), (after.V, after.W, after.H))
        if step == 1:
            return after
        V, W = (normalized(torch.lerp(a, b, step)) for a, b in ((parts.V, after.V), (parts.W, after.W)))
        return Decomposition(V, W, self.slopes(problem, V, W))
