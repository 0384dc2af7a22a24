"""Room for tensors that may be larger than memory: in files that are gone when nothing uses them any more."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from pathlib import Path

import torch
from torch import Tensor

IN_MEMORY = 2**28
"""Bytes of a tensor that is held in memory, unless told otherwise; larger ones stand in files."""

PARTS = 16
"""Of the memory that is allowed, a tensor may take one of so many parts."""

_in_memory: ContextVar[int] = ContextVar("in_memory", default=IN_MEMORY)


@contextmanager
def allowing(memory: int) -> Iterator[None]:
    """Within, tensors of more than a sixteenth of so many bytes stand in files."""
    token = _in_memory.set(memory // PARTS)
    try:
        yield
    finally:
        _in_memory.reset(token)


def room(shape: Sequence[int], like: Tensor) -> Tensor:
    """An empty tensor of the kind of another; on processors in a file where it is large.

    The file is in the folder for temporary files (`TMPDIR`), has no name any more, and is gone with the tensor. Its
    pages are the system's to keep in memory or not.

    Args:
        shape: Of the tensor.
        like: A tensor of its kind and on its device.

    Raises:
        ValueError: if the disk has no room for it.
    """
    size = prod(shape) * like.element_size()
    if size <= _in_memory.get() or like.device.type != "cpu":
        return like.new_empty(tuple(shape))
    require_disk(size)
    handle, name = tempfile.mkstemp(prefix="tenflex-", suffix=".part")
    try:
        reserve(handle, size)
        flat = torch.from_file(name, shared=True, size=prod(shape), dtype=like.dtype, device="cpu")
    finally:
        os.close(handle)
        Path(name).unlink()  # what is mapped stays
    return flat.view(tuple(shape))


def require_disk(size: int) -> None:
    """Raise ValueError if the folder for temporary files has no room for so many bytes."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"{size / 2**30:.1f} GiB are to stand in a file, but {folder} has room for {free / 2**30:.1f} GiB: "
            f"use fewer samples, or set TMPDIR to a folder on a larger disk"
        )


def reserve(handle: int, size: int) -> None:
    """Take so many bytes on the disk for a file now: a write into what is not there would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)


def ordered(tensor: Tensor, order: Tensor) -> Tensor:
    """Its rows in another order."""
    found = room((len(order), *tensor.shape[1:]), tensor)
    for start in range(0, len(order), 4096):
        found[start : start + 4096] = tensor[order[start : start + 4096]]
    return found


class Rows:
    """Rows that come some at a time and become one tensor, in a file where they are many."""

    def __init__(self) -> None:
        self.in_memory = _in_memory.get()
        self.parts: list[Tensor] = []
        self.file: int | None = None
        self.count = self.held = 0

    def add(self, part: Tensor) -> None:
        """More rows, of the same shape and kind."""
        self.parts.append(part)
        self.count += len(part)
        self.held += part.nbytes
        if part.device.type == "cpu" and self.held > self.in_memory:
            self._spill()

    def _spill(self) -> None:
        """Write what is held to the file."""
        if self.file is None:
            handle, name = tempfile.mkstemp(prefix="tenflex-", suffix=".part")
            Path(name).unlink()
            self.file, self.close = handle, weakref.finalize(self, os.close, handle)
        require_disk(self.held)
        for one in self.parts:
            data = one.contiguous().view(-1).view(torch.uint8).numpy().data
            while len(data):
                data = data[os.write(self.file, data) :]
        self.parts, self.held = [self.parts[0][:0].clone()], 0

    def joined(self) -> Tensor:
        """All rows."""
        if self.file is None:
            return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)
        self._spill()
        like = self.parts[0]
        shape = (self.count, *like.shape[1:])
        flat = torch.from_file(f"/dev/fd/{self.file}", shared=True, size=prod(shape), dtype=like.dtype, device="cpu")
        self.close()
        self.file = None
        return flat.view(shape)
