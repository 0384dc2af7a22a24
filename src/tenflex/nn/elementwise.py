"""Activation functions that networks come with, known by name: nothing of them is stored but that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tenflex.checks import near_names, require_number

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda t: t,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    "gelu_quick": lambda t: t * torch.sigmoid(1.702 * t),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "selu": F.selu,
    "mish": F.mish,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "relu_squared": lambda t: F.relu(t).square(),
    "sin": torch.sin,
}
"""Functions without a setting."""

WITH_SETTING: dict[str, Callable[[Tensor, float], Tensor]] = {
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
}
"""Functions with one number: the slope, or alpha."""

AGREEMENT = 1e-5
"""Two functions that differ by less than this share of the largest value are one."""


@dataclass(frozen=True)
class Elementwise:
    """An activation function of a network, by its name.

    Args:
        name: One of `FUNCTIONS` or `WITH_SETTING`.
        setting: The number of those that have one.

    Raises:
        ValueError: if the name is unknown, or the setting is missing or no number.

    Example:
        >>> Elementwise("leaky_relu", 0.5)(torch.tensor([-2.0, 3.0]))
        tensor([-1.,  3.])
    """

    name: str
    setting: float | None = None

    def __post_init__(self) -> None:
        known = [*FUNCTIONS, *WITH_SETTING]
        if self.name not in known:
            raise ValueError(f"no activation function is called {self.name!r}{near_names(str(self.name), known)}")
        if self.name in WITH_SETTING:
            require_number(f"the setting of {self.name}", self.setting)
        elif self.setting is not None:
            raise ValueError(f"{self.name} has no setting, got {self.setting!r}")

    def __call__(self, t: Float[Tensor, "*S r"]) -> Float[Tensor, "*S r"]:
        if self.setting is None:
            return FUNCTIONS[self.name](t)
        return WITH_SETTING[self.name](t, self.setting)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "setting": self.setting}


def recognised(before: Float[Tensor, "S r"], after: Float[Tensor, "S r"]) -> Elementwise | None:
    """The known function that leads from one to the other at all numbers, or None; of several, the nearest one."""
    if before.shape != after.shape:
        return None
    size = after.abs().max()
    errors = {one: float((one(before) - after).abs().max() / size) for one in _candidates(before, after)}
    nearest = min(errors, key=lambda one: errors[one])
    return nearest if errors[nearest] <= AGREEMENT else None


def _candidates(before: Tensor, after: Tensor) -> list[Elementwise]:
    """The functions, those with a number with the one that fits where the argument is least."""
    least = before.flatten().argmin()
    t, value = before.flatten()[least].double(), after.flatten()[least].double()
    found = [Elementwise(name) for name in FUNCTIONS]
    if t < 0:
        alphas = {"leaky_relu": value / t, "elu": value / torch.expm1(t)}
        for name, alpha in alphas.items():
            if bool(alpha.isfinite()):
                found.append(Elementwise(name, float(f"{float(alpha):.5g}")))
    return found
