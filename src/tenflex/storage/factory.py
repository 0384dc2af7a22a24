"""Architectures by the names of the functions that make them: nothing runs that the user did not name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

Factory: TypeAlias = str | Callable[[], nn.Module]
"""A function without arguments that makes a network, or its name `package.module:function`."""

NAME = re.compile(r"[^\s:.][^\s:]*:[^\s:.][^\s:]*")


def name_of(factory: Factory) -> str:
    """The name of a factory, from which another process can find it.

    Raises:
        TypeError: if it is neither a name nor something that can be called.
        ValueError: if it has no name of that form, or another object has it.
    """
    if isinstance(factory, str):
        if not NAME.fullmatch(factory):
            raise ValueError(f"expected made_by as package.module:function, got {factory!r}")
        return factory
    if not callable(factory):
        raise TypeError(f"made_by must be a function that makes the network or its name, got {factory!r}")
    name = f"{getattr(factory, '__module__', None)}:{getattr(factory, '__qualname__', None)}"
    if not NAME.fullmatch(name) or name.startswith("__main__:") or _found(name) is not factory:
        raise ValueError(
            f"made_by must be a function or a class that other programs can import by its name, got {name}: move it "
            f"to the top of a module, or leave made_by out"
        )
    return name


def architecture(name: object, trust: str | Iterable[str] | None, folder: Path) -> nn.Module:
    """The network that the factory with a name makes, if the user trusts it; a file may name anything.

    Args:
        name: What a file tells; None if it tells nothing.
        trust: Modules, packages or single factories by their names.
        folder: Where the file lies, for messages.

    Raises:
        TypeError: if `trust` holds something else than names, or the factory makes something else than a network.
        ValueError: if the file names nothing, something that is not trusted, or something that cannot be called.
    """
    trusted = [trust] if isinstance(trust, str) else list(trust or ()) if isinstance(trust, Iterable | None) else None
    if trusted is None or not all(isinstance(one, str) for one in trusted):
        raise TypeError(f"trust must be names such as 'shop.models' or 'shop.models:classifier', got {trust!r}")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"{folder} does not name what makes its architecture: pass the model as tenflex.load({str(folder)!r}, "
            f"model), or save with made_by="
        )
    if not any(_covers(one, name) for one in trusted):
        raise ValueError(
            f"{folder} says that {name} makes its architecture, which is code that would run: if you know and trust "
            f"it, call tenflex.load({str(folder)!r}, trust={name!r}), or else pass a model"
        )
    return _made(name)


def _covers(trusted: str, name: str) -> bool:
    """Whether a name is the one that is trusted, or lies in a module or package that is."""
    return trusted == name or (":" not in trusted and f"{name.replace(':', '.')}.".startswith(f"{trusted}."))


def _made(name: str) -> nn.Module:
    """What a factory makes; its random weights leave the global generator as it was."""
    try:
        factory = _found(name)
        if factory is None:
            raise LookupError("there is no such module or function here; is what it belongs to installed?")
        with torch.random.fork_rng(devices=[]):
            model = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:  # whatever the user's code may raise
        raise ValueError(f"{name} could not make the architecture: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} returned {type(model).__name__}: expected a torch.nn.Module")
    return model


def _found(name: str) -> Any:
    """The object with a name; None if there is none."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return None
    for step in path.split("."):
        found = getattr(found, step, None)
    return found
