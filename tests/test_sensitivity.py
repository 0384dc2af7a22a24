"""Coordinates by what a map makes of its inputs: what they mean, and what they do not depend on."""

from __future__ import annotations

import pytest
import torch
from planted import random, seeded
from torch import Tensor, nn

import tenflex
from tenflex import Block, Monomial, Problem, Samples
from tenflex.coordinates import PerOutput, Sensitivity, Whiten
from tenflex.coordinates.sensitivity import reshrunk
from tenflex.sampling.jacobian import sample_block, some_jacobians
from tenflex.solvers import Chain, ConstrainedALS, Leading, Refine

S, M, N = 60, 7, 4


def correlated(seed: int = 0, m: int = M) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, outputs and Jacobians of a map that uses its inputs unequally."""
    generator = seeded(seed)
    x = random(generator, S, m) @ random(generator, m, m)
    V, W = random(generator, m, 5) * torch.logspace(-2, 1, m, dtype=torch.float64)[:, None], random(generator, N, 5)
    t = x @ V / 10
    return x, torch.tanh(t) @ W.mT, torch.einsum("nr,sr,mr->snm", W, 1 - torch.tanh(t) ** 2, V / 10)


@pytest.mark.parametrize("shrinkage", [0.03, 1.0, None])
def test_there_is_an_exact_way_back(shrinkage):
    x, y, J = correlated()
    reduction = Sensitivity(shrinkage).choose(x, y, J)
    torch.testing.assert_close(reduction.down.mT @ reduction.up, torch.eye(M, dtype=torch.float64))
    torch.testing.assert_close(reduction.mean + reduction.inputs(x) @ reduction.up.mT, x)


@pytest.mark.parametrize("shrinkage", [0.03, 1.0])
def test_jacobians_are_weighed_by_the_shrunk_covariance(shrinkage):
    r"""`U U^T = Sigma + lambda mean(l) (G + diag G)^-1`, so `||J U||^2` is the mean of `|J e|^2` for such e."""
    x, y, J = correlated()
    reduction = Sensitivity(shrinkage).choose(x, y, J)
    covariance = (x - x.mean(0)).mT @ (x - x.mean(0)) / S
    metric = J.flatten(0, 1).mT @ J.flatten(0, 1)
    metric = metric + torch.diag(metric.diagonal())
    mean = torch.trace(covariance @ metric) / M
    expected = covariance + shrinkage * mean * torch.linalg.inv(metric)
    torch.testing.assert_close(reduction.up @ reduction.up.mT, expected, rtol=1e-8, atol=1e-10)


def test_where_nothing_acts_variances_alone_count():
    """As among a few samples of a block that is nearly dead."""
    x, y, J = correlated()
    found, expected = Sensitivity().choose(x, y, 0 * J), Whiten().choose(x, y)
    assert torch.equal(found.down, expected.down)
    assert found.down.isfinite().all()


def test_the_shrinkage_falls_with_the_samples():
    x, y, J = correlated()
    some, many = (Sensitivity().choose(x.repeat(k, 1), y.repeat(k, 1), J) for k in (1, 10))
    torch.testing.assert_close(some.up, Sensitivity(3.0).choose(x, y, J).up)
    torch.testing.assert_close(many.up, Sensitivity(600 / (10 * S)).choose(x, y, J).up)


@pytest.mark.parametrize("factor", [1 / 30, 1.0, 3.0])
def test_another_shrinkage_needs_no_other_samples(network, factor):
    """Inputs, Jacobians and the way back are those of samples that were taken with it, up to a rotation."""
    x = random(seeded(2), 90, 12)
    y = network(x).detach()
    first, expected = (
        sample_block(network, x, y, coordinates=Sensitivity(one), lost_energy=0) for one in (0.6, 0.6 * factor)
    )
    found = reshrunk(first, slice(len(x) - sum(first.aside or ())), factor)
    before = first.inputs.clone()
    torch.testing.assert_close(found.inputs @ found.inputs.mT, expected.inputs @ expected.inputs.mT)
    energies = [one.jacobians.square().sum((1, 2)) for one in (found, expected)]
    torch.testing.assert_close(*energies, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.reduction.down.mT @ found.reduction.up, torch.eye(12, dtype=torch.float64))
    back = found.reduction.mean + found.inputs @ found.reduction.up.mT
    torch.testing.assert_close(back, first.reduction.mean + first.inputs @ first.reduction.up.mT)
    assert torch.equal(first.inputs, before)


@pytest.mark.parametrize("seed", range(5))
def test_units_do_not_matter(seed):
    """Rescaling any input by 1e-6 to 1e6 and any output alike changes the coordinates by a rotation at most."""
    x, y, J = correlated(seed)
    scales = 10 ** (12 * torch.rand(M, generator=seeded(seed), dtype=torch.float64) - 6)
    one, other = Sensitivity(0.3).choose(x, y, J), Sensitivity(0.3).choose(x * scales, 1e3 * y, 1e3 * J / scales)
    z, same = one.inputs(x), other.inputs(x * scales)
    torch.testing.assert_close(same @ same.mT, z @ z.mT, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        other.jacobians(1e3 * J / scales).square().sum((1, 2)), one.jacobians(J).square().sum((1, 2)), rtol=1e-5, atol=0
    )


def test_dead_and_constant_inputs_are_harmless():
    x, y, J = correlated()
    x[:, 2], J[:, :, 3] = 1.5, 0.0  # does not vary; does nothing
    x[:, 4], J[:, :, 4] = -2.0, 0.0  # neither
    reduction = Sensitivity(1.0).choose(x, y, J)
    torch.testing.assert_close(reduction.down.mT @ reduction.up, torch.eye(M, dtype=torch.float64))
    assert reduction.jacobians(J).isfinite().all()
    assert reduction.inputs(x).isfinite().all()


def test_wide_inputs_keep_the_directions_that_count(monkeypatch):
    """No matrix is m by m: the frame holds what the samples vary in and where the map changes."""
    monkeypatch.setattr("tenflex.coordinates.sensitivity.WIDEST", 10)
    generator = seeded(0)
    inside = random(generator, 40, 5)  # five directions hold inputs and Jacobians; in units of each input they are ten
    x, J = random(generator, S, 5) @ inside.mT, random(generator, S, N, 5) @ inside.mT
    y = torch.einsum("snm,sm->sn", J, x)
    reduction = Sensitivity(1.0).choose(x, y, J)
    assert reduction.up.shape == (40, 10)
    torch.testing.assert_close(reduction.down.mT @ reduction.up, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(reduction.mean + reduction.inputs(x) @ reduction.up.mT, x, rtol=1e-6, atol=1e-6)


@pytest.fixture
def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)).eval().double()


def rescaled(network: nn.Sequential, inputs: Tensor, outputs: Tensor) -> nn.Sequential:
    """The same function of what its inputs mean, in other units of them and of its outputs."""
    first, last = nn.Linear(12, 20), nn.Linear(20, 5)
    first.weight.data, first.bias.data = network[0].weight.detach() / inputs, network[0].bias.detach()
    last.weight.data, last.bias.data = network[2].weight.detach() * outputs[:, None], network[2].bias.detach() * outputs
    return nn.Sequential(first, nn.Tanh(), last).eval().double()


def units(count: int, seed: int) -> Tensor:
    """Scales from 1e-6 to 1e6."""
    return 10 ** (12 * torch.rand(count, generator=seeded(seed), dtype=torch.float64) - 6)


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_no_unit_changes_the_result(network, seed):
    """Neither that of any input nor the common one of the outputs; with `PerOutput`, nor that of any output."""
    generator = seeded(seed + 1)
    x, fresh = random(generator, 120, 12), random(generator, 400, 12)
    scales, whole, apart = units(12, seed), torch.full((5,), float(units(1, 50 + seed))).double(), units(5, 90 + seed)
    solver = Chain((Leading(ConstrainedALS(10)), Refine(20)))
    for rule, outputs in ((Sensitivity(), whole), (PerOutput(Sensitivity()), apart)):
        settings = {"coordinates": rule, "solver": solver, "basis": Monomial(3)}
        one = tenflex.compress(network, x, {"": Block(6)}, **settings)
        other = tenflex.compress(rescaled(network, scales, outputs), x * scales, {"": Block(6)}, **settings)
        found, expected = other.model(fresh * scales) / outputs, one.model(fresh)
        assert float((found - expected).norm() / expected.norm()) < 1e-3
        reported, same = (result.report.blocks[0].output_error for result in (one, other))
        assert same == pytest.approx(reported, rel=1e-2)


@torch.no_grad()
def test_the_layer_of_a_network_in_other_units_is_the_same(network):
    """Not so when what varies little is dropped: one input in large units hides the others."""
    generator = seeded(1)
    x, fresh = random(generator, 150, 12), random(generator, 400, 12)
    scales = torch.ones(12, dtype=torch.float64)
    scales[0] = 1e4
    other = rescaled(network, scales, torch.ones(5, dtype=torch.float64))
    solver = Chain((Leading(ConstrainedALS(10)), Refine(40)))
    errors = {}
    for name, rule in (("sensitivity", Sensitivity()), ("whitened", Whiten())):
        settings = {"coordinates": rule, "solver": solver, "basis": Monomial(3)}
        one = tenflex.compress(network, x, {"": Block(6)}, **settings).model(fresh)
        same = tenflex.compress(other, x * scales, {"": Block(6)}, **settings).model(fresh * scales)
        expected = network(fresh)
        errors[name] = [float((y - expected).norm() / expected.norm()) for y in (one, same)]
    assert errors["sensitivity"][1] == pytest.approx(errors["sensitivity"][0], rel=1e-2)
    assert errors["whitened"][1] > 2 * errors["whitened"][0]


def test_a_plan_with_coordinates_is_saved_and_read(network, tmp_path):
    x = random(seeded(1), 80, 12)
    rule = Sensitivity(0.5)
    result = tenflex.compress(network, x, {"": Block(3)}, coordinates=rule, held_out=0.25, solver=ConstrainedALS(2))
    assert tenflex.Plan.from_dict(result.plan.to_dict()) == result.plan
    assert (result.plan.coordinates, result.plan.held_out) == (rule, 0.25)
    assert result.solutions[""].problem.samples.aside == (10, 10)
    with pytest.raises(TypeError, match=r"compress has no setting 'coordinate'; did you mean 'coordinates'"):
        tenflex.compress(network, x, {"": Block(3)}, coordinate=rule)


def test_solutions_in_these_coordinates_are_saved(tmp_path):
    x, y, J = correlated()
    solution = tenflex.decouple(Problem(Samples(x, y, J), 2, Monomial(2), coordinates=Sensitivity()), ConstrainedALS(3))
    solution.save(tmp_path / "solution.safetensors")
    again = tenflex.load_solution(tmp_path / "solution.safetensors")
    assert again.problem.coordinates == Sensitivity()
    assert torch.equal(again.factors.flat(), solution.factors.flat())


def test_a_few_jacobians_are_drawn_evenly(network):
    x = random(seeded(1), 2000, 12)
    J = some_jacobians(network, x, 5)
    assert J.shape == (500, 5, 12)
    torch.testing.assert_close(J[1], torch.func.jacrev(network)(x[4]))


def test_bad_input_is_refused():
    x, y, _ = correlated()
    with pytest.raises(ValueError, match="shrinkage must be a finite number above 0, got 0"):
        Sensitivity(0)
    with pytest.raises(ValueError, match="Sensitivity needs Jacobians of some of the samples, got none"):
        Sensitivity().choose(x, y)
