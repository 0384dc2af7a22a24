"""Baselines against dense references, planted truth and the contract that all of them keep."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.baselines import asymmetric_svd, best_affine, data_aware_svd, node_dropping, shrunk_svd
from tenflex.baselines.ranks import Ladder, choose_steps, total
from tenflex.baselines.shrunk import SHRINKAGES
from tenflex.demo.digits import Digits
from tenflex.demo.networks import LeNet300
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import fidelity, predict, relative_error
from tenflex.nn.low_rank import ThinLinear

Baseline = Callable[[nn.Module, Tensor], nn.Module]

FACTORIZATIONS = [data_aware_svd, asymmetric_svd]
BASELINES: dict[str, Baseline] = {  # a new baseline is one row
    "data_aware_svd": lambda model, inputs: data_aware_svd(model, inputs, 150),
    "asymmetric_svd": lambda model, inputs: asymmetric_svd(model, inputs, 150),
    "best_affine": best_affine,
    "node_dropping": lambda model, inputs: node_dropping(model, inputs, 200),
}


class Shuffled(nn.Module):
    """Three layers, registered in another order than they are called in, one of them on tokens and twice."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.middle = nn.Linear(8, 8, bias=False)
        self.first = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.unflatten(1, (-1, 4))).tanh()
        return self.last(self.middle(self.middle(input=x).relu()).mean(1))


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    """A network with ReLU between its linear layers, in eval mode and float64."""
    layers = [one for m, n in itertools.pairwise(widths) for one in (nn.Linear(m, n, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double().eval()


def correlated(count: int, size: int) -> Tensor:
    """Inputs with a mean and very unequal variances."""
    spread = torch.logspace(0, -3, size, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    return torch.randn(count, size, dtype=torch.float64) * spread @ rotation + torch.rand(size, dtype=torch.float64)


def best_low_rank(A: Tensor, X: Tensor, rank: int) -> Tensor:
    """The papers' formula, in full: whiten by the root of the covariance, cut the SVD, take the root back out."""
    variances, axes = torch.linalg.eigh(torch.cov(X.mT, correction=0))
    root = axes * variances.sqrt() @ axes.mT
    U, S, V = torch.linalg.svd(A @ root)
    return U[:, :rank] * S[:rank] @ V[:rank] @ torch.linalg.inv(root)


def ranks(model: nn.Module) -> list[int]:
    """The inner widths of the factored layers."""
    return [one.rank for one in model.modules() if isinstance(one, ThinLinear)]


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contract(
    baseline: Baseline, dtype: torch.dtype, unchanged_rng: Callable[[], AbstractContextManager[None]]
) -> None:
    model = mlp(12, 20, 4).to(dtype)
    inputs = correlated(100, 12).to(dtype)
    before = copy.deepcopy(model.state_dict())
    with unchanged_rng():
        smaller, again = baseline(model, inputs), baseline(model, inputs)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close(predict(smaller, inputs), predict(again, inputs), rtol=0, atol=0)
    assert not any(one._forward_pre_hooks or one._forward_hooks for one in (*model.modules(), *smaller.modules()))
    assert not any(one.training for one in smaller.modules())
    assert {one.dtype for one in smaller.parameters()} == {dtype}
    shared = {one.data_ptr() for one in model.parameters()} & {one.data_ptr() for one in smaller.parameters()}
    assert not shared
    assert stored_numbers(smaller) < stored_numbers(model)
    assert fidelity(smaller, model, inputs).relative_error < 0.9


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_bad_models_and_inputs(baseline: Baseline) -> None:
    model = mlp(12, 20, 4)
    inputs = correlated(50, 12)
    with pytest.raises(ValueError, match="eval mode"):
        baseline(copy.deepcopy(model).train(), inputs)
    with pytest.raises(ValueError, match="must be finite"):
        baseline(model, torch.where(inputs == inputs[3, 1], math.nan, inputs))
    with pytest.raises((TypeError, ValueError), match=r"inputs must|expected batch 0 to be a tensor"):
        baseline(model, inputs.tolist())
    with pytest.raises(ValueError, match=r"at least (two inputs|2 examples)"):
        baseline(model, inputs[:0])


@pytest.mark.parametrize(("m", "n", "rank"), [(9, 14, 2), (14, 9, 5), (10, 10, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_is_the_best_of_its_rank(m: int, n: int, rank: int, bias: bool) -> None:
    model, X = mlp(m, n, bias=bias), correlated(200, m)
    smaller = data_aware_svd(model, X, rank * (m + n) + n)
    assert ranks(smaller) == [rank]
    A = model[0].weight.detach()
    expected = best_low_rank(A, X, rank)
    found = smaller[0].outer.weight @ smaller[0].inner.weight
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    error = (predict(model, X) - predict(smaller, X)).norm()
    centred = X - X.mean(0)
    torch.testing.assert_close(error, (centred @ (A - expected).mT).norm())  # the bias absorbs the mean
    left_out = torch.linalg.svdvals(centred @ A.mT)[rank:]
    torch.testing.assert_close(error, left_out.norm())  # Eckart and Young: nothing of this rank is better


def test_the_data_decide_not_the_weights() -> None:
    model, X = mlp(30, 20, 5), correlated(300, 30)
    budget = 400
    smaller = data_aware_svd(model, X, budget, layers=["0"])
    A = model[0].weight.detach()
    U, S, V = torch.linalg.svd(A)
    (rank,) = ranks(smaller)
    plain = copy.deepcopy(model)
    plain[0].weight.data = U[:, :rank] * S[:rank] @ V[:rank]
    assert fidelity(smaller, model, X).relative_error < 0.3 * fidelity(plain, model, X).relative_error


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_directions_that_the_data_never_excite_cost_no_rank(factorize: Callable[..., nn.Module]) -> None:
    model = mlp(40, 30, 6)
    X = torch.randn(100, 3, dtype=torch.float64) @ torch.randn(3, 40, dtype=torch.float64) + 1
    smaller = factorize(model, X, 3 * (40 + 30) + 30, layers=["0"])
    assert ranks(smaller) == [3]
    assert fidelity(smaller, model, X).relative_error < 1e-6


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_planted_ranks_are_found(factorize: Callable[..., nn.Module]) -> None:
    model = mlp(20, 25, 15, 5)
    for layer, rank in ((model[0], 4), (model[2], 2)):
        n, m = layer.weight.shape
        layer.weight.data = torch.randn(n, rank, dtype=torch.float64) @ torch.randn(rank, m, dtype=torch.float64)
    X = torch.randn(400, 20, dtype=torch.float64)
    budget = 4 * (20 + 25) + 25 + 2 * (25 + 15) + 15 + stored_numbers(model[4])
    smaller = factorize(model, X, budget)
    assert ranks(smaller) == [4, 2]
    assert stored_numbers(smaller) == budget
    assert fidelity(smaller, model, X).relative_error < 1e-6


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_the_whole_budget_keeps_the_whole_model(factorize: Callable[..., nn.Module]) -> None:
    model, X = Shuffled().double().eval(), torch.randn(60, 12, dtype=torch.float64)
    same = factorize(model, X, stored_numbers(model))
    assert stored_numbers(same) == stored_numbers(model)
    torch.testing.assert_close(predict(same, X), predict(model, X))


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
@pytest.mark.parametrize("budget", [58, 70, 85, 100, 125])
def test_budgets_hold_and_are_used_for_any_module(factorize: Callable[..., nn.Module], budget: int) -> None:
    model, X = Shuffled().eval(), torch.randn(60, 12)
    smaller = factorize(model, X, budget)
    one_rank_more = max(sum(layer.weight.shape) for layer in (model.first, model.middle, model.last))
    assert budget - one_rank_more < stored_numbers(smaller) <= budget
    assert sorted(dict(smaller.named_children())) == ["first", "last", "middle"]


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_only_named_layers_are_factored(factorize: Callable[..., nn.Module]) -> None:
    model, X = mlp(12, 20, 15, 4), correlated(100, 12)
    smaller = factorize(model, X, 200, layers=("2",))
    torch.testing.assert_close(smaller[0].state_dict(), model[0].state_dict())
    torch.testing.assert_close(smaller[4].state_dict(), model[4].state_dict())
    assert stored_numbers(smaller[2]) == 5 * 35 + 15 <= 200


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_the_model_may_be_the_layer(factorize: Callable[..., nn.Module]) -> None:
    model, X = nn.Linear(12, 20).eval(), torch.randn(100, 12)
    smaller = factorize(model, X, 20 + 3 * 32)
    assert [tuple(one.shape) for one in smaller.parameters()] == [(3, 12), (20, 3), (20,)]
    assert fidelity(smaller, model, X).relative_error < 1


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_fused_transformer_layers(factorize: Callable[..., nn.Module]) -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    X = torch.randn(50, 5, 16)
    smaller = factorize(model, X, 600)
    fused, plain = predict(smaller, X), smaller(X)  # the fused form is for no_grad only
    torch.testing.assert_close(fused, plain)
    assert relative_error(fused, predict(model, X)) < 1


def test_the_shrinkage_is_the_one_with_the_least_held_out_error() -> None:
    model, X = mlp(30, 40, 5), correlated(40, 30)
    held_out = torch.arange(40) % 5 == 0
    tried = {one: data_aware_svd(model, X[~held_out], 500, shrinkage=one) for one in SHRINKAGES}
    losses = {one: fidelity(smaller, model, X[held_out]).relative_error for one, smaller in tried.items()}
    expected = data_aware_svd(model, X, 500, shrinkage=min(losses, key=losses.__getitem__))
    torch.testing.assert_close(predict(shrunk_svd(model, X, 500), X), predict(expected, X), rtol=0, atol=0)
    with pytest.raises(ValueError, match="at least 5 inputs are needed to choose the shrinkage, got 4"):
        shrunk_svd(model, X[:4], 500)


def test_shrinkage_is_as_if_inputs_had_noise() -> None:
    """In every direction, of a share of the mean variance that the layer sees."""
    model = mlp(8, 6)
    X = torch.randn(50, 2, dtype=torch.float64) @ torch.randn(2, 8, dtype=torch.float64)
    A, centred = model[0].weight.detach(), X - X.mean(0)
    level = 0.3 * (centred @ A.mT).square().sum() / 50 / A.square().sum()
    scatter = centred.mT @ centred / 50 + level * torch.eye(8, dtype=torch.float64)
    vectors = torch.linalg.eigh(A @ scatter @ A.mT).eigenvectors
    smaller = data_aware_svd(model, X, 2 * 14 + 6, shrinkage=0.3)
    best = vectors[:, -2:]
    torch.testing.assert_close(smaller[0].weight.detach(), best @ best.mT @ A)


def test_more_parameters_are_no_worse(lenet: LeNet300, digits: Digits) -> None:
    images = digits.train_images[:500]
    errors = [
        fidelity(data_aware_svd(lenet, images, budget), lenet, images).relative_error
        for budget in (2_100, 5_000, 10_000, 20_000, 40_000, 266_610)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_frozen_parameters_stay_frozen() -> None:
    model, X = mlp(12, 20, 4), correlated(100, 12)
    model[0].requires_grad_(False)
    smaller = data_aware_svd(model, X, 200)
    assert not any(one.requires_grad for one in smaller[0].parameters())
    assert all(one.requires_grad for one in smaller[2].parameters())


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_layers_that_do_nothing(factorize: Callable[..., nn.Module]) -> None:
    model, X = mlp(12, 20, 15, 4), correlated(100, 12)
    nn.init.zeros_(model[2].weight)  # what follows is constant, so the sum keeps the outputs apart
    model = nn.Sequential(Residual(model), nn.Linear(12, 3).double()).eval()
    smaller = factorize(model, X, 300)
    assert stored_numbers(smaller) <= 300
    assert fidelity(smaller, model, X).relative_error < 1e-2


class Residual(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x + F.pad(self.module(x), (0, 8))


@pytest.mark.parametrize(
    ("budget", "accuracy", "corrected"), [(9_230, 0.745, 0.79), (13_282, 0.87, 0.90)], ids=["3.5 %", "5 %"]
)
def test_lenet300_is_a_strong_competitor(
    lenet: LeNet300, digits: Digits, budget: int, accuracy: float, corrected: float
) -> None:
    images = digits.train_images[:2000]
    found = [
        fidelity(factorize(lenet, images, budget), lenet, digits.test_images, digits.test_labels)
        for factorize in FACTORIZATIONS
    ]
    assert found[0].accuracy > accuracy
    assert found[1].accuracy > corrected
    assert found[1].relative_error < 0.85 * found[0].relative_error


@pytest.mark.parametrize("budget", [3_000, 9_230, 30_000])
def test_later_layers_make_up_for_earlier_ones(lenet: LeNet300, digits: Digits, budget: int) -> None:
    images = digits.train_images[:500]
    plain, corrected = (factorize(lenet, images, budget) for factorize in FACTORIZATIONS)
    assert stored_numbers(corrected) == stored_numbers(plain)
    torch.testing.assert_close(predict(corrected.fc1, images), predict(plain.fc1, images), rtol=1e-4, atol=1e-4)
    errors = [fidelity(one, lenet, images).relative_error for one in (plain, corrected)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_bad_budgets_and_layers(factorize: Callable[..., nn.Module]) -> None:
    model, X = mlp(12, 20, 4), correlated(50, 12)
    with pytest.raises(ValueError, match="parameters must be at least 80, which rank 1 stores in the 2 layers, got 79"):
        factorize(model, X, 79)
    with pytest.raises(ValueError, match="parameters must be at most 344, which the 2 layers store now, got 345"):
        factorize(model, X, 345)
    with pytest.raises(ValueError, match=r"parameters must be a whole number of at least 1, got 99\.5"):
        factorize(model, X, 99.5)
    with pytest.raises(ValueError, match=r"no nn\.Linear or convolution named '1' in the model"):
        factorize(model, X, 200, layers=["0", "1"])
    with pytest.raises(ValueError, match=r"named 'fc_1' in the model; did you mean 'fc1'"):
        factorize(LeNet300().eval(), torch.zeros(5, 784), 9000, layers=["fc_1"])
    with pytest.raises(TypeError, match=r"got the string '0': write \['0'\]"):
        factorize(model, X, 200, layers="0")
    with pytest.raises(ValueError, match="at least one layer, got none"):
        factorize(model, X, 200, layers=[])
    with pytest.raises(
        ValueError, match=r"expected a model with nn\.Linear layers or convolutions to factor, got none"
    ):
        factorize(nn.Flatten().eval(), X, 200)


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_layers_that_cannot_be_factored(factorize: Callable[..., nn.Module]) -> None:
    tied = mlp(6, 6, 6)
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="layer '0' shares its parameters with another module"):
        factorize(tied, correlated(50, 6), 60)
    unused = mlp(6, 6, 6)
    unused[1].register_module("spare", nn.Linear(6, 6).double().eval())
    with pytest.raises(ValueError, match=r"layer '1\.spare' is never called by the model"):
        factorize(unused, correlated(50, 6), 100)
    assert factorize(unused, correlated(50, 6), 60, layers=["0", "2"]) is not unused


def planted_ladders(count: int, generator: torch.Generator) -> list[Ladder]:
    """Layers of random shapes and spectra."""
    ladders = []
    for _ in range(count):
        m, n = torch.randint(4, 9, (2,), generator=generator).tolist()
        kept = [rank for rank in range(1, min(m, n)) if rank * (m + n) + n < m * n + n]
        energies = torch.rand(min(m, n), generator=generator).square().sort(descending=True).values
        left = (1 - energies.cumsum(0) / energies.sum()).tolist()
        costs = [rank * (m + n) + n for rank in kept]
        ladders.append(Ladder((*kept, None), (*costs, m * n + n), (*(left[rank - 1] for rank in kept), 0.0)))
    return ladders


@pytest.mark.parametrize("seed", range(8))
def test_ranks_are_near_the_best_of_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ladders = planted_ladders(4, generator)
    weights = (0.2 + torch.rand(4, generator=generator)).tolist()  # the real error weighs layers otherwise than energy

    def score(steps: tuple[int, ...]) -> float:
        return sum(w * ladder.losses[step] for w, ladder, step in zip(weights, ladders, steps, strict=True))

    everything = list(itertools.product(*(range(len(ladder)) for ladder in ladders)))
    least, most = (total(steps, ladders) for steps in (everything[0], everything[-1]))
    for budget in (least, (2 * least + most) // 3, (least + 2 * most) // 3, most):
        allowed = sorted(score(steps) for steps in everything if total(steps, ladders) <= budget)
        found = choose_steps(ladders, budget, score, evaluations=1000)
        assert total(found, ladders) <= budget
        assert score(found) <= allowed[len(allowed) // 50] + 1e-12  # among the best 2 % of all allocations


@pytest.mark.parametrize("evaluations", [1, 5, 20])
def test_the_search_is_bounded_and_returns_the_best_it_saw(evaluations: int) -> None:
    ladders = planted_ladders(5, torch.Generator().manual_seed(3))
    seen: dict[tuple[int, ...], float] = {}

    def score(steps: tuple[int, ...]) -> float:
        seen[steps] = math.sin(17 * sum(step * place for place, step in enumerate(steps, 1)))
        return seen[steps]

    budget = sum(ladder.parameters[-1] for ladder in ladders) // 2
    found = choose_steps(ladders, budget, score, evaluations)
    assert len(seen) <= evaluations
    assert seen[found] == min(seen.values())


def test_a_planted_affine_map_is_recovered() -> None:
    planted, X = nn.Linear(12, 4).double().eval(), correlated(100, 12)
    found = best_affine(nn.Sequential(nn.Flatten(), planted).eval(), X.reshape(100, 3, 4))
    torch.testing.assert_close(predict(found, X), predict(planted, X), rtol=1e-6, atol=1e-6)
    elsewhere = torch.randn(20, 12, dtype=torch.float64)
    torch.testing.assert_close(predict(found, elsewhere), predict(planted, elsewhere), rtol=1e-4, atol=1e-4)


def test_the_best_affine_map_is_least_squares_where_samples_abound() -> None:
    model, X = mlp(5, 30, 3), torch.randn(3000, 5, dtype=torch.float64)
    found = best_affine(model, X)
    design = torch.cat([X, torch.ones(3000, 1, dtype=torch.float64)], 1)
    expected = design @ torch.linalg.lstsq(design, predict(model, X), driver="gelsd").solution
    assert relative_error(predict(found, X), expected) < 0.01
    residual = predict(model, X) - predict(found, X)
    torch.testing.assert_close(residual.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_ridge_is_that_of_the_least_cross_validation() -> None:
    model, X = mlp(30, 50, 3), correlated(60, 30)
    outputs = predict(model, X) + 0.05 * torch.randn(60, 3, dtype=torch.float64)
    noisy = nn.Sequential(Fixed(outputs)).eval()
    found = best_affine(noisy, X)

    def score(ridge: float) -> tuple[float, Tensor]:
        """Generalised cross-validation by the hat matrix, in full."""
        centred = X - X.mean(0)
        inverse = torch.linalg.inv(centred.mT @ centred + ridge * torch.eye(30, dtype=torch.float64))
        hat = centred @ inverse @ centred.mT + 1 / 60
        left = (outputs - hat @ outputs).square().sum()
        return (left / (60 - hat.trace()).square()).item(), hat @ outputs

    grid = [score(ridge) for ridge in torch.logspace(-6, 3, 200, dtype=torch.float64)]
    best = min(grid, key=lambda one: one[0])[1]
    least_squares = score(1e-9)[1]
    assert relative_error(predict(found, X), best) < 0.03
    truth = predict(model, X)
    assert relative_error(predict(found, X), truth) < relative_error(least_squares, truth)


class Fixed(nn.Module):
    """These outputs, whatever the inputs: noise that belongs to samples."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs[: len(x)]


def test_the_best_affine_map_of_lenet300(lenet: LeNet300, digits: Digits) -> None:
    found = best_affine(lenet, digits.train_images[:2000])
    assert fidelity(found, lenet, digits.test_images, digits.test_labels).accuracy > 0.86
    few = best_affine(lenet, digits.train_images[:200].reshape(-1, 28, 28))  # fewer samples than pixels
    assert fidelity(few, lenet, digits.test_images, digits.test_labels).accuracy > 0.75


def test_an_affine_map_of_inputs_that_never_change() -> None:
    model = mlp(5, 6, 2)
    same = torch.ones(10, 5, dtype=torch.float64)
    torch.testing.assert_close(predict(best_affine(model, same), same), predict(model, same))


def test_what_has_no_affine_map() -> None:
    with pytest.raises(ValueError, match=r"at least two inputs .* got \(1, 3\) and \(1, 3\)"):
        best_affine(nn.Identity().eval(), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"outputs \(S, n\), got \(4, 3, 2\) and \(4, 3, 2\)"):
        best_affine(nn.Identity().eval(), torch.zeros(4, 3, 2))
    with pytest.raises(TypeError, match=r"inputs must be real floating-point numbers, got torch\.int64"):
        best_affine(nn.Identity().eval(), torch.zeros(4, 3, dtype=torch.long))


# ---- dropping nodes ----


class SwiGLU(nn.Module):
    """A gated feed-forward part."""

    def __init__(self, width: int = 6, nodes: int = 10) -> None:
        super().__init__()
        self.gate = nn.Linear(width, nodes, bias=False)
        self.up = nn.Linear(width, nodes)
        self.down = nn.Linear(nodes, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


@pytest.mark.parametrize(
    "model", [mlp(6, 10, 3), mlp(6, 10, 8, 3), SwiGLU().double().eval()], ids=["one", "two", "gated"]
)
def test_dropping_no_node_changes_nothing(model: nn.Module) -> None:
    inputs = correlated(60, 6)
    now = sum(one.numel() for one in model.parameters())
    smaller = node_dropping(model, inputs, now)
    torch.testing.assert_close(predict(smaller, inputs), predict(model, inputs))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_dropping_nodes_keeps_the_budget_and_costs_less_the_more_are_left(share: float) -> None:
    model, inputs = mlp(8, 24, 16, 3), correlated(200, 8)
    now = sum(one.numel() for one in model.parameters())
    sizes = [int(share * now), now]
    found = [node_dropping(model, inputs, size) for size in sizes]
    assert [stored_numbers(one) <= size for one, size in zip(found, sizes, strict=True)] == [True, True]
    errors = [relative_error(predict(one, inputs), predict(model, inputs)) for one in found]
    assert errors[1] < 1e-6 < errors[0] < 1


def test_nodes_that_repeat_others_are_dropped_for_nothing() -> None:
    """Every node twice, and some that never change: half of them make the same outputs."""
    model, inputs = mlp(6, 16, 3), correlated(200, 6)
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = 2 * model[0].weight[:8], 2 * model[0].bias[:8]
    smaller = node_dropping(model, inputs, 8 * 7 + 8 * 3 + 3)
    assert stored_numbers(smaller) == 8 * 7 + 8 * 3 + 3
    assert relative_error(predict(smaller, inputs), predict(model, inputs)) < 1e-3


def test_gates_are_dropped_with_what_they_gate() -> None:
    model, inputs = SwiGLU().double().eval(), correlated(200, 6)
    with torch.no_grad():
        model.up.weight[[1, 4, 7]], model.up.bias[[1, 4, 7]] = 0.0, 0.0  # three nodes do nothing
    smaller = node_dropping(model, inputs, 7 * 6 + 7 * 7 + 7 * 6 + 6)
    left = [one for one in range(10) if one not in (1, 4, 7)]
    torch.testing.assert_close(smaller.gate.weight, model.gate.weight[left])
    torch.testing.assert_close(smaller.up.weight, model.up.weight[left])
    torch.testing.assert_close(predict(smaller, inputs), predict(model, inputs))


def test_dropping_nodes_needs_hidden_layers_and_a_budget() -> None:
    inputs = correlated(60, 6)
    with pytest.raises(ValueError, match="with a known activation function between them, got none among"):
        node_dropping(mlp(6, 3), inputs, 10)
    with pytest.raises(ValueError, match="parameters must be from 13, which one node in each of 1 hidden layers"):
        node_dropping(mlp(6, 10, 3), inputs, 5)
