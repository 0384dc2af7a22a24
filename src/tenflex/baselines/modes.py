"""The same modes for the others: a network whose first layer sees its inputs through them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.linear import linear_layers, put_, require_unshared
from tenflex.baselines.moments import Moments, listening
from tenflex.checks import require_eval
from tenflex.evaluate.fidelity import predict
from tenflex.modes import Modes, Multilinear
from tenflex.nn.low_rank import make_linear
from tenflex.nn.multilinear import ModeProduct
from tenflex.surgery.twin import duplicate

RIDGE = 1e-4
"""Variance added to what the modes tell, relative to the mean: few samples say little of the rest of an input."""


def through_modes(
    model: nn.Module, inputs: Tensor, layer: str, modes: Modes, directions: Multilinear | None = None
) -> nn.Module:
    r"""Let a linear layer see its inputs through modes, as well as these tell them, so that it can be made smaller.

    Of the inputs x of a layer :math:`A x + b` modes tell :math:`P^\top x`, of which the best guess of x is
    :math:`\mu + R P^\top (x - \mu)` with :math:`R = \Sigma P (P^\top \Sigma P)^{-1}`. So the layer becomes
    :math:`A R`, behind the product with P, and its bias takes the means. In comparisons every method is to have the
    modes that one has.

    Args:
        model: Any module of one tensor, in eval mode; it is left as it is.
        inputs: Calibration inputs, `(S, ...)`, unlabelled.
        layer: The name of an `nn.Linear`.
        modes: Of what arrives at it.
        directions: Those that modes which store them have in another network (`FlexibleLayer.modes.multilinear`);
            None for those that what arrives at the layer, and its own matrix, give.

    Returns:
        A new model in eval mode, in which the layer is `nn.Sequential(ModeProduct, nn.Linear)`.

    Raises:
        TypeError: if inputs or outputs are not one tensor, or the layer is a convolution.
        ValueError: if the model is in train mode, the name is unknown, or the modes are not for its inputs.

    Example:
        >>> model = nn.Sequential(nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10)).eval()
        >>> smaller = through_modes(model, torch.rand(100, 784), "0", Cosine(12, shape=(28, 28)))
        >>> smaller[0][1]
        Linear(in_features=144, out_features=30, bias=True)
    """
    require_eval("model", model)
    scratch = duplicate(model)
    linear = linear_layers(scratch, (layer,))[layer]
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"expected the name of an nn.Linear, got {layer!r}, a {type(linear).__name__}")
    require_unshared(scratch, {layer: linear})
    product = ModeProduct(modes.of((linear.in_features,))).to(linear.weight)
    if directions is not None or modes.stored:
        product.fill_(directions or chosen(scratch, inputs, layer, modes))
    moments = Moments(torch.eye(linear.in_features, dtype=torch.float64, device=linear.weight.device))
    with listening({layer: linear}, lambda _, arriving: moments.add(arriving.flatten(0, -2).double())):
        predict(scratch, inputs)
    return put_(scratch, {layer: nn.Sequential(product, behind(linear, product.multilinear, moments)).eval()})


def chosen(model: nn.Module, inputs: Tensor, layer: str, modes: Modes) -> Multilinear:
    """The directions that modes take from what arrives at a linear layer, whose Jacobian is its matrix everywhere."""
    linear, seen = linear_layers(model, (layer,))[layer], list[Tensor]()
    with listening({layer: linear}, lambda _, arriving: seen.append(arriving.flatten(0, -2))):
        predict(model, inputs)
    return modes.choose(torch.cat(seen), linear.weight.detach()[None])


def behind(linear: nn.Linear, modes: Multilinear, moments: Moments) -> nn.Linear:
    """The layer for what modes tell of its inputs."""
    weight, mean = linear.weight.detach().double(), moments.mean
    guess = regression(modes, moments.covariance)
    bias = weight @ (mean - guess @ modes.narrow(mean))
    return make_linear(weight @ guess, bias + (0 if linear.bias is None else linear.bias.detach()), linear.weight)


def regression(modes: Multilinear, covariance: Float[Tensor, "m m"]) -> Float[Tensor, "m k"]:
    """How inputs follow from what modes tell of them, by least squares with a light ridge on what is left out."""
    told = modes.narrow(covariance)  # Sigma P
    within = modes.narrow(told.mT)
    ridge = RIDGE * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype, device=within.device)
    P = modes.matrix().to(told)
    return P + torch.linalg.solve(within + ridge, (told - P @ within).mT).mT
