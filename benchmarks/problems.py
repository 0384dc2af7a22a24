"""Maps whose answer is known, from the papers: what is to be found, and where it is seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from tenflex import Monomial
from tenflex.factors import Activations, Factors
from tenflex.identify import align
from tenflex.sampling.polynomial import Polynomial


def matrix(*rows: list[float]) -> Tensor:
    """In float64."""
    return torch.tensor(rows, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    """A source of random numbers."""
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """In float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(count: int, m: int, low: float, high: float, seed: int = 0) -> Tensor:
    """Points in a cube."""
    return low + (high - low) * torch.rand(count, m, generator=seeded(seed), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Planted:
    """A map with known nodes.

    Args:
        f: The map, of one point `(m,)`.
        V: The directions, `(m, r)`.
        W: Where the nodes act, `(n, r)`.
        points: Where it is seen, `(S, m)`.
        degree: That of its activations, if they are polynomials.
    """

    f: Callable[[Tensor], Tensor]
    V: Tensor
    W: Tensor
    points: Tensor
    degree: int = 3

    @property
    def rank(self) -> int:
        """The number of nodes."""
        return self.V.shape[1]

    def factor_error(self, factors: Factors) -> float:
        """The largest error of a direction, up to order and scale."""
        C, a = self.V.new_zeros(self.rank, self.degree), self.V.new_zeros(self.rank)
        nothing = Activations(C, a, Monomial(self.degree))
        return align(factors, Factors.single(self.V, self.W, nothing, self.V.new_zeros(len(self.W)))).factor_error


def layer(V: Tensor, W: Tensor, g: Callable[..., tuple[Tensor, ...]]) -> Callable[[Tensor], Tensor]:
    """The map `W g(V^T x)`, g from and to separate nodes."""
    return lambda x: torch.stack(g(*(x @ V).unbind(-1)), -1) @ W.mT


def coupled_cubic() -> Planted:
    """Dreesen, Ishteva, Schoukens 2015: as the polynomial in which it is given, 50 points."""
    f = Polynomial.from_string(
        "54*a^3 - 54*a^2*b + 8*a^2 + 18*a*b^2 + 16*a*b - 2*b^3 + 8*b^2 + 8*b + 1;"
        "-27*a^3 + 27*a^2*b - 24*a^2 - 9*a*b^2 - 48*a*b - 15*a + b^3 - 24*b^2 - 19*b - 3"
    )
    return Planted(f, matrix([-2, 3], [-2, -1]), matrix([1, 2], [-3, -1]), uniform(50, 2, -1, 1))


def narrow_cubic() -> Planted:
    """Two nodes of degree 3 on [0, 1], 500 points."""
    W, V = matrix([-2, 3], [-7, -4]), matrix([-3, 0], [1, -8])
    f = layer(V, W, lambda s, t: (-2 * s**3 + s**2 - 2 * s, -(t**3) + 7 * t**2 + 3 * t + 2))
    return Planted(f, V, W, uniform(500, 2, 0, 1))


def more_nodes() -> Planted:
    """Three nodes between two inputs and two outputs, 100 points."""
    W, V = matrix([3, 0.5, -1], [1, 2, 3]), matrix([1, 3, 0.5], [2, 1, 3])
    f = layer(V, W, lambda s, t, u: (s**3 + 0.5 * s**2, 2 * t**3 + t**2, u**3 + 3 * u**2))
    return Planted(f, V, W, uniform(100, 2, -1.5, 1.5))


def square_and_cube() -> Planted:
    """((a + b)^2, (a - b)^3) on [0, 1], 100 points."""
    V = matrix([1, 1], [1, -1])
    W = torch.eye(2, dtype=torch.float64)
    return Planted(layer(V, W, lambda s, t: (s**2, t**3)), V, W, uniform(100, 2, 0, 1))


def random_cubics(m: int, n: int, rank: int, seed: int, count: int = 120) -> Planted:
    """Random nodes of degree 3, seen at normal points."""
    generator = seeded(seed)
    V, W = normal(generator, m, rank) / m**0.5, normal(generator, n, rank)
    C, points = normal(generator, 3, rank), normal(generator, count, m)

    def f(x: Tensor) -> Tensor:
        t = x @ V
        return (t * (C[0] + t * (C[1] + t * C[2]))) @ W.mT

    return Planted(f, V, W, points)


def sine_and_tanh(x: Tensor) -> Tensor:
    """Two functions of one and the same direction."""
    t = x.sum(-1)
    return torch.stack([2.5 + torch.sin(0.2 * math.pi * t), -5 + torch.tanh(t)], -1)


def unequal(sigma: float) -> Callable[[Tensor], Tensor]:
    """A large output and a small one, two nodes in each of two directions."""

    def f(x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        return torch.stack([sigma * (torch.cos(4 * math.pi * a) + b**2), -torch.sin(3 * math.pi * b) + a**3], -1)

    return f


@dataclass(frozen=True, eq=False)
class Composed:
    """Two layers of quadratics.

    Args:
        f: The map `W g(U h(V^T x))`, of one point `(m,)`.
        V: The directions of the first layer, `(m, 2)`.
        U: The map between the layers, `(2, 2)`.
        W: Where the nodes of the second act, `(n, 2)`.
        curvatures: Half the second derivatives of h, `(2,)`.
        points: Where it is seen, `(S, m)`.
    """

    f: Callable[[Tensor], Tensor]
    V: Tensor
    U: Tensor
    W: Tensor
    curvatures: Tensor
    points: Tensor
    rank: tuple[int, int] = (2, 2)
    degree: int = 2

    def factor_error(self, factors: Factors) -> float:
        """The largest sine between columns of V, of W or rows of U, and those found, in the best order of the nodes.

        The scale of h_l can move into column l of U, so that these are measured by the curvatures of h.
        """
        found = self._rows(factors.map(1).mT, factors.activations[0].coefficients[:, 1], factors.V)
        true = self._rows(self.U, self.curvatures, self.V)
        orders = [list(order) for order in permutations(range(2))]
        return min(
            max(
                sines(factors.V[:, first], self.V),
                sines(factors.W[:, second], self.W),
                sines(found[first][:, second], true),
            )
            for first in orders
            for second in orders
        )

    @staticmethod
    def _rows(U: Tensor, curvatures: Tensor, V: Tensor) -> Tensor:
        return (U * curvatures * V.square().sum(0)).mT


def composed_quadratics() -> Composed:
    """Activations 2t + 3t^2 and t^2 in the first layer, -t^2 - 2t and t^2 - 3t in the second, 100 points."""
    V, U, W = matrix([-2, -3], [-2, 1]), matrix([1, 2], [-3, -1]), matrix([1, 2], [2, 1])
    first = layer(V, U, lambda s, t: (2 * s + 3 * s**2, t**2))
    second = layer(torch.eye(2, dtype=torch.float64), W, lambda s, t: (-(s**2) - 2 * s, t**2 - 3 * t))
    points = uniform(100, 2, -0.5, 0.5)
    return Composed(lambda x: second(first(x)), V, U, W, matrix([3, 1])[0], points)


def sines(found: Tensor, true: Tensor) -> float:
    """The largest sine between columns."""
    found, true = found / found.norm(dim=0), true / true.norm(dim=0)
    return (found - true * (found * true).sum(0)).norm(dim=0).max().item()
