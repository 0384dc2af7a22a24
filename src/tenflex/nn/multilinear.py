"""The first linear map of a layer whose inputs are tensors: one matrix an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.modes import Modes, Multilinear
from tenflex.modes.cosine import cosines
from tenflex.modes.multilinear import cheapest_order, multiply_adds


class ModeProduct(nn.Module):
    """The map from an input to what its modes tell of it, axis by axis.

    Directions that are computed are parameters; those that are generated are buffers in no state_dict, and made anew in
    whatever dtype and on whatever device the module is brought to.

    Args:
        modes: With all sizes and axes, as `Modes.of` gives them. Directions that are stored start as cosines.
    """

    def __init__(self, modes: Modes) -> None:
        super().__init__()
        self.modes = modes
        self.kept: Kept | None = None
        like = torch.empty(0)  # of the default dtype, on the default device
        for name, frame in self._generated(like).items():
            if modes.stored:
                self.register_parameter(name, nn.Parameter(frame))
            else:
                self.register_buffer(name, frame, persistent=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes of an input."""
        return self.modes.shape or ()

    def _generated(self, like: Tensor) -> dict[str, Tensor]:
        """What stands along each axis before data are known, by name, in the dtype and on the device of a tensor."""
        device = like.device if like.is_meta else torch.device("cpu")
        found = cosines(self.modes, device) if self.modes.stored else self.modes.generate(device)
        return {f"axis{axis}": one.to(like) for axis, one in enumerate(found.frames) if one is not None}

    @property
    def multilinear(self) -> Multilinear:
        """The map, with the module's own tensors."""
        return Multilinear(self.shape, tuple(getattr(self, f"axis{axis}", None) for axis in range(len(self.shape))))

    def forward(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch k"]:
        """What the modes tell of flat inputs, axis by axis in the cheapest order."""
        return self.multilinear.narrow(x)

    def macs(self) -> int:
        """Multiply-adds for one input."""
        sizes = {axis: one.shape[1] for axis, one in enumerate(self.multilinear.frames) if one is not None}
        return multiply_adds(self.shape, sizes, cheapest_order(self.shape, sizes))

    @torch.no_grad()
    def fill_(self, multilinear: Multilinear) -> None:
        """Take over directions; those that are generated are made anew."""
        for axis, frame in enumerate(multilinear.frames):
            if frame is not None and self.modes.stored:
                getattr(self, f"axis{axis}").copy_(frame)
        self.generate_()

    def generate_(self, like: Tensor | None = None) -> None:
        """Make the directions anew that are not stored, in the dtype and on the device of a tensor, or as they are."""
        present = [] if self.modes.stored else list(self.buffers())
        for name, frame in self._generated(present[0] if like is None else like).items() if present else ():
            setattr(self, name, frame)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ModeProduct:
        super()._apply(fn, recurse)
        self.generate_()  # another dtype rounds them, and empty memory is without them
        return self

    def expand_(self, weight: Float[Tensor, "q k"]) -> None:
        """Multiply a matrix behind the modes out, and keep the product for as long as neither changes."""
        with torch.inference_mode(False), torch.no_grad():  # in this order: the first turns gradients on
            used = [one.detach().clone() for one in self._used(weight)]
            self.kept = None if weight.is_meta else Kept(used, self.multilinear.widen(weight.detach()).clone())

    def expanded(self, weight: Float[Tensor, "q k"]) -> Float[Tensor, "q m"] | None:
        """The product that was kept; None if something has changed since, or there is none.

        Where gradients or a graph are asked for there is none, as it is not made of the parameters then.
        """
        if self.kept is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        used = self._used(weight)
        alike = all(type(one) in (Tensor, nn.Parameter) for one in used)  # no stand-ins that have no numbers
        return self.kept.product if alike and all(map(same, used, self.kept.of)) else None

    def _used(self, weight: Tensor) -> list[Tensor]:
        return [weight, *(one for one in self.multilinear.frames if one is not None and self.modes.stored)]

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"{self.modes!r}"


class Kept:
    """A product, and copies of what it was made of: tensors that belong to no state."""

    def __init__(self, of: list[Tensor], product: Tensor) -> None:
        self.of = of
        self.product = product


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of one kind and hold the same numbers."""
    return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)
