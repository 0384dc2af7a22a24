"""Running a network without leaving a trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.checks import unusual
from tenflex.surgery.fused import filling_padding
from tenflex.surgery.reach import reachable

ALONE = RLock()
"""Held while something is changed that PyTorch keeps once for the whole process."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """As `passing`; afterwards the network, too, is as it was."""
    with kept(model), passing(model):
        yield


@contextmanager
def passing(model: nn.Module) -> Iterator[None]:
    """Run forward passes without gradients; afterwards the global random state is as it was.

    The fused kernels of `nn.TransformerEncoderLayer` and `nn.MultiheadAttention` read the weights of their submodules
    instead of calling them, so that nothing arrives at a hook; they are switched off meanwhile. One thread at a time
    does so: the switch and the random state are those of the whole process.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cuda"}
    with unfused(model), torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        yield


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Afterwards all attributes of a network but its parameters are as before, and hold what they held."""
    undo = [back for one in reachable(model) if (back := _way_back(one)) is not None]
    try:
        yield
    finally:
        for back in undo:
            back()


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Inside, attention and encoder layers of a network call their submodules, and give the same up to rounding.

    Those of other networks do so, too, in other threads as well; but at padding encoders then give what they compute.
    """
    with ALONE, filling_padding(model):
        enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)


def _way_back(one: object) -> Callable[[], None] | None:
    """What puts a container or a tensor back to what it holds now; None for all else."""
    if isinstance(one, dict):
        return partial(_restore_dict, one, dict(one))
    if isinstance(one, (list, deque)):
        return partial(_restore_list, one, list(one))
    if isinstance(one, set):
        return partial(_restore_set, one, set(one))
    if isinstance(one, Tensor) and not isinstance(one, nn.Parameter) and unusual(one) is None:
        return partial(_restore_tensor, one, one.detach().clone())
    return None


def _restore_dict(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    for name in now.keys() - before.keys():
        del now[name]
    for name in before:
        if name not in now or now[name] is not before[name]:
            now[name] = before[name]


def _restore_list(now: list[Any] | deque[Any], before: list[Any]) -> None:
    if len(now) != len(before) or any(one is not other for one, other in zip(now, before, strict=True)):
        now.clear()
        now.extend(before)


def _restore_set(now: set[Any], before: set[Any]) -> None:
    if now != before:
        now.clear()
        now.update(before)


def _restore_tensor(now: Tensor, before: Tensor) -> None:
    if now.shape == before.shape and not torch.equal(now, before):
        with torch.inference_mode(now.is_inference()):  # elsewhere those that were made in it cannot be changed
            now.detach().copy_(before)
