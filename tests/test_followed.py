"""How errors of blocks count within a budget: by what follows them, if a few layers that are made both ways say so."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from planted import seeded
from torch import Tensor, nn

from tenflex import Block, LowRank, compress
from tenflex.coordinates import Downstream, Fisher
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import fidelity
from tenflex.evaluate.planned import Planned, Tried
from tenflex.kept import Own
from tenflex.planning import planner
from tenflex.planning.followed import Followed, compared, probes, spread
from tenflex.planning.thrift import AS_GOOD, beaten
from tenflex.progress import ESTIMATE, Progress
from tenflex.sampling.metric import are_followed, behind, metric_root
from tenflex.surgery import find_cut


def drawn(seed: int, *sizes: int) -> nn.Sequential:
    """Linear layers, one after the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes))).eval()


def points(count: int, width: int = 8, seed: int = 4) -> Tensor:
    return torch.randn(count, width, generator=seeded(seed))


class Branching(nn.Module):
    """Two layers, of which the second's use is one of several."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.first, self.second, self.head = drawn(0, 8, 6), drawn(1, 6, 6), drawn(2, 6, 2)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.use == "cut":
            with torch.no_grad():
                x = x + self.second(x)
            return self.head(x)
        if self.use == "dead":
            return self.head(x + 0 * self.second(x))
        if self.use == "decides":
            return self.head(x * (self.second(x) > 0))
        if self.use == "classes":
            return self.head(x + self.second(x)).argmax(1)
        y = self.head(x + self.second(x))
        return (y, x.sum(1)) if self.use == "two" else y.softmax(1) if self.use == "softmax" else y


@pytest.mark.parametrize(
    ("use", "followed"),
    [
        ("plain", True),
        ("softmax", True),
        ("cut", False),
        ("dead", False),
        ("decides", False),
        ("classes", False),
        ("two", False),
    ],
)
def test_gradients_tell_whether_a_block_is_used(use: str, followed: bool) -> None:
    model, x = Branching(use).eval(), points(20)
    cuts = [find_cut(model, name, x) for name in ("first", "second")]
    assert are_followed(model, cuts, x[:4], Downstream()) == followed
    assert all(one.grad is None for one in model.parameters())


def test_what_leaves_the_network_needs_no_metric_that_counts_its_outputs_alike() -> None:
    """F is the identity there: exactly, where draws would say so up to chance."""
    model, x = drawn(0, 8, 6, 2), points(300)
    inner, last = (find_cut(model, name, x) for name in ("0", "1"))
    assert metric_root(model, last, [x], Downstream(), lambda y: y) is None
    assert metric_root(model, last, [x], Fisher(), lambda y: y) is not None
    root = metric_root(model, inner, [x], Downstream(1e-9), lambda y: y)
    assert root is not None
    M = (model[1].weight.mT @ model[1].weight).detach().double()
    assert float((root @ root - M / M.diagonal().mean()).norm() / (M / M.diagonal().mean()).norm()) < 0.1
    found, alike = (compress(model, x, {"": Block(2)}, metric=one, samples=100) for one in (Downstream(), None))
    assert torch.equal(found.model(x), alike.model(x))


def test_what_passes_behind_a_block_is_counted_and_bounded() -> None:
    """Two layers of 50 behind it: their inputs are kept for the gradients; less memory takes fewer examples at once."""
    model, x = drawn(0, 8, 50, 50, 2), points(64)
    model = nn.Sequential(model[0], nn.Tanh(), model[1], nn.Tanh(), model[2])
    cut = find_cut(model, "0", x)
    last, each = behind(model, cut, x[:2])
    assert not last
    assert 2 * 50 * 4 <= each <= 20 * 50 * 4
    at_once: list[int] = []
    model[4].register_forward_hook(lambda module, args, output: at_once.append(len(output)))
    amounts = (2**32, int(4 * 5 * each))
    roots = [metric_root(model, cut, [x], Downstream(), lambda y: y, 0, memory) for memory in amounts]
    assert max(at_once[: len(at_once) // 2]) == 32
    assert at_once[-1] <= 5
    one, other = roots
    assert one is not None
    assert other is not None
    assert float((one @ one - other @ other).norm() / (one @ one).norm()) < 0.2  # other draws


def test_a_budget_counts_errors_by_what_follows_where_that_is_better() -> None:
    """What follows reads two directions of the first layer's outputs: thin layers keep these without being told."""
    model, x = drawn(0, 8, 6, 2), points(400)
    result = compress(model, x, budget=stored_numbers(model) - 16)
    assert result.plan.metric == Downstream()
    planned = result.report.planned
    assert planned is not None
    assert planned.followed is not None
    layers, ratio = planned.followed
    assert layers >= 1
    assert ratio < 0.5
    assert f"were {ratio:.3g} times those with all outputs alike" in str(result.report)
    assert Planned.from_dict(planned.to_dict()) == planned
    assert fidelity(result.model, model, points(200, seed=5)).relative_error < 0.05
    again = compress(model, x, result.plan)
    assert torch.equal(again.model(x), result.model(x))


@pytest.mark.parametrize("use", ["cut", "dead", "decides", "two"])
def test_where_nothing_follows_a_block_all_outputs_count_alike(use: str) -> None:
    model, x = Branching(use).eval(), points(200)
    result = compress(model, x, budget="80%", samples=100)
    assert result.plan.metric is None
    assert result.report.planned is not None
    assert result.report.planned.followed is None
    assert "times those with all outputs alike" not in str(result.report)


def test_a_metric_that_is_asked_for_is_not_compared() -> None:
    result = compress(drawn(0, 8, 6, 2), points(200), budget="80%", metric=Fisher())
    assert result.plan.metric == Fisher()
    assert result.report.planned is not None
    assert result.report.planned.followed is None


def test_the_ratio_is_the_geometric_mean_of_errors() -> None:
    assert Followed.of([(0.01, 0.04), (0.16, 0.04)]) == pytest.approx((2, 1.0))
    assert Followed.of([(0.25, 1.0), (math.inf, 1.0), (0.0, 0.0)]) == pytest.approx((1, 0.5))
    assert Followed.of([(math.inf, 1.0)]) is None


def test_few_blocks_of_each_method_are_compared() -> None:
    class Known:
        def __init__(self, name: str, *kernel: int) -> None:
            self.name, self.kernel = name, kernel

    linear = [Known(str(k)) for k in range(7)]
    wanted: dict[Any, Any] = {one: [("low rank", LowRank(k)) for k in (5, 3, 1)] for one in linear}
    wanted[Known("conv", 3, 3)] = [("low rank", LowRank(4))]
    wanted[Known("mlp")] = [("own nodes", Block(k, basis=Own())) for k in (4, 2)] + [("flexible", Block(3))]
    found = probes(wanted)
    assert [one.name for one, _, _ in found] == ["0", "2", "4", "mlp"]
    assert [asked for _, _, asked in found] == [LowRank(3)] * 3 + [Block(2, basis=Own())]
    assert spread(found[:2], 3) == found[:2]

    def both(facts: Any, asked: Any) -> tuple[float, float]:
        if facts.name == "2":
            raise RuntimeError("derivative not implemented")
        return 0.25, 1.0

    assert compared(both, found) == pytest.approx((3, 0.5))


def test_the_time_that_is_told_counts_what_is_made_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a metric that is asked for nothing is, and all else is made in either case."""
    monkeypatch.setattr(planner, "speed", lambda device: 1e9)
    seconds, made = [], []
    for metric in (Downstream(), None):

        def tell(progress: Progress) -> None:
            if progress.stage == ESTIMATE and progress.task == "plan":
                seconds.append(progress.seconds)
            if progress.stage == "compare":
                made.append(progress.total)

        compress(drawn(0, 8, 6, 2), points(200), budget="80%", metric=metric, on_progress=tell)
    assert len(made) == made[0] >= 1
    assert seconds[1] > seconds[0]


def test_what_takes_long_is_beaten_by_what_is_as_good() -> None:
    """1.1 times the squared error is as good where something takes long, and nothing but less is else."""

    def tried(method: str, parameters: int, error: float) -> Tried:
        return Tried(method, {}, parameters, 0, 0, error, None)

    quick = tried("own nodes", 100, 0.105)
    assert not beaten("flexible", [quick, tried("flexible", 100, 0.1)])
    assert beaten("flexible", [quick, tried("flexible", 100, 0.1)], as_good=AS_GOOD)
    assert not beaten("flexible", [quick, tried("flexible", 100, 0.09)], as_good=AS_GOOD)
    assert not beaten("flexible", [quick, tried("flexible", 99, 0.1)], as_good=AS_GOOD)  # it stores less
    assert not beaten("flexible", [quick], as_good=AS_GOOD)


def test_kernels_of_convolutions_take_no_gradients_for_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """The map behind a thinner kernel is best in any metric: with one the layer is the same, to the same bits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    x = torch.randn(40, 2, 6, 6, generator=seeded(1))
    plain = compress(model, x, {"0": LowRank(3, "cpd")})
    monkeypatch.setattr("tenflex.blocks.heads.metric_root", lambda *_: pytest.fail("gradients were taken"))
    weighed = compress(model, x, {"0": LowRank(3, "cpd")}, metric=Downstream())
    assert torch.equal(plain.model(x), weighed.model(x))
