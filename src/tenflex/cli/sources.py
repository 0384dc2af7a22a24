"""Samples for `tenflex decouple`: of a polynomial, of a function, or from a table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases import Basis, BSpline, Monomial, Smooth
from tenflex.cli.decouple_settings import POINTS, DecoupleSettings
from tenflex.cli.errors import InputError, reading
from tenflex.cli.named import call_factory, find_object
from tenflex.cli.tensors import load_tensor
from tenflex.samples import Samples
from tenflex.sampling.inputs import precision
from tenflex.sampling.jacobian import sample
from tenflex.sampling.polynomial import Polynomial
from tenflex.sampling.regression import sample_table
from tenflex.sampling.tables import read_columns, read_table


@dataclass(frozen=True)
class Source:
    """Samples of a map, with what its inputs and outputs are called.

    Args:
        samples: The samples.
        inputs: The names of the inputs.
        outputs: The names of the outputs.
        basis: The functions that suit the map, when none are asked for.
    """

    samples: Samples
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    basis: Basis

    @classmethod
    def of(cls, samples: Samples, inputs: tuple[str, ...], outputs: tuple[str, ...], basis: Basis) -> Source:
        """Samples that bear the names."""
        return cls(samples.called((inputs, outputs)), inputs, outputs, basis)

    @property
    def estimated(self) -> bool:
        """Whether the derivatives were estimated."""
        return self.samples.covariance is not None


def load_source(settings: DecoupleSettings, order: int) -> Source:
    """The samples that the settings ask for.

    Args:
        settings: Where they come from.
        order: The highest derivatives to take, 1 or 2.

    Raises:
        InputError: if there is no such map, file or column.
        ValueError: if the map cannot be sampled.
    """
    if settings.polynomial is not None:
        return _of_polynomial(Polynomial.from_string(settings.polynomial, settings.variables), settings, order)
    if settings.function is not None:
        return _of_function(settings.function, settings, order)
    return _of_table(Path(settings.table or ""), settings)


def _of_polynomial(f: Polynomial, settings: DecoupleSettings, order: int) -> Source:
    """Samples with derivatives that are exact; its own degree is enough for the activations."""
    if f.degree == 0:
        raise InputError("the polynomial is a constant: expected one that depends on its variables")
    x = _points(settings, f.names)
    samples = Samples(x, f.values(x), f.jacobians(x), hessians=f.hessians(x) if order == 2 else None)
    return Source.of(samples, f.names, _numbered("f", samples.outputs.shape[1]), Monomial(f.degree))


def _of_function(text: str, settings: DecoupleSettings, order: int) -> Source:
    f = find_function(text)
    names = settings.variables or _numbered("x", _size(settings))
    x = _points(settings, names)
    if isinstance(f, nn.Module):
        x = x.to(precision(f) or torch.get_default_dtype())
    try:
        samples = sample(f, x, order=order)
    except (IndexError, RuntimeError) as error:
        raise InputError(f"{text} cannot take {len(names)} numbers ({', '.join(names)}): {error}") from error
    return Source.of(samples, names, _numbered("f", samples.outputs.shape[1]), Smooth(BSpline()))


def find_function(text: str) -> Callable[[Tensor], Tensor] | nn.Module:
    """The function of one point, or the module, that `package.module:name` is or returns; a module in eval mode.

    Raises:
        InputError: if there is no such thing.
    """
    found = find_object(text, "the function")
    if not isinstance(found, nn.Module) and callable(found) and _is_factory(found):
        found = call_factory(found, text)
    if isinstance(found, nn.Module):
        return found.eval()
    if not callable(found):
        raise InputError(
            f"{text} is {type(found).__name__}: expected a function of one point, a torch.nn.Module, or a function "
            f"without arguments that returns one"
        )
    return found


def _is_factory(found: Callable[..., Any]) -> bool:
    """Whether it can be called without arguments; one that nothing is known of takes a point."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    return all(one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)


def _size(settings: DecoupleSettings) -> int:
    """How many numbers a function takes, as far as the settings tell."""
    if settings.inputs is not None:
        return _from_file(settings.inputs).shape[1]
    size = max((len(ends) for ends in (settings.low, settings.high) if ends is not None), default=1)
    if size == 1:
        raise InputError(
            "how many numbers does the function take? Name them, as --variables a,b, or give --inputs FILE"
        )
    return size


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{k + 1}" for k in range(count))


def _points(settings: DecoupleSettings, names: tuple[str, ...]) -> Float[Tensor, "S m"]:
    """The points of a file, or random ones."""
    m = len(names)
    if settings.inputs is not None:
        x = _from_file(settings.inputs)
        if x.shape[1] != m:
            raise InputError(f"{settings.inputs} has {x.shape[1]} columns, expected {m}: {', '.join(names)}")
        return x
    generator = torch.Generator().manual_seed(settings.seed)
    count = settings.points or POINTS
    if settings.normal:
        return torch.randn(count, m, generator=generator, dtype=torch.float64)
    low, high = _ends("low", settings.low or (-1.0,), m), _ends("high", settings.high or (1.0,), m)
    for name, one, other in zip(names, low.tolist(), high.tolist(), strict=True):
        if not one < other:
            raise InputError(f"low must be below high, got {one:g} and {other:g} for {name}")
    return low + (high - low) * torch.rand(count, m, generator=generator, dtype=torch.float64)


def _from_file(text: str) -> Float[Tensor, "S m"]:
    x = load_tensor(text).double()
    if x.ndim != 2:
        raise InputError(f"{text} has the shape {tuple(x.shape)}: expected points (S, m), one a row")
    return x


def _ends(name: str, ends: tuple[float, ...], m: int) -> Float[Tensor, " m"]:
    if len(ends) not in (1, m):
        raise InputError(f"{name} must be one number or {m}, one for each input, got {len(ends)}")
    return torch.tensor(ends, dtype=torch.float64).expand(m)


def _of_table(path: Path, settings: DecoupleSettings) -> Source:
    columns = settings.inputs_columns, settings.outputs_columns
    arrays = path.suffix.lower() == ".npz"
    if arrays and any(columns):
        raise InputError(f"{path} has arrays and no columns: leave out --inputs-columns and --outputs-columns")
    with reading(path):
        if not arrays and not any(columns):
            raise InputError(
                f"which columns of {path} are inputs? Give --inputs-columns or --outputs-columns, or both, from "
                f"{', '.join(read_columns(path))}"
            )
        table = read_table(path, *columns)
    samples = sample_table(table.points, table.values, table.jacobians)
    return Source.of(samples, table.inputs, table.outputs, Smooth(BSpline()))
