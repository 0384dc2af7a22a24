"""Files written as a whole or not at all, and folders that are ours."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


WEIGHTS, CONFIG, REPORT = "model.safetensors", "config.json", "report.json"


def require_own_folder(folder: Path, mark: str = WEIGHTS) -> None:
    """Raise unless `folder` is new, empty, or holds an earlier result: nothing of others is ever overwritten.

    Args:
        folder: Where to save.
        mark: The file by which an earlier result is known.
    """
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{folder} is a link that leads nowhere: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder to save in")
    if not folder.exists() or (folder / mark).exists() or all(is_leftover(path) for path in folder.iterdir()):
        return
    raise ValueError(f"{folder} holds other files than an earlier result: choose a new or empty folder")


def is_leftover(path: Path) -> bool:
    """Whether a file is what a killed run left of a temporary one."""
    return path.name.startswith(".") and path.suffix == ".part"


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which takes the place of `path` when all went well, and goes otherwise."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, as a whole or not at all."""
    with beside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


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
            header = (file.metadata() or {}).get("tenflex")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}): save {what} again") from None
    if header is None:
        raise ValueError(f"{path} was not written by tenflex: expected {expected}")
    try:
        config = json.loads(header)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a damaged header ({error}): save {what} again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} has a damaged header (no settings): save {what} again")
    return config, state
