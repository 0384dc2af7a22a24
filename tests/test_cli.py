"""The command line: what it writes, what it prints, and how it fails."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import tenflex
from tenflex.bases import basis_from_dict
from tenflex.cli import compress as compress_command
from tenflex.cli.app import app
from tenflex.cli.bars import Bars
from tenflex.cli.blocks import format_block, parse_basis, parse_blocks
from tenflex.cli.errors import InputError
from tenflex.cli.export import _table
from tenflex.cli.options import command, option
from tenflex.cli.readers import Names, read_bytes
from tenflex.cli.settings import Settings
from tenflex.cli.solver_names import NAMED
from tenflex.cli.tensors import load_tensor
from tenflex.coordinates import Downstream
from tenflex.evaluate import comparison
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.latency import Latency, latency
from tenflex.export.bench import Bench, Timing
from tenflex.planning import choices, planner
from tenflex.planning.plan import DEFAULT_BASIS
from tenflex.planning.sizes import block_size, first_try
from tenflex.planning.survey import survey
from tenflex.progress import Progress
from tenflex.solvers import Chain, ConstrainedALS, JacobianCPD, Refine, StructuredCPD, prepare
from tenflex.solvers.default import start
from tenflex.storage.files import is_leftover

pytestmark = pytest.mark.usefixtures("few_steps")

TOY = """
import torch
from torch import nn


class Mlp(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, hidden), nn.Linear(hidden, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(5)
        self.q, self.k = nn.Linear(5, 5), nn.Linear(5, 5)
        self.mlp = nn.Sequential(nn.Linear(5, 20), nn.GELU(), nn.Linear(20, 5))

    def forward(self, x):
        x = self.norm(x)
        return x + self.mlp(torch.softmax(self.q(x) @ self.k(x).mT, -1) @ x)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Attention(), Attention()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def net():
    return seeded(Mlp)


def wide():
    return seeded(lambda: Mlp(9))


def transformer():
    return seeded(Transformer)


def tokens():
    return torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0))


def batches():
    for part in inputs().split(30):
        yield part, torch.zeros(len(part))


def inputs():
    return torch.randn(90, 12, generator=torch.Generator().manual_seed(0))


def fails():
    raise RuntimeError("boom\\nbang")


def leaves():
    raise SystemExit(3)


def interrupted():
    raise KeyboardInterrupt


def number():
    return 3


def mapping():
    return {"x": inputs()}


def unknown():
    return {"x": inputs(), "y": inputs()}


VERSION = "1"
"""

PAIRS = """

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = Mlp()

    def forward(self, left, right, *, scale=1.0):
        y = self.mlp(left * right)
        return {"more": [y, y.sum()], "decision": y.argmax(-1)}


def two():
    return seeded(Two)


def pairs():
    for part in inputs().split(30):
        yield part, part + 1, torch.zeros(len(part))
"""

BASIS = "Monomial(2)"
"""The cheapest basis: these tests are of the command line."""

PLAIN = ["compress", "toy:net", "--inputs", "inputs.npy", "--block", "fc1:fc3,rank=2", "--basis", BASIS]
COMPRESS = [*PLAIN, "--solver", "ConstrainedALS(3)"]
LIBRARY = {"basis": tenflex.Monomial(2), "solver": ConstrainedALS(3)}
"""What `COMPRESS` asks for, and the quickest solver: `PLAIN` leaves it to the library."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command in this process, in a folder with a network in `toy.py` and inputs in `inputs.npy`."""
    write_toy(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(comparison, "latency", partial(latency, seconds=0.02))  # half a second would tell no more here

    def call(*arguments: str) -> Outcome:
        sys.modules.pop("toy", None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(list(arguments), prog_name="tenflex")
        captured = capsys.readouterr()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return Outcome(code or 0, captured.out, captured.err)

    yield call
    sys.modules.pop("toy", None)


def write_toy(folder: Path) -> None:
    folder.joinpath("toy.py").write_text(TOY)
    generator = torch.Generator().manual_seed(0)
    np.save(folder / "inputs.npy", torch.randn(90, 12, generator=generator, dtype=torch.float64).numpy())


def spawn(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Run a command in a process of its own."""
    source = str(Path(tenflex.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "tenflex", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


RESULT: dict[str, bytes] = {}
"""The files of `compressed`."""


def compressed(run: Run, folder: str = "small") -> None:
    """What `COMPRESS` writes, computed for the first test that needs it."""
    if not RESULT:
        done = run(*COMPRESS, "--out", "first")
        assert done.code == 0, done.err
        RESULT.update(contents(Path("first")))
        shutil.rmtree("first")
    Path(folder).mkdir()
    for name, text in RESULT.items():
        Path(folder, name).write_bytes(text)


def toy() -> Any:
    """The module that commands import; only after one did."""
    return sys.modules["toy"]


def test_compress_does_what_the_library_does(run: Run) -> None:
    done = run(*PLAIN, "--seed", "3", "--coupling", "2", "--samples", "80", "--out", "small")
    assert done.code == 0, done.err
    assert done.err == ""  # no bars where there is no terminal
    assert "Saved in small" in done.out
    inputs = torch.from_numpy(np.load("inputs.npy")).float()
    blocks = {"fc1:fc3": tenflex.Block(2)}
    model = toy().net().eval()
    expected = tenflex.compress(model, inputs, blocks, samples=80, basis=tenflex.Monomial(2), coupling=2.0, seed=3)
    with torch.no_grad():
        assert torch.equal(tenflex.load("small", model)(inputs), expected.model(inputs))
        assert torch.equal(tenflex.load("small", trust="toy:net")(inputs), expected.model(inputs))


def test_resolved_settings_give_the_same_bits_again(run: Run) -> None:
    solver = "Chain((ConstrainedALS(3), Refine(20)))"
    assert run(*PLAIN, "--seed", "3", "--solver", solver, "--memory", "2 GiB", "--out", "small").code == 0
    assert yaml.safe_load(Path("small/run.yaml").read_text()) == {
        "model": "toy:net",
        "inputs": "inputs.npy",
        "out": "small",
        "blocks": {"fc1:fc3": {"rank": 2}},
        "samples": 2000,
        "basis": "Monomial(degree=2)",
        "lost_energy": 1e-3,
        "held_out": 0.15,
        "memory": 2**31,
        "solver": repr(Chain((ConstrainedALS(3), Refine(20)))),
        "seed": 3,
        "copies": 0,
    }
    assert run("compress", "--config", "small/run.yaml", "--out", "again").code == 0
    first, second = (load_file(f"{folder}/model.safetensors") for folder in ("small", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_options_win_over_the_file(run: Run) -> None:
    settings = {
        "model": "toy:wide",
        "inputs": "toy:batches",
        "blocks": {"fc1": {"rank": 4}, "fc2": {"rank": 3}},
        "basis": {"family": "Monomial", "degree": 2},
        "seed": 5,
        "out": "small",
    }
    Path("run.json").write_text(json.dumps(settings))
    done = run("compress", "toy:net", "--config", "run.json", "--block", "fc1:fc3,rank=1", "--json")
    assert done.code == 0, done.err
    resolved = json.loads(done.out)["settings"]
    assert resolved["model"] == "toy:net"
    assert resolved["inputs"] == "toy:batches"
    assert resolved["seed"] == 5
    assert resolved["basis"] == "Monomial(degree=2)"
    assert resolved["blocks"] == {"fc1:fc3": {"rank": 1}}


def test_json_is_all_there_is_on_stdout(run: Run) -> None:
    done = run(*COMPRESS, "--out", "small", "--json")
    printed = json.loads(done.out)
    assert (
        printed["report"]["model"]["parameters"]
        == json.loads(Path("small/report.json").read_text())["model"]["parameters"]
    )
    assert printed["report"]["model"]["parameters"]["before"] == stored_numbers(toy().net())
    assert printed["out"] == "small"
    assert printed["report"] == json.loads(Path("small/report.json").read_text())
    assert 0 < printed["report"]["model"]["output_error"] == printed["report"]["fidelity"]["relative_error"] < 1
    assert 0 < printed["report"]["fidelity"]["balanced_agreement"] <= 1


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_blocks_that_grow_are_told_of(run: Run, monkeypatch: pytest.MonkeyPatch, json_too: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    block = ["--block", "fc2:fc3,rank=9", "--basis", BASIS, "--solver", "ConstrainedALS(2)"]
    done = run("compress", "toy:net", "--inputs", "inputs.npy", *block, "--out", "small", *json_too)
    assert done.code == 0, done.err
    line = r"^fc2:fc3 grew to \d+ % of its parameters: lower rank or factor"
    assert re.search(line, done.err if json_too else done.out, re.MULTILINE)
    if json_too:
        assert re.search(line, json.loads(done.out)["report"]["warnings"][0])
    else:
        assert max(map(len, done.out.splitlines())) <= 80
        assert "averaged over its classes" in " ".join(done.out.split())


def test_wildcards_are_resolved(run: Run) -> None:
    blocks = ["--block", "layers.*.mlp,rank=2,basis=Monomial(2)", "--solver", "ConstrainedALS(2)"]
    done = run("compress", "toy:transformer", "--inputs", "toy:tokens", *blocks, "--out", "small")
    assert done.code == 0, done.err
    written = yaml.safe_load(Path("small/run.yaml").read_text())["blocks"]
    assert written == {f"layers.{one}.mlp": {"rank": 2, "basis": "Monomial(degree=2)"} for one in (0, 1)}


def test_the_device_that_is_named(run: Run) -> None:
    """Here the processor; it is part of what a run is, and stands in its file."""
    run(*COMPRESS, "--out", "small")
    run(*COMPRESS, "--out", "same", "--device", "cpu")
    first, second = (load_file(Path(one, "model.safetensors")) for one in ("small", "same"))
    assert first.keys() == second.keys()
    assert all(torch.equal(one, second[name]) for name, one in first.items())
    assert "device: cpu" in Path("same", "run.yaml").read_text()


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_weights_from_a_file_replace_those_of_the_factory(run: Run, ending: str) -> None:
    assert run("inspect", "toy:net").code == 0
    model = toy().Mlp()
    save = save_file if ending == ".safetensors" else torch.save
    save(model.state_dict(), f"weights{ending}")
    options = [*COMPRESS, "--out", "small", "--weights", f"weights{ending}"]
    assert run(*options).code == 0
    inputs = torch.from_numpy(np.load("inputs.npy")).float()
    blocks = {"fc1:fc3": tenflex.Block(2)}
    expected = tenflex.compress(model.eval(), inputs, blocks, **LIBRARY)
    saved = load_file("small/model.safetensors")
    assert all(torch.equal(saved[name], one) for name, one in expected.model.state_dict().items())


CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], list[str]]] = {
    "state_dict": (lambda state: {"state_dict": state, "epoch": 3}, ["in its entry 'state_dict' are read"]),
    "model": (lambda state: {"model": state, "optimizer": {"lr": 0.1}}, ["in its entry 'model' are read"]),
    "model_state_dict": (lambda state: {"model_state_dict": state}, ["in its entry 'model_state_dict' are read"]),
    "two deep": (
        lambda state: {"model": {"state_dict": state, "epoch": 3}},
        ["in its entry 'model' / 'state_dict' are read"],
    ),
    "DataParallel": (lambda state: under("module.", state), ["begin with 'module.', which is left out"]),
    "torch.compile": (lambda state: under("_orig_mod.", state), ["begin with '_orig_mod.', which is left out"]),
    "all of it": (
        lambda state: {"state_dict": under("module._orig_mod.", state), "epoch": 3},
        ["'state_dict' are read", "'module.', which is left out", "'_orig_mod.', which is left out"],
    ),
}


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": one for name, one in state.items()}


@pytest.mark.parametrize(("wrap", "said"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_weights_come_out_of_checkpoints(
    run: Run, wrap: Callable[[dict[str, Any]], dict[str, Any]], said: list[str]
) -> None:
    assert run("inspect", "toy:net").code == 0
    model = toy().Mlp()
    torch.save(wrap(model.state_dict()), "last.pt")
    done = run(*COMPRESS, "--out", "small", "--weights", "last.pt")
    assert done.code == 0, done.err
    assert [line.partition("last.pt ")[2] for line in done.err.splitlines() if "last.pt" in line] != []
    for text in said:
        assert text in done.err
    saved = load_file("small/model.safetensors")
    inputs = torch.from_numpy(np.load("inputs.npy")).float()
    expected = tenflex.compress(model.eval(), inputs, {"fc1:fc3": tenflex.Block(2)}, **LIBRARY)
    assert all(torch.equal(saved[name], one) for name, one in expected.model.state_dict().items())


def test_a_prefix_that_is_the_name_of_a_module_stays(run: Run) -> None:
    with Path("toy.py").open("a") as file:
        file.write("\n\ndef wrapped():\n    net = nn.Module()\n    net.module = Mlp()\n    return net\n")
    assert run("inspect", "toy:net").code == 0
    torch.save(under("module.", toy().Mlp().state_dict()), "whole.pt")
    done = run("inspect", "toy:wrapped", "--weights", "whole.pt")
    assert done.code == 0, done.err
    assert done.err == ""


@pytest.mark.parametrize(
    "text", ["a.npz:x", "one.npz", "a.safetensors:x", "a.pt:x", "one.pt", "toy:inputs", "toy:array"]
)
def test_inputs_come_from_files_and_factories(run: Run, text: str) -> None:
    with Path("toy.py").open("a") as file:
        file.write("\n\ndef array():\n    return inputs().numpy()\n")
    assert run("inspect", "toy:net").code == 0
    x = toy().inputs()
    np.savez("a.npz", x=x.double().numpy(), y=np.zeros(3))
    np.savez("one.npz", x=x.numpy())
    save_file({"x": x, "y": torch.zeros(3)}, "a.safetensors")
    torch.save({"x": x, "y": 3}, "a.pt")
    torch.save(x, "one.pt")
    done = run("inspect", "toy:net", "--inputs", text, "--json")
    assert done.code == 0, done.err
    spans = {one["name"]: one for one in json.loads(done.out)["candidates"]}
    assert spans["fc1:fc3"]["macs"] == 12 * 8 + 8 * 6 + 6 * 3


BAD = {
    "no such module": (["toys:net"], r"there is no module 'toys': expected one that is installed or in the current"),
    "no colon": (["toy"], r"expected the network as package.module:name, got 'toy'"),
    "no such factory": (["toy:nett"], r"toy has no 'nett'; did you mean 'net'"),
    "broken module": (["broken:net"], r"importing broken failed: ZeroDivisionError: division by zero"),
    "missing import": (["needs:net"], r"importing needs failed: ModuleNotFoundError: No module named 'nowhere'"),
    "failing factory": (["toy:fails"], r"toy:fails was called without arguments and failed: RuntimeError: boom bang"),
    "leaving factory": (
        ["toy:leaves"],
        r"toy:leaves was called without arguments and ended the program: SystemExit\(3",
    ),
    "leaving module": (["leaves:net"], r"importing leaves ended the program: SystemExit\('bye'\); put what a script"),
    "no network": (["toy:number"], r"toy:number returned int: expected a torch.nn.Module"),
    "no function": (["toy:VERSION"], r"toy:VERSION is str: expected a torch.nn.Module or a function"),
    "exported": (["net.pt2"], r"net.pt2 is an exported program, .* name the Python code of the network"),
    "no device": (["toy:net", "--device", "toaster"], r"--device toaster cannot be used \(Expected one of cpu, cuda,"),
    "device without numbers": (
        ["toy:net", "--device", "meta"],
        r"--device meta cannot be used \(Cannot copy out of meta",
    ),
    "no weights file": (["toy:net", "--weights", "no.pt"], r"no.pt does not exist: expected a file, seen from "),
    "weights ending": (["toy:net", "--weights", "toy.py"], r"expected weights as a .safetensors or .pt file, got"),
    "no state dict": (["toy:net", "--weights", "x.pt"], r"x.pt holds Tensor: expected a state dict"),
    "checkpoint": (
        ["toy:net", "--weights", "checkpoint.pt"],
        r"checkpoint.pt holds more than tensors, such as 'epoch': .* alone or in one entry state_dict, model,",
    ),
    "two states": (
        ["toy:net", "--weights", "states.pt"],
        r"states.pt holds several states \(state_dict, model; name one, as",
    ),
    "no such entry": (
        ["toy:net", "--weights", "states.pt:modell"],
        r"states.pt has no entry 'modell'; did you mean 'm",
    ),
    "whole weights": (
        ["toy:net", "--weights", "whole.pt"],
        r"whole.pt has weights of torch.int8 for 'fc1.weight', the",
    ),
    "complex weights": (
        ["toy:net", "--weights", "complex.pt"],
        r"complex.pt has weights of torch.complex64 for 'fc1.w",
    ),
    "no state inside": (["toy:net", "--weights", "within.pt"], r"within.pt holds more than tensors, such as 'epoch'"),
    "missing weight": (["toy:net", "--weights", "part.pt"], r"part.pt has no weights for 'fc1.bias'; did you mean"),
    "unknown weight": (["toy:net", "--weights", "more.pt"], r"more.pt has weights for 'fc4', which the network"),
    "other shape": (["toy:wide", "--weights", "net.pt"], r"net.pt has weights of shape \(8, 12\) for 'fc1"),
    "damaged safetensors": (["toy:net", "--weights", "damaged.safetensors"], r"damaged.safetensors cannot be"),
    "damaged pt": (["toy:net", "--weights", "damaged.pt"], r"damaged.pt cannot be read: "),
    "pickle in pt": (["toy:net", "--weights", "evil.pt"], r"evil.pt cannot be read: Weights only load failed"),
}

BAD_INPUTS = {
    "no such file": ("no.npy", r"no.npy does not exist: expected a file, seen from "),
    "folder": ("folder.npy", r"folder.npy is a folder: expected a file"),
    "unknown ending": ("toy.py", r"expected inputs as a .npy, .npz, .safetensors or .pt file .*, got 'toy.py'"),
    "which array": ("two.npz", r"two.npz holds 2 arrays \(images, labels\): name one, as two.npz:NAME"),
    "no such array": ("two.npz:image", r"two.npz has no array 'image'; did you mean 'images'"),
    "only one array": ("inputs.npy:x", r"inputs.npy holds a single array: leave out ':x'"),
    "no tensor": ("checkpoint.pt:epoch", r"checkpoint.pt:epoch holds int: expected a tensor"),
    "texts": ("texts.npy", r"texts.npy holds an array of <U1: expected numbers that torch knows"),
    "pickle in npy": ("objects.npy", r"objects.npy cannot be read: Object arrays cannot be loaded"),
    "pickle in npz": ("objects.npz:x", r"objects.npz cannot be read: Object arrays cannot be loaded"),
    "damaged npz": ("damaged.npz", r"damaged.npz cannot be read: "),
    "failing factory": ("toy:fails", r"toy:fails was called without arguments and failed: RuntimeError: boom bang"),
    "no inputs": ("toy:number", r"expected a tensor or an iterable of batches of tensors, got 3"),
    "other width": ("two.npz:images", r"Mlp fails on the input float32 \(\d+, 4\): RuntimeError: mat1 and mat2"),
    "bytes": ("uint8.npy", r"Mlp fails on the input uint8 .* for images as in training, such as x.float\(\) / 255"),
    "not finite": ("nan.npy", r"the inputs must be finite, but 1 of 1080 numbers are NaN or infinite"),
}

BAD_OPTIONS = {
    "block without rank": (["--block", "fc1:fc3"], r"expected a block as NAME.*, got 'fc1:fc3' without a"),
    "unknown setting of a block": (["--block", "fc1,rnk=4"], r"got 'rnk=4' in 'fc1,rnk=4'; did you mean 'rank'"),
    "setting twice": (["--block", "fc1,rank=4,rank=5"], r"rank is given twice in 'fc1,rank=4,rank=5': leave one out"),
    "block twice": (["--block", "fc1,rank=4", "--block", "fc1,rank=5"], r"--block names 'fc1' twice: leave one out"),
    "no number": (["--block", "fc1,rank=x"], r"rank must be a whole number, got 'x' in 'fc1,rank=x'"),
    "no such block": (
        ["--block", "fc1:fc4,rank=4"],
        r"expected the name of a module of Mlp, got 'fc4'; did you mean 'fc",
    ),
    "rank of a layer": (["--block", "fc1,rank=4--4"], r"rank must be a whole number, got '' in 'fc1,rank=4--4'"),
    "rank 0": (["--block", "fc1,rank=0"], r"rank must be a whole number of at least 1, got 0"),
    "basis of a block": (["--block", "fc1,rank=4,basis=BSplin(4)"], r"no basis is called 'BSplin'; did you"),
    "basis": (["--basis", "BSpline(2)"], r"count must be a whole number of at least 4, got 2"),
    "basis is not evaluated": (["--basis", "BSpline(open('x'))"], r"expected a basis such as BSpline\(10\)"),
    "basis syntax": (["--basis", "BSpline("], r"expected a basis such as BSpline\(10\) or .*, got 'BSpline\('"),
    "basis settings": (["--basis", "Monomial(2, 3)"], r"Monomial has only the settings degree"),
    "basis setting twice": (["--basis", "Monomial(2, degree=3)"], r"'degree' is given twice"),
    "seed": (["--seed", "-1"], r"seed must be a whole number of at least 0, got -1"),
    "foreign folder": (["--out", "folder.npy"], r"folder.npy holds other files than an earlier result"),
    "file": (["--out", "toy.py"], r"toy.py is a file: choose a folder to save in"),
    "below a file": (["--out", "toy.py/small"], r"toy.py/small cannot be written: Not a directory; choose"),
    "no config": (["--config", "no.yaml"], r"no.yaml cannot be read: No such file or directory"),
    "not YAML": (["--config", "bad.yaml"], r"bad.yaml is not a file of YAML or JSON: "),
    "not JSON": (["--config", "bad.json"], r"bad.json is not a file of YAML or JSON: "),
    "not text": (["--config", "damaged.npz"], r"damaged.npz is not a file of YAML or JSON: "),
    "list": (["--config", "list.yaml"], r"list.yaml must hold settings by name \(model, weights, .*\), got list"),
    "unknown setting": (["--config", "near.yaml"], r"near.yaml has an unknown setting 'sample'; did you mean"),
    "unknown in a block": (["--config", "block.yaml"], r"block 'fc1' has no setting 'ranks'; did you mean 'rank'"),
    "twice": (["--config", "twice.yaml"], r"the setting 'rank' is there twice: leave one out"),
    "twice in JSON": (["--config", "twice.json"], r"the setting 'seed' is there twice: leave one out"),
    "weights no text": (["--config", "text.yaml"], r"weights must be a text, got 3"),
}


def write_bad_files(folder: Path) -> None:
    """Whatever the tables above name."""
    state = {"fc1.weight": torch.zeros(8, 12), "fc1.bias": torch.zeros(8), "fc2.weight": torch.zeros(6, 8)}
    state |= {"fc2.bias": torch.zeros(6), "fc3.weight": torch.zeros(3, 6), "fc3.bias": torch.zeros(3)}
    torch.save(state, folder / "net.pt")
    torch.save({"fc1.weight": state["fc1.weight"]}, folder / "part.pt")
    torch.save({**state, "fc4": torch.zeros(1)}, folder / "more.pt")
    torch.save(torch.zeros(3), folder / "x.pt")
    torch.save({"epoch": 3, "state": state}, folder / "checkpoint.pt")
    torch.save({"epoch": 3, "state_dict": state, "model": state}, folder / "states.pt")
    torch.save({"model": {"epoch": 3}}, folder / "within.pt")
    torch.save({**state, "fc1.weight": state["fc1.weight"].to(torch.int8)}, folder / "whole.pt")
    torch.save({**state, "fc1.weight": state["fc1.weight"].to(torch.complex64)}, folder / "complex.pt")
    (folder / "leaves.py").write_text("import sys; sys.exit('bye')")
    torch.save(Evil(), folder / "evil.pt")
    for name in ("damaged.safetensors", "damaged.pt", "damaged.npz"):
        (folder / name).write_bytes(b"\xff\xfe\x00 nothing of the kind")
    (folder / "folder.npy").mkdir()
    (folder / "folder.npy" / "letter.txt").write_text("mine")
    np.savez(folder / "two.npz", images=np.zeros((9, 4), np.float32), labels=np.zeros(9))
    np.save(folder / "texts.npy", np.array(["a", "b"]))
    np.save(folder / "objects.npy", np.array([Evil()], dtype=object))
    np.savez(folder / "objects.npz", x=np.array([Evil()], dtype=object))
    inputs = np.load(folder / "inputs.npy")
    inputs[3, 4] = np.nan
    np.save(folder / "nan.npy", inputs)
    np.save(folder / "uint8.npy", np.ones((9, 12), np.uint8))
    (folder / "broken.py").write_text("1 / 0")
    (folder / "needs.py").write_text("import nowhere")
    (folder / "bad.yaml").write_text("blocks: [")
    (folder / "bad.json").write_text("{blocks: 3}")
    (folder / "list.yaml").write_text("- 1")
    (folder / "twice.yaml").write_text("blocks: {fc1: {rank: 3, rank: 4}}")
    (folder / "twice.json").write_text('{"seed": 1, "seed": 2}')
    (folder / "near.yaml").write_text("sample: 3")
    (folder / "text.yaml").write_text("weights: 3")
    (folder / "block.yaml").write_text("blocks: {fc1: {ranks: 3}}")


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("unpickled"), "")


def require_clean(done: Outcome, message: str) -> None:
    """One line that matches, exit code 2, nothing on stdout, no pickle loaded, and nothing written."""
    assert re.search(message, done.err), done.err
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert not Path("unpickled").exists()
    assert not Path("small").exists()


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_network(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    write_bad_files(tmp_path)
    require_clean(run("inspect", *arguments), message)


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(run: Run, tmp_path: Path, inputs: str, message: str) -> None:
    write_bad_files(tmp_path)
    require_clean(
        run("compress", "toy:net", "--inputs", inputs, "--block", "fc1:fc3,rank=2", "--out", "small"), message
    )


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(run: Run, tmp_path: Path, options: list[str], message: str) -> None:
    write_bad_files(tmp_path)
    given = {"--inputs": ["inputs.npy"], "--block": ["fc1:fc3,rank=2"], "--out": ["small"]}
    if "block.yaml" in options:
        del given["--block"]
    given = {name: values for name, values in given.items() if name not in options}
    rest = [part for name, values in given.items() for value in values for part in (name, value)]
    require_clean(run("compress", "toy:net", *rest, *options), message)


def test_errors_are_told_together(run: Run, tmp_path: Path) -> None:
    write_bad_files(tmp_path)
    done = run("compress", "toy:nett", "--inputs", "no.npy", "--block", "fc1:fc3,rank=2", "--out", "folder.npy")
    assert done.code == 2
    first, second, third = done.err.splitlines()
    assert first.startswith("error: toy has no 'nett'")
    assert second.startswith("error: no.npy does not exist")
    assert third.startswith("error: folder.npy holds other files")
    done = run("compress", "toy:net")
    assert done.err.splitlines()[0].startswith("error: inputs is missing: give --inputs")
    assert done.err.splitlines()[1].startswith("error: out is missing: give --out")


def test_one_entry_of_a_checkpoint(run: Run, tmp_path: Path) -> None:
    assert run("inspect", "toy:net").code == 0
    state = toy().net().state_dict()
    torch.save({"epoch": 3, "ema": {"net": state}, "model": {**state, "fc1.bias": torch.ones(8)}}, "ema.pt")
    errors = {}
    for name, weights in {
        "own": [],
        "entry": ["--weights", "ema.pt:ema.net"],
        "model": ["--weights", "ema.pt"],
    }.items():
        done = run(*COMPRESS, *weights, "--out", name, "--json")
        assert done.code == 0, done.err
        errors[name] = json.loads(done.out)["report"]["model"]["output_error"]
    assert errors["own"] == errors["entry"] != errors["model"]


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f4"])
def test_byte_order_of_arrays(run: Run, tmp_path: Path, dtype: str) -> None:
    """Arrays in the order of another machine hold the same numbers."""
    inputs = np.load("inputs.npy")
    np.save("big.npy", inputs.astype(dtype))
    assert torch.equal(load_tensor("big.npy").float(), torch.from_numpy(inputs).float())


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (
            "toy:net",
            r"model is missing: name the network as package.module:name, or set `model:` in the file of --config",
        ),
        ("--inputs", r"inputs is missing: give --inputs, or set `inputs:`"),
        ("--block", r"no block is named: give --block NAME,rank=40 or --budget 5%, or set `blocks:`"),
        ("--out", r"out is missing: give --out, or set `out:`"),
    ],
)
def test_what_has_no_default_is_asked_for(run: Run, left: str, message: str) -> None:
    arguments = [*COMPRESS, "--out", "small"]
    place = arguments.index(left)
    del arguments[place : place + (2 if left.startswith("--") else 1)]
    require_clean(run(*arguments), message)


def test_usage_errors_have_code_2(run: Run) -> None:
    done = run(*COMPRESS, "--samples", "many", "--out", "small")
    assert done.code == 2
    assert "--samples" in done.err
    assert run("compres").code == 2
    assert run("evaluate").code == 2


def test_folder_is_checked_before_the_work(run: Run) -> None:
    """Together with all that is named and cannot be used."""
    Path("toy.py").write_text("raise SystemError('the network was loaded')")
    errors = run(*COMPRESS, "--out", "toy.py/small").err.splitlines()
    assert [one.partition(":")[0] for one in errors] == ["error", "error"]
    assert "the network was loaded" in errors[0]
    assert "cannot be written" in errors[1]


def test_failure_while_running(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(compress_command, "run", fail)
    done = run(*COMPRESS, "--out", "small")
    assert (done.code, done.out, done.err) == (1, "", "error: RuntimeError: out of luck (--debug shows where)\n")
    traced = run(*COMPRESS, "--out", "small", "--debug")
    assert traced.code == 1
    assert "Traceback (most recent call last)" in traced.err
    assert traced.err.endswith("error: RuntimeError: out of luck (--debug shows where)\n")
    assert not Path("small").exists()


def test_failure_to_write_is_not_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compress_command, "write_settings", full)
    done = run(*COMPRESS, "--out", "small")
    assert done.code == 1
    assert done.err == "error: [Errno 28] No space left on device\n"


def test_interrupt(run: Run) -> None:
    done = run("compress", "toy:net", "--inputs", "toy:interrupted", "--block", "fc1,rank=2", "--out", "small")
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")


def test_inspect_suggests_what_compress_takes(run: Run) -> None:
    done = run("inspect", "toy:transformer", "--inputs", "toy:tokens", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    blocks = {one["name"]: one for one in found["candidates"]}
    mlp = blocks["layers.*.mlp"]
    assert (mlp["count"], mlp["layers"], mlp["parameters"], mlp["sizes"]) == (2, 2, 225, [5, 5])
    assert mlp["macs"] == 4 * (5 * 20 + 20 * 5)  # of four tokens
    assert mlp["share"] == pytest.approx(450 / found["parameters"])
    assert blocks["layers.*.mlp.0"]["obstacle"] is None
    assert "nothing that leaves 'layers.0.q' arrives at 'layers.0.k'" in blocks["layers.*.q:layers.*.k"]["obstacle"]
    assert found["others"] == {"LayerNorm": 20}
    [suggestion] = found["suggestions"]
    option = shlex.split(suggestion["option"])
    assert option == ["--block", "layers.*.mlp,rank=2"]
    quick = ["--basis", BASIS, "--solver", "ConstrainedALS(2)"]
    done = run("compress", "toy:transformer", "--inputs", "toy:tokens", *option, *quick, "--out", "s")
    assert done.code == 0, done.err


def test_inspect_in_words(run: Run) -> None:
    with_inputs = run("inspect", "toy:transformer", "--inputs", "toy:tokens").out
    assert "layers.*.mlp (x2)" in with_inputs
    assert "Why some cannot be replaced:\n  layers.*.q:layers.*.k\n" in with_inputs
    assert "Parameters that are not in linear layers, and so in no block: LayerNorm 20." in with_inputs
    assert "  --block 'layers.*.mlp,rank=2'\n" in with_inputs
    assert "Give --inputs" not in with_inputs
    without = run("inspect", "tenflex.demo.networks:LeNet300").out
    assert "  --block fc1:fc3,rank=40,factor=15\n      5.0 % kept (20x): 266,610 -> 13,210 parameters\n" in without
    assert "  tenflex compress tenflex.demo.networks:LeNet300 --inputs FILE --budget 5% --out small\n" in without
    assert "  --budget" not in run("inspect", "torch.nn:Identity").out
    assert "Give --inputs to see whether these blocks can be taken out of the network." in without
    assert "MACs" not in without
    assert "Nothing to suggest" in run("inspect", "torch.nn:Identity").out


@pytest.mark.parametrize(
    ("inputs", "outputs", "hidden"), [(784, 10, 300), (64, 64, 256), (384, 384, 1536), (30, 5, 40), (200, 10, 60)]
)
def test_first_try_keeps_what_it_says(inputs: int, outputs: int, hidden: int) -> None:
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).eval()
    [one] = survey(model, torch.randn(4, inputs)).suggestions
    assert one.suggestion is not None
    block = one.suggestion
    layer = tenflex.FlexibleLayer((inputs,), (outputs,), block.rank, tenflex.BSpline(10), block.factor)
    assert stored_numbers(layer) == block_size(block, inputs, outputs) == round(one.kept * one.parameters)
    most = 0.05 if inputs >= 4 * outputs else 0.25
    assert 0.7 * most < one.kept <= most or block.rank in (100, outputs)
    if inputs >= 4 * outputs:
        assert block.rank >= block.factor >= min(outputs, inputs)


def test_first_try_gives_up_where_nothing_is_saved() -> None:
    assert first_try(6, 4, 50) is None


def test_spans_of_long_rows() -> None:
    """The whole row and no pairs of neighbours; what has numbers for each feature does not end it."""
    layers = [nn.Linear(6, 6) for _ in range(6)]
    model = nn.Sequential(*layers[:5], nn.BatchNorm1d(6), layers[5]).eval()
    names = [one.name for one in survey(model, torch.randn(3, 6)).candidates]
    assert [name for name in names if ":" in name] == ["0:6"]


def test_evaluate_reports_what_the_library_measures(run: Run) -> None:
    compressed(run)
    assert run("inspect", "toy:net").code == 0
    model = toy().net().eval()
    inputs = torch.from_numpy(np.load("inputs.npy")).float()
    labels = model(inputs).argmax(-1)
    labels[:9] = (labels[:9] + 1) % 3
    np.save("labels.npy", labels.numpy())
    command = ["evaluate", "small", "toy:net", "--inputs", "inputs.npy", "--labels", "labels.npy"]
    done = run(*command, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    expected = tenflex.compress(model, inputs, {"fc1:fc3": tenflex.Block(2)}, **LIBRARY)
    close = expected.evaluate(inputs, labels)
    assert found["fidelity"] == {**asdict(close), "relative_error": pytest.approx(close.relative_error)}
    assert found["accuracy"] == pytest.approx(0.9)
    assert found["samples"] == 90
    assert found["after"]["parameters"] == stored_numbers(expected.model)
    assert [one["samples"] for one in found["latencies"]] == [1, 90]
    assert all(one["slower"] == (one["after"] > one["before"]) for one in found["latencies"])
    table = run(*command).out
    assert "90.00 %" in table
    assert "same decision, averaged over its classes" in table
    assert "time for 1 sample " in table
    assert "Times are medians, measured in turn on this machine with" in table


@pytest.mark.parametrize("inputs", ["batches", "mapping", "in_chunks", "generator"])
def test_evaluate_reads_what_compress_reads(run: Run, inputs: str) -> None:
    compressed(run)
    with Path("toy.py").open("a") as file:
        file.write("\n\ndef in_chunks():\n    return [{'x': part, 'labels': 0} for part in inputs().split(40)]\n")
        file.write("\n\ndef generator():\n    return (part.numpy() for part in inputs().split(40))\n")
    expected = json.loads(run("evaluate", "small", "toy:net", "--inputs", "toy:inputs", "--json").out)
    done = run("evaluate", "small", "toy:net", "--inputs", f"toy:{inputs}", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["samples"] == 90
    assert found["before"] == expected["before"]
    assert found["fidelity"] == {name: pytest.approx(one) for name, one in expected["fidelity"].items()}


def test_evaluate_networks_of_several_inputs_and_outputs(run: Run) -> None:
    with Path("toy.py").open("a") as file:
        file.write(PAIRS)
    options = ["--inputs", "toy:pairs", "--block", "mlp.fc1:mlp.fc3,rank=2", "--basis", BASIS]
    options += ["--solver", "ConstrainedALS(3)"]
    done = run("compress", "toy:two", *options, "--out", "small")
    assert done.code == 0, done.err
    done = run("evaluate", "small", "toy:two", "--inputs", "toy:pairs", "--json")
    assert done.code == 0, done.err
    assert 0 < json.loads(done.out)["fidelity"]["relative_error"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere", "toy:net", "--inputs", "inputs.npy"],
            r"nowhere/model.safetensors does not exist: expected",
        ),
        (["small", "toy:net"], r"--inputs is missing: name the inputs on which to compare"),
        (["small", "toy:wide", "--inputs", "inputs.npy"], r""),
        (["small", "toy:net", "--inputs", "toy:unknown"], r"expected the inputs .* but Mlp has no argument 'y'"),
        (["small", "toy:net", "--inputs", "uint8.npy"], r"uint8 \(9, 12\): .* such as x.float\(\) / 255"),
        (["small", "toy:net", "--inputs", "inputs.npy", "--labels", "toy:inputs"], r"labels must be whole numbers"),
        (
            ["small", "toy:net", "--inputs", "inputs.npy", "--labels", "toy:number"],
            r"expected labels as a tensor",
        ),
        (["small", "toy:net", "--inputs", "inputs.npy", "--labels", "two.npz:labels"], r"labels must be"),
    ],
)
def test_bad_evaluation(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    write_bad_files(tmp_path)
    if arguments[0] == "small" and arguments[1] != "toy:wide":
        compressed(run, "result")
        arguments = ["result", *arguments[1:]]
    require_clean(run("evaluate", *arguments), message)


def test_a_budget_on_the_command_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "MOST_SOLVES", 2)
    options = ["toy:net", "--inputs", "inputs.npy", "--basis", BASIS, "--solver", "ConstrainedALS(3)"]
    done = run("compress", *options, "--budget", "60%", "--out", "small")
    assert (done.code, done.err) == (0, "")
    assert "Planned for parameters 60%" in done.out
    model = toy().net().eval()
    assert stored_numbers(tenflex.load("small", model)) <= 0.6 * stored_numbers(model)
    settings = yaml.safe_load(Path("small/run.yaml").read_text())
    assert "budget" not in settings
    assert settings["blocks"]
    assert run("compress", "--config", "small/run.yaml", "--out", "again").code == 0
    first, second = (load_file(f"{folder}/model.safetensors") for folder in ("small", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert run("compress", "--config", "small/run.yaml", "--budget", "70%", "--out", "again").code == 0
    require_clean_of = ["compress", *options, "--budget", "60%", "--block", "fc1,low_rank=2", "--out", "s"]
    assert "--budget chooses the blocks" in run(*require_clean_of).err
    assert run("compress", *options, "--block", "fc1,low_rank=2", "--out", "thin").code == 0
    assert yaml.safe_load(Path("thin/run.yaml").read_text())["blocks"] == {"fc1": {"low_rank": 2}}


def test_a_metric_that_a_budget_chose_is_repeated(run: Run) -> None:
    options = ["toy:net", "--inputs", "inputs.npy", "--basis", BASIS, "--solver", "ConstrainedALS(3)"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(planner, "MOST_SOLVES", 2)
        patched.setattr(choices, "BETTER", math.inf)  # whatever both ways lead to
        assert run("compress", *options, "--budget", "60%", "--out", "small").code == 0
    model = toy().net().eval()
    assert tenflex.Compression.load("small", model).plan.metric == Downstream()
    assert yaml.safe_load(Path("small/run.yaml").read_text())["metric"] == repr(Downstream())
    assert run("compress", "--config", "small/run.yaml", "--out", "again").code == 0
    assert tenflex.Compression.load("again", model).plan == tenflex.Compression.load("small", model).plan
    first, second = (load_file(f"{folder}/model.safetensors") for folder in ("small", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_was_killed_is_resumed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tenflex import checkpoint

    assert run(*COMPRESS, "--out", "whole").code == 0
    write = checkpoint.write

    def killed(path: Path, parts: checkpoint.Parts) -> None:
        write(path, parts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", killed)
        assert run(*COMPRESS, "--out", "small").code == 130
    assert list(Path("small/.checkpoints.part").glob("*.safetensors"))
    monkeypatch.setattr(checkpoint, "write", lambda *_: pytest.fail("it was solved for again"))
    done = run(*COMPRESS, "--resume", "--out", "small")
    assert done.code == 0, done.err
    assert sorted(path.name for path in Path("small").iterdir()) == sorted(
        path.name for path in Path("whole").iterdir()
    )
    one, two = (load_file(f"{folder}/model.safetensors") for folder in ("small", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_finetune_does_what_the_library_does(run: Run) -> None:
    compressed(run)
    with Path("toy.py").open("a") as file:
        file.write("\n\ndef shaken(x):\n    return x + 0.1 * torch.randn_like(x)\n")
    options = ["--inputs", "inputs.npy", "--steps", "30", "--rate", "3e-3", "--augment", "toy:shaken"]
    done = run("finetune", "small", "toy:net", *options, "--out", "better")
    assert (done.code, done.err) == (0, "")
    assert "Fine-tuned to the original's answers as scores of classes on 90 inputs" in done.out
    model, inputs = toy().net().eval(), torch.from_numpy(np.load("inputs.npy")).float()
    settings = {"steps": 30, "rate": 3e-3, "augment": toy().shaken}
    expected = tenflex.Compression.load("small", model).finetune(inputs, **settings)
    assert torch.equal(tenflex.load("better", model)(inputs), expected.model(inputs))
    report = json.loads(Path("better/report.json").read_text())
    assert report["tunings"][0]["steps"] == expected.report.tunings[0].steps


def test_augment_is_named_on_the_command_line(run: Run) -> None:
    with Path("toy.py").open("a") as file:
        file.write("\n\ndef shaken(x):\n    return x + 0.1 * torch.randn_like(x)\n")
    assert run(*COMPRESS, "--augment", "toy:shaken", "--out", "small").code == 0
    model, inputs = toy().net().eval(), torch.from_numpy(np.load("inputs.npy")).float()
    blocks = {"fc1:fc3": tenflex.Block(2)}
    expected = tenflex.compress(model, inputs, blocks, augment=toy().shaken, **LIBRARY)
    assert torch.equal(tenflex.load("small", model)(inputs), expected.model(inputs))
    assert run("compress", "--config", "small/run.yaml", "--out", "again").code == 0
    assert torch.equal(tenflex.load("again", model)(inputs), expected.model(inputs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["result", "toy:net", "--out", "small"], "--inputs is missing"),
        (["result", "toy:net", "--inputs", "inputs.npy"], "--out is missing"),
        (
            ["nowhere", "toy:net", "--inputs", "inputs.npy", "--out", "small"],
            "nowhere/model.safetensors does not exist",
        ),
        (["nowhere", "toy:net", "--inputs", "inputs.npy", "--out", "small", "--steps", "0"], "steps must be a whole"),
    ],
)
def test_bad_finetuning(run: Run, arguments: list[str], message: str) -> None:
    require_clean(run("finetune", *arguments), message)


class Wait(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


def test_latency_says_which_is_slower() -> None:
    measured = latency(Wait(0.001).eval(), Wait(0.004).eval(), torch.zeros(3, 1), seconds=0.05)
    assert measured.slower
    assert measured.samples == 3
    assert 0.001 <= measured.before < measured.after
    assert not replace(measured, before=measured.after, after=measured.before).slower
    with pytest.raises(ValueError, match="the compressed network must be in eval mode"):
        latency(Wait(0).eval(), Wait(0), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="inputs must hold at least one sample"):
        latency(Wait(0).eval(), Wait(0).eval(), torch.zeros(0, 1))


@pytest.mark.parametrize(("after", "word"), [(0.3, "3.0x SLOWER"), (0.05, "2.0x faster")])
def test_slower_models_are_called_so(run: Run, monkeypatch: pytest.MonkeyPatch, after: float, word: str) -> None:
    measured = Latency(1, 2, 0.1, after)
    monkeypatch.setattr(comparison, "latency", lambda *networks: measured)
    assert run(*COMPRESS, "--out", "small").code == 0
    shown = run("evaluate", "small", "toy:net", "--inputs", "inputs.npy").out
    assert word in shown
    shown = " ".join(shown.split())
    assert ("At batch 1 and 1 the compressed network is smaller but slower here" in shown) == measured.slower
    assert ("At batch 1 and 1 the compressed network is faster here." in shown) != measured.slower


@pytest.mark.parametrize("rank", [4, (4, 3), (20, 20, 20)])
def test_blocks_are_written_as_they_are_read(rank: Any) -> None:
    block = tenflex.Block(rank, factor=3, output_factor=2, basis=tenflex.Smooth(tenflex.BSpline(5, degree=2), 0.1))
    option, text = shlex.split(format_block("layers.[01].fc1:layers.[01].fc2", block))
    assert option == "--block"
    plan = tenflex.Plan.from_dict({"blocks": parse_blocks([text])})
    assert plan.blocks == {"layers.[01].fc1:layers.[01].fc2": block}
    assert parse_blocks([",rank=3", "a,rank=20-20-20"]) == {"": {"rank": 3}, "a": {"rank": [20, 20, 20]}}


def test_bases_are_written_as_python_does() -> None:
    short = parse_basis("Smooth(BSpline(10), 0.1)")
    assert short == {"family": "Smooth", "basis": {"family": "BSpline", "count": 10}, "weight": 0.1}
    assert basis_from_dict(short) == basis_from_dict(parse_basis(repr(DEFAULT_BASIS))) == DEFAULT_BASIS


def test_help_states_the_defaults(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    shown = " ".join(run("compress", "--help").out.split())
    assert "Smooth(BSpline(10), 0.1) if not given" in shown  # the basis of the test above
    assert f"The most inputs that are used; {tenflex.Plan.samples} if not given" in shown


def test_help_says_what_the_default_starts_by(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `default_solver` does for the same problems."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    shown = " ".join(run("decouple", "--help").out.replace("│", " ").split())
    assert "default: starts by jacobian-cpd (with one output by structured-cpd; with one input," in shown
    named = {kind: [name for name, one in NAMED.items() if isinstance(one.make(), kind)] for kind in STARTING}
    assert list(named.values()) == [["jacobian-cpd"], ["structured-cpd"], ["constrained-als"]]
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for (kind, f), inputs in zip(STARTING.items(), (points, points, points[:, :1]), strict=True):
        prepared, _ = prepare(tenflex.Problem(tenflex.sample(f, inputs), 1, tenflex.Monomial(2)))
        assert isinstance(start(prepared, inputs.shape[1], len(f(inputs[0]))), kind)


STARTING: dict[type, Callable[[torch.Tensor], torch.Tensor]] = {
    JacobianCPD: lambda x: torch.stack([x[0] ** 2, x[0] * x[1]]),
    StructuredCPD: lambda x: (x[0] * x[1])[None],
    ConstrainedALS: lambda x: torch.cat([x, x**2]),
}
"""What the default starts by, for such maps."""


@dataclass(frozen=True, kw_only=True)
class Greeting(Settings):
    names: Names = option("Whom to greet.", "NAMES", default=MISSING)
    times: int = option("How often.", default=1)
    loud: bool | None = option("Whether to shout.", None, None, "--loud")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "Ann,Bob"], "Ann and Bob, 1, None"),
        (["--config", "greeting.yaml"], "Cleo, 3, True"),
        (["--config", "greeting.yaml", "--times", "0", "--names", "Dan"], "Dan, 0, True"),
        (["--times", "2"], r"names is missing: give --names, or set `names:` in the file of --config"),
        (["--names", "Ann,,Bob"], r"names must be names separated by commas"),
    ],
)
def test_a_setting_is_a_field(tmp_path: Path, arguments: list[str], message: str) -> None:
    """An option, its help, its check and its key in files all come from one line of a dataclass."""
    greetings = typer.Typer()

    @greetings.command()
    @command(Greeting, config="nothing else.")
    def greet(settings: Greeting, json: bool) -> None:
        """Greet."""
        assert Greeting.from_dict(settings.to_dict()) == settings
        typer.echo(f"{' and '.join(settings.names)}, {settings.times}, {settings.loud}")

    path = tmp_path / "greeting.yaml"
    path.write_text("{names: [Cleo], times: 3, loud: true}")
    done = CliRunner().invoke(greetings, [str(path) if one == path.name else one for one in arguments])
    assert message in done.output
    assert done.exit_code == (2 if "must" in message or "missing" in message else 0)
    shown = CliRunner().invoke(greetings, ["--help"]).output
    assert all(text in shown for text in ("Greet.", "--names", "NAMES", "How often.", "--loud", "--config", "--json"))
    assert "--no-loud" not in shown


def test_bars_follow_blocks_and_stages() -> None:
    with Bars(2) as bars:
        whole, part = bars.progress.tasks
        bars(Progress("sample", 5, 10, task="a:b"))
        assert (part.description, part.completed, part.total) == ("a:b: sample", 5, 10)
        bars(Progress("refine", 3, 40, 0.04, "a:b"))
        assert (part.description, part.completed, part.total) == ("a:b: refine", 3, 40)
        assert part.fields["error"] == "error 0.200"
        assert (whole.completed, whole.total, whole.visible) == (0, 2, True)
        bars(Progress("sample", 1, 2, task="c"))
        assert (whole.completed, part.completed, part.fields["error"]) == (1, 1, "")


def test_bars_count_no_block_while_inputs_are_read() -> None:
    with Bars(2) as bars:
        whole, part = bars.progress.tasks
        bars(Progress("read", 5, 10))
        bars(Progress("sample", 1, 2, task="a"))
        assert whole.completed == 0
        bars(Progress("sample", 1, 2, task="b"))
        assert (whole.completed, part.description) == (1, "b: sample")


def test_version_and_light_imports(tmp_path: Path) -> None:
    code = (
        "import sys; from tenflex.cli import main\n"
        "print(sorted({'matplotlib', 'scipy', 'onnx', 'torch._dynamo'} & set(sys.modules)))\n"
        "sys.argv = ['tenflex', '--version']; main()"
    )
    source = str(Path(tenflex.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    heavy, version = done.stdout.splitlines()
    assert heavy == "[]"
    assert version.startswith(f"tenflex {tenflex.__version__} (torch {torch.__version__}, Python 3.")
    assert done.returncode == 0


KILLED_BETWEEN_FILES = """
import os, pathlib, signal
from toy import net
replace, done = pathlib.Path.replace, []

def once(path, target):
    if ".checkpoints.part" in str(target):
        return replace(path, target)
    if done:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(replace(path, target))

pathlib.Path.replace = once
"""

SLOW = """
import pathlib, time
import toy

class Slow(toy.Mlp):
    def forward(self, x):
        pathlib.Path("started").touch()
        time.sleep(0.5)
        return super().forward(x)

def net():
    return toy.seeded(Slow)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_while_it_computes(run: Run, tmp_path: Path) -> None:
    compressed(run)
    before = contents(tmp_path / "small")
    Path("slow.py").write_text(SLOW)
    process = spawn(tmp_path, "compress", "slow:net", *COMPRESS[2:], "--seed", "1", "--out", "small")
    while process.poll() is None and not Path("started").exists():
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert contents(tmp_path / "small") == before


@pytest.mark.slow
def test_killed_between_two_files(run: Run, tmp_path: Path) -> None:
    assert run(*COMPRESS, "--out", "small").code == 0
    spawn(tmp_path, *COMPRESS, "--seed", "1", "--out", "expected").communicate()  # as many steps as the other process
    Path("killed.py").write_text(KILLED_BETWEEN_FILES)
    process = spawn(tmp_path, "compress", "killed:net", *COMPRESS[2:], "--seed", "1", "--out", "small")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    inputs = torch.from_numpy(np.load("inputs.npy")).float()
    model = toy().net().eval()
    with torch.no_grad():  # the new network as a whole: its file was in place, and it alone is read
        assert torch.equal(tenflex.load("small", model)(inputs), tenflex.load("expected", model)(inputs))
    assert run(*COMPRESS, "--out", "small").code == 0
    written = {path.name for path in Path("small").iterdir() if not is_leftover(path)}
    assert written == {"model.safetensors", "config.json", "report.json", "details.json", "run.yaml"}


@pytest.mark.parametrize(
    ("text", "size"), [("2 GiB", 2**31), ("1.5kB", 1500), ("500 MB", 500_000_000), ("7", 7), (8, 8), ("3 bytes", 3)]
)
def test_sizes_of_memory_have_units(text: object, size: int) -> None:
    assert read_bytes("memory", text) == size


@pytest.mark.parametrize("text", ["much", "2 GiX", "-1 GB", "", "1e3"])
def test_what_is_no_size_of_memory_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"memory must be a size such as 2 GiB, 500 MB or a number of bytes, got"):
        read_bytes("memory", text)


def test_what_does_not_fit_in_memory_is_refused(run: Run) -> None:
    done = run(*COMPRESS, "--memory", "1 kB", "--out", "small")
    assert done.code == 2
    assert re.search(r"block 'fc1:fc3': .* more than the 1000 bytes", " ".join(done.err.split()))
    assert not Path("small").exists()


def test_tables_fit_into_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With names and numbers as long as they get, and no header cut."""
    from tenflex.cli.console import show
    from tenflex.evaluate.cost import Cost
    from tenflex.evaluate.report import BlockReport, Report
    from tenflex.result import Result

    monkeypatch.setenv("COLUMNS", "80")
    before, after = Cost(334_094_338, 20_401_094_656, 1_359_872), Cost(1_409_433, 88_430_100, 983_040)
    costs = {"output_error": 0.1234, "jacobian_error": 12.5, "result": Result.CONVERGED, "seconds": 12_345.6}
    block = BlockReport(
        "encoder.layers.*.feed_forward.dense1:encoder.layers.*.feed_forward.dense2", before, after, **costs
    )
    report = Report((block,), before, after, 99_999.9)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        show(report, *report.remarks)
    assert all(len(line) <= 80 for line in out.getvalue().splitlines())
    assert "…" not in out.getvalue()
    for word in ("block", "parameters", "kept", "MACs", "activation", "operations", "Jacobian", "time"):
        assert word in out.getvalue()
    compressed(run)
    for words in (
        ["evaluate", "small", "toy:net", "--inputs", "inputs.npy"],
        ["inspect", "toy:transformer", "--inputs", "toy:tokens"],
        ["decouple", "--polynomial", "(first_input + 2*second_input)^3; first_input^2"],
    ):
        shown = run(*words).out
        table = [line for line in shown.splitlines() if not line.startswith("  tenflex ")]  # which is to be copied
        assert all(len(line) <= 80 for line in table), shown
        assert "…" not in shown


def test_report_is_a_page_beside_the_result(run: Run) -> None:
    compressed(run)
    done = run("report", "small")
    assert done.code == 0, done.err
    assert done.out.startswith("Saved as small/report.html")
    page = Path("small/report.html").read_text()
    error = json.loads(Path("small/report.json").read_text())["model"]["output_error"]
    assert f"<td>{error:.4g}</td>" in page
    assert "tenflex compress --config small/run.yaml" in page
    entry = {"method": "svd", "source": "", "size": 90, "cost": {"parameters": 88, "macs": 80}}
    entries = [{**entry, "fidelity": {"agreement": 0.5}}, {**entry, "cost": None, "error": "too small for it"}]
    Path("compare.json").write_text(json.dumps({"entries": entries}))
    Path("bench.json").write_text(json.dumps({"timings": [{"runtime": "onnxruntime", "batch": 16, "ratio": 0.25}]}))
    given = ["--comparison", "compare.json", "--timings", "bench.json", "--out", "other.html", "--json"]
    assert json.loads(run("report", "small", *given).out) == {"out": "other.html"}
    for cell in ("<td>0.5</td>", "<td>88</td>", "<td>too small for it</td>", "<td>0.25</td>"):
        assert cell in Path("other.html").read_text()
    assert "agreement in %" in Path("other.html").read_text()


def test_reports_that_cannot_be_written(run: Run) -> None:
    compressed(run)
    for arguments, message in (
        (["none"], r"model.safetensors does not exist"),
        (["small", "--out", "page.pdf"], r"expected a page whose name ends in .html, got 'page.pdf'"),
        (["small", "--out", "mine.html"], r"mine.html was not written by tenflex"),
        (
            ["small", "--comparison", "small/report.json"],
            r"small/report.json cannot be shown: it has no entries: expected what",
        ),
    ):
        Path("mine.html").write_text("mine")
        done = run("report", *arguments)
        assert (done.code, done.out) == (2, "")
        assert re.search(message, done.err), done.err
    Path("small/report.json").unlink()
    assert "report.json is gone or damaged: compress the network again" in run("report", "small").err
    assert Path("mine.html").read_text() == "mine"


# ---- other runtimes ----


@pytest.fixture(scope="module")
def small(tmp_path_factory, digits, lenet):
    """A saved result of the shipped network."""
    folder = tmp_path_factory.mktemp("small") / "result"
    blocks = {"fc1:fc3": tenflex.Block(rank=4, factor=3)}
    solver = tenflex.solvers.ConstrainedALS(1)
    tenflex.compress(lenet, digits.train_images[:100], blocks, solver=solver).save(folder)
    return folder


def test_export_writes_a_file_that_was_run(small, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((8, 784), np.float32) + np.linspace(0, 1, 8, dtype=np.float32)[:, None])
    given = [str(small), "tenflex.demo.networks:lenet300"]
    inputs = ["--inputs", str(tmp_path / "images.npy")]
    run = CliRunner().invoke(app, ["export", *given, str(tmp_path / "small.pt2"), *inputs])
    assert run.exit_code == 0, run.output
    assert "Run by torch.export on 8 inputs" in " ".join(run.output.split())
    assert (tmp_path / "small.pt2").is_file()
    run = CliRunner().invoke(app, ["export", *given, str(tmp_path / "small.tflite"), *inputs])
    assert (run.exit_code, "expected a file that ends in .c" in run.output) == (2, True)


def test_networks_of_several_inputs_are_exported_and_timed(run: Run) -> None:
    with Path("toy.py").open("a") as file:
        file.write(
            "\n\nclass Two(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.a, self.b = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)), nn.Linear(4, 3)\n\n"
            "    def forward(self, x, y):\n"
            "        return {'answer': self.a(x) * self.b(y)}\n\n\n"
            "def two():\n    return seeded(Two)\n\n\n"
            "def pairs():\n    return inputs()[:, :6], inputs()[:, 6:10]\n"
        )
    given = ["small", "toy:two", "--inputs", "toy:pairs"]
    assert run("compress", "toy:two", *given[2:], "--block", "a,rank=3", "--basis", BASIS, "--out", "small").code == 0
    done = run("export", *given[:2], "small.pt2", *given[2:])
    assert (done.code, "on 90 inputs" in " ".join(done.out.split())) == (0, True), done.err
    timed = run("bench", *given, "--runtimes", "", "--batches", "1", "--seconds", "0.01", "--json")
    assert len(json.loads(timed.out)["timings"]) == 3
    Path("small").rename("result")
    given[0] = "result"
    require_clean(run("export", *given[:2], "small.pt2", "--inputs", "toy:batches"), "--inputs: expected a batch")
    np.savez("two.npz", a=np.zeros(3), b=np.zeros(3))
    require_clean(run("export", *given[:2], "s.pt2", "--inputs", "two.npz"), r"name one, as two.npz:NAME; .*function")


def test_bench_times_both_networks(small, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((8, 784), np.float32))
    given = [str(small), "tenflex.demo.networks:lenet300", "--inputs", str(tmp_path / "images.npy"), "--json"]
    run = CliRunner().invoke(app, ["bench", *given, "--runtimes", "", "--batches", "1,3", "--seconds", "0.01"])
    assert run.exit_code == 0, run.output
    timings = json.loads(run.stdout)["timings"]
    assert [(one["network"], one["runtime"], one["batch"]) for one in timings] == [
        (network, runtime, batch)
        for batch in (1, 3)
        for network, runtime in (("original", "pytorch"), ("compressed", "pytorch"), ("compressed", "folded"))
    ]
    assert all(0 < one["fastest"] <= one["seconds"] and one["throughput"] > 0 for one in timings)
    assert timings[0]["ratio"] == 1
    run = CliRunner().invoke(app, ["bench", *given, "--batches", "0"])
    assert (run.exit_code, "as whole numbers with commas" in run.output) == (2, True)
    run = CliRunner().invoke(app, ["bench", *given, "--runtimes", "tflite"])
    assert (run.exit_code, "expected runtimes among" in run.output) == (2, True)


def test_timings_fit_80_columns(capsys):
    def timing(network, runtime, size):
        return Timing(network, runtime, 1024, 0.123456, 0.1, 1e-4, size, memory=21_000_000)

    given = ("original", "pytorch", None), ("compressed", "onnxruntime", 488), ("compressed", "c-int8", 12_345)
    table = _table(Bench(tuple(timing(*one) for one in given), {}, threads=1))
    Console(width=80).print(table)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[4].split()) == "compressed onnxruntime 1,024 123.5 ms 10 % 8,294 21.0 MB 488 B"
    assert lines[5].split()[-3:] == ["MB", "12.3", "kB"]
    assert len(lines) == 6
