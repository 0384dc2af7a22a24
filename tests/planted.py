"""Layers that are known, and the samples of them: what solvers have to find."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from tenflex.bases import Basis, Monomial
from tenflex.decouple import inside
from tenflex.factors import Activations, Factors
from tenflex.objective.prepared import Prepared
from tenflex.problem import Problem
from tenflex.samples import Samples
from tenflex.solvers import State, prepare
from tenflex.solvers.base import measured


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(V, W, coefficients: Tensor, shift: Tensor, bias: Tensor, basis: Basis) -> Factors:
    """One layer from its parts; V and W may be products, `(B, A)` and `(D, E)`."""
    return Factors.single(V, W, Activations(coefficients, shift, basis), bias)


def width_of(maps: tuple[Tensor, ...]) -> int | None:
    """The width of a product of two matrices; None of a whole one."""
    return maps[0].shape[1] if len(maps) == 2 else None


def sampled(factors: Factors, inputs: Tensor) -> Samples:
    return Samples(inputs, factors.outputs(inputs), factors.jacobians(inputs))


@dataclass(frozen=True)
class Planted:
    """A layer that is to be found, and the points at which it is seen."""

    factors: Factors
    inputs: Tensor

    def problem(self, **settings) -> Problem:
        """The problem whose answer is the layer."""
        factors = self.factors
        form = {"factor": width_of(factors.maps[0]), "output_factor": width_of(factors.maps[-1])}
        rank = factors.ranks[0] if len(factors.ranks) == 1 else factors.ranks
        settings = {"rank": rank, "basis": factors.activations[0].basis, **form, **settings}
        return Problem(sampled(factors, self.inputs), **settings)


def polynomial(W: list, V: list, constants: list, coefficients: list, inputs: Tensor) -> Planted:
    """A layer with polynomial activations; their constants go to the bias."""
    W, V, C = (torch.tensor(one, dtype=torch.float64) for one in (W, V, coefficients))
    bias = W @ torch.tensor(constants, dtype=torch.float64)
    return Planted(layer(V, W, C, torch.zeros(len(C), dtype=W.dtype), bias, Monomial(C.shape[1])), inputs)


def uniform(count: int, m: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, m, generator=seeded(0), dtype=torch.float64)


CUBIC = polynomial([[1, 2], [-3, -1]], [[-2, 3], [-2, -1]], [1, 0], [[-3, 2, 0], [-1, 0, 1]], uniform(50, 2, -1, 1))
"""Dreesen, Ishteva, Schoukens 2015: g1 = 2t^2 - 3t + 1, g2 = t^3 - t."""

SKEW = polynomial([[-2, 3], [-7, -4]], [[-3, 0], [1, -8]], [0, 2], [[-2, 1, -2], [3, 7, -1]], uniform(500, 2, 0, 1))
"""g1 = -2t^3 + t^2 - 2t, g2 = -t^3 + 7t^2 + 3t + 2, on [0, 1]."""

MORE_NODES = polynomial(
    [[3, 0.5, -1], [1, 2, 3]],
    [[1, 3, 0.5], [2, 1, 3]],
    [0, 0, 0],
    [[0, 0.5, 1], [0, 1, 2], [0, 3, 1]],
    uniform(100, 2, -1.5, 1.5),
)
"""Three nodes between two inputs and two outputs: the plain CPD is not unique, the structured one is."""

SUM_AND_DIFFERENCE = polynomial(
    [[1, 0], [0, 1]], [[1, 1], [1, -1]], [0, 0], [[0, 1, 0], [0, 0, 1]], uniform(100, 2, 0, 1)
)
"""((a + b)^2, (a - b)^3) on [0, 1]."""


def factored(m: int, n: int, r: int, q: int | None, p: int | None, seed: int, count: int = 120) -> Planted:
    """A layer whose maps are products of widths q and p."""
    generator = seeded(seed)
    inner = (random(generator, m, r) / m**0.5,)
    if q is not None:
        inner = (torch.linalg.qr(random(generator, m, q))[0], random(generator, q, r) / q**0.5)
    outer = (random(generator, n, r),) if p is None else (random(generator, n, p), random(generator, p, r))
    C, b = random(generator, r, 3), random(generator, n)
    return Planted(layer(inner, outer, C, torch.zeros(r).double(), b, Monomial(3)), random(generator, count, m))


def placed(basis: Basis, m: int = 3, n: int = 3, r: int = 2, seed: int = 0, count: int = 150) -> Planted:
    """A layer whose nodes are placed on the interval of the basis as solvers place them, when no sample is held out.

    The inputs have mean zero: one-sided hinges have their zero where that of centred inputs is.
    """
    generator = seeded(seed)
    V, x = random(generator, m, r), random(generator, count, m)
    x = x - x.mean(0)
    scale, shift = basis.place(x @ V)
    fitted = basis.fit(x @ V * scale + shift)
    C = random(generator, r, basis.size)
    return Planted(layer(V * scale, random(generator, n, r), C, shift, random(generator, n), fitted), x)


def direction_error(found: Factors, true: Factors) -> float:
    """The largest sine between a column of V or W and that of the planted layer, in the best order of the nodes."""

    def sines(one: Tensor, other: Tensor) -> Tensor:
        one, other = one / one.norm(dim=0), other / other.norm(dim=0)
        return (one - other * (one * other).sum(0)).norm(dim=0)

    return min(
        max(sines(found.V[:, order], true.V).max().item(), sines(found.W[:, order], true.W).max().item())
        for order in map(list, permutations(range(*true.ranks)))
    )


def output_error(found: Factors, true: Factors, inputs: Tensor) -> float:
    """The relative error of the outputs at any inputs."""
    F = true.outputs(inputs)
    return ((found.outputs(inputs) - F).norm() / (F - F.mean(0)).norm()).item()


def state_at(problem: Problem, factors: Factors, **changes) -> tuple[Prepared, State]:
    """The state of a solver that stands at a layer given in the original coordinates."""
    prepared, reduction = prepare(problem)
    within = inside(prepared, reduction, factors)
    return prepared, measured(prepared, State(within, **{"memory": None, **changes}), within)
