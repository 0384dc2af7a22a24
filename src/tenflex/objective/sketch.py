"""A Gauss-Newton matrix from some random combinations of the residuals: exact enough for scales, for much less."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.derivatives import Derivatives, Views
from tenflex.objective.linear import solve_positive
from tenflex.objective.objective import Objective
from tenflex.objective.prepared import Prepared
from tenflex.objective.roughness import add_roughness_
from tenflex.samples import Samples
from tenflex.sums import at_once, over_samples


def sketched_gauss_newton(
    problem: Prepared, factors: Factors, smoothing: float, rows: int, generator: torch.Generator
) -> Float[Tensor, "p p"]:
    r"""An unbiased estimate of :math:`D^\top D`, with D the Jacobian of all residuals at a layer with full maps.

    From `rows` random combinations :math:`a^\top f(x_s)` and as many :math:`a^\top J_s b`, spread over the samples. The
    price is `2 rows p^2` multiply-adds whatever the numbers of samples, inputs and outputs. The products are taken in
    single precision: sampling errs by far more. The bias, of which the objective has the best value, is an unknown of
    the outputs' equations and then eliminated.

    References:
        Pilanci, Wainwright, "Newton sketch: a near linear-time optimization algorithm with linear-quadratic
        convergence", 2017, https://doi.org/10.1137/15M1021106
    """
    objective, derivatives = problem.fitted, Derivatives(problem.fitted.inputs, factors)
    size, n = factors.flat().numel(), len(factors.W)
    of_outputs = factors.bias.new_zeros(size + n, size + n)
    of_jacobians = factors.bias.new_zeros(size, size)
    for views in random_views(objective, rows, size, generator):
        add_products_(of_outputs, torch.cat([derivatives.of_outputs(views), views.along_outputs], 1))
        seen = as_seen(objective.samples, views, generator)
        if seen is not None:
            add_products_(of_jacobians, derivatives.of_jacobians(seen))
    each = len(objective.inputs) / rows  # the samples at hand that every combination stands for
    of_outputs, of_jacobians = over_samples(each * of_outputs), over_samples(each * of_jacobians)
    with_bias, bias = of_outputs[:size, size:], of_outputs[size:, size:]
    gram = of_outputs[:size, :size] - with_bias @ solve_positive(bias, with_bias.mT)
    gram = objective.weight_f * gram + objective.weight_j * of_jacobians
    add_roughness_(problem, factors, smoothing, gram)
    return gram


def random_views(objective: Objective, rows: int, size: int, generator: torch.Generator) -> Iterator[Views]:
    """Samples in turn, in random order, along random directions, of which the second moment is the identity.

    In groups that have at most a chunk of numbers in their derivatives in `size` unknowns.
    """
    count, n, m = objective.samples.sizes
    like = objective.inputs
    turns = -(-rows // count)
    orders = [torch.randperm(count, generator=generator, device="cpu") for _ in range(turns)]
    samples = torch.cat(orders)[:rows].to(like.device)

    def directions(some: int, size: int) -> Tensor:
        drawn = torch.randn(some, size, generator=generator, dtype=like.dtype, device="cpu")
        return (drawn * (math.sqrt(size) / drawn.norm(dim=1, keepdim=True))).to(like)

    for group in samples.split(at_once(size)):
        yield Views(group, directions(len(group), n), directions(len(group), m))


def as_seen(samples: Samples, views: Views, generator: torch.Generator) -> Views | None:
    """The views with the combinations of outputs of which the samples hold the Jacobians; None if there are none."""
    if samples.directions is None:
        return views
    k = samples.directions.shape[1]
    if k == 0:
        return None
    which = torch.randint(k, (len(views.samples),), generator=generator, device="cpu").to(views.samples)
    return replace(views, along_outputs=samples.directions[views.samples, which])


def add_products_(gram: Float[Tensor, "p p"], rows: Float[Tensor, "q p"]) -> None:
    """`rows^T rows`, in single precision."""
    rows = rows.float()
    gram += rows.mT @ rows
