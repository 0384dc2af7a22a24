"""What is left in the network after compression."""

from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.fold import FOLDS, fold
from tenflex.nn.folded import FoldedLayer
from tenflex.nn.layer import FlexibleLayer
from tenflex.nn.saved import LAYERS, SavedLayer, layer_from_dict, layer_to_dict

__all__ = [
    "FOLDS",
    "LAYERS",
    "FlexibleActivation",
    "FlexibleLayer",
    "FoldedLayer",
    "SavedLayer",
    "fold",
    "layer_from_dict",
    "layer_to_dict",
]
