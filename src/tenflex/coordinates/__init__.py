"""Rules that choose the coordinates in which a map is decoupled."""

from tenflex.coordinates.base import Coordinates
from tenflex.coordinates.per_output import PerOutput
from tenflex.coordinates.sensitivity import Sensitivity
from tenflex.coordinates.standardize import Standardize
from tenflex.coordinates.whiten import Whiten

__all__ = ["Coordinates", "PerOutput", "Sensitivity", "Standardize", "Whiten"]
