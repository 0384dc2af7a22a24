"""Thin linear layers in the place of one, for what really arrives."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.chen2021 import Responses, Spectrum
from tenflex.baselines.linear import stored
from tenflex.baselines.moments import Moments
from tenflex.baselines.zhang2015 import corrected
from tenflex.surgery.cut import Subnetwork


def linear_in(function: nn.Module) -> nn.Linear | None:
    """The linear layer that a block is, if it is nothing else; of several outputs it may have made them by halves."""
    if isinstance(function, Subnetwork) and function.parts is not None:
        return None
    inner = [one for one in function.modules() if not list(one.children())]
    only = inner[0] if len(inner) == 1 else None
    return only if type(only) is nn.Linear else None


def require_linear(name: str, function: nn.Module, rank: int) -> nn.Linear:
    """The linear layer that a block is, if two thin ones of a rank store less.

    Raises:
        ValueError: if the block is something else, or the rank is too large.
    """
    linear = linear_in(function)
    if linear is None:
        raise ValueError(f"block {name!r} is no single nn.Linear, which LowRank({rank}) is for: use a Block")
    if stored(linear, rank) >= stored(linear, None) or rank > min(linear.weight.shape):
        raise ValueError(
            f"block {name!r}: two layers of rank {rank} store {stored(linear, rank):,} numbers, the layer itself "
            f"{stored(linear, None):,}: lower the rank, or leave this block out"
        )
    return linear


def low_rank_axes(linear: nn.Linear, arriving: Float[Tensor, "rows m"], leaving: Float[Tensor, "rows n"]) -> Spectrum:
    r"""The axes in which to cut a layer for what arrives, with what should leave it as target.

    Where what arrives is what the original gets, cutting them is data-aware SVD; after earlier replacements it is the
    asymmetric one, which makes up for them.

    References:
        Chen, Yu, Dhillon, Hsieh, "DRONE: Data-aware low-rank compression for large NLP models", NeurIPS 2021.
        Zhang, Zou, He, Sun, "Accelerating very deep convolutional networks for classification and detection", 2015,
        https://arxiv.org/abs/1505.06798
    """
    responses = Responses.of(linear)
    shift = 0.0 if linear.bias is None else linear.bias.detach().double()
    moments = Moments(torch.cat([responses.R, responses.R]))
    wanted = (leaving.detach().double() - shift) @ responses.Q
    moments.add(torch.cat([wanted, responses.to(arriving)], 1))
    return corrected(linear, responses, moments)
