"""Thin linear layers in the place of one, for what really arrives."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tenflex.baselines.chen2021 import Responses, Spectrum
from tenflex.baselines.linear import CONVOLUTIONS, Dense, is_dense, linear_of, matrix_of, stored
from tenflex.baselines.moments import Moments
from tenflex.baselines.zhang2015 import corrected
from tenflex.planning.kernels import FORMS
from tenflex.planning.plan import LowRank
from tenflex.surgery.cut import Subnetwork


def dense_in(function: nn.Module) -> Dense | None:
    """The linear layer, by whatever name, or the convolution of all channels, that a block is, if it is nothing else.

    Of several outputs it may have made them by halves.
    """
    if isinstance(function, Subnetwork) and function.parts is not None:
        return None
    inner: list[Any] = [one for one in function.modules() if not list(one.children())]
    if len(inner) != 1:
        return None
    (only,) = inner
    return only if is_dense(only) else linear_of(only)


def linear_in(function: nn.Module) -> nn.Linear | None:
    """The linear layer that a block is, if it is nothing else."""
    only = dense_in(function)
    return only if isinstance(only, nn.Linear) else None


def is_for_kernel(asked: object, function: nn.Module) -> bool:
    """Whether what is asked for is made of the second moments of the patches of a convolution."""
    return isinstance(asked, LowRank) and isinstance(dense_in(function), CONVOLUTIONS)


def require_low_rank(name: str, function: nn.Module, asked: LowRank) -> Dense:
    """The layer that a block is, if thin ones in its place store less.

    Raises:
        ValueError: if the block is something else, or the rank is too large.
    """
    dense = dense_in(function)
    if dense is None:
        kinds = "nn.Linear, or convolution of all channels,"
        plain = ", or remove the parametrization first (torch.nn.utils.parametrize.remove_parametrizations)"
        what = plain if any(map(is_parametrized, function.modules())) else ""
        raise ValueError(f"block {name!r} is no single {kinds} which {asked} is for: use a Block{what}")
    if isinstance(dense, nn.Linear) and asked.form != "svd":
        raise ValueError(f"block {name!r} is a linear layer, which has no form {asked.form!r}: leave it out")
    size, now = FORMS[asked.form].size(tuple(dense.weight.shape), asked.rank), stored(dense, None)
    widest = min(dense.weight.flatten(1).shape) if asked.form == "svd" else now
    if size >= now or max(asked.ranks) > widest:
        raise ValueError(
            f"block {name!r}: thin layers of rank {asked.rank} store {size:,} numbers, the layer itself {now:,}: lower "
            "the rank, or leave this block out"
        )
    if asked.form == "tucker2" and any(a > b for a, b in zip(asked.ranks, dense.weight.shape[:2], strict=True)):
        raise ValueError(
            f"block {name!r} has {tuple(dense.weight.shape[:2])} channels, fewer than {asked.rank}: lower the rank"
        )
    return dense


def low_rank_axes(
    linear: nn.Linear,
    arriving: Float[Tensor, "rows m"],
    leaving: Float[Tensor, "rows n"],
    root: Float[Tensor, "n n"] | None = None,
) -> Spectrum:
    r"""The axes in which to cut a layer for what arrives, with what should leave it as target.

    Where what arrives is what the original gets, cutting them is data-aware SVD; after earlier replacements it is the
    asymmetric one, which makes up for them. With the root :math:`\rho` of a metric in which errors count it is the
    layer :math:`\rho A` that is cut.

    References:
        Chen, Yu, Dhillon, Hsieh, "DRONE: Data-aware low-rank compression for large NLP models", NeurIPS 2021.
        Zhang, Zou, He, Sun, "Accelerating very deep convolutional networks for classification and detection", 2015,
        https://arxiv.org/abs/1505.06798
    """
    if root is None:
        responses = Responses.of(linear)
        onto = responses.Q
    else:
        root = root.double()
        Q, R = torch.linalg.qr(root @ matrix_of(linear))
        responses, onto = Responses(linear, torch.linalg.solve(root, Q), R), root @ Q
    shift = 0.0 if linear.bias is None else linear.bias.detach().double()
    moments = Moments(torch.cat([responses.R, responses.R]))
    wanted = (leaving.detach().double() - shift) @ onto
    moments.add(torch.cat([wanted, responses.to(arriving)], 1))
    return corrected(linear, responses, moments)
