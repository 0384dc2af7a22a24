"""A budget chooses blocks, methods and sizes by measured curves; a run that died goes on with the same bits."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planted import seeded
from torch import Tensor, nn
from torch.nn.utils import prune

import tenflex
from tenflex import Block, Budget, Compression, LowRank, Monomial, Plan, compress
from tenflex.baselines import data_aware_svd
from tenflex.checkpoint import Checkpoints, digest
from tenflex.coordinates import Downstream, Fisher
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import fidelity
from tenflex.evaluate.planned import Planned
from tenflex.modes import Tucker
from tenflex.nn.low_rank import ThinLinear
from tenflex.planning import planner
from tenflex.planning.candidates import METHODS, Facts, largest_block
from tenflex.planning.choice import Option, Region, frontier
from tenflex.planning.choices import Costs, Ended, Made
from tenflex.planning.low_rank import low_rank_axes
from tenflex.planning.planner import Planner
from tenflex.planning.sizes import block_size
from tenflex.sampling.metric import symmetric_root
from tenflex.solvers import Chain, ConstrainedALS, Refine

QUICK = {"basis": Monomial(3), "solver": Chain((ConstrainedALS(3), Refine(15)))}
"""The cheapest that works: these tests are of the planner."""


class Two(nn.Module):
    """Two blocks with something between them that is in none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 6))
        self.norm = nn.LayerNorm(6)
        self.second = nn.Sequential(nn.Linear(6, 24), nn.Sigmoid(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(x + self.first(x)))


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Two().eval()


def drawn(kind: Callable[..., nn.Module], *sizes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return kind(*sizes).eval()


def draws(count: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def half() -> Compression:
    return compress(made(), draws(), budget="55%", **QUICK)


def test_what_is_told_is_lost_by_the_network_that_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, measured = [], Planner.measured

    def watched(self: Planner, planned: Planned, network: nn.Module, held: Tensor) -> Planned:
        judged.append(held)
        return measured(self, planned, network, held)

    monkeypatch.setattr(Planner, "measured", watched)
    result = compress(made(), draws(), budget="40%", **QUICK)
    planned, ((held,), x) = result.report.planned, (judged, draws())
    found, wanted = result.model(x).detach().double(), made()(x).detach().double()
    spread = (wanted - wanted.mean(0)).square().sum() / len(x)
    assert planned.error == pytest.approx(float((found - wanted)[held].square().sum() / held.sum() / spread))
    other = found[held].argmax(1) != wanted[held].argmax(1)
    assert planned.lost_agreement == pytest.approx(float(other.double().mean()))
    told = f"{planned.error**0.5:.3f} in the end, with another decision for {100 * planned.lost_agreement:.2f} %"
    assert told in " ".join(planned.lines())


def test_time_in_all_is_that_of_planning_too(half: Compression) -> None:
    report = half.report
    assert report.planned is not None
    assert report.seconds >= report.planned.seconds + sum(block.seconds for block in report.blocks)


def test_axes_of_no_input_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(28, 28\), 784 numbers; .*first.* is given \(6,\)"):
        compress(made(), draws(), budget="55%", shape=(28, 28), **QUICK)


# --- the whole ---


def test_who_judges_is_told(half: Compression) -> None:
    """Of few inputs too few are held out, and all judge: nobody is told of held-out ones then."""
    planned = half.report.planned
    assert (planned.judges, planned.held_out) == (30, True)
    assert "30 held-out inputs" in " ".join(planned.lines())
    assert 0 <= planned.lost_agreement <= 1
    few = compress(made(), draws(40), budget="55%", **QUICK)
    assert (few.report.planned.judges, few.report.planned.held_out) == (40, False)
    told = " ".join(few.report.planned.lines())
    assert "all 40 inputs, the fitted ones too, which flatters" in told
    saved = few.report.planned.to_dict()
    assert type(few.report.planned).from_dict(saved) == few.report.planned
    older = {name: one for name, one in saved.items() if name not in ("judges", "held_out", "lost_agreement")}
    assert "on held-out inputs" in " ".join(type(few.report.planned).from_dict(older).lines())


class Twice(nn.Module):
    """Its only block is called two times, with unlike tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.h = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 4)), nn.Bilinear(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.f(x), self.f(torch.stack([x, -x], 1))[:, 1])


@pytest.mark.parametrize(
    ("model", "inputs", "budget", "message"),
    [
        (made(), draws(20), Budget(lost_agreement="3%"), "needs at least 8 held-out inputs to tell it, got 3 of 20"),
        (made(), torch.ones(50, 6), "50%", "all inputs are the same"),
        (Twice().eval(), draws(60), "99%", "no block could be replaced.*tenflex.inspect tells"),
    ],
    ids=["few", "same", "nothing"],
)
def test_what_no_budget_can_do(model: nn.Module, inputs: Tensor, budget: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(model, inputs, budget=budget, **QUICK)


def test_the_budget_is_kept_and_the_plan_repeats_the_bits(half: Compression) -> None:
    whole = stored_numbers(made())
    assert stored_numbers(half.model) == half.report.after.parameters <= 0.55 * whole
    again = compress(made(), draws(), half.plan)
    assert torch.equal(again.model(draws(9)), half.model(draws(9)))
    assert again.report.planned is None


def test_the_report_tells_the_curves_and_what_was_taken(half: Compression, tmp_path: Path) -> None:
    planned = half.report.planned
    assert planned.budget == {"parameters": "55%"}
    assert set(planned.chosen) == set(half.plan.blocks)
    curves = {one.block: one.tried for one in planned.curves}
    assert {"first", "second", "first.0", "second.2"} <= set(curves)
    assert {one.method for one in curves["first"]} == {"flexible", "own nodes", "node dropping"}
    assert {one.method for one in curves["first.0"]} == {"low rank"}
    assert planned.solves == sum(one.method == "flexible" for name in ("first", "second") for one in curves[name])
    assert "Planned for parameters 55%" in str(half.report)
    half.save(tmp_path / "small")
    assert json.loads((tmp_path / "small" / "report.json").read_text())["planned"]["solves"] == planned.solves
    again = Compression.load(tmp_path / "small", made())
    assert again.report == half.report
    assert again.plan == half.plan
    assert torch.equal(again.model(draws(9)), half.model(draws(9)))


def test_what_was_taken_is_the_best_of_what_was_tried_together(half: Compression) -> None:
    """Of all pairs of single blocks' errors within the budget none is lower than the sum of those taken."""
    planned = half.report.planned
    whole = stored_numbers(made())
    curves = {one.block: one.tried for one in planned.curves}
    inner = {name: [one for one in curves if one.startswith(f"{name}.")] for name in ("first", "second")}

    def ways(name: str) -> list[tuple[int, float]]:
        parts = [[(0, 0.0), *((one.parameters - whole, one.error) for one in curves[each])] for each in inner[name]]
        sums = [(sum(a for a, _ in each), sum(b for _, b in each)) for each in itertools.product(*parts)]
        return sums + [(one.parameters - whole, one.error) for one in curves[name]]

    allowed = int(0.55 * whole) - whole
    least = min(e + f for (a, e), (b, f) in itertools.product(ways("first"), ways("second")) if a + b <= allowed)
    assert least <= planned.predicted <= 3 * least
    assert planned.checked > 1


def test_a_layer_that_is_of_low_rank_is_cut_without_loss() -> None:
    model = made()
    with torch.no_grad():
        left, right = torch.randn(24, 1), torch.randn(1, 6)
        model.second[0].weight.copy_(left @ right / 3)
    whole = stored_numbers(model)
    result = compress(model, draws(), budget=whole - 100, **QUICK)
    assert result.plan.blocks == {"second.0": LowRank(1)}
    assert isinstance(result.model.second[0], ThinLinear)
    assert result.report.planned.joint < 1e-9
    assert result.report.blocks[0].output_error < 1e-5


def test_the_smallest_network_that_loses_no_more_agreement() -> None:
    result = compress(made(), draws(), budget=Budget(lost_agreement="10%"), **QUICK)
    assert result.report.after.parameters < stored_numbers(made())
    assert fidelity(result.model, made(), draws()).agreement >= 0.85
    stricter = compress(made(), draws(), budget={"lost_agreement": 0.02}, **QUICK)
    assert stricter.report.after.parameters >= result.report.after.parameters


def test_an_agreement_alone_is_kept_by_a_network_that_is_as_small_as_can_be() -> None:
    """Forty nodes twice that are copies of two: sizes are tried down to those, however far below the first ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)).eval()
    with torch.no_grad():
        small[4].bias -= small(draws()).mean(0)  # so that it decides in more than one way
    assert (small(draws()).argmax(1).bincount(minlength=3) > 20).all()
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)).eval()
    copies = torch.eye(2).repeat(20, 1)  # (40, 2)
    with torch.no_grad():
        for wide, thin, out in ((0, 0, copies), (2, 2, copies), (4, 4, torch.eye(3))):
            into = copies / 20 if wide else torch.eye(6)
            model[wide].weight.copy_(out @ small[thin].weight @ into.mT)
            model[wide].bias.copy_(out @ small[thin].bias)
    torch.testing.assert_close(model(draws()), small(draws()))
    result = compress(model, draws(400), budget=Budget(lost_agreement="5%"), **QUICK)
    assert result.report.after.parameters <= 2 * stored_numbers(small) < 0.04 * stored_numbers(model)
    assert result.report.planned.lost_agreement <= 0.05


@pytest.mark.parametrize("asked", [0.02, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("misled", [1.0, 3.0, 0.2])
def test_the_smallest_that_keeps_an_agreement_is_looked_for_by_halving(asked: float, misled: float) -> None:
    """However far sums are from what networks lose, which falls with their size; and of no more plans than halving."""
    options = [Option((("", place),), (place,), 1 / (1 + place), 0.9 * 0.97**place) for place in range(200)]

    class Lossy(Judged):
        def losses_of(self, option: Option, place: int, total: int) -> tuple[float, float]:
            assert place < total
            return option.error, misled * option.lost_agreement

    planner = Lossy(None, None, None, Budget(lost_agreement=asked), None, None, bench=None)  # type: ignore[arg-type]
    good = [one for one in options if misled * one.lost_agreement <= asked]
    option, error, checked = planner.checked(options)
    assert (option, error) == (good[0], good[0].error)
    assert checked <= 1 + math.ceil(math.log2(len(options)))
    smaller = options[: options.index(good[0])]
    if smaller:
        with pytest.raises(ValueError, match=r"nothing that was tried is within the budget of lost_agreement"):
            planner.checked(smaller)


@pytest.mark.parametrize(("worse", "taken"), [(0, 24), (1, 25), (3, 28), (30, None)])
def test_what_is_returned_keeps_the_agreement_or_a_larger_one_does(worse: int, taken: int | None) -> None:
    """Networks that are compressed by a plan may lose more than the layers that were put together to choose it."""
    options = [Option((("", place),), (place,), 1 / (1 + place), 0.5 - 0.02 * place) for place in range(40)]

    class Lossy(Judged):
        def affordable(self, limits: object) -> list[Option]:
            return options

        def end_of(self, option: Option, metric: object) -> Ended:
            place = dict(option.choice)[""]
            lost = round(0.5 - 0.02 * (place - worse), 12)
            return Ended(option, option.error, lost, None)

    planner = Lossy(None, None, None, Budget(lost_agreement=0.02), None, None, bench=None)  # type: ignore[arg-type]
    planner.plan = Plan({"": Block(1)})
    if taken is None:
        with pytest.raises(ValueError, match=r"of 4 networks that were compressed by plans the best decides otherwise"):
            list(planner.kept(options[24], {}))
        return
    [found] = planner.kept(options[24], {})
    assert dict(found.option.choice)[""] == taken
    assert found.lost <= 0.02
    planner.budget = Budget(parameters=10)
    assert list(planner.kept(options[24], {"parameters": 10})) == []


def test_an_agreement_that_a_constant_keeps_is_refused() -> None:
    """Of rare decisions: the smallest network would never make them."""
    model = made()
    with torch.no_grad():
        model.second[-1].bias[2] += 0.03
    share = float((model(draws()).argmax(1) != 2).double().mean())
    assert 0 < share < 0.3
    with pytest.raises(ValueError, match=rf"always answers 2, as the original does for all but {100 * share:.2f} %"):
        compress(model, draws(), budget=Budget(lost_agreement=share), **QUICK)
    assert compress(model, draws(), budget=Budget(lost_agreement=0.7 * share), **QUICK).report.after.parameters > 0


class OfTexts(nn.Module):
    """A block of positions, and one of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8))
        self.head = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 4))

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.embedding(numbers)
        return self.head(torch.tanh((x + self.mlp(x)).mean(1)))


def test_all_that_is_held_out_judges_blocks_of_positions_and_of_texts() -> None:
    """Each was held out by a draw of its own, so that of 120 texts two were left, and the fitted ones judged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OfTexts().eval()
    texts = torch.randint(0, 40, (120, 8), generator=seeded(0))
    planned = compress(model, texts, budget="80%", **QUICK).report.planned
    assert planned.held_out
    assert planned.judges == 18


def test_an_agreement_is_told_by_inputs_that_no_block_was_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    held = torch.arange(200) < 7
    monkeypatch.setattr("tenflex.blocks.workbench.never_fitted", lambda *_: held)
    with pytest.raises(
        ValueError, match=r"needs at least 8 inputs to tell it that no block was fitted to, got 7 of 200"
    ):
        compress(made(), draws(), budget=Budget(lost_agreement="10%"), **QUICK)


class Tall(nn.Linear):
    """A class of the user's own that computes what its parent does."""


def test_a_subclass_of_a_linear_layer_is_thinned_if_it_is_one() -> None:
    class Halved(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(Tall(6, 20), nn.Tanh(), Halved(20, 20), nn.Tanh(), nn.Linear(20, 3)).eval()
    thin = compress(model, draws(), {"0": LowRank(3)}).model[0]
    assert isinstance(thin, ThinLinear)
    with pytest.raises(ValueError, match=r"block '2' is no single nn\.Linear"):
        compress(model, draws(), {"2": LowRank(3)})


def test_a_share_that_is_just_lost_is_kept() -> None:
    """Of 20 inputs one is 5 %, though 1 - 0.95 is more than 0.05 to a computer."""

    class Other(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.count = count

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((x[: self.count].flip(1), x[self.count :]))

    model, inputs, every = nn.Identity().eval(), torch.eye(2).repeat(10, 1), torch.ones(20, dtype=torch.bool)
    plan = Plan({"": Block(1)})
    planner = Planner(model, inputs, plan, Budget(lost_agreement="5%"), None, None, bench=None)  # type: ignore[arg-type]
    one, two = (planner.losses(Other(count).eval(), every) for count in (1, 2))
    assert (one[1], two[1]) == (0.05, 0.1)
    assert planner.keeps(one)
    assert not planner.keeps(two)


def test_several_budgets_at_once() -> None:
    result = compress(made(), draws(), budget="parameters=70%,macs=60%,bytes=80%", **QUICK)
    report = result.report
    assert report.after.parameters <= 0.7 * report.before.parameters
    assert report.after.macs <= 0.6 * report.before.macs


@pytest.mark.parametrize(
    ("budget", "blocks", "kind", "message"),
    [
        ("0.1%", None, ValueError, r"nothing that was tried is within the budget of parameters 0.1%: the smallest has"),
        ("100%", None, ValueError, r"within the budget of parameters 100% as it is"),
        ("5%", {"first": Block(2)}, ValueError, r"budget chooses the blocks: expected one of the two, got both"),
        ("five", None, ValueError, r'parameters must be a share such as "5%", or a number, got \'five\''),
        (0.05, None, TypeError, r'budget must be a share such as "5%", a number of parameters or a Budget, got 0.05'),
        ({"params": "5%"}, None, ValueError, r"a budget has no 'params'; did you mean 'parameters'"),
        ({}, None, ValueError, r"a budget limits at least one of parameters, bytes, macs, lost_agreement"),
        ("120%", None, ValueError, r"above 0 and at most what there is"),
        ("1/3%", None, ValueError, r"must be a share"),
        (None, None, ValueError, r"no block was named"),
    ],
)
def test_bad_budgets(budget: object, blocks: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        compress(made(), draws(60), blocks, budget=budget, **QUICK)


# --- its parts ---


def test_frontier_is_that_of_all_combinations() -> None:
    numbers = random.Random(0)

    def options(name: str, count: int) -> list[Option]:
        return [
            Option(((name, place),), (-numbers.randrange(1, 60),), numbers.random(), numbers.random())
            for place in range(count)
        ]

    inner = [Region(options("a.0", 3)), Region(options("a.1", 3))]
    regions = [Region(options("a", 4), inner), Region(options("b", 5)), Region(options("c", 2))]
    nothing = Option(costs=(0,))
    pairs = [one + two for one in [nothing, *inner[0].options] for two in [nothing, *inner[1].options]]
    ways = [[*pairs, *regions[0].options], [nothing, *regions[1].options], [nothing, *regions[2].options]]
    whole = [a + b + c for a, b, c in itertools.product(*ways)]
    found = frontier(regions, 1)
    for room in range(0, -180, -7):
        least = min((one.error for one in whole if one.costs[0] <= room), default=None)
        assert min((one.error for one in found if one.costs[0] <= room), default=None) == pytest.approx(least)
    assert len({one.costs for one in found}) == len(found)


def test_budget_in_numbers() -> None:
    original = {"parameters": 2000, "macs": 1000, "bytes": 8000}
    assert Budget.of("5%").limits(original) == {"parameters": 100}
    assert Budget.of(77).limits(original) == Budget.of("77").limits(original) == {"parameters": 77}
    both = Budget.of("macs=25%, bytes=400,lost_agreement=1%")
    assert both.limits(original) == {"macs": 250, "bytes": 400}
    assert both.most_lost == Budget(lost_agreement=0.01).most_lost == 0.01
    assert Budget.of(both) is both
    for percent in range(1, 101):  # 0.29 * 100 is less than 29 to a computer
        assert Budget.of(f"{percent}%").limits({"parameters": 100}) == {"parameters": percent}


def facts(**changes: object) -> Facts:
    known = {"name": "b", "inputs": 784, "outputs": 10, "parameters": 266_610, "layers": 3, "most": 13_000}
    return Facts(**{**known, "share": 0.05, "alone": True, "basis": Monomial(3), "steps": 6, **changes})


@pytest.mark.parametrize("split", [None, 3 / 8, 5 / 8])
@pytest.mark.parametrize("numbers", [2000, 5000, 13_000])
def test_largest_block_is_the_largest(split: float | None, numbers: int) -> None:
    def size(block: Block) -> int:
        return block_size(replace(block, basis=Monomial(3)), 784, 10)

    found = largest_block(facts(), numbers, split)
    if found is None:
        assert split is None
        assert size(Block(2)) > numbers or numbers >= 0
        return
    rank = found.rank + 1
    more = Block(rank, None if split is None else round(split * rank))
    assert size(found) <= numbers < size(more) or found.rank == 128


def test_methods_offer_what_they_are_for() -> None:
    assert METHODS["low rank"](facts()) == []
    assert METHODS["flexible"](facts(layers=1)) == []
    offered = METHODS["flexible"](facts())
    assert len({(one.rank, one.factor) for one in offered}) == len(offered) == 5
    ranks = [one.rank for one in METHODS["low rank"](facts(layers=1, inputs=30, outputs=20, parameters=620))]
    assert ranks[0] == 11  # 11 * 50 + 20 < 620 <= 12 * 50 + 20
    assert ranks[-1] == 1


def test_directions_along_the_axes_that_no_cosine_has_are_found() -> None:
    """A network that sees 8 x 8 images through two directions of rows and two of columns alone."""
    drawn = torch.Generator().manual_seed(1)
    rows, columns, core = (torch.randn(*size, generator=drawn) for size in ((2, 8), (2, 8), (24, 4)))
    model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(core @ torch.kron(rows, columns) / 12)
    x = torch.randn(250, 64, generator=drawn)
    result = compress(model, x, budget=300, shape=(8, 8), **QUICK)
    [chosen] = result.report.planned.chosen.values()
    assert chosen.startswith("Tucker modes")
    [block] = result.plan.blocks.values()
    assert block.modes == Tucker((3, 3), shape=(8, 8))
    [curve] = [one.tried for one in result.report.planned.curves if one.block == next(iter(result.plan.blocks))]
    names = ("Tucker modes", "cosines", "flexible")
    least = {name: min(one.error for one in curve if one.method == name) for name in names}
    assert least["Tucker modes"] < least["flexible"]
    assert 10 * least["Tucker modes"] < least["cosines"]


def test_channels_of_feature_maps_are_reduced_too() -> None:
    [offered] = {one.modes for one in METHODS["Tucker modes"](facts(inputs=4096, shape=(64, 8, 8)))}
    assert offered == Tucker((28, 3, 3), shape=(64, 8, 8))
    assert METHODS["Tucker modes"](facts(inputs=75, shape=(3, 5, 5))) == []


def test_what_was_beaten_at_the_largest_size_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """One size of every method is measured before any other; the method that did far worse gets no more of them."""
    ways = {"good": lambda facts: [Block(4), Block(3)], "bad": lambda facts: [Block(6, 1), Block(2)]}
    ways = {name: lambda facts, way=way: way(facts) if facts.layers > 1 else [] for name, way in ways.items()}
    monkeypatch.setattr(planner, "METHODS", ways)
    monkeypatch.setattr(planner, "BEHIND", 1.0)
    result = compress(made().second, draws(), budget="60%", **QUICK)
    [curve] = result.report.planned.curves
    tried = [(one.method, one.settings["rank"]) for one in curve.tried]
    assert curve.tried[0].error < curve.tried[1].error
    assert tried == [("good", 4), ("bad", 6), ("good", 3)]


class Images(nn.Module):
    """Two convolutions as one module, and a dense part behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 2), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_what_is_saved_when_last_maps_are_folded_is_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers that are within a budget together alone, as the last map of the first becomes part of the second."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, images = Images().eval(), torch.randn(40, 1, 8, 8)
    wide = {"flexible": lambda facts: [Block(4, 3) if facts.patches else Block(4, 2)] if facts.layers > 1 else []}
    monkeypatch.setattr(planner, "METHODS", wide)
    quickest = {"basis": Monomial(2), "solver": ConstrainedALS(2)}
    first, second = {"features": Block(4, 3)}, {"head": Block(4, 2)}
    plans = (first, second, {**first, **second})
    sizes = [stored_numbers(compress(model, images, one, samples=150, **quickest).model) for one in plans]
    apart, together = sizes[0] + sizes[1] - stored_numbers(model), sizes[2]
    assert together == apart - 16 * (4 + 1) - (16 - 4) * 4 * 2
    result = compress(model, images, budget=together, samples=150, **quickest)
    assert stored_numbers(result.model) == together
    planned = result.report.planned
    assert planned.chosen["features"].startswith("flexible, rank=4, factor=3, error")
    assert "last map in head" in planned.chosen["features"]
    assert "last map" not in planned.chosen["head"]
    with pytest.raises(ValueError, match=f"the smallest has {together:,} parameters"):
        compress(model, images, budget=together - 1, samples=150, **quickest)
    macs = result.report.after.macs
    assert compress(model, images, budget={"macs": macs}, samples=150, **quickest).report.after.macs == macs
    size = 4 * together
    assert stored_numbers(compress(model, images, budget={"bytes": size}, samples=150, **quickest).model) == together


def test_sizes_follow_whatever_is_limited() -> None:
    """Numbers of four bytes: the same share of both is the same budget; and of multiply-adds little is wasted."""
    whole = compress(made(), draws(), budget="20%", **QUICK)
    bytes_ = compress(made(), draws(), budget=Budget(bytes="20%"), **QUICK)
    assert bytes_.plan.blocks == whole.plan.blocks
    macs = compress(made(), draws(), budget=Budget(macs="20%"), **QUICK).report
    assert 0.1 * macs.before.macs < macs.after.macs <= 0.2 * macs.before.macs


# --- thin layers by hand ---


def test_low_rank_by_hand_is_data_aware_svd(tmp_path: Path) -> None:
    model = made()
    result = compress(model, draws(), {"second.0": LowRank(2)}, held_out=0)
    stored = stored_numbers(result.model.second[0])
    rival = data_aware_svd(model, draws(), stored, layers=["second.0"])
    torch.testing.assert_close(result.model(draws(50, 1)), rival(draws(50, 1)), rtol=1e-4, atol=1e-4)
    result.save(tmp_path / "small")
    assert torch.equal(tenflex.load(tmp_path / "small", made())(draws(9)), result.model(draws(9)))
    again = tenflex.Plan.from_dict(json.loads(json.dumps(result.plan.to_dict())))
    assert again == result.plan
    assert not [one for one in result.report.warnings if "SVD" in one]


def test_thin_layers_lose_the_least_in_a_metric() -> None:
    """Eckart, Young in the metric: no map of the rank loses less on what arrives, and there is a better one without."""
    linear, x = (
        drawn(nn.Linear, 9, 7),
        torch.randn(300, 9, generator=seeded(1)) @ torch.randn(9, 9, generator=seeded(2)),
    )
    mixed = torch.randn(7, 7, generator=seeded(3), dtype=torch.float64)
    root = symmetric_root(mixed @ mixed.mT)
    y = linear(x).detach()

    def lost(rank: int, metric: Tensor | None) -> float:
        layer = low_rank_axes(linear, x, y, metric).thin(rank)
        return float(((layer(x) - y).double().detach() @ root).norm())

    strengths = torch.linalg.svdvals((y - y.mean(0)).double() @ root)
    for rank in range(1, 7):
        assert lost(rank, root) == pytest.approx(float(strengths[rank:].norm()), rel=1e-4)
        assert lost(rank, root) < lost(rank, None)
    eye = torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(lost(3, eye), lost(3, None), rtol=1e-5, atol=0)


def test_thin_layers_are_measured_by_what_follows() -> None:
    """What follows reads two directions of the outputs: thin layers keep these, by hand and within a budget."""
    model = nn.Sequential(drawn(nn.Linear, 8, 6), drawn(nn.Linear, 6, 2)).eval()
    x = torch.randn(400, 8, generator=seeded(4))

    def lost(**asked: Any) -> float:
        found = compress(model, x, **asked).model
        with torch.no_grad():
            return float((found(x) - model(x)).norm() / (model(x) - model(x).mean(0)).norm())

    assert lost(blocks={"0": LowRank(2)}, metric=Downstream(1e-6)) < 1e-2 < 0.1 < lost(blocks={"0": LowRank(2)})
    assert lost(budget=stored_numbers(model) - 16, metric=Downstream(1e-6)) < 1e-2


def test_low_rank_makes_up_for_what_came_before() -> None:
    """What arrives after an earlier replacement is fitted to the original's outputs."""
    both = {"first": Block(1), "second.0": LowRank(3)}
    result = compress(made(), draws(), both, **QUICK)
    alone = compress(made(), draws(), {"first": Block(1)}, **QUICK)
    thin = compress(made(), draws(), {"second.0": LowRank(3)}, **QUICK)
    put = tenflex.surgery.twin.duplicate(alone.model)
    put.second[0] = thin.model.second[0]
    inner, wanted = result.model, made()
    fresh = draws(2000, 3)
    ours, theirs = (one.second[0](one.norm(fresh + one.first(fresh))) for one in (inner, put))
    target = wanted.second[0](wanted.norm(fresh + wanted.first(fresh)))
    assert (ours - target).norm() < (theirs - target).norm()


def test_a_flexible_layer_for_a_linear_map_is_told_of_svd() -> None:
    [warning] = [
        one for one in compress(made(), draws(), {"second.0": Block(3)}, **QUICK).report.warnings if "SVD" in one
    ]
    assert warning.startswith("second.0 is a single linear map, for which SVD is the better tool: ask for LowRank")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            {"second": LowRank(2)},
            r"block 'second' is no single nn.Linear, or convolution of all channels,",
        ),
        ({"second.0": LowRank(5)}, r"thin layers of rank 5 store 174 numbers, the layer itself 168: lower the rank"),
    ],
)
def test_what_thin_layers_are_not_for(blocks: dict[str, LowRank], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(made(), draws(60), blocks)


# --- long runs ---


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_plan_killed_at_every_checkpoint_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tenflex import checkpoint

    monkeypatch.setattr(planner, "BEHIND", math.inf)  # all sizes are solved for
    whole = compress(made(), draws(), budget="55%", **QUICK)
    module = sys.modules["tenflex.blocks.solved"]
    write, solve, counts = checkpoint.write, module.solved, []

    def killed(path: Path, parts: checkpoint.Parts) -> None:
        write(path, parts)
        raise Killed

    def counted(*arguments: object) -> object:
        counts.append(1)
        return solve(*arguments)

    monkeypatch.setattr(checkpoint, "write", killed)
    monkeypatch.setattr(module, "solved", counted)
    kills = 0
    while True:
        try:
            result = compress(made(), draws(), budget="55%", checkpoints=tmp_path, **QUICK)
        except Killed:
            kills += 1
            assert len(list(tmp_path.glob("*.safetensors"))) == kills
            continue
        break
    assert kills == len(counts) > 5  # nothing was solved for twice
    assert torch.equal(result.model(draws(9)), whole.model(draws(9)))
    assert result.report.planned.curves == whole.report.planned.curves


def test_checkpoints_that_are_damaged_or_of_something_else_are_not_used(tmp_path: Path) -> None:
    known = compress(made(), draws(60), {"second": Block(3)}, **QUICK).solutions["second"]
    saved, problem = Checkpoints(tmp_path), known.problem
    first = saved.solution(problem.samples, {"rank": 1}, lambda: known)
    torch.testing.assert_close(first.factors.tensors(), known.factors.tensors(), rtol=0, atol=0)
    fresh = Checkpoints(tmp_path)
    back = fresh.solution(problem.samples, {"rank": 1}, lambda: pytest.fail("it is on the disk"))
    torch.testing.assert_close(back.factors.tensors(), known.factors.tensors(), rtol=0, atol=0)
    assert (back.result, back.history, back.test_error) == (known.result, known.history, known.test_error)
    assert digest(problem.samples, {"rank": 2}) != digest(problem.samples, {"rank": 1})
    [path] = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    fresh = Checkpoints(tmp_path)
    fresh.solution(problem.samples, {"rank": 1}, lambda: known)
    assert fresh.solved == 1


class Judged(Planner):
    """A planner of three blocks with given errors of single layers, and of all together."""

    def options(self, name: str, names: Sequence[str]) -> list[Option]:
        return [Option(((name, place),), (-10 * (3 - place),), error) for place, error in enumerate((0.9, 0.4, 0.1))]

    before = Costs(100, 0, 0)

    def judges(self, option: Option) -> None:
        return None

    def layers_of(self, option: Option) -> Option:
        return option

    def together(self, layers: Option) -> Option:
        return layers

    def losses(self, network: Option, held: None) -> tuple[float, float]:
        places = dict(network.choice)
        weights = {"a": 9.0, "b": 1.0, "c": 1.0}  # of which the single errors know nothing
        return sum(weights[name] * (0.9, 0.4, 0.1)[place] for name, place in places.items()), 0.0


def test_where_the_sum_misled_near_plans_are_measured() -> None:
    """The block that matters most gets the largest layer, though single errors say that all are alike."""
    planner = Judged(None, None, None, Budget(parameters=40), None, None, bench=None)  # type: ignore[arg-type]
    places = ("a", 0), ("b", 2), ("c", 1)
    start = sum((planner.options(name, [])[place] for name, place in places), Option(costs=(0,)))
    joint = planner.losses(start, None)[0]
    option, error, checked = planner.repaired(start, joint, 8, {"parameters": 40})
    assert dict(option.choice) == {"a": 2, "b": 0, "c": 1} or error < joint / 4
    assert option.costs[0] <= 40 - 100
    assert error == pytest.approx(planner.losses(option, None)[0])
    assert checked > 8
    right = Option(start.choice, start.costs, joint)
    assert planner.repaired(right, joint, 8, {"parameters": 40}) == (right, joint, 8)


class Folded(Planner):
    """A planner of a convolution whose errors are mended to a share by the layer behind, which tells when it is run."""

    cuts = before = None

    def __init__(self, share: float, lost: float = 0.0, **budget: object) -> None:
        self.share, self.budget, self.report, self.asked_for = (
            share,
            Budget(parameters=100, **budget),
            lambda one: None,
            [],
        )
        errors = {"first": (0.9, 0.5, 0.3, 0.2), "second": (0.3, 0.12, 0.05, 0.02)}
        self.made = {
            name: [Made(place, None, SimpleNamespace(error=one)) for place, one in enumerate(several)]
            for name, several in errors.items()
        }
        self.rows, self.lost = [SimpleNamespace(first="first", second="second")], lost

    plan = Plan({"": Block(1)})

    def whole(self, blocks: dict[str, int], metric: object) -> tuple[dict[str, int], None]:
        self.asked_for.append({**blocks, "metric": metric})
        return blocks, None

    def losses(self, network: dict[str, int], held: None) -> tuple[float, float]:
        first, second = (self.made[name][place].tried.error for name, place in network.items())
        return self.share * first + second, self.lost

    def folded_in(self, option: Option) -> list[tuple[SimpleNamespace, None]]:
        return [(self.rows[0], None)] if option.choice else []

    def affordable(self, limits: object) -> list[Option]:
        pairs = [(place, 3 - place) for place in range(4)]  # larger is the one as smaller is the other
        choices = [(("first", a), ("second", b)) for a, b in pairs]
        found = [
            Option(one, (0,), self.left * self.error_of("first", Option(one)) + self.error_of("second", Option(one)))
            for one in choices
        ]
        return sorted(found, key=lambda one: one.error)


@pytest.mark.parametrize(("share", "best"), [(1.0, 2), (0.4, 2), (0.1, 1), (0.02, 0)])
def test_the_share_that_is_mended_is_measured(share: float, best: int) -> None:
    """The plan that is best for the share that is left in truth is found from that which is best by sums."""
    planner = Folded(share)
    by_sums = planner.affordable({})[0]
    assert by_sums.choice == (("first", 2), ("second", 1))
    [found] = planner.ended(by_sums, {"parameters": 100})
    assert dict(found.option.choice)["first"] == best
    assert found.joint == pytest.approx(planner.losses(dict(found.option.choice), None)[0])
    assert len(planner.asked_for) == len({tuple(one.items()) for one in planner.asked_for}) <= 4 + 1
    assert [one["metric"] for one in planner.asked_for] == [None] * (len(planner.asked_for) - 1) + [Downstream()]
    assert found.metric is None  # which is no better here
    assert list(Folded(share).ended(by_sums, {})) == []  # by agreement alone: the smallest is wanted


def test_the_metric_is_that_which_is_better_in_the_end_unless_one_is_asked_for() -> None:
    class Metric(Folded):
        def whole(self, blocks: dict[str, int], metric: object) -> tuple[dict[str, object], None]:
            return {**super().whole(blocks, metric)[0], "metric": metric}, None

        def losses(self, network: dict[str, object], held: None) -> tuple[float, float]:
            error, lost = super().losses({name: network[name] for name in ("first", "second")}, held)
            return (0.9 if network.get("metric") else 1.0) * error, lost

    planner = Metric(0.4)
    [found] = planner.ended(planner.affordable({})[0], {"parameters": 100})
    assert found.metric == Downstream()
    planner = Metric(0.4)
    planner.plan = replace(planner.plan, metric=Fisher())
    [found] = planner.ended(planner.affordable({})[0], {"parameters": 100})
    assert {one["metric"] for one in planner.asked_for} == {found.metric} == {Fisher()}


def test_a_plan_stays_where_its_outputs_have_no_metric() -> None:
    class Flat(Folded):
        def whole(self, blocks: dict[str, int], metric: object) -> tuple[dict[str, int], None]:
            if metric is not None:
                raise ValueError("no gradient leads from the network's outputs to block 'first': leave metric out")
            return super().whole(blocks, metric)

    planner = Flat(0.4)
    [found] = planner.ended(planner.affordable({})[0], {"parameters": 100})
    assert found.metric is None


def test_no_plan_that_was_gone_through_loses_more_agreement_than_is_allowed() -> None:
    for lost, count in ((0.02, 0), (0.005, 1)):
        planner = Folded(0.1, lost, lost_agreement="1%")
        assert len(list(planner.ended(planner.affordable({})[0], {"parameters": 100}))) == count


def test_layers_with_norms_between_are_one_block() -> None:
    """Thin layers in the places of single ones, which is what is left without, lose several times as much."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = [nn.Sequential(nn.Linear(m, 40), nn.BatchNorm1d(40), nn.ReLU()) for m in (6, 40)]
        model = nn.Sequential(*rows, nn.Linear(40, 3))
        for row in rows:
            row[1].running_mean.normal_()
    found = compress(model.eval(), draws(400), budget="40%", **QUICK)
    assert [type(one) for one in found.plan.blocks.values()] == [Block]
    thin = compress(model, draws(400), {"0.0": LowRank(4), "1.0": LowRank(6)})
    assert thin.report.after.parameters > found.report.after.parameters
    fresh = draws(seed=1)
    assert found.evaluate(fresh).relative_error < thin.evaluate(fresh).relative_error / 2


@pytest.mark.parametrize("most", [800, 300])
def test_buffers_of_a_block_go_with_it(most: int) -> None:
    """Masks of pruned layers were once taken to stay, so that a budget left nothing for the layers in their place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)]
    for one in layers[::2]:
        prune.l1_unstructured(one, "weight", 0.3)
    inputs = torch.randn(300, 10, generator=seeded(1))
    stored = compress(nn.Sequential(*layers).eval(), inputs, budget=most, **QUICK).report.after.parameters
    assert 0.75 * most < stored <= most


def test_a_network_whose_outputs_never_vary_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
    with pytest.raises(ValueError, match=r"outputs are the same for all of 200 inputs"):
        compress(model, draws(), budget="50%", **QUICK)
