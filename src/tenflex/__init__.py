"""Small neural networks by flexible activation functions, computed with tensors instead of training."""

from tenflex._version import __version__
from tenflex.bases import BSpline, Chebyshev, Hinge, Monomial, Smooth
from tenflex.compress import Compression, compress
from tenflex.decouple import decouple
from tenflex.export.verb import Exported, export
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
from tenflex.storage.network import load

__all__ = [  # noqa: RUF022 - in the order of use: the verbs with what they take and give, layers, the common bases
    "compress",
    "Block",
    "Plan",
    "Compression",
    "load",
    "export",
    "Exported",
    "sample",
    "Polynomial",
    "sample_table",
    "Samples",
    "Problem",
    "decouple",
    "choose_rank",
    "RankPath",
    "Solution",
    "load_solution",
    "Result",
    "Progress",
    "Factors",
    "FlexibleLayer",
    "FlexibleActivation",
    "BSpline",
    "Monomial",
    "Chebyshev",
    "Hinge",
    "Smooth",
    "__version__",
]
