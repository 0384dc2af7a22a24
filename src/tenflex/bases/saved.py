"""Bases to and from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tenflex.bases.base import Basis
from tenflex.bases.bspline import BSpline
from tenflex.bases.chebyshev import Chebyshev
from tenflex.bases.hinge import Hinge, PositiveHinge, TwoSidedHinge
from tenflex.bases.monomial import Monomial
from tenflex.bases.shaped import Monotone, NonNegative
from tenflex.bases.smooth import Smooth
from tenflex.checks import near_names

FAMILIES: dict[str, type[Any]] = {
    family.__name__: family
    for family in (
        BSpline,
        Chebyshev,
        Hinge,
        Monomial,
        Monotone,
        NonNegative,
        PositiveHinge,
        Smooth,
        TwoSidedHinge,
    )
}


def basis_to_dict(basis: Basis) -> dict[str, Any]:
    """The name of the family and its settings, as plain JSON values."""
    settings = {field.name: getattr(basis, field.name) for field in fields(basis)}  # type: ignore[arg-type]
    plain = {name: basis_to_dict(value) if isinstance(value, Basis) else value for name, value in settings.items()}
    return {"family": type(basis).__name__, **plain}


def basis_from_dict(saved: Any) -> Basis:
    """The basis that `basis_to_dict` described, validated.

    Raises:
        ValueError: if the family or a setting is unknown, or a setting is out of its range.
    """
    if not isinstance(saved, Mapping) or not isinstance(saved.get("family"), str):
        raise ValueError(f'expected a basis such as {{"family": "BSpline", "count": 10}}, got {saved!r}')
    name = saved["family"]
    if name not in FAMILIES:
        raise ValueError(f"no basis is called {name!r}{near_names(name, FAMILIES)}")
    known = {field.name for field in fields(FAMILIES[name])}
    settings = {key: _plain(value) for key, value in saved.items() if key != "family"}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"{name} has no setting {unknown[0]!r}{near_names(unknown[0], sorted(known))}")
    try:
        return FAMILIES[name](**settings)
    except TypeError as error:
        raise ValueError(f"{name} cannot be made from {dict(saved)}: {error}") from None


def _plain(value: Any) -> Any:
    """JSON has lists where the settings have tuples, and dictionaries where they have bases."""
    if isinstance(value, Mapping):
        return basis_from_dict(value)
    return tuple(_plain(one) for one in value) if isinstance(value, list) else value
