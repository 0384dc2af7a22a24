"""Blocks that are called several times in a forward pass: shared towers, layers that are run again and again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted import seeded
from torch import Tensor, nn

from tenflex import Block, Monomial, compress, load
from tenflex.blocks.rows import drawn_rows
from tenflex.coordinates import Downstream
from tenflex.evaluate.cost import cost, stored_numbers
from tenflex.kept import Own
from tenflex.planning.plan import Plan
from tenflex.planning.survey import survey
from tenflex.sampling.capture import capture
from tenflex.sampling.metric import metric_root
from tenflex.surgery import Cut, find_cut

CUBIC = Block(rank=3, basis=Monomial(3))


class Cubes(nn.Module):
    """Functions that a layer of cubic polynomials gives to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return x**3 - x


class Towers(nn.Module):
    """Two inputs pass the same modules, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(5, 3), Cubes(), nn.Linear(3, 4))
        self.score = nn.Bilinear(4, 4, 2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.score(self.tower(one), self.tower(other))


class Spelled(Towers):
    """The same without a module around the tower."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bent, self.last = self.tower
        del self.tower

    def embedded(self, x: Tensor) -> Tensor:
        return self.last(self.bent(self.first(x)))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.score(self.embedded(one), self.embedded(other))


class Functional(Spelled):
    """With a function in place of a module."""

    def embedded(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Again(nn.Module):
    """One layer that is run three times, each position of a sequence by itself, and positions that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Sequential(nn.Linear(4, 12), nn.GELU(), nn.Linear(12, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.layer(x)
        return self.head((x * attention_mask[..., None]).mean(1))


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return kind().eval()


def pairs(count: int = 60) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 5, generator=seeded(0)), torch.randn(count, 5, generator=seeded(1))


def sequences(count: int = 30) -> dict[str, Tensor]:
    mask = (torch.arange(6) < torch.randint(2, 7, (count, 1), generator=seeded(2))).long()
    return {"x": torch.randn(count, 6, 4, generator=seeded(3)), "attention_mask": mask}


def test_what_passes_for_one_example_stands_together() -> None:
    model, given = made(Towers), pairs(7)
    cut = find_cut(model, "tower", given)
    assert (cut.calls, cut.modules) == (2, ("tower",))
    arriving, leaving = capture(model, [cut], [given], chunk=3)["tower"]
    assert torch.equal(arriving, torch.stack(given, 1).flatten(0, 1))
    each = [torch.cat([model.tower(part) for part in one.split(3)]) for one in given]  # products round by their sizes
    assert torch.equal(leaving, torch.stack(each, 1).flatten(0, 1))


def test_both_calls_of_an_example_are_fitted_or_held_out() -> None:
    model, given = made(Towers), pairs(50)
    cut = find_cut(model, "tower", given)
    rows = drawn_rows(model, [cut], [given], Plan({"tower": CUBIC}))[0]["tower"]
    assert len(rows) == 100
    fitted = set(rows.split(0.3).fitted.tolist())
    assert all((2 * example in fitted) == (2 * example + 1 in fitted) for example in range(50))


@pytest.mark.parametrize(("kind", "block"), [(Towers, "tower"), (Spelled, "first:last")], ids=["module", "span"])
def test_a_shared_tower_becomes_one_layer(kind: type[nn.Module], block: str, tmp_path: Path) -> None:
    """Found to rounding, in the place of both calls, and so it comes back from a file."""
    model, given = made(kind), pairs()
    result = compress(model, given, {block: CUBIC})
    fresh = tuple(torch.randn(9, 5, generator=seeded(seed)) for seed in (5, 6))
    torch.testing.assert_close(result.model(*fresh), model(*fresh), rtol=1e-4, atol=1e-4)
    assert result.report.blocks[0].sampled.rows == 120
    result.save(tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", made(kind))(*fresh), result.model(*fresh))
    again = compress(result.original, given, result.plan)
    assert torch.equal(again.model(*fresh), result.model(*fresh))


def test_the_number_of_calls_is_kept_in_files() -> None:
    cut = Cut("tower", "tower", "tower", calls=2)
    assert Cut.from_dict(cut.to_dict()) == cut
    assert "calls" not in Cut("tower", "tower", "tower").to_dict()  # as files of earlier versions
    for wrong in (0, True, 1.5, "2"):
        with pytest.raises(ValueError, match="calls to be a whole number of at least 1"):
            Cut.from_dict({**cut.to_dict(), "calls": wrong})


def test_where_the_inputs_stand_is_kept_in_files() -> None:
    cut = Cut("tower", "tower", "tower", axis=1)
    assert Cut.from_dict(cut.to_dict()) == cut
    assert "axis" not in Cut("tower", "tower", "tower").to_dict()
    for wrong in (2, True, 0.0, "1"):
        with pytest.raises(ValueError, match="axis to be 0 or 1"):
            Cut.from_dict({**cut.to_dict(), "axis": wrong})


@pytest.mark.usefixtures("few_steps")
def test_padding_of_every_call_is_left_out() -> None:
    model, given = made(Again), sequences()
    padding = int((given["attention_mask"] == 0).sum())
    assert padding > 0
    sampled = compress(model, given, {"layer": Block(6, basis=Own())}).report.blocks[0].sampled
    assert (sampled.total, sampled.padding, sampled.rows) == (3 * 180, 3 * padding, 3 * (180 - padding))


def test_the_metric_of_an_early_call_knows_of_those_that_follow() -> None:
    """Of y = A A x: an error of the first call counts as A makes of it, one of the second as it is."""

    class Iterated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.step(self.step(x))

    model = made(Iterated)
    A = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.2]])
    with torch.no_grad():
        model.step.weight.copy_(A)
    x = torch.randn(256, 3, generator=seeded(0))
    metric = Downstream()
    root = metric_root(model, find_cut(model, "step", x), [x], metric, lambda leaving: leaving)
    wanted = (torch.eye(3) + A.mT @ A).double()
    wanted = (wanted / wanted.diagonal().mean() + metric.ridge * torch.eye(3)) / (1 + metric.ridge)
    assert (root @ root - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.usefixtures("few_steps")
def test_costs_are_those_of_all_calls_for_an_example() -> None:
    model, given = made(Towers), pairs(100)
    result = compress(model, given, {"tower": CUBIC})
    (block,), report = result.report.blocks, result.report
    for name in ("macs", "activation_operations"):
        saved = [getattr(one.before, name) - getattr(one.after, name) for one in (block, report)]
        assert saved[0] == saved[1]
    assert block.before == cost(model.tower, given[0]).times(2)
    assert next(one for one in survey(model, given).candidates if one.name == "tower").macs == block.before.macs


@pytest.mark.usefixtures("few_steps")
def test_a_budget_and_the_survey_know_shared_towers() -> None:
    model, given = made(Towers), pairs(100)
    assert next(one for one in survey(model, given).candidates if one.name == "tower").obstacle is None
    result = compress(model, given, budget="85%", basis=Monomial(3))
    assert stored_numbers(result.model) <= 0.85 * stored_numbers(model)
    assert len(result.finetune(given, steps=10).report.tunings) == 1


def test_a_network_that_calls_it_less_often_than_the_example_did_is_refused() -> None:
    class Sometimes(Again):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            for _ in range(3 if len(x) < 9 else 2):
                x = x + self.layer(x)
            return self.head(x.mean(1))

    model, x = made(Sometimes), sequences()["x"]
    cut = find_cut(model, "layer", x[:4])
    with pytest.raises(ValueError, match="expected 3 tensors to arrive at 'layer', and as many to leave"):
        capture(model, [cut], [x])


class Unlike(Towers):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.score(self.tower(one), self.tower(torch.stack([other, one], 1))[:, 0])


@pytest.mark.parametrize(
    ("kind", "block", "message"),
    [
        (Unlike, "tower", r"one shape in each of its 2 calls .* is given \[\(4, 5\), \(4, 2, 5\)\]"),
        (Functional, "first:last", r"or a row of modules .* but 'first' was called 2 times"),
        (Towers, "tower:score", r"'tower' was called 2 times"),
    ],
    ids=["shapes", "function", "another"],
)
def test_refused(kind: type[nn.Module], block: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_cut(made(kind), block, pairs(4))
