"""Files written as a whole or not at all, and folders that are ours."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


WEIGHTS, CONFIG, REPORT, DETAILS = "model.safetensors", "config.json", "report.json", "details.json"

PAGE, SETTINGS = "report.html", "run.yaml"
"""The page of a result, where no other name is given, and the settings by which the command line made it."""

MARK = '<meta name="generator" content="tenflex">'
"""By which a page is known as ours."""

REPORT_MARK = '<meta name="tenflex-report" content="{}">'
"""By which the report that a page shows is known."""

KEY = "tenflex"
"""Where our own header stands among the metadata of a .safetensors file: the mark that it is ours."""

DIGEST = "digest"
"""What a digest of the tensors is called in the header; earlier versions wrote none."""

OWN_JSON = {
    CONFIG: {"format", "versions", "replacements"},
    REPORT: {"blocks", "model", "seconds"},
    DETAILS: {"format", "blocks"},
    "solution.json": {"result", "layers", "verdict"},
    "table.json": {"network", "block", "versions", "rows"},
    "compare.json": {"conditions", "compared", "original", "entries"},
}
"""The entries by which JSON files are known as ours: earlier versions wrote them too."""


def require_own_folder(folder: Path, *names: str) -> None:
    """Raise unless `folder` is new, empty, or holds an earlier result: nothing of others is ever overwritten.

    Args:
        folder: Where to save.
        names: The files that will be written and bear our mark; an earlier result is known by the first.
    """
    names = names or (WEIGHTS, CONFIG, REPORT, DETAILS)
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{folder} is a link that leads nowhere: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder to save in")
    if not folder.exists() or all(is_leftover(path) for path in folder.iterdir()):
        return
    if not os.path.lexists(folder / names[0]):
        raise ValueError(f"{folder} holds other files than an earlier result: choose a new or empty folder")
    for name in names:
        require_own(folder / name)


def require_own(path: Path) -> None:
    """Raise ValueError if there is a file that tenflex did not write."""
    if os.path.lexists(path) and not is_own(path):
        raise ValueError(f"{path} was not written by tenflex and would be overwritten: choose another place to save in")


def is_own(path: Path) -> bool:
    """Whether the mark of tenflex is in a file."""
    if path.suffix == ".safetensors" or is_leftover(path):
        try:
            with safe_open(path, framework="pt") as file:
                return KEY in (file.metadata() or {})
        except (SafetensorError, OSError):
            return False
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return False
    nothing = not value and path.name in (REPORT, DETAILS)  # of a network that was saved again without them
    return isinstance(value, dict) and (nothing or value.keys() >= OWN_JSON[path.name])


def page_of(path: Path) -> str | None:
    """The mark of the report that a page of ours shows, "" in one of an earlier version; None if there is no such page.

    Args:
        path: Where it would be.
    """
    if not path.is_file() or path.is_symlink():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(REPORT_MARK.format("([0-9a-f]*)"), text)
    return None if MARK not in text else found[1] if found else ""


def are_settings(path: Path) -> bool:
    """Whether a file is what the command line writes of a compression."""
    if not path.is_file() or path.is_symlink():
        return False
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return all(any(line.startswith(f"{name}:") for line in lines) for name in ("model", "inputs", "blocks", "out"))


def report_mark(report: Mapping[str, Any]) -> str:
    """A mark of a report, the same when it was written to a file and read."""
    return hashlib.blake2b(json.dumps(report, sort_keys=True).encode(), digest_size=16).hexdigest()


def is_leftover(path: Path) -> bool:
    """Whether a file is what a killed run left of a temporary one."""
    return path.name.startswith(".") and path.suffix == ".part"


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which takes the place of `path` when all went well, and goes otherwise."""
    with all_beside(path) as (temporary,):
        yield temporary


@contextmanager
def all_beside(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """The same for several files: all are written out before the first takes its place."""
    temporaries: list[Path] = []
    try:
        for path in paths:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
            os.close(handle)
            temporaries.append(Path(name))
        yield tuple(temporaries)
        for temporary in temporaries:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.replace(path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, as a whole or not at all."""
    with beside(path) as temporary:
        temporary.write_text(as_json(value), encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors with our own header.

    Raises:
        OSError: if the file cannot be written, for example because the disk is full.
    """
    words = json.dumps({**header, DIGEST: digest_of(tensors)})
    try:
        save_file(dict(tensors), path, metadata={KEY: words})
    except SafetensorError as error:
        raise OSError(f"{path.parent} cannot be written ({error}): make room on the disk, or choose another") from error


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, types, shapes and numbers: a disk or a transfer that changes one does not go unnoticed."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        one = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, str(one.dtype), tuple(one.shape))).encode())
        digest.update(one.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_file(path: Path, expected: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file of tenflex.

    Args:
        path: The file.
        expected: What the user should pass, for messages.
        what: What is to be saved again if the file is damaged.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or of another program.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected {expected}")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}): save {what} again") from None
    if header is None:
        raise ValueError(f"{path} was not written by tenflex: expected {expected}")
    try:
        config = json.loads(header)
    except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, brackets without end
        raise ValueError(f"{path} has a damaged header ({error}): save {what} again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} has a damaged header (no settings): save {what} again")
    digest = config.pop(DIGEST, None)
    if digest is not None and digest != digest_of(state):
        raise ValueError(f"{path} is damaged: its numbers are not those that were written: save {what} again")
    return config, state
