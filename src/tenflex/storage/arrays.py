"""Arrays from the files that people have; no pickle is ever loaded."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

DAMAGE = (SafetensorError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError)
"""What is raised by the readers of files that are damaged, or of another kind than their name says."""


def read_arrays(path: Path) -> Any:
    """What an .npy, .npz, .safetensors or .pt file holds: a tensor, or tensors by name; a .pt file may hold more.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        TypeError: if an array is not of numbers.
        ValueError: if it is damaged, or of no kind that is read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a file, seen from {Path.cwd()}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected a file")
    try:
        return READERS[path.suffix.lower()](path)
    except DAMAGE as error:  # without what torch goes on to say about switching its safe mode off
        reason = " ".join(str(error).split()).split(". ")[0].removesuffix(".")
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _read_npy(path: Path) -> Tensor:
    """Read as it is used, so that it may be larger than memory; what is written to it never reaches the file."""
    whole = np.load(path, allow_pickle=False, mmap_mode="c") if path.stat().st_size > MAPPED else None
    return _from_numpy(path, np.load(path, allow_pickle=False) if whole is None else whole)


MAPPED = 2**24
"""Bytes of a file from which on it is not read as a whole."""


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: _from_numpy(path, arrays[name]) for name in arrays.files}


def _from_numpy(path: Path, array: np.ndarray[Any, Any]) -> Tensor:
    """The same numbers in the byte order of this machine."""
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError:
        raise TypeError(f"{path} holds an array of {array.dtype}: expected numbers that torch knows") from None


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": safetensors.torch.load_file,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
