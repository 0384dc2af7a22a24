r"""The Jacobians of several layers, a ParaTuck-L decomposition: its least squares in one factor, the others held fixed.

With the slopes of all nodes held fixed, :math:`J_s \approx W D_L M_{L-1}^\top \cdots M_1^\top D_1 V^\top` is linear in
each linear map and in the coefficients of each layer. For a layer, A is how the outputs move with what it gives, and N
how what arrives at it moves with the inputs: :math:`J_s \approx A_s D_s N_s`. Layers are counted from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.coefficients import DENSE, RIDGE, Activated
from tenflex.objective.linear import conjugate_gradients, solve_positive
from tenflex.objective.objective import Objective
from tenflex.objective.prepared import Prepared
from tenflex.objective.weighted import WeightedSystem
from tenflex.sums import centred, chunks, gram_matrix, over_samples

Slopes = Sequence[Float[Tensor, "S r"]]
"""The slopes of all nodes at the samples, layer by layer."""


@dataclass(frozen=True, eq=False)
class Part:
    """A layer in a range of samples.

    Args:
        samples: The range.
        leaving: `A^T A`, `(s, r, r)`, or `(1, r, r)` where it is the same for all.
        arriving: `N N^T`, `(s, r, r)`, or `(1, r, r)`.
        A: `(s, n, r)` or `(1, n, r)`.
        along: `J N^T`, `(s, n, r)`.
    """

    samples: slice
    leaving: Float[Tensor, "s r r"]
    arriving: Float[Tensor, "s r r"]
    A: Float[Tensor, "s n r"]
    along: Float[Tensor, "s n r"]


def passed(objective: Objective, factors: Factors, slopes: Slopes, layer: int, width: int = 1) -> Iterator[Part]:
    """A layer with all that stands before and behind it, in chunks of samples with `width` numbers to each."""
    J, V = objective.jacobians.entries, factors.V
    gram = V.mT @ V
    for part in chunks(len(J), max(width, J.shape[1] * max(factors.ranks), max(factors.ranks) ** 2)):
        here = [one[part] for one in slopes]
        A, N = leaving(factors, here, layer), arriving(factors, here, layer)
        yield Part(part, A.mT @ A, N @ gram @ N.mT, A, (J[part] @ V) @ N.mT)


def leaving(factors: Factors, slopes: Slopes, layer: int) -> Float[Tensor, "s n r"]:
    """`W D_L ... M^T`: how the outputs move with what a layer gives; of the last one for all samples the same."""
    if layer == len(slopes) - 1:
        return factors.W[None]
    return factors.upstream(slopes, layer + 1) @ factors.map(layer + 1).mT


def arriving(factors: Factors, slopes: Slopes, layer: int) -> Float[Tensor, "s r r1"]:
    """`M^T D ... D_1`: how what arrives at a layer moves with what arrives at the first one."""
    first = factors.ranks[0]
    moved = torch.eye(first, dtype=slopes[0].dtype, device=slopes[0].device)[None]
    for k in range(layer):
        moved = factors.map(k + 1).mT @ (slopes[k][..., None] * moved)
    return moved


def input_map(objective: Objective, factors: Factors, slopes: Slopes) -> Float[Tensor, "m r1"]:
    """V by least squares."""
    J, rank = objective.jacobians.entries, factors.ranks[0]
    gram, right = J.new_zeros(rank, rank), J.new_zeros(rank, J.shape[2])
    for part in chunks(len(J), J.shape[1] * rank):
        A = factors.upstream([one[part] for one in slopes]).flatten(0, 1)
        gram += A.mT @ A
        right += A.mT @ J[part].flatten(0, 1)
    return solve_positive(over_samples(gram), over_samples(right)).mT


def free_slopes(objective: Objective, factors: Factors, slopes: Slopes, layer: int) -> Float[Tensor, "S r"]:
    """The slopes of a layer by least squares, free in every sample."""
    found = []
    for one in passed(objective, factors, slopes, layer):
        gram, right = one.leaving * one.arriving, (one.A * one.along).sum(1)
        size = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(gram.dtype).tiny)
        ridge = 1e-9 * size[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        found.append(torch.linalg.solve((gram + ridge).expand(len(right), -1, -1), right))
    return torch.cat(found)


def coefficient_system(problem: Prepared, factors: Factors, slopes: Slopes, layer: int) -> WeightedSystem:
    """The normal equations in the coefficients of a layer, of the Jacobians, and of the outputs for the last layer.

    The outputs are linear in the last coefficients only. Where a later basis has its interval the map to it is placed,
    so sizes are relative there, and roughness counts as that map carries it on.
    """
    objective, nodes = problem.fitted, factors.activations[layer]
    t = factors.arguments(objective.inputs)[layer]
    slope = nodes.basis.derivative(t)
    _, r, d = slope.shape
    gram, right = slope.new_zeros(r, d, r, d), slope.new_zeros(r, d)
    for one in passed(objective, factors, slopes, layer, width=r * r * d):
        here = slope[one.samples]
        gram += mixed_gram(here, (one.leaving * one.arriving).expand(len(here), -1, -1))
        right += torch.einsum("sr,srd->rd", (one.A * one.along).sum(1), here)
    carrying = factors.map(layer + 1)
    if layer == len(slopes) - 1:
        value = nodes.basis.value(t)
        value, mix = centred(value, objective.count), carrying @ carrying.mT
        to_g = objective.weight_f * objective.centred @ carrying.mT
    else:
        value, mix = slope.new_zeros(()).expand_as(slope), torch.diag(carrying.square().sum(1))
        to_g = slope.new_zeros(len(slope), r)
    return WeightedSystem(
        Activated(value, slope),
        objective.weight_f * mix,
        torch.zeros_like(mix),
        to_g,
        torch.zeros_like(to_g),
        penalty=problem.penalty,
        gram=objective.weight_j * over_samples(gram).view(r * d, r * d),
        to_c=objective.weight_j * over_samples(right),
    )


def mixed_gram(slope: Float[Tensor, "s r d"], mix: Float[Tensor, "s r r"]) -> Float[Tensor, "r d r d"]:
    """`sum_s mix_kl phi'_ki phi'_lj`: one product for every node k."""
    _, r, d = slope.shape
    each = (mix.unsqueeze(-1) * slope.unsqueeze(1)).flatten(2).transpose(0, 1)
    return (slope.permute(1, 2, 0) @ each).view(r, d, r, d)


def side_grams(
    factors: Factors, slopes: Slopes, layer: int, gram: Float[Tensor, "r1 r1"]
) -> tuple[Float[Tensor, "s r r"], Float[Tensor, "s p p"], Float[Tensor, "s n r"]]:
    """`L^T L`, `R R^T` and L of the two sides of the linear map to a layer, `J_s ~ L_s M^T R_s`; `gram` is `V^T V`."""
    L, moved = factors.upstream(slopes, layer), slopes[layer - 1][..., None] * arriving(factors, slopes, layer - 1)
    return L.mT @ L, moved @ gram @ moved.mT, L


def hidden_map(objective: Objective, factors: Factors, slopes: Slopes, layer: int) -> Float[Tensor, "p r"]:
    """The linear map to a layer by least squares: a dense system of up to 2,000 unknowns, else conjugate gradients."""
    start, V, J = factors.map(layer), factors.V, objective.jacobians.entries
    (p, r), gram_v = start.shape, V.mT @ V
    dense = start.numel() <= DENSE
    gram = start.new_zeros(p * p, r * r) if dense else None
    right, diagonal = torch.zeros_like(start), torch.zeros_like(start)

    def parts() -> Iterator[tuple[slice, list[Tensor]]]:
        for part in chunks(len(J), max(p * p + r * r, J.shape[1] * max(factors.ranks))):
            yield part, [one[part] for one in slopes]

    for part, here in parts():
        left, side, L = side_grams(factors, here, layer, gram_v)
        before = here[layer - 1][:, None] * ((J[part] @ V) @ arriving(factors, here, layer - 1).mT)
        right += before.flatten(0, 1).mT @ L.flatten(0, 1)
        diagonal += side.diagonal(dim1=1, dim2=2).mT @ left.diagonal(dim1=1, dim2=2)
        if gram is not None:
            gram += side.flatten(1).mT @ left.flatten(1)
    right = over_samples(right)
    if gram is not None:
        gram = over_samples(gram).view(p, p, r, r).transpose(1, 2).reshape(p * r, p * r)
        return solve_positive(gram, right.reshape(-1, 1), RIDGE).view_as(right)
    diagonal = over_samples(diagonal)
    ridge = RIDGE * diagonal.mean()

    def apply(hidden: Tensor) -> Tensor:
        total = torch.zeros_like(hidden)
        for _, here in parts():
            left, side, _ = side_grams(factors, here, layer, gram_v)
            total += (side @ hidden @ left).sum(0)
        return ridge * hidden + over_samples(total)

    return conjugate_gradients(apply, right, start, lambda left: left / (diagonal + ridge))


def influence(objective: Objective, factors: Factors) -> tuple[Float[Tensor, " r1"], Float[Tensor, " rL"]]:
    """How much columns of V, and of W, would count in the Jacobians at the samples, if they were of unit norm."""
    slopes, last, gram = factors.slopes(objective.inputs), len(factors.activations) - 1, factors.V.mT @ factors.V
    n, of_inner, of_outer = len(factors.W), gram.new_zeros(factors.ranks[0]), gram.new_zeros(factors.ranks[-1])
    for part in chunks(len(objective.inputs), max(n * max(factors.ranks), max(factors.ranks) ** 2)):
        here = [one[part] for one in slopes]
        of_inner += factors.upstream(here).square().sum((0, 1))
        before = here[-1][..., None] * arriving(factors, here, last)
        of_outer += ((before @ gram) * before).sum((0, 2))
    of_inner, of_outer = over_samples(of_inner), over_samples(of_outer)
    return (of_inner / objective.count).sqrt(), (of_outer / objective.count).sqrt()


def output_map(
    problem: Prepared,
    factors: Factors,
    slopes: Slopes,
    G: Float[Tensor, "S r"],
    weight_f: Float[Tensor, ""],
    prices: Float[Tensor, " r"] | None = None,
) -> Float[Tensor, "n r"]:
    """W by coupled least squares, G being the last activations, centred; a node pays its price for its column."""
    objective, last, H = problem.fitted, len(slopes) - 1, slopes[-1]
    own, to_w = H.new_zeros(H.shape[1], H.shape[1]), torch.zeros_like(factors.W)
    for one in passed(objective, factors, slopes, last):
        here = H[one.samples]
        own += torch.einsum("skj,sk,sj->kj", one.arriving, here, here)
        to_w += (one.along * here[:, None]).sum(0)
    gram = weight_f * gram_matrix(G) + objective.weight_j * over_samples(own)
    right = weight_f * gram_matrix(objective.centred, G) + objective.weight_j * over_samples(to_w)
    if prices is not None:
        gram = gram + torch.diag(prices)
    return solve_positive(gram, right.mT).mT
