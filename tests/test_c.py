"""C99: the same numbers as PyTorch, under sanitizers, and whatever is fed in."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import torch
from planted import random
from test_folded import Sine
from test_nn import BASES, M, layer_of
from torch import nn

import tenflex
from tenflex.bases import BSpline
from tenflex.export.bench import size_of
from tenflex.export.c import STRICT, load, run_main
from tenflex.modes import Cosine
from tenflex.nn import FlexibleConv, FlexibleLayer, Window, fold
from tenflex.nn.elementwise import Elementwise
from tenflex.nn.feed_forward import FeedForward
from tenflex.nn.low_rank import ThinLinear

pytestmark = [
    pytest.mark.skipif(not shutil.which("cc"), reason="a C compiler is needed, such as gcc"),
    pytest.mark.filterwarnings("ignore:int8 keeps the answer"),  # of random networks
]
SANITIZED = ("-O0", "-g", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")  # exports compile with -O2 too
CORTEX = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
int8 = {"float": {"int8": True}, "integer": {"int8": True, "rounding": "integer"}}


class Channels(nn.Module):
    """Activations of the channels of an image."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return self.activation(x.movedim(1, -1)).movedim(-1, 1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x):
        return torch.relu(x + self.body(x))


def convolutions(generator, plain: bool = False) -> nn.Module:
    """All that C knows around a flexible layer; `plain` for what whole numbers know too."""
    layer = FlexibleLayer((16,), (5,), 6, BSpline(8), 4)
    with torch.no_grad():
        layer.activations[0].coefficients.normal_()
    middle = [] if plain else [Residual(), nn.LeakyReLU(0.2), nn.AvgPool2d(2)]
    middle = middle or [nn.Conv2d(4, 4, 3, stride=2, padding=1, dilation=1), nn.ReLU(), nn.MaxPool2d(1)]
    normed = nn.BatchNorm2d(4)
    normed.running_mean.uniform_(-1, 1), normed.running_var.uniform_(0.5, 2)
    last = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), normed, nn.ReLU(), nn.MaxPool2d(2), *middle, last),
        *(nn.Flatten(), layer, nn.Dropout(0.5)),
        *([] if plain else [nn.ReLU6(), nn.Hardtanh(-0.3, 5.0)]),
    ).eval()


@pytest.fixture
def images(generator):
    return torch.randn(60, 2, 8, 8, generator=generator)


def sanitized(path) -> str:
    return run_main(path, path.stem, *SANITIZED)


@pytest.mark.parametrize("name", ["B-spline", "quantile", "hinge", "Chebyshev"])
def test_a_layer_is_the_same(name, generator, tmp_path):
    network = layer_of(generator, BASES[name], (2, 3)).float().eval()
    x = 2 * random(generator, 50, M).float()
    found = tenflex.export(network, tmp_path / "layer.c", x)
    assert found.difference < 2e-6
    assert found.agreement == 1
    assert "as expected" in sanitized(found.path)


def test_a_network_is_the_same(generator, images, tmp_path):
    found = tenflex.export(convolutions(generator), tmp_path / "network.c", images)
    assert found.difference < 2e-6
    assert "as expected" in sanitized(found.path)


@pytest.mark.parametrize("rounding", int8)
def test_whole_numbers_are_near(rounding, generator, images, tmp_path):
    network = convolutions(generator, plain=True)
    found = tenflex.export(network, tmp_path / "network.c", images, **int8[rounding])
    assert 1e-5 < found.difference < 0.05
    assert "as expected" in sanitized(found.path)


def test_activations_of_channels(generator, images, tmp_path):
    """What a flexible convolution is made of: a convolution, activations of channels, a convolution."""
    layer = FlexibleLayer((6,), (6,), 6, BSpline(7))
    with torch.no_grad():
        layer.activations[0].coefficients.normal_()
    pieces = fold(layer).steps[1]
    network = nn.Sequential(nn.Conv2d(2, 6, 3), Channels(pieces), nn.Conv2d(6, 3, 3, stride=2)).eval()
    with torch.no_grad():
        network[0].weight.div_(3)
        network[0].bias.fill_(3.0)
    for settings, bound in (({}, 2e-6), (int8["float"], 0.05)):
        found = tenflex.export(network, tmp_path / "channels.c", images, **settings)
        assert found.difference < bound
        assert "as expected" in sanitized(found.path)


@pytest.mark.parametrize("settings", [{}, *int8.values()], ids=str)
def test_flexible_convolutions(settings, generator, images, tmp_path):
    """With all their maps, and followed by a layer into which the last one went."""
    window = Window((3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    flexible, last = (
        FlexibleConv(2, 4, window, 5, BSpline(7), 3, modes=Cosine(2)),
        FlexibleConv(4, None, Window((2, 2), (1, 1), (0, 0), (0, 0), (1, 1)), 4, BSpline(6)),
    )
    with torch.no_grad():
        for one in (flexible, last):
            one.activations[0].coefficients.normal_(generator=generator)
    network = nn.Sequential(flexible, nn.ReLU(), last, nn.Flatten(), nn.Linear(36, 3)).eval()
    found = tenflex.export(network, tmp_path / "network.c", images, **settings)
    assert found.difference < (0.08 if settings else 2e-6)
    assert "as expected" in sanitized(found.path)


@pytest.mark.parametrize("settings", [{}, *int8.values()], ids=str)
def test_directions_along_modes_are_stored_once(settings, generator, tmp_path):
    layer = FlexibleLayer((20, 20), (3,), 40, BSpline(7), modes=Cosine(3)).eval()
    with torch.no_grad():
        layer.activations[0].coefficients.normal_(generator=generator)
    x = torch.rand(100, 20, 20, generator=generator)
    found = tenflex.export(layer, tmp_path / "layer.c", x, **settings)
    assert found.difference < (0.05 if settings else 2e-6)
    assert "as expected" in sanitized(found.path)
    bytes_each = 1 if settings else 4
    text = found.path.read_text()
    assert text.count(f"[{3 * 20}] = ") == 1
    assert f"[{20 * 20 * 40}]" not in text
    assert size_of(found.path) < bytes_each * (3 * 20 + 9 * 40 + 33 * 40 + 3 * 40) + 16 * (3 + 3 + 40 + 3) + 200


@pytest.mark.parametrize("settings", [{}, *int8.values()], ids=str)
def test_residual_networks(settings, generator, images, tmp_path):
    """Sums of what arrives and what a body makes of it, normalised; a mean over all places."""
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    network = nn.Sequential(nn.Conv2d(2, 4, 3), Beside(body), nn.ReLU(), Mean(), nn.Linear(4, 3)).eval()
    found = tenflex.export(network, tmp_path / "network.c", images, **settings)
    assert found.difference < (0.03 if settings else 2e-6)
    assert "as expected" in sanitized(found.path)


@pytest.mark.parametrize("settings", [{}, *int8.values()], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.003, 0.0, None])
@pytest.mark.parametrize("eps", [1e-5, 0.05])
def test_normalisation_adds_its_own_small_number(eps, momentum, settings, generator, images, tmp_path):
    """And not how fast statistics would follow: with small variances the two are far apart."""
    normed = nn.BatchNorm2d(4, eps, momentum)
    normed.running_var.fill_(0.02)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), normed, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    found = tenflex.export(network, tmp_path / "network.c", images, **settings)
    assert found.difference < (0.02 if settings else 2e-6)


class Positions(nn.Module):
    """Batch normalisation of positions, whose features were mapped before."""

    def __init__(self, length: int, features: int) -> None:
        super().__init__()
        self.map, self.norm = nn.Linear(5, features), normalised(nn.BatchNorm1d(length))
        self.last = nn.Linear(length * features, 4)

    def forward(self, x):
        return self.last(self.norm(self.map(x)).relu().flatten(1))


class Folded(nn.Module):
    """Normalisation of channels that are several numbers of a map each."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.norm = nn.Linear(35, 36), normalised(nn.BatchNorm2d(4))

    def forward(self, x):
        return self.norm(self.map(x.flatten(1)).unflatten(1, (4, 3, 3)))


class ReadTwice(nn.Module):
    """What is normalised is read once more, through another view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.norm = nn.Conv1d(7, 4, 3), normalised(nn.BatchNorm1d(4))

    def forward(self, x):
        found = self.map(x)
        return self.norm(found.reshape(-1, 4, 3)) + found.reshape(-1, 4, 3)


def normalised(norm: nn.Module) -> nn.Module:
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.3, 1.5)
    return norm


@pytest.mark.parametrize("network", [Positions(7, 7), Positions(7, 6), Folded(), ReadTwice()], ids=str)
def test_normalisation_is_multiplied_into_its_own_map_alone(network, generator, tmp_path):
    x = torch.randn(60, 7, 5, generator=generator)
    found = tenflex.export(network.eval(), tmp_path / "network.c", x)
    assert found.difference < 2e-6
    assert "as expected" in sanitized(found.path)


@pytest.mark.parametrize("settings", [{}, *int8.values()], ids=str)
def test_averages_over_another_number_are_refused(settings, generator, images, tmp_path):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2, divisor_override=3)).eval()
    with pytest.raises(ValueError, match="average pooling without padding, ceil_mode and divisor_override"):
        tenflex.export(network, tmp_path / "network.c", images, **settings)
    network[1] = nn.AvgPool2d(2, divisor_override=4).eval()  # as it is without
    assert tenflex.export(network, tmp_path / "network.c", images).difference < 2e-6


class Beside(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Doing(nn.Module):
    """A forward pass in a line.

    Args:
        forward: What is done with the module and its input.
        parts: Modules and parameters by their names.
    """

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self.what = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.what(self, x)


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def masked(net: Doing, x):
    return nn.functional.linear(x, net.a.weight * net.mask, net.a.bias)


def unread(net: Doing, x):
    """What is computed and changed behind the output does not matter."""
    found = net.a(x)
    net.b(found).relu_()
    return found


def changed(net: Doing, x):
    """A sum in place, read by the name of what it changed."""
    found = net.a(x)
    found += x
    found.relu_()
    return net.b(found) + found


WRITTEN = {
    "learned positions": lambda: Doing(lambda net, x: net.a(x) + net.p, a=nn.Linear(6, 6), p=learned(1, 5, 6)),
    "one row": lambda: Doing(lambda net, x: net.p + net.a(x), a=nn.Linear(6, 4), p=learned(1, 1, 4)),
    "a bias": lambda: Doing(lambda net, x: net.a(x) + net.p, a=nn.Linear(6, 4), p=learned(4)),
    "a part of what is stored": lambda: Doing(lambda net, x: x + net.p[:, :5].exp(), p=learned(1, 9, 6)),
    "a number": lambda: Doing(lambda net, x: net.a(x) + 0.5, a=nn.Linear(6, 4)),
    "twice itself": lambda: Doing(lambda net, x: (lambda y: y + y)(net.a(x)), a=nn.Linear(6, 6)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)),
    "a mask": lambda: Doing(masked, a=nn.Linear(6, 6), mask=nn.Parameter(torch.eye(6), requires_grad=False)),
    "an image without channels": lambda: nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten(), nn.Linear(15, 2)),
    "an average of it": lambda: nn.AvgPool2d((1, 2)),
    "some places of it": lambda: nn.AdaptiveAvgPool2d((1, 2)),
    "a signal without channels": lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.MaxPool1d(2)),
    "some places of that": lambda: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(3)),
    "what is not read": lambda: Doing(unread, a=nn.Linear(6, 6), b=nn.Linear(6, 3)),
    "in place": lambda: Doing(changed, a=nn.Linear(6, 6), b=nn.Linear(6, 6)),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_networks_do_besides(name, generator, tmp_path):
    """Stored tensors are computed with before a file is written."""
    x, network = random(generator, 60, 5, 6).float(), WRITTEN[name]().eval()
    found = tenflex.export(network, tmp_path / "network.c", x)
    assert found.difference < 2e-6
    assert "as expected" in sanitized(found.path)


def through_a_view(net: Doing, x):
    found = net.a(x)
    found.flatten(1).relu_()
    return net.b(found)


def regrouped(net: Doing, x):
    return net.b(net.a(x.reshape(-1, 3)).reshape(len(x), -1))


REFUSED = {
    "in place of what is read no more": lambda: Doing(through_a_view, a=nn.Linear(6, 6), b=nn.Linear(6, 3)),
    "one sample at a time, got 'reshape' to .10, 3. of one": lambda: Doing(
        regrouped, a=nn.Linear(3, 2), b=nn.Linear(20, 3)
    ),
    "what is the same each time, got random numbers": lambda: Doing(
        lambda net, x: net.a(x) + torch.rand(6), a=nn.Linear(6, 6)
    ),
    "layers whose numbers are stored, got 'relu'": lambda: Doing(
        lambda net, x: nn.functional.linear(x.flatten(1), x.flatten(1).relu())
    ),
    "outputs depend on the input, got stored numbers": lambda: Doing(lambda net, x: net.p + 0, p=learned(1, 3)),
    "sums of two values of one shape, got another": lambda: Doing(
        lambda net, x: net.a(x) + net.b(x), a=nn.Linear(6, 6), b=nn.Linear(6, 1)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_c_has_not_is_told_in_a_line(message, generator, tmp_path):
    from tenflex.export.program import program_of

    with pytest.raises(ValueError, match=f"the C exporter writes .*{message}"):
        program_of(REFUSED[message]().eval(), random(generator, 1, 5, 6).float())


def test_a_folder_in_the_place_of_the_header(generator, tmp_path):
    (tmp_path / "small.h").mkdir()
    with pytest.raises(ValueError, match=r"expected a place for a file at .*small\.h, which is a folder"):
        tenflex.export(nn.Linear(6, 3).eval(), tmp_path / "small.c", random(generator, 9, 6).float())
    assert [one.name for one in tmp_path.iterdir()] == ["small.h"]


@pytest.mark.parametrize("settings", [{}, *int8.values()], ids=str)
def test_other_layers_and_signals(settings, generator, tmp_path):
    """A block's own nodes, thin linear layers and convolutions of signals."""
    thin = ThinLinear(
        random(generator, 3, 12), random(generator, 6, 3), random(generator, 6), nn.Parameter(torch.ones(1))
    )
    own = FeedForward((6,), (4,), 5, Elementwise("relu"))
    network = nn.Sequential(nn.Conv1d(2, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), thin, own).float().eval()
    x = torch.rand(100, 2, 8, generator=generator)
    found = tenflex.export(network, tmp_path / "network.c", x, **settings)
    assert found.difference < (0.03 if settings else 2e-6)
    assert "as expected" in sanitized(found.path)
    with pytest.raises(ValueError, match="got 'gelu': export the part of the network before it"):
        tenflex.export(FeedForward((6,), (4,), 5, Elementwise("gelu")).eval(), tmp_path / "own.c", torch.rand(3, 6))


class MeanOfSignals(nn.Module):
    def forward(self, x):
        return x.mean(-1)


POOLS = {
    "max": nn.MaxPool1d(2),
    "max of more": nn.MaxPool1d(3, stride=2, padding=1),
    "max apart": nn.MaxPool1d(3, stride=1, dilation=2),
    "average": nn.AvgPool1d(2),
    "average of more": nn.AvgPool1d(4, stride=3),
    "to some": nn.AdaptiveAvgPool1d(9),
    "to one": nn.AdaptiveAvgPool1d(1),
    "mean": MeanOfSignals(),
}


@pytest.mark.parametrize("settings", [{}, *int8.values()], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_pooling_of_signals(pool, settings, generator, tmp_path):
    x = torch.randn(100, 2, 20, generator=generator)
    network = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), POOLS[pool], nn.Flatten())
    with torch.no_grad():
        network.append(nn.Linear(network(x).shape[1], 2))
    found = tenflex.export(network.eval(), tmp_path / "network.c", x, **settings)
    assert found.difference < (0.05 if settings else 2e-6)
    assert "as expected" in sanitized(found.path)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (nn.MaxPool1d(2, ceil_mode=True), "without ceil_mode"),
        (nn.AvgPool1d(2, padding=1), "averages without padding"),
        (nn.AdaptiveAvgPool1d(7), "pooling to a divisor of 18, got 7"),
    ],
)
def test_pooling_of_signals_that_c_has_not(pool, message, generator, tmp_path):
    with pytest.raises(ValueError, match=message):
        tenflex.export(pool.eval(), tmp_path / "pool.c", torch.randn(5, 2, 18, generator=generator))


@pytest.mark.parametrize("rounding", int8)
def test_whole_numbers_saturate(rounding, generator, images, tmp_path):
    """Inputs a thousand times as large as those that were seen give what the largest inputs give, and never wrap."""
    network = convolutions(generator, plain=True)
    found = tenflex.export(network, tmp_path / "network.c", images, **int8[rounding])
    session, largest = load(found.path), images.abs().max()
    huge = 1000 * images.sign() * largest
    torch.testing.assert_close(session.outputs((huge,)), session.outputs((images.sign() * largest,)))
    assert session.outputs((huge,)).isfinite().all()


HOSTILE = """
#include <stdio.h>
#include <stdint.h>
#include "layer.h"
static volatile float zero = 0.0f;
int main(void)
{
    const float bad[] = {0.0f / zero, 1.0f / zero, -1.0f / zero, 3e38f, -3e38f, 1e-45f};
    for (int k = 0; k < 6; k++) {
        float x[LAYER_INPUTS], y[LAYER_OUTPUTS];
        for (int i = 0; i < LAYER_INPUTS; i++)
            x[i] = i == k ? bad[k] : k == 5 ? bad[k] : 0.5f;
        CALL
        for (int i = 0; i < LAYER_OUTPUTS; i++)
            printf("%.9g ", (double)y[i]);
        printf("\\n");
    }
    return 0;
}
"""


@pytest.mark.parametrize("settings", [{}, *int8.values()], ids=str)
def test_any_input_has_a_defined_output(settings, generator, tmp_path):
    """No undefined behaviour; in floating point NaN stays, in whole numbers everything saturates."""
    network = layer_of(generator, BSpline(8), (3, None)).float().eval()
    x = random(generator, 100, M).float()
    tenflex.export(network, tmp_path / "layer.c", x, **settings)
    call = "int8_t q[LAYER_INPUTS]; layer_input(x, q); layer(q, y);" if settings else "layer(x, y);"
    text = HOSTILE.replace("CALL", call)
    (tmp_path / "hostile.c").write_text(text)
    flags = (*STRICT, *SANITIZED, "-fno-sanitize=float-divide-by-zero")
    program = tmp_path / "hostile"
    subprocess.run(["cc", *flags, tmp_path / "hostile.c", tmp_path / "layer.c", "-o", program], check=True)
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    found = np.array([[float(one) for one in line.split()] for line in out.splitlines()])
    assert found.shape == (6, 4)
    if not settings:
        assert np.isnan(found[0]).all()
        assert np.isfinite(found[5]).all()
        return
    assert np.isfinite(found).all()
    step = x.abs().max() / 127
    rows = torch.full((6, M), 0.5)
    for k, value in enumerate((0.0, 127 * step, -127 * step, 127 * step, -127 * step)):
        rows[k, k] = value
    rows[5] = 0
    np.testing.assert_allclose(load(tmp_path / "layer.c").outputs((rows,)), found, rtol=1e-5)


def test_sums_cannot_overflow(tmp_path):
    """Rows of equal signs on inputs at their limits: the ranges between are made smaller until the sums fit."""
    wide = nn.Sequential(nn.Linear(2, 3000), nn.Linear(3000, 2)).eval()
    with torch.no_grad():
        for one in wide:
            one.weight.fill_(1.0)
            one.bias.zero_()
    x = torch.linspace(-1, 1, 40)[:, None].expand(-1, 2).contiguous()
    for settings in int8.values():
        found = tenflex.export(wide, tmp_path / "wide.c", x, **settings)
        assert found.difference < 0.01
        assert "as expected" in sanitized(found.path)


def test_activations_that_are_no_polynomials_are_written_within_a_tolerance(generator, tmp_path):
    layer, x = layer_of(generator, Sine()).float().eval(), random(generator, 60, M).float()
    message = (
        r"C exporter writes activations that are polynomials, whole or in pieces, got Sine\(\): export with a toler"
    )
    with pytest.raises(ValueError, match=message):
        tenflex.export(layer, tmp_path / "sine.c", x)
    assert not list(tmp_path.iterdir())
    found = tenflex.export(layer, tmp_path / "sine.c", x, tolerance=0.01)
    expected = layer(x).detach()
    given = load(found.path).outputs((x,))
    assert (given - expected).abs().max() <= 0.01 * expected.abs().max()


def test_no_file_is_left_of_what_cannot_be_written(generator, tmp_path):
    x = random(generator, 5, M).float()
    cases = {
        "got 'softmax'": nn.Sequential(nn.Linear(M, 3), nn.Softmax(-1)),
        "a network of one output": Two(),
    }
    for message, network in cases.items():
        with pytest.raises(ValueError, match=message):
            tenflex.export(network.eval(), tmp_path / "bad.c", x)
    network = nn.Sequential(nn.Linear(M, 3)).eval()
    with pytest.raises(ValueError, match="as a function of C"):
        tenflex.export(network, tmp_path / "2-bad.c", x)
    with pytest.raises(ValueError, match=r"expected a file that ends in \.c, \.onnx"):
        tenflex.export(network, tmp_path / "bad.cc", x)
    with pytest.raises(ValueError, match="no option 'round'; did you mean 'rounding'"):
        tenflex.export(network, tmp_path / "bad.c", x, round="integer")
    with pytest.raises(ValueError, match="inputs must be finite"):
        tenflex.export(network, tmp_path / "bad.c", x / 0)
    with pytest.raises(ValueError, match="int8 in C knows"):
        tenflex.export(nn.Sequential(network, nn.Hardtanh()).eval(), tmp_path / "bad.c", x, int8=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.h").write_text("/* by hand */")
    with pytest.raises(ValueError, match="was not written by tenflex"):
        tenflex.export(network, tmp_path / "mine.c", x)
    assert (tmp_path / "mine.h").read_text() == "/* by hand */"


class Two(nn.Module):
    def forward(self, x):
        return x, x


def test_an_export_that_differs_is_an_error(generator, tmp_path, monkeypatch):
    from tenflex.export import c

    network = nn.Sequential(nn.Linear(M, 3)).eval()
    x = random(generator, 5, M).float()
    tenflex.export(network, tmp_path / "good.c", x)
    before = (tmp_path / "good.c").read_text()
    monkeypatch.setattr(c, "outputs_of", lambda program, inputs: program.values(inputs)[1])
    monkeypatch.setitem(
        c.float_source.__globals__["WRITE"],
        "linear",
        lambda source, step: source.calls.append("    y[0] = x[0]; y[1] = y[2] = 0;"),
    )
    monkeypatch.setattr(c, "run_main", lambda *_: "")
    with pytest.raises(RuntimeError, match="C gives other outputs than the network"):
        tenflex.export(network, tmp_path / "good.c", x)
    assert (tmp_path / "good.c").read_text() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["good.c", "good.h"]


def test_the_network_and_the_inputs_stay(generator, tmp_path):
    network, x = convolutions(generator), torch.randn(4, 2, 8, 8, generator=generator)
    before, given = {k: v.clone() for k, v in network.state_dict().items()}, x.clone()
    tenflex.export(network, tmp_path / "network.c", x)
    assert torch.equal(x, given)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed")
@pytest.mark.parametrize("settings", [{}, *int8.values()], ids=str)
def test_a_microcontroller_takes_it(settings, generator, tmp_path):
    network = layer_of(generator, BSpline(10), (3, None)).float().eval()
    tenflex.export(network, tmp_path / "layer.c", random(generator, 50, M).float(), **settings)
    strict = [*STRICT, *CORTEX, tmp_path / "layer.c"]
    subprocess.run(["arm-none-eabi-gcc", *strict, "-Os", "-c", "-o", tmp_path / "layer.o"], check=True)
    sizes = subprocess.run(["arm-none-eabi-size", tmp_path / "layer.o"], capture_output=True, text=True, check=True)
    text, data, bss = map(int, sizes.stdout.splitlines()[1].split()[:3])
    assert text < 6000
    assert data == bss == 0  # nothing but constants and code
    symbols = subprocess.run(
        ["arm-none-eabi-nm", "-u", tmp_path / "layer.o"], capture_output=True, text=True, check=True
    )
    assert not any(one in symbols.stdout for one in ("malloc", "floor", "exp", "__aeabi_d"))  # no double either
    if shutil.which("qemu-system-arm") is not None:
        assert "as expected" in on_a_board(tmp_path / "layer.c", "layer")


START = """
extern void _start(void);
void reset(void);
__attribute__((section(".vectors"), used)) static const void *const vectors[] = {(void *)0x20300000, (void *)reset};
void reset(void)
{
    *(volatile unsigned *)0xE000ED88 |= 0xFu << 20; /* the floating-point unit */
    __asm__ volatile("dsb\\nisb");
    _start();
}
"""


def on_a_board(path, name: str) -> str:
    """What `main` prints on an emulated Cortex-M4."""
    (path.parent / "start.c").write_text(START)
    linked = ["--specs=rdimon.specs", "-Wl,--section-start=.vectors=0", "-Wl,-Tdata=0x20000000"]
    elf = path.with_suffix(".elf")
    sources = [path, path.parent / "start.c"]
    command = [
        "arm-none-eabi-gcc",
        "-std=gnu99",
        "-O2",
        *CORTEX,
        *linked,
        f"-D{name.upper()}_MAIN",
        *sources,
        "-o",
        elf,
    ]
    subprocess.run(command, check=True, capture_output=True)
    board = ["qemu-system-arm", "-machine", "mps2-an386", "-nographic", "-semihosting", "-kernel", elf]
    run = subprocess.run(board, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    return run.stdout + run.stderr


# ---- what people bring ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ending", [".c", ".pt2"])
def test_networks_of_other_precisions_are_written(dtype: torch.dtype, ending: str, generator, tmp_path) -> None:
    """C holds single precision; a graph keeps that of the network, within some roundings of it."""
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype).eval()
    inputs = random(generator, 40, 6).to(dtype)
    found = tenflex.export(network, tmp_path / f"small{ending}", inputs)
    assert found.difference < (1e-4 if ending == ".c" else 4 * torch.finfo(dtype).eps)
    assert {one.dtype for one in network.parameters()} == {dtype}


@pytest.mark.parametrize(
    "name",
    [
        *("main", "linear", "expf", "while", "count", "NULL", "uint8_t", "INT16_MAX", "linux", "class"),
        *("A0", "clock", "remove", "time_t", "read", "connect", "pause", "permute_float", "add_int16_int16"),
    ],
)
def test_names_that_no_function_can_have(name: str, generator, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is a name that C or the file itself uses"):
        tenflex.export(nn.Linear(6, 3).eval(), tmp_path / f"{name}.c", random(generator, 9, 6).float())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["step", "input", "name", "state", "Net2", "my_input"])
def test_other_names_are_free(name: str, generator, tmp_path) -> None:
    """Also those of something else in the process that runs the file: a library that is loaded calls its own."""
    network = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    for settings, bound in (({}, 2e-6), ({"int8": True}, 0.1)):
        found = tenflex.export(network, tmp_path / f"{name}.c", random(generator, 90, 6).float(), **settings)
        assert found.difference < bound


def test_whole_numbers_alone_are_for_int8(generator, tmp_path) -> None:
    with pytest.raises(ValueError, match="rounding='integer' is for int8=True"):
        tenflex.export(
            nn.Linear(6, 3).eval(), tmp_path / "small.c", random(generator, 9, 6).float(), rounding="integer"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("int8", [False, True])
def test_a_program_in_cpp_links_it(int8: bool, generator, tmp_path) -> None:
    tenflex.export(nn.Linear(6, 3).eval(), tmp_path / "small.c", random(generator, 90, 6).float(), int8=int8)
    main = f"int main() {{ {'signed char' if int8 else 'float'} x[6] = {{}}; float y[3]; small(x, y); }}"
    (tmp_path / "use.cpp").write_text('#include "small.h"\n' + main)
    subprocess.run(["gcc", "-c", "small.c", "-o", "small.o"], cwd=tmp_path, check=True)
    subprocess.run(["g++", "use.cpp", "small.o", "-lm", "-o", "use"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "use"], check=True)


@pytest.mark.parametrize("shape", [(0, 6), (6,)])
def test_a_batch_is_expected(shape: tuple[int, ...], tmp_path) -> None:
    with pytest.raises(ValueError, match="expected a batch of"):
        tenflex.export(nn.Linear(6, 3).eval(), tmp_path / "small.pt2", torch.zeros(shape))


def test_inputs_of_another_width(generator, tmp_path) -> None:
    network = nn.Sequential(nn.Linear(6, 3)).eval()
    with pytest.raises(ValueError, match=r"fails on the input a tuple of \(float32 \(9, 5\)\)"):
        tenflex.export(network, tmp_path / "small.c", random(generator, 9, 5).float())
