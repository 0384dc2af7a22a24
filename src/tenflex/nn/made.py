"""One flexible layer or two, as the factors or the saved settings say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tenflex.factors import Factors
from tenflex.layered import LayeredFactors
from tenflex.nn.layer import FlexibleLayer
from tenflex.nn.layers import FlexibleLayers


def layer_from_factors(
    factors: Factors | LayeredFactors,
    in_shape: tuple[int, ...] | None = None,
    out_shape: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
) -> FlexibleLayer | FlexibleLayers:
    """The module of a solution; flat inputs and outputs, and the factors' dtype, when left out.

    Raises:
        ValueError: if a shape has another number of entries than the factors.
    """
    if isinstance(factors, LayeredFactors):
        return FlexibleLayers.from_factors(factors, in_shape, out_shape, dtype)
    return FlexibleLayer.from_factors(factors, in_shape, out_shape, dtype)


def layer_from_dict(saved: Mapping[str, Any]) -> FlexibleLayer | FlexibleLayers:
    """The empty module that `to_dict` of either described.

    Raises:
        ValueError: if a setting is missing, unknown or out of its range.
    """
    two = isinstance(saved, Mapping) and isinstance(saved.get("rank"), (list, tuple))
    return FlexibleLayers.from_dict(saved) if two else FlexibleLayer.from_dict(saved)
