"""What a solver is: a first state, and a step to the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis, Smooth
from tenflex.bases.cone import Cone, cone_of
from tenflex.bases.orthonormal import Orthonormal
from tenflex.bases.shaped import orders
from tenflex.bases.wrapped import demands, plain
from tenflex.covariance import is_diagonal
from tenflex.layered import Layer
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

    Inputs are standardized and along their active axes (unless every entry of J has a variance of its own), outputs
    centred and of unit size, the basis is orthonormal, and some samples are set aside.

    Args:
        fitted: The objective on the samples that are fitted.
        held_out: The objective on those that never are; None when all are fitted.
        ranks: The number of nodes of each layer.
        basis: The basis, recombined.
        factor: The width of the first factor of V, or None.
        output_factor: The width of the first factor of W, or None.
        penalty: The roughness form of a smooth basis, or None.
        smoothing: Its weight, or None to choose it by generalized cross-validation.
        nonnegative: The orders of the derivatives of every activation that must not be negative: 0 for the activation
            itself, 1 for its slope.
    """

    fitted: Objective
    held_out: Objective | None
    ranks: tuple[int, ...]
    basis: Orthonormal
    factor: int | None = None
    output_factor: int | None = None
    penalty: Float[Tensor, "d d"] | None = None
    smoothing: float | None = None
    nonnegative: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """The number of nodes of the only layer."""
        (rank,) = self.ranks
        return rank

    def cone(self, basis: Basis) -> Cone | None:
        """The coefficients of a basis, which is this problem's fitted to some nodes, that are allowed; None for all."""
        if not self.nonnegative:
            return None
        if not isinstance(basis, Orthonormal):
            raise TypeError(f"expected the recombined basis of a prepared problem, got {basis!r}")
        return cone_of(basis, self.nonnegative).to(self.fitted.inputs)


def prepare(problem: Problem) -> tuple[Prepared, Reduction]:
    """The problem as solvers see it, and the reduction that leads back from its coordinates."""
    samples, reduction = problem.samples, problem.samples.reduction
    if reduction is None:
        whole = problem.coordinates.choose(samples.inputs, samples.outputs, samples.jacobians)
        samples, reduction = whole.apply(samples), whole
        if not has_variances(samples):
            samples, reduction = to_active_axes(samples, reduction, NO_LOSS)
    kept, aside = problem.split()
    fitted = samples.select(kept)
    require_signal(fitted)
    held_out = Objective(samples.select(aside), problem.coupling) if len(aside) else None
    smooth = next((one for one in demands(problem.basis) if isinstance(one, Smooth)), None)
    basis = Orthonormal(plain(problem.basis))
    m, n = samples.inputs.shape[1], samples.outputs.shape[1]
    return Prepared(
        Objective(fitted, problem.coupling),
        held_out,
        problem.ranks,
        basis,
        None if problem.factor is None else min(problem.factor, m),
        None if problem.output_factor is None else min(problem.output_factor, n),
        None if smooth is None else basis.roughness().to(samples.inputs),
        None if smooth is None else smooth.weight,
        orders(problem.basis),
    ), reduction


def has_variances(samples: Samples) -> bool:
    """Whether every entry of the Jacobians has a variance of its own, which a rotation would turn into blocks."""
    return samples.covariance is not None and is_diagonal(samples.covariance, *samples.jacobians.shape[1:])


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
        factors: The layer (`Factors`), or the two (`LayeredFactors`), in the prepared coordinates.
        jacobian_error: The relative squared error of the Jacobians of the fitted samples.
        output_error: The same of the outputs.
        smoothing: The weight of the roughness penalty in use.
        taken: The steps taken by the solver.
        stopped: Why it stopped, or None while it goes on.
        stage: The name of the algorithm at work, for progress.
        memory: What the solver keeps between steps; only the solver reads it.
    """

    factors: Any
    jacobian_error: float
    output_error: float
    smoothing: float = 0.0
    taken: int = 0
    stopped: Result | None = None
    stage: str = ""
    memory: Any = None


class Solver(ABC):
    """An algorithm as a first state and a step. The loop, the history and the failures are in `decouple`."""

    keeps_constraints: ClassVar[bool] = False
    """Whether the activations of every state are what `Monotone` and `NonNegative` ask for; others are refused."""

    layers: ClassVar[tuple[int, ...]] = (1,)
    """How many layers of activations it can find; problems that ask for others are refused."""

    uses_covariance: ClassVar[bool] = False
    """Whether the Jacobians' errors are weighted by the inverse of their covariance; others are refused one."""

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

    def parts(self) -> tuple[Solver, ...]:
        """The algorithms at work: those inside for a solver made of solvers, else the solver itself."""
        return (self,)


def require_solver(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a solver."""
    if not isinstance(value, Solver):
        raise TypeError(f"{name} must be a solver such as ConstrainedALS(), got {value!r}")


def require_covariance_used(problem: Prepared, solver: Solver) -> None:
    """Raise ValueError if the Jacobians have a covariance that a part of the solver would ignore."""
    ignoring = next((part for part in solver.parts() if not part.uses_covariance), None)
    if ignoring is not None and problem.fitted.samples.covariance is not None:
        raise ValueError(
            f"{type(ignoring).__name__} does not use the covariance of the Jacobians: use WeightedCPD, ConstrainedALS, "
            f"Refine or GaussNewton, or drop it with samples.unweighted() or, for a start only, with Unweighted(solver)"
        )


def measured(problem: Prepared, state: State, factors: Any, **changes: Any) -> State:
    """`state` with new factors, their errors on the fitted samples, and other changes."""
    factors = with_best_bias(problem.fitted, factors)
    jacobian_error, output_error = problem.fitted.errors(factors)
    return replace(state, factors=factors, jacobian_error=jacobian_error, output_error=output_error, **changes)


def with_best_bias(objective: Objective, factors: Layer) -> Layer:
    """The factors with the bias that fits the outputs' mean exactly."""
    off = objective.mean - factors.outputs(objective.inputs).mean(0)
    return replace(factors, bias=factors.bias + off)
