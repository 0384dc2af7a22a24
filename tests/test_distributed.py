"""Several processes, each with some of the samples, find what one process finds with all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from planted import seeded

import tenflex
from tenflex import distributed, units
from tenflex.bases.wrapped import plain
from tenflex.blocks.rows import sampled_units
from tenflex.decouple import inside
from tenflex.factors import Activations, Factors
from tenflex.objective.prepared import prepare
from tenflex.planning.plan import DEFAULT_BASIS
from tenflex.reduction import Reduction
from tenflex.solvers import ConstrainedALS

COMMON = """
import json, os, sys, time
import torch
from torch import distributed as dist
import tenflex
from tenflex import distributed, units
from tenflex.split import Split

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)

def f(x):
    a = torch.stack([x[0] + 0.5 * x[1], x[1] - x[2]])
    return torch.stack([a[0] ** 2 + a[1] ** 3, torch.tanh(a[0]) - a[1], a[1] ** 2])

def samples(count=240):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2 - 1
    return tenflex.sample(f, points)

def problem(part, **settings):
    return tenflex.Problem(part, **{"rank": 3, "basis": tenflex.BSpline(6), **settings})

def tell(**found):
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(found, file)
"""


def spawn(folder: Path, world: int, body: str) -> list[subprocess.Popen[str]]:
    """Processes that meet through a file in a folder."""
    script = folder / "work.py"
    script.write_text(COMMON + body)
    source = str(Path(tenflex.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world), str(folder)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = 400) -> list[str]:
    """What the processes wrote to stderr."""
    limit = time.monotonic() + seconds
    try:
        return [one.communicate(timeout=max(1.0, limit - time.monotonic()))[1] for one in processes]
    finally:
        for one in processes:
            one.kill()


def found(folder: Path, world: int, body: str) -> list[dict[str, Any]]:
    """What each process told."""
    errors = ended(processes := spawn(folder, world, body))
    assert [one.returncode for one in processes] == [0] * world, errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


TOGETHER = """
from pathlib import Path
from tenflex.decouple import inside
from tenflex.objective.prepared import prepare

counted = {"calls": 0, "numbers": 0}

def counting(partial, operation):
    counted["calls"] += 1
    counted["numbers"] += partial.numel()
    return distributed.exchanged(partial, operation)

part = distributed.own_share(samples())
own, start = problem(part), distributed.read_checkpoint(Path(folder) / "start.safetensors")
with distributed.meeting(counting), torch.no_grad():
    prepared, reduction = prepare(own)
    factors = inside(prepared, reduction, start)
    parameters = [one.clone().requires_grad_() for one in factors.tensors()]
    counted.update(calls=0, numbers=0)
    with torch.enable_grad():
        errors = prepared.fitted.value(factors.with_tensors(parameters))
        gradient = torch.autograd.grad(prepared.fitted.total(*errors), parameters)
    evaluation = dict(counted)
steps = []
solution = distributed.decouple(own, start=start, on_progress=steps.append)
told = dict(
    parts=[part.inputs[one].tolist() for one in own.split],
    value=[float(one) for one in errors],
    gradient=torch.cat([one.flatten() for one in gradient]).tolist(),
    evaluation=evaluation,
    unknowns=sum(one.numel() for one in factors.tensors()),
    factors=solution.factors.flat().tolist(),
    errors=[solution.history[-1].output_error, solution.history[-1].held_out_error, solution.test_error],
    steps=len(steps),
)
"""

UNEQUAL = """
everything = samples(100)
part = everything.select(torch.arange(0, 70) if rank == 0 else torch.arange(70, 100))
solution = distributed.decouple(problem(part, basis=tenflex.Monomial(3)))
told["unequal"] = dict(
    factors=solution.factors.flat().tolist(), error=solution.output_error, result=solution.result.name
)
"""

REFUSALS = """
def refused(work):
    try:
        work()
    except (TypeError, ValueError) as error:
        return str(error)

few = samples(12)
nan = torch.full((3, 3), float("nan"), dtype=torch.float64) if rank == 1 else torch.rand(3, 3, dtype=torch.float64)
told["refused"] = dict(
    few=refused(lambda: distributed.decouple(problem(few.select(torch.arange(6) + 6 * rank)))),
    other=refused(lambda: distributed.decouple(problem(samples(60), rank=2 + rank, basis=tenflex.Monomial(2)))),
    nan=refused(lambda: distributed.agreed(lambda: tenflex.sample(f, nan))),
    workers=refused(lambda: distributed.agreed(lambda: distributed.own_share(samples(3)))),
    kind=refused(lambda: distributed.decouple(None)),
)
"""

COMPRESS = """
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.Tanh(), torch.nn.Linear(24, 5)).eval()

def compressed(views=None, count=120):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    with distributed.together():
        coupling = 3.0 if views == 1 else None
        return tenflex.compress(network(), x, {"": tenflex.Block(3, start="cpd")}, views=views, coupling=coupling)

def told_of(result):
    solution = result.solutions[""]
    samples, split, last = solution.problem.samples, solution.problem.split, solution.history[-1]
    parts = distributed.parts_of(samples.select(split.fitted))
    return dict(
        parts=[None if one is None else one.tolist() for one in parts],
        shapes=[None if one is None else list(one.shape) for one in parts],
        reduction=[one.tolist() for one in vars(samples.reduction).values() if isinstance(one, torch.Tensor)],
        errors=[last.jacobian_error, last.output_error],
        coupling=solution.problem.coupling,
        held=solution.validation_error,
        layer=torch.cat([one.flatten() for one in result.model.state_dict().values()]).tolist(),
        unknowns=[one.tolist() for one in solution.factors.tensors()],
        count=len(samples),
    )
"""

FEW_STEPS = """
from tenflex.planning import held_out
from tenflex.solvers import BestSoFar, Refine, default

default.Refine = lambda iterations, **settings: Refine(10, **settings)
held_out.TRIAL = BestSoFar(Refine(10), of="outputs", patience=2)
"""

EACH = """
VIEWS = {"whole": "whole", "one": 1, "outputs": 0}
told["compressed"] = {kind: told_of(compressed(views)) for kind, views in VIEWS.items()}
"""

ALL = TOGETHER + UNEQUAL + REFUSALS + COMPRESS + FEW_STEPS + EACH + "tell(**told)\ndist.destroy_process_group()\n"
"""What two processes do, which take longer to start than to find all of it."""


def f(x: torch.Tensor) -> torch.Tensor:
    """The map of the processes."""
    a = torch.stack([x[0] + 0.5 * x[1], x[1] - x[2]])
    return torch.stack([a[0] ** 2 + a[1] ** 3, torch.tanh(a[0]) - a[1], a[1] ** 2])


def problem_of(points: torch.Tensor, aside: tuple[int, int] | None = None) -> tenflex.Problem:
    samples = replace(tenflex.sample(f, points), aside=aside)
    return tenflex.Problem(samples, rank=3, basis=tenflex.BSpline(6))


def points(count: int = 240) -> torch.Tensor:
    return torch.rand(count, 3, generator=seeded(0), dtype=torch.float64) * 2 - 1


@pytest.fixture(scope="module")
def start() -> Factors:
    return tenflex.decouple(problem_of(points()), ConstrainedALS(2)).factors


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, start: Factors) -> list[dict[str, Any]]:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("two")
    distributed.write_checkpoint(folder / "start.safetensors", start)
    return found(folder, 2, ALL)


@pytest.fixture(scope="module")
def one(two: list[dict[str, Any]]) -> tenflex.Problem:
    """The same problem with all samples at hand, each for what it is used for there."""
    fitted, validation, test = ([row for each in two for row in each["parts"][k]] for k in range(3))
    together = torch.tensor([*fitted, *validation, *test], dtype=torch.float64)
    return problem_of(together, (len(validation), len(test)))


def test_reports_count_the_samples_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = units.draw(units.Position((5,)), 1, torch.arange(20), 1000, 0)
    assert (len(rows), rows.total) == (100, 100)
    monkeypatch.setattr("tenflex.blocks.rows.total_of", lambda count: 2 * count)  # as two processes with as many
    assert sampled_units(rows, 0.0, 0.15).rows == 200


def test_samples_are_divided(two: list[dict[str, Any]]) -> None:
    """Each belongs to one process."""
    rows = [tuple(row) for each in two for part in each["parts"] for row in part]
    assert len(rows) == len(set(rows)) == 240
    assert all(len(part) > 0 for each in two for part in each["parts"])


def test_the_objective_is_that_of_all_samples(two: list[dict[str, Any]], one: tenflex.Problem, start: Factors) -> None:
    with torch.no_grad():
        prepared, reduction = prepare(one)
        factors = inside(prepared, reduction, start)
        parameters = [each.clone().requires_grad_() for each in factors.tensors()]
        with torch.enable_grad():
            errors = prepared.fitted.value(factors.with_tensors(parameters))
            gradient = torch.autograd.grad(prepared.fitted.total(*errors), parameters)
    expected = torch.cat([each.flatten() for each in gradient])
    for each in two:
        assert each["value"] == pytest.approx([error.item() for error in errors], rel=1e-10)
        reached = torch.tensor(each["gradient"], dtype=torch.float64)
        assert (reached - expected).norm() <= 1e-10 * expected.norm()


def test_all_processes_find_the_same(two: list[dict[str, Any]], one: tenflex.Problem, start: Factors) -> None:
    """The same bits in each, and to rounding what one process finds."""
    first, second = two
    assert first["factors"] == second["factors"]
    assert first["errors"] == second["errors"]
    solution = tenflex.decouple(one, start=start)
    last = solution.history[-1]
    expected = [last.output_error, last.held_out_error, solution.test_error]
    assert first["errors"] == pytest.approx(expected, rel=1e-3)
    assert (first["steps"] > 0, second["steps"]) == (True, 0)  # only the first tells of progress


def test_an_evaluation_exchanges_a_number_for_every_unknown(two: list[dict[str, Any]]) -> None:
    """However many samples there are: unknowns, the means of the r activations, and two errors."""
    for each in two:
        assert each["evaluation"]["numbers"] <= each["unknowns"] + 3 + 8
        assert each["evaluation"]["calls"] <= 5


def test_unequal_shares_and_a_start_from_nothing(two: list[dict[str, Any]]) -> None:
    first, second = (each["unequal"] for each in two)
    assert first["factors"] == second["factors"]
    assert first["error"] == second["error"] < 0.2


def test_what_one_process_cannot_use_all_refuse(two: list[dict[str, Any]]) -> None:
    """With the same message, and none waits for another."""
    first, second = (each["refused"] for each in two)
    assert "6 samples are too few to hold some out, expected at least 8 in every process" in first["few"]
    assert "all processes must have the same rank, got 2 in process 0 and 3 in process 1" in first["other"]
    assert first["nan"].startswith("process 1 of 2: points holds NaN") or "process 1 of 2: " in first["nan"]
    assert "3 samples are too few for 2 processes" in first["workers"]
    assert first["kind"] == second["kind"] == "expected a tenflex.Problem, got NoneType"
    assert first["nan"] == second["nan"]


GONE = """
if rank == 1:
    whole = distributed.refinement
    def dying(problem):
        os.kill(os.getpid(), 9)
    steps = [0]
    step = distributed.Compared.step
    def until(self, problem, state):
        steps[0] += 1
        if steps[0] == 3:
            dying(problem)
        return step(self, problem, state)
    distributed.Compared.step = until
part = distributed.own_share(samples())
start = distributed.read_checkpoint(distributed.Path(folder) / "start.safetensors")
distributed.decouple(problem(part), start=start, checkpoint=f"{folder}/kept.safetensors")
"""

RESUMED = """
part = distributed.own_share(samples())
solution = distributed.decouple(problem(part), checkpoint=f"{folder}/kept.safetensors", resume=True)
tell(error=solution.history[-1].output_error, began=solution.history[0].output_error)
dist.destroy_process_group()
"""


def test_a_process_that_is_killed_ends_the_run_and_it_goes_on(tmp_path: Path, start: Factors) -> None:
    distributed.write_checkpoint(tmp_path / "start.safetensors", start)
    began = time.monotonic()
    processes = spawn(tmp_path, 2, GONE)
    errors = ended(processes)
    assert processes[1].returncode == -signal.SIGKILL
    assert processes[0].returncode == 1
    assert time.monotonic() - began < 90  # of which most is the start of Python
    assert "RuntimeError: a process of the group is gone: its own message says why" in errors[0]
    kept = distributed.read_checkpoint(tmp_path / "kept.safetensors")
    assert not torch.equal(kept.flat(), start.flat())
    (tmp_path / "meeting").unlink()
    [told] = found(tmp_path, 1, RESUMED)  # with another number of processes
    assert told["error"] <= told["began"]


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    """One result, and each thing said once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONWARNINGS": "ignore"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tenflex"]
    polynomial = ["decouple", "--polynomial", "a^3 + 3*a*b^2; a^2*b + b^3/3", "--points", "80"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*launcher, *polynomial, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)

    done = run("--rank", "2", "--out", "found", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["solution"]["result"] == "EXACT"
    solution = tenflex.load_solution(tmp_path / "found" / "solution.safetensors")
    assert len(solution.problem.samples) == 80
    assert solution.errors.fitted.outputs < 1e-8
    assert solution.errors.held_out is not None
    assert [path.name for path in (tmp_path / "found").iterdir() if path.name.startswith(".")] == []
    refused = run("--rank", "auto")
    assert refused.returncode == 1  # of the launcher
    assert refused.stderr.count("error: --rank auto tries one rank after another, in one process") == 1
    assert refused.stdout == ""


@pytest.mark.parametrize("kind", ["whole", "one", "outputs"])
def test_a_network_is_compressed_over_processes(two: list[dict[str, Any]], kind: str) -> None:
    """The same bits in each; the objective is that of all samples together, in coordinates that all of them chose."""
    first, second = (each["compressed"][kind] for each in two)
    for name in ("layer", "unknowns", "reduction", "errors", "coupling", "held"):
        assert first[name] == second[name]
    assert first["count"] + second["count"] == 120
    columns: list[Any] = []
    for k, shape in enumerate(first["shapes"]):
        rows = None if shape is None else [*first["parts"][k], *second["parts"][k]]
        columns.append(None if rows is None else torch.tensor(rows, dtype=torch.float64).view(len(rows), *shape[1:]))
    x, F, J, _, directions = columns
    reduction = Reduction(*(torch.tensor(one, dtype=torch.float64) for one in first["reduction"]))
    samples = tenflex.Samples(x, F, J, reduction, directions=directions)
    prepared, _ = prepare(tenflex.Problem(samples, 3, DEFAULT_BASIS, first["coupling"], held_out=0))
    V, W, shift, C = (torch.tensor(one, dtype=torch.float64) for one in first["unknowns"])
    factors = Factors(((V,), (W,)), (Activations(C, shift, plain(DEFAULT_BASIS)),), reduction.output_mean)
    inner = prepared.fitted.with_best_bias(inside(prepared, reduction, factors))
    assert prepared.fitted.errors(inner) == pytest.approx(first["errors"], rel=1e-10)


ALONE = (
    COMPRESS
    + """
from tenflex.kept import Own

def refused(work):
    try:
        work()
    except (TypeError, ValueError) as error:
        return str(error)

x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
with distributed.together():
    tell(
        few=refused(lambda: compressed(count=17)),
        own=refused(lambda: tenflex.compress(network(), x, {"": tenflex.Block(4, basis=Own())})),
        budget=refused(lambda: tenflex.compress(network(), x, budget="50%")),
        nan=refused(lambda: tenflex.compress(network(), x / 0, {"": tenflex.Block(4)})),
    )
dist.destroy_process_group()
"""
)


def test_what_is_not_divided_is_refused_by_all(tmp_path: Path) -> None:
    first, second, _ = found(tmp_path, 3, ALONE)
    assert first == second
    assert "17 inputs are too few for 3 processes, expected at least 8 different ones for each" in first["few"]
    assert "block '', which is no plain layer, is not divided over processes" in first["own"]
    assert "budget is not divided over processes: name blocks, or use one process" in first["budget"]
    assert "must be finite" in first["nan"]


DYING = (
    COMPRESS
    + """
steps, step = [0], distributed.Compared.step
def until(self, problem, state):
    steps[0] += 1
    if rank == 1 and steps[0] == 3:
        os.kill(os.getpid(), 9)
    return step(self, problem, state)
distributed.Compared.step = until
x = torch.randn(120, 6, generator=torch.Generator().manual_seed(1))
with distributed.together():
    tenflex.compress(network(), x, {"": tenflex.Block(3, start="cpd")}, checkpoints=f"{folder}/kept")
"""
)


@pytest.mark.slow
def test_a_compression_whose_process_is_killed_goes_on(tmp_path: Path) -> None:
    """With one process, from the layers that two had reached."""
    processes = spawn(tmp_path, 2, DYING)
    errors = ended(processes)
    assert (processes[0].returncode, processes[1].returncode) == (1, -signal.SIGKILL)
    assert "RuntimeError: a process of the group is gone: its own message says why" in errors[0]
    (reached,) = (tmp_path / "kept").iterdir()
    assert distributed.read_checkpoint(reached).ranks == (3,)
    model = torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.Tanh(), torch.nn.Linear(24, 5)).eval()
    x = torch.randn(120, 6, generator=seeded(1))
    told: list[tenflex.Progress] = []
    tenflex.compress(
        model, x, {"": tenflex.Block(3, start="cpd")}, checkpoints=tmp_path / "kept", on_progress=told.append
    )
    stages = {one.stage for one in told}
    assert "refine" in stages or "Gauss-Newton" in stages
    assert "Jacobian CPD" not in stages


@pytest.mark.slow
def test_a_network_on_the_command_line_under_torchrun(tmp_path: Path) -> None:
    """One result, each thing said once; what the first process wrote loads."""
    (tmp_path / "shop.py").write_text(
        "import torch\n\n\ndef network():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.Tanh(), torch.nn.Linear(24, 5))\n"
    )
    numpy.save(tmp_path / "x.npy", torch.randn(300, 6, generator=seeded(0)).numpy())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONWARNINGS": "ignore"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tenflex"]
    asked = ["compress", "shop:network", "--inputs", "x.npy", "--block", "0:2,rank=4", "--out", "small", "--json"]
    done = subprocess.run(
        [*launcher, *asked], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"]["blocks"][0]["name"] == "0:2"
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"config.json", "model.safetensors", "report.json", "run.yaml"} <= names
    assert not any(name.endswith(".part") for name in names)


def test_without_a_group(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no process group: start with `torchrun --nproc-per-node N`"):
        distributed.decouple(problem_of(points(20)))
    samples = tenflex.sample(f, points(20))
    assert distributed.own_share(samples) is samples
    assert distributed.is_first()
    assert not distributed.launched()


def test_other_files_are_no_checkpoints(tmp_path: Path, start: Factors) -> None:
    distributed.write_checkpoint(tmp_path / "kept.safetensors", start)
    again = distributed.read_checkpoint(tmp_path / "kept.safetensors")
    assert torch.equal(again.flat(), start.flat())
    assert again.activations[0].basis == start.activations[0].basis
    solution = tenflex.decouple(problem_of(points(40)), ConstrainedALS(1))
    solution.save(tmp_path / "solution.safetensors")
    with pytest.raises(ValueError, match=r"solution.safetensors is no checkpoint: it has the format 'tenflex-solution"):
        distributed.read_checkpoint(tmp_path / "solution.safetensors")
