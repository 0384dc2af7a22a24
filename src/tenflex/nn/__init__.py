"""What is left in the network after compression."""

from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.convolution import FlexibleConv
from tenflex.nn.elementwise import Elementwise
from tenflex.nn.feed_forward import FeedForward
from tenflex.nn.layer import FlexibleLayer
from tenflex.nn.saved import LAYERS, SavedLayer, layer_from_dict, layer_to_dict
from tenflex.nn.window import Window

__all__ = [
    "LAYERS",
    "Elementwise",
    "FeedForward",
    "FlexibleActivation",
    "FlexibleConv",
    "FlexibleLayer",
    "SavedLayer",
    "Window",
    "layer_from_dict",
    "layer_to_dict",
]
