"""Minimise the objective itself, over everything together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenflex.checks import require_number, require_whole
from tenflex.factors import Factors
from tenflex.layered import LayeredFactors
from tenflex.objective.cancellation import CANCELLATION
from tenflex.objective.prepared import Prepared
from tenflex.objective.roughness import roughness
from tenflex.objective.walls import Walls, within_walls
from tenflex.result import Result
from tenflex.solvers.base import Solver, State, judged, measured, penalized

LARGE = 1e8
"""What L-BFGS sees in place of the objective's first value."""


FAR = 1e-6
"""L-BFGS starts anew when the objective has fallen to this share."""


@dataclass(frozen=True)
class Refine(Solver):
    r"""The exact joint refinement: L-BFGS with a strong-Wolfe line search over V, C, W and the shifts.

    Alternating least squares ignores that G and H move with V; here their dependence is kept, through the second
    derivative of the activations. The objective never rises. Works on full and on factored maps alike.

    Where activations must have a given shape, the descent runs on an augmented Lagrangian, and every state has the best
    coefficients of that shape for the linear maps that the descent has reached. When they no longer get better, the
    multipliers are set anew.

    References:
        Liu, Nocedal, "On the limited memory BFGS method for large scale optimization", 1989,
        https://doi.org/10.1007/BF01589116

    Args:
        iterations: The most iterations of L-BFGS.
        stride: The iterations that make one step of the loop.
        history: The pairs of vectors that L-BFGS keeps.
        tolerance: It has converged when a step lowers the objective by less than this share.

    Raises:
        ValueError: if a number is out of its range.
    """

    keeps_constraints: ClassVar[bool] = True
    uses_covariance: ClassVar[bool] = True
    layers: ClassVar[tuple[int, ...]] = (1, 2)
    iterations: int = 150
    stride: int = 10
    history: int = 20
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("iterations", "stride", "history"):
            require_whole(name, getattr(self, name), at_least=1)
        require_number("tolerance", self.tolerance, at_least=0)

    def total(self, problem: Prepared) -> int:
        return -(-self.iterations // self.stride)

    def init(self, problem: Prepared, generator: torch.Generator) -> State:
        raise ValueError(
            "Refine starts from a layer: put a solver before it, as in Chain((ConstrainedALS(), Refine()))"
        )

    def resume(self, problem: Prepared, state: State) -> State:
        return replace(state, taken=0, stopped=None, stage="refine", memory=None)

    def step(self, problem: Prepared, state: State) -> State:
        exact = state.jacobian_error < CANCELLATION
        descent = state.memory
        if descent is None or descent.exact != exact or penalized(problem, state) < FAR * descent.size:
            standing, walls = within_walls(problem, state.factors, state.smoothing)
            start = replace(state, factors=standing)
            descent = Descent(problem, start, self.stride, self.history, exact, walls)
        factors, _ = within_walls(problem, descent.advance(), state.smoothing)
        after = measured(problem, state, factors, taken=state.taken + 1, memory=descent)
        return self._judge(problem, state, after)

    def _judge(self, problem: Prepared, before: State, after: State) -> State:
        """Accept the step only if it lowered the objective, and say when there is no use in going on."""
        old, new = penalized(problem, before), penalized(problem, after)
        if not new <= old:
            if after.memory is before.memory:  # the curvature that it remembers may mislead it: start it anew
                return replace(before, taken=after.taken, memory=None)
            return replace(before, taken=after.taken, stopped=Result.CONVERGED)
        result = judged(after, old, new, self.tolerance)
        if result.stopped is Result.CONVERGED and problem.nonnegative and after.memory is before.memory:
            return replace(after, memory=None)  # better multipliers may lead further
        return result


class Descent:
    """L-BFGS on the matrices of a layer, between two steps of the loop.

    The objective is made large: torch forgets curvature where a step and its change of gradient have a product below an
    absolute 1e-10, and would stall (https://github.com/pytorch/pytorch/blob/v2.6.0/torch/optim/lbfgs.py).
    """

    def __init__(
        self, problem: Prepared, state: State, stride: int, history: int, exact: bool, walls: Walls | None = None
    ) -> None:
        factors, self.walls = state.factors, walls
        self.problem, self.factors, self.smoothing, self.exact = problem, factors, state.smoothing, exact
        self.size = max(penalized(problem, state), 1e-200)
        self.parameters = [
            one.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for one in self.start()
        ]
        self.optimizer = torch.optim.LBFGS(
            self.parameters,
            max_iter=stride,
            max_eval=2 * stride,
            history_size=history,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-16,
            tolerance_change=1e-18,
        )

    def advance(self) -> Factors | LayeredFactors:
        """The layers after the next iterations."""
        self.optimizer.step(self._loss)
        return self.layer([one.detach().clone() for one in self.parameters])

    def start(self) -> Sequence[Tensor]:
        """The parameters with which it begins."""
        return self.factors.tensors()

    def layer(self, parameters: Sequence[Tensor]) -> Factors | LayeredFactors:
        """The layer with these parameters."""
        return self.factors.with_tensors(parameters)

    @torch.enable_grad()
    def _loss(self) -> Tensor:
        objective = self.problem.fitted
        self.optimizer.zero_grad()
        factors: Any = self.layer(self.parameters)
        errors = objective.value(factors, self.exact)
        loss = errors[0] + objective.weight_f * objective.size_f * errors[1]
        if self.problem.penalty is not None:
            loss = loss + roughness(self.problem, factors, self.smoothing)
        if self.walls is not None:
            loss = loss + self.walls.price(factors)
        loss = loss * (LARGE / self.size)
        loss.backward()
        return loss.detach()
