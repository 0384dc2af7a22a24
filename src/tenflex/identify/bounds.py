"""Conditions under which the nodes are unique, in closed form: from sizes alone, or from the factors found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, isqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis, Chebyshev, Monomial
from tenflex.bases.base import positive
from tenflex.bases.wrapped import Wrapped
from tenflex.checks import require_whole
from tenflex.factors import Factors, one_layer

PAIRS = 2500
"""The most pairs of nodes for which second compound matrices are formed: 71 nodes."""

COLLINEAR = 1e-5
"""Columns at a smaller angle (in radians) have the same direction."""

DEAD = 1e-10
"""A node is dead if its Jacobians are a smaller share of those of the strongest node."""

INDEPENDENT = 1e-6
"""Columns of unit length are independent if their smallest singular value is at least this share of the largest."""


@dataclass(frozen=True)
class Condition:
    """What one condition says.

    Args:
        name: Which condition.
        kind: "sufficient": if it holds, the nodes are unique. "necessary": if it fails, they are not. The other way
            around, neither says anything.
        holds: Whether it is met; None if it does not apply.
        reason: Why, in a sentence.

    Example:
        >>> from tenflex.identify import Condition, jacobian_cpd
        >>> isinstance(jacobian_cpd(3, 3, 3), Condition)
        True
    """

    name: str
    kind: Literal["sufficient", "necessary"]
    holds: bool | None
    reason: str

    @property
    def proves(self) -> bool | None:
        """True if it proves that the nodes are unique, False that they are not, None if it proves nothing."""
        if self.kind == "sufficient":
            return True if self.holds else None
        return False if self.holds is False else None

    def __str__(self) -> str:
        verdict = {True: "holds", False: "fails", None: "does not apply"}[self.holds]
        return f"{self.name} ({self.kind}) {verdict}: {self.reason}"


def jacobian_cpd(m: int, n: int, rank: int, degree: int | None = None) -> Condition:
    r"""Whether the Jacobian tensor of a generic layer of these sizes has one canonical polyadic decomposition.

    .. math:: r \le (m - 1)(n - 1) \quad\text{or}\quad 2 r (r - 1) \le m (m - 1) \, n (n - 1)

    Either suffices for generic V and W if H has full column rank. For polynomials of degree d its columns lie in a
    space of dimension :math:`\binom{m + d - 1}{m}`, so r must not exceed that either.

    References:
        De Lathauwer, "A link between the canonical decomposition in multilinear algebra and simultaneous matrix
        diagonalization", 2006, https://doi.org/10.1137/040608830 (the inequality on the right)
        Domanov, De Lathauwer, "Canonical polyadic decomposition of third-order tensors: relaxed uniqueness conditions
        and algebraic algorithm", 2017, https://arxiv.org/abs/1501.07251 (the one on the left)
        Dreesen, Ishteva, Schoukens, "Decoupling multivariate polynomials using first-order information and tensor
        decompositions", 2015, https://arxiv.org/abs/1410.4060

    Args:
        m: The number of inputs.
        n: The number of outputs.
        rank: The number of nodes, r.
        degree: The degree of the activations, if they are polynomials.

    Raises:
        ValueError: if a number is not a whole number of at least 1.

    Example:
        >>> from tenflex.identify import jacobian_cpd
        >>> jacobian_cpd(2, 2, 2).holds
        True
    """
    _require_sizes(m=m, n=n, rank=rank, degree=1 if degree is None else degree)
    by_compounds = (1 + isqrt(1 + 2 * m * (m - 1) * n * (n - 1))) // 2
    most = max(by_compounds, (m - 1) * (n - 1))
    reason = f"r = {rank}, and generic Jacobians of {n} x {m} numbers determine up to {most} nodes"
    if degree is not None and comb(m + degree - 1, m) < most:
        most = comb(m + degree - 1, m)
        reason = f"r = {rank}, and slopes of degree {degree - 1} in {m} inputs have rank {most} at most"
    return Condition("Jacobian CPD", "sufficient", rank <= most, reason)


def parameter_count(m: int, n: int, rank: int, degree: int) -> Condition:
    r"""Whether there are as many equations as free parameters, for activations of degrees 1 to d.

    .. math:: r (m + n + d - 2) \le n \left[ \binom{m + d}{m} - 1 \right], \qquad r \le m n

    The second comes from the linear terms alone: more than :math:`m n` matrices :math:`w_k v_k^\top` are linearly
    dependent, and the linear coefficients can move along the dependence.

    References:
        Comon, Qi, Usevich, "Identifiability of an X-rank decomposition of polynomial maps", 2017,
        https://arxiv.org/abs/1603.01566

    Args:
        m: The number of inputs.
        n: The number of outputs.
        rank: The number of nodes, r.
        degree: The degree d of the activations.

    Raises:
        ValueError: if a number is not a whole number of at least 1.

    Example:
        >>> from tenflex.identify import parameter_count
        >>> parameter_count(2, 2, 2, 3).holds
        True
    """
    _require_sizes(m=m, n=n, rank=rank, degree=degree)
    most = largest_count(m, n, degree)
    reason = f"r = {rank}, and polynomials of degree {degree} from {m} to {n} numbers can determine up to {most} nodes"
    return Condition("parameter count", "necessary", rank <= most, reason)


def largest_count(m: int, n: int, degree: int) -> int:
    """The largest rank that passes `parameter_count`."""
    equations = n * (comb(m + degree, m) - 1)
    return max(1, min(m * n, equations // (m + n + degree - 2)))


def monomial_count(m: int, n: int, rank: int, degree: int) -> Condition:
    r"""Whether there are as many equations as free parameters, for the single power :math:`g_k(t) = c_k t^d`.

    .. math:: r (m + n - 1) \le n \binom{m + d - 1}{d}

    Args:
        m: The number of inputs.
        n: The number of outputs.
        rank: The number of nodes, r.
        degree: The power d.

    Raises:
        ValueError: if a number is not a whole number of at least 1.

    Example:
        >>> from tenflex.identify import monomial_count
        >>> monomial_count(2, 2, 2, 3).holds
        True
    """
    _require_sizes(m=m, n=n, rank=rank, degree=degree)
    parameters, equations = rank * (m + n - 1), n * comb(m + degree - 1, degree)
    reason = f"{parameters} free parameters, and {equations} coefficients of degree {degree}"
    return Condition("monomial parameter count", "necessary", parameters <= equations, reason)


def monomial_kruskal(m: int, n: int, rank: int, degree: int) -> Condition:
    r"""Whether Kruskal's theorem makes generic nodes with the single power :math:`g_k(t) = c_k t^d` unique.

    .. math:: d \ge \frac{2 r - \min(r, n)}{\min(m, r) - 1}

    The map is a partially symmetric tensor of order d + 1, whose generic factors have Kruskal ranks :math:`\min(m, r)`
    (d times) and :math:`\min(n, r)`; for unicity these must add up to 2 r + d.

    References:
        Kruskal, "Three-way arrays: rank and uniqueness of trilinear decompositions", 1977,
        https://doi.org/10.1016/0024-3795(77)90069-6
        Sidiropoulos, Bro, "On the uniqueness of multilinear decomposition of N-way arrays", 2000,
        https://doi.org/10.1002/1099-128X(200005/06)14:3<229::AID-CEM587>3.0.CO;2-N
        Usevich, Borsoi, Derand, Clausel, "Identifiability of deep polynomial neural networks", 2025,
        https://arxiv.org/abs/2506.17093

    Args:
        m: The number of inputs.
        n: The number of outputs.
        rank: The number of nodes, r.
        degree: The power d.

    Raises:
        ValueError: if a number is not a whole number of at least 1.

    Example:
        >>> from tenflex.identify import monomial_kruskal
        >>> monomial_kruskal(2, 2, 2, 3).holds
        True
    """
    _require_sizes(m=m, n=n, rank=rank, degree=degree)
    have, need = _kruskal(m, n, rank, degree)
    reason = f"the Kruskal ranks of generic factors add up to {have}, and {need} are needed"
    return Condition("Kruskal, monomials", "sufficient", have >= need or rank == 1, reason)


def deep_monomial(widths: Sequence[int], degrees: Sequence[int], biases: bool = False) -> Condition:
    r"""Whether a generic deep network with powers as activations is unique, by its consecutive pairs of layers.

    For widths :math:`d_0, \dots, d_L` and powers :math:`p_1, \dots, p_{L-1}` it is if, for every hidden layer l, the
    network of two layers :math:`(\min(d_0, \dots, d_{l-1}), d_l, d_{l+1})` with the power :math:`p_l` is, which
    `monomial_kruskal` decides. Where no width is 1, :math:`p_l \ge 2 d_l - 1` is always enough. Biases act as one more
    input and one more node of each layer; then :math:`2 d_l + 1` is.

    References:
        Usevich, Borsoi, Derand, Clausel, "Identifiability of deep polynomial neural networks", 2025,
        https://arxiv.org/abs/2506.17093

    Args:
        widths: The numbers of inputs, of nodes of every hidden layer, and of outputs; at least three.
        degrees: The power of every hidden layer.
        biases: Whether the layers have biases.

    Raises:
        ValueError: if numbers are not whole numbers of at least 1, or do not fit together.

    Example:
        >>> deep_monomial([4, 3, 2], [3]).holds, deep_monomial([2, 4, 4, 2], [7, 3]).holds
        (True, False)
    """
    if len(widths) < 3 or len(degrees) != len(widths) - 2:
        raise ValueError(
            f"expected at least 3 widths and a degree for each hidden layer, got {len(widths)} widths and "
            f"{len(degrees)} degrees: pass [inputs, hidden, ..., outputs] and two degrees fewer"
        )
    _require_sizes(**{f"widths[{i}]": width for i, width in enumerate(widths)})
    _require_sizes(**{f"degrees[{i}]": degree for i, degree in enumerate(degrees)})
    extra = int(biases)
    for layer, degree in enumerate(degrees, start=1):
        m, r, n = min(widths[:layer]) + extra, widths[layer] + extra, widths[layer + 1]
        have, need = _kruskal(m, n, r, degree)
        if have < need and r > 1:
            enough = f"the power {-(-(2 * r - min(r, n)) // (min(m, r) - 1))}" if m > 1 else "no power"
            reason = f"hidden layer {layer} has the power {degree}, and for widths {m}, {r}, {n} {enough} is enough"
            return Condition("deep monomial network", "sufficient", False, reason)
    reason = "every pair of consecutive layers is unique"
    return Condition("deep monomial network", "sufficient", True, reason)


def distinct_directions(V: Float[Tensor, "m r"]) -> Condition:
    """Whether no two columns of V have the same direction.

    Two nodes with one direction are one vector-valued function of one variable, `w_1 g_1(t) + w_2 g_2(t)`, and every
    invertible mixture of `w_1, w_2` with the inverse mixture of `g_1, g_2` gives it as well.

    Args:
        V: The input map, `(m, r)`.

    Example:
        >>> from tenflex.identify import distinct_directions
        >>> distinct_directions(torch.tensor([[1.0, 2.0], [1.0, 2.0]])).holds
        False
    """
    pairs = collinear_columns(V)
    if not pairs:
        return Condition("distinct directions", "necessary", True, "no two columns of V are collinear")
    named = "; ".join(named_nodes(pair) for pair in pairs[:5]) + ("; ..." if len(pairs) > 5 else "")
    reason = f"the columns of V of {named} are collinear, so these nodes can be mixed"
    return Condition("distinct directions", "necessary", False, reason)


def collinear_columns(V: Float[Tensor, "m r"]) -> tuple[tuple[int, int], ...]:
    """The pairs of nodes whose columns in V have the same direction; zero columns are left out."""
    V = V.detach().double()
    norms = V.norm(dim=0)
    units = V / positive(norms)
    signs = torch.where(units.mT @ units < 0, -1.0, 1.0)
    pairs = []
    for one in range(units.shape[1] - 1):
        later = slice(one + 1, None)
        # The cosine of a small angle would lose half the digits.
        sine = (units[:, later] - signs[one, later] * units[:, one, None]).norm(dim=0)
        near = (sine < COLLINEAR) & (norms[one] > 0) & (norms[later] > 0)
        pairs += [(one, one + 1 + int(other)) for other in near.nonzero()]
    return tuple(pairs)


def named_nodes(nodes: tuple[int, ...]) -> str:
    """The nodes by the names of their activations in formulas and plots, which count from 1."""
    return ", ".join(f"g{node + 1}" for node in nodes[:10]) + (", ..." if len(nodes) > 10 else "")


def live_nodes(factors: Factors, inputs: Float[Tensor, "S m"]) -> Condition:
    """Whether every node does something: no zero column in W or V, and no activation that is constant on the inputs.

    Args:
        factors: The layer.
        inputs: Points at which it is used, `(S, m)`.

    Example:
        >>> from tenflex.identify import live_nodes
        >>> live_nodes(decouple(problem).factors, problem.samples.inputs).holds
        True
    """
    dead = dead_nodes(factors, inputs)
    if not dead:
        return Condition("live nodes", "necessary", True, "every node contributes to the Jacobians")
    verb = "contributes" if len(dead) == 1 else "contribute"
    reason = f"{named_nodes(dead)} {verb} nothing, so their other factors are arbitrary: lower the rank"
    return Condition("live nodes", "necessary", False, reason)


def dead_nodes(factors: Factors, inputs: Float[Tensor, "S m"]) -> tuple[int, ...]:
    """The nodes whose share of the Jacobians on the inputs is nothing."""
    H = _slopes(factors, inputs)
    strength = H.norm(dim=0) * factors.V.detach().double().norm(dim=0) * factors.W.detach().double().norm(dim=0)
    return tuple((strength <= DEAD * strength.amax()).nonzero().flatten().tolist())


def compounds(factors: Factors, inputs: Float[Tensor, "S m"]) -> Condition:
    r"""Whether the Jacobians of this very layer at these inputs have one canonical polyadic decomposition.

    They have if both :math:`H` and :math:`C_2(W) \odot C_2(V)` have full column rank, where the columns of the second
    compound matrix :math:`C_2(A)` are the minors :math:`a_k \wedge a_l` of all pairs of columns. Then the nodes are
    unique, not only among those nearby: no other layer of as many nodes, whatever its activations, has these
    Jacobians.

    References:
        Jiang, Sidiropoulos, "Kruskal's permutation lemma and the identification of CANDECOMP/PARAFAC and bilinear
        models with constant modulus constraints", 2004, https://doi.org/10.1109/TSP.2004.832022
        De Lathauwer, "A link between the canonical decomposition in multilinear algebra and simultaneous matrix
        diagonalization", 2006, https://doi.org/10.1137/040608830

    Args:
        factors: The layer.
        inputs: Points at which its Jacobians are known, `(S, m)`.

    Example:
        >>> from tenflex.identify import compounds
        >>> compounds(decouple(problem).factors, problem.samples.inputs).holds
        True
    """
    name, (rank,) = "compound matrices", one_layer(factors, "the uniqueness is known of").ranks
    if comb(rank, 2) > PAIRS:
        return Condition(name, "sufficient", None, f"{rank} nodes have more than {PAIRS} pairs, too many to check")
    slopes = _slopes(factors, inputs)
    if slopes.shape[0] < rank or not _independent(slopes.mT @ slopes):
        return Condition(name, "sufficient", False, "the slopes H do not have full column rank")
    gram = _compound_gram(factors.W.detach().double()) * _compound_gram(factors.V.detach().double())
    if not _independent(gram):
        return Condition(
            name, "sufficient", False, "the Khatri-Rao product of C2(W) and C2(V) is not of full column rank"
        )
    return Condition(name, "sufficient", True, "the Jacobians at these inputs have one decomposition only")


def degree_of(basis: Basis) -> int | None:
    """The degree of a basis that spans all polynomials of a degree but the constant; None for other bases."""
    while isinstance(basis, Wrapped):
        basis = basis.basis
    return basis.degree if isinstance(basis, (Monomial, Chebyshev)) else None


def _slopes(factors: Factors, inputs: Tensor) -> Float[Tensor, "S r"]:
    """H, in double precision."""
    with torch.no_grad():
        t = factors.arguments(inputs.to(factors.bias))[0].double()
        return factors.only.basis.curves(t, factors.only.coefficients.double())[1]


def _kruskal(m: int, n: int, rank: int, degree: int) -> tuple[int, int]:
    """The Kruskal ranks of the generic factors of a sum of powers, added up, and the sum that is enough."""
    return degree * min(m, rank) + min(n, rank), 2 * rank + degree


def _compound_gram(columns: Float[Tensor, "n r"]) -> Float[Tensor, "pairs pairs"]:
    r"""The Gram matrix of :math:`C_2(A)`, which by the Cauchy-Binet formula is :math:`C_2(A^\top A)`."""
    units = columns / positive(columns.norm(dim=0))
    gram = units.mT @ units
    first, second = torch.triu_indices(len(gram), len(gram), 1, device=gram.device)
    straight = gram[first][:, first] * gram[second][:, second]
    return straight - gram[first][:, second] * gram[second][:, first]


def _independent(gram: Float[Tensor, "r r"]) -> bool:
    """Whether columns are independent, from the inner products between them."""
    if not len(gram):
        return True
    lengths = gram.diagonal().clamp(min=0).sqrt()
    if not lengths.all():
        return False
    eigenvalues = torch.linalg.eigvalsh(gram / torch.outer(lengths, lengths))
    return bool(eigenvalues[0] > INDEPENDENT**2 * eigenvalues[-1])


def _require_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        require_whole(name, size, at_least=1)
