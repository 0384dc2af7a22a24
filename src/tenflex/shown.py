"""Values at the prompt: tensors by their shapes, nothing that was left out."""

from __future__ import annotations

from dataclasses import fields
from html import escape
from typing import Any

from torch import Tensor


class Shown:
    """A dataclass that holds tensors, written in a line."""

    def __repr__(self) -> str:
        given = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type] # of dataclasses
        shown = (f"{name}={text(one)}" for name, one in given.items() if one is not None)
        return f"{type(self).__name__}({', '.join(shown)})"


class Reported(Shown):
    """A result that shows its report, in a notebook as well."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def text(value: Any) -> str:
    """A value of a field: a tensor by its type and shape."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(text, value))})"
    return repr(value)


def in_words(seconds: float) -> str:
    """A time in the largest unit of which there is one."""
    for size, unit in ((3600.0, "hours"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"
