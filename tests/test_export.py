"""ONNX, ExecuTorch and torch.export: what their runtimes give is what the network gives."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import random
from test_nn import BASES, M, layer_of
from torch import nn

import tenflex
from tenflex.bases import BSpline
from tenflex.export import verb
from tenflex.export.bench import Bench, Timing, bench
from tenflex.export.formats import in_batches
from tenflex.export.verb import format_of
from tenflex.modes import Cosine
from tenflex.nn import FlexibleLayer, fold

onnx = pytest.mark.skipif(
    any(find_spec(one) is None for one in ("onnx", "onnxscript", "onnxruntime")),
    reason="tenflex[onnx] is not installed",
)
executorch = pytest.mark.skipif(find_spec("executorch") is None, reason="tenflex[executorch] is not installed")
FORMATS = [
    pytest.param("pt2", {}, id="pt2"),
    pytest.param("onnx", {}, id="onnx", marks=[onnx, pytest.mark.slow]),
    pytest.param("pte", {}, id="pte", marks=[executorch, pytest.mark.slow]),
    pytest.param("pte", {"backend": "portable"}, id="portable", marks=[executorch, pytest.mark.slow]),
]
formats = pytest.mark.parametrize(("ending", "options"), FORMATS)
pytestmark = pytest.mark.filterwarnings("ignore")  # converters warn of themselves


class Around(nn.Module):
    """A flexible layer and what may stand around it."""

    def __init__(self, generator, basis) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv1d(2, 3, 2), layer_of(generator, basis, (4, None)).float()

    def forward(self, x):
        return self.layer(torch.relu(self.conv(x)).flatten(1)[:, :M]).tanh()


@pytest.fixture
def x(generator):
    return random(generator, 30, 2, 4).float()


@formats
@pytest.mark.parametrize("basis", ["B-spline", "quantile", "Chebyshev"])
def test_the_runtime_gives_what_the_network_gives(ending, options, basis, generator, x, tmp_path):
    network, path = Around(generator, BASES[basis]).eval(), tmp_path / f"small.{ending}"
    before = x.clone()
    found = tenflex.export(network, path, x, **options)
    with torch.no_grad():
        due, folded = network(x), fold(network)(x)
    given, largest = format_of(path).load(path).outputs((x,)).view_as(due), due.abs().max()
    assert (given - folded).abs().max() < 2e-6 * largest
    assert (folded - due).abs().max() < 2e-6 * largest
    assert found.difference == pytest.approx(float((given - due).abs().max() / largest), rel=1e-3)
    assert found.agreement == 1
    assert found.size == path.stat().st_size
    assert torch.equal(x, before)
    session = format_of(path).load(path)
    for batch in (1, 7, 30):  # any number of samples
        with torch.no_grad():
            torch.testing.assert_close(session.outputs((x[:batch],)), network(x[:batch]), rtol=1e-5, atol=1e-5)


@onnx
@pytest.mark.slow
def test_an_onnx_file_holds_no_more_than_it_must(generator, tmp_path):
    import onnx as library

    network = layer_of(generator, BSpline(20)).float().eval()
    tenflex.export(network, tmp_path / "small.onnx", random(generator, 9, M).float())
    model = library.load(tmp_path / "small.onnx")
    library.checker.check_model(model)
    assert {one.domain for one in model.opset_import} == {""}
    stored = sum(torch.Size(one.dims).numel() for one in model.graph.initializer)
    assert stored < 5 * M + 5 + 5 * 19 * 4 + 5 * 4 + 4 + 40  # the maps, the table, and some numbers for shapes
    assert library.TensorProto.DOUBLE not in {one.data_type for one in model.graph.initializer}
    assert not any(one.metadata_props for one in model.graph.node)


@onnx
@pytest.mark.slow
def test_int8_leaves_tables_alone(generator, tmp_path):
    network = nn.Sequential(layer_of(generator, BSpline(8)).float(), nn.ReLU(), nn.Linear(4, 3)).eval()
    found = tenflex.export(network, tmp_path / "small.onnx", random(generator, 200, M).float(), int8=True)
    assert 1e-5 < found.difference < 0.1
    assert found.agreement > 0.9


@executorch
@pytest.mark.slow
def test_a_network_of_modes_is_one_program_of_xnnpack(generator, tmp_path):
    """Nothing of it is left to the portable kernels, which are slow, and each change between the two takes time."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    layer = FlexibleLayer((12, 12), (3,), 30, BSpline(8), modes=Cosine(3))
    tenflex.export(layer.eval(), tmp_path / "small.pte", random(generator, 20, 12, 12).float())
    program = deserialize_pte_binary((tmp_path / "small.pte").read_bytes()).program
    [plan] = program.execution_plan
    assert len(plan.delegates) == 1
    assert [one.name for one in plan.operators] == []


@executorch
@pytest.mark.slow
def test_int8_of_executorch(generator, tmp_path):
    network = nn.Sequential(layer_of(generator, BSpline(8)).float(), nn.ReLU(), nn.Linear(4, 3)).eval()
    found = tenflex.export(network, tmp_path / "small.pte", random(generator, 200, M).float(), int8=True)
    assert 1e-5 < found.difference < 0.2
    with pytest.raises(ValueError, match="needs the kernels of XNNPACK"):
        tenflex.export(network, tmp_path / "small.pte", torch.zeros(2, M), int8=True, backend="portable")
    with pytest.raises(ValueError, match="backend must be one of xnnpack, portable, got 'arm'"):
        tenflex.export(network, tmp_path / "small.pte", torch.zeros(2, M), backend="arm")


def test_a_graph_runs_without_this_package(generator, x, tmp_path):
    network = Around(generator, BSpline(8)).eval()
    tenflex.export(network, tmp_path / "small.pt2", x)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys; sys.modules['tenflex'] = None; import torch; "
        "y = torch.export.load('small.pt2').module()(torch.load('x.pt')); torch.save(y, 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"PATH": "/usr/bin"})
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), network(x), rtol=1e-5, atol=1e-6)


WITHOUT = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
y = session.run(None, {session.get_inputs()[0].name: x})[0]
""",
    "pte": """
import torch
from executorch.runtime import Runtime
program = Runtime.get().load_program("small.pte")
method = program.load_method("forward")
y = method.execute([torch.from_numpy(x)])[0].numpy()
""",
}


@pytest.mark.parametrize(("ending", "options"), FORMATS[1:])
def test_a_file_runs_without_this_package(ending, options, generator, x, tmp_path):
    network = Around(generator, BSpline(8)).eval()
    tenflex.export(network, tmp_path / f"small.{ending}", x, **options)
    np.save(tmp_path / "x.npy", x.numpy())
    code = "import sys; sys.modules['tenflex'] = None; import numpy as np; x = np.load('x.npy')\n" + WITHOUT[ending]
    subprocess.run([sys.executable, "-c", code + "np.save('y.npy', y)"], cwd=tmp_path, check=True)
    with torch.no_grad():
        found = torch.from_numpy(np.load(tmp_path / "y.npy"))
        torch.testing.assert_close(found, network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    network = nn.Sequential(nn.Linear(1000, 2000), nn.ReLU(), nn.Linear(2000, 3)).eval()
    found = bench(network, network, torch.rand(4, 1000), runtimes=(), batches=(1, 2000), seconds=0.01, memory=True)
    for one in found.timings:
        if one.memory is not None:  # where Linux tells it
            assert one.memory > 4 * 2000 * 1000 * (1 if one.batch == 1 else 3)  # the weights; inputs, nodes twice


def test_within_a_tolerance_other_forms_are_timed(generator, monkeypatch):
    network, asked = nn.Sequential(layer_of(generator, BSpline(8)).float()).eval(), []
    module = sys.modules["tenflex.export.bench"]  # `tenflex.export` is the verb
    monkeypatch.setattr(module, "fold", lambda *args, **named: asked.append(args) or fold(*args, **named))
    x = random(generator, 50, M).float()
    bench(network, network, x, runtimes=("c",), batches=(1,), seconds=0.01, tolerance=0.02)
    (_, tolerance, seen), *others = [one for one in asked if len(one) > 1]
    assert tolerance == 0.02
    assert torch.equal(seen["0"], x)
    assert len(others) <= 1  # the file in C, where there is a compiler
    with pytest.raises(ValueError, match="tolerance must be a finite number above 0, got 0"):
        bench(network, network, x, runtimes=(), tolerance=0)


def test_each_batch_is_timed_in_its_form(generator, monkeypatch):
    network, asked = nn.Sequential(layer_of(generator, BSpline(8)).float()).eval(), []
    module = sys.modules["tenflex.export.bench"]
    monkeypatch.setattr(module, "fold", lambda *args, **named: asked.append(named.get("pace")) or fold(*args, **named))
    bench(network, network, random(generator, 5, M).float(), runtimes=(), batches=(1, 300), seconds=0.01)
    assert [one.samples for one in asked] == [1, 300]


def test_what_differs_is_not_kept(generator, x, tmp_path, monkeypatch):
    network = Around(generator, BSpline(8)).eval()
    (tmp_path / "small.pt2").write_text("an earlier one")
    monkeypatch.setattr(verb, "outputs_of", lambda network, inputs: torch.zeros(30, 4))
    with pytest.raises(RuntimeError, match=r"torch\.export gives other outputs than the network, by"):
        tenflex.export(network, tmp_path / "small.pt2", x)
    assert [one.name for one in tmp_path.iterdir()] == ["small.pt2"]
    assert (tmp_path / "small.pt2").read_text() == "an earlier one"


class Skip(nn.Module):
    """What leaves a replaced block is read twice."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
        self.net = nn.Sequential(block, nn.Linear(4, 4))

    def forward(self, x):
        inner = self.net[0](x)
        return self.net[1](inner) + inner


class Later(Skip):
    """What leaves the block is read twice where the first number is positive, which that of the first inputs is not."""

    def forward(self, x):
        return self.net(x) + (x[:, :1] > 0) * self.net[0](x)


def test_all_inputs_tell_whether_maps_may_be_multiplied(generator, tmp_path):
    x = random(generator, 400, 6).float()
    x = x[x[:, 0].argsort()]
    result = tenflex.compress(Later().eval(), x, {"net.0": tenflex.Block(3)})
    path = tmp_path / "later.pt2"
    tenflex.export(result, path, x, tolerance=0.01)
    with torch.no_grad():
        due, found = result.model(x), format_of(path).load(path).outputs((x,)).view(400, 4)
    assert (found - due).abs().max() < 0.05 * due.abs().max()


class Whole(Skip):
    def forward(self, x):
        return self.net(x)


@formats
@pytest.mark.parametrize("network", [Skip, Whole])
def test_what_leaves_a_block_may_be_read_twice(ending, options, network, generator, tmp_path):
    x, quick = random(generator, 60, 6).float(), tenflex.solvers.ConstrainedALS(1)
    block = tenflex.Block(3, basis=tenflex.Monomial(3))
    result = tenflex.compress(network().eval(), x, {"net.0": block}, solver=quick)
    path = tmp_path / f"small.{ending}"
    tenflex.export(result, path, x, **options)
    torch.testing.assert_close(format_of(path).load(path).outputs((x,)), result.model(x), rtol=1e-4, atol=1e-4)
    if ending == "pt2":
        stored = sum(one.numel() for one in torch.export.load(path).state_dict.values())
        apart = 6 * 3 + 3 + 3 * 4 + 3 * 4 + 4 + 4 * 4 + 4
        assert stored == apart - (0 if network is Skip else 4 * 4 + 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_wrong_fold_is_refused(dtype, generator, x, tmp_path, monkeypatch):
    """The file is compared with the network as it was given; in half precision, too, that rounds more than is let."""
    network, x = Around(generator, BSpline(8)).eval().to(dtype), x.to(dtype)
    assert tenflex.export(network, tmp_path / "small.pt2", x).difference <= 40 * torch.finfo(dtype).eps
    (tmp_path / "small.pt2").unlink()

    def wrong(*args, **named):
        new = fold(*args, **named)
        new.layer.steps[-1].bias += 0.3
        return new

    monkeypatch.setattr(verb, "fold", wrong)
    with pytest.raises(RuntimeError, match=r"torch\.export gives other outputs than the network, by"):
        tenflex.export(network, tmp_path / "small.pt2", x)
    assert list(tmp_path.iterdir()) == []


def test_bad_calls(generator, x, tmp_path):
    network = Around(generator, BSpline(8))
    with pytest.raises(ValueError, match="must be in eval mode"):
        tenflex.export(network.train(), tmp_path / "small.pt2", x)
    network.eval()
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1, got 0"):
        tenflex.export(network, tmp_path / "small.pt2", x, batch=0)
    with pytest.raises(ValueError, match="int8 is there for"):
        tenflex.export(network, tmp_path / "small.pt2", x, int8=True)
    with pytest.raises(ValueError, match="a file in a folder that exists"):
        tenflex.export(network, tmp_path / "no" / "small.pt2", x)
    with pytest.raises(ValueError, match=r"ends in \.c, \.onnx, \.pte, \.pt2, got 'small\.xyz'$"):
        tenflex.export(network, tmp_path / "small.xyz", x)
    with pytest.raises(TypeError, match="expected a batch of network input"):
        tenflex.export(network, tmp_path / "small.pt2", [x, "x"])
    assert list(tmp_path.iterdir()) == []


class Named(nn.Module):
    """A network as transformers are: arguments by name, and answers with other things beside them."""

    def __init__(self, beside: bool = False) -> None:
        super().__init__()
        self.body, self.beside = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)), beside

    def forward(self, numbers, scale=None):
        answers = self.body(numbers) * (1 if scale is None else scale)
        if self.beside:
            return {"logits": answers, "hidden": numbers + 1}
        return {"answers": answers}


@formats
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("given", ["tensor", "tuple", "mapping"])
def test_networks_with_names_for_their_inputs_and_outputs(ending, options, beside, given, generator, tmp_path):
    numbers, scale = random(generator, 40, 6).float(), random(generator, 40, 1).float()
    forms = {"tensor": numbers, "tuple": (numbers, scale), "mapping": {"scale": scale, "numbers": numbers}}
    network, inputs = Named(beside).eval(), forms[given]
    solver = tenflex.solvers.ConstrainedALS(2)
    result = tenflex.compress(network, [inputs], {"body": tenflex.Block(4, basis=BSpline(6))}, solver=solver)
    path = tmp_path / f"small.{ending}"
    exported = tenflex.export(result, path, inputs, tolerance=1e-9, **options)
    assert exported.difference < 1e-5
    order = {"tensor": (numbers,), "tuple": (numbers, scale), "mapping": (scale, numbers)}[given]
    fresh = tuple(one[:7] + 0.5 for one in order)
    named = dict(zip(("scale", "numbers"), fresh, strict=True)) if given == "mapping" else None
    with torch.no_grad():
        wanted = result.model(*fresh) if named is None else result.model(**named)
    found = format_of(path).load(path).outputs(fresh)
    torch.testing.assert_close(found, wanted["logits" if beside else "answers"], rtol=1e-4, atol=1e-4)
    timed = bench(network, result.model, inputs, runtimes=(), batches=(1, 50), seconds=0.01)
    assert {one.network for one in timed.timings} == {"original", "compressed"}


def test_names_of_inputs_are_those_of_the_network(generator, tmp_path):
    inputs = {"scale": random(generator, 9, 1).float(), "numbers": random(generator, 9, 6).float()}
    tenflex.export(Named().eval(), tmp_path / "small.pt2", inputs)
    program = torch.export.load(tmp_path / "small.pt2")
    assert program.graph_signature.user_inputs == ("scale", "numbers")


class Branches(nn.Module):
    """Another way for some inputs, or for some numbers of them."""

    def __init__(self, by_size: bool) -> None:
        super().__init__()
        self.map, self.by_size = nn.Linear(6, 3), by_size

    def forward(self, x):
        return self.map(x if (len(x) > 5 if self.by_size else x.sum() > 0) else x + 1)


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=onnx), pytest.param("pte", marks=executorch)])
def test_what_is_no_one_graph_is_told_in_a_line(ending, by_size, generator, tmp_path, capfd):
    network = Branches(by_size).eval()
    with pytest.raises(ValueError, match=r"torch\.export cannot read the network as one graph: .* use torch\.where"):
        tenflex.export(network, tmp_path / f"small.{ending}", random(generator, 20, 6).float())
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


class Shared(nn.Module):
    """Positions mixed by weights that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3)

    def forward(self, x, weights):
        return self.map(torch.softmax(weights, -1) @ x).mean(1)


@formats
def test_an_input_that_all_samples_share(ending, options, generator, tmp_path):
    x, weights = random(generator, 40, 6, 4).float(), random(generator, 6, 6).float()
    network, path = Shared().eval(), tmp_path / f"small.{ending}"
    assert tenflex.export(network, path, {"x": x, "weights": weights}, **options).difference < 1e-5
    found = format_of(path).load(path).outputs((x[:7], weights))
    torch.testing.assert_close(found, network(x[:7], weights), rtol=1e-4, atol=1e-5)
    timed = bench(network, network, (x, weights), runtimes=(), batches=(3, 50), seconds=0.01)
    assert {one.batch for one in timed.timings} == {3, 50}


@formats
@pytest.mark.parametrize(("samples", "rows"), [(1025, 6), (40, 1025)])
def test_more_than_are_computed_at_once(ending, options, samples, rows, generator, tmp_path):
    """Samples are cut into batches, what they share is not."""

    class Rows(nn.Module):
        def forward(self, x, shared):
            return x @ shared.mT.cos().mean(1, keepdim=True)

    given = random(generator, samples, 4).float(), random(generator, rows, 4).float()
    assert tenflex.export(Rows().eval(), tmp_path / f"small.{ending}", given, **options).difference < 1e-5


def test_batches_hold_all_samples_and_what_they_share():
    x, shared = torch.arange(7), torch.ones(9)
    batches = in_batches((x, shared), 3)
    assert [one.tolist() for one, _ in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all(other is shared for _, other in batches)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [pytest.param("onnx", marks=onnx), pytest.param("pte", marks=executorch)])
def test_ranges_of_whole_numbers_are_seen_on_all_inputs(ending, generator, tmp_path):
    network, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), random(generator, 513, 4).float()
    x[:256] /= 10
    found = [tenflex.export(network, tmp_path / f"small.{ending}", one, int8=True) for one in (x, x.flip(0))]
    assert found[0].difference == pytest.approx(found[1].difference, rel=0.01)
    assert found[0].difference < 0.05


class Starred(nn.Module):
    def forward(self, *several):
        return several[0] - several[1]


class AnyNames(nn.Module):
    def forward(self, **named):
        return named["a.b"] - named["class"]


class Decisions(nn.Module):
    def forward(self, x, y):
        return x > y


@formats
@pytest.mark.parametrize("network", [Starred(), AnyNames(), Decisions()], ids=lambda one: type(one).__name__)
def test_inputs_without_names_and_decisions(ending, options, network, generator, tmp_path):
    if isinstance(network, Decisions) and ending == "pte":
        pytest.skip("its numbers are of one kind")
    x, y = random(generator, 20, 4).float(), random(generator, 20, 4).float()
    given = {"class": y, "a.b": x} if isinstance(network, AnyNames) else (x, y)
    found = tenflex.export(network.eval(), tmp_path / f"small.{ending}", given, **options)
    assert found.difference < 1e-6
    assert (found.agreement is None) == isinstance(network, Decisions)


def test_of_several_outputs_none_is_chosen(generator, tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return {"mean": x, "spread": x.exp()}

    with pytest.raises(ValueError, match=r"a network of one output, or with logits among them, got .*wrap it"):
        tenflex.export(Two().eval(), tmp_path / "two.pt2", random(generator, 9, 6).float())


def test_what_whole_numbers_ruin_is_told(generator, tmp_path):
    """Of outputs that are no scores, too: one number beside which another is a million times as large inside."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1e3, 1.0], [1e3, 0.0]]))
        network[1].weight.copy_(torch.tensor([[1.0, -1.0]]))
    x = random(generator, 200, 2).float()
    with pytest.warns(UserWarning, match=r"int8 gives outputs that differ by up to \d+ % of the largest"):
        found = tenflex.export(network, tmp_path / "ruined.c", x, int8=True)
    assert found.difference > 0.1
    assert found.agreement is None


def test_places_of_an_image_are_no_classes(generator, tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    assert tenflex.export(network, tmp_path / "image.pt2", random(generator, 9, 1, 6, 6).float()).agreement is None


@pytest.mark.skipif(find_spec("executorch") is not None, reason="executorch is installed")
def test_what_is_missing_is_named(generator, x, tmp_path):
    with pytest.raises(ImportError, match=r"pip install 'tenflex\[executorch\]'"):
        tenflex.export(Around(generator, BSpline(8)).eval(), tmp_path / "small.pte", x)
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_exported_within_a_tolerance(lenet, digits, tmp_path):
    blocks = {"fc1:fc3": tenflex.Block(rank=6, factor=4)}
    result = tenflex.compress(lenet, digits.train_images[:150], blocks, solver=tenflex.solvers.ConstrainedALS(2))
    exactly = tenflex.export(result, tmp_path / "small.pt2", digits.train_images[:50])
    assert exactly.difference < 2e-6
    tenflex.export(result, tmp_path / "near.pt2", digits.train_images[:50], tolerance=0.5)
    path = Path(tmp_path / "near.pt2")
    outputs = format_of(path).load(path).outputs((digits.train_images[:50],))
    assert 1e-6 < (outputs - result.model(digits.train_images[:50])).abs().max() < 0.5 * 100


def test_an_original_that_a_runtime_does_not_take_leaves_the_ratio_open():
    def timing(network, runtime):
        return Timing(network, runtime, 1, 2e-4, 0.1, 1e-4, None)

    found = Bench((timing("original", "pytorch"), timing("compressed", "c")), {"original, c": "no tanh"}, threads=1)
    assert [one["ratio"] for one in found.to_dict()["timings"]] == [1, None]
    assert found.to_dict()["missing"] == {"original, c": "no tanh"}
