"""Trainable activations: gradients, published special cases, what they learn, half precision, files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.evaluate.cost import cost, stored_numbers
from tenflex.nn.activations import (
    APL,
    FAMILIES,
    KAF,
    PELU,
    VAF,
    Channelwise,
    FourierActivation,
    HermiteActivation,
    KANLayer,
    Maxout,
    PolynomialActivation,
    PReLU,
    RationalActivation,
    SplineActivation,
    SReLU,
    Swish,
    TrainableActivation,
)

FEW = torch.linspace(-2.9, 2.8, 24, dtype=torch.float64).reshape(8, 3)  # of hinges none is hit


def perturbed(module: nn.Module) -> nn.Module:
    """The same in float64, each node another."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in module.double().parameters():
            one += 0.1 * torch.randn(one.shape, generator=generator, dtype=one.dtype)
    return module


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients(name: str) -> None:
    module = perturbed(FAMILIES[name](3))
    names, values = zip(*module.named_parameters(), strict=True)

    def run(t: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), t)

    inputs = (FEW.clone().requires_grad_(), *(one.detach().requires_grad_() for one in values))
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_node_is_a_function_of_its_own(name: str) -> None:
    module = perturbed(FAMILIES[name](3))
    assert all(len(one) == 3 for one in module.parameters())
    together = module(FEW)
    one = FAMILIES[name](1).double()
    for k in range(3):
        one.load_state_dict({key: value[k : k + 1] for key, value in module.state_dict().items()})
        torch.testing.assert_close(one(FEW[:, k : k + 1]), together[:, k : k + 1])
    assert module(FEW.reshape(2, 4, 3)).reshape(8, 3).equal(together)


@pytest.mark.parametrize("name", FAMILIES)
def test_they_begin_near_the_rectifier(name: str) -> None:
    t = torch.linspace(-2.5, 2.5, 101)[:, None]
    error = (FAMILIES[name](1)(t) - t.relu()).abs().max()
    assert error < (1.0 if name in ("prelu", "pelu") else 0.36)  # these begin as their papers say


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    module = perturbed(FAMILIES[name](3)).float()
    t = FEW.float()
    expected, found = module(t).detach(), module.to(dtype)(t.to(dtype))
    assert found.dtype == dtype
    tolerance = (2e-2 if dtype == torch.float16 else 1e-1) * float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    module = perturbed(FAMILIES[name](3))
    save_file(module.state_dict(), tmp_path / "state.safetensors")
    again = FAMILIES[name](3).double()
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert again(FEW).equal(module(FEW))
    assert stored_numbers(module) == sum(one.numel() for one in module.parameters())  # fixed points are not stored


@pytest.mark.parametrize("name", FAMILIES)
def test_a_planted_member_is_learnt(name: str) -> None:
    """From the start, by a quasi-Newton method: the planted function is one of the family."""
    planted, module = perturbed(FAMILIES[name](2)), FAMILIES[name](2).double()
    t = torch.linspace(-3, 3, 120, dtype=torch.float64)[:, None].expand(-1, 2)
    target = planted(t).detach()
    before = F.mse_loss(module(t), target).item()
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(module(t), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() < 0.05 * before


@pytest.mark.parametrize("name", ["kaf", "fourier", "hermite", "polynomial", "spline", "vaf", "rational"])
def test_a_sine_is_learnt(name: str) -> None:
    module: TrainableActivation = FAMILIES[name](1).double()
    t = torch.linspace(-3, 3, 120, dtype=torch.float64)[:, None]
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(module(t), t.sin())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() < 0.03


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(4, 1), (4, 5), (3, 4, 2), ()])
def test_an_entry_for_each_node_is_needed(name: str, shape: tuple[int, ...]) -> None:
    """One number is not taken for all nodes, as broadcasting would."""
    with pytest.raises(ValueError, match=r"expected 3 numbers along the last dimension, one a node, got"):
        FAMILIES[name](3)(torch.zeros(shape))


@pytest.mark.parametrize("name", FAMILIES)
def test_operations_are_counted(name: str) -> None:
    module = nn.Sequential(nn.Linear(5, 4), FAMILIES[name](4), nn.Linear(4, 2))
    found = cost(module, torch.zeros(1, 5))
    assert found.macs == 28
    assert found.activation_operations == 4 * module[1].operations > 0


def set_(module: nn.Module, **values: object) -> nn.Module:
    """A module with these values for each node."""
    with torch.no_grad():
        for name, value in values.items():
            one = module.get_parameter(name)
            one.copy_(torch.as_tensor(value).expand_as(one))
    return module.double()


SPECIAL = {
    "PReLU, a = 0": (lambda: set_(PReLU(3), slope=0.0), torch.relu),
    "PReLU, a = 1": (lambda: set_(PReLU(3), slope=1.0), lambda t: t),
    "PELU, a = b = 1": (lambda: set_(PELU(3), scale=1.0, range=1.0), F.elu),
    "Swish, 1": (lambda: set_(Swish(3), sharpness=1.0), F.silu),
    "Swish, 0": (lambda: set_(Swish(3), sharpness=0.0), lambda t: t / 2),
    "Swish, large": (lambda: set_(Swish(3), sharpness=1e4), torch.relu),
    "SReLU, ReLU": (lambda: set_(SReLU(3), hinges=[0.0, 1.0], slopes=[0.0, 1.0]), torch.relu),
    "SReLU, flat": (lambda: set_(SReLU(3), hinges=[-1.0, 1.0], slopes=[0.0, 0.0]), F.hardtanh),
    "APL, no hinges": (lambda: APL(3, hinges=0).double(), torch.relu),
    "APL, absolute": (lambda: set_(APL(3, hinges=1), slopes=1.0, places=0.0), torch.abs),
    "VAF, one": (lambda: VAF(3, hidden=1).double(), lambda t: t.relu()),
    "polynomial": (
        lambda: set_(PolynomialActivation(3, 2), coefficients=[1.0, -2.0, 3.0]),
        lambda t: 1 - 2 * t + 3 * t**2,
    ),
    "Fourier": (
        lambda: set_(FourierActivation(3, 1), frequency=2.0, coefficients=[0.0, 0.0, 1.0, 0.5]),
        lambda t: (2 * t).cos() + (2 * t).sin() / 2,
    ),
    "rational": (
        lambda: set_(RationalActivation(3), numerator=[0.0, 1, 0, 0, 0, 0], denominator=[0.0, 1, 0, 0]),
        lambda t: t / (1 + t**2),
    ),
    "spline, all one": (lambda: set_(SplineActivation(3), coefficients=1.0), torch.ones_like),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_cases(name: str) -> None:
    make, expected = SPECIAL[name]
    torch.testing.assert_close(make()(FEW), expected(FEW).double(), rtol=1e-6, atol=1e-6)


def test_hermite_begins_with_the_moments_of_the_rectifier() -> None:
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(200))
    weights = weights / math.sqrt(2 * math.pi)
    module = HermiteActivation(1, degree=8).double()
    functions = module.functions(nodes)
    torch.testing.assert_close(functions.mT @ (weights[:, None] * functions), torch.eye(9).double(), rtol=0, atol=1e-9)
    moments = functions.mT @ (weights * nodes.relu())
    torch.testing.assert_close(module.coefficients[0].detach(), moments, rtol=0, atol=2e-3)


def test_kernels_are_those_of_the_paper() -> None:
    module = set_(KAF(1, 4), coefficients=[0.0, 1.0, 0.0, 0.0])
    t = torch.tensor([[-1.0], [1.0], [-5.0]]).double()  # points at -3, -1, 1, 3: their distance is 2
    torch.testing.assert_close(module(t)[:, 0], torch.exp(-torch.tensor([0.0, 4.0, 16.0]).double() / 24))


def test_maxout() -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    linear = nn.Linear(4, 3).double()
    doubled = nn.Linear(4, 6).double()
    for other, expected in ((0.0, linear(x).relu()), (-1.0, linear(x).abs())):
        doubled.weight.data = torch.stack([linear.weight, other * linear.weight], 1).flatten(0, 1).detach()
        doubled.bias.data = torch.stack([linear.bias, other * linear.bias], 1).flatten().detach()
        torch.testing.assert_close(Maxout(2)(doubled(x)), expected)
    assert cost(nn.Sequential(doubled, Maxout(2)), x).activation_operations == 3
    with pytest.raises(ValueError, match="expected a multiple of 4 numbers, 4 a node, got 6"):
        Maxout(4)(doubled(x))


def test_channels() -> None:
    module, x = Channelwise(perturbed(SplineActivation(3))), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = module(x)
    for k in range(3):
        single = SplineActivation(1).double()
        single.coefficients.data = module.activation.coefficients[k : k + 1].detach()
        torch.testing.assert_close(found[:, k], single(x[:, k][..., None])[..., 0])


def test_a_kan_layer_is_a_sum_over_edges() -> None:
    layer = KANLayer(3, 2, count=6).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    gates, splines = layer.map.weight[:, :3], layer.map.weight[:, 3:].unflatten(1, (3, 6))
    expected = torch.zeros(7, 2, dtype=torch.float64)
    for j in range(2):
        for i in range(3):
            expected[:, j] += gates[j, i] * F.silu(x[:, i]) + layer.edges.basis.value(x[:, i] / 3) @ splines[j, i]
    torch.testing.assert_close(layer(x), expected)
    assert stored_numbers(layer) == 2 * 3 * 7
    assert cost(layer, x).macs == 2 * 3 * 7
    assert cost(layer, x).activation_operations == layer.edges.operations_per_example() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_sizes(name: str) -> None:
    with pytest.raises(ValueError, match="nodes must be a whole number of at least 1, got 0"):
        FAMILIES[name](0)
