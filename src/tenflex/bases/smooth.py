"""A basis with a price on roughness."""

from __future__ import annotations

from dataclasses import dataclass

from tenflex.bases.wrapped import Demand
from tenflex.checks import require_number


@dataclass(frozen=True)
class Smooth(Demand):
    r"""A basis whose activations are penalized for roughness while they are fitted; the layer stores the basis itself.

    .. math:: E + \mu \, \frac{\lambda}{\|F - \bar F\|^2} \sum_k \|w_k\|^2 \, c_k^\top R \, c_k

    R is the roughness form of the basis: squared second differences of the coefficients for B-splines, the integral of
    :math:`g''^2` for polynomials.

    References:
        Eilers, Marx, "Flexible smoothing with B-splines and penalties", 1996, https://doi.org/10.1214/ss/1038425655
        Golub, Heath, Wahba, "Generalized cross-validation", 1979, https://doi.org/10.1080/00401706.1979.10489751

    Args:
        basis: The basis to penalize.
        weight: :math:`\mu`, at least 0; None to choose it by generalized cross-validation in every sweep.

    Raises:
        TypeError: if `basis` is not a basis, or already smooth.
        ValueError: if `weight` is negative or not a number.

    Example:
        >>> Problem(problem.samples, 2, Smooth(BSpline(10), 0.1)).basis.size
        10
    """

    weight: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None:
            require_number("weight", self.weight, at_least=0)
