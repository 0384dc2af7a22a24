"""Blocks of several outputs: one layer for all of them, divided again where they are used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import seeded
from torch import Tensor, nn

import tenflex
from tenflex import Block, LowRank, Monomial, compress, load
from tenflex.baselines import best_affine
from tenflex.coordinates import Fisher
from tenflex.kept import Own
from tenflex.planning.survey import survey
from tenflex.surgery import find_cut
from tenflex.surgery.batch import tensors_in
from tenflex.surgery.cut import Cut
from tenflex.surgery.parts import Parts

NODES = 3
CUBIC = Block(rank=NODES, basis=Monomial(3))


class Cubes(nn.Module):
    """Functions that a layer of cubic polynomials gives to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return x**3 - x


class Heads(nn.Module):
    """Two heads on one trunk, as a tuple, a list or a dict.

    Args:
        form: What the tensors are given in.
        scale: Of the second head's numbers.
    """

    def __init__(self, form: Callable[[Tensor, Tensor], Any] = lambda a, b: (a, b), scale: float = 1.0) -> None:
        super().__init__()
        self.form, self.scale = form, scale
        self.trunk, self.bent = nn.Linear(5, NODES), Cubes()
        self.classes, self.box = nn.Linear(NODES, 4), nn.Linear(NODES, 6)

    def forward(self, x: Tensor) -> Any:
        h = self.bent(self.trunk(x))
        return self.form(self.classes(h), (self.scale * self.box(h)).unflatten(-1, (2, 3)))


class Detector(nn.Module):
    """Heads inside of a network, whose tensors go different ways."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.heads, self.score = nn.Linear(5, 5), Heads(scale=scale), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        classes, box = self.heads(x + self.first(x))
        return torch.cat([classes.log_softmax(-1), self.score(box.flatten(1))], -1)


class Shared(nn.Module):
    """A trunk whose heads are used further on, with functions between."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.bent = nn.Linear(5, NODES), Cubes()
        self.left, self.right, self.after = nn.Linear(NODES, 4), nn.Linear(NODES, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.bent(self.trunk(x)) * 1.0
        left = self.left(h).softmax(-1)  # stays outside: a function at the end of a head
        return left, self.after(self.right(h)) + left[:, :2]


class Positions(nn.Module):
    """Two heads at every position of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.bent = nn.Linear(5, NODES), Cubes()
        self.tag, self.link = nn.Linear(NODES, 4), nn.Linear(NODES, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.bent(self.trunk(x))
        return self.tag(h), self.link(h)


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"classes": a, "box": b},
}


def network(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval().double()


X = torch.randn(120, 5, generator=seeded(0)).double()
FRESH = torch.randn(50, 5, generator=seeded(1)).double()

CASES: dict[str, tuple[Callable[[], nn.Module], str, Tensor, Tensor]] = {
    **{form: (lambda form=form: Heads(FORMS[form]), "", X, FRESH) for form in FORMS},
    "inside": (Detector, "heads", X, FRESH),
    "a span, whose last module gives them": (lambda: nn.Sequential(nn.Linear(5, 5), Heads()), "0:1", X, FRESH),
    "modules of a trunk": (Shared, "trunk:right", X, FRESH),
    "modules of a trunk inside": (Detector, "heads.trunk:heads.box", X, FRESH),
    "positions": (Positions, "", X.view(40, 3, 5), FRESH.view(10, 5, 5)),
}


def largest_difference(found: Any, expected: Any) -> float:
    pairs = zip(tensors_in(found), tensors_in(expected), strict=True)
    return max(float(((one - other).abs().max() / other.abs().max()).detach()) for one, other in pairs)


@pytest.mark.parametrize("case", CASES)
def test_planted_heads_are_found_to_rounding(case: str, tmp_path: Path) -> None:
    """And given in their own form and shapes; saved and loaded to the same bits; the original stays."""
    make, name, x, fresh = CASES[case]
    model = network(make)
    before = {key: one.clone() for key, one in model.state_dict().items()}
    result = compress(model, x, {name: CUBIC})
    found, expected = result.model(fresh), model(fresh)
    assert type(found) is type(expected)
    assert [one.shape for one in tensors_in(found)] == [one.shape for one in tensors_in(expected)]
    assert largest_difference(found, expected) < 1e-10
    assert all(torch.equal(one, before[key]) for key, one in model.state_dict().items())
    [block] = result.report.blocks
    assert len(block.parts) == 2
    assert block.output_error < 1e-10
    result.save(tmp_path / "small")
    again = load(tmp_path / "small", model)
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(again(fresh)), tensors_in(found), strict=True))
    other = tenflex.Compression.load(tmp_path / "small", model)
    assert other.report == result.report
    assert other.replacements == result.replacements
    cut = result.replacements[0].cut
    assert Cut.from_dict(json.loads(json.dumps(cut.to_dict()))) == cut
    folded = result.folded()
    assert largest_difference(folded(fresh), expected) < 1e-10
    assert not any(isinstance(one, tenflex.FlexibleLayer) for one in folded.modules())


def test_positions_are_samples() -> None:
    result = compress(network(Positions), X.view(40, 3, 5), {"": CUBIC})
    assert result.report.blocks[0].sampled is not None
    assert result.report.blocks[0].sampled.plural == "positions"


def bent(scale: float) -> nn.Module:
    """Heads that three nodes of cubics cannot both give."""
    model = Detector(scale)
    model.heads.trunk, model.heads.bent = nn.Linear(5, 12), nn.Tanh()
    model.heads.classes, model.heads.box = nn.Linear(12, 4), nn.Linear(12, 6)
    return model


LARGE = 2.0**17


def test_outputs_of_unequal_units_do_not_drown_each_other() -> None:
    """The layer does not depend on the units of one of the outputs, to the bit where they differ by a power of two."""
    errors = {}
    for scale in (2.0, LARGE):  # with 1.0 the heads are the block's own maps, from whose nodes a layer may start
        result = compress(network(lambda scale=scale: bent(scale)), X, {"heads": CUBIC})
        errors[scale] = result.report.blocks[0].parts
    for one, other in zip(errors[2.0], errors[LARGE], strict=True):
        assert one.output_error == pytest.approx(other.output_error, rel=1e-9)
        assert 0.01 < one.output_error < 0.9
    assert errors[LARGE][0].share < 1e-9
    joint = sum(one.output_error**2 for one in errors[LARGE]) / 2
    assert result.report.blocks[0].output_error == pytest.approx(joint**0.5)


def test_errors_of_outputs_are_those_of_the_network(tmp_path: Path) -> None:
    """And the fidelity of the whole network tells them too."""
    model = network(lambda: nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 10), Split()))
    result = compress(model, X, {"": Block(2, basis=Monomial(3))}, held_out=0.0)
    with torch.no_grad():
        pairs = [*zip(result.report.blocks[0].parts, result.model(X), model(X), strict=True)]
    for one, ours, theirs in pairs:
        error = (ours - theirs).norm() / (theirs - theirs.mean(0)).norm()
        assert one.output_error == pytest.approx(float(error), rel=1e-6)
    assert result.report.fidelity is not None
    assert result.report.fidelity.each == pytest.approx([one.output_error for one in result.report.blocks[0].parts])
    text = " ".join(str(result.report).split())
    assert "The outputs of the whole network count alike, each by its own spread" in text
    assert "error of each output" in text
    assert "error of each output" in str(result.evaluate(FRESH))
    result.write_report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Each output of the whole network counts alike" in page
    assert f"<td>{result.report.blocks[0].parts[1].output_error:.4g}</td>" in page


def test_tuning_and_inspection_do_not_drown_small_outputs() -> None:
    losses = {}
    for scale in (1.0, LARGE):
        rough = compress(network(lambda scale=scale: bent(scale).heads), X, {"": Block(1, basis=Monomial(3))})
        losses[scale] = rough.finetune(X, steps=1, rate=1e-9).report.tunings[0].before
    assert losses[LARGE] == pytest.approx(losses[1.0], rel=1e-3)
    linear = network(lambda: Heads(lambda a, b: (a, 1e-5 * b.square()), scale=1e5))
    linear.bent = nn.Identity().eval()
    [whole] = [one for one in tenflex.inspect(linear, X).candidates if one.name == ""]
    assert whole.measured is not None
    assert 0.1 < whole.measured.nonlinearity < 0.9  # the first output is affine, the second is not


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :9], 1000 * x[:, 9]


class Halves(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :5], x[:, 5:]


def test_own_nodes_take_them() -> None:
    model = network(lambda: nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 10), Halves()))
    whole = compress(model, X, {"": Block(40, basis=Own())})
    assert largest_difference(whole.model(FRESH), model(FRESH)) < 1e-4


class Rectified(Heads):
    """The same on a trunk of which some nodes are read by neither head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.bent = nn.Linear(5, 12), nn.ReLU()
        self.classes, self.box = nn.Linear(12, 4), nn.Linear(12, 6)
        for one in (self.classes, self.box):
            one.weight.data[:, ::3] = 0.0


def test_own_nodes_of_a_trunk_are_kept_for_all_its_heads() -> None:
    model = network(Rectified)
    kept = compress(model, X, {"": Block(8, basis=Own())})
    assert kept.report.after.parameters == 8 * 6 + 9 * 10
    assert largest_difference(kept.model(FRESH), model(FRESH)) < 1e-4
    one_fewer = compress(model, X, {"": Block(7, basis=Own())})
    assert largest_difference(one_fewer.model(FRESH), model(FRESH)) > 1e-2


@pytest.mark.slow
def test_budgets_take_them() -> None:
    model = network(lambda: nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 10), Halves()))
    planned = compress(model, X, budget="50%")
    assert planned.report.after.parameters <= 0.5 * planned.report.before.parameters


def test_a_network_that_was_compressed_can_be_compressed_and_tuned_further() -> None:
    model = network(Detector)
    first = compress(model, X, {"heads": CUBIC})
    second = compress(first.model, X, {"first": LowRank(1)})
    assert len(second.replacements) == 2
    before = {name: one.detach().clone() for name, one in first.model.named_parameters()}
    tuned = first.finetune(X + 0.1, steps=20, rate=1e-3)
    changed = {name for name, one in tuned.model.named_parameters() if not torch.equal(one, before[name])}
    assert changed <= {name for name in before if name.startswith("heads.layer.")}
    assert largest_difference(tuned.model(FRESH), model(FRESH)) < 1e-2


def test_the_survey_offers_them() -> None:
    found = {one.name: one for one in survey(network(Heads), X).candidates}
    assert found[""].obstacle is None
    assert found[""].sizes == (5, 10)
    assert (found["trunk:box"].obstacle, found["trunk:box"].sizes) == (None, (5, 10))
    assert found["classes:box"].obstacle is not None
    spans = {one.name: one for one in survey(network(Shared), X).candidates}
    assert spans["left:right"].obstacle is not None
    assert find_cut(network(Shared), "trunk:right", X).parts == Parts("modules", ("left", "right"), ((4,), (2,)))


class Passing(nn.Module):
    """A tensor of the trunk is used on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x).tanh()
        return self.head(h), h.sum(1)


class Decided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.score(x)
        return scores, scores.argmax(-1)


class Nested(Decided):
    def forward(self, x: Tensor) -> Any:
        return self.score(x), (self.score(x), 3)


@pytest.mark.parametrize(
    ("make", "name", "settings", "message"),
    [
        (Passing, "trunk:head", {}, "other tensors cross its border"),
        (Decided, "", {}, "maps real numbers, but what leaves the network is int64"),
        (Nested, "", {}, r"returns one tensor, or a tuple, a list or a dict of them, but .* returns a tuple of"),
        (Detector, "heads", {"metric": Fisher()}, "which count alike, each by its own size: leave metric out"),
    ],
)
def test_refusals(make: Callable[[], nn.Module], name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(network(make), X, {name: CUBIC}, **settings)


def test_what_is_not_for_several_outputs_is_refused() -> None:
    model = network(Detector)
    with pytest.raises(ValueError, match="several outputs, and is sampled by examples or positions"):
        compress(model, X, {"heads": Block(2, unit="patch")})
    halves = network(lambda: nn.Sequential(nn.Linear(5, 10), Split()))
    with pytest.raises(ValueError, match=r"is no single nn\.Linear, or convolution of all channels, which LowRank"):
        compress(halves, X, {"": LowRank(2)})


def test_other_shapes_of_other_inputs_are_refused() -> None:
    parts = Parts("tuple", ("0", "1"), ((2, 2), (3,)))
    a, b = torch.randn(4, 2, 2), torch.randn(4, 3)
    row = parts.joined([a, b])
    assert row.shape == (4, 7)
    one, other = parts.given(row)
    assert torch.equal(one, a)
    assert torch.equal(other, b)
    with pytest.raises(ValueError, match=r"the shapes .* besides, got"):
        parts.joined([a, b[:, :2]])
    with pytest.raises(ValueError, match="expected a tuple of 2 tensors to leave the block"):
        parts.listed((a, b, b))


def test_a_changed_file_is_refused() -> None:
    saved = Parts("dict", ("a",), ((2,),)).to_dict()
    assert Parts.from_dict(saved) == Parts("dict", ("a",), ((2,),))
    for change in ({"kind": "set"}, {"names": [1]}, {"shapes": [[-1]]}, {"names": []}):
        with pytest.raises(ValueError, match="expected"):
            Parts.from_dict({**saved, **change})


def test_exporters_take_heads_inside_and_refuse_several_answers(tmp_path: Path) -> None:
    result = compress(network(Detector).float(), X.float(), {"heads": CUBIC})
    exported = tenflex.export(result, tmp_path / "small.pt2", FRESH.float())
    assert exported.difference < 1e-4
    with pytest.raises(ValueError, match="the C exporter writes"):
        tenflex.export(result, tmp_path / "small.c", FRESH.float())
    several = compress(network(Heads).float(), X.float(), {"": CUBIC})
    with pytest.raises(ValueError, match="expected a network of one output, or with logits among them, got"):
        tenflex.export(several, tmp_path / "several.pt2", FRESH.float())


class Regressor(nn.Module):
    """One number for each sample, without an axis of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(5, NODES), Cubes(), nn.Linear(NODES, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x).squeeze(-1)


class Twice(nn.Module):
    """The same regressor for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.f = Regressor()

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x) - self.f(x.flip(1))


NUMBERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "the whole": (Regressor, ""),
    "inside": (Regressor, "f"),
    "a span": (lambda: nn.Sequential(nn.Linear(5, 5), Regressor()), "0:1"),
    "called twice": (Twice, "f"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_without_an_axis_stay_such(case: str, tmp_path: Path) -> None:
    """Saved and loaded to the same bits, folded, and trained further."""
    make, name = NUMBERS[case]
    model = network(make)
    result = compress(model, X, {name: CUBIC})
    found = result.model(FRESH)
    assert found.shape == (len(FRESH),)
    assert largest_difference(found, model(FRESH)) < 0.05
    assert largest_difference(result.folded()(FRESH), found) < 1e-10
    assert result.report.blocks[0].parts == ()
    result.save(tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", model)(FRESH), found)
    assert result.finetune(X, steps=2).model(FRESH).shape == found.shape


def test_networks_that_give_numbers_are_inspected_and_fitted_to_a_budget() -> None:
    model = network(lambda: nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 1), nn.Flatten(0)))
    assert "(whole network)" in str(tenflex.inspect(model, X))
    assert compress(model, X, budget="60%").model(FRESH).shape == (len(FRESH),)
    assert best_affine(model, X)(FRESH).shape == (len(FRESH),)
