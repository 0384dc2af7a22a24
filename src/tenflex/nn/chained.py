"""A convolution stored as several, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_whole
from tenflex.nn.convolution import CONVOLUTIONS

SIZES = ("in_channels", "out_channels", "groups")
ALONG = ("kernel_size", "stride", "dilation")
SETTINGS = {*SIZES, *ALONG, "padding", "padding_mode"}
"""What is saved of each convolution besides its numbers."""


class Chained(nn.Module):
    """Convolutions one after another.

    Args:
        steps: All but the last, without biases.
        outer: The last, of single positions, with a bias.
    """

    def __init__(self, steps: Sequence[nn.Module], outer: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*steps)
        self.outer = outer
        self.eval()

    def forward(self, input: Float[Tensor, "S c *positions"]) -> Float[Tensor, "S n *others"]:
        """The outputs, by way of the channels between."""
        outputs: Tensor = self.outer(self.inner(input))
        return outputs

    def to_dict(self) -> dict[str, Any]:
        """The settings that `from_dict` makes an empty layer of."""
        return {"steps": [settings_of(one) for one in (*self.inner, self.outer)]}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Chained:
        """An empty layer of saved settings.

        Raises:
            ValueError: if one is missing, unknown or out of its range.
        """
        steps = saved.get("steps") if isinstance(saved, Mapping) and set(saved) == {"steps"} else None
        if not isinstance(steps, (list, tuple)) or not steps:
            raise ValueError(f"convolutions one after another have the setting steps, a list of them, got {saved!r}")
        last = len(steps) - 1
        *inner, outer = (empty(one, bias=place == last) for place, one in enumerate(steps))
        return cls(inner, outer)


def settings_of(convolution: nn.Module) -> dict[str, Any]:
    """What a convolution is besides its numbers, in values that JSON knows."""
    known = {name: getattr(convolution, name) for name in sorted(SETTINGS)}
    return {name: list(one) if isinstance(one, tuple) else one for name, one in known.items()}


def empty(saved: Any, *, bias: bool) -> nn.Module:
    """A convolution of these settings, whose numbers are to be loaded.

    Raises:
        ValueError: if a setting is missing, unknown or out of its range.
    """
    if not isinstance(saved, Mapping) or set(saved) != SETTINGS:
        raise ValueError(f"a convolution has the settings {', '.join(sorted(SETTINGS))}, got {saved!r}")
    for name in SIZES:
        require_whole(name, saved[name], at_least=1)
    sizes = {name: whole_numbers(name, saved[name], at_least=1) for name in ALONG}
    padding = saved["padding"]
    padding = padding if padding in ("same", "valid") else whole_numbers("padding", padding, at_least=0)
    if len(sizes["kernel_size"]) not in CONVOLUTIONS:
        raise ValueError(f"kernel_size must have one to three numbers, got {saved['kernel_size']!r}")
    settings = {**{name: saved[name] for name in SIZES}, **sizes, "padding": padding}
    kind: Any = CONVOLUTIONS[len(sizes["kernel_size"])]
    try:
        made: nn.Module = nn.utils.skip_init(kind, **settings, bias=bias, padding_mode=saved["padding_mode"])
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"there is no convolution with the settings {saved!r}: {error}") from None
    return made


def whole_numbers(name: str, saved: Any, *, at_least: int) -> tuple[int, ...]:
    """A saved list of sizes."""
    if not isinstance(saved, (list, tuple)):
        raise ValueError(f"{name} must be a list of whole numbers, got {saved!r}")
    for one in saved:
        require_whole(f"each number of {name}", one, at_least=at_least)
    return tuple(saved)
