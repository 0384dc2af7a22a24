"""Figures: what is drawn is what was computed, and is labelled."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import CUBIC, layer, random, sampled, seeded
from torch import Tensor

import tenflex
from tenflex.demo.plot import plot_accuracy_against_size
from tenflex.demo.run import Row, Score, Size
from tenflex.factors import Activations, Factors
from tenflex.reading.figures import PlotsUnavailableError, blank_figure, write_figure
from tenflex.reading.plot_activations import plot_activations
from tenflex.reading.plot_convergence import plot_convergence
from tenflex.result import Record, Result
from tenflex.solution import Solution

pytest.importorskip("matplotlib")

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written, as matplotlib objects."""
    figures: list[Any] = []
    from matplotlib.figure import Figure

    write = Figure.savefig

    def keep(figure: Any, path: str | Path, **settings: Any) -> None:
        figures.append(figure)
        write(figure, path, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture
def factors(generator: torch.Generator) -> Factors:
    """Three nodes; the second is a line, the third bends most."""
    coefficients = torch.tensor([[1.0, 0.2], [5.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    V, W = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in (4, 2))
    shift, bias = torch.tensor([0.1, -0.2, 0.3]).double(), torch.zeros(2).double()
    return layer(V / V.norm(dim=0), W / W.norm(dim=0), coefficients, shift, bias, tenflex.Monomial(2))


@pytest.fixture
def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(300, 4, generator=generator, dtype=torch.float64)


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_title()]


def test_activations_are_those_of_the_layer(drawn: list[Any], factors: Factors, inputs: Tensor, tmp_path: Path) -> None:
    plot_activations(factors, tmp_path / "g.png", inputs)
    assert (tmp_path / "g.png").read_bytes().startswith(PNG)
    shown, basis = panels(drawn[0]), factors.only.basis
    [everything] = factors.arguments(inputs)
    G = factors.only.values(everything)
    assert [axes.get_title() for axes in shown] == ["node 3", "node 1", "node 2"]  # the line comes last
    for axes in shown:
        node = int(axes.get_title().split()[1]) - 1
        line, curve = axes.get_lines()
        t, heights = (torch.as_tensor(np.asarray(one)) for one in curve.get_data())
        arriving = everything[:, node]
        assert t.min() == arriving.min()
        assert t.max() == pytest.approx(arriving.max().item())
        g = basis.value(t) @ factors.only.coefficients[node]
        expected = factors.W[:, node].norm() * (g - G[:, node].mean())
        torch.testing.assert_close(heights, expected)
        slope, start = np.polyfit(arriving, G[:, node], 1)
        fitted = slope * t + start - G[:, node].mean()
        torch.testing.assert_close(torch.as_tensor(np.asarray(line.get_ydata())), factors.W[:, node].norm() * fitted)


def test_activations_say_what_they_show(drawn: list[Any], factors: Factors, inputs: Tensor, tmp_path: Path) -> None:
    plot_activations(factors, tmp_path / "all.svg", inputs)
    plot_activations(factors, tmp_path / "two.pdf", most=2)
    everything, two = drawn
    assert everything.get_suptitle() == "Activation functions of all 3 nodes"
    assert "orange: where" in everything.get_supxlabel()
    assert "g_k(t)" in everything.get_supylabel()
    assert two.get_suptitle() == "Activation functions of the 2 of 3 nodes that bend the outputs most"
    assert "orange: where" not in two.get_supxlabel()
    assert "grey: linear" not in two.get_supxlabel()  # polynomials are not
    assert len(panels(two)) == 2
    counts = [sum(patch.get_height() for patch in axes.patches) for axes in everything.axes if not axes.get_title()]
    assert counts == [300.0] * 3  # every input is in the histogram of every node


def test_linear_tails_are_shaded(drawn: list[Any], factors: Factors, inputs: Tensor, tmp_path: Path) -> None:
    coefficients = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for basis in (tenflex.BSpline(5), tenflex.Smooth(tenflex.BSpline(5), 0.1)):
        splines = factors.with_activations(0, coefficients=coefficients, basis=basis)
        plot_activations(tenflex.FlexibleLayer.from_factors(splines, dtype=torch.float32), tmp_path / "g.png", inputs)
        for axes in panels(drawn[-1]):
            left, right = (patch.get_extents() for patch in axes.patches)
            to_t = axes.transData.inverted().transform
            assert to_t((left.x1, 0))[0] == pytest.approx(-1)
            assert to_t((right.x0, 0))[0] == pytest.approx(1)
        assert "grey: linear" in drawn[-1].get_supxlabel()


def test_inputs_of_any_shape_that_fits(drawn: list[Any], factors: Factors, inputs: Tensor, tmp_path: Path) -> None:
    for shaped in (inputs, inputs.reshape(30, 10, 4), inputs.reshape(300, 2, 2).float()):
        plot_activations(factors, tmp_path / "g.png", shaped)
    curves = [panels(figure)[0].get_lines()[1].get_ydata() for figure in drawn]
    np.testing.assert_allclose(curves[0], curves[1])
    np.testing.assert_allclose(curves[0], curves[2], rtol=1e-4, atol=1e-4)


def test_a_node_that_never_moves_can_be_drawn(factors: Factors, tmp_path: Path) -> None:
    plot_activations(factors, tmp_path / "g.png", torch.ones(5, 4, dtype=torch.float64))
    assert (tmp_path / "g.png").exists()


@pytest.mark.parametrize(
    ("subject", "given", "most", "error", "message"),
    [
        (3, None, 2, TypeError, r"layer must be a FlexibleLayer or its Factors, got int"),
        (None, torch.zeros(5, 3), 2, ValueError, r"inputs must hold 4 numbers for each .* got \(5, 3\)"),
        (None, torch.zeros(4), 2, ValueError, r"inputs must hold 4 numbers for each sample, samples first, got \(4,\)"),
        (None, torch.zeros(0, 4), 2, ValueError, r"inputs must hold 4 numbers .* got \(0, 4\)"),
        (None, torch.full((2, 4), torch.nan), 2, ValueError, r"inputs must be finite"),
        (None, torch.zeros(5, 4, dtype=torch.int64), 2, TypeError, r"inputs must be real floating-point numbers"),
        (None, None, 0, ValueError, r"most must be a whole number of at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_activations(
    factors: Factors, tmp_path: Path, subject: Any, given: Any, most: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_activations(subject or factors, tmp_path / "g.png", given, most=most)
    assert not (tmp_path / "g.png").exists()


@pytest.mark.usefixtures("few_steps")
def test_convergence_is_the_history(drawn: list[Any], tmp_path: Path, generator: torch.Generator) -> None:
    points = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    samples = tenflex.sample(lambda x: torch.stack([x.sum() ** 2, x[0].sin()]), points)
    solution = tenflex.decouple(tenflex.Problem(samples, rank=2, basis=tenflex.Monomial(3)))
    plot_convergence(solution.history, tmp_path / "c.png")
    [axes] = drawn[0].axes
    shown = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines()}
    history = solution.history
    for label, errors in {
        "Jacobians, fitted samples": [one.jacobian_error for one in history],
        "outputs, fitted samples": [one.output_error for one in history],
        "outputs, held-out samples": [one.held_out_error for one in history],
    }.items():
        np.testing.assert_allclose(shown[label], np.sqrt(np.array(errors, dtype=float)))
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "relative error"


def test_stages_are_named_or_counted(drawn: list[Any], tmp_path: Path, generator: torch.Generator) -> None:
    points = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    samples = tenflex.sample(lambda x: torch.stack([x.sum() ** 2, x[0].sin()]), points)
    problem = tenflex.Problem(samples, rank=2, basis=tenflex.Monomial(3))
    once = tenflex.solvers.Chain((tenflex.solvers.ConstrainedALS(3), tenflex.solvers.Refine(3)))
    for solver in (once, tenflex.solvers.MultiStart(once, 5)):
        solution = tenflex.decouple(problem, solver)
        plot_convergence(solution.history, tmp_path / "c.png")
        [axes] = drawn[-1].axes
        stages = [stage for stage, _ in groupby(one.stage for one in solution.history)]
        if len(stages) == 2:
            assert [text.get_text() for text in axes.texts] == stages
            assert axes.get_xlabel() == "step of the solver"
        else:
            assert len(axes.texts) == 0
            assert f"{stages[0]} and {stages[1]} take turns, {len(stages)} in all" in axes.get_xlabel()
        changes = [line.get_xdata()[0] for line in axes.get_lines()[3:]]
        assert len(changes) == len(stages) - 1
        assert all(solution.history[int(x + 0.5)].stage != solution.history[int(x - 0.5)].stage for x in changes)


def row(images: int, rank: int, accuracies: tuple[float, float], parameters: int) -> Row:
    ours, svd = (Score(parameters, one, 0.2) for one in accuracies)
    return Row(Size(images, tenflex.Block(rank)), Score(9000, 0.95, 0.0), ours, svd, 0.97, 1.5)


def test_accuracy_lines_join_the_rows_of_one_method(drawn: list[Any], tmp_path: Path) -> None:
    rows = [row(500, 4, (0.93, 0.8), 700), row(500, 2, (0.9, 0.7), 300), row(60, 2, (0.85, 0.6), 300)]
    plot_accuracy_against_size(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    [axes] = drawn[0].axes
    shown = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}
    assert shown["flexible layer, 500 images"] == [(300, 90.0), (700, 93.0)]
    assert shown["data-aware SVD, 500 images"] == [(300, 70.0), (700, 80.0)]
    assert shown["flexible layer, 60 images"] == [(300, 85.0)]
    assert axes.texts[0].get_text() == "original network: 9,000 numbers, 95.00 %"
    assert "%" in axes.get_ylabel()
    with pytest.raises(ValueError, match="expected at least one row to draw, got none"):
        plot_accuracy_against_size([], tmp_path / "none.png")


def test_pyplot_and_its_global_state_are_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys, tenflex; from tenflex.reading.plot_activations import plot_activations\n"
        "plot_activations(tenflex.FlexibleLayer((3,), (2,), 2, tenflex.Monomial(2)), sys.argv[1])\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "g.png")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_missing_matplotlib_is_said(factors: Factors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotsUnavailableError, match=r"plots need matplotlib.*pip install 'tenflex\[plot\]'"):
        plot_activations(factors, tmp_path / "g.png")


def noisy_solution(rank: int, held_out: float = 0.2) -> tenflex.Solution:
    samples, generator = sampled(CUBIC.factors, CUBIC.inputs), seeded(4)
    F = samples.outputs + 0.3 * random(generator, 50, 2)
    problem = tenflex.Problem(replace(samples, outputs=F), rank, tenflex.Monomial(2), held_out=held_out)
    return tenflex.decouple(problem, tenflex.solvers.ConstrainedALS(3))


def dots(panel: Any) -> dict[str, Tensor]:
    return {one.get_label(): torch.as_tensor(np.asarray(one.get_offsets())) for one in panel.collections}


def test_nodes_are_drawn_with_their_partial_residuals(drawn: list[Any], tmp_path: Path) -> None:
    solution = noisy_solution(2)
    solution.plot(tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(PNG)
    assert drawn[0].get_suptitle() == "Activations and partial residuals of all nodes"
    [nodes], samples = solution.layers, solution.problem.samples
    left = samples.outputs - solution.factors.outputs(samples.inputs)
    t = samples.inputs @ nodes.V
    for panel, k in zip(panels(drawn[0]), nodes.order, strict=True):
        assert panel.get_title().startswith(f"$g_{{{k + 1}}}(t)$, size ")
        [curve] = panel.get_lines()
        x, y = (torch.as_tensor(np.asarray(one)) for one in curve.get_data())
        assert (x[0], x[-1]) == pytest.approx((t[:, k].min().item(), t[:, k].max().item()))
        others = torch.zeros(len(x), 2).double()
        others[:, k] = x
        torch.testing.assert_close(y, nodes.activations(others)[:, k])
        w = solution.factors.W[:, k]  # without its error along w, a sample is reproduced there
        fitted, *held_out = solution.problem.split
        for index, (name, found) in zip((fitted, torch.cat(held_out)), dots(panel).items(), strict=True):
            assert name.startswith(("fitted", "held-out"))
            torch.testing.assert_close(found[:, 0], t[index, k])
            off = (found[:, 1] - nodes.activations(t)[index, k])[:, None] * nodes.W[:, k]
            torch.testing.assert_close((left[index] - off) @ w, torch.zeros(len(index)).double())


def test_exact_nodes_go_through_all_dots(drawn: list[Any], tmp_path: Path) -> None:
    problem = replace(CUBIC.problem(), held_out=0.0)
    solution = Solution(CUBIC.factors, problem, Result.EXACT, (Record("by hand", 0.0, 0.0, None, 0.0),))
    solution.plot(tmp_path / "g.svg")
    for panel, g in zip(panels(drawn[0]), (lambda t: 54 * t**3 - 6 * t, lambda t: -24 * t**2 - 18 * t), strict=True):
        [(name, found)] = dots(panel).items()
        assert name == "fitted samples"
        torch.testing.assert_close(found[:, 1], g(found[:, 0]))
    assert [panel.get_xlabel() for panel in panels(drawn[0])] == ["$t = x_{1} - 0.3333 x_{2}$", "$t = x_{1} + x_{2}$"]


def test_the_largest_nodes_are_drawn(drawn: list[Any], tmp_path: Path) -> None:
    solution = noisy_solution(6)
    solution.plot(tmp_path / "g.pdf", most=5)
    [nodes] = solution.layers
    titles = [panel.get_title().split(",")[0] for panel in panels(drawn[0])]
    assert titles == [f"$g_{{{k + 1}}}(t)$" for k in nodes.order[:5]]
    assert drawn[0].get_suptitle() == "Activations and partial residuals of 5 of 6 nodes"
    assert sum(not axes.get_visible() for axes in drawn[0].axes) == 3
    with pytest.raises(ValueError, match="most must be a whole number of at least 1, got 0"):
        solution.plot(tmp_path / "none.pdf", most=0)


def drawn_by_hand(factors: Factors, inputs: Tensor, path: Path, **settings: Any) -> Solution:
    """The plot of a solution as if a solver had found these factors, from samples of them."""
    problem = tenflex.Problem(sampled(factors, inputs), 2, tenflex.Monomial(2))
    solution = Solution(factors, problem, Result.EXACT, (Record("by hand", 0.0, 0.0, None, 0.0),))
    solution.plot(path, **settings)
    return solution


def require_dots_on_curves(shown: list[Any]) -> None:
    for panel in shown:
        [curve], found = panel.get_lines(), torch.cat(list(dots(panel).values()))
        near = np.interp(found[:, 0], *curve.get_data())
        np.testing.assert_allclose(found[:, 1], near, atol=1e-3 * np.abs(near).max())


def test_nodes_of_two_layers_are_drawn(drawn: list[Any], tmp_path: Path) -> None:
    generator = seeded(5)
    V, U, W = random(generator, 3, 2), random(generator, 3, 2), random(generator, 2, 3)
    first = Activations(random(generator, 2, 2), torch.zeros(2).double(), tenflex.Monomial(2))
    second = Activations(random(generator, 3, 2), torch.zeros(3).double(), tenflex.Chebyshev(2))
    factors = Factors(((V,), (U.mT,), (W.mT,)), (first, second), torch.zeros(2).double())
    drawn_by_hand(factors, random(generator, 40, 3), tmp_path / "g.png")
    shown = panels(drawn[0])
    assert sorted(panel.get_title().split("(")[0] for panel in shown[:3]) == ["$g_{1}", "$g_{2}", "$g_{3}"]
    assert sorted(panel.get_title().split("(")[0] for panel in shown[3:]) == ["$h_{1}", "$h_{2}"]
    assert all("h_{1}" in panel.get_xlabel() for panel in shown[:3])
    assert all("x_{1}" in panel.get_xlabel() for panel in shown[3:])
    require_dots_on_curves(shown[:3])  # the samples are of these layers
    assert [len(panel.collections) for panel in shown[3:]] == [0, 0]


def test_nodes_of_three_layers_are_drawn(drawn: list[Any], tmp_path: Path) -> None:
    generator = seeded(7)
    sizes = [3, 2, 3, 2, 2]
    maps = tuple((random(generator, *pair) / pair[0] ** 0.5,) for pair in pairwise(sizes))
    activations = tuple(
        Activations(random(generator, rank, 2), 0.3 * random(generator, rank), tenflex.Monomial(2))
        for rank in sizes[1:-1]
    )
    factors = Factors(maps, activations, random(generator, 2))
    inputs = random(generator, 40, 3)
    solution = drawn_by_hand(factors, inputs, tmp_path / "g.png")
    assert drawn[0].get_suptitle() == "Activations and partial residuals of all nodes"
    shown = panels(drawn[0])
    assert len(shown) == 7
    panels_of = [shown[5:], shown[2:5], shown[:2]]  # of the layers in their order; the last is drawn first
    letters = [("h^{(1)}", "x"), ("h^{(2)}", "h^{(1)}"), ("g", "h^{(2)}")]
    x = inputs
    for nodes, ours, (letter, given) in zip(solution.layers, panels_of, letters, strict=True):
        assert [panel.get_title().split("(t)")[0] for panel in ours] == [f"${letter}_{{{k + 1}}}" for k in nodes.order]
        t = nodes.arguments(x)
        for panel, k in zip(ours, nodes.order, strict=True):
            assert f"{given}_{{1}}" in panel.get_xlabel()
            [curve] = [one for one in panel.get_lines() if one.get_linestyle() != "None"]
            along, heights = (torch.as_tensor(np.asarray(one)) for one in curve.get_data())
            assert (along[0], along[-1]) == pytest.approx((t[:, k].min().item(), t[:, k].max().item()))
            others = torch.zeros(len(along), len(nodes.order)).double()
            others[:, k] = along
            torch.testing.assert_close(heights, nodes.activations(others)[:, k])
        x = nodes.outputs(x)
    require_dots_on_curves(shown[:2])
    assert [len(panel.collections) for panel in shown[2:]] == [0] * 5
    drawn_by_hand(factors, inputs, tmp_path / "some.pdf", most=4)
    assert drawn[1].get_suptitle() == "Activations and partial residuals of 4 of 7 nodes"
    assert [panel.get_title() for panel in panels(drawn[1])] == [panel.get_title() for panel in shown[:4]]


def test_the_folder_of_a_figure_is_made(tmp_path: Path) -> None:
    write_figure(blank_figure(1, 1), tmp_path / "of" / "mine" / "p.png")
    assert (tmp_path / "of" / "mine" / "p.png").is_file()
