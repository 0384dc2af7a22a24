"""The decomposition of the Jacobians alone: the algorithm of 2015."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenflex.objective.prepared import Prepared
from tenflex.objective.tensor import JacobianTensor
from tenflex.solvers.cpd import FreeCPD


@dataclass(frozen=True)
class JacobianCPD(FreeCPD):
    r"""The canonical polyadic decomposition of the Jacobians, and then the activations by least squares.

    .. math:: \min_{V, W, H} \|J - [[H, W, V]]\|^2 \quad\text{by}\quad
        V \leftarrow \sum_s J_s^\top (W \odot h_s) \, [(H^\top H) \odot (W^\top W)]^{-1}, \;\dots

    H is free: nothing says that its columns are slopes of functions of :math:`v_k \cdot x`. Where the decomposition is
    unique they are nevertheless, for an exact map, and the coefficients found from F and J reproduce it. Its error
    never rises; every third sweep is lengthened by an exact line search. One step of the loop is `stride` sweeps and
    one fit of the coefficients. Swamps, where nodes are nearly alike, take long: start from `GeneralizedEigenvalues`
    where the rank allows, or take several starts.

    Where counted multiply-adds say that it pays, the sweeps are taken on a core: J in orthonormal bases of its leading
    subspaces, twice the rank along samples, inputs and outputs, found for the price of about two sweeps and shared by
    all starts. The core of an exact map, or of many samples of few entries, holds all of J, to rounding; else the error
    counts what it drops, and once a step on it lowers the error by less than `tolerance` the sweeps go on with J itself
    until these converge as well. If `sweeps` end before, the directions lie in the bases: fit for a refinement.

    References:
        Dreesen, Ishteva, Schoukens, "Decoupling multivariate polynomials using first-order information and tensor
        decompositions", 2015, https://arxiv.org/abs/1410.4060
        Rajih, Comon, Harshman, "Enhanced line search: a novel method to accelerate PARAFAC", 2008,
        https://doi.org/10.1137/06065577 (the line search)
        Carroll, Pruzansky, Kruskal, "CANDELINC: a general approach to multidimensional analysis of many-way arrays with
        linear constraints on parameters", 1980, https://doi.org/10.1007/BF02293596 (the core)
        Bro, Andersson, "Improving the speed of multiway algorithms, part II: compression", 1998,
        https://doi.org/10.1016/S0169-7439(98)00011-2
        Vannieuwenhoven, Vandebril, Meerbergen, "A new truncation strategy for the higher-order singular value
        decomposition", 2012, https://doi.org/10.1137/110836067

    Args:
        sweeps: The most sweeps over V, W and H.
        stride: The sweeps that make one step of the loop.
        tolerance: It has converged when a step lowers the decomposition's error by less than this share.

    Raises:
        ValueError: if a number is out of its range, or, when it starts, if the Jacobians are matrices: a map with one
            input or one output has infinitely many decompositions.

    Example:
        >>> from tenflex.solvers import JacobianCPD
        >>> solution = decouple(problem, JacobianCPD(sweeps=100))
        >>> solution.validation_error < 1e-3
        True
    """

    stage: ClassVar[str] = "Jacobian CPD"

    def tensor(self, problem: Prepared) -> JacobianTensor:
        require_tensor(problem, type(self).__name__)
        return problem.fitted.jacobians


def require_tensor(problem: Prepared, name: str) -> None:
    """Raise ValueError if the Jacobians are a matrix, whose decompositions are never unique."""
    _, n, m = problem.fitted.jacobians.entries.shape
    if problem.rank > 1 and min(n, m) == 1:
        raise ValueError(
            f"{name} needs at least 2 outputs and 2 inputs that vary for a rank above 1, got {n} and {m}: "
            f"the Jacobians of such a map are a matrix, which has infinitely many decompositions; "
            f"use HessianCPD() or StructuredCPD() for one output, or the default solver"
        )
