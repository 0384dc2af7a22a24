"""Settings that validation samples choose: never for the worse there, told, and the same again."""

from __future__ import annotations

import pytest
import torch
from planted import random, seeded
from torch import Tensor, nn

import tenflex
from tenflex import Block
from tenflex.coordinates import Sensitivity, Whiten
from tenflex.coordinates.sensitivity import typical_shrinkage
from tenflex.planning.held_out import FACTOR, typical_coupling
from tenflex.planning.plan import Plan
from tenflex.result import Judged
from tenflex.solvers import ConstrainedALS

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(9, 24), nn.Tanh(), nn.Linear(24, 6)).eval().double()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    generator = seeded(1)
    return random(generator, 90, 9) @ random(generator, 9, 9)


BLOCKS = {"": Block(5, factor=4)}


def test_the_choice_is_told_and_never_raises_the_validation_error(network, inputs):
    found = tenflex.compress(network, inputs, BLOCKS)
    fixed = tenflex.compress(network, inputs, BLOCKS, coupling=1.0, coordinates=Sensitivity())
    solution = found.solutions[""]
    assert solution.validation_error <= fixed.solutions[""].validation_error
    settings = found.report.blocks[0].chosen
    fitted = len(solution.problem.split.fitted)
    choices = {"coupling": typical_coupling(fitted), "shrinkage": typical_shrinkage(fitted)}
    assert settings.keys() == choices.keys()
    for name, value in settings.items():
        assert any(value == pytest.approx(one * choices[name]) for one in (1 / FACTOR, 1, FACTOR))
    assert solution.problem.coupling == settings["coupling"]
    assert found.report.to_dict()["blocks"][0]["chosen"] == settings
    assert f"coupling {settings['coupling']:.3g}" in " ".join(str(found.report).split())
    assert fixed.report.blocks[0].chosen == {}
    assert fixed.solutions[""].problem.coupling == 1.0
    assert "Chosen on" not in str(fixed.report)


def test_with_more_samples_outputs_count_more_and_what_lies_beside_them_less():
    assert [typical_coupling(count) for count in (30, 200, 800, 9000)] == [1.0, 1.0, 4.0, 10.0]
    assert [typical_shrinkage(count) for count in (30, 200, 600, 6000)] == [3.0, 3.0, 1.0, 0.1]


def test_the_test_samples_choose_nothing(network, inputs):
    """Whatever the network answers there, the layer keeps its bits."""
    found = tenflex.compress(network, inputs, BLOCKS).solutions[""]
    assert found.judged is Judged.TEST
    split = found.problem.split
    samples = found.problem.samples
    assert len(split.test) == (samples.aside or (0, 0))[1] > 0

    class Other(nn.Module):
        """The same network, but at the inputs of the test."""

        def __init__(self, there: Tensor) -> None:
            super().__init__()
            self.network, self.there = network, there

        def forward(self, x: Tensor) -> Tensor:
            near = torch.cdist(x.detach(), self.there).amin(1) < 1e-6
            return self.network(x) + near[:, None]

    there = samples.original_inputs[split.test]
    other = tenflex.compress(Other(there).eval(), inputs, BLOCKS).solutions[""]
    assert all(torch.equal(a, b) for a, b in zip(found.factors.tensors(), other.factors.tensors(), strict=True))
    assert other.problem.coupling == found.problem.coupling
    assert other.output_error > found.output_error


def test_a_plan_that_leaves_settings_open_repeats_the_run(network, inputs):
    found = tenflex.compress(network, inputs, BLOCKS)
    plan = Plan.from_dict(found.plan.to_dict())
    assert plan == found.plan
    again = tenflex.compress(network, inputs, plan)
    assert again.report.blocks[0].chosen == found.report.blocks[0].chosen
    assert torch.equal(again.model(inputs), found.model(inputs))


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"coupling": 2.0}, {"shrinkage"}),
        ({"coordinates": Whiten()}, {"coupling"}),
        ({"coordinates": Sensitivity(0.5)}, {"coupling"}),
        ({"solver": ConstrainedALS(5)}, set()),
        ({"held_out": 0.0}, set()),
    ],
)
def test_what_is_given_stays(network, inputs, given, chosen):
    found = tenflex.compress(network, inputs, {"": Block(5)}, **given)
    assert set(found.report.blocks[0].chosen) == chosen
    if "coupling" not in chosen:
        assert found.solutions[""].problem.coupling == given.get("coupling", 1.0)


def test_without_memory_for_a_second_copy_no_other_shrinkage_is_tried(network, inputs):
    """Then it stays as it began, and the result is that of less to choose."""
    found = tenflex.compress(network, inputs, BLOCKS, memory=90_000)
    assert found.report.blocks[0].chosen["shrinkage"] == 3.0
    fixed = tenflex.compress(network, inputs, BLOCKS, coordinates=Sensitivity(), memory=90_000)
    assert torch.equal(fixed.model(inputs), found.model(inputs))
