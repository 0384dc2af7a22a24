"""Inputs and labels from files or from Python; no pickle is ever loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenflex.checks import near_names
from tenflex.cli.errors import InputError, reading
from tenflex.cli.named import call_factory, find_object
from tenflex.storage.arrays import read_arrays

FILE = re.compile(r"(?P<path>.*(?P<ending>\.(?:npy|npz|safetensors|pt|pth)))(?::(?P<key>.+))?", re.IGNORECASE)
"""A file of tensors, with the one to take after a colon."""

KINDS = ".npy, .npz, .safetensors or .pt file (with :name when it holds several arrays), or package.module:name"


def load_inputs(text: str) -> Any:
    """The inputs that the user named.

    Returns:
        A tensor; or, from a factory, whatever `tenflex.compress` takes.

    Raises:
        InputError: if there is no such file or object, or it holds something else.
    """
    return _load(text, "inputs")


def load_labels(text: str) -> Tensor:
    """The labels that the user named.

    Raises:
        InputError: if there is no such file or object, or it holds something else.
    """
    labels = _load(text, "labels")
    if not isinstance(labels, Tensor):
        raise InputError(f"expected labels as a tensor or an array, got {type(labels).__name__} from {text}")
    return labels


def load_tensor(text: str) -> Tensor:
    """The tensor that `file` or `file:name` holds.

    Raises:
        InputError: if there is no such file, it holds no numbers, or several arrays and none is named.
    """
    match = FILE.fullmatch(text)
    if match is None:
        raise InputError(f"expected a {KINDS}, got {text!r}")
    path, key = Path(match["path"]), match["key"]
    held = read(path)
    if not isinstance(held, Mapping):
        if key is not None:
            raise InputError(f"{path} holds a single array: leave out ':{key}'")
        held = {"": held}
    elif key is None and len(held) != 1:
        raise InputError(
            f"{path} holds {len(held)} arrays ({', '.join(map(str, held))}): name one, as {path}:NAME; for a network "
            f"of several inputs name a function that returns them, as package.module:function"
        )
    name = next(iter(held)) if key is None else key
    if name not in held:
        raise InputError(f"{path} has no array {name!r}{near_names(name, map(str, held))}")
    if not isinstance(held[name], Tensor):
        raise InputError(f"{text} holds {type(held[name]).__name__}: expected a tensor")
    return held[name]


def _load(text: str, what: str) -> Any:
    """The tensor of a file, what a factory in Python returns, or an object as it is."""
    if FILE.fullmatch(text):
        return load_tensor(text)
    if ":" not in text:
        raise InputError(f"expected {what} as a {KINDS}, got {text!r}")
    found = find_object(text, what)
    made = call_factory(found, text) if callable(found) else found
    return torch.from_numpy(made) if isinstance(made, np.ndarray) else made


def read(path: Path) -> Any:
    """What a file holds; InputError if it cannot be read."""
    with reading(path):
        return read_arrays(path)
