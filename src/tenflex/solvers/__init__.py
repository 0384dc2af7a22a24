"""Algorithms for `decouple`, one a file."""

from tenflex.solvers.base import Prepared, Solver, State, prepare
from tenflex.solvers.constrained_als import ConstrainedALS
from tenflex.solvers.default import default_solver
from tenflex.solvers.filtered_cpd import FilteredCPD
from tenflex.solvers.gauss_newton import GaussNewton
from tenflex.solvers.generalized_eigenvalues import GeneralizedEigenvalues
from tenflex.solvers.hessian_cpd import HessianCPD
from tenflex.solvers.jacobian_cpd import JacobianCPD
from tenflex.solvers.layered_als import LayeredALS
from tenflex.solvers.leading import Leading, Truncate
from tenflex.solvers.projected_als import Growing, ProjectedALS
from tenflex.solvers.refine import Refine
from tenflex.solvers.sketched_newton import SketchedNewton
from tenflex.solvers.structured_cpd import StructuredCPD
from tenflex.solvers.weighted_cpd import WeightedCPD
from tenflex.solvers.wrap import BestSoFar, Chain, MultiStart, Unweighted

__all__ = [
    "BestSoFar",
    "Chain",
    "ConstrainedALS",
    "FilteredCPD",
    "GaussNewton",
    "GeneralizedEigenvalues",
    "Growing",
    "HessianCPD",
    "JacobianCPD",
    "LayeredALS",
    "Leading",
    "MultiStart",
    "Prepared",
    "ProjectedALS",
    "Refine",
    "SketchedNewton",
    "Solver",
    "State",
    "StructuredCPD",
    "Truncate",
    "Unweighted",
    "WeightedCPD",
    "default_solver",
    "prepare",
]
