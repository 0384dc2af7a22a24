"""Two convolutions keep the best of their channels: recognised, exact where nothing is lost, refined at all places."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tenflex import Block, Compression, Monomial, compress, load
from tenflex.coordinates import Fisher
from tenflex.evaluate.cost import stored_numbers
from tenflex.kept import Own, choose
from tenflex.kept.channels import own_channels
from tenflex.kept.choose import RIDGE, Moments, eliminated, in_rows, rises
from tenflex.kept.descent import Projected
from tenflex.nn import Elementwise, FeedForwardConv, Sliding, layer_from_dict, layer_to_dict
from tenflex.planning import planner
from tenflex.planning.candidates import METHODS
from tenflex.planning.convolutions import convolutions
from tenflex.planning.facts import channels_of
from tenflex.solvers import Chain, ConstrainedALS, Refine
from tenflex.surgery import find_cut

pytestmark = pytest.mark.usefixtures("few_steps")


def body(inputs: int = 3, channels: int = 8, stride: int = 2) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, 5, (3, 1), 1, (1, 0)),
            nn.BatchNorm2d(5),
        )
        found.train()
        for _ in range(3):
            found(2 * torch.randn(40, inputs, 9, 8) + 1)
    return found.eval()


def signals() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv1d(2, 6, 3, dilation=2), nn.LeakyReLU(0.1), nn.Conv1d(6, 4, 5, 2, 2)).eval()


def images(count: int = 60, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 9, 8, generator=torch.Generator().manual_seed(seed))


class Residuals(nn.Module):
    """A body beside an identity, twice, between linear maps of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = body_of(4), body_of(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one(x)
        x = torch.relu(x + self.two(x))
        return self.head(x.mean((2, 3)))


def body_of(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, 10, 3, 1, 1),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, width, 3, 1, 1),
        nn.BatchNorm2d(width),
    )


def residuals() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Residuals().eval()


def small(count: int = 60, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


# --- recognised ---


@pytest.mark.parametrize(("block", "x"), [(body(), images()), (signals(), torch.randn(20, 2, 31))], ids=["2d", "1d"])
def test_with_all_channels_the_layer_is_the_block(block: nn.Module, x: Tensor) -> None:
    found = own_channels(block, x)
    assert found is not None
    layer = FeedForwardConv.from_nodes(found.nodes, found.sliding)
    torch.testing.assert_close(layer(x), block(x), rtol=1e-4, atol=1e-4)
    rows = found.rows(x, block(x))
    torch.testing.assert_close(found.nodes.outputs(rows.x), in_rows(rows.y), rtol=1e-4, atol=1e-4)
    sizes = channels_of(block, x)
    assert sizes is not None
    assert sizes.numbers(found.nodes.widths) == stored_numbers(layer)


@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)),
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 4, 3)),
    ],
    ids=["grouped", "reflecting", "function behind", "pooling", "three", "linear", "other norm"],
)
def test_what_is_something_else(block: nn.Module) -> None:
    assert own_channels(block.eval(), images()) is None


# --- kept and refined ---


@pytest.mark.parametrize(("named", "numbers"), [("same", (2, 1)), ("valid", (0, 0))])
def test_zeros_by_name_are_those_in_numbers(named: str, numbers: tuple[int, int]) -> None:
    given, expected = (Sliding.of(nn.Conv2d(2, 3, (3, 3), padding=one, dilation=(2, 1))) for one in (named, numbers))
    assert given == expected
    assert Sliding.of(nn.Conv2d(2, 3, 4, padding="same")) is None  # one more on one side


def test_the_rise_of_the_error_without_a_channel_is_that_of_least_squares() -> None:
    found = own_channels(body(), images())
    assert found is not None
    nodes, rows = found.nodes, found.rows(images(), body()(images()).detach())
    reads = nodes.spread.reads
    chain = choose.Chain(nodes.stages, nodes.spread)
    columns, y = chain(rows.x).double(), in_rows(rows.y).double()
    y = y + 0.3 * torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = Moments.of(lambda x: chain(x).double(), in_rows, rows.x, y.view(60, -1, 5))

    def least(keep: list[int]) -> float:
        inside = [reads * node + place for node in keep for place in range(reads)]
        centred, wanted = columns[:, inside] - columns[:, inside].mean(0), y - y.mean(0)
        best = torch.linalg.lstsq(centred, wanted).solution
        return float((wanted - centred @ best).square().sum() / len(y))

    inverse = torch.linalg.inv(moments.gram)
    risen = rises(inverse @ moments.cross, inverse, reads)
    every = list(range(8))
    expected = [least([one for one in every if one != gone]) - least(every) for gone in every]
    torch.testing.assert_close(risen, torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-6)
    left = eliminated(moments, nodes.W.double(), 7, reads=reads)
    assert set(every) - set(left.tolist()) == {int(torch.tensor(expected).argmin())}


def test_the_gradient_is_that_of_the_error() -> None:
    found = own_channels(body().double(), images(12).double())
    assert found is not None
    nodes = found.nodes
    rows = found.rows(images(12).double(), torch.randn(12, 5, 5, 4, dtype=torch.float64))
    problem = Projected.at(rows, nodes, RIDGE)
    parameters = problem.parameters()
    problem.loss(parameters)
    generator = torch.Generator().manual_seed(0)
    ways = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in parameters]
    slope = sum(float((one.grad * way).sum()) for one, way in zip(parameters, ways, strict=True))
    ends = [
        problem.loss([(one + step * way).detach().requires_grad_() for one, way in zip(parameters, ways, strict=True)])
        for step in (1e-5, -1e-5)
    ]
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def doubled() -> nn.Sequential:
    """Six channels, of which three are copies of the others."""
    block = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.Tanh(), nn.Conv2d(6, 4, 3, 1, 1)).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for one in (block[0], block[2]):
            one.weight.normal_(0, 0.4)
        block[0].weight[3:], block[0].bias[3:] = block[0].weight[:3], block[0].bias[:3]
    return block


def test_what_is_there_twice_is_dropped_without_loss() -> None:
    block = doubled()
    result = compress(block, images(), {"": Block(3, basis=Own(refine=False))})
    assert result.report.blocks[0].output_error < 1e-3
    assert stored_numbers(result.model) == 3 * (27 + 1) + 3 * 36 + 4
    torch.testing.assert_close(result.model(images(9, 1)), block(images(9, 1)), rtol=1e-2, atol=1e-2)


def test_refinement_goes_on_from_there() -> None:
    block = body()
    plain, refined = (
        compress(block, images(200), {"": Block(4, basis=Own(refine=one))}).report.blocks[0].output_error
        for one in (False, True)
    )
    assert refined < 0.9 * plain


# --- in a network ---


@pytest.fixture(scope="module")
def both() -> Compression:
    return compress(residuals(), small(), {name: Block(6, basis=Own()) for name in ("one", "two")})


def test_bodies_are_replaced_and_files_bring_them_back(both: Compression, tmp_path: Path) -> None:
    assert isinstance(both.model.one, FeedForwardConv)
    assert both.report.blocks[0].after.parameters == 6 * (9 * 4 + 1) + 6 * 9 * 4 + 4
    assert both.report.blocks[0].sampled.unit == "an image"
    both.save(tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", residuals())(small(9, 1)), both.model(small(9, 1)))
    again = compress(residuals(), small(), both.plan)
    assert torch.equal(again.model(small(9, 1)), both.model(small(9, 1)))


def test_a_metric_counts_channels() -> None:
    asked = {"one": Block(4, basis=Own())}
    plain, weighed = (compress(residuals(), small(), asked, metric=one) for one in (None, Fisher()))
    assert not torch.equal(plain.model(small(9)), weighed.model(small(9)))


def test_a_planner_finds_bodies_and_keeps_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = ("flexible", "own nodes", "node dropping", "low rank")  # thin convolutions of other forms take half of it
    monkeypatch.setattr(planner, "METHODS", {name: METHODS[name] for name in ways})
    model, example = residuals(), small(16)
    found = convolutions(model, example, partial(find_cut, model, example=example))
    assert {(one.name, one.layers) for one in found} == {("one", 2), ("two", 2)}
    assert all(one.parameters == 10 * 37 + 20 + 4 * 91 + 8 for one in found)
    quick = {"basis": Monomial(2), "solver": Chain((ConstrainedALS(2), Refine(5)))}
    result = compress(residuals(), small(24), budget="60%", **quick)
    whole = stored_numbers(residuals())
    assert stored_numbers(result.model) <= 0.6 * whole
    tried = {one.method for curve in result.report.planned.curves for one in curve.tried}
    assert {"own nodes", "node dropping"} <= tried


# --- the layer ---


def test_settings_make_the_same_layer() -> None:
    sliding = Sliding((3, 3), (2, 2), (1, 1), (1, 1)), Sliding((1, 1), (1, 1), (0, 0), (1, 1))
    layer = FeedForwardConv(3, 5, 4, Elementwise("leaky_relu", 0.2), *sliding)
    again = layer_from_dict(layer_to_dict(layer))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(layer(images(2)), again(images(2)))
    saved = layer_to_dict(layer)
    for changed in ({"first": {}}, {"nodes": 0}, {"function": "relu"}, {"more": 1}):
        with pytest.raises(ValueError, match=r"expected|must|settings|sizes|setting"):
            layer_from_dict({**saved, **changed})


def test_channels_are_no_start_of_flexible_layers() -> None:
    with pytest.raises(ValueError, match=r"do not start from channels|something else"):
        compress(body(), images(), {"": Block(3, start="kept", unit="example")})
    with pytest.raises(ValueError, match=r"at most the block's own nodes, 8, got 9"):
        compress(body(), images(), {"": Block(9, basis=Own())})
