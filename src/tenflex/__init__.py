"""Small neural networks by flexible activation functions, computed with tensors instead of training."""

from tenflex._version import __version__
from tenflex.bases import (
    Basis,
    BSpline,
    Chebyshev,
    Hinge,
    Monomial,
    Monotone,
    NonNegative,
    PositiveHinge,
    Smooth,
    TwoSidedHinge,
)
from tenflex.compress import Compression, compress
from tenflex.coordinates.per_output import PerOutput
from tenflex.coordinates.standardize import Standardize
from tenflex.coordinates.whiten import Whiten
from tenflex.decouple import decouple
from tenflex.factors import Factors
from tenflex.nn import FlexibleActivation, FlexibleLayer
from tenflex.planning.plan import Block, Plan
from tenflex.problem import Problem
from tenflex.progress import Progress
from tenflex.rank import RankPath, choose_rank
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample
from tenflex.sampling.polynomial import Polynomial
from tenflex.sampling.regression import sample_table
from tenflex.solution import Solution, load_solution
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    FilteredCPD,
    GaussNewton,
    GeneralizedEigenvalues,
    HessianCPD,
    JacobianCPD,
    LayeredALS,
    Leading,
    MultiStart,
    ProjectedALS,
    Refine,
    SketchedNewton,
    StructuredCPD,
    Truncate,
    Unweighted,
    WeightedCPD,
)
from tenflex.storage.network import load

__all__ = [
    "BSpline",
    "Basis",
    "BestSoFar",
    "Block",
    "Chain",
    "Chebyshev",
    "Compression",
    "ConstrainedALS",
    "Factors",
    "FilteredCPD",
    "FlexibleActivation",
    "FlexibleLayer",
    "GaussNewton",
    "GeneralizedEigenvalues",
    "HessianCPD",
    "Hinge",
    "JacobianCPD",
    "LayeredALS",
    "Leading",
    "Monomial",
    "Monotone",
    "MultiStart",
    "NonNegative",
    "PerOutput",
    "Plan",
    "Polynomial",
    "PositiveHinge",
    "Problem",
    "Progress",
    "ProjectedALS",
    "RankPath",
    "Refine",
    "Result",
    "Samples",
    "SketchedNewton",
    "Smooth",
    "Solution",
    "Standardize",
    "StructuredCPD",
    "Truncate",
    "TwoSidedHinge",
    "Unweighted",
    "WeightedCPD",
    "Whiten",
    "__version__",
    "choose_rank",
    "compress",
    "decouple",
    "load",
    "load_solution",
    "sample",
    "sample_table",
]
