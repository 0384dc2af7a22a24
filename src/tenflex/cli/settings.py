"""The settings of a run: options, a file with the same settings, and the resolved ones beside the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from tenflex.checks import near_names
from tenflex.cli.blocks import parse_basis
from tenflex.cli.errors import InputError, one_line, reading
from tenflex.planning.plan import Block, Plan
from tenflex.storage.files import beside

RESOLVED = "run.yaml"
"""What the resolved settings are called beside a result."""


@dataclass(frozen=True)
class Settings:
    """What `tenflex compress` does; every path is as seen from the folder in which it runs.

    Args:
        model: The network, as package.module:name.
        inputs: The unlabelled inputs.
        out: The folder of the result.
        plan: The blocks and how they are computed.
        weights: A file of weights for the network, if its factory does not load them.
    """

    model: str
    inputs: str
    out: str
    plan: Plan
    weights: str | None = None

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Settings:
        """The settings that `to_dict` gave; what has a default may be left out.

        Raises:
            InputError: if a setting is unknown, missing or no text.
            ValueError: if a setting of the plan is out of its range.
        """
        for name in saved:
            if name not in NAMES:
                raise InputError(f"there is no setting {name!r}{near_names(str(name), NAMES)}")
        own = {name: saved[name] for name in TEXTS if saved.get(name) is not None}
        for name, value in own.items():
            if not isinstance(value, str):
                raise InputError(f"{name} must be a text, got {value!r}")
        for name, cure in REQUIRED.items():
            if name not in own:
                raise InputError(f"{name} is missing: {cure}, or set `{name}:` in the file of --config")
        if not saved.get("blocks"):
            raise InputError("no block is named: give --block NAME,rank=40, or set `blocks:` in the file of --config")
        plan = Plan.from_dict(_with_bases({name: value for name, value in saved.items() if name not in TEXTS}))
        return cls(plan=plan, **own)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with bases as texts."""
        return {
            **only_given({name: getattr(self, name) for name in TEXTS}),
            **self.plan.to_dict(),
            "blocks": {name: _block_to_dict(block) for name, block in self.plan.blocks.items()},
            "basis": repr(self.plan.basis),
        }

    def resolved(self, plan: Plan) -> Settings:
        """The same settings with the plan that was carried out."""
        return replace(self, plan=plan)


TEXTS = ("model", "weights", "inputs", "out")
NAMES = (*TEXTS, *(field.name for field in fields(Plan)))
REQUIRED = {
    "model": "name the network as package.module:name",
    "inputs": "give --inputs",
    "out": "give --out",
}
"""What has no default, with how to say it on the command line."""


def read_settings(path: Path, names: Sequence[str] = NAMES) -> dict[str, Any]:
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


def merge(path: Path | None, options: Mapping[str, Any]) -> Settings:
    """The settings of a file, where options that are given win; `--block` replaces all blocks of the file."""
    settings = {} if path is None else read_settings(path)
    return Settings.from_dict({**settings, **only_given(options)})


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings as YAML, as a whole or not at all."""
    with beside(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")


def only_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _block_to_dict(block: Block) -> dict[str, Any]:
    basis = None if block.basis is None else repr(block.basis)
    rank = list(block.rank) if isinstance(block.rank, tuple) else block.rank
    settings = {field.name: getattr(block, field.name) for field in fields(Block)}
    return only_given({**settings, "rank": rank, "basis": basis})


def _with_bases(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a plan, with bases that are written as texts in the form that `Plan.from_dict` reads."""
    blocks = saved.get("blocks")
    if isinstance(blocks, Mapping):
        saved = {**saved, "blocks": {name: _with_basis(block) for name, block in blocks.items()}}
    return dict(_with_basis(saved))


def _with_basis(saved: Any) -> Any:
    if isinstance(saved, Mapping) and isinstance(saved.get("basis"), str):
        return {**saved, "basis": parse_basis(saved["basis"])}
    return saved
