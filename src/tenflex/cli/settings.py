"""The settings of a command: options, a file with the same settings, and the resolved ones beside the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import yaml

from tenflex.bases import Basis
from tenflex.checks import near_names
from tenflex.cli.errors import InputError, one_line, reading
from tenflex.cli.readers import READERS
from tenflex.coordinates import Coordinates
from tenflex.planning.plan import Block
from tenflex.solvers import Solver
from tenflex.storage.files import beside

RESOLVED = "run.yaml"
"""What the resolved settings are called beside a result."""

Own = TypeVar("Own", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a command is asked for: a field for every setting, made by `option` or `argument` of `tenflex.cli.options`.

    `READERS` knows how a field of its type is read from an option or a file.
    """

    cures: ClassVar[Mapping[str, str]] = {}
    """How to give what is missing, where it is not by an option of that name."""

    @classmethod
    def kinds(cls) -> dict[str, Any]:
        """The type of every setting, without None."""
        hints = get_type_hints(cls)
        return {one.name: _kind(hints[one.name]) for one in fields(cls)}

    @classmethod
    def replaced(cls, given: Mapping[str, Any]) -> set[str]:
        """The settings of a file that belong to something that other options replace."""
        return set()

    @classmethod
    def merge(cls: type[Own], path: Path | None, options: Mapping[str, Any]) -> Own:
        """The settings of a file, where options that are given (those that are not None) win."""
        given = only_given(options)
        dropped = cls.replaced(given)
        saved = {} if path is None else read_settings(path, tuple(cls.kinds()))
        return cls.from_dict({**{name: one for name, one in saved.items() if name not in dropped}, **given})

    @classmethod
    def from_dict(cls: type[Own], saved: Mapping[str, Any]) -> Own:
        """The settings that `to_dict` gave; what has a default may be left out.

        Raises:
            InputError: if a setting is unknown, missing or of the wrong kind.
            ValueError: if a number is out of its range.
        """
        kinds, given = cls.kinds(), only_given(saved)
        for name in given:
            if name not in kinds:
                raise InputError(f"there is no setting {name!r}{near_names(str(name), kinds)}")
        for one in fields(cls):
            if one.name not in given and one.default is MISSING:
                cure = cls.cures.get(one.name, f"give {option_name(one.name)}")
                raise InputError(f"{one.name} is missing: {cure}, or set `{one.name}:` in the file of --config")
        return cls(**{name: _read(name, value, kinds[name]) for name, value in given.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with bases as texts."""
        return _plain(self)


def _kind(hint: Any) -> Any:
    known = [one for one in get_args(hint) if one is not NoneType]
    return reduce(or_, known) if NoneType in get_args(hint) else hint


def _read(name: str, value: Any, kind: Any) -> Any:
    return READERS[kind](name, value) if kind in READERS else value


def _plain(value: Any) -> Any:
    if isinstance(value, (Basis, Coordinates, Solver)):
        return repr(value)
    if isinstance(value, (Settings, Block)):
        return only_given({field.name: _plain(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def option_name(name: str) -> str:
    """A setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def only_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def read_settings(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """The settings in a YAML or JSON file.

    Args:
        path: The file.
        names: What the command knows.

    Raises:
        InputError: if there is no such file, or it holds something else.
    """
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a file of YAML or JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold settings by name ({', '.join(names)}), got {type(found).__name__}")
    for name in found:
        if name not in names:
            raise InputError(f"{path} has an unknown setting {name!r}{near_names(str(name), names)}")
    return found


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings as YAML, as a whole or not at all."""
    with beside(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")
