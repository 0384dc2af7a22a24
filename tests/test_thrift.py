"""A plan looks at no more samples and sizes than tell blocks apart."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from planted import seeded
from test_kernels import facts
from torch import Tensor, nn

from tenflex import Block, Compression, LowRank, Monomial, compress
from tenflex.blocks import workbench
from tenflex.blocks.rows import drawn_rows
from tenflex.blocks.sampled import TYPICAL
from tenflex.blocks.workbench import Ahead, Workbench
from tenflex.checkpoint import Checkpoints
from tenflex.evaluate.planned import Tried
from tenflex.kept import Own
from tenflex.planning.candidates import largest_block
from tenflex.planning.choices import Made
from tenflex.planning.facts import OwnSizes
from tenflex.planning.plan import Plan
from tenflex.planning.planner import JUDGED, JUDGES, Planner, offers
from tenflex.planning.thrift import (
    EQUATIONS,
    LEAST_ROWS,
    LOST,
    REFITTED,
    Coming,
    Enough,
    beaten,
    enough_rows,
    kind_of,
    solved_for,
)
from tenflex.progress import Progress
from tenflex.sampling.capture import capture
from tenflex.solvers import Chain, ConstrainedALS, Refine
from tenflex.surgery import find_cut

pytestmark = pytest.mark.usefixtures("few_steps")

QUICK = {"basis": Monomial(3), "solver": Chain((ConstrainedALS(3), Refine(15)))}
"""The cheapest that works: these tests are of what is tried."""


def tried(method: str, parameters: int, error: float) -> Tried:
    return Tried(method, {}, parameters, 0, 0, error, None)


def test_samples_are_enough_for_the_largest_layer() -> None:
    block = facts(outputs=64)
    assert enough_rows(block, 32_000, [1000, 16_000]) == EQUATIONS * 16_000 // 64
    assert enough_rows(block, 3000, [16_000]) == 3000  # there are no more
    assert enough_rows(block, 32_000, [10]) == LEAST_ROWS
    assert enough_rows(block, 500, []) == 500


def test_fewer_samples_are_enough_for_nodes_that_a_block_has() -> None:
    own = OwnSizes(64, (1024,), (1,), 64)
    block = facts(outputs=64, inputs=64, own=own, kernel=())
    kept, solved = Block(512, basis=Own()), Block(8)
    enough = Enough.among(block, 100_000, 30_000, [kept, solved, LowRank(3)])
    assert enough.of(LowRank(3)) == EQUATIONS * 30_000 // 64
    assert enough.of(kept) == -(-REFITTED * own.numbers((512,)) // 64) < enough.of(LowRank(3))
    assert enough.of(solved) == LEAST_ROWS


def quiet(progress: Progress) -> None:
    """Nobody is told."""


def test_a_bench_fits_as_many_as_are_enough_and_holds_the_same_out() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    x = torch.randn(300, 4, generator=seeded(0))
    cut = find_cut(model, "", x)
    plan = Plan({"": Block(2)}, basis=Monomial(3), held_out=0.2)
    bench = Workbench(cut, model, [x], plan, quiet, Checkpoints(), lambda asked: 50 if asked == Block(2) else 1000)
    whole, few = (bench.passed(asked) for asked in (LowRank(1), Block(2)))
    assert len(whole[0].split(0.2).fitted) == 240
    splits = [one[0].split(0.2) for one in (whole, few)]
    assert len(splits[1].fitted) == 50
    for name in ("validation", "test"):
        rows = [one[1][0][getattr(split, name)] for one, split in zip((whole, few), splits, strict=True)]
        assert torch.equal(*rows)
    fitted = {tuple(one) for one in whole[1][0][splits[0].fitted].tolist()}
    assert {tuple(one) for one in few[1][0][splits[1].fitted].tolist()} < fitted
    assert torch.equal(few[1][1], model(few[1][0]))
    assert torch.equal(bench.held([Block(2)]), bench.held([LowRank(1)]))


def test_few_of_the_held_out_inputs_judge_sizes_where_outputs_are_many_numbers() -> None:
    held = torch.arange(900) % 3 > 0
    classes = Planner.enough(SimpleNamespace(answers=[torch.zeros(900, 10)]), held)
    assert torch.equal(classes, held)
    images = Planner.enough(SimpleNamespace(answers=[torch.zeros(900, 100, 50), torch.zeros(900, 20)]), held)
    assert images.sum() == JUDGED // 5020 == 104
    assert torch.equal(images.nonzero().squeeze(1), held.nonzero().squeeze(1)[:104])
    assert Planner.enough(SimpleNamespace(answers=[torch.zeros(900, 400, 50)]), held).sum() == JUDGES


def test_blocks_of_a_kind_differ_in_name_alone() -> None:
    assert kind_of(facts(name="a")) == kind_of(facts(name="b"))
    assert kind_of(facts(name="a")) != kind_of(facts(name="a", outputs=7))


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], False),
        ([("own nodes", 90, 0.1), ("own nodes", 40, 0.3)], True),
        ([("own nodes", 90, 0.1)], False),  # nothing as small as the smaller one
        ([("own nodes", 101, 0.1), ("own nodes", 50, 0.3)], False),  # the better one stores more
        ([("own nodes", 90, 0.2), ("own nodes", 40, 0.5)], False),  # as good is not better
    ],
)
def test_what_is_beaten_at_every_size(others: list[tuple[str, int, float]], expected: bool) -> None:
    ours = [tried("flexible", 100, 0.2), tried("flexible", 50, 0.4)]
    assert beaten("flexible", [*ours, *(tried(*one) for one in others)]) == expected
    assert not beaten("cosines", ours)


class Residual(nn.Module):
    """Three feed-forward parts of one size at positions of a sequence, as transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        parts = [nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 6)) for _ in range(3)]
        self.parts, self.last = nn.ModuleList(parts), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for one in self.parts:
            x = x + one(x)
        return self.last(x.mean(1))


@pytest.fixture(scope="module")
def planned() -> tuple[Compression, list[tuple[str, int, str]]]:
    """A plan, and what was made for which block from how many rows."""
    asked, original = [], workbench.Workbench.layer

    def layer(self, one):
        asked.append((self.cut.name, self.plan.samples, "flexible" if solved_for(one) else str(one)))
        if solved_for(one):  # beaten: what flexible layers are worth is not the matter here
            return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 6)).requires_grad_(False).eval()
        return original(self, one)

    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(3)
        patch.setattr(workbench.Workbench, "layer", layer)
        x = torch.randn(300, 9, 6)
        return compress(Residual().eval(), x, budget="55%", samples=2500, **QUICK), asked


def test_what_lost_in_one_block_is_not_tried_in_those_like_it(planned) -> None:
    result, asked = planned
    assert {name for name, _, kind in asked if kind == "flexible"} == {"parts.0"}
    assert {name for name, _, kind in asked if "Own" in kind} == {"parts.0", "parts.1", "parts.2"}
    for curve in result.report.planned.curves:
        if curve.block in ("parts.1", "parts.2"):
            assert {one.method for one in curve.tried} == {"own nodes", "node dropping"}


@pytest.mark.parametrize(("error", "expected"), [(0.4, True), (0.2, False)])
@pytest.mark.parametrize("alone", [False, True])
def test_what_lost_at_its_smallest_is_not_tried_at_more(error: float, expected: bool, alone: bool) -> None:
    own = [Made(Block(8, basis=Own()), nn.Identity(), tried("own nodes", *pair)) for pair in ((90, 0.1), (40, 0.3))]
    made = [*own, Made(Block(3), nn.Identity(), tried("flexible", 45, error))]
    planner, block = SimpleNamespace(parts=lambda name, most: []), facts(patches=False, alone=alone)
    assert not Planner.behind(planner, block, "flexible", own)  # nothing is known of it
    assert Planner.behind(planner, block, "flexible", made) == (expected and not alone)
    assert not Planner.behind(planner, block, "own nodes", made)  # they are quick


@pytest.mark.parametrize(
    ("lost", "patches", "expected"),
    [
        ([], True, False),
        ([True] * (LOST - 1), True, False),
        ([True] * LOST, True, True),
        ([True] * LOST + [False], True, False),  # in one it paid
        ([True] * LOST, False, False),
    ],
)
def test_what_was_outdone_in_the_first_blocks_of_patches_is_tried_in_no_other(
    lost: list[bool], patches: bool, expected: bool
) -> None:
    planner = SimpleNamespace(lost={"flexible": lost}, kinds={}, made={})
    block = facts(patches=patches)
    assert Planner.lost_elsewhere(planner, block, "flexible", Block(3)) == expected
    assert not Planner.lost_elsewhere(planner, block, "own nodes", Block(3, basis=Own()))
    assert not Planner.lost_elsewhere(planner, block, "cosines", Block(3))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, False),
        ({100: 0.1, 50: 0.3}, True),
        ({100: 0.1, 50: 0.5}, False),  # ahead at the smaller size
        ({50: 0.15}, True),  # what is smaller and better is so at both
        ({100: 0.2, 50: 0.4}, False),  # as good is not better
    ],
)
def test_layers_one_by_one_outdo_flexible_ones(parts: dict[int, float], expected: bool) -> None:
    made = [Made(Block(3), nn.Identity(), tried("flexible", *pair)) for pair in ((100, 0.2), (50, 0.4))]
    planner = SimpleNamespace(parts=lambda name, most: [("", error) for size, error in parts.items() if size <= most])
    assert Planner.outdone(planner, "", "flexible", made) == expected
    other = Made(LowRank(2), nn.Identity(), tried("low rank", 45, 0.1))
    assert Planner.outdone(planner, "", "flexible", [*made, other])


@pytest.mark.parametrize("alone", [False, True])
def test_flexible_layers_come_last_where_there_are_other_blocks(alone: bool) -> None:
    sizes = {"inputs": 64, "outputs": 64, "layers": 2, "parameters": 33_000, "most": 20_000}
    several = offers(facts(kernel=(), patches=False, alone=alone, own=OwnSizes(64, (256,), (1,), 64), **sizes))
    methods = [method for method, _ in several]
    ranks = [one.rank for method, one in several if method == "flexible"]
    assert len(ranks) > 2
    assert ranks == sorted(ranks, reverse=alone)
    assert (methods[0] == "flexible") == alone
    assert (methods[-len(ranks) :] == ["flexible"] * len(ranks)) != alone


def test_a_plan_is_measured_with_fewer_rows_and_made_with_all(planned) -> None:
    result, asked = planned
    assert {rows for _, rows, _ in asked} == {LEAST_ROWS}
    assert result.plan.samples == 2500
    assert {block.sampled.rows for block in result.report.blocks} == {2500}
    assert all(isinstance(one, Block) for one in result.plan.blocks.values())
    assert replace(result.plan, samples=LEAST_ROWS) != result.plan


@pytest.mark.parametrize("inputs", [8, 60, 784])
def test_no_product_stores_more_than_it_stands_for(inputs: int) -> None:
    block = facts(kernel=(), patches=False, inputs=inputs, outputs=1, layers=3, most=4000)
    asked = [largest_block(block, numbers, split) for numbers in (300, 900, 3000) for split in (3 / 8, 5 / 8)]
    for one in filter(None, asked):
        assert one.factor is None or one.factor * (inputs + one.rank) < inputs * one.rank
    assert any(one is not None and one.factor is None for one in asked) == (inputs < 784)


class Tower(nn.Module):
    """Three blocks one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.norm = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = self.norm(x + part(x).tanh())
        return x


@pytest.mark.parametrize(("memory", "together"), [(2**30, 3), (60_000, 1)])
def test_one_run_tells_what_passes_at_as_many_blocks_as_there_is_room_for(memory: int, together: int) -> None:
    with torch.random.fork_rng(devices=[]):
        model = Tower().eval()
    x = torch.randn(300, 4, generator=seeded(0))
    plan = Plan({"": Block(2)}, memory=memory)
    coming = [Coming(find_cut(model, f"parts.{k}", x), 200, 8) for k in range(3)]
    ahead = Ahead(model, [x], plan)
    for place in range(3):
        rows, (arrives, leaves) = ahead.passed(coming[place:])
        assert len(ahead.known) == max(0, together - 1 - place)
        assert len(rows) == 200
        alone = replace(plan, samples=200, blocks={f"parts.{place}": TYPICAL})
        drawn = drawn_rows(model, [coming[place].cut], [x], alone)[0]
        expected = capture(model, [coming[place].cut], [x], drawn)[f"parts.{place}"]
        assert torch.equal(arrives, expected[0])
        assert torch.equal(leaves, expected[1])
