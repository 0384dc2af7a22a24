"""Layers that feed each other are one block, wherever in a network they are registered and whatever they are called."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from planted import seeded
from torch import Tensor, nn

from tenflex import Block, LowRank, compress
from tenflex.baselines.linear import linear_of
from tenflex.kept import Own
from tenflex.nn import FeedForward
from tenflex.planning.survey import survey
from tenflex.surgery.feeding import feeding

X = torch.randn(60, 7, 8, generator=torch.Generator().manual_seed(0))


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


class Intermediate(nn.Module):
    """The first half of a feed-forward part, as BERT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.dense(x))


class Output(nn.Module):
    """The second half, with a connection around both."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(32, 8), nn.LayerNorm(8)
        self.dense.weight.data[:, 8:] = 0.0  # these nodes are read by nothing

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.norm(self.dense(h) + x)


class Layer(nn.Module):
    """What is called last is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.output, self.value, self.intermediate = Output(), nn.Linear(8, 8), Intermediate()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.value(x)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for one in self.layers:
            x = one(x)
        return x


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def encoder() -> nn.Module:
    return made(Encoder)


SPAN = "layers.*.intermediate:layers.*.output.dense"


def test_the_survey_offers_them() -> None:
    found = {one.name: one for one in survey(encoder(), X[:4]).candidates}
    span = found[SPAN]
    assert (span.count, span.layers, span.sizes, span.parameters) == (2, 2, (8, 8), 9 * 32 + 33 * 8)
    assert span.suggestion is not None
    assert span.obstacle is None
    names = list(found)
    assert names.index(SPAN) < names.index("layers.*.intermediate")  # outer ones first
    assert SPAN not in {one.name for one in survey(encoder(), None).candidates}  # which nothing tells without inputs


@pytest.mark.usefixtures("few_steps")
def test_a_budget_keeps_the_nodes_that_are_read() -> None:
    model, few = made(lambda: Encoder(1)), X[:8]
    nodes = compress(model, few, {SPAN: Block(8, basis=Own())})
    assert float((nodes.model(X) - model(X)).detach().abs().max()) < 1e-4
    planned = compress(model, few, budget=nodes.report.after.parameters)
    assert [one.name for one in planned.report.blocks] == ["layers.0.intermediate:layers.0.output.dense"]
    assert planned.report.planned is not None
    assert not planned.report.planned.left_out
    assert isinstance(planned.model.get_submodule("layers.0.intermediate"), FeedForward)


class Row(nn.Module):
    """Linear layers of different parents with functions of one tensor between them."""

    def __init__(self, between: str = "function") -> None:
        super().__init__()
        self.first, self.second = nn.ModuleDict({"map": nn.Linear(8, 5)}), nn.ModuleDict({"map": nn.Linear(5, 4)})
        self.norm, self.batch, self.between = nn.LayerNorm(5), nn.BatchNorm1d(5), between
        self.mixed = nn.Linear(5, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first["map"](x)
        h = {
            "function": lambda: torch.tanh(h) * 2.0,
            "norm": lambda: self.norm(h).relu_(),
            "batch": lambda: self.batch(h.flatten(0, 1)).unflatten(0, x.shape[:2]),
            "sum": lambda: h + x[..., :5],
            "map": lambda: h @ self.mixed.weight,
            "nothing": lambda: h,
        }[self.between]()
        return self.second["map"](h)


@pytest.mark.parametrize(
    ("between", "one"), [("function", 1), ("norm", 1), ("batch", 1), ("nothing", 1), ("sum", 0), ("map", 0)]
)
def test_what_may_stand_between(between: str, one: int) -> None:
    model = made(lambda: Row(between))
    assert feeding(model, X[:4], is_linear) == [["first.map", "second.map"]] * one
    before = model(X)
    found = {one.name: one for one in survey(model, X[:4]).candidates}
    assert ("first.map:second.map" in found) == bool(one)
    assert torch.equal(model(X), before)


class Twice(nn.Module):
    """The same module is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.first(x)).tanh())


class Chain(nn.Module):
    """Three in a row, and one that nothing follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.d(x).tanh() + self.a(self.c(self.b(x).relu()).relu()))


def test_rows_follow_the_calls() -> None:
    assert feeding(made(Chain), X[:4], is_linear) == [["b", "c", "a"]]
    assert feeding(made(Twice), X[:4], is_linear) == []
    found = {one.name for one in survey(made(Chain), X[:4]).candidates if one.obstacle is None}
    assert {"b:a", "b:c", "c:a"} <= found
    assert feeding(made(lambda: nn.Sequential(Chain(), Chain())), X[:4], lambda one: isinstance(one, Chain)) == [
        ["0", "1"]
    ]


class Turned(nn.Module):
    """A linear layer whose weight stands the other way round, as in GPT-2."""

    def __init__(self, m: int, n: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n, generator=seeded(m + n)) / m**0.5)
        self.bias = nn.Parameter(torch.randn(n, generator=seeded(n))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Distances(nn.Module):
    """From centres."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8, generator=seeded(0)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.weight)


@pytest.mark.parametrize("sizes", [(8, 5), (5, 8), (6, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_maps_are_known_by_what_they_do(sizes: tuple[int, int], bias: bool, dtype: torch.dtype) -> None:
    module, x = Turned(*sizes, bias).to(dtype), torch.randn(3, sizes[0], generator=seeded(1), dtype=dtype)
    found = linear_of(module)
    assert found is not None
    assert (found.in_features, found.out_features, found.bias is not None) == (*sizes, bias)
    assert torch.allclose(found(x), module(x), atol=1e-6)


def test_what_is_no_linear_map() -> None:
    for one in (Distances(), nn.Embedding(5, 8), nn.Conv1d(3, 4, 1), nn.LayerNorm(8), nn.Bilinear(3, 4, 5)):
        assert linear_of(one) is None
    plain, lazy, meta = nn.Linear(3, 4), nn.LazyConv1d(3, 1), Turned(3, 4).to("meta")
    assert linear_of(plain) is plain
    assert linear_of(lazy) is linear_of(meta) is None
    heard = Turned(3, 4)
    heard.register_forward_hook(lambda module, args, output: output + 1)
    assert linear_of(heard) is None


class Generative(nn.Module):
    """Two layers of GPT-2's form, by its names."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.c_fc, self.act, self.c_proj = Turned(8, 32), nn.GELU(), Turned(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        return self.norm(x + self.c_proj(self.act(self.c_fc(x))))


def test_budgets_take_layers_by_other_names() -> None:
    model, ids = made(Generative), torch.randint(9, (40, 5), generator=seeded(0))
    found = {one.name: one for one in survey(model, ids[:4]).candidates}
    assert (found["c_fc:c_proj"].layers, found["c_fc:c_proj"].sizes, found["c_fc"].sizes) == (2, (8, 8), (8, 32))
    assert set(survey(model, ids[:4]).others) == {"Embedding", "LayerNorm"}
    thin = compress(model, ids, {"c_fc": LowRank(6), "c_proj": LowRank(6)})
    turned = copy.deepcopy(model)
    for name in ("c_fc", "c_proj"):
        setattr(turned, name, linear_of(turned.get_submodule(name)))
    same = compress(turned, ids, {"c_fc": LowRank(6), "c_proj": LowRank(6)})
    assert torch.allclose(thin.model(ids), same.model(ids), atol=1e-6)
    kept = compress(model, ids, {"c_fc:c_proj": Block(20, basis=Own())})
    assert kept.report.blocks[0].output_error < thin.report.blocks[0].output_error
