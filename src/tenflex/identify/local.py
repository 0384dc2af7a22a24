"""The local test, always computable: do the samples respond to every free move of the nodes?"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, comb, inf

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Monomial
from tenflex.bases.base import positive
from tenflex.checks import require_whole
from tenflex.factors import Activations, Factors
from tenflex.identify.bounds import largest_count
from tenflex.identify.tangents import Compact, Moves, compact, function_counts, moves, output_units, whole
from tenflex.identify.told import Told

MOST_PARAMETERS = 2000
"""The most parameters of all nodes, in the spans of V and W, whose tangents are factorized: some ten seconds."""

NOTHING = 1e-8
"""A tangent of so much less than the largest of its node stands for no direction: what is left of it beside the others
would be rounding, of more than `DEPENDENT`."""

DEPENDENT = 1e-8
"""Tangents are dependent where their singular values are a smaller share; the tangents of a node are of unit length."""

INVOLVED = 1e-6
"""A node takes part in a dependence if its share of it, squared, is larger."""


@dataclass(frozen=True)
class LocalRank:
    r"""The rank of the derivative of outputs and Jacobians in the parameters of all nodes, at one layer.

    Args:
        rank: The independent directions in which the samples respond.
        alone: The same for every node alone, added up.
        expected: The same for generic factors of these sizes and this basis; :math:`r (m + n + d - 2)` for polynomials
            of degrees 1 to d.
        conditions: For every node, to first order, how many times larger its relative error can be than the relative
            error of the samples; infinite for a node that is not unique.

    Example:
        >>> from tenflex.identify import local_rank
        >>> solution = decouple(problem)
        >>> found = local_rank(solution.factors, solution.problem.samples.inputs)
        >>> found.rank == found.expected
        True
    """

    rank: int
    alone: int
    expected: int
    conditions: tuple[float, ...]

    @property
    def defect(self) -> int:
        """The directions in which parameters can move unseen, beyond order, scale and constants."""
        return self.expected - self.rank

    @property
    def exchanges(self) -> int:
        """The directions in which nodes can be exchanged for one another: none if the nodes are locally unique."""
        return self.alone - self.rank

    @property
    def condition(self) -> float:
        """The condition number of the worst node."""
        return max(self.conditions)


def local_rank(factors: Factors, inputs: Float[Tensor, "S m"]) -> LocalRank:
    r"""Test whether the nodes of a layer are locally unique, given its outputs and Jacobians at inputs.

    A sum of nodes is locally unique if the tangent spaces of the nodes are linearly independent (Terracini's lemma).
    Moves that leave a node as it is add nothing to its space: the scale between W and C, constants, for polynomials
    also the shift and the scale between V and C. The condition numbers are those of the sum of the spaces, so they do
    not depend on how a node is parameterized. Inputs and outputs are brought to unit variance, each by its own.

    Up to 2,000 parameters, r (p + q + d + 1) with p and q the ranks of V and W, are within reach. At most 4,096
    samples are used, and where they give many more equations than parameters, random combinations of the equations of
    every sample.

    References:
        Comon, Qi, Usevich, "Identifiability of an X-rank decomposition of polynomial maps", 2017,
        https://arxiv.org/abs/1603.01566
        Breiding, Vannieuwenhoven, "The condition number of join decompositions", 2018, https://arxiv.org/abs/1611.08117

    Args:
        factors: The layer; V and W count as full matrices, also if they are stored as products.
        inputs: Points where its outputs and Jacobians are known, `(S, m)`.

    Raises:
        TypeError: if the inputs are not floating-point numbers.
        ValueError: if they have the wrong shape or never vary, a number is not finite, or the layer is too large.

    Example:
        >>> eye = torch.eye(2)
        >>> layer = Factors.single(eye, eye, Activations(eye, torch.zeros(2), Monomial(2)), torch.zeros(2))
        >>> test = local_rank(layer, torch.tensor([[1.0, 0.5], [-1.0, 0.3], [0.2, -0.7], [0.1, 0.9]]))
        >>> test.rank, test.expected, test.defect
        (8, 8, 0)
    """
    small = compact(factors, inputs)
    if not within_reach(small):
        raise ValueError(
            f"the local rank is computed for up to {MOST_PARAMETERS} parameters r (p + q + d + 1), with p and q the "
            f"ranks of V and W, got {small.parameters}: use fewer nodes, factored maps, or a smaller basis"
        )
    return rank_of(small)


def told_rank(
    factors: Factors,
    inputs: Float[Tensor, "S m"],
    covariance: Float[Tensor, "..."],
    units: Float[Tensor, " n"] | None = None,
) -> LocalRank | None:
    """The same where Jacobians were estimated: what their covariance says that nobody knows, no move is seen by.

    So nodes along a curve of inputs are not unique: derivatives across it could be any. Conditions are those of nodes
    as they are, for errors of the samples in units of the covariance. Of samples that depend on each other only the
    covariance of each is used. None for a layer that is too large.
    """
    units = output_units(factors, inputs) if units is None else units
    small = whole(factors, inputs, units)
    if not within_reach(small):
        return None
    with torch.no_grad():
        return _rank_of(moves(small), Told.of(factors, inputs, covariance, units))


def within_reach(small: Compact) -> bool:
    """Whether the tangents of a layer are few enough to be factorized."""
    return small.parameters <= MOST_PARAMETERS


def rank_of(small: Compact) -> LocalRank:
    """The local test of a layer that is within reach."""
    with torch.no_grad():
        return _rank_of(moves(small))


def _rank_of(found: Moves, told: Told | None = None) -> LocalRank:
    small, (r,) = found.compact, found.compact.factors.ranks
    nodes = found.nodes().flatten(0, 1)
    matrices = (found.matrix(),) if told is None else told.seen(found)
    through = torch.einsum("qk,sk->sqk", small.factors.W, found.slopes).flatten(0, 1)
    # Tangents within the spans of V and W, in the other inputs, and in the other outputs are orthogonal: ranks add up.
    # In the other inputs only Jacobians are counted. Outputs could add to the rank, but only where it is deficient.
    sums = [
        (1, _summed(_node_bases(*matrices, rank=r))),
        (small.more_inputs, _summed(_unit_bases(through))),
        (small.more_outputs, _summed(_unit_bases(nodes))),
    ]
    sizes = nodes.norm(dim=0) * small.factors.W.norm(dim=0) / 2**0.5  # outputs and Jacobians both have size 1
    worst = torch.stack([one.amplification for copies, one in sums if copies]).amax(0)
    each = len(small.factors.V) + small.more_inputs + len(small.factors.W) + small.more_outputs - 2
    return LocalRank(
        sum(copies * one.rank for copies, one in sums),
        sum(copies * one.alone for copies, one in sums),
        sum(each + functions for functions in function_counts(small.factors.only.basis, r)),
        tuple(torch.where(sizes > 0, worst / positive(sizes), inf).tolist()),
    )


def _node_bases(
    matrix: Float[Tensor, "equations parameters"], *seen: Float[Tensor, "equations parameters"], rank: int
) -> list[Float[Tensor, "rows dimension"]]:
    """An orthonormal basis of the tangent space of every node, in coordinates of the space of all tangents.

    Or what is seen of it, where equations count otherwise.
    """
    triangles = [torch.linalg.qr(one, mode="r").R.unflatten(1, (rank, -1)).transpose(0, 1) for one in (matrix, *seen)]
    columns = triangles[0]
    sizes = columns.norm(dim=1, keepdim=True)
    counting = sizes > NOTHING * sizes.amax(2, keepdim=True)  # such as the shift of a line does not
    units = torch.where(counting, 1 / positive(sizes), 0.0)  # no parameter's unit decides what is small
    axes, sizes, right = torch.linalg.svd(columns * units, full_matrices=False)
    keep = sizes > DEPENDENT * sizes[:, :1]
    if seen:  # the moves that make the basis, as they are seen
        axes = (triangles[1] * units) @ right.mT / positive(sizes)[:, None]
    return [axis[:, good] for axis, good in zip(axes, keep, strict=True)]


def _unit_bases(columns: Float[Tensor, "rows r"]) -> list[Float[Tensor, "rows dimension"]]:
    """The same where a node has one tangent only, or none."""
    triangle = torch.linalg.qr(columns, mode="r").R
    lengths = triangle.norm(dim=0)
    units = (triangle / positive(lengths)).split(1, 1)
    return [unit if length > 0 else unit[:, :0] for unit, length in zip(units, lengths, strict=True)]


@dataclass(frozen=True, eq=False)
class _Sum:
    """Spaces, added up: the dimensions of the sum and of all spaces, and how errors of a sum grow in each summand."""

    rank: int
    alone: int
    amplification: Float[Tensor, " r"]


def _summed(bases: list[Float[Tensor, "rows dimension"]]) -> _Sum:
    joined = torch.cat(bases, 1)
    _, sizes, right = torch.linalg.svd(joined, full_matrices=joined.shape[0] < joined.shape[1])
    good = torch.zeros(joined.shape[1], dtype=torch.bool, device=joined.device)
    good[: len(sizes)] = sizes > DEPENDENT * sizes[:1].clamp(max=1.0)
    parts = right.mT.split([basis.shape[1] for basis in bases])
    amplification = [_amplification(part, good, sizes) for part in parts]
    return _Sum(int(good.sum()), len(good), torch.tensor(amplification, dtype=joined.dtype, device=joined.device))


def _amplification(part: Float[Tensor, "dimension all"], good: Tensor, sizes: Tensor) -> float:
    """The norm of one node's rows of the pseudo-inverse."""
    if not len(part):
        return 0.0
    if part[:, ~good].square().sum() > INVOLVED:
        return inf
    return torch.linalg.matrix_norm(part[:, good] / sizes[good[: len(sizes)]], ord=2).item()


def largest_rank(m: int, n: int, degree: int, *, seed: int = 0) -> int:
    r"""The largest number of nodes that are locally unique, for generic activations of degrees 1 to d.

    Computed by the local test at random points. That a random point passes proves that almost all pass, and that any
    smaller number of nodes passes too.

    References:
        Comon, Qi, Usevich, "Identifiability of an X-rank decomposition of polynomial maps", 2017,
        https://arxiv.org/abs/1603.01566

    Args:
        m: The number of inputs.
        n: The number of outputs.
        degree: The degree d of the activations.
        seed: Of the random points.

    Raises:
        ValueError: if a number is not a whole number of at least 1, or the nodes are too many to test.

    Example:
        >>> largest_rank(2, 2, 3), largest_rank(3, 3, 3)
        (3, 7)
    """
    for name, size in (("m", m), ("n", n), ("degree", degree)):
        require_whole(name, size, at_least=1)
    generator = torch.Generator().manual_seed(seed)
    rank = largest_count(m, n, degree)
    while rank > 1 and not any(_passes(m, n, degree, rank, generator) for _ in range(3)):
        rank -= 1
    return rank


def _passes(m: int, n: int, degree: int, rank: int, generator: torch.Generator) -> bool:
    return local_rank(*_random_layer(m, n, degree, rank, generator)).defect == 0


def _random_layer(m: int, n: int, degree: int, rank: int, generator: torch.Generator) -> tuple[Factors, Tensor]:
    """Random factors, and twice as many random inputs as outputs and Jacobians need to determine the polynomials."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    V, W = draw(m, rank), draw(n, rank)
    count = ceil(2 * comb(m + degree, m) / (m + 1))
    scale = 1 / V.norm(dim=0).amax()
    activations = Activations(draw(rank, degree), V.new_zeros(rank), Monomial(degree))
    factors = Factors.single(scale * V, W, activations, V.new_zeros(n))
    return factors, draw(max(count, 2), m)
