"""What `tenflex decouple` is asked for: options, a file with the same settings, and the resolved ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tenflex.bases import Basis, basis_from_dict
from tenflex.checks import near_names, require_number, require_whole
from tenflex.cli.blocks import parse_basis
from tenflex.cli.errors import InputError
from tenflex.cli.settings import only_given, read_settings
from tenflex.cli.solver_names import DEFAULT, derivatives_of, require_name

AUTO = "auto"
"""The rank that is to be found."""

POINTS = 300
"""How many points are drawn, when nothing else is asked for."""

TOLERANCE = 0.01
"""The error at which `--rank auto` stops, when nothing else is asked for."""

SOURCES = {
    "polynomial": ("variables", "points", "low", "high", "normal", "inputs"),
    "function": ("variables", "points", "low", "high", "normal", "inputs"),
    "table": ("inputs_columns", "outputs_columns"),
}
"""Where samples come from, with the settings that belong to each."""


@dataclass(frozen=True)
class DecoupleSettings:
    """What `tenflex decouple` does; every path is as seen from the folder in which it runs.

    Args:
        out: The folder of the result.
        polynomial: The map as text.
        function: The map as package.module:name.
        table: The file of samples.
        variables: What the inputs are called, in order.
        points: How many points are drawn.
        low: The lower end of each input, one number or one for each.
        high: The upper end.
        normal: Whether points are drawn from the standard normal distribution instead.
        inputs: A file of points.
        inputs_columns: The columns of a table that are inputs.
        outputs_columns: The columns of a table that are outputs.
        rank: The number of nodes, those of two layers, or "auto".
        tolerance: The held-out error at which "auto" stops.
        basis: The functions of every activation; None for those that suit the map.
        coupling: The weight of the outputs' error beside the Jacobians'.
        solver: The name of the algorithm.
        starts: How often it starts anew.
        refine: Whether a named algorithm is followed by the refinement over everything.
        held_out: The share of the samples that are never fitted.
        seed: Of all random choices.

    Raises:
        InputError: if settings contradict each other or something is missing.
        ValueError: if a number is out of its range.
    """

    out: str
    polynomial: str | None = None
    function: str | None = None
    table: str | None = None
    variables: tuple[str, ...] | None = None
    points: int | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    normal: bool | None = None
    inputs: str | None = None
    inputs_columns: tuple[str, ...] | None = None
    outputs_columns: tuple[str, ...] | None = None
    rank: int | tuple[int, int] | str = AUTO
    tolerance: float | None = None
    basis: Basis | None = None
    coupling: float = 3.0
    solver: str = DEFAULT
    starts: int | None = None
    refine: bool | None = None
    held_out: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_source()
        self._check_points()
        self._check_recipe()
        require_whole("seed", self.seed, at_least=0)

    def _check_source(self) -> None:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            wanted = "--polynomial, --function and --table"
            raise InputError(
                f"expected exactly one of {wanted}, got {' and '.join(f'--{one}' for one in given) or 'none'}"
            )
        for name in (setting for settings in SOURCES.values() for setting in settings):
            if getattr(self, name) is not None and name not in SOURCES[given[0]]:
                raise InputError(f"{option(name)} says nothing about --{given[0]}: leave it out")

    def _check_points(self) -> None:
        drawn = [name for name in ("points", "low", "high", "normal") if getattr(self, name) is not None]
        if self.inputs is not None and drawn:
            raise InputError(f"--inputs names the points, so {option(drawn[0])} draws none: leave one out")
        if self.normal and (self.low is not None or self.high is not None):
            raise InputError("--normal has no ends: leave out --low and --high, or --normal")
        if self.points is not None:
            require_whole("points", self.points, at_least=2)

    def _check_recipe(self) -> None:
        if self.rank != AUTO and self.tolerance is not None:
            raise InputError("--tolerance is for --rank auto: leave one out")
        if self.tolerance is not None:
            require_number("tolerance", self.tolerance, at_least=0)
        require_name(self.solver)
        if self.table is not None and derivatives_of(self.solver) > 1:
            raise InputError(
                f"the solver {self.solver} needs second derivatives, which a table does not have: name another one"
            )
        if self.starts is not None:
            require_whole("starts", self.starts, at_least=1)
        if self.solver == DEFAULT and self.refine is not None:
            raise InputError("the default solver refines at its end: name another --solver, or leave out --refine")
        if isinstance(self.rank, tuple) and self.solver != DEFAULT:
            raise InputError(
                f"the solver {self.solver} is for one layer, got --rank {format_rank(self.rank)}: leave it out"
            )

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> DecoupleSettings:
        """The settings that `to_dict` gave; what has a default may be left out.

        Raises:
            InputError: if a setting is unknown, missing or of the wrong kind.
            ValueError: if a number is out of its range.
        """
        for name in saved:
            if name not in NAMES:
                raise InputError(f"there is no setting {name!r}{near_names(str(name), NAMES)}")
        given = only_given(saved)
        if "out" not in given:
            raise InputError("out is missing: give --out, or set `out:` in the file of --config")
        return cls(**{name: READERS[name](name, value) for name, value in given.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the basis as text."""
        values = {name: getattr(self, name) for name in NAMES}
        plain = {name: list(one) if isinstance(one, tuple) else one for name, one in values.items()}
        return only_given({**plain, "basis": None if self.basis is None else repr(self.basis)})


NAMES = tuple(field.name for field in fields(DecoupleSettings))


def option(name: str) -> str:
    """A setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def merge(path: Path | None, options: Mapping[str, Any]) -> DecoupleSettings:
    """The settings of a file, where options win; a map or a solver that is given takes all that belongs to it along."""
    settings = {} if path is None else read_settings(path, NAMES)
    given = only_given(options)
    if any(source in given for source in SOURCES):
        settings = {name: one for name, one in settings.items() if name not in OF_SOURCES}
    if given.get("rank", AUTO) != AUTO:
        settings.pop("tolerance", None)
    if "solver" in given:
        settings = {name: one for name, one in settings.items() if name not in ("starts", "refine")}
    return DecoupleSettings.from_dict({**settings, **given})


OF_SOURCES = {*SOURCES, *(name for names in SOURCES.values() for name in names)}
"""The settings that say where samples come from."""


def parse_rank(name: str, value: Any) -> int | tuple[int, int] | str:
    """A rank: "auto", a whole number, or two of them for two layers."""
    if value == AUTO:
        return AUTO
    text = value.replace("-", ",").split(",") if isinstance(value, str) else value  # `--block` writes 20-20
    parts = list(text) if isinstance(text, (list, tuple)) else [text]
    try:
        numbers = [int(one) if isinstance(one, str) else one for one in parts]
    except ValueError:
        raise InputError(f"rank must be auto, a whole number or two such as 20,20, got {value!r}") from None
    if len(numbers) > 2:
        raise InputError(f"rank must be auto, a whole number or two such as 20,20, got {value!r}: at most two layers")
    for one in numbers:
        require_whole("rank", one, at_least=1)
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def format_rank(rank: int | tuple[int, int] | str) -> str:
    """A rank as it is written on the command line."""
    return ",".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} must be a text, got {value!r}")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Names, as a list or separated by commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(one, str) and one.strip() for one in parts):
        raise InputError(f"{name} must be names separated by commas, such as a,b, got {value!r}")
    names = tuple(one.strip() for one in parts)
    if len(set(names)) < len(names):
        raise InputError(f"{name} must be different names, got {', '.join(names)}")
    return names


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """Numbers, as a list or separated by commas."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    try:
        numbers = tuple(float(one) for one in parts)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, or one for each input such as -1,0, got {value!r}") from None
    for one in numbers:
        require_number(name, one)
    return numbers


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {value!r}")
    return value


def _basis(name: str, value: Any) -> Basis:
    return basis_from_dict(parse_basis(value) if isinstance(value, str) else value)


def _as_it_is(name: str, value: Any) -> Any:
    """Numbers are checked where they are used."""
    return value


READERS = {
    **dict.fromkeys(NAMES, _as_it_is),
    **dict.fromkeys(("out", "polynomial", "function", "table", "inputs", "solver"), _text),
    **dict.fromkeys(("variables", "inputs_columns", "outputs_columns"), _texts),
    **dict.fromkeys(("low", "high"), _numbers),
    **dict.fromkeys(("normal", "refine"), _flag),
    "rank": parse_rank,
    "basis": _basis,
}
"""How each setting is read from an option or a file."""
