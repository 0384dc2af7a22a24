"""Reduced coordinates: their identities, and the exact way back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from planted import layer as planted_layer
from planted import random
from torch import Tensor
from torch.func import jacrev, vmap

from tenflex.bases import BSpline, Monomial
from tenflex.coordinates.active import active_axes, to_active_axes, to_active_axes_
from tenflex.coordinates.per_output import PerOutput
from tenflex.coordinates.standardize import Standardize
from tenflex.coordinates.whiten import Whiten, principal_axes
from tenflex.decouple import decouple
from tenflex.factors import Factors
from tenflex.problem import Problem
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample
from tenflex.solvers import Chain, ConstrainedALS, GaussNewton, MultiStart

N = 3


UNITS = torch.tensor([1e-5, 1.0, 3e6], dtype=torch.float64)
"""Of the outputs, when each is in its own."""


def tall(generator) -> Tensor:
    return random(generator, 60, 5) @ random(generator, 5, 5) + 3


def wide(generator) -> Tensor:
    """Hundreds of inputs from few samples."""
    return random(generator, 12, 300) + 1


def collinear(generator) -> Tensor:
    """Eight inputs that are three numbers."""
    return random(generator, 60, 3) @ random(generator, 3, 8) - 2


def dead(generator) -> Tensor:
    """Some inputs never change, at zero and elsewhere."""
    x = random(generator, 60, 6)
    x[:, 1], x[:, 4] = 0, 7.3
    return x


def badly_scaled(generator) -> Tensor:
    return random(generator, 60, 4) * torch.tensor([1e-4, 1.0, 30.0, 1e4]) + torch.tensor([0.0, 5.0, -30.0, 1e5])


def single_precision(generator) -> Tensor:
    return tall(generator).float()


DATA = [tall, wide, collinear, dead, badly_scaled, single_precision]
data = pytest.mark.parametrize("inputs", DATA, ids=lambda one: one.__name__)
RULES = [Standardize(), Whiten(), Whiten(1e-6), Whiten(0.3)]
coordinates = pytest.mark.parametrize("coordinates", RULES, ids=repr)
every_rule = pytest.mark.parametrize("coordinates", [*RULES, PerOutput(), PerOutput(Whiten())], ids=repr)


class Curved:
    """A smooth map to N numbers, curved where the data are."""

    def __init__(self, generator, x: Tensor) -> None:
        self.mean, self.size = x.double().mean(0), x.double().std(0, correction=0).clamp(min=1e-9)
        self.A, self.B = random(generator, x.shape[1], 6) / x.shape[1] ** 0.5, random(generator, 6, N)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh((x - self.mean) / self.size @ self.A) @ self.B + 10


def sampled(f: Curved, x: Tensor) -> Samples:
    x = x.double()
    return Samples(x, f(x), vmap(jacrev(f))(x))


def layer(generator, m: int, n: int, factored: bool) -> Factors:
    """A random layer of rank 4 from m to n numbers."""
    inner = (random(generator, m, 2), random(generator, 2, 4)) if factored else (random(generator, m, 4),)
    outer = (random(generator, n, 2), random(generator, 2, 4)) if factored else (random(generator, n, 4),)
    inner = (inner[0] / m**0.5, *inner[1:])
    C, shift, bias = random(generator, 4, 7), random(generator, 4), random(generator, n)
    return planted_layer(inner, outer, C, shift, bias, BSpline(7))


# ---- identities ----


@data
@coordinates
def test_down_undoes_up(inputs, coordinates, generator):
    x = inputs(generator)
    reduction = coordinates.choose(x, random(generator, len(x), N))
    k = reduction.up.shape[1]
    eye = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(reduction.down.mT @ reduction.up, eye, rtol=0, atol=1e-9)
    assert reduction.up.dtype == torch.float64
    assert 1 <= k <= x.shape[1]


@data
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 0.0])
def test_whitened_inputs_have_mean_zero_and_unit_covariance(inputs, tolerance, generator):
    x = inputs(generator)
    z = Whiten(tolerance).choose(x, random(generator, len(x), N)).inputs(x)
    eye = torch.eye(z.shape[1], dtype=torch.float64)
    torch.testing.assert_close(z.mean(0), torch.zeros(z.shape[1], dtype=torch.float64), rtol=0, atol=1e-6)
    # Only the badly scaled data, of which the weakest variance is 1e-16 of the largest, lose digits to the Gram matrix.
    torch.testing.assert_close(z.mT @ z / len(z), eye, rtol=0, atol=1e-3 if tolerance == 0 else 1e-8)


@pytest.mark.parametrize(("inputs", "k"), [(tall, 5), (wide, 11), (collinear, 3), (dead, 4)])
def test_whitening_keeps_as_many_directions_as_there_are(inputs, k, generator):
    x = inputs(generator)
    assert Whiten(1e-9).choose(x, random(generator, len(x), N)).up.shape == (x.shape[1], k)


def test_whitening_drops_the_weak_directions(generator):
    shares = torch.tensor([1.0, 0.9e-1, 1.1e-3, 0.9e-3, 1e-9], dtype=torch.float64)
    basis = torch.linalg.qr(random(generator, 5, 5))[0]
    scores = torch.linalg.qr(random(generator, 200, 5) - 0)[0]
    scores = torch.linalg.qr(scores - scores.mean(0))[0]
    x = scores * shares.sqrt() @ basis.mT
    for tolerance, k in ((1e-3, 3), (1e-2, 2), (1e-10, 5), (0.5, 1)):
        axes, deviations = principal_axes(x - x.mean(0), tolerance)
        torch.testing.assert_close(deviations, (shares[:k] / 200).sqrt(), rtol=1e-4, atol=0)
        torch.testing.assert_close((axes * basis[:, :k]).sum(0).abs(), torch.ones(k, dtype=x.dtype), rtol=1e-4, atol=0)


def test_both_gram_matrices_give_the_same_axes(generator):
    x = random(generator, 40, 40)
    x = x - x.mean(0)
    few_axes, few = principal_axes(x, 1e-3)
    many_axes, many = principal_axes(torch.cat([x, torch.zeros(40, 1, dtype=x.dtype)], 1), 1e-3)  # 41 inputs: the other
    torch.testing.assert_close(few, many)
    torch.testing.assert_close((few_axes * many_axes[:-1]).sum(0).abs(), torch.ones_like(few))


@data
def test_standardized_inputs_have_unit_variance_and_none_is_dropped(inputs, generator):
    x = inputs(generator)
    reduction = Standardize().choose(x, random(generator, len(x), N))
    z = reduction.inputs(x)
    lives = (x - x[0]).abs().amax(0) > 0
    assert z.shape == x.shape
    torch.testing.assert_close(z.std(0, correction=0)[lives], torch.ones(int(lives.sum()), dtype=torch.float64))
    assert z[:, ~lives].abs().max().item() < 1e-12 if (~lives).any() else True
    assert torch.equal(reduction.up, torch.diag(reduction.up.diagonal()))


@coordinates
def test_outputs_are_centred_and_of_unit_size(coordinates, generator):
    x, y = tall(generator), 50 * random(generator, 60, N) + 1000
    reduction = coordinates.choose(x, y)
    reduced = reduction.outputs(y)
    torch.testing.assert_close(reduced.mean(0), torch.zeros(N, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(reduced.square().sum(1).mean().item(), 1.0)
    constant = coordinates.choose(x, torch.full((60, N), 4.0))
    assert torch.equal(constant.output_down, torch.eye(N, dtype=torch.float64))


@data
@pytest.mark.parametrize("inner", [Standardize(), Whiten()], ids=repr)
def test_every_output_gets_the_same_share_of_the_jacobians(inputs, inner, generator):
    x = inputs(generator).double()
    samples = sampled(Curved(generator, x), x)
    samples = Samples(x, samples.outputs * UNITS, samples.jacobians * UNITS[:, None])
    reduction = PerOutput(inner).choose(x, samples.outputs, samples.jacobians)
    reduced = samples.reduced(reduction)
    torch.testing.assert_close(energies(reduced.jacobians)[1], torch.full((N,), 1 / N, dtype=torch.float64))
    # The inputs are those of the inner rule, and the outputs together have unit size as with any rule.
    torch.testing.assert_close(reduced.inputs, inner.choose(x, samples.outputs).inputs(x))
    torch.testing.assert_close(reduced.outputs.square().sum(1).mean().item(), 1.0)
    eye = torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(reduction.output_down.mT @ reduction.output_up, eye)
    assert torch.equal(reduction.output_up, torch.diag(reduction.output_up.diagonal()))


def test_outputs_scaled_apart_do_not_know_their_units(generator):
    x = tall(generator)
    samples = sampled(Curved(generator, x), x)
    outputs, jacobians = samples.outputs * UNITS, samples.jacobians * UNITS[:, None]
    one = PerOutput().choose(x, samples.outputs, samples.jacobians)
    other = PerOutput().choose(x, outputs, jacobians)
    torch.testing.assert_close(other.outputs(outputs), one.outputs(samples.outputs))
    torch.testing.assert_close(other.jacobians(jacobians), one.jacobians(samples.jacobians))


@pytest.mark.parametrize("dead_outputs", [1, N])
def test_outputs_that_never_change_keep_a_scale(dead_outputs, generator):
    x = tall(generator)
    samples = sampled(Curved(generator, x), x)
    F, J = samples.outputs.clone(), samples.jacobians.clone()
    F[:, :dead_outputs], J[:, :dead_outputs] = 4.0, 0.0
    reduction = PerOutput().choose(x, F, J)
    scales = reduction.output_up.diagonal()
    assert (scales > 0).all()
    assert scales[0] == scales.max()
    assert torch.equal(reduction.outputs(F)[:, 0], torch.zeros(len(x), dtype=torch.float64))


def test_scaling_outputs_apart_needs_jacobians(generator):
    x, y = tall(generator), random(generator, 60, N)
    with pytest.raises(ValueError, match="PerOutput needs Jacobians of some of the samples, got none"):
        PerOutput().choose(x, y)
    with pytest.raises(TypeError, match=r"coordinates must be Standardize\(\) or Whiten\(\), got 3"):
        PerOutput(3)


def uneven(size: float) -> Samples:
    """A map of which the first output has any size, the second has size one."""
    x = torch.rand(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        first = size * (torch.cos(4 * torch.pi * x[0]) + x[1] ** 2)
        return torch.stack([first, x[0] ** 3 - torch.sin(3 * torch.pi * x[1])])

    return sample(f, x)


def small_output_error(samples: Samples, coordinates) -> float:
    """The relative error of the second output of a layer of four nodes."""
    solver = MultiStart(Chain((ConstrainedALS(10), GaussNewton(30))), 2)
    solution = decouple(Problem(samples, 4, BSpline(12), coordinates=coordinates, held_out=0), solver)
    F = samples.outputs[:, 1]
    left = F - solution.factors.outputs(samples.inputs)[:, 1]
    return (left.norm() / (F - F.mean()).norm()).item()


def test_small_outputs_are_not_lost_beside_large_ones():
    """Scaled apart, the small output is found as well beside one of size 10,000 as beside one of size 1."""
    alike, large = uneven(1.0), uneven(1e4)
    expected = small_output_error(alike, PerOutput())
    assert expected < 0.01
    assert small_output_error(large, PerOutput()) == pytest.approx(expected, rel=1e-3)
    assert small_output_error(large, Standardize()) > 0.5


# ---- the exact way back ----


@data
@every_rule
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("active", [False, True])
def test_an_expanded_layer_is_the_same_layer(inputs, coordinates, factored, active, generator):
    x = inputs(generator).double()
    f = Curved(generator, x)
    samples = sampled(f, x)
    reduction = coordinates.choose(x, samples.outputs, samples.jacobians)
    reduced = samples.reduced(reduction)
    if active:
        reduced, reduction = to_active_axes(reduced, reduction, 1e-3)
    z = reduced.inputs
    small = layer(generator, z.shape[1], N, factored)
    large = reduction.expand(small)
    assert list(map(len, large.maps)) == list(map(len, small.maps))
    assert large.V.shape == (x.shape[1], 4)
    # Outputs: y = P^T (f - nu), so f = nu + Q y.
    expected = reduction.output_mean + small.outputs(z) @ reduction.output_up.mT
    torch.testing.assert_close(large.outputs(x), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(reduction.outputs(large.outputs(x)), small.outputs(z), rtol=1e-7, atol=1e-7)
    # Jacobians, along the directions that the data reach.
    J = reduction.jacobians(large.jacobians(x))
    torch.testing.assert_close(J, small.jacobians(z), rtol=1e-7, atol=1e-7)


@data
@every_rule
def test_reduced_jacobians_are_those_of_the_reduced_map(inputs, coordinates, generator):
    """In z the map is y(z) = P^T (f(mu + U z) - nu); exact wherever x = mu + U z."""
    x = inputs(generator).double()
    f = Curved(generator, x)
    reduction = coordinates.choose(x, f(x), vmap(jacrev(f))(x))

    def reduced_map(z: Tensor) -> Tensor:
        return reduction.outputs(f(reduction.mean + reduction.up @ z))

    z = reduction.inputs(x)
    reached = reduction.mean + z @ reduction.up.mT
    J = reduction.jacobians(vmap(jacrev(f))(reached))
    torch.testing.assert_close(J, vmap(jacrev(reduced_map))(z))
    torch.testing.assert_close(reduction.inputs(reached), z, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("inputs", [tall, wide, collinear, dead], ids=lambda one: one.__name__)
@pytest.mark.parametrize("coordinates", [Standardize(), Whiten(1e-9)], ids=repr)
def test_the_samples_are_reached(inputs, coordinates, generator):
    x = inputs(generator)
    reduction = coordinates.choose(x, random(generator, len(x), N))
    torch.testing.assert_close(reduction.mean + reduction.inputs(x) @ reduction.up.mT, x)


# ---- invariance ----


@pytest.mark.parametrize("inputs", [tall, dead, badly_scaled], ids=lambda one: one.__name__)
def test_standardized_inputs_do_not_know_scale_and_origin(inputs, generator):
    x, y = inputs(generator), random(generator, 60, N)
    scale, origin = random(generator, x.shape[1]).exp(), random(generator, x.shape[1])
    z = Standardize().choose(x, y).inputs(x)
    moved = x * scale + origin
    torch.testing.assert_close(Standardize().choose(moved, y).inputs(moved), z, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("inputs", [tall, wide, collinear], ids=lambda one: one.__name__)
def test_whitened_inputs_do_not_know_rotation_scale_and_origin(inputs, generator):
    x = inputs(generator)
    y, m = random(generator, len(x), N), x.shape[1]
    rotation = torch.linalg.qr(random(generator, m, m))[0]
    z = Whiten().choose(x, y).inputs(x)
    moved = 30 * x @ rotation + random(generator, m)
    again = Whiten().choose(moved, y).inputs(moved)
    torch.testing.assert_close(again @ again.mT, z @ z.mT, rtol=1e-7, atol=1e-7)  # the axes have free signs


def test_reducing_leaves_the_samples_alone(generator):
    x = single_precision(generator)
    f = Curved(generator, x)
    samples = sampled(f, x)
    before = [one.clone() for one in (samples.inputs, samples.outputs, samples.jacobians)]
    reduction = Whiten().choose(samples.inputs, samples.outputs)
    to_active_axes(samples.reduced(reduction), reduction, 1e-2)
    for one, old in zip((samples.inputs, samples.outputs, samples.jacobians), before, strict=True):
        assert torch.equal(one, old)


# ---- active axes ----


def energies(J: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of every input and every output in ||J||^2."""
    total = J.square().sum()
    return J.square().sum((0, 1)) / total, J.square().sum((0, 2)) / total


@data
@pytest.mark.parametrize("tolerance", [0.0, 1e-12, 1e-3, 0.1, 0.9])
def test_active_axes_are_ordered_and_drop_at_most_the_tolerance(inputs, tolerance, generator):
    x = inputs(generator).double()
    samples = sampled(Curved(generator, x), x)
    reduction = Whiten().choose(x, samples.outputs)
    reduced = samples.reduced(reduction)
    rotated, turned = to_active_axes(reduced, reduction, tolerance)
    outer = reduction.output_up.mT @ turned.output_down  # the rotation of the reduced outputs
    along_inputs, _ = energies(rotated.jacobians)
    _, along_outputs = energies(outer.mT @ reduced.jacobians)
    assert (along_inputs.diff() <= 1e-12).all()
    assert (along_outputs.diff() <= 1e-12).all()
    kept = rotated.jacobians.square().sum() / reduced.jacobians.square().sum()
    assert 1 - kept <= tolerance + 1e-12
    # One axis fewer would drop more.
    k = rotated.inputs.shape[1]
    assert k == 1 or 1 - kept + kept * along_inputs[-1] > tolerance - 1e-12
    # Off-diagonal energy is gone: the axes are eigenvectors.
    gram = torch.einsum("snm,snk->mk", rotated.jacobians, rotated.jacobians)
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-9 * gram.max().item())
    # And the rotation is one, recorded in the reduction.
    eye = torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(outer.mT @ outer, eye)
    torch.testing.assert_close(turned.inputs(x), rotated.inputs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned.outputs(samples.outputs), rotated.outputs)
    torch.testing.assert_close(turned.jacobians(samples.jacobians), rotated.jacobians, rtol=1e-7, atol=1e-9)
    assert rotated.reduction is turned


def test_weak_axes_are_told_from_rounding():
    """An input with the share 1e-20 of the energy is kept if no loss is allowed, and dropped from 1e-19 on."""
    J = torch.zeros(10, 2, 3, dtype=torch.float64)
    J[:, 0, 1], J[:, 1, 2] = 1.0, 1e-10
    for tolerance, k in ((1e-26, 2), (1e-21, 2), (1e-19, 1), (1e-3, 1)):
        assert active_axes(J, tolerance)[0].shape == (3, k)


def test_directions_in_which_nothing_happens_are_dropped(generator):
    x = tall(generator)
    f = Curved(generator, x)
    f.A = f.A[:, :2]  # two directions of five
    f.B = f.B[:2]
    samples = sampled(f, x)
    reduction = Standardize().choose(x, samples.outputs)
    rotated, turned = to_active_axes(samples.reduced(reduction), reduction, 1e-14)
    assert rotated.inputs.shape[1] == 2
    back = turned.output_up @ rotated.jacobians @ turned.down.mT
    torch.testing.assert_close(back, samples.jacobians)


# ---- refusals ----


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        (-1e-3, r"tolerance must be a finite number of at least 0, got -0.001"),
        (float("nan"), r"tolerance must be a finite number of at least 0, got nan"),
        ("1e-3", r"tolerance must be a finite number of at least 0, got '1e-3'"),
        (1.0, r"tolerance must be a share below 1, got 1.0: no direction would be left"),
    ],
)
def test_bad_tolerances_are_refused(tolerance, message):
    with pytest.raises(ValueError, match=message):
        Whiten(tolerance)


@pytest.mark.parametrize("coordinates", [Standardize(), Whiten(), Whiten(0.0)], ids=repr)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e5])
def test_inputs_that_never_change_are_refused(coordinates, value, generator):
    with pytest.raises(ValueError, match="all inputs are the same: expected samples that vary; pass different inputs"):
        coordinates.choose(torch.full((17, 4), value), random(generator, 17, N))


def test_reductions_are_frozen(generator):
    reduction = Standardize().choose(tall(generator), random(generator, 60, N))
    with pytest.raises(dataclasses.FrozenInstanceError):
        reduction.mean = reduction.mean + 1


def test_a_layer_that_is_linear_stays_linear(generator):
    """A check against a closed form: f(x) = A x + b is the layer with V = A^T, W = I, g = t."""
    A, b = random(generator, N, 5), random(generator, N)
    x = tall(generator)
    reduction = Whiten().choose(x, x @ A.mT + b)
    V = reduction.up.mT @ A.mT @ reduction.output_down
    eye, zero = torch.eye(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    small = planted_layer(V, eye, torch.ones(N, 1, dtype=torch.float64), zero, zero, Monomial(1))
    large = reduction.expand(small)
    torch.testing.assert_close(large.W @ large.V.mT, A)
    torch.testing.assert_close(large.outputs(x), x @ A.mT + b)


@pytest.mark.parametrize("chunk", [1, 20, 2**22])
@pytest.mark.parametrize("tolerance", [1e-14, 0.2, 0.9])
def test_samples_are_rotated_in_their_own_memory(tolerance, chunk, generator, monkeypatch):
    x = tall(generator)
    samples = sampled(Curved(generator, x), x)
    reduction = Whiten().choose(x, samples.outputs)
    expected, turned = to_active_axes(samples.reduced(reduction), reduction, tolerance)
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    own = samples.reduced(reduction)
    rotated, again = to_active_axes_(own, reduction, tolerance)
    back = again.output_up @ rotated.jacobians @ again.down.mT
    before = turned.output_up @ expected.jacobians @ turned.down.mT
    torch.testing.assert_close(back, before)  # the axes have free signs
    m, k = own.inputs.shape[1], rotated.inputs.shape[1]
    assert (rotated.jacobians.data_ptr() == own.jacobians.data_ptr()) == (2 * k >= m)
    assert rotated.jacobians.untyped_storage().nbytes() <= 2 * rotated.jacobians.nbytes


@pytest.mark.parametrize("unit", [1e-30, 1e-13, 1.0, 1e30])
def test_no_input_is_constant_because_of_the_units_of_others(unit, generator):
    """A layer in units of picofarads beside others is the same layer."""
    x = 2 * torch.rand(60, 2, dtype=torch.float64, generator=generator) - 1
    units = torch.tensor([1.0, unit], dtype=torch.float64)
    down = Standardize().choose(x * units, x, None).down
    torch.testing.assert_close(down * units[:, None], Standardize().choose(x, x, None).down, rtol=1e-9, atol=0)
