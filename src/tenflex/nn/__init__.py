"""What is left in the network after compression."""

from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.layer import FlexibleLayer
from tenflex.nn.layers import FlexibleLayers
from tenflex.nn.made import layer_from_dict, layer_from_factors

__all__ = ["FlexibleActivation", "FlexibleLayer", "FlexibleLayers", "layer_from_dict", "layer_from_factors"]
