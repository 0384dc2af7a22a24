"""Decompositions of convolutions: exact at full rank, sizes as stated, Gauss-Newton against dense references."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import tensorly
import torch
from scipy.optimize import least_squares
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn

from tenflex.baselines import asymmetric_svd, data_aware_svd, polyadic, tucker2
from tenflex.baselines.chained import refit_
from tenflex.baselines.kim2016 import TuckerConvolution, orthogonal_factors, tucker2_layer
from tenflex.baselines.lebedev2015 import PolyadicConvolution, polyadic_layer
from tenflex.baselines.linear import ThinConvolution
from tenflex.baselines.polyadic import balanced, composed, decompose, error_of, gauss_newton, newton_step, others
from tenflex.evaluate.cost import cost, stored_numbers
from tenflex.evaluate.fidelity import fidelity, predict, relative_error
from tenflex.nn.chained import Chained

DECOMPOSITIONS: list[Callable[..., nn.Module]] = [data_aware_svd, asymmetric_svd, tucker2, polyadic]

CONVOLUTIONS = {  # each with an input
    "plain": (nn.Conv2d(3, 5, 3), (3, 8, 8)),
    "strided": (nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 9, 8)),
    "without bias": (nn.Conv2d(4, 3, 3, padding="same", bias=False), (4, 6, 6)),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 6, 6)),
    "of sequences": (nn.Conv1d(3, 5, 4, stride=2), (3, 11)),
    "of volumes": (nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
}


class Small(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.fc1 = nn.Linear(72, 20)
        self.fc2 = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc2(self.fc1(x.flatten(1)).relu())


def images(count: int, *shape: int) -> Tensor:
    """Smooth random inputs."""
    x = torch.randn(count, *shape, dtype=torch.float64)
    return x.cumsum(-1) / 3


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_full_rank_is_exact(name: str) -> None:
    layer, shape = copy.deepcopy(CONVOLUTIONS[name])
    layer, x = layer.double().eval(), images(4, *shape)
    expected = layer(x)
    n, c, *sizes = layer.weight.shape
    torch.testing.assert_close(tucker2_layer(layer, n, c)(x), expected, rtol=0, atol=1e-10)
    full = n * c * torch.Size(sizes).numel() // max(n, c, *sizes)  # a slice of one mode for each component
    torch.testing.assert_close(polyadic_layer(layer, full)(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_sizes_are_as_stated(name: str) -> None:
    layer, shape = copy.deepcopy(CONVOLUTIONS[name])
    tucker, chain = TuckerConvolution(layer), PolyadicConvolution(layer)
    for place in range(0, len(tucker.path), 2):
        assert stored_numbers(tucker.layer(place)) == tucker.size(*tucker.path[place])
    assert stored_numbers(chain.layer(3)) == chain.size(3)
    assert tucker.path[-1] == (len(layer.weight), layer.weight.shape[1])
    x = torch.zeros(1, *shape)
    assert chain.layer(3)(x).shape == tucker.layer(0)(x).shape == layer(x).shape


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contract_on_a_convolutional_network(decomposition: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    model, x = Small().to(dtype).eval(), images(60, 1, 9, 9).to(dtype)
    before = copy.deepcopy(model.state_dict())
    smaller, again = (decomposition(model, x, 1100) for _ in range(2))
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close(predict(smaller, x), predict(again, x), rtol=0, atol=0)
    assert not any(one._forward_pre_hooks for one in (*model.modules(), *smaller.modules()))
    assert {one.dtype for one in smaller.parameters()} == {dtype}
    assert 900 < stored_numbers(smaller) <= 1100
    assert fidelity(smaller, model, x).relative_error < 0.7
    shared = {one.data_ptr() for one in model.parameters()} & {one.data_ptr() for one in smaller.parameters()}
    assert not shared


def test_a_convolution_is_a_linear_layer_on_patches() -> None:
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1).double().eval()
    x = images(20, 3, 7, 7)
    patches = nn.functional.unfold(x, 3, stride=2, padding=1).mT.reshape(-1, 27)
    linear = nn.Linear(27, 6).double().eval()
    linear.weight.data, linear.bias.data = conv.weight.detach().flatten(1), conv.bias.detach()
    budget = 2 * (27 + 6) + 6
    smaller, expected = data_aware_svd(conv, x, budget), data_aware_svd(linear, patches, budget)
    assert isinstance(smaller, ThinConvolution)
    found = predict(smaller, x).movedim(1, -1).reshape(-1, 6)
    torch.testing.assert_close(found, predict(expected, patches), rtol=0, atol=1e-8)
    assert cost(smaller, x[:1]).macs == 16 * 2 * (27 + 6)


def test_planted_channels_are_found() -> None:
    conv = nn.Conv2d(8, 9, 3).double().eval()
    core = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    U, V = torch.randn(9, 3, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    conv.weight.data = torch.einsum("abij,na,cb->ncij", core, U, V)
    x = images(10, 8, 6, 6)
    planted = 2 * 8 + 2 * 3 * 9 + 3 * 9 + 9
    smaller = tucker2(conv, x, planted)
    assert stored_numbers(smaller) == planted
    assert relative_error(predict(smaller, x), predict(conv, x)) < 1e-6


def test_a_planted_sum_of_products_is_found(generator: torch.Generator) -> None:
    sizes = (6, 5, 4, 3)
    planted = tuple(torch.randn(size, 4, generator=generator, dtype=torch.float64) for size in sizes)
    fit = decompose(composed(planted), 4, starts=5)
    assert fit.error < 1e-18


def test_the_gauss_newton_matrix_is_that_of_the_jacobian(generator: torch.Generator) -> None:
    factors = tuple(torch.randn(size, 2, generator=generator, dtype=torch.float64) for size in (4, 3, 2))
    moves = tuple(torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in factors)
    _, along = torch.func.jvp(lambda *parts: composed(parts), factors, moves)
    _, back = torch.func.vjp(lambda *parts: composed(parts), *factors)
    grams = [one.mT @ one for one in factors]
    found = gauss_newton(factors, grams, [others(factors, mode) for mode in range(3)], moves)
    for one, expected in zip(found, back(along), strict=True):
        torch.testing.assert_close(one, expected)


def test_steps_go_downhill_and_balance_changes_nothing(generator: torch.Generator) -> None:
    tensor = torch.randn(5, 4, 3, 3, generator=generator, dtype=torch.float64)
    factors = tuple(torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in tensor.shape)
    torch.testing.assert_close(composed(balanced(factors)), composed(factors))
    assert error_of(tensor, newton_step(tensor, factors, 1.0)) < error_of(tensor, factors)
    quick, careful = (decompose(tensor, 4, steps=steps).error for steps in (0, 60))
    assert careful <= quick


def test_it_is_no_worse_than_tensorly(generator: torch.Generator) -> None:
    tensor = torch.randn(6, 5, 3, 3, generator=generator, dtype=torch.float64)
    theirs = tensorly.cp_to_tensor(parafac(tensor.numpy(), 5, n_iter_max=500, init="random", random_state=0))
    error = float((tensor - torch.from_numpy(theirs)).square().sum() / tensor.square().sum())
    assert decompose(tensor, 5, starts=5).error < 1.02 * error


def test_orthogonal_iteration_is_no_worse_than_that_of_tensorly(generator: torch.Generator) -> None:
    kernel = torch.randn(7, 6, 3, 3, generator=generator, dtype=torch.float64)
    core, (V_out, V_in) = partial_tucker(kernel.numpy(), rank=[4, 3], modes=[0, 1], n_iter_max=200, tol=1e-12)[0]
    theirs = np.einsum("ab...,na,cb->nc...", core, V_out, V_in)
    U, V = orthogonal_factors(kernel, 4, 3)
    ours = torch.einsum("nc...,na,cb,ma,db->md...", kernel, U, V, U, V)
    error = float((kernel - torch.from_numpy(theirs)).norm())
    assert float((kernel - ours).norm()) < 1.01 * error


@pytest.mark.parametrize("seed", [0, 3])  # the second has a swamp, in which steps gain little for a while
def test_where_steps_end_scipy_finds_nothing_better(seed: int) -> None:
    """From the decomposition that was found of a noisy sum of products, least squares of another library go nowhere."""
    generator, sizes, rank = torch.Generator().manual_seed(seed), (5, 4, 3, 2), 3
    planted = composed(tuple(torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in sizes))
    tensor = planted + 0.1 * torch.randn(*sizes, generator=generator, dtype=torch.float64)
    fit = decompose(tensor, rank, steps=100)

    def residual(flat: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(flat).split([size * rank for size in sizes])
        factors = tuple(part.view(size, rank) for part, size in zip(parts, sizes, strict=True))
        return (composed(factors) - tensor).flatten().numpy()

    start = torch.cat([one.flatten() for one in fit.factors]).numpy()
    found = least_squares(residual, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert 2 * found.cost > (1 - 1e-5) * fit.error * float(tensor.square().sum())


def test_the_refit_is_the_least_squares_map() -> None:
    conv, x = nn.Conv2d(3, 5, 3).double().eval(), images(12, 3, 7, 7)
    chain = polyadic_layer(conv, 4)
    before = relative_error(predict(chain, x), predict(conv, x))
    holder, original = nn.Sequential(chain).eval(), nn.Sequential(conv).eval()
    refit_(holder, original, {"0": conv}, x)
    assert isinstance(holder[0], Chained)
    residual = (predict(conv, x) - predict(holder, x)).movedim(1, -1).reshape(-1, 5)
    inside = chain.inner(x).movedim(1, -1).reshape(-1, 4).detach()
    assert residual.mean(0).abs().max() < 1e-12
    assert (inside.mT @ residual).abs().max() < 1e-3 * (inside.mT @ inside).abs().max()
    assert relative_error(predict(chain, x), predict(conv, x)) < before
