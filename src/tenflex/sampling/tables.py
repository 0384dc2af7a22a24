"""Tables of samples in files: columns of a CSV file, or arrays of an .npz file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import near_names
from tenflex.storage.arrays import read_arrays

DELIMITERS = ",;\t"
"""What may stand between columns; the one that the header has most of is taken."""


@dataclass(frozen=True, eq=False)
class NamedTable:
    """Samples of a map, with what its inputs and outputs are called; `sample_table` makes samples of them.

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


def read_table(
    path: str | Path, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> NamedTable:
    """The samples in a file.

    Args:
        path: A .csv file with a header, in which derivatives are columns such as dy/da; or an .npz file with the
            arrays `inputs`, `outputs` and, if there are any, `jacobians`.
        inputs: The columns that are inputs; None for all others.
        outputs: The columns that are outputs; None for all others.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds something else.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        return _from_arrays(path)
    columns = read_columns(path)
    for name in (*(inputs or ()), *(outputs or ())):
        if name not in columns:
            raise ValueError(f"{path} has no column {name!r}{near_names(name, columns)}")
    x, y = _split(path, tuple(columns), inputs, outputs)
    return NamedTable(x, y, _stacked(columns, x), _stacked(columns, y), _derivatives(path, columns, x, y))


def _from_arrays(path: Path) -> NamedTable:
    """The arrays of an .npz file; what they are called is counted."""
    held = read_arrays(path)
    for name in ("inputs", "outputs"):
        if name not in held:
            raise ValueError(
                f"{path} has no array {name!r}: expected the arrays inputs (S, m), outputs (S, n) and, where "
                f"derivatives are known, jacobians (S, n, m){near_names(name, held)}"
            )
    x, y = _real(held["inputs"]), _real(held["outputs"])
    J = _real(held["jacobians"]) if "jacobians" in held else None
    return NamedTable(_numbered("x", x), _numbered("f", y), x, y, J)


def _numbered(letter: str, columns: Tensor) -> tuple[str, ...]:
    return tuple(f"{letter}{k + 1}" for k in range(columns.shape[1] if columns.ndim == 2 else 0))


def _real(numbers: Tensor) -> Tensor:
    """Whole numbers as floating-point ones; the others are checked where they are used."""
    return numbers if numbers.is_floating_point() or numbers.is_complex() else numbers.double()


def read_columns(path: Path) -> dict[str, Float[Tensor, " S"]]:
    """The numbers of a CSV file by the names in its header.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds something else.
    """
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise ValueError(f"expected a table as a .csv file with a header, or as an .npz file, got {str(path)!r}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            rows = list(csv.reader(file, delimiter=max(DELIMITERS, key=first.count), skipinitialspace=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a file of comma-separated text: {error}") from None
    header, *lines = [[cell.strip() for cell in row] for row in rows] or [[]]
    _require_header(path, header)
    numbers = [_numbers(path, header, place, line) for place, line in enumerate(lines, start=2) if any(line)]
    if not numbers:
        raise ValueError(f"{path} has a header and no numbers below it")
    return dict(zip(header, torch.tensor(numbers, dtype=torch.float64, device="cpu").unbind(1), strict=True))


def _require_header(path: Path, header: Sequence[str]) -> None:
    if not header or not all(header):
        raise ValueError(f"{path} must begin with a line of column names, such as a,b,y,z, got {','.join(header)!r}")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has two columns called {twice[0]!r}: rename one")
    if all(_is_number(name) for name in header):
        raise ValueError(f"{path} begins with numbers: put a line of column names on top, such as a,b,y,z")


def _numbers(path: Path, header: Sequence[str], place: int, line: Sequence[str]) -> list[float]:
    if len(line) != len(header):
        raise ValueError(f"{path} has {len(line)} cells in line {place}, and {len(header)} in its header")
    for name, cell in zip(header, line, strict=True):
        if not _is_number(cell):
            raise ValueError(f"{path} has {cell!r} in line {place}, column {name!r}: expected a number")
    return list(map(float, line))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _split(
    path: Path, names: Sequence[str], inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The inputs and the outputs; of the ones that are not named, all columns but derivatives."""
    known = {*(inputs or outputs or ()), *(name for one in names for name in _slopes(one, names))}
    others = tuple(name for name in names if name not in known)
    inputs, outputs = tuple(inputs or others), tuple(outputs or (others if inputs else ()))
    if both := set(inputs) & set(outputs):
        raise ValueError(f"the column {both.pop()!r} cannot be an input and an output")
    if not inputs or not outputs:
        raise ValueError(f"{path} has no columns left that could be {'inputs' if not inputs else 'outputs'}")
    return inputs, outputs


def _slopes(output: str, inputs: Sequence[str]) -> list[str]:
    """What the columns of derivatives of an output are called."""
    return [f"d{output}/d{name}" for name in inputs]


def _derivatives(
    path: Path, columns: dict[str, Tensor], inputs: Sequence[str], outputs: Sequence[str]
) -> Float[Tensor, "S n m"] | None:
    """The derivatives, if the table has them: columns such as dy/da, for every output and every input."""
    wanted = [_slopes(one, inputs) for one in outputs]
    missing = [name for row in wanted for name in row if name not in columns]
    if len(missing) == len(inputs) * len(outputs):
        return None
    if missing:
        raise ValueError(
            f"{path} has some derivatives, but no column {missing[0]!r}: expected one for every output and every "
            f"input, or none at all"
        )
    return torch.stack([_stacked(columns, row) for row in wanted], 1)


def _stacked(columns: dict[str, Tensor], names: Sequence[str]) -> Float[Tensor, "S columns"]:
    return torch.stack([columns[name] for name in names], 1)
