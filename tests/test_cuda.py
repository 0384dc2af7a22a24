"""On a graphics card: what runs on a processor runs there too, stays there, and gives the same within rounding."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from planted import Planted, direction_error, output_error, placed, seeded
from test_layered import layers, samples_of
from test_nn import BASES, M, layer_of
from test_own_channels import residuals, small
from test_solvers import CASES, SOLVERS
from torch import Tensor, nn

import tenflex
from tenflex import Block, LowRank, Monomial, Problem, compress, decouple
from tenflex.bases import BSpline, Chebyshev, Hinge, Monotone, Smooth
from tenflex.coordinates import Downstream, Fisher, PerOutput, Sensitivity, Standardize, Whiten
from tenflex.demo.digits import Digits
from tenflex.demo.networks import LeNet300
from tenflex.export.verb import export
from tenflex.factors import Activations, Factors
from tenflex.identify import identify
from tenflex.kept import Own
from tenflex.modes import Cosine, Tucker
from tenflex.nn.fold import fold_layer
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    HessianCPD,
    LayeredALS,
    ProjectedLayeredALS,
    Refine,
    SketchedNewton,
    WeightedCPD,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no graphics card here")

CARD = torch.device("cuda")
ONE_WAY = Chain((ConstrainedALS(5), Refine(40)))
"""From a start that is not drawn."""

QUICK = {"basis": Monomial(3), "solver": Chain((ConstrainedALS(3), Refine(15)))}


@pytest.fixture(autouse=True)
def precise() -> Iterator[None]:
    """Convolutions in single precision, as processors compute them, and not in the ten bits of TF32."""
    one = torch.ones(2, 2, device=CARD, requires_grad=True)
    (one @ one).sum().backward()  # else the first backward pass of a process warns that it has no context
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def there(samples: tenflex.Samples) -> tenflex.Samples:
    """The same samples on the card."""
    return tenflex.Samples(*(one.to(CARD) for one in (samples.inputs, samples.outputs, samples.jacobians)))


def back(factors: Factors) -> Factors:
    """The same factors, from the card."""
    assert {one.device.type for one in factors.tensors()} == {"cuda"}
    maps = tuple(tuple(one.cpu() for one in each) for each in factors.maps)
    parts = tuple(Activations(one.coefficients.cpu(), one.shift.cpu(), one.basis) for one in factors.activations)
    return Factors(maps, parts, factors.bias.cpu())


def on_card(model: nn.Module) -> bool:
    """Whether all of a network is there."""
    return {one.device.type for one in (*model.parameters(), *model.buffers())} == {"cuda"}


def both(model: nn.Module, inputs: Tensor, *args, **settings) -> tuple[tenflex.Compression, tenflex.Compression]:
    """A compression on the processor and one on the card."""
    here = compress(model, inputs, *args, **settings)
    other = compress(copy.deepcopy(model).to(CARD), inputs.to(CARD), *args, **settings)
    assert on_card(other.model)
    return here, other


def alike(here: tenflex.Compression, other: tenflex.Compression, within: float = 0.05) -> None:
    """The same sizes, and errors that differ by what rounding makes of the way of an optimizer.

    The axes of the coordinates may have other signs there, so that random starts are others and another one may be the
    best; from one start that is computed the differences are small.
    """
    assert here.report.after.parameters == other.report.after.parameters
    for one, two in zip(here.report.blocks, other.report.blocks, strict=True):
        assert two.output_error == pytest.approx(one.output_error, rel=within, abs=1e-6)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        maps = nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 20), nn.GELU(), nn.Linear(20, 5)
        return nn.Sequential(*maps).eval()


def rows(count: int = 300, seed: int = 0) -> Tensor:
    return torch.randn(count, 12, generator=seeded(seed))


# ---- solvers ----


def found_there(planted: Planted, problem: Problem, solver) -> None:
    """A planted layer is found there, up to order and scale."""
    solution = decouple(problem, solver)
    found = back(solution.factors)
    assert output_error(found, planted.factors, planted.inputs) < 1e-8
    if len(found.ranks) == 1 and found.ranks[0] <= 4:
        assert direction_error(found, planted.factors) < 1e-7


@pytest.mark.parametrize("name", SOLVERS)
def test_planted_layers_are_found(name: str) -> None:
    solver, cases = SOLVERS[name]
    planted = CASES[tuple(cases)[-1]]
    form = {"factor": planted.problem().factor, "output_factor": planted.problem().output_factor}
    samples = there(planted.problem().samples)
    rank = planted.factors.ranks[0]
    found_there(planted, Problem(samples, rank, planted.factors.activations[0].basis, **form), solver)


@pytest.mark.parametrize("basis", [Monomial(3), BSpline(5), Chebyshev(4), Hinge(4)], ids=repr)
def test_planted_layers_of_every_basis(basis) -> None:
    planted = placed(basis)
    problem = Problem(there(planted.problem().samples), 2, basis, held_out=0)
    assert decouple(problem).output_error < 1e-6


@pytest.mark.parametrize("basis", [Smooth(BSpline(8)), Monotone(BSpline(6))], ids=repr)
def test_constraints_and_smoothing(basis) -> None:
    exact = placed(BSpline(6), count=60).problem().samples
    noise = 0.05 * exact.outputs.std() * torch.randn(exact.outputs.shape, generator=seeded(1), dtype=torch.float64)
    samples = tenflex.Samples(exact.inputs, exact.outputs + noise, exact.jacobians)
    here, other = (decouple(Problem(one, 2, basis)) for one in (samples, there(samples)))
    assert other.output_error == pytest.approx(here.output_error, rel=0.05, abs=1e-6)


def test_second_derivatives_and_weights() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.stack([(x[0] + x[1]) ** 3, (x[0] - x[1]) ** 2])

    x = torch.rand(60, 2, generator=seeded(0), dtype=torch.float64).to(CARD)
    second = tenflex.sample(f, x, order=2)
    assert decouple(Problem(second, 2, Monomial(3)), HessianCPD()).output_error < 1e-6
    assert decouple(Problem(tenflex.sample(f, x), 2, Monomial(3)), WeightedCPD()).output_error < 1e-6


@pytest.mark.parametrize(
    "solver", [BestSoFar(LayeredALS(20)), BestSoFar(ProjectedLayeredALS(20))], ids=lambda one: type(one.solver).__name__
)
def test_several_layers(solver) -> None:
    samples = samples_of(layers(ranks=(3, 2)))
    here, other = (decouple(Problem(one, (3, 2), Monomial(3)), solver) for one in (samples, there(samples)))
    back(other.factors)
    assert other.output_error == pytest.approx(here.output_error, rel=0.2, abs=1e-3)


def test_products_of_subsampled_steps() -> None:
    planted = CASES["three nodes"]
    solver = Chain((ConstrainedALS(20), SketchedNewton(30)))
    here = decouple(planted.problem(), solver)
    other = decouple(Problem(there(planted.problem().samples), 3, Monomial(3)), solver)
    assert other.output_error == pytest.approx(here.output_error, rel=0.2, abs=1e-3)


def test_what_is_unique_and_which_rank() -> None:
    planted = CASES["three nodes"]
    samples = there(planted.problem().samples)
    path = tenflex.choose_rank(Problem(samples, 3, Monomial(3)))
    assert path.rank == 3
    here = identify(planted.factors, planted.inputs)
    other = identify(decouple(Problem(samples, 3, Monomial(3))))
    assert str(other).splitlines()[0] == str(here).splitlines()[0]


# ---- compression ----


@pytest.mark.parametrize("views", [None, 1, 0])
def test_the_default_recipe(views: int | None) -> None:
    alike(*both(network(), rows(), {"0:3": Block(6, factor=5)}, views=views))


@pytest.mark.parametrize(
    "settings",
    [
        {"coordinates": Whiten()},
        {"coordinates": Standardize()},
        {"coordinates": PerOutput()},
        {"coordinates": Sensitivity(1.0)},
        {"metric": Fisher()},
        {"metric": Downstream()},
        {},
        {"basis": Monomial(4)},
    ],
    ids=str,
)
def test_settings(settings: dict) -> None:
    alike(*both(network(), rows(), {"0:3": Block(6, factor=5)}, solver=ONE_WAY, **settings), within=0.01)


@pytest.mark.parametrize(
    "block",
    [
        Block((6, 4), start="cpd"),
        Block(6, output_factor=3),
        Block(6, start="cpd"),
        LowRank(3),
    ],
    ids=repr,
)
def test_blocks(block: Block | LowRank) -> None:
    name = "0" if isinstance(block, LowRank) else "0:3"
    alike(*both(network(), rows(), {name: block}), within=0.15)


@pytest.mark.parametrize("block", [Block(8, basis=Own()), Block(8, basis=Own(refine=False)), Block(8, start="kept")])
def test_own_nodes(block: Block) -> None:
    alike(*both(network(), rows(), {"0:2": block}), within=0.15)


@pytest.mark.parametrize("modes", [Cosine(3, shape=(3, 4)), Tucker((2, 3), shape=(3, 4))], ids=repr)
def test_modes(modes) -> None:
    alike(*both(network(), rows(), {"": Block(6, factor=5, modes=modes)}, solver=ONE_WAY), within=0.01)


def convolutions() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        maps = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)
        return nn.Sequential(*maps).eval()


@pytest.mark.parametrize(
    "blocks",
    [
        {"0:2": Block(5)},
        {"0:2": Block(5, factor=4, modes=Cosine((2, 3, 3)))},
        {"0:2": Block(5, basis=Own())},
        {"2": LowRank(3, "cpd")},
        {"2": LowRank((2, 2), "tucker2")},
        {"0:3": Block(6, basis=Monomial(3))},
    ],
    ids=str,
)
def test_convolutions(blocks) -> None:
    images = torch.randn(60, 2, 8, 8, generator=seeded(1))
    alike(*both(convolutions(), images, blocks), within=0.15)


def test_a_budget_chooses_there_too() -> None:
    here, other = both(network(), rows(), budget="50%", **QUICK)
    most = 0.5 * here.report.before.parameters
    assert max(here.report.after.parameters, other.report.after.parameters) <= most
    assert other.evaluate(rows(seed=1).to(CARD)).relative_error < 2 * here.evaluate(rows(seed=1)).relative_error


def test_residual_bodies_by_a_budget() -> None:
    quick = {"basis": Monomial(2), "solver": Chain((ConstrainedALS(2), Refine(5)))}
    found = compress(residuals().to(CARD), small(24).to(CARD), budget="60%", **quick)
    assert on_card(found.model)
    assert found.report.after.parameters <= 0.6 * found.report.before.parameters


@pytest.mark.usefixtures("few_steps")
def test_the_shipped_network(lenet: LeNet300, digits: Digits, tmp_path: Path) -> None:
    """As in the README, with what follows: evaluated, tuned, folded, saved, loaded, exported."""
    model, images = copy.deepcopy(lenet).to(CARD), digits.train_images[:500].to(CARD)
    here = compress(lenet, images.cpu(), {"": Block(10, factor=6)})
    other = compress(model, images, {"": Block(10, factor=6)})
    alike(here, other, within=0.01)
    fresh, labels = digits.test_images.to(CARD), digits.test_labels.to(CARD)
    told, expected = other.evaluate(fresh, labels), here.evaluate(digits.test_images, digits.test_labels)
    assert told.accuracy == pytest.approx(expected.accuracy, abs=0.02)
    tuned = other.finetune(images, steps=20)
    assert on_card(tuned.model)
    folded = other.folded()
    assert on_card(folded)
    torch.testing.assert_close(folded(fresh), other.model(fresh), rtol=1e-3, atol=1e-3)
    other.save(tmp_path / "small")
    for place in (lenet, model):
        loaded = tenflex.load(tmp_path / "small", place)
        device = next(loaded.parameters()).device
        torch.testing.assert_close(loaded(fresh.to(device)).cpu(), other.model(fresh).cpu(), rtol=1e-4, atol=1e-4)
    export(other.model, tmp_path / "small.c", fresh[:20])
    assert (tmp_path / "small.c").exists()


def test_inputs_elsewhere_and_in_files(tmp_path: Path) -> None:
    """Inputs of a loader or a file are on the processor; they go to where the network is."""
    import numpy as np

    np.save(tmp_path / "rows.npy", rows().numpy())
    model = network().to(CARD)
    whole = compress(model, rows().to(CARD), {"": Block(5)}, **QUICK)
    expected = whole.evaluate(rows().to(CARD)).relative_error
    for inputs in (rows(), rows().split(50), np.load(tmp_path / "rows.npy", mmap_mode="r")):
        found = compress(model, inputs, {"": Block(5)}, **QUICK)
        assert found.report.blocks[0].output_error == pytest.approx(whole.report.blocks[0].output_error, rel=0.05)
        assert found.evaluate(inputs).relative_error == pytest.approx(expected, rel=0.05)


def test_samples_larger_than_the_memory_that_is_allowed() -> None:
    model = network().to(CARD)
    x = rows(40_000).to(CARD)
    settings = {"samples": len(x), "views": 0, "basis": Monomial(3)}
    plenty, little = (compress(model, x, {"": Block(5)}, memory=one, **settings) for one in (2**32, 2**24))
    one, two = (found.report.blocks[0].output_error for found in (plenty, little))
    assert two == pytest.approx(one, rel=0.05)


def test_what_can_be_replaced() -> None:
    here, other = (tenflex.inspect(one, x) for one, x in ((network(), rows()), (network().to(CARD), rows().to(CARD))))
    assert [one.name for one in here.candidates] == [one.name for one in other.candidates]


def test_rivals() -> None:
    names = ["flexible", "svd", "affine", "student", "node-dropping"]
    found = tenflex.compare(network().to(CARD), rows().to(CARD), sizes=["40%"], steps=20, rates=(1e-2,), methods=names)
    assert {one.method for one in found.entries} == set(names)
    assert [one.error for one in found.entries if one.error] == []


def test_two_compressions_agree() -> None:
    model, x = network().to(CARD), rows().to(CARD)
    one, two = (compress(model, x, {"": Block(5)}, **QUICK).model(x) for _ in range(2))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


# ---- layers ----


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
@pytest.mark.parametrize("widths", [(None, None), (2, 3)], ids=str)
def test_layers_compute_the_same(basis, widths, generator) -> None:
    layer = layer_of(generator, basis, widths).float()
    x = torch.randn(200, M, generator=generator)
    expected = layer(x)
    moved = copy.deepcopy(layer).to(CARD)
    close = {"rtol": 1e-4, "atol": 1e-4 * float(expected.detach().abs().max())}
    torch.testing.assert_close(moved(x.to(CARD)).cpu(), expected, **close)
    torch.testing.assert_close(fold_layer(layer).to(CARD)(x.to(CARD)).cpu(), expected, **close)
    torch.testing.assert_close(fold_layer(moved)(x.to(CARD)).cpu(), expected, **close)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype, generator) -> None:
    layer = layer_of(generator, BSpline(8), (3, None)).float().to(CARD)
    x = torch.randn(50, M, generator=generator).to(CARD)
    expected = layer(x)
    for one in (layer, fold_layer(layer)):
        with torch.autocast("cuda", dtype):
            found = one(x)
        assert (found.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TensorFloat32:UserWarning")
def test_compiled(generator) -> None:
    layer = fold_layer(layer_of(generator, BSpline(8), (3, None)).float()).to(CARD).eval()
    x = torch.randn(50, M, generator=generator).to(CARD)
    torch.testing.assert_close(torch.compile(layer)(x), layer(x), rtol=1e-4, atol=1e-4)


def test_gradients(generator) -> None:
    layer = layer_of(generator, BSpline(8), (3, None)).float()
    x = torch.randn(50, M, generator=generator)
    moved = copy.deepcopy(layer).to(CARD)
    for one, y in ((layer, x), (moved, x.to(CARD))):
        one(y).square().sum().backward()
    for one, two in zip(layer.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(two.grad.cpu(), one.grad, rtol=1e-3, atol=1e-3 * float(one.grad.abs().max()))


def test_one_process_over_the_cards_own_communication(tmp_path: Path) -> None:
    """The group that `torchrun` would make: sums over samples go through NCCL."""
    import torch.distributed as dist

    from tenflex import distributed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"}
    samples = there(CASES["three nodes"].problem().samples)
    alone = decouple(Problem(samples, 3, Monomial(3)))
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
    try:
        shared = distributed.decouple(Problem(samples, 3, Monomial(3)))
    finally:
        dist.destroy_process_group()
    assert shared.output_error == pytest.approx(alone.output_error, abs=1e-8)


CALLS: dict[str, Callable[[nn.Module], nn.Module]] = {"trained": lambda one: one, "folded": fold_layer}


@pytest.mark.parametrize("form", CALLS)
def test_batches_of_none_and_one(form: str, generator) -> None:
    layer = CALLS[form](layer_of(generator, BSpline(8)).float().to(CARD))
    assert layer(torch.zeros(0, M, device=CARD)).shape[0] == 0
    assert layer(torch.zeros(1, M, device=CARD)).device.type == "cuda"
