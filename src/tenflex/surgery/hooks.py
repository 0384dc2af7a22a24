"""Hooks of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from tenflex.surgery.paths import get_module, join

KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

PARTS = ("torch.nn.utils.", "tenflex.surgery.")
"""Where hooks are from that are parts of a network: those that make a weight, and those that let layers begin spans."""


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """All hooks of one module."""
    for kind in KINDS:
        yield from vars(module).get(kind, {}).values()


def is_part(hook: object) -> bool:
    """Whether a hook is part of the network, and not of who watches it."""
    return type(hook).__module__.startswith(PARTS)


def unhook_(module: nn.Module) -> None:
    """Take away the hooks of one module that are no parts of the network, in place."""
    for kind in KINDS:
        hooks = vars(module).get(kind, {})
        for key in [key for key, hook in hooks.items() if not is_part(hook)]:
            del hooks[key]


def hooked_below(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """The modules at `paths` and inside of them that carry hooks, besides those that are parts of the network."""
    return [
        join(path, inner)
        for path in paths
        for inner, module in get_module(model, path).named_modules()
        if not all(map(is_part, hooks_of(module)))
    ]
