"""The figures of `inside.md`, of one compression as it ran: `python docs/inside_figures.py` draws them again."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import torch
from matplotlib.figure import Figure

import tenflex
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300

HERE = Path(__file__).parent
OURS, RIVAL, GREY = "#0072b2", "#d55e00", "#767676"


def saved(figure: Figure, step: int) -> None:
    figure.savefig(HERE / f"inside-{step}.svg", metadata={"Date": None})


def sampled(images: torch.Tensor) -> None:
    """What arrives, and the slopes of three outputs there."""
    model = lenet300()
    slopes = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(images[:2])
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    for row, (image, slope) in enumerate(zip(images, slopes.detach(), strict=False)):
        shown = [("x", image), *((f"∂f{k}/∂x", slope[k]) for k in (0, 3, 7))]
        for column, (name, one) in enumerate(shown):
            axes = figure.add_subplot(2, 4, 4 * row + column + 1)
            axes.imshow(one.view(28, 28), cmap="gray" if column == 0 else "RdBu")
            axes.set_title(name, fontsize=9)
            axes.set_axis_off()
    saved(figure, 1)


def reduced(solution: tenflex.Solution) -> None:
    """How much of the Jacobians lies in the leading directions, and how many were kept."""
    J = solution.problem.samples.jacobians.double()
    energy = J.square().sum((0, 1)).sort(descending=True).values
    axes = (figure := Figure(figsize=(6.4, 2.8), layout="constrained")).subplots()
    axes.semilogy(range(1, len(energy) + 1), energy / energy.sum(), color=OURS)
    axes.set_xlabel(f"direction of the inputs: {len(energy)} of 784 were kept")
    axes.set_ylabel("share of the slopes' energy")
    saved(figure, 2)


def steps(solution: tenflex.Solution, first: bool, step: int) -> None:
    """The errors in the first stage of the start that was kept, or in the stages after it."""
    runs = [list(records) for _, records in groupby(solution.history, lambda one: one.stage)]
    shown = runs[-2] if first and len(runs) > 1 else runs[-1]
    axes = (figure := Figure(figsize=(6.4, 2.8), layout="constrained")).subplots()
    axes.semilogy([one.jacobian_error**0.5 for one in shown], color=OURS, label="Jacobians, fitted")
    axes.semilogy([one.output_error**0.5 for one in shown], color=RIVAL, label="outputs, fitted")
    held = [one.held_out_error for one in shown]
    axes.semilogy([one**0.5 for one in held if one is not None], "--", color=RIVAL, label="outputs, held out")
    axes.set_xlabel(f"step of {shown[0].stage}")
    axes.set_ylabel("relative error")
    axes.legend(frameon=False, fontsize=8)
    saved(figure, step)


def chosen(results: dict[int, tenflex.Compression]) -> None:
    """Errors on the samples that were fitted, that chose, and that did neither, by rank."""
    axes = (figure := Figure(figsize=(6.4, 2.8), layout="constrained")).subplots()
    found = {rank: result.solutions["fc1:fc3"] for rank, result in results.items()}
    fitted = [one.history[-1].output_error ** 0.5 for one in found.values()]
    axes.plot(list(found), fitted, "o-", color=GREY, label="fitted")
    axes.plot(list(found), [one.validation_error for one in found.values()], "o-", color=RIVAL, label="chose")
    axes.plot(list(found), [one.output_error for one in found.values()], "o-", color=OURS, label="did neither")
    axes.set_xlabel("nodes")
    axes.set_ylabel("relative error of outputs")
    axes.legend(frameon=False, fontsize=8)
    saved(figure, 5)


def main() -> None:
    images = load_digits().train_images[:128]
    settings = {"basis": tenflex.BSpline(8)}
    results = {k: tenflex.compress(lenet300(), images, {"fc1:fc3": tenflex.Block(k)}, **settings) for k in (5, 10, 20)}
    solution = results[10].solutions["fc1:fc3"]
    sampled(images)
    reduced(solution)
    steps(solution, first=True, step=3)
    steps(solution, first=False, step=4)
    chosen(results)
    solution.plot(HERE / "inside-6.svg", most=4)


if __name__ == "__main__":
    main()
