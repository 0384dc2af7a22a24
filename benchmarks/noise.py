"""Error against noise: plain, weighted and filtered decompositions.

First the published kind of example (Hollander and others 2018): a coupled polynomial is fitted to noisy data and then
decoupled, so the errors of its Jacobians follow from the covariance of its coefficients. Errors are those of the
decoupled map at other inputs, output by output relative to the error of the coupled polynomial: below 1, decoupling
takes noise away. Then maps that are no polynomials, whose outputs and Jacobians both have noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from benchmarks.problems import Planted, coupled_cubic, layer, normal, random_cubics, seeded, uniform
from benchmarks.record import DOCS, insert, markdown, write
from tenflex import BSpline, Monomial, Problem, Samples, Smooth, decouple
from tenflex.bases import Basis
from tenflex.sampling.polynomial import Polynomial
from tenflex.solvers import (
    Chain,
    ConstrainedALS,
    FilteredCPD,
    GaussNewton,
    GeneralizedEigenvalues,
    JacobianCPD,
    MultiStart,
    Solver,
    StructuredCPD,
    Unweighted,
    WeightedCPD,
)

DRAWS = 10
"""Of the noise, and of the maps that are random."""

LEVELS = (1e-4, 1e-3, 1e-2, 1e-1)
"""The standard deviations of the noise, relative to those of the outputs."""

DATA, POINTS, OTHERS = 200, 30, 1000
"""Data for the coupled polynomial, points at which it is decoupled, and inputs at which errors are measured."""

RIDGE = 0.1
"""The share of their variance that the Jacobians' errors have for themselves, besides those of the coefficients.

Without it their covariance has the rank of the coefficients' and no inverse.
"""


@dataclass(frozen=True)
class Setting:
    """How the data are.

    Args:
        correlation: Between the inputs.
        ratio: How many times smaller, relatively, the noise of the first output is than that of the last.
    """

    correlation: float = 0.0
    ratio: float = 1.0


SETTINGS = {
    "equal": Setting(),
    "correlated inputs": Setting(correlation=0.9),
    "unequal outputs": Setting(ratio=30.0),
}

MAPS: dict[str, Callable[[int], Planted]] = {
    "m = n = r = 2": lambda draw: coupled_cubic(),
    "random, m = n = r = 3": lambda draw: random_cubics(3, 3, 3, draw),
}


@dataclass(frozen=True)
class Tried:
    """A solver with what it is told.

    Args:
        solver: The solver.
        form: The form of the covariance that it is given, or None.
        coupling: The weight of the outputs. They follow from the same coefficients as the Jacobians, so that they tell
            nothing more where these are weighted rightly.
    """

    solver: Solver
    form: str | None = None
    coupling: float = 3.0


PLAIN = Chain((GeneralizedEigenvalues(), JacobianCPD()))
"""Where all start, so that no local minimum is taken for the effect of noise."""

COUPLED = Chain((ConstrainedALS(10), GaussNewton(50)))

POLYNOMIAL = {
    "JacobianCPD": Tried(PLAIN),
    "StructuredCPD": Tried(Chain((PLAIN, StructuredCPD()))),
    "WeightedCPD, diagonal": Tried(Chain((Unweighted(PLAIN), WeightedCPD())), "diagonal", 0.0),
    "WeightedCPD, block": Tried(Chain((Unweighted(PLAIN), WeightedCPD())), "block", 0.0),
    "WeightedCPD, full": Tried(Chain((Unweighted(PLAIN), WeightedCPD())), "full", 0.0),
    "ConstrainedALS + GaussNewton": Tried(Chain((PLAIN, COUPLED))),
    "the same, full covariance": Tried(Chain((Unweighted(PLAIN), COUPLED)), "full", 0.0),
    "the same, outputs unweighted beside it": Tried(Chain((Unweighted(PLAIN), COUPLED)), "full", 3.0),
}

SMOOTH_LEVELS = (1e-3, 1e-2, 1e-1)

SMOOTH_MAPS = {"m = n = r = 3": 3, "m = n = 2, r = 3": 2}
"""The number of inputs and outputs."""

SPLINE = BSpline(10)

SMOOTH: dict[str, tuple[Solver | None, Basis]] = {
    "JacobianCPD": (MultiStart(JacobianCPD(), 3), SPLINE),
    "FilteredCPD": (MultiStart(FilteredCPD(), 3), SPLINE),
    "FilteredCPD + GaussNewton": (MultiStart(Chain((FilteredCPD(20), GaussNewton(50))), 3), SPLINE),
    "default": (None, SPLINE),
    "default, smooth splines": (None, Smooth(SPLINE)),
}
"""The best of three starts by the error on held-out samples, as it is for the recipe."""


def main() -> bool:
    """Measure; true if the weighted solvers win where errors are unequal, and the filtered one where it should."""
    polynomial, curved = list(polynomial_rows()), list(smooth_rows())
    write("noise", polynomial, smooth=curved)
    first, second = ([row for row in polynomial if row["map"] == key] for key in MAPS)
    tables = {"noise": table(first, LEVELS), "noise-random": table(second, LEVELS)}
    for name, content in {**tables, "noise-smooth": table(curved, SMOOTH_LEVELS)}.items():
        insert(name, content, DOCS / "solvers.md")
        print(content)
    return weighted_wins(polynomial) and filtered_wins(curved)


def polynomial_rows() -> Iterable[dict[str, Any]]:
    """The errors of every solver in every setting."""
    for key, planted in MAPS.items():
        for setting in SETTINGS:
            for level in LEVELS:
                cases = [Coupled.fitted(planted(draw), SETTINGS[setting], level, draw) for draw in range(DRAWS)]
                for name, tried in POLYNOMIAL.items():
                    found = [attempt(case, tried, draw) for draw, case in enumerate(cases)]
                    yield {"map": key, "errors": setting, "level": level, "solver": name, **summary(found)}


@dataclass(frozen=True, eq=False)
class Coupled:
    """A coupled polynomial that was fitted to noisy data.

    Args:
        planted: The map that made the data.
        polynomial: What was fitted.
        samples: Its outputs and Jacobians.
        covariance: Of the errors of these Jacobians, `(S n m, S n m)`.
        others: Further inputs.
    """

    planted: Planted
    polynomial: Polynomial
    samples: Samples
    covariance: Tensor
    others: Tensor

    @classmethod
    def fitted(cls, planted: Planted, setting: Setting, level: float, draw: int) -> Coupled:
        """By least squares on all monomials, with the covariance that these give."""
        generator, m = seeded(draw), planted.V.shape[0]
        inputs, others = (correlated(generator, count, m, setting.correlation) for count in (DATA, OTHERS))
        outputs = vmap(planted.f)(inputs)
        n = outputs.shape[1]
        smaller = setting.ratio ** torch.linspace(-1, 0, n, dtype=torch.float64)
        noisy = outputs + level * smaller * outputs.std(0) * normal(generator, DATA, n)
        monomials = all_monomials(m, planted.degree)
        powers = monomials.values(inputs)
        fitted = torch.linalg.lstsq(powers, noisy).solution
        variances = (noisy - powers @ fitted).square().sum(0) / (DATA - powers.shape[1])
        points = inputs[:POINTS]
        slopes = monomials.jacobians(points)
        polynomial = Polynomial(monomials.exponents, fitted.mT.contiguous())
        samples = Samples(points, polynomial.values(points), polynomial.jacobians(points))
        covariance = of_slopes(slopes, torch.linalg.inv(powers.mT @ powers), variances)
        return cls(planted, polynomial, samples, covariance, others)

    def problem(self, tried: Tried) -> Problem:
        """What a solver is asked."""
        covariance = None if tried.form is None else self.form(tried.form)
        samples = replace(self.samples, covariance=covariance)
        degree = self.planted.degree
        return Problem(samples, self.planted.rank, Monomial(degree), coupling=tried.coupling, held_out=0)

    def form(self, name: str) -> Tensor:
        """The covariance in one of its forms: what a smaller one does not hold is left out."""
        if name == "full":
            return self.covariance
        if name == "diagonal":
            return self.covariance.diagonal().view(self.samples.jacobians.shape)
        size = len(self.covariance) // POINTS
        return self.covariance.view(POINTS, size, POINTS, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)

    def errors(self, outputs: Tensor) -> Tensor:
        """The relative errors of outputs at the further inputs, one by one."""
        true = vmap(self.planted.f)(self.others)
        return (outputs - true).norm(dim=0) / (true - true.mean(0)).norm(dim=0)


def correlated(generator: torch.Generator, count: int, m: int, correlation: float) -> Tensor:
    """Inputs of which each is uniform about [-1, 1], or a mixture of such ones."""
    between = torch.full((m, m), correlation, dtype=torch.float64).fill_diagonal_(1.0)
    independent = 2 * torch.rand(count, m, generator=generator, dtype=torch.float64) - 1
    return independent @ torch.linalg.cholesky(between).mT


def all_monomials(m: int, degree: int) -> Polynomial:
    """Each monomial up to a degree as an output of its own."""
    rows = [
        [factors.count(j) for j in range(m)]
        for power in range(degree + 1)
        for factors in combinations_with_replacement(range(m), power)
    ]
    return Polynomial(torch.tensor(rows), torch.eye(len(rows), dtype=torch.float64))


def of_slopes(slopes: Tensor, inverse: Tensor, variances: Tensor) -> Tensor:
    """The covariance of the Jacobians, from the slopes of the monomials `(S, T, m)` and the coefficients' covariance.

    That of two outputs' coefficients is zero, and of one output its variance times the inverse Gram matrix.
    """
    count, _, m = slopes.shape
    each = torch.einsum("sai,ab,tbj->sitj", slopes, inverse, slopes)
    size = count * len(variances) * m
    total = torch.einsum("op,sitj->soitpj", torch.diag(variances), each).reshape(size, size)
    return (total + total.mT) / 2 + RIDGE * torch.diag(total.diagonal())


def attempt(case: Coupled, tried: Tried, draw: int) -> dict[str, float]:
    """The error of the decoupled map, in units of that of the coupled one, and of its directions."""
    factors = decouple(case.problem(tried), tried.solver, seed=draw).factors
    errors = case.errors(factors.outputs(case.others))
    coupled = case.errors(case.polynomial.values(case.others))
    return {
        "ratio": float((errors / coupled).square().mean().sqrt()),
        "absolute": float(errors.square().mean().sqrt()),
        "directions": case.planted.factor_error(factors),
    }


def smooth_rows() -> Iterable[dict[str, Any]]:
    """The errors for maps of sines, exponentials and sigmoids, with noise on outputs and Jacobians."""
    for key, size in SMOOTH_MAPS.items():
        for level in SMOOTH_LEVELS:
            cases = [(smooth(size, draw), noisy(smooth(size, draw), level, draw)) for draw in range(DRAWS)]
            for name, (solver, basis) in SMOOTH.items():
                found = [fit_smooth(*case, solver, basis, draw) for draw, case in enumerate(cases)]
                yield {"map": key, "level": level, "solver": name, **summary(found)}


def smooth(size: int, draw: int) -> Planted:
    """Three nodes with random directions, seen at 100 points."""
    generator = seeded(draw)
    V, W = normal(generator, size, 3), normal(generator, size, 3)
    V, W = V / V.norm(dim=0), W / W.norm(dim=0)
    f = layer(V, W, lambda s, t, u: (torch.sin(3 * s), torch.exp(t) - t, torch.tanh(3 * u) + u**2 / 2))
    return Planted(f, V, W, uniform(100, size, -1, 1, draw))


def noisy(planted: Planted, level: float, draw: int) -> Samples:
    """Outputs and Jacobians with noise relative to their sizes."""
    generator = seeded(draw)
    clean = vmap(planted.f)(planted.points)
    slopes = vmap(torch.func.jacrev(planted.f))(planted.points)
    F = clean + level * clean.std() * normal(generator, *clean.shape)
    J = slopes + level * slopes.square().mean().sqrt() * normal(generator, *slopes.shape)
    return Samples(planted.points, F, J)


def fit_smooth(planted: Planted, samples: Samples, solver: Solver | None, basis: Basis, draw: int) -> dict[str, float]:
    """The relative error of the outputs at other inputs, some beyond the samples, and of the directions."""
    factors = decouple(Problem(samples, planted.rank, basis), solver, seed=draw).factors
    others = uniform(OTHERS, planted.V.shape[0], -1, 1, seed=DRAWS + draw)
    true = vmap(planted.f)(others)
    error = (factors.outputs(others) - true).norm() / (true - true.mean(0)).norm()
    return {"ratio": float(error), "directions": planted.factor_error(factors)}


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the draws, and the quartiles of the error."""
    low, median, high = statistics.quantiles([one["ratio"] for one in found], n=4)
    rest = {f"median_{key}": statistics.median(one[key] for one in found) for key in found[0] if key != "ratio"}
    return {"median": median, "quartiles": [low, high], **rest, "draws": len(found)}


def weighted_wins(rows: list[dict[str, Any]]) -> bool:
    """Whether weights help where errors are unequal, in alternating least squares and in the refinement.

    Not at the largest noise, where the errors of the Jacobians are no longer small.
    """
    median = {(row["map"], row["errors"], row["level"], row["solver"]): row["median"] for row in rows}
    pairs = (("WeightedCPD, block", "JacobianCPD"), ("the same, full covariance", "ConstrainedALS + GaussNewton"))
    return all(
        median[key, setting, level, weighted] < median[key, setting, level, plain]
        for key in MAPS
        for setting in list(SETTINGS)[1:]
        for level in LEVELS[:-1]
        for weighted, plain in pairs
    )


def filtered_wins(rows: list[dict[str, Any]]) -> bool:
    """Whether the filter helps where the plain decomposition is not unique."""
    median = {(row["map"], row["level"], row["solver"]): row["median"] for row in rows}
    key = next(key for key, size in SMOOTH_MAPS.items() if size < 3)
    return all(median[key, level, "FilteredCPD"] < median[key, level, "JacobianCPD"] for level in SMOOTH_LEVELS)


def table(rows: list[dict[str, Any]], levels: tuple[float, ...]) -> str:
    """Medians and quartiles, a column for each level of noise; what varies besides to the left of the solver."""
    names = [name for name in ("errors", "map", "solver") if len({row.get(name) for row in rows}) > 1]
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        low, high = row["quartiles"]
        cell = f"{row['median']:.2g} ({low:.2g} to {high:.2g})"
        lines.setdefault(tuple(row[name] for name in names), []).append(cell)
    heads = [name.replace("errors", "data") for name in names] + [f"noise {level:g}" for level in levels]
    return markdown(heads, [[*line, *cells] for line, cells in lines.items()])
