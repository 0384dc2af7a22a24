"""What one sample of a block is: positions without padding, and patches that are the block itself."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from planted import random, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex import Block, Cosine, Monomial, Plan, Tucker, compress, load
from tenflex.cli.blocks import format_block, parse_blocks
from tenflex.coordinates import Fisher, OutputMetric
from tenflex.evaluate.comparison import compare_networks
from tenflex.evaluate.cost import cost
from tenflex.modes import Modes
from tenflex.nn import FlexibleConv, FlexibleLayer, Window
from tenflex.planning.facts import form_of
from tenflex.sampling.queries import Padding, require_mixable
from tenflex.solvers import Chain, ConstrainedALS
from tenflex.units import UNITS, Example, Patch, Position, Unit, draw, find_mask, find_unit, sample_of
from tenflex.units.draw import some_of
from tenflex.units.fold import folds_, saved_by_folding
from tenflex.units.patch import border_error, find_patch, inner_places
from tenflex.units.position import positions
from tenflex.units.reach import reaches_of

# positions


class Pointwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))


class OverTokens(Pointwise):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(-2, keepdim=True)[..., :3]


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        (Pointwise(), (6, 5, 4), True),
        (Pointwise(), (6, 2, 5, 4), True),
        (Pointwise(), (6, 1, 4), True),
        (Pointwise(), (6, 4), False),
        (OverTokens(), (6, 5, 4), False),
        (nn.Conv2d(5, 2, 1), (6, 5, 4, 4), False),
        (nn.BatchNorm1d(5).eval(), (6, 5, 4), False),
        (nn.Flatten(), (6, 5, 4), False),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(), (6, 5, 4), False),
        (lambda x: x[..., :2] * torch.arange(x.shape[1])[:, None], (6, 5, 4), False),
    ],
    ids=lambda one: getattr(type(one), "__name__", str(one)) if callable(one) else str(one),
)
def test_positions(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], expected: bool) -> None:
    assert positions(function, torch.randn(shape)) == expected


def test_zeros_hide_nothing() -> None:
    assert not positions(OverTokens(), torch.zeros(6, 5, 4))
    assert not positions(Pointwise(), torch.zeros(6, 5, 4, dtype=torch.int64))


# patches


class Maxout(nn.Module):
    """The larger of every two channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (x.shape[1] // 2, 2)).amax(2)


class Skipping(nn.Module):
    """Two convolutions beside one, and what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.beside = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = x[..., 2:-2, 2:-2]
        return self.second(F.silu(self.first(x))) + self.beside(inner) * inner


class ChannelsLast(nn.Module):
    """As in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(2, 4, 3, groups=2), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        return self.second(F.gelu(self.first(x))).permute(0, 3, 1, 2)


def normalised(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


def lenet() -> nn.Module:
    parts = nn.Conv2d(1, 3, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*parts)


# Blocks without zeros in their inside, an input, and the kernel, stride, zeros before and dilation of their patches.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "LeNet-5": (lenet, (1, 28, 28), ((16, 16), (4, 4), (0, 0), (1, 1))),
    "1 x 1": (lambda: nn.Conv2d(3, 2, 1), (3, 4, 5), ((1, 1), (1, 1), (0, 0), (1, 1))),
    "padded": (lambda: nn.Conv2d(3, 64, 3, padding=1), (3, 8, 8), ((3, 3), (1, 1), (1, 1), (1, 1))),
    "strided and padded": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, (2, 1), (1, 2)), nn.GELU(), nn.Conv2d(4, 3, (1, 2))),
        (2, 9, 8),
        ((3, 4), (2, 1), (1, 2), (1, 1)),
    ),
    "dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2), (2, 9, 11), ((3, 3), (1, 1), (0, 0), (2, 2))),
    "padded by even sides": (
        lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(2, 3, (2, 4)), nn.Tanh()),
        (2, 6, 6),
        ((2, 4), (1, 1), (0, 1), (1, 1)),
    ),
    "groups and normalisation": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2), normalised(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=8)
        ),
        (4, 8, 8),
        ((5, 5), (1, 1), (0, 0), (1, 1)),
    ),
    "maxout": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), Maxout(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2)),
        (2, 12, 12),
        ((6, 6), (2, 2), (0, 0), (1, 1)),
    ),
    "skip connection": (Skipping, (2, 9, 9), ((5, 5), (1, 1), (0, 0), (1, 1))),
    "channels last": (ChannelsLast, (2, 6, 6), ((3, 3), (1, 1), (0, 0), (1, 1))),
    "signal": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 5, 2), nn.SiLU(), nn.MaxPool1d(2), nn.Conv1d(4, 3, 3), nn.Hardswish()),
        (2, 60),
        ((15,), (4,), (0,), (1,)),
    ),
    "left over": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2, 3), nn.PReLU(2)),
        (1, 10, 9),
        ((2, 2), (3, 3), (0, 0), (1, 1)),
    ),
}


@pytest.mark.parametrize(("make", "shape", "expected"), BLOCKS.values(), ids=BLOCKS)
def test_patches_give_what_the_block_gives(make, shape, expected) -> None:
    """At every place, those at zeros outside of the input included."""
    block = make().double().eval()
    x = torch.randn(3, *shape, dtype=torch.float64)
    patch = find_unit(block, x)
    assert isinstance(patch, Patch)
    window = patch.window
    assert (window.kernel, window.stride, window.before, window.dilation) == expected
    with torch.no_grad():
        y = block(x)
        which, where = torch.meshgrid(torch.arange(3), torch.arange(y[0, 0].numel()), indexing="ij")
        rows = patch.inputs(x, which.flatten(), where.flatten())
        found = patch.function(block)(rows)
    assert patch.places == tuple(y.shape[2:])
    torch.testing.assert_close(found, patch.outputs(y, which.flatten(), where.flatten()))
    torch.testing.assert_close(found.view(3, -1, y.shape[1]).mT.reshape(y.shape), y)
    assert border_error(patch, block, x) < 1e-12


@pytest.mark.parametrize(("make", "shape", "expected"), BLOCKS.values(), ids=BLOCKS)
def test_nothing_outside_of_a_patch_is_seen(make, shape, expected) -> None:
    """By the gradients of all outputs of one place."""
    block = make().double().eval()
    x = torch.randn(64, *shape, dtype=torch.float64, requires_grad=True)
    reaches, y = reaches_of(block, x), block(x)
    place = tuple(size // 2 for size in y.shape[2:])
    (slopes,) = torch.autograd.grad(y[(slice(None), slice(None), *place)].sum(), x)
    for axis, (one, at) in enumerate(zip(reaches, place, strict=True), start=2):
        others = [dim for dim in range(x.ndim) if dim != axis]
        seen = set(slopes.abs().amax(others).nonzero().flatten().tolist())
        assert seen <= {at * one.stride + offset for offset in one.offsets}
        inside = {at * one.stride + offset for offset in one.offsets} & set(range(x.shape[axis]))
        assert seen == inside


def test_zeros_in_the_inside_of_a_block() -> None:
    """Patches are exact where no border is seen; elsewhere how far they are off is told."""
    block = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 3, 3, padding=1)).double().eval()
    x = torch.randn(2, 2, 9, 7, dtype=torch.float64)
    patch = find_patch(block, x)
    assert (patch.window.kernel, patch.window.before, patch.window.after) == ((5, 5), (2, 2), (2, 2))
    with torch.no_grad():
        y = block(x)
        where = inner_places(patch, (9, 7))
        assert len(where) == 5 * 3
        which = torch.zeros_like(where)
        torch.testing.assert_close(patch.function(block)(patch.inputs(x, which, where)), patch.outputs(y, which, where))
    assert border_error(patch, block, x) > 0.01
    narrow = find_patch(block, x[..., :3])  # no place sees no border
    assert narrow.window.kernel == (5, 5)
    assert inner_places(narrow, (9, 3)).numel() == 0


class Placed(nn.Module):
    """Adds numbers that differ from place to place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.places = nn.Conv2d(1, 2, 3), nn.Parameter(torch.randn(2, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.places


class Deciding(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Attentive(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Turning(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).mT.exp()


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1)), "'mean' in it mixes all places"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(2)), "adaptive pooling"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2)), "more places of few"),
        (nn.ConvTranspose2d(1, 2, 3), "transposed convolution"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(2)), "makes one row"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(6, 6)), "a Linear in it mixes all places"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2)), "in it"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)), "in it"),
        (Placed(), "other numbers at other places"),
        (Deciding(1, 2, 3), "depends on the numbers|mixes"),
        (Attentive(), "mixes all places"),
        (Turning(), "changes the order"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softmax(2)), "mixes all places"),
        (nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(1, 2, 3)), "reflection_pad2d"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else "",
)
def test_blocks_without_patches_are_refused_with_the_reason(block: nn.Module, reason: str) -> None:
    x = torch.randn(3, 1, 8, 8)
    with pytest.raises(ValueError, match=f"unit='patch' is not for it: .*({reason})"):
        find_unit(block.eval(), x, "patch")
    assert isinstance(find_unit(block.eval(), x), Example)


def test_patches_larger_than_asked_for_are_not_tried() -> None:
    block, x = nn.Sequential(nn.Conv2d(2, 3, 5), nn.Conv2d(3, 2, 3)).eval(), torch.randn(2, 2, 12, 12)
    assert find_patch(block, x, 98).window.kernel == (7, 7)
    runs = []
    block.register_forward_hook(lambda *_: runs.append(1))
    with pytest.raises(ValueError, match="its patches have 98 numbers, 97 at most are asked for"):
        find_patch(block, x, 97)
    assert len(runs) == 1  # to see its operators: trying patches is what takes long, and memory


class Opaque(nn.Module):
    """As a module that works outside of torch."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise KeyError("no")
        return x[:, :, 1:] - x[:, :, :-1]


def test_blocks_that_cannot_be_looked_into_are_sampled_by_example() -> None:
    x = torch.randn(3, 1, 8, 8)
    with pytest.raises(ValueError, match="it cannot be followed: KeyError"):
        find_patch(Opaque(), x)
    assert isinstance(find_unit(Opaque(), x), Example)


def test_units_on_the_command_line() -> None:
    (settings,) = parse_blocks(["features,rank=4,factor=2,unit=patch"]).values()
    assert settings == {"rank": 4, "factor": 2, "unit": "patch"}
    assert format_block("features", Block(4, factor=2, unit="patch")) == "--block features,rank=4,factor=2,unit=patch"
    plan = Plan({"a": Block(4, unit="patch")}, mask="key_padding_mask")
    assert Plan.from_dict(plan.to_dict()) == plan


class Mixing(nn.Module):
    """Maps the channels of a signal, at every place alike, by operators that no patches are found of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Parameter(torch.randn(shape, generator=seeded(0), dtype=torch.float64) / 3) for shape in ((9, 6), (2, 9))
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.einsum("rm,smt->srt", self.first, x))
        return torch.einsum("nr,srt->snt", self.second, hidden)


class OfColumns(nn.Module):
    """What a block makes of columns."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x[..., None])[..., 0]


@dataclass(frozen=True)
class Column(Unit):
    """The channels at one place."""

    name: ClassVar[str] = "column"
    plural: ClassVar[str] = "columns"
    places: tuple[int, ...]

    @classmethod
    def find(cls, block: nn.Module, arriving: Tensor) -> Column:
        if arriving.ndim != 3:
            raise ValueError("its inputs are no signals")
        return cls((arriving.shape[2],))

    def inputs(self, arriving: Tensor, which: Tensor, where: Tensor) -> Tensor:
        return arriving[which, :, where]

    outputs = inputs

    def function(self, block: nn.Module) -> nn.Module:
        return OfColumns(block)

    def layer(self, factors, in_shape, out_shape, dtype, modes=None) -> FlexibleConv:
        window = Window((1,), (1,), (0,), (0,), (1,))
        return FlexibleConv.from_factors(factors, in_shape[0], window, dtype, modes)


def test_a_unit_of_ones_own_can_be_asked_for(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UNITS, "column", Column)
    model, x = nn.Sequential(Mixing()).eval(), torch.randn(30, 6, 7, generator=seeded(1), dtype=torch.float64)
    unit = find_unit(model, x, "column")
    assert sample_of(unit, x, model(x)) == ((6,), 2)
    rows = unit.arrived(x)
    torch.testing.assert_close(unit.function(model)(rows), unit.every(model(x)))
    with pytest.raises(ValueError, match="unit='column' is not for it: its inputs are no signals"):
        find_unit(model, x[0], "column")
    result = compress(model, x, {"0": Block(5, unit="column")}, basis=Monomial(3), solver=ConstrainedALS(20))
    assert result.report.blocks[0].output_error < 0.5
    result.save(tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", model)(x), result.model(x))
    assert Plan.from_dict(result.plan.to_dict()) == result.plan


def test_what_is_known_of_a_block_is_of_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that a budget tries are those of a row, whatever a row is."""
    model, x = Mixing().eval(), torch.randn(30, 6, 7, generator=seeded(1), dtype=torch.float64)
    monkeypatch.setattr("tenflex.planning.facts.find_unit", lambda *_: Column((7,)))
    found = form_of(model, x, model(x), x, None)
    assert (found.inputs, found.outputs, found.shape, found.output_shape) == (6, 2, (), ())


@pytest.mark.parametrize(
    ("block", "x", "expected"),
    [
        (nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), ((3, 3, 3), 4)),
        (Pointwise(), torch.randn(2, 5, 4), ((4,), 3)),
        (nn.Sequential(nn.Flatten(), nn.Linear(20, 3)), torch.randn(2, 5, 4), ((5, 4), 3)),
    ],
    ids=["patch", "position", "example"],
)
def test_samples_are_those_of_the_unit(block: nn.Module, x: Tensor, expected: tuple[tuple[int, ...], int]) -> None:
    block = block.eval()
    assert sample_of(find_unit(block, x), x, block(x)) == expected


def test_units_that_are_asked_for() -> None:
    images = torch.randn(3, 1, 8, 8)
    assert isinstance(find_unit(nn.Conv2d(1, 2, 3), images, "example"), Example)
    assert isinstance(find_unit(nn.Conv2d(1, 2, 8), images), Example)  # one patch is all of it
    assert isinstance(find_unit(nn.Conv2d(1, 2, 8), images, "patch"), Patch)
    assert find_unit(Pointwise(), torch.randn(3, 5, 4)) == Position((5,))
    with pytest.raises(ValueError, match="unit='position' is not for it"):
        find_unit(nn.Conv2d(1, 2, 3), images, "position")
    with pytest.raises(ValueError, match="unit must be one of 'example', 'position', 'patch' or None, got 'token'"):
        Block(2, unit="token")
    with pytest.raises(ValueError, match="no images"):
        find_patch(nn.Linear(3, 2), torch.randn(4, 3))


# drawing


def test_rows_are_drawn_alike_and_captured_in_chunks() -> None:
    x, y = torch.randn(7, 3, 4), torch.randn(7, 3, 2)
    drawn = draw(Position((3,)), 1, torch.arange(7), 10, 5)
    assert len(drawn) == 10
    assert (drawn.total, drawn.left_out) == (21, 0)
    flat = drawn.examples * 3 + drawn.places
    assert torch.equal(flat, torch.randperm(21, generator=seeded(5))[:10].sort().values)
    parts = [(x[start : start + 2], y[start : start + 2], start) for start in range(0, 7, 2)]
    assert torch.equal(torch.cat([drawn.arriving(one, start) for one, _, start in parts]), x.flatten(0, 1)[flat])
    assert torch.equal(torch.cat([drawn.leaving(one, start) for _, one, start in parts]), y.flatten(0, 1)[flat])
    assert torch.equal(drawn.groups, drawn.examples)


def test_rows_of_blocks_that_get_several_rows_an_example() -> None:
    """As where a network makes one row of all positions."""
    drawn = draw(Example(), 4, torch.tensor([0, 1, 0]), 100, 0)
    assert drawn.groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    drawn = draw(Example(), 4, torch.tensor([0, 1, 0]), 100, 0, mask)
    assert drawn.examples.tolist() == [1, 2, 3, 7, 8, 9, 10, 11]
    assert drawn.left_out == 4


def test_few_of_very_many() -> None:
    found = some_of(10**12, 50, 3)
    assert len(found) == len(found.unique()) == 50
    assert torch.equal(found, some_of(10**12, 50, 3))
    assert 2e11 < found.double().mean() < 8e11


@pytest.mark.parametrize("most", [10, 60, 99])
def test_as_many_as_are_asked_for_of_hardly_more(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tenflex.units.draw"], "MOST_SHUFFLED", 50)
    found = some_of(100, most, 0)
    assert len(found) == len(found.unique()) == most


# masks


class Masked(nn.Module):
    """A feed-forward part between two that look at all positions that are no padding."""

    def __init__(self, drops: bool = False) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(20, 6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.drops = drops

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None  # as `transformers` does
        x = self.embed(input_ids)
        if attention_mask is None:
            x = x + x.mean(1, keepdim=True)
        else:
            weight = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
            x = x + (x * weight).sum(1, keepdim=True)
        return self.second(torch.tanh(self.first(x)))


def text(count: int = 40, length: int = 8, left: bool = False) -> dict[str, Tensor]:
    """Sequences of different lengths, padded with zeros."""
    sizes = 1 + torch.arange(count) % length
    mask = torch.arange(length) < sizes[:, None]
    mask = mask.flip(1) if left else mask
    words = torch.randint(1, 20, (count, length), generator=seeded(0))
    return {"input_ids": words * mask, "attention_mask": mask.long()}


QUICK = Chain((ConstrainedALS(3),))


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_not_sampled(left: bool) -> None:
    model, inputs = Masked().eval(), text(left=left)
    result = compress(model, inputs, {"first:second": Block(3)}, solver=QUICK)
    sampled = result.report.blocks[0].sampled
    real = int(inputs["attention_mask"].sum())
    assert (sampled.plural, sampled.rows, sampled.total, sampled.padding) == ("positions", real, 320, 320 - real)
    assert f"{real} of {real} positions; {320 - real} more are padding" in " ".join(str(result.report).split())
    inputs["input_ids"] = torch.where(inputs["attention_mask"] > 0, inputs["input_ids"], 7)
    again = compress(model, inputs, {"first:second": Block(3)}, solver=QUICK)
    for one, other in zip(result.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_masks_of_ones_change_nothing() -> None:
    """Nor a batch of which some chunks have no padding, in which the network leaves the mask out."""
    model, inputs = Masked().eval(), text()
    whole = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    result = compress(model, whole, {"first:second": Block(3)}, solver=QUICK)
    assert result.report.blocks[0].sampled.padding == 0
    without = compress(model, inputs["input_ids"], {"first:second": Block(3)}, solver=QUICK)
    for one, other in zip(result.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)
    mixed = {name: torch.cat([one[:256], whole[name][:256]]) for name, one in text(256).items()}
    mixed["attention_mask"][256:] = 1
    found = compress(model, mixed, {"first:second": Block(3)}, solver=QUICK).report.blocks[0].sampled
    assert found.padding == 256 * 8 - int(text(256)["attention_mask"].sum())


class Tagger(nn.Module):
    """Two parts that both add to what is told of every position, whatever the others hold."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = (nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 3)) for _ in range(2))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.f(x) + self.g(x[..., [5, 4, 3, 2, 1, 0]])


def networked(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().double().eval()


def tagged(filling: float, count: int = 200) -> dict[str, Tensor]:
    """Sequences of positions, with something else at padding."""
    x, other = random(seeded(1), count, 8, 6), random(seeded(2), count, 8, 6)
    mask = torch.arange(8) < torch.randint(2, 9, (count, 1), generator=seeded(3))
    return {"x": torch.where(mask[..., None], x, filling * other), "attention_mask": mask.double()}


@pytest.mark.parametrize("metric", [None, Fisher()], ids=repr)
def test_what_stands_at_padding_changes_no_layer(metric: OutputMetric | None) -> None:
    """Nor how errors of the network count, of which gradients at padding were a part once."""
    model, states = networked(Tagger), []
    for filling in (0.1, 30.0):
        result = compress(model, tagged(filling), {"f": Block(4, basis=Monomial(3))}, metric=metric)
        states.append(result.model.state_dict())
    assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(*map(dict.values, states), strict=True))


def test_what_stands_at_padding_is_not_compared() -> None:
    """On the command line, too."""
    model, inputs = networked(Tagger), tagged(30.0)
    result = compress(model, inputs, {"f": Block(4, basis=Monomial(3))})
    found = compare_networks(model, result.model, inputs)
    assert found.fidelity.relative_error == pytest.approx(result.evaluate(inputs).relative_error)
    assert found.samples == 200


def test_what_stands_at_padding_chooses_no_plan() -> None:
    """A budget once priced blocks by errors at padding, where one of two does all that is done here."""

    class There(Tagger):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            padding = (x.abs().sum(-1, keepdim=True) > 60).to(x)
            return self.f(x) * (1 - padding) + self.g(x) * (0.05 + 20 * padding)

    model, inputs = networked(There), tagged(0.0)
    inputs["x"] = torch.where(inputs["attention_mask"][..., None] > 0, inputs["x"], 20.0)
    result = compress(model, inputs, budget="60%", basis=Monomial(3), samples=500)
    sizes = {name: one.rank for name, one in result.plan.blocks.items()}
    assert sizes["g"] < sizes.get("f", 24)
    assert result.report.planned.error**0.5 == pytest.approx(result.evaluate(inputs).relative_error, rel=0.5)


@pytest.mark.parametrize("queries", [{}, {"noise": 0.1}, {"mix": 0.3}], ids=str)
def test_what_stands_at_padding_teaches_nothing(queries: dict[str, float]) -> None:
    """Nor what examples say that are nothing else."""
    model, told = networked(Tagger), []
    for filling in (0.1, 30.0):
        inputs = tagged(filling)
        inputs["attention_mask"][7] = 0
        result = compress(model, inputs, {"f": Block(3, basis=Monomial(2))}, samples=40)
        better = result.finetune(inputs, steps=100, rate=3e-3, train=["replaced", "g"], batch=16, **queries)
        told.append((better.report.tunings[0].before, better.report.tunings[0].after, better.evaluate(inputs)))
        assert better.report.tunings[0].steps > 0
        assert better.evaluate(inputs).relative_error < result.evaluate(inputs).relative_error
    assert told[1][:2] == pytest.approx(told[0][:2], rel=1e-9)
    assert told[1][2].relative_error == pytest.approx(told[0][2].relative_error, rel=1e-9)


@pytest.mark.parametrize("queries", [{"noise": 0.3}, {"mix": 0.5}], ids=str)
def test_masks_are_neither_mixed_nor_noisy(queries: dict[str, float]) -> None:
    seen = list[Tensor]()

    class Watched(Tagger):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            seen.append(attention_mask.detach().unique())
            return super().forward(x, attention_mask)

    result = compress(networked(Watched), tagged(1.0), {"f": Block(4, basis=Monomial(3))})
    seen.clear()
    result.finetune(tagged(1.0), steps=5, rate=1e-3, **queries)
    assert set(torch.cat(seen).tolist()) == {0.0, 1.0}
    whole = {"attention_mask": tagged(1.0)["attention_mask"]}
    with pytest.raises(ValueError, match="mixes and noise need inputs of real numbers"):
        require_mixable(whole, Padding(whole["attention_mask"], whole["attention_mask"] > 0))


def test_masks_by_name() -> None:
    model, inputs = Masked().eval(), text()
    pair = (inputs["input_ids"], inputs["attention_mask"])
    assert torch.equal(find_mask(model, pair, None), inputs["attention_mask"].bool())
    assert find_mask(model, inputs["input_ids"], None) is None
    assert torch.equal(find_mask(model, inputs, "input_ids"), inputs["input_ids"] != 0)
    added = {"bias": (1 - inputs["attention_mask"]) * -1e4}
    assert torch.equal(find_mask(model, {"bias": added["bias"].float()}, "bias"), pair[1].bool())
    nothing = torch.zeros(3, 4)  # is added to three inputs without padding
    assert bool(find_mask(model, {"bias": nothing}, "bias").all())
    assert torch.equal(find_mask(model, {"key_padding_mask": pair[1] == 0}, "key_padding_mask"), pair[1].bool())
    with pytest.raises(ValueError, match=r"mask='mask' is none of the inputs \['attention_mask', 'input_ids'\]"):
        compress(model, inputs, {"first:second": Block(3)}, mask="mask")
    with pytest.raises(ValueError, match="of shape \\(examples, positions\\)"):
        find_mask(model, {"mask": torch.ones(3, 1, 1, 4)}, "mask")
    with pytest.raises(TypeError, match="mask must be the name of an argument"):
        compress(model, inputs, {"first:second": Block(3)}, mask=3)


def test_a_mask_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 positions that are no padding, got 1"):
        draw(Position((4,)), 1, torch.arange(2), 10, 0, torch.arange(8).view(2, 4) == 3)


# flexible convolutions in networks


def planted(window: Window) -> FlexibleConv:
    layer = FlexibleConv(2, 3, window, 2, Monomial(2), factor=2)
    with torch.no_grad():
        for one in layer.flexible:
            one.coefficients.copy_(torch.tensor([[1.0, 0.5], [-1.0, 0.7]]))
    return layer


def test_a_convolution_is_found_again() -> None:
    """A flexible convolution between two other layers, from patches of few images; saved, loaded, the same bits."""
    block = planted(Window((3, 3), (2, 2), (1, 1), (1, 1), (1, 1)))
    model = nn.Sequential(nn.Conv2d(1, 2, 1), block, nn.Flatten(), nn.Linear(3 * 16, 4)).eval()
    images = torch.randn(60, 1, 7, 7)
    result = compress(model, images, {"1": Block(2, factor=2, basis=Monomial(2))}, samples=300, seed=1)
    report = result.report.blocks[0]
    assert (report.sampled.rows, report.sampled.total, report.sampled.plural) == (300, 60 * 16, "patches")
    assert report.output_error < 1e-3
    assert report.after == report.before
    assert isinstance(result.model[1], FlexibleConv)
    with torch.no_grad():
        torch.testing.assert_close(result.model(images), model(images), rtol=0, atol=1e-2)


def test_convolutions_are_saved(tmp_path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)).eval()
    images = torch.randn(40, 1, 8, 8)
    result = compress(model, images, {"0:2": Block(3, factor=2)}, samples=100, solver=QUICK)
    result.save(tmp_path / "small")
    again = load(tmp_path / "small", model)
    with torch.no_grad():
        assert torch.equal(again(images), result.model(images))
    assert str(result.report).count("a patch of 4 x 4, stride 2 x 2: 100 of 360 patches") == 1


def test_functions_between_convolutions() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.fc = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(36, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv2(F.max_pool2d(F.relu(self.conv1(x)), 2))
            return self.fc(x.flatten(1))

    result = compress(
        Functional().eval(), torch.randn(40, 1, 12, 12), {"conv1:conv2": Block(3)}, samples=100, solver=QUICK
    )
    (layer,) = (one for one in result.model.modules() if isinstance(one, FlexibleConv))
    assert layer.window == Window((8, 8), (2, 2), (0, 0), (0, 0), (1, 1))
    assert result.model(torch.randn(3, 1, 12, 12)).shape == (3, 2)


def test_groups_of_patches_are_images() -> None:
    x = torch.randn(6, 1, 5, 5)
    x[3] = x[0]
    unit = find_unit(nn.Conv2d(1, 2, 3), x)
    drawn = draw(unit, 1, torch.tensor([0, 1, 2, 0, 3, 4]), 1000, 0)
    assert len(drawn) == 6 * 9
    for example, group in itertools.pairwise([0, 3]):
        one, other = (drawn.groups[drawn.examples == index] for index in (example, group))
        assert torch.equal(one, other)


@pytest.mark.parametrize("modes", [Cosine(3), Tucker((1, 3, 3))], ids=str)
def test_patches_are_seen_through_modes(modes: Modes, tmp_path) -> None:
    """Counted as stored, sampled in as many directions as modes tell, and saved with the same bits."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)).eval()
    images = torch.randn(40, 1, 8, 8)
    result = compress(model, images, {"0:2": Block(3, factor=2, modes=modes)}, samples=100, solver=QUICK)
    directions = 2 * 4 * 3 if modes.stored else 0
    report = result.report.blocks[0]
    assert report.sampled.plural == "patches"
    assert report.after.parameters == 9 * 2 + directions + 2 * 3 + 3 + 3 * 10 + 3 * 4 + 4
    assert report.after.macs == 9 * (16 * 2 + 2 * 3 + 3 * 4)
    assert report.projection_error > 0.01
    assert len(result.solutions["0:2"].factors.maps[0][0]) == 9
    result.save(tmp_path / "small")
    again = load(tmp_path / "small", model)
    assert torch.equal(again(images), result.model(images))
    with torch.no_grad():
        assert torch.equal(again(images), result.model(images))


def test_modes_of_whole_patches_change_nothing() -> None:
    model, images = (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 1)).double().eval(),
        torch.randn(20, 2, 6, 6),
    )
    results = [
        compress(model, images.double(), {"": Block(3, factor=2, modes=one)}, samples=100, solver=QUICK)
        for one in (None, Cosine(3), Tucker(3), Cosine(18, shape=(18,)))
    ]
    first, *others = [one.model(images.double()) for one in results]
    for one in others:
        torch.testing.assert_close(one, first, rtol=1e-8, atol=1e-8)


def test_modes_of_other_patches_are_refused_before_any_work() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)).eval()
    with pytest.raises(ValueError, match=r"block '0:2': .*none above its length: \(1, 4, 4\) has the axes"):
        compress(model, torch.randn(40, 1, 8, 8), {"0:2": Block(3, modes=Cosine((1, 5, 5)))}, samples=100)


# folding


class Folding(nn.Module):
    """A convolution whose outputs go to a linear map in a row."""

    def __init__(self, elsewhere: bool = False, channels: int = 9) -> None:
        super().__init__()
        self.features = FlexibleConv(1, channels, Window((3, 3), (2, 2), (1, 1), (1, 1), (1, 1)), 3, Monomial(2), 4, 2)
        self.head = FlexibleLayer((channels, 4, 4), (2,), 3, Monomial(2), factor=2)
        self.elsewhere = elsewhere
        for one in (*self.features.flexible, *self.head.flexible):
            nn.init.normal_(one.coefficients, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        y = self.head(features.view(len(x), -1, 4, 4))
        return y + features.mean() if self.elsewhere else y


def test_a_last_map_is_folded_into_the_layer_that_follows() -> None:
    model, x = Folding().eval(), torch.randn(6, 1, 7, 8)
    with torch.no_grad():
        before = model(x)
        model.head.in_shape = (9 * 16,)
        head, model.head = model.head, nn.Sequential(nn.Flatten(), model.head)
        assert folds_(model, model.features, head, x)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert model.features.folded
    assert head.in_shape == (3 * 16,)
    assert model.features(x).shape == (6, 3, 4, 4)
    again = FlexibleConv.from_dict(model.features.to_dict())
    again.load_state_dict(model.features.state_dict())
    assert torch.equal(again(x), model.features(x))
    with pytest.raises(ValueError, match="part of the layer that follows"):
        model.features.factors()
    assert not folds_(model, model.features, head, x)


@pytest.mark.parametrize("model", [Folding(True), Folding(channels=2)], ids=["used elsewhere", "stores more"])
def test_maps_that_are_not_folded(model: Folding) -> None:
    x = torch.randn(6, 1, 7, 8)
    assert not folds_(model.eval(), model.features, model.head, x)
    assert not folds_(model, model.head, model.features, x)


@pytest.mark.parametrize(("factor", "output_factor"), [(2, 2), (2, None), (None, None)])
def test_what_folding_saves_is_counted_beforehand(factor: int | None, output_factor: int | None) -> None:
    window = Window((3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    features = FlexibleConv(1, 9, window, 3, Monomial(2), 4, output_factor)
    head = FlexibleLayer((9 * 16,), (2,), 3, Monomial(2), factor=factor)
    model, x = nn.Sequential(features, nn.Flatten(), head).eval(), torch.randn(6, 1, 7, 8)
    before, saved = cost(model, x), saved_by_folding(features, head, torch.Size((9, 4, 4)))
    assert folds_(model, features, head, x)
    after = cost(model, x)
    assert saved == (before.parameters - after.parameters, before.macs - after.macs)
    assert saved.parameters > 0


def test_layers_that_see_channels_through_modes_are_not_folded_into() -> None:
    parts = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 12), nn.Tanh(), nn.Linear(12, 3)
    model, images = nn.Sequential(*parts).eval(), torch.randn(60, 1, 8, 8)
    head = Block(4, factor=2, modes=Cosine((8, 2, 2), shape=(8, 3, 3)))
    result = compress(model, images, {"0:2": Block(3, factor=2), "4:6": head}, samples=200, solver=QUICK)
    assert [one.folded for one in result.report.blocks] == [False, False]
    assert result.report.blocks[1].after.parameters == 32 * 2 + 2 * 4 + 4 + 4 * 10 + 4 * 3 + 3


def test_compressed_blocks_are_folded(tmp_path) -> None:
    """The report counts what is stored, and the network is saved as it is."""
    parts = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 12), nn.Tanh(), nn.Linear(12, 3)
    model, images = nn.Sequential(*parts).eval(), torch.randn(60, 1, 8, 8)
    blocks = {"0:2": Block(3, factor=2), "4:6": Block(4, factor=2)}
    result = compress(model, images, blocks, samples=200, solver=QUICK)
    first, second = result.report.blocks
    assert (first.folded, second.folded) == (True, False)
    assert first.after.parameters == 16 * 2 + 2 * 3 + 3 + 3 * 10
    assert second.after.parameters == 27 * 2 + 2 * 4 + 4 + 4 * 10 + 4 * 3 + 3
    assert first.after.parameters + second.after.parameters == result.report.after.parameters
    assert "The last map of 0:2 is folded" in str(result.report)
    assert not any(one.training for one in result.model.modules())
    result.save(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small", model)(images), result.model(images))
        alone = compress(model, images, {"0:2": blocks["0:2"]}, samples=200, solver=QUICK).model
        head = result.solutions["4:6"].factors
        expected = head.outputs(alone[:4](images).double())
        torch.testing.assert_close(result.model(images).double(), expected, rtol=1e-3, atol=1e-4)


def test_convolutions_with_modes_are_folded(tmp_path) -> None:
    parts = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 12), nn.Tanh(), nn.Linear(12, 3)
    model, images = nn.Sequential(*parts).eval(), torch.randn(60, 1, 8, 8)
    blocks = {"0:2": Block(3, factor=2, modes=Cosine(3)), "4:6": Block(4, factor=2)}
    result = compress(model, images, blocks, samples=200, solver=QUICK)
    first, second = result.report.blocks
    assert (first.folded, first.after.parameters) == (True, 9 * 2 + 2 * 3 + 3 + 3 * 10)
    assert first.after.parameters + second.after.parameters == result.report.after.parameters
    result.save(tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", model)(images), result.model(images))


def test_an_image_as_output_takes_bounded_memory() -> None:
    """Over whole images the Jacobians of one image would take 12 GB."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.randn(12, 3, 64, 64)
    result = compress(model, images, {"0:1": Block(4)}, samples=200, memory=16 * 2**20, solver=QUICK)
    assert result.report.blocks[0].sampled.total == 12 * 64 * 64
    assert result.solutions["0:1"].problem.samples.jacobians.shape == (200, 64, 27)
