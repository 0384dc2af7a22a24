"""Jacobians of maps and of blocks against torch.func."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from planted import random
from torch import Tensor, nn
from torch.func import jacrev, vmap

import tenflex
from tenflex.coordinates.sensitivity import Sensitivity
from tenflex.coordinates.standardize import Standardize
from tenflex.coordinates.whiten import Whiten
from tenflex.sampling import jacobian
from tenflex.sampling.gradient_check import derivative_error
from tenflex.sampling.jacobian import (
    forward_jacobians,
    over_points,
    reverse_jacobians,
    sample,
    sample_block,
    some_jacobians,
)
from tenflex.sampling.views import products
from tenflex.solvers import ConstrainedALS
from tenflex.split import groups_of_rows, split_samples

# torch itself scripts functions when forward mode is used for the first time.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

S = 11


def few_to_many(x: Tensor) -> Tensor:
    return torch.cat([x.sin(), x.prod(0, keepdim=True), x.exp(), x**3])


def many_to_few(x: Tensor) -> Tensor:
    return torch.stack([x.prod(), (x**2).sum()])


def square(x: Tensor) -> Tensor:
    return x.flip(0) * x.cos()


def scalar(x: Tensor) -> Tensor:
    return x.sin().prod()


def table(x: Tensor) -> Tensor:
    return torch.outer(x, x.exp())


def one_output(x: Tensor) -> Tensor:
    return (x @ x)[None]


MAPS = [few_to_many, many_to_few, square, scalar, table, one_output]
maps = pytest.mark.parametrize("f", MAPS, ids=lambda one: one.__name__)


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def points(request, generator) -> Tensor:
    return torch.rand(S, 4, generator=generator, dtype=torch.float64).to(request.param) + 0.2


def network(m: int, n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(m, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, n)).double().eval()


# ---- sample ----


@maps
def test_samples_of_functions_are_those_of_torch(f, points):
    samples = sample(f, points)
    torch.testing.assert_close(samples.inputs, points, rtol=0, atol=0)
    torch.testing.assert_close(samples.outputs, vmap(f)(points).reshape(S, -1))
    torch.testing.assert_close(samples.jacobians, vmap(jacrev(f))(points).reshape(S, -1, 4))
    assert samples.jacobians.dtype == points.dtype
    assert not samples.outputs.requires_grad
    assert not samples.jacobians.requires_grad


@pytest.mark.parametrize("n", [2, 4, 9])
def test_samples_of_modules_are_those_of_torch(n, generator):
    model = network(4, n)
    points = torch.randn(S, 4, generator=generator, dtype=torch.float64)
    samples = sample(model, points)
    torch.testing.assert_close(samples.outputs, model(points).detach())
    torch.testing.assert_close(samples.jacobians, vmap(jacrev(model))(points).detach())
    assert not samples.jacobians.requires_grad  # or the graph of every chunk would be kept
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modules_with_one_number_for_an_output(generator):
    class Energy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(1)

    points = torch.randn(S, 4, generator=generator)
    torch.testing.assert_close(sample(Energy().eval(), points).jacobians, 2 * points[:, None])


@maps
def test_reverse_and_forward_mode_agree(f, points):
    n = vmap(f)(points).reshape(S, -1).shape[1]
    torch.testing.assert_close(
        reverse_jacobians(over_points(f), points, n), forward_jacobians(over_points(f), points, n)
    )


def test_the_cheaper_mode_is_taken(monkeypatch, points):
    taken = []
    for mode in ("forward_jacobians", "reverse_jacobians"):
        original = getattr(jacobian, mode)
        monkeypatch.setattr(
            jacobian, mode, lambda *args, mode=mode, original=original: (taken.append(mode), original(*args))[1]
        )
    for f in (few_to_many, many_to_few, square):
        sample(f, points)
    assert taken == ["forward_jacobians", "reverse_jacobians", "reverse_jacobians"]


@maps
@pytest.mark.parametrize("chunk", [1, 40, 97, 2**24])
def test_chunks_change_nothing(f, points, chunk, monkeypatch):
    whole = sample(f, points).jacobians
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    torch.testing.assert_close(sample(f, points).jacobians, whole)


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_functions_that_branch_on_the_data(points, chunk, monkeypatch):
    """Torch cannot vectorize them: they are taken a point at a time."""

    def few(x: Tensor) -> Tensor:
        return torch.stack([x.sum() ** 2 if x[0] > 0.6 else x.prod(), x[1]])

    def many(x: Tensor) -> Tensor:
        return torch.cat([x**2, x.sin()]) if x[1].item() > 0.6 else torch.cat([x, x.cos()])

    assert 0 < (points[:, :2] > 0.6).sum() < 2 * S
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    for f in (few, many):
        samples = sample(f, points)
        torch.testing.assert_close(samples.jacobians, torch.stack([jacrev(f)(x) for x in points]))
        torch.testing.assert_close(samples.outputs, torch.stack([f(x) for x in points]))


class Reciprocal(torch.autograd.Function):
    """An operation without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 1 / x

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return -slope / x**2


def test_operations_without_a_forward_derivative_are_taken_in_reverse(points):
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Reciprocal.apply(torch.cat([x, x + 1], 1))

    expected = torch.cat([torch.diag_embed(-1 / points**2), torch.diag_embed(-1 / (points + 1) ** 2)], 1)
    torch.testing.assert_close(sample(Model().eval(), points).jacobians, expected)


@maps
def test_inference_mode_is_no_obstacle(f, points):
    expected = sample(f, points).jacobians
    with torch.inference_mode():
        collected = points.clone()
        inside = sample(f, collected)
    torch.testing.assert_close(inside.jacobians, expected)
    torch.testing.assert_close(sample(f, collected).jacobians, expected)


def test_points_that_require_gradients_are_left_alone(points):
    points = points.requires_grad_()
    samples = sample(square, points)
    assert not samples.inputs.requires_grad
    assert points.grad is None
    assert points.requires_grad


def test_samples_draw_no_random_numbers(points, unchanged_rng):
    with unchanged_rng():
        sample(square, points)


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (3, TypeError, r"f must be a function or a module, got int"),
        (lambda x: [x[0], x[1]], TypeError, r"f must return a tensor, got list: make it of x with torch.stack"),
        (
            lambda x: torch.from_numpy(np.sin(x.numpy())),
            ValueError,
            r"f must be made of operations of torch.* but it uses NumPy.*sample_table",
        ),
        (lambda x: x.numpy(), TypeError, r"f must return a tensor, got ndarray"),
        (lambda x: x[0].item(), TypeError, r"f must return a tensor, got float"),
        (lambda x: torch.ones(2), ValueError, r"do not depend on its inputs by operations that torch can diff"),
        (lambda x: torch.ones(9), ValueError, r"do not depend on its inputs by operations that torch can diff"),
        (lambda x: torch.sign(x.detach()), ValueError, r"do not depend on its inputs"),
        (lambda x: torch.tensor([x[0].item()] * 6), ValueError, r"do not depend on its inputs"),
        (lambda x: (x - 1).log(), ValueError, r"the outputs of f must be finite, but 44 of 44 numbers are NaN"),
        (lambda x: (0 * x).sqrt(), ValueError, r"the Jacobians of samples 0 to 10 must be finite, but .* \[0, 0, 0\]"),
        (lambda x: x * torch.rand(4), ValueError, r"same output for the same input, but two runs differ"),
        (nn.Dropout(), ValueError, r"f must be in eval mode, but 1 of its modules are in train mode.*call .eval\(\)"),
        (nn.Sequential(nn.Flatten(0)).eval(), ValueError, r"one output for each of 11 samples, got \(44,\)"),
    ],
)
def test_functions_that_cannot_be_sampled_are_refused(f, error, message, generator):
    points = torch.rand(S, 4, generator=generator, dtype=torch.float64)
    with pytest.raises(error, match=message):
        sample(f, points)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda x: x.tolist(), TypeError, r"points must be a torch.Tensor, got list"),
        (lambda x: x.long(), TypeError, r"points must be real floating-point numbers, got torch.int64"),
        (lambda x: x[0], ValueError, r"points must have the shape \(S, m\), got \(4,\)"),
        (lambda x: x[None], ValueError, r"points must have the shape \(S, m\), got \(1, 11, 4\)"),
        (lambda x: x[:0], ValueError, r"points must have the shape \(S, m\), got \(0, 4\)"),
        (lambda x: x[:1], ValueError, r"at least 2 samples are needed, got 1"),
        (lambda x: x.index_fill(0, torch.tensor([2]), torch.inf), ValueError, r"points must be finite, .* \[2, 0\]"),
    ],
)
def test_bad_points_are_refused(spoil, error, message, points):
    with pytest.raises(error, match=message):
        sample(square, spoil(points))


# ---- sample_block ----


class Block(nn.Module):
    """A block of 30 inputs, in an image, of which the map sees three directions only."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.end = nn.Linear(30, 3), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.look(x.flatten(1)).tanh()).view(-1, 2, 3)


@pytest.fixture
def block() -> nn.Module:
    return Block().double().eval()


@pytest.fixture
def images(generator) -> Tensor:
    return torch.randn(200, 5, 6, generator=generator, dtype=torch.float64)


def in_order(x: Tensor) -> Tensor:
    """The samples that are fitted first, those for validation and for the test last."""
    return x[torch.cat(split_samples(groups_of_rows((x,))))]


def back(samples) -> Tensor:
    """The Jacobians in the original coordinates, on the directions that were kept."""
    reduction = samples.reduction
    return reduction.output_up @ samples.jacobians @ reduction.down.mT


@pytest.mark.parametrize("coordinates", [None, Standardize(), Whiten(1e-6)], ids=repr)
def test_a_block_is_sampled_in_reduced_coordinates(block, images, coordinates):
    y = block(images).detach()
    samples = sample_block(block, images, y, coordinates=coordinates)
    images, y = in_order(images), block(in_order(images)).detach()
    J = vmap(jacrev(lambda x: block(x[None])[0].flatten()))(images).flatten(2).detach()
    reduction = samples.reduction
    assert samples.jacobians.shape == (200, 6, 3)  # the rest of 30 directions is not active
    torch.testing.assert_close(samples.jacobians, reduction.jacobians(J))
    torch.testing.assert_close(back(samples), J, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(samples.inputs, reduction.inputs(images.flatten(1)))
    torch.testing.assert_close(samples.outputs, reduction.outputs(y.flatten(1)))
    assert not samples.jacobians.requires_grad


def test_the_target_may_be_another_than_the_blocks_own_output(block, images):
    other = block(images).detach() + images.mean((1, 2), keepdim=True)
    samples = sample_block(block, images, other)
    other = block(in_order(images)).detach() + in_order(images).mean((1, 2), keepdim=True)
    torch.testing.assert_close(samples.outputs, samples.reduction.outputs(other.flatten(1)))


@pytest.mark.parametrize("lost", [0.0, 1e-3, 0.2, 0.99])
def test_no_more_energy_is_lost_than_allowed(block, images, lost):
    y = block(images).detach()
    whole = sample_block(block, images, y, lost_energy=0.0).jacobians.square().sum()
    kept = sample_block(block, images, y, lost_energy=lost).jacobians.square().sum()
    assert 1 - kept / whole <= lost + 1e-12
    if lost == 0.99:
        assert sample_block(block, images, y, lost_energy=lost).inputs.shape[1] == 1


def test_what_does_not_fit_is_streamed_to_the_same_numbers(block, images):
    """200 samples of 6 x 30 numbers take 288,000 bytes and half as much for solving; three active directions 43,200."""
    y = block(images).detach()
    direct = sample_block(block, images, y, coordinates=Whiten(), lost_energy=1e-12)
    streamed = sample_block(block, images, y, coordinates=Whiten(), lost_energy=1e-12, most_memory=200_000)
    torch.testing.assert_close(streamed.jacobians.abs(), direct.jacobians.abs())  # the axes have free signs
    torch.testing.assert_close(streamed.inputs.abs(), direct.inputs.abs())
    torch.testing.assert_close(back(streamed), back(direct))


@pytest.mark.parametrize("chunk", [1, 400, 2**24])
def test_chunks_of_a_block_change_nothing(block, images, chunk, monkeypatch):
    y = block(images).detach()
    whole = sample_block(block, images, y)
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    seen = []
    parts = sample_block(block, images, y, on_chunk=lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(back(parts), back(whole))
    assert seen[-1] == (200, 200)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[0] == (0, 200)  # before the first
    assert (len(seen) == 2) == (chunk == 2**24)


class Wide(nn.Module):
    """All of its 30 inputs are active, in every sample."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sin()


def test_a_block_that_does_not_fit_is_refused_with_the_number_that_does(images):
    y = Wide()(images)
    most_memory = 12 * 30 * 30 * 150 * 4 // 3
    with pytest.raises(ValueError, match=r"200 samples, 30 outputs and \d+ active .* take .*at most samples=\d+"):
        sample_block(Wide(), images, y, most_memory=most_memory)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its message is read below
        sample_block(Wide(), images, y, most_memory=most_memory)
    fitting = int(re.search(r"samples=(\d+)", str(caught.value)).group(1))
    assert fitting >= 150
    samples = sample_block(Wide(), images[:fitting], y[:fitting], most_memory=most_memory)
    assert 1.5 * samples.jacobians.nbytes <= most_memory


def never(x: Tensor) -> Tensor:
    raise AssertionError("it was called")


@pytest.mark.parametrize(
    ("most_memory", "message"),
    [
        (100_000, r"200 samples, 6 outputs and 1 active inputs \(of 30\) take .* KiB at the peak, .* samples=104, or"),
        (5_000, r"more than the 4.9 KiB that are allowed: allow more memory$"),
        (-1, r"more than the -1 bytes that are allowed: allow more memory$"),
    ],
)
def test_what_cannot_fit_is_refused_before_any_work(images, most_memory, message):
    with pytest.raises(ValueError, match=message):
        sample_block(never, images, torch.rand(200, 6), most_memory=most_memory)


@pytest.mark.parametrize("coordinates", [Whiten(), Sensitivity()], ids=repr)
def test_axes_of_large_blocks_are_found_on_some_samples(block, images, coordinates, monkeypatch):
    y = block(images).detach()
    direct = sample_block(block, images, y, coordinates=coordinates)
    monkeypatch.setattr("tenflex.sampling.memory.ROOM", 10_000)
    monkeypatch.setattr("tenflex.sampling.jacobian.MOST_TOLD", 40)
    seen = []
    streamed = sample_block(block, images, y, coordinates=coordinates, on_chunk=lambda *one: seen.append(one))
    assert len(seen) > 1
    torch.testing.assert_close(back(streamed), back(direct), rtol=1e-2, atol=1e-3)


def test_so_many_jacobians_tell_of_the_inputs_as_fit(block, images):
    assert len(some_jacobians(block, images, 6)) == 200
    few = some_jacobians(block, images, 6, most_memory=60_000)
    assert 2 <= len(few) <= 60_000 // few[0].nbytes // 4


@pytest.mark.parametrize(
    ("order", "most_memory", "message"),
    [
        (
            1,
            700,
            r"the Jacobians of 11 samples, 2 outputs and 4 inputs take 879 bytes at the peak, .* at most 8 points",
        ),
        (2, 3000, r"the Jacobians and Hessians of 11 samples, .*: pass at most 7 points, or more most_memory"),
        (1, 50, r"the Jacobians of 11 samples, 1 outputs and 4 inputs take .*=50 bytes: pass more most_memory"),
        (1, 0, r"most_memory must be a whole number of at least 1, got 0"),
        (1, "4 GiB", r"most_memory must be a whole number of at least 1, got '4 GiB'"),
    ],
)
def test_samples_that_do_not_fit_are_refused(generator, order, most_memory, message, monkeypatch):
    points = torch.rand(S, 4, generator=generator, dtype=torch.float64)
    fits = sample(many_to_few, points[:2], order=order)
    for name in ("jacobian_chunks", "chunk_hessians"):
        monkeypatch.setattr(jacobian, name, never)
    with pytest.raises(ValueError, match=message):
        sample(many_to_few, points, order=order, most_memory=most_memory)
    assert fits.jacobians.shape == (2, 2, 4)


def test_forward_mode_serves_blocks_too(generator):
    """More outputs than inputs."""
    model = network(3, 20)
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    samples = sample_block(model, x, model(x).detach())
    torch.testing.assert_close(back(samples), vmap(jacrev(model))(in_order(x)).detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lost_energy": -1.0}, r"lost_energy must be a finite number of at least 0, got -1.0"),
        ({"lost_energy": 1.0}, r"lost_energy must be a share below 1, got 1.0"),
        ({"inputs": torch.ones(200, 5, 6)}, r"all inputs are the same"),
        ({"outputs": torch.full((200, 6), torch.nan)}, r"outputs must be finite"),
    ],
)
def test_blocks_that_cannot_be_sampled_are_refused(block, images, change, message):
    settings = {"f": block, "inputs": images, "outputs": block(images).detach(), **change}
    with pytest.raises(ValueError, match=message):
        sample_block(**settings)


def test_jacobians_of_a_block_that_are_not_finite_are_refused(images):
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2].clamp(min=0).sqrt()

    with pytest.raises(ValueError, match=r"the Jacobians of samples 0 to 169 must be finite"):
        sample_block(Root(), images.round(), Root()(images.round()))


class Bessel(nn.Module):
    """Its function has no derivative in PyTorch, which gives an output without a graph."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


class Gamma(nn.Module):
    """Its function has no derivative in PyTorch, which says so when it is asked for."""

    def forward(self, x):
        return torch.igamma(x.abs() + 1, torch.ones_like(x))


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(("kind", "message"), [(Bessel, "do not depend on its inputs"), (Gamma, "cannot be different")])
def test_operations_without_a_derivative_are_refused_whether_parameters_are_free_or_not(free, kind, message, generator):
    x = random(generator, 4, 3).float()
    f = nn.Sequential(kind(), nn.Linear(3, 2)).requires_grad_(free)
    for ask in (lambda: reverse_jacobians(f, x, 2), lambda: products(f, x, torch.ones(1, 2))):
        with pytest.raises(ValueError, match=message):
            ask()
    two = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), f)
    with pytest.raises(ValueError, match=f"^block '2:4': .*{message}"):
        tenflex.compress(two.eval(), random(generator, 40, 3).float(), {"2:4": tenflex.Block(1)})


def test_an_operation_without_a_derivative_is_no_obstacle_elsewhere(generator):
    model = nn.Sequential(nn.Linear(6, 20), Gamma(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3))
    x = random(generator, 200, 6).float()
    measured = {one.name: one.measured for one in tenflex.inspect(model.eval(), x).candidates}
    assert measured["2:4"] is not None
    result = tenflex.compress(model, x, budget="70%")
    assert result.plan.blocks


def test_one_output_may_depend_on_nothing(points):
    class Half(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0] ** 2, torch.ones(len(x), dtype=x.dtype)], 1)

    found = reverse_jacobians(Half(), points, 2)
    assert torch.equal(found[:, 0, 0], 2 * points[:, 0])
    assert not found[:, 1].any()


class Detached(nn.Module):
    """The same numbers, with a share of the gradient."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.first, self.last, self.share = nn.Linear(6, 20), nn.Linear(20, 2), share

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(self.share * h + (1 - self.share) * h.detach())


@pytest.mark.parametrize("share", [-1.0, 0.1, 0.3])
def test_derivatives_that_are_not_the_functions_are_told(share, generator):
    model, x = Detached(share).eval(), random(generator, 60, 6).float()
    assert derivative_error(model, x, 2) == pytest.approx(1 - share, abs=0.03)
    told = "block '': the derivatives that PyTorch gives differ from what the block computes by"
    with pytest.warns(UserWarning, match=told):
        tenflex.compress(model, x, {"": tenflex.Block(1)}, solver=ConstrainedALS(1))


@pytest.mark.parametrize("function", [nn.ReLU(), nn.Tanh(), nn.Hardtanh(), nn.Identity()], ids=repr)
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_derivatives_of_functions_are_theirs(function, offset, unit, generator):
    """Where outputs are so far from zero that rounding hides small steps nothing is told."""
    model = nn.Sequential(nn.Linear(6, 20), function, nn.Linear(20, 3)).eval()
    with torch.no_grad():
        model[0].weight /= unit
        model[2].bias += offset
    assert derivative_error(model, unit * random(generator, 60, 6).float(), 3) < 0.2
    assert derivative_error(model.bfloat16(), unit * random(generator, 60, 6).bfloat16(), 3) == 0


@pytest.mark.parametrize(
    "steep", [lambda x: (300 * x).sin(), lambda x: (1e4 * x).tanh(), lambda x: (50 * x).softmax(1)]
)
def test_steep_functions_are_looked_at_in_small_steps(steep, generator):
    class Steep(nn.Module):
        def forward(self, x):
            return steep(x)

    assert derivative_error(Steep(), random(generator, 60, 6).float(), 6) < 0.5


def test_a_block_that_cannot_be_run_between_samples_is_not_looked_at(generator):
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 2)

        def forward(self, x):
            return self.table(x[:, 0].ceil().long() * (1 if bool((x[:, 0] == x[:, 0].round()).all()) else 5)) + x[:, 1:]

    x = torch.cat([torch.tensor([0.0, 1.0, 2.0]).repeat(20)[:, None], random(generator, 60, 2).float()], 1)
    assert derivative_error(Looked(), x, 2) == 0
