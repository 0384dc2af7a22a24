"""A whole image or signal as one sample, which is fitted at each of its places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tenflex.units.example import Example


@dataclass(frozen=True)
class Image(Example):
    """The block maps images, and errors of all their places count alike."""

    name: ClassVar[str] = "image"
    plural: ClassVar[str] = "images"

    def every(self, leaving: Tensor) -> Tensor:
        return leaving.flatten(2).mT.flatten(0, 1)
