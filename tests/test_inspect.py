"""How nonlinear blocks are, by maps whose shares are known, and what compressing them takes."""

from __future__ import annotations

import time

import pytest
import torch
from planted import seeded
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import tenflex
from tenflex import Block, compress, inspect
from tenflex.blocks.estimate import Piece
from tenflex.blocks.nonlinearity import nonlinearity
from tenflex.evaluate.cost import stored_numbers
from tenflex.inspect import expense
from tenflex.solvers import Chain, ConstrainedALS, Refine
from tenflex.split import Split, split_samples


class Map(nn.Module):
    """A function of a batch as a network with a linear layer, so that it is a candidate."""

    def __init__(self, function, m: int, n: int) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(m, m), function, nn.Linear(n, n)
        with torch.no_grad():
            for one in (self.first, self.last):
                one.weight.copy_(torch.eye(len(one.weight)))
                one.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def share_of(function, x: Tensor) -> float:
    found = nonlinearity(function, x, function(x), split_samples(torch.arange(len(x)), 0.5))
    assert found is not None
    return found


@pytest.mark.parametrize(("samples", "m"), [(400, 6), (60, 200)])
def test_an_affine_map_has_none(samples: int, m: int) -> None:
    """Also where there are fewer samples than inputs, which no regression alone would find."""
    A, x = torch.randn(4, m, generator=seeded(0)).double(), torch.randn(samples, m, generator=seeded(1)).double()
    assert share_of(lambda x: x @ A.mT + 3.0, x) < 1e-20
    assert share_of(lambda x: x.float() @ A.float().mT + 3.0, x.float()) < 1e-10


def test_an_even_function_of_symmetric_inputs_has_nothing_else() -> None:
    x = torch.randn(600, 5, generator=seeded(0)).double()
    assert share_of(lambda x: x.square(), x) > 0.9
    assert share_of(lambda x: (x @ torch.ones(5, 1).double()).cos(), x) > 0.9
    assert share_of(lambda x: x.square(), x[:, :0].new_tensor([[1.0], [-1.0]]).repeat(50, 1)) in (0.0, 1.0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_sum_has_the_share_of_its_parts(share: float) -> None:
    """For normal x the second Hermite polynomial is uncorrelated with all affine maps, and both have unit variance."""
    x = torch.randn(4000, 3, generator=seeded(0)).double()

    def function(x: Tensor) -> Tensor:
        bent = (x[:, 1:2].square() - 1) / 2**0.5
        return (1 - share) ** 0.5 * x[:, :1] + share**0.5 * bent

    assert share_of(function, x) == pytest.approx(share, abs=0.06)


def test_the_share_is_that_of_samples_that_no_map_has_seen() -> None:
    """A regression on as many directions as samples meets them all; none of it holds elsewhere."""
    x = torch.randn(80, 60, generator=seeded(0)).double()
    assert share_of(lambda x: (3 * x).sin().sum(1, keepdim=True), x) > 0.9
    nobody = torch.arange(0)
    assert nonlinearity(lambda x: x, x, x, Split(torch.arange(80), nobody, nobody)) is None


def test_inspect_measures_blocks_that_can_be_replaced() -> None:
    x = torch.randn(500, 4, generator=seeded(0))
    model = Map(torch.square, 4, 4).eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    found = inspect(model, x)
    measured = {one.name: one.measured for one in found.candidates}
    assert measured["first:last"] is not None
    assert measured["first"] is not None
    assert measured["first"].nonlinearity < 1e-10
    assert measured["first:last"].nonlinearity > 0.9
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.measured is None for one in inspect(model).candidates)
    few = {one.name: one.measured for one in inspect(model, x[:4]).candidates}
    assert few["first"] is not None
    assert few["first"].nonlinearity is None  # too few to hold some out


def test_inspect_tells_of_convolutions() -> None:
    told = str(inspect(nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3)).eval()))
    assert "so in no block: Conv1d 42." in told
    assert "Convolutions are replaced by a budget (--budget 50%)" in told
    assert "budget" not in str(inspect(Map(torch.square, 4, 4).eval()))


class Tokens(nn.Module):
    """Blocks that are alike, at every position of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for one in self.layers:
            one.mlp = nn.Sequential(nn.Linear(6, 30), nn.GELU(), nn.Linear(30, 6))
            one.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        for one in self.layers:
            x = one.norm(x + one.mlp(x))
        return x.mean(1)


def test_blocks_that_are_alike_have_the_mean() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tokens().eval()
    x = torch.randn(60, 5, 6, generator=seeded(0))
    [together] = [one for one in inspect(model, x).candidates if one.name == "layers.*.mlp"]
    assert (together.count, together.sizes) == (2, (6, 6))
    assert together.measured is not None
    assert 0 < together.measured.nonlinearity < 1
    text = str(inspect(model, x))
    assert f"{100 * together.measured.nonlinearity:.1f} %" in text
    assert "no affine map of its inputs explains" in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_time_told_is_of_the_order_of_that_taken() -> None:
    model = nn.Sequential(nn.Linear(20, 200), nn.Tanh(), nn.Linear(200, 10)).eval()
    x = torch.randn(600, 20, generator=seeded(0))
    [suggested] = inspect(model, x).suggestions
    assert suggested.suggestion is not None
    assert suggested.measured is not None
    began = time.process_time()
    compress(model, x, {suggested.name: suggested.suggestion})
    assert suggested.measured.layer == suggested.suggestion
    assert 0.1 < suggested.measured.seconds / (time.process_time() - began) < 10


def test_time_and_memory_grow_with_samples_nodes_and_inputs() -> None:
    def of(m: int, rank: int, count: int) -> tuple[float, int]:
        x = torch.randn(64, m, generator=seeded(0))
        function = nn.Sequential(nn.Linear(m, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
        return expense(function, x, function(x).detach(), Block(rank), count)

    small = min(of(16, 4, 400) for _ in range(3))  # others may be at work meanwhile
    for larger in (of(16, 4, 40_000), of(16, 64, 4_000), of(400, 4, 4_000)):
        assert larger[0] > 2 * small[0]
    assert of(16, 4, 40_000)[1] > of(16, 4, 400)[1]
    assert of(400, 4, 4_000)[1] > of(16, 4, 4_000)[1]


def test_an_evaluation_of_many_samples_is_timed_by_some() -> None:
    few, many = (Piece(count, 50, 200, 10, None).seconds(torch.device("cpu")) for count in (100, 10_000))
    assert 10 < many / few < 1000


def test_shared_weights_count_once() -> None:
    layers = [
        nn.Linear(12, 30),
        nn.Tanh(),
        nn.Linear(30, 12),
        nn.Tanh(),
        nn.Linear(12, 30),
        nn.Tanh(),
        nn.Linear(30, 4),
    ]
    layers[4].weight = layers[0].weight
    model = nn.ModuleDict({name: one for name, one in zip("abcdefg", layers, strict=True)})

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, one in model.items():
                self.add_module(name, one)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for one in self.children():
                x = one(x)
            return x

    found = {one.name: one for one in inspect(Tied().eval()).candidates}
    assert (found["a:g"].parameters, found["a:g"].share) == (916, 1.0)
    assert all(one.share <= 1 for one in found.values())


def test_the_verb_is_public() -> None:
    assert tenflex.inspect is inspect
    assert "inspect" in tenflex.__all__


def test_layers_whose_weights_are_computed_are_told_of() -> None:
    """Alone none of them has a thinner one; rows of them are blocks like others."""
    alone = tenflex.inspect(nn.Sequential(weight_norm(nn.Linear(6, 9)), nn.Tanh()).eval())
    assert any("remove_parametrizations" in name for name in alone.others)
    model = nn.Sequential(weight_norm(nn.Linear(6, 40, bias=False)), nn.Tanh(), weight_norm(nn.Linear(40, 3))).eval()
    found = tenflex.inspect(model, torch.randn(20, 6, generator=seeded(0)))
    assert {one.name for one in found.candidates if one.obstacle is None} == {"", "0:2"}
    assert found.suggestions
    assert not found.others


class Between(nn.Module):
    """Three linear layers as attributes, with functions that have numbers of their own between them."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.one = nn.Linear(5, 12), between(12)
        self.second, self.other = nn.Linear(12, 12), between(12)
        self.last, self.after = nn.Linear(12, 2), between(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(self.second(self.one(self.first(x)).tanh())).tanh()
        return self.after(self.last(x))


BETWEEN = [nn.BatchNorm1d, nn.LayerNorm, nn.PReLU, lambda width: nn.GroupNorm(1, width)]


@pytest.mark.parametrize("between", BETWEEN, ids=["BatchNorm1d", "LayerNorm", "PReLU", "GroupNorm"])
def test_what_has_numbers_for_each_feature_may_stand_between_layers(between) -> None:
    """In a block, and not at the ends of a row of modules: a network in rows is a block as a whole."""
    x = torch.randn(40, 5, generator=seeded(0))
    plain = Between(between).eval()
    found = inspect(plain, x)
    able = {one.name: one for one in found.candidates if one.obstacle is None}
    assert able.keys() == {"first:last", "first:second", "second:last", "first", "second", "last"}
    assert [one.name for one in found.suggestions] == ["first:last"]
    assert able["first:last"].layers == 3
    numbers = stored_numbers(plain)  # statistics of normalisations too, which go with their block
    outside = stored_numbers(plain.after)
    assert able["first:last"].parameters == numbers - outside
    assert sum(found.others.values()) == outside

    parts = plain.first, plain.one, nn.Tanh(), plain.second, plain.other, nn.Tanh(), plain.last, plain.after
    for rows in (nn.Sequential(*parts), nn.Sequential(nn.Sequential(*parts[:3]), nn.Sequential(*parts[3:]))):
        found = inspect(rows.eval(), x)
        whole = next(one for one in found.candidates if not one.name)
        assert (whole.layers, whole.parameters, whole.obstacle) == (3, numbers, None)
        assert not found.others
        small = compress(rows, x, {"": Block(2)}, solver=Chain((ConstrainedALS(2), Refine(5)))).model
        assert not any(isinstance(one, type(plain.one)) for one in small.modules())


def test_a_norm_beside_a_skip_connection_is_in_no_block() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = inspect(model, torch.randn(6, 4, 8, generator=seeded(0)))
    assert [one.name for one in found.suggestions] == ["linear1:linear2"]
    assert found.others["LayerNorm"] == 32


def test_tied_layers_of_several_blocks_are_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6)) for _ in range(3))
            for one in self.layers[1:]:
                one[0].weight, one[2].weight = self.layers[0][0].weight, self.layers[0][2].weight

        def forward(self, x: Tensor) -> Tensor:
            for one in self.layers:
                x = x + one(x)
            return x

    model = Tied().eval()
    numbers = stored_numbers(model)
    assert numbers == 2 * 54 + 3 * 15
    shares = {one.name: one.share for one in inspect(model).candidates if one.count == 3}
    assert shares["layers.*.0"] == (54 + 3 * 9) / numbers
    assert shares["layers.*.2"] == (54 + 3 * 6) / numbers
