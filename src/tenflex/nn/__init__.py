"""What is left in the network after compression."""

from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.layer import FlexibleLayer

__all__ = ["FlexibleActivation", "FlexibleLayer"]
