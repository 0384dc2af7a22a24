"""Modes of outputs: layers that give images and signals as a few directions along their axes."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tenflex
from tenflex import Block, Cosine, FlexibleLayer, Monomial, Plan, Tucker, compress
from tenflex.blocks.outputs import narrowed_root
from tenflex.cli.blocks import format_block, parse_blocks
from tenflex.cli.readers import read_blocks
from tenflex.coordinates import Downstream
from tenflex.evaluate.cost import cost, stored_numbers
from tenflex.kept import Own
from tenflex.modes import Modes, Multilinear
from tenflex.modes.cosine import cosines
from tenflex.nn import fold, layer_from_dict, layer_to_dict
from tenflex.nn.folded import Along
from tenflex.planning.sizes import block_size
from tenflex.solvers import Chain, ConstrainedALS, Refine

SHAPE = (2, 6, 5)
CASES = {
    "cosines": Cosine((2, 3, 4)),
    "computed": Tucker((1, 3, 4)),
    "flat": Tucker((2, 4), shape=(6, 10)),
    "flat cosines": Cosine(4, shape=(60,)),
}
cases = pytest.mark.parametrize("modes", CASES.values(), ids=CASES)
QUICK = {"basis": Monomial(3), "solver": Chain((ConstrainedALS(3), Refine(15)))}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(modes: Modes, rank: int | tuple[int, ...] = 4, **settings: Any) -> FlexibleLayer:
    layer = FlexibleLayer((7,), SHAPE, rank, Monomial(2), output_modes=modes, **settings).double()
    for one in layer.flexible:
        nn.init.normal_(one.coefficients, std=0.3)
    return layer.eval()


class Decoder(nn.Module):
    """Seven numbers to images that lie in the span of a few directions along each axis, or nearly so."""

    def __init__(self, span: Multilinear, beside: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(7, 9), nn.Linear(9, 60)
        core = math.prod(span.sizes)
        with torch.no_grad():
            self.fc2.weight.copy_((span.widen(random(9, core)) + beside * random(9, 60, seed=1)).mT)
            self.fc2.bias.copy_(span.widen(random(1, core, seed=2))[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x))).view(-1, *SHAPE)


def decoder(span: Multilinear, beside: float = 0.0) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(span, beside).double().eval()


def turned() -> Multilinear:
    """Directions that no cosine has."""
    frames = (None, *(torch.linalg.qr(random(n, p, seed=n))[0] for n, p in ((6, 3), (5, 2))))
    return Multilinear(SHAPE, frames)


# --- the layer ---


@cases
@pytest.mark.parametrize("settings", [{}, {"output_factor": 2}, {"rank": (4, 3), "factor": 2}], ids=str)
def test_a_layer_computes_what_its_factors_say(modes: Modes, settings: dict[str, Any]) -> None:
    layer, x = layer_of(modes, **settings), random(5, 7)
    expected = layer.factors().outputs(x)
    torch.testing.assert_close(layer(x).flatten(1), expected)
    assert layer(x).shape == (5, *SHAPE)
    P = layer.output_modes.multilinear.matrix().to(expected)
    torch.testing.assert_close(expected, expected @ P @ P.mT)  # nothing beside the modes
    torch.testing.assert_close(layer.multiplied(inputs=True, outputs=False).outputs(x), expected @ P)


@cases
def test_what_is_stored_and_computed_is_counted(modes: Modes) -> None:
    layer = layer_of(modes, factor=2)
    whole = modes.of(SHAPE)
    size = block_size(Block(4, 2, basis=Monomial(2), output_modes=modes), 7, SHAPE)
    assert size == stored_numbers(layer) == cost(layer, random(1, 7)).parameters
    assert size == 7 * 2 + 2 * 4 + 4 + 4 * 2 + 5 * whole.core_size(SHAPE) + whole.stored_numbers(SHAPE)
    widening = cost(nn.Sequential(Along(layer.output_modes.multilinear.widening)), random(1, whole.core_size(SHAPE)))
    assert cost(layer, random(1, 7)).macs == 7 * 2 + 2 * 4 + 4 * whole.core_size(SHAPE) + widening.macs


@cases
def test_empty_layers_come_from_settings(modes: Modes) -> None:
    layer = layer_of(modes)
    again = layer_from_dict(json.loads(json.dumps(layer_to_dict(layer)))).double()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.eval()(random(5, 7)), layer(random(5, 7)))
    assert "output_modes" not in layer_to_dict(FlexibleLayer((7,), SHAPE, 2, Monomial(2)))


def test_directions_follow_dtype_and_place_and_are_trained_where_they_are_stored() -> None:
    layer = layer_of(Cosine((2, 3, 4)))
    expected = cosines(Cosine((2, 3, 4), shape=SHAPE), torch.device("cpu")).frames[1]
    assert torch.equal(layer.half().double().output_modes.axis1, expected)
    assert torch.equal(layer.to("meta").to_empty(device="cpu").output_modes.axis1, expected)
    assert torch.equal(copy.deepcopy(layer).output_modes.axis1, expected)
    computed = layer_of(Tucker((1, 3, 4)))
    computed(random(5, 7)).square().sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in computed.output_modes.parameters())


@pytest.mark.parametrize("shape", [SHAPE, (40, 40)], ids=str)
@pytest.mark.parametrize("inputs", [None, Cosine(3, shape=(7,))], ids=str)
def test_folded_it_is_the_same_function(shape: tuple[int, ...], inputs: Modes | None) -> None:
    """Axis by axis where that is faster."""
    layer = FlexibleLayer((7,), shape, 20, Monomial(2), modes=inputs, output_modes=Cosine(4)).double()
    for one in layer.flexible:
        nn.init.normal_(one.coefficients, std=0.3)
    folded, x = fold(nn.Sequential(layer.eval())), random(5, 7)
    torch.testing.assert_close(folded(x), layer(x))
    assert any(isinstance(one, Along) for one in folded.modules()) == (shape == (40, 40))
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


# --- compressions ---


def test_outputs_that_the_modes_tell_are_found() -> None:
    modes = Cosine((2, 3, 2))
    model = decoder(cosines(modes.of(SHAPE), torch.device("cpu")))
    x = random(200, 7)
    result = compress(model, x, {"": Block(9, output_modes=modes)})
    [block] = result.report.blocks
    assert block.output_projection < 1e-6
    assert block.output_error < 0.02
    assert result.evaluate(random(300, 7, seed=5)).relative_error < 0.03
    free = compress(model, x, {"": Block(9)}, solver=ConstrainedALS(1))
    assert block.after.parameters == free.report.blocks[0].after.parameters - 10 * (60 - 12)


def test_computed_directions_are_those_of_the_outputs() -> None:
    """Found exactly where there are such, so that nothing beside them is lost."""
    model, x = decoder(turned()), random(200, 7)
    losses = {}
    for modes in (Tucker((2, 3, 2)), Cosine((2, 3, 2))):
        result = compress(model, x, {"": Block(6, output_modes=modes)}, **QUICK)
        losses[type(modes)] = result.report.blocks[0].output_projection
    assert losses[Tucker] < 1e-6
    assert losses[Cosine] > 0.3


def test_the_error_is_that_of_all_outputs() -> None:
    """Of what the modes do not tell, too: at least what they lose, on the samples that chose nothing."""
    model, x = decoder(cosines(Cosine((2, 3, 2)).of(SHAPE), torch.device("cpu")), beside=0.3), random(200, 7)
    result = compress(model, x, {"": Block(6, output_modes=Cosine((2, 3, 2)))}, **QUICK)
    [block] = result.report.blocks
    assert 0.05 < block.output_projection <= block.output_error
    fresh = result.evaluate(random(500, 7, seed=7)).relative_error
    assert block.output_error == pytest.approx(fresh, rel=0.25)
    assert f"on their modes alone have an error of {block.output_projection:.3f}" in str(result.report)
    again = tenflex.evaluate.report.Report.from_dict(json.loads(json.dumps(result.report.to_dict())))
    assert again.blocks[0].output_projection == block.output_projection


@pytest.mark.parametrize("modes", [Cosine((2, 3, 4)), Tucker((1, 3, 4)), Tucker(4, shape=(6, 10))], ids=repr)
def test_saved_networks_give_the_same_bits(modes: Modes, tmp_path: Path) -> None:
    model, x = decoder(turned()), random(60, 7)
    result = compress(model, x, {"": Block(3, output_modes=modes, output_factor=2)}, **QUICK)
    result.save(tmp_path / "small")
    again = tenflex.load(tmp_path / "small", decoder(turned()))
    assert torch.equal(again(x), result.model(x))
    assert stored_numbers(again) == result.report.after.parameters
    repeated = compress(model, x, Plan.from_dict(json.loads(json.dumps(result.plan.to_dict()))))
    assert torch.equal(repeated.model(x), result.model(x))
    tuned = result.finetune(x, steps=3)
    tuned.save(tmp_path / "tuned")
    assert torch.equal(tenflex.load(tmp_path / "tuned", decoder(turned()))(x), tuned.model(x))


def test_units_of_inputs_and_outputs_do_not_matter() -> None:
    model, x = decoder(turned(), beside=0.1), random(150, 7)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.fc2.weight.mul_(1e4)
        scaled.fc2.bias.mul_(1e4)
        scaled.fc1.weight.div_(1e-3)
    block = {"": Block(5, output_modes=Tucker((2, 3, 2)))}
    one, other = (compress(net, y, block, **QUICK) for net, y in ((model, x), (scaled, 1e-3 * x)))
    torch.testing.assert_close(1e4 * one.model(x), other.model(1e-3 * x), rtol=1e-4, atol=1e-2)


def test_positions_give_signals() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 9), nn.GELU(), nn.Linear(9, 16)).double().eval()
    result = compress(model, random(30, 5, 4), {"": Block(4, output_modes=Cosine(6))}, **QUICK)
    assert result.report.blocks[0].sampled.unit == "a position"
    assert result.model(random(3, 5, 4)).shape == (3, 5, 16)
    assert result.report.after.parameters == 4 * 4 + 4 + 4 * 3 + 5 * 6


def test_a_metric_of_outputs_is_that_of_what_the_modes_tell() -> None:
    root = random(60, 60)
    root = root + root.mT
    P = turned()
    found = narrowed_root(root, P)
    torch.testing.assert_close(found @ found, P.matrix().mT @ root @ root @ P.matrix())
    values = random(60).abs()
    turned_root = narrowed_root(values, P)
    torch.testing.assert_close(turned_root @ turned_root, P.matrix().mT @ torch.diag(values**2) @ P.matrix())
    assert narrowed_root(None, P) is None
    model = nn.Sequential(decoder(P), nn.Flatten(), nn.Linear(60, 3).double()).eval()
    for metric in (None, Downstream()):
        result = compress(
            model, random(100, 7), {"0": Block(4, output_modes=Tucker((2, 3, 2)))}, metric=metric, **QUICK
        )
        assert result.report.blocks[0].output_error < 1


# --- what cannot be ---


class Heads(nn.Module):
    """A trunk, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(7, 9), nn.Linear(9, 12), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.trunk(x))
        return self.a(x), self.b(x)


@pytest.mark.parametrize(
    ("model", "x", "modes", "message"),
    [
        (decoder(turned()), random(60, 7), Cosine(3, shape=(7, 7)), r"block '': output_modes: .*\(2, 6, 5\)"),
        (decoder(turned()), random(60, 7), Tucker((3, 3)), r"block '': output_modes: modes need one size an axis"),
        (
            Heads().double().eval(),
            random(60, 7),
            Cosine(3),
            r"several outputs, which share no axes: leave output_modes",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).double().eval(),
            random(20, 1, 9, 9),
            Cosine(2),
            r"sampled by patches, whose outputs are the channels at one place",
        ),
    ],
    ids=["other numbers", "other axes", "heads", "patches"],
)
def test_outputs_without_such_axes_are_refused(model: nn.Module, x: Tensor, modes: Modes, message: str) -> None:
    steps: list[Any] = []
    with pytest.raises(ValueError, match=message):
        compress(model, x, {"": Block(3, output_modes=modes)}, on_progress=steps.append)
    assert "sample" not in {one.stage for one in steps}


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(TypeError, match=r"output_modes must be modes such as Cosine\(12\)"):
        Block(3, output_modes=12)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="full maps, got output_modes: leave it out"):
        Block(3, basis=Own(), output_modes=Cosine(3))
    with pytest.raises(ValueError, match="leave out start or output_modes"):
        Block(3, start="kept", output_modes=Cosine(3))


@cases
def test_blocks_are_written_as_they_are_read(modes: Modes) -> None:
    block = Block(4, modes=Cosine(2, shape=(7,)), output_modes=modes)
    text = format_block("fc1", block).removeprefix("--block ").strip("'")
    assert Plan.from_dict({"blocks": parse_blocks([text])}).blocks == {"fc1": block}
    settings = {"rank": 4, "modes": repr(block.modes), "output_modes": repr(modes)}
    assert read_blocks("blocks", {"fc1": settings}) == {"fc1": block}
