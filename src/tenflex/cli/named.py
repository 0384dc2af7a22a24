"""Objects in Python modules, by the name `package.module:object`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tenflex.checks import near_names
from tenflex.cli.errors import InputError, one_line


def find_object(text: str, what: str) -> Any:
    """The object that `package.module:object` names; the current directory can be imported from.

    Args:
        text: What the user wrote.
        what: What it should be, for messages.

    Raises:
        InputError: if the module cannot be imported or has no such object.
    """
    name, colon, path = text.partition(":")
    if not (name and colon and path):
        raise InputError(f"expected {what} as package.module:name, got {text!r}")
    found: Any = _import(name)
    for step in path.split("."):
        if not hasattr(found, step):
            known = [one for one in dir(found) if not one.startswith("_")]
            raise InputError(f"{name} has no {path!r}{near_names(step, known)}")
        found = getattr(found, step)
    return found


def call_factory(factory: Any, text: str) -> Any:
    """What a factory without arguments returns."""
    try:
        return factory()
    except SystemExit as error:
        raise InputError(f"{text} was called without arguments and ended the program: {_ended(error)}") from error
    except Exception as error:  # whatever the user's code may raise
        why = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{text} was called without arguments and failed: {why}") from error


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does; it stays, for imports that come late
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except SystemExit as error:
        raise InputError(
            f"importing {name} ended the program: {_ended(error)}; put what a script does below "
            f'`if __name__ == "__main__":`'
        ) from error
    except Exception as error:  # whatever the user's code may raise
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise InputError(
                f"there is no module {missing!r}: expected one that is installed or in the current directory ({here})"
            ) from error
        raise InputError(f"importing {name} failed: {type(error).__name__}: {one_line(error)}") from error


def _ended(error: SystemExit) -> str:
    return f"SystemExit({error.code!r})"
