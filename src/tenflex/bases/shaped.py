"""Activations of a given shape: increasing, non-negative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenflex.bases.base import Basis
from tenflex.bases.cone import cone_of
from tenflex.bases.orthonormal import Orthonormal
from tenflex.bases.wrapped import Demand, demands, plain


@dataclass(frozen=True)
class Shaped(Demand):
    """A demand that a derivative of every activation is not negative; the families differ in its order.

    It holds at every point, not only on a grid: see `tenflex.bases.bernstein`.
    """

    order: ClassVar[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.basis.nodes is not None:  # splines, of which fitted knots take nothing away
            return
        if not cone_of(Orthonormal(plain(self.basis)), orders(self)).span.numel():
            raise ValueError(
                f"no function but zero is left by {self!r}: ask for less, or take a basis that contains the constants, "
                f"such as BSpline(10)"
            )


@dataclass(frozen=True)
class Monotone(Shaped):
    r"""A basis whose activations increase.

    .. math:: g_k'(t) \ge 0 \quad \text{for all } t

    on the interval of the basis, and beyond it for splines and hinges, which go on linearly; polynomials may turn
    there. The columns of W have any sign, so nothing is lost by "increasing" instead of "monotone". The solution and
    its layer have the basis itself; training the layer later does not keep the demand.

    References:
        Ramsay, "Monotone regression splines in action", 1988, https://doi.org/10.1214/ss/1177012761

    Args:
        basis: The basis, plain or with other demands: `Monotone(Smooth(BSpline(10)))`.

    Raises:
        TypeError: if `basis` is not a basis, is already monotone, or is not made of polynomials.
        ValueError: if only zero is left.

    Example:
        >>> rising = decouple(Problem(problem.samples, 2, tenflex.bases.Monotone(BSpline(6))))
        >>> curves = rising.factors.activations[0]
        >>> bool((curves.values(torch.rand(50, 2, dtype=torch.float64).sort(0).values).diff(dim=0) > -1e-9).all())
        True
    """

    order: ClassVar[int] = 1


@dataclass(frozen=True)
class NonNegative(Shaped):
    r"""A basis whose activations are not negative on its interval.

    .. math:: g_k(t) \ge 0 \quad \text{for } t \text{ in the interval}

    B-splines contain the constants, and a constant goes to the bias of the layer: for them the demand fixes the
    constant and the sign of a node and costs nothing. Monomials and hinges contain none, so for them it shapes the
    functions: a polynomial with `g(0) = 0` must have a minimum there. Beyond the interval it is not kept, where splines
    and hinges go on linearly and polynomials grow. The solution and its layer have the basis itself; training the
    layer later does not keep the demand.

    Args:
        basis: The basis, plain or with other demands: `NonNegative(Monotone(Hinge(8)))`.

    Raises:
        TypeError: if `basis` is not a basis, is already non-negative, or is not made of polynomials.
        ValueError: if only zero is left, as for `Chebyshev`, whose functions all have a weighted mean of zero.

    Example:
        >>> tenflex.bases.NonNegative(BSpline(6)).size
        6
    """

    order: ClassVar[int] = 0


def orders(basis: Basis) -> tuple[int, ...]:
    """The orders of the derivatives that must not be negative, in ascending order: the same in any composition."""
    return tuple(sorted(one.order for one in demands(basis) if isinstance(one, Shaped)))
