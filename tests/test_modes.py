"""Modes: orthonormal frames, exact products, true counts, and layers that see their inputs through them."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from typer.testing import CliRunner

import tenflex
from tenflex import Block, Cosine, FlexibleLayer, Monomial, Plan, Tucker, compress
from tenflex.baselines import through_modes
from tenflex.cli.blocks import format_block, parse_blocks
from tenflex.cli.readers import read_blocks
from tenflex.evaluate.cost import cost, stored_numbers
from tenflex.modes import MODES, Modes, Multilinear
from tenflex.modes.cosine import lowest
from tenflex.modes.multilinear import products
from tenflex.modes.tucker import axes_of
from tenflex.nn import layer_from_dict, layer_to_dict
from tenflex.nn.multilinear import ModeProduct
from tenflex.planning.sizes import block_size
from tenflex.sampling.jacobian import Seen, whole_jacobians
from tenflex.solvers import ConstrainedALS

SHAPE = (2, 6, 5)
# A new family is one row, with sizes along all axes.
CASES = {
    "cosines": Cosine((2, 3, 4)),
    "cosines, one size": Cosine(3),
    "computed": Tucker((1, 3, 4)),
    "computed, one size": Tucker(3),
    "flat": Tucker((2, 4), shape=(6, 10)),
    "flat cosines": Cosine(4, shape=(60,)),
}
cases = pytest.mark.parametrize("modes", CASES.values(), ids=CASES)
REFINED = ConstrainedALS(3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """Images to three numbers."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(60, 8), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x.flatten(1))))


def net(outputs: int = 3, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(outputs).to(dtype).eval()


def frames(modes: Modes, x: Tensor | None = None) -> Multilinear:
    """What they choose for some images."""
    x = random(40, *SHAPE) if x is None else x
    return modes.choose(x, whole_jacobians(net(), x, 3))


def layer_of(modes: Modes, factor: int | None = None, rank: int | tuple[int, ...] = 4) -> FlexibleLayer:
    """A layer with modes and random numbers."""
    layer = FlexibleLayer(SHAPE, (3,), rank, Monomial(3), factor, modes=modes).double()
    with torch.no_grad():
        for place, one in enumerate(layer.parameters()):
            one.copy_(random(*one.shape, seed=place) / 3)
    return layer.eval()


# --- the contract of a family ---


@cases
def test_frames_are_orthonormal(modes: Modes) -> None:
    for frame in frames(modes).frames:
        if frame is not None:
            torch.testing.assert_close(frame.mT @ frame, torch.eye(frame.shape[1], dtype=torch.float64))


@cases
def test_going_axis_by_axis_is_the_kronecker_product(modes: Modes) -> None:
    found = frames(modes)
    axes = zip(found.shape, found.frames, strict=True)
    eyes = [torch.eye(n, dtype=torch.float64) if one is None else one for n, one in axes]
    P = eyes[0]
    for one in eyes[1:]:
        P = torch.einsum("ab,cd->acbd", P, one).reshape(len(P) * len(one), -1)
    x = random(7, 60)
    torch.testing.assert_close(found.narrow(x), x @ P)
    torch.testing.assert_close(found.widen(x @ P), x @ P @ P.mT)
    torch.testing.assert_close(found.matrix(), P)
    assert P.shape == (60, modes.core_size(SHAPE))


@cases
def test_settings_come_back_as_json_and_as_text(modes: Modes) -> None:
    assert MODES.from_dict(json.loads(json.dumps(MODES.to_dict(modes)))) == modes
    assert MODES.from_dict(MODES.from_text(repr(modes))) == modes
    plan = Plan({"fc1": Block(3, 2, modes=modes)})
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@cases
def test_numbers_are_counted_as_they_are_stored(modes: Modes) -> None:
    layer = layer_of(modes, factor=2)
    size = block_size(Block(4, 2, basis=Monomial(3), modes=modes), SHAPE, 3)
    assert stored_numbers(layer) == size == sum(one.numel() for one in layer.parameters())
    own = sum(one.numel() for one in layer.modes.parameters())
    assert own == modes.stored_numbers(SHAPE)
    assert (own > 0) == isinstance(modes, Tucker)


@pytest.mark.parametrize("kind", [Cosine, Tucker])
def test_modes_of_full_size_change_nothing(kind: type[Modes]) -> None:
    model, x = net(), random(60, *SHAPE)
    results = [
        compress(model, x, {"": Block(3, 2, modes=one)}, basis=Monomial(3), solver=REFINED)
        for one in (None, kind(6), kind(SHAPE))
    ]
    first, *others = [one.model(random(20, *SHAPE, seed=1)) for one in results]
    assert stored_numbers(results[1].model) == stored_numbers(results[0].model)
    for one in others:
        torch.testing.assert_close(one, first, rtol=1e-8, atol=1e-8)


def test_a_frame_of_full_size_turns_a_layer_and_keeps_it() -> None:
    """Square matrices are orthogonal: V' = P^T V in their coordinates is the same layer to rounding."""
    layer = layer_of(Cosine(6))
    factors = layer.factors()
    turned = Multilinear(SHAPE, tuple(torch.linalg.qr(random(n, n, seed=n))[0] for n in SHAPE))
    V = turned.narrow(factors.maps[0][0].mT).mT
    torch.testing.assert_close(turned.widen(V.mT).mT, factors.V, rtol=1e-12, atol=1e-12)


# --- cosines ---


def test_cosines_are_those_of_the_discrete_cosine_transform() -> None:
    """They are the eigenvectors of second differences whose ends reflect, slowest first."""
    n = 9
    second = torch.diag(torch.full((n,), 2.0)) - torch.diag(torch.ones(n - 1), 1) - torch.diag(torch.ones(n - 1), -1)
    second[0, 0] = second[-1, -1] = 1
    P = lowest(n, 6, torch.device("cpu"))
    speeds = torch.tensor([2 - 2 * math.cos(math.pi * k / n) for k in range(6)], dtype=torch.float64)
    torch.testing.assert_close(second.double() @ P, P * speeds)


# --- directions from the data ---


def test_computed_directions_find_what_the_map_looks_at() -> None:
    """A map of `P^T x` alone, planted: the frames span it, and nothing is lost by projecting."""
    planted = [torch.linalg.qr(random(n, p, seed=n))[0] for n, p in ((6, 2), (10, 3))]
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double().eval()

    def f(x: Tensor) -> Tensor:
        return model(products(x.flatten(1), (6, 10), planted))

    x = random(80, 60) * torch.linspace(0.2, 3, 60)  # of unlike variances
    found = Tucker((2, 3), shape=(6, 10)).choose(x, whole_jacobians(f, x, 4))
    for frame, true in zip(found.frames, planted, strict=True):
        torch.testing.assert_close(frame @ frame.mT, true @ true.mT)


def test_sweeps_over_the_axes_keep_no_less() -> None:
    rows, shape, sizes = random(30, 60), (3, 4, 5), (2, 2, 3)
    kept = lambda found: products(rows, shape, found).square().sum()  # noqa: E731
    first = axes_of(rows, shape, (2, 4, 5))[0]
    swept = axes_of(rows, shape, sizes)
    started = [first, *(axes_of(rows, shape, one)[axis] for axis, one in ((1, (3, 2, 5)), (2, (3, 4, 3))))]
    assert kept(swept) >= kept(started) * (1 - 1e-12)


def test_computed_directions_need_jacobians() -> None:
    with pytest.raises(ValueError, match="Tucker needs Jacobians of some of the samples, got none"):
        Tucker(3).choose(random(5, *SHAPE))


# --- sampled through modes ---


@pytest.mark.parametrize("outputs", [3, 40])  # in reverse and in forward mode
def test_jacobians_are_taken_along_the_modes(outputs: int) -> None:
    model, x = net(outputs), random(9, *SHAPE)
    modes = frames(Tucker(3))
    whole = vmap(jacrev(lambda one: model(one[None])[0]))(x).flatten(2)
    seen = whole_jacobians(Seen(model, modes), x, outputs)
    torch.testing.assert_close(seen, whole @ modes.matrix())


# --- the layer ---


@cases
@pytest.mark.parametrize(("factor", "rank"), [(None, 4), (2, 4), (2, (4, 2))])
def test_a_layer_computes_what_its_factors_say(modes: Modes, factor: int | None, rank: int | tuple[int, int]) -> None:
    layer, x = layer_of(modes, factor, rank), random(5, *SHAPE)
    expected = layer.factors().outputs(x.flatten(1))
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer.train()(x), expected)


@pytest.mark.parametrize(
    ("modes", "rank", "multiplied"),
    [(Cosine(3), 1, True), (Cosine((2, 2, 2)), 40, False), (Cosine(4, shape=(60,)), 2, True), (Tucker(3), 40, False)],
)
def test_the_cheaper_way_is_taken_and_counted(modes: Modes, rank: int, multiplied: bool) -> None:
    layer = layer_of(modes, rank=rank)
    by_axis, at_once = layer.input_macs
    assert (at_once < by_axis) == multiplied
    assert (layer.modes.kept is not None) == multiplied
    assert cost(layer, random(1, *SHAPE)).macs == min(by_axis, at_once) + rank * 3
    assert at_once == 60 * rank


def test_axes_are_multiplied_in_the_cheapest_order() -> None:
    """(8, 6) to (1, 5): the first axis first, 48 + 30, not 240 + 40."""
    product = ModeProduct(Cosine((1, 5)).of((8, 6)))
    assert product.macs() == cost(product, torch.zeros(1, 48)).macs == 78


def test_a_kept_product_follows_the_weights() -> None:
    """Changes that leave no trace in the version of a parameter are seen too."""
    layer, x = layer_of(Tucker(3), rank=1), random(5, *SHAPE)
    assert layer.modes.kept is not None
    for one in (layer.maps[0].weight, layer.modes.axis1):
        with torch.no_grad():
            before = layer(x)
            one.data.mul_(2)
            after = layer(x)
        torch.testing.assert_close(after, layer(x).detach())
        assert not torch.allclose(before, after)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.factors().outputs(x.flatten(1)))
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_gradients_reach_directions_that_are_stored() -> None:
    layer, x = layer_of(Tucker(3), rank=1), random(5, *SHAPE)
    layer(x).square().sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in layer.modes.parameters())
    assert not list(layer_of(Cosine(3)).modes.parameters())


def test_cosines_are_exact_in_every_dtype_and_place() -> None:
    layer = FlexibleLayer(SHAPE, (3,), 2, Monomial(2), modes=Cosine(3))
    expected = lowest(6, 3, torch.device("cpu"))
    assert torch.equal(layer.half().double().modes.axis1, expected)
    assert torch.equal(layer.to("meta").to_empty(device="cpu").modes.axis1, expected)
    assert torch.equal(copy.deepcopy(layer).float().modes.axis1, expected.float())
    assert "modes" not in "".join(layer.state_dict())


def test_layers_export() -> None:
    layer, x = layer_of(Cosine(3), rank=1), random(4, *SHAPE)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


@cases
def test_empty_layers_come_from_settings(modes: Modes) -> None:
    layer = layer_of(modes, 2)
    saved = json.loads(json.dumps(layer_to_dict(layer)))
    again = layer_from_dict(saved).double()
    again.load_state_dict(layer.state_dict())
    x = random(5, *SHAPE)
    assert torch.equal(again.eval()(x), layer(x))
    assert "modes" not in layer_to_dict(FlexibleLayer(SHAPE, (3,), 2, Monomial(2)))  # as earlier versions read them


# --- compressions ---


@pytest.mark.parametrize("modes", [Cosine(3), Tucker((2, 3, 3)), Tucker(4, shape=(6, 10))], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_networks_give_the_same_bits(modes: Modes, dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = net(dtype=dtype), random(60, *SHAPE).to(dtype)
    result = compress(model, x, {"": Block(3, 2, modes=modes)}, basis=Monomial(3), solver=REFINED)
    result.save(tmp_path / "small")
    expected = result.model(x)
    for to in (net(dtype=dtype), net(dtype=dtype).to("meta")):
        again = tenflex.load(tmp_path / "small", to)
        assert torch.equal(again(x), expected)
        with torch.no_grad():
            assert torch.equal(again(x), result.model(x))
        assert stored_numbers(again) == stored_numbers(result.model) == result.report.after.parameters


def test_networks_are_compressed_in_two_rounds(tmp_path: Path) -> None:
    """The second round runs the first layer, and the file holds both."""
    model, x = nn.Sequential(nn.Flatten(), net(6), nn.Tanh(), nn.Linear(6, 4)).double().eval(), random(60, *SHAPE)
    blocks = Block(3, 2, modes=Tucker(3, shape=SHAPE)), Block(2, modes=Cosine(3))
    first = compress(model, x, {"1": blocks[0]}, basis=Monomial(2), solver=REFINED)
    second = compress(first.model, x, {"3": blocks[1]}, basis=Monomial(2), solver=REFINED)
    second.save(tmp_path / "small")
    assert torch.equal(tenflex.load(tmp_path / "small", model)(x), second.model(x))
    sizes = zip(blocks, ((60, 6), (6, 4)), strict=True)
    expected = sum(block_size(replace(one, basis=Monomial(2)), *size) for one, size in sizes)
    assert stored_numbers(second.model) == expected


def test_a_map_of_modes_alone_is_found() -> None:
    """Planted squares of what cosines tell: no error but rounding, and a solution of what they tell."""
    modes = Cosine((1, 2, 2)).choose(random(2, *SHAPE))
    layer = FlexibleLayer(SHAPE, (3,), 2, Monomial(2), modes=Cosine((1, 2, 2))).double()
    with torch.no_grad():
        for place, one in enumerate(layer.parameters()):
            one.copy_(random(*one.shape, seed=place))
    x = random(80, *SHAPE)
    result = compress(layer.eval(), x, {"": Block(2, modes=Cosine((1, 2, 2)))}, basis=Monomial(2))
    block = result.report.blocks[0]
    assert block.output_error < 1e-5
    assert block.projection_error < 1e-6
    torch.testing.assert_close(
        result.solutions[""].factors.outputs(modes.narrow(x.flatten(1))), layer(x), rtol=1e-4, atol=1e-4
    )


def test_what_is_left_out_is_reported_as_projection_error() -> None:
    model, x = net(), random(60, *SHAPE)
    fine, coarse = (
        compress(model, x, {"": Block(3, modes=Cosine(one))}, basis=Monomial(3), solver=REFINED).report.blocks[0]
        for one in (5, 2)
    )
    assert 0 < fine.projection_error < coarse.projection_error < 1


def test_the_report_tells_both_ways() -> None:
    x = random(60, *SHAPE)
    report = compress(net(), x, {"": Block(3, 2, modes=Cosine(3))}, basis=Monomial(3), solver=REFINED).report
    by_axis, at_once = report.blocks[0].input_macs
    assert f"take {by_axis:,} MACs axis by axis and {at_once:,} multiplied out" in " ".join(str(report).split())
    assert report.to_dict()["blocks"][0]["input_macs"] == [by_axis, at_once]


# --- the same modes for the others ---


def test_a_layer_behind_modes_of_full_size_is_the_same() -> None:
    model, x = net(), random(40, *SHAPE)
    again = through_modes(model, x, "fc1", Cosine(6, shape=SHAPE))
    torch.testing.assert_close(again(x), model(x))


def test_a_layer_behind_modes_guesses_the_rest_by_regression() -> None:
    """No linear map of what the modes tell is closer to what the layer gave, up to a light ridge."""
    model, x = net(), random(400, *SHAPE) @ random(5, 5)  # columns tell of each other
    modes = Cosine((2, 6, 3), shape=SHAPE)
    z = modes.choose(x).narrow(x.flatten(1))
    ones = torch.cat([z, torch.ones(400, 1).double()], 1)
    y = model.fc1(x.flatten(1))
    best = (ones @ torch.linalg.lstsq(ones, y).solution - y).square().sum()
    found = (through_modes(model, x, "fc1", modes).fc1(x.flatten(1)) - y).square().sum()
    blind = (model.fc1(modes.choose(x).widen(z)) - y).square().sum()
    assert best <= found < 1.01 * best < 0.9 * blind


def test_a_layer_takes_computed_directions() -> None:
    model, x = net(), random(40, *SHAPE)
    directions = frames(Tucker(3), x)
    again = through_modes(model, x, "fc1", Tucker(3, shape=SHAPE), directions)
    torch.testing.assert_close(again.fc1[0](x.flatten(1)), directions.narrow(x.flatten(1)))
    assert again.fc1[1].in_features == 18


# --- what is refused, before any work ---


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Cosine(0), ValueError, r"each size of modes must be a whole number of at least 1, got 0"),
        (lambda: Cosine(()), ValueError, r"expected modes such as Cosine\(12, shape=\(28, 28\)\), got"),
        (lambda: Cosine(2.5), TypeError, r"size of Cosine must be whole numbers, one an axis, got 2.5"),
        (lambda: Tucker(3, shape="ab"), TypeError, r"shape of Tucker must be whole numbers, one an axis, got 'ab'"),
        (lambda: Tucker((3, 3), shape=(6,)), ValueError, r"one size an axis, none above its length: \(6,\)"),
        (lambda: Tucker((7,), shape=(6,)), ValueError, r"one size an axis, none above its length"),
        (lambda: Block(3, modes=12), TypeError, r"modes must be modes such as Cosine\(12\) or Tucker\(12\), got 12"),
    ],
)
def test_bad_settings(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (
            Cosine(3, shape=(7, 7)),
            r"block '': Cosine\(.*has axes of 49 numbers, but here the shape is \(2, 6, 5\)",
        ),
        (Tucker((3, 3)), r"block '': modes need one size an axis, none above its length: \(2, 6, 5\) has the axes"),
        (
            Tucker((1, 1, 1)),
            r"block '': factor must be at most the rank \(3\) and the number of inputs that vary \(1\)",
        ),
    ],
)
def test_modes_of_other_inputs_are_refused(modes: Modes, message: str) -> None:
    steps: list[Any] = []
    with pytest.raises(ValueError, match=message):
        compress(net(), random(60, *SHAPE), {"": Block(3, 2, modes=modes)}, on_progress=steps.append)
    assert "sample" not in {one.stage for one in steps}


# --- the command line ---


@cases
def test_blocks_are_written_as_they_are_read(modes: Modes) -> None:
    block = Block(4, 2, modes=modes)
    text = format_block("fc1", block).removeprefix("--block ").strip("'")
    assert Plan.from_dict({"blocks": parse_blocks([text])}).blocks == {"fc1": block}
    assert read_blocks("blocks", {"fc1": {"rank": 4, "factor": 2, "modes": repr(modes)}}) == {"fc1": block}


TOY = """
import torch
from torch import nn


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def inputs():
    return torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
"""


def test_the_command_line_takes_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tenflex.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "modes_toy.py").write_text(TOY)
    common = ["compress", "modes_toy:net", "--inputs", "modes_toy:inputs", "--basis", "Monomial(2)", "--json"]
    solver = ["--solver", "ConstrainedALS(2)"]
    both = ["Cosine(2, shape=(3, 4))", "Tucker(2, shape=(3, 4))"]
    ways = [
        ["--block", "0:2,rank=3", "--modes", both[0]],
        ["--block", f"0:2,rank=3,modes={both[1]}", "--modes", both[0]],
    ]
    for way, text in zip(ways, both, strict=True):
        done = CliRunner().invoke(app, [*common, *solver, *way, "--out", "small"])
        assert done.exit_code == 0, done.output
        assert text in (tmp_path / "small" / "run.yaml").read_text().replace("size=", "")
        import modes_toy  # type: ignore[import-not-found]

        model = modes_toy.net()
        block = Block(3, modes=MODES.from_dict(MODES.from_text(text)))
        expected = compress(
            model, modes_toy.inputs(), {"0:2": block}, basis=Monomial(2), solver=ConstrainedALS(2)
        ).model(modes_toy.inputs())
        assert torch.equal(tenflex.load("small", model)(modes_toy.inputs()), expected)
