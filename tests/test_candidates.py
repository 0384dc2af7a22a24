"""What a budget tries for a block: the axes of its inputs, cosines along them, its own nodes; sizes that fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tenflex import Block, Cosine, Monomial, Plan, Tucker, compress
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.planned import Tried
from tenflex.kept import Own
from tenflex.nn import Elementwise, FeedForward
from tenflex.planning.candidates import AROUND, METHODS, MOST_NODES, largest, seen_through
from tenflex.planning.facts import Facts, OwnSizes, axes_of, form_of, output_axes, sizes_of
from tenflex.planning.sizes import block_size
from tenflex.solvers import Chain, ConstrainedALS, Refine

QUICK = {"basis": Monomial(2), "solver": Chain((ConstrainedALS(2), Refine(5)))}


def facts(**changes: object) -> Facts:
    known = {"name": "b", "inputs": 784, "outputs": 10, "parameters": 266_610, "layers": 3, "most": 5_000}
    more = {"share": 0.02, "alone": True, "basis": Monomial(3), "steps": 6, "shape": (28, 28)}
    return Facts(**{**known, **more, **changes})


# --- axes ---


def test_flat_inputs_have_the_axes_of_the_networks_own_or_those_that_are_told() -> None:
    images = torch.randn(6, 1, 8, 6)
    assert axes_of(images, images, None) == (1, 8, 6)
    assert axes_of(images.flatten(1), images, None) == (1, 8, 6)
    assert axes_of(images.flatten(1), {"x": images}, None) == (1, 8, 6)
    assert axes_of(2 * images.flatten(1), images, None) == (48,)
    assert axes_of(2 * images.flatten(1), images, (8, 6)) == (8, 6)
    assert axes_of(images.flatten(1), images.flatten(1), None) == (48,)
    assert axes_of(torch.randn(6, 20), images, (8, 6)) == (20,)


def test_forms_of_blocks() -> None:
    images = torch.randn(9, 2, 10, 10)
    pooling = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3)).eval()
    found = form_of(pooling, images, pooling(images), images, None)
    assert (found.shape, found.inputs, found.outputs, found.own) == ((2, 8, 8), 128, 5, None)
    gelu = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 4)).eval()
    tokens = torch.randn(9, 5, 6)
    found = form_of(gelu, tokens, gelu(tokens), tokens, None)
    assert (found.shape, found.inputs, found.outputs) == ((), 6, 4)
    assert found.own == OwnSizes(6, (9,), (1,), 4)


def test_cosines_along_long_axes() -> None:
    assert [one.size for one in seen_through((28, 28))] == [(12, 12), (10, 10), (14, 14)]
    assert seen_through((3, 16, 16))[0].size == (3, 7, 7)
    assert seen_through((2, 100))[0].size == (2, 43)
    for shape in ((), (48,), (16, 5, 5)):
        assert seen_through(shape) == []


def test_flat_outputs_have_the_axes_of_the_networks_own() -> None:
    images = torch.randn(5, 3, 8, 8)
    assert output_axes(images, []) == (3, 8, 8)
    assert output_axes(images.flatten(1), [torch.randn(5, 2), images]) == (3, 8, 8)
    assert output_axes(images.flatten(1), [torch.randn(5, 3, 8, 8), images[:4]]) == (192,)
    assert output_axes(images.flatten(1), [images.flatten(1)], (3, 8, 8)) == (3, 8, 8)
    assert output_axes(images.flatten(1), [torch.randn(5, 192)], (3, 8, 8)) == (192,)  # inside of the network
    assert output_axes(images.flatten(1), [images.flatten(1)], (8, 8)) == (192,)


# --- sizes ---


def test_what_is_offered_fits() -> None:
    offered = METHODS["cosines"](facts())
    assert len(offered) == len(set(offered)) == 8
    assert {one.modes.shape for one in offered} == {(28, 28)}
    sizes = [block_size(replace(one, basis=Monomial(3)), (28, 28), 10) for one in offered]
    assert 0.9 * 5_000 < max(sizes) <= 5_000
    assert METHODS["cosines"](facts(shape=())) == METHODS["cosines"](facts(layers=1)) == []


def test_feed_forward_parts_that_are_too_wide_are_left_to_their_own_nodes() -> None:
    """Where as many nodes as are solved for are a bottleneck, and fewer numbers than any size that is wanted."""
    own = OwnSizes(384, (1536,), (1,), 384)
    shapes = {"kernel": (), "patches": False, "layers": 2, "own": own, "parameters": 1_181_568, "most": 8_000_000}
    wide = facts(**{**shapes, "inputs": 384, "outputs": 384, "share": 0.4, "shape": (), "alone": False})
    assert METHODS["flexible"](wide) == []
    assert len(METHODS["own nodes"](wide)) == len(AROUND)
    for change in ({"outputs": 10}, {"inputs": MOST_NODES}, {"share": 0.05}, {"alone": True}):
        assert METHODS["flexible"](replace(wide, **change))


def test_larger_sizes_of_blocks_beside_much_larger_ones_are_tried() -> None:
    """A hundredth of a small block is little, and what is left would do more there than in the large one."""
    shares = (2.0, 1.4, 1.0, 0.7, 0.5)
    small = facts(alone=False, share=0.01, parameters=25_000, even=2_750, most=5_500, steps=15)
    assert small.sizes(shares) == [2_750, 1_375, 500, 350, 250, 175, 125]
    assert replace(small, parameters=405_000).sizes(shares) == [5_500, 5_500, 4_050, 2_835, 2_025]
    assert replace(small, steps=5).sizes(shares) == [
        500,
        350,
        250,
        175,
        125,
    ]  # of many blocks there is no time for more
    assert replace(small, parameters=1_000).sizes([2.0]) == [900, 450, 225, 20]
    assert replace(small, alone=True).sizes([1.0]) == [5_500]


def test_sizes_that_are_right_once_last_maps_are_folded_are_tried() -> None:
    """Of the convolution without its last map, and of the layer behind it when some of the channels are left."""
    both = {"alone": False, "basis": Monomial(3), "even": 2_750, "most": 5_500, "steps": 15}
    leading = facts(**both, inputs=256, outputs=50, parameters=25_000, shape=(1, 16, 16), patches=True, leads=True)
    usual = METHODS["cosines"](replace(leading, leads=False))
    *special, first, second = METHODS["cosines"](leading)
    assert [first, second] == usual[:2]
    assert [one.modes.size for one in special] == [(1, 7, 7), (1, 8, 8)] * 2
    for one, share in zip(special, (0.3, 0.3, 0.2, 0.2), strict=True):
        more = replace(one, rank=one.rank + 1)
        now, then = (
            block_size(replace(each, basis=Monomial(3)), (1, 16, 16), 50) - 50 * (each.rank + 1) for each in (one, more)
        )
        assert one.factor in (None, round(5 / 8 * one.rank))  # a product, where that stores less
        assert now <= share * 5_500 < then + 64 + one.rank + 1  # a node more may widen the factor by one, too
    behind = facts(**both, inputs=800, outputs=10, parameters=405_000, shape=(), channels_before=50)
    offered = METHODS["flexible"](behind)
    assert offered[3:] == list(METHODS["flexible"](replace(behind, channels_before=0)))
    sizes = [block_size(replace(one, basis=Monomial(3)), 320, 10) for one in offered[:3]]
    assert all(0.9 * share * 5_500 < size <= share * 5_500 for size, share in zip(sizes, (0.8, 0.7, 0.6), strict=True))
    assert block_size(replace(offered[0], basis=Monomial(3)), 800, 10) > 5_500


def test_layers_that_give_images_through_modes_are_offered_for_such_outputs() -> None:
    known = facts(inputs=16, outputs=784, parameters=103_000, layers=2, shape=(16,), output_shape=(28, 28))
    offered = METHODS["output modes"](known)
    assert {one.output_modes for one in offered} == {
        Cosine((12, 12), shape=(28, 28)),
        Tucker((8, 8), shape=(28, 28)),
        Tucker((12, 12), shape=(28, 28)),
    }
    sizes = [block_size(replace(one, basis=Monomial(3)), (16,), (28, 28)) for one in offered]
    assert 0.9 * 5_000 < max(sizes) <= 5_000
    both = METHODS["output modes"](replace(known, inputs=784, shape=(28, 28)))
    assert {one.modes for one in both} == {Cosine((12, 12), shape=(28, 28))}
    for without in ({"output_shape": (784,)}, {"layers": 1}, {"patches": True}, {"output_shape": (3, 4, 4)}):
        assert METHODS["output modes"](replace(known, **without)) == []


def test_a_budget_finds_the_directions_of_images_that_a_decoder_gives() -> None:
    drawn = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 144), nn.Unflatten(1, (12, 12))).eval()
    rows, columns, core = (torch.randn(*size, generator=drawn) for size in ((12, 4), (12, 4), (25, 16)))
    with torch.no_grad():
        images = core @ torch.kron(rows, columns).mT
        model[0].weight.mul_(3)  # so that a few of its nodes do not make up for the others
        model[2].weight.copy_(images[1:].mT)
        model[2].bias.copy_(images[0])
    settings = {"basis": Monomial(3), "solver": Chain((ConstrainedALS(2), Refine(15)))}
    result = compress(model, torch.randn(250, 5, generator=drawn), budget=550, **settings)
    [chosen] = result.report.planned.chosen.values()
    assert chosen.startswith("output modes")
    [block] = result.plan.blocks.values()
    assert block.output_modes == Tucker((4, 4), shape=(12, 12))
    assert result.report.after.parameters <= 550


def test_own_nodes_are_counted_as_layers_of_them_are() -> None:
    block = nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 3)).eval()
    own = sizes_of(block, torch.randn(9, 6))
    assert own is not None
    layer = FeedForward((6,), (3,), (7, 5), (Elementwise("gelu"), Elementwise("tanh")))
    assert own.numbers((7, 5)) == stored_numbers(layer)
    gated = FeedForward((6,), (3,), 7, Elementwise("silu"), gated=True)
    assert OwnSizes(6, (20,), (2,), 3).numbers((7,)) == stored_numbers(gated)
    known = facts(inputs=6, outputs=3, parameters=own.numbers((20, 10)), most=150, own=own, shape=())
    for method, refine in (("own nodes", True), ("node dropping", False)):
        offered = METHODS[method](known)
        assert offered
        for one in offered:
            assert one.basis == Own(refine)
            assert own.numbers(one.ranks) <= 150
    assert METHODS["own nodes"](facts()) == []


def test_two_convolutions_keep_channels_and_are_no_flexible_layer() -> None:
    known = facts(own=OwnSizes(27, (16,), (1,), 8, 9), channels=True)
    assert METHODS["flexible"](known) == METHODS["cosines"](known) == []
    assert METHODS["own nodes"](known)


@pytest.mark.parametrize("limit", [1, 2, 7, 30])
def test_largest(limit: int) -> None:
    assert largest(lambda one: one <= limit, 20) == min(limit, 20)


# --- the axes of a plan ---


def images() -> Tensor:
    return torch.rand(60, 36, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 3)).eval()


def test_modes_without_axes_get_those_of_the_plan() -> None:
    found = [
        compress(network(), images(), {"": Block(3, modes=modes)}, **settings, **QUICK)
        for modes, settings in ((Cosine(3), {"shape": [6, 6]}), (Cosine(3, shape=(6, 6)), {}))
    ]
    assert torch.equal(*(one.model(images()) for one in found))
    assert found[0].plan.shape == (6, 6)
    assert Plan.from_dict(found[0].plan.to_dict()) == found[0].plan


@pytest.mark.parametrize(
    ("shape", "kind"), [(36, TypeError), ((), TypeError), ((6, 0), ValueError), ((6, 2.5), ValueError)]
)
def test_bad_axes(shape: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"shape"):
        Plan({"": Block(3)}, shape=shape)  # type: ignore[arg-type]


def test_a_budget_sees_flat_inputs_through_cosines_where_it_is_told_their_axes() -> None:
    tried = {
        told: {one.method for curve in found.report.planned.curves for one in curve.tried}
        for told in (None, (6, 6))
        for found in [compress(network(), images(), budget="60%", shape=told, **QUICK)]
    }
    assert "cosines" not in tried[None]
    assert "cosines" in tried[6, 6]


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("own nodes", {"rank": 383, "basis": {"family": "Own", "refine": True}}, "rank=383"),
        ("flexible", {"basis": {"family": "BSpline", "size": 5, "knots": None}}, "basis=BSpline(size=5)"),
        ("flexible", {"rank": 3, "basis": {"family": "Own", "refine": False}}, "rank=3, basis=Own(refine=False)"),
    ],
)
def test_sizes_are_in_words(method: str, settings: dict[str, object], words: str) -> None:
    assert Tried(method, settings, 1, 1, 1, 0.1, None).size == words
