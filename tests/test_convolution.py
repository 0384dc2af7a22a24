"""Flexible convolutions: the same numbers as their factors at every patch, and what one does with modules."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise

import pytest
import torch
from planted import layer as planted_layer
from planted import random, seeded
from torch import nn
from torch.nn import functional as F

from tenflex import BSpline, Cosine, Monomial, Smooth, Tucker
from tenflex.evaluate.cost import cost, stored_numbers
from tenflex.factors import Activations, Factors
from tenflex.modes import Multilinear
from tenflex.modes.cosine import cosines
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


# modes of patches

SEEN = {
    "cosines": lambda patch: Cosine(2),
    "computed": lambda patch: Tucker((1, *[2] * (len(patch) - 1))),
    "flat": lambda patch: Cosine(5, shape=(math.prod(patch),)),
}
seeing = pytest.mark.parametrize("kind", SEEN)


def seen_layer(window: Window, kind: str, widths=(None, None), dtype=None) -> tuple[FlexibleConv, Factors, Multilinear]:
    """A layer with modes, its factors, and directions that no family would generate where they are stored."""
    patch = (CHANNELS, *window.kernel)
    modes = SEEN[kind](patch).of(patch)
    frames = cosines(modes, torch.device("cpu")).frames
    if modes.stored:
        turns = [None if one is None else torch.linalg.qr(random(seeded(7), *one.shape))[0] for one in frames]
        frames = tuple(turns)
    directions, k = Multilinear(modes.shape, frames), modes.core_size(patch)
    generator, (q, p) = seeded(0), widths
    V = (random(generator, k, R) / 3,) if q is None else (random(generator, k, q) / 3, random(generator, q, R) / 2)
    W = (random(generator, N, R),) if p is None else (random(generator, N, p), random(generator, p, R))
    basis = BSpline(6)
    C, shift, bias = random(generator, R, basis.size), random(generator, R) / 5, random(generator, N)
    factors = planted_layer(V, W, C, shift, bias, basis)
    layer = FlexibleConv.from_factors(factors, CHANNELS, window, dtype, (modes, directions)).eval()
    return layer, factors, directions


def patches_of(x: torch.Tensor, window: Window) -> torch.Tensor:
    padded = window.padded(x)
    if window.dims == 1:
        return padded.unfold(2, window.kernel[0], window.stride[0]).movedim(2, 1).flatten(2)
    return F.unfold(padded, window.kernel, window.dilation, 0, window.stride).mT


@seeing
@windows
@pytest.mark.parametrize("widths", [(None, None), (3, 2)], ids=str)
def test_patches_are_seen_through_modes(window: Window, kind: str, widths) -> None:
    """With gradients and without, where the kernels are kept; and as matrices of the patches themselves."""
    (layer, factors, directions), x = seen_layer(window, kind, widths), images(window)
    patches = patches_of(x, window)
    expected = factors.outputs(directions.narrow(patches).flatten(0, 1)).view(len(x), -1, N).mT
    torch.testing.assert_close(layer(x).flatten(2), expected)
    with torch.no_grad():
        assert layer.modes.kept is not None
        assert torch.equal(layer(x), layer.train()(x))
    torch.testing.assert_close(layer.factors().outputs(patches.flatten(0, 1)).view(len(x), -1, N).mT, expected)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


@seeing
@windows
def test_layers_with_modes_are_made_again(window: Window, kind: str) -> None:
    (layer, _, _), x = seen_layer(window, kind, (3, None), torch.float32), images(window).float()
    saved = json.loads(json.dumps(layer_to_dict(layer)))
    again = layer_from_dict(saved)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.eval()(x), layer(x))
    assert layer_to_dict(again) == saved
    assert "modes" not in layer_of(window).to_dict()  # as earlier versions read them
    empty = layer_from_dict(saved).to("meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x), layer(x))


def test_modes_of_full_size_are_none() -> None:
    window = WINDOWS["strided"]
    patch, factors, x = (CHANNELS, 3, 3), factors_of(window, (3, 2)), images(window)
    modes = Cosine(3).of(patch)
    layer = FlexibleConv.from_factors(factors, CHANNELS, window, None, (modes, cosines(modes, torch.device("cpu"))))
    torch.testing.assert_close(layer(x), layer_of(window, (3, 2))(x), rtol=1e-8, atol=1e-8)


def test_what_is_stored_is_what_modes_tell() -> None:
    """Cosines are no numbers of a layer, computed directions are; the convolution is counted multiplied out."""
    window, x = Window((4, 4), (2, 2), (0, 0), (0, 0), (1, 1)), torch.zeros(2, 3, 10, 8)
    places, rest = 4 * 3, 2 * 5 + 5 + 50 + 5 * 7 + 7
    for modes, more in ((Cosine((3, 2, 2)), 0), (Tucker((3, 2, 2)), 2 * 4 * 2)):
        layer = FlexibleConv(3, 7, window, 5, Smooth(BSpline(10), 0.1), factor=2, modes=modes)
        counted = cost(layer, x)
        assert counted.parameters == stored_numbers(layer) == 12 * 2 + rest + more
        assert counted.macs == places * (48 * 2 + 2 * 5 + 5 * 7)
        assert (
            counted.activation_operations
            == cost(FlexibleConv(3, 7, window, 5, Smooth(BSpline(10), 0.1), factor=2), x).activation_operations
        )


@seeing
def test_gradients_of_what_is_stored_are_exact(kind: str) -> None:
    (layer, _, _), x = seen_layer(WINDOWS["strided"], kind, (3, None)), images(WINDOWS["strided"], 1)
    named = dict(layer.named_parameters())
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(layer, dict(zip(named, values, strict=True)), x),
        (x.requires_grad_(), *named.values()),
    )


def test_training_moves_the_core_and_no_cosines() -> None:
    """And what was kept of the weights before is not used any more."""
    (layer, _, directions), x = seen_layer(WINDOWS["strided"], "cosines"), images(WINDOWS["strided"])
    with torch.no_grad():
        before = layer(x)
    core = layer.maps[0].weight.clone()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()
    assert not torch.equal(layer.maps[0].weight, core)
    assert torch.equal(layer.modes.axis1, directions.frames[1])
    assert "modes" not in "".join(layer.state_dict())
    with torch.no_grad():
        after = layer(x)
        torch.testing.assert_close(after, layer.train()(x))
        torch.testing.assert_close(after, copy.deepcopy(layer).eval()(x))
    assert after.square().mean() < before.square().mean()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("kind", ["cosines", "computed"])
def test_dtypes_with_modes(kind: str, dtype, tolerance) -> None:
    (layer, _, _), x = seen_layer(WINDOWS["strided"], kind, (3, 2)), images(WINDOWS["strided"])
    with torch.no_grad():
        expected = layer(x)
        small = copy.deepcopy(layer).to(dtype)
        y = small(x.to(dtype))
        assert y.dtype == small.modes.kept.product.dtype == dtype
        assert (y.double() - expected).norm() <= tolerance * expected.norm()
        assert small.double().modes.axis1.equal(layer.modes.axis1) == (kind == "cosines")  # made anew, not rounded
        with torch.autocast("cpu", torch.bfloat16):
            assert (layer.float()(x.float()) - expected).norm() <= 0.15 * expected.norm()


def test_convolutions_with_modes_are_exported() -> None:
    (layer, _, _), x = seen_layer(WINDOWS["strided"], "cosines", (3, None), torch.float32), images(WINDOWS["strided"])
    exported = torch.export.export(layer, (x.float(),))
    torch.testing.assert_close(exported.module()(x.float()), layer(x.float()))
    assert "ModeConv(\n" in repr(layer)
    assert "2, 3, kernel_size=(3, 3), stride=(2, 3)" in repr(layer)


def test_modes_of_other_patches_are_refused() -> None:
    window, basis = WINDOWS["plain"], Monomial(2)
    with pytest.raises(ValueError, match=r"has axes of 49 numbers, but here the shape is \(2, 3, 2\)"):
        FlexibleConv(CHANNELS, 3, window, 2, basis, modes=Cosine(3, shape=(7, 7)))
    with pytest.raises(ValueError, match=r"one size an axis, none above its length: \(2, 3, 2\)"):
        FlexibleConv(CHANNELS, 3, window, 2, basis, modes=Cosine((2, 3, 3)))
    modes = Cosine(2).of((CHANNELS, 3, 2))
    with pytest.raises(ValueError, match=r"numbers seen through Cosine.*, got 12 inputs"):
        FlexibleConv.from_factors(
            factors_of(window), CHANNELS, window, modes=(modes, cosines(modes, torch.device("cpu")))
        )
    saved = FlexibleConv(CHANNELS, 3, window, 2, basis, modes=Cosine(2)).to_dict()
    with pytest.raises(ValueError, match="family of modes"):
        FlexibleConv.from_dict({**saved, "modes": {"family": "Sine", "size": 2}})
