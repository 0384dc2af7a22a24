"""Families of one's own: known to files, plans and the command line as soon as they are added, and refused before."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import tenflex
from tenflex import Block, Cosine, Plan, compress
from tenflex.bases import BASES, Basis, Monomial, Smooth, basis_from_dict, basis_to_dict
from tenflex.coordinates import COORDINATES, Standardize
from tenflex.modes import MODES
from tenflex.planning.plan import BLOCK_BASES
from tenflex.solvers import SOLVERS, ConstrainedALS
from tenflex.solvers.base import measured

FAMILIES = (BASES, COORDINATES, MODES, SOLVERS)


BEFORE = [dict(one.members) for one in FAMILIES]


def as_it_was() -> None:
    """Only tenflex's own families are known."""
    for families, members in zip(FAMILIES, BEFORE, strict=True):
        families.members.clear()
        families.members.update(members)


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """What a test adds is gone after it."""
    yield
    as_it_was()


@dataclass(frozen=True)
class Waves(Basis):
    """Sines, and how fast they are: no settings but these are in any file."""

    count: int = 2
    rates: tuple[float, ...] = (1.0, 2.0)
    pace: float = field(default=1.0, repr=False)

    @property
    def size(self) -> int:
        return self.count

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rates = self.pace * torch.tensor(self.rates, dtype=t.dtype, device=t.device)
        return rates, rates * t[..., None]

    def value(self, t: Tensor) -> Tensor:
        return self._at(t)[1].sin()

    def derivative(self, t: Tensor) -> Tensor:
        rates, at = self._at(t)
        return rates * at.cos()

    def second_derivative(self, t: Tensor) -> Tensor:
        rates, at = self._at(t)
        return -rates * rates * at.sin()

    @property
    def operations(self) -> int:
        return 10 * self.count


Namesake = dataclass(frozen=True)(type("Monomial", (Waves,), {"__module__": __name__}))


class Loose(Basis):
    """No dataclass: what its settings are nobody knows."""

    size = 2
    operations = 4

    def value(self, t: Tensor) -> Tensor:
        return torch.stack([t, t * t], -1)

    def derivative(self, t: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(t), 2 * t], -1)

    def second_derivative(self, t: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(t), 2 * torch.ones_like(t)], -1)


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


def inputs() -> Tensor:
    return torch.randn(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def compressed(**settings: Any) -> tenflex.Compression:
    return compress(net(), inputs(), {"": Block(3, **settings)}, solver=ConstrainedALS(2))


# --- what is added is known everywhere ---


def test_a_basis_that_is_added_is_known_to_plans_and_files(tmp_path: Path) -> None:
    assert BASES.add_(Waves) is Waves
    basis = Waves(2, (1.0, 3.0), 0.5)
    assert basis_from_dict(json.loads(json.dumps(basis_to_dict(basis)))) == basis
    assert BLOCK_BASES.from_text("Smooth(Waves(2), 0.1)")["basis"] == {"family": "Waves", "count": 2}
    result = compressed(basis=basis)
    assert Plan.from_dict(json.loads(json.dumps(result.plan.to_dict()))) == result.plan
    result.save(tmp_path / "small")
    assert torch.equal(tenflex.load(tmp_path / "small", net())(inputs()), result.model(inputs()))
    result.solutions[""].save(tmp_path / "one.safetensors")
    assert tenflex.load_solution(tmp_path / "one.safetensors").problem.basis == basis


def test_coordinates_and_solvers_that_are_added_are_known(tmp_path: Path) -> None:
    solver, coordinates = SOLVERS.add_(Mine)(2), COORDINATES.add_(Halved)()
    result = compress(net(), inputs(), {"": Block(3)}, basis=Monomial(2), solver=solver, coordinates=coordinates)
    assert Plan.from_dict(json.loads(json.dumps(result.plan.to_dict()))) == result.plan
    samples = tenflex.sample(lambda x: torch.stack([(x[0] + x[1]) ** 2, x[1] ** 3]), inputs()[:, :2])
    found = tenflex.decouple(tenflex.Problem(samples, 2, Monomial(3), coordinates=coordinates), solver)
    found.save(tmp_path / "one.safetensors")
    assert tenflex.load_solution(tmp_path / "one.safetensors").problem.coordinates == coordinates


@dataclass(frozen=True)
class Mine(ConstrainedALS):
    """An algorithm that tenflex does not know."""


@dataclass(frozen=True)
class Halved(Standardize):
    """Coordinates that tenflex does not know."""


def test_a_class_that_was_made_anew_takes_its_former_place() -> None:
    again = dataclass(frozen=True)(type("Waves", (Waves,), {"__module__": __name__, "__qualname__": "Waves"}))
    BASES.add_(Waves)
    BASES.add_(again)
    assert type(basis_from_dict({"family": "Waves"})) is again


def test_a_basis_may_be_added_after_the_compression(tmp_path: Path) -> None:
    """A long run is not lost: its layers are told by the module and the name of their basis."""
    result = compressed(basis=Waves(2, (1.0, 3.0), 0.5))
    with pytest.raises(TypeError):
        result.save(tmp_path / "small")
    BASES.add_(Waves)
    result.save(tmp_path / "small")
    assert torch.equal(tenflex.load(tmp_path / "small", net())(inputs()), result.model(inputs()))


TOY = """
from test_families import *

BASES.add_(Waves), SOLVERS.add_(Mine)


def f(x):
    return torch.stack([(x[0] + x[1]) ** 2, x[1] ** 3])
"""


def test_the_command_line_knows_what_the_module_of_a_network_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tenflex.cli.app import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "families_toy.py").write_text(TOY)
    ways = [
        ["compress", "families_toy:net", "--inputs", "families_toy:inputs", "--block", ",rank=3,basis=Waves(2)"],
        ["decouple", "--function", "families_toy:f", "--variables", "a,b", "--rank", "2", "--basis", "Waves(2)"],
    ]
    quick = [
        ["--solver", "Mine(2)"],
        ["--solver", "constrained-als", "--starts", "1", "--no-refine", "--points", "60"],
    ]
    for way, settings in zip(ways, quick, strict=True):
        sys.modules.pop("families_toy", None)
        done = CliRunner().invoke(app, [*way, *settings, "--out", way[0]])
        assert done.exit_code == 0, done.output
        assert "Waves(" in (tmp_path / way[0] / "run.yaml").read_text()
        sys.modules.pop("families_toy", None)
        as_it_was()
        again = CliRunner().invoke(app, [way[0], "--config", f"{way[0]}/run.yaml", "--out", f"{way[0]}-again"])
        assert again.exit_code == 0, again.output


# --- what is kept while a run goes on ---


@dataclass(frozen=True)
class Damped(ConstrainedALS):
    """A solver of which its text does not tell all."""

    share: float = field(default=0.0, repr=False)

    def step(self, problem: Any, state: Any) -> Any:
        after = super().step(problem, state)
        changed = [(1 - self.share) * one for one in after.factors.tensors()]
        return measured(problem, after, after.factors.with_tensors(changed))


def error_of(share: float, folder: Path | None) -> float:
    settings: dict[str, Any] = {"basis": Monomial(2), "solver": Damped(3, share=share)}
    return compress(net(), inputs(), {"": Block(3)}, checkpoints=folder, **settings).report.blocks[0].output_error


@pytest.mark.parametrize("known", [False, True])
def test_checkpoints_are_of_the_solver_that_is_asked_for(known: bool, tmp_path: Path) -> None:
    expected = [error_of(share, None) for share in (0.0, 0.5)]
    if known:
        SOLVERS.add_(Damped)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert [error_of(share, tmp_path) for share in (0.0, 0.5)] == expected
    lost = [str(one.message) for one in told if "nothing is kept in" in str(one.message)]
    assert len(list(tmp_path.iterdir())) == (2 if known else 0)
    assert len(lost) == (0 if known else 2)
    assert known or ("Damped(" in lost[0] and "is no solver that is known: make it known by `add_`" in lost[0])


def test_a_basis_that_no_checkpoint_can_hold_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"nothing is kept in .*, and a run that dies starts anew: Waves\(.*add_"):
        compress(net(), inputs(), {"": Block(3, basis=Waves(2))}, solver=ConstrainedALS(2), checkpoints=tmp_path)
    assert not list(tmp_path.iterdir())
    BASES.add_(Waves)
    compress(net(), inputs(), {"": Block(3, basis=Waves(2))}, solver=ConstrainedALS(2), checkpoints=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


# --- results of someone else's solver and coordinates ---


def test_a_result_needs_no_solver_to_be_trained_further(tmp_path: Path) -> None:
    """What made it is left out of its plan, with a warning, and stays in files."""
    asked: dict[str, Any] = {"solver": Damped(2), "coordinates": Halved(), "basis": Monomial(2)}
    compress(net(), inputs(), {"": Block(3)}, **asked).save(tmp_path / "small")
    with pytest.warns(UserWarning, match=rf"{__name__}\..*, the (solver|coordinates) that .* is not known") as told:
        back = tenflex.Compression.load(tmp_path / "small", net())
    assert len(told) == 2
    assert (back.plan.solver, back.plan.coordinates, back.plan.basis) == (None, None, Monomial(2))
    back.finetune(inputs(), steps=2, rate=1e-3).save(tmp_path / "again")
    plans = [json.loads((tmp_path / name / "config.json").read_text())["plan"] for name in ("small", "again")]
    assert plans[0] == plans[1]
    assert plans[0]["solver"]["family"] == f"{__name__}.Damped"
    with pytest.raises(ValueError, match=r"no solver is called|no rule of coordinates is called"):
        Plan.from_dict(plans[0])
    SOLVERS.add_(Damped), COORDINATES.add_(Halved)
    again = tenflex.Compression.load(tmp_path / "again", net()).plan
    assert (again.solver, again.coordinates) == (Damped(2), Halved())


# --- what is not known is refused ---


@pytest.mark.parametrize(
    ("basis", "name"), [(Waves(2), "Waves"), (Namesake(2), "Monomial"), (Loose(), "Loose"), (Smooth(Waves(2)), "Wave")]
)
def test_results_that_nothing_could_load_are_not_written(basis: Basis, name: str, tmp_path: Path) -> None:
    result = compressed(basis=basis)
    message = rf"layer of block '' cannot be saved: no basis is called '{__name__}.{name}.*BASES.add_, then save again"
    with pytest.raises(TypeError, match=message):
        result.save(tmp_path / "small")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match=rf"expected a basis that is known by its name, got .*{__name__}\.{name}"):
        basis_to_dict(basis)
    with pytest.raises(ValueError, match=r"no basis is called '(tests\.)?(test_families|tenflex\.bases)"):
        Plan.from_dict(json.loads(json.dumps(result.plan.to_dict())))


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match=r"a basis is called Monomial already, tenflex.bases.monomial.Monomial: take"):
        BASES.add_(Namesake)
    with pytest.raises(TypeError, match=r"expected a basis that is a frozen dataclass, .*: put @dataclass"):
        BASES.add_(nn.Linear)
    with pytest.raises(TypeError, match="expected a family of modes that is a frozen dataclass"):
        MODES.add_(Cosine(3))  # type: ignore[type-var]
