"""What results are at the prompt, and as functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted import CUBIC
from torch import nn

import tenflex


@pytest.fixture(scope="module")
def solution() -> tenflex.Solution:
    return tenflex.decouple(CUBIC.problem(), seed=0)


@pytest.fixture(scope="module")
def result() -> tenflex.Compression:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
    return tenflex.compress(model, torch.randn(80, 6), {"0:2": tenflex.Block(2)}, basis=tenflex.Monomial(2))


def test_results_show_their_report(solution: tenflex.Solution, result: tenflex.Compression) -> None:
    assert repr(solution) == str(solution)
    assert repr(result) == str(result) == str(result.report)
    for one in (solution, result):
        html = one._repr_html_()
        assert html.startswith("<pre>")
        assert html.endswith("</pre>")
        assert "->" not in html  # escaped


def test_values_show_their_shapes(solution: tenflex.Solution) -> None:
    samples = solution.problem.samples
    count, n, m = samples.jacobians.shape
    for value in (samples, solution.problem, solution.factors, solution.problem.reduction):
        assert len(repr(value)) < 700
        assert "tensor(" not in repr(value)
    assert f"jacobians=float64[{count}, {n}, {m}]" in repr(samples)
    assert "hessians" not in repr(tenflex.Samples(samples.inputs, samples.outputs, samples.jacobians))


def test_a_solution_is_a_function(solution: tenflex.Solution) -> None:
    samples = solution.problem.samples
    assert torch.allclose(solution(samples.inputs), samples.outputs, rtol=0, atol=1e-8)
    point = samples.inputs[3]
    assert torch.equal(solution(point.float()), solution(point.float()[None])[0])
    assert solution(point.float()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"expected points \(\.\.\., 2\), got the shape \(7, 3\)"):
        solution(torch.zeros(7, 3))
    with pytest.raises(TypeError, match="points must be"):
        solution(torch.zeros(7, 2, dtype=torch.int64))


def test_simulation_is_the_map_on_its_own_outputs() -> None:
    """y_t = f(y_{t-1}, y_{t-2}, u_t), the newest output first."""

    def f(x: torch.Tensor) -> torch.Tensor:
        return (0.5 * x[0] - 0.3 * x[1] + x[2]).square()[None] - 0.1

    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solution = tenflex.decouple(tenflex.Problem(tenflex.sample(f, points), 1, tenflex.Monomial(2)))
    past = torch.tensor([[0.2], [0.4]], dtype=torch.float64)
    given = torch.rand(5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [0.2, 0.4]
    for u in given[:, 0].tolist():
        expected.append((0.5 * expected[-1] - 0.3 * expected[-2] + u) ** 2 - 0.1)
    found = solution.simulate(past, given)
    assert found.shape == (5, 1)
    assert torch.allclose(found[:, 0], torch.tensor(expected[2:], dtype=torch.float64), rtol=0, atol=1e-9)
    assert solution.simulate(past, given[:0]).shape == (0, 1)
    with pytest.raises(ValueError, match=r"expected past \(lags, 1\) and exogenous \(T, k\) with lags \* 1 \+ k = 3"):
        solution.simulate(past[:1], given)
    with pytest.raises(ValueError, match="past must be finite"):
        solution.simulate(past / 0, given)


def test_names_go_from_a_polynomial_to_its_formulas() -> None:
    """And numbers that are rounding noise are rounded away: the expanded formula is the polynomial itself."""
    f = tenflex.Polynomial.from_string("(a + b)^2 + 3; (a - b)^3")
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = tenflex.decouple(tenflex.Problem(tenflex.sample(f, points), 2, tenflex.Monomial(3)))
    formulas = found.to_sympy()
    assert list(map(str, formulas.inputs)) == ["a", "b"]
    assert list(formulas.expanded()) == f.to_sympy()
    assert "t1 = a + b, " in str(found)
    assert found.problem.samples.select(torch.arange(9)).names == (("a", "b"), ("f1", "f2"))


def test_names_go_from_a_table_to_its_texts(tmp_path: Path) -> None:
    x = torch.rand(80, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (2 * x[:, :1] - x[:, 1:]).square()
    samples = tenflex.sample_table(x, y).called((("speed", "load_"), ("power",)))
    found = tenflex.decouple(tenflex.Problem(samples, 1, tenflex.Monomial(2)))
    assert "speed - 0.5" in str(found)
    assert "power = g1(t1)" in str(found)
    assert list(map(str, found.to_sympy().inputs)) == ["speed", "load_"]
    pytest.importorskip("matplotlib")
    assert found.plot(tmp_path / "nodes.svg")._repr_svg_().startswith("<?xml")
    found.save(tmp_path / "found.safetensors")
    assert str(tenflex.load_solution(tmp_path / "found.safetensors")) == str(found)
    for wrong in ((("a",), ("f",)), (("a", "a"), ("f",)), (("a", "b"), ()), "ab", (("a", 3), ("f",))):
        with pytest.raises(ValueError, match="names must be"):
            samples.called(wrong)


def test_small_terms_that_count_are_kept() -> None:
    """What is small because of its unit is not noise: b is a thousand times a million."""
    f = tenflex.Polynomial.from_string("(a + b/10^9)^2")
    points = torch.rand(40, 2, dtype=torch.float64) * torch.tensor([1.0, 1e9], dtype=torch.float64)
    solution = tenflex.decouple(tenflex.Problem(tenflex.sample(f, points), 1, tenflex.Monomial(2)))
    [expanded] = solution.to_sympy().expanded()
    assert len(expanded.args) == 3


def test_a_compression_is_plotted(result: tenflex.Compression, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result.plot(tmp_path / "nodes.svg")
    assert (tmp_path / "nodes.svg").stat().st_size > 5000
    assert result.plot(block="0:2", most=1).axes
    with pytest.raises(ValueError, match=r"expected block= as one of \['0:2'\], got 'fc1'"):
        result.plot(block="fc1")
