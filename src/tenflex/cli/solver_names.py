"""The solvers by the names that they have on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tenflex.checks import near_names
from tenflex.cli.errors import InputError
from tenflex.problem import Problem
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    MultiStart,
    ProjectedALS,
    Solver,
    Unweighted,
    default_solver,
    prepare,
)
from tenflex.solvers.default import refinement
from tenflex.solvers.published.decuyper2021 import FilteredCPD
from tenflex.solvers.published.dreesen2015 import JacobianCPD
from tenflex.solvers.published.dreesen2018 import HessianCPD
from tenflex.solvers.published.hollander2018 import WeightedCPD
from tenflex.solvers.published.sanchez1990 import GeneralizedEigenvalues
from tenflex.solvers.published.zniyed2021_structured import StructuredCPD

DEFAULT = "default"
"""The name of the recipe that the library uses when no solver is named."""

STARTS = 5
"""How often a named solver starts anew, when nothing else is asked for."""


@dataclass(frozen=True)
class Named:
    """A published algorithm, or one of ours.

    Args:
        make: The algorithm with its usual settings.
        help: What it does, in a few words.
        order: The highest derivatives that it needs.
    """

    make: Callable[[], Solver]
    help: str
    order: int = 1


NAMED = {
    "jacobian-cpd": Named(JacobianCPD, "CPD of the Jacobians (Dreesen, Ishteva, Schoukens 2015)"),
    "generalized-eigenvalues": Named(
        GeneralizedEigenvalues, "the same without iterations, for ranks up to the number of inputs or outputs"
    ),
    "structured-cpd": Named(StructuredCPD, "with slopes on the span of the basis (Zniyed and others, SYSID 2021)"),
    "weighted-cpd": Named(WeightedCPD, "weighted by the covariance of the Jacobians (Hollander and others 2018)"),
    "filtered-cpd": Named(FilteredCPD, "slopes as filtered values, without a basis (Decuyper and others 2022)"),
    "projected-als": Named(
        lambda: BestSoFar(ProjectedALS()), "coupled with the outputs, projected on the basis (Zniyed and others 2021)"
    ),
    "constrained-als": Named(lambda: ConstrainedALS(50), "coupled with the outputs, exact coefficients"),
    "hessian-cpd": Named(HessianCPD, "CPD of the Hessians, for one output as well (Dreesen and others 2018)", order=2),
}
"""What can be named besides the default recipe."""

HELP = (
    "default: starts by jacobian-cpd (with one output by structured-cpd; with one input, or activations that are "
    "monotone or non-negative, by constrained-als; several layers by alternating least squares), then refined over "
    "everything. "
    + " ".join(f"{name}: {one.help}." for name, one in NAMED.items())
    + f" Each of these starts anew {STARTS} times (--starts), and every start is refined over everything (--no-refine: "
    f"the algorithm alone); the one with the least held-out error is kept."
)
"""The solvers in words, for --help."""


def require_name(name: str) -> None:
    """Raise InputError unless a solver is called so."""
    known = (DEFAULT, *NAMED)
    if name not in known:
        raise InputError(f"solver must be one of {', '.join(known)}, got {name!r}{near_names(name, known)}")


def derivatives_of(name: str) -> int:
    """The order of the derivatives that a solver needs."""
    return 1 if name == DEFAULT else NAMED[name].order


def solver_for(problem: Problem, name: str, starts: int | None, refine: bool) -> Solver | None:
    """A named solver, put together for a problem: its starts, each with a refinement; None for the library's recipe."""
    if name == DEFAULT and starts is None:
        return None
    with torch.no_grad():
        prepared, _ = prepare(problem)
    if name == DEFAULT:
        return MultiStart(default_solver(prepared), starts or 1)
    solver = NAMED[name].make()
    if solver.refusal(prepared) is not None and Unweighted(solver).refusal(prepared) is None:
        solver = Unweighted(solver)
    return MultiStart(Chain((solver, refinement(prepared))) if refine else solver, starts or STARTS)
