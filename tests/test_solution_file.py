"""Saved solutions: the same bits come back, in another process too, and other files are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import CUBIC, factored, placed, random, sampled, seeded
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import tenflex
from tenflex.bases import Basis
from tenflex.coordinates.active import to_active_axes
from tenflex.coordinates.per_output import PerOutput
from tenflex.coordinates.standardize import Standardize
from tenflex.coordinates.whiten import Whiten
from tenflex.factors import Activations, Factors
from tenflex.identify import identify
from tenflex.result import Record, Result
from tenflex.solution import Solution, load_solution


def require_same(found: Any, expected: Any) -> None:
    """The same value, bit for bit."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            require_same(one, other)
    elif is_dataclass(expected) and not isinstance(expected, Basis):
        for one in fields(expected):
            require_same(getattr(found, one.name), getattr(expected, one.name))
    else:
        assert found == expected


@pytest.fixture(scope="module")
def solution() -> Solution:
    problem = CUBIC.problem(basis=tenflex.Smooth(tenflex.BSpline(6, spacing="quantile")), coupling=1.7, factor=2)
    return tenflex.decouple(problem, tenflex.solvers.ConstrainedALS(4))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some" / "solution.safetensors"


def with_problem(solution: Solution, **changes: Any) -> Solution:
    return replace(solution, problem=replace(solution.problem, **changes))


def test_everything_comes_back(solution: Solution, path: Path) -> None:
    solution.save(path)
    require_same(load_solution(path), solution)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_loaded_solution_is_as_useful(solution: Solution, path: Path) -> None:
    solution.save(path)
    again = load_solution(path)
    assert str(again) == str(solution)
    assert again.errors == solution.errors
    assert str(identify(again)) == str(identify(solution))
    require_same(tenflex.decouple(again.problem, tenflex.solvers.ConstrainedALS(4)).factors, solution.factors)
    again.save(path.with_name("again.safetensors"))
    assert path.with_name("again.safetensors").read_bytes() == path.read_bytes()


def test_another_process_computes_the_same_bits(solution: Solution, path: Path) -> None:
    solution.save(path)
    code = (
        "import sys; from tenflex.solution import load_solution; s = load_solution(sys.argv[1])\n"
        "print(s.factors.outputs(s.problem.samples.inputs).numpy().tobytes().hex()); print(s)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    bits, text = done.stdout.split("\n", 1)
    assert bits == solution.factors.outputs(CUBIC.inputs).numpy().tobytes().hex()
    assert text == f"{solution}\n"


def test_hessians_and_covariance_survive(solution: Solution, path: Path) -> None:
    count, n, m = solution.problem.samples.jacobians.shape
    more = {"hessians": random(seeded(0), count, n, m, m), "covariance": random(seeded(1), count, n, m).square()}
    rich = with_problem(solution, samples=replace(solution.problem.samples, **more))
    rich.save(path)
    require_same(load_solution(path), rich)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reduced_samples_survive(dtype: torch.dtype, path: Path) -> None:
    planted = factored(5, 3, 2, 2, None, 0)
    full = sampled(planted.factors, planted.inputs)
    full = tenflex.Samples(*(one.to(dtype) for one in (full.inputs, full.outputs, full.jacobians)))
    whole = Whiten(1e-2).choose(full.inputs, full.outputs)
    samples, _ = to_active_axes(full.reduced(whole), whole, 1e-3)
    problem = tenflex.Problem(samples, 2, tenflex.Monomial(3), coordinates=Whiten(1e-2), factor=2, output_factor=1)
    reduced = tenflex.decouple(problem, tenflex.solvers.ConstrainedALS(2))
    reduced.save(path)
    require_same(load_solution(path), reduced)


@pytest.mark.parametrize("coordinates", [Standardize(), Whiten(0.0), PerOutput(Whiten(1e-4))], ids=repr)
def test_coordinates_survive(solution: Solution, path: Path, coordinates: Any) -> None:
    other = with_problem(solution, coordinates=coordinates, held_out=0.0)
    other.save(path)
    assert load_solution(path).problem.coordinates == coordinates


def test_two_layers_survive(path: Path) -> None:
    generator = seeded(2)
    V, U, W = (random(generator, 2, 2), random(generator, 2, 3)), random(generator, 2, 3), random(generator, 2, 2)
    coefficients = (random(generator, 3, 4), random(generator, 2, 2))
    shifts, bias = (random(generator, 3), random(generator, 2)), random(generator, 2)
    activations = tuple(map(Activations, coefficients, shifts, (tenflex.BSpline(4), tenflex.Monomial(2))))
    factors = Factors((V, (U.mT,), (W.mT,)), activations, bias)
    problem = tenflex.Problem(sampled(factors, CUBIC.inputs), (3, 2), tenflex.Monomial(2))
    layered = Solution(factors, problem, Result.EXACT, (Record("by hand", 0.0, 0.0, None, 1e-3),))
    layered.save(path)
    require_same(load_solution(path), layered)
    rewrite(path, lambda config, tensors: tensors.update({"solution.factors.maps.1.0": torch.zeros(2, 2)}))
    with pytest.raises(ValueError, match="its factors must have the shapes"):
        load_solution(path)


def test_three_layers_survive(path: Path) -> None:
    generator, sizes = seeded(3), [2, 2, 3, 2, 2]
    *maps, (n, r) = pairwise(sizes)
    maps = [(random(generator, *one),) for one in maps]
    bases = (tenflex.Hinge(3), tenflex.BSpline(4), tenflex.Chebyshev(2))
    activations = tuple(
        Activations(random(generator, rank, one.size), random(generator, rank), one)
        for rank, one in zip(sizes[1:-1], bases, strict=True)
    )
    last = (random(generator, n, 1), random(generator, 1, r))
    factors = Factors((*maps, last), activations, random(generator, r))
    problem = tenflex.Problem(sampled(factors, CUBIC.inputs), (2, 3, 2), bases[0], output_factor=1)
    deep = Solution(factors, problem, Result.EXACT, (Record("by hand", 0.0, 0.0, None, 1e-3),))
    deep.save(path)
    require_same(load_solution(path), deep)


def test_a_diverged_history_survives(solution: Solution, path: Path) -> None:
    record = Record("bad", float("inf"), 1e300 / 3, None, 0.1)
    bad = replace(solution, history=(*solution.history, record), result=Result.DIVERGED)
    bad.save(path)
    again = load_solution(path)
    assert again.history[-1] == record
    assert again.result is Result.DIVERGED


def test_an_earlier_file_is_replaced_as_a_whole(
    solution: Solution, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solution.save(path)
    before = path.read_bytes()

    def fail(*given: Any, **settings: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tenflex.solution.write_tensors", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(solution, result=Result.EXACT).save(path)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


# --- what cannot be saved ---


class Cube(tenflex.Monomial):
    """A family of someone else."""


class Halved(Standardize):
    """Coordinates of someone else."""


def test_what_no_file_could_bring_back_is_refused(solution: Solution, path: Path) -> None:
    with pytest.raises(TypeError, match=r"Cube\(degree=3\) cannot be saved: expected one of tenflex's own bases"):
        with_problem(solution, basis=Cube(3)).save(path)
    with pytest.raises(TypeError, match=r"Halved\(\) \(solution.problem.coordinates\) cannot be saved: expected"):
        with_problem(solution, coordinates=Halved()).save(path)
    assert not path.exists()


def test_paths_are_those_of_safetensors(solution: Solution, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file whose name ends in \.safetensors, got '.*solution\.pt'"):
        solution.save(tmp_path / "solution.pt")
    with pytest.raises(ValueError, match=r"expected a file whose name ends in"):
        solution.save(tmp_path)


# --- what cannot be loaded ---


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["tenflex"])


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """The same file with a change."""
    with safe_open(path, framework="pt") as file:
        config, tensors = json.loads(file.metadata()["tenflex"]), {one: file.get_tensor(one) for one in file.keys()}  # noqa: SIM118
    change(config, tensors)
    config.pop("digest", None)  # as if it had been written so
    save_file(tensors, path, metadata={"tenflex": json.dumps(config)})


def test_missing_file(path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"does not exist: expected a .safetensors file written by Solution.sav"
    ):
        load_solution(path)


def test_truncated_file(solution: Solution, path: Path) -> None:
    solution.save(path)
    whole = path.read_bytes()
    for size in (0, 7, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"damaged or not a safetensors file .*save the solution again"):
            load_solution(path)


def test_files_of_others(path: Path) -> None:
    path.parent.mkdir()
    for metadata, message in [
        (None, "was not written by tenflex: expected a .safetensors file written by Solution.save"),
        ({"tenflex": "{"}, "has a damaged header"),
        ({"tenflex": "[]"}, "has a damaged header"),
        ({"tenflex": '{"format": "tenflex/1"}'}, "holds a compressed network, not a solution: .* with tenflex.load"),
        ({"tenflex": '{"format": "tenflex-solution/9"}'}, "has the format 'tenflex-solution/9', .* update tenflex"),
        ({"tenflex": '{"format": "tenflex/2"}'}, "holds a compressed network, not a solution: .* with tenflex.load"),
        ({"tenflex": '{"format": "tenflex-solution/2"}'}, "is damaged or was changed .it holds no solution"),
        ({"tenflex": '{"format": "tenflex-solution/1"}'}, "is damaged or was changed .it holds no solution"),
    ]:
        save_file({"x": torch.ones(2)}, path, metadata=metadata)
        with pytest.raises(ValueError, match=message):
            load_solution(path)


def first_basis(solution: dict[str, Any]) -> dict[str, Any]:
    return solution["factors"]["activations"][0]["basis"]["settings"]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: t.pop("solution.factors.bias"), "no tensor is called 'solution.factors.bias'"),
        (lambda s, t: t.update({"solution.factors.bias": torch.zeros(3)}), r"factors must have the shapes .*\(3,\)"),
        (lambda s, t: t["solution.problem.samples.inputs"].fill_(torch.nan), "inputs must be finite"),
        (lambda s, t: s["problem"].update(rank=0), "rank must be a whole number of at least 1, got 0"),
        (lambda s, t: s["problem"].update(colour="red"), "unexpected keyword argument 'colour'"),
        (lambda s, t: s["problem"].pop("samples"), "missing 1 required positional argument: 'samples'"),
        (lambda s, t: s["problem"]["basis"]["settings"].update(family="Spline"), "no basis is called 'Spline'"),
        (lambda s, t: s["factors"].update(kind="os.system"), "no kind of value is called 'os.system'"),
        (lambda s, t: s["factors"].update(kind=["a"]), "damaged or was changed"),
        (lambda s, t: s["factors"].update(maps=["a", "b"]), "damaged or was changed"),
        (lambda s, t: s["factors"]["maps"].append(["a", "b"]), "damaged or was changed"),
        (lambda s, t: s["factors"]["maps"].pop(), "damaged or was changed"),
        (lambda s, t: s["factors"]["activations"].pop(), "damaged or was changed"),
        (lambda s, t: s["factors"].update(activations=[1]), "damaged or was changed"),
        (lambda s, t: t.update({"solution.factors.maps.0.1": torch.zeros(7, 2)}), "damaged or was changed"),
        (lambda s, t: s["result"].update(name="FINE"), "no result is called 'FINE'"),
        (lambda s, t: s.update(result=s["problem"]), "its result cannot be"),
        (lambda s, t: s.update(history=[]), "its history must be records, at least one"),
        (lambda s, t: s.update(history=[1, 2]), "its history must be records, at least one"),
        (lambda s, t: s["factors"].update(maps=[]), "damaged or was changed"),
        (lambda s, t: s["factors"].update(maps=[[], []]), "damaged or was changed"),
        (lambda s, t: s["problem"].update(rank=10**12), "rank must be at most"),
        (lambda s, t: s["problem"]["basis"]["settings"].update(family="BSpline", count=10**400), "damaged or was"),
        (lambda s, t: first_basis(s).update(family="BSpline", count=10**12), "damaged or was changed"),
        (lambda s, t: first_basis(s).update(family="BSpline", count=10**400), "damaged or was changed"),
        (lambda s, t: t.update({"solution.factors.bias": t["solution.factors.bias"].view(torch.int64)}), "damaged"),
        (lambda s, t: s.update(history=nested(900)), "damaged or was changed"),
    ],
)  # fmt: skip
def test_changed_files(solution: Solution, path: Path, change: Callable[..., None], message: str) -> None:
    solution.save(path)
    rewrite(path, lambda config, tensors: change(config["solution"], tensors))
    with pytest.raises(ValueError, match=message) as caught:
        load_solution(path)
    assert str(path) in str(caught.value)
    assert "save the solution again" in str(caught.value)


@pytest.mark.parametrize("basis", [tenflex.Hinge(4), tenflex.Chebyshev(3), tenflex.BSpline(6, 2)], ids=repr)
def test_every_family_survives(basis: Basis, path: Path) -> None:
    planted = placed(basis)
    solution = Solution(planted.factors, planted.problem(), Result.EXACT, (Record("by hand", 0.0, 0.0, None, 0.0),))
    solution.save(path)
    require_same(load_solution(path), solution)


def test_a_number_that_changed_on_the_disk_is_found(solution: Solution, path: Path) -> None:
    """Whichever: sizes and names are as before, and earlier versions wrote no digest."""
    solution.save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in torch.randint(start, len(whole), (20,), generator=seeded(0)).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="its numbers are not those that were written: save the solution again"):
            load_solution(path)
    path.write_bytes(whole)
    with safe_open(path, framework="pt") as file:
        assert "digest" in json.loads(file.metadata()["tenflex"])
    rewrite(path, lambda config, tensors: None)  # which leaves the digest out
    require_same(load_solution(path).factors, solution.factors)


def test_no_points_have_no_outputs(solution: Solution) -> None:
    m, n = len(solution.factors.V), len(solution.factors.W)
    assert solution(torch.zeros(0, m)).shape == (0, n)
    assert solution(torch.zeros(3, 0, m)).shape == (3, 0, n)
