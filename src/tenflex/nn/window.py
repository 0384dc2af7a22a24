"""Where the patches of an image or signal lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from torch.nn import functional as F

from tenflex.checks import require_whole

Own = TypeVar("Own", bound="PerAxis")


@dataclass(frozen=True)
class PerAxis:
    """Sizes along each axis, tuples of whole numbers, which are saved as lists."""

    what: ClassVar[str]
    """Of what they are the sizes, in messages."""

    def to_dict(self) -> dict[str, Any]:
        """The sizes as lists."""
        return {field.name: list(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls: type[Own], saved: Any) -> Own:
        """The sizes that `to_dict` described.

        Raises:
            ValueError: if a size is missing, unknown or out of its range.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(saved, Mapping) or set(saved) != set(names):
            raise ValueError(f"a {cls.what} has the sizes {names}, got {saved!r}")
        if not all(isinstance(one, (list, tuple)) for one in saved.values()):
            raise ValueError(f"the sizes of a {cls.what} must be lists, got {saved!r}")
        return cls(**{name: tuple(one) for name, one in saved.items()})


@dataclass(frozen=True)
class Window(PerAxis):
    """The patches that a convolution sees, along each axis of an image or signal.

    Args:
        kernel: The numbers along each axis that one patch holds.
        stride: How far apart patches begin.
        before: The zeros before the first number of each axis; less than 0 leaves as many out.
        after: Those after the last.
        dilation: How far apart the numbers of a patch are.

    Raises:
        ValueError: if a size is not a whole number in its range, or they are not all of as many axes, from 1 to 3.

    Example:
        >>> Window(kernel=(3, 3), stride=(1, 1), before=(1, 1), after=(1, 1), dilation=(1, 1)).kernel
        (3, 3)
    """

    what: ClassVar[str] = "window"

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = [getattr(self, field.name) for field in fields(self)]
        if not all(isinstance(one, tuple) and len(one) == len(self.kernel) for one in sizes) or self.dims not in (
            1,
            2,
            3,
        ):
            raise ValueError(f"expected tuples of one number for each of 1 to 3 axes, got {self}")
        for name in ("kernel", "stride", "dilation"):
            for one in getattr(self, name):
                require_whole(f"each number of {name}", one, at_least=1)
        for one in (*self.before, *self.after):
            if isinstance(one, bool) or not isinstance(one, int):
                raise ValueError(f"each number of before and after must be a whole number, got {one!r}")

    @property
    def dims(self) -> int:
        """The number of axes."""
        return len(self.kernel)

    @property
    def spans(self) -> tuple[int, ...]:
        """The lengths from the first number of a patch to its last."""
        return tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilation, strict=True))

    @property
    def symmetric(self) -> bool:
        """Whether a convolution that pads both sides with `before` has the same outputs at the lengths seen."""
        pairs = zip(self.before, self.after, self.stride, strict=True)
        return all(before >= 0 and 0 <= before - after < stride for before, after, stride in pairs)

    def padded(self, x: Tensor) -> Tensor:
        """An image or signal with the zeros around it."""
        pairs = reversed(list(zip(self.before, self.after, strict=True)))  # the last axis comes first
        return F.pad(x, [side for pair in pairs for side in pair])
