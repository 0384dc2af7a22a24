"""Tables of samples: columns of a CSV file, or arrays of an .npz file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import near_names
from tenflex.cli.errors import InputError, reading
from tenflex.cli.tensors import load_arrays

DELIMITERS = ",;\t"
"""What may stand between columns; the one that the header has most of is taken."""


@dataclass(frozen=True)
class Table:
    """Samples of a map, with what its inputs and outputs are called.

    Args:
        inputs: The names of the inputs.
        outputs: The names of the outputs.
        points: The inputs, `(S, m)`.
        values: The outputs, `(S, n)`.
        jacobians: The derivatives, `(S, n, m)`; None if the table has none.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    points: Float[Tensor, "S m"]
    values: Float[Tensor, "S n"]
    jacobians: Float[Tensor, "S n m"] | None


def read_table(path: Path, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> Table:
    """The samples in a file.

    Args:
        path: A .csv file with a header, or an .npz file with the arrays `inputs`, `outputs` and, if there are any,
            `jacobians`.
        inputs: The columns that are inputs; None for all others.
        outputs: The columns that are outputs; None for all others.

    Raises:
        InputError: if there is no such file, or it holds something else.
    """
    if path.suffix.lower() == ".npz":
        if inputs or outputs:
            raise InputError(f"{path} has arrays and no columns: leave out --inputs-columns and --outputs-columns")
        return _from_arrays(path)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise InputError(f"expected a table as a .csv file with a header, or as an .npz file, got {str(path)!r}")
    return _from_columns(path, _read_columns(path), inputs, outputs)


def _from_arrays(path: Path) -> Table:
    """The arrays of an .npz file; what they are called is counted."""
    held = load_arrays(path)
    for name in ("inputs", "outputs"):
        if name not in held:
            raise InputError(
                f"{path} has no array {name!r}: expected the arrays inputs (S, m), outputs (S, n) and, where "
                f"derivatives are known, jacobians (S, n, m){near_names(name, held)}"
            )
    parts = {name: _real(held[name]) for name in ("inputs", "outputs", "jacobians") if name in held}
    sizes = [parts[name].shape[1] if parts[name].ndim == 2 else 0 for name in ("inputs", "outputs")]
    inputs, outputs = (tuple(f"{letter}{k + 1}" for k in range(size)) for letter, size in zip("xf", sizes, strict=True))
    return Table(inputs, outputs, parts["inputs"], parts["outputs"], parts.get("jacobians"))


def _real(numbers: Tensor) -> Tensor:
    """Whole numbers as floating-point ones; the others are checked where they are used."""
    return numbers if numbers.is_floating_point() or numbers.is_complex() else numbers.double()


def _read_columns(path: Path) -> dict[str, list[float]]:
    """The numbers of a CSV file by the names in its header."""
    try:
        with reading(path), path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            rows = list(csv.reader(file, delimiter=max(DELIMITERS, key=first.count), skipinitialspace=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a file of comma-separated text: {error}") from None
    header, *lines = [[cell.strip() for cell in row] for row in rows] or [[]]
    _require_header(path, header)
    columns: dict[str, list[float]] = {name: [] for name in header}
    for number, line in enumerate(lines, start=2):
        if not any(line):
            continue
        if len(line) != len(header):
            raise InputError(f"{path} has {len(line)} cells in line {number}, and {len(header)} in its header")
        for name, cell in zip(header, line, strict=True):
            columns[name].append(_number(path, number, name, cell))
    if not columns[header[0]]:
        raise InputError(f"{path} has a header and no numbers below it")
    return columns


def _require_header(path: Path, header: Sequence[str]) -> None:
    if not header or not all(header):
        raise InputError(f"{path} must begin with a line of column names, such as a,b,y,z, got {','.join(header)!r}")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise InputError(f"{path} has two columns called {twice[0]!r}: rename one")
    if all(_is_number(name) for name in header):
        raise InputError(f"{path} begins with numbers: put a line of column names on top, such as a,b,y,z")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, name: str, cell: str) -> float:
    if not _is_number(cell):
        raise InputError(f"{path} has {cell!r} in line {line}, column {name!r}: expected a number")
    return float(cell)


def _from_columns(
    path: Path, columns: dict[str, list[float]], inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> Table:
    for name in (*(inputs or ()), *(outputs or ())):
        if name not in columns:
            raise InputError(f"{path} has no column {name!r}{near_names(name, columns)}")
    inputs, outputs = _split(path, tuple(columns), inputs, outputs)
    return Table(
        inputs,
        outputs,
        _stacked(columns, inputs),
        _stacked(columns, outputs),
        _derivatives(path, columns, inputs, outputs),
    )


def _split(
    path: Path, names: Sequence[str], inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The inputs and the outputs; of the ones that are not named, all columns but derivatives."""
    if not inputs and not outputs:
        raise InputError(
            f"which columns of {path} are inputs? Give --inputs-columns or --outputs-columns, or both, from "
            f"{', '.join(names)}"
        )
    given = tuple(inputs or outputs or ())
    others = tuple(name for name in names if name not in given)
    if not inputs:
        inputs = tuple(name for name in others if not any(name in _slopes(one, others) for one in given))
    elif not outputs:
        outputs = tuple(name for name in others if not any(name in _slopes(one, given) for one in others))
    inputs, outputs = tuple(inputs or ()), tuple(outputs or ())
    both = set(inputs) & set(outputs)
    if both:
        raise InputError(f"the column {both.pop()!r} cannot be an input and an output")
    if not inputs or not outputs:
        raise InputError(f"{path} has no columns left that could be {'inputs' if not inputs else 'outputs'}")
    return inputs, outputs


def _slopes(output: str, inputs: Sequence[str]) -> list[str]:
    """What the columns of derivatives of an output are called."""
    return [f"d{output}/d{name}" for name in inputs]


def _derivatives(
    path: Path, columns: dict[str, list[float]], inputs: Sequence[str], outputs: Sequence[str]
) -> Float[Tensor, "S n m"] | None:
    """The derivatives, if the table has them: columns such as dy/da, for every output and every input."""
    wanted = [_slopes(one, inputs) for one in outputs]
    missing = [name for row in wanted for name in row if name not in columns]
    if len(missing) == len(inputs) * len(outputs):
        return None
    if missing:
        raise InputError(
            f"{path} has some derivatives, but no column {missing[0]!r}: expected one for every output and every "
            f"input, or none at all"
        )
    return torch.stack([_stacked(columns, row) for row in wanted], 1)


def _stacked(columns: dict[str, list[float]], names: Sequence[str]) -> Float[Tensor, "S columns"]:
    return torch.tensor([columns[name] for name in names], dtype=torch.float64).mT.contiguous()
