"""The decomposition of second derivatives, for maps whose Jacobians say too little."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.decomposition import Decomposition, leading_rows
from tenflex.objective.multilinear import multilinear_svd
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import normalized
from tenflex.objective.tensor import JacobianTensor
from tenflex.solvers.base import State
from tenflex.solvers.constrained_als import fitted_layer
from tenflex.solvers.cpd import FreeCPD, Swept
from tenflex.solvers.pencil import decomposed, sliced_mode

ROUNDS = 3
"""How often coefficients and output map are alternated: the Hessians give the output map up to rounding already."""


@dataclass(frozen=True)
class HessianCPD(FreeCPD):
    r"""The canonical polyadic decomposition of the Hessians, in which V comes twice; then the rest by least squares.

    .. math:: D^2 f(x_s) = \sum_k g_k''(v_k \cdot x_s) \; w_k \circ v_k \circ v_k

    Needed for maps with one output, where the Jacobians are a matrix and have infinitely many decompositions. Samples
    and outputs are one mode of the tensor, and its factor :math:`g_k''(v_k \cdot x_s) w_{nk}` is free: no symmetry is
    imposed on the two V, which agree where the decomposition is unique. The directions w are the leading singular
    vectors of the factor's columns; the coefficients and W are then fitted to F and J, which know the linear parts as
    well. Every node must bend: one that is linear leaves no trace in the Hessians and is not found. It starts from
    generalized eigenvectors where the ranks allow it, as for r up to the number of inputs, and at random elsewhere.

    References:
        Dreesen, De Geeter, Ishteva, "Decoupling multivariate functions using second-order information and tensors",
        2018, https://arxiv.org/abs/1805.08479

    Args:
        sweeps: The most sweeps over the three factors.
        stride: The sweeps that make one step of the loop.
        tolerance: It has converged when a step lowers the decomposition's error by less than this share.

    Raises:
        ValueError: if a number is out of its range, or, when it starts, if the samples have no Hessians or these are
            zero.

    Example:
        >>> from tenflex.solvers import HessianCPD
        >>> samples = tenflex.sample(lambda x: (x[0] + x[1]) ** 3 + (x[0] - x[1]) ** 2, torch.rand(50, 2), order=2)
        >>> solution = tenflex.decouple(tenflex.Problem(samples, rank=2, basis=tenflex.Monomial(3)), HessianCPD())
        >>> solution.output_error < 1e-6
        True
    """

    stage: ClassVar[str] = "Hessian CPD"

    def tensor(self, problem: Prepared) -> JacobianTensor:
        hessians = problem.fitted.samples.hessians
        if hessians is None:
            raise ValueError(
                "HessianCPD needs samples with Hessians, got none: take them with tenflex.sample(f, points, order=2), "
                "or pass Samples(..., hessians=...)"
            )
        tensor = JacobianTensor(hessians.flatten(0, 1))
        if not tensor.energy > 0:
            raise ValueError("all Hessians are zero, so the map is affine: expected nodes that bend; use JacobianCPD()")
        return tensor

    def directions(self, problem: Prepared, factors: Factors) -> tuple[Tensor, Tensor]:
        V = normalized(factors.V)
        return V, V

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Swept]:
        tensor, rank = self.tensor(problem), problem.rank
        core = multilinear_svd(tensor, rank)
        sliced = sliced_mode(core, rank)
        if sliced is None:
            return super().init(problem, generator)
        return self.begun(problem, decomposed(tensor, core, rank, sliced, generator))

    def layer(self, problem: Prepared, parts: Decomposition) -> State[Any]:
        signs = torch.where((parts.V * parts.W).sum(0) < 0, -1.0, 1.0)
        V = normalized(parts.V + parts.W * signs)
        n = problem.fitted.centred.shape[1]
        W = leading_rows(parts.H.view(-1, n, parts.H.shape[1]))
        return replace(fitted_layer(problem, V, W, None, ROUNDS), stage=self.stage)
