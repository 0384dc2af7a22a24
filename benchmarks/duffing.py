"""Two masses on hardening springs, of which the truth is known: identified, decoupled and simulated, against noise.

Mass 1 hangs on the ground by spring 1 and carries mass 2 by spring 2, and is shaken. In the positions of the masses the
forces are coupled, in the elongations of the springs they are not: V holds the elongations, W = -V Newton's third law.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import jacrev, vmap

from benchmarks.record import DOCS, RESULTS, insert, write
from benchmarks.system import (
    Beside,
    fit_linear,
    fit_polynomial,
    in_parameters,
    marquardt,
    parameters,
    relative_error,
    with_layer,
)
from tenflex import Monomial, Problem, decouple, sample
from tenflex.factors import Factors

STEP, DAMPING = 0.4, 0.15
LINEAR, SQUARE, CUBIC = (torch.tensor(one, dtype=torch.float64) for one in ([1.0, 0.8], [0.0, 0.5], [1.0, 0.8]))
"""The coefficients of the two springs' forces."""

ELONGATIONS = torch.tensor([[1.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
"""V in the positions: position 1, and position 2 less position 1."""

LENGTH = 1000
NOISES = (80, 60, 40, 30, 20)
"""Signal to noise in decibels, of the positions that are measured."""

DRAWS = (0, 1, 2)
STRETCHES = (10, 50, 250, LENGTH)
"""Steps of the stretches to which simulations are fitted, one after another."""

SHOWN = 30
"""The noise of the figure."""


def bends(e: Tensor) -> Tensor:
    """What the springs' forces add to the linear ones, for elongations `(..., 2)`."""
    return SQUARE * e**2 + CUBIC * e**3


def truth(x: Tensor) -> Tensor:
    """The positions at the next step, of both now, both one step ago, and the force on mass 1."""
    now, before, force = x[..., :2], x[..., 2:4], x[..., 4:]
    e = now @ ELONGATIONS
    springs = -(LINEAR * e + bends(e)) @ ELONGATIONS.mT
    shaken = torch.cat([force, torch.zeros_like(force)], -1)
    return 2 * now - before - STEP * DAMPING * (now - before) + STEP**2 * (springs + shaken)


def noise_force(length: int, seed: int) -> Tensor:
    """Gaussian noise below 2.5 radians a second, of standard deviation 0.6."""
    white = torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spectrum = torch.fft.rfft(white)
    spectrum[2 * torch.pi * torch.arange(len(spectrum)) / (length * STEP) > 2.5] = 0
    force = torch.fft.irfft(spectrum, length)
    return 0.6 * force / force.std()


@dataclass(frozen=True)
class Runs:
    """B stretches of T steps.

    Args:
        start: The positions before each and one step earlier, `(B, 4)`.
        force: On mass 1, `(B, T)`.
    """

    start: Tensor
    force: Tensor

    @classmethod
    def from_rest(cls, force: Tensor) -> Runs:
        """One stretch."""
        return cls(force.new_zeros(1, 4), force[None])

    @classmethod
    def of(cls, measured: Tensor, force: Tensor, steps: int) -> Runs:
        """A record cut to stretches of `steps`, each from the positions measured there."""
        return cls(regressors(measured, force)[::steps, :4], force.view(-1, steps))


@torch.no_grad()
def simulate(model: Callable[[Tensor], Tensor], runs: Runs) -> Tensor:
    """The positions, `(B, T, 2)`, by the model alone."""
    positions = [runs.start[:, 2:], runs.start[:, :2]]
    for force in runs.force.unbind(1):
        positions.append(model(torch.cat([positions[-1], positions[-2], force[:, None]], 1)))
    return torch.stack(positions[2:], 1)


def regressors(positions: Tensor, force: Tensor) -> Tensor:
    """What the model sees at each step from rest, `(T, 5)`, when the positions are these."""
    return seen(Runs.from_rest(force), positions[None])[0]


def seen(runs: Runs, positions: Tensor) -> Tensor:
    """What the model sees, `(B, T, 5)`, when the positions are these."""
    whole = torch.cat([runs.start[:, None, 2:], runs.start[:, None, :2], positions], 1)
    return torch.cat([whole[:, 1:-1], whole[:, :-2], runs.force[..., None]], 2)


def fit_simulation(model: Beside, force: Tensor, measured: Tensor) -> Beside:
    """All parameters moved to lower the error of the simulation: of short stretches first, in the end of the whole.

    A long simulation depends on its parameters so strongly that from afar its error has many local minima.
    """
    for steps in STRETCHES:
        runs = Runs.of(measured, force, steps)
        *_, model = marquardt(
            model,
            lambda model, runs=runs: simulate(model, runs),
            lambda model, simulated, runs=runs: sensitivities(model, simulated, runs),
            measured.view(-1, steps, 2),
            most=15,
        )
    return model


def sensitivities(model: Beside, simulated: Tensor, runs: Runs) -> Tensor:
    """The derivatives of the simulated positions in all parameters, `(B, T, 2, p)`, by the recursion of the model."""
    x = seen(runs, simulated)
    by_state = vmap(jacrev(model))(x.flatten(0, 1)).detach()[..., :4].unflatten(0, x.shape[:2])
    by_value = in_parameters(model, x.flatten(0, 1)).detach().unflatten(0, x.shape[:2])
    now = before = torch.zeros_like(by_value[:, 0])
    total = []
    for state, own in zip(by_state.unbind(1), by_value.unbind(1), strict=True):
        now, before = state @ torch.cat([now, before], 1) + own, now
        total.append(now)
    return torch.stack(total, 1)


def angles(factors: Factors) -> list[float]:
    """How far the nodes' directions are from the elongations, in degrees, for each spring; every regressor counts."""
    true = torch.cat([ELONGATIONS, torch.zeros(3, 2, dtype=torch.float64)])
    cosines = (factors.V / factors.V.norm(dim=0)).mT @ (true / true.norm(dim=0))
    swapped = cosines.abs().trace() < cosines.flip(0).abs().trace()
    matched = (cosines.flip(0) if swapped else cosines).diagonal().abs().clamp(max=1)
    return torch.rad2deg(torch.acos(matched)).tolist()


def attempt(noise: float, draw: int) -> tuple[dict[str, Any], Beside]:
    """Identify the system from noisy positions, decouple it, refit it; errors of simulating another force."""
    force, other = noise_force(LENGTH, 0), Runs.from_rest(noise_force(LENGTH, 1))
    clean, target = simulate(truth, Runs.from_rest(force))[0], simulate(truth, other)[0]
    generator = torch.Generator().manual_seed(draw)
    drawn = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    measured = clean + 10 ** (-noise / 20) * clean.std(0) * drawn
    x = regressors(measured, force)
    coupled = fit_polynomial(x, measured, degree=3, ridge=0.0)
    began = time.perf_counter()
    solution = decouple(Problem(sample(coupled.nonlinear, x), 2, Monomial(3)))
    seconds = time.perf_counter() - began
    layered = with_layer(coupled, solution)
    after = fit_simulation(layered, force, measured)
    models = {
        "linear": fit_linear(x, measured),
        "coupled": coupled,
        "coupled, refitted": fit_simulation(coupled, force, measured),
        "decoupled": layered,
        "decoupled, refitted": after,
    }
    return {
        "noise_db": noise,
        "draw": draw,
        "errors": {name: relative_error(simulate(model, other)[0], target) for name, model in models.items()},
        "parameters": {name: parameters(model) for name, model in models.items()},
        "angles": {name: max(angles(models[name].nonlinear.factors())) for name in list(models)[-2:]},
        "fit_of_nonlinearity": solution.output_error,
        "seconds": seconds,
    }, after


def main() -> bool:
    """Measure and draw; true if at every noise the decoupled model, refitted, has the least error."""
    rows, shown = [], None
    for noise in NOISES:
        for draw in DRAWS:
            row, after = attempt(noise, draw)
            rows.append(row)
            if (noise, draw) == (SHOWN, DRAWS[0]):
                shown = after
    medians = [median_row([row for row in rows if row["noise_db"] == noise]) for noise in NOISES]
    write("duffing", medians, draws=rows)
    insert("duffing", table(medians, rows[0]["parameters"]), DOCS / "system-identification.md")
    if shown is not None:
        draw_springs(shown, RESULTS / "duffing-springs.svg")
    return all(row["decoupled, refitted"] == min(row[name] for name in rows[0]["errors"]) for row in medians)


def median_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over the draws of the noise."""
    errors = {name: statistics.median(row["errors"][name] for row in rows) for name in rows[0]["errors"]}
    found = {f"angle, {name}": statistics.median(row["angles"][name] for row in rows) for name in rows[0]["angles"]}
    return {"noise_db": rows[0]["noise_db"], **errors, **found}


def table(medians: list[dict[str, Any]], sizes: Mapping[str, int]) -> str:
    """The table of the documentation."""
    heads = [f"{name} ({size})" for name, size in sizes.items()]
    lines = [
        f"| signal to noise | {' | '.join(heads)} | angle, decoupled | angle, refitted |",
        "| ---: |" + " ---: |" * (len(heads) + 2),
    ]
    for row in medians:
        errors = " | ".join(f"{row[name]:.2g}" if row[name] < float("inf") else "diverges" for name in sizes)
        found = f"{row['angle, decoupled']:.2g}° | {row['angle, decoupled, refitted']:.2g}°"
        lines.append(f"| {row['noise_db']} dB | {errors} | {found} |")
    return "\n".join(lines) + "\n"


def spring_curve(factors: Factors, spring: int, e: Tensor) -> Tensor:
    """The force of a spring at elongations, less its tangent at rest, as the node nearest to it has it."""
    true = torch.cat([ELONGATIONS, torch.zeros(3, 2, dtype=torch.float64)])[:, spring]
    node = int(((factors.V / factors.V.norm(dim=0)).mT @ true).abs().argmax())
    along = factors.V[:, node] @ true / true.square().sum()
    activations = factors.only
    t = activations.shift[node] + along * torch.cat([e, e.new_zeros(1)])
    g, slope, _ = activations.basis.curves(t[:, None], activations.coefficients[node : node + 1])
    size = factors.W[:, node] @ -ELONGATIONS[:, spring] / ELONGATIONS[:, spring].square().sum() / STEP**2
    return size * (g[:-1, 0] - g[-1, 0] - slope[-1, 0] * along * e)


def draw_springs(model: Beside, path: Path) -> None:
    """The springs as they are and as they were found; then a simulation of another force."""
    runs = Runs.from_rest(noise_force(LENGTH, 1))
    target, found = simulate(truth, runs)[0], simulate(model, runs)[0]
    factors = model.nonlinear.factors()
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 2))
    for spring, panel in enumerate(panels[:2]):
        arriving = target @ ELONGATIONS[:, spring]
        e = torch.linspace(float(arriving.min()), float(arriving.max()), 101, dtype=torch.float64)
        true = bends(e[:, None].expand(-1, 2))[:, spring]
        panel.plot(e, true, color="#1f2933", lw=3.5, alpha=0.35, label="truth")
        panel.plot(e, spring_curve(factors, spring, e), color="#0072b2", lw=1.4, label="decoupled, refitted")
        panel.set(title=f"spring {spring + 1}", xlabel="elongation", ylabel="" if spring else "force less its tangent")
    last = slice(LENGTH - 150, LENGTH)
    times = STEP * torch.arange(LENGTH)[last]
    panels[2].plot(times, target[last, 1], color="#1f2933", lw=3.5, alpha=0.35)
    panels[2].plot(times, found[last, 1], color="#0072b2", lw=1.4)
    panels[2].set(title="position of mass 2, another force", xlabel="time (s)", xlim=(times[0], times[-1]))
    for panel in panels:
        panel.grid(True, color="#e6e6e6", lw=0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
