"""The decomposition of the Jacobians with slopes that are those of functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.coefficients import Activated
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import project
from tenflex.objective.tensor import JacobianTensor
from tenflex.solvers.cpd import AlternatingCPD


@dataclass(frozen=True)
class StructuredCPD(AlternatingCPD):
    r"""The canonical polyadic decomposition of the Jacobians with every column of H on the span of its basis.

    .. math:: h_k \leftarrow \Pi_k h_k, \quad \Pi_k \text{ on } \{\phi_j'(v_k \cdot x_s)\}_j

    after each least-squares step for H. More layers are unique with this structure than without, such as those with
    more nodes than inputs and outputs. The iteration sees the Jacobians only; the constants (one bias) come from a
    least-squares fit of F afterwards, with coefficients that fit F and J for the directions found. The projection is
    not a step of descent, so the error may rise, and where the plain decomposition is not unique it settles near the
    layer and not at it: let `GaussNewton` follow, as in `Chain((StructuredCPD(50), GaussNewton()))`.

    References:
        Zniyed, Usevich, Miron, Brie, "Learning nonlinearities in the decoupling problem with structured CPD", SYSID
        2021, https://hal.science/hal-03223831

    Args:
        sweeps: The most sweeps over V, W and H.
        stride: The sweeps that make one step of the loop.
        tolerance: It has converged when a step changes the decomposition's error by less than this share.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> from tenflex.solvers import StructuredCPD
        >>> solution = decouple(problem, StructuredCPD(sweeps=100))
        >>> solution.validation_error < 1e-3
        True
    """

    stage: ClassVar[str] = "structured CPD"

    def tensor(self, problem: Prepared) -> JacobianTensor:
        return problem.fitted.jacobians

    def slopes(self, problem: Prepared, V: Tensor, W: Tensor) -> Tensor:
        t = problem.fitted.inputs @ V
        scale, shift = problem.basis.place(t)
        u = t * scale + shift
        return on_span(problem.basis.fit(u).derivative(u), problem.fitted.jacobians.slopes(V, W))


def on_span(slope: Float[Tensor, "S r d"], H: Float[Tensor, "S r"]) -> Float[Tensor, "S r"]:
    """Every column of H projected on the span of the functions of its node."""
    coefficients = project(Activated(slope, slope), H, H, 1.0)
    return torch.einsum("srd,rd->sr", slope, coefficients)
