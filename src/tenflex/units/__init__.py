"""What one sample of a block is: the whole example, a position of a sequence, a patch of an image or signal."""

from tenflex.units.base import Unit
from tenflex.units.choose import UNITS, find_unit, patches_of_kernel, sample_of
from tenflex.units.draw import Drawn, draw
from tenflex.units.example import Example
from tenflex.units.image import Image
from tenflex.units.mask import find_mask
from tenflex.units.patch import Patch
from tenflex.units.position import Position

__all__ = [
    "UNITS",
    "Drawn",
    "Example",
    "Image",
    "Patch",
    "Position",
    "Unit",
    "draw",
    "find_mask",
    "find_unit",
    "patches_of_kernel",
    "sample_of",
]
