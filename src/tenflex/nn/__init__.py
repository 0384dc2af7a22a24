"""What is left in the network after compression."""

from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.attention import Attention, opened
from tenflex.nn.convolution import FlexibleConv
from tenflex.nn.elementwise import Elementwise
from tenflex.nn.feed_forward import FeedForward
from tenflex.nn.feed_forward_conv import FeedForwardConv, Sliding
from tenflex.nn.fold import FOLDS, fold
from tenflex.nn.folded import FoldedLayer
from tenflex.nn.layer import FlexibleLayer
from tenflex.nn.saved import LAYERS, SavedLayer, layer_from_dict, layer_to_dict
from tenflex.nn.window import Window

__all__ = [
    "FOLDS",
    "LAYERS",
    "Attention",
    "Elementwise",
    "FeedForward",
    "FeedForwardConv",
    "FlexibleActivation",
    "FlexibleConv",
    "FlexibleLayer",
    "FoldedLayer",
    "SavedLayer",
    "Sliding",
    "Window",
    "fold",
    "layer_from_dict",
    "layer_to_dict",
    "opened",
]
