"""Coupled alternating least squares with exact coefficients: the default start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_whole
from tenflex.factors import Activations, Factors
from tenflex.objective.cancellation import CANCELLATION
from tenflex.objective.gradients import gradient_directions
from tenflex.objective.linear import solve_positive
from tenflex.objective.prepared import Prepared
from tenflex.objective.roughness import choose_smoothing
from tenflex.objective.steps import (
    OutputStep,
    activate,
    best_coefficients,
    coefficient_system,
    likely_signs,
    normalized,
    output_step,
)
from tenflex.solvers.base import Solver, State, measured, unfit


@dataclass(frozen=True)
class ConstrainedALS(Solver["Ahead | None"]):
    r"""Alternate over V, C and W, each by an exact least-squares step.

    With W and V fixed the objective is quadratic in the coefficients of all activations together, so the constraint
    that G and H come from the same functions holds at every step. Works for r > n. Where activations must have a given
    shape, that step is a quadratic programme.

    .. math:: V \leftarrow \sum_s J_s^\top (W \odot h_s) \, [(H^\top H) \odot (W^\top W)]^{-1}, \quad
        W \leftarrow [c_J \sum_s (J_s V) \odot h_s + c_F F^\top G] \, [c_J (H^\top H) \odot (V^\top V) + c_F G^\top
        G]^{-1}

    References:
        Zniyed, Usevich, Miron, Brie, "Tensor-based framework for training flexible neural networks", 2021,
        https://arxiv.org/abs/2106.13542, of which this is the exactly constrained form.

    Args:
        sweeps: The number of sweeps over V, C and W.

    Raises:
        ValueError: if `sweeps` is not a whole number of at least 1.

    Example:
        >>> from tenflex.solvers import ConstrainedALS
        >>> solution = decouple(problem, ConstrainedALS(sweeps=25))
        >>> solution.validation_error < 1e-3
        True
    """

    sweeps: int = 25

    def __post_init__(self) -> None:
        require_whole("sweeps", self.sweeps, at_least=1)

    def total(self, problem: Prepared) -> int:
        return self.sweeps

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, weights=True, shapes=True, views=problem.fitted.samples.views != 0)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Ahead | None]:
        V, W = gradient_directions(problem.fitted, problem.rank, generator)
        return fitted_layer(problem, V, W, None, repeats=3)

    def resume(self, problem: Prepared, state: State[Any]) -> State[Ahead | None]:
        V, W = normalized(state.factors.V), state.factors.W
        return fitted_layer(problem, V, W, state.factors.only.coefficients, repeats=1)

    def step(self, problem: Prepared, state: State[Ahead | None]) -> State[Ahead | None]:
        factors = state.factors
        V, coefficients = next_directions(problem, state), factors.only.coefficients
        after = fitted_layer(problem, V, factors.W, coefficients, repeats=1)
        return replace(after, taken=state.taken + 1)


@dataclass(frozen=True, eq=False)
class Ahead:
    """The normal equations in V of the sweep to come, which the last pass over J has made on its way.

    Moving scale between W and the coefficients does not change them.

    Args:
        gram: `(H^T H) * (W^T W)`.
        right: `sum_s J_s^T (W * h_s)`.
    """

    gram: Float[Tensor, "r r"]
    right: Float[Tensor, "m r"]


def next_directions(problem: Prepared, state: State[Ahead | None]) -> Float[Tensor, "m r"]:
    """V by least squares, with columns of unit norm."""
    if state.memory is not None:
        return normalized(solve_positive(state.memory.gram, state.memory.right.mT).mT)
    factors, objective = state.factors, problem.fitted
    (H,) = factors.slopes(objective.inputs)
    return normalized(objective.term.input_map(factors.V, factors.W, H))


def fitted_layer(
    problem: Prepared, V: Tensor, W: Tensor, coefficients: Tensor | None, repeats: int
) -> State[Ahead | None]:
    """The layer of directions V of unit norm: coefficients and W by least squares, `repeats` times."""
    objective = problem.fitted
    t = objective.inputs @ V
    scale, shift = problem.basis.place(t)
    basis = problem.basis.fit(t * scale + shift)
    V = V * scale
    activated = activate(basis, objective, V, shift)
    if coefficients is None:
        coefficients = V.new_zeros(problem.rank, basis.size)
        W = W * likely_signs(problem, activated, basis, V, W)
    smoothing = 0.0
    for _ in range(repeats):
        system = coefficient_system(problem, activated, V, W)
        smoothing = choose_smoothing(problem, system)
        coefficients = best_coefficients(problem, basis, system, coefficients, smoothing)
        last = output_step(problem, activated, V, W, coefficients, smoothing)
        W = last.W
    factors = Factors.single(V, W, Activations(coefficients, shift, basis), objective.mean).balanced()
    state: State[Ahead | None] = State(factors, None, smoothing=smoothing, stage="constrained ALS")
    return with_errors(problem, state, V, last)


def with_errors(
    problem: Prepared, state: State[Ahead | None], V: Float[Tensor, "m r"], last: OutputStep
) -> State[Ahead | None]:
    """The state with its errors, from what its last step has made: J is not read again."""
    objective, W = problem.fitted, last.W
    if last.sums is None:
        return measured(problem, state, state.factors)
    ahead = Ahead(last.sums.gram * (W.mT @ W), last.sums.along_outputs(W))
    misfit = objective.energy - 2 * (ahead.right * V).sum() + (ahead.gram * (V.mT @ V)).sum()
    jacobian_error = float(misfit / objective.size_j)
    if not jacobian_error > CANCELLATION:  # the differences above have lost their digits
        return replace(measured(problem, state, state.factors), memory=ahead)
    output_error = float(objective.output_error(last.G, W))
    factors = objective.with_best_bias(state.factors)
    return replace(state, factors=factors, jacobian_error=jacobian_error, output_error=output_error, memory=ahead)
