"""Conditions on what users pass, each with one message: expected, got, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def require_whole(name: str, value: object, *, at_least: int) -> None:
    """Raise ValueError unless `value` is an `int` of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}")


def require_rank(rank: object) -> None:
    """Raise ValueError unless `rank` is a whole number of nodes, or a tuple of them, one for each layer."""
    if isinstance(rank, tuple) and not rank:
        raise ValueError("rank must be one number of nodes a layer, got ()")
    for one in rank if isinstance(rank, tuple) else (rank,):
        require_whole("rank", one, at_least=1)


def require_seed(seed: object) -> None:
    """Raise ValueError unless a seed is one that the generators of torch take."""
    require_whole("seed", seed, at_least=0)
    if isinstance(seed, int) and seed >= 2**63:
        raise ValueError(f"seed must be below 2^63, got {seed}")


def require_number(name: str, value: object, *, above: float | None = None, at_least: float | None = None) -> None:
    """Raise ValueError unless `value` is a finite number, above or at least a bound."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not abs(value) < float("inf")
        or (above is not None and not value > above)
        or (at_least is not None and not value >= at_least)
    ):
        bound = f" above {above}" if above is not None else f" of at least {at_least}" if at_least is not None else ""
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")


def require_share(name: str, value: object, *, below: float | None = None, at_most: float | None = None) -> None:
    """Raise ValueError unless `value` is a number from 0 to below a bound, or at most one."""
    require_number(name, value, at_least=0)
    if not isinstance(value, (int, float)) or (below and not value < below) or (at_most and value > at_most):
        bound = f"below {below}" if below else f"of at most {at_most}"
        raise ValueError(f"{name} must be a share {bound}, got {value}")


def require_floating(name: str, tensor: object) -> None:
    """Raise TypeError unless `tensor` is a dense tensor of real floating-point numbers."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be real floating-point numbers, got {tensor.dtype}: convert them, e.g. with .float()"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got a sparse one ({tensor.layout}): use .to_dense()")


AT_ONCE = 2**17
"""Numbers that are looked at together: masks of all of them would take as much memory again as they do."""


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError if `tensor` holds NaN or infinity, saying how many and where the first one is."""
    rows = tensor if tensor.ndim else tensor[None]
    step = max(1, AT_ONCE * len(rows) // max(1, rows.numel()))
    bad = [int((~torch.isfinite(part)).sum()) for part in rows.split(step)]
    if not any(bad):
        return
    start = step * next(index for index, count in enumerate(bad) if count)
    at, *inner = (~torch.isfinite(rows[start : start + step])).nonzero()[0].tolist()
    first = [start + at, *inner] if tensor.ndim else []
    raise ValueError(
        f"{name} must be finite, but {sum(bad)} of {tensor.numel()} numbers are NaN or infinite, "
        f"the first at {first}: remove those samples or repair the network"
    )


def require_ordinary(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` is dense, holds numbers, and can be calculated with."""
    why = unusual(tensor)
    if why is not None:
        raise ValueError(f"{name} must be an ordinary dense tensor, but it {why}")


def unusual(tensor: Tensor) -> str | None:
    """What keeps a tensor from being calculated with, and what to do; None if nothing does."""
    if tensor.is_nested:
        return "is a nested tensor: pad it, e.g. with torch.nested.to_padded_tensor"
    if tensor.is_meta:
        return "is on the meta device, where there are no numbers: load it on a real device"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}): use .dequantize(), or the network before it was quantised"
    if tensor.layout != torch.strided:
        return f"is sparse ({tensor.layout}): convert it with .to_dense()"
    if tensor.is_floating_point() and tensor.element_size() < 2:
        return f"is {tensor.dtype}, which can only be stored: convert it, e.g. with .float()"
    return None


NO_DOUBLES = ("mps",)
"""Devices without numbers in double precision, in which layers are solved for."""


def require_doubles(device: torch.device) -> None:
    """Raise ValueError for a device that has no double precision."""
    if device.type in NO_DOUBLES:
        raise ValueError(
            f"layers are solved for in double precision, which {device.type} does not have: bring the network to the "
            f"processor with model.cpu(), and the compressed network back with result.model.to({device.type!r})"
        )


def require_eval(name: str, model: nn.Module) -> None:
    """Raise ValueError if a module of `model` is in train mode, where outputs may change from call to call."""
    training = [inner or type(model).__name__ for inner, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"{name} must be in eval mode, but {len(training)} of its modules are in train mode, the first is "
            f"{training[0]!r}: call .eval() on it"
        )


def near_names(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest of the known names, or which these are, the first few of many."""
    known = [one for one in known if one]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        return "; did you mean " + " or ".join(map(repr, near)) + "?"
    more = ", ..." if len(known) > FEW_NAMES else ""
    return "; known names: " + ", ".join(map(repr, known[:FEW_NAMES])) + more if known else ""


FEW_NAMES = 5
"""So many names are told where none is near."""
