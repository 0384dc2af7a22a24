"""Small neural networks by flexible activation functions, computed with tensors instead of training."""

from tenflex._version import __version__
from tenflex.bases import BSpline, Chebyshev, Hinge, Monomial, Smooth
from tenflex.compare import compare
from tenflex.compress import Compression, compress
from tenflex.decouple import decouple
from tenflex.export.verb import Exported, export
from tenflex.factors import Factors
from tenflex.methods.contest import Contest
from tenflex.modes import Cosine, Tucker
from tenflex.nn import FlexibleActivation, FlexibleConv, FlexibleLayer, Window
from tenflex.planning.budget import Budget
from tenflex.planning.plan import Block, LowRank, Plan
from tenflex.problem import Problem
from tenflex.progress import Progress
from tenflex.rank import RankPath, choose_rank
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample
from tenflex.sampling.polynomial import Polynomial
from tenflex.sampling.regression import sample_table
from tenflex.solution import Solution, load_solution
from tenflex.storage.network import load, save

__all__ = [  # noqa: RUF022 - in the order of use: the verbs with what they take and give, layers, the common bases
    "compress",
    "Block",
    "Cosine",
    "Tucker",
    "LowRank",
    "Budget",
    "Plan",
    "Compression",
    "load",
    "save",
    "compare",
    "Contest",
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
    "FlexibleConv",
    "Window",
    "FlexibleActivation",
    "BSpline",
    "Monomial",
    "Chebyshev",
    "Hinge",
    "Smooth",
    "__version__",
]
