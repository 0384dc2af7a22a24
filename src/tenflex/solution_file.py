"""Solutions on disk: one file with all there is to know, written as a whole or not at all, read without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tenflex._version import __version__
from tenflex.bases import Basis, basis_from_dict, basis_to_dict
from tenflex.factors import Factors
from tenflex.layered import LayeredFactors
from tenflex.problem import Problem
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.sampling.reduce import PerOutput, Reduction, Standardize, Whiten
from tenflex.saving import beside, read_file
from tenflex.solution import Record, Solution

FORMAT = "tenflex-solution/1"

KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Factors,
        LayeredFactors,
        PerOutput,
        Problem,
        Record,
        Reduction,
        Samples,
        Solution,
        Standardize,
        Whiten,
    )
}
"""What a file may hold besides tensors, numbers, texts and bases."""


def save_solution(solution: Solution, path: str | Path) -> None:
    """Write a solution; see `Solution.save`.

    Raises:
        TypeError: if the basis or the coordinates are not tenflex's own, so that no file could bring them back.
        ValueError: if the path does not end in `.safetensors`, or is a folder.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"expected a file whose name ends in .safetensors, got {str(path)!r}")
    tensors: dict[str, Tensor] = {}
    packed = pack(solution, "solution", tensors)
    versions = {"tenflex": __version__, "torch": torch.__version__}
    header = {"format": FORMAT, "versions": versions, "solution": packed}
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        save_file(tensors, temporary, metadata={"tenflex": json.dumps(header)})


def load_solution(path: str | Path) -> Solution:
    """A saved solution, with the same bits, in this or another process; its tensors are on the CPU.

    Args:
        path: The file that `Solution.save` wrote.

    Returns:
        The solution with its problem and samples: it can be plotted, printed, identified and saved again.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, of another program or of another version.

    Example:
        >>> solution.save("solution.safetensors")  # doctest: +SKIP
        >>> load_solution("solution.safetensors").plot("g.png")  # doctest: +SKIP
    """
    path = Path(path)
    header, tensors = read_file(path, "a .safetensors file written by Solution.save", "the solution")
    found = str(header.get("format"))
    if found.startswith("tenflex/"):
        raise ValueError(f"{path} holds a compressed network, not a solution: load its folder with tenflex.load")
    if found != FORMAT:
        raise ValueError(f"{path} has the format {found!r}, expected {FORMAT!r}: update tenflex")
    try:
        return _checked(unpack(header.get("solution"), tensors))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or was changed ({error}): save the solution again") from None


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as plain JSON; its tensors go to `tensors`, under names that start with `name`.

    Raises:
        TypeError: if it is of a kind that `unpack` does not know.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [pack(one, f"{name}.{place}", tensors) for place, one in enumerate(value)]
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"kind": "tensor", "name": name}
    if isinstance(value, Result):
        return {"kind": "result", "name": value.name}
    if isinstance(value, Basis):
        return {"kind": "basis", "settings": _settings(value)}
    if is_dataclass(value) and KINDS.get(type(value).__name__) is type(value):
        parts = {one.name: pack(getattr(value, one.name), f"{name}.{one.name}", tensors) for one in fields(value)}
        return {"kind": type(value).__name__, **parts}
    raise TypeError(f"{value!r} ({name}) cannot be saved: expected tenflex's own bases and coordinates")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `pack` made plain, validated by its own kind.

    Raises:
        TypeError: if a kind has other settings.
        ValueError: if a kind is unknown, a tensor is missing or a setting is out of its range.
    """
    if isinstance(packed, list):
        return tuple(unpack(one, tensors) for one in packed)
    if not isinstance(packed, Mapping):
        return packed
    kind, settings = packed.get("kind"), {name: one for name, one in packed.items() if name != "kind"}
    if kind == "basis":
        return basis_from_dict(settings.get("settings"))
    if kind in ("tensor", "result"):
        known: Mapping[str, Any] = tensors if kind == "tensor" else Result.__members__
        if settings.get("name") not in known:
            raise ValueError(f"no {kind} is called {settings.get('name')!r}")
        return known[settings["name"]]
    if kind not in KINDS:
        raise ValueError(f"no kind of value is called {kind!r}")
    return KINDS[kind](**{name: unpack(one, tensors) for name, one in settings.items()})


def _settings(basis: Basis) -> dict[str, Any]:
    settings = basis_to_dict(basis)
    try:
        known = basis_from_dict(settings) == basis
    except ValueError:
        known = False
    if not known:
        raise TypeError(f"{basis!r} cannot be saved: expected one of tenflex's own bases")
    return settings


def _checked(solution: Any) -> Solution:
    """The solution, if its parts are what they should be and fit each other."""
    if not isinstance(solution, Solution):
        raise ValueError("it holds no solution")
    parts: dict[str, Any] = {
        "factors": (Factors, LayeredFactors),
        "problem": Problem,
        "result": Result,
        "history": tuple,
    }
    for name, kind in parts.items():
        if not isinstance(getattr(solution, name), kind):
            raise ValueError(f"its {name} cannot be {getattr(solution, name)!r}")
    if not solution.history or not all(isinstance(one, Record) for one in solution.history):
        raise ValueError("its history must be records, at least one")
    _check_shapes(solution)
    return solution


def _check_shapes(solution: Solution) -> None:
    samples, reduction = solution.problem.samples, solution.problem.samples.reduction
    m, n = samples.inputs.shape[1] if reduction is None else len(reduction.mean), samples.outputs.shape[1]
    found, expected = _shapes(solution.factors, m, n, solution.problem.rank)
    if found != expected:
        raise ValueError(f"its factors must have the shapes {expected}, got {found}")


def _shapes(factors: Factors | LayeredFactors, m: int, n: int, rank: Any) -> tuple[list[Any], list[Any]]:
    """The shapes of all factors, and what they must be for a map from m to n numbers."""
    if isinstance(factors, Factors):
        parts = [factors.V, factors.W, factors.coefficients, factors.shift, factors.bias]
        expected = [(m, rank), (n, rank), (rank, factors.basis.size), (rank,), (n,)]
    else:
        parts = [factors.V, factors.U, factors.W, *factors.coefficients, *factors.shifts, factors.bias]
        r1, r2 = rank
        sizes = [(one, basis.size) for one, basis in zip(rank, factors.bases, strict=True)]
        expected = [(m, r1), (r2, r1), (n, r2), *sizes, (r1,), (r2,), (n,)]
    return [tuple(one.shape) for one in parts], expected
