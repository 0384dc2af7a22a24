"""The layers that can stand in the place of a block, known by name: what files hold of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from tenflex.checks import near_names
from tenflex.nn.chained import Chained
from tenflex.nn.convolution import FlexibleConv
from tenflex.nn.feed_forward import FeedForward
from tenflex.nn.feed_forward_conv import FeedForwardConv
from tenflex.nn.layer import FlexibleLayer
from tenflex.nn.low_rank import ThinLinear


class SavedLayer(Protocol):
    """A layer that knows its settings; its numbers are in its state_dict."""

    def to_dict(self) -> dict[str, Any]:
        """The settings, in values that JSON knows."""
        ...


KINDS = (FlexibleLayer, FlexibleConv, FeedForward, FeedForwardConv, ThinLinear, Chained)

LAYERS: dict[str, Any] = {one.__name__: one for one in KINDS}
"""Each with `to_dict`, and a class method `from_dict` that checks the settings and makes an empty layer."""


def layer_to_dict(layer: SavedLayer) -> dict[str, Any]:
    """The settings of a layer; those of a `FlexibleLayer` are without a kind, as in the first files."""
    kind = type(layer).__name__
    return layer.to_dict() if kind == FlexibleLayer.__name__ else {"kind": kind, **layer.to_dict()}


def layer_from_dict(saved: Any) -> nn.Module:
    """An empty layer with the settings that `layer_to_dict` gave.

    Raises:
        ValueError: if the kind is unknown, or a setting is missing, unknown or out of its range.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"expected the settings of a layer, got {saved!r}")
    kind = str(saved.get("kind", FlexibleLayer.__name__))
    if kind not in LAYERS:
        raise ValueError(f"no layer is called {kind!r}{near_names(kind, LAYERS)}: update tenflex")
    layer: nn.Module = LAYERS[kind].from_dict({name: one for name, one in saved.items() if name != "kind"})
    return layer
