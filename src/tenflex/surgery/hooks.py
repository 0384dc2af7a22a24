"""Hooks of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from tenflex.surgery.paths import get_module, join

KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """All hooks of one module."""
    for kind in KINDS:
        yield from vars(module).get(kind, {}).values()


def hooked_below(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """The modules at `paths` and inside of them that carry hooks, besides those with which PyTorch makes a weight."""
    return [
        join(path, inner)
        for path in paths
        for inner, module in get_module(model, path).named_modules()
        if any(not type(hook).__module__.startswith("torch.nn.utils.") for hook in hooks_of(module))
    ]
