"""Weights from a checkpoint, bare or in what training scripts put around them; no pickle is ever loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tenflex.checks import near_names
from tenflex.cli.errors import InputError
from tenflex.cli.tensors import FILE, read
from tenflex.nn.attention import Attention, split_
from tenflex.storage.network import kind_of
from tenflex.storage.state import is_extra

ENTRIES = ("state_dict", "model", "model_state_dict")
"""Where checkpoints of training scripts keep the state of the network."""

PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before every name."""


def load_weights_(model: nn.Module, text: str) -> list[str]:
    """Load the weights of a .safetensors or .pt file into a network, in place.

    Returns:
        What was stripped from the file to get at them, in words.

    Raises:
        InputError: if there is no such file, or its weights are not exactly those that the network needs.
    """
    match = FILE.fullmatch(text)
    if match is None or match["ending"].lower() not in (".safetensors", ".pt", ".pth"):
        raise InputError(
            f"expected weights as a .safetensors or .pt file, got {text!r}; :NAME after it is one entry of a checkpoint"
        )
    path, needed = Path(match["path"]), model.state_dict()
    held = read(path) if match["key"] is None else entry(read(path), match["key"], path)
    state, entries = opened(held, path)
    state, prefixes = stripped(dict(state), needed)
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            split_(state, f"{name}." if name else "")
    require_weights(state, needed, text)
    model.load_state_dict(state)
    nested = [f"{path} holds more than weights: those in its entry {' / '.join(map(repr, entries))} are read"]
    return nested * bool(entries) + [f"the names in {path} begin with {one!r}, which is left out" for one in prefixes]


def entry(held: Any, key: str, path: Path) -> Any:
    """What a checkpoint holds under a name; dots lead further in."""
    for name in [key] if isinstance(held, Mapping) and key in held else key.split("."):
        if not isinstance(held, Mapping) or name not in held:
            known = [str(one) for one in held] if isinstance(held, Mapping) else []
            raise InputError(f"{path} has no entry {key!r}{near_names(name, known)}")
        held = held[name]
    return held


def opened(held: Any, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The state in a checkpoint, and the entries that lead there.

    Raises:
        InputError: if there is none, or there are several.
    """
    entries: list[str] = []
    while isinstance(held, Mapping):
        other = [name for name, one in held.items() if not isinstance(name, str) or not is_weight(name, one)]
        if not other:
            return dict(held), entries
        inside = [name for name in ENTRIES if isinstance(held.get(name), Mapping)]
        if len(inside) != 1:
            found = (
                f"several states ({', '.join(inside)}; name one, as {path}:{inside[0]})"
                if inside
                else f"more than tensors, such as {other[0]!r}"
            )
            break
        entries.append(inside[0])
        held = held[inside[0]]
    else:
        found = type(held).__name__
    raise InputError(
        f"{path} holds {found}: expected a state dict, as torch.save(model.state_dict(), ...) writes, alone or in one "
        f"entry {', '.join(ENTRIES)}"
    )


def is_weight(name: str, value: object) -> bool:
    """Whether an entry of a checkpoint may be one of a state dict."""
    return isinstance(value, Tensor) or name.endswith("_extra_state")


def stripped(state: dict[str, Any], needed: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The state under the names of the network itself, and the prefixes that all names had."""
    found: list[str] = []
    while True:
        begun = (one for one in PREFIXES if state and all(name.startswith(one) for name in state))
        prefix = next(begun, None)
        if prefix is None or any(name.startswith(prefix) for name in needed):
            return state, found
        state = {name.removeprefix(prefix): one for name, one in state.items()}
        found.append(prefix)


def require_weights(state: Mapping[str, Any], needed: Mapping[str, Any], source: str) -> None:
    """Raise InputError if a weight is missing, unknown or of another shape."""
    for name in sorted(needed.keys() - state.keys()):
        raise InputError(f"{source} has no weights for {name!r}{near_names(name, state)}")
    for name, one in state.items():
        if name not in needed:
            raise InputError(
                f"{source} has weights for {name!r}, which the network does not have{near_names(name, needed)}"
            )
        if is_extra(name, needed[name]):
            continue
        if tuple(one.shape) != tuple(needed[name].shape):
            raise InputError(
                f"{source} has weights of shape {tuple(one.shape)} for {name!r}, the network needs "
                f"{tuple(needed[name].shape)}"
            )
        if kind_of(one) != kind_of(needed[name]):
            raise InputError(
                f"{source} has weights of {one.dtype} for {name!r}, the network needs {needed[name].dtype}: expected "
                f"floating-point weights; quantised ones must be brought back to numbers first"
            )
