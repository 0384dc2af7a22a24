"""The settings of a command: options, a file with the same settings, and the resolved ones beside the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields
from functools import partial, reduce
from operator import or_
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import yaml

from tenflex.bases import Basis
from tenflex.checks import near_names
from tenflex.cli.errors import InputError, one_line, reading, together
from tenflex.cli.named import find_object
from tenflex.cli.readers import READERS
from tenflex.coordinates import Coordinates
from tenflex.coordinates.metric import OutputMetric
from tenflex.kept import Own as OwnFunctions
from tenflex.modes import Modes
from tenflex.planning.plan import Block, LowRank
from tenflex.solvers import Solver
from tenflex.storage.files import beside

Own = TypeVar("Own", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a command is asked for: a field for every setting, made by `option` or `argument` of `tenflex.cli.options`.

    `READERS` knows how a field of its type is read from an option or a file.
    """

    cures: ClassVar[Mapping[str, str]] = {}
    """How to give what is missing, where it is not by an option of that name."""

    importing: ClassVar[tuple[str, ...]] = ()
    """The settings that name Python, as package.module:name; families of the user's own are known once it is there."""

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
        together(
            *(partial(_require_known, name, kinds) for name in given),
            *(partial(cls._require, given, one) for one in fields(cls)),
        )
        imports = [partial(_import, name, given[name]) for name in cls.importing if name in given]
        reads = [partial(_read, name, value, kinds[name]) for name, value in given.items()]
        return cls(**dict(zip(given, _after(imports, reads), strict=True)))

    @classmethod
    def _require(cls, given: Mapping[str, Any], one: Field[Any]) -> None:
        """Raise InputError if a setting that has no default is missing."""
        if one.name not in given and one.default is MISSING:
            cure = cls.cures.get(one.name, f"give {option_name(one.name)}")
            raise InputError(f"{one.name} is missing: {cure}, or set `{one.name}:` in the file of --config")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with bases as texts."""
        return _plain(self)


def _require_known(name: str, kinds: Mapping[str, Any]) -> None:
    if name not in kinds:
        raise InputError(f"there is no setting {name!r}{near_names(str(name), kinds)}")


def _kind(hint: Any) -> Any:
    known = [one for one in get_args(hint) if one is not NoneType]
    return reduce(or_, known) if NoneType in get_args(hint) else hint


def _read(name: str, value: Any, kind: Any) -> Any:
    return READERS[kind](name, value) if kind in READERS else value


def _import(name: str, value: Any) -> None:
    """Import the module of a name in Python before anything else is read."""
    if isinstance(value, str) and ":" in value:
        find_object(value, name)


def _after(imports: Sequence[Callable[[], None]], reads: Sequence[Callable[[], Any]]) -> list[Any]:
    """What is read once modules are imported; of one that cannot be, only what lacks it tells now: its use will."""
    for one in imports:
        with suppress(InputError):
            one()
    try:
        return together(*reads)
    except (TypeError, ValueError):
        together(*imports, *reads)
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, (Basis, Coordinates, Modes, OutputMetric, OwnFunctions, Solver)):
        return repr(value)
    if isinstance(value, LowRank):
        return value.to_dict()
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
        found = json.loads(text, object_pairs_hook=_once) if path.suffix.lower() == ".json" else _yaml(text)
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a file of YAML or JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold settings by name ({', '.join(names)}), got {type(found).__name__}")
    for name in found:
        if name not in names:
            raise InputError(f"{path} has an unknown setting {name!r}{near_names(str(name), names)}")
    return found


class _OnceLoader(yaml.SafeLoader):
    """Of two values of one key YAML keeps the last without a word: here they are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        _once([(key, None) for key in keys])
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> Any:
    return yaml.load(text, _OnceLoader)  # a SafeLoader


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of pairs; InputError if a key occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in [name for name, _ in pairs[:at]])
        raise InputError(f"the setting {twice!r} is there twice: leave one out")
    return found


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings as YAML, as a whole or not at all."""
    with beside(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")
