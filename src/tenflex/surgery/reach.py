"""All that a network holds besides its modules: attributes, containers, owners of functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import MethodType

from torch import Tensor, nn


class Numberless(Tensor):
    """Stands for a tensor without its numbers: a forward pass may leave one behind, which is no part of the network."""


def reachable(value: object) -> Iterator[object]:
    """A value and all that it holds at any depth, each once.

    Objects are looked into by their attributes, those of PyTorch besides modules excepted; functions are not, as
    `copy.deepcopy` does not copy them. What is `Numberless` is left out.
    """
    seen: dict[int, object] = {}
    left = [value]
    while left:
        one = left.pop()
        if id(one) not in seen and not isinstance(one, Numberless):
            seen[id(one)] = one  # kept alive, so that no two have the same identity
            yield one
            left.extend(_held(one))


def _held(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return tuple(value.values())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return tuple(value)
    if isinstance(value, MethodType):
        return (value.__self__,)
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, (Tensor, type)) or not hasattr(value, "__dict__"):
        return ()
    plain = type(value).__module__.partition(".")[0] not in ("torch", "builtins")
    return (vars(value),) if plain or isinstance(value, nn.Module) else ()
