"""Minimise the objective itself, over everything together."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tenflex.checks import require_number, require_whole
from tenflex.factors import Factors
from tenflex.objective.cancellation import CANCELLATION
from tenflex.objective.curvature import scalings
from tenflex.objective.prepared import Prepared
from tenflex.objective.valley import Valley
from tenflex.objective.walls import within_walls
from tenflex.result import Result
from tenflex.solvers.base import Solver, State, judged, measured, penalized, unfit
from tenflex.uncompiled import LBFGS

FAR = 1e-6
"""L-BFGS starts anew when the objective has fallen to this share."""

HELD = 2**24
"""Numbers that L-BFGS remembers at most, 128 MiB."""

ROUGH = 1e-4
"""Above these relative squared errors products in single precision, which err by 1e-7, are good for a direction."""


@dataclass(frozen=True)
class Refine(Solver["Descent | None"]):
    r"""The exact joint refinement: L-BFGS with a strong-Wolfe line search over V, C, W and the shifts.

    Alternating least squares ignores that G and H move with V; here their dependence is kept, through the second
    derivative of the activations. The objective never rises. Works on full and on factored maps alike.

    One layer is refined in coordinates in which its Gauss-Newton matrix, taken for a Kronecker product map by map, is
    about the identity. They are set anew every few steps.

    Where activations must have a given shape, the descent runs on an augmented Lagrangian, and every state has the best
    coefficients of that shape for the linear maps that the descent has reached. When they no longer get better, the
    multipliers are set anew.

    Where samples hold views of the Jacobians in place of whole ones, they are many, and nearly all time goes into
    products over them. There the descent takes these in single precision, as long as errors are large, and adds up
    in double precision. Every step is judged in double precision, and goes on in it where single
    precision leads no lower.

    References:
        Liu, Nocedal, "On the limited memory BFGS method for large scale optimization", 1989,
        https://doi.org/10.1007/BF01589116
        Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015,
        https://arxiv.org/abs/1503.05671 (the coordinates)

    Args:
        iterations: The most iterations of L-BFGS.
        stride: The iterations that make one step of the loop.
        history: The pairs of vectors that L-BFGS keeps; fewer of very many unknowns.
        tolerance: It has converged when a step lowers the objective by less than this share.
        single: Whether products over the samples of one layer may be in single precision; None where there are views.
        renewal: The steps of the loop after which the coordinates of one layer are set anew; 0 for the unknowns as they
            are, without coordinates.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> from tenflex.solvers import Chain, ConstrainedALS, Refine
        >>> solution = decouple(problem, Chain((ConstrainedALS(10), Refine(iterations=100))))
        >>> solution.validation_error < 1e-3
        True
    """

    iterations: int = 150
    stride: int = 10
    history: int = 50
    tolerance: float = 1e-5
    single: bool | None = None
    renewal: int = 5

    def __post_init__(self) -> None:
        for name in ("iterations", "stride", "history"):
            require_whole(name, getattr(self, name), at_least=1)
        require_number("tolerance", self.tolerance, at_least=0)
        require_whole("renewal", self.renewal, at_least=0)
        if self.single is not None and not isinstance(self.single, bool):
            raise ValueError(f"single must be True, False or None, got {self.single!r}")

    def total(self, problem: Prepared) -> int:
        return -(-self.iterations // self.stride)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Descent | None]:
        raise ValueError(
            "Refine starts from a layer: put a solver before it, as in Chain((ConstrainedALS(), Refine()))"
        )

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, layers=None, weights=True, shapes=True, views=True)

    def resume(self, problem: Prepared, state: State[Any]) -> State[Descent | None]:
        return state.holding(None, taken=0, stopped=None, stage="refine")

    def step(self, problem: Prepared, state: State[Descent | None]) -> State[Descent | None]:
        rough = self._may_be_rough(problem, state)
        descent = state.memory or self._begun(problem, state, rough)
        far = penalized(problem, state) < FAR * descent.size
        other = descent.exact != is_exact(state) or (descent.rough and not rough)
        if far or other or descent.old(self.renewal):
            descent = self._begun(problem, state, descent.rough and rough)
        ahead = descent.advanced()
        factors, _ = within_walls(problem, ahead.factors, state.smoothing)
        after = measured(problem, state, factors, taken=state.taken + 1, memory=ahead)
        return self._judge(problem, state, after, ahead)

    def _may_be_rough(self, problem: Prepared, state: State[Any]) -> bool:
        """Whether products in single precision are good enough."""
        views = problem.fitted.samples.views
        if len(problem.ranks) > 1 or not (views is not None if self.single is None else self.single):
            return False
        return state.output_error > ROUGH and (views == 0 or state.jacobian_error > ROUGH)

    def _begun(self, problem: Prepared, state: State[Any], rough: bool) -> Descent:
        """A descent from a state."""
        standing, walls = within_walls(problem, state.factors, state.smoothing)
        size = penalized(problem, replace(state, factors=standing))
        dtype = torch.float32 if rough else standing.W.dtype
        scaled = scalings(problem.fitted, standing) if self.renewal and len(problem.ranks) == 1 else None
        valley = Valley(problem, standing, state.smoothing, size, is_exact(state), walls, dtype, scaled)
        unknowns = sum(one.numel() for one in standing.tensors())
        return Descent.at(valley, self.stride, max(1, min(self.history, HELD // (2 * unknowns))))

    def _judge(
        self, problem: Prepared, before: State[Descent | None], after: State[Descent | None], ahead: Descent
    ) -> State[Descent | None]:
        """Accept the step only if it lowered the objective, and say when there is no use in going on."""
        old, new = penalized(problem, before), penalized(problem, after)
        going_on = before.memory is not None and before.memory.going_on and before.memory.valley is ahead.valley
        if not new <= old:
            if going_on or ahead.rough:  # the curvature that it remembers may mislead it: start it anew
                return replace(before, taken=after.taken, memory=self._begun(problem, before, rough=False))
            return replace(before, taken=after.taken, stopped=Result.CONVERGED)
        result = judged(after, old, new, self.tolerance)
        if result.stopped is Result.CONVERGED and ahead.rough:
            return replace(after, memory=self._begun(problem, after, rough=False))
        if result.stopped is Result.CONVERGED and problem.nonnegative and going_on:
            return replace(after, memory=None)  # better multipliers may lead further
        return result


def is_exact(state: State[Any]) -> bool:
    """Whether the errors of the Jacobians are so small that they are formed by residuals."""
    return state.jacobian_error < CANCELLATION


@dataclass(frozen=True, eq=False)
class Descent:
    """L-BFGS between two steps of the loop, with the pairs of vectors that it remembers.

    torch's optimizer changes in place: it is made anew from what is kept here, so that a step is a function of it.

    Args:
        valley: What it goes down.
        parameters: Where it stands.
        remembered: The state of the optimizer; None at the start.
        stride: The iterations that make an advance.
        history: The pairs of vectors that are kept.
        advances: How many there were.
    """

    valley: Valley
    parameters: tuple[Tensor, ...]
    remembered: dict[str, Any] | None
    stride: int
    history: int
    advances: int = 0

    @classmethod
    def at(cls, valley: Valley, stride: int, history: int) -> Descent:
        """The start of a descent."""
        start = tuple(one.detach().clone(memory_format=torch.contiguous_format) for one in valley.start())
        return cls(valley, start, None, stride, history)

    @property
    def exact(self) -> bool:
        """Whether the errors are formed by residuals."""
        return self.valley.exact

    @property
    def rough(self) -> bool:
        """Whether products are taken in lower precision than that of the layers."""
        return self.valley.dtype != self.parameters[0].dtype

    @property
    def going_on(self) -> bool:
        """Whether it has begun."""
        return self.advances > 0

    def old(self, renewal: int) -> bool:
        """Whether the coordinates are to be set anew, which are so after so many advances."""
        return self.valley.scalings is not None and self.advances >= renewal

    @property
    def size(self) -> float:
        """The objective where it began."""
        return self.valley.size

    @property
    def factors(self) -> Factors:
        """The layers where it stands."""
        return self.valley.layer(self.parameters)

    def advanced(self) -> Descent:
        """The descent after the next iterations."""
        parameters = [one.clone().requires_grad_() for one in self.parameters]
        optimizer = LBFGS(
            parameters,
            max_iter=self.stride,
            max_eval=2 * self.stride,
            history_size=self.history,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-16,
            tolerance_change=1e-18,
        )
        if self.remembered is not None:
            optimizer.state[parameters[0]] = copy.deepcopy(self.remembered)
        optimizer.step(lambda: self.valley.loss(parameters))
        reached = tuple(one.detach() for one in parameters)
        remembered = dict(optimizer.state[parameters[0]])
        return replace(self, parameters=reached, remembered=remembered, advances=self.advances + 1)
