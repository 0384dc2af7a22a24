"""Values as plain JSON beside their tensors, and back, each checked by its own kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from tenflex.bases import BASES, Basis, basis_from_dict, basis_to_dict
from tenflex.families import ADD
from tenflex.result import Result


def pack(value: Any, name: str, tensors: dict[str, Tensor], kinds: Mapping[str, type[Any]]) -> Any:
    """A value as plain JSON; its tensors go to `tensors`, under names that start with `name`.

    Raises:
        TypeError: if it is of a kind that `unpack` does not know.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [pack(one, f"{name}.{place}", tensors, kinds) for place, one in enumerate(value)]
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"kind": "tensor", "name": name}
    if isinstance(value, Result):
        return {"kind": "result", "name": value.name}
    if isinstance(value, Basis):
        if not BASES.holds(value):
            raise TypeError(
                f"{value!r} cannot be saved: expected one of tenflex's own bases, or make it known by {ADD}"
            )
        return {"kind": "basis", "settings": basis_to_dict(value)}
    if is_dataclass(value) and kinds.get(type(value).__name__) is type(value):
        parts = {
            one.name: pack(getattr(value, one.name), f"{name}.{one.name}", tensors, kinds) for one in fields(value)
        }
        return {"kind": type(value).__name__, **parts}
    raise TypeError(
        f"{value!r} ({name}) cannot be saved: expected tenflex's own coordinates, or make it known by {ADD}"
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor], kinds: Mapping[str, type[Any]]) -> Any:
    """The value that `pack` made plain, validated by its own kind.

    Raises:
        TypeError: if a kind has other settings.
        ValueError: if a kind is unknown, a tensor is missing or a setting is out of its range.
    """
    if isinstance(packed, list):
        return tuple(unpack(one, tensors, kinds) for one in packed)
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
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"no kind of value is called {kind!r}")
    return kinds[kind](**{name: unpack(one, tensors, kinds) for name, one in settings.items()})
