"""Algorithms for `decouple`, one a file."""

from tenflex.families import Families, by_name
from tenflex.objective.prepared import Prepared, prepare
from tenflex.solvers.base import Solver, State
from tenflex.solvers.constrained_als import ConstrainedALS
from tenflex.solvers.default import default_solver
from tenflex.solvers.gauss_newton import GaussNewton
from tenflex.solvers.leading import Leading, Truncate
from tenflex.solvers.lifted import Lifted
from tenflex.solvers.published.decuyper2021 import FilteredCPD
from tenflex.solvers.published.dejonghe2026 import LayeredALS, ProjectedLayeredALS
from tenflex.solvers.published.dreesen2015 import JacobianCPD
from tenflex.solvers.published.dreesen2018 import HessianCPD
from tenflex.solvers.published.hollander2018 import WeightedCPD
from tenflex.solvers.published.sanchez1990 import GeneralizedEigenvalues
from tenflex.solvers.published.zniyed2021 import Growing, ProjectedALS
from tenflex.solvers.published.zniyed2021_structured import StructuredCPD
from tenflex.solvers.refine import Refine
from tenflex.solvers.sketched_newton import SketchedNewton
from tenflex.solvers.wrap import BestSoFar, Chain, MultiStart, Unweighted

SOLVERS = Families(
    "solver",
    '{"family": "ConstrainedALS", "steps": 25}',
    by_name(
        BestSoFar,
        Chain,
        ConstrainedALS,
        FilteredCPD,
        GaussNewton,
        GeneralizedEigenvalues,
        Growing,
        HessianCPD,
        JacobianCPD,
        LayeredALS,
        Leading,
        Lifted,
        MultiStart,
        ProjectedALS,
        ProjectedLayeredALS,
        Refine,
        SketchedNewton,
        StructuredCPD,
        Truncate,
        Unweighted,
        WeightedCPD,
    ),
)

__all__ = [
    "SOLVERS",
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
    "Lifted",
    "MultiStart",
    "Prepared",
    "ProjectedALS",
    "ProjectedLayeredALS",
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
