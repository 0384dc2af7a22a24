"""What a family of modes is: sizes along the axes of an input, and from the data an orthonormal frame for each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_whole
from tenflex.modes.multilinear import Multilinear

Own = TypeVar("Own", bound="Modes")


@dataclass(frozen=True)
class Modes(ABC):
    """So many directions along each axis of an input; along an axis that is kept whole nothing is done.

    Args:
        size: The directions along every axis, or one number for all of them: axes that are no longer than it, such as
            the channels of an image, are kept whole.
        shape: The axes, where inputs arrive flat, such as `(28, 28)`; None for the shape of the block's inputs.

    Raises:
        TypeError: if `size` or `shape` is something else than whole numbers.
        ValueError: if a size is not at least 1, or there are other sizes than axes.

    Example:
        >>> frame = Tucker(2, shape=(3, 2)).choose(torch.randn(50, 6), torch.randn(50, 4, 6))
        >>> frame.shape
        (3, 2)
    """

    stored: ClassVar[bool] = True
    """Whether the directions are numbers of the layer; if not, `generate` makes them anew wherever they are needed."""

    from_jacobians: ClassVar[bool] = False
    """Whether `choose` needs Jacobians."""

    size: int | tuple[int, ...]
    shape: tuple[int, ...] | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.stored and cls.generate is Modes.generate:
            raise TypeError(
                f"{cls.__name__} says stored = False, so no layer and no file holds its directions: expected a method "
                f"generate(device) that makes them of the settings alone, got none: give it one, or say stored = True"
            )

    def __post_init__(self) -> None:
        for name in ("size", "shape"):
            given = getattr(self, name)
            if isinstance(given, list):
                object.__setattr__(self, name, tuple(given))
            elif not isinstance(given, (int, tuple)) and not (name == "shape" and given is None):
                raise TypeError(f"{name} of {type(self).__name__} must be whole numbers, one an axis, got {given!r}")
        sizes = self.size if isinstance(self.size, tuple) else (self.size,)
        for one in sizes:
            require_whole("each size of modes", one, at_least=1)
        if not sizes or isinstance(self.shape, int) or self.shape == ():
            raise ValueError(f"expected modes such as {type(self).__name__}(12, shape=(28, 28)), got {self!r}")
        for one in self.shape or ():
            require_whole("each axis in the shape of modes", one, at_least=1)
        if self.shape is not None and isinstance(self.size, tuple):
            self._require_axes(self.shape)

    def _require_axes(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the sizes are those of axes of this shape."""
        sizes = self.sizes(shape)
        if len(sizes) != len(shape) or any(one > axis for one, axis in zip(sizes, shape, strict=True)):
            raise ValueError(
                f"modes need one size an axis, none above its length: {shape} has the axes, got the sizes {sizes}"
            )

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The directions along each axis of a shape."""
        return self.size if isinstance(self.size, tuple) else tuple(min(self.size, one) for one in shape)

    def of(self: Own, in_shape: tuple[int, ...]) -> Own:
        """The same for inputs of a shape, with all its axes and sizes.

        Raises:
            ValueError: if they are not for such inputs.
        """
        shape = tuple(self.shape or in_shape)
        if math.prod(shape) != math.prod(in_shape):
            raise ValueError(
                f"{self!r} has axes of {math.prod(shape)} numbers, but here the shape is {tuple(in_shape)}: "
                f"give a shape of {math.prod(in_shape)} numbers"
            )
        self._require_axes(shape)
        return replace(self, size=self.sizes(shape), shape=shape)

    def stored_numbers(self, in_shape: tuple[int, ...]) -> int:
        """What the directions add to the numbers of a layer."""
        whole = self.of(in_shape)
        axes = zip(whole.shape or (), whole.sizes(whole.shape or ()), strict=True)
        return sum(n * p for n, p in axes if p < n) if self.stored else 0

    def core_size(self, in_shape: tuple[int, ...]) -> int:
        """How many numbers are left of an input."""
        shape = self.of(in_shape).shape or ()
        return math.prod(self.sizes(shape))

    def generate(self, device: torch.device) -> Multilinear:
        """The frames, in float64, that follow from the settings alone; for modes that know their axes (`of`).

        Raises:
            TypeError: if the directions are stored: these come from data.
        """
        raise TypeError(f"expected modes that generate their directions, such as Cosine(12), got {self!r}")

    def choose_outputs(self, outputs: Float[Tensor, "S *n"]) -> Multilinear:
        """The frames for these outputs, in float64: what is outside of them is lost."""
        return self.choose(outputs)

    @abstractmethod
    def choose(self, inputs: Float[Tensor, "S *m"], jacobians: Float[Tensor, "some n m"] | None = None) -> Multilinear:
        """The frames for these inputs, in float64; Jacobians are those of some of the samples.

        Axes that are kept whole have None. Modes that store nothing give what they `generate`, whatever the inputs.
        """
