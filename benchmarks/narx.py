"""A NARX model of real data, its static nonlinearity decoupled, and simulated before and after.

The demand for electricity answers to temperature and time. Three models of it, a cubic polynomial and a network that
predict four half hours at once and a cubic polynomial that predicts one, are decoupled; ranks and ridges are chosen on
the validation span. Then each is compared with its original, with the linear model, with repeating the past, and with
the same flexible layer trained from a random start.
"""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.electricity import DAY, TEST, TRAIN, VALIDATION, Narx, Series, load_series
from benchmarks.narx_figures import draw_nodes, draw_path, draw_temperature, draw_week
from benchmarks.record import DOCS, RESULTS, insert, write
from benchmarks.system import (
    APPROXIMATE,
    Beside,
    fit_linear,
    fit_network,
    fit_polynomial,
    from_random,
    parameters,
    relative_error,
    with_layer,
)
from tenflex import BSpline, Monomial, Problem, decouple, sample
from tenflex.bases import Basis
from tenflex.coordinates.whiten import Whiten

RANKS = (2, 4, 6, 8, 12, 16)
COUPLINGS = (3.0, 30.0)
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
POINTS = 1500
STARTS = 3
PERIODS = {"the last half hour again": 1, "the last day again": DAY, "the last week again": 7 * DAY}
"""The pasts that are repeated, in half hours."""

CLOSE = 1.1
"""The least size within a tenth of the best error in free run, on the validation span, is taken."""


def main() -> bool:
    """Measure and draw; true if `Study.holds` with four outputs. With one output it does not, as the page says."""
    series = load_series()
    four, one = Narx(series, 4), Narx(series, 1)
    rows = [*repeats(four), row(four, "linear", fit_linear(*pairs(four)))]
    cubic = study(four, "cubic", choose_ridge(four), Monomial(3))
    network = study(four, "network", fit_network(*pairs(four), 16), BSpline(8))
    rows += [*cubic.rows, *network.rows, *repeats(one), row(one, "linear", fit_linear(*pairs(one)))]
    single = study(one, "cubic", choose_ridge(one), Monomial(3))
    rows += single.rows
    studies = {"cubic, n = 4": cubic, "network, n = 4": network, "cubic, n = 1": single}
    write("narx", without_infinity(rows), path={name: without_infinity(study.path) for name, study in studies.items()})
    insert("narx", table(rows), DOCS / "system-identification.md")
    draw(four, cubic, studies)
    return cubic.holds and network.holds


def pairs(narx: Narx) -> tuple[Tensor, Tensor]:
    """Regressors and targets of the training span."""
    return narx.regressors(TRAIN), narx.targets(TRAIN)


def one_step(narx: Narx, model: Beside, span: tuple[int, int]) -> float:
    """The relative error of one step from measured demand."""
    with torch.no_grad():
        return relative_error(model(narx.regressors(span)), narx.targets(span))


def free_run(narx: Narx, model: Beside, span: tuple[int, int]) -> float:
    """The relative error of a simulation over the whole span."""
    return relative_error(narx.simulate(model, span), narx.series.demand[slice(*span)])


def row(narx: Narx, name: str, model: Beside) -> dict[str, Any]:
    """The errors of one model; the relative ones are of the standard deviation of the demand in the span."""
    tested = free_run(narx, model, TEST)
    return {
        "ahead": narx.ahead,
        "model": name,
        "parameters": parameters(model),
        "one_step": one_step(narx, model, TEST),
        "free_run": tested,
        "free_run_gw": tested * deviation(narx.series),
        "validation_one_step": one_step(narx, model, VALIDATION),
        "validation_free_run": free_run(narx, model, VALIDATION),
    }


def deviation(series: Series) -> float:
    """The standard deviation of the demand in the test span, in GW: what relative errors are relative to."""
    return series.gigawatts(series.demand)[slice(*TEST)].std(correction=0).item()


def repeats(narx: Narx) -> list[dict[str, Any]]:
    """Repeating the past: what was measured in one step, in free run what came before the span."""
    rows = []
    for name, period in PERIODS.items():
        tested = repeat_free_run(narx.series, period, TEST)
        rows.append(
            {
                "ahead": narx.ahead,
                "model": name,
                "parameters": 0,
                "one_step": repeat_one_step(narx, period, TEST),
                "free_run": tested,
                "free_run_gw": tested * deviation(narx.series),
                "validation_one_step": repeat_one_step(narx, period, VALIDATION),
                "validation_free_run": repeat_free_run(narx.series, period, VALIDATION),
            }
        )
    return rows


def repeat_one_step(narx: Narx, period: int, span: tuple[int, int]) -> float:
    """Each half hour as it was `period` ago; the last one for all half hours that are predicted at once."""
    times, steps = narx.times(span)[:, None], torch.arange(narx.ahead)
    back = times - 1 if period == 1 else times + steps - period
    return relative_error(narx.series.demand[back].expand(-1, narx.ahead), narx.targets(span))


def repeat_free_run(series: Series, period: int, span: tuple[int, int]) -> float:
    """The last period before the span, over and over."""
    last = series.demand[span[0] - period : span[0]]
    return relative_error(last[torch.arange(span[1] - span[0]) % period], series.demand[slice(*span)])


def choose_ridge(narx: Narx) -> Beside:
    """The cubic polynomial whose ridge simulates the validation span best."""
    models = [fit_polynomial(*pairs(narx), degree=3, ridge=ridge) for ridge in RIDGES]
    return min(models, key=lambda model: free_run(narx, model, VALIDATION))


@dataclass(frozen=True)
class Study:
    """A model, its decoupled form, and what was measured.

    Args:
        rows: Of the table.
        path: Size and errors for each rank and coupling.
        original: The coupled model.
        after: The decoupled model, refitted.
    """

    rows: list[dict[str, Any]]
    path: list[dict[str, Any]]
    original: Beside
    after: Beside

    @property
    def holds(self) -> bool:
        """Whether fewer parameters simulate about as well: at most a tenth worse."""
        before, _, after, _ = self.rows
        return after["free_run"] <= 1.1 * before["free_run"] and after["parameters"] < before["parameters"]


def study(narx: Narx, name: str, original: Beside, basis: Basis) -> Study:
    """Decouple a model in all sizes, choose one, and refit it to the data."""
    path = [attempt(narx, original, problem) for problem in problems(narx, original, basis)]
    chosen = least_size(path)
    linear = fit_linear(*pairs(narx)).linear
    scratch = [refitted(narx, from_random(linear, chosen.model.nonlinear, seed)) for seed in range(STARTS)]
    after = refitted(narx, chosen.model)
    rank = f"r = {chosen.figures['rank']}"
    rows = [
        row(narx, name, original),
        row(narx, f"{name}, decoupled, {rank}", chosen.model),
        row(narx, f"{name}, decoupled, {rank}, refitted", after),
        row(
            narx,
            f"such a layer from random starts, {rank}",
            min(scratch, key=lambda model: free_run(narx, model, VALIDATION)),
        ),
    ]
    return Study(rows, [one.figures for one in path], original, after)


@dataclass(frozen=True)
class Attempt:
    """A decoupled model and its figures."""

    model: Beside
    figures: dict[str, Any]


def problems(narx: Narx, original: Beside, basis: Basis) -> list[Problem]:
    """One for each rank and coupling, on whitened regressors: neighbours in time are nearly the same number."""
    x = narx.regressors(TRAIN)
    points = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:POINTS]]
    samples = sample(original.nonlinear, points)
    return [Problem(samples, rank, basis, coupling, coordinates=Whiten()) for rank in RANKS for coupling in COUPLINGS]


def attempt(narx: Narx, original: Beside, problem: Problem) -> Attempt:
    """Decouple, and see how the model simulates the validation span."""
    began = time.perf_counter()
    solution = decouple(problem, APPROXIMATE)
    seconds = time.perf_counter() - began
    model = with_layer(original, solution)
    figures = {
        "rank": problem.rank,
        "coupling": problem.coupling,
        "parameters": parameters(model),
        "seconds": seconds,
        "output_error": solution.output_error,
        "jacobian_error": solution.jacobian_error,
        "one_step": one_step(narx, model, VALIDATION),
        "free_run": free_run(narx, model, VALIDATION),
    }
    return Attempt(model, figures)


def least_size(path: list[Attempt]) -> Attempt:
    """The smallest model that simulates about as well as the best, and of its size the best."""
    least = min(one.figures["free_run"] for one in path)
    near = [one for one in path if one.figures["free_run"] <= CLOSE * least]
    return min(near, key=lambda one: (one.figures["parameters"], one.figures["free_run"]))


def refitted(narx: Narx, model: Beside) -> Beside:
    """The model moved by L-BFGS to lower the squared error of one step in the training span.

    Of every tenth iterate, the one that simulates the validation span best is kept.
    """
    x, y = pairs(narx)
    model = deepcopy(model)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=10, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    best, least = deepcopy(model), free_run(narx, model, VALIDATION)
    for _ in range(20):
        optimizer.step(closure)
        if (reached := free_run(narx, model, VALIDATION)) < least:
            best, least = deepcopy(model), reached
    return best


def without_infinity(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """None for the errors of simulations that diverged: JSON knows no infinity."""
    return [{key: None if value == float("inf") else value for key, value in one.items()} for one in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    lines = [
        "| half hours at once | model | parameters | error of one step | error in free run | in GW |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for one in rows:
        size = f"{one['parameters']:,}" if one["parameters"] else ""
        free = f"{one['free_run']:.3f} | {one['free_run_gw']:.2f}" if one["free_run"] < float("inf") else "diverges |"
        errors = f"{one['one_step']:.3f} | {free}"
        lines.append(f"| {one['ahead']} | {one['model']} | {size} | {errors} |")
    return "\n".join(lines) + "\n"


def draw(narx: Narx, cubic: Study, studies: dict[str, Study]) -> None:
    """The four figures."""
    models = {"cubic": cubic.original, "decoupled, refitted": cubic.after}
    draw_week(narx, models, RESULTS / "narx-week.svg")
    draw_temperature(narx, models, RESULTS / "narx-temperature.svg")
    draw_nodes(narx, cubic.after, RESULTS / "narx-nodes.svg")
    draw_path({name: (study.path, study.rows[0]) for name, study in studies.items()}, RESULTS / "narx-rank.svg")
