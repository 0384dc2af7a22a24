"""The main job end to end: blocks of networks become flexible layers, and come back from disk the same."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import tenflex
from tenflex import Block, BSpline, FlexibleLayer, Monomial, compress, load
from tenflex.coordinates import Whiten
from tenflex.evaluate.cost import Cost, stored_numbers
from tenflex.evaluate.fidelity import Fidelity
from tenflex.evaluate.report import BlockReport, Report
from tenflex.result import Result
from tenflex.solvers import BestSoFar, Chain, ConstrainedALS, GaussNewton, MultiStart, Refine
from tenflex.solvers.base import measured
from tenflex.split import groups_of_rows, split_samples


class Functional(nn.Module):
    """Functions stand between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 20), nn.Linear(20, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), -1)
        return self.fc3(torch.tanh(self.fc2(F.relu(self.fc1(x)))))


class Nested(nn.Module):
    """The span crosses the border of a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 10))
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.flatten(1)))


class Encoder(nn.Module):
    """Three feed-forward blocks with residuals, on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {"norm": nn.LayerNorm(8), "mlp": nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))}
            )
            for _ in range(3)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer["mlp"](layer["norm"](x))
        return self.head(x.mean(1))


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(seed))


# name: (network, block name, names of the modules that become flexible layers)
CASES: dict[str, tuple[Callable[[], nn.Module], str, list[str]]] = {
    "span in a sequential": (sequential, "1:5", ["1"]),
    "one module": (sequential, "3", ["3"]),
    "functions between": (Functional, "fc1:fc3", ["fc1"]),
    "part of a span": (Functional, "fc2:fc3", ["fc2"]),
    "nested": (Nested, "features.2:head.1", ["features.2"]),
    "across a submodule": (Nested, "features.0:head.1", ["features.0"]),
    "submodule": (Nested, "features", ["features"]),
    "whole network": (Functional, "", [""]),
    "whole sequential": (sequential, "", [""]),
}


QUICK = {"solver": Chain((ConstrainedALS(3), Refine(20)))}
"""For what holds whatever solves: the default recipe takes ten times as long, and is tested below."""


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return make().eval()


@pytest.mark.parametrize(("make", "name", "layers"), CASES.values(), ids=CASES.keys())
def test_block_becomes_a_layer_that_comes_back(
    make: Callable[[], nn.Module], name: str, layers: list[str], tmp_path: Path
) -> None:
    model, inputs = made(make), images(200)
    result = compress(model, inputs, {name: Block(6)}, seed=3, **QUICK)
    flexible = [path for path, module in result.model.named_modules() if isinstance(module, FlexibleLayer)]
    assert flexible == layers
    fresh = images(300, seed=1)
    assert result.evaluate(fresh).relative_error < 0.5
    assert result.model(fresh).shape == model(fresh).shape
    result.save(tmp_path / "small")
    again = load(tmp_path / "small", made(make))
    assert torch.equal(again(fresh), result.model(fresh))
    stored = sum(tensor.numel() for tensor in load_file(tmp_path / "small" / "model.safetensors").values())
    assert stored == stored_numbers(again) == result.report.after.parameters
    before, after = result.report.blocks[0].before, result.report.blocks[0].after
    assert result.report.before.parameters - before.parameters + after.parameters == stored


def test_wildcard_replaces_every_position_wise_block() -> None:
    model = made(Encoder)
    tokens = torch.randn(60, 5, 8, generator=torch.Generator().manual_seed(0))
    result = compress(model, tokens, {"layers.*.mlp": Block(12)}, samples=200, **QUICK)
    assert [block.name for block in result.report.blocks] == ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]
    assert list(result.plan.blocks) == ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]
    for solution in result.solutions.values():
        assert solution.problem.samples.jacobians.shape[0] == 200  # positions, not sequences
    longer = torch.randn(20, 9, 8, generator=torch.Generator().manual_seed(1))
    assert result.evaluate(longer).relative_error < 0.2


def test_later_blocks_are_fitted_behind_earlier_ones() -> None:
    """The second block sees what the first layer sends, and aims at what the original sends."""
    model, inputs = made(sequential), images(300)
    result = compress(model, inputs, {"1:2": Block(4), "3:5": Block(8)}, solver=ConstrainedALS(3))
    with torch.no_grad():
        arriving = result.model[:3](inputs)
        target = model(inputs)
    order = torch.cat(split_samples(groups_of_rows((inputs,))))  # those that are held out come last
    arriving, target = arriving[order], target[order]
    second = result.solutions["3:5"]
    seen = second.problem.samples
    torch.testing.assert_close(seen.reduction.inputs(arriving), seen.inputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.reduction.outputs(target), seen.outputs, rtol=1e-4, atol=1e-4)


def test_a_flexible_network_is_reproduced() -> None:
    """A block that is itself a flexible layer of polynomials comes back to rounding error."""
    generator = torch.Generator().manual_seed(0)
    teacher = made(lambda: FlexibleLayer((12,), (4,), 3, Monomial(3)))
    in_order = (teacher.maps[0], *teacher.activations, teacher.maps[1])
    with torch.no_grad():
        for parameter in (one for part in in_order for one in part.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model = nn.Sequential(nn.Flatten(), teacher).double().eval()
    inputs = images(200).double()
    solver = MultiStart(Chain((ConstrainedALS(10), GaussNewton(60))), 5)
    result = compress(model, inputs, {"1": Block(3, basis=Monomial(3))}, solver=solver)
    assert result.report.blocks[0].output_error < 1e-9


@pytest.mark.usefixtures("few_steps")
def test_same_seed_same_bits_and_another_seed_another_layer() -> None:
    model, inputs = made(Functional), images(100)
    first, second, other = (compress(model, inputs, {"fc1:fc3": Block(5, factor=3)}, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert not torch.equal(first.model(inputs), other.model(inputs))


@pytest.fixture(scope="module")
def small(lenet, digits) -> tenflex.Compression:
    """The shipped network made small, for what holds however well."""
    return compress(lenet, digits.train_images[:64], {"fc1:fc3": Block(4, factor=3)}, solver=ConstrainedALS(2))


def test_same_bits_in_a_new_process(tmp_path: Path, small, digits) -> None:
    small.save(tmp_path / "small")
    with torch.no_grad():
        torch.save(small.model(digits.test_images), tmp_path / "outputs.pt")
    code = (
        "import sys, torch, tenflex; from tenflex.demo.digits import load_digits; "
        "from tenflex.demo.networks import LeNet300; model = tenflex.load(sys.argv[1], LeNet300()); "
        "expected = torch.load(sys.argv[2], weights_only=True); "
        "sys.exit(0 if torch.equal(model(load_digits().test_images), expected) else 1)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "small", tmp_path / "outputs.pt"], check=True)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            Block(298),
            r"block '3:5': rank must be at most 297 for 85 fitted samples of a map from 20 to 4 numbers, got 298",
        ),
        (Block((298, 3)), r"block '3:5': rank must be at most 297 for 85 fitted samples .*, got \(298, 3\)"),
        (
            Block(30, factor=21),
            r"block '3:5': factor must be at most the rank \(30\) and the number of inputs .* \(20\)",
        ),
        (Block(8, output_factor=5), r"block '3:5': output_factor must be at most the rank \(8\) and .* \(4\), got 5"),
    ],
)
def test_layers_of_any_block_that_cannot_be_found_are_refused_before_any_is_sampled(block, message, monkeypatch):
    monkeypatch.setattr(
        sys.modules["tenflex.blocks.sampled"],
        "sample_block",
        lambda *args, **settings: pytest.fail("a block was sampled"),
    )
    with pytest.raises(ValueError, match=message):
        compress(made(sequential), images(100), {"1:2": Block(4), "3:5": block})


def test_blocks_that_cannot_fit_in_memory_are_refused_before_any_is_sampled(monkeypatch):
    """What is kept of the first block is taken from what there is for the second."""

    def stop(*args, **settings):
        raise InterruptedError("a block was sampled")

    monkeypatch.setattr(sys.modules["tenflex.blocks.sampled"], "sample_block", stop)
    model, inputs, first, second = made(sequential), images(100), {"1:2": Block(4)}, {"3:5": Block(4)}
    for alone in (first, second):
        with pytest.raises(InterruptedError):
            compress(model, inputs, alone, memory=74_000)
    with pytest.raises(ValueError, match=r"block '3:5': the Jacobians of 100 samples, 4 outputs and 1 .* samples=\d"):
        compress(model, inputs, {**first, **second}, memory=74_000)


def test_quantile_knots_are_counted(lenet, digits) -> None:
    basis = BSpline(8, degree=2, spacing="quantile")
    result = compress(
        lenet, digits.train_images[:64], {"fc1:fc3": Block(4, factor=3, basis=basis)}, solver=ConstrainedALS(2)
    )
    coefficients, maps, knots = 4 * 8, 784 * 3 + 3 * 4 + 4 + 4 * 10 + 10, 4 * (8 - 2 - 1)
    assert result.report.after.parameters == maps + coefficients + knots


def test_inputs_may_be_batches_tuples_or_mappings() -> None:
    model, x, labels = made(Functional), images(96), torch.arange(96)
    blocks, solver = {"fc1:fc3": Block(4, factor=3)}, ConstrainedALS(2)
    whole = compress(model, x, blocks, solver=solver)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=40)
    for inputs in (loader, [x[:50], x[50:]], [{"x": x}]):
        again = compress(model, inputs, blocks, solver=solver)
        torch.testing.assert_close(again.model(x), whole.model(x))


@pytest.mark.usefixtures("few_steps")
def test_progress_names_stages_and_never_passes_the_total() -> None:
    seen: list[tenflex.Progress] = []
    compress(made(Functional), images(64), {"fc1:fc3": Block(4, factor=3)}, on_progress=seen.append)
    stages = {str(progress) for progress in seen}
    assert {"fc1:fc3: sample", "fc1:fc3: Jacobian CPD", "fc1:fc3: refine"} <= stages
    assert all(0 <= progress.done <= progress.total for progress in seen)


def test_load_on_the_meta_device(tmp_path: Path, small, digits) -> None:
    from tenflex.demo.networks import LeNet300

    small.save(tmp_path)
    with torch.device("meta"):
        empty = LeNet300()
    assert torch.equal(load(tmp_path, empty)(digits.test_images), small.model(digits.test_images))


@dataclass(frozen=True)
class Diverging(ConstrainedALS):
    """Every step gives numbers that are not finite, from a start that is finite."""

    def step(self, problem, state):
        factors = state.factors.with_tensors([one * math.nan for one in state.factors.tensors()])
        return measured(problem, state, factors, taken=state.taken + 1)


def test_a_solver_that_gives_no_finite_layer_is_named_with_the_block() -> None:
    message = (
        r"block 'fc': expected a layer of finite numbers, got none from Diverging\(.*, which diverged: take another"
    )
    network = nn.Sequential(OrderedDict(fc=nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)))).eval()
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=message):
        compress(network, x, {"fc": Block(3, start="cpd")}, basis=Monomial(3), solver=Diverging(3))
    found = compress(network, x, {"fc": Block(3)}, basis=Monomial(3), solver=BestSoFar(Diverging(3)))
    assert found.report.blocks[0].output_error < 1


def test_report_reads_well(small) -> None:
    text = str(small.report)
    assert re.search(r"fc1:fc3 +266,610 +0\.92 % \(108x\)", text)
    assert "-> 2,458" in text
    assert max(map(len, text.splitlines())) <= 100
    assert small.report.to_dict()["model"]["parameters"] == {"before": 266_610, "after": 2_458}


def test_report_tells_of_the_whole_network(tmp_path: Path) -> None:
    """The error in all, the decisions and the rest are those that `evaluate` finds on the same inputs."""
    model, inputs = made(Functional), images(60)
    result = compress(model, inputs, {"fc2:fc3": Block(2)}, solver=ConstrainedALS(3))
    close = result.evaluate(inputs)
    assert result.report.fidelity == close
    assert result.report.output_error == close.relative_error > 0
    result.save(tmp_path / "small")
    saved = json.loads((tmp_path / "small" / "report.json").read_text())
    assert saved == result.report.to_dict()
    assert saved["model"]["output_error"] == close.relative_error
    assert saved["fidelity"] == asdict(close)
    text = " ".join(str(result.report).split())
    assert re.search(rf"in all .*{close.relative_error:.3f} ", text)
    assert "that in all of the network's outputs on the inputs it was compressed with, which flatters" in text
    assert f"same decision, averaged over its classes {100 * close.balanced_agreement:.2f} %" in text


class Deciding(Functional):
    """What it returns cannot be compared, and its blocks can be compressed all the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


class Telling(Functional):
    """A score, and what it was made of."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = super().forward(x)
        return {"score": y.sum(-1), "parts": y, "decision": y.argmax(-1)}


def test_report_of_networks_with_other_outputs() -> None:
    result = compress(made(Deciding), images(60), {"fc2:fc3": Block(2)}, solver=ConstrainedALS(3))
    assert result.report.output_error is None
    assert result.report.to_dict()["fidelity"] is None
    assert "in all" in str(result.report)
    with pytest.raises(TypeError, match="leave out the decision"):
        result.evaluate(images(60))
    result = compress(made(Telling), images(60), {"fc2:fc3": Block(2)}, solver=ConstrainedALS(3))
    assert 0 < result.report.output_error < 1
    assert f"error on its lowest and highest tenth {result.report.fidelity.tail_error:.3f}" in str(result.report)


def report(kept: int, output_error: float, whole: float, result: Result = Result.CONVERGED) -> Report:
    before, after = Cost(100, 100, 10), Cost(kept, 50, 10)
    block = BlockReport("encoder.layer.11.output:encoder.layer.11.norm", before, after, output_error, 0.1, result, 1.0)
    close = Fidelity(whole, 0.993, None, 0.5, None)
    return Report((block, replace(block, name="")), before, after, 1.0, close)


@pytest.mark.parametrize(
    ("shown", "warnings"),
    [
        (report(40, 0.3, 0.3), []),
        (report(372, 0.1, 0.1), ["grew to 372 % of its parameters: lower rank or factor"]),
        (report(40, 0.31, 0.31), ["an output error of 0.31 and loses much of the original: raise rank"]),
        (report(40, 0.97, 0.1), ["an output error of 0.97 and is hardly better than a constant"]),
        (report(40, 1.5, 0.1), ["an output error of 1.50 and is no better than a constant"]),
        (report(40, math.nan, 0.1), ["is no better than a constant"]),
        (report(40, 0.1, 0.5), ["the network as a whole has an output error of 0.50 and loses much"]),
        (report(40, 0.1, 0.1, Result.DIVERGED), [Result.DIVERGED.value[:30]]),
        (report(372, math.inf, math.inf), ["grew to 372 %", "an output error of inf and is no better"]),
    ],
)
def test_report_warns_in_lines_of_their_own(shown: Report, warnings: list[str]) -> None:
    found = shown.warnings
    blocks = [one for one in found if not one.startswith("the network as a whole")]
    assert len(blocks) == (0 if "as a whole" in "".join(warnings) else 2 * len(warnings))  # of two blocks
    for part in warnings:
        assert any(part in one for one in found)
    text = str(shown)
    assert all(" ".join(one.split()) in " ".join(text.split()) for one in found)
    assert max(map(len, text.splitlines())) <= 100
    json.dumps(shown.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("whole", "told"), [(0.6, 0), (0.95, 1), (1.01, 1), (math.nan, 1)])
def test_a_network_that_is_worth_nothing_is_told_beside_its_blocks(whole: float, told: int) -> None:
    one = report(40, 0.5, whole)
    several = replace(
        one, blocks=tuple(replace(block, name=name) for block, name in zip(one.blocks, "ab", strict=True))
    )
    found = [line for line in several.warnings if line.startswith("the network as a whole has an output error")]
    assert len(found) == told


def test_report_fits_80_columns() -> None:
    text = io.StringIO()
    Console(file=text, width=80, color_system=None).print(report(372, 0.5, 0.5))
    assert max(map(len, text.getvalue().splitlines())) <= 80
    for part in ("372.0 %", "0.500", "0.100", "(network)", "in all"):
        assert part in text.getvalue()


def test_a_sorted_loader_is_drawn_from_as_a_tensor_is() -> None:
    model, inputs = made(Functional), images(300)
    inputs = inputs[inputs.flatten(1).sum(1).argsort()]
    blocks, solver = {"fc2:fc3": Block(2)}, ConstrainedALS(2)
    whole, batches = (
        compress(model, one, blocks, solver=solver, samples=60) for one in (inputs, iter(inputs.split(32)))
    )
    seen = [one.solutions["fc2:fc3"].problem.samples.inputs for one in (whole, batches)]
    assert torch.equal(*seen)


class Gated(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.mlp(x.flatten(1)) * gate


def test_networks_of_two_inputs(tmp_path: Path) -> None:
    model, x, gate = made(Gated), images(80), torch.rand(80, 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, gate, torch.arange(80)), batch_size=32)
    forms = [(x, gate), loader, {"x": x.numpy(), "gate": gate.double(), "labels": None}]
    found = [compress(model, one, {"mlp": Block(4)}, solver=ConstrainedALS(3)) for one in forms]
    for one in found[1:]:
        torch.testing.assert_close(one.model(x, gate), found[0].model(x, gate))
        assert one.report.output_error == pytest.approx(found[0].evaluate(loader).relative_error)
    found[0].save(tmp_path)
    assert torch.equal(load(tmp_path, model)(x, gate), found[0].model(x, gate))


def test_numbers_of_another_precision_are_converted() -> None:
    model, x = made(Functional), images(60)
    blocks, solver = {"fc2:fc3": Block(2)}, ConstrainedALS(2)
    expected = compress(model, x, blocks, solver=solver).model(x)
    for other in (x.double(), x.double().numpy(), list(x.double().numpy().reshape(3, 20, 3, 4))):
        assert torch.equal(compress(model, other, blocks, solver=solver).model(x), expected)


@pytest.mark.slow
def test_the_claims_on_lenet_300_100(lenet, digits) -> None:
    """One calibration draw of the benchmark: 29 times smaller for at most 3 points."""
    from tenflex.demo.train import accuracy

    chosen = torch.randperm(8000, generator=torch.Generator().manual_seed(0))[:2000]
    result = compress(lenet, digits.train_images[chosen], {"fc1:fc3": Block(40, factor=10)})
    assert result.report.after.parameters <= 9_200
    before, after = (accuracy(model, digits.test_images, digits.test_labels) for model in (lenet, result.model))
    assert before - after <= 0.03


def test_a_later_layer_is_no_wider_than_what_arrives_at_it_varies() -> None:
    """After two nodes two directions are left, of which the plan, made for the original, knows nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        first = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 12))
        model = nn.Sequential(first, nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))).eval()
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    second = Block(4, factor=3)
    settings = {"basis": Monomial(2), "solver": ConstrainedALS(3), "coordinates": Whiten()}
    assert compress(model, x, {"1": second}, **settings).report.blocks[0].after.parameters == 3 * (12 + 4) + 4 * 6 + 3
    result = compress(model, x, {"0": Block(2), "1": second}, **settings)
    assert result.report.blocks[1].after.parameters == 2 * (12 + 4) + 4 * 6 + 3
    again = compress(model, x, result.plan)
    assert torch.equal(again.model(x), result.model(x))
