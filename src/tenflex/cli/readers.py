"""How settings are read from options and from files: a reader for every type of setting."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NewType

from tenflex.bases import Basis, basis_from_dict
from tenflex.checks import require_number, require_whole
from tenflex.cli.blocks import FAMILIES, parse_basis, parse_blocks, parse_family, parse_modes
from tenflex.cli.errors import InputError
from tenflex.coordinates import COORDINATES, Coordinates
from tenflex.coordinates.metric import METRICS, OutputMetric
from tenflex.families import Families
from tenflex.modes import MODES, Modes
from tenflex.planning.plan import Placed, Plan
from tenflex.sampling.views import Views, require_views
from tenflex.solvers import SOLVERS, Solver

AUTO = "auto"
"""The rank that is to be found."""

Names = tuple[str, ...]
Numbers = tuple[float, ...]
Axes = tuple[int, ...]
Rank = int | tuple[int, ...] | str
Blocks = Mapping[str, Placed]
Bytes = NewType("Bytes", int)


def read_text(name: str, value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} must be a text, got {value!r}")
    return value


def _parts(value: Any) -> list[Any]:
    """What a list holds, or what commas separate; any other value alone."""
    if isinstance(value, str):
        return value.split(",")
    return list(value) if isinstance(value, (list, tuple)) and value else [value]


def read_names(name: str, value: Any) -> Names:
    """Names, as a list or separated by commas."""
    parts = _parts(value)
    if not all(isinstance(one, str) and one.strip() for one in parts):
        raise InputError(f"{name} must be names separated by commas, such as a,b, got {value!r}")
    names = tuple(one.strip() for one in parts)
    if len(set(names)) < len(names):
        raise InputError(f"{name} must be different names, got {', '.join(names)}")
    return names


def read_numbers(name: str, value: Any) -> Numbers:
    """Numbers, as a list or separated by commas."""
    try:
        numbers = tuple(float(one) for one in _parts(value))
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, or one for each input such as -1,0, got {value!r}") from None
    for one in numbers:
        require_number(name, one)
    return numbers


def read_axes(name: str, value: Any) -> Axes:
    """Lengths of axes, as a list or as 28,28 or 28x28."""
    try:
        axes = tuple(int(one) for one in _parts(value.replace("x", ",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise InputError(f"{name} must be the lengths of axes, such as 28,28, got {value!r}") from None
    for one in axes:
        require_whole(name, one, at_least=1)
    return axes


def read_flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {value!r}")
    return value


def read_rank(name: str, value: Any) -> Rank:
    """A rank: "auto", or one number of nodes a layer; that of a single layer is an int."""
    if value == AUTO:
        return AUTO
    parts = _parts(value.replace("-", ",") if isinstance(value, str) else value)  # `--block` writes 20-20
    try:
        ranks = tuple(int(one) if isinstance(one, str) else one for one in parts)
    except ValueError:
        raise InputError(
            f"{name} must be auto or one number of nodes a layer, such as 20 or 20,20, got {value!r}"
        ) from None
    for one in ranks:
        require_whole(name, one, at_least=1)
    return ranks[0] if len(ranks) == 1 else ranks


def read_views(name: str, value: Any) -> Views:
    """What is kept of Jacobians: "whole", or a number."""
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    require_views(value)
    kept: Views = value
    return kept


def read_bytes(name: str, value: Any) -> Bytes:
    """A size of memory, as a number of bytes or with a unit: 2 GiB, 500 MB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kMGT])(i?)B|B|bytes)?\s*", str(value))
    if match is None:
        raise InputError(f"{name} must be a size such as 2 GiB, 500 MB or a number of bytes, got {value!r}")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    return Bytes(int(float(number) * (base ** " kMGT".index(prefix) if prefix else 1)))


def read_basis(name: str, value: Any) -> Basis:
    """A basis, as Python writes it or in plain values."""
    return basis_from_dict(parse_basis(value) if isinstance(value, str) else value)


def reader_of(families: Families, expected: str) -> Callable[[str, Any], Any]:
    """A reader of values of some families, as Python writes them or in plain values."""

    def read(name: str, value: Any) -> Any:
        return families.from_dict(parse_family(value, families, expected) if isinstance(value, str) else value)

    return read


def read_blocks(name: str, value: Any) -> Blocks:
    """Blocks, as the texts of `--block` or as settings by name."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = parse_blocks(value)
    if isinstance(value, Mapping):
        value = {key: _with_families(block) for key, block in value.items()}
    return Plan.from_dict({"blocks": value}).blocks if value else {}


def read_modes(name: str, value: Any) -> Modes:
    """Modes, as Python writes them or in plain values."""
    modes: Modes = MODES.from_dict(parse_modes(value) if isinstance(value, str) else value)
    return modes


def _with_families(block: Any) -> Any:
    """Settings of a block, with a basis and modes that are written as text in the form that `Plan.from_dict` reads."""
    if not isinstance(block, Mapping):
        return block
    texts = {key: read for key, read in FAMILIES.items() if isinstance(block.get(key), str)}
    return {**block, **{key: read(block[key]) for key, read in texts.items()}}


READERS: Mapping[Any, Callable[[str, Any], Any]] = {
    str: read_text,
    bool: read_flag,
    Names: read_names,
    Numbers: read_numbers,
    Axes: read_axes,
    Rank: read_rank,
    Bytes: read_bytes,
    Views: read_views,
    Basis: read_basis,
    Modes: read_modes,
    OutputMetric: reader_of(METRICS, "a metric such as Fisher() or Downstream()"),
    Coordinates: reader_of(COORDINATES, "coordinates such as Sensitivity() or Whiten()"),
    Solver: reader_of(SOLVERS, "a solver such as ConstrainedALS(25) or Chain((JacobianCPD(30), Refine(60)))"),
    Blocks: read_blocks,
}
"""Numbers are not among them: they are checked where they are used."""
