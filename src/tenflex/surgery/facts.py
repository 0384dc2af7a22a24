"""What a traced module was told about its input: enough to trace it again without one."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

Plain: TypeAlias = bool | int | float | str | None

STEADY = {"dtype", "device", "layout", "ndim", "dim", "is_nested", "is_floating_point", "is_complex", "is_cuda"}
"""Questions to a tensor whose answers do not depend on how many samples it holds."""

COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}
OPERATORS = COMPARISONS | {operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg}
"""Functions that make numbers of numbers."""


@dataclass(frozen=True)
class Facts:
    """What tracing needs to know of the input, in plain values.

    Args:
        tensors: The arguments that hold tensors. All others are constants of the graph.
        constants: Those that were given another value than their default, by name.
        answers: What control flow asked about tensors (their number of dimensions, a size), by module and number of the
            question.
        sizes: The shapes of outer tensors whose sizes are used inside the block, by node.
        digest: Of the names of the nodes up to the block's end: `sizes` belong to this graph and no other.
    """

    tensors: tuple[str, ...] = ()
    constants: tuple[tuple[str, Plain], ...] = ()
    answers: tuple[tuple[str, int], ...] = ()
    sizes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The facts in values that JSON knows."""
        return {
            "tensors": list(self.tensors),
            "constants": dict(self.constants),
            "answers": dict(self.answers),
            "sizes": {name: list(shape) for name, shape in self.sizes},
            "digest": self.digest,
        }

    @staticmethod
    def from_dict(values: object) -> Facts:
        """The facts that `to_dict` wrote.

        Raises:
            ValueError: if the values have another form.
        """
        read = read_fields("facts", values, Facts)
        require_form("facts.tensors", read["tensors"], is_list_of_text(read["tensors"]), "a list of names")
        for name, good in {"constants": is_plain, "answers": _is_whole, "sizes": _is_shape}.items():
            require_form(f"facts.{name}", read[name], _is_mapping(read[name], good), "a mapping from names to values")
        require_form("facts.digest", read["digest"], _is_text(read["digest"]), "a string")
        sizes = tuple((name, tuple(shape)) for name, shape in read["sizes"].items())
        constants, answers = (tuple(read[name].items()) for name in ("constants", "answers"))
        return Facts(tuple(read["tensors"]), constants, answers, sizes, read["digest"])


def read_fields(what: str, values: object, kind: type[Any], later: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The values of all fields of a dataclass; ValueError if one is missing or unknown.

    `later` holds the values of fields that earlier versions did not write.
    """
    expected = {field.name for field in fields(kind)}
    if isinstance(values, Mapping):
        values = {**(later or {}), **values}
    if not isinstance(values, Mapping) or set(values) != expected:
        got = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(f"expected {what} with the entries {sorted(expected)}, got {got}: was the file changed?")
    return dict(values)


def require_form(name: str, value: object, good: bool, expected: str) -> None:
    """Raise ValueError unless a value that was read has the right form."""
    if not good:
        raise ValueError(f"expected {name} to be {expected}, got {value!r}: was the file changed?")


def is_plain(value: object) -> bool:
    """Whether a value is a constant that JSON knows."""
    return value is None or type(value) in (bool, int, float, str)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return isinstance(value, int)


def is_count(value: object) -> bool:
    """Whether a value is a whole number of at least 1."""
    return type(value) is int and value >= 1


def is_list_of_text(value: object) -> bool:
    """Whether a value is a list of strings."""
    return _is_list(value, _is_text)


def _is_list(value: object, good: Callable[[object], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(good, value))


def _is_mapping(value: object, good: Callable[[object], bool]) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, value)) and all(map(good, value.values()))


def _is_shape(value: object) -> bool:
    return _is_list(value, lambda one: isinstance(one, int) and one >= 0)


def question(node: fx.Node) -> str | None:
    """What a node asks of a tensor ("shape", "size", "dtype", ...); None if it does something else."""
    if node.op == "call_function" and node.target is getattr:
        name = str(node.args[1])
    elif node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function":
        name = getattr(node.target, "__name__", "")
    else:
        return None
    return name if name in STEADY or name in ("shape", "size") else None


def is_number(node: fx.Node) -> bool:
    """Whether a node is a question to a tensor, or made of nothing but answers to questions."""
    if question(node):
        return True
    made = node.op == "call_function" and (node.target in OPERATORS or node.target is operator.getitem)
    return made and bool(node.all_input_nodes) and all(map(is_number, node.all_input_nodes))


def is_steady(node: Any, values: dict[fx.Node, Any]) -> bool:
    """Whether a number is the same for any number of samples: it asks for no first dimension of a tensor.

    Args:
        node: A node, or a constant.
        values: What every node was in one forward pass.
    """
    if not isinstance(node, fx.Node):
        return True
    asked = question(node)
    if asked == "size" and len(node.args) == 2:
        return _later(*node.args, values)
    if asked is not None:
        return asked in STEADY
    if node.op != "call_function" or not node.args:
        return False
    shape = node.args[0]
    if node.target is operator.getitem and isinstance(shape, fx.Node) and question(shape) in ("shape", "size"):
        return _later(shape.args[0], node.args[1], values)
    return node.target in OPERATORS and all(is_steady(one, values) for one in node.args)


def _later(tensor: Any, index: Any, values: dict[fx.Node, Any]) -> bool:
    """Whether an index, or a slice, picks no first dimension."""
    known = values.get(tensor)
    if not isinstance(known, Tensor) or not isinstance(index, (int, slice)):
        return False
    chosen = range(known.ndim)[index]
    return 0 not in chosen if isinstance(chosen, range) else chosen != 0


def digest(graph: fx.Graph, last: fx.Node | None) -> str:
    """A fingerprint of the names of the nodes up to one, or of all."""
    names = []
    for node in graph.nodes:
        names.append(f"{node.op} {node.name}")
        if node is last:
            break
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def sized_like(inputs: Any, shape: tuple[int, ...]) -> Any:
    """The shape of an outer tensor, for as many samples as there are inputs."""
    if isinstance(inputs, fx.Proxy):  # traced again, as by unpickling
        return inputs.tracer.create_proxy("call_function", sized_like, (inputs, shape), {})
    return torch.Size((inputs.shape[0], *shape[1:]))
