"""Bases to and from JSON."""

from __future__ import annotations

from typing import Any

from tenflex.bases.base import Basis
from tenflex.bases.bspline import BSpline
from tenflex.bases.chebyshev import Chebyshev
from tenflex.bases.hinge import Hinge, PositiveHinge, TwoSidedHinge
from tenflex.bases.monomial import Monomial
from tenflex.bases.shaped import Monotone, NonNegative
from tenflex.bases.smooth import Smooth
from tenflex.families import Families, by_name

BASES = Families(
    "basis",
    '{"family": "BSpline", "count": 10}',
    by_name(BSpline, Chebyshev, Hinge, Monomial, Monotone, NonNegative, PositiveHinge, Smooth, TwoSidedHinge),
)


def basis_to_dict(basis: Basis) -> dict[str, Any]:
    """The name of the family and its settings, as plain JSON values.

    Raises:
        TypeError: if it, or what is inside of it, is of no family that is known (`BASES.add_`).

    Example:
        >>> tenflex.bases.basis_to_dict(Monomial(3))
        {'family': 'Monomial', 'degree': 3}
    """
    return BASES.to_dict(basis)


def basis_from_dict(saved: Any) -> Basis:
    """The basis that `basis_to_dict` described, validated.

    Raises:
        ValueError: if the family or a setting is unknown, or a setting is out of its range.

    Example:
        >>> tenflex.bases.basis_from_dict({"family": "Monomial", "degree": 3})
        Monomial(degree=3)
    """
    basis: Basis = BASES.from_dict(saved)
    return basis
