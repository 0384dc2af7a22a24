"""Low-rank factorization of layers from front to back, each making up for the errors of those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.chen2021 import Responses, Spectrum, data_aware_svd, principal_axes, with_bias
from tenflex.baselines.linear import (
    Dense,
    ThinConvolution,
    linear_layers,
    make_convolution,
    put_,
)
from tenflex.baselines.moments import Moments, listening
from tenflex.evaluate.fidelity import predict
from tenflex.nn.low_rank import ThinLinear, make_linear
from tenflex.surgery.twin import duplicate

PART = 256
"""How many inputs run at a time."""

SHRINKAGE = 1e-4
"""How much of the mean variance holds a correction back to the layer as it is."""


def asymmetric_svd(
    model: nn.Module, inputs: Tensor, parameters: int, *, layers: Sequence[str] | None = None
) -> nn.Module:
    r"""Data-aware SVD whose layers are fitted one after the other, to what arrives in the compressed network.

    Ranks, budget and the first layer are those of `data_aware_svd`. Every following layer receives inputs
    :math:`\hat x` that its predecessors have changed, and is asked for the original outputs y all the same,

    .. math:: \min_{\mathrm{rank} M \le q} \sum_s \| (y_s - \bar y) - M A (\hat x_s - \bar{\hat x}) \|^2,

    a reduced-rank regression of the outputs on the layer's own responses, with a small ridge towards :math:`M = I`. A
    dense layer is corrected in the same way, if it has a bias.

    References:
        Zhang, Zou, He, Sun, "Accelerating very deep convolutional networks for classification and detection", 2015,
        https://arxiv.org/abs/1505.06798 (the asymmetric reconstruction, for linear responses).

    Args:
        model: Any module of one tensor, in eval mode; it is left as it is.
        inputs: Calibration inputs, `(S, ...)`, unlabelled.
        parameters: The most numbers that the named layers may store together, biases included.
        layers: Names of `nn.Linear` modules and of convolutions without groups; None for all of them.

    Returns:
        A new model in eval mode.

    Raises:
        TypeError: as `data_aware_svd`.
        ValueError: as `data_aware_svd`, or if a layer is called another number of times in the compressed network.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3)).eval()
        >>> smaller = asymmetric_svd(model, torch.randn(100, 20), parameters=400)
        >>> sum(one.numel() for one in smaller.parameters()) <= 400
        True
    """
    smaller = data_aware_svd(model, inputs, parameters, layers=layers)
    original = duplicate(model)
    dense = linear_layers(original, layers)
    for name in calling_order(original, dense, inputs):
        responses = Responses.of(dense[name])
        moments = joint_moments(name, (original, smaller), responses, inputs)
        fitted = corrected(dense[name], responses, moments)
        smaller = put_(smaller, {name: replacement(fitted, smaller.get_submodule(name))})
    return smaller


def calling_order(model: nn.Module, layers: Mapping[str, Dense], inputs: Tensor) -> list[str]:
    """The names of the layers as the model calls them."""
    order: dict[str, None] = {}
    with listening(layers, lambda name, arriving: order.setdefault(name)):
        predict(model, inputs[:1])
    return list(order)


def joint_moments(name: str, models: tuple[nn.Module, nn.Module], responses: Responses, inputs: Tensor) -> Moments:
    """The moments of a layer's responses in two models, side by side, `(2k,)`."""
    moments = Moments(torch.cat([responses.R, responses.R]))
    for part in inputs.split(PART):
        original, smaller = (heard(name, model, responses, part) for model in models)
        if len(original) != len(smaller):
            raise ValueError(
                f"the layer {name!r} receives {len(original)} inputs in the model and {len(smaller)} in the compressed "
                "one: its calls depend on values, so it can only be factored by data_aware_svd"
            )
        moments.add(torch.cat([original, smaller], 1))
    return moments


def heard(name: str, model: nn.Module, responses: Responses, inputs: Tensor) -> Float[Tensor, "rows k"]:
    """The responses of the layer at a name to what arrives there."""
    rows: list[Tensor] = []
    with listening({name: model.get_submodule(name)}, lambda _, arriving: rows.append(responses.to(arriving))):
        predict(model, inputs)
    return torch.cat(rows)


def corrected(linear: Dense, responses: Responses, moments: Moments) -> Spectrum:
    """The layer whose responses to what arrives now are nearest to its outputs in the original network."""
    k = len(responses.R)
    covariance, wanted, mean = moments.covariance, moments.mean[:k], moments.mean[k:]
    now = covariance[k:, k:]
    ridge = SHRINKAGE * (now.diagonal().mean().item() or 1.0)
    eye = torch.eye(k, dtype=now.dtype, device=now.device)
    M = eye + torch.linalg.solve(now + ridge * eye, covariance[k:, :k] - now).mT
    R = M @ responses.R
    energies, axes = principal_axes(M @ now @ M.mT, R)
    centre = with_bias(responses.Q @ wanted, linear)
    return Spectrum(linear, responses.Q @ axes, axes.mT @ R, axes.mT @ (M @ mean), centre, energies)


def replacement(fitted: Spectrum, placed: nn.Module) -> nn.Module:
    """The fitted layer at the rank of the one in its place; a dense one without a bias stays, as means need a place."""
    if isinstance(placed, (ThinLinear, ThinConvolution)):
        return fitted.layer(placed.rank)
    has_place: bool = fitted.dense.bias is not None
    if not has_place:
        return placed
    weight = fitted.outer @ fitted.inner
    bias = fitted.centre - fitted.outer @ fitted.mean
    if isinstance(fitted.dense, nn.Linear):
        return make_linear(weight, bias, fitted.dense.weight)
    convolution: nn.Module = make_convolution(weight.view_as(fitted.dense.weight), bias, fitted.dense)
    return convolution
