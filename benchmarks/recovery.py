"""Planted maps found again: success of single starts of every solver, and what is not unique.

A start succeeds if all directions of V and W are found to 1e-8, up to order and scale. Seconds are those of one core.
The random maps are drawn anew for every start, so that their column is a rate over maps and starts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import (
    Composed,
    Planted,
    composed_quadratics,
    coupled_cubic,
    more_nodes,
    narrow_cubic,
    normal,
    random_cubics,
    seeded,
    sine_and_tanh,
    square_and_cube,
    unequal,
    uniform,
)
from benchmarks.record import DOCS, insert, markdown, write
from tenflex import Monomial, Problem, Samples, decouple, sample
from tenflex.coordinates.base import Coordinates
from tenflex.coordinates.per_output import PerOutput
from tenflex.coordinates.standardize import Standardize
from tenflex.factors import Activations, Factors
from tenflex.identify import Uniqueness, identify, jacobian_cpd, largest_rank
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    FilteredCPD,
    GaussNewton,
    GeneralizedEigenvalues,
    HessianCPD,
    JacobianCPD,
    LayeredALS,
    ProjectedALS,
    Refine,
    SketchedNewton,
    Solver,
    StructuredCPD,
    WeightedCPD,
    prepare,
)

FOUND = 1e-8
"""The error of the factors below which they are found."""

STARTS, DRAWS, FEW = 100, 30, 20
"""Starts on published maps and on random ones, and runs of what takes many starts itself or finds no polynomials."""

RECIPE = "10 starts, 60 of two layers"

RANDOM, COMPOSED = "random", "two layers"
"""What the names of random maps begin with, and the name of that with two layers."""


def always(made: Planted | Composed) -> Callable[[int], Planted | Composed]:
    """The same map for every start."""
    return lambda seed: made


MAPS: dict[str, Callable[[int], Planted | Composed]] = {
    "m = n = r = 2": always(coupled_cubic()),
    "m = n = r = 2 on [0, 1]": always(narrow_cubic()),
    "square and cube": always(square_and_cube()),
    "m = n = 2, r = 3": always(more_nodes()),
    "random, m = r = 2, n = 1": cache(partial(random_cubics, 2, 1, 2)),
    "random, m = r = 3, n = 1": cache(partial(random_cubics, 3, 1, 3)),
    COMPOSED: always(composed_quadratics()),
}
"""The maps by the seed of a start; the published ones are always the same."""


@dataclass(frozen=True)
class Tried:
    """A solver, and how it is tried.

    Args:
        solver: The solver; None for the default recipe.
        limit: The most it does in a start, in words.
        starts: How many times it is started on each map.
    """

    solver: Solver | None
    limit: str
    starts: int = STARTS

    def problem(self, samples: Samples, rank: int | tuple[int, int], degree: int) -> Problem:
        """What it is asked: all samples are fitted, but by the recipe, which needs some to choose among its starts."""
        if isinstance(self.solver, WeightedCPD):
            variances = (1.5 * normal(seeded(0), *samples.jacobians.shape)).exp()
            samples = replace(samples, covariance=variances)
        settings = {} if self.solver is None else {"held_out": 0.0}
        return Problem(samples, rank, Monomial(degree), **settings)


SOLVERS = {
    "GeneralizedEigenvalues": Tried(GeneralizedEigenvalues(), "5 pencils"),
    "JacobianCPD": Tried(JacobianCPD(), "200 sweeps"),
    "WeightedCPD, variances over three decades": Tried(WeightedCPD(), "200 sweeps"),
    "StructuredCPD": Tried(StructuredCPD(), "200 sweeps"),
    "StructuredCPD + GaussNewton": Tried(Chain((StructuredCPD(50), GaussNewton(100))), "50 sweeps + 100 steps"),
    "FilteredCPD, no basis": Tried(FilteredCPD(), "100 sweeps", FEW // 2),
    "FilteredCPD + GaussNewton": Tried(Chain((FilteredCPD(20), GaussNewton(100))), "20 sweeps + 100 steps", FEW),
    "HessianCPD": Tried(HessianCPD(), "200 sweeps"),
    "HessianCPD + GaussNewton": Tried(Chain((HessianCPD(50), GaussNewton(100))), "50 sweeps + 100 steps"),
    "ProjectedALS": Tried(BestSoFar(ProjectedALS(100), of="outputs"), "best of 100 sweeps"),
    "ConstrainedALS": Tried(ConstrainedALS(60), "60 sweeps"),
    "ConstrainedALS + GaussNewton": Tried(Chain((ConstrainedALS(10), GaussNewton(100))), "10 sweeps + 100 steps"),
    "ConstrainedALS + Refine": Tried(Chain((ConstrainedALS(10), Refine(100))), "10 sweeps + 100 iterations"),
    "default": Tried(None, RECIPE, FEW),
}

TWO_LAYERS = {
    "LayeredALS + GaussNewton": Tried(
        Chain((LayeredALS(3, bend=2.0), GaussNewton(200, tolerance=1e-5))), "3 sweeps + 200 steps", 30
    ),
    "LayeredALS + SketchedNewton": Tried(
        Chain((LayeredALS(3, bend=2.0), SketchedNewton(40, tolerance=1e-5))), "3 sweeps + 40 rounds", 30
    ),
    "default": Tried(None, RECIPE, 5),
}

LARGEST = {
    (2, 2, 3): 3,
    (2, 2, 4): 4,
    (2, 2, 5): 4,
    (3, 2, 3): 6,
    (3, 3, 2): 4,
    (3, 3, 3): 7,
    (4, 4, 2): 7,
    (4, 4, 3): 15,
    (2, 1, 3): 2,
    (3, 1, 3): 3,
    (4, 2, 3): 8,
    (5, 5, 3): 25,
}
"""The largest ranks that are locally unique, by inputs, outputs and degree."""

COLLINEAR = {(1, 3): 2.4e-2, (2, 3): 2.4e-4, (2, 5): 4.1e-5, (2, 10): 6.4e-8}
"""The relative squared errors that were reached for `sine_and_tanh`, by rank and degree."""


def main() -> bool:
    """Measure; true if every map is found, what is not unique is flagged, and the known numbers are reached."""
    rows = [success(name, tried, key) for key in MAPS for name, tried in solvers_for(key).items()]
    ambiguous, ranks, collinear, scaled = plain_is_not_unique(), largest_ranks(), collinear_nodes(), scaled_outputs()
    more = {"largest_ranks": ranks, "collinear": collinear, "unequal_outputs": scaled}
    write("recovery", [row for row in rows if "found" in row], not_unique=ambiguous, **more)
    for name, content in {"recovery": table(rows), **tables(ranks, collinear, scaled)}.items():
        insert(name, content, DOCS / "solvers.md")
        print(content)
    return all_found(rows) and flagged(ambiguous, ranks) and reached(collinear, scaled)


def solvers_for(key: str) -> dict[str, Tried]:
    """The solvers that are tried on a map."""
    if key == COMPOSED:
        return TWO_LAYERS
    most = DRAWS if key.startswith(RANDOM) else STARTS
    return {name: replace(tried, starts=min(tried.starts, most)) for name, tried in SOLVERS.items()}


def success(name: str, tried: Tried, key: str) -> dict[str, Any]:
    """How many starts find a map; only the names where the solver refuses the problem."""
    errors, seconds, steps = [], [], []
    for seed in range(tried.starts):
        one = MAPS[key](seed)
        problem = tried.problem(sampled(one), one.rank, one.degree)
        began = time.process_time()
        try:
            solution = decouple(problem, tried.solver, seed=seed)
        except ValueError:  # ranks or sizes for which it is not made
            return {"solver": name, "map": key, "limit": tried.limit}
        seconds.append(time.process_time() - began)
        steps.append(len(solution.history) - 1)
        errors.append(one.factor_error(solution.factors))
    return summary(name, key, tried, errors, steps, seconds)


@cache
def sampled(planted: Planted | Composed) -> Samples:
    """With second derivatives, for those who use them."""
    return sample(planted.f, planted.points, order=2)


def summary(
    name: str, key: str, tried: Tried, errors: list[float], steps: list[int], seconds: list[float]
) -> dict[str, Any]:
    """One row of the results."""
    return {
        "solver": name,
        "map": key,
        "limit": tried.limit,
        "starts": tried.starts,
        "found": sum(error < FOUND for error in errors),
        "median_error": statistics.median(errors),
        "median_steps": statistics.median(steps),
        "median_seconds": statistics.median(seconds),
    }


def plain_is_not_unique(starts: int = 20) -> dict[str, Any]:
    """For r > min(m, n): decompositions of the Jacobians with no error, whose directions are others."""
    planted = more_nodes()
    problem = Problem(sample(planted.f, planted.points), planted.rank, Monomial(planted.degree), held_out=0)
    prepared, reduction = prepare(problem)
    solver, errors, wrong = JacobianCPD(), [], []
    for seed in range(starts):
        state = solver.init(prepared, seeded(seed))
        while not solver.finished(prepared, state):
            state = solver.step(prepared, state)
        errors.append(state.memory.parts.error(prepared.fitted.jacobians) ** 0.5)
        wrong.append(planted.factor_error(reduction.expand(state.factors)))
    n, m = planted.W.shape[0], planted.V.shape[0]
    return {
        "largest_error_of_decomposition": max(errors),
        "least_error_of_directions": min(wrong),
        "condition": str(jacobian_cpd(m, n, planted.rank, planted.degree)),
        "structured": identify(decouple(problem)).uniqueness.name,
    }


def largest_ranks() -> list[dict[str, Any]]:
    """The largest locally unique ranks, and the verdicts there and one above, on layers that are exact."""
    rows = []
    for (m, n, degree), known in LARGEST.items():
        found = largest_rank(m, n, degree)
        verdicts = [identify(random_layer(m, n, degree, rank)) for rank in (known, known + 1)]
        rows.append(
            {
                "m": m,
                "n": n,
                "degree": degree,
                "known": known,
                "found": found,
                "verdict": verdicts[0].uniqueness.name,
                "verdict_above": verdicts[1].uniqueness.name,
                "trusted_above": verdicts[1].trusted,
            }
        )
    return rows


def random_layer(m: int, n: int, degree: int, rank: int) -> Factors:
    """Normal factors."""
    generator = seeded(1)
    V, W, C = (normal(generator, *shape) for shape in ((m, rank), (n, rank), (rank, degree)))
    activations = Activations(C, C.new_zeros(rank), Monomial(degree))
    return Factors.single(V / V.norm(dim=0), W, activations, C.new_zeros(n))


def collinear_nodes(draws: int = 10) -> list[dict[str, Any]]:
    """Two functions of one direction, seen through their outputs: good fits, of nodes that are not to be trusted."""
    rows = []
    for (rank, degree), known in COLLINEAR.items():
        errors, least, trusted, pairs = [], [], 0, 0
        for seed in range(draws):
            samples = sample(sine_and_tanh, normal(seeded(seed), 50, 2))
            solution = decouple(Problem(samples, rank, Monomial(degree), coupling=1e6, held_out=0), seed=seed)
            errors.append(relative(samples.outputs - solution.factors.outputs(samples.inputs), samples))
            least.append(relative(left_by_polynomials(samples, degree), samples))
            verdict = identify(solution)
            trusted, pairs = trusted + verdict.trusted, pairs + bool(verdict.collinear)
        rows.append(
            {
                "rank": rank,
                "degree": degree,
                "published": known,
                "median_error": statistics.median(errors),
                "least_error": min(errors),
                "median_of_polynomials": statistics.median(least),
                "draws": draws,
                "trusted": trusted,
                "flagged_collinear": pairs,
            }
        )
    return rows


def relative(left: Tensor, samples: Samples) -> float:
    """The squared error of the outputs as it was published, relative to the outputs with their means."""
    return float(left.square().sum() / samples.outputs.square().sum())


def left_by_polynomials(samples: Samples, degree: int) -> Tensor:
    """What polynomials in the sum of the inputs leave of the outputs, one for each: the best of rank 2."""
    powers = samples.inputs.sum(1, keepdim=True) ** torch.arange(degree + 1)
    return samples.outputs - powers @ torch.linalg.lstsq(powers, samples.outputs).solution


def scaled_outputs(draws: int = 5) -> list[dict[str, Any]]:
    """A large and a small output: errors of each on held-out samples, in one unit and each in its own."""
    rows = []
    ways: dict[str, Coordinates] = {"one for all": Standardize(), "each its own": PerOutput()}
    for sigma in (1.0, 1e2, 1e4):
        for unit, coordinates in ways.items():
            errors = []
            for seed in range(draws):
                samples = sample(unequal(sigma), uniform(100, 2, 0, 1, seed))
                solution = decouple(Problem(samples, 4, Monomial(10), coordinates=coordinates), seed=seed)
                held_out = solution.errors.held_out
                errors.append((1.0, 1.0) if held_out is None else held_out.each_output)
            large, small = (statistics.median(several) for several in zip(*errors, strict=True))
            rows.append({"sigma": sigma, "unit": unit, "large": large, "small": small, "draws": draws})
    return rows


def all_found(rows: list[dict[str, Any]]) -> bool:
    """Every single layer by some solver nine times of ten, and by the recipe four times of five unless n = 1."""
    share = {(row["map"], row["solver"]): row["found"] / row["starts"] for row in rows if "found" in row}
    single = [name for name in MAPS if name != COMPOSED]
    often = all(max(share.get((name, solver), 0.0) for solver in SOLVERS) >= 0.9 for name in single)
    return often and all(share[name, "default"] >= 0.8 for name in MAPS if not name.startswith(RANDOM))


def flagged(ambiguous: dict[str, Any], ranks: list[dict[str, Any]]) -> bool:
    """Whether all that is not unique is seen to be so, and nothing else."""
    plain = ambiguous["largest_error_of_decomposition"] < 1e-3 < 1e-2 < ambiguous["least_error_of_directions"]
    none = Uniqueness.NONE.name
    as_known = all(row["found"] == row["known"] for row in ranks)
    return (
        plain
        and as_known
        and ambiguous["structured"] != none
        and all(row["verdict"] != none and row["verdict_above"] == none and not row["trusted_above"] for row in ranks)
    )


def reached(collinear: list[dict[str, Any]], scaled: list[dict[str, Any]]) -> bool:
    """Whether fits are about as good as published, untrusted where nodes can be mixed, and good for small outputs."""
    fits = all(row["least_error"] <= row["published"] and not row["trusted"] for row in collinear)
    best = all(row["median_error"] < 1.1 * row["median_of_polynomials"] for row in collinear if row["rank"] == 2)
    own = all(row["small"] < 0.01 and row["large"] < 0.01 for row in scaled if row["unit"] == "each its own")
    return fits and best and own


def table(rows: list[dict[str, Any]]) -> str:
    """Success by solver and map."""
    maps = list(dict.fromkeys(row["map"] for row in rows))
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    cells = {(row["solver"], row["map"]): described(row) for row in rows}
    limits = {row["solver"]: row["limit"] for row in reversed(rows)}
    content = [[name, limits[name], *(cells.get((name, key), "") for key in maps)] for name in solvers]
    return markdown(["solver", "at most", *maps], content)


def described(row: dict[str, Any]) -> str:
    """A cell: the share of starts that succeed, or the error if none does, and the time."""
    if "found" not in row:
        return "not made for it"
    share = f"{100 * row['found'] / row['starts']:.0f} %"
    if not row["found"]:
        share += f" (error {row['median_error']:.0e})"
    return f"{share}, {row['median_seconds']:.2g} s"


def tables(
    ranks: list[dict[str, Any]], collinear: list[dict[str, Any]], scaled: list[dict[str, Any]]
) -> dict[str, str]:
    """The other tables."""
    return {
        "recovery-ranks": markdown(
            ["inputs", "outputs", "degree", "largest rank", "verdict there", "verdict one above"],
            [
                [str(row[key]) for key in ("m", "n", "degree", "found")]
                + [spoken(row["verdict"]), spoken(row["verdict_above"])]
                for row in ranks
            ],
        ),
        "recovery-collinear": markdown(
            ["rank", "degree", "median error", "least", "published", "trusted", "flagged as collinear"],
            [
                [str(row["rank"]), str(row["degree"])]
                + [f"{row[key]:.1e}" for key in ("median_error", "least_error", "published")]
                + [f"{row[key]} of {row['draws']}" for key in ("trusted", "flagged_collinear")]
                for row in collinear
            ],
        ),
        "recovery-outputs": markdown(
            ["sigma", "unit of the outputs", "error of the large output", "error of the small one"],
            [[f"{row['sigma']:g}", row["unit"], f"{row['large']:.1e}", f"{row['small']:.1e}"] for row in scaled],
        ),
    }


def spoken(verdict: str) -> str:
    """A verdict, shortly."""
    return Uniqueness[verdict].value.split(":")[0]
