"""Flexible convolutions: the same numbers as their factors at every patch, and what one does with modules."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from planted import layer as planted_layer
from planted import random, seeded
from torch import nn
from torch.nn import functional as F

from tenflex import BSpline, Monomial, Smooth
from tenflex.evaluate.cost import cost
from tenflex.factors import Activations, Factors
from tenflex.nn import FlexibleConv, FlexibleLayer, Window, layer_from_dict, layer_to_dict

R, N, CHANNELS = 5, 4, 2
WINDOWS = {
    "plain": Window((3, 2), (1, 1), (0, 0), (0, 0), (1, 1)),
    "strided": Window((3, 3), (2, 3), (1, 1), (1, 0), (1, 1)),
    "dilated": Window((2, 3), (1, 2), (2, 0), (2, 0), (2, 2)),
    "more zeros after": Window((2, 2), (1, 1), (0, 1), (1, 3), (1, 1)),
    "a part left out": Window((2, 2), (2, 2), (-1, 0), (-2, 1), (1, 1)),
    "signal": Window((4,), (2,), (1,), (1,), (1,)),
}
windows = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
WIDTHS = [(None, None), (3, None), (None, 3), (3, 2)]
widths = pytest.mark.parametrize("widths", WIDTHS, ids=str)


def factors_of(window: Window, widths=(None, None), basis=None) -> Factors:
    generator, basis, (q, p) = seeded(0), basis or BSpline(6), widths
    m = CHANNELS * torch.Size(window.kernel).numel()
    V = (random(generator, m, R) / 3,) if q is None else (random(generator, m, q) / 3, random(generator, q, R) / 2)
    W = (random(generator, N, R),) if p is None else (random(generator, N, p), random(generator, p, R))
    C, shift, bias = random(generator, R, basis.size), random(generator, R) / 5, random(generator, N)
    return planted_layer(V, W, C, shift, bias, basis)


def layer_of(window: Window, widths=(None, None), dtype=None) -> FlexibleConv:
    return FlexibleConv.from_factors(factors_of(window, widths), CHANNELS, window, dtype)


def images(window: Window, count: int = 3) -> torch.Tensor:
    return random(seeded(1), count, CHANNELS, *(10, 9)[: window.dims])


@widths
@windows
def test_every_patch_gets_what_the_factors_give(window: Window, widths) -> None:
    factors, x = factors_of(window, widths), images(window)
    found = FlexibleConv.from_factors(factors, CHANNELS, window)(x)
    padded = window.padded(x)
    if window.dims == 1:
        patches = padded.unfold(2, window.kernel[0], window.stride[0]).movedim(2, 1).flatten(2)
    else:
        patches = F.unfold(padded, window.kernel, window.dilation, 0, window.stride).mT
    expected = factors.outputs(patches.flatten(0, 1)).view(len(x), -1, N).mT
    torch.testing.assert_close(found.flatten(2), expected)


@widths
def test_the_way_back_to_factors(widths) -> None:
    window = WINDOWS["strided"]
    factors = factors_of(window, widths)
    again = FlexibleConv.from_factors(factors, CHANNELS, window).factors()
    x = random(seeded(2), 6, CHANNELS * 9)
    torch.testing.assert_close(again.outputs(x), factors.outputs(x))
    assert [len(one) for one in again.maps] == [len(one) for one in factors.maps]


def test_several_layers() -> None:
    window, generator = WINDOWS["strided"], seeded(3)
    sizes = (CHANNELS * 9, 4, 3, N)
    maps = tuple((random(generator, a, b) / 3,) for a, b in pairwise(sizes))
    activations = tuple(
        Activations(random(generator, r, 2), random(generator, r), basis)
        for r, basis in zip(sizes[1:-1], (Monomial(2), Monomial(2)), strict=True)
    )
    factors = Factors(maps, activations, random(generator, N))
    layer, x = FlexibleConv.from_factors(factors, CHANNELS, window), images(window)
    patches = F.unfold(window.padded(x), window.kernel, 1, 0, window.stride).mT
    torch.testing.assert_close(layer(x).flatten(2).mT, factors.outputs(patches.flatten(0, 1)).view(len(x), -1, N))
    assert FlexibleConv.from_dict(layer.to_dict()).to_dict() == layer.to_dict()


@windows
@widths
def test_saved_and_made_again(window: Window, widths) -> None:
    layer, x = layer_of(window, widths, torch.float32), images(window).float()
    saved = layer_to_dict(layer)
    assert saved["kind"] == "FlexibleConv"
    before = torch.get_rng_state()
    again = layer_from_dict(saved)
    assert torch.equal(torch.get_rng_state(), before)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    assert layer_to_dict(again) == saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": []}, "lists of one a layer"),
        ({"rank": [0]}, "rank must be a whole number of at least 1"),
        ({"in_channels": 0}, "in_channels must be a whole number"),
        ({"factor": 0}, "factor must be a whole number"),
        ({"window": {"kernel": [3, 3]}}, "a window has the sizes"),
        ({"window": {**WINDOWS["plain"].to_dict(), "stride": [0, 1]}}, "each number of stride"),
        ({"window": {**WINDOWS["plain"].to_dict(), "stride": [1]}}, "one number for each of 1 to 3 axes"),
        ({"window": {**WINDOWS["plain"].to_dict(), "before": [0.5, 0]}}, "before and after must be a whole number"),
        ({"window": {**WINDOWS["plain"].to_dict(), "kernel": 3}}, "sizes of a window must be lists"),
        ({"more": 1}, "has the settings"),
    ],
    ids=str,
)
def test_damaged_settings_are_refused(change: dict[str, object], message: str) -> None:
    saved = layer_of(WINDOWS["plain"]).to_dict()
    with pytest.raises(ValueError, match=message):
        FlexibleConv.from_dict({**saved, **change})


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="window must be a Window of sizes, got 3"):
        FlexibleConv(1, 2, 3, 4, Monomial(2))
    with pytest.raises(ValueError, match="expected one basis or 1"):
        FlexibleConv(1, 2, WINDOWS["plain"], 4, (Monomial(2), Monomial(2)))
    with pytest.raises(ValueError, match=r"factors of patches of 3 x \(3, 2\) numbers, got 12 inputs"):
        FlexibleConv.from_factors(factors_of(WINDOWS["plain"]), 3, WINDOWS["plain"])
    with pytest.raises(ValueError, match="1 to 3 axes"):
        Window((), (), (), (), ())


def test_costs_are_those_of_every_patch() -> None:
    """Counted by hand, and in proportion to the layer for one patch."""
    window = Window((4, 4), (2, 2), (0, 0), (0, 0), (1, 1))
    layer = FlexibleConv(3, 7, window, 5, Smooth(BSpline(10), 0.1), factor=4)
    one = FlexibleLayer((48,), (7,), 5, Smooth(BSpline(10), 0.1), factor=4)
    counted, each = cost(layer, torch.zeros(2, 3, 10, 8)), cost(one, torch.zeros(2, 48))
    places = 4 * 3
    assert counted.parameters == each.parameters == 48 * 4 + 4 * 5 + 5 + 50 + 5 * 7 + 7
    assert counted.macs == places * each.macs == places * (48 * 4 + 4 * 5 + 5 * 7)
    assert counted.activation_operations == places * each.activation_operations


@windows
def test_gradients_are_exact(window: Window) -> None:
    layer, x = layer_of(window, (3, None)), images(window, 1).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    layer(x).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in layer.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.float64, 0.0)])
def test_dtypes_are_converted(dtype, tolerance) -> None:
    layer, x = layer_of(WINDOWS["strided"], (3, 2)), images(WINDOWS["strided"])
    expected = layer(x).detach()
    y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert (y.double() - expected).norm() <= tolerance * expected.norm()


def test_autocast_runs_in_low_precision() -> None:
    layer, x = layer_of(WINDOWS["strided"], dtype=torch.float32), images(WINDOWS["strided"]).float()
    expected = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).norm() <= 0.05 * expected.norm()


def test_convolutions_are_exported() -> None:
    window = WINDOWS["strided"]
    layer, x = layer_of(window, (3, None), torch.float32).eval(), images(window, 11).float()
    batch = torch.export.Dim("batch", min=2, max=1000)
    exported = torch.export.export(layer, (x[:3],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_one_image_without_a_batch_and_other_sizes() -> None:
    layer = layer_of(WINDOWS["strided"])
    x = images(WINDOWS["strided"])
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    assert layer(random(seeded(4), 2, CHANNELS, 20, 17)).shape[:2] == (2, N)


def test_what_is_printed() -> None:
    text = repr(nn.Sequential(layer_of(WINDOWS["strided"], (3, None))))
    assert "Conv2d(2, 3, kernel_size=(3, 3), stride=(2, 3), padding=(1, 1), bias=False)" in text
