"""What a solver is: a first state, and a step to the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Smooth
from tenflex.bases.orthonormal import Orthonormal
from tenflex.factors import Factors
from tenflex.problem import Problem
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.sampling.reduce import Reduction, to_active_axes
from tenflex.solvers.objective import Objective

NO_LOSS = 1e-26
"""The share of the Jacobians' energy that may be lost where every direction counts: rounding, and nothing else."""


@dataclass(frozen=True)
class Prepared:
    """A problem in the coordinates in which it is solved.

    Inputs are standardized and along their active axes, outputs centred and of unit size, the basis is orthonormal, and
    some samples are set aside.

    Args:
        fitted: The objective on the samples that are fitted.
        held_out: The objective on those that never are; None when all are fitted.
        rank: The number of nodes.
        basis: The basis, recombined.
        factor: The width of the first factor of V, or None.
        output_factor: The width of the first factor of W, or None.
        penalty: The roughness form of a smooth basis, or None.
        smoothing: Its weight, or None to choose it by generalized cross-validation.
    """

    fitted: Objective
    held_out: Objective | None
    rank: int
    basis: Orthonormal
    factor: int | None = None
    output_factor: int | None = None
    penalty: Float[Tensor, "d d"] | None = None
    smoothing: float | None = None


def prepare(problem: Problem) -> tuple[Prepared, Reduction]:
    """The problem as solvers see it, and the reduction that leads back from its coordinates."""
    samples, reduction = problem.samples, problem.samples.reduction
    if reduction is None:
        whole = problem.coordinates.choose(samples.inputs, samples.outputs)
        samples, reduction = to_active_axes(whole.apply(samples), whole, NO_LOSS)
    count, aside = len(samples), problem.held_out_count
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).to(samples.inputs.device)
    fitted = samples.select(order[aside:].sort().values)
    require_signal(fitted)
    held_out = Objective(samples.select(order[:aside]), problem.coupling) if aside else None
    smooth = problem.basis if isinstance(problem.basis, Smooth) else None
    basis = Orthonormal(problem.basis if smooth is None else smooth.basis)
    m, n = samples.inputs.shape[1], samples.outputs.shape[1]
    return Prepared(
        Objective(fitted, problem.coupling),
        held_out,
        problem.rank,
        basis,
        None if problem.factor is None else min(problem.factor, m),
        None if problem.output_factor is None else min(problem.output_factor, n),
        None if smooth is None else basis.roughness().to(samples.inputs),
        None if smooth is None else smooth.weight,
    ), reduction


def require_signal(fitted: Samples) -> None:
    """Raise ValueError if all that varies was set aside."""
    if not fitted.jacobians.any() or (fitted.outputs - fitted.outputs[0]).abs().max() == 0:
        raise ValueError(
            f"the outputs vary at held-out samples only, and are constant or have zero Jacobians at the {len(fitted)} "
            f"fitted ones: pass more inputs, or hold none out with held_out=0"
        )


@dataclass(frozen=True)
class State:
    """Where a solver stands.

    Args:
        factors: The layer, in the prepared coordinates.
        jacobian_error: The relative squared error of the Jacobians of the fitted samples.
        output_error: The same of the outputs.
        smoothing: The weight of the roughness penalty in use.
        taken: The steps taken by the solver.
        stopped: Why it stopped, or None while it goes on.
        stage: The name of the algorithm at work, for progress.
        memory: What the solver keeps between steps; only the solver reads it.
    """

    factors: Factors
    jacobian_error: float
    output_error: float
    smoothing: float = 0.0
    taken: int = 0
    stopped: Result | None = None
    stage: str = ""
    memory: Any = None


class Solver(ABC):
    """An algorithm as a first state and a step. The loop, the history and the failures are in `decouple`."""

    @abstractmethod
    def init(self, problem: Prepared, generator: torch.Generator) -> State:
        """A first state from nothing; all randomness comes from `generator`."""

    @abstractmethod
    def step(self, problem: Prepared, state: State) -> State:
        """The next state, with `taken` one higher; `stopped` is set when there is no use in going on."""

    @abstractmethod
    def total(self, problem: Prepared) -> int:
        """The most steps it will take."""

    def resume(self, problem: Prepared, state: State) -> State:
        """A first state from what another solver left."""
        raise ValueError(f"{type(self).__name__} starts from nothing: put it first in a Chain")

    def finished(self, problem: Prepared, state: State) -> bool:
        """Whether it stopped by itself or has taken all its steps."""
        return state.stopped is not None or state.taken >= self.total(problem)


def require_solver(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a solver."""
    if not isinstance(value, Solver):
        raise TypeError(f"{name} must be a solver such as ConstrainedALS(), got {value!r}")


def measured(problem: Prepared, state: State, factors: Factors, **changes: Any) -> State:
    """`state` with new factors, their errors on the fitted samples, and other changes."""
    factors = with_best_bias(problem.fitted, factors)
    jacobian_error, output_error = problem.fitted.errors(factors)
    return replace(state, factors=factors, jacobian_error=jacobian_error, output_error=output_error, **changes)


def with_best_bias(objective: Objective, factors: Factors) -> Factors:
    """The factors with the bias that fits the outputs' mean exactly."""
    off = objective.mean - factors.outputs(objective.inputs).mean(0)
    return replace(factors, bias=factors.bias + off)
