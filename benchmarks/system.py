"""Models of systems: a linear map beside a nonlinearity, which is a polynomial, a network or a flexible layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from tenflex import FlexibleLayer, Solution
from tenflex.solvers import Chain, ConstrainedALS, MultiStart, Refine

APPROXIMATE = Chain((MultiStart(ConstrainedALS(10), 5), Refine(200)))
"""For maps that no small layer equals: many exact starts, the default for functions, would be in vain."""


class Beside(nn.Module):
    """`linear(x) + nonlinear(x)`: only the second is decoupled, so that no node is spent on what a matrix can do."""

    def __init__(self, linear: nn.Linear, nonlinear: nn.Module) -> None:
        super().__init__()
        self.linear, self.nonlinear = linear, nonlinear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.nonlinear(x)


class Products(nn.Module):
    """All products of two up to `degree` of m inputs, combined to n outputs: a coupled polynomial."""

    def __init__(self, m: int, n: int, degree: int) -> None:
        super().__init__()
        chosen = [one for many in range(2, degree + 1) for one in combinations_with_replacement(range(m), many)]
        padded = [[*one, *[m] * (degree - len(one))] for one in chosen]  # input m is a one
        self.register_buffer("index", torch.tensor(padded))
        self.combine = nn.Linear(len(padded), n, bias=False, dtype=torch.float64)

    def products(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[..., :1])], -1)[..., self.index].prod(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self.products(x))


class Nothing(nn.Module):
    """No nonlinearity: the linear model."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def parameters(model: nn.Module) -> int:
    """All numbers of a model."""
    return sum(one.numel() for one in model.parameters())


def relative_error(predicted: Tensor, true: Tensor) -> float:
    """`||p - y|| / ||y - mean(y)||`; infinite where the model has diverged."""
    error = ((predicted - true).norm() / (true - true.mean(0)).norm()).item()
    return error if error < 1e3 else float("inf")


@torch.no_grad()
def fit_linear(x: Tensor, y: Tensor) -> Beside:
    """The affine map by least squares."""
    model = Beside(nn.Linear(x.shape[1], y.shape[1], dtype=x.dtype), Nothing())
    solution = torch.linalg.lstsq(with_one(x), y).solution
    model.linear.weight.copy_(solution[:-1].mT)
    model.linear.bias.copy_(solution[-1])
    return model.eval()


@torch.no_grad()
def fit_polynomial(x: Tensor, y: Tensor, degree: int, ridge: float) -> Beside:
    """The polynomial by least squares, with `ridge` times the number of samples on the diagonal of the Gram matrix."""
    nonlinear = Products(x.shape[1], y.shape[1], degree)
    P = torch.cat([nonlinear.products(x), with_one(x)], 1)
    gram = P.mT @ P + ridge * len(x) * torch.eye(P.shape[1], dtype=x.dtype)
    solution = torch.linalg.solve(gram, P.mT @ y).mT
    model = Beside(nn.Linear(x.shape[1], y.shape[1], dtype=x.dtype), nonlinear)
    nonlinear.combine.weight.copy_(solution[:, : -x.shape[1] - 1])
    model.linear.weight.copy_(solution[:, -x.shape[1] - 1 : -1])
    model.linear.bias.copy_(solution[:, -1])
    return model.eval()


def with_one(x: Tensor) -> Tensor:
    """The inputs and a column of ones."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def fit_network(x: Tensor, y: Tensor, width: int, epochs: int = 30, batch: int = 256) -> Beside:
    """A network with two hidden layers beside a linear map, by Adam from seed 0; double precision afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Linear(x.shape[1], width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        linear = nn.Linear(x.shape[1], y.shape[1])
        model = Beside(linear, nn.Sequential(*layers, nn.Linear(width, y.shape[1], bias=False)))
        optimizer = torch.optim.Adam(model.parameters())
        steps = epochs * (len(x) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(x), (batch,))
            loss = (model(x[chosen].float()) - y[chosen].float()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.double().eval()


def with_layer(model: Beside, solution: Solution) -> Beside:
    """The model with a flexible layer in the place of its nonlinearity."""
    return Beside(deepcopy(model.linear), FlexibleLayer.from_factors(solution.factors))


def from_random(linear: nn.Linear, like: FlexibleLayer, seed: int) -> Beside:
    """A layer of the same size from a random start, for inputs of unit variance: what to do without a decoupling."""
    layer = deepcopy(like)
    generator = torch.Generator().manual_seed(seed)
    first, last = layer.maps
    with torch.no_grad():
        for part in (first, layer.activations, last):
            for one in part.parameters():
                one.normal_(generator=generator)
        V = first.weight
        V /= 3 * V.norm(dim=1, keepdim=True)  # three standard deviations fill the interval of the basis
        first.bias.zero_()
        last.weight.mul_(0.1)
        last.bias.zero_()
    return Beside(deepcopy(linear), layer)


def in_parameters(model: Beside, x: Tensor) -> Tensor:
    """The derivatives of the outputs at inputs `(S, m)` in all parameters, `(S, n, p)`."""
    values = {name: one.detach() for name, one in model.named_parameters()}

    def at(values: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, values, (x,))

    slopes = vmap(jacrev(at), in_dims=(None, 0))(values, x)
    return torch.cat([slopes[name].flatten(2) for name in values], 2)


def marquardt(
    model: Beside,
    predict: Callable[[Beside], Tensor],
    slopes: Callable[[Beside, Tensor], Tensor],
    target: Tensor,
    most: int,
) -> Iterator[Beside]:
    """The model, then that after every step of Levenberg-Marquardt towards `predict(model) = target`.

    Args:
        model: Where to start; not changed.
        predict: What a model predicts.
        slopes: The derivatives of that in all parameters, which come last, given the model and what it predicts.
        target: What it should predict.
        most: The most steps; it ends before, when one lowers the squared error by less than a ten-thousandth.
    """
    damping, predicted = 1e-3, predict(model)
    cost = (target - predicted).square().mean()
    yield model
    for _ in range(most):
        S = slopes(model, predicted).flatten(0, -2)
        gram, slope = S.mT @ S, S.mT @ (target - predicted).flatten()
        before, here, lower = cost, nn.utils.parameters_to_vector(model.parameters()).detach(), False
        model = deepcopy(model)
        while damping < 1e8 and not lower:
            damped = gram + damping * torch.diag(gram.diagonal() + 1e-12)
            nn.utils.vector_to_parameters(here + torch.linalg.solve(damped, slope), model.parameters())
            predicted = predict(model)
            cost = (target - predicted).square().mean()
            lower = bool(cost < before)
            damping *= 1 / 8 if lower else 8
        if lower:
            yield model
        if not lower or before - cost < 1e-4 * before:
            return
