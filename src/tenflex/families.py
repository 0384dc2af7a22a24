"""Values that are known by the name of their class and its settings: as plain JSON and as text."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar

from tenflex.checks import near_names

Kind = TypeVar("Kind", bound=type[Any])

ADD = "`add_`, as in tenflex.bases.BASES.add_"
"""How families of one's own become known, in words."""

PARAMETERS = "__dataclass_params__"
"""Where a dataclass says whether it is frozen; other classes have none."""


@dataclass(frozen=True)
class Families:
    """Frozen dataclasses that a file or a text can name.

    Args:
        what: What one of them is called, such as "basis".
        example: Plain values of one, for messages.
        members: The classes by their names.
    """

    what: str
    example: str
    members: MutableMapping[str, type[Any]]

    def add_(self, member: Kind) -> Kind:
        """Make a family of one's own known by its name, in place: to files, plans and the command line.

        Whatever reads them imports the module that does it first. A class that was made anew, as in a notebook, takes
        the place of its former self.

        Returns:
            The class itself, so that this decorates it.

        Raises:
            TypeError: if it is no frozen dataclass: files hold its fields.
            ValueError: if another family has its name.
        """
        if not isinstance(member, type) or not getattr(getattr(member, PARAMETERS, None), "frozen", False):
            raise TypeError(
                f"expected a {self.what} that is a frozen dataclass, whose fields files hold, got {member!r}: put "
                f"@dataclass(frozen=True) above it"
            )
        known = self.members.get(member.__name__, member)
        if full_name(known) != full_name(member):
            raise ValueError(
                f"a {self.what} is called {member.__name__} already, {full_name(known)}: take another name"
            )
        self.members[member.__name__] = member
        return member

    def to_dict(self, value: Any) -> dict[str, Any]:
        """The name of the family and its settings, as plain JSON values.

        Raises:
            TypeError: if it, or what it is made of, is of no family that is known.
        """
        if self.members.get(type(value).__name__) is not type(value):
            raise TypeError(
                f"expected a {self.what} that is known by its name, got {value!r}, of the class "
                f"{full_name(type(value))}: make it known by {ADD}"
            )
        return {
            "family": type(value).__name__,
            **{one.name: self._json(getattr(value, one.name)) for one in fields(value)},
        }

    def _json(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return [self._json(one) for one in value]
        return value if is_plain(value) else self.to_dict(value)

    def described(self, value: Any) -> dict[str, Any]:
        """What `to_dict` gives; a value that it does not know is named with its module.

        Where its settings are plain values, `from_dict` reads it as soon as its family is known; else that says so.
        """
        if self.holds(value):
            return self.to_dict(value)
        told = {one.name: getattr(value, one.name) for one in fields(value)} if is_dataclass(value) else {"": value}
        plain = all(map(is_plain, told.values()))
        return {"family": full_name(type(value)), **(told if plain else {"settings": repr(value)})}

    def holds(self, value: Any) -> bool:
        """Whether `from_dict` brings a value back: it is of one of the families, and so is all that it is made of."""
        try:
            return bool(self.from_dict(json.loads(json.dumps(self.to_dict(value)))) == value)
        except (TypeError, ValueError):
            return False

    def from_dict(self, saved: Any) -> Any:
        """The value that `to_dict` described, validated.

        Raises:
            ValueError: if the family or a setting is unknown, or a setting is out of its range.
        """
        if not isinstance(saved, Mapping) or not isinstance(saved.get("family"), str):
            raise ValueError(f"expected a {self.what} such as {self.example}, got {saved!r}")
        family = self._member(saved["family"], full="settings" not in saved)
        known = {field.name for field in fields(family)}
        settings = {key: self._plain(value) for key, value in saved.items() if key != "family"}
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"{family.__name__} has no setting {unknown[0]!r}{near_names(unknown[0], sorted(known))}")
        try:
            return family(**settings)
        except TypeError as error:
            raise ValueError(f"{family.__name__} cannot be made from {dict(saved)}: {error}") from None

    def is_foreign(self, saved: Any) -> bool:
        """Whether `described` told a value of a family that is not known here."""
        if not isinstance(saved, Mapping) or "." not in str(saved.get("family")):
            return False
        try:
            return self.from_dict(saved) is None
        except ValueError:
            return True

    def _member(self, name: str, full: bool = False) -> type[Any]:
        """The class of a name, which may be one with its module."""
        known = {full_name(one): one for one in self.members.values()} if full else {}
        if name not in self.members and name not in known:
            own = f"; one of your own is known by {ADD}" if "." in name else ""
            raise ValueError(f"no {self.what} is called {name!r}{near_names(name, self.members)}{own}")
        return known[name] if name in known else self.members[name]

    def _plain(self, value: Any) -> Any:
        """JSON has lists where the settings have tuples, and dictionaries where they have families."""
        if isinstance(value, Mapping):
            return self.from_dict(value)
        return tuple(self._plain(one) for one in value) if isinstance(value, list) else value

    def from_text(self, text: str) -> dict[str, Any]:
        """A value as Python writes it, such as `BSpline(10)`, in plain values for `from_dict`; nothing is evaluated.

        Raises:
            SyntaxError, ValueError: if it is no call of a family with numbers, texts and families.
        """
        return self._call(ast.parse(text.strip(), mode="eval").body)

    def _call(self, node: ast.AST) -> dict[str, Any]:
        """The family and the settings of a call."""
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError("it is not the name of a family with its settings in brackets")
        family = self._member(node.func.id)
        names = [field.name for field in fields(family)]
        if len(node.args) > len(names):
            raise ValueError(f"{family.__name__} has only the settings {', '.join(names)}")
        given = {name: self._value(one) for name, one in zip(names, node.args, strict=False)}
        named = {str(one.arg): self._value(one.value) for one in node.keywords}
        if twice := given.keys() & named.keys():
            raise ValueError(f"{twice.pop()!r} is given twice")
        return {"family": family.__name__, **given, **named}

    def _value(self, node: ast.AST) -> Any:
        if isinstance(node, (ast.Tuple, ast.List)):
            return [self._value(one) for one in node.elts]
        return self._call(node) if isinstance(node, ast.Call) else ast.literal_eval(node)


def is_plain(value: Any) -> bool:
    """Whether JSON knows a value, or a tuple of values."""
    return all(map(is_plain, value)) if isinstance(value, tuple) else isinstance(value, (NoneType, int, float, str))


def full_name(member: type[Any]) -> str:
    """The name of a class with the module that it is from."""
    return f"{member.__module__}.{member.__qualname__}"


def by_name(*classes: type[Any]) -> dict[str, type[Any]]:
    """Classes by their names."""
    return {one.__name__: one for one in classes}
