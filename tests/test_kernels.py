"""Convolutions in thin forms: the least error for what arrives, chosen by budgets, saved with the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted import seeded
from torch import Tensor, nn

import tenflex
from tenflex import Block, Compression, LowRank, Plan, compress
from tenflex.baselines.linear import Dense
from tenflex.blocks.rows import NUMBERS, WORK, most_patches
from tenflex.cli.blocks import format_block, parse_blocks
from tenflex.evaluate.cost import stored_numbers
from tenflex.kept import Own
from tenflex.nn.chained import Chained
from tenflex.planning.candidates import METHODS, Facts
from tenflex.planning.effort import expected_plan_seconds
from tenflex.planning.kernels import CAREFUL, FORMS, QUICK, Passage, Rank, descended, thin_kernel
from tenflex.planning.plan import DEFAULT_BASIS
from tenflex.planning.planner import BEHIND_PATCHES, offers
from tenflex.progress import Progress

pytestmark = pytest.mark.usefixtures("few_steps")

RANKS: dict[str, Rank] = {"svd": 3, "cpd": 5, "tucker2": (3, 2)}


def convolution(*sizes: int, **settings: object) -> nn.Conv2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Conv2d(*sizes, **settings).double().eval()


def passage(layer: Dense, rows: int = 4000, seed: int = 0) -> Passage:
    """Of patches whose numbers vary together, more in some directions than in others."""
    m = layer.weight[0].numel()
    mixed = torch.randn(m, m, generator=seeded(1)).double() / torch.arange(1, m + 1)
    patches = torch.randn(rows, m, generator=seeded(seed)).double() @ mixed + 1
    outputs = (patches @ layer.weight.flatten(1).mT + layer.bias).detach()
    return Passage.of(layer, patches.unflatten(1, layer.weight.shape[1:]), outputs)


def low_rank_kernel_(layer: nn.Conv2d, rank: int) -> nn.Conv2d:
    """Give a convolution a kernel that is a sum of so many products of vectors."""
    parts = [torch.randn(size, rank, generator=seeded(place)) for place, size in enumerate(layer.weight.shape)]
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("nz,cz,iz,jz->ncij", *parts) / layer.weight[0].numel() ** 0.5)
    return layer


class Network(nn.Module):
    """Two convolutions, the second with a kernel of CP rank 8, and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.second = low_rank_kernel_(nn.Conv2d(8, 12, 3, stride=2), 8)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))).mean((2, 3)))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network().eval()


def images(count: int = 120, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 9, 9, generator=seeded(seed))


@pytest.fixture(scope="module")
def planned() -> Compression:
    """The second convolution is all that has to become smaller."""
    model = network()
    return compress(model, images(), budget=stored_numbers(model) - 650)


# --- forms ---


@pytest.mark.parametrize("form", FORMS)
def test_sizes_are_those_that_are_stored(form: str) -> None:
    layer = convolution(6, 8, 3)
    known, kernel = passage(layer), tuple(layer.weight.shape)
    made, _ = thin_kernel(known, FORMS[form], RANKS[form], QUICK)
    assert stored_numbers(made) == FORMS[form].size(kernel, RANKS[form])
    for numbers in (60, 150, 300):
        rank = FORMS[form].largest(kernel, numbers)
        assert rank is None or FORMS[form].size(kernel, rank) <= numbers
    if not FORMS[form].several:
        assert FORMS[form].largest(kernel, 300) == max(r for r in range(1, 20) if FORMS[form].size(kernel, r) <= 300)


@pytest.mark.parametrize("form", FORMS)
def test_layer_is_the_map_of_patches_that_was_fitted(form: str) -> None:
    layer = convolution(6, 8, 3, stride=2, padding=1)
    made, weight = thin_kernel(passage(layer), FORMS[form], RANKS[form], QUICK)
    x = torch.randn(4, 6, 9, 9, generator=seeded(5)).double()
    whole = nn.functional.conv2d(x, weight.view_as(layer.weight), made.outer.bias, 2, 1)
    torch.testing.assert_close(made(x), whole)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_slopes_of_the_error_are_those_of_automatic_differentiation(penalty: float) -> None:
    known = passage(convolution(4, 6, 3))
    Z = torch.randn(3, 36, generator=seeded(2)).double().requires_grad_()

    def error(Z: Tensor) -> Tensor:
        """With the best last map put in, and what its terms cost."""
        target, gram = Z @ known.M, Z @ known.S @ Z.mT
        A = torch.linalg.solve(gram + penalty * torch.diag(gram.diagonal()), target).mT
        whole = known.variance - 2 * (A * target.mT).sum() + ((A @ gram) * A).sum()
        return (whole + penalty * (A.square().sum(0) * gram.diagonal()).sum()) / known.variance

    found, slope = known.error(Z.detach(), penalty)
    wanted = error(Z)
    assert found == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(slope, torch.autograd.grad(wanted, Z)[0], rtol=1e-5, atol=1e-9)


def test_matrix_form_loses_only_what_no_rank_can_keep() -> None:
    """The error of the best maps of rank q is the sum of the other eigenvalues (Eckart, Young)."""
    known = passage(convolution(6, 8, 3))
    energies = torch.linalg.eigvalsh(known.M.mT @ torch.linalg.solve(known.S, known.M)).flip(0)
    for rank in (1, 3, 6):
        Z = FORMS["svd"].rows(FORMS["svd"].start(known, rank, 1, 0))
        assert known.error(Z)[0] == pytest.approx(energies[rank:].sum().item() / known.variance, abs=1e-7)


@pytest.mark.parametrize("form", ["cpd", "tucker2"])
def test_what_arrives_counts(form: str) -> None:
    """Factors for what arrives lose less than those of the kernel alone, for other patches too."""
    layer = convolution(6, 8, 3)
    known, others = passage(layer), passage(layer, seed=7)
    start = FORMS[form].start(known, RANKS[form], *CAREFUL[:2])
    after = descended(known, FORMS[form], start, 100)
    kernel, arriving = (others.error(FORMS[form].rows(one))[0] for one in (start, after))
    assert arriving < 0.9 * kernel


@pytest.mark.parametrize(("form", "rank"), [("cpd", 2), ("tucker2", (2, 2))])
def test_a_kernel_of_low_rank_is_found_without_loss(form: str, rank: Rank) -> None:
    layer = low_rank_kernel_(convolution(6, 8, 3), 2)
    known = passage(layer)
    _, weight = thin_kernel(known, FORMS[form], rank, CAREFUL)
    torch.testing.assert_close(weight, layer.weight.flatten(1), rtol=1e-4, atol=1e-4)
    numbers = FORMS[form].size(tuple(layer.weight.shape), rank)
    fits = FORMS["svd"].largest(tuple(layer.weight.shape), numbers)
    assert fits is None or fits < 2  # of a matrix not even its two directions


def terms(layer: nn.Conv2d, known: Passage, rank: int) -> tuple[float, float]:
    """The squared error of a CPD, and the squared sizes of its terms together, both of the outputs' variance."""
    made, weight = thin_kernel(known, FORMS["cpd"], rank, CAREFUL)
    A = made.outer.weight.detach().flatten(1)
    Z = torch.linalg.lstsq(A, weight).solution
    sizes = A.square().sum(0) * (Z @ known.S * Z).sum(1)
    best, W = known.best.mT, weight
    lost = ((W - best) @ known.S * (W - best)).sum() + known.variance - (best * known.M.mT).sum()
    return float(lost) / known.variance, float(sizes.sum()) / known.variance


@pytest.mark.parametrize("rank", [5, 7, 10])
def test_terms_of_a_polyadic_kernel_do_not_cancel(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a price on their size they are up to hundreds of times what they leave, at the same error."""
    layer = convolution(6, 12, 3)
    known = passage(layer)
    error, sizes = terms(layer, known, rank)
    monkeypatch.setattr(type(FORMS["cpd"]), "penalty", 0.0)
    free, larger = terms(layer, known, rank)
    assert sizes < 15 < larger
    assert error < 1.05 * free


def test_maps_of_a_polyadic_kernel_are_of_unit_size() -> None:
    """Whole numbers have one step for all channels between."""
    known = passage(convolution(6, 12, 3))
    form = FORMS["cpd"]
    factors = form.scaled(form.start(known, 5, 1, 0), known)
    Z = form.rows(factors)
    torch.testing.assert_close((Z @ known.S * Z).sum(1), torch.ones(5).double())
    for one in factors[:-1]:
        torch.testing.assert_close(one.norm(dim=0), torch.ones(5).double())


@pytest.mark.parametrize(("form", "rank"), [("svd", 2), ("cpd", 1), ("cpd", 6), ("tucker2", (2, 2))])
@pytest.mark.parametrize("bias", [False, True])
def test_a_kernel_of_zeros_is_kept(form: str, rank: Rank, bias: bool) -> None:
    """As residual branches begin: what leaves is the bias, whatever the thin form."""
    layer = nn.Conv2d(4, 6, 3, bias=bias)
    nn.init.zeros_(layer.weight)
    model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(6, 3, 3)).eval()
    images = torch.randn(60, 4, 9, 9, generator=seeded(0))
    found = compress(model, images, {"0": LowRank(rank, form)}).model
    torch.testing.assert_close(found(images), model(images))


def test_a_budget_for_a_network_with_a_branch_of_zeros() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 8, 3, padding=1)
            self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            nn.init.zeros_(self.branch[2].weight)
            nn.init.zeros_(self.branch[2].bias)
            self.last = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.last((x + self.branch(x)).amax((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Residual().eval()
    images = torch.randn(60, 1, 7, 7, generator=seeded(0))
    result = compress(model, images, budget="60%")
    assert result.report.after.parameters <= 0.6 * result.report.before.parameters
    assert result.evaluate(images).relative_error < 0.05  # the branch costs nothing to leave out


# --- in a network ---


def test_a_budget_takes_the_form_that_a_kernel_has(planned: Compression) -> None:
    assert planned.plan.blocks == {"second": LowRank(8, "cpd")}
    assert isinstance(planned.model.second, Chained)
    assert planned.report.output_error < 1e-3
    curves = {one.block: one.tried for one in planned.report.planned.curves}
    by_size = [one for one in curves["second"] if one.method == "CPD" and one.settings["low_rank"] >= 8]
    assert max(one.error for one in by_size) < 1e-4
    svd = [one for one in curves["second"] if one.method == "low rank"]
    assert min(one.error for one in svd) > 0.05
    assert "second: CPD, low_rank=" in str(planned.report)


def test_it_is_saved_and_repeated_with_the_same_bits(planned: Compression, tmp_path: Path) -> None:
    planned.save(tmp_path / "small")
    assert torch.equal(tenflex.load(tmp_path / "small", network())(images(9, 1)), planned.model(images(9, 1)))
    back = Compression.load(tmp_path / "small", network())
    assert (back.plan, back.report) == (planned.plan, planned.report)
    again = compress(network(), images(), Plan.from_dict(json.loads(json.dumps(planned.plan.to_dict()))))
    assert torch.equal(again.model(images(9, 1)), planned.model(images(9, 1)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 5, stride=2, padding=2, bias=False),
        nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)),
        nn.Conv3d(4, 6, 3, padding=1),
    ],
    ids=["signal", "image", "volume"],
)
def test_by_hand_for_every_kind_of_convolution(form: str, layer: nn.Module, tmp_path: Path) -> None:
    size = {nn.Conv1d: (12,), nn.Conv2d: (9, 9), nn.Conv3d: (5, 5, 5)}[type(layer)]
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten()).eval()
    inputs = torch.randn(40, 4, *size, generator=seeded(0))
    asked = LowRank((2, 2) if form == "tucker2" else 2, form)
    result = compress(model, inputs, {"0": asked})
    assert result.model(inputs).shape == model(inputs).shape
    assert result.report.blocks[0].output_error < 1
    assert result.report.blocks[0].after.parameters == FORMS[form].size(tuple(layer.weight.shape), asked.rank)
    result.save(tmp_path / "small")
    assert torch.equal(tenflex.load(tmp_path / "small", model)(inputs), result.model(inputs))


def test_a_later_convolution_makes_up_for_what_came_before() -> None:
    both = compress(network(), images(800), {"first": LowRank(4, "cpd"), "second": LowRank(3, "cpd")})
    alone = [
        compress(network(), images(800), {name: asked}).model.get_submodule(name)
        for name, asked in (("first", LowRank(4, "cpd")), ("second", LowRank(3, "cpd")))
    ]
    fresh = images(500, 4)
    model = network()
    target = model.second(torch.tanh(model.first(fresh)))
    ours = both.model.second(torch.tanh(both.model.first(fresh)))
    theirs = alone[1](torch.tanh(alone[0](fresh)))
    assert (ours - target).norm() < (theirs - target).norm()


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), LowRank(1, "cpd"), r"no single nn.Linear, or conv"),
        (nn.Sequential(nn.Conv2d(4, 4, 3)), LowRank(40, "cpd"), r"rank 40 store 564 numbers, the layer itself 148"),
        (nn.Sequential(nn.Conv2d(9, 9, 3)), LowRank((1, 10), "tucker2"), r"has \(9, 9\) channels, fewer than \(1, 10"),
    ],
)
def test_what_forms_are_not_for(model: nn.Module, asked: LowRank, message: str) -> None:
    channels = model[0].in_channels
    with pytest.raises(ValueError, match=message):
        compress(model.eval(), torch.randn(30, channels, 6, 6, generator=seeded(0)), {"0": asked})


def test_a_linear_layer_has_no_form() -> None:
    model = nn.Sequential(nn.Linear(20, 20)).eval()
    with pytest.raises(ValueError, match=r"block '0' is a linear layer, which has no form 'cpd': leave it out"):
        compress(model, torch.randn(30, 20, generator=seeded(0)), {"0": LowRank(2, "cpd")})


@pytest.mark.parametrize(
    ("rank", "form", "message"),
    [
        (2, "cp", r"form must be one of 'svd', 'cpd', 'tucker2', got 'cp'"),
        ((2, 3), "cpd", r"rank must be one number for the form 'cpd', got \(2, 3\)"),
        (2, "tucker2", r"rank must be two numbers for the form 'tucker2', got 2"),
        ((2, 3, 4), "tucker2", r"rank must be two numbers"),
        ((2, 0), "tucker2", r"rank must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_ranks_and_forms(rank: Rank, form: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRank(rank, form)


@pytest.mark.parametrize("asked", [LowRank(4), LowRank(4, "cpd"), LowRank((4, 3), "tucker2")])
def test_the_command_line_knows_forms(asked: LowRank) -> None:
    option = format_block("features.0", asked).removeprefix("--block ")
    [(name, settings)] = parse_blocks([option]).items()
    assert (name, LowRank.from_dict(settings)) == ("features.0", asked)
    assert Plan.from_dict({"blocks": {name: settings}}) == Plan({name: asked})


def test_damaged_settings_of_a_chain() -> None:
    saved = thin_kernel(passage(convolution(4, 6, 3)), FORMS["cpd"], 3, QUICK)[0].to_dict()
    assert Chained.from_dict(json.loads(json.dumps(saved))).to_dict() == saved
    first = saved["steps"][0]
    for wrong, message in (
        ({}, r"have the setting steps, a list of them, got \{\}"),
        ({"steps": []}, r"have the setting steps"),
        ({"steps": [{**first, "more": 1}]}, r"a convolution has the settings"),
        ({"steps": [{**first, "groups": 0}]}, r"groups must be a whole number of at least 1"),
        ({"steps": [{**first, "stride": 2}]}, r"stride must be a list of whole numbers, got 2"),
        ({"steps": [{**first, "groups": 3}]}, r"there is no convolution with the settings"),
        ({"steps": [{**first, "kernel_size": [1] * 4}]}, r"kernel_size must have one to three numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            Chained.from_dict(wrong)


# --- how much a budget tries ---


def facts(**changes: object) -> Facts:
    known = {"name": "b", "inputs": 72, "outputs": 12, "parameters": 876, "layers": 1, "most": 500, "share": 0.5}
    kernel = {"kernel": (12, 8, 3, 3), "patches": True}
    return Facts(**{**known, "alone": False, "basis": DEFAULT_BASIS, "steps": 6, **kernel, **changes})


def row(**changes: object) -> Facts:
    """A row of two convolutions."""
    return facts(**{"kernel": (), "layers": 2, "inputs": 392, "shape": (8, 7, 7), "parameters": 9000, **changes})


def test_one_size_in_the_middle_of_each_method_comes_first() -> None:
    first = offers(facts())[:3]
    assert [method for method, _ in first] == ["low rank", "CPD", "Tucker-2"]
    form = FORMS["cpd"]
    assert first[1][1] == LowRank(form.largest((12, 8, 3, 3), int(0.2 * 876)), "cpd")
    assert {method for method, _ in offers(facts(kernel=(12, 8, 1, 1)))} == {"low rank"}


def test_flexible_layers_are_not_tried_where_channels_can_be_kept() -> None:
    for name in ("flexible", "cosines"):
        assert METHODS[name](row())
        assert METHODS[name](row(channels=True)) == METHODS[name](row(inputs=5000, shape=(8, 25, 25))) == []


def test_wide_patches_take_bounded_work_and_memory() -> None:
    """So many patches that their moments take some ten seconds; refused where the moments do not fit."""
    with torch.device("meta"):
        wide, narrow = nn.Conv2d(128, 16, (64, 1)), nn.Conv2d(64, 64, 3)
    assert most_patches(wide, 2**32) * 8192 * (8192 + 16) <= WORK
    assert most_patches(narrow, 2**32) == NUMBERS // (576 + 64)
    with pytest.raises(
        ValueError, match=r"moments of patches of 8,192 numbers take 1.5 GiB at the peak, more than the 1"
    ):
        most_patches(wide, 2**30)


def test_no_more_sizes_of_what_is_far_behind(planned: Compression) -> None:
    """Of a kernel of CP rank 8 the first matrix loses so much that it is the only one."""
    tried = next(one.tried for one in planned.report.planned.curves if one.block == "second")
    first = {one.method: one.error for one in reversed(tried)}
    assert first["low rank"] > BEHIND_PATCHES * first["CPD"]
    assert [one.method for one in tried].count("low rank") == 1
    assert [one.method for one in tried].count("CPD") > 3


def test_how_long_it_will_take_is_told_before_the_first_size() -> None:
    told: list[Progress] = []
    model = network()
    compress(model, images(60), budget=stored_numbers(model) - 650, on_progress=told.append)
    stages = [one.stage for one in told]
    [place] = [place for place, one in enumerate(told) if one.seconds is not None]
    assert place < stages.index("size")
    looked = [one for one in told if one.stage == "look"]  # at what could be replaced, before
    assert [one.done for one in looked] == list(range(1, len(looked) + 1))
    assert stages[: len(looked)].count("look") == len(looked) > 2
    assert 1 < told[place].seconds < 600
    assert told[place].task == "plan"


def some(facts: Facts, asked: Placed) -> int:
    return 200


def test_the_time_grows_with_sizes_and_with_what_is_refined() -> None:
    kernel, wide = facts(), facts(inputs=720, kernel=(12, 80, 3, 3), parameters=8652)
    one = expected_plan_seconds([(kernel, "CPD", LowRank(9, "cpd"))], some, 3000, 1e9)
    assert one < expected_plan_seconds([(kernel, "CPD", LowRank(9, "cpd"))] * 2, some, 3000, 1e9) < 2 * one
    assert one < expected_plan_seconds([(wide, "CPD", LowRank(9, "cpd"))], some, 3000, 1e9)
    block = facts(kernel=(), layers=2, channels=True)
    flexible = [expected_plan_seconds([(block, "flexible", Block(rank))], some, 3000, 1e9) for rank in (2, 20)]
    assert flexible[0] < flexible[1]
    assert expected_plan_seconds([(block, "own nodes", Block(4, basis=Own()))], some, 3000, 1e9) > 0
    alike = replace(block, name="another")
    both = expected_plan_seconds([(one, "flexible", Block(20)) for one in (block, alike)], some, 3000, 1e9)
    assert flexible[1] < both < 1.5 * flexible[1]  # the second may not be solved for


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_borders_that_no_patch_has_are_named(mode: str) -> None:
    """Nobody asked for a unit here."""
    network = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, padding_mode=mode), nn.Flatten(), nn.Linear(216, 3)).eval()
    with pytest.raises(ValueError, match="a thin kernel is fitted on the patches that it sees: ") as caught:
        compress(network, torch.randn(40, 2, 6, 6), {"0": LowRank(2)})
    assert "unit=" not in str(caught.value)
