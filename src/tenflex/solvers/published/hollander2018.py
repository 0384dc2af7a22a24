"""The decomposition of Jacobians whose errors have a known covariance: the weighted algorithm of 2016."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.objective.decomposition import Decomposition
from tenflex.objective.line_search import longest_weighted_step
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import normalized
from tenflex.objective.tensor import JacobianTensor
from tenflex.objective.term import JacobianTerm
from tenflex.solvers.base import State, unfit
from tenflex.solvers.cpd import SEARCH, AlternatingCPD, Swept
from tenflex.solvers.published.dreesen2015 import require_tensor


@dataclass(frozen=True)
class WeightedCPD(AlternatingCPD):
    r"""The canonical polyadic decomposition of the Jacobians, weighted by the inverse covariance of their errors.

    .. math:: \min_{V, W, H} \mathrm{vec}(J - [[H, W, V]])^\top \, \Sigma^{-1} \, \mathrm{vec}(J - [[H, W, V]])

    Alternating, each factor by weighted least squares: H sample by sample, or all samples together with a full
    covariance; then V; then W. The error never rises; every third sweep is lengthened by an exact line search. The
    coefficients follow by least squares, the Jacobians weighted in the same way. Whether the covariance is diagonal,
    block or full is told by the shape of `Samples.covariance`; without one all errors count the same.

    Where variances differ widely, few entries decide and random starts get stuck more often than without weights: begin
    with `Chain((Unweighted(JacobianCPD()), WeightedCPD()))`.

    References:
        Hollander, Dreesen, Ishteva, Schoukens, "Approximate decoupling of multivariate polynomials using weighted
        tensor decomposition", 2018, https://arxiv.org/abs/1601.07800

    Args:
        sweeps: The most sweeps over V, W and H.
        stride: The sweeps that make one step of the loop, after which the coefficients are fitted.
        tolerance: It has converged when a step lowers the decomposition's error by less than this share.

    Raises:
        ValueError: if a number is out of its range, or, when it starts, if the Jacobians are matrices: a map with one
            input or one output has infinitely many decompositions.

    Example:
        >>> from tenflex.solvers import WeightedCPD
        >>> x = torch.rand(80, 2, dtype=torch.float64)
        >>> table = sample_table(x, f.values(x))  # with the covariance of the derivatives that it estimates
        >>> weighted = Problem(table, rank=2, basis=Monomial(3), coupling=0.0)
        >>> decouple(weighted, WeightedCPD(50)).jacobian_error < 0.1
        True
    """

    stage: ClassVar[str] = "weighted CPD"

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, weights=True)

    def tensor(self, problem: Prepared) -> JacobianTensor:
        require_tensor(problem, type(self).__name__)
        return problem.fitted.jacobians

    def slopes(self, problem: Prepared, V: Tensor, W: Tensor) -> Tensor:
        return problem.fitted.term.slopes(V, W)

    def sweep(self, problem: Prepared, tensor: JacobianTensor, parts: Decomposition, number: int) -> Decomposition:
        term = problem.fitted.term
        V = normalized(term.input_map(parts.V, parts.W, parts.H))
        none = V.new_zeros(problem.rank, problem.rank)
        W = term.output_map(V, parts.W, parts.H, V.new_ones(()), none, torch.zeros_like(parts.W))
        after = self._best(problem, V, normalized(W))
        return after if number % SEARCH else self._longer(problem, parts, after)

    def _begin(self, problem: Prepared, V: Tensor, W: Tensor) -> State[Swept]:
        parts = self._best(problem, V, W)
        return self.begun(problem, parts)

    def _longer(self, problem: Prepared, before: Decomposition, after: WeightedDecomposition) -> WeightedDecomposition:
        step = longest_weighted_step(problem.fitted, before, after)
        if step == 1:
            return after
        V, W = (normalized(torch.lerp(a, b, step)) for a, b in ((before.V, after.V), (before.W, after.W)))
        return self._best(problem, V, W)

    def _best(self, problem: Prepared, V: Tensor, W: Tensor) -> WeightedDecomposition:
        return WeightedDecomposition(V, W, self.slopes(problem, V, W), problem.fitted.term)


@dataclass(frozen=True, eq=False)
class WeightedDecomposition(Decomposition):
    """A decomposition with the norm in which its error is measured.

    Args:
        term: The Jacobians' term of the objective.
    """

    term: JacobianTerm

    def error(self, tensor: JacobianTensor) -> float:
        """The relative squared error in the weighted norm, by residuals."""
        return (self.term.misfit((self.V,), self.W, self.H, exact=True) / positive(self.term.energy)).item()
