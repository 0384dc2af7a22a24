"""Families of scalar functions, one a file."""

from tenflex.bases.base import Basis
from tenflex.bases.bspline import BSpline
from tenflex.bases.chebyshev import Chebyshev
from tenflex.bases.hinge import Hinge, PositiveHinge, TwoSidedHinge
from tenflex.bases.monomial import Monomial
from tenflex.bases.saved import BASES, basis_from_dict, basis_to_dict
from tenflex.bases.shaped import Monotone, NonNegative
from tenflex.bases.smooth import Smooth

__all__ = [
    "BASES",
    "BSpline",
    "Basis",
    "Chebyshev",
    "Hinge",
    "Monomial",
    "Monotone",
    "NonNegative",
    "PositiveHinge",
    "Smooth",
    "TwoSidedHinge",
    "basis_from_dict",
    "basis_to_dict",
]
