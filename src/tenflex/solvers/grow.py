"""One node more: the warm start of a path over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_whole
from tenflex.factors import Activations, Factors, transposed
from tenflex.objective.linear import solve_positive
from tenflex.objective.prepared import Prepared
from tenflex.objective.rest import Rest
from tenflex.objective.roughness import choose_smoothing
from tenflex.objective.steps import activate, best_coefficients, coefficient_system, likely_signs
from tenflex.solvers.base import Solver, State, measured, unfit


@dataclass(frozen=True)
class Grow(Solver[None]):
    r"""Start from a layer that is known, with a new node where the Jacobians it leaves are largest.

    .. math:: R_s = J_s - W \operatorname{diag}(h_s) V^\top, \quad
        \max_{\|v\| = \|w\| = 1} \sum_s (w^\top R_s v)^2

    Gradients of what is left are drawn, improved by alternating over v and w, and the pair that lowers the objective
    most is taken. The step then solves for the coefficients of all nodes together, so the objective never rises. The
    tensor R is never formed. A refinement over everything should follow.

    References:
        De Lathauwer, De Moor, Vandewalle, "On the best rank-1 and rank-(R1, ..., RN) approximation of higher-order
        tensors", 2000, https://doi.org/10.1137/S0895479898346995

    Args:
        factors: The layer, in the prepared coordinates, with one node less than the problem.
        candidates: The gradients that are drawn.

    Raises:
        ValueError: if `candidates` is not a whole number of at least 1, or the problem has another number of nodes.
    """

    factors: Factors
    candidates: int = 8

    def __post_init__(self) -> None:
        require_whole("candidates", self.candidates, at_least=1)

    def total(self, problem: Prepared) -> int:
        return 1

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, weights=True, shapes=True)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[None]:
        (known,) = self.factors.ranks
        if problem.rank != known + 1:
            raise ValueError(
                f"Grow adds one node to a layer of {known}, got a problem of rank {problem.rank}: set rank "
                f"to {known + 1}"
            )
        rest = Rest(problem.fitted, self.factors)
        V, W = rest.leading_pairs(self.candidates, generator)
        V, shift = placed(problem, V)
        best = rest.gains(problem, V, W, shift).argmax()
        factors = extended(problem, self.factors, V[:, best], W[:, best], shift[best])
        if problem.nonnegative:
            factors = turned(problem, factors)
        return measured(problem, State(factors, None, stage="grow"), factors)

    def step(self, problem: Prepared, state: State[None]) -> State[None]:
        factors, one = state.factors, state.factors.only
        activated = activate(one.basis, problem.fitted, factors.V, one.shift)
        system = coefficient_system(problem, activated, factors.V, factors.W)
        smoothing = choose_smoothing(problem, system)
        coefficients = best_coefficients(problem, one.basis, system, one.coefficients, smoothing)
        after = factors.with_activations(0, coefficients=coefficients)
        if all(len(maps) == 1 for maps in after.maps):
            after = after.balanced()
        return measured(problem, state, after, taken=state.taken + 1, smoothing=smoothing)


def placed(problem: Prepared, V: Float[Tensor, "m count"]) -> tuple[Float[Tensor, "m count"], Float[Tensor, " count"]]:
    """Directions scaled to the interval of the basis, and their shifts."""
    scale, shift = problem.basis.place(problem.fitted.inputs @ V)
    return V * scale, shift


def extended(problem: Prepared, factors: Factors, v: Tensor, w: Tensor, shift: Tensor) -> Factors:
    """The layer with one more node, whose coefficients are zero."""
    one = factors.only
    V, W = with_column(factors.maps[0], v), with_column(transposed(factors.maps[1]), w)
    coefficients = torch.cat([one.coefficients, torch.zeros_like(one.coefficients[:1])])
    longer = Activations(coefficients, torch.cat([one.shift, shift[None]]), one.basis)
    extended = Factors.single(V, W, longer, factors.bias)
    return extended.with_activations(0, basis=problem.basis.fit(extended.arguments(problem.fitted.inputs)[0]))


def turned(problem: Prepared, factors: Factors) -> Factors:
    """The layer whose last node acts with the sign in which its activation is nearest to those that are allowed."""
    one = factors.only
    activated = activate(one.basis, problem.fitted, factors.V, one.shift)
    signs = likely_signs(problem, activated, one.basis, factors.V, factors.W) * torch.ones_like(one.shift)
    signs[:-1] = 1.0  # the others' coefficients are allowed as they are
    first, *rest = factors.maps[1]
    return factors.with_map(1, signs[:, None] * first, *rest)


def with_column(maps: tuple[Tensor, ...], column: Tensor) -> tuple[Tensor, ...]:
    """A map with one more column; of two factors the first stays, and its columns combine to the new one."""
    if len(maps) == 1:
        return (torch.cat([maps[0], column[:, None]], 1),)
    first, second = maps
    new = solve_positive(first.mT @ first, first.mT @ column[:, None])
    return first, torch.cat([second, new], 1)
