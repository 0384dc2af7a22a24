"""The linear maps of a flexible layer as modules, full or as products, and the shapes around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.checks import require_whole


def shape_of(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, if it is one."""
    if not isinstance(shape, (tuple, list)) or not shape:
        raise TypeError(f"{name} must be a tuple of sizes such as (784,), got {shape!r}")
    for size in shape:
        require_whole(f"each size of {name}", size, at_least=1)
    return tuple(shape)


def numbers(shape: tuple[int, ...]) -> int:
    """How many numbers a tensor of this shape holds."""
    return torch.Size(shape).numel()


def linear_map(inputs: int, width: int | None, outputs: int) -> nn.Linear | nn.Sequential:
    """A linear map with bias, full or as a product of two."""
    if width is None:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, width, bias=False), nn.Linear(width, outputs))


def linear_maps(linear: nn.Module) -> list[nn.Linear]:
    """The one or two linear maps, in the order in which they are applied."""
    return [one for one in linear.modules() if isinstance(one, nn.Linear)]


@torch.no_grad()
def fill_(linear: nn.Module, maps: Sequence[Tensor], bias: Tensor) -> None:
    """Set the weights to matrices that act from the right, in the order of application, and the last bias."""
    modules = linear_maps(linear)
    for one, matrix in zip(modules, maps, strict=True):
        one.weight.copy_(matrix.mT)
    modules[-1].bias.copy_(bias)


def matrices(linear: nn.Module) -> tuple[Tensor, ...]:
    """The one or two matrices, acting from the right, copied."""
    return tuple(one.weight.mT.clone() for one in linear_maps(linear))


def require_width(name: str, width: int | None) -> None:
    """Raise ValueError unless a width is None or a whole number of at least 1."""
    if width is not None:
        require_whole(name, width, at_least=1)


def require_settings(saved: object, known: set[str], what: str) -> dict[str, Any]:
    """The saved settings of a layer, if they are those that it has; shapes and widths are checked."""
    if not isinstance(saved, Mapping) or set(saved) != known:
        raise ValueError(f"{what} has the settings {sorted(known)}, got {saved!r}")
    shapes = [saved["in_shape"], saved["out_shape"]]
    if not all(isinstance(shape, (list, tuple)) and shape for shape in shapes):
        raise ValueError(f"in_shape and out_shape must be lists of sizes, got {shapes}")
    for name in ("factor", "output_factor"):
        require_width(name, saved[name])
    return dict(saved)
