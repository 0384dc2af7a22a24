"""Rules that choose the coordinates in which a map is decoupled."""

from tenflex.coordinates.base import Coordinates
from tenflex.coordinates.metric import METRICS, Downstream, Fisher, OutputMetric
from tenflex.coordinates.per_output import PerOutput
from tenflex.coordinates.sensitivity import Sensitivity
from tenflex.coordinates.standardize import Standardize
from tenflex.coordinates.whiten import Whiten
from tenflex.families import Families, by_name

COORDINATES = Families(
    "rule of coordinates",
    '{"family": "Whiten", "tolerance": 0.001}',
    by_name(PerOutput, Sensitivity, Standardize, Whiten),
)

__all__ = [
    "COORDINATES",
    "METRICS",
    "Coordinates",
    "Downstream",
    "Fisher",
    "OutputMetric",
    "PerOutput",
    "Sensitivity",
    "Standardize",
    "Whiten",
]
