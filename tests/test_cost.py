"""Costs against numbers counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.bases import BSpline, Monomial
from tenflex.demo.networks import LeNet300
from tenflex.evaluate.cost import ACTIVATIONS, Cost, cost, describe_kept, kept, stored_bytes, stored_numbers
from tenflex.nn import FlexibleActivation, FlexibleLayer


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Priced(nn.Module):
    """An activation that says what it costs, and computes a matrix product and an exponential inside."""

    def __init__(self, operations: int, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.operations = operations
        self.inner = inner

    def operations_per_example(self) -> int:
        return self.operations

    def forward(self, t: Tensor) -> Tensor:
        t = t if self.inner is None else self.inner(t)
        return t.exp() @ torch.eye(t.shape[-1])


class TwiceTheSame(nn.Module):
    """Tied weights, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5, bias=False)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class OnlyOutput(nn.Module):
    """The first result of a module that returns several."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def test_lenet300_as_counted_by_hand(lenet: LeNet300) -> None:
    macs = 784 * 300 + 300 * 100 + 100 * 10
    expected = Cost(parameters=macs + 300 + 100 + 10, macs=macs, activation_operations=300 + 100)
    assert expected == Cost(266_610, 266_200, 400)
    assert cost(lenet, torch.zeros(1, 784)) == expected


def test_cost_is_that_of_one_sample_of_the_batch(lenet: LeNet300) -> None:
    assert cost(lenet, torch.zeros(17, 28, 28)) == cost(lenet, torch.zeros(1, 784)) == cost(lenet, None)


def test_costs_of_parts_add_up(lenet: LeNet300) -> None:
    head, tail = nn.Sequential(lenet.fc1, nn.ReLU()), nn.Sequential(lenet.fc2, nn.ReLU(), lenet.fc3)
    assert cost(head, None) + cost(tail, None) == cost(lenet, None)


def test_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 2))
    macs = 36 * 6 * (4 // 2) * 9 + 6 * 36 * 2
    parameters = 6 * 2 * 9 + 6 + 6 * 36 * 2 + 2
    assert cost(model, torch.zeros(3, 4, 8, 8)) == Cost(parameters, macs, 6 * 36)
    assert cost(nn.Conv1d(2, 5, 4), torch.zeros(1, 2, 10)) == Cost(45, 7 * 5 * 2 * 4, 0)
    assert cost(nn.Conv3d(1, 2, 2), torch.zeros(1, 1, 3, 3, 3)) == Cost(18, 8 * 2 * 8, 0)


@pytest.mark.parametrize(
    "product",
    [
        lambda x: x @ torch.ones(6, 7),
        lambda x: torch.matmul(x, torch.ones(6, 7)),
        lambda x: F.linear(x, torch.ones(7, 6)),
        lambda x: torch.addmm(torch.ones(7), x, torch.ones(6, 7)),
        lambda x: torch.bmm(x[None], torch.ones(1, 6, 7)),
        lambda x: torch.einsum("si,ij->sj", x, torch.ones(6, 7)),
        lambda x: torch.ones(7, 6).mv(x[0]),
        lambda x: torch.addmv(torch.ones(7), torch.ones(7, 6), x[0]),
        lambda x: torch.stack([torch.dot(x[0], torch.ones(6)) for _ in range(7)]),
        lambda x: torch.stack([torch.vdot(x[0], torch.ones(6)) for _ in range(7)]),
        lambda x: torch.addbmm(torch.zeros(1, 7), x[None], torch.ones(1, 6, 7)),
    ],
)
def test_products_however_written(product) -> None:
    assert cost(Apply(product), torch.ones(1, 6)) == Cost(0, 42, 0)


@pytest.mark.parametrize(
    "relu",
    [nn.ReLU(), nn.ReLU(inplace=True), Apply(F.relu), Apply(torch.relu), Apply(Tensor.relu), Apply(Tensor.relu_)],
)
def test_an_activation_is_counted_once_however_written(relu: nn.Module) -> None:
    assert cost(nn.Sequential(nn.Flatten(), relu), torch.randn(2, 3, 5)) == Cost(0, 0, 15)


@pytest.mark.parametrize(
    ("module", "operations"),
    [
        (nn.GELU(), 8),
        (nn.GELU(approximate="tanh"), 8),
        (nn.Tanh(), 4),
        (nn.Sigmoid(), 6),
        (nn.ELU(), 7),
        (nn.SELU(), 7),
        (nn.CELU(inplace=True), 7),
        (nn.SiLU(), 7),
        (nn.LeakyReLU(), 2),
        (nn.ReLU6(), 2),
        (nn.PReLU(), 2),
        (nn.RReLU(), 2),
        (nn.Threshold(0, 0), 1),
        (nn.Hardtanh(), 2),
        (nn.Hardswish(), 5),
        (nn.Hardsigmoid(), 4),
        (nn.Softshrink(), 3),
        (nn.Softplus(), 10),
        (nn.LogSigmoid(), 10),
        (nn.Mish(), 15),
        (nn.Softmax(-1), 8),
        (nn.LogSoftmax(-1), 8),
        (Apply(torch.sin), 4),
        (Apply(torch.abs), 1),
        (Apply(lambda x: x.clamp(-1, 1)), 2),
        (Apply(lambda x: x.clamp(min=0)), ACTIVATIONS["clamp"]),
        (Apply(lambda x: torch.maximum(x, 2 * x)), 1),
        (nn.Identity(), 0),
        (nn.LayerNorm(6), 0),
        (nn.Dropout(), 0),
    ],
    ids=repr,
)
def test_operations_per_element(module: nn.Module, operations: int) -> None:
    counted = cost(module, torch.randn(1, 6))
    assert (counted.macs, counted.activation_operations) == (0, 6 * operations)


@pytest.mark.parametrize("maximum", [lambda x: x.view(1, 6, 4).amax(2), lambda x: x.view(1, 6, 4).max(2).values])
def test_maxout_compares_all_but_one(maximum) -> None:
    assert cost(Apply(maximum), torch.randn(1, 24)).activation_operations == 6 * 3


@pytest.mark.parametrize("attention", ["module", "function"])
def test_attention_is_not_hidden_by_fused_kernels(attention: str) -> None:
    tokens, width, heads = 7, 16, 4
    within, softmax = 2 * tokens * tokens * width, ACTIVATIONS["_softmax"] * heads * tokens * tokens
    if attention == "module":
        expected = Cost(4 * width * width + 4 * width, 4 * tokens * width * width + within, softmax)
        assert cost(SelfAttention(width, heads), torch.randn(1, tokens, width)) == expected
    else:
        module = Apply(lambda x: F.scaled_dot_product_attention(x, x, x))
        assert cost(module, torch.randn(1, heads, tokens, width // heads)) == Cost(0, within, softmax)


@pytest.mark.parametrize("grad", [True, False])
def test_transformer_layer_as_counted_by_hand(grad: bool) -> None:
    tokens, width, heads, hidden = 7, 16, 4, 32
    layer = nn.TransformerEncoderLayer(width, heads, hidden, activation="gelu", batch_first=True).requires_grad_(grad)
    enabled = torch.backends.mha.get_fastpath_enabled()
    counted = cost(layer, torch.randn(1, tokens, width))
    assert counted.macs == tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    assert counted.activation_operations == 8 * heads * tokens * tokens + 8 * tokens * hidden
    assert torch.backends.mha.get_fastpath_enabled() == enabled


@pytest.mark.parametrize(
    ("kind", "gates", "operations"), [(nn.RNN, 1, 4), (nn.GRU, 3, 2 * 6 + 4), (nn.LSTM, 4, 3 * 6 + 2 * 4)]
)
def test_recurrent_layers(kind: type[nn.Module], gates: int, operations: int) -> None:
    steps, width, hidden = 7, 16, 5
    counted = cost(OnlyOutput(kind(width, hidden, batch_first=True)), torch.randn(2, steps, width))
    assert counted.macs == steps * gates * hidden * (width + hidden)
    assert counted.activation_operations == steps * hidden * operations


def test_tied_parameters_are_stored_once_and_used_twice() -> None:
    assert cost(TwiceTheSame(), torch.zeros(1, 5)) == Cost(25, 50, 0)


def test_running_statistics_are_stored_and_counters_are_not() -> None:
    assert stored_numbers(nn.BatchNorm1d(5)) == 4 * 5


def test_knots_that_are_not_even_are_stored() -> None:
    basis = BSpline(10, spacing="quantile")
    even, placed = (FlexibleActivation(4, one) for one in (BSpline(10), basis.fit(torch.randn(50, 4))))
    assert stored_numbers(placed) - stored_numbers(even) == 4 * basis.stored_per_node > 0


def test_modules_that_count_themselves_count_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(3, 5), Priced(123), nn.Linear(5, 2), nn.ReLU())
    assert cost(model, torch.zeros(1, 3)) == Cost(32, 25, 123 + 2)


def test_modules_that_count_themselves_count_at_every_position() -> None:
    assert cost(Priced(10), torch.zeros(1, 4, 6, 3)).activation_operations == 10 * 4 * 6


def test_the_inner_of_two_that_count_themselves_is_asked() -> None:
    assert cost(Priced(10, inner=Priced(7)), torch.zeros(1, 3)) == Cost(0, 9, 7 + ACTIVATIONS["exp"] * 3)


@pytest.mark.parametrize("basis", [BSpline(10), Monomial(5)], ids=repr)
def test_flexible_layer_as_counted_by_hand(basis: BSpline | Monomial) -> None:
    layer = FlexibleLayer((784,), (10,), rank=40, basis=basis, factor=12)
    macs = 784 * 12 + 12 * 40 + 40 * 10
    expected = Cost(macs + 40 + 10 + 40 * basis.size, macs, 40 * basis.operations)
    assert cost(layer, torch.zeros(1, 784)) == expected


def test_the_module_is_neither_run_nor_changed(unchanged_rng) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), Priced(1)).train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    example = torch.randn(3, 4)
    with unchanged_rng():
        cost(model, example)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.training
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_samples_of_whole_numbers() -> None:
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 3))
    assert cost(model, torch.zeros(2, 5, dtype=torch.long)) == Cost(44 + 15, 5 * 12, 0)


def test_examples_of_several_tensors() -> None:
    model = nn.Bilinear(3, 4, 2)
    left, right = torch.zeros(5, 3), torch.zeros(5, 4)
    assert cost(model, (left, right)) == cost(model, {"input1": left, "input2": right})


def test_bad_examples() -> None:
    with pytest.raises(TypeError, match=r"expected a batch of network input .*, got a list of \(1\.0\)"):
        cost(nn.ReLU(), [1.0])
    for empty in (torch.zeros(0, 3), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="at least one sample, samples first, got shape"):
            cost(nn.ReLU(), empty)
    with pytest.raises(ValueError, match="a Conv2d, does not state its width"):
        cost(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(3, 3)), None)
    with pytest.raises(ValueError, match="no layer has parameters"):
        cost(nn.ReLU(), None)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (266_610, 13_330, "5.0 % kept (20x)"),
        (100, 40, "40.0 % kept (2.5x)"),
        (100, 100, "100.0 % kept (1.0x)"),
        (100, 125, "125.0 % kept (0.80x)"),
        (10_000_000, 4_200, "0.042 % kept (2381x)"),
        (100, 0, "0.0 % kept"),
    ],
)
def test_ratios_are_what_is_kept(before: int, after: int, words: str) -> None:
    assert math.isclose(kept(before, after) * before, after)
    assert describe_kept(before, after) == words


@pytest.mark.parametrize(("before", "after"), [(0, 1), (-1, 0), (3, -1)])
def test_shares_of_nothing(before: int, after: int) -> None:
    with pytest.raises(ValueError, match=f"got {before} before and {after} after"):
        describe_kept(before, after)


def test_a_bilinear_map_has_a_product_for_each_number_of_its_weight() -> None:
    class Form(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Bilinear(4, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.map(x[:, :4], x[:, 4:])

    assert cost(Form().eval(), torch.randn(7, 9)).macs == 4 * 5 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bytes_are_those_of_all_stored_numbers(dtype: torch.dtype) -> None:
    """Knots that are not even, buffers and shared tensors too; views of one memory are told apart by their sizes."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 4), nn.Linear(3, 4)
            self.other.weight = self.one.weight
            self.register_buffer("mean", torch.zeros(5))
            self.register_buffer("count", torch.zeros(2, dtype=torch.int64))

    each = torch.empty((), dtype=dtype).element_size()
    shared = Shared().to(dtype)
    assert stored_bytes(shared) == each * (12 + 4 + 4 + 5) + 2 * 8
    knots = FlexibleActivation(
        2, BSpline(6, spacing="quantile").fit(torch.linspace(-1, 1, 50)[:, None].expand(-1, 2) ** 3)
    ).to(dtype)
    assert stored_numbers(knots) > sum(one.numel() for one in knots.parameters())
    assert stored_bytes(knots) == each * stored_numbers(knots)


def test_bytes_of_a_module_with_knots_and_no_parameters() -> None:
    class Knots(nn.Module):
        def stored_knots(self) -> int:
            return 3

    assert (stored_numbers(Knots()), stored_bytes(Knots())) == (3, 12)
