"""Plans: to JSON and back, and what is no plan."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

import tenflex
from tenflex.bases import BSpline, Hinge, Monomial, Smooth, TwoSidedHinge
from tenflex.coordinates import PerOutput, Sensitivity, Whiten
from tenflex.planning.plan import DEFAULT_BASIS, Block, Plan
from tenflex.solvers import (
    SOLVERS,
    BestSoFar,
    Chain,
    ConstrainedALS,
    Growing,
    JacobianCPD,
    Leading,
    MultiStart,
    ProjectedALS,
    Refine,
    Solver,
    Unweighted,
)

PLANS = {
    "least": Plan({"fc1": Block(rank=4)}),
    "factored": Plan({"fc1:fc3": Block(40, 10), "fc4": Block(8, output_factor=2)}),
    "bases": Plan({"": Block(3, basis=Monomial(5)), "b": Block(2, basis=Smooth(Hinge(4)))}, basis=TwoSidedHinge(6)),
    "layers": Plan({"two": Block((4, 3)), "three": Block((4, 3, 2))}),
    "given": Plan({"fc1": Block(4)}, coupling=2.0, coordinates=Sensitivity()),
    "numbers": Plan({"layer.*.mlp": Block(64)}, samples=10, coupling=0.5, seed=123),
    "none": Plan({"fc1": Block(4)}, coupling=0, basis=Smooth(BSpline(8, 2, "quantile"), None)),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_json_brings_back_the_same_plan(plan):
    saved = plan.to_dict()
    again = Plan.from_dict(json.loads(json.dumps(saved)))
    assert again == plan
    assert again.to_dict() == saved
    assert list(again.blocks) == list(plan.blocks)
    assert set(saved) == {field.name for field in dataclasses.fields(Plan)}


def test_what_is_left_out_has_its_default():
    plan = Plan.from_dict({"blocks": {"fc1": {"rank": 4}}})
    assert plan == Plan({"fc1": Block(4)})
    assert plan.basis == DEFAULT_BASIS
    assert Plan.from_dict({"blocks": {"fc1": {"rank": 4, "basis": None}}}) == plan


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (3, r"a plan must be a mapping of settings \(blocks, samples, .*\), got 3"),
        ([], r"a plan must be a mapping of settings"),
        ({}, r"no block was named: expected at least one, as \{\"fc1:fc3\": Block\(rank=40\)\}"),
        ({"blocks": {}}, r"no block was named"),
        ({"blocks": ["fc1"]}, r"blocks must map names to settings, as .* got \['fc1'\]"),
        ({"blocks": {"fc1": 40}}, r"block 'fc1' must be a mapping of settings \(rank, .*\), got 40"),
        ({"blocks": {"fc1": {}}}, r"block 'fc1' needs a rank, got \{\}"),
        ({"blocks": {"fc1": {"rank": 0}}}, r"rank must be a whole number of at least 1, got 0"),
        ({"blocks": {"fc1": {"rank": 4, "factor": "2"}}}, r"factor must be a whole number of at least 1, got '2'"),
        ({"blocks": {"fc1": {"rank": 4, "ranks": 4}}}, r"block 'fc1' has no setting 'ranks'; did you mean 'rank'"),
        ({"blocks": {"fc1": {"rank": 4, "basis": "BSpline"}}}, r"expected a basis such as"),
        ({"block": {"fc1": {"rank": 4}}}, r"a plan has no setting 'block'; did you mean 'blocks'"),
        ({"blocks": {"fc1": {"rank": 4}}, 3: 4}, r"a plan has no setting 3"),
        ({"blocks": {"fc1": {"rank": 4}}, "samples": 1}, r"samples must be a whole number of at least 2, got 1"),
        ({"blocks": {"fc1": {"rank": 4}}, "coupling": -1}, r"coupling must be a finite number of at least 0, got -1"),
        ({"blocks": {"fc1": {"rank": 4}}, "seed": 1.5}, r"seed must be a whole number of at least 0, got 1.5"),
        ({"blocks": {"fc1": {"rank": 4}}, "seed": True}, r"seed must be a whole number of at least 0, got True"),
        ({"blocks": {"fc1": {"rank": 4}}, "basis": None}, r"expected a basis such as"),
        ({"blocks": {"fc1": {"rank": 4}}, "basis": {"family": "BSplines"}}, r"no basis is called 'BSplines'"),
    ],
)
def test_what_is_no_saved_plan_is_refused(saved, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(saved)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Block(0), ValueError, r"rank must be a whole number of at least 1, got 0"),
        (lambda: Block(4.0), ValueError, r"rank must be a whole number of at least 1, got 4.0"),
        (lambda: Block(()), ValueError, r"rank must be one number of nodes a layer, got \(\)"),
        (lambda: Block((4, 3, 0)), ValueError, r"rank must be a whole number of at least 1, got 0"),
        (lambda: Block(4, factor=0), ValueError, r"factor must be a whole number of at least 1, got 0"),
        (lambda: Block(4, output_factor=-1), ValueError, r"output_factor must be a whole number of at least 1, got -1"),
        (lambda: Block(4, basis=10), TypeError, r"basis must be a basis such as BSpline\(10\), or Own\(\), got 10"),
        (lambda: Plan([Block(4)]), TypeError, r"blocks must map names to Blocks, as .*, got \[Block"),
        (lambda: Plan({}), ValueError, r"no block was named"),
        (lambda: Plan({"fc1": 4}), TypeError, r"blocks must map names to Blocks, got 'fc1': 4"),
        (lambda: Plan({1: Block(4)}), TypeError, r"blocks must map names to Blocks, got 1: Block"),
        (lambda: Plan({"a": Block(4)}, basis="BSpline"), TypeError, r"basis must be a basis such as BSpline\(10\)"),
        (lambda: Plan({"a": Block(4)}, samples=0), ValueError, r"samples must be a whole number of at least 2, got 0"),
        (lambda: Plan({"a": Block(4)}, coupling="3"), ValueError, r"coupling must be a finite number of at least 0"),
        (
            lambda: Plan({"a": Block(4)}, solver="ALS"),
            TypeError,
            r"expected a solver such as ConstrainedALS\(\), got 'ALS",
        ),
        (lambda: Plan({"a": Block(4)}, coordinates=3), TypeError, r"coordinates must be Sensitivity\(\) or Whiten\(\)"),
        (lambda: Plan({"a": Block(4)}, lost_energy=1), ValueError, r"lost_energy must be a share below 1, got 1"),
        (lambda: Plan({"a": Block(4)}, held_out=0.6), ValueError, r"held_out must be a share of at most 0.5, got 0.6"),
        (lambda: Plan({"a": Block(4)}, seed=-1), ValueError, r"seed must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_plans_do_not_change():
    blocks = {"fc1": Block(4)}
    plan = Plan(blocks)
    blocks["fc2"] = Block(5)
    assert list(plan.blocks) == ["fc1"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.samples = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.blocks["fc1"].rank = 3


SOLVER = Chain((MultiStart(Leading(Unweighted(JacobianCPD(3))), 2), BestSoFar(Refine(10), of="outputs")))


@pytest.mark.parametrize(
    "solver", [None, SOLVER, ProjectedALS(5, coupling=Growing(1e-3)), ConstrainedALS()], ids=lambda one: repr(one)[:12]
)
def test_a_plan_names_its_solver(solver):
    plan = Plan({"fc1": Block(4)}, solver=solver, coordinates=PerOutput(Sensitivity(0.3)), lost_energy=1e-3)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    if solver is not None:
        assert SOLVERS.from_dict(SOLVERS.from_text(repr(solver))) == solver


def test_every_solver_can_be_named():
    exported = [getattr(tenflex.solvers, name) for name in tenflex.solvers.__all__]
    solvers = {one for one in exported if isinstance(one, type) and issubclass(one, Solver)} - {Solver}
    assert solvers <= set(SOLVERS.members.values())


def test_a_solver_of_the_users_own_is_named_and_missed():
    plan = Plan({"fc1": Block(4)}, solver=Chain((Own(), Refine(3))))
    saved = json.loads(json.dumps(plan.to_dict()))
    assert "Own" in saved["solver"]["settings"]
    with pytest.raises(ValueError, match=r"no solver is called 'tenflex.solvers.wrap.Chain'"):
        Plan.from_dict(saved)


class Own(ConstrainedALS):
    """An algorithm that tenflex does not know."""


@torch.no_grad()
def test_a_saved_plan_repeats_the_run():
    """Bit for bit, from what stands in the file; what is changed besides is all that changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3), nn.Tanh(), nn.Linear(3, 4)).eval()
    x = torch.randn(70, 6, generator=torch.Generator().manual_seed(1))
    solver = Chain((MultiStart(JacobianCPD(3), 2), Refine(10)))
    settings = {"samples": 60, "coupling": 1.0, "held_out": 0.3, "lost_energy": 1e-2, "seed": 4, "solver": solver}
    first = tenflex.compress(model, x, {"0:2": Block(4), "4": Block(2)}, coordinates=Whiten(1e-2), **settings)
    plan = Plan.from_dict(json.loads(json.dumps(first.plan.to_dict())))
    again = tenflex.compress(model, x, plan)
    assert again.plan == first.plan == plan
    assert torch.equal(again.model(x), first.model(x))
    other = tenflex.compress(model, x, plan, seed=5)
    assert other.plan == dataclasses.replace(plan, seed=5)
    assert not torch.equal(other.model(x), first.model(x))
