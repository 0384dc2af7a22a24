"""Tables without derivatives: what is estimated, how sure it is, and what is refused."""

from __future__ import annotations

import pytest
import torch
from planted import CUBIC, direction_error, random, sampled, seeded, uniform

import tenflex
from tenflex.problem import Problem
from tenflex.sampling import regression
from tenflex.sampling.polynomial import Polynomial
from tenflex.sampling.regression import sample_table

BENT = Polynomial.from_string("a**2 - 3*a*b + b; 0.5*b**2 - a + 2")
"""A quadratic map: local quadratics have no bias."""


def wave(x):
    """A smooth map from 2 to 2 numbers with its Jacobians."""
    a, b = x.unbind(1)
    values = torch.stack([torch.tanh(a + b), torch.sin(2 * a - b)], 1)
    slopes = 1 - torch.tanh(a + b) ** 2
    turn = torch.cos(2 * a - b)
    return values, torch.stack([torch.stack([slopes, slopes], 1), torch.stack([2 * turn, -turn], 1)], 1)


def relative_error(samples, jacobians):
    return ((samples.jacobians - jacobians).norm() / jacobians.norm()).item()


# ---- estimates ----


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_quadratic_maps_are_exact(m):
    generator = seeded(m)
    scale = 10.0 ** torch.arange(m)
    x = (random(generator, 40 * m, m) + 3) * scale  # inputs of very different sizes, far from zero
    forms, slopes = random(generator, 2, m, m), random(generator, 2, m)
    z = x / scale
    outputs = torch.einsum("si,nij,sj->sn", z, forms, z) + z @ slopes.mT
    expected = (torch.einsum("nij,sj->sni", forms + forms.mT, z) + slopes) / scale
    assert relative_error(sample_table(x, outputs), expected) < 1e-9


@pytest.mark.parametrize(("degree", "text"), [(1, "2*a - b + 1"), (3, "a**3 - a*b**2; b"), (4, "a*b**3")])
def test_polynomials_of_the_local_degree_are_exact(degree, text):
    f, x = Polynomial.from_string(text, ["a", "b"]), uniform(150, 2, -1, 2)
    assert relative_error(sample_table(x, f.values(x), degree=degree), f.jacobians(x)) < 1e-9


def test_error_falls_with_more_samples():
    errors = []
    for count in (100, 400, 1600):
        x = uniform(count, 2, -1, 1)
        outputs, jacobians = wave(x)
        errors.append(relative_error(sample_table(x, outputs), jacobians))
    assert errors[1] < errors[0] / 1.7
    assert errors[2] < errors[1] / 1.7
    assert errors[2] < 0.02


def test_noise_is_averaged_over_more_neighbours():
    x = uniform(600, 2, -1, 1)
    outputs, jacobians = wave(x)
    noisy = outputs + 0.05 * random(seeded(1), *outputs.shape)
    chosen, few = sample_table(x, noisy), sample_table(x, noisy, neighbours=9)
    assert relative_error(chosen, jacobians) < 0.15
    assert relative_error(chosen, jacobians) < 0.2 * relative_error(few, jacobians)


def test_given_derivatives_and_outputs_are_kept():
    x = uniform(30, 2, -1, 1)
    outputs, jacobians = wave(x)
    whole = sample_table(x, outputs, jacobians)
    assert torch.equal(whole.jacobians, jacobians)
    assert whole.covariance is None
    noisy = outputs + random(seeded(2), *outputs.shape)
    assert torch.equal(sample_table(x, noisy).outputs, noisy)


def test_everything_is_in_double_precision():
    x = uniform(60, 2, -1, 1)
    samples = sample_table(x.float(), BENT.values(x).float())
    assert {samples.inputs.dtype, samples.outputs.dtype, samples.jacobians.dtype} == {torch.float64}
    assert relative_error(samples, BENT.jacobians(x)) < 1e-4


def test_a_planted_layer_is_found_from_a_table():
    x = CUBIC.inputs
    samples = sample_table(x, CUBIC.factors.outputs(x), degree=3)
    assert relative_error(samples, sampled(CUBIC.factors, x).jacobians) < 1e-9
    solution = tenflex.decouple(Problem(samples.unweighted(), rank=2, basis=tenflex.Monomial(3)))
    assert direction_error(solution.factors, CUBIC.factors) < 1e-7


# ---- invariance ----


def test_units_do_not_matter():
    x, outputs = uniform(120, 2, -1, 1), wave(uniform(120, 2, -1, 1))[0]
    outputs = outputs + 0.02 * random(seeded(3), *outputs.shape)
    units, scales = torch.tensor([1e3, 1e-2]).double(), torch.tensor([50.0, 0.1]).double()
    plain, changed = sample_table(x, outputs), sample_table(x * units + 7, outputs * scales - 2)
    factor = scales[:, None] / units
    torch.testing.assert_close(changed.jacobians, plain.jacobians * factor, rtol=1e-6, atol=0)
    both = factor.flatten()
    torch.testing.assert_close(changed.covariance, plain.covariance * both * both[:, None], rtol=1e-5, atol=0)


def test_order_and_chunks_do_not_matter(monkeypatch):
    x = uniform(90, 2, -1, 1)
    outputs = wave(x)[0] + 0.02 * random(seeded(4), 90, 2)
    plain, order = sample_table(x, outputs), torch.randperm(90, generator=seeded(5))
    monkeypatch.setattr("tenflex.sums.CHUNK", 2000)
    other = sample_table(x[order], outputs[order])
    torch.testing.assert_close(other.jacobians, plain.jacobians[order], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(other.covariance, plain.covariance[order], rtol=1e-9, atol=1e-15)


# ---- the covariance ----


def test_covariance_is_that_of_the_estimates_over_draws_of_noise():
    generator, draws = seeded(6), 300
    x = uniform(50, 2, -1, 1)
    outputs, jacobians = BENT.values(x), BENT.jacobians(x)
    mixing = torch.tensor([[0.1, 0.0], [0.3, 0.2]]).double()  # correlated noise, of different sizes
    stated, seen = 0.0, 0.0
    for _ in range(draws):
        samples = sample_table(x, outputs + random(generator, 50, 2) @ mixing.mT, neighbours=35)
        error = (samples.jacobians - jacobians).flatten(1)
        stated = stated + samples.covariance / draws
        seen = seen + error[:, :, None] * error[:, None] / draws
    sizes = stated.flatten(1).norm(dim=1)
    assert ((seen - stated).sum(0).norm() / stated.sum(0).norm()).item() < 0.1
    assert ((seen - stated).flatten(1).norm(dim=1) / sizes).amax().item() < 0.4
    independent = torch.kron(torch.diag((mixing @ mixing.mT).diagonal()), torch.ones(2, 2).double())
    assert ((seen - stated * (independent != 0)).sum(0).norm() / stated.sum(0).norm()).item() > 0.3


def test_covariance_tells_the_better_estimates():
    x = random(seeded(7), 500, 2)
    outputs, jacobians = wave(x)
    samples = sample_table(x, outputs + 0.01 * random(seeded(8), 500, 2))
    errors = (samples.jacobians - jacobians).flatten(1).square().sum(1)
    variances = samples.covariance.diagonal(dim1=1, dim2=2).sum(1)
    sure, unsure = errors[variances.argsort()].chunk(2)
    assert unsure.mean() > 3 * sure.mean()


def test_covariance_is_usable_without_noise_and_for_outputs_that_repeat():
    x = uniform(80, 2, -1, 1)
    y = BENT.values(x)
    samples = sample_table(x, torch.cat([y, y[:, :1], torch.ones(80, 1)], 1))
    torch.linalg.cholesky(samples.covariance)
    assert samples.covariance.abs().amax() < 1e-10
    assert not samples.jacobians[:, 3].abs().amax() > 1e-9


def test_directions_without_neighbours_are_unsure():
    angle = torch.linspace(0, 6.2, 300).double()
    x = torch.stack([angle.cos(), angle.sin()], 1)
    tangent = torch.stack([-angle.sin(), angle.cos()], 1)
    samples = sample_table(x, (2 * angle).sin()[:, None])
    along = (samples.jacobians[:, 0] * tangent).sum(1)
    torch.testing.assert_close(along, 2 * (2 * angle).cos(), rtol=0, atol=0.02)
    sure, unsure = (torch.einsum("si,sij,sj->s", d, samples.covariance, d).sqrt() for d in (tangent, x))
    assert sure.amax() < 0.01
    assert unsure.amin() > 0.5


def test_an_input_of_two_values_is_unsure():
    x = torch.cat([uniform(400, 1, -1, 1), torch.arange(400)[:, None] % 2], 1).double()
    samples = sample_table(x, x[:, :1] ** 2 + x[:, 1:])
    torch.testing.assert_close(samples.jacobians[:, 0, 0], 2 * x[:, 0], rtol=0, atol=1e-8)
    assert samples.covariance[:, 1, 1].amin() > 1e3 * samples.covariance[:, 0, 0].amax()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": [[1.0]]}, TypeError, "inputs must be a torch.Tensor, got list"),
        ({"outputs": torch.ones(60, 2).long()}, TypeError, "outputs must be real floating-point numbers"),
        (
            {"inputs": uniform(60, 2, 0, 1)[:, 0]},
            ValueError,
            r"expected inputs \(S, m\) and outputs \(S, n\), got \(60,\)",
        ),
        ({"outputs": torch.ones(59, 2)}, ValueError, r"got \(60, 2\) and \(59, 2\)"),
        ({"outputs": torch.ones(60, 0)}, ValueError, r"got \(60, 2\) and \(60, 0\)"),
        ({"outputs": torch.full((60, 1), torch.nan)}, ValueError, "outputs must be finite, but 60 of 60"),
        ({"inputs": uniform(60, 2, 0, 1) / 0}, ValueError, "inputs must be finite"),
        ({"degree": 0}, ValueError, "degree must be a whole number of at least 1, got 0"),
        ({"neighbours": 2.5}, ValueError, "neighbours must be a whole number of at least 1, got 2.5"),
        (
            {"neighbours": 8},
            ValueError,
            r"neighbours must be from 9 \(local .* degree 2 in 2 inputs have 6 coefficients",
        ),
        ({"neighbours": 61}, ValueError, "to the 60 samples, got 61"),
        ({"jacobians": torch.ones(60, 2, 3)}, ValueError, r"expected inputs \(S, m\), outputs .* and jacobians"),
        ({"jacobians": torch.ones(60, 2, 2), "neighbours": 20}, ValueError, "leave them or jacobians out"),
        ({"jacobians": torch.ones(60, 2, 2), "degree": 1}, ValueError, "leave them or jacobians out"),
    ],
)
def test_bad_tables_are_refused(change, error, message):
    x = uniform(60, 2, -1, 1)
    with pytest.raises(error, match=message):
        sample_table(**{"inputs": x, "outputs": BENT.values(x), **change})


def test_too_few_samples_are_told_how_many_are_needed():
    x = uniform(20, 4, -1, 1)
    with pytest.raises(
        ValueError, match=r"at least 23 samples .* 4 inputs .* degree 2 \(15 coefficients\), got 20: .*8 are"
    ):
        sample_table(x, x)
    assert relative_error(sample_table(x, x, degree=1), torch.eye(4).double().expand(20, 4, 4)) < 1e-9


def test_inputs_that_do_not_vary_are_refused():
    x = uniform(60, 3, -1, 1)
    with pytest.raises(ValueError, match="input x2 is constant, so nothing tells its derivative"):
        sample_table(x * torch.tensor([1.0, 0.0, 1.0]) + 0.1, x)
    with pytest.raises(ValueError, match="vary in only 2 of 3 directions, so nothing tells the derivatives"):
        sample_table(torch.cat([x[:, :2], x[:, :1] - x[:, 1:2]], 1), x)


def test_many_samples_at_one_point_are_refused_and_some_are_not():
    x = uniform(60, 2, -1, 1)
    crowded = x.clone()
    crowded[:30] = 0.5
    with pytest.raises(ValueError, match="at least 20 samples are at the same point as sample 0"):
        sample_table(crowded, BENT.values(crowded), neighbours=20)
    twice = torch.cat([x, x])
    assert relative_error(sample_table(twice, BENT.values(twice)), BENT.jacobians(twice)) < 1e-9


def test_a_covariance_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(regression, "MOST_MEMORY", 50 * 8 * 16)
    x = uniform(60, 2, -1, 1)
    with pytest.raises(ValueError, match=r"covariance of 60 Jacobians \(2, 2\) takes .* at most 50 samples"):
        sample_table(x, BENT.values(x))
