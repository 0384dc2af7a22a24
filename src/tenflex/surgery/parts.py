"""Tensors that leave a block in another form than its one layer gives: joined for it, and divided again behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.surgery.batch import describe
from tenflex.surgery.facts import is_list_of_text, read_fields, require_form

MODULES, DICT, NUMBER = "modules", "dict", "number"
KINDS: dict[str, Any] = {"tuple": tuple, "list": list}
"""How a module gives several tensors, besides a dict of them.

"modules" are several that give one each, and "number" is one tensor `(S,)`, of which a layer gives a row of one.
"""


@dataclass(frozen=True)
class Parts:
    """Several tensors that leave a block, or one with a single number for each sample.

    All numbers of one sample stand side by side in one row. Where the tensors differ in their last axis alone, as for
    positions of sequences, they stand side by side along that axis, and the others may have any size.

    Args:
        kind: "tuple", "list" or "dict", as the last module gives them, "modules" or "number".
        names: Their places, keys, or the modules that they leave.
        shapes: Of each for one sample, in the example that the block was cut with.
    """

    kind: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, DICT, MODULES, NUMBER) or len(self.names) != len(self.shapes) or not self.names:
            raise ValueError(f"expected the kind of several tensors with their names and shapes, got {self!r}")

    @classmethod
    def of(cls, output: Any) -> Parts | None:
        """What a module gives, if it is several tensors, in a tuple, a list or a dict, or numbers `(S,)`; else None."""
        if isinstance(output, Tensor) and output.ndim == 1 and output.is_floating_point():
            return cls(NUMBER, ("0",), ((),))
        kind = DICT if type(output) is dict else next((name for name, one in KINDS.items() if type(output) is one), "")
        values = list(output.values()) if kind == DICT else list(output) if kind else []
        if not values or not all(isinstance(one, Tensor) and one.ndim for one in values):
            return None
        names = tuple(output) if kind == DICT else tuple(map(str, range(len(values))))
        if not all(isinstance(one, str) for one in names):
            return None
        return cls(kind, names, tuple(tuple(one.shape[1:]) for one in values))

    @classmethod
    def leaving(cls, modules: Sequence[str], outputs: Sequence[Any]) -> Parts | None:
        """What several modules give, if each gives one tensor; None if not."""
        if not all(isinstance(one, Tensor) and one.ndim for one in outputs):
            return None
        return cls(MODULES, tuple(modules), tuple(tuple(one.shape[1:]) for one in outputs))

    @property
    def along_last(self) -> bool:
        """Whether the tensors differ in their last axis alone."""
        return all(self.shapes) and len({one[:-1] for one in self.shapes}) == 1

    @property
    def widths(self) -> tuple[int, ...]:
        """How many numbers of a row each tensor has."""
        return tuple(one[-1] if self.along_last else math.prod(one) for one in self.shapes)

    def listed(self, output: Any) -> list[Tensor]:
        """The tensors that the last module gave.

        Raises:
            ValueError: if it gave something else than in the example that the block was cut with.
        """
        found = Parts.of(output)
        if found is None or (found.kind, found.names) != (self.kind, self.names):
            form = "numbers (S,)" if self.kind == NUMBER else f"a {self.kind} of {len(self.names)} tensors"
            raise ValueError(
                f"expected {form} to leave the block, as in the example that it "
                f"was cut with, got {describe(output)}: find the cut with an example like this input"
            )
        if self.kind == NUMBER:
            return [output]
        return list(output.values()) if self.kind == DICT else list(output)

    def joined(self, tensors: Sequence[Tensor]) -> Float[Tensor, "S *row"]:
        """All tensors as one.

        Raises:
            ValueError: if they are no real numbers with as many samples, or have other shapes than they had.
        """
        good = all(one.is_floating_point() and one.ndim and len(one) == len(tensors[0]) for one in tensors)
        if good and self.along_last:
            good = len({one.shape[:-1] for one in tensors}) == 1
        elif good:
            good = tuple(tuple(one.shape[1:]) for one in tensors) == self.shapes
        if not good:
            raise ValueError(
                f"expected tensors of real numbers to leave the block, with a row for each sample and the shapes "
                f"{self.shapes} besides, got {describe(tuple(tensors))}: choose a block that gives such"
            )
        wide = max((one.dtype for one in tensors), key=lambda one: torch.finfo(one).bits)
        return torch.cat([(one if self.along_last else one.flatten(1)).to(wide) for one in map(_rows, tensors)], -1)

    def part(self, outputs: Float[Tensor, "S *row"], index: int) -> Float[Tensor, "S *out"]:
        """One of the tensors, of all of them."""
        part = outputs.narrow(-1, sum(self.widths[:index]), self.widths[index])
        return part if self.along_last else part.reshape(outputs.shape[0], *self.shapes[index])

    def given(self, outputs: Float[Tensor, "S *row"], module: str = "") -> Any:
        """What a module of the block gives of the layer's outputs: its own tensor, or all of them in their form."""
        if self.kind == MODULES:
            return self.part(outputs, self.names.index(module))
        if self.kind == NUMBER:
            return outputs.squeeze(-1)  # which more runtimes know than parts of rows
        parts = [self.part(outputs, index) for index in range(len(self.names))]
        return dict(zip(self.names, parts, strict=True)) if self.kind == DICT else KINDS[self.kind](parts)

    def to_dict(self) -> dict[str, Any]:
        """The parts in values that JSON knows."""
        return {"kind": self.kind, "names": list(self.names), "shapes": [list(one) for one in self.shapes]}

    @staticmethod
    def from_dict(values: object) -> Parts:
        """The parts that `to_dict` wrote.

        Raises:
            ValueError: if the values have another form.
        """
        read = read_fields("parts", values, Parts)
        require_form("parts.kind", read["kind"], isinstance(read["kind"], str), "a string")
        require_form("parts.names", read["names"], is_list_of_text(read["names"]), "a list of names")
        good = isinstance(read["shapes"], list) and all(map(_is_shape, read["shapes"]))
        require_form("parts.shapes", read["shapes"], good, "a list of shapes")
        return Parts(read["kind"], tuple(read["names"]), tuple(map(tuple, read["shapes"])))


def _rows(tensor: Tensor) -> Tensor:
    """At least two axes: a number for each sample is a row of one."""
    return tensor if tensor.ndim > 1 else tensor[:, None]


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


class Divided(nn.Module):
    """In the place of the last module of a chain: the tensors of which the layer gives all.

    Args:
        parts: Which there are.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, outputs: Float[Tensor, "S *row"]) -> Any:
        """The tensors in the form that the module gave them."""
        return self.parts.given(outputs)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {shape}" for name, shape in zip(self.parts.names, self.parts.shapes, strict=True))


class Several(Divided):
    """A layer in the place of one module that gives several tensors, or numbers `(S,)`.

    Args:
        layer: The layer, whose outputs are all of them in one row.
        parts: Which there are.
    """

    def __init__(self, layer: nn.Module, parts: Parts) -> None:
        super().__init__(parts)
        self.layer = layer
        self.train(layer.training)

    def forward(self, inputs: Float[Tensor, "S *in"]) -> Any:
        """The tensors in the form that the module gave them."""
        return super().forward(self.layer(inputs))
