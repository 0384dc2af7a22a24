"""Bad input is refused before any work, with what was expected, what came and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import tenflex
from tenflex import Block, Problem, Samples, compress, decouple, load, sample
from tenflex.checks import require_doubles


class Net(nn.Module):
    """Two layers with a function between; variations below misbehave in one way each."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=True)


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(3)


class Residual(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(F.relu(h)) + h[:, :3]


class OverBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle, self.decode = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.middle(self.encode(x)))


class Loud(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e200


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(x)).mean(1)


def broken(net: Net) -> Net:
    net.fc1.weight.data[0, 0] = math.nan
    return net


def dead(net: Net) -> Net:
    net.fc1.bias.data.fill_(-1e3)
    return net


X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
SPAN = {"fc1:fc2": Block(3)}
KINDS = (ValueError, TypeError)

# name: (what is called, a part of the message)
COMPRESS: dict[str, tuple[Callable[[], object], str]] = {
    "train mode": (lambda: compress(Net().train(), X, SPAN), r"train mode.*call \.eval\(\) on it"),
    "dropout": (lambda: compress(Dropping().eval(), X, SPAN), "dropout"),
    "randomness": (lambda: compress(Noisy().eval(), X, SPAN), "random"),
    "depends on the batch": (lambda: compress(OverBatch().eval(), X, {"": Block(3)}), "batch"),
    "NaN weights": (lambda: compress(broken(Net().eval()), X, SPAN), r"fc1\.weight"),
    "NaN inputs": (lambda: compress(Net().eval(), torch.full((9, 6), math.nan), SPAN), "finite"),
    "infinite input": (lambda: compress(Net().eval(), torch.where(X > 2, math.inf, X), SPAN), "finite"),
    "wrong width": (lambda: compress(Net().eval(), X[:, :5], SPAN), r"\(64, 5\)|\(\d+, 5\)"),
    "integer inputs": (
        lambda: compress(Net().eval(), torch.ones(9, 6, dtype=torch.long), SPAN),
        r"int64 \(9, 6\): .*convert measurements with \.float\(\)",
    ),
    "bytes": (
        lambda: compress(Net().eval(), torch.ones(9, 6, dtype=torch.uint8), SPAN),
        r"for images as in training, such as x\.float\(\) / 255",
    ),
    "unknown argument": (lambda: compress(Net().eval(), {"x": X, "index": X}, SPAN), "Net has no argument 'index'"),
    "array of texts": (lambda: compress(Net().eval(), np.array(["a"]), SPAN), "numbers that torch knows"),
    "integer inputs to a block": (
        lambda: compress(Embedded().eval(), torch.arange(40).view(10, 4) % 9, {"": Block(2)}),
        "real numbers, but what arrives at the network is int64",
    ),
    "not a tensor": (lambda: compress(Net().eval(), "images", SPAN), "tensor"),
    "no inputs": (lambda: compress(Net().eval(), X[:0], SPAN), "at least"),
    "empty iterable": (lambda: compress(Net().eval(), [], SPAN), "at least|no "),
    "one sample": (lambda: compress(Net().eval(), X[:1], SPAN), "2"),
    "constant inputs": (lambda: compress(Net().eval(), torch.ones(30, 6), SPAN), "all inputs are the same"),
    "outputs without squares": (
        lambda: compress(Loud().double().eval(), X.double(), {"": Block(2)}),
        "what leaves block '' must have a size from",
    ),
    "dead block": (lambda: compress(dead(Net().eval()), X, SPAN), "same|zero|depend"),
    "unknown name": (lambda: compress(Net().eval(), X, {"fc3": Block(3)}), "did you mean 'fc"),
    "pattern without a match": (lambda: compress(Net().eval(), X, {"layers.*": Block(3)}), "no module matches"),
    "reversed span": (lambda: compress(Net().eval(), X, {"fc2:fc1": Block(3)}), "fc1:fc2"),
    "crossed span": (lambda: compress(Residual().eval(), X, SPAN), "fc1"),
    "overlapping blocks": (lambda: compress(Net().eval(), X, {"fc1:fc2": Block(3), "fc2": Block(2)}), "fc2"),
    "tied weights": (lambda: compress(Tied().eval(), X, {"encode": Block(2)}), r"decode\.weight"),
    "nothing to compress": (lambda: compress(Tied().eval(), X, {"middle": Block(2)}), "nothing to compress"),
    "no blocks": (lambda: compress(Net().eval(), X, {}), "no block was named"),
    "blocks as a list": (lambda: compress(Net().eval(), X, ["fc1"]), "must map names to Blocks"),
    "rank as a number": (lambda: compress(Net().eval(), X, {"fc1": 3}), "must map names to Blocks"),
    "not a model": (lambda: compress(lambda x: x, X, SPAN), "torch.nn.Module"),
    "rank zero": (lambda: Block(0), "rank must be a whole number of at least 1, got 0"),
    "rank not whole": (lambda: Block(2.5), "rank must be a whole number"),
    "fewer samples than nodes": (lambda: compress(Net().eval(), X[:8], {"fc1:fc2": Block(20)}), "rank must be at most"),
    "rank larger than everything": (
        lambda: compress(Net().eval(), X, {"fc1:fc2": Block(10**6)}),
        "rank must be at most",
    ),
    "factor above the rank": (
        lambda: compress(Net().eval(), X, {"fc1:fc2": Block(3, factor=5)}),
        "factor must be at most",
    ),
    "samples not whole": (lambda: compress(Net().eval(), X, SPAN, samples=1), "samples must be"),
    "negative coupling": (lambda: compress(Net().eval(), X, SPAN, coupling=-1.0), "coupling must be"),
    "basis by name": (lambda: compress(Net().eval(), X, SPAN, basis="bspline"), "basis must be a basis"),
    "solver by name": (lambda: compress(Net().eval(), X, SPAN, solver="als"), "expected a solver"),
    "seed beyond 64 bits": (lambda: compress(Net().eval(), X, SPAN, seed=2**70), r"seed must be below 2\^63"),
    "progress to a number": (lambda: compress(Net().eval(), X, SPAN, on_progress=3), "on_progress must be a function"),
    "checkpoints in a number": (lambda: compress(Net().eval(), X, SPAN, checkpoints=3), "the path of a folder, got 3"),
    "checkpoints in a file": (lambda: compress(Net().eval(), X, SPAN, checkpoints=__file__), "is a file: choose"),
    "a test without labels": (lambda: tenflex.compare(Net().eval(), X, test=X[:20]), "test as a pair"),
    "export of a number": (lambda: tenflex.export(5, "q.onnx", X), "expected a result of compress or"),
    "negative seed": (lambda: compress(Net().eval(), X, SPAN, seed=-1), "seed must be"),
}


@pytest.mark.parametrize(("call", "message"), COMPRESS.values(), ids=COMPRESS.keys())
def test_compress_refuses(call: Callable[[], object], message: str) -> None:
    with torch.random.fork_rng(devices=[]), pytest.raises(KINDS, match=message):
        call()


def points(S: int = 20) -> Tensor:
    return torch.rand(S, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def square(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1], x[0] ** 2])


def asked() -> Problem:
    return Problem(sample(square, points()), 2)


DECOUPLE: dict[str, tuple[Callable[[], object], str]] = {
    "points of one dimension": (lambda: sample(square, points()[0]), r"shape \(S, m\)"),
    "integer points": (lambda: sample(square, torch.ones(4, 2, dtype=torch.long)), "floating-point"),
    "points with NaN": (lambda: sample(square, points() * math.nan), "finite"),
    "f not callable": (lambda: sample(3, points()), "must be a function"),
    "f not finite": (lambda: sample(lambda x: x / 0, points()), "finite"),
    "f not differentiable": (lambda: sample(lambda x: torch.ones(2), points()), "depend"),
    "shapes disagree": (lambda: Samples(points(), points(), points()), r"jacobians \(S, n, m\)"),
    "samples as a tuple": (lambda: Problem((points(), points()), 2), "tenflex.sample"),
    "seed in words": (lambda: decouple(asked(), seed="x"), "seed must be a whole number of at least 0, got 'x'"),
    "seed of a half": (lambda: decouple(asked(), seed=1.5), "seed must be a whole number of at least 0, got 1.5"),
    "seed beyond 64 bits": (lambda: decouple(asked(), seed=2**70), r"seed must be below 2\^63"),
    "progress to a number": (lambda: decouple(asked(), on_progress=3), "on_progress must be a function"),
    "no problem": (lambda: decouple(sample(square, points())), "expected a tenflex.Problem"),
    "held out all": (lambda: Problem(sample(square, points()), 2, held_out=0.9), "at most 0.5"),
    "constant map": (lambda: Problem(sample(lambda x: x * 0 + 1, points()), 1), "all Jacobians are zero"),
}


def scaled(power: float, outputs: bool) -> Samples:
    """Outputs, or inputs, in units that are so many times as small."""
    a, planted = 10.0**power, sample(square, points())
    if outputs:
        return Samples(planted.inputs, a * planted.outputs, a * planted.jacobians)
    return Samples(a * planted.inputs, planted.outputs, planted.jacobians / a)


@pytest.mark.parametrize("outputs", [True, False], ids=["outputs", "inputs"])
@pytest.mark.parametrize("power", [-400, -308, -200, -170, -155, 155, 170, 200, 305])
def test_numbers_without_squares_are_refused(power: float, outputs: bool) -> None:
    message = r"must have a size from 1e-150 to 1e\+150, .* measure them in other units|finite|are the same|are zero"
    with pytest.raises(ValueError, match=message):
        Problem(scaled(power, outputs), 2)


@cache
def solved_in_units(power: float, outputs: bool) -> tenflex.Solution:
    problem = Problem(scaled(power, outputs), 2, tenflex.Monomial(2))
    return decouple(problem, tenflex.solvers.ConstrainedALS(2))


@given(power=st.floats(-145, 145), outputs=st.booleans())
def test_units_change_nothing(power: float, outputs: bool) -> None:
    one, other = solved_in_units(0.0, outputs), solved_in_units(power, outputs)
    assert other.output_error == pytest.approx(one.output_error, rel=1e-6, abs=1e-9)
    assert other.jacobian_error == pytest.approx(one.jacobian_error, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("call", "message"), DECOUPLE.values(), ids=DECOUPLE.keys())
def test_decouple_refuses(call: Callable[[], object], message: str) -> None:
    with pytest.raises(KINDS, match=message):
        call()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tenflex.Compression]:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        net = Net().eval()
    result = compress(net, X, SPAN, solver=tenflex.solvers.ConstrainedALS(2))
    folder = tmp_path_factory.mktemp("saved") / "small"
    result.save(folder)
    return folder, result


def test_missing_result(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a folder written by Compression\.save"):
        load(tmp_path, Net())


def test_other_arguments_of_a_result(saved: tuple[Path, tenflex.Compression], tmp_path: Path) -> None:
    folder, result = saved
    with pytest.raises(TypeError, match=r"trust must be names such as 'shop\.models'"):
        load(folder, trust=True)
    with pytest.raises(TypeError, match=r"comparison must be what tenflex\.compare gave, got 5"):
        result.write_report(tmp_path / "r.html", comparison=5)
    with pytest.raises(ValueError, match=r"expected a model of float32, as .* was saved, got float64: convert it"):
        tenflex.Compression.load(folder, Net().double())


def test_truncated_file(saved: tuple[Path, tenflex.Compression], tmp_path: Path) -> None:
    whole = (saved[0] / "model.safetensors").read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged or not a safetensors file"):
            load(tmp_path, Net())


def test_file_of_another_program(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="was not written by tenflex"):
        load(tmp_path, Net())


def test_wrong_architecture(saved: tuple[Path, tenflex.Compression]) -> None:
    wider = Net()
    wider.extra = nn.Linear(2, 2)
    for other in (nn.Sequential(nn.Linear(6, 3)), wider):
        with pytest.raises(ValueError, match="expected a model of the architecture that was compressed"):
            load(saved[0], other)


def test_folder_of_others_is_left_alone(saved: tuple[Path, tenflex.Compression], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files than an earlier result"):
        saved[1].save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_killed_run_left_is_no_obstacle(saved: tuple[Path, tenflex.Compression], tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.abc.part").write_bytes(b"half")
    saved[1].save(tmp_path)
    assert torch.equal(load(tmp_path, Net())(X), saved[1].model(X))


def test_folder_that_is_a_file(saved: tuple[Path, tenflex.Compression], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: choose a folder"):
        saved[1].save(tmp_path / "file")


def test_unwritable_place(saved: tuple[Path, tenflex.Compression]) -> None:
    with pytest.raises(OSError, match=r"/proc/tenflex"):
        saved[1].save("/proc/tenflex")


def test_a_failed_write_leaves_the_previous_result(
    saved: tuple[Path, tenflex.Compression], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved[1].save(tmp_path / "small")
    before = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}

    def full_disk(state: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tenflex.storage.files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        saved[1].save(tmp_path / "small")
    assert {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()} == before


def test_original_and_inputs_are_untouched() -> None:
    with torch.random.fork_rng(devices=[]):
        net = Net().eval()
    inputs = X.clone()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = [parameter.requires_grad for parameter in net.parameters()]
    compress(net, inputs, SPAN)
    assert torch.equal(inputs, X)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in net.parameters()]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.training
    assert list(dict(net.named_modules())) == ["", "fc1", "fc2"]


def test_devices_without_double_precision_are_refused_before_any_work(monkeypatch) -> None:
    with pytest.raises(
        ValueError, match=r"double precision, which mps does not have: bring the network to the process"
    ):
        require_doubles(torch.device("mps"))
    require_doubles(torch.device("cuda:0"))
    monkeypatch.setattr("tenflex.checks.NO_DOUBLES", ("cpu",))
    model, told = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval(), []
    with pytest.raises(ValueError, match="double precision, which cpu does not have"):
        compress(model, torch.randn(40, 3), {"": Block(2)}, on_progress=told.append)
    assert told == []
