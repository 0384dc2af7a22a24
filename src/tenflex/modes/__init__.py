"""Families of directions along each axis of an input, such as the rows and columns of an image."""

from tenflex.families import Families, by_name
from tenflex.modes.base import Modes
from tenflex.modes.cosine import Cosine
from tenflex.modes.multilinear import Multilinear
from tenflex.modes.tucker import Tucker

MODES = Families("family of modes", '{"family": "Cosine", "size": 12, "shape": [28, 28]}', by_name(Cosine, Tucker))

__all__ = ["MODES", "Cosine", "Modes", "Multilinear", "Tucker"]
