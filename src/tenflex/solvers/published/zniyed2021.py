"""The published algorithm of 2021, with its growing coupling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tenflex.checks import require_number, require_whole
from tenflex.factors import Activations, Factors
from tenflex.objective.gradients import gradient_directions
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import activate, coupled_directions, project
from tenflex.result import Result
from tenflex.solvers.base import Solver, State, measured, unfit
from tenflex.sums import centred


@dataclass(frozen=True)
class Growing:
    """A coupling that grows by a factor every few sweeps until it reaches its end.

    The default is the published schedule: its square root starts at 0.001 and is tripled every 5 sweeps until it passes
    1.

    Args:
        start: The first value, above 0.
        factor: What it is multiplied by, at least 1.
        every: The sweeps between two multiplications.
        end: It is no longer multiplied once it has passed this.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> from tenflex.solvers import Growing, ProjectedALS
        >>> slow = ProjectedALS(sweeps=20, coupling=Growing(start=1e-4, factor=3.0))
        >>> decouple(problem, slow).validation_error < 0.1
        True
    """

    start: float = 1e-6
    factor: float = 9.0
    every: int = 5
    end: float = 1.0

    def __post_init__(self) -> None:
        require_number("start", self.start, above=0)
        require_number("factor", self.factor, at_least=1)
        require_whole("every", self.every, at_least=1)
        require_number("end", self.end, above=0)

    def at(self, sweep: int) -> float:
        """The coupling in a sweep, counted from 0."""
        value = self.start
        for _ in range(sweep // self.every):
            if value > self.end:
                break
            value *= self.factor
        return value


@dataclass(frozen=True)
class ProjectedALS(Solver[None]):
    r"""Coupled ALS with unconstrained G and H, projected on the basis at the end of every sweep.

    Neither the coupling of the problem is used (this algorithm brings its own) nor the roughness penalty of a smooth
    basis. It is not monotone, so wrap it in `BestSoFar`; and :math:`G = F W^+` has no unique solution for r > n, where
    it is known to break down: use `ConstrainedALS` there.

    References:
        Zniyed, Usevich, Miron, Brie, "Tensor-based framework for training flexible neural networks", 2021,
        https://arxiv.org/abs/2106.13542

    Args:
        sweeps: The number of sweeps.
        coupling: The schedule of the outputs' weight, in relative units.

    Raises:
        TypeError: if `coupling` is not a `Growing`.
        ValueError: if `sweeps` is not a whole number of at least 1.

    Example:
        >>> from tenflex.solvers import Chain, ProjectedALS, Refine
        >>> solution = decouple(problem, Chain((ProjectedALS(20), Refine(50))))
        >>> solution.validation_error < 1e-3
        True
    """

    sweeps: int = 50
    coupling: Growing = Growing()

    def __post_init__(self) -> None:
        require_whole("sweeps", self.sweeps, at_least=1)
        if not isinstance(self.coupling, Growing):
            raise TypeError(f"coupling must be a schedule such as Growing(1e-6, 9.0), got {self.coupling!r}")

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem)

    def total(self, problem: Prepared) -> int:
        return self.sweeps

    def init(self, problem: Prepared, generator: torch.Generator) -> State[None]:
        V, W = gradient_directions(problem.fitted, problem.rank, generator)
        return self._project(problem, V, W, self.coupling.at(0))

    def step(self, problem: Prepared, state: State[None]) -> State[None]:
        objective, factors = problem.fitted, state.factors
        weight_f = self.coupling.at(state.taken) / objective.size_f
        G, H, _ = factors.only.curves(factors.arguments(objective.inputs)[0])
        G, free = centred(G, objective.count), torch.zeros(problem.rank, dtype=G.dtype, device=G.device)
        V, W = coupled_directions(objective, factors.V, G, H, weight_f, free)
        after = self._project(problem, V, W, self.coupling.at(state.taken))
        if not after.jacobian_error + after.output_error < float("inf"):
            return replace(state, taken=state.taken + 1, stopped=Result.DIVERGED)
        return replace(after, taken=state.taken + 1)

    def _project(self, problem: Prepared, V: Tensor, W: Tensor, coupling: float) -> State[None]:
        """Plain CPD step for H, `F W^+` for G, and both on the span of the basis."""
        objective = problem.fitted
        t = objective.inputs @ V
        scale, shift = problem.basis.place(t)
        V = V * scale
        basis = problem.basis.fit(t * scale + shift)
        activated = activate(basis, objective, V, shift)
        H = objective.jacobians.slopes(V, W)
        G = objective.centred @ torch.linalg.pinv(W, rcond=1e-12).mT
        coefficients = project(activated, G, H, coupling)
        factors = Factors.single(V, W, Activations(coefficients, shift, basis), objective.mean).balanced()
        # The penalty's weight is for a refinement that may follow.
        state = State(factors, None, smoothing=problem.smoothing or 0.0, stage="projected ALS")
        return measured(problem, state, factors)
