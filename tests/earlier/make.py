"""The script that wrote the files of this folder, kept to say what they hold.

They are of version 0.1.0.dev0 before the formats `tenflex/2` and `tenflex-solution/2`: one layer was a `Factors` with
`inner` and `outer`, two layers were a `LayeredFactors`, and their modules were a `FlexibleLayer` and a
`FlexibleLayers`. The script runs with that version only:

    python tests/earlier/make.py
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tenflex

HERE = Path(__file__).parent

QUANTILES = tenflex.BSpline(5, spacing="quantile")


def main() -> None:
    networks, solutions = HERE / "networks", HERE / "solutions"
    for folder in (networks, solutions):
        folder.mkdir(exist_ok=True)
    write_networks(networks)
    write_solutions(solutions)


def network(dtype: torch.dtype) -> nn.Module:
    """Two blocks in a chain, one of them inside another module."""
    generator = torch.Generator().manual_seed(0)
    tail = nn.Sequential(OrderedDict(third=nn.Linear(5, 4), bend=nn.Tanh(), fourth=nn.Linear(4, 3)))
    chain = OrderedDict(first=nn.Linear(4, 6), bend=nn.Sigmoid(), second=nn.Linear(6, 5), tail=tail)
    model = nn.Sequential(chain).to(dtype).eval()
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(torch.randn(one.shape, generator=generator, dtype=torch.float64))
    return model


def write_networks(folder: Path) -> None:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blocks = {
        "one_layer": {"first:second": tenflex.Block(3, factor=2, output_factor=2)},
        "two_layers": {"tail": tenflex.Block((3, 2))},
        "two_layers_factored": {"first:second": tenflex.Block((3, 4), factor=2, output_factor=3)},
        "both": {
            "first:second": tenflex.Block((3, 2), factor=2),
            "tail": tenflex.Block(2, output_factor=1, basis=QUANTILES),
        },
        "whole_network": {"": tenflex.Block(3, basis=tenflex.Monomial(3))},
    }
    for name, asked in blocks.items():
        for dtype in (torch.float32, torch.float64):
            made = tenflex.compress(network(dtype), x.to(dtype), asked, basis=tenflex.BSpline(5))
            short = f"{name}_{str(dtype).removeprefix('torch.')}"
            made.save(folder / short)
            (folder / short / "config.json").unlink()  # the header of the weights says the same
            (folder / short / "report.json").unlink()
            inputs = x[:6].to(dtype)
            with torch.no_grad():
                save_file({"inputs": inputs, "outputs": made.model(inputs)}, folder / short / "expected.safetensors")


def write_solutions(folder: Path) -> None:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return torch.stack([(x[0] - 2 * x[1]) ** 2 + x[2], x.sum().sin() - x[1] ** 3])

    x = draw(20, 3)
    samples = tenflex.sample(f, x)
    splines = tenflex.Smooth(QUANTILES, 0.1)
    whole = tenflex.Whiten(1e-2).choose(samples.inputs, samples.outputs)
    axes, _ = tenflex.sampling.reduce.to_active_axes(whole.apply(samples), whole, 1e-6)
    problems = {
        "monomials": tenflex.Problem(samples, 2, tenflex.Monomial(3), coupling=1.5, coordinates=tenflex.PerOutput()),
        "splines": tenflex.Problem(samples, 3, splines, held_out=0.3),
        "factored": tenflex.Problem(
            axes, 2, tenflex.Chebyshev(3), factor=2, output_factor=1, coordinates=tenflex.Whiten(1e-2)
        ),
        "hinges": tenflex.Problem(tenflex.Samples(*(one.float() for one in parts(samples))), 2, tenflex.Hinge(4)),
    }
    found = {name: tenflex.decouple(one, tenflex.ConstrainedALS(3)) for name, one in problems.items()}
    history = (tenflex.solution.Record("by hand", 0.0, 0.0, None, 1e-3),)
    two = tenflex.LayeredFactors(
        (draw(3, 2), draw(2, 3)),
        draw(2, 3),
        (draw(2, 2),),
        (draw(3, 4), draw(2, 2)),
        (0.1 * draw(3), 0.1 * draw(2)),
        draw(2),
        (tenflex.BSpline(4), tenflex.Monomial(2)),
    )
    mixed = tenflex.Problem(samples, (3, 2), tenflex.Monomial(2), factor=2)
    found["two_layers"] = tenflex.Solution(two, mixed, tenflex.Result.EXACT, history)
    found["two_layers_solved"] = tenflex.decouple(replace(mixed, factor=None), tenflex.LayeredALS(3))
    for name, solution in found.items():
        solution.save(folder / f"{name}.safetensors")
        points = (x[:6] + 0.5).to(solution.factors.bias)
        tensors = {
            "inputs": points,
            "outputs": solution.factors.outputs(points),
            "jacobians": solution.factors.jacobians(points),
        }
        save_file({key: one.contiguous() for key, one in tensors.items()}, folder / f"{name}.expected.safetensors")
        errors = {
            "output_error": solution.output_error,
            "jacobian_error": solution.jacobian_error,
            "result": solution.result.name,
            "steps": len(solution.history),
            "each_output": solution.errors.fitted.each_output,
            "each_jacobian": solution.errors.fitted.each_jacobian,
        }
        (folder / f"{name}.expected.json").write_text(json.dumps(errors, indent=2) + "\n")


def parts(samples: tenflex.Samples) -> tuple[Tensor, ...]:
    return samples.inputs, samples.outputs, samples.jacobians


if __name__ == "__main__":
    main()
